"""Test in a clean process whether a stored candidate works in production.

A model may depend on modules that its own process happened to import, on secrets, or on a network. It may also be slow or
large. The process that fitted it does not show this. So a new, confined process loads a copy of the stored files after the
checks of scoring, predicts rows of the holdout, and is timed. This takes seconds, mostly for imports, and runs beside the rest
of the evaluation.

Neighbours: :mod:`perennial.training.evaluate` starts it. :mod:`perennial.evaluation.gates` decides.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from perennial.core.errors import PerennialError
from perennial.evaluation.confined import ConfinedEstimator, ConfinedProcess
from perennial.evidence.evaluation import Operation
from perennial.model import artifacts
from perennial.model.artifacts import FeatureList, LoadedModel, Prediction
from perennial.spec.model import ModelSpec

if TYPE_CHECKING:
    from perennial.model.candidate import Fitted


#: Number of rows that the latency is measured for. If the holdout is smaller, its rows are repeated.
ROWS = 1_000

_REPEATS = 5


class CleanProcess:
    """A clean process that loads a candidate and predicts rows. It is a context manager, and ends with its context.

    The process starts immediately. It imports its modules while the caller still reads the rows.
    """

    def __init__(self) -> None:
        self._process = ConfinedProcess()
        self._rows = pa.table({})
        self._problem: str | None = None
        self._seconds, self._size = 0.0, 0

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def ask(
        self, spec: ModelSpec, fitted: Fitted, rows: pa.Table, fetch: Callable[[Path], Path], trusted: Sequence[str]
    ) -> None:
        """Ask the process to load a candidate. :meth:`wait` has it predict, and gives the result.

        Args:
            spec: the spec of the model.
            fitted: the candidate.
            rows: rows of the holdout. The first :data:`ROWS` are predicted.
            fetch: copies the stored files into a folder, and returns the folder in it that has them.
            trusted: the types that it may hold, see :func:`perennial.model.artifacts.trusted_types`.
        """
        self._rows = rows.select([name for name in spec.features.names if name in rows.column_names]).slice(0, ROWS)
        with tempfile.TemporaryDirectory(prefix="perennial-readiness-") as scratch:
            try:
                copy = fetch(Path(scratch))
                started = time.perf_counter()
                artifacts.check_manifest(copy, fitted.manifest)
                artifacts.check_environment(fitted.code.packages)
                file = self._process.give(copy / artifacts.MODEL_FILE)
                self._seconds, self._size = time.perf_counter() - started, artifacts.size(copy)
            except PerennialError as error:
                self._problem = str(error)
                return
        self._process.send("load", file=file, trusted=list(trusted))
        self._takes, self._task = FeatureList.of(spec), spec.task

    def __enter__(self) -> CleanProcess:
        self._process.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.__exit__(kind, error, trace)

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
            said, _ = self._process.receive()
            its = LoadedModel(
                "the stored candidate", None, self._task, self._takes, "", "",
                ConfinedEstimator(self._process, int(said["model"]), said["classes"]), pa.table({}),
            )  # fmt: skip
            answers = _numbers(its.predict(self._rows))
            latency = _latency(its, self._rows)
        except PerennialError as error:
            return Operation(problem=f"in a clean process: {error}")
        if model is None:
            return Operation(problem="it could not be loaded here to compare the predictions")
        return Operation(
            rows=len(answers),
            difference=_largest_difference(answers, _numbers(model.predict(self._rows))),
            same_features=self._takes == model.takes,
            latency=latency,
            load_seconds=self._seconds + max(0.0, float(said["seconds"])),
            artifact_mb=self._size / 1e6,
        )


def _latency(model: LoadedModel, rows: pa.Table) -> float:
    """Milliseconds for :data:`ROWS` rows: the fastest of several runs, since other processes share the machine."""
    full = pa.concat_tables([rows] * -(-ROWS // rows.num_rows)).slice(0, ROWS)
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        model.predict(full)
        seconds.append(time.perf_counter() - started)
    return 1_000 * min(seconds)


def _numbers(prediction: Prediction) -> NDArray[np.float64]:
    return np.asarray(prediction.values if prediction.probabilities is None else prediction.probabilities, dtype=np.float64)


def _largest_difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return None
    return float(np.abs(one - other).max())
