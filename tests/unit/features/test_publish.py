"""Features as they were known: what the query may see, what it must give, what is published and kept up, what leaks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.core.errors import SnapshotMissing, SpecError, Superseded
from perennial.core.intervals import Interval
from perennial.features import leaks
from perennial.features.labels import read_labels
from perennial.features.point_in_time import compute, needed_tables
from perennial.features.publish import build_features, ensure_features, find_leaks, publish_features
from perennial.lake.publish import Lake, TableWrite
from perennial.lake.schema import published_schema
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder, read_model

APRIL = datetime(2013, 4, 1, tzinfo=UTC)
FIRST, SECOND = Interval.day("2013-04-01"), Interval.day("2013-04-02")

SPEC: dict[str, Any] = {
    "name": "returns",
    "owner": "tests",
    "description": "Will this order be sent back?",
    "task": "binary_classification",
    "sources": {"shop": {"files": "shop/%Y-%m-%d.csv"}},
    "tables": {
        "orders": {
            "source": "shop",
            "key": ["order_id"],
            "event_time": "placed",
            "known": "placed",
            "columns": {
                "order_id": {"type": "string"},
                "placed": {"type": "timestamp"},
                "customer": {"type": "string"},
                "amount": {"type": "float", "nullable": True},
            },
        },
        "returned": {
            "source": "shop",
            "key": ["order_id"],
            "event_time": "placed",
            "known": "sent_back",
            "columns": {
                "order_id": {"type": "string"},
                "placed": {"type": "timestamp"},
                "sent_back": {"type": "timestamp"},
                "reason": {"type": "integer"},
            },
        },
        "customers": {
            "source": "shop",
            "key": ["customer"],
            "known": "always",
            "columns": {"customer": {"type": "string"}, "city": {"type": "string", "nullable": True}},
        },
    },
    "entity": {"table": "orders", "as_of": "placed"},
    "features": {"numeric": ["amount"], "lookback": "2d"},
    "label": {"table": "returned", "sql": "reason > 0"},
    "candidates": {
        "prior": {"estimator": "prior", "baseline": True},
        "boosting": {"estimator": "gradient_boosting"},
    },
}

HISTORY = """
-- How many orders of the customer were known to have been sent back.
SELECT orders_now.order_id, count(returned.order_id) AS sent_back
FROM entities AS orders_now
LEFT JOIN orders AS earlier ON earlier.customer = orders_now.customer
LEFT JOIN returned ON returned.order_id = earlier.order_id AND returned._known_at <= orders_now.as_of
  AND earlier.placed > orders_now.placed - INTERVAL 2 DAY
GROUP BY 1
"""


def shop(path: Path, sql: str = "SELECT order_id, amount FROM entities", **changes: Any) -> ModelFolder:
    """The model folder of a shop, with other keys of ``model.yaml`` if they are given."""
    folder = path / "models" / "returns"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(json.dumps({**SPEC, **changes}))
    (folder / "features.sql").write_text(sql)
    return read_model(folder)


def history(path: Path, sql: str = HISTORY) -> ModelFolder:
    return shop(path, sql, features={"numeric": ["sent_back"], "lookback": "2d"})


def table(folder: ModelFolder, name: str, rows: list[dict[str, Any]], known: list[datetime]) -> pa.Table:
    schema = published_schema(folder.spec.tables[name])
    filled = [{**dict.fromkeys(schema.names), **row, "_known_at": at} for row, at in zip(rows, known, strict=True)]
    return pa.Table.from_pylist(filled, schema=schema)


def hours(number: float) -> datetime:
    return APRIL + timedelta(hours=number)


def tables_of(folder: ModelFolder, placed: list[float], **other: list[Any]) -> dict[str, pa.Table]:
    """Orders placed at hours of April, customers a and b in turn; every second one is sent back five hours later.

    Args:
        other: columns of ``orders`` that shall hold something else.
    """
    orders: list[dict[str, Any]] = [
        {"order_id": f"o{at:g}", "placed": hours(at), "customer": "ab"[n % 2], "amount": float(at)}
        for n, at in enumerate(placed)
    ]
    orders = [{**row, **{name: values[n] for name, values in other.items()}} for n, row in enumerate(orders)]
    back: list[dict[str, Any]] = [
        {"order_id": row["order_id"], "placed": row["placed"], "sent_back": row["placed"] + timedelta(hours=5), "reason": n % 2}
        for n, row in enumerate(orders)
    ]
    people: list[dict[str, Any]] = [{"customer": "a", "city": "Ålesund"}, {"customer": "b", "city": None}]
    return {
        "orders": table(folder, "orders", orders, [row["placed"] for row in orders]),
        "returned": table(folder, "returned", back, [row["sent_back"] for row in back]),
        "customers": table(folder, "customers", people, [datetime(1900, 1, 1, tzinfo=UTC)] * 2),
    }


def features(folder: ModelFolder, tables: Mapping[str, pa.Table], interval: Interval = FIRST) -> pa.Table:
    with compute(folder, tables, interval) as built:
        return built.reader().read_all()


# --- what the query gives ----------------------------------------------------------------------------------------------


def test_features_stand_beside_key_event_time_and_as_of_ordered_by_time(tmp_path: Path) -> None:
    sql = """
    SELECT order_id, amount::DECIMAL(9, 2) AS amount, amount > 3 AS dear, city
    FROM entities LEFT JOIN customers USING (customer)
    """
    folder = shop(
        tmp_path,
        sql,
        features={"numeric": ["amount", "dear"], "categorical": ["city"]},
        entity={"table": "orders", "as_of": "placed + INTERVAL 1 HOUR"},
    )

    found = features(folder, tables_of(folder, [6, 2]))

    moment = pa.timestamp("us", "UTC")
    assert found.schema == pa.schema(
        [
            ("order_id", pa.string()), ("placed", moment), ("as_of", moment),
            ("amount", pa.float64()), ("dear", pa.float64()), ("city", pa.string()),
        ]
    )  # fmt: skip
    assert found.to_pylist() == [
        {"order_id": "o2", "placed": hours(2), "as_of": hours(3), "amount": 2.0, "dear": 0.0, "city": None},
        {"order_id": "o6", "placed": hours(6), "as_of": hours(7), "amount": 6.0, "dear": 1.0, "city": "Ålesund"},
    ]


def test_a_query_of_entity_columns_alone_needs_no_other_table(tmp_path: Path) -> None:
    folder = shop(tmp_path)

    assert needed_tables(folder) == ["orders"]
    tables = {"orders": tables_of(folder, [1, 2])["orders"]}
    assert features(folder, tables).column("amount").to_pylist() == [1.0, 2.0]


def test_a_stream_of_batches_gives_what_a_table_gives(tmp_path: Path) -> None:
    folder = history(tmp_path)
    tables = tables_of(folder, list(range(24)))

    streams = {name: pa.RecordBatchReader.from_batches(rows.schema, rows.to_batches(5)) for name, rows in tables.items()}

    assert features(folder, streams).equals(features(folder, tables))


def test_each_reader_begins_anew(tmp_path: Path) -> None:
    folder = shop(tmp_path)
    with compute(folder, tables_of(folder, [1, 2, 3]), FIRST) as built:
        first = built.reader()
        assert built.reader().read_all().num_rows == built.rows == 3
        assert first.read_all().num_rows == 3


def test_an_interval_without_entities_has_no_features(tmp_path: Path) -> None:
    folder = history(tmp_path)

    assert features(folder, tables_of(folder, [1]), SECOND).num_rows == 0


def test_not_a_number_is_a_missing_value(tmp_path: Path) -> None:
    folder = shop(tmp_path, "SELECT order_id, 'nan'::DOUBLE AS amount FROM entities")

    assert features(folder, tables_of(folder, [1])).column("amount").to_pylist() == [None]


# --- what the query sees -----------------------------------------------------------------------------------------------


def test_the_query_sees_rows_from_lookback_on_until_the_interval_ends(tmp_path: Path) -> None:
    sql = "SELECT order_id, (SELECT string_agg(order_id, ' ' ORDER BY placed) FROM orders) AS seen FROM entities"
    folder = shop(tmp_path, sql, features={"categorical": ["seen"], "lookback": "1d"})

    found = features(folder, tables_of(folder, [-25, -24, 0, 23, 24]))

    assert set(found.column("seen").to_pylist()) == {"o-24 o0 o23"}
    assert found.column("order_id").to_pylist() == ["o0", "o23"]


def test_the_query_sees_only_rows_known_by_the_latest_as_of(tmp_path: Path) -> None:
    sql = "SELECT order_id, (SELECT string_agg(order_id, ' ' ORDER BY placed) FROM returned) AS seen FROM entities"
    folder = shop(tmp_path, sql, features={"categorical": ["seen"]})

    # Sent back after 5 hours, and the last order asks at hour 9.
    found = features(folder, tables_of(folder, [1, 4, 5, 9]))

    assert set(found.column("seen").to_pylist()) == {"o1 o4"}


def test_a_table_without_event_time_is_seen_whole(tmp_path: Path) -> None:
    sql = "SELECT order_id, (SELECT count(*) FROM customers) AS amount FROM entities"
    folder = shop(tmp_path, sql)

    assert features(folder, tables_of(folder, [1])).column("amount").to_pylist() == [2.0]


@pytest.mark.parametrize(
    "reads",
    [
        "read_text('{secret}')",
        "read_csv('{secret}')",
        "'{secret}'",
        "glob('/*')",
        "sniff_csv('{secret}')",
        "secret",
    ],
)
def test_the_query_can_read_neither_files_nor_variables(tmp_path: Path, reads: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nsesame\n")
    folder = shop(tmp_path, f"SELECT order_id, 1 AS amount FROM entities, {reads.format(secret=secret)}")

    with pytest.raises(SpecError, match=r"Permission Error|does not exist"):
        features(folder, tables_of(folder, [1]))


@pytest.mark.parametrize(
    "sql",
    [
        "ATTACH '{path}/other.db'",
        "COPY (SELECT 1) TO '{path}/out.csv'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "DELETE FROM entities",
        "SELECT order_id, amount FROM entities; SELECT 1",
        "-- nothing but a comment",
        "",
    ],
)
def test_anything_but_one_select_is_refused(tmp_path: Path, sql: str) -> None:
    folder = shop(tmp_path, sql.format(path=tmp_path))

    with pytest.raises(SpecError, match=r"features\.sql: exactly one SELECT is wanted"):
        features(folder, tables_of(folder, [1]))
    assert not (tmp_path / "other.db").exists()
    assert not (tmp_path / "out.csv").exists()


# --- what is wrong with the query --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("-- a comment\n\nSELECT order_id,\n  amont AS amount\nFROM entities", r'features\.sql:4: .*"amont" not found'),
        ("SELECT order_id,\n amount,\nFROM entities WHERE )", r"features\.sql:3: Parser Error"),
        ("SELECT order_id, amount FROM ordres", r"features\.sql:1: .*ordres does not exist"),
        ("SELECT order_id, customer::INTEGER AS amount FROM entities", r"features\.sql(:1)?: Conversion Error"),
        ("SELECT order_id FROM entities", r"features\.sql: .*amount missing"),
        ("SELECT order_id, amount, customer FROM entities", r"features\.sql: .*customer not in model\.yaml"),
        ("SELECT amount FROM entities", r"features\.sql: .*order_id missing"),
        ("SELECT order_id, amount, amount FROM entities", r"features\.sql: .*amount_1 not in model\.yaml"),
        ("SELECT order_id, customer AS amount FROM entities", r"amount is a numeric feature in model\.yaml, but VARCHAR"),
        ("SELECT 1 AS order_id, amount FROM entities", r"order_id is INTEGER, but the entity's is VARCHAR"),
        ("SELECT order_id, 1 / (amount - 1) AS amount FROM entities", r"infinite values in amount \(1\)"),
        ("SELECT order_id, amount FROM entities WHERE amount > 1", r"of 3 entities .*: 1 keys have no row, such as order_id o"),
        ("SELECT order_id, amount FROM entities, range(2)", r"3 keys have several rows, such as order_id o1"),
        ("SELECT order_id || '!' AS order_id, amount FROM entities", r"3 keys are not in entities, such as order_id o1!"),
    ],
)  # fmt: skip
def test_a_wrong_query_is_an_error_that_names_file_and_fault(tmp_path: Path, sql: str, message: str) -> None:
    folder = shop(tmp_path, sql)

    with pytest.raises(SpecError, match=message):
        features(folder, tables_of(folder, [1, 2, 3]))


def test_a_category_must_not_be_a_fraction(tmp_path: Path) -> None:
    folder = shop(tmp_path, "SELECT order_id, amount AS size FROM entities", features={"categorical": ["size"]})

    with pytest.raises(SpecError, match=r"size is a categorical feature in model\.yaml, but DOUBLE here; cast it to VARCHAR"):
        features(folder, tables_of(folder, [1]))


@pytest.mark.parametrize(
    ("as_of", "message"),
    [
        ("plcaed", r"entity\.as_of: .*plcaed"),
        ("CASE WHEN amount > 1 THEN placed END", r"of 2 rows of orders in 2013-04-01, entity\.as_of gives no time for 1"),
        ("placed - INTERVAL 1 HOUR", r"2 are known only after their entity\.as_of"),
    ],
)
def test_an_as_of_time_that_cannot_be_is_an_error_that_names_it(tmp_path: Path, as_of: str, message: str) -> None:
    folder = shop(tmp_path, entity={"table": "orders", "as_of": as_of})

    with pytest.raises(SpecError, match=message):
        features(folder, tables_of(folder, [1, 2]))


def test_entities_that_share_a_key_are_an_error(tmp_path: Path) -> None:
    folder = shop(tmp_path)

    with pytest.raises(SpecError, match="1 repeat the key order_id of another"):
        features(folder, tables_of(folder, [1, 2, 3], order_id=["x", "x", "y"]))


# --- the lake ----------------------------------------------------------------------------------------------------------


def ingest(
    lake: Lake, ledger: Ledger, folder: ModelFolder, interval: Interval, run_id: str = "ingest", *, amount: float = 1.0
) -> Publication:
    """Publish an interval's tables: four orders a day, each sent back five hours later."""
    days = [(day.start - APRIL) / timedelta(hours=1) for day in interval.days()]
    placed = [start + hour for start in days for hour in (1, 7, 13, 19)]
    return ingest_tables(lake, ledger, folder, interval, tables_of(folder, placed, amount=[amount] * len(placed)), run_id)


def ingest_tables(
    lake: Lake,
    ledger: Ledger,
    folder: ModelFolder,
    interval: Interval,
    tables: Mapping[str, pa.Table],
    run_id: str = "ingest",
) -> Publication:
    return lake.publish(
        model="returns",
        dataset="tables",
        interval=interval,
        tables={
            name: TableWrite(rows.to_reader, folder.spec.tables[name].event_time, rows.schema) for name, rows in tables.items()
        },
        order=ledger.next_order("returns", "tables", interval, run_id),
        run_id=run_id,
        inputs={},
    )


def published(lake: Lake, ledger: Ledger, interval: Interval) -> pa.Table:
    newest = ledger.published("returns", "features")
    assert newest is not None
    rows = lake.scan("returns", "features", newest.snapshots["features"], interval=interval).read_all()
    return rows.sort_by("placed")


def publish(folder: ModelFolder, lake: Lake, ledger: Ledger, interval: Interval, run_id: str) -> Publication:
    order = ledger.next_order("returns", "features", interval, run_id)
    return publish_features(folder, lake, ledger, interval, order=order, run_id=run_id)


def keys(publications: list[Publication]) -> list[str]:
    return [publication.interval.key for publication in publications]


def april(first: int, last: int) -> Interval:
    """The days from one to another of April, both included."""
    return Interval(APRIL + timedelta(days=first - 1), APRIL + timedelta(days=last))


def test_published_features_are_the_built_ones_and_tell_what_they_were_made_from(
    tmp_path: Path, lake: Lake, ledger: Ledger
) -> None:
    folder = history(tmp_path)
    ingest(lake, ledger, folder, FIRST)
    tables = ingest(lake, ledger, folder, SECOND)

    publication = publish(folder, lake, ledger, SECOND, "score")

    with build_features(folder, lake, ledger, SECOND) as built:
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
        with build_features(folder, lake, ledger, FIRST, snapshots=snapshots) as built:
            return set(built.reader().read_all().column("amount").to_pylist())

    assert amounts(before.snapshots) == {1.0}
    assert amounts(None) == {2.0}


def test_without_published_tables_the_error_tells_to_ingest(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)

    with pytest.raises(SnapshotMissing, match=r"returns: no tables are published yet; run returns\.ingest"):
        build_features(folder, lake, ledger, FIRST)


def test_a_table_or_column_that_came_later_to_the_spec_tells_to_ingest_again(
    tmp_path: Path, lake: Lake, ledger: Ledger
) -> None:
    ingest(lake, ledger, shop(tmp_path), FIRST)
    stock = {**SPEC["tables"]["customers"], "key": ["customer"]}
    with_table = shop(tmp_path, "SELECT order_id, amount FROM entities, stock", tables={**SPEC["tables"], "stock": stock})
    with pytest.raises(SnapshotMissing, match=r"table stock of model\.yaml was never published; run returns\.ingest"):
        build_features(with_table, lake, ledger, FIRST)

    orders = SPEC["tables"]["orders"]
    orders = {**orders, "columns": {**orders["columns"], "coupon": {"type": "string", "nullable": True}}}
    with_column = shop(tmp_path, tables={**SPEC["tables"], "orders": orders})
    with pytest.raises(SnapshotMissing, match=r"no column coupon, though model\.yaml names it; run returns\.ingest"):
        build_features(with_column, lake, ledger, FIRST)


def test_days_with_tables_and_no_features_get_them_once(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    for interval in (april(1, 3), april(6, 6)):
        ingest(lake, ledger, folder, interval)

    first = ensure_features(folder, lake, ledger, april(1, 10), run_id="train")
    second = ensure_features(folder, lake, ledger, april(1, 10), run_id="train-again")

    assert keys(first) == ["2013-04-01--2013-04-04", "2013-04-06"]
    assert second == []
    assert published(lake, ledger, april(1, 10)).num_rows == 16


def test_only_days_that_the_interval_touches_are_built(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    ingest(lake, ledger, folder, april(1, 4))

    done = ensure_features(folder, lake, ledger, Interval.of("2013-04-02T12:00:00Z", "2013-04-03T12:00:00Z"), run_id="train")

    assert keys(done) == ["2013-04-02--2013-04-04"]


def test_features_of_an_earlier_query_are_built_again(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    ingest(lake, ledger, folder, april(1, 3))
    ensure_features(folder, lake, ledger, april(1, 3), run_id="train")
    changed = shop(tmp_path, "SELECT order_id, amount + 1 AS amount FROM entities")
    publish(changed, lake, ledger, april(2, 2), "score")

    done = ensure_features(changed, lake, ledger, april(1, 3), run_id="train-again")

    assert keys(done) == ["2013-04-01", "2013-04-03"]
    assert set(published(lake, ledger, april(1, 3)).column("amount").to_pylist()) == {2.0}


def test_a_day_with_new_rows_renews_the_days_that_look_at_it(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)  # a lookback of two days
    ingest(lake, ledger, folder, april(1, 6))
    ensure_features(folder, lake, ledger, april(1, 6), run_id="train")

    ingest(lake, ledger, folder, april(2, 2), "mended", amount=5.0)

    assert keys(ensure_features(folder, lake, ledger, april(1, 6), run_id="train-again")) == ["2013-04-02--2013-04-05"]
    assert published(lake, ledger, april(2, 2)).column("amount").to_pylist() == [5.0] * 4


def test_a_day_that_came_after_its_successor_renews_it(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = history(tmp_path)
    for day in (SECOND, FIRST):
        ingest(lake, ledger, folder, day)
        publish(folder, lake, ledger, day, "backfill")
    assert published(lake, ledger, SECOND).column("sent_back").to_pylist() == [0.0, 0.0, 1.0, 1.0]

    ensure_features(folder, lake, ledger, april(1, 2), run_id="train")

    assert published(lake, ledger, SECOND).column("sent_back").to_pylist() == [2.0, 2.0, 3.0, 3.0]


def test_a_day_ingested_again_with_the_same_rows_renews_nothing(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    ingest(lake, ledger, folder, FIRST)
    ensure_features(folder, lake, ledger, FIRST, run_id="train")

    ingest(lake, ledger, folder, FIRST, "again")

    assert ensure_features(folder, lake, ledger, FIRST, run_id="train-again") == []


def test_losing_to_a_later_run_is_an_error_only_if_its_features_are_amiss(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    ingest(lake, ledger, folder, FIRST)
    ledger.next_order("returns", "features", FIRST, "train")
    other = shop(tmp_path, "SELECT order_id, -amount AS amount FROM entities")
    publish(other, lake, ledger, FIRST, "score")

    with pytest.raises(Superseded):
        ensure_features(folder, lake, ledger, FIRST, run_id="train")

    publish(folder, lake, ledger, FIRST, "score-again")
    assert ensure_features(folder, lake, ledger, FIRST, run_id="train") == []


# --- labels ------------------------------------------------------------------------------------------------------------


def labels(folder: ModelFolder, lake: Lake, ledger: Ledger, as_of: datetime, interval: Interval = FIRST) -> pa.Table:
    newest = ledger.published("returns", "tables")
    assert newest is not None
    return read_labels(folder, lake, newest.snapshots, interval, as_of=as_of)


def test_labels_are_those_known_by_then_in_order(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    ingest(lake, ledger, folder, FIRST)
    ingest(lake, ledger, folder, SECOND)

    found = labels(folder, lake, ledger, hours(18))

    moment = pa.timestamp("us", "UTC")
    wanted = [("order_id", pa.string()), ("placed", moment), ("label", pa.bool_()), ("label_known_at", moment)]
    assert found.schema == pa.schema(wanted)
    assert found.to_pylist() == [
        {"order_id": "o1", "placed": hours(1), "label": False, "label_known_at": hours(6)},
        {"order_id": "o7", "placed": hours(7), "label": True, "label_known_at": hours(12)},
        {"order_id": "o13", "placed": hours(13), "label": False, "label_known_at": hours(18)},
    ]


def test_labels_with_a_time_of_their_own_are_found_wherever_it_lies(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    returned = {**SPEC["tables"]["returned"], "event_time": "sent_back"}
    folder = shop(tmp_path, tables={**SPEC["tables"], "returned": returned})
    tables = tables_of(folder, [1, 22])
    ingest_tables(lake, ledger, folder, april(1, 2), tables)

    assert labels(folder, lake, ledger, hours(48)).column("order_id").to_pylist() == ["o1", "o22"]


@pytest.mark.parametrize(
    ("task", "sql", "wanted"),
    [
        ("binary_classification", "reason", [False, True, False, True]),
        ("multiclass_classification", "reason", ["0", "1", "0", "1"]),
        ("multiclass_classification", "CASE WHEN reason > 0 THEN 'worn' END", ["worn", "worn"]),
        ("regression", "reason * 1.5", [0.0, 1.5, 0.0, 1.5]),
    ],
)
def test_labels_are_what_the_task_wants(
    tmp_path: Path, lake: Lake, ledger: Ledger, task: str, sql: str, wanted: list[Any]
) -> None:
    folder = shop(tmp_path, task=task, label={"table": "returned", "sql": sql})
    ingest(lake, ledger, folder, FIRST)

    assert labels(folder, lake, ledger, hours(48)).column("label").to_pylist() == wanted


@pytest.mark.parametrize(
    ("task", "sql", "message"),
    [
        ("binary_classification", "reasn > 0", r"label\.sql: .*reasn"),
        ("binary_classification", "reason + 3", r"label\.sql: gives 3, but binary_classification wants true or false"),
        ("binary_classification", "order_id", r"label\.sql: gives VARCHAR, but binary_classification wants true or false"),
        ("regression", "order_id", r"label\.sql: gives VARCHAR, but regression wants a number"),
        ("multiclass_classification", "reason * 0.5", r"label\.sql: gives DECIMAL.* wants a class as text"),
    ],
)
def test_a_wrong_label_is_an_error_that_names_it(
    tmp_path: Path, lake: Lake, ledger: Ledger, task: str, sql: str, message: str
) -> None:
    folder = shop(tmp_path, task=task, label={"table": "returned", "sql": sql})
    ingest(lake, ledger, folder, FIRST)

    with pytest.raises(SpecError, match=message):
        labels(folder, lake, ledger, hours(48))


def test_two_labels_of_an_entity_are_an_error(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    returned = {**SPEC["tables"]["returned"], "key": ["order_id", "sent_back"]}
    folder = shop(tmp_path, tables={**SPEC["tables"], "returned": returned})
    tables = tables_of(folder, [1, 2])
    tables["returned"] = pa.concat_tables([tables["returned"], tables["returned"].slice(0, 1)])
    ingest_tables(lake, ledger, folder, FIRST, tables)

    with pytest.raises(SpecError, match=r"1 rows of returned in 2013-04-01 are second labels"):
        labels(folder, lake, ledger, hours(48))


# --- leaks -------------------------------------------------------------------------------------------------------------


def sampled(folder: ModelFolder) -> dict[str, pa.Table]:
    """Orders every two hours from four days before until a day after the sample."""
    return tables_of(folder, list(range(-96, 48, 2)))


def test_a_query_that_looks_at_nothing_later_has_no_leak(tmp_path: Path) -> None:
    folder = history(tmp_path)

    assert leaks.find(folder, sampled(folder), FIRST) == []


@pytest.mark.parametrize(
    ("honest", "leaky", "tables"),
    [
        # Known when the order was placed, though it was sent back later.
        ("returned._known_at <= orders_now.as_of", "returned.placed <= orders_now.as_of", ["returned"]),
        # Minutes ahead suffice.
        ("returned._known_at <= orders_now.as_of", "returned._known_at <= orders_now.as_of + INTERVAL 2 HOUR", ["returned"]),
        # Orders that are still to come.
        ("count(returned.order_id)", "count(DISTINCT earlier.order_id)", ["orders"]),
    ],
)
def test_a_feature_that_knows_too_much_is_found_with_the_table(
    tmp_path: Path, honest: str, leaky: str, tables: list[str]
) -> None:
    folder = history(tmp_path, HISTORY.replace(honest, leaky))

    (leak,) = leaks.find(folder, sampled(folder), FIRST)

    assert (leak.feature, leak.cause, leak.tables) == ("sent_back", "later rows", tables)
    assert "were not known then" in str(leak)


def test_only_the_feature_that_leaks_is_named(tmp_path: Path) -> None:
    sql = """
    SELECT order_id, amount, (SELECT max(reason) FROM returned WHERE returned.order_id = entities.order_id) AS told
    FROM entities
    """
    folder = shop(tmp_path, sql, features={"numeric": ["amount", "told"]})

    (leak,) = leaks.find(folder, sampled(folder), FIRST)

    assert (leak.feature, leak.tables) == ("told", ["returned"])
    assert leak.entities > 0
    assert leak.example.startswith("order_id o")


@pytest.mark.parametrize("value", ["random()", "epoch(now())"])
def test_a_feature_of_chance_or_the_clock_is_found(tmp_path: Path, value: str) -> None:
    folder = shop(tmp_path, f"SELECT order_id, {value} AS amount FROM entities")

    (leak,) = leaks.find(folder, sampled(folder), FIRST)

    assert (leak.feature, leak.cause) == ("amount", "the run")


@pytest.mark.parametrize(
    "sql",
    [
        # Further back than the lookback of two days, as far as the rows reach.
        "SELECT e.order_id, count(*) AS amount FROM entities e JOIN orders o ON o.placed <= e.placed GROUP BY 1",
        # The interval's own length.
        "SELECT order_id, date_diff('hour', (SELECT min(placed) FROM entities), placed) AS amount FROM entities",
    ],
)
def test_a_feature_that_depends_on_where_the_interval_is_cut_is_found(tmp_path: Path, sql: str) -> None:
    folder = shop(tmp_path, sql)

    (leak,) = leaks.find(folder, sampled(folder), FIRST)

    assert (leak.feature, leak.cause) == ("amount", "the interval")


def test_leaks_are_looked_for_in_published_tables(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = history(tmp_path)
    ingest(lake, ledger, folder, april(1, 5))
    leaky = history(tmp_path, HISTORY.replace("returned._known_at", "returned.placed"))

    assert find_leaks(folder, lake, ledger, april(4, 4), moments=3) == []
    assert [leak.feature for leak in find_leaks(leaky, lake, ledger, april(4, 4), moments=3)] == ["sent_back"]


@pytest.fixture(autouse=True)
def _no_directory_is_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever DuckDB puts on disk is gone when it is closed."""
    spill = tmp_path_factory.mktemp("spill")
    monkeypatch.setattr("tempfile.tempdir", str(spill))
    yield
    assert list(spill.iterdir()) == []
