"""What the days of the demo were predicted with, beside what never and always would have predicted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.intervals import Interval, merged
from perennial.core.settings import Settings
from perennial.deployment import Deployment
from perennial.ledger.records import VersionRecord

#: The names of what is compared.
SERVED, NEVER, ALWAYS = "served", "the first version for ever", "each refresh, refused or not"
#: The primary metric of each day, in the mean of the days. A day has one version. The metric of all rows together also ranks
#: rows of one version against rows of another, whose predictions may be on another scale.
DAILY = "mean of days"


def worth(settings: Settings, model: str) -> dict[str, dict[str, float]]:
    """The metrics of three ways to predict all rows that were scored.

    Args:
        settings: the demo's settings.
        model: the model's name.

    Returns:
        The metrics of all rows, and :data:`DAILY`, by name of the way: what was served; the first version for ever; and each
        day the newest version that had not learned from it, whatever the gates said of it. Empty if nothing was scored.
    """
    from perennial.evaluation.metrics import evaluate
    from perennial.model.costs import cost_function
    from perennial.training.training_set import pinned_snapshots, read_rows

    deployment = Deployment(settings)
    folder, ledger, registry = deployment.model(model), deployment.ledger, deployment.registry
    spec, published = folder.spec, ledger.published(model, "predictions")
    versions = ledger.versions(model)
    if published is None or not versions:
        return {}
    snapshots = pinned_snapshots(folder, ledger)
    key = list(dict.fromkeys([*spec.entity_table.key, spec.event_time]))
    load = cache(registry.load)
    parts: dict[str, list[pa.Table]] = {SERVED: [], NEVER: [], ALWAYS: []}
    scored = {made.interval: made.inputs["features"] for made in ledger.publications(model, "predictions")}
    for features, made_of in groupby(sorted(scored), scored.__getitem__):
        intervals = list(made_of)
        for whole in merged(intervals):
            # The features as they were then, right or wrong, and the labels as they are known now.
            then = {**snapshots, "features": features}
            rows, _ = read_rows(folder, deployment.lake, then, whole, labels_known_by=datetime.now(UTC), withheld=[])
            served = deployment.lake.scan(
                model, "predictions", published.snapshots["predictions"], columns=[*key, "prediction"], interval=whole,
                event_time=spec.event_time,
            ).read_all()  # fmt: skip
            joined = rows.join(served, keys=key, join_type="inner").combine_chunks()
            for interval in (one for one in intervals if whole.contains(one)):
                moments = joined.column(spec.event_time)
                start, end = (pa.scalar(moment, moments.type) for moment in (interval.start, interval.end))
                both = joined.filter(pc.and_(pc.greater_equal(moments, start), pc.less(moments, end)))
                parts[SERVED].append(both.select(["label", "prediction"]))
                for name, version in ((NEVER, versions[0]), (ALWAYS, _newest(versions, interval))):
                    said = load(model, version.version).predict(both).values
                    parts[name].append(both.select(["label"]).append_column("prediction", pa.array(said)))
    cost, found = cost_function(folder), {}
    for name, tables in parts.items():
        everything, *by_day = [
            evaluate(spec.task, *(rows.column(column).to_numpy() for column in ("label", "prediction")), cost=cost)
            for rows in (pa.concat_tables(tables).combine_chunks(), *(table.combine_chunks() for table in tables))
        ]
        known = [one[spec.primary_metric] for one in by_day if spec.primary_metric in one]
        found[name] = {**everything, **({DAILY: statistics.fmean(known)} if known else {})}
    return found


def _newest(versions: Sequence[VersionRecord], interval: Interval) -> VersionRecord:
    before = [record for record in versions if Interval.from_key(record.learned_from).end <= interval.start]
    refreshes = [record for record in before if record.is_refresh]
    return (refreshes or before or list(versions))[-1]
