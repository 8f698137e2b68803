"""What the deployed stack needs beside its servers: an init job, MLflow's server.

``docker-compose.yaml`` runs these as ``perennial deploy …``. All settings are environment variables. A secret is never an
argument, since every process of a machine can read arguments. Neighbours: :mod:`perennial.operations.secret_file` makes the
secrets, :mod:`perennial.operations.health` has the health checks.
"""

from __future__ import annotations

import configparser
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from sqlalchemy.engine import URL, make_url

from perennial.core.errors import SettingsError
from perennial.core.pools import commands
from perennial.core.settings import read_settings
from perennial.ledger.signing import FORMER_KEY
from perennial.operations.identities import (
    ADMIN,
    make_databases,
    make_mlflow,
    make_online_tables,
    separate_schemas,
    share_ledger,
    share_tables_of_workers,
)
from perennial.operations.secret_file import check_secrets
from perennial.registry.permissions import JUDGE, SCORER, WORKER

log = logging.getLogger(__name__)


def check_folders(environment: Mapping[str, str]) -> None:
    """Refuse a checkout that the containers' user cannot read, as ``umask 077`` leaves it.

    Raises:
        SettingsError: a file or folder of DAGs, plugins or models is missing or cannot be read; the message names it.
    """

    def refuse(path: str) -> NoReturn:
        raise SettingsError(
            f"{path} cannot be read by user {os.getuid()}, which the containers run as. In the project's folder, run "
            "chmod -R a+rX dags plugins include/models monitoring deploy"
        )

    if not os.path.exists(models := _given(environment, "PERENNIAL_MODELS")):
        raise SettingsError(
            f"{models} is not there. If the models come from Git, start the service that follows their repository: write "
            "COMPOSE_PROFILES=git into .env"
        )
    for name in ("AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__PLUGINS_FOLDER", "PERENNIAL_MODELS"):
        for folder, _, files in os.walk(_given(environment, name), onerror=lambda error: refuse(str(error.filename))):
            for file in files:
                if not os.access(path := os.path.join(folder, file), os.R_OK):
                    refuse(path)


# --- the init job ----------------------------------------------------------------------------------------------------


def initialise(environment: Mapping[str, str]) -> None:
    """Prepare everything that the servers and workers need. It can be repeated, and then only sets passwords.

    In order: it checks secrets and folders, and makes databases and roles; Airflow's schema, roles and users; MLflow's;
    the schemas of the ledger's database, its tables and the rights on them.

    Args:
        environment: of the service ``init``.

    Raises:
        SettingsError: a secret is weak, a folder cannot be read, or a step failed.
    """
    check_secrets(environment)
    check_folders(environment)
    airflow, mlflow, ledger, worker, reader, scorer = (
        make_url(_given(environment, name))
        for name in (
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
            "PERENNIAL_MLFLOW_STORE_URL",
            "PERENNIAL_DATABASE_URL",
            "PERENNIAL_WORKER_DATABASE_URL",
            "PERENNIAL_READER_DATABASE_URL",
            "PERENNIAL_SCORER_DATABASE_URL",
        )
    )
    server = make_url(_given(environment, "PERENNIAL_POSTGRES_URL"))
    make_databases(server, owners=[airflow, mlflow, ledger], members=[worker, reader, scorer])
    for step in (
        ("airflow", "db", "migrate"),
        ("airflow", "fab-db", "migrate"),
        (sys.executable, "-m", "perennial.orchestration.users"),
        *(("airflow", *command) for command in commands(read_settings(environment))),
    ):
        log.info("%s", " ".join(step[1:3]))
        if subprocess.run(step, env=dict(environment), check=False).returncode:  # noqa: S603 - our own commands
            raise SettingsError(f"{' '.join(step)} failed; the log above says why")
    passwords = {
        ADMIN: "MLFLOW_ADMIN_PASSWORD",
        JUDGE: "MLFLOW_JUDGE_PASSWORD",
        WORKER: "MLFLOW_WORKER_PASSWORD",
        SCORER: "MLFLOW_SCORER_PASSWORD",
    }
    make_mlflow(mlflow, {user: _given(environment, name) for user, name in passwords.items()})
    separate_schemas(server, ledger, worker, [reader, scorer])
    _migrate_ledger(environment)
    share_ledger(ledger, worker, reader, scorer)
    _migrate_catalog(environment, worker)
    make_online_tables(worker)
    share_tables_of_workers(worker, reader, scorer)
    log.info("everything is ready")


def _given(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise SettingsError(f"{name} is not set; docker-compose.yaml sets it for the service")
    return environment[name]


def _migrate_ledger(environment: Mapping[str, str]) -> None:
    from perennial.ledger.store import Ledger

    settings = read_settings(environment)
    ledger = Ledger(settings.database_url, settings.state)
    ledger.migrate()
    if environment.get(FORMER_KEY):
        ledger.take_over_key()


def _migrate_catalog(environment: Mapping[str, str], worker: URL) -> None:
    """As the workers' role, which writes tables and so has to own the catalog."""
    from perennial.lake.catalog import Catalog

    Catalog(worker.render_as_string(hide_password=False), read_settings(environment).warehouse).migrate()


# --- MLflow's server -------------------------------------------------------------------------------------------------


def serve_mlflow(environment: Mapping[str, str], arguments: list[str]) -> None:
    """Replace this process by MLflow's server with sign-in.

    MLflow reads the address of its sign-in database only from a file. The file is written here, and only this user can read
    it. All signed-in users may read everything; :mod:`perennial.registry.permissions` says who may change what.
    """
    config = configparser.ConfigParser(interpolation=None)
    config["mlflow"] = {
        "default_permission": "READ",
        "database_uri": _given(environment, "MLFLOW_BACKEND_STORE_URI"),
        "admin_username": ADMIN,
        "authorization_function": "perennial.registry.permissions:authenticate",
        # Each request carries the password, and checking it takes longer than most requests. So a check is remembered for
        # this time, after which a changed password takes effect.
        "auth_cache_ttl_seconds": "60",
    }
    file = Path(_given(environment, "MLFLOW_AUTH_CONFIG_PATH"))
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        config.write(stream)
    command = [
        sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--serve-artifacts",
        "--workers", environment.get("PERENNIAL_MLFLOW_WORKERS", "2"),
        "--artifacts-destination", _given(environment, "PERENNIAL_MLFLOW_ARTIFACTS"), *arguments,
    ]  # fmt: skip
    os.execve(command[0], command, dict(environment))  # noqa: S606 - without a shell
