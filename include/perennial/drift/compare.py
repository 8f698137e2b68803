"""Compare the data of a window with what a version was trained on, by Evidently and by checks of our own.

The features and predictions of an interval are compared with the training reference of the version that made the
predictions. Methods and thresholds are those of the spec, or of ``drift.yaml`` if history has been calibrated. Evidently's
defaults are not used, since they depend on the size of the data. What Evidently misjudges is judged before Evidently is
called (:func:`compare` lists it). A verdict that could not be computed is ``unknown``, never ``ok``.

Neighbours: :mod:`perennial.drift.thresholds` calibrates. :mod:`perennial.monitoring.verdicts` calls :func:`compare` and records
the verdict. :mod:`perennial.drift.page` writes the page.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from evidently import DataDefinition, Dataset, Report
from evidently.metrics import ValueDrift
from numpy.typing import NDArray

from perennial.core.intervals import Interval
from perennial.core.redaction import redact
from perennial.core.text import UNSAFE
from perennial.drift.distances import HUGE, MAX_CATEGORIES, as_floats, is_number, is_other, only_number, prepare
from perennial.drift.findings import DriftComparison
from perennial.drift.shapes import Shape, shape_of
from perennial.evidence.verdict import ColumnDrift, Kind, Status
from perennial.ledger.records import VerdictName
from perennial.spec.monitoring import MIN_VALUES, Drift, DriftThresholds, Threshold

log = logging.getLogger(__name__)


#: If the standard deviation is below this, Evidently divides by this number instead, and finds no drift.
_SMALLEST_NORM = 0.001

PREDICTION = "prediction"
NOT_FEATURES = frozenset({PREDICTION, "probability", "probabilities", "label"})
_OTHER = "(other)"


@dataclass
class _Column:
    """A column while it is judged.

    Attributes:
        name: name of the column.
        kind: numeric or categorical.
        threshold: distance from which the column has drifted.
        most_missing: change of the share of missing values from which it has drifted; None if it was not calibrated.
        current, reference: the values; None if they are not compared.
        single: whether the reference has only one number. There is no distance then, and Evidently is not called.
        missing, reference_missing: share of missing values.
        score: the distance; None if none was computed.
        unusable, moved, left_out, note: sentences about the column without their subject; empty if there is nothing to say.
    """

    name: str
    kind: Kind
    threshold: float
    most_missing: float | None = None
    current: pd.Series[Any] | None = None
    reference: pd.Series[Any] | None = None
    single: bool = False
    missing: float = 0.0
    reference_missing: float = 0.0
    score: float | None = None
    unusable: str = ""
    moved: str = ""
    left_out: str = ""
    note: str = ""

    @property
    def subject(self) -> str:
        return "the predictions" if self.name == PREDICTION else self.name

    @property
    def distance(self) -> str:
        unit = " standard deviations of the reference" if self.kind == "numeric" else " (Jensen-Shannon)"
        return f"{self.score:.3f}{unit}, threshold {self.threshold:g}"

    def finding(self) -> ColumnDrift:
        beyond = self.score is not None and self.score >= self.threshold
        status: Status = (
            "unusable" if self.unusable else "drifted" if beyond or self.moved else "left_out" if self.left_out else "stable"
        )
        parts = [self.unusable, f"moved by {self.distance}" if beyond else "", self.moved, self.left_out, self.note]
        said = "; ".join(part for part in parts if part)
        return ColumnDrift(
            column=self.name,
            kind=self.kind,
            score=self.score,
            threshold=self.threshold,
            status=status,
            missing=round(self.missing, 4),
            reference_missing=round(self.reference_missing, 4),
            reason=f"{self.subject} {said}" if said else "",
        )


def compare(
    policy: Drift,
    features: pa.Table,
    predictions: pa.Table,
    reference: pa.Table,
    thresholds: DriftThresholds | None = None,
    *,
    report: bool = True,
    quote: bool = True,
) -> DriftComparison:
    """Compare the inputs and the predictions of a version with its training reference.

    The verdict is ``drift`` if the predictions drifted, or at least ``share`` of the features. One feature is enough if
    thresholds are calibrated and no share is given. Otherwise it is ``unknown`` if there are too few rows, the predictions or
    too many features cannot be judged, or Evidently failed. Otherwise it is ``ok``, and its reasons name the features that
    cannot be judged. They are too many if they and the drifted ones together are ``share`` of the features (0.3 if no share is
    given), calibrated or not.

    Evidently would call the following stable, or raise. So they are judged here:

    - A column cannot be judged if it is absent, has another type, is empty, or misses values in a share of more than
      ``max_missing`` above the reference's share; or if Evidently fails on it alone.
    - Categories that are not in the reference, and infinite values, are drift from a share of ``max_new_categories`` on. If
      the reference has only one number, any other number counts in the same way, and there is no distance.
    - A column that misses nearly all its values, in the reference too, is left out.

    Args:
        policy: ``drift`` of the spec.
        features: n rows of the interval with at least the columns of the reference.
        predictions: m rows with a column ``prediction``, all by the version of the reference.
        reference: k training rows of the version: its features, and ``prediction``, which is null for rows that the model
            was fitted on.
        thresholds: calibrated thresholds by column, instead of those of ``policy``. A column without one is judged by
            ``policy``. A version may have such a column if the folder no longer has the feature.
        report: whether to make Evidently's report. Without it the verdict is the same, in a tenth of the time.
        quote: whether reasons may quote categories that the reference does not have. What clients send is quoted nowhere.
    """
    for count, what in (
        (features.num_rows, "entities with features"),
        (predictions.num_rows, "predictions"),
        (reference.num_rows, "rows in the training reference"),
    ):
        if count < policy.min_rows:
            return DriftComparison("unknown", [f"{count:,} {what}; a verdict requires at least {policy.min_rows:,}"])

    calibrated = thresholds.columns if thresholds is not None else {}
    names = [name for name in reference.column_names if name not in NOT_FEATURES]
    said, *seen = (
        _prepare(policy, name, rows, reference, calibrated.get(name), quote=quote)
        for name, rows in ((PREDICTION, predictions), *((name, features) for name in names))
    )
    columns = [said, *seen]
    measured = [column for column in columns if column.current is not None and not column.single]
    try:
        snapshot = _without_failing(_ask_evidently if report else _measure, measured, quote=quote)
    except Exception as error:
        log.error("Evidently failed: %s", _failure(error, quote=quote))
        for column in measured:
            column.score = None
        reason = f"Evidently failed, {_failure(error, quote=quote)}"
        return DriftComparison("unknown", [reason], [replace(column.finding(), status="unusable") for column in columns])
    judged = _judge(policy, said, seen, snapshot, calibrated=thresholds is not None)
    return replace(judged, shapes=_shapes(columns)) if report else judged


def _failure(error: Exception, *, quote: bool) -> str:
    """What failed; its text may quote the data."""
    return first_line(error) if quote else type(error).__name__


def _shapes(columns: Sequence[_Column]) -> dict[str, Shape]:
    return {
        column.name: shape_of(column.kind, column.current, column.reference)
        for column in columns
        if column.current is not None and column.reference is not None
    }


def _judge(policy: Drift, said: _Column, seen: Sequence[_Column], snapshot: Any, *, calibrated: bool) -> DriftComparison:
    prediction, features = said.finding(), [column.finding() for column in seen]
    drifted = sorted((f for f in features if f.drifted), key=lambda f: -math.inf if f.score is None else -f.score / f.threshold)
    unusable = [f for f in features if f.status == "unusable"]
    share = len(drifted) / len(features) if features else 0.0
    wanted = policy.features_wanted(len(features), calibrated=calibrated)
    counted = f"{len(drifted)} of {len(features)} features drifted (threshold {wanted})"
    too_many = policy.features_wanted(len(features), calibrated=False)
    if prediction.drifted or len(drifted) >= wanted:
        verdict: VerdictName = "drift"
        first = [*([prediction.reason] if prediction.drifted else []), counted]
    elif prediction.status == "unusable" or (unusable and len(drifted) + len(unusable) >= too_many):
        verdict = "unknown"
        first = [*(f.reason for f in (prediction, *unusable) if f.status == "unusable"), counted]
    elif all(f.status in ("left_out", "unusable") for f in features):
        verdict = "unknown"
        first = ["no feature has enough values to be judged", *(f.reason for f in unusable), counted]
    else:
        verdict = "ok"
        first = [counted, *(f.reason for f in unusable)]
    if prediction.status == "stable":
        first.append(
            "the predictions stayed the one number of the reference"
            if said.single
            else f"the predictions moved by {said.distance}"
        )
    rest = [f.reason for f in (*drifted, *unusable, prediction, *features) if f.reason]
    return DriftComparison(verdict, list(dict.fromkeys([*first, *rest])), [prediction, *features], share, snapshot)


def _prepare(
    policy: Drift, name: str, current: pa.Table, reference: pa.Table, calibrated: Threshold | None, *, quote: bool
) -> _Column:
    """Look at one column on both sides. In the result, ``current`` is None if Evidently is not to be called for it."""
    if name not in reference.column_names:
        return _Column(name, "numeric", policy.numeric_threshold, unusable="are not in the version's training reference")
    known = reference.column(name).combine_chunks()
    if name == PREDICTION:
        known = known.drop_null()  # rows that the model was fitted on have none
    kind: Kind = "numeric" if is_number(known.type) else "categorical"
    if calibrated is not None:
        threshold = calibrated.distance
    elif kind == "categorical":
        threshold = policy.categorical_threshold
    else:
        threshold = policy.prediction_threshold if name == PREDICTION else policy.numeric_threshold
    column = _Column(name, kind, threshold, calibrated.missing if calibrated is not None else None)
    if name not in current.column_names:
        column.unusable = "is not among the published features"
        return column
    given = current.column(name).combine_chunks()
    if pa.types.is_null(given.type):
        given = pa.nulls(len(given), known.type)
    if is_number(given.type) != is_number(known.type):
        column.unusable = f"was {known.type} in training and is {given.type} now"
        return column
    try:
        if kind == "numeric":
            return _prepare_numbers(policy, column, given, known)
        return _prepare_texts(policy, column, given, known, quote=quote)
    except Exception as error:
        log.error("%s cannot be compared: %s", name, _failure(error, quote=quote))
        return _Column(name, kind, threshold, unusable=f"cannot be judged: {_failure(error, quote=quote)}")


def _prepare_numbers(policy: Drift, column: _Column, given: pa.Array, known: pa.Array) -> _Column:
    current, reference = as_floats(given), as_floats(known)
    _check_presence(policy, column, np.isnan(current), np.isnan(reference))
    infinite, usual = (_drop_infinite(side) for side in (current, reference))
    if infinite > 0 and infinite - usual >= policy.max_new_categories:
        column.moved = f"has {infinite:.1%} infinite values ({usual:.1%} in the reference)"
    elif infinite > 0:
        column.note = f"has {infinite:.2%} infinite values, which were left out"
    present, seen = (side[~np.isnan(side)] for side in (current, reference))
    only = only_number(seen)
    if only is not None and len(present):
        column.single = True
        others = float(is_other(present, only).mean())
        told = f"had {others:.1%} values other than {only:.12g}, the only value in the reference"
        if others > 0 and others >= policy.max_new_categories:
            column.moved = "; ".join(part for part in (column.moved, told) if part)
        elif others > 0:
            column.note = "; ".join(part for part in (column.note, told) if part)
    if column.unusable or column.left_out:
        return column
    if min(len(present), len(seen)) < MIN_VALUES:
        if not column.moved:
            column.left_out = _too_few("finite values", (len(present), len(current)), (len(seen), len(reference)))
        return column
    if column.single:
        column.score = None if column.moved or column.note else 0.0
    elif (deviation := float(np.std(seen))) < _SMALLEST_NORM:
        # The square of a tiny deviation is 0.
        scale = 10.0 ** min(300, math.ceil(-math.log10(deviation or float(np.ptp(seen)))))
        current, reference = current * scale, reference * scale
        column.note = "; ".join(part for part in (column.note, f"is multiplied by {scale:g} in the report") if part)
    column.current, column.reference = pd.Series(current), pd.Series(reference)
    return column


def _drop_infinite(values: NDArray[np.float64]) -> float:
    """Replace infinite and huge values by NaN in place, and return their share."""
    huge = np.abs(values) > HUGE
    values[huge] = np.nan
    return float(huge.mean()) if len(huge) else 0.0


def _prepare_texts(policy: Drift, column: _Column, given: pa.Array, known: pa.Array, *, quote: bool) -> _Column:
    current, reference = (pc.cast(values, pa.string()) for values in (given, known))
    _check_presence(
        policy,
        column,
        current.is_null().to_numpy(zero_copy_only=False),
        reference.is_null().to_numpy(zero_copy_only=False),
    )
    counts = Counter({str(pair["values"]): int(pair["counts"]) for pair in reference.drop_null().value_counts().to_pylist()})
    present = current.drop_null()
    if len(present):
        fresh = pc.invert(pc.is_in(present, value_set=pa.array(list(counts), pa.string())))
        share = float(pc.mean(pc.cast(fresh, pa.float64())).as_py())
        if share > 0:
            examples = [_shown(str(value)) for value in pc.unique(present.filter(fresh)).to_pylist()[:3]]
            text = f"has {share:.1%} values in categories that are not in the reference"
            text += f" ({', '.join(examples)})" if quote else ""
            if share >= policy.max_new_categories:
                column.moved = text
            else:
                column.note = text
    if column.unusable or column.left_out or not counts:
        return column
    names = _display_names(value for value, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_CATEGORIES])

    def told_apart(values: pa.Array) -> pd.Series[Any]:
        series: pd.Series[Any] = values.to_pandas()
        shown: pd.Series[Any] = series.map(names).where(series.isna() | series.isin(list(names)), _OTHER)
        return shown

    column.current, column.reference = told_apart(current), told_apart(reference)
    return column


def _check_presence(policy: Drift, column: _Column, absent: NDArray[np.bool_], reference_absent: NDArray[np.bool_]) -> None:
    column.missing, column.reference_missing = (float(side.mean()) if len(side) else 1.0 for side in (absent, reference_absent))
    missing, usual = column.missing, column.reference_missing
    few = min(np.count_nonzero(~absent), np.count_nonzero(~reference_absent))
    if missing > usual and missing - usual >= policy.max_missing:
        column.unusable = (
            f"had {missing:.1%} missing values, {usual:.1%} in the reference (at most {policy.max_missing:.0%} more are "
            "allowed)"
        )
    elif few >= MIN_VALUES and column.most_missing is not None and abs(missing - usual) >= column.most_missing:
        column.moved = (
            f"had {missing:.1%} missing values, {usual:.1%} in the reference (calibrated threshold {column.most_missing:.1%})"
        )
    elif few < MIN_VALUES and column.name == PREDICTION:
        column.unusable = _too_few("values", _presence(absent), _presence(reference_absent), then="cannot be judged")
    elif few < MIN_VALUES and usual - missing >= policy.max_missing:
        column.moved = f"had {missing:.1%} missing values, but the reference had {usual:.1%}"
    elif few < MIN_VALUES:
        column.left_out = _too_few("values", _presence(absent), _presence(reference_absent))


def _presence(absent: NDArray[np.bool_]) -> tuple[int, int]:
    """The number of values, and of rows."""
    return int(np.count_nonzero(~absent)), len(absent)


def _too_few(what: str, window: tuple[int, int], reference: tuple[int, int], *, then: str = "was left out") -> str:
    """Why there is no distance: which side has too few values, and whether it has too few rows or misses values.

    Args:
        what: what is counted.
        window, reference: number of values and of rows on this side.
        then: what follows from it.
    """
    causes = []
    for side, (values, rows) in (("the window", window), ("the reference", reference)):
        if rows < MIN_VALUES:
            causes.append(f"{side} has only {rows:,} rows")
        elif values < MIN_VALUES:
            causes.append(f"{side} has {values:,} {what} in {rows:,} rows")
    return f"{then}: {' and '.join(causes)}, and a distance requires {MIN_VALUES} on each side"


_MARKUP = str.maketrans("<>&", "()+")


def _shown(category: str) -> str:
    # Evidently writes categories unescaped into a script of its page. "</script>" in the data would end the script, and
    # the text after it would run in the browser of everyone who opens the report.
    text = UNSAFE.sub(" ", category).translate(_MARKUP)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _display_names(categories: Iterable[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    taken = {_OTHER}
    for category in categories:
        text, number = _shown(category), 2
        while text in taken:
            text, number = f"{_shown(category)} ({number})", number + 1
        taken.add(text)
        names[category] = text
    return names


def _ask_evidently(columns: Sequence[_Column]) -> Any:
    """Make one Evidently report of all given columns, and set the score of each column."""
    if not columns:
        return None
    definition = DataDefinition(
        numerical_columns=[column.name for column in columns if column.kind == "numeric"],
        categorical_columns=[column.name for column in columns if column.kind == "categorical"],
    )
    # The columns differ in length. pandas pads them with missing values, which Evidently leaves out.
    current, reference = (
        Dataset.from_pandas(pd.DataFrame({c.name: getattr(c, side) for c in columns}), data_definition=definition)
        for side in ("current", "reference")
    )
    # Not DataDriftPreset, which computes everything three times. The table that it shows is in our banner.
    metrics = [ValueDrift(column=column.name, method=_METHODS[column.kind], threshold=column.threshold) for column in columns]
    with warnings.catch_warnings():
        # Evidently also correlates constant columns, and divides by their deviation of zero.
        warnings.simplefilter("ignore")
        snapshot = Report(metrics, include_tests=True).run(current, reference)
    found = {metric["config"]["column"]: float(metric["value"]) for metric in snapshot.dict()["metrics"]}
    for column in columns:
        score = found.get(column.name, math.nan)
        if math.isfinite(score):
            column.score = score
        else:
            column.unusable = "cannot be judged: Evidently gave no finite distance"
    return snapshot


def _without_failing(ask: Callable[[Sequence[_Column]], Any], columns: Sequence[_Column], *, quote: bool) -> Any:
    """Ask about all columns; those on which that fails are left out and named.

    Raises:
        Exception: it fails on each of them, or on those that remain.
    """
    try:
        return ask(columns)
    except Exception as error:
        sound = _sound(ask, columns, error, quote=quote)
        if not sound:
            raise
        log.error("Evidently failed on %s", ", ".join(column.name for column in columns if column not in sound))
        return ask(sound)


def _sound(
    ask: Callable[[Sequence[_Column]], Any], columns: Sequence[_Column], error: Exception, *, quote: bool
) -> list[_Column]:
    """Those of the columns that can be asked about, found by halves; each of the others says why not."""
    if len(columns) == 1:
        columns[0].score, columns[0].unusable = None, f"cannot be judged: Evidently failed, {_failure(error, quote=quote)}"
        return []
    found: list[_Column] = []
    for half in (columns[: len(columns) // 2], columns[len(columns) // 2 :]):
        try:
            ask(half)
            found += half
        except Exception as failed:  # whatever it is, it is told with the column
            found += _sound(ask, half, failed, quote=quote)
    return found


def _measure(columns: Sequence[_Column]) -> Any:
    """Set the same scores as :func:`_ask_evidently`, without a report."""
    for column in columns:
        sides = column.current, column.reference
        values = pa.concat_arrays([pa.array(side, from_pandas=True) for side in sides])
        of_current = (np.arange(len(values)) < len(sides[0] if sides[0] is not None else ())).astype(np.float64)
        score = prepare(values).distance(of_current, 1 - of_current)
        if math.isfinite(score):
            column.score = score
        else:
            column.unusable = "cannot be judged: it has no finite distance"
    return None


_METHODS: dict[Kind, str] = {"numeric": "wasserstein", "categorical": "jensenshannon"}


def first_line(error: Exception) -> str:
    """The type of an error and the first line of its message, without secrets, at most 300 characters."""
    text = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {redact(text)}"[:300]


def match_reference(policy: Drift, reference: pa.Table, event_time: str, interval: Interval) -> pa.Table | str:
    """The rows of a reference on the same weekdays or in the same months as an interval, as ``drift.match`` requires.

    Args:
        policy: ``drift`` of the spec.
        reference: training reference of a version.
        event_time: its event time column.
        interval: the monitoring window.

    Returns:
        The rows; a sentence if there are too few.
    """
    if policy.match == "none":
        return reference
    if event_time not in reference.column_names:
        return f"the version's training reference has no event time, which drift.match: {policy.match} requires: train again"
    part = pc.day_of_week if policy.match == "weekday" else pc.month
    days = pa.array([day.start for day in interval.days()] or [interval.start], pa.timestamp("us", "UTC"))
    alike = reference.filter(pc.is_in(part(reference.column(event_time)), value_set=pc.unique(part(days))))
    if alike.num_rows < policy.min_rows:
        which = "fall on the same weekdays" if policy.match == "weekday" else "fall into the same months"
        return (
            f"only {alike.num_rows:,} of {reference.num_rows:,} rows in the training reference {which} as {interval} "
            f"(drift.match); a verdict requires at least {policy.min_rows:,}"
        )
    return alike
