"""Registered versions: create and describe them, and load them after their files are checked against the ledger."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.artifacts
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from perennial.core.errors import ArtifactRejected, ModelRenamed, VersionUnusable
from perennial.evidence.decision import GateDecision
from perennial.evidence.evaluation import Evaluation
from perennial.evidence.training import StoredModel, TrainingRecord, TrainingSet
from perennial.ledger.records import VersionRecord
from perennial.model import artifacts
from perennial.model.artifacts import FeatureList, LoadedModel
from perennial.registry.server import CHALLENGER, EXISTS, MISSING, Mlflow
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.recipe import recipe_digest
from perennial.spec.types import Task

if TYPE_CHECKING:
    from perennial.model.candidate import Fitted


#: Number of attempts to write a tag while others write the same one.
_TAG_ATTEMPTS = 5
#: Names of the resulting error in MLflow's databases: SQLite, PostgreSQL.
_COLLISIONS = ("IntegrityError", "UniqueViolation")
_MAX_VERSION_TAG = 5_000


def _read_rows(directory: Path, name: str) -> pa.Table:
    file = directory / name
    return pq.read_table(file) if file.exists() else pa.table({})


def _check_signature(directory: Path, takes: FeatureList) -> None:
    """Compare the inputs in an artifact's signature with the training inputs in the ledger."""
    try:
        signature = Model.load(str(directory)).signature
        its = {column.name: column.type.name for column in signature.inputs.inputs} if signature else {}
    # MLflow passes on any error of its YAML and JSON parsers.
    except Exception as error:
        raise VersionUnusable(f"its MLmodel cannot be read: {type(error).__name__}: {error}") from error
    wanted = {**dict.fromkeys(takes.numeric, "double"), **dict.fromkeys(takes.categorical, "string")}
    if its != wanted or list(its) != list(wanted):
        shown = ", ".join(f"{name} {kind}" for name, kind in its.items()) or "nothing"
        raise VersionUnusable(
            f"its signature has {shown}; it was registered with {', '.join(f'{name} {kind}' for name, kind in wanted.items())}"
        )


def _figure(evaluation: Evaluation) -> dict[str, str]:
    """The tag of a version with its primary metric; the run has the others."""
    value = evaluation.candidate.metrics.get(evaluation.metric)
    return {} if value is None else {f"holdout.{evaluation.metric}": f"{value:.6g}"}


def _describe(evaluation: Evaluation, decision: GateDecision, standing: str | None = None) -> str:
    """Return a version's description for MLflow, in Markdown.

    MLflow's list of versions shows the beginning as plain text, so that is what became of the version, in a sentence.

    Args:
        evaluation, decision: the measurements, and the gates' decision.
        standing: what became of the version; None as long as nothing is known but the decision.
    """
    candidate, metric = evaluation.candidate, evaluation.metric
    refused = [f"{result.gate}: {result.reason}" for result in decision.results if not result.passed]
    passed = [f"{result.gate}: {result.reason}" for result in decision.results if result.passed]
    why = "." if standing is not None else f": {'; '.join(refused)}"
    verdict = "All gates passed." if decision.promote else f"Refused by the gates{why}"
    rivals = [*evaluation.baselines, *([evaluation.champion] if evaluation.champion else [])]
    rows = [
        f"| {rival.name if rival.role != 'champion' else f'champion, version {rival.version}'} | "
        f"{f'{rival.metrics[metric]:.6g}' if metric in rival.metrics else rival.error or 'not measured'} |"
        for rival in [candidate, *rivals]
    ]
    serves = evaluation.refit.interval if evaluation.refit is not None else candidate.trained_on
    parts = [
        [standing] if standing is not None else [],
        [verdict],
        [evaluation.whose_figures] if evaluation.whose_figures is not None else [],
        [f"| {metric} on {evaluation.interval} ({evaluation.rows:,} rows) | |", "| --- | --- |", *rows],
        [f"What predicts has learned from {serves}."] if serves else [],
        [f"- {remark}" for remark in (evaluation.champion.remarks if evaluation.champion else [])],
        [f"- refused {gate}" for gate in refused],
        [f"- passed {gate}" for gate in passed],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)[:10_000]


class Versions(Mlflow):
    """Versions of registered models, and their files."""

    def register(
        self,
        folder: ModelFolder,
        training_set: TrainingSet,
        fitted: Fitted,
        evaluation: Evaluation,
        decision: GateDecision,
        *,
        run_id: str,
    ) -> int:
        """Register the chosen candidate as a version in MLflow and in the ledger, even if the gates refused it.

        Args:
            folder: the model's folder that it was trained with.
            training_set: the data that it was trained on.
            fitted: the candidate.
            evaluation, decision: the measurements, and the gates' decision.
            run_id: the orchestrator's run; the same run gets the same version again, with the newest evaluation and
                decision until the version is promoted.

        Returns:
            The version's number.

        Raises:
            PromotionRefused: this process may not promote, so it may not record the gates' decision.
            ModelRenamed: the registered model has another name in MLflow; nothing was registered.
        """
        spec = folder.spec
        self._check_that_it_may_promote(spec.name)
        self.check_name(spec.name)
        served = evaluation.refit.stored if evaluation.refit is not None else fitted.stored
        # Use the artifact's location: MLflow would resolve an address such as models:/m-… in its process-wide store.
        source = str(self._client.get_logged_model(served.model_id).artifact_location)
        found = self._find_version(spec.name, fitted.mlflow_run_id, run_id, source)
        version = (
            found
            if found is not None
            else self._create_version(folder, fitted, evaluation, decision, run_id, served.model_id, source)
        )
        self._ledger.record_version(
            VersionRecord(
                model=spec.name,
                version=version,
                mlflow_run_id=fitted.mlflow_run_id,
                spec_digest=training_set.folder_digest,
                features_digest=training_set.features_digest,
                manifest=fitted.stored.manifest,
                training=TrainingRecord(
                    **vars(training_set),
                    candidate=fitted.candidate,
                    params=fitted.params,
                    validation=fitted.metrics,
                    model_id=fitted.stored.model_id,
                    task=spec.task,
                    numeric=list(spec.features.numeric),
                    categorical=list(spec.features.categorical),
                    trusted_types=list(spec.training.trusted_types),
                    chosen_window=fitted.window,
                    recipe=recipe_digest(folder, fitted.candidate, fitted.params, fitted.window),
                ),
                evaluation=evaluation,
                decision=decision,
                code=fitted.code,
                created_at=datetime.now(UTC),
            )
        )
        if found is not None and self._ledger.record_decision(spec.name, version, evaluation, decision):
            # A retry of the run may have compared the version with another champion.
            self._tag(spec.name, version, _figure(evaluation))
            self._client.update_model_version(spec.name, str(version), description=_describe(evaluation, decision))
        if self._ledger.champion(spec.name) != version:
            self._client.set_registered_model_alias(spec.name, CHALLENGER, str(version))
        return version

    def _find_version(self, model: str, mlflow_run_id: str, run_id: str, source: str) -> int | None:
        for found in self._client.search_model_versions(f"name = '{model}' and run_id = '{mlflow_run_id}'"):
            record = self._ledger.version(model, int(found.version))
            ours = found.tags.get("perennial.run_id") == run_id and found.source == source
            if ours and (record is None or record.mlflow_run_id == mlflow_run_id):
                return int(found.version)
        return None

    def _create_version(
        self,
        folder: ModelFolder,
        fitted: Fitted,
        evaluation: Evaluation,
        decision: GateDecision,
        run_id: str,
        model_id: str,
        source: str,
    ) -> int:
        spec, candidate = folder.spec, evaluation.candidate
        try:
            self._client.create_registered_model(
                spec.name, tags={"perennial.owner": spec.owner, "perennial.task": spec.task}, description=spec.description
            )
        except MlflowException as error:
            if error.error_code != EXISTS:
                raise
        tags = {
            "perennial.status": "candidate",
            "perennial.candidate": candidate.name,
            "perennial.run_id": run_id,
            **_figure(evaluation),
        }
        newest = max((record.version for record in self._ledger.versions(spec.name)), default=0)
        for _ in range(newest + 1):
            created = self._client.create_model_version(
                spec.name,
                source=source,
                run_id=fitted.mlflow_run_id,
                model_id=model_id,
                tags=tags,
                description=_describe(evaluation, decision),
            )
            if int(created.version) > newest:
                break
            # The registered model was deleted, so MLflow counts from 1 again. A number belongs to one version for ever.
            self._client.delete_model_version(spec.name, created.version)
        if self._is_database:  # a server does this automatically
            self._client.set_logged_model_tags(
                model_id, {"mlflow.modelVersions": json.dumps([{"name": spec.name, "version": created.version}])}
            )
        return int(created.version)

    def load(self, model: str, version: int, *, spec: ModelSpec | None = None) -> LoadedModel:
        """Load the model that a registered version serves, after its files have been checked against the ledger.

        Args:
            model: the model's name.
            version: the version's number.
            spec: the model's current specification. If it is given, the version must be of its task, and only those of the
                version's trusted types are trusted that are still in it.

        Raises:
            VersionUnusable: a check failed that will fail again; the message names the version and the difference.
            ModelRenamed: the registered model has another name in MLflow.
            ArtifactRejected: the ledger does not know the version, or its files cannot be fetched now.
        """
        record = self.record(model, version)
        return self._load_version(record, record.served, record.learned_from, spec)

    def load_judged(self, model: str, version: int, *, spec: ModelSpec | None = None) -> LoadedModel:
        """Load the model of a registered version that was measured on its holdout; as :meth:`load`.

        A version that serves a refit has learned from its holdout. The judged model has not, and so it can be compared with
        others on the rows since.
        """
        record = self.record(model, version)
        return self._load_version(record, record.judged, record.training.window, spec)

    def _load_version(
        self, record: VersionRecord, stored: StoredModel, learned_from: str, spec: ModelSpec | None
    ) -> LoadedModel:
        model, version, training = record.model, record.version, record.training
        name = f"{model} version {version}"
        if training.task is None:
            raise VersionUnusable(f"{name}: the ledger does not record the task it was trained for: train a new version")
        takes = FeatureList(tuple(training.numeric), tuple(training.categorical))
        trusted = set(training.trusted_types)
        if spec is not None:
            trusted &= set(spec.training.trusted_types)
            if training.task != spec.task:
                raise VersionUnusable(
                    f"{name} was trained for the task {training.task}, which model.yaml no longer has: train a new version"
                )
        found = self._version(model, version)
        if found is None:
            self.check_name(model)
            raise VersionUnusable(f"{name} was deleted from MLflow; roll back to another version or train a new one")
        artifacts_of = self._stored_at(record.served.model_id)
        if found.source != artifacts_of or found.run_id != record.mlflow_run_id:
            raise VersionUnusable(
                f"{name}: MLflow says it is in {found.source!r}, but it was registered from {artifacts_of!r} of run "
                f"{record.mlflow_run_id}: someone changed one of the two"
            )
        return self._load(
            name,
            version=version,
            stored=stored,
            packages=record.code.packages,
            takes=takes,
            task=training.task,
            trained_on=learned_from,
            features_digest=record.features_digest,
            trusted=sorted(trusted),
        )

    def load_fitted(self, spec: ModelSpec, training_set: TrainingSet, fitted: Fitted) -> LoadedModel:
        """Load a logged candidate, registered or not, after a check against its manifest (:meth:`CandidateRun.log_model`).

        Raises:
            VersionUnusable, ArtifactRejected: as in :meth:`load`.
        """
        return self._load(
            f"{spec.name} candidate {fitted.candidate}",
            version=None,
            stored=fitted.stored,
            packages=fitted.code.packages,
            takes=FeatureList.of(spec),
            task=spec.task,
            trained_on=training_set.window,
            features_digest=training_set.features_digest,
            trusted=spec.training.trusted_types,
        )

    def _load(
        self,
        name: str,
        *,
        version: int | None,
        stored: StoredModel,
        packages: Mapping[str, str],
        takes: FeatureList,
        task: Task,
        trained_on: str,
        features_digest: str,
        trusted: list[str],
    ) -> LoadedModel:
        with self._checked(name, stored) as directory:
            artifacts.check_environment(packages)
            _check_signature(directory, takes)
            estimator = artifacts.load_estimator(directory, artifacts.trusted_types(trusted, self._settings.trusted_types))
            sample, size = _read_rows(directory, artifacts.REFERENCE_FILE), artifacts.size(directory)
            example = _read_rows(directory, artifacts.EXAMPLE_FILE)
        return LoadedModel(name, version, task, takes, trained_on, features_digest, estimator, sample, size, example)

    def reference(self, record: VersionRecord) -> pa.Table:
        """Return a version's reference sample, as in :class:`perennial.model.artifacts.LoadedModel`, without loading it.

        Raises:
            ArtifactRejected: files are missing, or differ from those that were registered.
        """
        name = f"{record.model} version {record.version}"
        with self._checked(name, record.served) as directory:
            return _read_rows(directory, artifacts.REFERENCE_FILE)

    @contextmanager
    def _checked(self, name: str, stored: StoredModel) -> Iterator[Path]:
        """Yield a copy of a stored model's files, checked against the manifest. Rejections in the block name the model."""
        with tempfile.TemporaryDirectory(prefix="perennial-load-") as scratch:
            try:
                directory = self.fetch(stored.model_id, Path(scratch))
                artifacts.check_manifest(directory, stored.manifest)
                yield directory
            except ArtifactRejected as error:
                raise type(error)(f"{name}: {error}") from error

    def fetch(self, model_id: str, into: Path) -> Path:
        """Copy a stored model's files to a folder, unchecked. Nobody else can change the copy while it is checked.

        Args:
            model_id: MLflow's id of the stored model.
            into: folder for the copy.

        Returns:
            The folder with the files.

        Raises:
            VersionUnusable: MLflow answers that the files are gone.
            ArtifactRejected: the stored model is not in an allowed location, or cannot be fetched.
        """
        source = self._stored_at(model_id)
        artifacts.check_source(source)
        source = self._readable(source)
        try:
            return Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=source, dst_path=str(into), tracking_uri=self._settings.mlflow_url
                )
            )
        except (MlflowException, OSError) as error:
            if self._is_gone(source):
                raise VersionUnusable(f"its files are no longer in MLflow, at {source}") from error
            raise ArtifactRejected(f"its artifact cannot be fetched from {source}: {error}") from error

    def _is_gone(self, source: str) -> bool:
        """Whether the store answers that there are no files at an address. A store that does not answer is no answer."""
        try:
            return not mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=self._settings.mlflow_url)
        except (MlflowException, OSError):
            return False

    def _stored_at(self, model_id: str) -> str:
        """Return the location of a stored model's files, according to MLflow."""
        try:
            return str(self._client.get_logged_model(model_id).artifact_location)
        except MlflowException as error:
            if error.error_code == MISSING:
                raise VersionUnusable(f"MLflow no longer has the stored model {model_id}; train a new version") from error
            raise

    def check_name(self, model: str) -> None:
        """Check that MLflow still has the registered model under its name, if the ledger knows versions of it.

        Raises:
            ModelRenamed: it has another name there.
        """
        if (renamed := self.renamed_to(model)) is not None:
            raise ModelRenamed(
                f"{model}: the registered model was renamed to {renamed} in MLflow, and nothing was changed: rename it back to "
                f"{model}, and all goes on"
            )

    def renamed_to(self, model: str) -> str | None:
        """Return the name that MLflow has for a registered model; None if it was not renamed. It may have been deleted."""
        known = self._ledger.versions(model)
        if not known or self._registered(model):
            return None
        for record in reversed(known):
            for found in self._client.search_model_versions(f"run_id = '{record.mlflow_run_id}'"):
                if found.name != model and int(found.version) == record.version:
                    return str(found.name)
        return None

    def _registered(self, model: str) -> bool:
        try:
            self._client.get_registered_model(model)
        except MlflowException as error:
            if error.error_code == MISSING:
                return False
            raise
        return True

    def _version(self, model: str, version: int) -> Any:
        """Return MLflow's record of a version; None if there is none, or it was deleted."""
        try:
            return self._client.get_model_version(model, str(version))
        except MlflowException as error:
            if error.error_code == MISSING:
                return None
            raise

    def _tell(self, model: str, version: int, status: str, standing: str, *, missing_ok: bool = False) -> None:
        """Say in MLflow what became of a version.

        Args:
            model: the model's name.
            version: the version's number.
            status: a word or two for a tag, by which versions can be searched.
            standing: the sentence that its description begins with.
            missing_ok: whether the version may have been deleted from MLflow.
        """
        self._tag(model, version, {"perennial.status": status}, missing_ok=missing_ok)
        record = self._ledger.version(model, version)
        if record is None:
            return
        try:
            description = _describe(record.evaluation, record.decision, standing)
            self._client.update_model_version(model, str(version), description=description)
        except MlflowException as error:
            if not missing_ok or error.error_code != MISSING:
                raise

    def _tag(self, model: str, version: int, tags: Mapping[str, str], *, missing_ok: bool = False) -> None:
        for name, value in tags.items():
            for attempt in range(1, _TAG_ATTEMPTS + 1):
                try:
                    self._client.set_model_version_tag(model, str(version), name, value[:_MAX_VERSION_TAG])
                    break
                except MlflowException as error:
                    if missing_ok and error.error_code == MISSING:
                        return
                    # MLflow reads the tag and then inserts it. If two processes do so at once, the second insert fails.
                    if not any(collision in str(error) for collision in _COLLISIONS) or attempt == _TAG_ATTEMPTS:
                        raise
