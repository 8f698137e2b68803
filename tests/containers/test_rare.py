"""What happens seldom to a deployment, and takes minutes: ``make test-containers ALL=1`` runs it.

The tests follow each other, and those of ``test_lives.py``.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from perennial.core.settings import PROJECT
from perennial.spec.operation import Schedules
from perennial.stack.airflow_api import AirflowApi
from perennial.watchdog.rules import expected
from tests.containers.conftest import ASKED, AUTHOR, MODELS, PATIENCE, READABLE, Containers, choices, clone

pytestmark = [pytest.mark.containers, pytest.mark.stack, pytest.mark.rare]


def history(containers: Containers) -> list[str]:
    return [containers.inside("judge", "perennial", "history", model) for model in MODELS]


def test_the_key_of_connections_is_rotated_as_the_manual_says(containers: Containers, api: AirflowApi) -> None:
    old = containers.secrets["AIRFLOW_FERNET_KEY"]
    init = ("run", "--rm", "--no-deps", "--no-TTY", "init")
    more = ("--conn-type", "http", "--conn-host", "example.org", "--conn-password", "kept-as-it-is")
    containers.compose(*init, "airflow", "connections", "add", "somewhere", *more)
    make = "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"
    new = containers.compose(*init, "python", "-c", make).split()[-1]
    file = containers.folder / ".env"
    file.write_text(file.read_text().replace(old, f"{new},{old}"))
    containers.compose("up", "--detach", "--wait")
    containers.compose("run", "--rm", "--no-TTY", "init", "airflow", "rotate-fernet-key")
    file.write_text(file.read_text().replace(f"{new},{old}", new))
    containers.compose("up", "--detach", "--wait")
    assert "kept-as-it-is" in containers.compose(*init, "airflow", "connections", "get", "somewhere", "--output", "json")


def test_redis_is_lost_and_work_goes_on(containers: Containers, api: AirflowApi) -> None:
    containers.compose("rm", "--stop", "--force", "--volumes", "redis")
    containers.engine.docker("volume", "rm", "perennial_redis")
    containers.compose("up", "--detach", "--wait")
    containers.live_a_day(api)


def test_two_days_without_mlflow_are_made_up_for(containers: Containers, api: AirflowApi) -> None:
    # What is made up for is counted from the present day, so these days are real.
    newest = expected(Schedules().ingest, datetime.now(UTC))
    assert newest is not None
    *without, last = [newest[1].start - timedelta(days=days) for days in (2, 1, 0)]
    api.unpause(f"{ASKED}.score")
    # Their features look back.
    before = {"start": f"{without[0] - timedelta(days=4):%F}", "end": f"{without[0]:%F}"}
    quiet = {"announce_scoring": False, "announce_training": False}
    loaded = api.wait(api.trigger(f"{ASKED}.ingest", conf={**before, **quiet}), patience=PATIENCE, check=containers.check)
    assert loaded.state == "success", api.failure(loaded)
    # Its table of predictions is made by the first of them.
    scored = (
        "SELECT DISTINCT left(start::text, 10) FROM perennial.perennial_publications "
        f"WHERE model = '{ASKED}' AND dataset = 'predictions' AND left(start::text, 10) >= '{before['end']}'"
    )
    containers.compose("stop", "mlflow")
    began = datetime.now(UTC)
    for day in without:
        run = api.wait(api.trigger(f"{ASKED}.ingest", partition_key=f"{day:%F}"), patience=PATIENCE)
        assert run.state == "success", api.failure(run)
    # Each day's task fails for good after two retries, with their waits and those of MLflow's client.
    deadline = time.monotonic() + 3 * PATIENCE
    while len(failed := [run for run in api.runs(f"{ASKED}.score", since=began) if run.state == "failed"]) < 2:
        assert time.monotonic() < deadline
        time.sleep(1)
    told = [api.failure(run) for run in failed]
    assert containers.sql(scored) == []
    containers.compose("start", "mlflow")
    containers.wait_until_healthy("mlflow")
    # What was published less than three hours ago is not looked at yet, since a run of it may be under way.
    containers.sql("UPDATE perennial.perennial_publications SET published_at = published_at - interval '4 hours'")
    api.trigger(f"{ASKED}.ingest", partition_key=f"{last:%F}")
    while not set(containers.sql(scored)) >= {f"{day:%F}" for day in (*without, last)}:
        assert time.monotonic() < deadline + PATIENCE
        time.sleep(1)
    containers.verify()
    assert all("MLflow at http://mlflow:5000 does not answer as it should" in one for one in told), told


def test_a_backup_is_restored_on_an_empty_host(containers: Containers, api: AirflowApi, tmp_path: Path) -> None:
    rows, told = [containers.predictions(model) for model in MODELS], history(containers)
    # A host of Docker has no other reader of volumes.
    place = tmp_path / "backup"
    with containers.engine.timed("backup"):
        containers.run("sh", "scripts/backup.sh", str(place))
    containers.remove()
    assert containers.engine.docker("volume", "ls", "--quiet", "--filter", "name=perennial_") == ""
    with containers.engine.timed("restore"):
        said = containers.run("sh", "scripts/restore.sh", str(place))
    assert "All agrees" in said
    containers.compose("up", "--detach", "--wait")
    assert [containers.predictions(model) for model in MODELS] == rows
    assert history(containers) == told
    with containers.sign_in() as api:
        containers.live_a_day(api)
    containers.verify()


def test_a_file_of_the_lake_that_is_lost_is_named(containers: Containers, api: AirflowApi) -> None:
    find = "find /var/lib/perennial/lake -name '*.parquet' -path '*predictions*' | sort | tail -1"
    [file] = containers.inside("worker", "sh", "-c", find).split()
    containers.inside("worker", "mv", file, f"{file}.gone")
    told = containers.inside("judge", "perennial", "verify", check=False)
    containers.inside("worker", "mv", f"{file}.gone", file)
    assert re.search(rf"PROBLEM.*{re.escape(Path(file).name)}", told), told
    containers.verify()


@contextmanager
def machine(containers: Containers, name: str) -> Iterator[str]:
    """A machine outside that is known by a name, and on which somebody listens to port 8123. Its address."""
    listen = "import socket, time; held = socket.create_server(('0.0.0.0', 8123)); time.sleep(600)"
    started = ("run", "--detach", "--rm", "--network", "perennial_outside", "--network-alias", name, "perennial-test/python")
    identity = containers.engine.docker(*started, "python", "-c", listen).strip()
    address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    try:
        yield containers.engine.docker("inspect", "--format", address, identity).strip()
    finally:
        containers.engine.docker("rm", "--force", identity)


REACH = """
import socket, sys
for host in sys.argv[1:]:
    try:
        socket.create_connection((host, 8123), timeout=5).close()
        print("yes")
    except OSError as error:
        print("no:", error)
"""


@pytest.fixture
def listed(containers: Containers, lived: Containers) -> Iterator[Containers]:
    """The deployment whose workers may reach one host."""
    containers.run("make", "egress", "TO=listed.example.org:8123")
    containers.compose("down")
    containers.choose(COMPOSE_FILE="docker-compose.yaml:docker-compose.egress.yaml")
    containers.compose("up", "--detach", "--wait")
    yield containers
    containers.compose("down")
    containers.forget("COMPOSE_FILE")
    containers.compose("up", "--detach", "--wait")


def test_workers_reach_what_is_listed_and_nothing_else(listed: Containers) -> None:
    with machine(listed, "listed.example.org"), machine(listed, "other.example.org") as other:
        hosts = ("listed.example.org", "other.example.org", other, "egress")
        told = {
            service: [line.partition(":")[0] for line in listed.inside(service, "python", "-c", REACH, *hosts).splitlines()]
            for service in ("worker", "watch", "trainer")
        }
        seen = listed.compose("logs", "egress")
    assert told == {"worker": ["yes", "no", "no", "no"], "watch": ["yes", "no", "no", "no"], "trainer": ["no"] * 4}
    assert re.search(r"\d+\.\d+\.\d+\.\d+:8123 200", seen), seen
    with listed.sign_in() as api:
        listed.live_a_day(api)


@pytest.fixture
def followed(containers: Containers, lived: Containers, tmp_path: Path) -> Iterator[Path]:
    """The deployment with the profile git, and a clone of the repository that it follows, which is on this machine."""
    bare, author = tmp_path / "models.git", tmp_path / "author"
    containers.run("git", "clone", "--quiet", "--bare", str(containers.folder), str(bare))
    containers.run("git", "clone", "--quiet", "--branch", "deployed", str(bare), str(author))
    # Of the service's user, since Git trusts nobody else's repository. Pytest's folders are for their owner alone.
    containers.run("chown", "-R", "50000:50000", str(bare))
    extra = containers.folder / "docker-compose.repository.yaml"
    extra.write_text(f'services: {{models: {{volumes: ["{bare}:/repository:ro"]}}}}\n')
    containers.choose(
        COMPOSE_FILE="docker-compose.yaml:docker-compose.repository.yaml", COMPOSE_PROFILES="git",
        PERENNIAL_MODELS_REPOSITORY="file:///repository", PERENNIAL_MODELS_REF="deployed", PERENNIAL_MODELS_EVERY=2,
    )  # fmt: skip
    containers.compose("build", "models")
    containers.compose("up", "--detach", "--wait")
    yield author
    containers.compose("down")
    containers.forget(
        "COMPOSE_FILE", "COMPOSE_PROFILES", "PERENNIAL_MODELS_REPOSITORY", "PERENNIAL_MODELS_REF", "PERENNIAL_MODELS_EVERY"
    )
    containers.compose("up", "--detach", "--wait")


def test_a_pushed_model_lives_and_names_its_commit(containers: Containers, followed: Path) -> None:
    def push(words: str) -> str:
        git, bare = ("git", "-C", str(followed), *AUTHOR), str(followed.with_name("models.git"))
        containers.run(*git, "commit", "--quiet", "--all", "--message", words)
        # Git trusts a repository of one's own alone, whoever one is: that of root here, and of the service's user there.
        containers.run("chown", "-R", "0:0", bare)
        containers.run(*git, "push", "--quiet", "origin", "HEAD:deployed")
        containers.run("chown", "-R", "50000:50000", bare)
        return containers.run(*git, "rev-parse", "HEAD").strip()

    spec = followed / "include" / "models" / MODELS[0] / "model.yaml"
    spec.write_text(f"{spec.read_text()}# Pushed.\n")
    broken = spec.parents[1] / MODELS[1] / "model.yaml"
    sound = broken.read_text()
    broken.write_text("name: [\n")
    commit = push("Change one model, and break another")
    deadline = time.monotonic() + PATIENCE
    while f"models are now those of commit {commit}" not in containers.compose("logs", "models"):
        assert time.monotonic() < deadline, containers.compose("logs", "models")
        time.sleep(1)
    with containers.sign_in() as api:
        run = api.trigger(f"{MODELS[0]}.train", conf={"as_of": "2024-01-20"})
        ended = api.wait(run, patience=PATIENCE, check=containers.check)
        assert ended.state == "success", api.failure(run)
    commits = f"SELECT code::json ->> 'commit' FROM perennial.perennial_versions WHERE model = '{MODELS[0]}'"
    assert containers.sql(f"{commits} ORDER BY version DESC LIMIT 1") == [commit]
    broken.write_text(sound)
    push("Mend it")
    with containers.sign_in() as api:
        api.wait_for_dags([f"{MODELS[1]}.ingest"], patience=PATIENCE)
        containers.live_a_day(api)


def test_a_full_disk_of_postgres_stops_the_work_and_loses_nothing(containers: Containers, lived: Containers) -> None:
    containers.compose("down")
    containers.limit("postgres", megabytes=64)
    containers.compose("up", "--detach", "--wait")
    filler = "/var/lib/postgresql/data/filler"
    containers.inside("postgres", "sh", "-c", f"cat /dev/zero >{filler}", check=False)
    rows = [containers.predictions(model) for model in MODELS]
    with containers.sign_in() as api:
        run = api.trigger(f"{MODELS[0]}.ingest", conf=containers.coming_day)
        deadline = time.monotonic() + PATIENCE
        while "No space left on device" not in containers.compose("logs", "--tail", "50", "postgres"):
            assert time.monotonic() < deadline
            time.sleep(1)
        containers.volume("postgres").joinpath("filler").unlink()
        containers.wait_until_healthy()
        ended = api.wait(run, patience=PATIENCE, check=containers.check)
        assert [containers.predictions(model) for model in MODELS][1:] == rows[1:]
        assert ended.state == "success", api.failure(run)
        containers.live_a_day(api)
    containers.verify()


def before_the_newest_migration() -> str:
    """The newest commit that HEAD's migrations only add to: while one was being written, it may have been another one."""
    migrations = ("--", "include/perennial/ledger/migrations/versions")

    def git(*command: str) -> list[str]:
        told = subprocess.run(["git", *command, *migrations], cwd=PROJECT, capture_output=True, text=True, check=True)
        return told.stdout.split()

    for commit in git("log", "--format=%H"):
        kinds = git("diff", "--name-status", f"{commit}~1", "HEAD")[::2]
        if kinds and set(kinds) == {"A"}:
            return f"{commit}~1"
    raise AssertionError("this clone has no history, so nothing is known of the release before")


@pytest.fixture
def former(containers: Containers) -> Iterator[Containers]:
    """Two models in the release before this one: the commit before the newest migration of the ledger."""
    containers.remove()
    deployment = Containers(containers.engine, containers.folder.with_name("former"), containers.ports)
    clone(deployment.folder, before_the_newest_migration())
    (deployment.folder / ".env").write_text(choices(deployment.ports))
    deployment.run("make", "secrets")
    deployment.compose("build")
    deployment.compose("up", "--detach", "--wait")
    deployment.begin_lives()
    yield deployment
    deployment.remove()


def test_the_release_before_is_upgraded_with_what_it_holds(former: Containers) -> None:
    rows = [former.predictions(model) for model in MODELS]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()
    former.run("git", *AUTHOR, "merge", "--quiet", "--no-edit", head)
    former.run(*READABLE)
    with former.engine.timed("upgrade"):
        former.run("make", "secrets")
        former.compose("build")
        former.compose("--profile", "scale", "stop", "worker", "worker-more", "trainer", "judge")
        former.compose("run", "--rm", "--no-TTY", "init")
        former.compose("up", "--detach", "--wait", "--remove-orphans")
    assert [former.predictions(model) for model in MODELS] == rows
    with former.sign_in() as api:
        former.live_a_day(api)
        run = api.trigger(f"{MODELS[0]}.train", conf={"as_of": "2024-01-19"})
        ended = api.wait(run, patience=PATIENCE, check=former.check)
        assert ended.state == "success", api.failure(run)
    former.verify()
