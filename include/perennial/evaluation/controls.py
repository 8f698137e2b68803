"""Candidates that the gates must refuse, and improvements that they must accept, to test the gates with.

Each negative control changes an honest candidate so that it is wrong in one way. It names the gate that must refuse it for
this reason. The positive control is a true improvement of a known size. The controls work on any
:class:`~perennial.evaluation.contest.Contest`, most of them only for binary classification. ``perennial controls`` tries a
model's gates with them (:mod:`perennial.stages.controls`), ``tests/unit/evaluation/test_controls.py`` runs them on real
flights, and ``benchmarks/gates.py`` counts how often chance leads to another decision.

References:
    Lipsitch, Tchetgen Tchetgen, Cohen: Negative Controls: A Tool for Detecting Confounding and Bias in Observational Studies.
        Epidemiology 21 (2010). The name, and the idea of a test whose correct answer is known to be no.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from perennial.core.intervals import Interval
from perennial.evaluation.contest import Contest, Entrant
from perennial.model.artifacts import LoadedModel
from perennial.model.labels import LABEL, labels_of

Floats = NDArray[np.float64]
#: Takes n rows of features and their n probabilities of true, and gives n changed probabilities.
Alteration = Callable[[pd.DataFrame, Floats], Floats]

#: The least distance of a probability from 0 and 1 when its odds are computed.
_EPSILON = 1e-6


@dataclass(frozen=True)
class Honest:
    """A contest with an honest candidate, and rows to train other candidates on.

    Attributes:
        contest: a contest with a champion.
        window: labelled rows that the candidate was trained on.
        older: labelled rows of a much earlier interval.
        older_interval: this interval.
    """

    contest: Contest
    window: pa.Table
    older: pa.Table
    older_interval: Interval


@dataclass(frozen=True)
class Control:
    """A way in which a candidate can be wrong.

    Attributes:
        gate: the gate that must refuse the candidate.
        make: gives the contest with the wrong candidate.
        lacks: what the contest lacks for it, in words; None if it can be made.
    """

    gate: str
    make: Callable[[Honest], Contest]
    lacks: Callable[[Honest], str | None]


class Altered:
    """A fitted binary classifier with changed probabilities."""

    def __init__(self, estimator: Any, alter: Alteration) -> None:
        self.estimator = estimator
        self.alter = alter
        self.classes_ = np.array([False, True])

    def predict_proba(self, frame: pd.DataFrame) -> Floats:
        probability = self.estimator.predict_proba(frame)[:, list(self.estimator.classes_).index(True)]
        changed = self.alter(frame, np.asarray(probability, dtype=np.float64))
        return np.column_stack([1 - changed, changed])


# --- negative controls -----------------------------------------------------------------------------------------------


def identical_copy(honest: Honest) -> Contest:
    """A copy of the champion. Only the number of the version would change."""
    champion = honest.contest.champion
    assert champion is not None  # Honest
    return _with(honest.contest, lambda _: champion.load())


def degraded(honest: Honest, by: float = 0.03) -> Contest:
    """The champion with noise in the log-odds, which lowers the area under the ROC curve by ``by``."""
    copy = identical_copy(honest)
    return _altered(copy, noise(_noise_worth(copy.candidate.load(), copy, by)))


def broken_in_a_slice(honest: Honest, column: str | None = None, value: str | None = None) -> Contest:
    """The candidate with the reverse order in the rows of one value. In all other rows it is unchanged.

    Args:
        honest: the contest.
        column, value: the rows; by default the fourth most frequent value of the first column in ``gates.slices``, of those
            values that have enough rows to be judged.
    """
    column = column or honest.contest.folder.spec.gates.slices.columns[0]
    if value is None:
        value = _judged_slices(honest.contest, column)[:4][-1]

    def turn_round(frame: pd.DataFrame, probability: Floats) -> Floats:
        inside = (frame[column].astype(str) == value).to_numpy()
        odds = _odds(probability)
        odds[inside] = 2 * odds[inside].mean() - odds[inside] if inside.any() else odds[inside]
        turned: Floats = expit(odds)
        return turned

    return _altered(honest.contest, turn_round)


def _judged_slices(contest: Contest, column: str) -> list[str]:
    """The values of a column that have rows enough for the gate on slices, the most frequent first."""
    counted = pc.value_counts(pc.cast(contest.rows.column(column), pa.string())).to_pylist()
    least = contest.folder.spec.gates.slices.min_rows
    judged = [entry for entry in counted if entry["values"] is not None and entry["counts"] >= least]
    return [str(entry["values"]) for entry in sorted(judged, key=lambda entry: -entry["counts"])]


def miscalibrated(honest: Honest) -> Contest:
    """The candidate with squared odds that are a hundred times too high. The order stays, and so does the ROC AUC."""
    return _altered(honest.contest, lambda _, probability: expit(2 * _odds(probability) + np.log(100)))


def leaky(honest: Honest) -> Contest:
    """The candidate reads the label from the first numeric feature, which contains the label with some noise."""
    contest = honest.contest
    feature = contest.folder.spec.features.numeric[0]
    truth = labels_of(contest.rows).astype(np.float64)
    disguised = 40 + 20 * truth + np.random.default_rng(1).normal(size=len(truth))
    rows = contest.rows.set_column(contest.rows.column_names.index(feature), feature, pa.array(disguised))

    def read(frame: pd.DataFrame, probability: Floats) -> Floats:
        told: Floats = expit(_odds(probability) + (frame[feature].to_numpy() - 50) / 2)
        return told

    return replace(_altered(contest, read), rows=rows)


def constant(honest: Honest) -> Contest:
    """The same probability for all rows."""
    return _altered(honest.contest, lambda _, probability: np.full_like(probability, 0.2))


def not_finite(honest: Honest) -> Contest:
    """NaN in one of a hundred rows."""

    def lose(_: pd.DataFrame, probability: Floats) -> Floats:
        return np.where(np.arange(len(probability)) % 100 == 7, np.nan, probability)

    return _altered(honest.contest, lose)


def shuffled_labels(honest: Honest) -> Contest:
    """Fitted again on the same rows, with labels of other rows."""
    labels = labels_of(honest.window)
    return _refitted(honest.contest, honest.window, np.random.default_rng(1).permutation(labels), None)


def stale(honest: Honest) -> Contest:
    """Fitted again on rows of a much earlier interval."""
    return _refitted(honest.contest, honest.older, labels_of(honest.older), honest.older_interval)


def seen_the_holdout(honest: Honest) -> Contest:
    """Fitted again on the rows that it is judged on."""
    contest = honest.contest
    window = Interval(contest.interval.start, contest.interval.end)
    return _refitted(contest, contest.rows, labels_of(contest.rows), window)


def other_rows(honest: Honest) -> Contest:
    """The candidate with metrics of other rows than the champion's."""
    contest = honest.contest
    blank = replace(contest.candidate.blank, rows_hash="0" * 64)
    return replace(contest, candidate=replace(contest.candidate, blank=blank))


def fragile(honest: Honest) -> Contest:
    """The candidate depends on the last digits of a feature. The least noise reverses its answers."""
    feature = honest.contest.folder.spec.features.numeric[0]
    seen = np.unique(_numbers(honest.contest.rows, feature))

    def guess(frame: pd.DataFrame, probability: Floats) -> Floats:
        known = np.isin(frame[feature].to_numpy(), seen)
        return np.where(known, probability, 1 - probability)

    return _altered(honest.contest, guess)


def without_a_feature(honest: Honest) -> Contest:
    """The candidate, of which one feature had no value in any training row."""
    return replace(honest.contest, without_values=honest.contest.folder.spec.features.names[:1])


def _nothing(_: Honest) -> str | None:
    return None


def _probabilities(honest: Honest) -> str | None:
    task = honest.contest.folder.spec.task
    if task == "binary_classification":
        return None
    return f"it changes the probabilities of a binary classifier, and the task is {task.replace('_', ' ')}"


def _a_numeric_feature(honest: Honest) -> str | None:
    without = None if honest.contest.folder.spec.features.numeric else "the model has no numeric feature"
    return _probabilities(honest) or without


def _a_slice(honest: Honest) -> str | None:
    slices = honest.contest.folder.spec.gates.slices
    if missing := _probabilities(honest):
        return missing
    if not slices.columns:
        return "gates.slices names no column, so no slice is judged"
    if not _judged_slices(honest.contest, slices.columns[0]):
        return f"no value of {slices.columns[0]} has gates.slices.min_rows ({slices.min_rows:,}) rows"
    return None


#: Each control names the gate that must refuse it. Other gates may refuse it too.
NEGATIVE = {
    "an identical copy": Control("champion", identical_copy, _nothing),
    "a degraded model": Control("champion", degraded, _probabilities),
    "one broken in a single slice": Control("slices", broken_in_a_slice, _a_slice),
    "a miscalibrated one": Control("calibration.error", miscalibrated, _probabilities),
    "a leaky one": Control("leak", leaky, _a_numeric_feature),
    "a constant": Control("predictions", constant, _probabilities),
    "NaN": Control("predictions", not_finite, _probabilities),
    "one trained on shuffled labels": Control("baseline", shuffled_labels, _nothing),
    "one trained on stale data": Control("fresh_training", stale, _nothing),
    "one that has seen the holdout": Control("untouched_holdout", seen_the_holdout, _nothing),
    "one whose metrics are for other rows": Control("same_rows", other_rows, _nothing),
    "one that learned without a feature": Control("feature_values", without_a_feature, _nothing),
    "a fragile one": Control("robustness.noise", fragile, _a_numeric_feature),
}


# --- positive control ------------------------------------------------------------------------------------------------


def improved(honest: Honest, by: float) -> Contest:
    """The honest candidate against itself with noise. So it is truly better by ``by`` of the area under the ROC curve."""
    contest = honest.contest
    model, champion = contest.candidate.load(), contest.champion
    assert champion is not None  # Honest
    weaker = replace(model, estimator=Altered(model.estimator, noise(_noise_worth(model, contest, by))))
    return replace(contest, champion=Entrant(champion.blank, lambda: weaker))


# --- alterations -----------------------------------------------------------------------------------------------------


def noise(deviation: float, seed: int = 1) -> Alteration:
    """Noise in the log-odds. It depends only on the features of a row, so equal rows get equal answers.

    Args:
        deviation: standard deviation of the noise.
        seed: another seed gives other noise.
    """

    def disturb(frame: pd.DataFrame, probability: Floats) -> Floats:
        key = f"perennial-{seed:06d}"
        uniform = (pd.util.hash_pandas_object(frame, index=False, hash_key=key).to_numpy() >> np.uint64(11)) * 2.0**-53
        noisy: Floats = expit(_odds(probability) + deviation * ndtri(np.clip(uniform, 1e-12, 1 - 1e-12)))
        return noisy

    return disturb


def _noise_worth(model: LoadedModel, contest: Contest, by: float) -> float:
    """The deviation of noise that lowers the area under the ROC curve by ``by`` on the contest's rows."""
    truth, frame = labels_of(contest.rows).astype(bool), model.takes.frame(contest.rows)
    probability = model.predict(contest.rows).values
    whole = roc_auc_score(truth, probability)
    low, high = 0.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        lost = whole - roc_auc_score(truth, noise(middle)(frame, probability))
        low, high = (middle, high) if lost < by else (low, middle)
    return high


def _odds(probability: Floats) -> Floats:
    odds: Floats = logit(np.clip(probability, _EPSILON, 1 - _EPSILON))
    return odds


def _numbers(rows: pa.Table, feature: str) -> Floats:
    column = pc.cast(rows.column(feature), pa.float64()).combine_chunks()
    numbers: Floats = column.to_numpy(zero_copy_only=False)
    return numbers


def _with(contest: Contest, change: Callable[[LoadedModel], LoadedModel]) -> Contest:
    candidate = contest.candidate
    return replace(contest, candidate=Entrant(candidate.blank, lambda: change(candidate.load())))


def _altered(contest: Contest, alter: Alteration) -> Contest:
    return _with(contest, lambda model: replace(model, estimator=Altered(model.estimator, alter)))


def _refitted(contest: Contest, rows: pa.Table, labels: NDArray[Any], interval: Interval | None) -> Contest:
    model = contest.candidate.load()
    estimator = clone(model.estimator).fit(model.takes.frame(rows.drop_columns([LABEL])), labels)
    key = model.trained_on if interval is None else interval.key
    blank = replace(contest.candidate.blank, trained_on=key)
    return replace(contest, candidate=Entrant(blank, lambda: replace(model, estimator=estimator, trained_on=key)))
