"""Runs the code of models, and loads stored models, in confined processes. What comes back is numbers and texts.

A process that decides which version is champion compares predictions. So that nobody's code can change what it compares,
code runs in a process of its own: each model whose types or functions Perennial does not know itself, each cost function, each
behaviour test. Such a process sees features, and labels only if it fits; it never sees which prediction is whose.

:class:`Confinement` is the asking half. :func:`serve` is the program of the process.

Neighbours: :mod:`perennial.core.confinement` takes the process's rights away. :mod:`perennial.model.authors_code` hands over.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from perennial.core.confinement import nursery
from perennial.core.errors import (
    ArtifactRejected,
    PerennialError,
    ScoringError,
    SpecError,
    TrainingError,
    VersionUnusable,
)
from perennial.evaluation.probes import ask_behaviour
from perennial.model import artifacts
from perennial.model.artifacts import FeatureList, LoadedModel
from perennial.model.costs import cost_function
from perennial.model.estimators import fit_estimator
from perennial.model.labels import LABEL, labels_of
from perennial.spec.folder import ModelFolder, read_model
from perennial.spec.types import Task

#: Seconds that a process has for one answer; a fit may take longer.
PATIENCE, FIT_PATIENCE = 300.0, 3_600.0
#: Most bytes of memory of a process.
MEMORY = 8 << 30
#: Longest text that a process may give, and most bytes of an answer besides its numbers.
_MOST_WORDS, _MOST_HEADER = 2_000, 1 << 20
#: How far the probabilities of a row may be from 1 in sum. Some boosters compute with 32 bits.
_ROUNDING = 1e-4

#: What a process that ends without an answer means, by what it was asked.
_FAILURES: dict[str, type[PerennialError]] = {
    "load": ArtifactRejected, "predict": ScoringError, "fit": TrainingError, "cost": SpecError, "behave": SpecError,
}  # fmt: skip
_ERRORS = {error.__name__: error for error in (ArtifactRejected, ScoringError, SpecError, TrainingError, VersionUnusable)}

_VALUE, _TRUTH, _PREDICTED, _WEIGHT = "value", "truth", "predicted", "_weight"


class ConfinedProcess:
    """One confined process, and the folder of files that are given to it. It is a context manager, and ends with its context.

    It starts at once: its nursery has imported everything.

    Args:
        memory: most bytes of memory.
        patience: most seconds for an answer, except for that of a fit.
    """

    def __init__(self, memory: int = MEMORY, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._scratch = ExitStack()
        self._folder = Path(self._scratch.enter_context(tempfile.TemporaryDirectory(prefix="perennial-confined-")))
        self._errors = self._scratch.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # it is one
        self._nursery = nursery(__name__)
        self.pid, self._connection = self._nursery.start(self._folder, self._errors, memory=memory)
        self._asked: list[str] = []

    def give(self, file: Path) -> str:
        """Copy a file to where the process can read it, and return its name there."""
        name = f"{len(list(self._folder.iterdir()))}-{file.name}"
        shutil.copyfile(file, self._folder / name)
        return name

    def give_folder(self, folder: ModelFolder) -> str:
        """Write a model folder to where the process can read it, and return its name there."""
        name = hashlib.sha256(f"{folder.spec.name}\0{folder.digest}".encode()).hexdigest()[:16]
        place = self._folder / name / folder.spec.name
        if not place.exists():
            place.mkdir(parents=True)
            for file, text in folder.files.items():
                (place / file).write_text(text, encoding="utf-8")
        return f"{name}/{folder.spec.name}"

    def send(self, what: str, table: pa.Table | None = None, **said: Any) -> None:
        """Ask for something. :meth:`receive` waits for the answer."""
        self._asked.append(what)
        with suppress(BrokenPipeError, ConnectionResetError):  # if the process has died, receive() tells
            self._connection.send_bytes(json.dumps({"do": what, **said}).encode())
            self._connection.send_bytes(b"" if table is None else _as_bytes(table))

    def receive(self) -> tuple[dict[str, Any], pa.Table]:
        """The answer to the oldest question.

        Raises:
            PerennialError: as the process has raised it, or of the kind that fits the question: it ended, or took too long.
        """
        what = self._asked.pop(0)
        patience = FIT_PATIENCE if what == "fit" else self._patience
        try:
            answer = json.loads(self._receive(patience, _MOST_HEADER))
            body = self._receive(patience, None)
            table = pa.ipc.open_stream(body).read_all() if body else pa.table({})
        except _NoAnswer as error:
            raise _FAILURES[what](str(error)) from error
        except (ValueError, KeyError, pa.ArrowInvalid) as error:
            self.end()
            raise _FAILURES[what](f"its process gave something that is no answer: {type(error).__name__}") from error
        if (error_name := answer.get("error")) is not None:
            raise _ERRORS.get(error_name, _FAILURES[what])(_printable(answer.get("words", "")))
        return answer, table

    def ask(self, what: str, table: pa.Table | None = None, **said: Any) -> tuple[dict[str, Any], pa.Table]:
        """Send a question and wait for the answer."""
        self.send(what, table, **said)
        return self.receive()

    def _receive(self, patience: float, most: int | None) -> bytes:
        try:
            if not self._connection.poll(patience):
                self.end()
                raise _NoAnswer(f"its process has not answered within {patience:g} seconds, and was ended")
            return self._connection.recv_bytes(most)
        except (EOFError, OSError) as error:
            status = self.end()
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
            raise _NoAnswer(f"its process ended with status {status}: {_printable(last[0])}") from error

    def end(self) -> int | None:
        """Kill the process, and whatever it has started. Returns its exit code; None if it has ended with its nursery."""
        try:
            return self._nursery.end(self.pid)
        except EOFError:
            return None

    def __enter__(self) -> ConfinedProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()
        self._connection.close()
        self._scratch.close()


class _NoAnswer(Exception):
    """The process ended or took too long."""


def _printable(text: object) -> str:
    shown = "".join(character if character.isprintable() else " " for character in str(text))
    return shown[:_MOST_WORDS]


class ConfinedEstimator:
    """An estimator in a confined process.

    Attributes:
        classes_: the classes as texts; empty for a regression.
        number: what its process calls it.
        again_in: makes the same estimator in another process.
    """

    def __init__(
        self,
        process: ConfinedProcess,
        number: int,
        classes: Sequence[str],
        again_in: Callable[[ConfinedProcess], ConfinedEstimator] | None = None,
    ) -> None:
        self.classes_ = [str(name) for name in classes]
        self.number, self.again_in = number, again_in
        self._process = process

    def predict(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """n numbers."""
        values = self._ask("predict", frame)
        if values.shape != (len(frame), 1):
            raise ScoringError(f"the model gave predictions of the shape {values.shape}; {len(frame):,} numbers are required")
        return values[:, 0]

    def predict_proba(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """n by k probabilities.

        Raises:
            ScoringError: they are no probabilities.
        """
        values = self._ask("predict_proba", frame)
        if values.shape != (len(frame), len(self.classes_)):
            raise ScoringError(
                f"the model gave predictions of the shape {values.shape}; {len(frame):,} rows of {len(self.classes_)} "
                "probabilities are required"
            )
        known = values[np.isfinite(values).all(axis=1)]
        if known.size and (known.min() < 0 or known.max() > 1 or np.abs(known.sum(axis=1) - 1).max() > _ROUNDING):
            raise ScoringError("the model gave no probabilities: its numbers lie outside 0 to 1, or do not add up to 1")
        return values

    def _ask(self, method: str, frame: pd.DataFrame) -> NDArray[np.float64]:
        _, table = self._process.ask("predict", _from_frame(frame), model=self.number, method=method, **_kinds(frame))
        return _numbers(table)


class Confinement:
    """A :class:`perennial.model.authors_code.Place` of confined processes. It is a context manager, and ends them all.

    Args:
        memory, patience: of each process, see :class:`ConfinedProcess`.
    """

    def __init__(self, memory: int = MEMORY, patience: float = PATIENCE) -> None:
        self._limits, self._processes = (memory, patience), ExitStack()
        self._costs: dict[str, ConfinedProcess] = {}

    @cached_property
    def _shared(self) -> ConfinedProcess:
        """Models of known types share a process. Nothing in it is anybody's own code."""
        return self._start()

    def _start(self) -> ConfinedProcess:
        return self._processes.enter_context(ConfinedProcess(*self._limits))

    def load(self, file: Path, trusted: Sequence[str]) -> ConfinedEstimator:
        """See :class:`perennial.model.authors_code.Place`."""
        kept = file.read_bytes()

        def made_in(process: ConfinedProcess) -> ConfinedEstimator:
            with tempfile.TemporaryDirectory(prefix="perennial-load-") as scratch:
                copy = Path(scratch) / artifacts.MODEL_FILE
                copy.write_bytes(kept)
                said, _ = process.ask("load", file=process.give(copy), trusted=list(trusted))
            return ConfinedEstimator(process, int(said["model"]), said["classes"], made_in)

        return made_in(self._start() if set(trusted) - set(artifacts.TRUSTED_TYPES) else self._shared)

    def fit(
        self,
        folder: ModelFolder,
        name: str,
        params: Mapping[str, Any],
        frame: pd.DataFrame,
        truth: NDArray[Any],
        weight: NDArray[Any] | None,
    ) -> ConfinedEstimator:
        """See :class:`perennial.model.authors_code.Place`."""

        def made_in(process: ConfinedProcess) -> ConfinedEstimator:
            rows = _from_frame(frame).append_column(LABEL, pa.array(truth))
            if weight is not None:
                rows = rows.append_column(_WEIGHT, pa.array(weight))
            said, _ = process.ask(
                "fit", rows, folder=process.give_folder(folder), name=name, params=dict(params), **_kinds(frame)
            )  # fmt: skip
            return ConfinedEstimator(process, int(said["model"]), said["classes"], made_in)

        return made_in(self._start() if folder.spec.candidates[name].estimator.startswith("model:") else self._shared)

    def cost(
        self, folder: ModelFolder, truth: NDArray[Any], predicted: NDArray[Any]
    ) -> NDArray[np.float64]:  # fmt: skip
        """See :class:`perennial.model.authors_code.Place`."""
        process = self._costs.get(folder.digest)
        if process is None:
            process = self._costs[folder.digest] = self._start()
        rows = pa.table({_TRUTH: pa.array(truth), _PREDICTED: pa.array(predicted, from_pandas=False)})
        _, table = process.ask("cost", rows, folder=process.give_folder(folder))
        return _numbers(table)[:, 0] if table.num_columns else np.empty(0)

    def behave(
        self, folder: ModelFolder, reference: str, task: Task, estimator: Any, frame: pd.DataFrame
    ) -> str | None:  # fmt: skip
        """See :class:`perennial.model.authors_code.Place`. The test gets the estimator in a process of its own."""
        with ConfinedProcess(*self._limits) as process:
            its = estimator.again_in(process)
            said, _ = process.ask(
                "behave", _from_frame(frame), folder=process.give_folder(folder), reference=reference, task=task,
                model=its.number, **_kinds(frame),
            )  # fmt: skip
        words = said["said"]
        return None if words is None else _printable(words)

    def __enter__(self) -> Confinement:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._processes.close()


# --- tables ----------------------------------------------------------------------------------------------------------


def _as_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _kinds(frame: pd.DataFrame) -> dict[str, list[str]]:
    numeric = [str(name) for name in frame.columns if frame[name].dtype.kind == "f"]
    return {"numeric": numeric, "categorical": [str(name) for name in frame.columns if name not in numeric]}


def _from_frame(frame: pd.DataFrame) -> pa.Table:
    """Features as :meth:`perennial.model.artifacts.FeatureList.frame` gives them, and reads them again."""
    numeric = _kinds(frame)["numeric"]
    return pa.table(
        {
            str(name): pa.array(frame[name].to_numpy())
            if name in numeric
            else pa.array(frame[name].to_numpy(), pa.string(), from_pandas=True)
            for name in frame.columns
        }
    )


def _numbers(table: pa.Table) -> NDArray[np.float64]:
    """n by k numbers.

    Raises:
        ScoringError: something else came.
    """
    if any(not pa.types.is_float64(column.type) or column.null_count for column in table.columns):
        raise ScoringError("the model gave something else than numbers")
    if not table.num_columns:
        return np.empty((0, 0))
    return np.column_stack([column.to_numpy() for column in table.columns])


def _table(values: NDArray[np.float64]) -> pa.Table:
    columns = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    return pa.table({f"{_VALUE}{number}": columns[:, number].copy() for number in range(columns.shape[1])})


# --- in the confined process -----------------------------------------------------------------------------------------


class _Work:
    """What the process has loaded and fitted.

    Args:
        folder: the files that it was given.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._estimators = folder, list[Any]()
        self._folders: dict[str, ModelFolder] = {}

    def do(self, what: str, said: Mapping[str, Any], rows: pa.Table) -> tuple[dict[str, Any], pa.Table | None]:
        """One question and its answer."""
        match what:
            case "load":
                started = time.perf_counter()
                estimator = artifacts.load_file(self._folder / said["file"], said["trusted"])
                return {**self._keep(estimator), "seconds": time.perf_counter() - started}, None
            case "fit":
                frame = self._frame(said, rows)
                weight = rows.column(_WEIGHT).to_numpy() if _WEIGHT in rows.column_names else None
                given = said["name"], said["params"], frame, labels_of(rows), weight
                return self._keep(fit_estimator(self._read(said), *given)), None
            case "predict":
                estimator = self._estimators[said["model"]]
                return {}, _table(getattr(estimator, said["method"])(self._frame(said, rows)))
            case "cost":
                cost = cost_function(self._read(said))
                truth, predicted = (rows.column(name).to_numpy() for name in (_TRUTH, _PREDICTED))
                return {}, None if cost is None else _table(cost(truth, predicted))
            case "behave":
                return {"said": self._behave(said, rows)}, None
        raise ValueError(what)

    def _keep(self, estimator: Any) -> dict[str, Any]:
        self._estimators.append(estimator)
        classes = [str(label) for label in getattr(estimator, "classes_", [])]
        return {"model": len(self._estimators) - 1, "classes": classes}

    def _read(self, said: Mapping[str, Any]) -> ModelFolder:
        name = said["folder"]
        if name not in self._folders:
            self._folders[name] = read_model(self._folder / name)
        return self._folders[name]

    def _frame(self, said: Mapping[str, Any], rows: pa.Table) -> pd.DataFrame:
        return _takes(said).frame(rows)

    def _behave(self, said: Mapping[str, Any], rows: pa.Table) -> str | None:
        takes = _takes(said)
        model = LoadedModel("the model", None, said["task"], takes, "", "", self._estimators[said["model"]], pa.table({}))
        return ask_behaviour(self._read(said), said["reference"], model, takes.frame(rows))


def _takes(said: Mapping[str, Any]) -> FeatureList:
    return FeatureList(tuple(said["numeric"]), tuple(said["categorical"]))


def serve(connection: Connection, folder: Path) -> None:
    """The program of a confined process: answer questions until nobody asks any more."""
    work = _Work(folder)
    while True:
        try:
            said = json.loads(connection.recv_bytes())
            body = connection.recv_bytes()
        except EOFError:
            return
        table: pa.Table | None = None
        try:
            rows = pa.ipc.open_stream(body).read_all() if body else pa.table({})
            answer, table = work.do(said["do"], said, rows)
            sent = b"" if table is None else _as_bytes(table)
            header = json.dumps(answer).encode()
        except PerennialError as error:
            header, sent = _refusal(type(error).__name__, str(error)), b""
        # The code of a model may raise anything; so may a library, if there is not enough memory.
        except BaseException as error:
            header, sent = _refusal("", f"{type(error).__name__}: {error}"), b""
        connection.send_bytes(header)
        connection.send_bytes(sent)


def _refusal(name: str, words: str) -> bytes:
    return json.dumps({"error": name, "words": words[:_MOST_WORDS]}).encode()
