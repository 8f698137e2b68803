"""A day from its files to published features and predictions."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from perennial.cli import by_hand
from perennial.core.errors import IntervalRefused
from perennial.core.intervals import Interval
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

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
