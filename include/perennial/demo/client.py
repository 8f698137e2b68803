"""A client of the scorer beside the replay: it asks about flights as they are scheduled, two hours ahead.

For each day it asks once by entity, for flights that depart together, as of two hours before; and one by one by features, with
no more than a schedule tells. When a week has been lived through, it asks for flights of its last day by key, for enough of
them to judge parity. The batch predicts all these flights too, so that answers can be compared with what it has published.

Neighbours: :mod:`perennial.demo.replay` says which week it is; :mod:`perennial.demo.summary` shows what came of it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import httpx
import sqlalchemy as sa

from perennial.core.errors import PerennialError
from perennial.core.intervals import Interval
from perennial.core.sql import connect, literal, quoted
from perennial.ledger.store import Ledger
from perennial.spec.model import ModelSpec

#: Ways to ask.
BY_ENTITY, BY_FEATURES, BY_KEY = "by entity", "by features", "by key"
#: Most flights of a day that are asked about, by entity and by features; and by key.
_A_DAY, _BY_KEY = 8, 40
#: How long before its departure a flight is asked about, as the model's ``entity.as_of`` says.
_AHEAD = timedelta(hours=2)
#: How often a request that was told to come again does so, and the longest wait in seconds.
_TRIES, _LONGEST = 10, 5.0
#: Seconds between two looks whether the features of a week are published, and whether all that was asked is recorded; and how
#: long the latter is waited for.
_LOOK, _RECORDING = 1.0, 20.0
_STATUS_OK, _STATUS_LATER = 200, (429, 503)


@dataclass
class Asked:
    """What a client has asked and got.

    Attributes:
        seconds: by way, of each answered request.
        failed: by way, how many requests were not answered.
        reason: why the first of them failed.
        again: how often a request was told to come again.
        answers: by key of a flight, the version and the prediction that answered by entity or by key.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    reason: str = ""
    again: int = 0
    answers: list[tuple[str, int, float]] = field(default_factory=list)


class Client:
    """Asks in a thread of its own. Nothing of what fails in it stops the replay; it is counted.

    Args:
        url: of the scorer.
        spec: of the model.
        data: the landing zone.
        ledger: says when the features of a week are published.
    """

    def __init__(self, url: str, spec: ModelSpec, data: Path, ledger: Ledger) -> None:
        self.asked = Asked()
        self._spec, self._data, self._ledger = spec, data, ledger
        # A proxy of the environment cannot reach this machine.
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=60)
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="client of the scorer", daemon=True)
        self._thread.start()

    def begin(self, week: Interval) -> None:
        """Ask about each day of a week, as soon as its features are published."""
        self._work.put(lambda: self._ask_as_scheduled(week))

    def end(self, week: Interval) -> None:
        """Ask by key about the last day of a week, whose rows of features are stored now."""
        self._work.put(lambda: self._ask_by_key(Interval(week.end - timedelta(days=1), week.end)))

    def close(self) -> Asked:
        """Wait for what was begun, and until the scorer has recorded it; return what came of it."""
        self._work.put(None)
        self._thread.join(60)
        deadline = time.monotonic() + _RECORDING
        while self.asked.seconds and not self._is_recorded() and time.monotonic() < deadline:
            time.sleep(_LOOK / 10)
        self._ending.set()
        self._http.close()
        return self.asked

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except (PerennialError, OSError, sa.exc.SQLAlchemyError, duckdb.Error) as error:
                self._has_failed("all ways", type(error).__name__)

    def _is_recorded(self) -> bool:
        """Whether the scorer has recorded all rows that it has answered. It does so once a second."""
        try:
            told = self._http.get(f"/models/{self._spec.name}/figures").json()
            return bool(told["recorded"] + told["unrecorded"] >= told["rows"])
        except (httpx.HTTPError, ValueError, KeyError):
            return False

    def _has_failed(self, way: str, reason: str) -> None:
        self.asked.failed[way] += 1
        self.asked.reason = self.asked.reason or reason

    def _ask_as_scheduled(self, week: Interval) -> None:
        published = (one.interval for one in self._ledger.publications(self._spec.name, "features", week))
        while not any(one.contains(week) for one in published):
            if self._ending.wait(_LOOK):
                return
            published = (one.interval for one in self._ledger.publications(self._spec.name, "features", week))
        for day in week.days():
            flights = departing_together(self._spec, self._data, day)
            if not flights:
                continue
            as_of = datetime.fromisoformat(flights[0][self._spec.event_time]) - _AHEAD
            self._ask(BY_ENTITY, {"entities": flights, "as_of": as_of.isoformat()}, flights)
            for flight in flights:
                known = {name: flight[name] for name in self._spec.features.categorical}
                known |= {name: float(flight[name]) for name in self._spec.features.numeric if flight.get(name) is not None}
                self._ask(BY_FEATURES, {"features": [known]}, ())

    def _ask_by_key(self, day: Interval) -> None:
        flights = flights_of(self._spec, self._data, day)
        for flight in flights[:: max(1, len(flights) // _BY_KEY)][:_BY_KEY]:  # from all over the day
            self._ask(BY_KEY, {"keys": [{name: flight[name] for name in self._spec.entity_table.key}]}, [flight])

    def _ask(self, way: str, body: Mapping[str, Any], flights: Sequence[Mapping[str, Any]]) -> None:
        for _ in range(_TRIES):
            began = time.perf_counter()
            try:
                answer = self._http.post(f"/models/{self._spec.name}/predict", json=body)
                said = answer.json()
            except (httpx.HTTPError, ValueError) as error:
                self._has_failed(way, f"no answer ({type(error).__name__})")
                return
            if answer.status_code not in _STATUS_LATER:
                break
            self.asked.again += 1
            if self._ending.wait(min(_LONGEST, float(answer.headers.get("retry-after", 1)))):
                return
        if answer.status_code != _STATUS_OK:
            self._has_failed(way, f"{answer.status_code}: {said.get('error', '')}")
            return
        self.asked.seconds.setdefault(way, []).append(time.perf_counter() - began)
        [key] = self._spec.entity_table.key
        for flight, row in zip(flights, said["predictions"], strict=bool(flights)):
            self.asked.answers.append((flight[key], said["version"], row["prediction"]))


def departing_together(spec: ModelSpec, data: Path, day: Interval) -> list[dict[str, Any]]:
    """The flights of the minute in which most of a day's are scheduled to depart, at most :data:`_A_DAY`."""
    flights = flights_of(spec, data, day)
    departing = Counter(flight[spec.event_time] for flight in flights)
    busiest = min(departing, key=lambda moment: (-departing[moment], moment), default=None)
    return [flight for flight in flights if flight[spec.event_time] == busiest][:_A_DAY]


def flights_of(spec: ModelSpec, data: Path, day: Interval) -> list[dict[str, Any]]:
    """The flights of a day, as a schedule shows them.

    Args:
        spec: the model, whose entity's table says what its columns are made of.
        data: the landing zone.
        day: the day.

    Returns:
        By column of the entity's table, its value as text, or None; in the order of their keys.
    """
    columns = {name: column.sql or quoted(name) for name, column in spec.entity_table.columns.items()}
    file = data / "flights" / f"{day.key}.csv.gz"
    made = ", ".join(f"{expression} AS {quoted(name)}" for name, expression in columns.items())
    with connect(data) as connection:
        rows = connection.sql(
            f"SELECT {made} FROM read_csv({literal(str(file))}, all_varchar = true, nullstr = ['', 'NA']) ORDER BY ALL"
        )
        names = rows.columns
        found = rows.fetchall()
    return [dict(zip(names, map(_text, row), strict=True)) for row in found]


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.isoformat() if isinstance(value, datetime) else str(value)


def told(asked: Asked, published: Mapping[tuple[str, int], float]) -> dict[str, Any]:
    """What a client has seen, for the summary.

    Args:
        asked: by it.
        published: by key and version, what the batch predicts.

    Returns:
        ``ways``: by way the number of ``requests``, of those that ``failed``, and ``p50`` and ``p99`` of the time to the answer
        in milliseconds; ``again``: how often a request was told to come again; ``compared``: answers of the version by which
        the batch predicted the same flight; ``equal``: how many of these are the same to the last bit; ``other_version``: the
        other answers; ``reason``: why the first request failed.
    """
    both = [(prediction, published[key, version]) for key, version, prediction in asked.answers if (key, version) in published]
    return {
        "ways": dict(_ways(asked)),
        "again": asked.again,
        "compared": len(both),
        "equal": sum(one == other for one, other in both),
        "other_version": len(asked.answers) - len(both),
        "reason": asked.reason,
    }


def _ways(asked: Asked) -> Iterator[tuple[str, dict[str, float]]]:
    for way in dict.fromkeys([*asked.seconds, *asked.failed]):
        seconds = sorted(asked.seconds.get(way, ()))
        said: dict[str, float] = {"requests": len(seconds) + asked.failed[way], "failed": asked.failed[way]}
        if seconds:
            # The p99 of few requests is the slowest of them.
            said |= {
                name: round(1000 * seconds[min(len(seconds) - 1, int(len(seconds) * share))], 1)
                for name, share in (("p50", 0.5), ("p99", 0.99))
            }
        yield way, said
