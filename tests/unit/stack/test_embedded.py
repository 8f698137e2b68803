"""The stack's configuration, and processes that are kept alive and never left behind. No server is started here."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from perennial.core.errors import SettingsError, StackError
from perennial.core.private_parts import let_sqlite_tell_fractions_of_seconds
from perennial.core.settings import read_settings
from perennial.stack import processes
from perennial.stack.embedded import IMPORTED_AHEAD, Stack
from perennial.stack.environment import Ports, choose_ports, embedded_settings, environment, keep_secrets
from perennial.stack.processes import RESTARTS, Processes, marked
from tests.living import free_ports

PORTS = Ports(airflow=18080, mlflow=15000, metrics=19464, scorer=18090, execution=18081)


def soon(condition: Callable[[], object], seconds: float = 60) -> bool:
    """Whether it comes true; the limit is only there for what never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def made(tmp_path: Path, inherited: dict[str, str] | None = None) -> dict[str, str]:
    given = inherited or {}
    settings = embedded_settings(tmp_path, PORTS, given)
    return environment(settings, PORTS, keep_secrets(tmp_path), inherited=given)


# --- configuration -------------------------------------------------------------------------------------------------------


def test_tasks_read_the_settings_the_stack_decided_on(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path, PORTS, {"PERENNIAL_DATA": "/srv/landing"})

    assert read_settings(environment(settings, PORTS, keep_secrets(tmp_path), inherited={})) == settings
    assert settings.data == Path("/srv/landing")


def test_the_reviewers_list_of_types_reaches_the_tasks_and_empty_is_not_unset(tmp_path: Path) -> None:
    for given, types in (
        ({}, None),
        ({"PERENNIAL_TRUSTED_TYPES": ""}, ()),
        ({"PERENNIAL_TRUSTED_TYPES": "a.B, c"}, ("a.B", "c")),
    ):
        settings = embedded_settings(tmp_path, PORTS, given)
        assert settings.trusted_types == types
        assert read_settings(environment(settings, PORTS, keep_secrets(tmp_path), inherited={})) == settings
    with pytest.raises(SettingsError, match="PERENNIAL_TRUSTED_TYPES"):
        embedded_settings(tmp_path, PORTS, {"PERENNIAL_TRUSTED_TYPES": "lightgbm.*"})


def test_all_state_lies_below_one_folder(tmp_path: Path) -> None:
    variables = made(tmp_path)

    for name in (
        "AIRFLOW_HOME",
        "PERENNIAL_STATE",
        "PERENNIAL_DATA",
        "PERENNIAL_WAREHOUSE",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER",
    ):
        assert Path(variables[name]).is_relative_to(tmp_path), name
    for name in ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "PERENNIAL_DATABASE_URL", "PERENNIAL_CATALOG_URL"):
        assert variables[name].startswith(f"sqlite:///{tmp_path}/"), name


def test_many_models_are_read_less_often(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for number in range(100):
        (models / f"m{number}").mkdir(parents=True)
        (models / f"m{number}" / "model.yaml").touch()

    assert made(tmp_path)["AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL"] == "30"
    many = made(tmp_path, {"PERENNIAL_MODELS": str(models)})
    assert many["AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL"] == "100"


def test_servers_listen_on_this_machine_alone(tmp_path: Path) -> None:
    variables = made(tmp_path)

    assert variables["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert variables["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"].startswith("http://127.0.0.1:18081/")
    assert variables["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:15000"


def test_no_dependency_reports_its_use(tmp_path: Path) -> None:
    variables = made(tmp_path, {"DO_NOT_TRACK": "0", "MLFLOW_DISABLE_TELEMETRY": "false"})

    assert variables["DO_NOT_TRACK"] == "1"
    assert variables["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert variables["GX_ANALYTICS_ENABLED"] == "false"
    assert variables["AIRFLOW__USAGE_DATA_COLLECTION__ENABLED"] == "False"


def test_what_another_project_left_in_the_shell_does_not_reach_the_stack(tmp_path: Path) -> None:
    shell = {
        "AIRFLOW_HOME": "/home/me/airflow",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://prod/airflow",
        "MLFLOW_TRACKING_URI": "https://mlflow.example.com",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    variables = made(tmp_path, shell)

    assert not set(shell.values()) & {value for name, value in variables.items() if name in shell}
    assert "PYTHONDONTWRITEBYTECODE" not in variables


def test_a_persons_own_connections_reach_the_tasks(tmp_path: Path) -> None:
    shell = {"AIRFLOW_CONN_SLACK": "https://hooks.slack.example", "WAREHOUSE_URL": "postgresql://warehouse"}

    assert shell.items() <= made(tmp_path, shell).items()


def test_a_proxy_is_not_asked_for_this_machine(tmp_path: Path) -> None:
    assert made(tmp_path, {"NO_PROXY": "intranet"})["NO_PROXY"] == "intranet,127.0.0.1,localhost"


# --- secrets -------------------------------------------------------------------------------------------------------------


def test_secrets_are_made_once_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    first = keep_secrets(tmp_path)

    assert keep_secrets(tmp_path) == first
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600
    other = tmp_path / "other"
    other.mkdir()
    assert not set(vars(keep_secrets(other)).values()) & set(vars(first).values())


@pytest.mark.parametrize("content", ["", "[]", '{"admin_password": "x"}', "{"])
def test_damaged_secrets_are_told_and_not_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "secrets.json").write_text(content)

    with pytest.raises(StackError, match=r"secrets.json does not contain the stack's secrets; restore it"):
        keep_secrets(tmp_path)

    assert (tmp_path / "secrets.json").read_text() == content


# --- what keeps it from starting -----------------------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("server", "variable"),
    [
        ("Airflow", "PERENNIAL_AIRFLOW_PORT"),
        ("MLflow", "PERENNIAL_MLFLOW_PORT"),
        ("the watchdog", "PERENNIAL_WATCH_PORT"),
        ("the scorer", "PERENNIAL_SERVE_PORT"),
    ],
)
def test_a_port_in_use_is_named_with_the_variable_that_chooses_another(taken: int, server: str, variable: str) -> None:
    with pytest.raises(StackError, match=rf"another program uses port {taken}, which {server} needs.*{variable}=\d+"):
        choose_ports({**free_ports(), variable: str(taken)})


@pytest.mark.parametrize("text", ["http", "0", "65536", "-1", "8080.5", "٨٠٨٠"])
def test_a_port_must_be_a_port_number(text: str) -> None:
    with pytest.raises(StackError, match=r"PERENNIAL_AIRFLOW_PORT is .*; write a port number, such as 8080"):
        choose_ports({"PERENNIAL_AIRFLOW_PORT": text})


def test_two_servers_cannot_share_a_port() -> None:
    one = free_ports()["PERENNIAL_AIRFLOW_PORT"]

    with pytest.raises(StackError, match=f"both {one}; choose different ports"):
        choose_ports({"PERENNIAL_AIRFLOW_PORT": one, "PERENNIAL_MLFLOW_PORT": one})


def test_a_second_stack_on_the_same_folder_says_who_runs_there(tmp_path: Path) -> None:
    first = Stack(tmp_path, free_ports())

    with pytest.raises(StackError, match=rf"a stack already runs in {tmp_path} \(process .*use that one, or stop it"):
        Stack(tmp_path, free_ports())

    first.release()
    Stack(tmp_path, free_ports()).release()


def test_a_full_disk_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 12_000_000))

    with pytest.raises(StackError, match=r"has 12 MB left, and the stack needs 1,000 MB: make room, or set .*PERENNIAL_STATE"):
        Stack(tmp_path, free_ports())


# --- processes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def family(tmp_path: Path) -> str:
    return f"{tmp_path}#family"


@pytest.fixture
def program(tmp_path: Path) -> str:
    """A program that writes its process id and that of a child it starts, and sleeps; or ends with the code it is given."""
    package = tmp_path / "napper"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        textwrap.dedent("""
            import subprocess, sys, time
            if len(sys.argv) > 1:
                print("cannot nap", flush=True)
                sys.exit(int(sys.argv[1]))
            # The child leaves the session, as a server's workers may.
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            print("napping", flush=True)
            time.sleep(600)
        """)
    )
    return "napper"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def kept(tmp_path: Path, family: str, program: str, said: list[str]) -> Iterator[Processes]:
    processes = start(family, program, tmp_path, said.append)
    yield processes
    processes.stop()


def start(family: str, program: str, folder: Path, say: Callable[[str], None]) -> Processes:
    return Processes(family, program, [], {**os.environ, "PYTHONPATH": str(folder)}, folder / "logs", say)


def has_ended(process: psutil.Process) -> bool:
    """An orphan may stay in the list of processes for as long as nobody asks how it ended."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def nap() -> tuple[str, str, str]:
    return (sys.executable, "-m", "napper")


def children_of(kept: Processes, name: str) -> list[psutil.Process]:
    return psutil.Process(kept.pid(name)).children()


@pytest.mark.parametrize("warm", [True, False], ids=["forked", "started anew"])
def test_a_process_that_dies_is_told_and_started_again(kept: Processes, said: list[str], warm: bool) -> None:
    command = nap() if warm else (sys.executable, "-u", "-m", "napper")
    kept.start("sleeper", *command)
    assert soon(lambda: children_of(kept, "sleeper"))
    first, orphan = kept.pid("sleeper"), children_of(kept, "sleeper")[0]
    kept.watch()

    os.kill(first, signal.SIGKILL)

    assert soon(lambda: kept.pid("sleeper") != first and psutil.pid_exists(kept.pid("sleeper")))
    assert soon(lambda: has_ended(orphan)), "what it had started would work beside its successor"
    assert said[0].startswith("sleeper was killed by signal 9 and was restarted; its log is ")
    assert kept.failure is None


@pytest.mark.parametrize("warm", [True, False], ids=["forked", "started anew"])
def test_what_processes_make_can_be_read_by_their_user_alone(kept: Processes, tmp_path: Path, warm: bool) -> None:
    command = nap() if warm else (sys.executable, "-u", "-m", "napper")
    kept.start("sleeper", *command)
    assert soon(lambda: children_of(kept, "sleeper"))

    made = psutil.Process(kept.pid("sleeper"))
    status = Path(f"/proc/{made.pid}/status").read_text()
    assert "Umask:\t0077\n" in status
    for log in (tmp_path / "logs").iterdir():
        assert stat.S_IMODE(log.stat().st_mode) == 0o600, log
    assert stat.S_IMODE((tmp_path / "logs").stat().st_mode) == 0o700


def test_a_state_that_others_could_read_is_closed_to_them_by_the_next_start(tmp_path: Path) -> None:
    state = tmp_path / "var"
    state.mkdir(mode=0o755)
    ports = free_ports()
    Stack(state, {**os.environ, **ports}).release()

    assert stat.S_IMODE(state.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["perennial.db", "catalog.db", "mlflow.db", "airflow/airflow.db"])
def test_a_damaged_database_is_told_before_anything_starts(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(os.urandom(100_000))

    with pytest.raises(StackError, match=rf"{name} is damaged: .* restore a backup"):
        Stack(tmp_path, {**os.environ, **free_ports()})


def test_a_process_that_keeps_dying_is_given_up_with_its_last_words(kept: Processes, said: list[str]) -> None:
    kept.start("sleeper", *nap(), "3")
    kept.watch()

    assert soon(lambda: kept.failure)
    assert f"sleeper ended with exit code 3, after {RESTARTS} restarts" in str(kept.failure)
    assert "sleeper.log:\n  cannot nap" in str(kept.failure)
    assert len(said) == RESTARTS


def test_a_process_that_ends_while_the_stack_starts_is_not_waited_for(kept: Processes) -> None:
    kept.start("sleeper", *nap(), "1")

    assert soon(lambda: kept.dead())
    assert "sleeper ended with exit code 1 while starting" in str(kept.dead())


def test_processes_are_started_again_when_their_launcher_was_killed(kept: Processes) -> None:
    kept.start("one", *nap())
    kept.start("two", *nap())
    before = [psutil.Process(kept.pid("one")), psutil.Process(kept.pid("two"))]
    launcher = before[0].parent()
    assert launcher is not None
    kept.watch()

    launcher.kill()

    assert soon(lambda: not {kept.pid("one"), kept.pid("two")} & {process.pid for process in before})
    assert soon(lambda: all(has_ended(process) for process in before))
    assert kept.failure is None


def test_stopping_ends_what_processes_have_started(tmp_path: Path, family: str, program: str) -> None:
    kept = start(family, program, tmp_path, print)
    kept.start("sleeper", *nap())
    kept.start("other", sys.executable, "-c", "import time; time.sleep(600)")
    assert soon(lambda: children_of(kept, "sleeper"))

    kept.stop()

    assert not marked(family)


def test_a_log_is_cut_before_it_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOG_BYTES", 100)
    log = tmp_path / "scheduler.log"
    log.write_bytes(b"x" * 101)

    processes.cut(log)

    assert log.stat().st_size == 0
    assert (tmp_path / "scheduler.log.1").stat().st_size == 101


def test_nothing_outlives_a_stack_that_is_killed(tmp_path: Path, family: str, program: str) -> None:
    script = textwrap.dedent(f"""
        import os, sys, time
        from pathlib import Path
        from perennial.stack.processes import Processes
        kept = Processes({family!r}, "napper", [], os.environ, Path({str(tmp_path / "logs")!r}), print)
        kept.start("sleeper", sys.executable, "-m", "napper")
        time.sleep(600)
    """)
    stack = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert soon(lambda: "napping" in log_of(tmp_path))
    assert marked(family)

    stack.kill()
    stack.wait()

    assert soon(lambda: not marked(family))


def log_of(tmp_path: Path) -> str:
    log = tmp_path / "logs" / "sleeper.log"
    return log.read_text() if log.exists() else ""


def test_what_is_due_within_this_second_has_come_when_sqlite_is_asked() -> None:
    let_sqlite_tell_fractions_of_seconds()
    columns = sa.Column("after", sa.DateTime), sa.Column("made", sa.DateTime, server_default=sa.func.now())
    runs = sa.Table("runs", sa.MetaData(), *columns)
    with sa.create_engine("sqlite://").begin() as connection:
        runs.create(connection)
        for soon in (-0.002, 60):  # seconds; what SQLite says of the time is cut to milliseconds
            connection.execute(sa.insert(runs).values(after=datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=soon)))
        [(after, made)] = connection.execute(sa.select(runs).where(runs.c.after <= sa.func.now())).all()
    assert abs(made - after) < timedelta(seconds=30)


def test_a_launcher_imports_modules_and_calls_functions_ahead() -> None:
    ahead = ["json.tool", "perennial.stack.missing", "perennial.core.private_parts:let_sqlite_tell_fractions_of_seconds"]
    program = f"""
        import sys
        from perennial.stack import launcher
        launcher._import({ahead})
        import sqlalchemy as sa
        print("json.tool" in sys.modules, "%f" in str(sa.func.now().compile(dialect=sa.create_engine("sqlite://").dialect)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
    assert "perennial.stack.missing could not be imported ahead" in done.stderr


def test_what_airflows_processes_share_is_there() -> None:
    airflow = Path((find_spec("airflow") or pytest.fail("Airflow is not installed")).origin or "").parent
    modules = [name.partition(".")[2] for name in IMPORTED_AHEAD if name.startswith("airflow.")]
    files = [airflow / module.replace(".", "/") for module in modules]
    missing = [str(file) for file in files if not (file.with_suffix(".py").exists() or (file / "__init__.py").exists())]
    assert missing == [], "find where Airflow has it now, and name that in IMPORTED_AHEAD"
