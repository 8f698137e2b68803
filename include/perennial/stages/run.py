"""One run of a stage: its model, its deployment, and the name that it is recorded under."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perennial.deployment import Deployment
from perennial.spec.folder import ModelFolder


@dataclass(frozen=True)
class StageRun:
    """What a DAG's tasks or the command line give to the steps of a stage.

    Attributes:
        folder: the model's folder, as it is now.
        deployment: ledger, lake and registry.
        run_id: the run's name, unique in its stage; the ledger orders the runs of an interval by it.
        qualified_id: the run's name, unique among all runs; versions and promotions record it.
    """

    folder: ModelFolder
    deployment: Deployment
    run_id: str
    qualified_id: str

    @property
    def model(self) -> str:
        return self.folder.spec.name

    @property
    def staging(self) -> Path:
        """A folder for files that the steps of this run pass to each other."""
        # Without dots: a run may be called "..".
        safe = "".join(character if character.isalnum() or character in "-_" else "_" for character in self.run_id)
        return self.deployment.settings.staging / self.model / safe


def declare_unusable(run: StageRun, version: int, reason: str) -> None:
    """Tell people, once, that the champion can never be used here again. Other versions are only left out."""
    from perennial.alerts import of_models

    ledger = run.deployment.ledger
    if ledger.champion(run.model) == version:
        alert = of_models.champion_unusable(run.model, version=version, reason=reason)
        ledger.record_alert(alert, f"{alert.kind}/{run.model}/version-{version}")
