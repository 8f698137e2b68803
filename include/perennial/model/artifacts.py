"""Stored models: written so that they can be checked, and loaded only once they have been.

A model that is loaded may run code, so nothing in an artifact is believed about the artifact itself. The SHA-256 of each
of its files is kept in the ledger; the files must be exactly those before any is opened, and what skops may construct
is decided by :data:`TRUSTED_TYPES` and the model's own ``training.trusted_types``, never by the list that lies beside
the model. MLflow's loader is not used: it follows the artifact's own ``MLmodel``, which can say pickle.

Neighbours: :mod:`perennial.registry.store` moves artifacts to and from MLflow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import skops.io
from numpy.typing import NDArray

from perennial.core.errors import ArtifactRejected, ScoringError
from perennial.core.private_parts import TREE_TYPES
from perennial.spec.model import ModelSpec
from perennial.spec.types import Task

#: What stored models hold beyond the types skops trusts by itself. Each only keeps numbers.
TRUSTED_TYPES = ("numpy.dtype", *TREE_TYPES)

#: Packages whose versions decide what a stored model computes; kept with every version.
PACKAGES = ("scikit-learn", "numpy", "scipy", "pandas", "skops", "mlflow")

MODEL_FILE = "model.skops"
REFERENCE_FILE = "reference.parquet"


@dataclass(frozen=True)
class Prediction:
    """Predictions for n rows.

    Attributes:
        values: probability of true (binary), class (multiclass; objects that are texts) or number (regression).
        probability: of ``values``' outcome, float64: the same as ``values`` for binary, None for regression.
        probabilities: n by len(classes), None for regression.
        classes: of the columns of ``probabilities``, as texts.
    """

    values: NDArray[Any]
    probability: NDArray[np.float64] | None
    probabilities: NDArray[np.float64] | None
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | NDArray[Any]) -> Prediction:
        """Those for some of the rows."""

        def of(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[rows]

        return Prediction(self.values[rows], of(self.probability), of(self.probabilities), self.classes)

    @property
    def digest(self) -> str:
        """SHA-256 of all that is predicted, to the last bit; the same for the same rows in the same order."""
        numbers = self.values if self.probabilities is None else self.probabilities
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        digest.update(np.ascontiguousarray(numbers, dtype=np.float64).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class FeatureList:
    """The features a model takes, in order."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]

    @classmethod
    def of(cls, spec: ModelSpec) -> FeatureList:
        return cls(tuple(spec.features.numeric), tuple(spec.features.categorical))

    @property
    def names(self) -> list[str]:
        return [*self.numeric, *self.categorical]

    def frame(self, rows: pa.Table) -> pd.DataFrame:
        """What estimators are given: numeric features as float64 with NaN, categorical ones as texts with None.

        Raises:
            ScoringError: ``rows`` lacks a feature, or a value cannot be cast.
        """
        if missing := [name for name in self.names if name not in rows.column_names]:
            raise ScoringError(f"the rows lack the features {', '.join(missing)}; build features again for this interval")
        columns: dict[str, Any] = {}
        try:
            for name in self.numeric:
                columns[name] = _column(rows, name, pa.float64()).to_numpy(zero_copy_only=False)
            for name in self.categorical:
                columns[name] = _texts(_column(rows, name, pa.string()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ScoringError(f"feature {name} is a {rows.schema.field(name).type} that cannot be cast: {error}") from error
        return pd.DataFrame(columns, copy=False)


def _column(rows: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    column = rows.column(name).combine_chunks()
    return column if column.type == kind else pc.cast(column, kind)


def _texts(column: pa.Array) -> NDArray[np.object_]:
    """Texts with None, one object for each distinct text: objects of their own take longer to make and to look up."""
    encoded = column.dictionary_encode()
    texts = np.append(encoded.dictionary.to_numpy(zero_copy_only=False), [None])
    return np.asarray(texts[encoded.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False)])


def predict(task: Task, estimator: Any, frame: pd.DataFrame) -> Prediction:
    """Predictions of a fitted estimator for a frame made by :meth:`FeatureList.frame`.

    Raises:
        ScoringError: it gave another number of predictions than there are rows, or of columns than there are classes.
    """
    if task == "regression":
        values = np.asarray(estimator.predict(frame), dtype=np.float64)
        _expect_shape(values, (len(frame),))
        return Prediction(values, None, None, ())
    classes = tuple(str(label) for label in estimator.classes_)
    probabilities = np.asarray(estimator.predict_proba(frame), dtype=np.float64)
    _expect_shape(probabilities, (len(frame), len(classes)))
    if task == "binary_classification":
        if "True" not in classes:
            raise ScoringError(f"the model knows the classes {', '.join(classes)}, but not True")
        of_true = probabilities[:, classes.index("True")]
        return Prediction(of_true, of_true, probabilities, classes)
    # A row whose probabilities are not all numbers has no likeliest class.
    known: NDArray[np.bool_] = np.asarray(np.isfinite(probabilities).all(axis=1))
    best = np.where(known[:, None], probabilities, 0.0).argmax(axis=1)
    values = np.array(classes, dtype=object)[best]
    values[~known] = None
    return Prediction(values, probabilities[np.arange(len(frame)), best], probabilities, classes)


def _expect_shape(predicted: NDArray[Any], shape: tuple[int, ...]) -> None:
    if predicted.shape != shape:
        raise ScoringError(f"the model gave predictions of shape {predicted.shape} where {shape} was wanted")


@dataclass(frozen=True)
class LoadedModel:
    """A model whose artifact matched its manifest.

    Attributes:
        name: for messages, such as ``flight_delay version 3``.
        version: its number; None for a candidate that is not registered.
        takes: the features it wants.
        trained_on: key of the interval it learned from.
        features_digest: of the features it learned from, see :class:`perennial.spec.folder.ModelFolder`.
        estimator: the scikit-learn estimator.
        sample: see :meth:`reference`.
        size: bytes of its files.
    """

    name: str
    version: int | None
    task: Task
    takes: FeatureList
    trained_on: str
    features_digest: str
    estimator: Any
    sample: pa.Table
    size: int = 0

    @property
    def features(self) -> list[str]:
        """Names, numeric before categorical; :meth:`predict` needs a table that has them."""
        return self.takes.names

    @property
    def classes(self) -> tuple[str, ...]:
        """As texts, in the order of probabilities; empty for regression."""
        return () if self.task == "regression" else tuple(str(label) for label in self.estimator.classes_)

    def predict(self, features: pa.Table) -> Prediction:
        """Predictions for rows that have the model's features, in their order; other columns are ignored.

        Raises:
            ScoringError: a feature is missing or of a wrong type, or the estimator failed or answered in a wrong shape.
        """
        try:
            return predict(self.task, self.estimator, self.takes.frame(features))
        except ScoringError as error:
            raise ScoringError(f"{self.name}: {error}") from error
        except (ValueError, TypeError, IndexError) as error:
            raise ScoringError(f"{self.name} cannot predict these rows: {error}") from error

    def reference(self) -> pa.Table:
        """A seeded sample of what the model learned from, for drift: features, event time, ``label`` and ``prediction``.

        ``prediction`` (for multiclass ``probabilities`` too, as :mod:`perennial.scoring.publish` writes them) was made by
        the same settings without having seen the row: it is there for rows of the validation part and null for older ones.
        A model's predictions on rows it learned from are too sure of themselves, and would make every later interval look
        drifted.
        """
        return self.sample


# --- writing ---------------------------------------------------------------------------------------------------------


def untrusted_types(estimator: Any, trusted: Iterable[str]) -> list[str]:
    """Types in an estimator that neither skops nor ``trusted`` vouches for; loading it would be refused."""
    found = skops.io.get_untrusted_types(data=skops.io.dumps(estimator))
    return sorted(set(found) - set(trusted))


def trusted_types(spec: ModelSpec) -> list[str]:
    """All types that a stored model of this folder may hold beyond those skops itself trusts."""
    return sorted({*TRUSTED_TYPES, *spec.training.trusted_types})


@lru_cache(maxsize=1)
def _versions() -> tuple[tuple[str, str], ...]:
    return tuple((package, version(package)) for package in PACKAGES)


def environment() -> dict[str, str]:
    """Versions of the packages in :data:`PACKAGES` in this process."""
    return dict(_versions())


def manifest(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory, by its path relative to it with ``/``.

    Raises:
        ArtifactRejected: something below it is neither a file nor a directory; a symbolic link may lead anywhere.
    """
    found: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactRejected(f"{name} is neither a file nor a directory")
        if path.is_file():
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


# --- reading ---------------------------------------------------------------------------------------------------------


def check_source(source: str) -> None:
    """Refuse an address that leads out of where it seems to lie, however often its dots are encoded.

    Raises:
        ArtifactRejected: a part of its path is ``..``.
    """
    plain, previous = source, None
    while plain != previous:
        plain, previous = unquote(plain), plain
    if ".." in plain.replace("\\", "/").split("/"):
        raise ArtifactRejected(f"its source {source!r} contains '..' and may lead anywhere")


def size(directory: Path) -> int:
    """Bytes of the files of a directory."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def check_manifest(directory: Path, expected: Mapping[str, str]) -> None:
    """Compare the files of a directory with a manifest that was kept elsewhere; they must be exactly the same.

    Raises:
        ArtifactRejected: naming each file that is missing, extra or different.
    """
    found = manifest(directory)
    problems = [
        *(f"{name} is missing" for name in sorted(expected.keys() - found.keys())),
        *(f"{name} is not in the manifest" for name in sorted(found.keys() - expected.keys())),
        *(
            f"{name} has SHA-256 {found[name][:12]}…, not {expected[name][:12]}…"
            for name in sorted(expected.keys() & found.keys())
            if found[name] != expected[name]
        ),
    ]
    if not expected:
        problems.insert(0, "its manifest is empty")
    if problems:
        raise ArtifactRejected("; ".join(problems))


def check_environment(packages: Mapping[str, str]) -> None:
    """Refuse a model of another scikit-learn: its arithmetic may differ, and nothing would tell.

    Raises:
        ArtifactRejected: with both versions and what to do.
    """
    ours, its = environment()["scikit-learn"], packages.get("scikit-learn")
    if its != ours:
        raise ArtifactRejected(
            f"it was saved with scikit-learn {its or 'of an unknown version'} and this is {ours}; "
            "train a new version here, or run with the scikit-learn it was saved with"
        )


def load_estimator(directory: Path, trusted: Sequence[str]) -> Any:
    """The estimator in a checked directory.

    Raises:
        ArtifactRejected: it holds a type that is not trusted, or is not a skops file.
    """
    file = directory / MODEL_FILE
    try:
        unknown = sorted(set(skops.io.get_untrusted_types(file=file)) - set(trusted))
        if unknown:
            raise ArtifactRejected(f"{MODEL_FILE} holds types that are not trusted: {', '.join(unknown)}")
        return skops.io.load(file, trusted=list(trusted))
    except ArtifactRejected:
        raise
    # skops meets hostile or broken files with whatever its zip, JSON or import code raises.
    except Exception as error:
        raise ArtifactRejected(f"{MODEL_FILE} cannot be loaded: {type(error).__name__}: {error}") from error
