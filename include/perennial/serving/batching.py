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

import numpy as np
from threadpoolctl import threadpool_limits

from perennial.core.errors import NotAnswered, ScoringError
from perennial.model.artifacts import Prediction
from perennial.serving.champion import Served
from perennial.serving.requests import Entities, Rows

#: Most rows that are predicted together, unless one request has more.
MOST_ROWS = 1_024


@dataclass
class _Waiting:
    served: Served
    rows: Rows
    answer: asyncio.Future[Prediction]


class Batcher:
    """Predicts for many requests at once. It belongs to one event loop.

    Args:
        seen: called with the name of the model and the number of rows of each prediction.
    """

    def __init__(self, seen: Callable[[str, int], None]) -> None:
        self._seen = seen
        # One thread: more would only wait for each other, since Python runs one at a time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict", initializer=_use_one_thread)
        self._waiting: deque[_Waiting] = deque()
        self._busy = False

    async def predict(self, served: Served, rows: Rows) -> Prediction:
        """Predictions for the rows of a request.

        Raises:
            NotAnswered: the version gives no prediction for them.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(served, rows, loop.create_future())
        self._waiting.append(waiting)
        if not self._busy:
            self._busy = True
            # After all that has arrived by now.
            loop.call_soon(self._next)
        return await waiting.answer

    def close(self) -> None:
        """End the thread after its current prediction."""
        self._thread.shutdown()

    def _next(self) -> None:
        batch = self._take()
        if not batch:
            self._busy = False
            return
        self._seen(batch[0].served.model, sum(one.rows.count for one in batch))
        running = asyncio.get_running_loop().run_in_executor(
            self._thread, predict_all, batch[0].served, [one.rows for one in batch]
        )
        running.add_done_callback(partial(self._done, batch))

    def _take(self) -> list[_Waiting]:
        """The oldest request and those after it that ask the same version; without those that nobody waits for any more."""
        batch: list[_Waiting] = []
        rows = 0
        later: deque[_Waiting] = deque()
        for one in self._waiting:
            if one.answer.done():
                continue
            fits = not batch or (one.served is batch[0].served and rows + one.rows.count <= MOST_ROWS)
            if fits:
                batch.append(one)
                rows += one.rows.count
            else:
                later.append(one)
        self._waiting = later
        return batch

    def _done(self, batch: list[_Waiting], running: asyncio.Future[list[Prediction | NotAnswered]]) -> None:
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


class Computer:
    """Computes features on demand for many requests at once, as :class:`Batcher` predicts. It belongs to one event loop.

    Args:
        compute: the features of several requests that ask one version, or why one has none, in their order.
    """

    def __init__(self, compute: Callable[[Served, Sequence[Entities]], list[Rows | NotAnswered]]) -> None:
        self._compute = compute
        # Of its own, since it takes longer by far than a prediction.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._waiting: deque[tuple[Served, Entities, asyncio.Future[Rows]]] = deque()
        self._busy = False

    async def compute(self, served: Served, asked: Entities) -> Rows:
        """The features of a request's entities.

        Raises:
            NotAnswered: it has none.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Rows] = loop.create_future()
        self._waiting.append((served, asked, answer))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._next)
        return await answer

    def close(self) -> None:
        """End the thread after its current work."""
        self._thread.shutdown(cancel_futures=True)

    def _next(self) -> None:
        batch = self._take()
        if not batch:
            self._busy = False
            return
        running = asyncio.get_running_loop().run_in_executor(
            self._thread, self._compute, batch[0][0], [asked for _, asked, _ in batch]
        )
        running.add_done_callback(partial(self._done, [answer for _, _, answer in batch]))

    def _take(self) -> list[tuple[Served, Entities, asyncio.Future[Rows]]]:
        """The oldest request and those after it that ask the same version; one that is of a moment in the past is alone."""
        waiting = [one for one in self._waiting if not one[2].done()]
        batch = waiting[:1]
        rows = sum(asked.table.num_rows for _, asked, _ in batch)
        for one in waiting[1:]:
            served, asked, _ = one
            rows += asked.table.num_rows
            if batch[0][1].as_of is None and asked.as_of is None and served is batch[0][0] and rows <= MOST_ROWS:
                batch.append(one)
        self._waiting = deque(one for one in waiting if not any(one is taken for taken in batch))
        return batch

    def _done(self, answers: list[asyncio.Future[Rows]], running: asyncio.Future[list[Rows | NotAnswered]]) -> None:
        error = running.exception()
        found = [error] * len(answers) if error is not None else running.result()
        for answer, one in zip(answers, found, strict=True):
            if answer.done():
                continue
            if isinstance(one, BaseException):
                answer.set_exception(one)
            else:
                answer.set_result(one)
        self._next()


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
