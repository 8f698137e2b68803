"""Has the world moved away from what the champion was trained on? Evidently's report, guarded, as a verdict.

The features and predictions of an interval are compared with the training reference of the very version that made the
predictions. Methods and thresholds are those of the spec, never Evidently's defaults, which depend on the size of the
data. What Evidently gets wrong is judged before it is asked (:func:`compare` lists it), and a verdict that could not be
computed is ``unknown``, which is never ``ok``.

Neighbours: :mod:`perennial.scoring` publishes the predictions; :mod:`perennial.retraining` weighs the verdicts.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from perennial import alerts, logs
from perennial.intervals import Interval
from perennial.lake import Lake
from perennial.ledger import Ledger, VerdictName
from perennial.registry import Registry
from perennial.scoring import uncovered
from perennial.spec import Drift, ModelFolder

# Evidently reports its use to its makers unless told not to.
os.environ["DO_NOT_TRACK"] = "1"
with warnings.catch_warnings():
    # It reaches into numpy.core, which numpy 2 warns of.
    warnings.simplefilter("ignore", DeprecationWarning)
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

log = logs.get(__name__)

#: Fewest values of a column, on either side, that a distance is taken of.
MIN_VALUES = 50
#: Most categories told apart; the rarer ones of the reference are taken together. With thousands of them, the distance of
#: two samples of the same distribution is large, and Evidently takes seconds a column.
MAX_CATEGORIES = 100
#: Beyond this, the square of a value overflows and every distance becomes 0 or NaN: as good as infinite.
HUGE = 1e150
#: Below this standard deviation Evidently divides by it rather than by the deviation, and sees nothing.
_SMALLEST_NORM = 0.001

_PREDICTION = "prediction"
_NOT_FEATURES = frozenset({_PREDICTION, "probability", "probabilities", "label"})
_OTHER = "(other)"

Kind = Literal["numeric", "categorical"]
Status = Literal["stable", "drifted", "left_out", "unusable"]


@dataclass(frozen=True)
class ColumnDrift:
    """What was found of one feature, or of the predictions.

    Attributes:
        score: Wasserstein distance in standard deviations of the reference (numeric) or Jensen-Shannon distance
            (categorical); None if none was taken.
        threshold: score from which the column counts as drifted.
        status: ``drifted`` by the score or by values that the reference never saw; ``left_out`` when it misses nearly all
            its values as the reference does, which says nothing either way; ``unusable`` when it could not be judged.
        missing, reference_missing: share of values that are missing or NaN.
        reason: what there is to say, in words and numbers; empty if nothing.
    """

    column: str
    kind: Kind
    score: float | None
    threshold: float
    status: Status
    missing: float
    reference_missing: float
    reason: str

    @property
    def drifted(self) -> bool:
        return self.status == "drifted"


@dataclass(frozen=True)
class Comparison:
    """The outcome of :func:`compare`.

    Attributes:
        reasons: in words and numbers, the weightiest first.
        columns: the predictions first, then the features.
        snapshot: Evidently's result; None if it was not asked or failed.
    """

    verdict: VerdictName
    reasons: list[str]
    columns: list[ColumnDrift] = field(default_factory=list)
    share: float | None = None
    snapshot: Any = None


@dataclass(frozen=True)
class DriftVerdict:
    """A verdict as it is recorded.

    Attributes:
        version: the version that made most of the interval's predictions; None if there are none.
        reasons: in words and numbers, the weightiest first.
        details: rows, snapshots, and what was found of each column.
        report: path of the HTML report, relative to the folder of reports; None if there is none.
        report_url: address a person can open it at.
        run_url: address of the version's MLflow run.
    """

    model: str
    interval: Interval
    version: int | None
    verdict: VerdictName
    reasons: list[str]
    details: dict[str, Any]
    report: str | None
    report_url: str | None
    run_url: str | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval": self.interval.key}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DriftVerdict:
        return cls(**{**value, "interval": Interval.from_key(value["interval"])})


# --- the comparison: frames in, verdict out --------------------------------------------------------------------------


@dataclass
class _Column:
    """A column on its way to a finding.

    Attributes:
        current, reference: what Evidently is given; None if it is not to be asked.
        unusable, moved, left_out, note: what there is to say, after the column's name.
    """

    name: str
    kind: Kind
    threshold: float
    current: pd.Series[Any] | None = None
    reference: pd.Series[Any] | None = None
    missing: float = 0.0
    reference_missing: float = 0.0
    score: float | None = None
    unusable: str = ""
    moved: str = ""
    left_out: str = ""
    note: str = ""

    @property
    def subject(self) -> str:
        return "the predictions" if self.name == _PREDICTION else self.name

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


def compare(policy: Drift, features: pa.Table, predictions: pa.Table, reference: pa.Table) -> Comparison:
    """Compare what a version saw and said with what it was trained on.

    ``drift``: the predictions drifted, or at least ``share`` of the features did. ``unknown``: not that, but there are too
    few rows, a column cannot be judged, or Evidently failed. ``ok`` otherwise.

    Judged here rather than by Evidently, which would call each of these stable, or raise:

    - A column that is absent, has changed its type, is empty, or misses more than ``max_missing`` above the reference's
      own share, cannot be judged.
    - Categories that the reference never saw, and infinite values, are drift from a share of ``max_new_categories``; so
      is any other value where the reference knows only one.
    - A column that misses nearly all its values, as the reference does too, is left out of the judgement.

    Args:
        policy: ``drift`` of the spec.
        features: n rows of the interval; at least the reference's columns.
        predictions: m rows with a column ``prediction``, all by the version that the reference is of.
        reference: k rows the version was trained on: its features, and ``prediction`` where the row was not learned from.
    """
    for count, what in (
        (features.num_rows, "entities with features"),
        (predictions.num_rows, "predictions"),
        (reference.num_rows, "rows in the training reference"),
    ):
        if count < policy.min_rows:
            return Comparison("unknown", [f"{count:,} {what}, fewer than the {policy.min_rows:,} a verdict may rest on"])

    said = _prepare(policy, _PREDICTION, predictions, reference, policy.prediction_threshold)
    names = [name for name in reference.column_names if name not in _NOT_FEATURES]
    seen = [_prepare(policy, name, features, reference) for name in names]
    columns = [said, *seen]
    try:
        snapshot = _ask_evidently([column for column in columns if column.current is not None])
    except Exception as error:
        log.exception("Evidently failed")
        for column in columns:
            column.score = None
        reason = f"Evidently failed, {_first_line(error)}"
        return Comparison("unknown", [reason], [replace(column.finding(), status="unusable") for column in columns])
    return _judge(policy, said, seen, snapshot)


def _judge(policy: Drift, said: _Column, seen: Sequence[_Column], snapshot: Any) -> Comparison:
    prediction, features = said.finding(), [column.finding() for column in seen]
    drifted = sorted((f for f in features if f.drifted), key=lambda f: -math.inf if f.score is None else -f.score / f.threshold)
    unusable = [f for f in (prediction, *features) if f.status == "unusable"]
    share = len(drifted) / len(features) if features else 0.0
    counted = f"{len(drifted)} of {len(features)} features drifted, a share of {share:.2f} (threshold {policy.share:g})"
    if prediction.drifted or (drifted and share >= policy.share):
        verdict: VerdictName = "drift"
        first = [*([prediction.reason] if prediction.drifted else []), counted]
    elif unusable or all(f.status == "left_out" for f in features):
        verdict = "unknown"
        first = [*(f.reason for f in unusable), *([] if unusable else ["no feature has enough values to be judged"]), counted]
    else:
        verdict = "ok"
        first = [counted]
    if prediction.status == "stable":
        first.append(f"the predictions moved by {said.distance}")
    rest = [f.reason for f in (*drifted, *unusable, prediction, *features) if f.reason]
    return Comparison(verdict, list(dict.fromkeys([*first, *rest])), [prediction, *features], share, snapshot)


def _prepare(
    policy: Drift, name: str, current: pa.Table, reference: pa.Table, numeric_threshold: float | None = None
) -> _Column:
    """Look at one column on both sides; ``current`` of the result is None if Evidently is not to be asked about it."""
    if name not in reference.column_names:
        return _Column(name, "numeric", policy.numeric_threshold, unusable="are not in the version's training reference")
    known = reference.column(name).combine_chunks()
    if name == _PREDICTION:
        known = known.drop_null()  # rows that were learned from have none
    kind: Kind = "numeric" if _is_number(known.type) else "categorical"
    threshold = (numeric_threshold or policy.numeric_threshold) if kind == "numeric" else policy.categorical_threshold
    column = _Column(name, kind, threshold)
    if name not in current.column_names:
        column.unusable = "is not among the published features"
        return column
    given = current.column(name).combine_chunks()
    if pa.types.is_null(given.type):
        given = pa.nulls(len(given), known.type)
    if _is_number(given.type) != _is_number(known.type):
        column.unusable = f"was {known.type} in training and is {given.type} now"
        return column
    return _prepare_numbers(policy, column, given, known) if kind == "numeric" else _prepare_texts(policy, column, given, known)


def _prepare_numbers(policy: Drift, column: _Column, given: pa.Array, known: pa.Array) -> _Column:
    current, reference = (
        pc.cast(side, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64, copy=True) for side in (given, known)
    )
    _check_presence(policy, column, np.isnan(current), np.isnan(reference))
    infinite, usual = (_drop_infinite(side) for side in (current, reference))
    if infinite > 0 and infinite - usual >= policy.max_new_categories:
        column.moved = f"has {infinite:.1%} infinite values ({usual:.1%} in the reference)"
    elif infinite > 0:
        column.note = f"has {infinite:.2%} infinite values, which were left out"
    present, seen = (side[~np.isnan(side)] for side in (current, reference))
    if len(present) and len(seen) and seen.min() == seen.max():
        strange = float(np.mean(present != seen[0]))
        if strange > 0 and strange >= policy.max_new_categories:
            column.moved = f"has {strange:.1%} values other than {seen[0]:g}, the only one in the reference"
    if column.unusable or column.left_out:
        return column
    if min(len(present), len(seen)) < MIN_VALUES:
        if not column.moved:
            column.left_out = f"has fewer than {MIN_VALUES} finite values, as in the reference, and was left out"
        return column
    deviation = float(np.std(seen))
    if 0 < deviation < _SMALLEST_NORM:
        scale = 10.0 ** math.ceil(-math.log10(deviation))
        current, reference = current * scale, reference * scale
        column.note = "; ".join(part for part in (column.note, f"is shown times {scale:g} in the report") if part)
    column.current, column.reference = pd.Series(current), pd.Series(reference)
    return column


def _drop_infinite(values: NDArray[np.float64]) -> float:
    """Make NaN of what is infinite or as good as that, in place, and tell the share."""
    huge = np.abs(values) > HUGE
    values[huge] = np.nan
    return float(huge.mean()) if len(huge) else 0.0


def _prepare_texts(policy: Drift, column: _Column, given: pa.Array, known: pa.Array) -> _Column:
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
            text = f"has {share:.1%} values in categories that the reference never saw ({', '.join(examples)})"
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
            f"misses {missing:.1%} of its values, {usual:.1%} in the reference (at most {policy.max_missing:.0%} more may be)"
        )
    elif few < MIN_VALUES and column.name == _PREDICTION:
        column.unusable = f"have only {few} values on one side, of the {MIN_VALUES} that a distance takes"
    elif few < MIN_VALUES and usual - missing >= policy.max_missing:
        column.moved = f"misses {missing:.1%} of its values, where the reference missed {usual:.1%}"
    elif few < MIN_VALUES:
        column.left_out = f"misses {missing:.1%} of its values, as in the reference ({usual:.1%}), and was left out"


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


_MARKUP = str.maketrans("<>&", "()+")


def _shown(category: str) -> str:
    # Evidently writes categories into a script of its page as they are: "</script>" in the data would end it, and what
    # follows would run in the browser of whoever opens the report.
    text = _UNSAFE.sub(" ", category).translate(_MARKUP)
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
    """One report over all columns that are fit for it; puts the score of each into the column."""
    if not columns:
        return None
    definition = DataDefinition(
        numerical_columns=[column.name for column in columns if column.kind == "numeric"],
        categorical_columns=[column.name for column in columns if column.kind == "categorical"],
    )
    # The sides differ in length from column to column; Evidently leaves out the missing values that pad them.
    current, reference = (
        Dataset.from_pandas(pd.DataFrame({c.name: getattr(c, side) for c in columns}), data_definition=definition)
        for side in ("current", "reference")
    )
    # Not DataDriftPreset, which does all of it three times over to show it once; the table it shows is in our banner.
    metrics = [ValueDrift(column=column.name, method=_METHODS[column.kind], threshold=column.threshold) for column in columns]
    with warnings.catch_warnings():
        # It correlates constant columns, too, and divides by their deviation of zero.
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


_METHODS: dict[Kind, str] = {"numeric": "wasserstein", "categorical": "jensenshannon"}


def _first_line(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {text}"[:300]


# --- an interval: from the lake to the ledger ------------------------------------------------------------------------


def report_folder(model: str, interval: Interval) -> Path:
    """Where the reports of an interval lie, relative to the deployment's folder of reports."""
    return Path(model) / "drift" / interval.key


def judge_drift(
    folder: ModelFolder,
    lake: Lake,
    ledger: Ledger,
    registry: Registry,
    interval: Interval,
    *,
    directory: Path,
    run_id: str,
) -> DriftVerdict:
    """Judge an interval, keep the report, and record the verdict; what is not ``ok`` carries an alert in the same transaction.

    Whatever keeps the verdict from being computed is its reason, and the verdict ``unknown``. A report that cannot be
    written or sent to MLflow takes nothing from a verdict that could.

    Args:
        folder: the model's folder.
        lake: features and predictions are read there.
        ledger: says what is published, and keeps the verdict.
        registry: has the training reference of the version that predicted.
        interval: the monitoring window.
        directory: the deployment's folder of reports; the report is written below :func:`report_folder` of it.
        run_id: the run.
    """
    spec = folder.spec
    details: dict[str, Any] = {}
    version: int | None = None
    try:
        version, comparison = _compare_interval(folder, lake, ledger, registry, interval, details)
    except Exception as error:
        log.exception("drift could not be judged")
        version = details.get("version")
        comparison = Comparison("unknown", [f"the comparison failed, {_first_line(error)}"])
    details.update(
        share=comparison.share,
        share_threshold=spec.drift.share,
        columns=[{**asdict(column), "drifted": column.drifted} for column in comparison.columns],
    )
    place = report_folder(spec.name, interval)
    written = _write_report(spec.name, interval, version, comparison, details, directory / place)
    run_url, mlflow_run = _find_run(ledger, registry, spec.name, version)
    report_url = f"{run_url}/artifacts/drift/{interval.key}/report.html" if run_url and written else None
    links = {name: url for name, url in (("Drift report", report_url), ("MLflow run", run_url)) if url}
    alert = None
    if comparison.verdict == "drift":
        assert version is not None  # nothing is compared without one
        alert = alerts.drift(spec.name, interval, version=version, reasons=comparison.reasons, links=links)
    elif comparison.verdict == "unknown":
        alert = alerts.unknown_verdict(spec.name, interval, version=version, reasons=comparison.reasons, links=links)
    report = (place / "report.html").as_posix() if written else None
    ledger.record_verdict(
        model=spec.name,
        interval=interval,
        version=version,
        verdict=comparison.verdict,
        reasons=comparison.reasons,
        details=details,
        report=report,
        run_id=run_id,
        alert=alert,
    )
    log.info("%s: %s", comparison.verdict, "; ".join(comparison.reasons))
    if written and mlflow_run is not None:
        _send_to_mlflow(registry, mlflow_run, directory / place, f"drift/{interval.key}")
    return DriftVerdict(
        spec.name, interval, version, comparison.verdict, comparison.reasons, details, report, report_url, run_url
    )


def _compare_interval(
    folder: ModelFolder, lake: Lake, ledger: Ledger, registry: Registry, interval: Interval, details: dict[str, Any]
) -> tuple[int | None, Comparison]:
    spec = folder.spec
    key, size, seed = list(spec.entity_table.key), spec.drift.sample, spec.training.seed
    published = {}
    for dataset in ("predictions", "features"):
        publication = ledger.published(spec.name, dataset)
        if publication is None or not ledger.publications(spec.name, dataset, interval):
            return None, Comparison("unknown", [f"no {dataset} are published for {interval}"])
        published[dataset] = publication.snapshots[dataset]
    details["snapshots"] = published

    def sample(dataset: str) -> tuple[pa.Table, int]:
        reader = lake.scan(spec.name, dataset, published[dataset], interval=interval, event_time=spec.event_time)
        return take_sample(reader, key, size=size, seed=seed)

    predictions, predicted = sample("predictions")
    if not predicted:
        return None, Comparison("unknown", [f"{interval} has no predictions"])
    made_by = Counter(predictions.column("version").to_pylist())
    # Of two versions that made as many, the newer one.
    version = max(made_by, key=lambda number: (made_by[number], number))
    details["version"] = version
    predictions = predictions.filter(pc.equal(predictions.column("version"), version)).sort_by(spec.event_time)
    features, entities = sample("features")
    # In the order of time, as Evidently draws them.
    features = features.sort_by(spec.event_time)
    reference = registry.load(spec.name, version).reference()
    details["rows"] = {
        "features": entities,
        "predictions": predicted,
        "features_compared": features.num_rows,
        "predictions_compared": predictions.num_rows,
        "reference": reference.num_rows,
    }
    comparison = compare(spec.drift, features, predictions, reference)
    notes = []
    if len(made_by) > 1:
        others = ", ".join(str(number) for number in sorted(made_by) if number != version)
        notes.append(
            f"compared with version {version}, which made {made_by[version] / sum(made_by.values()):.0%} of the predictions; "
            f"the others, by version {others}, were left out"
        )
    if gaps := uncovered(interval, ledger.publications(spec.name, "predictions", interval)):
        notes.append(f"no predictions are published for {', '.join(gap.key for gap in gaps)}")
    return version, replace(comparison, reasons=[*comparison.reasons, *notes])


def take_sample(reader: pa.RecordBatchReader, key: Sequence[str], *, size: int, seed: int) -> tuple[pa.Table, int]:
    """At most ``size`` rows of a stream, the same ones in whatever order and files they come, and how many there were.

    The rows with the least hashes of their key are taken, so memory holds a few times the sample and no more.
    """
    held: list[pa.Table] = []
    count, total, limit = 0, 0, 2**64 - 1
    for batch in reader:
        total += batch.num_rows
        frame = pa.Table.from_batches([batch.select(list(key))]).to_pandas()
        hashes = pd.util.hash_pandas_object(frame, index=False, hash_key=f"{seed:016d}", categorize=False).to_numpy()
        kept = hashes <= np.uint64(limit)
        rows = pa.Table.from_batches([batch]).filter(pa.array(kept)).append_column(_HASH, pa.array(hashes[kept], pa.uint64()))
        held.append(rows)
        count += rows.num_rows
        if count > 4 * size:
            held = [_least(held, size)]
            count, limit = size, held[0].column(_HASH)[-1].as_py()
    if not held:
        return reader.schema.empty_table(), 0
    return _least(held, size).drop_columns([_HASH]), total


_HASH = "__sample_hash"


def _least(parts: list[pa.Table], size: int) -> pa.Table:
    return pa.concat_tables(parts).sort_by(_HASH).slice(0, size).combine_chunks()


# --- the report ------------------------------------------------------------------------------------------------------


def _write_report(
    model: str,
    interval: Interval,
    version: int | None,
    comparison: Comparison,
    details: Mapping[str, Any],
    folder: Path,
) -> bool:
    """Write ``report.html`` and ``evidently.json``, if there is anything to show, and ``verdict.json``; say if there was."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        verdict = {
            "model": model, "interval": interval.key, "version": version, "verdict": comparison.verdict,
            "reasons": comparison.reasons, "details": details,
        }  # fmt: skip
        _replace(folder / "verdict.json", json.dumps(verdict, indent=2, default=str))
        if comparison.snapshot is None:
            # One of an earlier attempt would contradict the verdict.
            for name in ("report.html", "evidently.json"):
                (folder / name).unlink(missing_ok=True)
            return False
        banner = _banner(model, interval, version, comparison)
        page = comparison.snapshot.get_html_str(as_iframe=False).replace("<body>", f"<body>{banner}", 1)
        page = page.replace("<head>", f"<head><title>{model}, {interval.key}: {comparison.verdict}</title>", 1)
        _replace(folder / "report.html", page)
        _replace(folder / "evidently.json", comparison.snapshot.dumps())
    except Exception:
        log.exception("the report could not be written to %s; the verdict stands", folder)
        return False
    return True


def _replace(file: Path, text: str) -> None:
    """Write a file so that whoever reads it meanwhile sees the old or the new one, whole."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def _banner(model: str, interval: Interval, version: int | None, comparison: Comparison) -> str:
    """The verdict and a table of all columns, above Evidently's page, which knows of those alone that it was asked about."""
    color = {"ok": "#1a7f37", "drift": "#b35900", "unknown": "#57606a"}[comparison.verdict]
    items = "".join(f"<li>{_as_text(reason)}</li>" for reason in comparison.reasons)
    rows = "".join(
        f"<tr><td>{_as_text(column.column)}</td><td>{_STATUS[column.status]}</td>"
        f"<td>{'' if column.score is None else f'{column.score:.3f}'}</td><td>{column.threshold:g}</td>"
        f"<td>{'Wasserstein, standard deviations' if column.kind == 'numeric' else 'Jensen-Shannon'}</td>"
        f"<td>{column.missing:.1%}</td><td>{column.reference_missing:.1%}</td></tr>"
        for column in sorted(comparison.columns, key=lambda column: -(column.score or 0) / column.threshold)
    )
    return (
        "<style>.perennial{font-family:sans-serif;max-width:1200px;margin:24px auto;padding:1px 24px;"
        "background:#fff;color:#111}"
        ".perennial td,.perennial th{padding:4px 16px 4px 0;text-align:left}</style>"
        f'<section class="perennial"><h1>{_as_text(model)}, {_as_text(interval.key)}: '
        f'<span style="color:{color}">{comparison.verdict}</span></h1>'
        f"<p>Compared with what version {version} was trained on.</p><ul>{items}</ul>"
        "<table><tr><th>column</th><th>found</th><th>distance</th><th>threshold</th><th>measured by</th><th>missing</th>"
        f"<th>missing in the reference</th></tr>{rows}</table></section>"
    )


_STATUS: dict[Status, str] = {
    "stable": "stable",
    "drifted": "<b>drifted</b>",
    "left_out": "left out",
    "unusable": "<b>cannot be judged</b>",
}


def _as_text(text: str) -> str:
    return html.escape(_UNSAFE.sub(" ", text))


def _find_run(ledger: Ledger, registry: Registry, model: str, version: int | None) -> tuple[str | None, str | None]:
    """Address and id of the version's MLflow run, as far as they can be had."""
    record = ledger.version(model, version) if version is not None else None
    if record is None:
        return None, None
    try:
        return registry.run_url(record.mlflow_run_id), record.mlflow_run_id
    except Exception:
        log.exception("MLflow does not know the run of version %s; the verdict stands", version)
        return None, None


def _send_to_mlflow(registry: Registry, mlflow_run: str, folder: Path, path: str) -> None:
    try:
        registry.run(mlflow_run).log_files(folder, path)
    except Exception:
        log.exception("the report could not be logged to MLflow run %s; it lies in %s", mlflow_run, folder)
