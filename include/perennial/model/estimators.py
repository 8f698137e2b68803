"""Candidates as scikit-learn estimators: the preprocessing of the spec's features, the parameters to try, and the fit.

Neighbours: :mod:`perennial.training.fit` searches and logs. :mod:`perennial.spec.code` gives the functions of ``model.py``.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.validation import has_fit_parameter

from perennial.core.errors import PerennialError, TrainingError
from perennial.model.artifacts import FeatureList
from perennial.model.authors_code import elsewhere
from perennial.model.boosters import LIBRARIES, Booster, how_to_install, installed
from perennial.model.labels import labels_of
from perennial.model.weights import weights_of
from perennial.spec.code import folder_function
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)

#: What takes a constraint for each column, by the estimators that ``monotone`` is for.
_MONOTONE = {"gradient_boosting": "monotonic_cst", **dict.fromkeys(LIBRARIES, "monotone")}


def make_estimator(folder: ModelFolder, name: str, params: Mapping[str, Any], *, empty: Collection[str] = ()) -> Pipeline:
    """An unfitted candidate: the preprocessing of the spec's features, then the estimator.

    An estimator that accepts missing values, such as trees, gets numbers unchanged and categories as ordinals; a
    :class:`perennial.model.boosters.Booster` is told which columns are categories. Any other estimator gets numbers imputed by
    the median and standardised, and categories one-hot encoded. If a function of ``model.py`` returns a whole pipeline, the
    pipeline does all this itself, on a data frame of the features.

    Args:
        folder: the model's folder.
        name: the candidate's name.
        params: parameters of the estimator.
        empty: features without any value in the rows to fit on. They are left out, since boosters fail on them.

    Raises:
        TrainingError: the parameters do not fit the estimator, or the function of ``model.py`` failed or gave no estimator.
    """
    spec, candidate = folder.spec, folder.spec.candidates[name]
    try:
        estimator = _estimator(folder, candidate.estimator, dict(params))
    except PerennialError:
        raise
    # A function of a model folder may raise anything.
    except Exception as error:
        raise TrainingError(
            f"{spec.name}: candidate {name} cannot be made with {show_params(params)}: {type(error).__name__}: {error}"
        ) from error
    if not (hasattr(estimator, "fit") and hasattr(estimator, "get_params")):
        raise TrainingError(
            f"{spec.name}: {candidate.estimator} gave a {type(estimator).__name__}; it must give a scikit-learn estimator"
        )
    if "random_state" in estimator.get_params() and estimator.get_params()["random_state"] is None:
        estimator.set_params(random_state=spec.training.seed)
    if isinstance(estimator, Pipeline):
        return estimator
    tags = get_tags(estimator)
    if tags.no_validation:  # the estimator ignores the features
        return make_pipeline(estimator)
    if candidate.monotone:
        estimator.set_params(**{_MONOTONE[candidate.estimator]: _constraints(spec, candidate.monotone, empty)})
    if not isinstance(estimator, Booster):
        return make_pipeline(_preprocessing(spec, empty, takes_missing=tags.input_tags.allow_nan), estimator)
    estimator.set_params(categorical=len(_kept(spec.features.categorical, empty)))
    return make_pipeline(_preprocessing(spec, empty, takes_missing=True, unknown=np.nan), estimator)


def fit_rows(folder: ModelFolder, name: str, params: Mapping[str, Any], rows: pa.Table, takes: FeatureList) -> Any:
    """Fit a candidate's estimator on labelled rows, with the weights that ``model.yaml`` gives them.

    Args:
        folder: the model's folder.
        name: the candidate's name.
        params: parameters of the estimator.
        rows: see :func:`perennial.training.training_set.load_rows`.
        takes: the features to learn from.

    Raises:
        TrainingError: see :func:`fit_estimator`; or the weights cannot be computed.
    """
    return fit_estimator(folder, name, params, takes.frame(rows), labels_of(rows), weights_of(folder.spec, rows))


def fit_estimator(
    folder: ModelFolder,
    name: str,
    params: Mapping[str, Any],
    frame: pd.DataFrame,
    truth: NDArray[Any],
    weight: NDArray[np.float64] | None = None,
) -> Any:
    """Fit a candidate's estimator with given parameters, on n rows, their n labels, and n weights or none.

    Raises:
        TrainingError: the estimator cannot be made, takes no weights, or cannot be fitted on these rows.
    """
    if (place := elsewhere()) is not None:
        return place.fit(folder, name, params, frame, truth, weight)
    # A search of a million texts for one that is not missing takes long. Most columns have one in the first rows.
    empty = [str(name) for name in frame.columns if not (frame[name].head(100).notna().any() or frame[name].notna().any())]
    if empty:
        log.warning("%s is fitted without %s: all values are missing in %s rows", name, ", ".join(empty), f"{len(frame):,}")
    estimator = make_estimator(folder, name, params, empty=empty)
    weighted = {}
    if weight is not None:
        step, last = estimator.steps[-1]
        if not has_fit_parameter(last, "sample_weight"):
            raise TrainingError(
                f"{folder.spec.name}: candidate {name} takes no weights (its {type(last).__name__} has no sample_weight): "
                "remove the candidate or training.weight"
            )
        weighted = {f"{step}__sample_weight": weight}
    try:
        return estimator.fit(frame, truth, **weighted)
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"{folder.spec.name}: candidate {name} cannot be fitted with {show_params(params)}: {error}"
        ) from error


def _estimator(folder: ModelFolder, kind: str, params: dict[str, Any]) -> Any:
    regression = folder.spec.task == "regression"
    match kind:
        case "prior":
            return DummyRegressor(**params) if regression else DummyClassifier(**{"strategy": "prior", **params})
        case "logistic_regression":
            if regression:
                raise TrainingError(f"{folder.spec.name}: logistic_regression is for classes; use linear_regression")
            return LogisticRegression(**{"max_iter": 1_000, **params})
        case "linear_regression":
            if not regression:
                raise TrainingError(f"{folder.spec.name}: linear_regression is for numbers; use logistic_regression")
            return LinearRegression(**params)
        case "gradient_boosting":
            return HistGradientBoostingRegressor(**params) if regression else HistGradientBoostingClassifier(**params)
        case _ if kind in LIBRARIES:
            if installed(kind) is None:
                raise TrainingError(f"{folder.spec.name}: {how_to_install(kind)}")
            return Booster(kind, regression=regression, params=params)
        case _:
            return folder_function(folder, kind)(**params)


def _preprocessing(
    spec: ModelSpec, empty: Collection[str], *, takes_missing: bool, unknown: float = -1
) -> ColumnTransformer:  # fmt: skip
    if takes_missing:
        numeric: Any = "passthrough"
        # With native categories of scikit-learn's booster, the stored model would contain functions, which would have to be
        # trusted. The boosters of other libraries take the ordinals as categories, so an unknown one may not be a number.
        categorical: Any = OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=unknown, encoded_missing_value=np.nan, min_frequency=10
        )
    else:
        numeric = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
        categorical = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=10)
    # In this order, which a booster counts on.
    steps = [
        ("numeric", numeric, _kept(spec.features.numeric, empty)),
        ("categorical", categorical, _kept(spec.features.categorical, empty)),
    ]
    return ColumnTransformer([step for step in steps if step[2]])


def _constraints(spec: ModelSpec, monotone: Mapping[str, str], empty: Collection[str]) -> list[int]:
    columns = [*_kept(spec.features.numeric, empty), *_kept(spec.features.categorical, empty)]
    return [{"increasing": 1, "decreasing": -1}.get(monotone.get(name, ""), 0) for name in columns]


def _kept(names: Iterable[str], empty: Collection[str]) -> list[str]:
    return [name for name in names if name not in empty]


def combinations(folder: ModelFolder, name: str) -> list[dict[str, Any]]:
    """The parameters to try: the whole grid if it has at most ``trials`` points, else ``trials`` distinct random points of it.

    References:
        Bergstra, Bengio: Random Search for Hyper-Parameter Optimization. JMLR 13, 2012.
    """
    candidate, training = folder.spec.candidates[name], folder.spec.training
    space = sorted(candidate.search.items())
    size = int(np.prod([len(values) for _, values in space], dtype=object))
    if size <= training.trials:
        chosen = list(itertools.product(*(values for _, values in space)))
    else:
        generator = np.random.default_rng(training.seed)
        picked: dict[tuple[int, ...], None] = {}
        while len(picked) < training.trials:
            picked[tuple(int(generator.integers(len(values))) for _, values in space)] = None
        chosen = [tuple(values[index] for index, (_, values) in zip(indices, space, strict=True)) for indices in picked]
    return [{**candidate.params, **dict(zip((key for key, _ in space), values, strict=True))} for values in chosen]


def show_params(params: Mapping[str, Any]) -> str:
    """Parameters as a text for messages."""
    return ", ".join(f"{name}={value}" for name, value in params.items()) or "its default parameters"
