"""A stored candidate is put to work by a process that knows nothing of the one that made it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import pyarrow as pa
import pytest

from perennial.core.settings import Settings
from perennial.evaluation.readiness import CleanProcess
from perennial.ledger.store import Ledger
from perennial.model.candidate import Fitted
from perennial.registry.store import Registry
from perennial.spec.folder import ModelFolder
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
    with CleanProcess() as clean:
        clean.ask(folder.spec, fitted, rows(), partial(registry.fetch, fitted.model_id), registry.trusted(folder.spec))
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
    with CleanProcess() as clean, CleanProcess() as of_forged:
        for process, candidate in ((clean, fitted), (of_forged, forged)):
            process.ask(
                folder.spec, candidate, rows(), partial(registry.fetch, candidate.model_id), registry.trusted(folder.spec)
            )
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
    deployment: tuple[Registry, ModelFolder, Fitted],
) -> None:
    registry, folder, fitted = deployment
    fetch = partial(registry.fetch, fitted.model_id)
    with CleanProcess() as clean:
        psutil.Process(clean.pid).kill()
        clean.ask(folder.spec, fitted, rows(), fetch, registry.trusted(folder.spec))
        assert "ended with status -9" in (clean.wait(None).problem or "")
    with CleanProcess() as clean:
        clean.ask(folder.spec, fitted, rows(0), fetch, registry.trusted(folder.spec))
        assert "no row" in (clean.wait(None).problem or "")


def test_a_candidate_that_cannot_be_fetched_is_told(deployment: tuple[Registry, ModelFolder, Fitted]) -> None:
    registry, folder, fitted = deployment
    with CleanProcess() as clean:
        clean.ask(folder.spec, fitted, rows(), partial(registry.fetch, "m-gone"), registry.trusted(folder.spec))
        assert "m-gone" in (clean.wait(None).problem or "")


def test_the_process_is_gone_when_its_caller_has_nothing_to_ask() -> None:
    with CleanProcess() as clean:
        process = psutil.Process(clean.pid)
    assert not process.is_running()
