"""A model's folder is read as a whole: every problem of each of its files, and digests of what it means."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from perennial.core.errors import SpecError
from perennial.core.settings import PROJECT
from perennial.spec.folder import read_model, read_models
from perennial.spec.monitoring import DriftThresholds, NetThresholds, Threshold
from tests.unit.spec.late import GOOD, changed, read, write


def test_two_models_cannot_share_a_name(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    other = write(tmp_path, GOOD, name="later")

    good, broken = read_models(tmp_path)

    assert list(good) == ["late"]
    assert {name: str(error) for name, error in broken.items()} == {
        "later": f"{other}/model.yaml:1: name: is late, but the folder is later; make them the same"
    }


def test_a_broken_model_leaves_the_others_to_be_read(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    write(tmp_path, "- broken", name="broken")

    good, broken = read_models(tmp_path)

    assert list(good) == ["late"]
    assert list(broken) == ["broken"]


def test_features_need_their_sql(tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD)
    (folder / "features.sql").unlink()

    with pytest.raises(SpecError, match=r"features\.sql: missing; write a SELECT that gives distance for each entity"):
        read_model(folder)


def test_digests_follow_the_meaning_alone(tmp_path: Path) -> None:
    plain = read(tmp_path / "plain", GOOD)
    commented = read(tmp_path / "commented", "# why\n" + GOOD.replace("{type: string}", "{ 'type': 'string' }"))
    stricter = read(tmp_path / "stricter", changed("0.6", "0.7"))

    assert commented.digest == plain.digest
    assert stricter.digest != plain.digest
    assert stricter.features_digest == plain.features_digest


def test_the_example_names_the_schema_that_is_there() -> None:
    for file in (PROJECT / "include" / "models").glob("*/model.yaml"):
        first = file.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# yaml-language-server: $schema="), file
        assert (file.parent / first.partition("$schema=")[2]).is_file()
        read_model(file.parent)


def test_reading_a_spec_imports_nothing_heavy() -> None:
    heavy = ["pandas", "numpy", "pyarrow", "duckdb", "pyiceberg", "sklearn", "mlflow", "great_expectations", "evidently"]
    heavy += ["sqlalchemy", "airflow"]
    code = f"import perennial.spec, sys; print(*[name for name in {heavy} if name in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.split() == []


def test_every_problem_of_every_file_is_reported(tmp_path: Path) -> None:
    folder = write(tmp_path, changed("owner: operations", "owner: 3").replace("table: trips, sql", "table: trip, sql"))
    (folder / "features.sql").write_bytes(b"\xff")
    (folder / "model.py").write_text("def (")
    (folder / "drift.yaml").write_text("columns: {")

    with pytest.raises(SpecError) as raised:
        read_model(folder)

    assert str(raised.value).replace(f"{folder}/", "").splitlines() == [
        "model.yaml:2: owner: must be a text, this is 3; put it in quotes",
        "model.yaml:20: label.table: no table is named trip; there are trips",
        "features.sql: not UTF-8 at byte 0",
        "model.py:1: not Python: invalid syntax",
        "drift.yaml:2: not YAML: did not find expected node content",
    ]


def test_a_spec_that_is_no_yaml_hides_no_problem_of_the_other_files(tmp_path: Path) -> None:
    folder = write(tmp_path, "name: [", code="def (")
    (folder / "features.sql").unlink()

    with pytest.raises(SpecError) as raised:
        read_model(folder)

    assert [line.split(":")[0] for line in str(raised.value).replace(f"{folder}/", "").splitlines()] == [
        "model.yaml",
        "features.sql",
        "model.py",
    ]


def test_thresholds_of_refreshes_come_from_model_yaml_then_from_calibration(tmp_path: Path) -> None:
    folder = read_model(write(tmp_path, changed("gates:\n", "gates:\n  refresh: {agreement: 0.8}\n")))
    thresholds = DriftThresholds(
        computed_at="2013-04-01T00:00:00Z", history="2013-01-01--2013-04-01", window="week", replays=200, seed=1,
        false_alarms=1.0, expected=1.0, columns={"distance": Threshold(distance=1.0, missing=0.1)},
        refresh=NetThresholds(agreement=0.6, skill=0.3, refreshes=9),
    )  # fmt: skip
    calibrated = folder.model_copy(update={"thresholds": thresholds}).gates.refresh
    assert (calibrated.agreement, calibrated.skill) == (0.8, 0.3)
    assert folder.gates.refresh.skill is None
