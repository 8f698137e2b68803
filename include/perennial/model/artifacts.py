"""Stored models: list their files, check the files, and load a model only after the check.

Loading a model may run code. So nothing that an artifact says about itself is trusted. The ledger keeps the SHA-256 of each
file. The files must match it exactly before any of them is opened. :data:`TRUSTED_TYPES` and the model's
``training.trusted_types`` decide which types skops may construct, never the list in the artifact. MLflow's loader is not
used: it follows the artifact's ``MLmodel`` file, which may name pickle.

Neighbour: :mod:`perennial.registry.runs` writes artifacts, and :mod:`perennial.registry.versions` fetches them.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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

from perennial.core.errors import ArtifactRejected, ScoringError, VersionUnusable
from perennial.core.private_parts import TREE_TYPES
from perennial.model.authors_code import elsewhere
from perennial.model.boosters import Booster, installed, libraries_of
from perennial.spec.model import ModelSpec
from perennial.spec.trust import may_never_be_trusted, reviewed_types
from perennial.spec.types import Task

#: Types in stored models that skops does not trust itself. They hold only numbers, the last one also a booster in the format of
#: its library.
TRUSTED_TYPES = ("numpy.dtype", *TREE_TYPES, f"{Booster.__module__}.{Booster.__name__}")

#: Packages whose versions decide what a stored model computes. Their versions are kept with every model version.
PACKAGES = ("scikit-learn", "numpy", "scipy", "pandas", "skops", "mlflow")

MODEL_FILE = "model.skops"
REFERENCE_FILE = "reference.parquet"
#: A few rows of the input, and what the model answered to them when it was stored.
EXAMPLE_FILE = "example.parquet"
#: The column of these answers: the numbers of :attr:`Prediction.numbers` of each row.
ANSWER = "_answer"


@dataclass(frozen=True)
class Prediction:
    """Predictions for n rows.

    Attributes:
        values: n probabilities of true (binary), n classes (multiclass; an object array of texts) or n numbers (regression).
        probability: n probabilities of the outcome in ``values``, float64. Equal to ``values`` for binary; None for
            regression.
        probabilities: n by len(classes); None for regression.
        classes: the classes of the columns of ``probabilities``, as texts; empty for regression.
    """

    values: NDArray[Any]
    probability: NDArray[np.float64] | None
    probabilities: NDArray[np.float64] | None
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | NDArray[Any]) -> Prediction:
        """The predictions for some of the rows."""

        def of(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[rows]

        return Prediction(self.values[rows], of(self.probability), of(self.probabilities), self.classes)

    @property
    def numbers(self) -> NDArray[np.float64]:
        """All predicted numbers: n by classes, or n by 1 for regression."""
        numbers = self.values[:, None] if self.probabilities is None else self.probabilities
        return np.asarray(numbers, dtype=np.float64)

    @property
    def digest(self) -> str:
        """SHA-256 of all predicted numbers, to the last bit, and the classes. It depends on the order of the rows."""
        numbers = self.values if self.probabilities is None else self.probabilities
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        digest.update(np.ascontiguousarray(numbers, dtype=np.float64).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class FeatureList:
    """The features that a model takes, in order."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]

    @classmethod
    def of(cls, spec: ModelSpec) -> FeatureList:
        return cls(tuple(spec.features.numeric), tuple(spec.features.categorical))

    @property
    def names(self) -> list[str]:
        return [*self.numeric, *self.categorical]

    def frame(self, rows: pa.Table) -> pd.DataFrame:
        """The input of estimators: numeric features as float64 with NaN, categorical features as texts with None.

        Raises:
            ScoringError: ``rows`` lacks a feature, or a value cannot be cast.
        """
        if missing := [name for name in self.names if name not in rows.column_names]:
            raise ScoringError(f"the rows lack the features {', '.join(missing)}; rebuild the features of this interval")
        columns: dict[str, Any] = {}
        try:
            for name in self.numeric:
                columns[name] = _column(rows, name, pa.float64()).to_numpy(zero_copy_only=False)
            for name in self.categorical:
                columns[name] = _texts(_column(rows, name, pa.string()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ScoringError(
                f"feature {name} has the type {rows.schema.field(name).type}, which cannot be cast: {error}"
            ) from error
        return pd.DataFrame(columns, copy=False)


def _column(rows: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    column = rows.column(name).combine_chunks()
    return column if column.type == kind else pc.cast(column, kind)


def _texts(column: pa.Array) -> NDArray[np.object_]:
    """Texts with None, one object per distinct text. One object per row would take longer to make and to look up."""
    encoded = column.dictionary_encode()
    texts = np.append(encoded.dictionary.to_numpy(zero_copy_only=False), [None])
    return np.asarray(texts[encoded.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False)])


def predict(task: Task, estimator: Any, frame: pd.DataFrame | NDArray[np.float64]) -> Prediction:
    """Predictions of a fitted estimator for a frame made by :meth:`FeatureList.frame`, or for what its pipeline makes of one.

    Raises:
        ScoringError: the number of predictions differs from the number of rows, or the number of columns from that of the
            classes.
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
            raise ScoringError(f"the model knows only the classes {', '.join(classes)}, and not True")
        of_true = probabilities[:, classes.index("True")]
        return Prediction(of_true, of_true, probabilities, classes)
    # A row with a probability that is not finite has no most likely class.
    known: NDArray[np.bool_] = np.asarray(np.isfinite(probabilities).all(axis=1))
    best = np.where(known[:, None], probabilities, 0.0).argmax(axis=1)
    values = np.array(classes, dtype=object)[best]
    values[~known] = None
    return Prediction(values, probabilities[np.arange(len(frame)), best], probabilities, classes)


def _expect_shape(predicted: NDArray[Any], shape: tuple[int, ...]) -> None:
    if predicted.shape != shape:
        raise ScoringError(f"the model gave predictions of the shape {predicted.shape}; the shape {shape} is required")


@dataclass(frozen=True)
class LoadedModel:
    """A model whose artifact matched its manifest.

    Attributes:
        name: for messages, such as ``flight_delay version 3``.
        version: its number; None for a candidate that is not registered.
        task: the task of the model.
        takes: the features it requires.
        trained_on: key of the interval it was trained on.
        features_digest: digest of the features it was trained on, see :class:`perennial.spec.folder.ModelFolder`.
        estimator: the scikit-learn estimator.
        sample: see :meth:`reference`.
        size: size of its files in bytes.
        example: see :func:`answered_example`; empty if the version was stored without one.
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
    example: pa.Table = field(default_factory=lambda: pa.table({}))

    @property
    def features(self) -> list[str]:
        """Names of the features, numeric before categorical. :meth:`predict` requires them."""
        return self.takes.names

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes as texts, in the order of the columns of probabilities; empty for regression."""
        return () if self.task == "regression" else tuple(str(label) for label in self.estimator.classes_)

    def predict(self, features: pa.Table) -> Prediction:
        """Predictions for rows with the model's features, in the order of the rows. Other columns are ignored.

        Raises:
            ScoringError: a feature is missing or has a wrong type, or the estimator failed or gave a wrong shape.
        """
        try:
            return predict(self.task, self.estimator, self.takes.frame(features))
        except ScoringError as error:
            raise ScoringError(f"{self.name}: {error}") from error
        except (ValueError, TypeError, IndexError) as error:
            raise ScoringError(f"{self.name} cannot predict these rows: {error}") from error

    def reference(self) -> pa.Table:
        """A seeded sample of the training rows, for drift: features, event time, ``label`` and ``prediction``.

        A model fitted with the same settings, but not on these rows, made ``prediction`` (for multiclass also
        ``probabilities``, as :mod:`perennial.scoring.publish` writes them). Rows of the validation part have a prediction.
        Older rows have null. The predictions of a model on its own training rows are overconfident, so every later interval
        would seem to have drifted.
        """
        return self.sample


# --- writing ---------------------------------------------------------------------------------------------------------


def untrusted_types(estimator: Any, trusted: Iterable[str]) -> list[str]:
    """The types in an estimator that neither skops nor ``trusted`` trusts. Loading such an estimator is refused."""
    found = skops.io.get_untrusted_types(data=skops.io.dumps(estimator))
    return sorted(set(found) - set(trusted))


def trusted_types(named: Iterable[str], reviewed: Sequence[str] | None) -> list[str]:
    """All types that a stored model may hold, besides those that skops trusts itself.

    Args:
        named: what its folder names, ``training.trusted_types``.
        reviewed: what of it the deployment allows, :attr:`perennial.core.settings.Settings.trusted_types`.
    """
    return sorted({*TRUSTED_TYPES, *reviewed_types(named, reviewed)})


def answered_example(spec: ModelSpec, estimator: Any, example: pd.DataFrame) -> pa.Table:
    """Rows of a model's input with the column :data:`ANSWER`: what the model answers to them. A process that loads the model
    later can compare.

    Args:
        spec: the spec of the model.
        estimator: the fitted estimator.
        example: rows from :meth:`FeatureList.frame`.

    Raises:
        ScoringError: see :func:`predict`.
    """
    takes = FeatureList.of(spec)
    kinds = {**dict.fromkeys(takes.numeric, pa.float64()), **dict.fromkeys(takes.categorical, pa.string())}
    rows = pa.table({name: pa.array(example[name], kind, from_pandas=True) for name, kind in kinds.items()})
    answers = predict(spec.task, estimator, takes.frame(rows)).numbers
    return rows.append_column(ANSWER, pa.array(answers.tolist(), pa.list_(pa.float64())))


@lru_cache(maxsize=1)
def _versions() -> tuple[tuple[str, str], ...]:
    return tuple((package, version(package)) for package in PACKAGES)


def environment(spec: ModelSpec | None = None) -> dict[str, str]:
    """Versions of the packages in :data:`PACKAGES` in this process, and of the libraries that candidates of a model name."""
    found = {library: installed(library) for library in (libraries_of(spec) if spec is not None else [])}
    return {**dict(_versions()), **{library: version for library, version in found.items() if version is not None}}


def manifest(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory, by its relative path with ``/``.

    Raises:
        VersionUnusable: an entry is neither a file nor a directory. A symbolic link is refused too, since it may lead
            anywhere.
    """
    found: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise VersionUnusable(f"{name} is neither a file nor a directory")
        if path.is_file():
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


# --- reading ---------------------------------------------------------------------------------------------------------


def check_source(source: str) -> None:
    """Refuse an address that leads out of its folder, even if its dots are encoded several times.

    Raises:
        VersionUnusable: a part of its path is ``..``.
    """
    plain, previous = source, None
    while plain != previous:
        plain, previous = unquote(plain), plain
    if ".." in plain.replace("\\", "/").split("/"):
        raise VersionUnusable(f"its source {source!r} contains '..' and may lead anywhere")


def size(directory: Path) -> int:
    """The size of all files of a directory in bytes."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def check_manifest(directory: Path, expected: Mapping[str, str]) -> None:
    """Compare the files of a directory with a manifest that was kept elsewhere. They must match exactly.

    Args:
        directory: the files.
        expected: SHA-256 by path, see :func:`manifest`.

    Raises:
        VersionUnusable: the message names each file that is missing, extra or different.
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
        raise VersionUnusable("; ".join(problems))


def check_environment(packages: Mapping[str, str]) -> None:
    """Refuse a model of another version of scikit-learn. It might compute something else without any error.

    Raises:
        VersionUnusable: the message has both versions, and what to do.
    """
    ours, its = environment()["scikit-learn"], packages.get("scikit-learn")
    if its != ours:
        raise VersionUnusable(
            f"it was saved with scikit-learn {its or 'of an unknown version'} and this is {ours}; "
            "train a new version here, or use the scikit-learn version that it was saved with"
        )


def load_estimator(directory: Path, trusted: Sequence[str]) -> Any:
    """The estimator in a checked directory.

    Raises:
        VersionUnusable: the file holds a type that is not trusted, or is not a skops file.
        ArtifactRejected: memory or disk of this machine did not suffice.
    """
    file = directory / MODEL_FILE
    return load_file(file, trusted) if (place := elsewhere()) is None else place.load(file, trusted)


def load_file(file: Path, trusted: Sequence[str]) -> Any:
    """The estimator in a checked file; as :func:`load_estimator`, and always in this process."""
    try:
        found = set(skops.io.get_untrusted_types(file=file))
        unknown = sorted(found - set(trusted))
        if unknown:
            raise VersionUnusable(
                f"{MODEL_FILE} holds types that are not trusted: {', '.join(unknown)}; training.trusted_types "
                "of model.yaml names further ones, and PERENNIAL_TRUSTED_TYPES says which of them this deployment allows"
            )
        if never := sorted(name for name in found.difference(TRUSTED_TYPES) if _may_never_be_trusted(name)):
            raise VersionUnusable(f"{MODEL_FILE} holds types that may never be trusted: {', '.join(never)}")
        return skops.io.load(file, trusted=list(trusted))
    except ArtifactRejected:
        raise
    except (MemoryError, OSError) as error:  # of this machine, now
        raise ArtifactRejected(f"{MODEL_FILE} cannot be loaded: {type(error).__name__}: {error}") from error
    # On a hostile or broken file skops raises any error of its zip, JSON or import code.
    except Exception as error:
        raise VersionUnusable(f"{MODEL_FILE} cannot be loaded: {type(error).__name__}: {error}") from error


def _may_never_be_trusted(name: str) -> bool:
    """Whether a type is refused by its name in the file, or by the module that has defined it."""
    if may_never_be_trusted(name):
        return True
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute, None)
    return may_never_be_trusted(f"{getattr(found, '__module__', None) or module}.{attribute}")
