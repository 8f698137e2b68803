"""Features as they were known: what the query may see, what it must give, what is published and kept up, what leaks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from perennial.core.errors import SnapshotMissing, Superseded
from perennial.core.intervals import Interval
from perennial.features.publish import build_features, ensure_features, publish_features
from perennial.lake.publish import Lake
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder
from tests.unit.features.shop import FIRST, SECOND, SPEC, april, history, ingest, shop


def published(lake: Lake, ledger: Ledger, interval: Interval) -> pa.Table:
    newest = ledger.published("returns", "features")
    assert newest is not None
    rows = lake.scan("returns", "features", newest.snapshots["features"], interval=interval).read_all()
    return rows.sort_by("placed")


def publish(folder: ModelFolder, lake: Lake, ledger: Ledger, interval: Interval, run_id: str) -> Publication:
    order = ledger.next_order("returns", "features", interval, run_id)
    return publish_features(folder, lake, interval, order=order, run_id=run_id)


def keys(publications: list[Publication]) -> list[str]:
    return [publication.interval.key for publication in publications]


def test_published_features_are_the_built_ones_and_tell_what_they_were_made_from(
    tmp_path: Path, lake: Lake, ledger: Ledger
) -> None:
    folder = history(tmp_path)
    ingest(lake, ledger, folder, FIRST)
    tables = ingest(lake, ledger, folder, SECOND)

    publication = publish(folder, lake, ledger, SECOND, "score")

    with build_features(folder, lake, SECOND) as built:
        assert published(lake, ledger, SECOND).equals(built.reader().read_all())
        assert built.snapshots == {name: tables.snapshots[name] for name in ("orders", "returned")}
    assert publication.rows == {"features": 4}
    assert publication.inputs == {
        "tables": built.snapshots,
        "features_digest": folder.features_digest,
        "publication": tables.id,
        "reads": Interval(SECOND.start - folder.spec.features.lookback, SECOND.end).key,
    }
    # Hours 7 and 19 of the first day are customer b's, and were sent back by hour 12 and 24.
    assert published(lake, ledger, SECOND).column("sent_back").to_pylist() == [2.0, 2.0, 3.0, 3.0]


def test_publishing_twice_leaves_one_row_an_entity(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    ingest(lake, ledger, folder, FIRST)

    publish(folder, lake, ledger, FIRST, "one")
    publish(folder, lake, ledger, FIRST, "two")

    assert published(lake, ledger, FIRST).num_rows == 4


def test_features_of_older_snapshots_are_what_they_were(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    before = ingest(lake, ledger, folder, FIRST, "one", amount=1.0)
    ingest(lake, ledger, folder, FIRST, "two", amount=2.0)

    def amounts(snapshots: Mapping[str, int] | None) -> set[float]:
        with build_features(folder, lake, FIRST, snapshots=snapshots) as built:
            return set(built.reader().read_all().column("amount").to_pylist())

    assert amounts(before.snapshots) == {1.0}
    assert amounts(None) == {2.0}


def test_without_published_tables_the_error_tells_to_ingest(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)

    with pytest.raises(SnapshotMissing, match=r"returns: no tables are published yet; run returns\.ingest"):
        build_features(folder, lake, FIRST)


def test_a_table_or_column_that_came_later_to_the_spec_tells_to_ingest_again(
    tmp_path: Path, lake: Lake, ledger: Ledger
) -> None:
    ingest(lake, ledger, shop(tmp_path), FIRST)
    stock = {**SPEC["tables"]["customers"], "key": ["customer"]}
    with_table = shop(tmp_path, "SELECT order_id, amount FROM entities, stock", tables={**SPEC["tables"], "stock": stock})
    with pytest.raises(SnapshotMissing, match=r"table stock of model\.yaml was never published; run returns\.ingest"):
        build_features(with_table, lake, FIRST)

    orders = SPEC["tables"]["orders"]
    orders = {**orders, "columns": {**orders["columns"], "coupon": {"type": "string", "nullable": True}}}
    with_column = shop(tmp_path, tables={**SPEC["tables"], "orders": orders})
    with pytest.raises(SnapshotMissing, match=r"no column coupon, though model\.yaml names it; run returns\.ingest"):
        build_features(with_column, lake, FIRST)


def test_days_with_tables_and_no_features_get_them_once(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    for interval in (april(1, 3), april(6, 6)):
        ingest(lake, ledger, folder, interval)

    first = ensure_features(folder, lake, april(1, 10), run_id="train")
    second = ensure_features(folder, lake, april(1, 10), run_id="train-again")

    assert keys(first) == ["2013-04-01--2013-04-04", "2013-04-06"]
    assert second == []
    assert published(lake, ledger, april(1, 10)).num_rows == 16


def test_only_days_that_the_interval_touches_are_built(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    ingest(lake, ledger, folder, april(1, 4))

    done = ensure_features(folder, lake, Interval.of("2013-04-02T12:00:00Z", "2013-04-03T12:00:00Z"), run_id="train")

    assert keys(done) == ["2013-04-02--2013-04-04"]


def test_features_of_an_earlier_query_are_built_again(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    ingest(lake, ledger, folder, april(1, 3))
    ensure_features(folder, lake, april(1, 3), run_id="train")
    changed = shop(tmp_path, "SELECT order_id, amount + 1 AS amount FROM entities")
    publish(changed, lake, ledger, april(2, 2), "score")

    done = ensure_features(changed, lake, april(1, 3), run_id="train-again")

    assert keys(done) == ["2013-04-01", "2013-04-03"]
    assert set(published(lake, ledger, april(1, 3)).column("amount").to_pylist()) == {2.0}


def test_a_day_with_new_rows_renews_the_days_that_look_at_it(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)  # a lookback of two days
    ingest(lake, ledger, folder, april(1, 6))
    ensure_features(folder, lake, april(1, 6), run_id="train")

    ingest(lake, ledger, folder, april(2, 2), "mended", amount=5.0)

    assert keys(ensure_features(folder, lake, april(1, 6), run_id="train-again")) == ["2013-04-02--2013-04-05"]
    assert published(lake, ledger, april(2, 2)).column("amount").to_pylist() == [5.0] * 4


def test_a_day_that_came_after_its_successor_renews_it(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = history(tmp_path)
    for day in (SECOND, FIRST):
        ingest(lake, ledger, folder, day)
        publish(folder, lake, ledger, day, "backfill")
    assert published(lake, ledger, SECOND).column("sent_back").to_pylist() == [0.0, 0.0, 1.0, 1.0]

    ensure_features(folder, lake, april(1, 2), run_id="train")

    assert published(lake, ledger, SECOND).column("sent_back").to_pylist() == [2.0, 2.0, 3.0, 3.0]


def test_a_day_ingested_again_with_the_same_rows_renews_nothing(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    ingest(lake, ledger, folder, FIRST)
    ensure_features(folder, lake, FIRST, run_id="train")

    ingest(lake, ledger, folder, FIRST, "again")

    assert ensure_features(folder, lake, FIRST, run_id="train-again") == []


def test_losing_to_a_later_run_is_an_error_only_if_its_features_are_amiss(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    ingest(lake, ledger, folder, FIRST)
    ledger.next_order("returns", "features", FIRST, "train")
    other = shop(tmp_path, "SELECT order_id, -amount AS amount FROM entities")
    publish(other, lake, ledger, FIRST, "score")

    with pytest.raises(Superseded):
        ensure_features(folder, lake, FIRST, run_id="train")

    publish(folder, lake, ledger, FIRST, "score-again")
    assert ensure_features(folder, lake, FIRST, run_id="train") == []
