"""The ledger's schema: it comes into being, is brought up to date, and is refused where it does not fit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from perennial.core.columns import metadata
from perennial.core.database import Database
from perennial.core.errors import SchemaMismatch
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.ledger import migrations
from perennial.ledger.store import Ledger

HEAD = migrations.revisions()[-1]
MOMENT = datetime(2013, 4, 1, tzinfo=UTC)


@pytest.fixture
def url(settings_on_each_database: Settings) -> str:
    """Of a database that holds nothing."""
    return settings_on_each_database.database_url


def test_the_files_are_the_revisions_in_their_order(url: str) -> None:
    with Database(url).changing_tables() as connection:
        scripts = ScriptDirectory.from_config(migrations.config(connection)).walk_revisions()
    assert tuple(script.revision for script in scripts)[::-1] == migrations.revisions()


def test_the_revisions_make_the_tables_that_the_ledger_uses(url: str) -> None:
    Ledger(url).migrate()
    with Database(url).reading() as connection:
        compared = MigrationContext.configure(
            connection,
            opts={
                "version_table": migrations.VERSION_TABLE,
                "compare_server_default": True,
                "include_name": lambda name, kind, _: kind != "table" or name in metadata.tables,
            },
        )
        assert compare_metadata(compared, metadata) == []


def test_rows_of_the_first_revision_survive_all_later_ones(url: str, tmp_path: Path) -> None:
    before = _at_revision_one(url, with_rows=True)
    Ledger(url, tmp_path).migrate()
    after = _rows(url)
    assert before.pop(migrations.VERSION_TABLE) != after[migrations.VERSION_TABLE]
    for table, rows in before.items():
        for name, value in rows[0].items():
            if name in after[table][0]:
                assert after[table][0][name] == value, f"{table}.{name}"
    assert _revision(url) == HEAD


def test_what_a_channel_has_been_told_is_not_told_again_after_the_second_revision(url: str) -> None:
    _at_revision_one(url, with_rows=False)
    alert = '{"kind": "drift", "links": {}, "model": "m", "severity": "warning", "text": "", "title": "m: drift"}'
    values = [
        ("told", '["email", "slack:team"]', MOMENT, None),
        ("half told", '["slack:team"]', None, MOMENT),
        ("given up", "[]", None, None),
        ("new", "[]", None, MOMENT),
    ]
    with Database(url).changing_tables() as connection:
        outbox = sa.Table("perennial_outbox", sa.MetaData(), autoload_with=connection)
        for key, delivered, at, next_at in values:
            connection.execute(
                sa.insert(outbox).values(
                    key=key, alert=alert, created_at=MOMENT, delivered=delivered, attempts=0, next_attempt_at=next_at,
                    delivered_at=at,
                )
            )  # fmt: skip
    ledger = Ledger(url)
    ledger.migrate()
    assert [entry.key for entry in ledger.alerts() if entry.waits] == ["half told", "new"]
    ledger.outbox.route(lambda alert: ["slack:team", "email:ann@example.org"], MOMENT)
    waiting = {channel: [w.key for w in ledger.outbox.waiting(channel)] for channel in ("slack:team", "email:ann@example.org")}
    assert waiting == {"slack:team": ["new"], "email:ann@example.org": ["half told", "new"]}


def test_a_ledger_from_before_there_were_revisions_is_taken_over(url: str, tmp_path: Path) -> None:
    before = _at_revision_one(url, with_rows=True)
    with Database(url).changing_tables() as connection:
        # As an early release left it: without the tables that came later, and without a revision.
        for table in (migrations.VERSION_TABLE, "perennial_shadow_comparisons", "perennial_alias_moves"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
    with pytest.raises(SchemaMismatch, match=r"no ledger with a revision yet.*init job"):
        Ledger(url).champion("flight_delay")
    Ledger(url, tmp_path).migrate()
    assert _rows(url)["perennial_promotions"][0]["reason"] == before["perennial_promotions"][0]["reason"]
    assert _revision(url) == HEAD


def test_tables_that_no_release_made_are_not_taken_over(url: str) -> None:
    with Database(url).changing_tables() as connection:
        connection.exec_driver_sql("CREATE TABLE perennial_outbox (id BIGINT PRIMARY KEY, colour TEXT)")
    with pytest.raises(SchemaMismatch, match=r"perennial_outbox is not one that a release made; it differs in .*colour"):
        Ledger(url).migrate()
    assert _tables(url) == {"perennial_outbox"}, "what was begun is undone"


def test_a_newer_ledger_is_refused_and_left_alone(url: str) -> None:
    Ledger(url).migrate()
    with Database(url).changing_tables() as connection:
        connection.exec_driver_sql(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'")
    uses: tuple[Callable[[], object], ...] = (Ledger(url).migrate, lambda: Ledger(url).champion("flight_delay"))
    for use in uses:
        newer = rf"revision 9999.*newest revision that this code knows is {HEAD}.*newer release.*backup"
        with pytest.raises(SchemaMismatch, match=newer):
            use()
    assert _revision(url) == "9999"


def test_an_older_ledger_is_refused_until_the_init_job_has_run(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger(url).migrate()
    newer = (*migrations.revisions(), "9999")
    monkeypatch.setattr(migrations, "revisions", lambda: newer)
    with pytest.raises(SchemaMismatch, match=rf"at revision {HEAD}, and this code needs 9999: run the init job"):
        Ledger(url).next_order("flight_delay", "tables", Interval.day("2013-04-01"), "run")


def test_no_password_is_told(postgres: str) -> None:
    password = sa.make_url(postgres).password
    with pytest.raises(SchemaMismatch) as caught:
        Ledger(postgres).champion("flight_delay")
    assert password
    assert password not in str(caught.value)


def test_an_open_ledger_is_looked_at_once_by_one_query(url: str) -> None:
    Ledger(url).migrate()
    ledger = Ledger(url)
    asked: list[str] = []
    sa.event.listen(
        ledger._database.engine, "before_cursor_execute", lambda *call: asked.append(call[2]) if "version" in call[2] else None
    )
    ledger.migrate()
    assert [ledger.champion(model) for model in ("a", "b")] == [None, None]
    assert len([query for query in asked if migrations.VERSION_TABLE in query]) == 1


# --- processes that start together, or die ---------------------------------------------------------------------------


def _migrate(url: str, state: Path) -> None:
    Ledger(url, state).migrate()


def _die_at(url: str, state: Path, statement: int) -> None:
    """Migrate, and be killed just before the database is told the n-th of the statements that change it."""
    ledger = Ledger(url, state)
    told = 0

    def before(*call: Any) -> None:
        nonlocal told
        told += call[2].lstrip().startswith(("CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE"))
        if told > statement:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(ledger._database.engine, "before_cursor_execute", before)
    ledger.migrate()


def _run(*calls: tuple[Any, ...]) -> list[int | None]:
    context = get_context("forkserver")
    context.set_forkserver_preload(["perennial.ledger.store", "alembic.command", __name__])
    processes = [context.Process(target=call[0], args=call[1:]) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("old", [False, True])
def test_processes_that_start_together_migrate_once(url: str, old: bool, tmp_path: Path) -> None:
    if old:
        _at_revision_one(url, with_rows=True)
    assert _run(*[(_migrate, url, tmp_path)] * 6) == [0] * 6
    assert _revision(url) == HEAD


@pytest.mark.parametrize("old", [False, True])
def test_a_migration_that_is_killed_leaves_the_old_schema_whole(url: str, old: bool, tmp_path: Path) -> None:
    if old:
        _at_revision_one(url, with_rows=True)
    before, tables = _revision(url), _tables(url)
    for statement in range(0, 200, 4):
        if _run((_die_at, url, tmp_path, statement)) == [0]:
            break
        assert (_revision(url), _tables(url)) == (before, tables), f"killed before statement {statement}"
    assert _revision(url) == HEAD, "the next one gets through"
    assert Ledger(url).champion("flight_delay") == (1 if old else None)


# --- a ledger of the first revision ----------------------------------------------------------------------------------


def _at_revision_one(url: str, *, with_rows: bool) -> dict[str, list[dict[str, Any]]]:
    """A ledger as the first revision made it, with one row a table."""
    with Database(url).changing_tables() as connection:
        command.upgrade(migrations.config(connection), "0001")
        reflected = sa.MetaData()
        reflected.reflect(connection, only=lambda name, _: name.startswith("perennial_") and name != migrations.VERSION_TABLE)
        for table in reflected.sorted_tables if with_rows else ():
            connection.execute(sa.insert(table).values({column.name: _value(column) for column in table.columns}))
    return _rows(url)


def _value(column: sa.Column[Any]) -> object:
    if isinstance(column.type, sa.DateTime):
        return MOMENT
    if isinstance(column.type, sa.Boolean):
        return True
    if isinstance(column.type, sa.Integer | sa.Numeric | sa.Float):
        return 1
    lists = {"reasons", "delivered"}
    objects = {"snapshots", "hashes", "rows", "inputs", "manifest", "training", "evaluation", "decision", "code", "evidence"}
    objects |= {"details", "metrics", "comparison", "constant", "expectation", "audit"}
    if column.name == "alert":
        return '{"details": {}, "kind": "drift", "model": "flight_delay", "severity": "warning", "title": "Drift"}'
    if column.name in lists | objects:
        return "[]" if column.name in lists else "{}"
    return {"model": "flight_delay", "dataset": "tables"}.get(column.name, f"the {column.name}")


def _rows(url: str) -> dict[str, list[dict[str, Any]]]:
    reflected = sa.MetaData()
    with Database(url).reading() as connection:
        reflected.reflect(connection)
        return {
            table.name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for table in reflected.tables.values()
        }


def _tables(url: str) -> set[str]:
    with Database(url).reading() as connection:
        return {name for name in sa.inspect(connection).get_table_names() if name.startswith("perennial_")}


def _revision(url: str) -> str | None:
    with Database(url).reading() as connection:
        return migrations.current(connection)
