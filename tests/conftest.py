"""Real parts for tests: settings below a temporary folder, a ledger and a lake there, a private PostgreSQL, Chromium.

If a server program is missing, the test is skipped with a reason. With PERENNIAL_REQUIRE_SERVERS=1, as in CI, it fails.
"""

from __future__ import annotations

import logging
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

# Set before the import of libraries that report their use.
os.environ.update({"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "GX_ANALYTICS_ENABLED": "false"})

import hypothesis
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.core.settings import PROJECT, Settings
from perennial.lake.publish import Lake
from perennial.ledger.store import Ledger
from tests import receivers
from tests.living import living  # noqa: F401  # a fixture of the end-to-end and browser tests

# No test depends on how fast the machine is.
hypothesis.settings.register_profile("perennial", deadline=None)
hypothesis.settings.load_profile("perennial")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a program that may be missing, so that it can be chosen or left out by ``-m``."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
        if "postgres" in fixtures or "postgres" in parameters:
            item.add_marker("postgres")
        if "mariadb" in fixtures or "mariadb" in parameters:
            item.add_marker("mariadb")
        if "chromium" in fixtures:
            item.add_marker("browser")


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Restore logging after the test: a command that a test calls in this process changes the level and the handlers."""
    root = logging.getLogger()
    loggers = (root, logging.getLogger("perennial"))
    levels, handlers = [logger.level for logger in loggers], root.handlers[:]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A deployment of its own: SQLite and files below ``tmp_path``, the model folders of the project."""
    state = tmp_path / "var"
    data = state / "data"
    data.mkdir(parents=True)
    return Settings(
        models=PROJECT / "include" / "models",
        state=state,
        data=data,
        database_url=f"sqlite:///{state / 'perennial.db'}",
        catalog_url=f"sqlite:///{state / 'catalog.db'}",
        warehouse=str(state / "lake"),
        predictions_url=f"sqlite:///{state / 'predictions.db'}",
        mlflow_url=f"sqlite:///{state / 'mlflow.db'}",
    )


@pytest.fixture(params=["sqlite", "postgres"])
def settings_on_each_database(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """``settings``, and once more with ledger, catalog and predictions on PostgreSQL."""
    if request.param == "sqlite":
        return settings
    url = request.getfixturevalue("postgres")
    return settings.model_copy(update={"database_url": url, "catalog_url": url, "predictions_url": url})


@pytest.fixture
def ledger(settings: Settings) -> Ledger:
    ledger = Ledger(settings.database_url)
    ledger.migrate()
    return ledger


@pytest.fixture
def lake(settings: Settings, ledger: Ledger) -> Lake:
    return Lake(settings, ledger)


@pytest.fixture
def web() -> Iterator[receivers.Slack]:
    """A web server that receives alerts."""
    with receivers.slack() as server:
        yield server


@pytest.fixture
def mail() -> Iterator[receivers.Mails]:
    """A mail server."""
    with receivers.mails() as server:
        yield server


def _without(program: str) -> NoReturn:
    sentence = f"{program} is not installed here, so what needs it is not tested"
    if os.environ.get("PERENNIAL_REQUIRE_SERVERS") == "1":
        pytest.fail(f"{sentence}, but PERENNIAL_REQUIRE_SERVERS=1 demands it")
    pytest.skip(sentence)


def _find_postgres() -> Path | None:
    """The folder of the server's programs."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    for folder in [Path(found).resolve().parent for found in [shutil.which("initdb")] if found] + installed:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


@contextmanager
def postgres_server(superuser: str, *, durable: bool = False) -> Iterator[sa.URL]:
    """The address of a private PostgreSQL server, with the name and password of its superuser.

    Its time zone is not UTC, so that no test or code relies on a server in UTC.

    Args:
        superuser: its name.
        durable: whether what is committed survives a power failure, as outside of tests.
    """
    programs = _find_postgres()
    if programs is None:
        _without("PostgreSQL")
    # Not below tmp_path, which only its owner may enter: the server refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="perennial-postgres-"))
    password = secrets.token_hex(16)
    data, password_file, log = folder / "data", folder / "password", folder / "log"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        account = pwd.getpwnam("postgres")
        for path in (folder, password_file):
            os.chown(path, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    try:
        subprocess.run(
            [
                programs / "initdb", "-D", data, "-U", superuser, "-A", "scram-sha-256", f"--pwfile={password_file}",
                "--encoding=UTF8", "--locale=C", "--no-sync",
            ],
            check=True, capture_output=True, cwd=folder, **user,
        )  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        hasty = [] if durable else ["-c", "fsync=off", "-c", "full_page_writes=off"]
        with log.open("w") as output:
            server = subprocess.Popen(
                [
                    programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder,
                    "-c", "max_connections=300", "-c", "timezone=Asia/Kolkata", *hasty,
                ],
                stdout=output, stderr=output, cwd=folder, **user,
            )  # fmt: skip
        try:
            url = sa.URL.create("postgresql+psycopg2", superuser, password, "127.0.0.1", port, "postgres")
            _wait_for(url, server, log)
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown: it ends sessions instead of waiting for them
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _postgres_server() -> Iterator[sa.URL]:
    with postgres_server("perennial") as url:
        yield url


def _wait_for(url: sa.URL, server: subprocess.Popen[bytes], log: Path) -> None:
    engine = sa.create_engine(url, poolclass=NullPool)
    deadline = time.monotonic() + 60
    while True:
        try:
            with engine.connect():
                return
        except sa.exc.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.05)


@pytest.fixture
def postgres(_postgres_server: sa.URL) -> Iterator[str]:
    """SQLAlchemy URL of an empty database on a private PostgreSQL server."""
    admin = sa.create_engine(_postgres_server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    name = f"test_{uuid.uuid4().hex}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield _postgres_server.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


MARIADB = ("mariadbd", "mariadb", "mariadb-install-db", "mariadb-tzinfo-to-sql")


@pytest.fixture(scope="session")
def _mariadb_server() -> Iterator[sa.URL]:
    """A private MariaDB server, which knows the world's zones and is in another one than UTC."""
    programs = {name: shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin") for name in MARIADB}
    if missing := [name for name, path in programs.items() if path is None]:
        _without(f"MariaDB ({missing[0]})")
    folder = Path(tempfile.mkdtemp(prefix="perennial-mariadb-"))
    password = secrets.token_hex(16)
    data, first, log = folder / "data", folder / "first.sql", folder / "log"
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        account = pwd.getpwnam("mysql")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    try:
        subprocess.run(
            [str(programs["mariadb-install-db"]), "--no-defaults", f"--datadir={data}", "--skip-test-db",
             "--auth-root-authentication-method=normal"],
            check=True, capture_output=True, cwd=folder, **user,
        )  # fmt: skip
        first.write_text(f"ALTER USER root@localhost IDENTIFIED BY '{password}';\n")
        first.chmod(0o644)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with log.open("w") as output:
            server = subprocess.Popen(
                [str(programs["mariadbd"]), "--no-defaults", f"--datadir={data}", "--bind-address=127.0.0.1", f"--port={port}",
                 f"--socket={folder}/socket", f"--pid-file={folder}/pid", f"--init-file={first}",
                 "--default-time-zone=+05:30", "--innodb-flush-log-at-trx-commit=0"],
                stdout=output, stderr=output, cwd=folder, **user,
            )  # fmt: skip
        try:
            url = sa.URL.create("mysql+pymysql", "root", password, "127.0.0.1", port, "mysql")
            _wait_for(url, server, log)
            zone = [str(programs["mariadb-tzinfo-to-sql"]), "/usr/share/zoneinfo/America/New_York", "America/New_York"]
            rules = subprocess.run(zone, check=True, capture_output=True).stdout
            client = [str(programs["mariadb"]), "--no-defaults", "--protocol=tcp", "--host=127.0.0.1", f"--port={port}"]
            secret = {**os.environ, "MYSQL_PWD": password}
            subprocess.run([*client, "--user=root", "mysql"], input=rules, check=True, capture_output=True, env=secret)
            yield url
        finally:
            server.terminate()
            server.wait(60)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def mariadb(_mariadb_server: sa.URL) -> Iterator[str]:
    """SQLAlchemy URL of an empty database on a private MariaDB server."""
    admin = sa.create_engine(_mariadb_server, poolclass=NullPool)
    name = f"test_{uuid.uuid4().hex}"
    with admin.begin() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    yield _mariadb_server.set(database=name).render_as_string(hide_password=False)
    with admin.begin() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name}")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the Chromium program."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    _without("Chromium")
