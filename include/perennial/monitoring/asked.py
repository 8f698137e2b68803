"""Drift of what was asked online: the rows that champions answered in a window, against what the version was trained on.

The reference, the methods, the thresholds and the smallest number of rows are those of the batch's verdict
(:mod:`perennial.monitoring.verdicts`), which records this one beside its own. What was asked in the window is what was recorded
of it: the dataset ``requests``, by the time of asking. What still waits in the predictions database is published first, as the
DAG ``record`` does. If that fails, the verdict is ``unknown``, since rows of the window may be missing.

- Only answers of champions count.
- Features that a client gave count like others, also beside a key: the version predicted on them.
- Rows that were answered without stored features (``fallback: null``) are left out, and counted. They tell of the online table,
  which :mod:`perennial.serving.figures` counts, not of who asks. Rows that are older than allowed (``last``) count.

No retraining follows from this verdict. A training learns from published tables; if these have changed too, the verdict on the
batch says so.

Neighbours: :mod:`perennial.serving.recorded` has the rows; :mod:`perennial.drift.compare` compares.
"""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from pyarrow import json as arrow_json

from perennial.alerts import of_models
from perennial.alerts.alert import Alert
from perennial.core.errors import PerennialError, Superseded
from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.drift.compare import NOT_FEATURES, PREDICTION, compare, first_line, match_reference
from perennial.drift.findings import DriftComparison
from perennial.drift.sampling import take_sample
from perennial.evidence.verdict import AskedDrift, uncompared
from perennial.lake.publish import Lake
from perennial.ledger.records import Verdict
from perennial.model.artifacts import FeatureList
from perennial.monitoring import impact
from perennial.monitoring.calibrated import Calibrations
from perennial.monitoring.performance import recipe_of
from perennial.serving.recorded import ASKED_AT, DATASET, TABLE, publish_requests
from perennial.serving.request_table import RequestTable
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)

#: How often publishing is tried, while the DAG ``record`` publishes the same hours.
_TRIES = 3
_COUNTED = ("version", "role", "fallback")
_READ = ("chunk", "place", "features", "prediction")


@dataclass(frozen=True)
class Asked:
    """What was found about the requests of a window.

    Attributes:
        drift: the verdict, without its report.
        comparison: the comparison of the columns; without any, if nothing was compared.
    """

    drift: AskedDrift
    comparison: DriftComparison


def judge_asked(
    folder: ModelFolder, deployment: Deployment, interval: Interval, calibrations: Calibrations, *, run_id: str
) -> Asked | None:
    """Judge what was asked online in a window. What fails is ``unknown``; only the ledger's own faults are raised.

    Args:
        folder: the model's folder.
        deployment: ledger, lake, registry, and the address of the predictions database.
        interval: the window; requests count by when they were asked.
        calibrations: the thresholds for the versions of the window.
        run_id: the run.

    Returns:
        What was found; None if the model is not asked online, or was not in the window.
    """
    spec = folder.spec
    if spec.online is None:
        return None
    try:
        found = _judge(folder, deployment, interval, calibrations, run_id)
    except PerennialError as error:
        found = _unknown(f"the comparison failed, {first_line(error)}")
    except Exception as error:
        # Its text may quote what was asked.
        log.error("drift of online requests could not be judged: %s", type(error).__name__)
        found = _unknown(f"the comparison failed, {type(error).__name__}")
    if found is None:
        return None
    return replace(found, drift=_weighed(spec, deployment, interval, found.drift))


def alert_of(model: str, interval: Interval, found: AskedDrift | None, links: dict[str, str]) -> Alert | None:
    """The alert of a verdict on online requests; None if it needs none."""
    if found is None or found.severity == "none":
        return None
    if found.verdict == "unknown":
        return of_models.unknown_asked(model, interval, version=found.version, reasons=found.reasons, links=links)
    assert found.version is not None  # nothing is compared without one
    if found.verdict == "ok":
        left = uncompared(found.columns)
        return of_models.asked_not_compared(model, interval, left, version=found.version, reasons=found.reasons, links=links)
    return of_models.asked_drift(
        model, interval, version=found.version, reasons=found.reasons, severity=found.severity, links=links
    )


def _unknown(reason: str, known: AskedDrift | None = None) -> Asked:
    """A verdict that could not be made, with what is known by then."""
    drift = replace(known or AskedDrift("unknown"), verdict="unknown", reasons=[reason])
    return Asked(drift, DriftComparison("unknown", [reason]))


def _not_judged(reason: str, known: AskedDrift) -> Asked:
    return Asked(replace(known, verdict="not_judged", reasons=[reason]), DriftComparison("unknown", [reason]))


def _judge(
    folder: ModelFolder, deployment: Deployment, interval: Interval, calibrations: Calibrations, run_id: str
) -> Asked | None:
    spec, lake = folder.spec, deployment.lake
    if (reason := _publish(deployment, spec.name, interval, run_id)) is not None:
        return _unknown(reason)
    head = lake.ledger.head(spec.name, DATASET).snapshots.get(TABLE)
    if gone := lake.ledger.removed(spec.name, DATASET, interval):
        gaps = ", ".join(gap.key for gap in gone)
        return _not_judged(f"requests of {gaps} are past their retention and removed", AskedDrift("unknown"))
    made_by, fallbacks = _count(lake, spec.name, head, interval)
    rows = made_by.total() + fallbacks
    if head is None or not rows:
        return None
    # If two versions answered the same number of rows, take the newer one.
    version = max(made_by, key=lambda number: (made_by[number], number), default=None)
    count = 0 if version is None else made_by[version]
    known = AskedDrift("unknown", version=version, snapshot=head, rows=rows, left_out=fallbacks)
    said = list(_said(made_by, version, rows, fallbacks))
    if version is None or count < spec.drift.min_rows:
        words = (
            f"{count:,} rows were asked online and answered from features; a verdict requires at least {spec.drift.min_rows:,}"
        )
        return _not_judged("; ".join([words, *said]), known)
    model = deployment.registry.load(spec.name, version)
    reference = model.reference()
    alike = match_reference(spec.drift, reference, spec.event_time, interval)
    if isinstance(alike, str):
        return _unknown(alike, known)
    sample, _ = take_sample(
        _rows(lake, spec.name, head, interval, version), ["chunk", "place"], size=spec.drift.sample, seed=spec.training.seed
    )
    # Evidently plots the rows in this order, so it must be the order of time.
    sample = sample.sort_by([(ASKED_AT, "ascending"), ("chunk", "ascending"), ("place", "ascending")])
    compared = [name for name in alike.column_names if name in NOT_FEATURES or name in model.features]
    comparison = compare(
        spec.drift,
        _features(sample, model.takes),
        _predictions(sample, spec),
        alike.select(compared),
        calibrations.of(version).thresholds,
        quote=False,
    )
    comparison = replace(comparison, reasons=[*comparison.reasons, *said])
    drift = replace(
        known,
        verdict=comparison.verdict,
        reasons=comparison.reasons,
        compared=sample.num_rows,
        share=comparison.share,
        columns=comparison.columns,
    )
    log.info("online requests: %s: %s", drift.verdict, "; ".join(drift.reasons))
    return Asked(drift, comparison)


def _publish(deployment: Deployment, model: str, interval: Interval, run_id: str) -> str | None:
    """Publish what was asked in the window and still waits; returns why that cannot be done."""
    table = RequestTable(deployment.settings.predictions_url)
    for left in reversed(range(_TRIES)):
        try:
            if any(hour.overlaps(interval) for hour in table.hours(model)):
                publish_requests(deployment.lake, table, model, run_id=run_id)
            return None
        except Superseded as error:
            if not left:
                return f"requests of the window are not published yet: {error}; run {model}.record"
        except sa.exc.SQLAlchemyError as error:
            # Its text may name the address.
            return (
                "requests of the window may not be published yet: the predictions database does not answer "
                f"({type(error).__name__}); repair it and run {model}.record"
            )
        except PerennialError as error:
            return f"requests of the window may not be published yet: {first_line(error)}; run {model}.record"
    return None


def _count(lake: Lake, model: str, head: int | None, interval: Interval) -> tuple[Counter[int], int]:
    """Rows that champions answered from features, by version; and rows that were answered without stored ones."""
    made_by, fallbacks = Counter[int](), 0
    if head is None:
        return made_by, fallbacks
    for batch in lake.scan(model, TABLE, head, columns=[ASKED_AT, *_COUNTED], interval=interval, event_time=ASKED_AT):
        of_champions = batch.filter(pc.equal(batch["role"], "champion"))
        answered = of_champions.filter(_from_features(of_champions))
        fallbacks += of_champions.num_rows - answered.num_rows
        for pair in pc.value_counts(answered["version"]).to_pylist():
            made_by[pair["values"]] += pair["counts"]
    return made_by, fallbacks


def _from_features(batch: pa.RecordBatch) -> pa.Array:
    return pc.fill_null(pc.not_equal(batch["fallback"], "null"), True)


def _rows(lake: Lake, model: str, head: int, interval: Interval, version: int) -> pa.RecordBatchReader:
    """The rows of a version that are compared."""
    columns = [ASKED_AT, *_READ]
    scanned = lake.scan(model, TABLE, head, columns=[*columns, *_COUNTED], interval=interval, event_time=ASKED_AT)
    kept = pa.schema([scanned.schema.field(name) for name in columns])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in scanned:
            counts = pc.and_(pc.equal(batch["role"], "champion"), pc.equal(batch["version"], version))
            yield batch.filter(pc.and_(counts, _from_features(batch))).select(columns).cast(kept)

    return pa.RecordBatchReader.from_batches(kept, batches())


def _features(rows: pa.Table, takes: FeatureList) -> pa.Table:
    """Features, from JSON. One that was not recorded is missing."""
    kinds = {**dict.fromkeys(takes.numeric, pa.float64()), **dict.fromkeys(takes.categorical, pa.string())}
    return _parsed(rows["features"], pa.schema(list(kinds.items())))


def _predictions(rows: pa.Table, spec: ModelSpec) -> pa.Table:
    """Predictions, from JSON: a number; a class, alone or with its probabilities."""
    said = rows["prediction"]
    if spec.task != "multiclass_classification":
        return pa.table({PREDICTION: pc.cast(said, pa.float64())})
    wrapped = pc.binary_join_element_wise(f'{{"{PREDICTION}":', said, "}", "")
    said = pc.if_else(pc.starts_with(said, "{"), said, wrapped)
    return _parsed(said, pa.schema([(PREDICTION, pa.string())]))


def _parsed(texts: pa.ChunkedArray, schema: pa.Schema) -> pa.Table:
    """JSON objects in columns; a name that an object lacks is null there, one that the schema lacks is left out."""
    lines = "\n".join(texts.to_pylist()).encode()
    # One block, since a row must not be longer than one.
    reading = arrow_json.ReadOptions(block_size=max(1 << 20, len(lines) + 1), use_threads=False)
    parsing = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    return arrow_json.read_json(io.BytesIO(lines), reading, parsing).select(schema.names)


def _said(made_by: Counter[int], version: int | None, rows: int, fallbacks: int) -> Iterator[str]:
    """Sentences about rows that were not compared."""
    if version is not None and len(made_by) > 1:
        others = ", ".join(str(number) for number in sorted(made_by) if number != version)
        share = made_by[version] / made_by.total()
        yield f"compared with version {version}, which answered {share:.0%} of them; those of version {others} were left out"
    if fallbacks:
        yield f"{fallbacks:,} of {rows:,} rows were answered without stored features, and left out"


# --- how serious it is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Earlier:
    """The verdict on the requests of an earlier window."""

    interval: Interval
    version: int | None
    verdict: str


def _weighed(spec: ModelSpec, deployment: Deployment, interval: Interval, found: AskedDrift) -> AskedDrift:
    """The verdict with its severity: drift is a warning, and critical if it lasts, by the counts of a retraining."""
    if found.verdict == "not_judged":
        return found
    ledger = deployment.ledger
    earlier = list(_earlier(ledger.verdicts(spec.name, before=interval.end)))
    recipe = recipe_of(ledger.versions(spec.name), found.version) if found.version is not None else ()
    weight = impact.weigh(
        spec.retraining,
        found.verdict,
        interval,
        verdicts=earlier,
        recipe=recipe,
        version=found.version,
        uncompared=uncompared(found.columns),
    )
    reasons = [*weight.reasons, *found.reasons] if weight.severity == "critical" else found.reasons
    return replace(found, severity=weight.severity, reasons=list(reasons))


def _earlier(verdicts: Sequence[Verdict]) -> Iterator[_Earlier]:
    for one in verdicts:
        if one.details.asked is not None:
            yield _Earlier(one.interval, one.details.asked.version, one.details.asked.verdict)
