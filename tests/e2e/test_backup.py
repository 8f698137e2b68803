"""A backup of the real stack while it works: Airflow's database, MLflow's server and its artifacts among it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.living import MODEL, Living

pytestmark = pytest.mark.stack


def perennial(life: Living, *arguments: str | Path) -> str:
    settings = life.deployment.settings
    done = subprocess.run(
        [Path(sys.executable).with_name("perennial"), *arguments],
        env={**os.environ, "PERENNIAL_STATE": str(settings.state), "PERENNIAL_MODELS": str(settings.models)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_stack_that_works_agrees_with_itself_and_is_backed_up_whole(living: Living, tmp_path: Path) -> None:
    assert "0 problems" in perennial(living, "verify")
    perennial(living, "backup", tmp_path / "backup")
    manifest = json.loads((tmp_path / "backup" / "backup.json").read_text())
    assert list(manifest["databases"]) == ["airflow", "ledger", "catalog", "mlflow"]
    copied = {name.split("  ")[1] for name in (tmp_path / "backup" / "SHA256SUMS").read_text().splitlines()}
    assert "secrets.json" in copied
    record = living.deployment.ledger.version(MODEL, living.deployment.ledger.champion(MODEL) or 0)
    assert record is not None
    for file in record.manifest:
        assert any(name.startswith("models/") and name.endswith(f"/{file}") for name in copied), file
    with sqlite3.connect(tmp_path / "backup" / "databases" / "airflow.db") as airflow:
        runs = airflow.execute("SELECT count(*) FROM dag_run WHERE dag_id = ?", (f"{MODEL}.ingest",)).fetchone()
    assert runs[0] >= 1
