"""Beside a stopped stack, stored files are read where its server keeps them; what needs the server says what to start."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from perennial.cli.by_hand import score
from perennial.core.errors import ArtifactRejected, VersionUnusable
from perennial.core.intervals import Interval
from perennial.core.settings import Settings, read_settings
from perennial.deployment import Deployment
from perennial.ledger.store import Ledger
from perennial.registry.server import unanswered
from tests.project.test_old_state import COMMIT, environment
from tests.states.unpack import unpack

DAY = Interval.day("2024-01-28")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """What a stack that has stopped leaves: files below ``mlartifacts``, addresses ``mlflow-artifacts:``."""
    place = tmp_path_factory.mktemp("stopped")
    unpack(COMMIT, place)
    found = read_settings(environment(place))
    Ledger(found.database_url).migrate()
    kept = found.state / "mlflow-artifacts"
    with sqlite3.connect(found.state / "mlflow.db") as connection:
        for table, column in [
            ("experiments", "artifact_location"), ("logged_models", "artifact_location"), ("runs", "artifact_uri"),
            ("model_versions", "source"), ("model_versions", "storage_location"),
        ]:  # fmt: skip
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (kept.as_uri(), "mlflow-artifacts:"))
    connection.close()
    kept.rename(found.state / "mlartifacts")
    return found


def test_a_day_is_scored_by_hand_beside_a_stopped_stack(stopped: Settings) -> None:
    assert "predictions by version 2" in score(stopped, "shop", DAY)


def test_the_files_are_compared_with_the_manifest_there_too(stopped: Settings) -> None:
    [*_, record] = [one for one in Deployment(stopped).ledger.versions("shop") if one.version == 1]
    [file] = (stopped.state / "mlartifacts").rglob(f"{record.served.model_id}/artifacts/model.skops")
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(VersionUnusable, match=r"model\.skops has SHA-256"):
        Deployment(stopped).registry.load("shop", 1)


def test_without_the_servers_files_it_is_told_what_to_start(stopped: Settings, tmp_path: Path) -> None:
    elsewhere = stopped.model_copy(update={"state": tmp_path})
    with pytest.raises(ArtifactRejected, match=r"start the stack of .* with `make up`, or set MLFLOW_TRACKING_URI"):
        Deployment(elsewhere).registry.load("shop", 2)


def test_what_writes_files_tells_to_start_the_server_and_not_of_schemes(stopped: Settings, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    with pytest.raises(MlflowException) as raised, Deployment(stopped).registry.open_run("shop", "mine", {}) as run:
        run.log_files(tmp_path)
    told = unanswered(raised.value, stopped)
    assert told is not None
    assert "start the stack" in told
    assert "scheme" not in told
