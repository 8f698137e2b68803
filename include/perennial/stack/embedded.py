"""The whole stack on one machine: Airflow's components and MLflow's server, all state below one folder.

There are two API servers, one for people and one for tasks, so that neither waits for the other's writes to SQLite.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx

from perennial.core.errors import StackError
from perennial.core.faults import find_fault
from perennial.core.files import write_private
from perennial.core.pools import commands
from perennial.core.settings import PROJECT
from perennial.stack.environment import (
    HOST,
    choose_ports,
    embedded_settings,
    environment,
    keep_secrets,
    passwords_file,
)
from perennial.stack.processes import Processes, end, last_words, marked

#: Free bytes of disk that the stack requires to start. With less, the first model may not fit.
ROOM = 1_000_000_000

#: What Airflow's processes share: modules to import, and a function to call. If a later Airflow lacks one of its modules,
#: each process takes longer to start, and works all the same.
IMPORTED_AHEAD = (
    "airflow.__main__",
    "airflow.api_fastapi.app",
    "airflow.api_fastapi.core_api.routes.public",
    "airflow.api_fastapi.core_api.routes.ui",
    "airflow.api_fastapi.execution_api.routes",
    "airflow.cli.commands.api_server_command",
    "airflow.cli.commands.dag_processor_command",
    "airflow.cli.commands.db_command",
    "airflow.cli.commands.scheduler_command",
    "airflow.cli.commands.triggerer_command",
    "airflow.executors.local_executor",
    "perennial.core.private_parts:let_sqlite_tell_fractions_of_seconds",
)

#: Modules that tasks need. Workers are forked from the scheduler, which has imported them. A change of them takes effect when
#: the stack is restarted. This package may not import the orchestration, so it names the module.
IMPORTED_FOR_TASKS = ("perennial.orchestration.warm",)

#: The file that a running stack locks, and in which it describes itself.
_LOCK = "stack.json"

_HEALTH = "/api/v2/monitor/health"

_AIRFLOW = (sys.executable, "-m", "airflow")
_MLFLOW = (sys.executable, "-m", "mlflow")


class Stack:
    """The embedded stack, running inside a ``with`` block.

    Args:
        state: folder that everything is kept below.
        given: the environment, with what a person has chosen.
        dags: folder of DAG files.
        plugins: folder of Airflow plugins.
        parse_every: seconds after which a DAG file is read again; see :func:`perennial.stack.environment.environment`.
        say: called with a sentence for each event.

    Attributes:
        settings: where this deployment keeps things.
        ports: where its servers listen.
        password: of the user ``admin``.
        environment: of its processes.

    Raises:
        StackError: when it is entered and cannot start; the message says what to do.
    """

    def __init__(
        self,
        state: Path,
        given: Mapping[str, str],
        *,
        dags: Path = PROJECT / "dags",
        plugins: Path = PROJECT / "plugins",
        parse_every: int | None = None,
        imports: Sequence[str] = IMPORTED_FOR_TASKS,
        say: Callable[[str], None] = print,
    ) -> None:
        self.state = state
        self._say = say
        self._imports = imports
        self._lock = _Lock(state)
        self._lock.take()
        try:
            for module in ("airflow", "mlflow"):
                if find_spec(module) is None:
                    raise StackError(f"the package {module} is not installed here; `make up` installs what is needed")
            _check_room(state, ROOM)
            # What was made before umask counted here is for this user alone, too.
            state.chmod(0o700)
            end(lambda: marked(f"{state}#"), 10)  # processes that a killed stack may have left
            self.ports = choose_ports(given)
            self.settings = embedded_settings(state, self.ports, given)
            self._check_databases()
            kept = keep_secrets(state)
            self.password = kept.admin_password
            self.environment = environment(
                self.settings, self.ports, kept, dags=dags, plugins=plugins, parse_every=parse_every, inherited=given
            )
        except BaseException:
            self._lock.release()
            raise

    def _check_databases(self) -> None:
        # A process that cannot read its database would end with a traceback in a log.
        files = {
            "ledger": self.settings.database_url,
            "catalog": self.settings.catalog_url,
            "database of MLflow": f"sqlite:///{self.state / 'mlflow.db'}",
            "database of Airflow": f"sqlite:///{self.state / 'airflow' / 'airflow.db'}",
        }
        for name, url in files.items():
            if (fault := find_fault(name, url)) is not None:
                raise StackError(fault)

    @property
    def airflow_url(self) -> str:
        return f"http://{HOST}:{self.ports.airflow}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{HOST}:{self.ports.mlflow}"

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self.ports.metrics}/metrics"

    @property
    def scorer_url(self) -> str:
        return f"http://{HOST}:{self.ports.scorer}"

    def __enter__(self) -> Self:
        try:
            self.processes = Processes(
                family=f"{self.state}#{secrets.token_hex(4)}",
                program="airflow",
                modules=IMPORTED_AHEAD,
                environment=self.environment,
                logs=self.state / "logs",
                say=self._say,
            )
        except BaseException:
            self._lock.release()
            raise
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def release(self) -> None:
        """Release the folder, if this stack was made but will not be entered."""
        self._lock.release()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.processes.stop()
        self._lock.release()

    def check(self) -> None:
        """Check that the stack is healthy.

        Raises:
            StackError: a process was lost for good, or the disk is almost full.
        """
        _check_room(self.state, ROOM // 10)
        if self.processes.failure is not None:
            raise self.processes.failure

    def wait(self) -> None:
        """Wait until :meth:`check` fails.

        Raises:
            StackError: always.
        """
        while True:
            self.check()
            time.sleep(0.5)

    def _start(self) -> None:
        self._lock.write({"process": os.getpid(), "airflow": self.airflow_url, "mlflow": self.mlflow_url})
        passwords = passwords_file(self.settings)
        passwords.parent.mkdir(parents=True, exist_ok=True)
        watchdog = secrets.token_urlsafe(24)
        write_private(passwords, json.dumps({"admin": self.password, "watchdog": watchdog}))
        processes = self.processes
        # Only one process makes the tables of a database, and none reads them before. MLflow's server makes its own, and gets
        # no request before it is healthy.
        self._start_mlflow()
        steps = {
            "perennial-init": processes.run("perennial-init", sys.executable, "-m", "perennial.cli", "init"),
            "airflow-migrate": processes.run("airflow-migrate", *_AIRFLOW, "db", "migrate"),
        }
        for name, step in steps.items():
            if step.wait() != 0:
                raise StackError(f"{name} failed; {last_words(processes.log(name))}")
        processes.start("execution-api", *_AIRFLOW, "api-server", "--apps", "execution", "--port", str(self.ports.execution))
        processes.start("api-server", *_AIRFLOW, "api-server", "--apps", "core")
        processes.start("dag-processor", *_AIRFLOW, "dag-processor")
        # Logs are read from the disk, so the servers that offer them to other machines are not needed.
        processes.start("triggerer", *_AIRFLOW, "triggerer", "--skip-serve-logs")
        # By Airflow's own command, so that it is one more fork of what is imported already.
        pools = [processes.run("airflow-pools", *_AIRFLOW, *command) for command in commands(self.settings)]
        processes.import_ahead(self._imports)
        # Meanwhile the servers start. The first request makes the execution API load for seconds.
        self._wait_for(
            {
                "execution-api": f"http://{HOST}:{self.ports.execution}/execution/health",
                "mlflow": f"{self.mlflow_url}/health",
            }
        )
        if any(pool.wait() != 0 for pool in pools):
            raise StackError(f"airflow-pools failed; {last_words(processes.log('airflow-pools'))}")
        processes.start("scheduler", *_AIRFLOW, "scheduler", "--skip-serve-logs")
        self._wait_for({"Airflow": f"{self.airflow_url}{_HEALTH}"})
        given = {"PERENNIAL_AIRFLOW_URL": self.airflow_url, "AIRFLOW_WATCHDOG_PASSWORD": watchdog}
        given["PERENNIAL_WATCH_PORT"] = str(self.ports.metrics)
        processes.start("judge", sys.executable, "-m", "perennial.cli", "judge")
        processes.start("watch", sys.executable, "-m", "perennial.cli", "watch", given=given)
        # It only reads MLflow, and needs no right to promote.
        given = {"PERENNIAL_SERVE_PORT": str(self.ports.scorer), "PERENNIAL_MAY_PROMOTE": "false"}
        processes.start("scorer", sys.executable, "-m", "perennial.cli", "serve", given=given)
        processes.watch()

    def _start_mlflow(self) -> None:
        self.processes.start(
            "mlflow", *_MLFLOW, "server", "--host", HOST, "--port", str(self.ports.mlflow), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.state / 'mlflow.db'}",
            "--artifacts-destination", str(self.state / "mlartifacts"),
            "--allowed-hosts", "localhost:*,127.0.0.1:*",
        )  # fmt: skip

    def _wait_for(self, addresses: dict[str, str], patience: float = 180) -> None:
        """Wait until all of these report that they are healthy, for at most ``patience`` seconds."""
        deadline = time.monotonic() + patience
        # A proxy of the environment cannot reach this machine.
        with httpx.Client(trust_env=False, timeout=patience) as client:
            for name, url in addresses.items():
                while not _is_healthy(client, url):
                    if (error := self.processes.dead()) is not None:
                        raise error
                    if time.monotonic() > deadline:
                        raise StackError(f"{name} is not healthy after {patience:.0f} s; its log is in {self.state / 'logs'}")
                    time.sleep(0.1)


def _is_healthy(client: httpx.Client, url: str) -> bool:
    try:
        answer = client.get(url)
    except httpx.TransportError:
        return False
    # Airflow reports each of its components.
    return answer.status_code == 200 and (
        not url.endswith(_HEALTH) or all(part["status"] == "healthy" for part in answer.json().values())
    )


def _check_room(state: Path, wanted: int) -> None:
    if (free := shutil.disk_usage(state).free) < wanted:
        raise StackError(
            f"the disk of {state} has {free / 1e6:,.0f} MB left, and the stack needs {wanted / 1e6:,.0f} MB: make room, "
            "or set the environment variable PERENNIAL_STATE to a folder on another disk"
        )


def find_running(state: Path) -> dict[str, Any] | None:
    """The running stack of a folder: ``process``, ``airflow``, ``mlflow``. None if there is none."""
    file = state / _LOCK
    if not file.exists():
        return None
    with file.open(encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            said: dict[str, Any] = json.loads(stream.read() or "{}")
            return said
    return None


class _Lock:
    """One stack per folder. The lock ends with the process, however that ends."""

    def __init__(self, state: Path) -> None:
        self._file = state / _LOCK
        self._stream: IO[str] | None = None

    def take(self) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        stream = self._file.open("a", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            there = find_running(self._file.parent) or {}
            raise StackError(
                f"a stack already runs in {self._file.parent} (process {there.get('process', 'unknown')}, "
                f"Airflow {there.get('airflow', 'starting')}); use that one, or stop it with Ctrl-C where it was started"
            ) from None
        stream.truncate(0)
        self._stream = stream

    def write(self, content: dict[str, object]) -> None:
        assert self._stream is not None
        self._stream.write(json.dumps(content))
        self._stream.flush()

    def release(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
