"""The verdict on a monitoring window: ``ok``, ``drift`` or ``unknown``, with its report, estimate and alert.

:mod:`perennial.drift.compare` compares columns, :mod:`perennial.monitoring.estimation` estimates the performance, and
:mod:`perennial.monitoring.impact` derives the severity from both. If the comparison fails, the verdict is ``unknown``, never
``ok``.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from perennial.alerts import of_models
from perennial.alerts.alert import Alert
from perennial.core import logs
from perennial.core.errors import PerennialError
from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.drift.compare import NOT_FEATURES, PREDICTION, compare, first_line, match_reference
from perennial.drift.findings import DriftComparison
from perennial.drift.page import ASKED, write_report
from perennial.drift.sampling import take_sample
from perennial.evidence.evaluation import Evaluation
from perennial.evidence.verdict import (
    ESTIMATE_LIMIT,
    AskedDrift,
    ComparedRows,
    Estimate,
    Impact,
    VerdictDetails,
    uncompared,
)
from perennial.lake.publish import Lake
from perennial.ledger.coverage import uncovered
from perennial.ledger.records import VerdictName, VersionRecord
from perennial.ledger.store import Ledger
from perennial.model.artifacts import LoadedModel
from perennial.model.costs import answer_threshold, cost_function
from perennial.model.probabilities import read_probabilities
from perennial.monitoring import estimation, impact
from perennial.monitoring.asked import Asked, alert_of, judge_asked
from perennial.monitoring.calibrated import Calibrated, Calibrations
from perennial.monitoring.performance import holdout_of, judged_windows, recipe_of
from perennial.monitoring.usual import Bound, bound_of
from perennial.registry.folders import own_features, own_folder
from perennial.registry.runs import CandidateRun
from perennial.registry.store import Registry
from perennial.scoring.predictor import of_other_entities
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.training import METRICS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DriftVerdict:
    """A recorded verdict.

    Attributes:
        version: the version that made most of the interval's predictions; None if there are none.
        reasons: in words and numbers, the most important first.
        details: the measurements.
        report: path of the HTML report, relative to the folder of reports; None if there is none.
        report_url: the report's address on the model board; None if there is no report, or Airflow has no public address.
        run_url: the address of the version's MLflow run; None if it is not known.
    """

    model: str
    interval: Interval
    version: int | None
    verdict: VerdictName
    reasons: list[str]
    details: VerdictDetails
    report: str | None
    report_url: str | None
    run_url: str | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval": self.interval.key, "details": self.details.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DriftVerdict:
        typed = {"interval": Interval.from_key(value["interval"]), "details": VerdictDetails.from_json(value["details"])}
        return cls(**{**value, **typed})


def report_folder(model: str, interval: Interval) -> Path:
    """The folder with the reports of an interval, relative to the deployment's folder of reports."""
    return Path(model) / "drift" / interval.key


def judge_drift(
    folder: ModelFolder,
    deployment: Deployment,
    interval: Interval,
    *,
    directory: Path,
    run_id: str,
) -> DriftVerdict:
    """Judge an interval, write the report, and record the verdict, with an alert in the same transaction if one is due.

    If the comparison fails, the verdict is ``unknown``, and the failure is its reason. A failed estimate, report or upload to
    MLflow does not change the verdict. What was asked online in the interval gets a verdict of its own beside it, with a page
    and an alert of its own (:mod:`perennial.monitoring.asked`).

    Args:
        folder: the model's folder.
        deployment: holds features and predictions; its ledger gets the verdict.
        interval: the monitoring window.
        directory: the deployment's folder of reports. The report is written to :func:`report_folder` in it.
        run_id: the run.
    """
    spec, ledger = folder.spec, deployment.ledger
    calibrations = Calibrations(folder, deployment, interval)
    found = _compare_interval(folder, deployment, interval, calibrations, run_id)
    asked = judge_asked(folder, deployment, interval, calibrations, run_id=run_id)
    version, comparison, estimate = found.version, found.comparison, found.estimate
    record = ledger.version(spec.name, version) if version is not None else None
    thresholds, own = found.calibrated.thresholds, found.calibrated.own
    weight = _weigh(spec, ledger, interval, comparison, record, estimate)
    details = VerdictDetails(
        snapshots=found.snapshots,
        version=version,
        rows=found.rows,
        share=comparison.share,
        share_threshold=spec.drift.share,
        calibrated=thresholds.computed_at if thresholds else None,
        thresholds=thresholds.model_dump(mode="json") if thresholds and own else None,
        columns=comparison.columns,
        missing=found.missing,
        estimate=estimate,
        severity=weight.severity,
        impact=weight,
    )
    place = report_folder(spec.name, interval)
    details = replace(details, asked=_write_asked(asked, spec, interval, details, directory, place))
    written = write_report(spec.name, interval, version, comparison, details, directory / place)
    run, run_url = _find_run(deployment.registry, record)
    report_url = deployment.settings.report_url(directory / place / "report.html") if written else None
    links = {name: url for name, url in (("Drift report", report_url), ("MLflow run", run_url)) if url}
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
        alert=_alert(spec.name, interval, version, comparison, weight, links),
        asked=alert_of(spec.name, interval, details.asked, _asked_links(details.asked, deployment, directory)),
    )
    log.info("%s: %s", comparison.verdict, "; ".join(comparison.reasons))
    if run is not None and version is not None:
        if written:
            _name_in_mlflow(run, interval, report_url or str(directory / place / "report.html"))
        _send_outlook(run, spec, ledger, version)
    return DriftVerdict(
        spec.name, interval, version, comparison.verdict, comparison.reasons, details, report, report_url, run_url
    )


def _write_asked(
    found: Asked | None, spec: ModelSpec, interval: Interval, details: VerdictDetails, directory: Path, place: Path
) -> AskedDrift | None:
    """Write the page about what was asked online; returns the verdict with its place."""
    if found is None:
        return None
    drift = found.drift
    told = VerdictDetails(
        version=drift.version,
        share=drift.share,
        share_threshold=details.share_threshold,
        calibrated=details.calibrated,
        columns=drift.columns,
        severity=drift.severity,
    )
    comparison = replace(found.comparison, reasons=drift.reasons)
    file = place / ASKED / "report.html"
    written = write_report(
        spec.name, interval, drift.version, comparison, told, (directory / file).parent, about="asked online"
    )
    return replace(drift, report=file.as_posix() if written else None)


def _asked_links(found: AskedDrift | None, deployment: Deployment, directory: Path) -> dict[str, str]:
    if found is None or found.report is None:
        return {}
    url = deployment.settings.report_url(directory / found.report)
    return {"Drift report": url} if url else {}


def _alert(
    model: str, interval: Interval, version: int | None, comparison: DriftComparison, weight: Impact, links: Mapping[str, str]
) -> Alert | None:
    if "constant" in weight.fallen and version is not None:
        reasons = [*weight.reasons, *comparison.reasons]
        return of_models.worse_than_constant(model, interval, version=version, reasons=reasons, links=links)
    if comparison.verdict == "unknown":
        return of_models.unknown_verdict(model, interval, version=version, reasons=comparison.reasons, links=links)
    if weight.severity == "none":
        return None
    assert version is not None  # nothing is compared without one
    if comparison.verdict == "drift":
        reasons = [*weight.reasons, *comparison.reasons] if weight.severity == "critical" else comparison.reasons
        if "estimated" in weight.fallen:
            reasons = [*reasons, ESTIMATE_LIMIT]
        return of_models.drift(model, interval, version=version, reasons=reasons, severity=weight.severity, links=links)
    left = uncompared(comparison.columns)
    if left and "realised" not in weight.fallen:
        return of_models.not_compared(model, interval, left, version=version, reasons=comparison.reasons, links=links)
    reasons = [*weight.reasons, *(comparison.reasons if left else ())]
    return of_models.performance_fell(model, interval, version=version, reasons=reasons, severity=weight.severity, links=links)


def _weigh(
    spec: ModelSpec,
    ledger: Ledger,
    interval: Interval,
    comparison: DriftComparison,
    record: VersionRecord | None,
    estimate: Estimate | None,
) -> Impact:
    bound = estimate_bound(spec, record.evaluation, estimate, interval.length) if record else None
    windows = judged_windows(spec, ledger, record.version, until=interval.end) if record else []
    return impact.weigh(
        spec.retraining,
        comparison.verdict,
        interval,
        verdicts=ledger.verdicts(spec.name, before=interval.end),
        recipe=recipe_of(ledger.versions(spec.name), record.version) if record else (),
        estimated=estimate.value if estimate else None,
        windows=[replace(window, bound=window.bound or bound) for window in windows],
        version=record.version if record else None,
        bound=bound,
        uncompared=uncompared(comparison.columns),
    )


def estimate_bound(spec: ModelSpec, evaluation: Evaluation, estimate: Estimate | None, length: timedelta) -> Bound | None:
    """The bound of an estimated primary metric: a worse value counts as a drop.

    It is that of a realised value by the version's own holdout (:func:`perennial.monitoring.usual.bound_of`). If the holdout
    gives none, it is the worse end of the metric's usual range on the training reference.

    Args:
        spec: the model's spec.
        evaluation: the version's evaluation.
        estimate: the estimate for the window.
        length: length of the window.

    Returns:
        The bound; None if none of these exists.
    """
    metric = spec.primary_metric
    greater = METRICS[spec.task][metric]
    if estimate is None:
        return None
    found = bound_of(
        spec.retraining,
        metric,
        greater_is_better=greater,
        usual=None,
        holdout=holdout_of(spec, evaluation),
        rows=estimate.rows,
        length=length,
    )
    if found is not None or estimate.usual is None:
        return found
    worst = estimate.usual[0] if greater else estimate.usual[1]
    return Bound(metric, worst, greater, "the worst usual value on its training reference") if math.isfinite(worst) else None


@dataclass(frozen=True)
class _Found:
    """The findings on a window.

    Attributes:
        comparison: the comparison of its columns with the reference.
        version: the version that made most of the predictions; None if there are none.
        snapshots: by dataset, the snapshot that was read.
        rows: the numbers of rows found and compared; None if no rows were read.
        missing: keys of the stretches without predictions.
        estimate: the estimated performance; None if nothing was compared.
        calibrated: the thresholds that were used.
    """

    comparison: DriftComparison
    version: int | None = None
    snapshots: dict[str, int] = field(default_factory=dict)
    rows: ComparedRows | None = None
    missing: list[str] = field(default_factory=list)
    estimate: Estimate | None = None
    calibrated: Calibrated = field(default_factory=Calibrated)


def _compare_interval(
    folder: ModelFolder, deployment: Deployment, interval: Interval, calibrations: Calibrations, run_id: str
) -> _Found:
    """Compare a window with the training reference. If that fails, the verdict is ``unknown``, with the failure as reason."""
    spec, lake, ledger = folder.spec, deployment.lake, deployment.ledger
    found = _Found(DriftComparison("unknown", []))

    def unknown(reason: str) -> _Found:
        return replace(found, comparison=DriftComparison("unknown", [reason]))

    try:
        scored = ledger.published(spec.name, "predictions")
        there = ledger.publications(spec.name, "predictions", interval)
        if scored is None or not there:
            return unknown(f"no predictions are published for {interval}")
        if (others := of_other_entities(spec, lake, "predictions", scored.snapshots.get("predictions"))) is not None:
            return unknown(others)
        gaps = uncovered(interval, there)
        found = replace(found, snapshots={"predictions": scored.snapshots["predictions"]}, missing=[gap.key for gap in gaps])
        days, needed = interval.touched_days(), spec.schedules.days_needed(interval)
        scored_days = sum(not any(day.overlaps(gap) for gap in gaps) for day in days)
        if scored_days < needed:
            return unknown(
                f"{scored_days} of the {len(days)} days of {interval} have predictions, and {needed} are required "
                f"(schedules.min_days); missing: {', '.join(found.missing)}"
            )
        said = [PREDICTION, "probabilities", "version"]
        predictions, predicted = _sample(spec, lake, "predictions", found.snapshots["predictions"], interval, said)
        if not predicted:
            return unknown(f"{interval} has no predictions")
        made_by = Counter(predictions.column("version").to_pylist())
        # If two versions made the same number of predictions, take the newer one.
        version = max(made_by, key=lambda number: (made_by[number], number))
        found = replace(found, version=version)
        logs.resolved(version=version)
        predictions = predictions.filter(pc.equal(predictions.column("version"), version)).sort_by(spec.event_time)
        model = deployment.registry.load(spec.name, version)
        reference = model.reference()
        names = [name for name in reference.column_names if name not in NOT_FEATURES]
        own = own_folder(deployment.registry, version, folder)
        read = own_features(own, lake, interval, run_id=run_id, whole=False)
        found = replace(found, snapshots={**found.snapshots, "features": read.snapshot})
        features, entities = _sample(spec, lake, read.dataset, read.snapshot, interval, names)
        # Evidently plots the rows in this order, so it must be the order of time.
        features = features.sort_by(spec.event_time)
        rows = ComparedRows(
            features=entities,
            predictions=predicted,
            features_compared=features.num_rows,
            predictions_compared=predictions.num_rows,
            reference=reference.num_rows,
        )
        found = replace(found, rows=rows)
        alike = match_reference(spec.drift, reference, spec.event_time, interval)
        if isinstance(alike, str):
            return unknown(alike)
        found = replace(found, rows=replace(rows, reference_compared=alike.num_rows))
        # The reference also has the event time, which is not compared.
        compared = [name for name in alike.column_names if name in NOT_FEATURES or name in model.features]
        calibrated = calibrations.of(version)
        found = replace(found, calibrated=calibrated)
        comparison = compare(spec.drift, features, predictions, alike.select(compared), calibrated.thresholds)
        told = (calibrated.said,) if calibrated.said else ()
        reasons = [*comparison.reasons, *told, *_left_out(made_by, version, gaps)]
        estimate = _estimate(folder, model, predictions, features, reference)
        return replace(found, comparison=replace(comparison, reasons=reasons), estimate=estimate)
    except PerennialError as error:
        log.warning("drift could not be judged: %s", error)
        return unknown(f"the comparison failed, {first_line(error)}")
    except Exception as error:
        log.exception("drift could not be judged")
        return unknown(f"the comparison failed, {first_line(error)}")


def _sample(
    spec: ModelSpec, lake: Lake, dataset: str, snapshot: int, interval: Interval, wanted: Iterable[str]
) -> tuple[pa.Table, int]:
    """A sample of a window's rows, and how many rows the window has. Only the columns that are needed are read."""
    key = list(spec.entity_table.key)
    there = lake.columns(spec.name, dataset, snapshot)
    columns = [name for name in dict.fromkeys([*key, spec.event_time, *wanted]) if name in there]
    reader = lake.scan(spec.name, dataset, snapshot, columns=columns, interval=interval, event_time=spec.event_time)
    return take_sample(reader, key, size=spec.drift.sample, seed=spec.training.seed)


def _left_out(made_by: Counter[int], version: int, gaps: Sequence[Interval]) -> Iterator[str]:
    """Sentences about predictions of the window that were not compared: those of other versions, and missing ones."""
    if len(made_by) > 1:
        others = ", ".join(str(number) for number in sorted(made_by) if number != version)
        yield (
            f"compared with version {version}, which made {made_by[version] / sum(made_by.values()):.0%} of the predictions; "
            f"the others, by version {others}, were left out"
        )
    if gaps:
        yield f"no predictions are published for {', '.join(gap.key for gap in gaps)}"


def _estimate(
    folder: ModelFolder, model: LoadedModel, predictions: pa.Table, features: pa.Table, reference: pa.Table
) -> Estimate:
    """The estimated performance of the window. If it fails, the estimate holds the reason."""
    spec = folder.spec
    try:
        if spec.task == "regression":
            # Both are samples by the key's hash, so they have the same rows.
            key = list(spec.entity_table.key)
            window = predictions.select([*key, PREDICTION]).join(features, keys=key, join_type="inner", use_threads=False)
            return estimation.estimate_loss(
                spec.primary_metric,
                *_numbers(spec, model, reference, window),
                seed=spec.training.seed,
                cost=cost_function(folder),
            )
        return estimation.estimate(
            spec.task,
            spec.primary_metric,
            _outcomes(spec, reference, labelled=True),
            _outcomes(spec, predictions, labelled=False),
            seed=spec.training.seed,
            threshold=answer_threshold(spec),
            cost=cost_function(folder),
        )
    except Exception as error:
        log.exception("the performance of %s could not be estimated", model.name)
        return Estimate(spec.primary_metric, reason=f"the estimate failed, {first_line(error)}")


def _numbers(spec: ModelSpec, model: LoadedModel, reference: pa.Table, window: pa.Table) -> list[estimation.PredictedNumbers]:
    """The rows of a regression's reference, and those of a window, that have predictions. Categories become numbers."""
    there = [rows.filter(rows.column(PREDICTION).is_valid()) for rows in (reference, window)]
    known, asked = (model.takes.frame(rows) for rows in there)
    for name in model.takes.categorical:
        # A category that the reference has not is -1, as a missing value is.
        categories = pd.Index(known[name].dropna().unique())
        for frame in (known, asked):
            frame[name] = categories.get_indexer(frame[name]).astype(np.float64)
    return [
        estimation.PredictedNumbers(
            pc.cast(rows.column(PREDICTION), pa.float64()).to_numpy(),
            frame.to_numpy(dtype=np.float64),
            pc.cast(rows.column("label"), pa.float64()).to_numpy() if "label" in rows.column_names else None,
            _days(spec, rows),
        )
        for rows, frame in zip(there, (known, asked), strict=True)
    ]


def _days(spec: ModelSpec, rows: pa.Table) -> NDArray[np.int64] | None:
    """The day of each row, as a number; None if the rows have no event time."""
    if spec.event_time not in rows.column_names:
        return None
    days = pc.cast(pc.cast(rows.column(spec.event_time), pa.date32()), pa.int32())
    return np.asarray(days.to_numpy(), dtype=np.int64)


def _outcomes(spec: ModelSpec, rows: pa.Table, *, labelled: bool) -> estimation.PredictedOutcomes:
    """The rows of a reference, or of a window, that have probabilities."""
    said = "probabilities" if spec.task == "multiclass_classification" else PREDICTION
    if said not in rows.column_names:
        return estimation.PredictedOutcomes(np.empty((0, 0)), ())
    rows = rows.filter(rows.column(said).is_valid())
    labels = rows.column("label").to_numpy(zero_copy_only=False) if labelled else None
    days = _days(spec, rows)
    if spec.task == "binary_classification":
        return estimation.from_binary(rows.column(said).to_numpy(), labels, days)
    probabilities, classes = read_probabilities(rows)
    return estimation.from_classes(np.empty((0, 0)) if probabilities is None else probabilities, classes, labels, days)


def _find_run(registry: Registry, record: VersionRecord | None) -> tuple[CandidateRun | None, str | None]:
    """The version's MLflow run and its address; None for both if MLflow does not return them."""
    if record is None:
        return None, None
    try:
        return registry.run(record.mlflow_run_id), registry.run_url(record.mlflow_run_id)
    except Exception:
        log.exception("could not read the MLflow run of version %s; the verdict is not affected", record.version)
        return None, None


def _name_in_mlflow(run: CandidateRun, interval: Interval, report: str) -> None:
    """Tag the version's run with the address of the report, of which MLflow keeps no copy."""
    try:
        run.log(tags={f"drift report {interval.key.replace('--', ' to ')}": report})
    except Exception:
        log.exception("MLflow run %s could not be tagged with the report %s", run.id, report)


def _send_outlook(run: CandidateRun, spec: ModelSpec, ledger: Ledger, version: int) -> None:
    """Draw estimated and realised performance of the version, window by window, and log the picture to its run."""
    from perennial.monitoring.outlook import draw_outlook

    try:
        windows = [window for window in read_outlook(spec, ledger) if window.version == version]
        with TemporaryDirectory(prefix="perennial-performance-") as scratch:
            if draw_outlook(windows, Path(scratch), metric=spec.primary_metric, version=version):
                run.log_files(Path(scratch), "performance")
    except Exception:
        log.exception("could not draw the performance of version %s; the verdict is not affected", version)


def read_outlook(spec: ModelSpec, ledger: Ledger) -> list[estimation.WindowOutlook]:
    """Estimated and realised performance of all windows in the ledger, oldest first."""
    return estimation.beside_realised(
        ledger.verdicts(spec.name, limit=1_000),
        ledger.performances(spec.name),
        spec.primary_metric,
        label_coverage=spec.gates.label_coverage,
    )
