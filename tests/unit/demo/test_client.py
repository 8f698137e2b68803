"""What the demo's client asks the scorer, and what it tells of the answers."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path

from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT
from perennial.demo.client import BY_ENTITY, BY_KEY, Asked, Client, departing_together, flights_of, told
from perennial.demo.example_data import write_landing_zone
from perennial.demo.story import MODEL
from perennial.ledger.store import Ledger
from perennial.spec.folder import read_model

DAY = Interval.of("2013-06-24", "2013-06-25")
SPEC = read_model(PROJECT / "include" / "models" / MODEL).spec


def test_flights_that_depart_together_are_asked_with_what_a_schedule_tells(tmp_path: Path) -> None:
    write_landing_zone(tmp_path, DAY)
    flights = departing_together(SPEC, tmp_path, DAY)
    assert 1 < len(flights) <= 8
    assert len({flight["scheduled_departure"] for flight in flights}) == 1
    assert len({flight["flight_id"] for flight in flights}) == len(flights)
    for flight in flights:
        assert list(flight) == list(SPEC.entity_table.columns)
        assert flight["weekday"] == "1"
        assert flight["scheduled_departure"].startswith("2013-06-24T")
        assert flight["scheduled_departure"].endswith("+00:00")
    assert departing_together(SPEC, tmp_path, DAY) == flights
    whole = flights_of(SPEC, tmp_path, DAY)
    assert [flight for flight in whole if flight in flights] == flights
    assert len(whole) > 20, "enough to judge parity"


def test_a_scorer_that_does_not_answer_is_told_and_stops_nothing(tmp_path: Path, ledger: Ledger) -> None:
    write_landing_zone(tmp_path, DAY)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}", SPEC, tmp_path, ledger)
    client.end(DAY)
    client.end(Interval.of("2013-06-25", "2013-06-26"))  # has no file
    asked = client.close()
    assert asked.failed[BY_KEY] == 40
    assert asked.failed["all ways"] == 1
    assert asked.reason == "no answer (ConnectError)"


def test_only_answers_of_the_same_version_are_compared_and_one_other_bit_is_not_equal() -> None:
    answers = [("a", 1, 0.1), ("b", 1, 0.30000000000000004), ("c", 2, 0.5)]
    seconds = {BY_ENTITY: [0.3, 0.1, 0.2], BY_KEY: [0.004]}
    said = told(
        Asked(seconds, Counter({BY_KEY: 1}), "503: too late", 2, answers), {("a", 1): 0.1, ("b", 1): 0.3, ("c", 1): 0.5}
    )
    assert (said["compared"], said["equal"], said["other_version"]) == (2, 1, 1)
    assert said["ways"] == {
        BY_ENTITY: {"requests": 3, "failed": 0, "p50": 200.0, "p99": 300.0},
        BY_KEY: {"requests": 2, "failed": 1, "p50": 4.0, "p99": 4.0},
    }
    assert said["reason"] == "503: too late"
