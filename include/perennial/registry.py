"""MLflow: runs, stored models, versions and the alias ``champion``. No other module knows its names.

The ledger decides and MLflow follows. A promotion is first a row in the ledger, compared and set there, since MLflow's
aliases are last-writer-wins; then the alias moves; then the row is completed. Whoever finds an open row finishes it. One
process at a time moves the alias and says so in the ledger before and after: what a process that was put to sleep in
between writes late is known for what it is, and put right.
An artifact is checked against the manifest in the ledger before anything of it is opened (:mod:`perennial.artifacts`).

Everything goes through one client that is given its addresses, so nothing depends on, or leaves behind, MLflow's
process-wide state.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.artifacts
import mlflow.sklearn
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunInfo, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SADeprecationWarning

from perennial import alerts, artifacts, logs
from perennial.artifacts import FeatureList, LoadedModel
from perennial.errors import ArtifactRejected, NoChampion, PromotionRefused, StaleDecision, TrainingError
from perennial.gates import Evaluation, GateDecision
from perennial.ledger import Action, Approval, Ledger, Promotion, VersionRecord
from perennial.settings import Settings
from perennial.spec import ModelFolder, ModelSpec, Task
from perennial.succession import completed, lineage, newest_leads_back

if TYPE_CHECKING:  # training logs its candidates here
    from perennial.training import Fitted
    from perennial.training_set import TrainingSet

with warnings.catch_warnings():
    # It is imported at the first model otherwise, and warns of type hints of its own.
    warnings.simplefilter("ignore", UserWarning)
    import mlflow.pyfunc

# A bar that is drawn anew for each file fills a task's log. Read by MLflow when it downloads.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

log = logs.get(__name__)

CHAMPION = "champion"
#: Newest registered version that no decision has been acted on yet; a person who is asked to approve finds it here.
CHALLENGER = "challenger"

#: The tag by which an attempt finds what an earlier attempt at the same thing has logged.
KEY = "perennial.key"

_MISSING = "RESOURCE_DOES_NOT_EXIST"
_EXISTS = "RESOURCE_ALREADY_EXISTS"
#: How often a tag is written when others write the same one.
_TAG_ATTEMPTS = 5
#: How the databases behind MLflow call that: SQLite, PostgreSQL.
_COLLISIONS = ("IntegrityError", "UniqueViolation")
#: How often :meth:`Registry.reconcile` reads again when others keep changing what it reads.
_READS = 5
#: How long moving an alias may take; a process that has not said by then that it is done has died or sleeps.
LEASE = timedelta(seconds=15)
#: How long the late write of such a process is looked out for. Later, a person is taken to have moved the alias.
_LATE = timedelta(hours=1)
#: How long others wait for their turn, and how often they look.
_PATIENCE, _LOOK = timedelta(seconds=60), timedelta(milliseconds=50)
#: Longest text of a run's tag or parameter, and of a version's tag, that MLflow takes or people can read.
MAX_TAG, _MAX_PARAM, _MAX_VERSION_TAG = 8_000, 6_000, 5_000


@dataclass(frozen=True)
class StoredModel:
    """A model's artifact in MLflow: its id there, and the SHA-256 of each of its files."""

    model_id: str
    manifest: dict[str, str]


@dataclass(frozen=True)
class Rollback:
    """What came of asking for a rollback.

    Attributes:
        version: the champion from now on.
        changed: whether it is another one than before.
        words: what was done, or why nothing was, for people.
    """

    version: int
    changed: bool
    words: str


class CandidateRun:
    """One run in MLflow, open: where a candidate's training is logged."""

    def __init__(self, client: MlflowClient, info: RunInfo) -> None:
        self._client = client
        self.id = str(info.run_id)
        self._experiment_id = info.experiment_id
        self._artifacts = info.artifact_uri

    def log(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        model_id: str | None = None,
    ) -> None:
        """Log in one call. A metric that is not finite is left out: MLflow would give back another number.

        Args:
            params, metrics, tags: by name.
            model_id: stored model that the metrics are also shown at.
        """
        now = int(time.time() * 1000)
        self._client.log_batch(
            self.id,
            metrics=[
                Metric(name, value, now, 0, model_id=model_id, run_id=self.id)
                for name, value in (metrics or {}).items()
                if math.isfinite(value)
            ],
            params=[Param(name, str(value)[:_MAX_PARAM]) for name, value in (params or {}).items()],
            tags=[RunTag(name, value[:MAX_TAG]) for name, value in (tags or {}).items()],
        )

    def log_rows(self, name: str, digest: str, source: Mapping[str, Any], *, rows: int, context: str) -> None:
        """Say which rows went in.

        Args:
            name: of the rows, for people.
            digest: their content hash.
            source: where they can be read again.
            rows: how many.
            context: what for: ``training`` or ``evaluation``.
        """
        dataset = Dataset(
            name=name,
            digest=digest[:36],  # MLflow's column is no wider; the whole hash is in the source
            source_type="iceberg",
            source=json.dumps({**source, "content_hash": digest}),
            profile=json.dumps({"num_rows": rows}),
        )
        self._client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def log_files(self, directory: Path, path: str | None = None) -> None:
        """Upload all files of a directory, below ``path`` of the run's artifacts."""
        self._client.log_artifacts(self.id, str(directory), path)

    def read_files(self, path: str) -> dict[str, bytes]:
        """The files below ``path`` of the run's artifacts, by their path relative to it; none if there is no such folder."""
        # By their address: by the run's id, MLflow would also look through its stored models, with seven requests more.
        folder = {"artifact_uri": f"{self._artifacts}/{path}", "tracking_uri": self._client.tracking_uri}
        if not mlflow.artifacts.list_artifacts(**folder):
            return {}
        with tempfile.TemporaryDirectory(prefix="perennial-files-") as scratch:
            top = Path(mlflow.artifacts.download_artifacts(**folder, dst_path=scratch))
            return {file.relative_to(top).as_posix(): file.read_bytes() for file in sorted(top.rglob("*")) if file.is_file()}

    def log_model(
        self,
        spec: ModelSpec,
        estimator: Any,
        *,
        example: pd.DataFrame,
        reference: pa.Table | None,
        params: Mapping[str, Any],
    ) -> StoredModel:
        """Store a fitted estimator with skops, with signature, example and reference sample.

        Raises:
            TrainingError: it holds types that are not trusted, so nobody could load it again.
        """
        with tempfile.TemporaryDirectory(prefix="perennial-model-") as scratch:
            directory = Path(scratch) / "model"
            stored = self._client.create_logged_model(
                self._experiment_id,
                name=spec.name,
                source_run_id=self.id,
                params={name: str(value) for name, value in params.items()},
                model_type=spec.task,
            )
            try:
                mlflow.sklearn.save_model(
                    estimator,
                    str(directory),
                    mlflow_model=Model(
                        artifact_path=stored.artifact_location,
                        model_id=stored.model_id,
                        model_uuid=stored.model_id,
                        run_id=self.id,
                    ),
                    # Named, since MLflow would load the model in another process to find them: 8.8 s instead of 0.1 s.
                    pip_requirements=[f"{name}=={version}" for name, version in artifacts.environment().items()],
                    serialization_format=mlflow.sklearn.SERIALIZATION_FORMAT_SKOPS,
                    # For people who load it with MLflow; Perennial never reads the list back.
                    skops_trusted_types=artifacts.trusted_types(spec),
                    signature=_signature(spec, estimator),
                    input_example=example,
                    pyfunc_predict_fn="predict" if spec.task == "regression" else "predict_proba",
                )
                if reference is not None:
                    pq.write_table(reference, directory / artifacts.REFERENCE_FILE, compression="zstd")
                manifest = artifacts.manifest(directory)
                self._client.log_model_artifacts(stored.model_id, str(directory))
            except Exception as error:
                # Otherwise it stays in MLflow as a model that is for ever about to be stored.
                self._client.delete_logged_model(stored.model_id)
                if isinstance(error, MlflowException) and (
                    unknown := artifacts.untrusted_types(estimator, artifacts.trusted_types(spec))
                ):
                    raise TrainingError(
                        f"{spec.name}: the fitted model holds types that are not trusted: {', '.join(unknown)}. If you know "
                        "that loading them runs no code you do not trust, name them in training.trusted_types"
                    ) from error
                raise
            self._client.finalize_logged_model(stored.model_id, "READY")
            self._client.log_outputs(self.id, [LoggedModelOutput(stored.model_id, 0)])
        return StoredModel(stored.model_id, manifest)


def _read_reference(directory: Path) -> pa.Table:
    file = directory / artifacts.REFERENCE_FILE
    return pq.read_table(file) if file.exists() else pa.table({})


def _signature(spec: ModelSpec, estimator: Any) -> ModelSignature:
    """Numbers as doubles, which can be missing, and categories as strings.

    Inferred from an example, a column that happens to hold whole numbers would be an integer and refuse the first
    missing value.
    """
    inputs: list[Any] = [ColSpec("double", name) for name in spec.features.numeric]
    inputs += [ColSpec("string", name) for name in spec.features.categorical]
    shape = (-1,) if spec.task == "regression" else (-1, len(estimator.classes_))
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([TensorSpec(np.dtype("float64"), shape)]))


class Registry:
    """MLflow's tracking and registry, led by the ledger."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger

    @property
    def settings(self) -> Settings:
        """Of the deployment."""
        return self._settings

    # --- the store ---------------------------------------------------------------------------------------------------

    def migrate(self) -> None:
        """Create MLflow's tables, if it is a database rather than a server. Several processes may call it at once."""
        self._client.search_experiments(max_results=1)

    @cached_property
    def _client(self) -> MlflowClient:
        url = self._settings.mlflow_url
        with self._alone(), warnings.catch_warnings():
            # Of MLflow's own tables, when they are mapped first.
            warnings.simplefilter("ignore", SADeprecationWarning)
            client = MlflowClient(tracking_uri=url, registry_uri=url)
            if self._is_database:
                client.search_registered_models(max_results=1)  # opens the registry's half of the store too
            return client

    @property
    def _is_database(self) -> bool:
        return not self._settings.mlflow_url.startswith(("http://", "https://"))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time: two that first touch a fresh SQLite store break its migration."""
        if not self._settings.mlflow_url.startswith("sqlite:"):
            yield
            return
        file = Path(make_url(self._settings.mlflow_url).database or "mlflow.db").absolute()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_name(f"{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _experiment(self, model: str) -> str:
        """Id of the model's experiment, which is made if there is none."""
        found = self._client.get_experiment_by_name(model)
        if found is None:
            # A server has a place for artifacts of its own; a bare database would put them below the current folder.
            place = (self._settings.state / "mlflow-artifacts" / model).as_uri() if self._is_database else None
            try:
                return str(self._client.create_experiment(model, artifact_location=place))
            except MlflowException as error:
                if error.error_code != _EXISTS:
                    raise
                return self._experiment(model)
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    # --- links -------------------------------------------------------------------------------------------------------

    def _address(self, path: str) -> str | None:
        base = self._settings.mlflow_public_url or (None if self._is_database else self._settings.mlflow_url)
        return f"{base.rstrip('/')}/#/{path}" if base else None

    def run_url(self, mlflow_run_id: str) -> str | None:
        """Where a person sees a run; None if this deployment has no address for people."""
        if self._address("") is None:
            return None
        experiment = self._client.get_run(mlflow_run_id).info.experiment_id
        return self._address(f"experiments/{experiment}/runs/{mlflow_run_id}")

    def version_url(self, model: str, version: int) -> str | None:
        """Where a person sees a version; None if this deployment has no address for people."""
        return self._address(f"models/{model}/versions/{version}")

    def links(self, model: str, version: int) -> dict[str, str]:
        """Where a person reads about a version, by name; empty if this deployment has no address for people."""
        address, record = self.version_url(model, version), self._ledger.version(model, version)
        found = {"MLflow": address} if address else {}
        if record is not None and (run := self.run_url(record.mlflow_run_id)):
            found["Model card"] = f"{run}/artifacts/card/card.html"
            found["Release report"] = f"{run}/artifacts/card/release.html"
        return found

    def _links(self, model: str, version: int) -> dict[str, str]:
        address = self.version_url(model, version)
        return {"MLflow": address} if address else {}

    # --- runs --------------------------------------------------------------------------------------------------------

    @contextmanager
    def open_run(self, model: str, name: str, tags: Mapping[str, str]) -> Iterator[CandidateRun]:
        """A new run of the model's experiment; it ends as finished, or as failed if an error leaves the block.

        Args:
            model: the experiment.
            name: of the run.
            tags: to find it by.
        """
        experiment = self._experiment(model)
        run = self._client.create_run(experiment, run_name=name, tags=dict(tags))
        try:
            yield CandidateRun(self._client, run.info)
        except BaseException:
            self._client.set_terminated(run.info.run_id, "FAILED")
            raise
        self._client.set_terminated(run.info.run_id, "FINISHED")

    def run(self, mlflow_run_id: str) -> CandidateRun:
        """A run that was logged before, to add to."""
        return CandidateRun(self._client, self._client.get_run(mlflow_run_id).info)

    def find_run(self, model: str, key: str) -> dict[str, str] | None:
        """Tags of the newest finished run whose tag :data:`KEY` is ``key``, a text of letters and digits.

        Others that have it and are still open were left by a process that was killed; they are closed.
        """
        finished = None
        for run in self._client.search_runs(
            [self._experiment(model)], f"tags.`{KEY}` = '{key}'", order_by=["attributes.start_time DESC"]
        ):
            if run.info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, "KILLED")
            elif run.info.status == "FINISHED" and finished is None:
                finished = dict(run.data.tags)
        return finished

    def close_abandoned_runs(self, model: str, older_than: timedelta = timedelta(days=2)) -> int:
        """Close runs that have been open for longer than any fit takes: their process was killed.

        Returns:
            How many there were.
        """
        before = int((datetime.now(UTC) - older_than).timestamp() * 1000)
        found = self._client.search_runs(
            [self._experiment(model)], f"attributes.status = 'RUNNING' and attributes.start_time < {before}"
        )
        for run in found:
            self._client.set_terminated(run.info.run_id, "KILLED")
        return len(found)

    # --- versions ----------------------------------------------------------------------------------------------------

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
        """Make the chosen candidate a version, in MLflow and in the ledger, whatever the gates said of it.

        Args:
            folder: what it was trained by.
            training_set: what it learned from.
            fitted: the candidate.
            evaluation, decision: what was measured, and what the gates said.
            run_id: the run of the orchestration; the same one gives the same version again, judged by the newest evaluation
                until it is promoted.

        Returns:
            Its number.

        Raises:
            PromotionRefused: this process may not promote, nor then say what the gates said.
        """
        spec = folder.spec
        self._check_that_it_may_promote(spec.name)
        found = self._find_version(spec.name, fitted.mlflow_run_id, run_id)
        version = found if found is not None else self._create_version(folder, fitted, evaluation, decision, run_id)
        self._ledger.record_version(
            VersionRecord(
                model=spec.name,
                version=version,
                mlflow_run_id=fitted.mlflow_run_id,
                spec_digest=training_set.folder_digest,
                features_digest=training_set.features_digest,
                manifest=fitted.manifest,
                training={
                    **training_set.to_json(),
                    "candidate": fitted.candidate,
                    "params": fitted.params,
                    "validation": fitted.metrics,
                    "model_id": fitted.model_id,
                    "task": spec.task,
                    "numeric": list(spec.features.numeric),
                    "categorical": list(spec.features.categorical),
                    "trusted_types": list(spec.training.trusted_types),
                },
                evaluation=evaluation.to_json(),
                decision=decision.to_json(),
                code=fitted.code,
                created_at=datetime.now(UTC),
            )
        )
        if found is not None and self._ledger.record_decision(spec.name, version, evaluation.to_json(), decision.to_json()):
            # Another attempt of the run, which may have compared it with another champion.
            self._tag(spec.name, version, _verdict_tags(evaluation, decision))
            self._client.update_model_version(spec.name, str(version), description=_describe(evaluation, decision))
        if self._ledger.champion(spec.name) != version:
            self._client.set_registered_model_alias(spec.name, CHALLENGER, str(version))
        return version

    def _find_version(self, model: str, mlflow_run_id: str, run_id: str) -> int | None:
        for found in self._client.search_model_versions(f"name = '{model}' and run_id = '{mlflow_run_id}'"):
            if found.tags.get("perennial.run_id") == run_id:
                return int(found.version)
        return None

    def _create_version(
        self, folder: ModelFolder, fitted: Fitted, evaluation: Evaluation, decision: GateDecision, run_id: str
    ) -> int:
        spec, candidate = folder.spec, evaluation.candidate
        try:
            self._client.create_registered_model(
                spec.name, tags={"perennial.owner": spec.owner, "perennial.task": spec.task}, description=spec.description
            )
        except MlflowException as error:
            if error.error_code != _EXISTS:
                raise
        tags = {
            "perennial.status": "candidate",
            "perennial.candidate": candidate.name,
            "perennial.holdout": evaluation.interval,
            "perennial.trained_on": candidate.trained_on or "",
            "perennial.spec_digest": folder.digest,
            "perennial.features_digest": folder.features_digest,
            "perennial.code_commit": str(fitted.code["commit"]),
            "perennial.run_id": run_id,
            **_verdict_tags(evaluation, decision),
        }
        created = self._client.create_model_version(
            spec.name,
            # The artifact's own place: an address such as models:/m-… would be looked up in MLflow's process-wide store.
            source=self._client.get_logged_model(fitted.model_id).artifact_location,
            run_id=fitted.mlflow_run_id,
            model_id=fitted.model_id,
            tags=tags,
            description=_describe(evaluation, decision),
        )
        if self._is_database:  # a server does this by itself
            self._client.set_logged_model_tags(
                fitted.model_id, {"mlflow.modelVersions": json.dumps([{"name": spec.name, "version": created.version}])}
            )
        return int(created.version)

    def load(self, model: str, version: int, *, spec: ModelSpec | None = None) -> LoadedModel:
        """A registered version, once its artifact has been compared with what the ledger says of it.

        Args:
            model: its name.
            version: its number.
            spec: what its folder says now. With it, the version must be fit to be used with the features that are built
                now, and of its trusted types only those that the spec still names are trusted.

        Raises:
            ArtifactRejected: the version, a file of it, or a difference is named; nothing of it was loaded.
        """
        name = f"{model} version {version}"
        record = self._ledger.version(model, version)
        if record is None:
            raise ArtifactRejected(f"{name} is not in the ledger: Perennial did not register it and cannot vouch for it")
        training = record.training
        takes = FeatureList(tuple(training["numeric"]), tuple(training["categorical"]))
        trusted = set(training["trusted_types"])
        if spec is not None:
            trusted &= set(spec.training.trusted_types)
            kinds = {"numeric": takes.numeric, "categorical": takes.categorical}
            gone = [feature for kind, its in kinds.items() for feature in its if feature not in getattr(spec.features, kind)]
            if gone or training["task"] != spec.task:
                difference = f"the features {', '.join(gone)}" if gone else f"the task {training['task']}"
                raise ArtifactRejected(
                    f"{name} was trained for {difference}, which model.yaml no longer has: train a new version"
                )
        found = self._version(model, version)
        if found is None:
            raise ArtifactRejected(f"{name} was deleted from MLflow; roll back to another version or train a new one")
        artifacts_of = self._stored_at(training["model_id"])
        if found.source != artifacts_of or found.run_id != record.mlflow_run_id:
            raise ArtifactRejected(
                f"{name}: MLflow says it lies in {found.source!r}, it was registered from {artifacts_of!r} of run "
                f"{record.mlflow_run_id}: someone changed one of the two"
            )
        return self._load(
            name,
            version=version,
            model_id=training["model_id"],
            manifest=record.manifest,
            packages=record.code.get("packages", {}),
            takes=takes,
            task=training["task"],
            trained_on=training["window"],
            features_digest=record.features_digest,
            trusted=sorted(trusted),
        )

    def load_fitted(self, spec: ModelSpec, training_set: TrainingSet, fitted: Fitted) -> LoadedModel:
        """A candidate that was logged and need not be registered, by the manifest that :meth:`CandidateRun.log_model` gave.

        Raises:
            ArtifactRejected: as in :meth:`load`.
        """
        return self._load(
            f"{spec.name} candidate {fitted.candidate}",
            version=None,
            model_id=fitted.model_id,
            manifest=fitted.manifest,
            packages=fitted.code["packages"],
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
        model_id: str,
        manifest: Mapping[str, str],
        packages: Mapping[str, str],
        takes: FeatureList,
        task: Task,
        trained_on: str,
        features_digest: str,
        trusted: list[str],
    ) -> LoadedModel:
        with self._checked(name, model_id, manifest) as directory:
            artifacts.check_environment(packages)
            _check_signature(directory, takes)
            estimator = artifacts.load_estimator(directory, [*artifacts.TRUSTED_TYPES, *trusted])
            sample, size = _read_reference(directory), artifacts.size(directory)
        return LoadedModel(name, version, task, takes, trained_on, features_digest, estimator, sample, size)

    def reference(self, record: VersionRecord) -> pa.Table:
        """What :meth:`perennial.artifacts.LoadedModel.reference` gives of a version, without loading it.

        Raises:
            ArtifactRejected: the files are not there, or not those that were registered.
        """
        name = f"{record.model} version {record.version}"
        with self._checked(name, record.training["model_id"], record.manifest) as directory:
            return _read_reference(directory)

    @contextmanager
    def _checked(self, name: str, model_id: str, manifest: Mapping[str, str]) -> Iterator[Path]:
        """A copy of a stored model's files, which are those of the manifest; whatever is rejected meanwhile names the model."""
        with tempfile.TemporaryDirectory(prefix="perennial-load-") as scratch:
            try:
                directory = self.fetch(model_id, Path(scratch))
                artifacts.check_manifest(directory, manifest)
                yield directory
            except ArtifactRejected as error:
                raise ArtifactRejected(f"{name}: {error}") from error

    def fetch(self, model_id: str, into: Path) -> Path:
        """The folder of a stored model's files, not yet checked: a copy that nobody else can change while it is.

        Args:
            model_id: MLflow's, of what was logged.
            into: folder to put it in.

        Raises:
            ArtifactRejected: it is not where a model may be, or cannot be fetched.
        """
        source = self._stored_at(model_id)
        artifacts.check_source(source)
        try:
            return Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=source, dst_path=str(into), tracking_uri=self._settings.mlflow_url
                )
            )
        except (MlflowException, OSError) as error:
            raise ArtifactRejected(f"its artifact cannot be fetched from {source}: {error}") from error

    def _stored_at(self, model_id: str) -> str:
        """Where MLflow says that a stored model's files lie."""
        try:
            return str(self._client.get_logged_model(model_id).artifact_location)
        except MlflowException as error:
            if error.error_code == _MISSING:
                raise ArtifactRejected(f"MLflow has no stored model {model_id} any more; train a new version") from error
            raise

    def _version(self, model: str, version: int) -> Any:
        """MLflow's record of a version; None if it has none, or none any more."""
        try:
            return self._client.get_model_version(model, str(version))
        except MlflowException as error:
            if error.error_code == _MISSING:
                return None
            raise

    # --- the champion ------------------------------------------------------------------------------------------------

    def champion(self, model: str) -> int | None:
        """The champion's version; None before the first promotion.

        A process that may promote brings ledger and alias in line first; another believes the ledger.

        Raises:
            ArtifactRejected: as in :meth:`reconcile`.
        """
        return self.reconcile(model) if self._settings.may_promote else self._ledger.champion(model)

    def promote(
        self,
        model: str,
        version: int,
        *,
        expected: int | None,
        reason: str,
        actor: str,
        run_id: str | None,
        evidence: Mapping[str, Any],
    ) -> Promotion:
        """Make a version champion, if the champion still is the one that the decision was made against.

        A retry of the same run changes nothing once it is done, nor does promoting the champion.

        Args:
            model: its name.
            version: the new champion; it has passed its gates.
            expected: the champion it was compared with; None if there was none.
            reason: for people.
            actor: who or what decided.
            run_id: the run that decided; None when a person did by hand.
            evidence: what the decision rested on.

        Raises:
            PromotionRefused: the ledger says that it did not pass its gates, or was not approved.
            StaleDecision: another version became champion meanwhile, or another promotion is open.
            ArtifactRejected: the version could not be loaded by those who would score with it.
        """
        if self.reconcile(model) == version:
            made = completed(self._ledger.promotions(model))[-1]
            self._show(made)  # an attempt that promoted it may have died before it came to this
            return made
        if bar := self._bar(model, version):
            raise PromotionRefused(f"{model} version {version} cannot be promoted: {bar}")
        return self._change(
            model, version, expected=expected, action="promote", reason=reason, actor=actor, run_id=run_id, evidence=evidence
        )

    def promote_by_hand(
        self, spec: ModelSpec, version: int, *, override: str | None, actor: str, run_id: str | None = None
    ) -> Promotion:
        """Make a version champion because a person says so.

        One that has passed its gates against the current champion, and was approved where the model wants that, needs no
        more. Any other needs a reason; it is recorded as an ``override`` and bears a tag that says so for ever.

        Args:
            spec: of the model.
            version: the new champion.
            override: why, whatever stands against it; None or blank: only if nothing does.
            actor: who.
            run_id: the run; its retry promotes nothing once more.

        Returns:
            What made it champion, now or before.

        Raises:
            PromotionRefused: something stands against it, and no reason is given; the message says what.
            ArtifactRejected: the version cannot be loaded; the champion stays.
            StaleDecision: another promotion came in between.
        """
        model = spec.name
        champion = self.reconcile(model)
        if champion == version:
            return completed(self._ledger.promotions(model))[-1]
        reason = (override or "").strip()
        record = self._ledger.version(model, version)
        obstacle = self._bar(model, version) or _still_asked(spec, self._ledger.approvals(model, version))
        if obstacle is None and record is not None and (compared := record.decision.get("champion")) != champion:
            obstacle = (
                f"it was compared with {_called(compared)}, and the champion is {_called(champion)}: the evaluation is stale"
            )
        if obstacle is not None and not reason:
            raise PromotionRefused(
                f"{model} version {version} was not promoted: {obstacle}. Train again, or, if you know better, give a reason: "
                f"perennial promote {model} {version} --override REASON"
            )
        return self._change(
            model,
            version,
            expected=champion,
            action="promote" if obstacle is None else "override",
            reason=reason or "by hand",
            actor=actor,
            run_id=run_id,
            evidence={**(record.decision if record else {}), **({"overridden": obstacle} if obstacle else {})},
        )

    def _check_that_it_may_promote(self, model: str) -> None:
        if not self._settings.may_promote:
            raise PromotionRefused(
                f"{model}: this process may not change who is champion (PERENNIAL_MAY_PROMOTE): its task belongs in the queue "
                "promote, whose workers may"
            )

    def _bar(self, model: str, version: int) -> str | None:
        """What only an override can overcome; None if the gates passed the version and no approver refused it.

        Nor is anything said of a version that the ledger does not know: no override helps it, see :meth:`load`.
        """
        record = self._ledger.version(model, version)
        if record is None:
            return None
        if record.decision.get("promote") is not True:
            reasons = record.decision.get("reasons") or ["no complete evaluation of it is recorded"]
            return f"the gates refused it: {'; '.join(reasons)}"
        answers = self._ledger.approvals(model, version)
        if answers and answers[-1].answer != "approved":
            return f"it was not approved: {answers[-1].told}"
        return None

    def refuse(self, model: str, version: int, decision: GateDecision) -> None:
        """Tag a version refused, with every reason, and tell people; the champion stays."""
        self._refuse(model, version, decision.reasons, champion=decision.champion)

    def decline(self, approval: Approval) -> None:
        """Record that nobody approved a version, tag it so, and tell people; the champion stays."""
        model, version = approval.model, approval.version
        self._ledger.record_approval(approval)
        self._refuse(model, version, [approval.told], champion=self._ledger.champion(model))

    def _refuse(self, model: str, version: int, reasons: list[str], *, champion: int | None) -> None:
        self._tag(model, version, {"perennial.status": "refused", "perennial.refused_because": "; ".join(reasons)})
        self._drop_challenger(model, version)
        self._ledger.record_alert(
            alerts.promotion_refused(
                model, version=version, champion=champion, reasons=reasons, links=self._links(model, version)
            ),
            f"promotion_refused/{model}/version-{version}",
        )

    def rollback(
        self,
        model: str,
        to: int | None = None,
        *,
        actor: str,
        reason: str,
        run_id: str | None = None,
        expected: int | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> Rollback:
        """Make an earlier champion champion again.

        Without a version, the newest promotion is undone. If the newest change already went back, there is nothing to undo
        and nothing happens: two who see the same trouble and both roll back do not go back two steps. Going further back
        takes a version.

        Args:
            model: its name.
            to: the version, a former champion; None for the one before. If it already is champion, nothing happens.
            actor: who.
            reason: why, for people.
            run_id: the run; its retry does not go back once more.
            expected: roll back from this champion only; None: whichever it is.
            evidence: what it rests on, if a program decided.

        Raises:
            NoChampion: there is no champion, or none before it, or the version never was.
            ArtifactRejected: the version cannot be loaded; the champion stays.
            StaleDecision: the champion is not ``expected``, or another promotion came in between.
        """
        champion = self.reconcile(model)
        promotions = self._ledger.promotions(model)
        if champion is None:
            raise NoChampion(f"{model} has no champion to roll back from; train a version first")
        if run_id is not None:
            done = [made for made in completed(promotions) if made.run_id == run_id and made.action == "rollback"]
            if done:
                return Rollback(done[-1].version, False, f"this run has rolled back to version {done[-1].version} already")
        if expected is not None and champion != expected:
            raise StaleDecision(f"{model}: the champion is version {champion}, not {expected}: it is not rolled back")
        if to is None:
            if newest_leads_back(promotions):
                last = completed(promotions)[-1]
                return Rollback(
                    champion,
                    False,
                    f"nothing was changed: the newest change already is a rollback, from version {last.previous} to {champion} "
                    f"by {last.actor} ({last.reason}); to go back further, name the version",
                )
            before = lineage(promotions)[:-1]
            if not before:
                raise NoChampion(f"{model} version {champion} has no earlier champion: name a version, or train a new one")
            to = before[-1]
        if to == champion:
            return Rollback(champion, False, f"nothing was changed: version {champion} is champion already")
        if to not in {made.version for made in completed(promotions)}:
            raise NoChampion(
                f"{model} version {to} never was champion, so there is no going back to it; to make it champion: "
                f"perennial promote {model} {to}"
            )
        try:
            made = self._change(
                model, to, expected=champion, action="rollback", reason=reason, actor=actor, run_id=run_id,
                evidence=evidence or {},
            )  # fmt: skip
        except StaleDecision:
            if self.reconcile(model) != to:
                raise
            return Rollback(to, False, f"nothing was changed: somebody else has rolled back to version {to} meanwhile")
        return Rollback(made.version, True, f"version {made.version} is champion again, instead of version {champion}")

    def _change(
        self,
        model: str,
        version: int,
        *,
        expected: int | None,
        action: Action,
        reason: str,
        actor: str,
        run_id: str | None,
        evidence: Mapping[str, Any],
    ) -> Promotion:
        self.load(model, version)  # a version that scoring would reject must not become champion
        promotion = self._ledger.intend_promotion(
            model=model,
            version=version,
            expected=expected,
            action=action,
            reason=reason,
            actor=actor,
            run_id=run_id,
            evidence=dict(evidence),
        )
        if promotion.withdrawn_at is not None:
            raise StaleDecision(f"{model}: the promotion of version {version} was given up; start a new run to decide again")
        if promotion.completed_at is None and not self._finish(promotion):
            raise ArtifactRejected(f"{model} version {version} was deleted from MLflow and cannot become champion")
        return promotion

    def reconcile(self, model: str) -> int | None:
        """Bring MLflow's alias and the ledger in line.

        A promotion that a crash left open is finished. An alias that someone moved in MLflow is taken over as a promotion
        by ``MLflow``, if the ledger knows the version and it has passed its gates or been champion before; to a version
        that was refused, it is put back, and people are told how to override. An alias that someone removed is put back,
        too: to withdraw a champion, roll back. So is one that a process left behind that was put to sleep while it
        promoted, and woke up when others had gone on.

        Returns:
            The champion's version; None if the model has none.

        Raises:
            PromotionRefused: this process may not promote.
            ArtifactRejected: the alias points to a version that the ledger does not know.
            StaleDecision: others kept changing the champion meanwhile.
        """
        self._check_that_it_may_promote(model)
        for _ in range(_READS):
            # An alias that is not the champion's is believed between two equal readings of the ledger: otherwise one that a
            # promotion has just moved, or is just about to, would look as if a person had.
            before = self._ledger.promotions(model)
            open_ones = [made for made in before if made.completed_at is None and made.withdrawn_at is None]
            if open_ones:
                if not self._finish(open_ones[0]):
                    log.warning("version %s of %s was deleted before it became champion", open_ones[0].version, model)
                continue
            made = completed(before)
            champion = made[-1].version if made else None
            alias = self._alias(model, CHAMPION)
            if alias == champion:
                return champion
            late = self._ledger.unended_moves(model, since=datetime.now(UTC) - _LATE)
            if self._ledger.promotions(model) != before:
                continue
            if alias is None:
                if self._version(model, made[-1].version) is None:
                    log.warning("the champion of %s, version %s, was deleted from MLflow: roll back", model, champion)
                    return champion
                log.warning("the alias %s of %s was removed; it points to version %s again", CHAMPION, model, champion)
            elif alias in late and champion is not None:
                log.warning("%s: a process that had slept moved the alias to version %s; it is put back", model, alias)
            elif alias not in {change.version for change in made} and (bar := self._bar(model, alias)):
                log.warning("%s: the alias was moved to version %s, but %s; it is put back", model, alias, bar)
                self._ledger.record_alert(
                    alerts.alias_put_back(model, version=alias, champion=champion, reason=bar, links=self._links(model, alias)),
                    # Once an hour: MLflow does not tell one move from the next.
                    f"alias_put_back/{model}/version-{alias}/{datetime.now(UTC):%Y-%m-%dT%H}",
                )
            else:
                self._adopt(model, alias, champion)
                continue
            self._put_back(model, made[-1] if made else None)
        raise StaleDecision(f"{model}: the champion kept changing while it was looked up; try again")

    def alias(self, model: str) -> int | None:
        """The version that MLflow calls champion, which the ledger may not; None if it calls none so."""
        return self._alias(model, CHAMPION)

    def follow_ledger(self, model: str) -> int | None:
        """Let the aliases say what the ledger says, whoever moved them, as after a restore: MLflow's database may be newer.

        Returns:
            The version that was called champion before, if it was another one.

        Raises:
            PromotionRefused: this process may not promote.
        """
        self._check_that_it_may_promote(model)
        made = completed(self._ledger.promotions(model))
        alias = self.alias(model)
        if alias != (made[-1].version if made else None):
            self._put_back(model, made[-1] if made else None)
        challenger = self._alias(model, CHALLENGER)
        if challenger is not None and self._ledger.version(model, challenger) is None:
            self._drop_challenger(model, challenger)
        return None if made and made[-1].version == alias else alias

    def _put_back(self, model: str, promotion: Promotion | None) -> None:
        if promotion is None:
            self._client.delete_registered_model_alias(model, CHAMPION)
            return
        with suppress(StaleDecision):  # overtaken: reconcile looks again
            self._point(promotion)

    def _adopt(self, model: str, alias: int, champion: int | None) -> None:
        """Take over an alias that a person moved in MLflow."""
        if self._ledger.version(model, alias) is None:
            back = f"move it back to version {champion}" if champion is not None else "remove it"
            raise ArtifactRejected(
                f"{model}: the alias {CHAMPION} points to version {alias}, which Perennial did not register and cannot vouch "
                f"for: {back} in MLflow"
            )
        try:
            promotion = self._ledger.intend_promotion(
                model=model,
                version=alias,
                expected=champion,
                action="adopt",
                reason=f"the alias {CHAMPION} was moved in MLflow",
                actor="MLflow",
                run_id=None,
                evidence={},
            )
        except StaleDecision:
            return  # another process adopted it, or promoted a version; reconcile looks again
        self._finish(promotion)

    def _finish(self, promotion: Promotion) -> bool:
        """Let MLflow follow an intended promotion, and complete it.

        Returns:
            Whether it could: a promotion whose version was deleted after the intent is withdrawn, or it would block
            every other one for ever.
        """
        model, version = promotion.model, promotion.version
        if self._version(model, version) is None:
            self._ledger.withdraw_promotion(promotion.id)
            return False
        if promotion.action == "override":
            # Before it is champion: a crash must not leave an override that bears no mark.
            self._tag(model, version, {"perennial.override_reason": f"{promotion.reason} ({promotion.actor})"})
        compose = alerts.rollback if promotion.action == "rollback" else alerts.promoted
        try:
            if not self._point(promotion):
                return True
            self._ledger.complete_promotion(
                promotion.id,
                alert=compose(
                    model,
                    version=version,
                    previous=promotion.previous,
                    reason=promotion.reason,
                    actor=promotion.actor,
                    links=self._links(model, version),
                ),
            )
        except StaleDecision:
            now = self._ledger.promotion(promotion.id)
            if now.completed_at is None and now.withdrawn_at is None:
                raise
            return now.completed_at is not None  # somebody else has finished it, or given it up, and gone on
        self._show(promotion)
        return True

    def _point(self, promotion: Promotion) -> bool:
        """Move the alias, when it is this process's turn.

        Returns:
            Whether it had to: somebody else may have completed the promotion meanwhile.

        Raises:
            StaleDecision: a later promotion has overtaken this one, or it is nobody's turn for too long.
        """
        model, deadline = promotion.model, time.monotonic() + _PATIENCE.total_seconds()
        while (move := self._ledger.begin_move(promotion, lease=LEASE)) is None:
            time.sleep(_LOOK.total_seconds())
            if promotion.completed_at is None and self._ledger.promotion(promotion.id).completed_at is not None:
                return False
            if time.monotonic() > deadline:
                raise StaleDecision(f"{model}: others have been moving the alias for {_PATIENCE.seconds} seconds; try again")
        self._client.set_registered_model_alias(model, CHAMPION, str(promotion.version))
        # Should this process have slept here for longer than its lease, a later promotion's version has the last word.
        newest = [made for made in self._ledger.promotions(model) if made.withdrawn_at is None][-1]
        if newest.id != promotion.id:
            self._client.set_registered_model_alias(model, CHAMPION, str(newest.version))
        self._ledger.end_move(model, move)
        return True

    def _show(self, promotion: Promotion) -> None:
        """Write on both versions what people look for in MLflow."""
        model, version = promotion.model, promotion.version
        if self._ledger.champion(model) != version:
            return  # others have gone on meanwhile
        since = promotion.intended_at.strftime("%Y-%m-%d %H:%M UTC")
        word = {
            "promote": "promoted",
            "rollback": "rolled back to",
            "adopt": "taken over",
            "override": "promoted against what stood in its way",
        }[promotion.action]
        self._tag(
            model,
            version,
            {
                "perennial.status": CHAMPION,
                "perennial.champion_since": since,
                "perennial.promoted_by": promotion.actor,
                "perennial.promoted_because": f"{word}: {promotion.reason}",
            },
        )
        self._drop_challenger(model, version)
        if promotion.previous is not None and promotion.previous != version:
            status = "rolled back from" if promotion.action == "rollback" else "former champion"
            self._tag(
                model, promotion.previous, {"perennial.status": status, "perennial.champion_until": since}, missing_ok=True
            )

    def _tag(self, model: str, version: int, tags: Mapping[str, str], *, missing_ok: bool = False) -> None:
        for name, value in tags.items():
            for attempt in range(1, _TAG_ATTEMPTS + 1):
                try:
                    self._client.set_model_version_tag(model, str(version), name, value[:_MAX_VERSION_TAG])
                    break
                except MlflowException as error:
                    if missing_ok and error.error_code == _MISSING:
                        return
                    # MLflow looks for the tag and then inserts it: of two who do so at once, the second one finds it there.
                    if not any(collision in str(error) for collision in _COLLISIONS) or attempt == _TAG_ATTEMPTS:
                        raise

    def _alias(self, model: str, alias: str) -> int | None:
        try:
            aliases = self._client.get_registered_model(model).aliases
        except MlflowException as error:
            if error.error_code == _MISSING:
                return None
            raise
        return int(aliases[alias]) if alias in aliases else None

    def _drop_challenger(self, model: str, version: int) -> None:
        if self._alias(model, CHALLENGER) == version:
            self._client.delete_registered_model_alias(model, CHALLENGER)


def _check_signature(directory: Path, takes: FeatureList) -> None:
    """Compare the inputs that an artifact says it takes with those the ledger says it was trained on."""
    try:
        signature = Model.load(str(directory)).signature
        its = {column.name: column.type.name for column in signature.inputs.inputs} if signature else {}
    # MLflow parses the file with whatever errors its YAML and JSON code has.
    except Exception as error:
        raise ArtifactRejected(f"its MLmodel cannot be read: {type(error).__name__}: {error}") from error
    wanted = {**dict.fromkeys(takes.numeric, "double"), **dict.fromkeys(takes.categorical, "string")}
    if its != wanted or list(its) != list(wanted):
        shown = ", ".join(f"{name} {kind}" for name, kind in its.items()) or "nothing"
        raise ArtifactRejected(
            f"its signature takes {shown}; it was registered for {', '.join(f'{name} {kind}' for name, kind in wanted.items())}"
        )


def _still_asked(spec: ModelSpec, answers: list[Approval]) -> str | None:
    """Whether the approval that the model wants is missing."""
    if spec.promotion == "approval" and not any(answer.answer == "approved" for answer in answers):
        return "nobody has approved it yet"
    return None


def _called(version: int | None) -> str:
    return "no champion" if version is None else f"version {version}"


def _verdict_tags(evaluation: Evaluation, decision: GateDecision) -> dict[str, str]:
    return {
        "perennial.gates": "passed" if decision.promote else "refused",
        **{f"holdout.{name}": f"{value:.6g}" for name, value in evaluation.candidate.metrics.items()},
    }


def _describe(evaluation: Evaluation, decision: GateDecision) -> str:
    """A version's description in MLflow, in Markdown."""
    candidate, metric = evaluation.candidate, evaluation.metric
    rivals = [*evaluation.baselines, *([evaluation.champion] if evaluation.champion else [])]
    rows = [
        f"| {rival.name if rival.role != 'champion' else f'champion, version {rival.version}'} | "
        f"{f'{rival.metrics[metric]:.6g}' if metric in rival.metrics else rival.error or 'not measured'} |"
        for rival in [candidate, *rivals]
    ]
    gates = [f"- {'passed' if result.passed else '**refused**'} {result.gate}: {result.reason}" for result in decision.results]
    heading = "All gates passed." if decision.promote else "**Refused by the gates.**"
    table = [f"| model | {metric} on {evaluation.interval} ({evaluation.rows:,} rows) |", "| --- | --- |", *rows]
    return "\n".join([heading, "", *table, "", *gates])[:10_000]
