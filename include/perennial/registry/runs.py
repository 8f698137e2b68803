"""MLflow runs: each logs the training of a candidate, with its stored model."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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

from perennial.core.errors import ScoringError, TrainingError, VersionUnusable
from perennial.evidence.training import StoredModel
from perennial.model import artifacts
from perennial.registry.server import MISSING, Mlflow
from perennial.spec.model import ModelSpec

#: The tag by which a retry finds what an earlier attempt of the same work has logged.
KEY = "perennial.key"
#: Longest text of a run's tag or parameter that MLflow accepts or people can read.
MAX_TAG, _MAX_PARAM = 8_000, 6_000


class CandidateRun:
    """An MLflow run to log a candidate's training in."""

    def __init__(
        self,
        client: MlflowClient,
        info: RunInfo,
        trusted: Callable[[ModelSpec], list[str]],
        readable: Callable[[str], str],
    ) -> None:
        self._client = client
        self._trusted = trusted
        self._readable = readable
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
        """Log in one call. A metric that is not finite is left out, because MLflow would return a different number.

        Args:
            params, metrics, tags: by name.
            model_id: stored model whose page also shows the metrics.
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

    def tags(self) -> dict[str, str]:
        """The run's tags, by name."""
        return dict(self._client.get_run(self.id).data.tags)

    def log_rows(self, name: str, digest: str, source: Mapping[str, Any], *, rows: int, context: str) -> None:
        """Log which rows were used.

        Args:
            name: name of the rows, for people.
            digest: their content hash.
            source: where they can be read again.
            rows: number of rows.
            context: what they were used for: ``training`` or ``evaluation``.
        """
        dataset = Dataset(
            name=name,
            digest=digest[:36],  # MLflow's column holds 36 characters; the full hash is in the source
            source_type="iceberg",
            source=json.dumps({**source, "content_hash": digest}),
            profile=json.dumps({"num_rows": rows}),
        )
        self._client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def log_files(self, directory: Path, path: str | None = None) -> None:
        """Upload all files of a directory to the folder ``path`` of the run's artifacts."""
        self._client.log_artifacts(self.id, str(directory), path)

    def read_files(self, path: str) -> dict[str, bytes]:
        """Return the files in the folder ``path`` of the run's artifacts, by relative path; none if there is no such folder."""
        # Ask by address: by run id, MLflow would also search the run's stored models, which takes seven more requests.
        folder = {"artifact_uri": f"{self._readable(self._artifacts)}/{path}", "tracking_uri": self._client.tracking_uri}
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
        name: str | None = None,
    ) -> StoredModel:
        """Store a fitted estimator in the skops format, with its signature, example and reference sample.

        Args:
            spec: the spec of the model.
            estimator: the fitted estimator.
            example: some rows of its input.
            reference: see :meth:`perennial.model.artifacts.LoadedModel.reference`; None for a baseline.
            params: its parameters.
            name: the name that MLflow's pages show; None for the model's name.

        Raises:
            TrainingError: the estimator contains types that are not trusted, so it could not be loaded again.
        """
        with tempfile.TemporaryDirectory(prefix="perennial-model-") as scratch:
            directory = Path(scratch) / "model"
            stored = self._client.create_logged_model(
                self._experiment_id,
                name=name or spec.name,
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
                    # Without this list, MLflow would load the model in another process to find it: 8.8 s instead of 0.1 s.
                    pip_requirements=[f"{name}=={version}" for name, version in artifacts.environment(spec).items()],
                    serialization_format=mlflow.sklearn.SERIALIZATION_FORMAT_SKOPS,
                    # For people who load it with MLflow; Perennial never reads the list back.
                    skops_trusted_types=self._trusted(spec),
                    signature=_signature(spec, estimator),
                    input_example=example,
                    pyfunc_predict_fn="predict" if spec.task == "regression" else "predict_proba",
                )
                if reference is not None:
                    pq.write_table(reference, directory / artifacts.REFERENCE_FILE, compression="zstd")
                # A model that cannot answer its example is stored without an answer; its gates refuse it and say why.
                with suppress(ScoringError, ValueError, TypeError, IndexError):
                    answered = artifacts.answered_example(spec, estimator, example)
                    pq.write_table(answered, directory / artifacts.EXAMPLE_FILE, compression="zstd")
                manifest = artifacts.manifest(directory)
                self._client.log_model_artifacts(stored.model_id, str(directory))
            except Exception as error:
                # Otherwise MLflow would show it as pending for ever.
                self._client.delete_logged_model(stored.model_id)
                if isinstance(error, MlflowException) and (
                    unknown := artifacts.untrusted_types(estimator, self._trusted(spec))
                ):
                    raise TrainingError(
                        f"{spec.name}: the fitted model contains types that are not trusted: {', '.join(unknown)}. If you know "
                        "that it is safe to load them, add them to training.trusted_types, and to PERENNIAL_TRUSTED_TYPES "
                        "where that is set"
                    ) from error
                raise
            self._client.finalize_logged_model(stored.model_id, "READY")
            self._client.log_outputs(self.id, [LoggedModelOutput(stored.model_id, 0)])
        return StoredModel(stored.model_id, manifest)


def _signature(spec: ModelSpec, estimator: Any) -> ModelSignature:
    """Declare numbers as doubles, which can be missing, and categories as strings.

    The signature is not inferred from an example. A column with only whole numbers in the example would become an integer
    column, which rejects missing values.
    """
    inputs: list[Any] = [ColSpec("double", name) for name in spec.features.numeric]
    inputs += [ColSpec("string", name) for name in spec.features.categorical]
    shape = (-1,) if spec.task == "regression" else (-1, len(estimator.classes_))
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([TensorSpec(np.dtype("float64"), shape)]))


class Runs(Mlflow):
    """Runs in the models' experiments."""

    @contextmanager
    def open_run(self, model: str, name: str, tags: Mapping[str, str]) -> Iterator[CandidateRun]:
        """Open a new run in the model's experiment. It ends as finished, or as failed if an error leaves the block.

        Args:
            model: the model, whose name is the experiment's.
            name: name of the run.
            tags: tags to find it by.
        """
        experiment = self._experiment(model)
        run = self._client.create_run(experiment, run_name=name, tags=dict(tags))
        try:
            yield CandidateRun(self._client, run.info, self.trusted, self._readable)
        except BaseException:
            self._client.set_terminated(run.info.run_id, "FAILED")
            raise
        self._client.set_terminated(run.info.run_id, "FINISHED")

    def run(self, mlflow_run_id: str) -> CandidateRun:
        """Return a run that was logged before, to add to it."""
        return CandidateRun(self._client, self._client.get_run(mlflow_run_id).info, self.trusted, self._readable)

    def files_of_run(self, mlflow_run_id: str, path: str) -> dict[str, bytes]:
        """Return the files in the folder ``path`` of a run, by relative path; none if there is no such folder.

        Raises:
            VersionUnusable: MLflow answers that it has no such run.
        """
        try:
            return self.run(mlflow_run_id).read_files(path)
        except MlflowException as error:
            if error.error_code != MISSING:
                raise
            raise VersionUnusable(f"MLflow has no run {mlflow_run_id} any more") from error

    def find_run(self, model: str, key: str) -> dict[str, str] | None:
        """Return the tags of the newest finished run whose tag :data:`KEY` is ``key``; None if there is none.

        Runs with this tag that are still open belong to a process that was killed; they are closed.

        Args:
            model: the model.
            key: a text of letters and digits.
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
            The number of runs that were closed.
        """
        before = int((datetime.now(UTC) - older_than).timestamp() * 1000)
        found = self._client.search_runs(
            [self._experiment(model)], f"attributes.status = 'RUNNING' and attributes.start_time < {before}"
        )
        for run in found:
            self._client.set_terminated(run.info.run_id, "KILLED")
        return len(found)
