"""The identities in the deployed stack's databases and in MLflow, and their rights. The init job sets them.

Everything that decides which version is champion belongs to the promoter: in the ledger the tables :data:`DECISIONS`, in MLflow
the registered models. Workers read them, and write measurements. Neighbours: :mod:`perennial.operations.deployed` calls this;
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

log = logging.getLogger(__name__)


#: Tables of the ledger that say which version is champion, and why. Only their owner, the promoter, writes them.
DECISIONS = ("versions", "promotions", "alias_moves", "approvals", "retirements", "alembic_version")

#: MLflow's users beside ``admin``.
PROMOTER, WORKER = "promoter", "worker"
ADMIN = "admin"


@dataclass(frozen=True)
class MlflowRole:
    """A role in MLflow.

    Attributes:
        meaning: shown on the page that lists roles.
        grants: by resource type, a permission on all of that type.
    """

    meaning: str
    grants: Mapping[str, str]


MLFLOW_ROLES = {
    PROMOTER: MlflowRole(
        "registers versions and moves aliases",
        {"experiment": "EDIT", "registered_model": "MANAGE"},
    ),
    WORKER: MlflowRole("logs runs and models, loads versions", {"experiment": "EDIT", "registered_model": "READ"}),
    "viewer": MlflowRole("reads everything", {"experiment": "READ", "registered_model": "READ"}),
    "operator": MlflowRole("also writes notes and tags on runs", {"experiment": "EDIT", "registered_model": "READ"}),
    "approver": MlflowRole("also writes notes and tags on runs", {"experiment": "EDIT", "registered_model": "READ"}),
}


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def make_databases(server: URL, owners: Sequence[URL], members: Sequence[URL]) -> None:
    """Make roles and databases. Roles that exist get the given password.

    Args:
        server: of PostgreSQL's superuser.
        owners: each is a role and its own database, to which no other role may connect.
        members: further roles of these databases; the owner has their rights too.
    """
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
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
                connection.exec_driver_sql(f"GRANT {member} TO {owner}")
                log.info("database %s, role %s", url.database, url.username)
    finally:
        engine.dispose()


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


def share_ledger(ledger: URL, worker: URL, reader: URL) -> None:
    """Let the worker's role write the ledger's tables except :data:`DECISIONS`, and the reader's role read all.

    Args:
        ledger: the ledger, after its migration, as its owner.
        worker: the role of workers; it also makes its own tables, for the catalog and for predictions.
        reader: the role of processes that only read.
    """
    engine = sa.create_engine(ledger)
    try:
        with engine.begin() as connection:
            writes, reads = (_quoted(connection, url.username) for url in (worker, reader))
            connection.exec_driver_sql(f"GRANT USAGE, CREATE ON SCHEMA public TO {writes}")
            connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA public TO {reads}")
            connection.exec_driver_sql(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {writes}")
            for table in sa.inspect(connection).get_table_names():
                if not table.startswith("perennial_"):
                    continue
                name = _quoted(connection, table)
                connection.exec_driver_sql(f"GRANT SELECT ON {name} TO {writes}, {reads}")
                decides = table.removeprefix("perennial_") in DECISIONS
                verb, preposition = ("REVOKE", "FROM") if decides else ("GRANT", "TO")
                connection.exec_driver_sql(f"{verb} INSERT, UPDATE, DELETE ON {name} {preposition} {writes}")
    finally:
        engine.dispose()


# --- MLflow ----------------------------------------------------------------------------------------------------------


def make_mlflow(url: URL, passwords: Mapping[str, str]) -> None:
    """MLflow's schemas of runs and of users, its roles, and its users with their passwords.

    Args:
        url: its database, as its owner.
        passwords: of the users ``admin``, ``promoter`` and ``worker``.
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
    for name, password in passwords.items():
        if store.has_user(name):
            store.update_user(name, password, is_admin=name == ADMIN)
        else:
            store.create_user(name, password, is_admin=name == ADMIN)
        user = store.get_user(name)
        if name in roles and name not in {role.name for role in store.list_user_roles(user.id)}:
            store.assign_role_to_user(user.id, roles[name].id)
