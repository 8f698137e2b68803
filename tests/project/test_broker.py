"""What each user of the deployment's broker can do: Redis as docker-compose.yaml starts it, with what a worker could try."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from perennial.operations.health import healthy
from perennial.operations.secret_file import SECRETS
from tests.composed import free_port, read_compose, redis_command
from tests.conftest import _without

GIVEN = {name: make() for name, make in SECRETS.items()}
QUEUES = {"worker": ("light", "score"), "trainer": ("train",)}
#: Puts a workload into a queue as Airflow's scheduler does, and prints what became of it.
SEND = """
import json, sys
from airflow.providers.celery.executors.celery_executor_utils import app
try:
    sent = app.tasks["execute_workload"].apply_async(args=[sys.argv[2]], queue=sys.argv[1], retry=False)
    sent.get(timeout=60)
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
app.control.revoke("a task that waits too long")
"""
#: What would run any function by its dotted path, with the secrets of who takes it.
CALLBACK = {
    "type": "ExecuteCallback",
    "token": "",
    "dag_rel_path": "",
    "bundle_info": {"name": "none", "version": None},
    "log_path": None,
    "callback": {"id": "1", "fetch_method": "import_path", "data": {"path": "os.getpid", "kwargs": {}}},
}


class Broker:
    def __init__(self, port: int, folder: Path) -> None:
        self.port, self.folder = port, folder

    def as_user(self, name: str, database: int = 0) -> redis.Redis:
        secret = "REDIS_PASSWORD" if name == "default" else f"REDIS_{name.upper()}_PASSWORD"
        return redis.Redis(port=self.port, username=name, password=GIVEN[secret], db=database)

    def environment(self, service: str) -> dict[str, str]:
        """Of a process of the service, as far as Celery looks at it."""
        given = {name: str(value) for name, value in read_compose(GIVEN)["services"][service]["environment"].items()}
        kept = {
            name: value.replace("redis:6379", f"127.0.0.1:{self.port}") for name, value in given.items() if "CELERY" in name
        }
        extra = json.loads(kept["AIRFLOW__CELERY__EXTRA_CELERY_CONFIG"])
        # The other module imports all that tasks need, which takes its time.
        kept["AIRFLOW__CELERY__EXTRA_CELERY_CONFIG"] = json.dumps({"imports": extra["imports"][-1:]})
        return {
            **os.environ,
            **kept,
            "AIRFLOW_HOME": str(self.folder),
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__OPERATORS__DEFAULT_QUEUE": given["AIRFLOW__OPERATORS__DEFAULT_QUEUE"],
            "PERENNIAL_PULSE": str(self.folder / f"pulse-of-{service}"),
        }

    def send(self, service: str, queue: str, workload: Any) -> list[str]:
        command = [sys.executable, "-c", SEND, queue, json.dumps(workload)]
        done = subprocess.run(command, env=self.environment(service), capture_output=True, text=True, check=False)
        found: list[str] = json.loads(done.stdout.splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder, port = tmp_path_factory.mktemp("broker"), free_port()
    service = read_compose(GIVEN)["services"]["redis"]
    try:
        command = redis_command(service["command"], port, folder)
    except AssertionError:
        _without("Redis")
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **service["environment"]}, stdout=log, stderr=log)
    broker = Broker(port, folder)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                if broker.as_user("default").ping():
                    break
            except redis.ConnectionError:
                assert process.poll() is None, (folder / "redis.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield broker
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0


@contextmanager
def running_worker(broker: Broker, service: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(part) for part in read_compose(GIVEN)["services"][service]["command"]]
    program = [sys.executable, "-m", *command]
    log = broker.folder / f"{service}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(program, env=broker.environment(service), stdout=output, stderr=output, cwd=broker.folder)
    try:
        deadline = time.monotonic() + 120
        while not healthy(broker.environment(service)["PERENNIAL_PULSE"]):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0, log.read_text()


def refused(client: Any, *command: str) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


@pytest.mark.parametrize("kind", QUEUES)
def test_a_worker_reaches_its_own_queues_alone(broker: Broker, kind: str) -> None:
    client = broker.as_user(kind)
    for owner, queues in QUEUES.items():
        for queue in queues:
            # A message of a queue, and one of it with another priority.
            for key in (queue, f"{queue}\x06\x169"):
                if owner == kind:
                    client.lpush(key, "restored")
                    assert client.brpop([key], timeout=1) == (key.encode(), b"restored")
                    continue
                for command in (
                    ("LPUSH", key, "{}"), ("RPUSH", key, "{}"), ("BRPOP", key, "1"), ("LLEN", key), ("SET", key, "{}"),
                    # Who may say that a queue gets what is sent to another one would send it on.
                    ("SADD", f"_kombu.binding.{queue}", f"light\x06\x16\x06\x16{queue}"),
                ):  # fmt: skip
                    refused(client, *command)


@pytest.mark.parametrize("name", [*QUEUES, "scheduler"])
def test_a_user_of_the_broker_can_do_nothing_but_its_work(broker: Broker, name: str) -> None:
    client = broker.as_user(name)
    for command in (
        ("KEYS", "*"), ("SCAN", "0"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("EVAL", "return 1", "0"),
        ("ACL", "SETUSER", name, "allcommands"), ("FUNCTION", "LIST"), ("SCRIPT", "LOAD", "return 1"), ("MONITOR",),
        ("CLIENT", "LIST"), ("CLIENT", "KILL", "TYPE", "normal"), ("REPLICAOF", "127.0.0.1", "1"), ("SAVE",), ("SHUTDOWN",),
        ("MODULE", "LIST"), ("MIGRATE", "127.0.0.1", "1", "light", "0", "1"), ("LRANGE", "light", "0", "-1"), ("DEL", "light"),
        # Where Celery keeps what workers of all kinds have taken, and puts it back by: not used here.
        ("HSET", "unacked", "1", "{}"), ("ZADD", "unacked_index", "1", "1"),
    ):  # fmt: skip
        refused(client, *command)
    if name != "scheduler":
        refused(client, "PUBLISH", "/0.celery.pidbox", "{}")
        refused(client, "SUBSCRIBE", "/0.celery.pidbox")
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=broker.port, username=name, password="").ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=broker.port).ping()


@pytest.mark.parametrize(("kind", "other"), [("worker", "train"), ("trainer", "light"), ("trainer", "score")])
def test_a_worker_cannot_have_workers_of_another_kind_run_anything(broker: Broker, kind: str, other: str) -> None:
    _, said = broker.send(kind, other, CALLBACK)
    assert "this user has no permissions to access one of the keys" in said
    assert broker.as_user("default").llen(other) == 0


def test_a_task_goes_from_the_scheduler_to_a_worker_and_its_result_back(broker: Broker) -> None:
    with running_worker(broker, "trainer") as process:
        _, said = broker.send("scheduler", "train", {"type": "of no kind"})
        assert "pydantic_core._pydantic_core.ValidationError" in said  # the worker's own words, by the result
        before = os.stat(broker.environment("trainer")["PERENNIAL_PULSE"]).st_mtime
        deadline = time.monotonic() + 30
        while os.stat(broker.environment("trainer")["PERENNIAL_PULSE"]).st_mtime == before:
            assert time.monotonic() < deadline, "the worker's pulse has stopped"
            time.sleep(0.1)
        assert process.poll() is None
    assert not [line for line in (broker.folder / "trainer.log").read_text().splitlines() if "NOPERM" in line.upper()]


def test_the_brokers_secrets_are_in_no_argument(broker: Broker) -> None:
    arguments = Path(f"/proc/{broker.as_user('default').info()['process_id']}/cmdline").read_bytes()
    assert b"redis-server" in arguments
    assert not [name for name, secret in GIVEN.items() if secret.encode() in arguments]
