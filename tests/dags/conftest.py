from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from perennial.core.settings import PROJECT

EXAMPLE = PROJECT / "include" / "models" / "flight_delay"


def parse(dags: Path, models: Path, home: Path, given: dict[str, str] | None = None) -> dict[str, Any]:
    """What Airflow makes of a DAG folder, parsed in a fresh process with an Airflow home of its own."""
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PERENNIAL_MODELS": str(models),
        "PERENNIAL_STATE": str(home / "var"),
        **(given or {}),
    }
    program = [sys.executable, str(Path(__file__).with_name("describe.py")), str(dags)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="session")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The project's own DAG folder and models, parsed."""
    return parse(PROJECT / "dags", PROJECT / "include" / "models", tmp_path_factory.mktemp("airflow"))


class Airflow:
    """Airflow's dag-processor, scheduler and API, driven a step at a time (``process.py`` has the steps).

    Args:
        home: Airflow's home, which is made.
        models: the model folders.
        files: names of the DAG files; all by default.
        given: more of the environment.
    """

    def __init__(self, home: Path, models: Path, files: Sequence[str] = (), given: dict[str, str] | None = None) -> None:
        home.mkdir()
        dags = home / "dags" if files else PROJECT / "dags"
        for file in files:
            dags.mkdir(exist_ok=True)
            shutil.copy(PROJECT / "dags" / file, dags)
        environment = {
            **os.environ,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
            "AIRFLOW__API_AUTH__JWT_SECRET": "s" * 64,
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
            # What a file has no longer is stale at once.
            "AIRFLOW__DAG_PROCESSOR__STALE_DAG_THRESHOLD": "0",
            "AIRFLOW__SCHEDULER__PARSING_CLEANUP_INTERVAL": "0",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "0",
            "PERENNIAL_MODELS": str(models),
            "PERENNIAL_STATE": str(home / "var"),
            **(given or {}),
        }
        (home / "passwords.json").write_text('{"admin": "admin"}')
        self._said = (home / "said").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("process.py"))],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def __call__(self, *command: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(">"):
                return json.loads(line[1:])
        self._said.seek(0)
        raise AssertionError(self._said.read()[-5000:])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()


def add_model(models: Path, name: str, schedules: str | None = None) -> Path:
    """Add a model like the example, of another name and with other schedules; returns its ``model.yaml``."""
    shutil.copytree(EXAMPLE, models / name)
    spec = models / name / "model.yaml"
    text = spec.read_text().replace("name: flight_delay", f"name: {name}")
    if schedules is not None:
        text = re.sub(r"^schedules:.*\n(?:[ \t]+.*\n)*", f"{schedules}\n", text, flags=re.MULTILINE)
    spec.write_text(text)
    return spec


def trigger_dags(home: Path, requests: list[dict[str, Any]], given: dict[str, str] | None = None) -> tuple[list[Any], str]:
    """What came of requests to the project's DAGs, in one process, and what was logged; see ``trigger.py``.

    A judge rules beside it.

    Args:
        home: Airflow's home. The models are in its folder ``models``, the state in ``var``.
        requests: in order.
        given: more of the environment.
    """
    (home / "passwords.json").write_text('{"admin": "admin"}')
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PERENNIAL_"))},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__API__SECRET_KEY": "s" * 32,
        "AIRFLOW__API_AUTH__JWT_SECRET": "j" * 64,
        "PERENNIAL_MODELS": str(home / "models"),
        "PERENNIAL_STATE": str(home / "var"),
        **(given or {}),
    }
    command = [sys.executable, "-m", "perennial.cli", "judge"]
    with (home / "judge.log").open("wb") as log_of_judge:
        judge = subprocess.Popen(command, env=environment, stdout=log_of_judge, stderr=log_of_judge)
        try:
            done = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("trigger.py"))],
                env=environment, input=json.dumps(requests), capture_output=True, text=True, check=False,
            )  # fmt: skip
        finally:
            judge.terminate()
            judge.wait(timeout=60)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    *log, answers = done.stdout.splitlines()
    return json.loads(answers), "\n".join([*log, done.stderr])
