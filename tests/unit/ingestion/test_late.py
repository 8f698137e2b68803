"""Rows, files and corrections that come late are published into their own days."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest
import sqlalchemy as sa
from moto.server import ThreadedMotoServer
from sqlalchemy.pool import NullPool

from perennial.core.errors import SourceMissing
from perennial.core.intervals import Interval, utc
from perennial.ingestion.late import choose_files
from perennial.spec.data import Table
from tests.unit.shop import TABLE, Shop

FIRST, SECOND, THIRD = (Interval.day(f"2024-01-0{day}") for day in (1, 2, 3))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    for day in "12":
        shop.deliver("outcomes", day, f"o{day} {day}T10 {day}T11 1")
    return shop


def test_a_late_row_is_published_into_its_own_day_and_its_features_are_built_again(shop: Shop) -> None:
    shop.deliver("orders", "1", "a 1T10 1T11 5")
    shop.ingest(FIRST)
    shop.deliver("orders", "2", "b 2T10 2T11 6", "c 1T23 1T23 7")

    told = shop.ingest(SECOND)

    assert "late rows published into 2024-01-01: orders 1" in told
    assert shop.rows(day=FIRST) == shop.rows("features", FIRST) == [("a", 5), ("c", 7)]
    assert shop.rows(day=SECOND) == shop.rows("features", SECOND) == [("b", 6)]
    assert shop.quarantine() == []
    # Nothing is new the second time.
    before = len(shop.deployment.ledger.publications("shop", "tables", FIRST))
    assert "late rows" not in shop.ingest(SECOND)
    assert len(shop.deployment.ledger.publications("shop", "tables", FIRST)) == before


def test_late_rows_are_the_same_in_whatever_order_days_are_ingested(shop: Shop) -> None:
    shop.deliver("orders", "1", "a 1T10 1T11 5")
    shop.deliver("orders", "2", "b 2T10 2T11 6", "c 1T23 1T23 7")

    shop.ingest(SECOND)
    shop.ingest(FIRST)

    assert shop.rows() == [("a", 5), ("b", 6), ("c", 7)]
    assert shop.rows("features") == [("a", 5), ("b", 6), ("c", 7)]


def test_a_row_that_comes_too_late_is_quarantined_with_its_reason(shop: Shop) -> None:
    shop.deliver("orders", "1", "a 1T10 1T11 5")
    shop.ingest(FIRST)
    shop.deliver("orders", "2", "b 2T10 2T11 6")
    shop.ingest(SECOND)
    shop.deliver("outcomes", "3", "o3 3T10 3T11 1")
    shop.deliver("orders", "3", *(f"d{n} 3T10 3T11 7" for n in range(30)), "c 1T23 1T23 7")

    shop.ingest(THIRD)

    assert shop.quarantine() == ["placed: 2024-01-01 23:00:00+00 lies more than 1 days (late) before the period of its file"]
    assert shop.rows(day=FIRST) == [("a", 5)]
    assert (shop.too_late(SECOND), shop.too_late(THIRD)) == ({}, {"orders": {FIRST.key: 1}})


def test_a_closed_day_waits_for_no_table(tmp_path: Path) -> None:
    shop = Shop(tmp_path, schedules={"closed": [SECOND.key]})
    for day in "12":
        shop.deliver("orders", day, f"a{day} {day}T10 {day}T11 5")

    shop.ingest(FIRST)
    assert "outcomes" not in shop.ingest(SECOND).partition("\n")[2]

    assert shop.unfinished() == ["outcomes has not come for 1 Jan 2024"]


def test_a_second_row_of_a_key_is_kept_beside_the_first_one(shop: Shop) -> None:
    shop.deliver("orders", "1", "a 1T10 1T11 5")
    shop.ingest(FIRST)
    shop.deliver("orders", "2", "b 2T10 2T11 6", "a 1T10 2T09 8")

    shop.ingest(SECOND)

    # Older states of knowledge stay: what was known on the first day is still known.
    assert shop.rows(day=FIRST) == [("a", 5), ("a", 8)]
    # The order was asked about a day after it was placed, when the correction was known.
    assert shop.rows("features", FIRST) == [("a", 8)]


def test_of_two_rows_known_at_once_the_later_file_counts(shop: Shop) -> None:
    shop.deliver("orders", "1", "a 1T10 1T11 5")
    shop.deliver("orders", "2", "b 2T10 2T11 6", "a 1T10 1T11 8")

    shop.ingest(Interval(FIRST.start, SECOND.end))

    assert shop.rows() == [("a", 8), ("b", 6)]
    assert shop.quarantine() == []


def test_a_second_row_is_refused_where_the_table_says_so(tmp_path: Path) -> None:
    shop = Shop(tmp_path, outcomes={"duplicates": "refuse", "late": None, "tolerance": 1})
    for day in "12":
        shop.deliver("orders", day, f"o{day} {day}T10 {day}T11 1")
    shop.deliver("outcomes", "1", "a 1T10 1T11 5")
    shop.ingest(FIRST)
    shop.deliver("outcomes", "2", "a 2T10 2T11 6", "b 2T10 2T11 7")

    shop.ingest(SECOND)

    assert shop.rows("outcomes") == [("a", 5), ("b", 7)]
    assert shop.quarantine() == ["key: a was published already (duplicates: refuse)"]


def test_a_table_that_comes_later_does_not_hold_up_the_day(shop: Shop) -> None:
    for day in "123":
        shop.deliver("orders", day, f"a{day} {day}T10 {day}T11 5")
    shop.ingest(FIRST)
    (shop.settings.data / "outcomes" / "2024-01-02.csv").unlink()

    assert "outcomes of 2024-01-02 has not come; an ingest of a later day completes it" in shop.ingest(SECOND)
    assert shop.rows("features", SECOND) == [("a2", 5)]
    assert shop.unfinished() == ["outcomes has not come for 2 Jan 2024"]

    shop.deliver("outcomes", "2", "o2 2T10 2T11 1")
    shop.deliver("outcomes", "3", "o3 3T10 3T11 1")
    assert "late rows published into 2024-01-02: outcomes 1" in shop.ingest(THIRD)
    assert shop.rows("outcomes") == [("o1", 1), ("o2", 1), ("o3", 1)]
    assert shop.unfinished() == []


def test_the_table_of_the_entity_is_waited_for(shop: Shop) -> None:
    with pytest.raises(SourceMissing, match=r"orders/2024-01-01\.csv: there is no such file"):
        shop.ingest(FIRST)


@pytest.mark.parametrize("says", ["tell", "read"])
def test_a_file_that_was_replaced_is_told_and_read_again_where_the_table_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, says: str
) -> None:
    shop = Shop(tmp_path, orders={"replaced": says})
    for day in "12":
        shop.deliver("outcomes", day, f"o{day} {day}T10 {day}T11 1")
        shop.deliver("orders", day, f"a{day} {day}T10 {day}T11 5")
    shop.ingest(FIRST)
    replaced = shop.deliver("orders", "1", "a1 1T10 1T11 9", "new 1T12 1T13 3")
    os.utime(replaced, (1, 1))

    shop.ingest(SECOND)

    assert "orders/2024-01-01.csv was replaced after it was read" in caplog.text
    assert shop.rows(day=FIRST) == ([("a1", 5)] if says == "tell" else [("a1", 9), ("new", 3)])


def test_which_files_of_earlier_days_are_read() -> None:
    table = Table.model_validate({**TABLE, "source": "orders", "late": "2d", "replaced": "read"})
    before = Interval.of("2024-01-01", "2024-01-08")
    now = {str(day): (Interval.day(f"2024-01-0{day}"), "v1") for day in range(1, 8)}

    found = choose_files(
        table, before, now=now, read={"3": None, "4": "v0", "5": "v1"}, published=[Interval.of("2024-01-01", "2024-01-07")]
    )

    # The first days are too long ago, the third was read by an older release, and the seventh is not published yet.
    assert found.periods == [Interval.day("2024-01-04"), Interval.day("2024-01-06")]
    assert found.replaced == ["4"]
    assert utc("2024-01-08") == before.end


def test_a_database_is_read_again_as_far_back_as_rows_may_be_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = sa.create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    monkeypatch.setenv("SHOP", str(database.url))
    query = "SELECT id, placed, told, amount FROM orders WHERE placed >= :start AND placed < :end"
    shop = Shop(tmp_path, sources={"orders": {"sql": query, "connection": "SHOP"}})

    def change(*statements: str) -> None:
        with database.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))

    for day in "12":
        shop.deliver("outcomes", day, f"o{day} {day}T10 {day}T11 1")
    change(
        "CREATE TABLE orders (id TEXT, placed TEXT, told TEXT, amount REAL)",
        "INSERT INTO orders VALUES ('a', '2024-01-01 10:00:00', '2024-01-01 11:00:00', 5)",
    )
    shop.ingest(FIRST)
    change(
        "INSERT INTO orders VALUES ('b', '2024-01-02 10:00:00', '2024-01-02 11:00:00', 6)",
        "INSERT INTO orders VALUES ('late', '2024-01-01 12:00:00', '2024-01-02 09:00:00', 7)",
        "UPDATE orders SET amount = 8, told = '2024-01-02 08:00:00' WHERE id = 'a'",
    )

    assert "late rows published into 2024-01-01: orders 2" in shop.ingest(SECOND)
    assert shop.rows() == [("a", 5), ("a", 8), ("b", 6), ("late", 7)]
    assert "late rows" not in shop.ingest(SECOND)


def test_a_postgresql_source_is_read_again_and_only_what_changed_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: str
) -> None:
    monkeypatch.setenv("SHOP", postgres)
    sources = {
        name: {"sql": f"SELECT * FROM {name} WHERE placed >= :start AND placed < :end", "connection": "SHOP"}
        for name in ("orders", "outcomes")
    }
    shop = Shop(tmp_path, sources=sources)
    database = sa.create_engine(postgres, poolclass=NullPool)

    def change(*statements: str) -> None:
        with database.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))

    columns = "id TEXT, placed TIMESTAMPTZ, told TIMESTAMPTZ, amount DOUBLE PRECISION"
    change(
        *(f"CREATE TABLE {name} ({columns})" for name in sources),
        "INSERT INTO orders VALUES ('a', '2024-01-01 10:00Z', '2024-01-01 11:00Z', 5)",
    )
    shop.ingest(FIRST)
    assert shop.unfinished() == ["outcomes has not come for 1 Jan 2024"]
    change(
        "INSERT INTO orders VALUES ('b', '2024-01-02 10:00Z', '2024-01-02 11:00Z', 6)",
        "INSERT INTO orders VALUES ('late', '2024-01-01 12:00Z', '2024-01-02 09:00Z', 7)",
        "UPDATE orders SET amount = 8, told = '2024-01-02 08:00Z' WHERE id = 'a'",
        "INSERT INTO outcomes VALUES ('a', '2024-01-01 10:00Z', '2024-01-02 03:00Z', 1)",
    )

    assert "late rows published into 2024-01-01: orders 2, outcomes 1" in shop.ingest(SECOND)

    assert shop.rows() == [("a", 5), ("a", 8), ("b", 6), ("late", 7)]
    assert shop.rows("features") == [("a", 8), ("b", 6), ("late", 7)]
    assert shop.rows("outcomes") == [("a", 1)]
    assert shop.unfinished() == ["outcomes has not come for 2 Jan 2024"]
    # Neither the same rows nor rows that the database has lost since change what is published of that day.
    change("DELETE FROM orders WHERE id = 'late'")
    before = len(shop.deployment.ledger.publications("shop", "tables", FIRST))
    assert "late rows" not in shop.ingest(SECOND)
    assert len(shop.deployment.ledger.publications("shop", "tables", FIRST)) == before


def test_a_file_in_an_object_store_is_replaced_when_its_content_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    system = fsspec.get_filesystem_class("s3")
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    try:
        address = "http://{}:{}".format(*store.get_host_and_port())
        given = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "eu-central-1", "ENDPOINT_URL": address}
        for name, value in given.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        # It would go on with the address of another test.
        system.clear_instance_cache()
        system().makedirs("bucket", exist_ok=True)
        shop = Shop(tmp_path, sources={"orders": {"files": "s3://bucket/orders/%Y-%m-%d.csv"}}, orders={"replaced": "read"})

        def upload(day: str, *rows: str) -> None:
            file = shop.deliver("orders", day, *rows)
            system().pipe_file(f"bucket/orders/{file.name}", file.read_bytes())

        for day in "12":
            shop.deliver("outcomes", day, f"o{day} {day}T10 {day}T11 1")
            upload(day, f"a{day} {day}T10 {day}T11 5")
        shop.ingest(FIRST)
        upload("1", "a1 1T10 1T11 5")
        shop.ingest(SECOND)
        assert "was replaced" not in caplog.text, "it was copied there again"

        # Of the same size, perhaps in the same second.
        upload("1", "a1 1T10 1T11 9")
        shop.ingest(SECOND)

        assert "s3://bucket/orders/2024-01-01.csv was replaced after it was read" in caplog.text
        assert shop.rows(day=FIRST) == [("a1", 9)]
    finally:
        system.clear_instance_cache()
        store.stop()
