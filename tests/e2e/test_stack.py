"""The real stack with two DAGs of its own: it works, mends itself, keeps to itself, and goes without a trace.

The tests share one stack and end it; they run in the order they are written in.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from perennial.core.errors import StackError
from perennial.core.settings import PROJECT
from perennial.ledger.store import Ledger
from perennial.operations.secret_file import SECRETS
from perennial.stack.airflow_api import AirflowApi
from perennial.stack.environment import keep_secrets
from perennial.stack.processes import marked
from tests.composed import read_compose
from tests.living import free_ports

pytestmark = pytest.mark.stack

#: `perennial up`, but for the folder of DAGs, and without what its tasks would need half a minute to import. Ctrl-C is heard
#: even where the tests themselves run in the background, whose children do not by default.
UP = """
import functools, pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from perennial.cli.main import main
from perennial.stack import embedded
embedded.Stack = functools.partial(embedded.Stack, dags=pathlib.Path(sys.argv[1]), imports=())
main(["up"])
"""

DAGS = """
import os, time
from airflow.sdk import DAG, chain, task

with DAG("seven", schedule=None):
    @task
    def step():
        return 1
    chain(*[step.override(task_id=f"step_{n}")() for n in range(7)])

with DAG("patient", schedule=None):
    @task
    def wait(gate: str):
        open(gate + ".waiting", "w").close()
        while not os.path.exists(gate):
            time.sleep(0.05)
    wait("{{ dag_run.conf['gate'] }}")

with DAG("broken", schedule=None):
    @task
    def divide():
        return 1 / 0
    divide()

# Of a model that is there, so that somebody is told what becomes of it.
with DAG("energy_load.score", schedule=None):
    @task
    def predict(place: str):
        with open(place, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)
    predict("{{ dag_run.conf['place'] }}")
"""

OURS = ("seven", "patient", "broken", "energy_load.score")


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    state: Path
    output: Path
    given: dict[str, str]
    api: AirflowApi
    ledger: Ledger
    measured: Measured

    def processes(self) -> list[psutil.Process]:
        return marked(f"{self.state}#")

    def component(self, title: str) -> psutil.Process | None:
        return next((process for process in self.processes() if command(process).startswith(title)), None)


class Measured:
    """What Airflow's processes send by StatsD."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What docker-compose.yaml says, and where this listens."""
        services = read_compose(dict.fromkeys(SECRETS, "secret"))["services"]
        said = {name: value for name, value in services["worker"]["environment"].items() if "__METRICS__" in name}
        port = str(self._socket.getsockname()[1])
        return said | {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": port,
        }

    def _listen(self) -> None:
        while packet := self._socket.recv(65536):
            self.names |= {line.partition(":")[0] for line in packet.decode().splitlines()}


def command(process: psutil.Process) -> str:
    """Its command line; nothing for one that has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie too, until its parent has asked for it
        return ""


def soon(condition: Callable[[], object], seconds: float = 300) -> bool:
    """Whether it comes true; the limit is only there for what never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("stack")
    dags, state, output = folder / "dags", folder / "var", folder / "output"
    dags.mkdir()
    (dags / "example.py").write_text(textwrap.dedent(DAGS))
    measured = Measured()
    given = {
        **os.environ,
        **measured.environment,
        "PERENNIAL_STATE": str(state),
        "PERENNIAL_MODELS": str(PROJECT / "tests" / "models"),
        "PERENNIAL_WATCH_EVERY": "1",
        **free_ports(),
    }
    with output.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", UP, str(dags)], env=given, stdout=stream, stderr=subprocess.STDOUT, text=True
        )
    try:
        assert soon(lambda: "Ctrl-C stops everything" in output.read_text() or process.poll() is not None)
        assert process.poll() is None, output.read_text()
        url = f"http://127.0.0.1:{given['PERENNIAL_AIRFLOW_PORT']}"
        with AirflowApi(url, "admin", keep_secrets(state).admin_password) as api:
            api.wait_for_dags(OURS)
            for dag_id in OURS:
                api.unpause(dag_id)
            yield Running(process, state, output, given, api, Ledger(f"sqlite:///{state / 'perennial.db'}"), measured)
    finally:
        process.terminate()
        process.wait(timeout=60)
    assert not marked(f"{state}#")


def test_runs_are_worked_off(running: Running) -> None:
    run = running.api.wait(running.api.trigger("seven"))

    assert run.state == "success"
    assert [task.state for task in running.api.task_instances(run)] == ["success"] * 7


def test_a_failed_task_is_told_with_its_error_and_the_address_of_its_log(running: Running) -> None:
    run = running.api.wait(running.api.trigger("broken"))

    told = running.api.failure(run)

    assert "divide failed: ZeroDivisionError: division by zero" in told
    assert f"log: {running.api.url}/dags/broken/runs/" in told


def test_what_airflow_refuses_is_told(running: Running) -> None:
    with pytest.raises(StackError, match=r"Airflow answers 404 to POST /dags/unheard_of/dagRuns: .*unheard_of"):
        running.api.trigger("unheard_of")
    run = running.api.trigger("seven", run_id="only-once")
    with pytest.raises(StackError, match="409"):
        running.api.trigger("seven", run_id="only-once")
    assert running.api.wait(run).state == "success"


def test_a_missing_dag_is_told_with_the_errors_of_the_files(running: Running) -> None:
    with pytest.raises(StackError, match="Airflow has no DAG unheard_of: no DAG file has an error"):
        running.api.wait_for_dags({"unheard_of"}, patience=0)


def test_servers_listen_on_this_machine_alone(running: Running) -> None:
    def listening() -> set[tuple[str, int]]:
        return {
            connection.laddr
            for process in running.processes()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }

    # Airflow's two, MLflow's, the watchdog's and the scorer's; the last two are started last.
    deadline = time.monotonic() + 120
    while len(listening()) < 5 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert {address for address, _ in listening()} == {"127.0.0.1"}
    assert len(listening()) == 5, listening()


def test_secrets_are_readable_by_their_owner_alone(running: Running) -> None:
    for file in ("secrets.json", "airflow/passwords.json"):
        assert (running.state / file).stat().st_mode & 0o077 == 0, file


def test_nothing_that_the_stack_has_made_can_be_read_by_others(running: Running) -> None:
    state = running.state
    open_to_others = [
        (oct(stat.S_IMODE(made.lstat().st_mode)), made.relative_to(state).as_posix())
        for made in (state, *state.rglob("*"))
        if not made.is_symlink() and stat.S_IMODE(made.lstat().st_mode) & 0o077
    ]
    assert open_to_others == []
    assert {"airflow", "logs", "perennial.db", "mlflow.db"} <= {made.name for made in state.iterdir()}


def test_a_second_stack_beside_it_says_so(running: Running) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "perennial.cli", "up"], env=running.given, capture_output=True, text=True, timeout=60
    )

    assert second.returncode == 1
    assert f"a stack already runs in {running.state} (process {running.process.pid}, Airflow http://127.0.0.1:" in second.stderr
    assert "stop it with Ctrl-C" in second.stderr
    assert running.api.wait(running.api.trigger("seven")).state == "success"


def test_a_stack_on_the_same_ports_says_which_is_taken(running: Running, tmp_path: Path) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "perennial.cli", "up"],
        env={**running.given, "PERENNIAL_STATE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert second.returncode == 1
    assert f"another program uses port {running.given['PERENNIAL_AIRFLOW_PORT']}, which Airflow needs" in second.stderr
    assert "PERENNIAL_AIRFLOW_PORT=" in second.stderr


@pytest.mark.parametrize("title", ["airflow triggerer", "airflow dag-processor", "airflow api_server"])
def test_a_component_that_dies_is_told_and_started_again(running: Running, title: str) -> None:
    victim = running.component(title)
    assert victim is not None

    victim.kill()

    assert soon(lambda: (found := running.component(title)) is not None and found.pid != victim.pid)
    assert soon(lambda: "was killed by signal 9 and was restarted" in running.output.read_text())


def test_a_run_survives_the_death_of_the_scheduler(running: Running, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    assert soon(lambda: answers(running.api))
    run = running.api.trigger("patient", conf={"gate": str(gate)})
    assert soon((tmp_path / "gate.waiting").exists)
    victim = running.component("airflow scheduler")
    assert victim is not None

    victim.kill()

    assert soon(lambda: (found := running.component("airflow scheduler")) is not None and found.pid != victim.pid)
    gate.touch()
    assert running.api.wait(run, patience=120).state == "success"


def test_a_task_that_was_killed_and_a_scheduler_that_hangs_are_told_by_the_watchdog(running: Running, tmp_path: Path) -> None:
    def told() -> list[str]:
        return [f"{entry.alert.kind}: {entry.alert.title}" for entry in running.ledger.alerts()]

    place = tmp_path / "place"
    assert soon(lambda: answers(running.api))
    before = len(told())
    run = running.api.trigger("energy_load.score", conf={"place": str(place)})
    assert soon(lambda: place.exists() and place.read_text())
    os.kill(int(place.read_text()), signal.SIGKILL)
    assert running.api.wait(run).state == "failed"
    scheduler = running.component("airflow scheduler")
    assert scheduler is not None

    # It lives, so that nobody starts it again, and does nothing.
    scheduler.suspend()
    try:
        assert soon(lambda: len(told()) >= before + 2), told()
    finally:
        scheduler.resume()
    assert soon(lambda: len(told()) >= before + 3), told()

    assert sorted(told()[before:]) == [
        "component_down: Airflow's scheduler is down",
        "recovered: perennial: recovered: Airflow's scheduler is down",
        "run_failed: energy_load: score failed",
    ]


def test_airflow_measures_what_the_dashboard_shows(running: Running) -> None:
    wanted = {
        "airflow.scheduler_heartbeat",
        "airflow.dag_processor_heartbeat",
        "airflow.triggerer_heartbeat",
        "airflow.executor.open_slots",
        "airflow.executor.queued_tasks",
        "airflow.executor.running_tasks",
        "airflow.dagrun.duration.success",
        "airflow.ti.finish",
        "airflow.dag_processing.total_parse_time",
    }
    assert soon(lambda: wanted <= {name.partition(",")[0] for name in running.measured.names}), running.measured.names
    finished = next(name for name in running.measured.names if name.startswith("airflow.ti.finish") and "seven" in name)
    assert "state=success" in finished
    assert "run_id" not in finished


def answers(api: AirflowApi) -> bool:
    try:
        return bool(api.dag_ids())
    except StackError:
        return False


def test_ctrl_c_stops_everything(running: Running) -> None:
    started = running.processes()

    running.process.send_signal(signal.SIGINT)

    assert running.process.wait(timeout=60) == 0
    assert running.output.read_text().endswith("Stopped.\n")
    assert not running.processes()
    assert not [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
