"""The identities in the deployed stack's databases and in MLflow, and their rights. The init job sets them.

Everything that decides which version is champion belongs to the judge: in the ledger the tables :data:`DECISIONS`, in MLflow
the registered models. Workers read them, and write measurements. The scorer reads what :data:`READ_BY_SCORER` and
:data:`OF_SCORER` list, and adds rows to a few tables.

In PostgreSQL each role has a schema of its own, and no role finds anything in a schema that another role may write to, except
workers, which also read the ledger. So a function, an operator or a table that a worker makes is never called with the rights
of the ledger's owner, and is never taken for one of the ledger's. Who reads both schemas has two addresses, of which one names
the schema of workers (``?options=-csearch_path%3Dpredictions``). Neighbours: :mod:`perennial.operations.deployed` calls this;
:mod:`perennial.orchestration.users` has Airflow's roles.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL

from perennial.core.private_parts import migrate_mlflow
from perennial.ingestion import pushed
from perennial.ingestion.pushed import PushedRows
from perennial.registry.permissions import APPROVER, JUDGE, OPERATOR, SCORER, VIEWER, WORKER
from perennial.serving import online_table, request_table
from perennial.serving.online_table import OnlineTable
from perennial.serving.request_table import RequestTable

log = logging.getLogger(__name__)


#: Tables of the ledger that say which version is champion, and why. Only their owner, the judge, writes them.
DECISIONS = ("versions", "promotions", "alias_moves", "approvals", "retirements", "rulings", "chain", "alembic_version")
#: Tables to which workers add rows, without changing or removing any.
ADDED_TO = ("proposals",)

#: Tables of the ledger that the scorer reads: who is champion and who is in its shadow, of which files they consist, what is
#: published, and how far what was served equals it.
READ_BY_SCORER = (
    "versions", "promotions", "approvals", "retirements", "publications", "shadow_comparisons", "revisions", "outbox",
    "parities", "alembic_version",
)  # fmt: skip
#: Columns of the outbox that the scorer writes: it adds alerts, and says which of its alerts are over. It can change no text,
#: and nothing of the delivery.
OUTBOX_OF_SCORER = {"INSERT": ("key", "alert", "created_at", "subject"), "UPDATE": ("resolved_by",)}
#: What the scorer may do with tables of workers, of those that are there: the lake's catalog, features by key, what is recorded
#: of requests, and rows that are pushed.
OF_SCORER = {
    "iceberg_tables": "SELECT",
    "iceberg_namespace_properties": "SELECT",
    "online_features": "SELECT",
    "online_tables": "SELECT",
    "online_requests": "SELECT, INSERT",
    # How many rows each process has recorded, and whether it has ended.
    "online_recorders": "SELECT, INSERT, UPDATE",
    "pushed_rows": "SELECT, INSERT",
}

#: In the ledger's database: the schema of its owner, and the schema of workers, which holds the lake's catalog and predictions.
LEDGER_SCHEMA, WORKER_SCHEMA = "perennial", "predictions"

#: A user and role of earlier releases, which had the judge's rights.
_FORMER = "promoter"

#: MLflow's user for people who administer it; the others beside it are ``judge``, ``worker`` and ``scorer``.
ADMIN = "admin"


@dataclass(frozen=True)
class MlflowRole:
    """A role in MLflow. :mod:`perennial.registry.permissions` says which requests it may send at all.

    Attributes:
        meaning: shown on the page that lists roles.
        grants: by resource type, a permission on all of that type.
    """

    meaning: str
    grants: Mapping[str, str]


MLFLOW_ROLES = {
    JUDGE: MlflowRole(
        "registers versions and moves aliases",
        {"experiment": "EDIT", "registered_model": "MANAGE"},
    ),
    WORKER: MlflowRole("logs runs and models, loads versions", {"experiment": "EDIT", "registered_model": "READ"}),
    SCORER: MlflowRole("loads versions", {"experiment": "READ", "registered_model": "READ"}),
    VIEWER: MlflowRole("reads everything", {"experiment": "READ", "registered_model": "READ"}),
    OPERATOR: MlflowRole("also writes notes and tags on runs", {"experiment": "EDIT", "registered_model": "READ"}),
    APPROVER: MlflowRole(
        "also writes notes and tags on runs, and moves the alias champion", {"experiment": "EDIT", "registered_model": "EDIT"}
    ),
}


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def make_databases(server: URL, owners: Sequence[URL], members: Sequence[URL]) -> None:
    """Make roles and databases. Roles that exist get the given password.

    Args:
        server: of PostgreSQL's superuser.
        owners: each is a role and its own database, to which no other role may connect.
        members: further roles of these databases.
    """
    engine = _as_superuser(server)
    try:
        with engine.connect() as connection:
            for url in owners:
                _make_role(connection, url)
                owner, database = _quoted(connection, url.username), _quoted(connection, url.database)
                found = connection.execute(sa.text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": url.database})
                if not found.first():
                    connection.exec_driver_sql(f"CREATE DATABASE {database} OWNER {owner}")
                connection.exec_driver_sql(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
                log.info("database %s, role %s", url.database, url.username)
            for url in members:
                _make_role(connection, url)
                [owner] = [_quoted(connection, other.username) for other in owners if other.database == url.database]
                member, database = _quoted(connection, url.username), _quoted(connection, url.database)
                connection.exec_driver_sql(f"GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {member}")
                # An earlier release let the owner act as each member, and so use what a member had made.
                connection.exec_driver_sql(f"REVOKE {member} FROM {owner}")
                log.info("database %s, role %s", url.database, url.username)
    finally:
        engine.dispose()


def separate_schemas(server: URL, ledger: URL, worker: URL, readers: Sequence[URL]) -> None:
    """Give the ledger's owner and the workers a schema each, and let each role find its own names only.

    Tables that an earlier release made in the schema ``public`` are moved, with their rights, indexes and sequences. No role
    but the superuser may make functions in this database: a trigger, a check or an index calls them with the rights of
    whoever writes the row, also of the superuser who restores a backup. It is one transaction, and can be repeated.

    Args:
        server: of PostgreSQL's superuser.
        ledger: the ledger's database, as its owner.
        worker: the role that makes tables for the catalog and for predictions.
        readers: the roles that only read the ledger, or write little in it.
    """
    engine = _as_superuser(server.set(database=ledger.database))
    try:
        with engine.connect().execution_options(isolation_level="READ COMMITTED") as connection, connection.begin():
            owner, writes, *reading = (_quoted(connection, url.username) for url in (ledger, worker, *readers))
            reads = ", ".join(reading)
            connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {LEDGER_SCHEMA} AUTHORIZATION {owner}")
            connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {WORKER_SCHEMA} AUTHORIZATION {writes}")
            connection.exec_driver_sql(f"REVOKE ALL ON SCHEMA {LEDGER_SCHEMA} FROM PUBLIC, {writes}, {reads}")
            connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {LEDGER_SCHEMA} TO {writes}, {reads}")
            # Each table of predictions is granted by itself. Only roles that may connect to this database see its names.
            connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {WORKER_SCHEMA} TO PUBLIC")
            connection.exec_driver_sql(f"REVOKE CREATE ON SCHEMA public FROM PUBLIC, {writes}, {reads}")
            connection.exec_driver_sql("REVOKE USAGE ON LANGUAGE sql, plpgsql FROM PUBLIC")
            # Temporary tables come last; a path that does not name them looks there first.
            for role, path in (
                (owner, f"{LEDGER_SCHEMA}, pg_temp"),
                (writes, f"{WORKER_SCHEMA}, {LEDGER_SCHEMA}, pg_temp"),
                *((role, f"{LEDGER_SCHEMA}, pg_temp") for role in reading),
            ):
                database = _quoted(connection, ledger.database)
                connection.exec_driver_sql(f"ALTER ROLE {role} IN DATABASE {database} SET search_path = {path}")
            _empty_public(connection, ledger, worker)
    finally:
        engine.dispose()


def _empty_public(connection: sa.Connection, ledger: URL, worker: URL) -> None:
    """Move what an earlier release made in ``public``; tables of other roles stay there."""
    tables = connection.execute(
        sa.text(
            "SELECT c.relname, r.rolname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
            "JOIN pg_roles AS r ON r.oid = c.relowner WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') "
            "AND r.rolname IN (:owner, :worker) ORDER BY c.relname"
        ),
        {"owner": ledger.username, "worker": worker.username},
    ).all()
    for table, role in tables:
        name = _quoted(connection, table)
        if role == ledger.username and table.startswith("perennial_"):
            schema = LEDGER_SCHEMA
        else:
            schema = WORKER_SCHEMA
            connection.exec_driver_sql(f"ALTER TABLE public.{name} OWNER TO {_quoted(connection, worker.username)}")
        connection.exec_driver_sql(f"ALTER TABLE public.{name} SET SCHEMA {schema}")
        log.info("moved the table %s from the schema public to %s", table, schema)


def _as_superuser(server: URL) -> sa.Engine:
    """An engine that finds PostgreSQL's own names only, whatever others have made in the database."""
    options = {"options": "-c search_path=pg_catalog,pg_temp"}
    return sa.create_engine(server, isolation_level="AUTOCOMMIT", connect_args=options)


def _make_role(connection: sa.Connection, url: URL) -> None:
    known = connection.execute(sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": url.username}).first()
    # PostgreSQL may log what it is sent. It gets the password's verifier, which does not reveal the password.
    raw = connection.connection.dbapi_connection
    assert raw is not None
    verifier = _scram(raw, str(url.username), str(url.password))
    verb = "ALTER" if known else "CREATE"
    connection.exec_driver_sql(f"{verb} ROLE {_quoted(connection, url.username)} LOGIN PASSWORD '{verifier}'")


def _quoted(connection: sa.Connection, name: str | None) -> str:
    return connection.dialect.identifier_preparer.quote(str(name))


def _scram(connection: object, role: str, password: str) -> str:
    from psycopg2.extensions import encrypt_password

    return str(encrypt_password(password, role, connection, "scram-sha-256"))


def share_ledger(ledger: URL, worker: URL, reader: URL, scorer: URL) -> None:
    """Let the worker's role write the ledger's tables except :data:`DECISIONS`, and the reader's role read all.

    To :data:`ADDED_TO`, the worker's role may add only. The scorer's role reads :data:`READ_BY_SCORER`, and writes
    :data:`OUTBOX_OF_SCORER`.

    Args:
        ledger: the ledger, after its migration, as its owner.
        worker: the role of workers.
        reader: the role of processes that only read.
        scorer: the role of scorers.
    """
    engine = sa.create_engine(ledger)
    try:
        with engine.begin() as connection:
            writes, reads, scores = (_quoted(connection, url.username) for url in (worker, reader, scorer))
            connection.exec_driver_sql(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {LEDGER_SCHEMA} TO {writes}")
            for table in sa.inspect(connection).get_table_names(schema=LEDGER_SCHEMA):
                name = f"{LEDGER_SCHEMA}.{_quoted(connection, table)}"
                connection.exec_driver_sql(f"GRANT SELECT ON {name} TO {writes}, {reads}")
                decides, added_to, read_by_scorer = (
                    table.removeprefix("perennial_") in names for names in (DECISIONS, ADDED_TO, READ_BY_SCORER)
                )
                verb, preposition = ("REVOKE", "FROM") if decides or added_to else ("GRANT", "TO")
                connection.exec_driver_sql(f"{verb} INSERT, UPDATE, DELETE ON {name} {preposition} {writes}")
                if added_to:
                    connection.exec_driver_sql(f"GRANT INSERT ON {name} TO {writes}")
                connection.exec_driver_sql(f"REVOKE ALL ON {name} FROM {scores}")
                if read_by_scorer:
                    connection.exec_driver_sql(f"GRANT SELECT ON {name} TO {scores}")
            outbox = f"{LEDGER_SCHEMA}.perennial_outbox"
            for verb, columns in OUTBOX_OF_SCORER.items():
                connection.exec_driver_sql(f"GRANT {verb} ({', '.join(columns)}) ON {outbox} TO {scores}")
            _grant_numbers(connection, outbox, scores)
    finally:
        engine.dispose()


def make_online_tables(worker: URL) -> None:
    """Make the tables that the scorer uses, as the workers' own.

    Args:
        worker: the role that owns them.
    """
    url = worker.render_as_string(hide_password=False)
    OnlineTable(url).create()
    RequestTable(url).create()
    PushedRows(url).create()


def share_tables_of_workers(worker: URL, reader: URL, scorer: URL) -> None:
    """Let the scorer use the tables in :data:`OF_SCORER` that are there, and the reader's role read the online table.

    Args:
        worker: the role that owns them, after :func:`make_online_tables` and the catalog's migration.
        reader: the role of processes that only read. It names the schema, or has it in its address.
        scorer: the role of scorers, likewise.
    """
    engine = sa.create_engine(worker)
    try:
        with engine.begin() as connection:
            reads, scores = (_quoted(connection, url.username) for url in (reader, scorer))
            there = sa.inspect(connection).get_table_names(schema=WORKER_SCHEMA)
            connection.exec_driver_sql(f"REVOKE ALL ON ALL TABLES IN SCHEMA {WORKER_SCHEMA} FROM {scores}")
            connection.exec_driver_sql(f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {WORKER_SCHEMA} FROM {scores}")
            for table, rights in OF_SCORER.items():
                if table in there:
                    connection.exec_driver_sql(f"GRANT {rights} ON {WORKER_SCHEMA}.{table} TO {scores}")
                    if "INSERT" in rights:
                        _grant_numbers(connection, f"{WORKER_SCHEMA}.{table}", scores)
            for known in (table for module in (online_table, request_table, pushed) for table in module.METADATA.sorted_tables):
                connection.exec_driver_sql(f"GRANT SELECT ON {WORKER_SCHEMA}.{known.name} TO {reads}")
    finally:
        engine.dispose()


def _grant_numbers(connection: sa.Connection, table: str, role: str) -> None:
    """Let a role take the numbers of rows that it adds to a table."""
    owned = connection.execute(
        sa.text(
            "SELECT s.oid::regclass::text FROM pg_class AS s JOIN pg_depend AS d ON d.objid = s.oid "
            "WHERE s.relkind = 'S' AND d.refobjid = CAST(:table AS regclass) AND d.deptype IN ('a', 'i')"
        ),
        {"table": table},
    ).scalars()
    for sequence in owned.all():
        connection.exec_driver_sql(f"GRANT USAGE ON SEQUENCE {sequence} TO {role}")


# --- MLflow ----------------------------------------------------------------------------------------------------------


def make_mlflow(url: URL, passwords: Mapping[str, str]) -> None:
    """MLflow's schemas of runs and of users, its roles, and its users with their passwords.

    Args:
        url: its database, as its owner.
        passwords: of the users ``admin``, ``judge``, ``worker`` and ``scorer``.
    """
    # Untyped.
    tables: Any = import_module("mlflow.store.db.utils")
    store: Any = import_module("mlflow.server.auth.sqlalchemy_store").SqlAlchemyStore()
    workspace = import_module("mlflow.utils.workspace_utils").DEFAULT_WORKSPACE_NAME
    address = url.render_as_string(hide_password=False)
    migrate_mlflow(tables.create_sqlalchemy_engine_with_retry(address))
    store.init_db(address)
    roles = {role.name: role for role in store.list_roles([workspace])}
    for name, wanted in MLFLOW_ROLES.items():
        role = roles.get(name) or store.create_role(name, workspace, wanted.meaning)
        given = {(grant.resource_type, grant.resource_pattern): grant for grant in role.permissions}
        for kind, permission in wanted.grants.items():
            if (grant := given.get((kind, "*"))) is None:
                store.add_role_permission(role.id, kind, "*", permission)
            elif grant.permission != permission:
                store.update_role_permission(grant.id, permission)
        roles[name] = role
    if store.has_user(_FORMER):
        store.delete_user(_FORMER)
    if (former := roles.pop(_FORMER, None)) is not None:
        store.delete_role(former.id)
    for name, password in passwords.items():
        if store.has_user(name):
            store.update_user(name, password, is_admin=name == ADMIN)
        else:
            store.create_user(name, password, is_admin=name == ADMIN)
        user = store.get_user(name)
        if name in roles and name not in {role.name for role in store.list_user_roles(user.id)}:
            store.assign_role_to_user(user.id, roles[name].id)
