"""Lets the versions in the shadow answer what clients were answered, after the answer, on a thread of its own.

What was answered waits in a queue that is bounded. Twice a second the thread predicts all of it together, which takes a
fraction of the time that single rows take. Nobody gets these answers: they are recorded beside those that clients got. What is
left out is counted. No request waits for any of this, or fails because of it.

Neighbours: :mod:`perennial.serving.challengers` knows the versions; :mod:`perennial.serving.recording` records the answers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from threadpoolctl import threadpool_limits

from perennial.core.errors import NotAnswered
from perennial.serving.batching import predict_all
from perennial.serving.challengers import Challengers
from perennial.serving.champion import Served
from perennial.serving.lookup import look_up
from perennial.serving.online_table import OnlineTable
from perennial.serving.recording import Answered, Recorder, is_recorded
from perennial.serving.requests import Keys, Rows

log = logging.getLogger(__name__)

#: Seconds between two predictions, and most rows in memory.
EVERY, MOST_ROWS = 0.5, 5_000
#: Most rows that are predicted together: while they are, requests may have to wait for Python.
_TOGETHER = 256
#: Longest time that the end of the process waits.
_PATIENCE = 10.0


def features_for(
    other: Served,
    answered: Served,
    rows: Rows,
    overrides: Sequence[Mapping[str, Any]] | None,
    table: OnlineTable,
    now: datetime,
) -> Rows | None:
    """The features of a request for another version than the one that it was answered by.

    Versions with the same definition of features have the same features. For another definition they are looked up, where the
    request was by key; what was given or computed for one definition is not of another.

    Args:
        other: the version.
        answered: the version that they were made for.
        rows: the features that were made for it.
        overrides: per row, what the client gave beside a key; None if the request was not by key.
        table: the online tables.
        now: the age of stored features counts to here.

    Returns:
        None if they are not known.

    Raises:
        NotAnswered: see :func:`~perennial.serving.lookup.look_up`.
    """
    its = set(other.loaded.features)
    if other.features_digest is not None and other.features_digest == answered.features_digest:
        return rows if its <= rows.columns.keys() else None
    if overrides is None or rows.keys is None or other.stored is None or other.key != answered.key:
        return None
    if any(overrides):  # a value of a feature that is made in another way may mean something else
        return None
    return look_up(table, other, Keys(rows.keys, [{} for _ in range(rows.count)]), now)


class Shadowing:
    """Answers in the shadow, for one process. Threads may share it.

    Args:
        challengers: the versions.
        table: rows of features by key.
        recorder: records the answers.
        predicted: called with a model and a number of rows that were answered in the shadow.
        left_out: called with a model, a number of rows and why a version in the shadow does not answer them: ``full`` (the
            queue was), ``features`` (it has others, and they are not known), ``failed`` (it gives no prediction).
    """

    def __init__(
        self,
        challengers: Challengers,
        table: OnlineTable,
        recorder: Recorder,
        *,
        predicted: Callable[[str, int], object],
        left_out: Callable[[str, int, str], object],
    ) -> None:
        self._challengers, self._table, self._recorder = challengers, table, recorder
        self._predicted, self._left_out = predicted, left_out
        self._queue: deque[Answered] = deque()
        self._waiting = 0
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._failed = False

    def start(self) -> None:
        """Begin to answer, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Answer what is in the queue, and end."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def add(self, answered: Answered) -> None:
        """Let those in the shadow answer a request that was answered and is recorded. It neither waits nor fails."""
        try:
            others, online = self._challengers.others(answered.served), answered.served.online
            if not others or online is None or not is_recorded(online.recorded, answered.request_id):
                return
            rows = answered.rows.count
            with self._lock:
                full = self._waiting + rows > MOST_ROWS
                if not full:
                    self._queue.append(answered)
                    self._waiting += rows
            if full:
                self._left_out(answered.served.model, rows * len(others), "full")
        # A fault here must not cost a request.
        except Exception as error:
            log.warning("a request cannot be answered in the shadow (%s)", type(error).__name__)

    def _run(self) -> None:
        # Rows are few: starting further threads of OpenMP or BLAS takes longer than they save.
        threadpool_limits(1)
        while not self._ending.wait(EVERY):
            self._answer()
        self._answer()

    def _answer(self) -> None:
        with self._lock:
            waiting, self._queue, self._waiting = self._queue, deque(), 0
        asked: dict[int, tuple[Served, list[tuple[Answered, Rows]]]] = {}
        for answered in waiting:
            for other in self._challengers.others(answered.served):
                rows = self._features(other, answered)
                if rows is not None:
                    asked.setdefault(id(other), (other, []))[1].append((answered, rows))
        for other, its in asked.values():
            for some in _parts(its):
                self._predict(other, some)

    def _features(self, other: Served, answered: Answered) -> Rows | None:
        try:
            overrides = answered.overrides if answered.form == "key" else None
            rows = features_for(other, answered.served, answered.rows, overrides, self._table, datetime.now(UTC))
            why = "features"
        # Whatever it is, the other answers are not to be lost.
        except Exception as error:
            self._has_failed(other, error)
            rows, why = None, "features" if isinstance(error, NotAnswered) else "failed"
        if rows is None:
            self._left_out(other.model, answered.rows.count, why)
        return rows

    def _predict(self, other: Served, asked: Sequence[tuple[Answered, Rows]]) -> None:
        began = time.perf_counter()
        predictions = predict_all(other, [rows for _, rows in asked])
        seconds = time.perf_counter() - began
        for (answered, rows), prediction in zip(asked, predictions, strict=True):
            if isinstance(prediction, NotAnswered):
                self._has_failed(other, prediction)
                self._left_out(other.model, rows.count, "failed")
                continue
            made = replace(answered, served=other, rows=rows, prediction=prediction, seconds=seconds, role="shadow")
            self._recorder.add(made)
            self._predicted(other.model, rows.count)
        # Requests get a turn.
        time.sleep(0)

    def _has_failed(self, other: Served, error: Exception) -> None:
        if not self._failed:  # its text may quote a request
            log.warning(
                "%s, in the shadow, cannot answer (%s); what it leaves out is counted", other.name, type(error).__name__
            )
        self._failed = True


def _parts(asked: Sequence[tuple[Answered, Rows]]) -> Iterator[list[tuple[Answered, Rows]]]:
    """In parts of at most so many rows, unless one request has more."""
    part: list[tuple[Answered, Rows]] = []
    count = 0
    for one in asked:
        if part and count + one[1].count > _TOGETHER:
            yield part
            part, count = [], 0
        part.append(one)
        count += one[1].count
    if part:
        yield part
