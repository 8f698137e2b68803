"""Test in a clean process whether a stored candidate works in production.

A model may depend on modules that its own process happened to import. It may also be slow or large. The process that fitted
it does not show this. So a new interpreter checks and loads a copy of the stored files, as scoring does, predicts rows of the
holdout, and measures the time. This takes seconds, mostly for imports, and runs beside the rest of the evaluation.

Neighbours: :mod:`perennial.training.evaluate` starts it. :mod:`perennial.evaluation.gates` decides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from perennial.core.errors import ArtifactRejected, PerennialError
from perennial.evidence.evaluation import Operation
from perennial.model import artifacts
from perennial.model.artifacts import FeatureList, LoadedModel, Prediction
from perennial.spec.model import ModelSpec

if TYPE_CHECKING:
    from perennial.model.candidate import Fitted


#: Number of rows that the latency is measured for. If the holdout is smaller, its rows are repeated.
ROWS = 1_000

_REPEATS = 5
_PATIENCE = 300.0
_ROWS_FILE, _ANSWERS_FILE, _REPORT_FILE = "rows.arrow", "answers.npy", "report.json"


class CleanProcess:
    """A clean process that loads a candidate and predicts rows. It is a context manager, and ends with its context.

    The process starts immediately. It imports its modules while the caller still reads the rows.
    """

    def __init__(self) -> None:
        self._scratch = ExitStack()
        self._directory = Path(self._scratch.enter_context(tempfile.TemporaryDirectory(prefix="perennial-readiness-")))
        self._rows = pa.table({})
        self._problem: str | None = None
        self._process = subprocess.Popen(  # noqa: S603  # this interpreter, this module
            [sys.executable, "-m", "perennial.evaluation.readiness", str(self._directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._scratch.enter_context((self._directory / "errors").open("wb")),
            # Idle OpenMP threads that spin would slow down the evaluation beside it.
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )

    def ask(
        self, spec: ModelSpec, fitted: Fitted, rows: pa.Table, fetch: Callable[[Path], Path], trusted: Sequence[str]
    ) -> None:
        """Ask the process to load a candidate and to predict rows. :meth:`wait` gives the result.

        Args:
            spec: the spec of the model.
            fitted: the candidate.
            rows: rows of the holdout. The first :data:`ROWS` are predicted.
            fetch: copies the stored files into a folder, and returns the folder in it that has them.
            trusted: the types that it may hold, see :func:`perennial.model.artifacts.trusted_types`.
        """
        self._rows = rows.select([name for name in spec.features.names if name in rows.column_names]).slice(0, ROWS)
        with pa.OSFile(str(self._directory / _ROWS_FILE), "wb") as sink, pa.ipc.new_file(sink, self._rows.schema) as writer:
            writer.write_table(self._rows)
        copy = self._directory / "artifact"
        copy.mkdir()
        try:
            request = {
                "artifact": str(fetch(copy)),
                "manifest": fitted.manifest,
                "packages": fitted.code.packages,
                "trusted": list(trusted),
                "task": spec.task,
                "numeric": spec.features.numeric,
                "categorical": spec.features.categorical,
            }
        except ArtifactRejected as error:
            self._problem = str(error)
            return
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:  # if the process has died, wait() reports its errors
            pipe.write(json.dumps(request).encode())

    def __enter__(self) -> CleanProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._scratch.close()

    def wait(self, model: LoadedModel | None) -> Operation:
        """Wait for the process and return its result.

        Args:
            model: the candidate as it was loaded here. Its predictions must be the same. None if it could not be loaded.
        """
        if self._rows.num_rows == 0:
            return Operation(problem="the holdout has no row to test on")
        if self._problem is not None:
            return Operation(problem=self._problem)
        try:
            self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            return Operation(problem=f"the clean process has not answered within {_PATIENCE:g} seconds")
        report = self._directory / _REPORT_FILE
        if self._process.returncode != 0 or not report.is_file():
            last = (self._directory / "errors").read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
            return Operation(problem=f"the clean process ended with status {self._process.returncode}: {last[0]}")
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        if found["problem"] or model is None:
            return Operation(problem=found["problem"] or "it could not be loaded here to compare the predictions")
        answers = np.load(self._directory / _ANSWERS_FILE, allow_pickle=False)
        return Operation(
            rows=len(answers),
            difference=_largest_difference(answers, _numbers(model.predict(self._rows))),
            same_features=found["features"] == model.features,
            latency=found["latency"],
            load_seconds=found["load_seconds"],
            artifact_mb=found["artifact_mb"],
        )


def _numbers(prediction: Prediction) -> NDArray[np.float64]:
    return np.asarray(prediction.values if prediction.probabilities is None else prediction.probabilities, dtype=np.float64)


def _largest_difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return None
    return float(np.abs(one - other).max())


# --- in the clean process --------------------------------------------------------------------------------------------


def _try_out(request: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Load the candidate, predict the rows, and measure. The predictions are written to a file."""
    artifact = Path(request["artifact"])
    started = time.perf_counter()
    try:
        artifacts.check_manifest(artifact, request["manifest"])
        artifacts.check_environment(request["packages"])
        model = LoadedModel(
            name="the stored candidate",
            version=None,
            task=request["task"],
            takes=FeatureList(tuple(request["numeric"]), tuple(request["categorical"])),
            trained_on="",
            features_digest="",
            estimator=artifacts.load_estimator(artifact, request["trusted"]),
            sample=pa.table({}),
        )
        loaded = time.perf_counter()
        with pa.memory_map(str(directory / _ROWS_FILE)) as source:
            rows = pa.ipc.open_file(source).read_all()
        np.save(directory / _ANSWERS_FILE, _numbers(model.predict(rows)), allow_pickle=False)
        latency = _latency(model, rows)
    except PerennialError as error:
        return {"problem": str(error)}
    return {
        "problem": None,
        "features": model.features,
        "latency": latency,
        "load_seconds": loaded - started,
        "artifact_mb": artifacts.size(artifact) / 1e6,
    }


def _latency(model: LoadedModel, rows: pa.Table) -> float:
    """Milliseconds for :data:`ROWS` rows: the fastest of several runs, since other processes share the machine."""
    full = pa.concat_tables([rows] * -(-ROWS // rows.num_rows)).slice(0, ROWS)
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        model.predict(full)
        seconds.append(time.perf_counter() - started)
    return 1_000 * min(seconds)


def main(directory: Path) -> None:
    """The work of the clean process: read the request from standard input, and write the report to ``directory``."""
    report = _try_out(json.loads(sys.stdin.buffer.read()), directory)
    (directory / _REPORT_FILE).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
