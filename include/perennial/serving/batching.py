"""Predicts together what is asked together, in a thread of its own.

A prediction of one row costs nearly as much as one of a hundred. While the thread predicts, requests gather. Then it takes
all of them that ask the same version. So an idle server answers at once, and a busy one predicts many rows at a time, without
a wait that somebody would have to choose.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Generic, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from perennial.core.errors import NotAnswered, ScoringError
from perennial.model.artifacts import Prediction
from perennial.serving.champion import Served
from perennial.serving.requests import Entities, Rows

#: Most rows that are predicted together, unless one request has more.
MOST_ROWS = 1_024


Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


@dataclass
class _Waiting(Generic[Asked, Answer]):
    served: Served
    asked: Asked
    answer: asyncio.Future[Answer]


class _Together(Generic[Asked, Answer]):
    """Works for many requests at once, on a thread of its own: what waits while it works is taken together next.

    It belongs to one event loop.

    Args:
        work: the answers to several requests that ask one version, or why one has none, in their order.
        thread: works; has one thread.
        rows: the number of rows of a request.
        together: whether requests can be worked on together, if they ask the same version.
    """

    def __init__(
        self,
        work: Callable[[Served, list[Asked]], list[Answer | NotAnswered]],
        thread: ThreadPoolExecutor,
        rows: Callable[[Asked], int],
        together: Callable[[Asked, Asked], bool] = lambda *_: True,
    ) -> None:
        self._work, self._thread, self._rows, self._together = work, thread, rows, together
        self._waiting: deque[_Waiting[Asked, Answer]] = deque()
        self._busy = False

    async def _ask(self, served: Served, asked: Asked) -> Answer:
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Asked, Answer] = _Waiting(served, asked, loop.create_future())
        self._waiting.append(waiting)
        if not self._busy:
            self._busy = True
            # After all that has arrived by now.
            loop.call_soon(self._next)
        return await waiting.answer

    def close(self) -> None:
        """End the thread after its current work."""
        self._thread.shutdown(cancel_futures=True)

    def _next(self) -> None:
        batch = self._take()
        if not batch:
            self._busy = False
            return
        running = asyncio.get_running_loop().run_in_executor(
            self._thread, self._work, batch[0].served, [one.asked for one in batch]
        )
        running.add_done_callback(partial(self._done, batch))

    def _take(self) -> list[_Waiting[Asked, Answer]]:
        """The oldest request and those after it that ask the same version; without those that nobody waits for any more."""
        batch: list[_Waiting[Asked, Answer]] = []
        rows = 0
        later: deque[_Waiting[Asked, Answer]] = deque()
        for one in self._waiting:
            if one.answer.done():
                continue
            count = self._rows(one.asked)
            fits = not batch or (
                one.served is batch[0].served and rows + count <= MOST_ROWS and self._together(batch[0].asked, one.asked)
            )
            if fits:
                batch.append(one)
                rows += count
            else:
                later.append(one)
        self._waiting = later
        return batch

    def _done(self, batch: list[_Waiting[Asked, Answer]], running: asyncio.Future[list[Answer | NotAnswered]]) -> None:
        error = running.exception()
        answers = [error] * len(batch) if error is not None else running.result()
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():
                continue
            if isinstance(answer, BaseException):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)
        self._next()


class Batcher(_Together[Rows, Prediction]):
    """Predicts for many requests at once. It belongs to one event loop.

    Args:
        seen: called with the name of the model and the number of rows of each prediction.
    """

    def __init__(self, seen: Callable[[str, int], None]) -> None:
        def work(served: Served, asked: list[Rows]) -> list[Prediction | NotAnswered]:
            seen(served.model, sum(rows.count for rows in asked))
            return predict_all(served, asked)

        # One thread: more would only wait for each other, since Python runs one at a time.
        thread = ThreadPoolExecutor(1, thread_name_prefix="predict", initializer=_use_one_thread)
        super().__init__(work, thread, lambda rows: rows.count)

    async def predict(self, served: Served, rows: Rows) -> Prediction:
        """Predictions for the rows of a request.

        Raises:
            NotAnswered: the version gives no prediction for them.
        """
        return await self._ask(served, rows)


class Computer(_Together[Entities, Rows]):
    """Computes features on demand for many requests at once. It belongs to one event loop.

    Args:
        compute: the features of several requests that ask one version, or why one has none, in their order.
    """

    def __init__(self, compute: Callable[[Served, Sequence[Entities]], list[Rows | NotAnswered]]) -> None:
        # Of its own, since it takes longer by far than a prediction.
        thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        # What is of a moment in the past is alone.
        super().__init__(
            compute,
            thread,
            lambda asked: asked.table.num_rows,
            lambda first, other: first.as_of is None and other.as_of is None,
        )

    async def compute(self, served: Served, asked: Entities) -> Rows:
        """The features of a request's entities.

        Raises:
            NotAnswered: it has none.
        """
        return await self._ask(served, asked)


def predict_all(served: Served, asked: Sequence[Rows]) -> list[Prediction | NotAnswered]:
    """The predictions of several requests, or why one has none, in their order. No request fails because of another."""
    columns = {name: list(chain.from_iterable(rows.columns[name] for rows in asked)) for name in served.loaded.features}
    try:
        together = served.predict(columns, sum(rows.count for rows in asked))
    # An estimator may raise anything. Other requests must not fail with the one that it fails on.
    except Exception as error:
        if len(asked) > 1:
            return [predict_all(served, [rows])[0] for rows in asked]
        reason = str(error) if isinstance(error, ScoringError) else f"{served.name} failed: {type(error).__name__}"
        return [NotAnswered(reason, status=500)]
    found: list[Prediction | NotAnswered] = []
    start = 0
    for rows in asked:
        found.append(_checked(served, together[start : start + rows.count]))
        start += rows.count
    return found


def _checked(served: Served, prediction: Prediction) -> Prediction | NotAnswered:
    unfit = ~np.isfinite(prediction.numbers).all(axis=1)
    if not unfit.any():
        return prediction
    row = int(unfit.argmax())
    return NotAnswered(
        f"{served.name} gives no finite number for row {row}; such a prediction is not published", status=500, row=row
    )


def _use_one_thread() -> None:
    # Rows are few: starting further threads of OpenMP or BLAS takes longer than they save.
    threadpool_limits(1)
