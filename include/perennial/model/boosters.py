"""Boosters of libraries that an extra of the package brings, as estimators that are stored in the library's own format.

:data:`LIBRARIES` is the one place that describes such a library: how it fits, how its booster becomes bytes (LightGBM's text,
XGBoost's UBJSON) and is read back, and how it predicts. A :class:`Booster` holds these bytes, so skops stores them as they
are, beside the preprocessing, in the one file that the manifest names. Of all this it has to trust one class, this one, which
makes nothing but a booster out of its bytes. Nothing is pickled.

As soon as a booster is fitted, it is read back from its bytes: every prediction, from the validation to the last day in
production, is one of the stored form.

Neighbours: :mod:`perennial.model.estimators` makes them; :mod:`perennial.model.artifacts` loads what is stored.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from threadpoolctl import threadpool_info

from perennial.core.errors import TrainingError, VersionUnusable
from perennial.spec.model import ModelSpec
from perennial.spec.names import listed

log = logging.getLogger(__name__)

#: Rows with which a booster is compared with its stored form.
_COMPARED = 1_000
#: Up to so many rows are predicted in one thread: others would only wait for each other.
_FEW = 64


@dataclass(frozen=True)
class Learned:
    """What a booster learns from.

    Attributes:
        rows: n rows by features: numbers, then categories as ordinals; NaN where a value is missing.
        truth: n numbers; for classes their positions, from 0.
        weight: n weights; None: all are equal.
        categorical: how many of the last columns are categories.
        monotone: see :class:`Booster`.
        regression: whether ``truth`` is a quantity.
        params: the candidate's parameters.
        seed: of everything random.
        threads: to compute with.
    """

    rows: NDArray[np.float64]
    truth: NDArray[Any]
    weight: NDArray[np.float64] | None
    categorical: int
    monotone: Sequence[int] | None
    regression: bool
    params: Mapping[str, Any]
    seed: int | None
    threads: int

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters that all libraries have by these names."""
        bound = {} if self.monotone is None else {"monotone_constraints": tuple(self.monotone)}
        return {"random_state": self.seed, "n_jobs": self.threads, **bound}

    @property
    def given(self) -> dict[str, Any]:
        """The candidate's parameters, which win over all others, without how much is said: unknown names have to be heard."""
        return {name: value for name, value in self.params.items() if name not in {"verbose", "verbosity", "silent"}}


class Library(Protocol):
    """A library of boosters. It is imported when one of its methods is called."""

    @property
    def packages(self) -> Sequence[str]:
        """The packages that bring it; one of them is installed."""

    def fit(self, learned: Learned) -> Any:
        """Its fitted booster.

        Raises:
            ValueError: it refuses the rows or the parameters.
        """

    def store(self, booster: Any) -> bytes:
        """A booster in the library's own format."""

    def read(self, stored: bytes) -> Any:
        """The booster of these bytes."""

    def predict(self, booster: Any, rows: NDArray[np.float64]) -> NDArray[Any]:
        """n numbers, n probabilities of the second class, or n by classes probabilities."""


class _LightGBM:
    packages = ("lightgbm",)

    def fit(self, learned: Learned) -> Any:
        library = import_module("lightgbm")
        heard = _Heard()
        library.register_logger(heard)
        kind = library.LGBMRegressor if learned.regression else library.LGBMClassifier
        # Otherwise the order in which threads add numbers decides the last bits.
        fixed = {"deterministic": True, "force_row_wise": True}
        try:
            made = kind(**{**learned.settings, **fixed, **learned.given}, verbosity=0)
            made.fit(learned.rows, learned.truth, learned.weight, categorical_feature=_places(learned))
        except library.basic.LightGBMError as error:
            raise ValueError(str(error)) from error
        _refuse_unknown("lightgbm", [text.rpartition(": ")[2] for text in heard.said if "Unknown parameter" in text])
        return made.booster_

    def store(self, booster: Any) -> bytes:
        return str(booster.model_to_string()).encode()

    def read(self, stored: bytes) -> Any:
        return import_module("lightgbm").Booster(params={"verbosity": -1}, model_str=stored.decode())

    def predict(self, booster: Any, rows: NDArray[np.float64]) -> NDArray[Any]:
        return np.asarray(booster.predict(rows, num_threads=1 if len(rows) <= _FEW else 0))


class _XGBoost:
    # The first is the second without what only graphics cards need, some 300 MB.
    packages = ("xgboost-cpu", "xgboost")

    def fit(self, learned: Learned) -> Any:
        library = import_module("xgboost")
        kind = library.XGBRegressor if learned.regression else library.XGBClassifier
        kinds = ["q"] * (learned.rows.shape[1] - learned.categorical) + ["c"] * learned.categorical
        fixed = {"enable_categorical": True, "feature_types": kinds}
        made = kind(**{**learned.settings, **fixed, **learned.given}, verbosity=1)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            made.fit(learned.rows, learned.truth, sample_weight=learned.weight)
        said = [str(one.message) for one in heard]
        _refuse_unknown("xgboost", re.findall(r'"(\w+)"', " ".join(text for text in said if "are not used" in text)))
        return made.get_booster()

    def store(self, booster: Any) -> bytes:
        return bytes(booster.save_raw("ubj"))

    def read(self, stored: bytes) -> Any:
        booster = import_module("xgboost").Booster()
        booster.load_model(bytearray(stored))
        return booster

    def predict(self, booster: Any, rows: NDArray[np.float64]) -> NDArray[Any]:
        return np.asarray(booster.inplace_predict(rows))


#: By the name of the estimator, which is also that of the library's module and of the extra that brings it.
LIBRARIES: dict[str, Library] = {"lightgbm": _LightGBM(), "xgboost": _XGBoost()}


def libraries_of(spec: ModelSpec) -> list[str]:
    """The libraries that candidates of a model name."""
    return sorted({candidate.estimator for candidate in spec.candidates.values()} & LIBRARIES.keys())


def installed(library: str) -> str | None:
    """The version of a library of :data:`LIBRARIES` in this process; None if it is not installed. It is not imported."""
    if find_spec(library) is None:
        return None
    for package in LIBRARIES[library].packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def how_to_install(library: str) -> str:
    """What to do about a library that is not installed, as the end of a sentence."""
    return f"{library} is not installed here: install the extra {library} (.venv/bin/uv pip install -e '.[{library}]')"


class Booster(BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """A booster of one of :data:`LIBRARIES`, as an estimator of scikit-learn.

    Args:
        library: its name in :data:`LIBRARIES`.
        regression: whether it predicts a quantity; otherwise classes.
        params: parameters of the library's own estimator for scikit-learn, such as ``LGBMClassifier``.
        categorical: how many of the last columns are categories, as ordinals.
        monotone: by column, 1 or -1 if predictions only rise or only fall with it, else 0; None: nothing is known.
        random_state: the seed.

    Attributes:
        classes_: the k classes; only after :meth:`fit`, and not for regression.
    """

    _booster: Any = None

    def __init__(
        self,
        library: str,
        *,
        regression: bool,
        params: dict[str, Any] | None = None,
        categorical: int = 0,
        monotone: list[int] | None = None,
        random_state: int | None = None,
    ) -> None:
        self.library, self.regression, self.params = library, regression, params
        self.categorical, self.monotone, self.random_state = categorical, monotone, random_state

    def fit(
        self, rows: NDArray[np.float64], truth: NDArray[Any], sample_weight: NDArray[np.float64] | None = None
    ) -> Booster:  # fmt: skip
        """Fit on n rows by features, as :class:`Learned` has them, n labels, and n weights or none.

        Raises:
            ValueError: the library refuses the rows or the parameters, or its objective gives no probabilities.
            TrainingError: the stored form of the booster answers otherwise than the booster.
        """
        library, rows = LIBRARIES[self.library], np.asarray(rows, dtype=np.float64)
        if not self.regression:
            self.classes_, truth = np.unique(truth, return_inverse=True)
        learned = Learned(
            rows, truth, sample_weight, self.categorical, self.monotone, self.regression, self.params or {},
            self.random_state, _threads(),
        )  # fmt: skip
        fitted = library.fit(learned)
        self._take(library.store(fitted))
        head = rows[:_COMPARED]
        if not np.array_equal(library.predict(fitted, head), library.predict(self._booster, head), equal_nan=True):
            raise TrainingError(f"{self.library} gives other answers once it is stored, so it cannot be used as it is set")
        if not self.regression:
            self._check_probabilities(head)
        return self

    def predict(self, rows: NDArray[np.float64]) -> NDArray[Any]:
        """n numbers, or n classes."""
        if self.regression:
            return self._answers(rows)
        best: NDArray[Any] = self.classes_[self.predict_proba(rows).argmax(axis=1)]
        return best

    def predict_proba(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """n by k probabilities."""
        found = self._answers(rows)
        return np.column_stack([1.0 - found, found]) if found.ndim == 1 else found

    def _answers(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        found = LIBRARIES[self.library].predict(self._booster, np.ascontiguousarray(rows, dtype=np.float64))
        return found.astype(np.float64)

    def _check_probabilities(self, rows: NDArray[np.float64]) -> None:
        found = self._answers(rows)
        if found.shape not in {(len(rows), len(self.classes_)), (len(rows),)} or found.min() < 0 or found.max() > 1:
            raise ValueError("it gives no probabilities; remove its parameter objective, or choose one that gives them")

    def _take(self, stored: bytes) -> None:
        self._stored = stored
        self._booster = LIBRARIES[self.library].read(stored)

    def __sklearn_is_fitted__(self) -> bool:
        return self._booster is not None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "regressor" if self.regression else "classifier"
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """What skops stores: settings, classes, and the booster in the library's own format."""
        state: dict[str, Any] = {"settings": self.get_params(deep=False)}
        if self.__sklearn_is_fitted__():
            state |= {"version": installed(self.library), "stored": self._stored}
            state |= {} if self.regression else {"classes": self.classes_.tolist()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the booster.

        Raises:
            VersionUnusable: the library is not installed, or another version of it.
        """
        self.__init__(**state["settings"])  # type: ignore[misc]  # skops makes the object without it
        if "stored" not in state:
            return
        check_version(self.library, state["version"])
        if not self.regression:
            classes = state["classes"]
            self.classes_ = np.array(classes, dtype=object if isinstance(classes[0], str) else None)
        self._take(state["stored"])


def check_version(library: str, its: str) -> None:
    """Refuse a booster of another version of its library. It might compute something else without any error.

    Raises:
        VersionUnusable: the message has both versions, and what to do.
    """
    ours = installed(library)
    if ours is None:
        raise VersionUnusable(f"it needs {library} {its}: {how_to_install(library)}")
    if ours != its:
        raise VersionUnusable(
            f"it was saved with {library} {its} and this is {ours}; train a new version here, or install the version that it "
            "was saved with"
        )


class _Heard:
    """What LightGBM says while it fits; without it, it would write to standard output."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, text: str) -> None:
        """LightGBM hands over everything by this, warnings too."""
        log.debug("%s", text)
        self.said.append(text)

    warning = info


def _refuse_unknown(library: str, names: Sequence[str]) -> None:
    """The libraries only warn of a parameter that they do not know, and go on without it."""
    if names:
        raise ValueError(f"{library} knows no parameter {listed(sorted(set(names)))}")


def _places(learned: Learned) -> list[int]:
    columns = learned.rows.shape[1]
    return list(range(columns - learned.categorical, columns))


def _threads() -> int:
    """The number that a version records with its code, and that ``perennial reproduce`` sets."""
    return min((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"), default=1)
