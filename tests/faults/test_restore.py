"""The deployed stack's scripts for backup and restore, on a real PostgreSQL, while another process publishes.

There may be no container engine here: a stand-in for ``docker`` runs each command that the scripts send into a service, as it
is, with the service's folders and databases being those of the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.alerts import of_models
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT, Settings
from perennial.deployment import Deployment
from perennial.lake.removal import held_until
from perennial.operations.agreement import verify
from tests.conftest import _without
from tests.unit.monitored import DAY, World, make_world, open_world

DATABASES = ("airflow", "perennial", "mlflow")

STAND_IN = """\
#!{python}
import os, subprocess, sys
arguments = sys.argv[1:]
assert arguments.pop(0) == "compose"
while arguments[0] == "--profile":
    del arguments[:2]
verb = arguments.pop(0)
print("docker compose", verb, *arguments, file=open({log!r}, "a"))
if verb in ("down", "up"):
    sys.exit()
while arguments[0].startswith("-"):
    arguments.pop(0)
service, *command = arguments
if service == "init":
    command = ["perennial", "init"]
folders = {folders!r}
command = [folders.get(word, word) for word in command]
if service == "postgres":
    command[command.index("--username") + 1] = os.environ["PGUSER"]
elif command[0] == "perennial":
    command[0] = {perennial!r}
sys.exit(subprocess.run(command).returncode)
"""


@pytest.fixture
def server(_postgres_server: sa.URL) -> Iterator[sa.URL]:
    """A server with the three databases of the deployment, all of them empty."""
    admin = sa.create_engine(_postgres_server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for name in DATABASES:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield _postgres_server
    with admin.connect() as connection:
        for name in DATABASES:
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def world(server: sa.URL, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    """A champion, a day scored, a second version; MLflow is a file here, below the folder of its artifacts."""
    if shutil.which("pg_dump") is None:
        _without("pg_dump")
    ledger = server.set(database="perennial").render_as_string(hide_password=False)
    mlflow = tmp_path / "mlflow"
    settings = settings.model_copy(
        update={
            "database_url": ledger, "catalog_url": ledger, "predictions_url": ledger,
            "mlflow_url": f"sqlite:///{mlflow / 'mlflow.db'}", "models": tmp_path / "models",
        }
    )  # fmt: skip
    world = make_world(tmp_path, settings)
    with sa.create_engine(server.set(database="airflow"), poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE dag_run AS SELECT 'scheduled' AS run_id")
    for version, as_of in ((1, "2013-03-26"), (2, "2013-03-27")):
        assert world.register(as_of, seed=version) == version
    world.publish(DAY)
    for version, as_of in ((1, "2013-03-26"), (2, "2013-03-27")):
        world.lake.pin("toy", world.ledger.head("toy", "features").snapshots, f"training-{as_of}-{version}")
    world.promote(1)
    world.score(1)
    world.ledger.record_alert(of_models.promoted("toy", version=1, previous=None, reason="it waits", actor="tester"), "waiting")

    programs = tmp_path / "bin"
    programs.mkdir()
    stand_in = programs / "docker"
    stand_in.write_text(
        STAND_IN.format(
            python=sys.executable,
            log=str(tmp_path / "said"),
            folders={"/var/lib/perennial": str(settings.state), "/var/lib/mlflow": str(mlflow)},
            perennial=str(Path(sys.executable).with_name("perennial")),
        )
    )
    stand_in.chmod(0o755)
    for name, value in {
        "PATH": f"{programs}:{os.environ['PATH']}", "PGHOST": "127.0.0.1", "PGPORT": str(server.port),
        "PGUSER": str(server.username), "PGPASSWORD": str(server.password), "PERENNIAL_STATE": str(settings.state),
        "PERENNIAL_MODELS": str(settings.models), "PERENNIAL_DATABASE_URL": ledger, "PERENNIAL_CATALOG_URL": ledger,
        "PERENNIAL_PREDICTIONS_URL": ledger, "MLFLOW_TRACKING_URI": settings.mlflow_url,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return world


def run(script: str, place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", PROJECT / "scripts" / script, place], capture_output=True, text=True, check=False, cwd=PROJECT
    )  # fmt: skip


def work_on(place: Path, settings: Settings, began: Event, enough: Event) -> None:
    """Publish and score day after day."""
    world = open_world(place, settings)
    for day in Interval.of("2013-04-02", "2014-04-02").days():
        world.publish(day, rows_a_day=10, seed=day.start.day)
        world.score(1, day)
        began.set()
        if enough.is_set():
            return


def test_the_deployed_stack_is_restored_as_it_was_copied_at_work(world: World, server: sa.URL, tmp_path: Path) -> None:
    before = world.predictions()
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    began, enough = context.Event(), context.Event()
    worker = context.Process(target=work_on, args=(tmp_path, world.settings, began, enough))
    worker.start()
    try:
        assert began.wait(120)
        copied = run("backup.sh", tmp_path / "backup")
    finally:
        enough.set()
        worker.join(120)
    assert (worker.exitcode, copied.returncode) == (0, 0), copied.stderr
    assert held_until(world.settings) is None
    for file in (tmp_path / "backup").iterdir():
        assert file.stat().st_mode & 0o077 == 0, f"{file.name} may hold rows of data"

    # The machine is lost; on another one the volumes are empty.
    shutil.rmtree(world.settings.state)
    world.settings.state.mkdir()
    admin = sa.create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for name in DATABASES:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        connection.exec_driver_sql("CREATE DATABASE perennial")  # as the init job does, on the new one

    restored = run("restore.sh", tmp_path / "backup")
    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert "not sent, because it may have been sent after the backup" in restored.stdout
    assert "1 models, 0 problems" in restored.stdout
    with sa.create_engine(server.set(database="airflow"), poolclass=NullPool).connect() as connection:
        assert connection.exec_driver_sql("SELECT run_id FROM dag_run").scalars().all() == ["scheduled"]
    again = open_world(tmp_path, world.settings)
    assert again.ledger.champion("toy") == again.registry.alias("toy") == 1
    assert again.predictions() == before
    again.score(1, run_id="once more")
    assert [(row["visit"], row["prediction"]) for row in again.predictions()] == [
        (row["visit"], row["prediction"]) for row in before
    ]
    work_on(tmp_path, world.settings, context.Event(), enough)
    assert verify(Deployment(world.settings)).problems == []


def test_a_dump_that_is_cut_stops_the_restore_before_anything_is_touched(world: World, tmp_path: Path) -> None:
    assert run("backup.sh", tmp_path / "backup").returncode == 0
    dump = tmp_path / "backup" / "perennial.dump"
    dump.write_bytes(dump.read_bytes()[:-1000])
    (tmp_path / "said").unlink()
    failed = run("restore.sh", tmp_path / "backup")
    assert failed.returncode != 0
    assert "perennial.dump: FAILED" in failed.stdout + failed.stderr
    assert not (tmp_path / "said").exists(), "no container was asked anything"


def test_a_backup_that_fails_says_so_and_holds_nothing(world: World, server: sa.URL, tmp_path: Path) -> None:
    with sa.create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("DROP DATABASE mlflow")
    failed = run("backup.sh", tmp_path / "backup")
    assert failed.returncode != 0
    assert "mlflow" in failed.stderr
    assert not (tmp_path / "backup" / "SHA256SUMS").exists()
    assert held_until(world.settings) is None
