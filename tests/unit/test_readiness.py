"""A stored candidate is put to work by a process that knows nothing of the one that made it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from perennial.ledger import Ledger
from perennial.readiness import CleanProcess
from perennial.registry import Registry
from perennial.settings import Settings
from perennial.spec import ModelFolder
from perennial.training import Fitted
from tests.unit import synthetic


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, ModelFolder, Fitted]:
    state = tmp_path_factory.mktemp("readiness")
    settings: Settings = synthetic.deployment(state)
    registry = Registry(settings, Ledger(settings.database_url))
    registry.migrate()
    folder = synthetic.write_folder(settings.models)
    return registry, folder, synthetic.log_candidate(registry, folder)


def rows(n: int = 120) -> pa.Table:
    return pa.Table.from_pandas(synthetic.make_rows(2).head(n)[["x", "noise", "kind", "visit"]], preserve_index=False)


def test_it_loads_answers_and_is_timed(deployment: tuple[Registry, ModelFolder, Fitted]) -> None:
    registry, folder, fitted = deployment
    training_set = synthetic.training_set_of(folder)
    with CleanProcess(registry.settings, folder.spec, training_set, fitted, rows()) as clean:
        model = registry.load_fitted(folder.spec, training_set, fitted)
        found = clean.wait(model)
    assert found.problem is None
    assert (found.rows, found.difference, found.same_features) == (120, 0.0, True)
    assert found.latency is not None
    assert found.load_seconds is not None
    assert found.artifact_mb is not None
    assert min(found.latency, found.load_seconds, found.artifact_mb) > 0
    assert np.isclose(found.artifact_mb, model.size / 1e6)


def test_other_answers_than_here_and_a_changed_artifact_are_told(deployment: tuple[Registry, ModelFolder, Fitted]) -> None:
    registry, folder, fitted = deployment
    training_set = synthetic.training_set_of(folder)
    forged = replace(fitted, manifest={**fitted.manifest, "model.skops": "0" * 64})
    with (
        CleanProcess(registry.settings, folder.spec, training_set, fitted, rows()) as clean,
        CleanProcess(registry.settings, folder.spec, training_set, forged, rows()) as of_forged,
    ):
        model = registry.load_fitted(folder.spec, training_set, fitted)

        class Other:
            classes_ = model.estimator.classes_

            def predict_proba(self, frame: object) -> object:
                return model.estimator.predict_proba(frame)[:, ::-1]

        found = clean.wait(replace(model, estimator=Other()))
        assert found.difference is not None
        assert found.difference > 0.01
        assert "model.skops" in (of_forged.wait(None).problem or "")


def test_a_process_that_dies_and_a_holdout_without_rows_are_told(
    deployment: tuple[Registry, ModelFolder, Fitted], tmp_path: Path
) -> None:
    registry, folder, fitted = deployment
    training_set = synthetic.training_set_of(folder)
    broken = registry.settings.model_copy(update={"database_url": "nonsense"})
    with CleanProcess(broken, folder.spec, training_set, fitted, rows()) as clean:
        assert "ended with status 1" in (clean.wait(None).problem or "")
    with CleanProcess(registry.settings, folder.spec, training_set, fitted, rows(0)) as clean:
        assert "no row" in (clean.wait(None).problem or "")
