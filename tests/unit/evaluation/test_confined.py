"""The code of a model's authors runs in a process that can do nothing but compute."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from perennial.core.errors import ScoringError, SpecError, TrainingError
from perennial.evaluation.confined import Confinement
from perennial.model import artifacts
from perennial.model.authors_code import running_in
from perennial.model.costs import cost_function
from perennial.model.estimators import fit_estimator
from perennial.spec.folder import ModelFolder
from tests.unit import synthetic

TRUTH, PREDICTED = np.array([True, False, True]), np.array([0.9, 0.2, 0.4])


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file and a variable of the process that decides."""
    monkeypatch.setenv("PERENNIAL_DATABASE_URL", "postgresql+psycopg2://perennial:hunter2hunter2@db/perennial")
    file = tmp_path / "state" / "ledger.db"
    file.parent.mkdir()
    file.write_text("who is champion")
    return file


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def with_cost(tmp_path: Path, body: str) -> ModelFolder:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    code = f"import numpy as np\n\n\ndef cost(truth, predicted):\n{lines}"
    return synthetic.write_folder(
        tmp_path / "models", code=code, cost="gates: {min_rows: 50} => gates: {min_rows: 50}\ncost: {function: 'model:cost'}"
    )


def asked(folder: ModelFolder) -> list[float]:
    """What a cost function gives in a confined process."""
    with Confinement() as place, running_in(place):
        cost = cost_function(folder)
        assert cost is not None
        return [float(value) for value in cost(TRUTH, PREDICTED)]


def test_an_honest_function_gives_the_same_numbers_as_here(tmp_path: Path) -> None:
    folder = with_cost(tmp_path, "return np.where(truth, 3 * (1 - predicted), predicted)")
    cost = cost_function(folder)
    assert cost is not None
    assert asked(folder) == cost(TRUTH, PREDICTED).tolist()


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param("import os\nraise ValueError(os.environ['PERENNIAL_DATABASE_URL'])", id="secrets of the environment"),
        pytest.param("raise ValueError(open('{file}').read())", id="files of the state"),
        pytest.param("open('{file}', 'w').write('mine')\nreturn np.zeros(3)", id="writing a file"),
        pytest.param("open('{folder}/new', 'w').write('mine')\nreturn np.zeros(3)", id="making a file"),
        pytest.param("import os\nraise ValueError(open('/proc/{pid}/environ').read())", id="the process that decides"),
        pytest.param("import os\nos.kill({pid}, 0)\nreturn np.zeros(3)", id="signals to the process that decides"),
        pytest.param("import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nreturn np.zeros(3)", id="the network"),
        pytest.param("return np.zeros(1 << 34, dtype=np.uint8)", id="memory"),
        pytest.param("import os\nos.kill(os.getpid(), 9)", id="its own end"),
        pytest.param("return ['free', 'of', 'charge']", id="something else than numbers"),
        pytest.param("return [0.0]", id="too few numbers"),
    ],
)
def test_an_attack_ends_in_a_sentence(tmp_path: Path, secret: Path, listening: int, attack: str) -> None:
    values = {"{file}": str(secret), "{folder}": str(secret.parent), "{pid}": str(os.getpid()), "{port}": str(listening)}
    for name, value in values.items():
        attack = attack.replace(name, value)
    with pytest.raises(SpecError) as told:
        asked(with_cost(tmp_path, attack))
    assert "hunter2" not in str(told.value)
    assert "champion" not in str(told.value)
    assert secret.read_text() == "who is champion"
    assert list(secret.parent.iterdir()) == [secret]


def test_a_function_that_never_ends_is_ended(tmp_path: Path) -> None:
    cost = cost_function(with_cost(tmp_path, "while True: pass"))
    assert cost is not None
    with (
        Confinement(patience=1) as place,
        running_in(place),
        pytest.raises(SpecError, match="has not answered within 1 seconds"),
    ):
        cost(TRUTH, PREDICTED)


def test_no_process_outlives_its_caller(tmp_path: Path) -> None:
    sleeps = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    folder = with_cost(tmp_path, f"import subprocess, sys\nsubprocess.Popen({sleeps})\nreturn np.zeros(3)")
    asked(folder)
    assert not [one for one in psutil.process_iter(["cmdline"]) if "time.sleep(600)" in " ".join(one.info["cmdline"] or [])]


def test_a_fit_and_its_predictions_are_those_of_this_process_to_the_last_bit(tmp_path: Path) -> None:
    folder = synthetic.write_folder(tmp_path / "models")
    rows = synthetic.make_rows(3)
    takes = artifacts.FeatureList.of(folder.spec)
    frame = rows[takes.names].astype(dict.fromkeys(takes.numeric, "float64"))
    frame.loc[::7, takes.numeric[0]] = np.nan
    truth = (rows["y"] > rows["y"].median()).to_numpy()
    name = next(name for name, candidate in folder.spec.candidates.items() if not candidate.baseline)
    here = artifacts.predict(folder.spec.task, fit_estimator(folder, name, {}, frame, truth), frame)
    with Confinement() as place, running_in(place):
        there = artifacts.predict(folder.spec.task, fit_estimator(folder, name, {}, frame, truth), frame)
    assert here.digest == there.digest


@pytest.mark.parametrize(
    "gives", ["np.full((len(frame), 2), 1.0)", "np.full((len(frame), 2), [1.7, -0.7])", "np.full((len(frame), 3), 1 / 3)"]
)
def test_numbers_that_are_no_probabilities_are_refused(tmp_path: Path, gives: str) -> None:
    code = f"""
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin


class Boaster(ClassifierMixin, BaseEstimator):
    def fit(self, frame, truth):
        self.classes_ = np.unique(truth)
        return self

    def predict_proba(self, frame):
        return {gives}


def boaster(**_):
    return Boaster()
"""
    folder = synthetic.write_folder(
        tmp_path / "models",
        code=code,
        candidate="estimator: gradient_boosting => estimator: 'model:boaster'",
        params="    params: {max_iter: 30}\n => ",
    )
    frame = pd.DataFrame({"x": [0.0, 1.0], "noise": [0.0, 1.0], "visit": [0.0, 1.0], "kind": ["a", "b"]})
    with Confinement() as place, running_in(place):
        estimator = fit_estimator(folder, "boosting", {}, frame, np.array([True, False]))
        with pytest.raises(ScoringError, match="probabilities"):
            artifacts.predict(folder.spec.task, estimator, frame)


def test_a_candidate_that_cannot_be_fitted_is_told_as_here(tmp_path: Path) -> None:
    folder = synthetic.write_folder(tmp_path / "models")
    name = next(name for name, candidate in folder.spec.candidates.items() if not candidate.baseline)
    frame = pd.DataFrame({"x": [0.0], "noise": [0.0], "visit": [0.0], "kind": ["a"]})
    with Confinement() as place, running_in(place), pytest.raises(TrainingError):
        fit_estimator(folder, name, {"no_such_parameter": 1}, frame, np.array([True]))
