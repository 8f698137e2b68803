from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perennial.core.settings import PROJECT


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
