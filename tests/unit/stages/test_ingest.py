"""A day from its files to published features and predictions."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from perennial.cli import by_hand
from perennial.core.errors import IntervalRefused, SpecError
from perennial.core.intervals import Interval
from tests.unit import synthetic
from tests.unit.monitored import WEEK, World, make_world

DAYS = Interval.of("2013-04-01", "2013-04-03").days()
OPEN, CLOSED = (day.key for day in DAYS)


def deliver(world: World, day: Interval, rows: pd.DataFrame) -> Path:
    file = world.settings.data / "rows" / f"{day.key}.csv"
    file.parent.mkdir(exist_ok=True)
    rows[(rows["moment"] >= day.start) & (rows["moment"] < day.end)].to_csv(file, index=False)
    return file


def publications(world: World, dataset: str) -> dict[str, int]:
    """Rows by interval."""
    return {one.interval.key: sum(one.rows.values()) for one in world.ledger.publications("toy", dataset)}


def test_a_closed_day_is_published_scored_and_counted_as_there(tmp_path: Path) -> None:
    # The last line of the spec, and a section after it.
    closed = f"gates: {{min_rows: 50}} => gates: {{min_rows: 50}}\nschedules: {{closed: ['{CLOSED}']}}"
    world = make_world(tmp_path, synthetic.deployment(tmp_path), closed=closed)
    rows = synthetic.make_rows(1, start=DAYS[0].start)
    version = world.register()
    world.promote(version)
    deliver(world, DAYS[0], rows)
    for day in DAYS:
        by_hand.ingest(world.settings, "toy", day)
        by_hand.score(world.settings, "toy", day)

    for dataset in ("tables", "features", "predictions"):
        found = publications(world, dataset)
        assert list(found) == [OPEN, CLOSED]
        assert found[OPEN] > 0
        assert found[CLOSED] == 0


def test_a_week_with_closed_days_is_whole(tmp_path: Path) -> None:
    """Even if no day of a window may be missing."""
    schedules = "schedules: {monitor: week, min_days: 7, closed: [saturday, sunday]}"
    world = make_world(
        tmp_path, synthetic.deployment(tmp_path), closed=f"gates: {{min_rows: 50}} => gates: {{min_rows: 50}}\n{schedules}"
    )
    world.promote(world.register())
    rows = synthetic.make_rows(7, start=WEEK.start)
    for day in WEEK.days()[:5]:
        deliver(world, day, rows)
    by_hand.ingest(world.settings, "toy", WEEK)
    by_hand.score(world.settings, "toy", WEEK)
    by_hand.monitor(world.settings, "toy", WEEK)

    [verdict] = world.ledger.verdicts("toy")
    assert verdict.interval == WEEK
    assert verdict.verdict != "unknown", verdict.reasons
    assert verdict.details.missing == []
    assert not any("predictions are published" in reason for reason in verdict.reasons)


def test_a_day_with_a_header_alone_is_published_empty_if_the_table_needs_no_rows(tmp_path: Path) -> None:
    day, nothing = DAYS[0], synthetic.make_rows(1, start=DAYS[1].start)
    strict = make_world(tmp_path / "1", synthetic.deployment(tmp_path / "1"))
    deliver(strict, day, nothing)
    with pytest.raises(IntervalRefused, match="visits: 2013-04-01: 0 rows arrived; at least 1 are required"):
        by_hand.ingest(strict.settings, "toy", day)

    known = {"visits": "known: moment - INTERVAL 1 DAY", "outcomes": "known: moment + INTERVAL 1 HOUR"}
    none_needed = {table: f"{line} => {line}\n    checks: {{rows: {{min: 0}}}}" for table, line in known.items()}
    lenient = make_world(tmp_path / "2", synthetic.deployment(tmp_path / "2"), **none_needed)
    deliver(lenient, day, nothing)
    by_hand.ingest(lenient.settings, "toy", day)

    assert publications(lenient, "features") == {day.key: 0}


def test_a_column_of_another_type_is_published_under_another_name_while_the_champion_keeps_the_former(tmp_path: Path) -> None:
    """What the refusal says to do, step by step."""
    world = make_world(tmp_path, synthetic.deployment(tmp_path))
    rows = synthetic.make_rows(2, start=DAYS[0].start).assign(noise=7)
    for day in DAYS:
        deliver(world, day, rows)
    by_hand.ingest(world.settings, "toy", DAYS[0])
    world.promote(world.register())
    former, own = "noise: {type: float, nullable: true}", (world.folder.path / "features.sql").read_text()

    synthetic.write_folder(world.settings.models, retyped=f"{former} => {former.replace('float', 'string')}")
    (world.folder.path / "features.sql").write_text(own.replace("noise", "noise::DOUBLE AS noise"))
    said, in_order = by_hand.inspect(world.settings, "toy")
    assert not in_order
    told = r"column noise of table visits is of type double.* and string now.*Keep its type, add a column of another name"
    assert re.search(told, said)
    with pytest.raises(SpecError, match=told):
        by_hand.ingest(world.settings, "toy", DAYS[1])

    added = f"{former}\n      code: {{type: string, nullable: true, sql: noise}}"
    synthetic.write_folder(
        world.settings.models,
        added=f"{former} => {added}",
        number="numeric: [x, noise] => numeric: [x]",
        category="categorical: [kind] => categorical: [kind, noise]",
    )
    (world.folder.path / "features.sql").write_text(own.replace("noise", "code AS noise"))
    for day in reversed(DAYS):
        by_hand.ingest(world.settings, "toy", day)
        by_hand.score(world.settings, "toy", day)
    assert [row["noise"] for row in features_of(world, Interval(DAYS[0].start, DAYS[1].end))] == ["7"] * 120
    assert publications(world, "predictions") == {CLOSED: 60, OPEN: 60}
    assert by_hand.inspect(world.settings, "toy")[1]


DIMENSION = {
    "source": "sources: => sources:\n  weights: {files: 'weights/%Y-%m-%d.csv'}",
    "table": """entity: {table: visits =>   weights:
    source: weights
    key: [kind, day]
    event_time: day
    known: day
    columns:
      kind: {type: string}
      day: {type: timestamp, from: [file_time]}
      weight: {type: float}
entity: {table: visits""",
}


def test_a_range_of_a_dated_dimension_has_the_state_of_each_day(tmp_path: Path) -> None:
    world = make_world(tmp_path, synthetic.deployment(tmp_path), **DIMENSION)
    (world.folder.path / "features.sql").write_text(
        "SELECT visit, x, w.weight AS noise, e.kind AS kind FROM entities e "
        "ASOF LEFT JOIN weights w ON e.kind = w.kind AND e.as_of >= w._known_at"
    )
    days = Interval.of("2013-04-01", "2013-04-04").days()
    rows = synthetic.make_rows(3, start=days[0].start)
    (world.settings.data / "weights").mkdir()
    for day in days:
        deliver(world, day, rows)
        # The same keys each day. Nothing in the file says of which day it is.
        (world.settings.data / "weights" / f"{day.key}.csv").write_text(f"kind,weight\na,{day.start.day}\nb,{-day.start.day}\n")

    whole = Interval(days[0].start, days[-1].end)
    by_hand.ingest(world.settings, "toy", whole)
    found = features_of(world, whole)
    for row in found:
        # What was known an hour before the visit: the file of that day.
        known = (row["moment"] - timedelta(hours=1)).day
        assert row["noise"] == {"a": known, "b": -known, None: None}[row["kind"]] or (known == 31 and row["noise"] is None)
    for day in reversed(days):
        by_hand.ingest(world.settings, "toy", day)
    assert features_of(world, whole) == found


def features_of(world: World, interval: Interval) -> list[dict[str, Any]]:
    published = world.ledger.published("toy", "features")
    assert published is not None
    rows = world.lake.scan("toy", "features", published.snapshots["features"], interval=interval).read_all()
    found: list[dict[str, Any]] = rows.sort_by("visit").to_pylist()
    return found


def test_a_day_that_late_rows_change_is_told_scored_again_and_both_predictions_stay_in_the_record(tmp_path: Path) -> None:
    known = "known: moment - INTERVAL 1 DAY"
    world = make_world(tmp_path, synthetic.deployment(tmp_path), late=f"{known} => {known}\n    late: 1d")
    world.promote(world.register())
    first, second = DAYS
    rows = synthetic.make_rows(2, start=first.start)
    of_first = rows[rows["moment"] < first.end]
    late, punctual = of_first.iloc[:1], of_first.iloc[1:]
    deliver(world, first, punctual)
    by_hand.ingest(world.settings, "toy", first)
    by_hand.score(world.settings, "toy", first)
    # A file by day of arrival holds a row of the day before.
    rest = rows[rows["moment"] >= second.start]
    pd.concat([late, rest]).to_csv(world.settings.data / "rows" / f"{second.key}.csv", index=False)

    told = by_hand.ingest(world.settings, "toy", second)

    again = f"to score it again, run: perennial score toy {first.key} {second.key}"
    assert f"{first.key} was scored before its features changed; {again}" in told
    assert by_hand.unfinished(world.settings, "toy") == [f"1 Apr 2013 was scored before its features changed; {again}."]

    by_hand.score(world.settings, "toy", first)
    assert by_hand.unfinished(world.settings, "toy") == []
    assert len(world.predictions(first)) == len(world.sink()) == len(of_first)
    before, after = world.ledger.publications("toy", "predictions", first)
    assert (before.rows, after.rows) == ({"predictions": len(punctual)}, {"predictions": len(of_first)})
    assert before.inputs["features_publication"] < after.inputs["features_publication"]
    earlier = world.lake.scan("toy", "predictions", before.snapshots["predictions"], interval=first, event_time="moment")
    assert earlier.read_all().num_rows == len(punctual)
    # Nothing is new the second time.
    assert "scored before" not in by_hand.ingest(world.settings, "toy", second)
