"""How a model reacts if its inputs change, and how well each feature alone predicts the label.

Each probe changes one thing in a sample of the holdout, and nothing else. A failed probe is evidence too: it becomes a
sentence, and :mod:`perennial.evaluation.gates` refuses the candidate.

Neighbour: :mod:`perennial.evaluation.contest` calls this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from perennial.core.errors import PerennialError, ScoringError, SpecError
from perennial.evidence.evaluation import Behaved, Robustness
from perennial.model import artifacts
from perennial.model.artifacts import FeatureList, LoadedModel, Prediction
from perennial.model.authors_code import elsewhere
from perennial.spec.code import folder_function
from perennial.spec.folder import ModelFolder
from perennial.spec.gates import Behaviour
from perennial.spec.model import ModelSpec
from perennial.spec.types import Task

#: Number of bins in which a numeric feature is scored alone, besides its rank.
_BINS = 64
#: The most rows on which a feature is scored alone.
_ALONE_ROWS = 20_000

#: A missing category in a data frame of features.
_NOTHING = np.array(None, dtype=object)

Floats = NDArray[np.float64]
#: Takes n labels and n predictions, and gives the primary metric; None if it is undefined.
Score = Callable[[NDArray[np.generic], Prediction], float | None]


def sample(spec: ModelSpec, rows: int, most: int) -> NDArray[np.intp]:
    """A seeded random choice of at most ``most`` of ``rows`` row numbers, in ascending order."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(spec.training.seed).choice(rows, size=most, replace=False))


def probe_robustness(
    spec: ModelSpec, model: LoadedModel, rows: pa.Table, truth: NDArray[np.generic], score: Score
) -> Robustness | None:
    """Measure the primary metric with noise, and with missing values, in one feature at a time.

    Args:
        spec: says how much noise and how many missing values.
        model: the candidate.
        rows: n rows of the holdout.
        truth: n labels.
        score: gives the primary metric.

    Returns:
        The metrics by feature; None if the metric is undefined on the unchanged rows.
    """
    rule, metric = spec.gates.robustness, spec.primary_metric
    chosen = sample(spec, len(truth), rule.rows)
    frame, truth = model.takes.frame(rows.take(pa.array(chosen))), truth[chosen]
    generator = np.random.default_rng(spec.training.seed)
    clean = score(truth, _predict(model, frame)) if len(truth) else None
    uninformed = score(truth, constant(spec.task, truth)) if len(truth) else None
    if clean is None or uninformed is None:
        return None
    found: dict[str, dict[str, float]] = {"noise": {}, "missing": {}}
    problems: dict[str, str] = {}
    for what, feature, values in _worse(spec, model.takes, frame, generator):
        try:
            value = score(truth, _predict(model, frame.assign(**{feature: values})))
        except PerennialError as error:
            problems[f"{what} {feature}"] = str(error)
            continue
        if value is None:
            problems[f"{what} {feature}"] = f"{metric} is undefined, for example because a prediction is not finite"
        else:
            found[what][feature] = value
    return Robustness(len(truth), clean, uninformed, found["noise"], found["missing"], problems)


def _worse(
    spec: ModelSpec, takes: FeatureList, frame: pd.DataFrame, generator: np.random.Generator
) -> Iterator[tuple[str, str, NDArray[np.generic]]]:
    """Each change of a feature for the worse: ``noise`` or ``missing``, the feature, and its changed values."""
    rule = spec.gates.robustness
    for feature in takes.names:
        values = frame[feature].to_numpy()
        numeric = feature in takes.numeric
        if numeric and rule.noise_drop is not None and np.isfinite(values).any():
            deviation = float(np.nanstd(np.where(np.isfinite(values), values, np.nan)))
            if deviation > 0:
                yield "noise", feature, values + generator.normal(scale=rule.noise * deviation, size=len(values))
        if rule.missing_drop is not None:
            gone = generator.random(len(values)) < rule.missing
            yield "missing", feature, np.where(gone, np.nan, values) if numeric else np.where(gone, _NOTHING, values)


def constant(task: Task, truth: NDArray[np.generic]) -> Prediction:
    """The best constant prediction for all rows: the share of true labels, the shares of the classes, or the mean."""
    if task == "multiclass_classification":
        classes, counts = np.unique(truth.astype(str), return_counts=True)
        return same_for_all(task, dict(zip(map(str, classes), counts.tolist(), strict=True)), len(truth))
    return same_for_all(task, float(truth.astype(np.float64).mean()), len(truth))


def same_for_all(task: Task, known: Mapping[str, int] | float, rows: int) -> Prediction:
    """The same prediction for every row.

    Args:
        task: of the model.
        known: for multiclass the number of labels by class; else the share of true labels, or the mean label.
        rows: how many rows there are.
    """
    if isinstance(known, Mapping):
        shares = np.array(list(known.values()), dtype=np.float64) / sum(known.values())
        names = tuple(known)
        values = np.full(rows, names[int(shares.argmax())], dtype=object)
        return Prediction(values, np.full(rows, shares.max()), np.tile(shares, (rows, 1)), names)
    answer = np.full(rows, known)
    if task == "regression":
        return Prediction(answer, None, None, ())
    return Prediction(answer, answer, np.column_stack([1 - answer, answer]), ("False", "True"))


def _predict(model: LoadedModel, frame: pd.DataFrame) -> Prediction:
    """Predictions for a changed frame. Any error of the estimator becomes a :class:`ScoringError`."""
    try:
        # The predictions are many and small, so several threads would mostly wait for each other.
        with threadpool_limits(1):
            return artifacts.predict(model.task, model.estimator, frame)
    except ScoringError:
        raise
    # A pipeline of model.py may raise anything on values that it does not expect.
    except Exception as error:
        raise ScoringError(f"{model.name} cannot predict: {type(error).__name__}: {error}") from error


# --- behaviour -------------------------------------------------------------------------------------------------------


def probe_behaviour(folder: ModelFolder, model: LoadedModel, rows: pa.Table) -> dict[str, Behaved]:
    """Run each test in ``gates.behaviour`` on a sample of rows, and return the outcomes by name."""
    spec = folder.spec
    tests = spec.gates.behaviour
    if not tests:
        return {}
    chosen = sample(spec, rows.num_rows, spec.gates.robustness.rows)
    if len(chosen) == 0:
        return dict.fromkeys(tests, Behaved(None, 0, "there is no row to test on"))
    frame = model.takes.frame(rows.take(pa.array(chosen)))
    found = {}
    for name, test in tests.items():
        try:
            if test.function is not None:
                found[name] = _ask(folder, test.function, model, frame)
            else:
                found[name] = _change(test, model, frame)
        except PerennialError as error:
            found[name] = Behaved(None, len(frame), str(error))
    return found


def _ask(folder: ModelFolder, reference: str, model: LoadedModel, frame: pd.DataFrame) -> Behaved:
    if (place := elsewhere()) is not None:
        return Behaved(None, len(frame), place.behave(folder, reference, model.task, model.estimator, frame))
    return Behaved(None, len(frame), ask_behaviour(folder, reference, model, frame))


def ask_behaviour(folder: ModelFolder, reference: str, model: LoadedModel, frame: pd.DataFrame) -> str | None:
    """What a behaviour test of ``model.py`` says of a model; None if nothing is wrong."""

    def predicted(changed: pd.DataFrame) -> NDArray[np.generic]:
        return _predict(model, changed).values

    function = folder_function(folder, reference)
    try:
        said = function(predicted, frame.copy())
    except PerennialError:
        raise
    # A function of a model folder may raise anything.
    except Exception as error:
        raise SpecError(f"{reference} raised {type(error).__name__}: {error}") from error
    if said is None or isinstance(said, str):
        return said or None
    return f"{reference} gave a {type(said).__name__}; it must give None or a sentence"


def _change(test: Behaviour, model: LoadedModel, frame: pd.DataFrame) -> Behaved:
    assert test.feature is not None  # Behaviour._is_one_kind
    if test.feature not in frame.columns:
        return Behaved(None, len(frame), f"the model does not take {test.feature}")
    numeric = test.feature in model.takes.numeric
    if test.add is not None:
        values = frame[test.feature].to_numpy() + test.add
    elif numeric:
        try:
            values = np.full(len(frame), float(test.value))  # type: ignore[arg-type]  # either add or value
        except ValueError:
            return Behaved(None, len(frame), f"{test.feature} is numeric, but {test.value!r} is not a number")
    else:
        values = np.full(len(frame), str(test.value), dtype=object)
    before, after = (_predict(model, given) for given in (frame, frame.assign(**{test.feature: values})))
    if model.task == "multiclass_classification":
        behaves = before.values == after.values
    else:
        rise = after.values - before.values
        behaves = {"same": np.abs(rise), "higher": -rise, "lower": rise}[test.expect] <= test.tolerance
    return Behaved(float(np.mean(behaves)), len(frame))


# --- features alone --------------------------------------------------------------------------------------------------


def score_alone(spec: ModelSpec, rows: pa.Table, truth: NDArray[np.generic]) -> dict[str, float]:
    """How well each feature alone predicts the label.

    A numeric feature is scored by its rank. It is also scored by the mean label in each of 64 bins with equally many rows,
    since it need not be monotonic. A categorical feature is scored by the mean label of each value. The means come from the
    other half of the rows. Otherwise a feature with a different value in each row would seem to predict perfectly. A missing
    value counts as a value, since its absence may be informative.

    Args:
        spec: names the features.
        rows: n rows with the features.
        truth: n labels.

    Returns:
        By feature, the area under the ROC curve, 0.5 to 1, or R squared for regression. For several classes it is the
        greatest area of a class against the rest. Empty if all labels are equal.
    """
    chosen = sample(spec, len(truth), _ALONE_ROWS)
    truth, rows = truth[chosen], rows.take(pa.array(chosen))
    if spec.task == "regression" or spec.task == "binary_classification":
        targets = [truth.astype(np.float64)]
    else:
        targets = [(truth.astype(str) == name).astype(np.float64) for name in np.unique(truth.astype(str))]
    targets = [target for target in targets if len(target) and np.ptp(target) > 0]
    if not targets:
        return {}
    half = np.random.default_rng(spec.training.seed).random(len(truth)) < 0.5
    judge = _r_squared if spec.task == "regression" else _auc
    frame = FeatureList.of(spec).frame(rows)
    found = {}
    with threadpool_limits(1):
        for feature in frame.columns:
            signals = list(_signals(frame[feature]))
            best = 0.0
            for target in targets:
                for codes, rank in signals:
                    best = max(best, judge(target, _means_of_other_half(codes, target, half)))
                    if rank is not None:
                        best = max(best, judge(target, rank))
            found[str(feature)] = best
    return found


def _signals(values: pd.Series) -> Iterator[tuple[NDArray[np.intp], Floats | None]]:
    """Bins or categories as codes from 0. For numbers also the values themselves, with missing ones below all others."""
    if values.dtype.kind != "f":
        yield pd.factorize(values, use_na_sentinel=False)[0], None
        return
    numbers = values.to_numpy(dtype=np.float64)
    known = np.isfinite(numbers)
    if not known.any():
        yield np.zeros(len(numbers), dtype=np.intp), None
        return
    edges = np.unique(np.quantile(numbers[known], np.linspace(0, 1, _BINS + 1)[1:-1]))
    codes = np.where(known, 1 + np.searchsorted(edges, numbers, side="right"), 0)
    low = numbers[known].min()
    yield codes, np.where(known, numbers, low - max(1.0, abs(low)))


def _means_of_other_half(codes: NDArray[np.intp], target: Floats, half: NDArray[np.bool_]) -> Floats:
    """For each row, the mean label of the rows of the other half with the same code. Without such rows, the mean of all."""
    said = np.full(len(target), target.mean())
    count = int(codes.max()) + 1
    for own, other in ((half, ~half), (~half, half)):
        size = np.bincount(codes[other], minlength=count)
        total = np.bincount(codes[other], weights=target[other], minlength=count)
        means = np.where(size > 0, total / np.maximum(size, 1), target.mean())
        said[own] = means[codes[own]]
    return said


def _auc(target: Floats, signal: Floats) -> float:
    area = float(roc_auc_score(target, signal))
    return max(area, 1 - area)


def _r_squared(target: Floats, signal: Floats) -> float:
    """R squared of a straight line through the signal, which is the squared correlation."""
    if np.ptp(signal) == 0:
        return 0.0
    return float(np.corrcoef(target, signal)[0, 1] ** 2)
