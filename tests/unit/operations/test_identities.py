"""Who may do what in the deployment's PostgreSQL, on a real server, with what a worker could try."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.alerts.alert import served_online
from perennial.core.database import Database
from perennial.core.settings import Settings
from perennial.deployment import Deployment
from perennial.ingestion.pushed import PushedRow, PushedRows
from perennial.lake.catalog import Catalog
from perennial.ledger.store import Ledger
from perennial.operations.identities import (
    ADDED_TO,
    DECISIONS,
    OF_SCORER,
    READ_BY_SCORER,
    make_databases,
    make_online_tables,
    separate_schemas,
    share_ledger,
    share_tables_of_workers,
)
from perennial.serving.champion import Champions
from perennial.serving.materialize import materialize
from tests.conftest import _without
from tests.unit import synthetic
from tests.unit.monitored import World, make_world
from tests.unit.serving.conftest import running
from tests.unit.serving.test_champion import looked

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
    scorer: sa.URL

    def engine(self, url: sa.URL) -> sa.Engine:
        return sa.create_engine(url, poolclass=NullPool)

    def make(self) -> None:
        """What the init job does with the ledger's database."""
        make_databases(self.admin, owners=[self.ledger], members=[self.worker, self.reader, self.scorer])
        separate_schemas(self.admin, self.ledger, self.worker, [self.reader, self.scorer])
        Ledger(self.ledger.render_as_string(hide_password=False)).migrate()
        share_ledger(self.ledger, self.worker, self.reader, self.scorer)
        Catalog(self.worker.render_as_string(hide_password=False), "/nowhere").migrate()
        make_online_tables(self.worker)
        share_tables_of_workers(self.worker, self.reader, self.scorer)

    def superuser(self) -> sa.Engine:
        return self.engine(self.admin.set(database=self.ledger.database))

    def tables(self, schema: str) -> set[str]:
        return set(sa.inspect(self.superuser()).get_table_names(schema=schema))


@pytest.fixture
def server(_postgres_server: sa.URL) -> Iterator[Server]:
    mark = uuid.uuid4().hex[:8]
    names = {kind: f"{kind}_{mark}" for kind in ("ledger", "worker", "reader", "scorer")}
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


def of_workers(url: sa.URL) -> sa.URL:
    """The same role, which finds what workers make; as docker-compose.yaml says it."""
    return url.update_query_dict({"options": "-csearch_path=predictions"})


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
    online = {"online_features", "online_tables", "online_requests", "online_recorders", "pushed_rows"}
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
        online = {"online_features", "online_tables", "online_requests", "online_recorders", "pushed_rows"}
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


# --- the scorer -------------------------------------------------------------------------------------------------------


def test_the_scorers_role_reads_what_is_listed_and_adds_alerts_requests_and_pushes(server: Server) -> None:
    server.make()
    with server.engine(server.worker).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE toy_predictions (prediction int)")
    server.make()
    scorer, tables = server.engine(server.scorer), server.engine(of_workers(server.scorer))
    for name in sorted(server.tables("perennial")):
        if name.removeprefix("perennial_") in READ_BY_SCORER:
            with scorer.connect() as connection:
                connection.exec_driver_sql(f"SELECT count(*) FROM {name}")
        else:
            refused(scorer, f"SELECT count(*) FROM {name}")
        refused(scorer, f"DELETE FROM {name}")
        refused(scorer, f"TRUNCATE {name}")
        if name != "perennial_outbox":
            refused(scorer, f"INSERT INTO {name} SELECT * FROM {name}")
    for table, rights in OF_SCORER.items():
        with tables.connect() as connection:
            connection.exec_driver_sql(f"SELECT count(*) FROM {table}")
        refused(tables, f"DELETE FROM {table}")
        if "INSERT" not in rights:
            refused(tables, f"INSERT INTO {table} SELECT * FROM {table}")
    with tables.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO online_recorders (recorder, model, chunks, rows, began_at) VALUES ('one', 'toy', 0, 0, now())"
        )
    for table, column in (("online_requests", "model"), ("pushed_rows", "row")):
        refused(tables, f"UPDATE {table} SET {column} = 'another'")
    now = datetime.now(UTC)
    rows = PushedRows(of_workers(server.scorer).render_as_string(hide_password=False))
    assert rows.keep("toy", "orders", [PushedRow(now, "state", "digest", "{}")] * 2, now) == 1
    assert rows.newest("toy", ["orders"]) == {"orders": 1}
    # Predictions are not its business.
    refused(tables, "SELECT count(*) FROM toy_predictions")


def test_the_scorers_role_can_decide_publish_and_make_nothing(server: Server) -> None:
    server.make()
    scorer = server.engine(server.scorer)
    for statement in (
        "UPDATE perennial_promotions SET version = 7",
        "UPDATE perennial_versions SET manifest = '{}'",
        "INSERT INTO perennial_promotions (model, version) VALUES ('toy', 7)",
        "INSERT INTO perennial_publications (model) VALUES ('toy')",
        "UPDATE perennial_publications SET snapshots = '{}'",
        "INSERT INTO perennial_proposals (model) VALUES ('toy')",
        "INSERT INTO perennial_approvals (model) VALUES ('toy')",
        "INSERT INTO perennial_retirements (model) VALUES ('toy')",
        # An alert is added; it is not changed, and nothing of its delivery.
        "UPDATE perennial_outbox SET alert = '{}'",
        "UPDATE perennial_outbox SET routed_at = now()",
        "INSERT INTO perennial_outbox (key, alert, created_at, routed_at) VALUES ('k', '{}', now(), now())",
        "UPDATE perennial_deliveries SET delivered_at = now()",
        "UPDATE predictions.iceberg_tables SET metadata_location = 'elsewhere'",
        "UPDATE predictions.online_features SET features = '{}'",
    ):
        refused(scorer, statement)
    for schema in ("public", "perennial", "predictions", "pg_catalog"):
        refused(scorer, f"CREATE TABLE {schema}.perennial_promotions (model text)")
        refused(scorer, f"CREATE VIEW {schema}.iceberg_tables AS SELECT 1 AS one")
        refused(scorer, BETTER_MATCH.format(schema=schema, worker=server.scorer.username))
    refused(scorer, BETTER_MATCH.format(schema="pg_temp", worker=server.scorer.username), "denied for language plpgsql")
    refused(scorer, "CREATE SCHEMA elsewhere")
    for other in (server.ledger, server.worker, server.reader):
        refused(scorer, f"SET ROLE {other.username}")
        refused(scorer, f"ALTER ROLE {other.username} SET search_path = predictions")


def test_a_worker_cannot_tell_the_scorer_who_is_champion(server: Server) -> None:
    server.make()
    with server.engine(server.worker).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE predictions.perennial_promotions AS SELECT 'toy' AS model, 7 AS version")
        connection.exec_driver_sql(f"GRANT SELECT ON predictions.perennial_promotions TO {server.scorer.username}")
    with server.engine(server.scorer).connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM perennial_promotions").scalar_one() == 0
    # The address by which it finds tables of workers would find this one.
    with server.engine(of_workers(server.scorer)).connect() as connection:
        assert connection.exec_driver_sql("SELECT version FROM perennial_promotions").scalar_one() == 7


def test_who_only_reads_finds_the_online_table_by_its_address(server: Server) -> None:
    server.make()
    with server.engine(of_workers(server.reader)).connect() as connection:
        assert sa.inspect(connection).has_table("online_features")
        connection.exec_driver_sql("SELECT count(*) FROM online_features")


def test_the_scorer_answers_with_the_rights_of_its_role_alone(server: Server, tmp_path: Path) -> None:
    server.make()
    plain = {kind: getattr(server, kind).render_as_string(hide_password=False) for kind in ("ledger", "worker", "scorer")}
    tables = of_workers(server.scorer).render_as_string(hide_password=False)
    here = synthetic.deployment(tmp_path)

    def settings(ledger: str, others: str) -> Settings:
        given = {"database_url": ledger, "catalog_url": others, "predictions_url": others}
        return here.model_copy(update=given)

    worker = make_world(
        tmp_path, settings(plain["worker"], plain["worker"]), online="label: => online: {missing: null}\nlabel:"
    )
    judge = World(Deployment(settings(plain["ledger"], plain["worker"])), worker.folder)
    judge.promote(judge.register())
    worker.publish()
    materialize(worker.folder, worker.deployment, versions=[1], now=datetime.now(UTC), run_id="materialize")
    asked = World(Deployment(settings(plain["scorer"], tables)), worker.folder)
    visit = {"visit": "new", "moment": "2013-04-08T12:00:00Z", "x": 0.1, "kind": "a"}
    with running(asked) as (_, client):
        for body in (
            {"features": [{"x": 0.1}]},
            {"keys": [{"visit": "v000000-11"}]},
            {"entities": [visit]},
        ):
            answer = client.post("/models/toy/predict", json=body)
            assert answer.status_code == 200, answer.text
    # A version that cannot be loaded is told, and so is the end of the trouble.
    champions = looked(Champions(asked.deployment))
    files = set(tmp_path.rglob("model.skops"))
    judge.promote(judge.register(seed=6))
    for file in set(tmp_path.rglob("model.skops")) - files:
        file.write_bytes(b"of somebody else")
    assert looked(champions).of("toy").version == 1
    assert judge.ledger.open_subjects(served_online("toy"))
    judge.registry.rollback("toy", actor="tester", reason="2 cannot be loaded")
    looked(champions)
    assert not judge.ledger.open_subjects(served_online("toy"))
