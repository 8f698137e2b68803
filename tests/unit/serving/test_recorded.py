"""What was recorded is published exactly once, whatever is interrupted."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perennial.cli.by_hand import lineage
from perennial.core.errors import LineageError, Superseded
from perennial.core.intervals import Interval
from perennial.lake.publish import Lake
from perennial.ledger.store import Ledger
from perennial.serving.recorded import publish_requests, read_published
from perennial.serving.request_table import SCHEMA, RequestTable
from tests.unit import synthetic
from tests.unit.monitored import DAY, make_world
from tests.unit.serving.test_recording import NOW, recorded_rows, url

__all__ = ["url"]

HOUR = Interval(NOW - timedelta(minutes=30), NOW + timedelta(minutes=30))


class Killed(Exception):
    """The process ends here."""


def published(lake: Lake) -> list[tuple[str, int]]:
    rows = [batch.select(["chunk", "place"]).to_pylist() for batch in read_published(lake, "toy")]
    return sorted((row["chunk"], row["place"]) for part in rows for row in part)


def rows_of(*numbers: int) -> list[tuple[str, int]]:
    return sorted((f"one-{number}", place) for number in numbers for place in range(3))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    ledger = Ledger(synthetic.deployment(tmp_path).database_url)
    ledger.migrate()
    return Lake(synthetic.deployment(tmp_path), ledger)


def table_of(url: str, *numbers: int) -> RequestTable:
    table = RequestTable(url)
    table.create()
    for number in numbers:
        table.add("one", "toy", number, recorded_rows(f"one-{number}"))
    return table


def test_recorded_rows_are_in_the_lake_as_they_were_and_no_longer_in_the_database(url: str, lake: Lake) -> None:
    table = table_of(url, 1, 2)

    done = publish_requests(lake, table, "toy", run_id="first")

    assert (done.rows, done.hours, done.lost) == (6, [HOUR.key], 0)
    assert table.count("toy") == 0
    found = pa.Table.from_batches(read_published(lake, "toy")).sort_by([("chunk", "ascending"), ("place", "ascending")])
    wanted = pa.Table.from_batches([recorded_rows("one-1"), recorded_rows("one-2")]).drop_columns("model")
    assert found.equals(wanted)
    assert publish_requests(lake, table, "toy", run_id="first").rows == 0


def test_rows_that_come_later_are_added_to_their_hour(url: str, lake: Lake) -> None:
    table = table_of(url, 1)
    publish_requests(lake, table, "toy", run_id="first")
    table.add("one", "toy", 2, recorded_rows("one-2", at=NOW + timedelta(minutes=5)))
    table.add("one", "toy", 3, recorded_rows("one-3", at=NOW + timedelta(hours=2)))

    assert publish_requests(lake, table, "toy", run_id="second").rows == 6
    assert published(lake) == rows_of(1, 2, 3)


def test_who_has_read_before_another_run_has_published_changes_nothing(url: str, lake: Lake) -> None:
    table = table_of(url, 1)

    class Overtaken(RequestTable):
        def read(self, *arguments: Any) -> Any:
            table.add("one", "toy", 2, recorded_rows("one-2"))
            publish_requests(lake, table, "toy", run_id="other")
            return iter(list(super().read(*arguments)))

    with pytest.raises(Superseded):
        publish_requests(lake, Overtaken(url), "toy", run_id="slow")
    assert published(lake) == rows_of(1, 2)


# A run may end at each of its steps: after it has read, after it has published, after it has removed some.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.integers(0, 1)),
        st.tuples(st.just("publish"), st.sampled_from(["whole", "read", "published"])),
    ),
    max_size=8,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_each_recorded_row_is_published_exactly_once_whatever_is_interrupted(steps: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ledger = Ledger(synthetic.deployment(place).database_url)
        ledger.migrate()
        lake, database = Lake(synthetic.deployment(place), ledger), f"sqlite:///{place / 'predictions.db'}"
        number = 0
        for run, (step, how) in enumerate(steps):
            if step == "record":
                number += 1
                # Each chunk is sent twice: the database did not say that it has it.
                for _ in range(2):
                    table_of(database).add("one", "toy", number, recorded_rows(f"one-{number}", at=NOW + how * HOUR.length))
                continue
            with suppress(Killed):
                publish_requests(lake, _killed(database, how), "toy", run_id=f"run-{run}")
        publish_requests(lake, table_of(database), "toy", run_id="last")
        assert published(lake) == rows_of(*range(1, number + 1))
        assert table_of(database).count("toy") == 0


def _killed(database: str, how: str) -> RequestTable:
    class Interrupted(RequestTable):
        def read(self, *arguments: Any) -> Any:
            yield from super().read(*arguments)
            if how == "read":
                raise Killed

        def remove(self, *arguments: Any) -> int:
            if how == "published":
                raise Killed
            return super().remove(*arguments)

    table = Interrupted(database)
    table.create()
    return table


@pytest.mark.parametrize("is_published", [False, True])
def test_a_request_is_traced_to_its_version_and_features(tmp_path: Path, is_published: bool) -> None:
    world = make_world(tmp_path, synthetic.deployment(tmp_path))
    world.register()
    world.publish(DAY)
    newest = world.ledger.published("toy", "features")
    assert newest is not None
    rows = recorded_rows("one-1", 1).to_pylist()
    rows[0] |= {
        "request_id": "mine", "features_snapshot": newest.snapshots["features"], "event_time": DAY.start, "as_of": DAY.start,
        "came": '{"stored":["x"],"given":["kind"]}',
    }  # fmt: skip
    table = table_of(world.settings.predictions_url)
    table.add("one", "toy", 1, pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    if is_published:
        publish_requests(world.lake, table, "toy", run_id="first")

    found = lineage(world.settings, "toy", prediction=None, request="mine", at=None, interval=None)

    [row] = found.find("prediction")
    assert (row.facts["value"], row.facts["stored"], row.facts["published"]) == (0.25, ["x"], is_published)
    assert [node.name for node in found.find("version")] == ["version 1"]
    assert [node.facts["publication"] for node in found.find("features") if "publication" in node.facts] == [newest.id]
    with pytest.raises(LineageError, match="no request other was recorded"):
        lineage(world.settings, "toy", prediction=None, request="other", at=None, interval=None)


def test_old_rows_are_removed_and_others_stay(url: str) -> None:
    table = table_of(url, 1)
    table.add("one", "toy", 2, recorded_rows("one-2", at=datetime(2024, 1, 1, tzinfo=UTC)))
    assert table.remove_before("toy", datetime(2024, 2, 1, tzinfo=UTC)) == 3
    assert table.count("toy") == 3
    assert table.remove_before("toy") == 3
