"""Records what is asked and answered, without a request waiting for it.

After an answer is sent, its rows go to a queue in memory. A thread stores them in chunks, at least each second
(:mod:`perennial.serving.request_table`). If the database does not take them, they wait in the queue. If the queue is full,
newer rows are left out, and counted.

A process that is killed loses what it had in its queue. So each process counts what it has answered in small files that are
mapped into its memory: the kernel keeps what was written there, however the process ends. Another process, or its successor on
the same machine, finds the files, compares them with what was stored, and reports the difference once.

Neighbours: :mod:`perennial.serving.app` hands over what was answered; :mod:`perennial.serving.recorded` publishes it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa

from perennial.core.errors import ServingError
from perennial.model.artifacts import Prediction
from perennial.serving.challengers import Role, in_share
from perennial.serving.champion import Served
from perennial.serving.online_table import entity_texts
from perennial.serving.request_table import SCHEMA, RequestTable
from perennial.serving.requests import GIVEN, MISSING, Rows

log = logging.getLogger(__name__)

#: Longest time that a row waits before it is stored, and most rows of a chunk.
EVERY, CHUNK = 1.0, 2_000
#: Most rows in memory.
MOST_ROWS = 20_000
#: Seconds between two looks for processes that were killed.
_LOOK = 30.0
#: Longest time that the end of the process waits for the database.
_PATIENCE = 10.0
#: Two counts in a file: rows that were answered, and rows that were left out.
_COUNTS = struct.Struct("<QQ")


@dataclass(frozen=True)
class Answered:
    """A request that was answered.

    Attributes:
        request_id: of the request.
        at: when it came.
        seconds: how long it took.
        form: ``features``, ``key``, ``entity``, ``invocations`` or ``inference``.
        served: the version that answered.
        rows: what was asked.
        prediction: what was answered.
        overrides: per row, the features that the client gave beside a key; None for other forms.
        role: as what the version answered.
    """

    request_id: str
    at: datetime
    seconds: float
    form: str
    served: Served
    rows: Rows
    prediction: Prediction
    overrides: Sequence[Mapping[str, Any]] | None = None
    role: Role = "champion"


def is_recorded(share: float, request_id: str) -> bool:
    """Whether a request belongs to the share of requests that are recorded. It depends on its id alone."""
    return share >= 1 or in_share(share, request_id)


class Tally:
    """Counts of one process and one model that survive the process, in a file that it holds locked while it lives.

    Args:
        folder: of the files of all processes of this machine.
        recorder: the process.
        model: the model.
    """

    def __init__(self, folder: Path, recorder: str, model: str) -> None:
        self.file = folder / f"{recorder}.{model}"
        # Locked before others can see it: an unlocked one is of a dead process.
        draft = folder / f".{recorder}.{model}"
        self._descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._descriptor, _COUNTS.size)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        draft.rename(self.file)
        self._map = mmap.mmap(self._descriptor, _COUNTS.size)
        self._answered = self._left_out = 0

    def count(self, *, answered: int = 0, left_out: int = 0) -> None:
        """Add rows."""
        self._answered += answered
        self._left_out += left_out
        _COUNTS.pack_into(self._map, 0, self._answered, self._left_out)

    def close(self) -> None:
        """Let go of the file; the counts stay in it."""
        self._map.close()
        os.close(self._descriptor)


def settle(folder: Path, table: RequestTable, lost: Callable[[str, int], object]) -> None:
    """Report what processes of this machine that have ended had answered and not stored, once, and remove their files.

    Args:
        folder: of the files.
        table: what was stored.
        lost: called with the model and the number of rows.

    Raises:
        ServingError: the database does not answer; the files stay.
    """
    for file in sorted(folder.glob("[!.]*")):
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            counts = os.read(descriptor, _COUNTS.size)
            recorder, _, model = file.name.partition(".")
            if len(counts) == _COUNTS.size:
                answered, left_out = _COUNTS.unpack(counts)
                missing = table.end(recorder, model, answered - left_out)
                if missing:
                    lost(model, missing)
            file.unlink(missing_ok=True)
        except BlockingIOError:
            continue  # it lives
        finally:
            os.close(descriptor)


class Recorder:
    """Records requests of one process. Threads may share it.

    Args:
        table: where rows are stored.
        folder: for the counts that survive this process; it is there.
        stored: called with a model and a number of rows that were stored.
        left_out: called with a model, a number of rows and why they are not recorded: ``full`` (the queue was), ``down`` (the
            database did not answer until the end), ``killed`` (an earlier process had them in memory).
    """

    def __init__(
        self,
        table: RequestTable,
        folder: Path,
        *,
        stored: Callable[[str, int], object] = lambda *_: None,
        left_out: Callable[[str, int, str], object] = lambda *_: None,
    ) -> None:
        self._table, self._folder = table, folder
        self._stored, self._left_out = stored, left_out
        self._id = uuid4().hex
        self._queue: deque[Answered] = deque()
        self._waiting = 0
        self._lock = threading.Lock()
        self._tallies: dict[str, Tally] = {}
        self._numbers: dict[str, int] = {}
        # A chunk that may be stored already, since the database did not say so: it is sent again as it is.
        self._pending: dict[str, tuple[int, list[Answered], pa.RecordBatch]] = {}
        self._more, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._made = self._failed = False
        self._looked = -_LOOK

    def start(self) -> None:
        """Begin to store, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Store what is in the queue, and end. If the database does not answer, the rows are left out."""
        self._ending.set()
        self._more.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            return  # the database hangs; the next process counts what this one could not store
        left = [*self._queue, *(one for _, some, _ in self._pending.values() for one in some)]
        for answered in left:
            self._leave_out(answered, "down")
        for tally in self._tallies.values():
            tally.close()
        with suppress(ServingError, OSError):
            settle(self._folder, self._table, self._lost)

    def add(self, answered: Answered) -> None:
        """Record a request, if it belongs to the share that is recorded. It neither waits nor fails."""
        try:
            online, model, rows = answered.served.online, answered.served.model, answered.rows.count
            if online is None or not is_recorded(online.recorded, answered.request_id):
                return
            with self._lock:
                self._tally(model).count(answered=rows)
                if self._waiting + rows > MOST_ROWS:
                    self._leave_out(answered, "full")
                    return
                self._queue.append(answered)
                self._waiting += rows
                enough = self._waiting >= CHUNK
            if enough:
                self._more.set()
        # A fault here must not cost a request.
        except Exception as error:
            log.warning("a request cannot be recorded (%s)", type(error).__name__)

    def _tally(self, model: str) -> Tally:
        if model not in self._tallies:
            self._tallies[model] = Tally(self._folder, self._id, model)
        return self._tallies[model]

    def _leave_out(self, answered: Answered, why: str) -> None:
        model, rows = answered.served.model, answered.rows.count
        self._tally(model).count(left_out=rows)
        self._left_out(model, rows, why)

    def _lost(self, model: str, rows: int) -> None:
        log.warning("%s: a scorer was killed before it had recorded %d rows that it had answered", model, rows)
        self._left_out(model, rows, "killed")

    def _run(self) -> None:
        while not self._ending.is_set():
            self._more.wait(EVERY)
            self._more.clear()
            self._try()
        self._try(everything=True)

    def _try(self, *, everything: bool = False) -> None:
        """Store what is there now. What fails, and less than a chunk that comes meanwhile, waits for the next time."""
        try:
            if not self._made and (self._queue or self._pending or any(self._folder.glob("[!.]*"))):
                self._table.create()
                self._made = True
            if self._queue or self._pending:
                self._store_some()
            while self._waiting >= CHUNK or (everything and (self._queue or self._pending)):
                self._store_some()
            if self._made and time.monotonic() - self._looked >= _LOOK:
                settle(self._folder, self._table, self._lost)
                self._looked = time.monotonic()
            if self._failed:
                log.info("requests are recorded again")
            self._failed = False
        except Exception as error:
            # Its text may name the address.
            if not self._failed:
                log.warning("requests cannot be recorded now (%s); they wait in memory", type(error).__name__)
            self._failed = True

    def _store_some(self) -> None:
        self._take()
        for model in list(self._pending):
            number, some, rows = self._pending[model]
            self._table.add(self._id, model, number, rows)
            del self._pending[model]
            with self._lock:
                self._waiting -= rows.num_rows
            self._stored(model, sum(one.rows.count for one in some))

    def _take(self) -> None:
        """Make the next chunk of each model whose last one is stored."""
        with self._lock:
            some = list(islice(self._queue, CHUNK))
            by_model: dict[str, list[Answered]] = {}
            for one in some:
                by_model.setdefault(one.served.model, []).append(one)
            ready = {model: its for model, its in by_model.items() if model not in self._pending}
            rest = [one for one in some if one.served.model not in ready]
            for _ in some:
                self._queue.popleft()
            self._queue.extendleft(reversed(rest))
        for model, its in ready.items():
            number = self._numbers[model] = self._numbers.get(model, 0) + 1
            self._pending[model] = (number, its, as_rows(its, f"{self._id}-{number}"))


# --- how a request is recorded -------------------------------------------------------------------------------------------


def as_rows(answered: Sequence[Answered], chunk: str) -> pa.RecordBatch:
    """Requests of one model in the columns of :data:`~perennial.serving.request_table.SCHEMA`."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    place = 0
    for one in answered:
        for values in _rows(one):
            for name, value in {**values, "chunk": chunk, "place": place}.items():
                columns[name].append(value)
            place += 1
        # Other threads answer requests meanwhile. Without this they would get a turn only every few milliseconds.
        time.sleep(0)
    return pa.RecordBatch.from_arrays([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _rows(one: Answered) -> Iterator[dict[str, Any]]:
    served, rows, takes = one.served, one.rows, one.served.loaded.takes
    count = rows.count
    entities: Sequence[str | None] = [None] * count if rows.keys is None else entity_texts(rows.keys)
    events = rows.event_times or [None] * count
    numeric = set(takes.numeric)
    for row in range(count):
        origin = rows.origins[row] if rows.origins else {}
        features = {
            name: float(value) if name in numeric and (value := column[row]) is not None else column[row]
            for name, column in rows.columns.items()
        }
        yield {
            "model": served.model,
            "asked_at": one.at.astimezone(UTC),
            "request_id": one.request_id,
            "row": row,
            "version": served.version,
            "role": one.role,
            "form": one.form,
            "definition": served.features_digest,
            "entity": entities[row],
            "event_time": events[row],
            "as_of": datetime.fromisoformat(origin["as_of"]) if "as_of" in origin else None,
            "features_snapshot": origin.get("features_snapshot"),
            "fallback": origin.get("fallback"),
            "came": _json(_came(rows.came[row], (one.overrides or [{}] * count)[row])),
            "features": _json(features),
            "prediction": _json(_said(one.prediction, row)),
            "seconds": one.seconds,
        }


def _came(came: Mapping[str, Sequence[str]], given: Mapping[str, Any]) -> dict[str, list[str]]:
    """How features came, where a feature that a client said is missing counts as given."""
    said = [name for name in came.get(MISSING, ()) if name in given]
    return {how: [name for name in names if name not in said] + (said if how == GIVEN else []) for how, names in came.items()}


def _said(prediction: Prediction, row: int) -> Any:
    [value] = prediction.values[row : row + 1].tolist()
    if not isinstance(value, str) or prediction.probabilities is None:
        return value  # a number says all
    chances = prediction.probabilities[row].tolist()
    return {"prediction": value, "probabilities": dict(zip(prediction.classes, chances, strict=True))}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
