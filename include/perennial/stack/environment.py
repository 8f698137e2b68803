"""How the embedded stack is configured: by environment variables alone, all of them made here.

Neighbours: :mod:`perennial.stack.embedded` starts processes with them; ``.env.example`` lists those a person may set.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from perennial.core.errors import StackError
from perennial.core.files import write_private
from perennial.core.settings import PROJECT, TRUSTED_TYPES, Settings, read_settings

HOST = "127.0.0.1"

#: What watches tasks. This package may not import it, so it names the class.
COORDINATOR = "perennial.orchestration.coordinator.PromptCoordinator"
#: The queues of all tasks: those of :mod:`perennial.orchestration.dags`, and Airflow's default.
QUEUES = ("default", "light", "score", "train")


@dataclass(frozen=True)
class Ports:
    """Where the servers listen, on this machine alone.

    Attributes:
        airflow: UI and REST API.
        mlflow: UI and tracking.
        metrics: the watchdog's figures for Prometheus.
        scorer: predictions online.
        execution: the API for tasks alone; any free port.
    """

    airflow: int
    mlflow: int
    metrics: int
    scorer: int
    execution: int


def choose_ports(environment: Mapping[str, str]) -> Ports:
    """The ports that the environment names, checked to be free.

    Raises:
        StackError: a port is no number, is given twice, or is taken; the message names its variable.
    """
    wanted = {"PERENNIAL_AIRFLOW_PORT": ("Airflow", 8080), "PERENNIAL_MLFLOW_PORT": ("MLflow", 5000)}
    wanted["PERENNIAL_WATCH_PORT"] = ("the watchdog", 9464)
    wanted["PERENNIAL_SERVE_PORT"] = ("the scorer", 8090)
    chosen: dict[int, str] = {}
    for variable, (server, default) in wanted.items():
        port = _choose(server, environment, variable, default)
        if port in chosen:
            raise StackError(f"{chosen[port]} and {variable} are both {port}; choose different ports")
        chosen[port] = variable
    airflow, mlflow, metrics, scorer = chosen
    return Ports(airflow=airflow, mlflow=mlflow, metrics=metrics, scorer=scorer, execution=_free_port())


def _choose(server: str, environment: Mapping[str, str], variable: str, default: int) -> int:
    text = environment.get(variable) or str(default)
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text) < 65536:
        raise StackError(f"{variable} is {text!r}; write a port number, such as {default}")
    if not _is_free(int(text)):
        raise StackError(
            f"another program uses port {text}, which {server} needs; stop it, or choose another port "
            f"with the environment variable {variable}, such as {variable}={_free_port()}"
        )
    return int(text)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # A port whose last connections are still closing is free for a server, which binds it in this way too.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Secrets:
    """Secrets of the stack, unchanged from start to start.

    Attributes:
        admin_password: of the user ``admin`` in Airflow.
        fernet_key: encrypts connections in Airflow's database; another key could not read them.
        jwt_secret: signs the tokens of tasks and of the REST API.
        session_key: signs the UI's sessions.
    """

    admin_password: str
    fernet_key: str
    jwt_secret: str
    session_key: str


def keep_secrets(state: Path) -> Secrets:
    """The secrets in ``state``, which are made at the first start and are readable by this user alone.

    Raises:
        StackError: the file is there but does not hold them.
    """
    file = state / "secrets.json"
    if not file.exists():
        made = Secrets(
            admin_password=secrets.token_urlsafe(12),
            fernet_key=base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            jwt_secret=secrets.token_hex(32),
            session_key=secrets.token_hex(32),
        )
        write_private(file, json.dumps(asdict(made), indent=2))
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Secrets(**{field.name: str(found[field.name]) for field in fields(Secrets)})
    except (ValueError, TypeError, KeyError) as error:
        raise StackError(
            f"{file} does not contain the stack's secrets; restore it, or remove both it and {state / 'airflow'}, "
            "whose connections it encrypts"
        ) from error


def passwords_file(settings: Settings) -> Path:
    """The file with the passwords of Airflow's simple sign-in."""
    return settings.state / "airflow" / "passwords.json"


def embedded_settings(state: Path, ports: Ports, given: Mapping[str, str]) -> Settings:
    """The settings of a stack that keeps everything below ``state``, unless ``given`` says otherwise.

    MLflow is always the stack's own: an address that was left in a shell must not receive these models.
    """
    own = {
        "PERENNIAL_STATE": str(state),
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{ports.mlflow}",
        "PERENNIAL_MLFLOW_PUBLIC_URL": f"http://{HOST}:{ports.mlflow}",
        "PERENNIAL_AIRFLOW_PUBLIC_URL": f"http://{HOST}:{ports.airflow}",
    }
    workers = _workers()
    # One worker always remains for what is due now, and a range uses no more workers than there are cores.
    shares = {
        "PERENNIAL_TRAIN_SLOTS": str(workers - 1),
        "PERENNIAL_LOAD_SLOTS": str(workers - 1),
        "PERENNIAL_PARTS_AT_ONCE": str(workers - 2),
    }
    return read_settings({**shares, **given, **own})


def _workers() -> int:
    """Tasks at once: two more than cores, since a task waits for its servers at its beginning and its end."""
    return max(3, min(8, (os.cpu_count() or 2) + 2))


def environment(
    settings: Settings,
    ports: Ports,
    kept: Secrets,
    *,
    dags: Path = PROJECT / "dags",
    plugins: Path = PROJECT / "plugins",
    parse_every: int | None = None,
    inherited: Mapping[str, str],
) -> dict[str, str]:
    """The environment of the stack's processes.

    Args:
        settings: where this deployment keeps things.
        ports: where the servers listen.
        kept: the stack's secrets.
        dags: folder of DAG files.
        plugins: folder of Airflow plugins.
        parse_every: seconds after which a DAG file is read again; by default 30, or one second per model if there are more
            than 30, so that reading takes a tenth of a core.
        inherited: the environment below it. The stack's own variables replace those there.
    """
    airflow = settings.state / "airflow"
    parallelism = _workers()
    if parse_every is None:
        parse_every = max(30, sum(1 for _ in settings.models.glob("*/model.yaml")))
    own = {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), inherited.get("PATH", os.defpath))),
        "NO_PROXY": ",".join(filter(None, (inherited.get("NO_PROXY"), HOST, "localhost"))),
        "PYTHONUNBUFFERED": "1",
        "GIT_PYTHON_REFRESH": "quiet",
        "MPLBACKEND": "Agg",
        # By default, OpenMP's waiting threads spin, and take the cores from other tasks: a fit of 2 s took 50 s.
        "OMP_WAIT_POLICY": "PASSIVE",
        # One process for all tasks of this stack is ready to start confined ones.
        "PERENNIAL_NURSERY": "keep",
        # Tasks are forked from a process whose libraries must not have started threads.
        "OPENBLAS_NUM_THREADS": "1",
        # With more threads than cores, tasks that run concurrently slow each other down: a fit took minutes, not seconds.
        "OMP_NUM_THREADS": inherited.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // parallelism))),
        **_deployment(settings),
        **_silence(),
        "AIRFLOW_HOME": str(airflow),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(plugins),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__FERNET_KEY": kept.fernet_key,
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": str(parallelism),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{HOST}:{ports.execution}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,watchdog:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords_file(settings)),
        # Finding the full name of the machine may take a name server seconds, in every task.
        "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{airflow / 'airflow.db'}",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(airflow / "logs"),
        # Airflow sets the modes of task logs itself, whatever umask says.
        "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FOLDER_PERMISSIONS": "0o700",
        "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FILE_PERMISSIONS": "0o600",
        "AIRFLOW__API__HOST": HOST,
        "AIRFLOW__API__PORT": str(ports.airflow),
        "AIRFLOW__API__BASE_URL": f"http://{HOST}:{ports.airflow}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": kept.session_key,
        "AIRFLOW__API_AUTH__JWT_SECRET": kept.jwt_secret,
        # Workers are forked from the scheduler, which has imported what tasks need.
        "AIRFLOW__SCHEDULER__MP_START_METHOD": "fork",
        # A worker that misses the end of its task looks again after this long: one second, not five. Where the coordinator
        # below is told of the end, it misses none.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW__SDK__COORDINATORS": json.dumps({"prompt": {"classpath": COORDINATOR}}),
        "AIRFLOW__SDK__QUEUE_TO_COORDINATOR": json.dumps(dict.fromkeys(QUEUES, "prompt")),
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        # Tasks of a killed scheduler are restarted within 40 s, not within 5 minutes.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
        # A killed task is noticed after one minute, not after five.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": str(parse_every),
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": str(parse_every),
    }
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "no_proxy"}
    return {**{name: value for name, value in inherited.items() if name not in dropped}, **own}


def _deployment(settings: Settings) -> dict[str, str]:
    """The variables from which :func:`perennial.core.settings.read_settings` makes these settings."""
    return {
        "PERENNIAL_MODELS": str(settings.models),
        "PERENNIAL_STATE": str(settings.state),
        "PERENNIAL_DATA": str(settings.data),
        "PERENNIAL_DATABASE_URL": settings.database_url,
        "PERENNIAL_CATALOG_URL": settings.catalog_url,
        "PERENNIAL_WAREHOUSE": settings.warehouse,
        "PERENNIAL_PREDICTIONS_URL": settings.predictions_url,
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
        "PERENNIAL_MLFLOW_PUBLIC_URL": settings.mlflow_public_url or "",
        "PERENNIAL_AIRFLOW_PUBLIC_URL": settings.airflow_public_url or "",
        "PERENNIAL_TRAIN_SLOTS": str(settings.train_slots or ""),
        "PERENNIAL_LOAD_SLOTS": str(settings.load_slots or ""),
        "PERENNIAL_PARTS_AT_ONCE": str(settings.parts_at_once),
        # Empty means none; unset means what the folders name.
        **({} if settings.trusted_types is None else {TRUSTED_TYPES: ",".join(settings.trusted_types)}),
    }


def _silence() -> dict[str, str]:
    """No dependency reports its use."""
    return {
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
