"""The example on Spark predicts what ``perennial score`` predicts, to the last bit, and publishes it by the same rules.

PySpark has 450 MB and is no dependency of ours: it is installed beside, for these tests, which takes minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from perennial.cli import by_hand
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT, read_settings
from perennial.deployment import Deployment
from tests.conftest import _without

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.rare]

MODEL = "energy_load"
PYSPARK = "pyspark==4.0.1"
DAYS = Interval.of("2024-01-17", "2024-01-20")
#: What a prediction says; the rest says when and by which run it was made.
SAID = ["meter", "hour", "as_of", "prediction", "version", "features_snapshot"]


@pytest.fixture(scope="module")
def pyspark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("java") is None:
        _without("Java")
    target = tmp_path_factory.mktemp("pyspark")
    subprocess.run([sys.executable, "-m", "uv", "pip", "install", "-q", "--target", str(target), PYSPARK], check=True)
    return target


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A deployment in which version 1 of the model is champion and has scored some days."""
    state = tmp_path_factory.mktemp("spark")
    given = {"PERENNIAL_STATE": str(state), "PERENNIAL_MODELS": str(PROJECT / "tests" / "models")}
    settings = read_settings(given)
    by_hand.ingest(settings, MODEL, Interval.of("2024-01-01", "2024-01-20"))
    assert "is champion" in by_hand.train(settings, MODEL, Interval.day("2024-01-17").start)
    by_hand.score(settings, MODEL, DAYS)
    return given


def on_spark(given: dict[str, str], pyspark: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PERENNIAL", "MLFLOW"))},
        **given,
        "PYTHONPATH": str(pyspark),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": "--master local[2] --conf spark.ui.enabled=false pyspark-shell",
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    program = [sys.executable, str(PROJECT / "examples" / "spark" / "score.py"), MODEL, "2024-01-17", "2024-01-20"]
    return subprocess.run(program, env=environment, capture_output=True, text=True)


def published(given: dict[str, str]) -> tuple[str, pa.Table]:
    """The run that published last, and what readers read."""
    parts = Deployment(read_settings(given))
    newest = parts.ledger.published(MODEL, "predictions")
    assert newest is not None
    rows = parts.lake.scan(MODEL, "predictions", newest.snapshots["predictions"], interval=DAYS).read_all()
    return newest.run_id, rows.sort_by([("hour", "ascending"), ("meter", "ascending")])


def test_spark_predicts_what_perennial_predicts_and_publishes_it_as_one(given: dict[str, str], pyspark: Path) -> None:
    by_hand_run, expected = published(given)

    done = on_spark(given, pyspark)

    assert done.returncode == 0, done.stderr
    run, rows = published(given)
    assert run.startswith("spark-")
    assert run != by_hand_run
    assert rows.num_rows == 3 * 24 * 5
    assert rows.select(SAID).equals(expected.select(SAID))
    assert set(rows["run_id"].to_pylist()) == {run}
    assert not list((Path(given["PERENNIAL_STATE"]) / "staging" / MODEL).glob("spark-*"))


def test_spark_predicts_nothing_with_a_model_that_was_changed(given: dict[str, str], pyspark: Path) -> None:
    before = published(given)
    for model in Path(given["PERENNIAL_STATE"]).rglob("model.skops"):
        model.write_bytes(model.read_bytes() + b"\0")

    done = on_spark(given, pyspark)

    assert done.returncode != 0
    assert "VersionUnusable" in done.stderr
    run, rows = published(given)
    assert (run, rows) == before
