"""``features.sql`` sees what was known, gives one row for each entity, and names its own faults."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from perennial.core.errors import SpecError
from perennial.features.point_in_time import compute
from tests.unit.features.shop import FIRST, SECOND, SPEC, features, history, hours, shop, table, tables_of

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

    assert folder.feature_tables == ["orders"]
    tables = {"orders": tables_of(folder, [1, 2])["orders"]}
    assert features(folder, tables).column("amount").to_pylist() == [1.0, 2.0]


def test_a_feature_may_be_of_the_local_day(tmp_path: Path) -> None:
    sql = """
    SELECT entities.order_id, extract(hour FROM entities.placed AT TIME ZONE 'America/New_York') AS local_hour,
        count(earlier.order_id) AS that_day
    FROM entities LEFT JOIN orders AS earlier ON earlier._known_at < entities.as_of
        AND date_trunc('day', earlier.placed AT TIME ZONE 'America/New_York')
            = date_trunc('day', entities.placed AT TIME ZONE 'America/New_York')
    GROUP BY ALL
    """
    folder = shop(tmp_path, sql, features={"numeric": ["local_hour", "that_day"], "lookback": "1d"})

    # The first of April begins in New York at four in the morning, in UTC.
    found = features(folder, tables_of(folder, [-20.5, -1, 3, 4, 5]))

    assert found.select(["local_hour", "that_day"]).to_pylist() == [
        {"local_hour": 23, "that_day": 1},
        {"local_hour": 0, "that_day": 0},
        {"local_hour": 1, "that_day": 1},
    ]


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

    with pytest.raises(SpecError, match=r"features\.sql: it must be exactly one SELECT"):
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
        ("SELECT order_id, customer AS amount FROM entities", r"amount is a numeric feature in model\.yaml, but it is VARCHAR"),
        ("SELECT 1 AS order_id, amount FROM entities", r"order_id is INTEGER, but in entities it is VARCHAR"),
        ("SELECT order_id, 1 / (amount - 1) AS amount FROM entities", r"infinite values in amount \(1\)"),
        ("SELECT order_id, amount FROM entities WHERE amount > 1", r"of 3 entities: 1 keys have no row, for example"),
        ("SELECT order_id, amount FROM entities, range(2)", r"3 keys have several rows, for example order_id o1"),
        ("SELECT order_id || '!' AS order_id, amount FROM entities", r"3 keys are not in entities, for example order_id o1!"),
    ],
)  # fmt: skip
def test_a_wrong_query_is_an_error_that_names_file_and_fault(tmp_path: Path, sql: str, message: str) -> None:
    folder = shop(tmp_path, sql)

    with pytest.raises(SpecError, match=message):
        features(folder, tables_of(folder, [1, 2, 3]))


def test_a_category_must_not_be_a_fraction(tmp_path: Path) -> None:
    folder = shop(tmp_path, "SELECT order_id, amount AS size FROM entities", features={"categorical": ["size"]})

    with pytest.raises(SpecError, match=r"size is a categorical feature in model\.yaml, but it is DOUBLE here"):
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


SENT_BACK = """
SELECT order_id, (SELECT sum(reason) FROM returned WHERE returned._known_at <= as_of) AS sent_back FROM entities
"""


def test_each_entity_sees_the_newest_row_of_a_key_that_was_known_by_its_as_of(tmp_path: Path) -> None:
    folder = history(tmp_path, SENT_BACK)
    tables = tables_of(folder, [1, 8, 15, 22])
    back = {"order_id": "x", "placed": hours(0), "sent_back": hours(0), "reason": 1}
    rows = [back, {**back, "reason": 10}, {**back, "reason": 100, "placed": hours(-30)}]
    tables["returned"] = table(folder, "returned", rows, [hours(7), hours(14), hours(21)])

    # A sum over all rows of the key would count each correction once more.
    assert features(folder, tables)["sent_back"].to_pylist() == [None, 1, 10, 100]


def test_a_correction_before_the_first_entity_leaves_only_the_newest_row(tmp_path: Path) -> None:
    folder = history(tmp_path, SENT_BACK)
    tables = tables_of(folder, [8, 15])
    back = {"order_id": "x", "placed": hours(0), "sent_back": hours(0), "reason": 1}
    tables["returned"] = table(folder, "returned", [back, {**back, "reason": 10}], [hours(5), hours(6)])

    assert features(folder, tables)["sent_back"].to_pylist() == [10, 10]


def test_an_entity_is_what_was_known_of_it_when_it_was_asked_about(tmp_path: Path) -> None:
    folder = shop(tmp_path, entity={"table": "orders", "as_of": "placed + INTERVAL 1 HOUR"})
    tables = tables_of(folder, [1])
    [row] = tables["orders"].to_pylist()
    versions = [row, {**row, "amount": 2.0, "_known_at": hours(1.5)}, {**row, "amount": 3.0, "_known_at": hours(9)}]
    tables["orders"] = pa.Table.from_pylist(versions, schema=tables["orders"].schema)

    assert features(folder, tables)["amount"].to_pylist() == [2.0]


def test_entities_that_share_a_key_are_an_error_where_duplicates_are_refused(tmp_path: Path) -> None:
    orders = {**SPEC["tables"]["orders"], "duplicates": "refuse"}
    folder = shop(tmp_path, tables={**SPEC["tables"], "orders": orders})

    with pytest.raises(SpecError, match="1 repeat the key order_id of another"):
        features(folder, tables_of(folder, [1, 2, 3], order_id=["x", "x", "y"]))
