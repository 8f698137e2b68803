"""The secrets of the deployed stack, which lie in ``.env`` beside ``docker-compose.yaml``.

``make secrets`` runs this module with any Python, before anything is installed: it imports nothing but the standard library.
Neighbour: :mod:`perennial.operations.deployed` looks at the secrets again before anything trusts them.
"""

from __future__ import annotations

import base64
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from perennial.core.errors import SettingsError
from perennial.core.files import write_private

#: Fewest characters of a secret; those that :func:`write_secrets` makes have more than 40.
SHORTEST = 16


#: The first Docker Compose that knows ``format: raw`` of ``env_file``. Older ones ignore it, and replace $ in connections.
OLDEST_COMPOSE = (2, 30)


def _token() -> str:
    # Letters and digits only: it becomes part of addresses.
    return secrets.token_hex(24)


def _key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


#: Every secret of the deployment, and what makes one.
SECRETS: dict[str, Callable[[], str]] = {
    "POSTGRES_PASSWORD": _token,
    "AIRFLOW_DB_PASSWORD": _token,
    "MLFLOW_DB_PASSWORD": _token,
    "PERENNIAL_DB_PASSWORD": _token,
    "PERENNIAL_WORKER_DB_PASSWORD": _token,
    "PERENNIAL_READER_DB_PASSWORD": _token,
    "PERENNIAL_SCORER_DB_PASSWORD": _token,
    "PERENNIAL_JUDGE_KEY": _key,
    "REDIS_PASSWORD": _token,
    "REDIS_SCHEDULER_PASSWORD": _token,
    "REDIS_WORKER_PASSWORD": _token,
    "REDIS_TRAINER_PASSWORD": _token,
    "AIRFLOW_FERNET_KEY": _key,
    "AIRFLOW_JWT_SECRET": _token,
    "AIRFLOW_SESSION_KEY": _token,
    "AIRFLOW_ADMIN_PASSWORD": _token,
    "AIRFLOW_WATCHDOG_PASSWORD": _token,
    "AIRFLOW_JUDGE_PASSWORD": _token,
    "MLFLOW_ADMIN_PASSWORD": _token,
    "MLFLOW_JUDGE_PASSWORD": _token,
    "MLFLOW_WORKER_PASSWORD": _token,
    "MLFLOW_SCORER_PASSWORD": _token,
    "MLFLOW_SESSION_KEY": _token,
    "GRAFANA_ADMIN_PASSWORD": _token,
}


def write_secrets(file: Path) -> list[str]:
    """Add the missing secrets to a file, and let only this user read it. Existing secrets stay.

    Args:
        file: ``.env``, beside ``docker-compose.yaml``.

    Returns:
        The names of the secrets that were made.
    """
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    present = set(re.findall(r"(?m)^([A-Z_]+)=.*\S", text))
    made = [name for name in SECRETS if name not in present]
    kept = "".join(line for line in text.splitlines(keepends=True) if line.partition("=")[0] not in made)
    if kept and not kept.endswith("\n"):
        kept += "\n"
    write_private(file, kept + "".join(f"{name}={SECRETS[name]()}\n" for name in made))
    return made


def check_secrets(environment: Mapping[str, str]) -> None:
    """Refuse weak secrets.

    Raises:
        SettingsError: one is short, has few different characters, or is used twice.
    """
    given = {name: environment[name] for name in SECRETS if name in environment}
    weak = [name for name, value in given.items() if len(value) < SHORTEST or len(set(value)) < SHORTEST // 2]
    if weak:
        raise SettingsError(
            f"{', '.join(weak)}: too weak for a secret, which needs at least {SHORTEST} random characters. Remove the "
            "line from .env and run make secrets"
        )
    twice = sorted(name for name, value in given.items() if list(given.values()).count(value) > 1)
    if twice:
        raise SettingsError(f"{', '.join(twice)} are the same, and must differ: remove the lines and run make secrets")


def old_compose() -> str | None:
    """What is wrong with this machine's Docker Compose: None if nothing is, or if there is none."""
    docker = shutil.which("docker")
    if docker is None:
        return None
    command = [docker, "compose", "version", "--short"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    found = re.match(r"v?(\d+)\.(\d+)", asked.stdout)
    if found and (int(found[1]), int(found[2])) >= OLDEST_COMPOSE:
        return None
    oldest = ".".join(map(str, OLDEST_COMPOSE))
    have = f"this is {asked.stdout.strip()}" if found else "docker has no plugin compose here"
    return f"docker-compose.yaml needs Docker Compose {oldest} or newer, and {have}: older ones change passwords that contain $"


def tell(file: Path) -> str:
    """Write the missing secrets. Returns what was done, and what is wrong with this machine's Docker Compose."""
    made = write_secrets(file)
    done = f"{file}: made {', '.join(made)}" if made else f"{file} already has all secrets"
    return "\n".join(filter(None, (done, old_compose())))


if __name__ == "__main__":
    sys.stdout.write(tell(Path(sys.argv[1])) + "\n")
