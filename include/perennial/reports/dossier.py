"""Gathers all records of a version, for the pages about it.

Neighbours: :mod:`perennial.reports.cards` and :mod:`perennial.reports.releases` make the pages from these records only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perennial.core.errors import ArtifactRejected, CardError, PerennialError, VersionUnusable
from perennial.deployment import Deployment
from perennial.evidence.evaluation import Evaluation
from perennial.evidence.training import TrainingRecord
from perennial.ledger.records import Approval, VersionRecord
from perennial.registry.folders import open_folder
from perennial.registry.store import Registry
from perennial.reports.documents import Picture
from perennial.reports.lineage import ModelHistory
from perennial.reports.traces import read_history
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dossier:
    """A version, and the champion it was compared with.

    Attributes:
        spec: the spec of the model folder that it was made with.
        files: the texts of that folder, by file name.
        record: its record in the ledger.
        artifacts: files of its MLflow run, by path.
        missing: by feature, the share of missing values in a sample of its training data; empty if it cannot be loaded.
        history: the ledger's records of its data.
        approvals: people's answers on it.
        decisions: the promotions by which it became champion, as sentences.
        rival: the record of the champion that it was compared with; None if there was none.
        rival_files: the texts of the champion's folder; None if they are not known.
        rival_artifacts, rival_missing: as for the version.
        run_url: the address of its run in MLflow.
    """

    spec: ModelSpec
    files: Mapping[str, str]
    record: VersionRecord
    artifacts: Mapping[str, bytes]
    missing: Mapping[str, float]
    history: ModelHistory
    approvals: Sequence[Approval]
    decisions: Sequence[str]
    rival: VersionRecord | None
    rival_files: Mapping[str, str] | None
    rival_artifacts: Mapping[str, bytes]
    rival_missing: Mapping[str, float]
    run_url: str | None

    @property
    def name(self) -> str:
        return f"{self.record.model} version {self.record.version}"

    @property
    def evaluation(self) -> Evaluation:
        return self.record.evaluation

    @property
    def training(self) -> TrainingRecord:
        return self.record.training

    @property
    def passed(self) -> bool:
        return self.record.decision.promote

    @property
    def importance(self) -> dict[str, float]:
        """By feature, the drop of the primary metric when the feature is shuffled, largest first."""
        return _importance(self.artifacts)

    @property
    def rival_importance(self) -> dict[str, float]:
        return _importance(self.rival_artifacts)

    def picture(self, path: str, caption: str) -> Picture:
        """A picture of the run. If it is missing, the picture is empty, and the page is refused."""
        return Picture(path.replace("/", "-"), caption, self.artifacts.get(path, b""))

    def pictures(self, *wanted: tuple[str, str]) -> list[Picture]:
        """These pictures of the run; missing ones are left out."""
        return [self.picture(path, caption) for path, caption in wanted if path in self.artifacts]


def _importance(artifacts: Mapping[str, bytes]) -> dict[str, float]:
    found: dict[str, float] = json.loads(artifacts.get("validation/importance.json", b"{}"))
    return found


def gather(folder: ModelFolder | None, deployment: Deployment, model: str, version: int) -> Dossier:
    """Read the records of a version from the ledger, MLflow and the model folder.

    Args:
        folder: the model's folder as it is now; None if there is none.
        deployment: its ledger holds the version's record, its registry the version's run.
        model: the model's name.
        version: the version's number.

    Raises:
        CardError: there is no such version.
        TrainingError, ArtifactRejected: the folder that the version was made with is no longer known.
    """
    ledger, registry = deployment.ledger, deployment.registry
    record = ledger.version(model, version)
    if record is None:
        known = ", ".join(str(other.version) for other in ledger.versions(model)) or "none"
        raise CardError(f"{model} has no version {version} in the ledger; there are: {known}")
    compared = record.decision.champion
    rival = None if compared is None or compared == version else ledger.version(model, compared)
    with open_folder(record, folder, registry, []) as its_folder:
        return Dossier(
            spec=its_folder.spec,
            files=its_folder.files,
            record=record,
            artifacts=_artifacts(registry, record),
            missing=_missing(registry, record),
            history=read_history(ledger, its_folder.spec),
            approvals=ledger.approvals(model, version),
            decisions=[
                f"{made.action} on {made.completed_at:%Y-%m-%d %H:%M} UTC, {made.actor}: {made.reason or 'no reason given'}"
                for made in ledger.promotions(model)
                if made.version == version and made.completed_at is not None
            ],
            rival=rival,
            rival_files=None if rival is None else _files(rival, folder, registry),
            rival_artifacts={} if rival is None else _artifacts_if_kept(registry, rival),
            rival_missing={} if rival is None else _missing(registry, rival),
            run_url=registry.run_url(record.mlflow_run_id),
        )


def _artifacts(registry: Registry, record: VersionRecord) -> dict[str, bytes]:
    return {
        f"{place}/{name}": content
        for place in ("validation", "holdout")
        for name, content in registry.files_of_run(record.mlflow_run_id, place).items()
    }


def _artifacts_if_kept(registry: Registry, record: VersionRecord) -> dict[str, bytes]:
    try:
        return _artifacts(registry, record)
    except VersionUnusable as error:
        log.warning("the report shows no pictures of version %d: %s", record.version, error)
        return {}


def _files(record: VersionRecord, folder: ModelFolder | None, registry: Registry) -> dict[str, str] | None:
    try:
        with open_folder(record, folder, registry, []) as its_folder:
            return its_folder.files
    except PerennialError as error:
        log.warning("the report cannot list all changes since version %d: %s", record.version, error)
        return None


def _missing(registry: Registry, record: VersionRecord) -> dict[str, float]:
    try:
        sample = registry.reference(record)
    except ArtifactRejected as error:
        log.warning("the share of missing values per feature is not known: %s", error)
        return {}
    names = [name for name in record.training.features if name in sample.column_names]
    return {name: sample[name].null_count / len(sample) for name in names if len(sample)}
