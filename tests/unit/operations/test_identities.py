"""Who may do what in the deployment's PostgreSQL, on a real server, with what a worker could try."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.core.database import Database
from perennial.lake.catalog import Catalog
from perennial.ledger.store import Ledger
from perennial.operations.identities import (
    ADDED_TO,
    DECISIONS,
    make_databases,
    separate_schemas,
    share_ledger,
    share_online_table,
)
from tests.conftest import _without

#: A function that PostgreSQL prefers to its own when it is called with an integer, and that gives the caller's rights away.
BETTER_MATCH = """
CREATE FUNCTION {schema}.hashtextextended(key text, seed integer) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'GRANT ALL ON ALL TABLES IN SCHEMA ' || current_schema() || ' TO {worker}';
    RETURN 1;
END $$
"""


@dataclass
class Server:
    admin: sa.URL
    ledger: sa.URL
    worker: sa.URL
    reader: sa.URL

    def engine(self, url: sa.URL) -> sa.Engine:
        return sa.create_engine(url, poolclass=NullPool)

    def make(self) -> None:
        """What the init job does with the ledger's database."""
        make_databases(self.admin, owners=[self.ledger], members=[self.worker, self.reader])
        separate_schemas(self.admin, self.ledger, self.worker, self.reader)
        Ledger(self.ledger.render_as_string(hide_password=False)).migrate()
        share_ledger(self.ledger, self.worker, self.reader)
        share_online_table(self.worker, self.reader)
        Catalog(self.worker.render_as_string(hide_password=False), "/nowhere").migrate()

    def superuser(self) -> sa.Engine:
        return self.engine(self.admin.set(database=self.ledger.database))

    def tables(self, schema: str) -> set[str]:
        return set(sa.inspect(self.superuser()).get_table_names(schema=schema))


@pytest.fixture
def server(_postgres_server: sa.URL) -> Iterator[Server]:
    mark = uuid.uuid4().hex[:8]
    names = {kind: f"{kind}_{mark}" for kind in ("ledger", "worker", "reader")}
    urls = {
        kind: _postgres_server.set(username=name, password=f"of-{name}", database=names["ledger"])
        for kind, name in names.items()
    }
    yield Server(_postgres_server, **urls)
    admin = sa.create_engine(_postgres_server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {names['ledger']} WITH (FORCE)")
        for name in names.values():
            connection.exec_driver_sql(f"DROP ROLE IF EXISTS {name}")


def refused(engine: sa.Engine, statement: str, because: str = "permission denied") -> None:
    with engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError, match=because):
        connection.exec_driver_sql(statement)


def old_layout(server: Server) -> None:
    """As the release before left it: every table in ``public``, where workers may create, and the owner may act as they do."""
    make_databases(server.admin, owners=[server.ledger], members=[server.worker, server.reader])
    owner, worker, reader = (url.username for url in (server.ledger, server.worker, server.reader))
    with server.superuser().begin() as connection:
        connection.exec_driver_sql(f"GRANT {worker}, {reader} TO {owner}")
        connection.exec_driver_sql(f"GRANT USAGE, CREATE ON SCHEMA public TO {worker}")
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA public TO {reader}")
    Ledger(server.ledger.render_as_string(hide_password=False)).migrate()
    with server.engine(server.ledger).begin() as connection:
        connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {worker}, {reader}")
    Catalog(server.worker.render_as_string(hide_password=False), "/nowhere").migrate()
    with server.engine(server.worker).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE toy_predictions AS SELECT 7 AS prediction")
    with server.engine(server.ledger).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE toy_scored AS SELECT 1 AS publication")


# --- the attack -------------------------------------------------------------------------------------------------------


def test_a_lock_calls_the_functions_of_postgresql_alone(postgres: str) -> None:
    url = sa.make_url(postgres)
    with sa.create_engine(url, poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION public.hashtextextended(text, integer) RETURNS bigint LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'a function of somebody else'; END $$"
        )
        with pytest.raises(sa.exc.InternalError, match="a function of somebody else"), connection.begin_nested():
            connection.exec_driver_sql("SELECT hashtextextended('a key', 0)")
    with Database(postgres).writing("a key") as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").scalar_one() == 1


def test_a_worker_can_make_no_function_and_nothing_where_the_owner_looks(server: Server) -> None:
    server.make()
    worker = server.engine(server.worker)
    for schema in ("public", "perennial", "pg_catalog"):
        refused(worker, BETTER_MATCH.format(schema=schema, worker=server.worker.username))
        refused(worker, f"CREATE TABLE {schema}.perennial_promotions (model text)")
        refused(worker, f"CREATE VIEW {schema}.perennial_publications AS SELECT 1 AS id")
    # Not even in its own schema, where somebody with more rights may write or restore.
    for schema in ("predictions", "pg_temp"):
        refused(worker, BETTER_MATCH.format(schema=schema, worker=server.worker.username), "denied for language plpgsql")
    refused(worker, "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "denied for language sql")
    refused(worker, "DO $$ BEGIN END $$", "denied for language plpgsql")
    refused(worker, "CREATE SCHEMA elsewhere")
    refused(
        worker, "CREATE TRIGGER t AFTER INSERT ON perennial_promotions EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    )
    refused(worker, f"SET ROLE {server.ledger.username}")
    refused(worker, f"ALTER ROLE {server.ledger.username} SET search_path = predictions")


def test_the_owner_of_the_ledger_calls_nothing_that_a_worker_made(server: Server) -> None:
    old_layout(server)
    # What a worker could do before this release. The owner's next transaction called it.
    with server.engine(server.worker).begin() as connection:
        connection.exec_driver_sql(BETTER_MATCH.format(schema="public", worker=server.worker.username))
    server.make()
    with server.engine(server.ledger).begin() as connection:
        connection.exec_driver_sql("SELECT hashtextextended('as it was written before', 0)")
    with Database(server.ledger.render_as_string(hide_password=False)).writing("a lock"):
        pass
    refused(server.engine(server.worker), "UPDATE perennial_promotions SET version = 7")
    owner = server.engine(server.ledger)
    with owner.connect() as connection:
        assert connection.exec_driver_sql("SHOW search_path").scalar_one() == "perennial, pg_temp"
    # The owner has no part in tables of workers either: a trigger or a view there would run with its rights.
    for table in ("iceberg_tables", "toy_predictions"):
        refused(owner, f"SELECT count(*) FROM predictions.{table}")
        refused(owner, f"DELETE FROM predictions.{table}")
    refused(owner, f"SET ROLE {server.worker.username}")


# --- rights and the upgrade -------------------------------------------------------------------------------------------


def test_each_role_reads_and_writes_what_it_is_for(server: Server) -> None:
    server.make()
    worker, reader = server.engine(server.worker), server.engine(server.reader)
    names = sorted(server.tables("perennial"))
    assert {"perennial_promotions", "perennial_alembic_version", "perennial_outbox"} <= set(names)
    for name in names:
        for engine in (worker, reader):
            with engine.connect() as connection:
                connection.exec_driver_sql(f"SELECT count(*) FROM {name}")
        refused(reader, f"DELETE FROM {name}")
        if name.removeprefix("perennial_") in (*DECISIONS, *ADDED_TO):
            refused(worker, f"DELETE FROM {name}")
        else:
            with worker.begin() as connection:
                connection.exec_driver_sql(f"DELETE FROM {name}")
    ledger = Ledger(server.worker.render_as_string(hide_password=False))
    proposed = ledger.propose("a try", model="toy", step="roll_back", dag_id="toy.rollback", run_id="one", said={})
    refused(worker, "UPDATE perennial_proposals SET said = '{}'")
    with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
        ledger.rule(proposed, "done")
    with worker.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE toy_predictions (prediction int)")
    online = {"online_features", "online_tables"}
    assert server.tables("predictions") == {"iceberg_tables", "iceberg_namespace_properties", "toy_predictions", *online}
    for name in online:
        with reader.connect() as connection:
            connection.exec_driver_sql(f"SELECT count(*) FROM predictions.{name}")
        refused(reader, f"DELETE FROM predictions.{name}")
    assert server.tables("public") == set()
    refused(reader, "SELECT count(*) FROM predictions.toy_predictions")


def test_who_reads_predictions_needs_a_grant_on_the_table_alone(server: Server) -> None:
    server.make()
    with server.engine(server.worker).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE toy_predictions AS SELECT 7 AS prediction")
    consumer = server.reader  # any role that may connect
    with server.superuser().begin() as connection:
        connection.exec_driver_sql(f"GRANT SELECT ON predictions.toy_predictions TO {consumer.username}")
    with server.engine(consumer).connect() as connection:
        assert connection.exec_driver_sql("SELECT prediction FROM predictions.toy_predictions").scalars().all() == [7]


def test_tables_of_the_release_before_are_moved_with_their_rows_and_rights(server: Server) -> None:
    old_layout(server)
    before = server.tables("public")
    with server.superuser().begin() as connection:
        connection.exec_driver_sql("CREATE TABLE public.of_somebody_else AS SELECT 1 AS one")
        connection.exec_driver_sql(f"GRANT SELECT ON toy_predictions TO {server.reader.username}")

    for _ in range(2):  # it can be repeated
        server.make()
        assert server.tables("public") == {"of_somebody_else"}
        assert server.tables("perennial") == {name for name in before if name.startswith("perennial_")}
        online = {"online_features", "online_tables"}
        assert server.tables("predictions") == online | {name for name in before if not name.startswith("perennial_")}

    with server.engine(server.reader).connect() as connection:
        assert connection.exec_driver_sql("SELECT prediction FROM predictions.toy_predictions").scalars().all() == [7]
    with server.engine(server.worker).begin() as connection:
        assert connection.exec_driver_sql("SELECT prediction FROM toy_predictions").scalars().all() == [7]
        connection.exec_driver_sql("INSERT INTO toy_scored VALUES (2)")  # the owner had made it
        connection.exec_driver_sql("SELECT nextval('perennial_publications_id_seq')")


def test_a_backup_keeps_schemas_owners_and_rights(server: Server, tmp_path: Path) -> None:
    if shutil.which("pg_dump") is None:
        _without("pg_dump")
    server.make()
    with server.engine(server.worker).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE toy_predictions AS SELECT 7 AS prediction")
    with server.superuser().begin() as connection:
        connection.exec_driver_sql(f"GRANT SELECT ON predictions.toy_predictions TO {server.reader.username}")
    database, admin = str(server.ledger.database), server.admin
    place = ["--host", str(admin.host), "--port", str(admin.port), "--username", str(admin.username)]
    environment = {**os.environ, "PGPASSWORD": str(admin.password)}
    dump = subprocess.run(["pg_dump", *place, "--format", "custom", database], check=True, capture_output=True, env=environment)
    file = tmp_path / "perennial.dump"
    file.write_bytes(dump.stdout)
    # As scripts/restore.sh does.
    options = ["--dbname", "postgres", "--clean", "--if-exists", "--create", "--exit-on-error"]
    subprocess.run(["pg_restore", *place, *options, file], check=True, env=environment)
    server.make()

    with server.engine(server.reader).connect() as connection:
        assert connection.exec_driver_sql("SELECT prediction FROM predictions.toy_predictions").scalars().all() == [7]
        assert connection.exec_driver_sql("SELECT count(*) FROM perennial_promotions").scalar_one() == 0
    refused(server.engine(server.worker), BETTER_MATCH.format(schema="pg_temp", worker="nobody"), "denied for language")
    refused(server.engine(server.ledger), "SELECT count(*) FROM predictions.toy_predictions")
