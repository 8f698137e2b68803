"""The replay in memory (``benchmarks/replay.py``) fits, refuses and promotes what the product does with its lake and MLflow."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_limits

from benchmarks.replay import World, new, replay
from benchmarks.streams import KNOWN, PUT_ASIDE, Stream, made_stream
from perennial.cli import by_hand
from perennial.core.intervals import Interval
from tests.unit import synthetic
from tests.unit.monitored import make_world

HISTORY = Interval(synthetic.START, synthetic.START + timedelta(days=25))
WEEKS = [Interval(HISTORY.end + timedelta(weeks=n), HISTORY.end + timedelta(weeks=n + 1)) for n in range(3)]


def rows_of(week: Interval) -> pd.DataFrame:
    """The second week has inverted labels."""
    rows = synthetic.make_rows(7, seed=week.start.toordinal(), start=week.start)
    return rows.assign(y=1 - rows["y"]) if week == WEEKS[1] else rows


def in_memory(rows: pd.DataFrame) -> pa.Table:
    moment = pa.array(rows["moment"], synthetic.MOMENT)
    return pa.table(
        {
            **{name: pa.array(rows[name], pa.string(), from_pandas=True) for name in ("visit", "kind")},
            **{name: pa.array(rows[name], pa.float64(), from_pandas=True) for name in ("x", "noise")},
            "moment": moment,
            "label": pa.array(rows["y"] > 0.5),
            "label_known_at": pa.array(rows["moment"] + timedelta(hours=1), synthetic.MOMENT),
        }
    )


def test_replay_decides_and_fits_as_the_product_does(tmp_path: Path) -> None:
    history = synthetic.make_rows(25)
    with threadpool_limits(1):
        world = make_world(tmp_path, synthetic.deployment(tmp_path))
        synthetic.publish_tables(world.lake, world.ledger, history, HISTORY)
        by_hand.train(world.settings, "toy", HISTORY.end)
        champions = [world.ledger.champion("toy")]
        for week in WEEKS:
            synthetic.publish_tables(world.lake, world.ledger, rows_of(week), week, run_id=f"ingest-{week.key}")
            by_hand.refresh(world.settings, "toy", week.end)
            champions.append(world.ledger.champion("toy"))
        rows = in_memory(pd.concat([history, *map(rows_of, WEEKS)], ignore_index=True))
        replayed = World(Stream("toy", world.folder, rows, HISTORY.end, len(WEEKS)))
        course = replay(replayed, lambda *of: new(*of, replacements=False))

        assert champions == [1, 2, 2, 4]
        served = [*course.served, course.serving]
        assert [served.index(version) + 1 for version in served] == [1, 2, 2, 4]
        assert course.withheld == world.ledger.withheld("toy") == [WEEKS[1]]
        refused = world.ledger.version("toy", 3)
        assert refused is not None
        assert [(what, reasons) for _, what, reasons in course.events if what == "refused"] == [
            ("refused", refused.decision.refused_by)
        ]
        for version, ours in zip(champions, served, strict=True):
            assert version is not None
            theirs = world.registry.load("toy", version)
            assert theirs.trained_on == ours.interval.key
            assert theirs.predict(rows).digest == ours.model.predict(rows).digest


@pytest.mark.parametrize("name", [*KNOWN, *PUT_ASIDE])
def test_a_made_stream_has_ordered_rows_of_each_day_and_is_the_same_for_the_same_seed(name: str) -> None:
    stream, again, other = (made_stream(name, seed) for seed in (1, 1, 2))
    assert stream.rows.equals(again.rows)
    assert not stream.rows.equals(other.rows)
    moments = stream.rows["moment"].to_pandas()
    assert moments.is_monotonic_increasing
    assert moments.dt.date.nunique() == 7 * 52
    assert 0.15 < stream.rows["label"].to_pandas().mean() < 0.45
