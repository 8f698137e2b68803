"""One run of a stage: on whose model it works, in which deployment, and by which name it is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perennial.deployment import Deployment
from perennial.spec.folder import ModelFolder


@dataclass(frozen=True)
class StageRun:
    """What the steps of a stage are given, by a DAG's tasks or by the command line.

    Attributes:
        folder: the model's folder, as it is now.
        deployment: ledger, lake and registry.
        run_id: the run's name among those of its stage; the order of runs of one interval goes by it.
        qualified_id: its name among all runs, as versions and promotions record it.
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
        """A folder for what the steps of this run hand to each other."""
        # Without dots: a run may be called "..".
        safe = "".join(character if character.isalnum() or character in "-_" else "_" for character in self.run_id)
        return self.deployment.settings.staging / self.model / safe
