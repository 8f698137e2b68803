"""Scores with the versions in the shadow of the champion, and compares them with the champion once labels are known.

Their predictions are a separate dataset of the lake, with the same columns as the champion's predictions. They are never
written to the predictions database. A failure here never affects the champion's predictions.

Neighbours: :mod:`perennial.scoring.challengers` says which versions score, and :mod:`perennial.monitoring.shadow` judges
comparisons.
:mod:`perennial.scoring.publish` makes the champion's predictions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.alerts import of_models
from perennial.core.errors import ArtifactRejected, NoChampion, PerennialError, StaleDecision
from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.evaluation.comparison import Arena, compare
from perennial.evidence.evaluation import GainOverChampion
from perennial.features.labels import read_labels
from perennial.lake.publish import TableWrite
from perennial.ledger.coverage import trained_as_of
from perennial.ledger.records import Publication, ShadowComparison
from perennial.ledger.store import Ledger
from perennial.model.artifacts import Prediction
from perennial.model.costs import cost_function
from perennial.model.probabilities import read_probabilities
from perennial.monitoring.answered import as_answered
from perennial.monitoring.performance import by_key_or_time, not_comparable, of_another_task
from perennial.monitoring.shadow import ShadowVerdict, confidence_of_a_look, judge, with_online
from perennial.registry.folders import FeaturesAt, own_features, own_folder
from perennial.registry.store import Registry
from perennial.scoring.challengers import Reign, reign_of
from perennial.scoring.predictor import DATASET as PREDICTIONS
from perennial.scoring.predictor import Predictor, predictions_schema
from perennial.scoring.shadow import period
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)


#: The name of the dataset and of its only table.
DATASET = "shadows"
#: The actor of an automatic rollback.
MONITOR = "perennial.monitor"


# --- their predictions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShadowScored:
    """The result of scoring an interval in the shadow.

    Attributes:
        versions: the versions whose predictions are published.
        rows: the number of rows of all their predictions.
        failed: by version, why it could not predict.
    """

    versions: list[int]
    rows: int
    failed: dict[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "failed": {str(version): reason for version, reason in self.failed.items()}}


def score_shadows(
    folder: ModelFolder,
    deployment: Deployment,
    interval: Interval,
    *,
    champion: int,
    versions: Sequence[int],
    features_snapshot: int,
    order: int,
    run_id: str,
) -> ShadowScored:
    """Predict an interval with each version in the shadow, and publish the predictions. They replace earlier ones.

    If a version cannot be loaded, or its predictions cannot be published, it is reported in ``failed``, and the others are
    published.

    Args:
        folder: the model's folder.
        deployment: its lake holds the tables; its registry loads the versions.
        interval: the interval that the champion has scored.
        champion: the champion's version.
        versions: from :func:`~perennial.scoring.challengers.resolve_shadows`.
        features_snapshot: the snapshot that the champion has read. A version with the same features reads it too, and so
            predicts the same rows; the features of another one are made by its own folder.
        order: the run's rank, from :meth:`Ledger.next_order`.
        run_id: the run.

    Raises:
        Superseded: a later run or attempt has taken over; nothing of this one was published.
    """
    spec, lake = folder.spec, deployment.lake
    reign = reign_of(deployment.ledger, spec.name)
    failed: dict[int, str] = {}
    predictors: dict[int, Predictor] = {}
    champions = own_folder(deployment.registry, champion, folder).dataset
    for version in versions:
        try:
            model = deployment.registry.load(spec.name, version, spec=spec)
            own = own_folder(deployment.registry, version, folder)
            if own.dataset == champions:
                features = FeaturesAt(champions, features_snapshot)
            else:
                features = own_features(own, lake, interval, run_id=run_id)
            predictors[version] = Predictor(spec, lake, model, interval, features, run_id)
        except PerennialError as error:
            failed[version] = str(error)
    schema = predictions_schema(spec)
    while predictors and reign is not None:
        chorus = _Chorus(predictors, schema)
        try:
            lake.publish(
                model=spec.name,
                dataset=DATASET,
                interval=interval,
                tables={DATASET: TableWrite(data=chorus.reader, event_time=spec.event_time, schema=schema)},
                order=order,
                run_id=run_id,
                inputs={
                    "promotion": reign.id, "champion": champion, "versions": list(predictors), "features": features_snapshot,
                    "features_dataset": champions,
                    "own_features": sorted({
                        (one.features.dataset, one.features.snapshot)
                        for one in predictors.values()
                        if one.features.dataset != champions
                    }),
                },
            )  # fmt: skip
            break
        except PerennialError as error:
            if chorus.at_work is None:
                raise
            failed[chorus.at_work] = str(error)
            del predictors[chorus.at_work]
    for version, reason in failed.items():
        log.warning("version %d, in the shadow of champion %d, could not score %s: %s", version, champion, interval, reason)
    return ShadowScored(list(predictors), sum(predictor.rows for predictor in predictors.values()), failed)


class _Chorus:
    """The predictions of several versions, one after the other. ``at_work`` is the version that was predicting at a failure."""

    def __init__(self, predictors: Mapping[int, Predictor], schema: pa.Schema) -> None:
        self._predictors, self._schema = dict(predictors), schema
        self.at_work: int | None = None

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for version, predictor in self._predictors.items():
            self.at_work = version
            yield from predictor.batches()
        self.at_work = None


# --- what labels say -------------------------------------------------------------------------------------------------


def compare_shadows(folder: ModelFolder, deployment: Deployment, *, as_of: datetime, run_id: str) -> list[ShadowComparison]:
    """Compare the champion with each version in its shadow, on the rows that both predicted in mature windows.

    A window is mature when labels for at least the share ``gates.label_coverage`` of its rows are known by ``as_of``. A pair is
    compared again when one more window is mature, and the ledger records the comparison. What both have answered online counts
    too, against the version in the shadow. If the champion is worse, one alert per pair is sent. If it is worse than the
    previous champion and the spec has ``shadow.rollback``, it is rolled back, unless the champion has changed meanwhile.

    Args:
        folder: the model's folder.
        deployment: holds predictions and labels; its ledger gets the comparisons, and its registry rolls back.
        as_of: labels that became known later are not used.
        run_id: the run.

    Returns:
        The new comparisons.
    """
    spec, ledger, registry = folder.spec, deployment.ledger, deployment.registry
    reign = reign_of(ledger, spec.name)
    published, predictions = ledger.published(spec.name, DATASET), ledger.published(spec.name, PREDICTIONS)
    tables = ledger.published(spec.name, "tables")
    if reign is None or published is None or predictions is None or tables is None:
        return []
    if (obstacle := not_comparable(spec, deployment.lake, {PREDICTIONS: predictions, DATASET: published}, tables)) is not None:
        log.warning("versions in the shadow are not compared: %s", obstacle)
        return []
    others = of_another_task(spec, ledger.versions(spec.name))
    if reign.version in others:
        return []
    scored = [made for made in ledger.publications(spec.name, DATASET) if made.inputs.get("promotion") == reign.id]
    seen: list[ShadowComparison] = []
    for version in sorted({int(version) for made in scored for version in made.inputs["versions"]} - others):
        known = ledger.shadow_comparisons(spec.name, promotion=reign.id, version=version)
        rows = _mature_rows(folder, deployment, reign, version, scored, (predictions, published, tables), as_of)
        if rows is None or (known and rows.windows <= max(record.windows for record in known)):
            continue
        record = _compare(folder, reign, version, rows, as_of=as_of, run_id=run_id)
        worse = record.outcome == "champion_worse"
        ledger.record_shadow_comparison(
            record,
            alert=of_models.shadow_better(
                spec.name,
                champion=reign.version,
                version=version,
                former=version == reign.previous,
                rolls_back=spec.shadow.rollback,
                reason=record.reason,
                links=registry.links(spec.name, version),
            )
            if worse
            else None,
        )
        log.info("%s", record.reason)
        seen.append(record)
    if spec.shadow.rollback and reign.previous is not None:
        _roll_back(spec, ledger, registry, reign, reign.previous)
    return seen


def _roll_back(spec: ModelSpec, ledger: Ledger, registry: Registry, reign: Reign, predecessor: int) -> None:
    """Roll back to the previous champion if a recorded comparison found the champion worse.

    It uses recorded comparisons, so it also acts on one from an attempt that died before it could roll back.
    """
    worse = [
        record
        for record in ledger.shadow_comparisons(spec.name, promotion=reign.id, version=predecessor)
        if record.outcome == "champion_worse"
    ]
    if not worse:
        return
    try:
        registry.rollback(
            spec.name,
            predecessor,
            actor=MONITOR,
            reason=worse[0].reason,
            run_id=f"{MONITOR}/promotion-{reign.id}",
            expected=reign.version,
            evidence={"rows": worse[0].rows, "metrics": worse[0].metrics, **worse[0].comparison.to_json()},
        )
    except (ArtifactRejected, NoChampion, StaleDecision) as error:
        log.warning("champion %d is not rolled back to version %d: %s", reign.version, predecessor, error)


@dataclass(frozen=True)
class _MatureRows:
    """Labelled rows that two versions predicted.

    Attributes:
        interval: from the first to the last mature window.
        windows: the number of mature windows.
        rows: the entity's key, its event time and ``label``; the champion's predictions, and those of the version in the
            shadow with the suffix ``_shadow``; with the suffix ``_answered`` after it, what both answered online, if they did.
        online: how many of the rows have such answers.
    """

    interval: Interval
    windows: int
    rows: pa.Table
    online: int


def _mature_rows(
    folder: ModelFolder,
    deployment: Deployment,
    reign: Reign,
    version: int,
    scored: Sequence[Publication],
    published: tuple[Publication, Publication, Publication],
    as_of: datetime,
) -> _MatureRows | None:
    """The labelled rows of mature windows; None if there are fewer than ``gates.min_rows``."""
    spec, lake, (predictions, shadows, tables) = folder.spec, deployment.lake, published
    own = [made.interval for made in scored if version in made.inputs["versions"]]
    when = period(spec.shadow, min(interval.start for interval in own), spec.schedules.window)
    if when is None:
        return None
    span = Interval(min(interval.start for interval in own), max(interval.end for interval in own))
    identity = list(dict.fromkeys([*spec.entity_table.key, spec.event_time]))
    said = ["prediction", *(["probabilities"] if spec.task == "multiclass_classification" else [])]

    def read(dataset: str, publication: Publication, of: Sequence[int]) -> pa.Table:
        """What these versions predicted, each of rows that it had not learned from."""
        table = lake.scan(
            spec.name, dataset, publication.snapshots[dataset], columns=[*identity, *said, "version"], interval=span,
            event_time=spec.event_time,
        ).read_all()  # fmt: skip
        parts = []
        for one in of:
            part = table.filter(pc.equal(table.column("version"), one))
            if learned := trained_as_of(deployment.ledger.version(spec.name, one)):
                since = pa.scalar(learned, pa.timestamp("us", "UTC"))
                part = part.filter(pc.greater_equal(part.column(spec.event_time), since))
            parts.append(part)
        return pa.concat_tables(parts).drop_columns(["version"])

    champions = read(PREDICTIONS, predictions, reign.versions)
    others = read(DATASET, shadows, [version])
    both = champions.join(others, keys=identity, right_suffix="_shadow", join_type="inner")
    both = as_answered(folder, lake, reign, version, both, said)
    labels = read_labels(folder, lake, tables.snapshots, span, as_of=as_of)
    both = both.join(labels.select([*identity, "label"]), keys=identity, join_type="left outer")
    if both.num_rows == 0:
        return None
    width = spec.schedules.window
    length = int(width.total_seconds()) * 1_000_000
    moments = pc.cast(both.column(spec.event_time), pa.int64()).to_numpy()
    window = (moments - int(when.start.timestamp()) * 1_000_000) // length
    labelled = pc.is_valid(both.column("label")).to_numpy()
    count = int(window.max()) + 1
    total, known = np.bincount(window, minlength=count), np.bincount(window[labelled], minlength=count)
    # A window that has not ended may still get rows.
    over = np.arange(1, count + 1) <= (as_of - when.start) // width
    mature = (total > 0) & (known >= spec.gates.label_coverage * total) & over
    kept = both.filter(pa.array(labelled & mature[window])).sort_by([(name, "ascending") for name in identity])
    if kept.num_rows < spec.gates.min_rows:
        return None
    numbers = np.flatnonzero(mature)
    interval = Interval(when.start + int(numbers[0]) * width, when.start + (int(numbers[-1]) + 1) * width)
    online = int(pc.sum(kept["_online"]).as_py()) if "_online" in kept.column_names else 0
    return _MatureRows(interval, len(numbers), kept, online)


def _compare(
    folder: ModelFolder, reign: Reign, version: int, mature: _MatureRows, *, as_of: datetime, run_id: str
) -> ShadowComparison:
    spec = _for_a_look(folder.spec)
    rows, truth = mature.rows, mature.rows.column("label").to_numpy()
    arena = Arena.of(spec, rows, truth, mature.interval, cost_function(folder))
    champion, other = _prediction(spec, rows, ""), _prediction(spec, rows, "_shadow")
    resampled = arena.metrics(other), arena.metrics(champion)
    compared, _ = compare(arena, other, champion, resampled)
    answered = None
    if mature.online:
        ours, its = _prediction(spec, rows, "_answered"), _prediction(spec, rows, "_shadow_answered")
        gain, _ = compare(arena, its, ours, (arena.metrics(its), arena.metrics(ours)))
        answered = _judge(spec, reign.version, version, gain, rows.num_rows, mature.online)
    verdict = with_online(_judge(spec, reign.version, version, compared, rows.num_rows), answered)
    return ShadowComparison(
        model=spec.name,
        promotion_id=reign.id,
        version=version,
        windows=mature.windows,
        champion=reign.version,
        interval=mature.interval,
        outcome=verdict.outcome,
        reason=verdict.reason,
        rows=rows.num_rows,
        metrics={
            str(which): {name: float(values[0]) for name, values in found.items()}
            for which, found in zip((version, reign.version), resampled, strict=True)
        },
        comparison=compared,
        as_of=as_of,
        run_id=run_id,
    )


def _judge(
    spec: ModelSpec, champion: int, version: int, compared: GainOverChampion, rows: int, online: int = 0
) -> ShadowVerdict:
    return judge(
        metric=spec.primary_metric,
        champion=champion,
        challenger=version,
        rows=rows,
        gain=compared.gain,
        lower=compared.lower,
        confidence=compared.confidence,
        problem=compared.problem,
        upper=compared.upper,
        online=online,
    )


def _for_a_look(spec: ModelSpec) -> ModelSpec:
    """The spec with the resampling of one look: its confidence is that of one look among several."""
    resampling = spec.gates.resampling
    confidence = confidence_of_a_look(resampling.confidence, spec.shadow)
    # At a high confidence, few resamples lie beyond the bound. At least 20 must, or the bound is not reliable.
    return by_key_or_time(spec, confidence=confidence, resamples=max(resampling.resamples, math.ceil(20 / (1 - confidence))))


def _prediction(spec: ModelSpec, rows: pa.Table, suffix: str) -> Prediction:
    """The predictions of one of the two versions: those in the columns with this suffix."""
    said = {"prediction": rows.column(f"prediction{suffix}")}
    if spec.task == "multiclass_classification":
        said["probabilities"] = rows.column(f"probabilities{suffix}")
    probabilities, classes = read_probabilities(pa.table(said))
    return Prediction(said["prediction"].to_numpy(), None, probabilities, classes)
