"""The services of ``docker-compose.yaml`` as processes of this machine: the same commands, the same environment.

What a container engine would do is done here by substitution: names of services become ports of 127.0.0.1, volumes become
folders. Everything else is read from the file itself, so that what is tested cannot drift from what is deployed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from perennial.core.settings import PROJECT

COMPOSE = PROJECT / "docker-compose.yaml"

#: Where the services listen inside their containers.
_LISTENERS = (
    "postgres:5432", "redis:6379", "execution:8081", "mlflow:5000", "api:8080", "watch:9464", "proxy:8443", "proxy:8079",
)  # fmt: skip
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?P<rule>:\?|:-|:\+)?(?P<text>[^{}]*)\}")
_PATIENCE = 240


def read_compose(environment: Mapping[str, str], file: Path = COMPOSE) -> dict[str, Any]:
    """The file as compose understands it: variables filled in, merges resolved.

    Raises:
        KeyError: a variable that is demanded (``${NAME:?…}``) is not set, or blank.
    """

    def fill(match: re.Match[str]) -> str:
        value = environment.get(match["name"], "")
        if not value and match["rule"] == ":?":
            raise KeyError(f"{match['name']}: {match['text']}")
        if match["rule"] == ":+":
            return match["text"] if value else ""
        return value or (match["text"] if match["rule"] == ":-" else "")

    def expand(text: str) -> str:
        # The default of a variable may hold another one.
        while (filled := _VARIABLE.sub(fill, text)) != text:
            text = filled
        return text.replace("$$", "$")

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolve(part) for key, part in value.items()}
        if isinstance(value, list):
            return [resolve(part) for part in value]
        return expand(value) if isinstance(value, str) else value

    found = {key: resolve(part) for key, part in yaml.safe_load(file.read_text(encoding="utf-8")).items()}
    for service in found["services"].values():
        # A variable without a value is passed on, if it is set.
        given = {name: environment.get(name) if value is None else value for name, value in service["environment"].items()}
        service["environment"] = {name: value for name, value in given.items() if value is not None}
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def redis_command(command: list[str], port: int, folder: Path) -> list[str]:
    """The command of the service ``redis``, on a port of this machine alone and with its files in a folder."""
    assert shutil.which("redis-server") is not None
    private = f"port {port}\nbind 127.0.0.1\nrequirepass"
    return [*command[:-1], command[-1].replace("/data", str(folder)).replace("requirepass", private)]


@dataclass
class Composed:
    """A deployment that is being run.

    Attributes:
        folder: what it keeps, and a log for each service.
        secrets: what ``make secrets`` wrote.
        services: of the file, with this machine's addresses and folders.
        ports: by ``service:port`` of the file.
    """

    folder: Path
    secrets: dict[str, str]
    services: dict[str, Any]
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def airflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['api:8080']}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow:5000']}"

    def environment(self, service: str) -> dict[str, str]:
        """What the service's process sees: what the file says, and where this machine has its programs."""
        given = {name: str(value) for name, value in self.services[service]["environment"].items()}
        for file in self.services[service].get("env_file", []):
            if Path(file["path"]).exists():
                lines = Path(file["path"]).read_text().splitlines()
                given |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}:/usr/sbin",
            "HOME": str(self.folder),
            "NO_PROXY": "127.0.0.1",
            "TMPDIR": str(self.folder / "tmp"),
            **given,
        }

    def log(self, service: str) -> Path:
        return self.folder / f"{service}.log"

    def run(self, service: str) -> int:
        """Start a service that ends after its work, and wait for its end. Returns its exit code."""
        return self.start(service).wait(timeout=_PATIENCE)

    def start(self, service: str) -> subprocess.Popen[bytes]:
        # Should the tests be killed, the stack goes with them.
        leash = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        command = [*leash, *(str(part) for part in self.services[service]["command"])]
        with self.log(service).open("ab") as log:
            self.processes[service] = subprocess.Popen(
                command, env=self.environment(service), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip
        return self.processes[service]

    def wait_until_healthy(self, service: str) -> None:
        """Ask as the file's health check does."""
        _, *command = self.services[service]["healthcheck"]["test"]
        deadline = time.monotonic() + _PATIENCE
        while subprocess.run(command, env=self.environment(service), capture_output=True, check=False).returncode:
            process = self.processes[service]
            assert process.poll() is None, f"{service} ended with {process.returncode}:\n{self.last_words(service)}"
            assert time.monotonic() < deadline, f"{service} does not answer:\n{self.last_words(service)}"
            time.sleep(0.5)

    def check(self) -> None:
        """Raise when a service has ended."""
        for service, process in self.processes.items():
            assert process.poll() in (None, 0), f"{service} ended with {process.returncode}:\n{self.last_words(service)}"

    def last_words(self, service: str) -> str:
        return "\n".join(self.log(service).read_text(errors="replace").splitlines()[-30:])

    def stop(self) -> None:
        """End all and what they started; what others lean on, last."""
        processes = list(reversed(self.processes.items()))
        families = [child for _, process in processes for child in _children(process.pid)]
        for lasts in (False, True):
            ending = [process for name, process in processes if (name == "redis") is lasts]
            for process in ending:
                process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 20
            for process in ending:
                try:
                    process.wait(timeout=max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for child in families:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextmanager
def compose(
    folder: Path, models: Path, *, postgres_port: int, postgres_password: str, chosen: Mapping[str, str]
) -> Iterator[Composed]:
    """The deployment, with Redis started; PostgreSQL is there already, since it must not run as root.

    Args:
        folder: an empty folder for all that it keeps.
        models: folder of model folders.
        postgres_port, postgres_password: of the server, and of its user ``postgres``.
        chosen: variables of ``.env`` beside the secrets.
    """
    env_file = folder / ".env"
    subprocess.run(
        [sys.executable, "-m", "perennial.cli", "deploy", "secrets", str(env_file)], check=True, stdout=subprocess.DEVNULL
    )
    written = dict(line.split("=", 1) for line in env_file.read_text().splitlines())
    given = {**written, "POSTGRES_PASSWORD": postgres_password, **chosen}
    ports = {name: free_port() for name in _LISTENERS} | {"postgres:5432": postgres_port}
    if "PERENNIAL_PUBLIC_PORT" in chosen:
        ports["proxy:8443"] = int(chosen["PERENNIAL_PUBLIC_PORT"])
    folders = {
        "/opt/perennial/include/models": models,
        "/opt/perennial": PROJECT,
        "/opt/airflow": folder / "airflow",
        "/var/lib/perennial": folder / "state",
        "/var/lib/mlflow": folder / "mlflow",
        "/var/log/airflow": folder / "logs",
        "/tmp/": folder / "tmp",
        "/data": folder / "data",
        "/scratch": folder / "scratch",
        "/tls": folder / "tls",
    }
    for path in folders.values():
        path.mkdir(parents=True, exist_ok=True)

    def translate(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: translate(part) for key, part in value.items()}
        if isinstance(value, list):
            return [translate(part) for part in value]
        text = str(value)
        for name, port in ports.items():
            service, inner = name.split(":")
            text = re.sub(rf"\b(?:{service}|127\.0\.0\.1):{inner}\b", f"127.0.0.1:{port}", text)
            if text == inner:
                text = str(port)
        text = text.replace("0.0.0.0", "127.0.0.1")
        for inside, here in folders.items():
            if text.startswith(inside):
                return str(here / text.removeprefix(inside).lstrip("/"))
        return text

    services = {
        name: {
            **service,
            "command": translate(service.get("command", [])),
            "environment": translate(service["environment"]),
            "healthcheck": translate(service.get("healthcheck", {})),
        }
        for name, service in read_compose(given)["services"].items()
    }
    composed = Composed(folder, written, services, ports)
    try:
        services["redis"]["command"] = redis_command(services["redis"]["command"], ports["redis:6379"], folder)
        composed.start("redis")
        yield composed
    finally:
        composed.stop()
