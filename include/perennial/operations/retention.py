"""Removes old rows of raw tables, features and predictions, as ``retention`` in ``model.yaml`` says.

Some rows are kept although they are older: those that a kept version was trained on, those that the next training will use,
those that features look back at, and the windows that monitoring still measures. Readers no longer see removed rows. Their
files are removed later, with the last snapshot that names them; a training set of a kept version may pin that snapshot for
a long time.

Neighbours: :mod:`perennial.operations.maintenance` calls this; :mod:`perennial.ledger.removals` remembers it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from perennial.core.intervals import Interval
from perennial.features.published import DATASET as FEATURES
from perennial.features.published import is_features
from perennial.ingestion.pushed import PushedRows
from perennial.lake.publish import Lake
from perennial.ledger.coverage import label_delay
from perennial.ledger.store import Ledger
from perennial.scoring import sink_erasure
from perennial.serving.online_table import OnlineTable
from perennial.serving.recorded import ASKED_AT
from perennial.serving.recorded import DATASET as REQUESTS
from perennial.serving.request_table import RequestTable
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)

_FIRST = datetime(1, 1, 1, tzinfo=UTC)


def remove_old_rows(sink_url: str, lake: Lake, ledger: Ledger, spec: ModelSpec, *, now: datetime) -> dict[str, int]:
    """Remove rows of events that are older than ``retention.tables``, ``features``, ``predictions`` or ``requests`` allows.

    Args:
        sink_url: the predictions database.
        lake: the lake that holds the rows.
        ledger: records the removal before the rows are removed.
        spec: the model's spec.
        now: the current time.

    Returns:
        The number of removed rows by table, with ``<model>_predictions`` and ``online_features``; ``online_requests`` of both
        places.
    """
    done: dict[str, int] = {}
    for dataset, before in removable(ledger, spec, now=now).items():
        rows = {}
        for table, snapshot in ledger.head(spec.name, dataset).snapshots.items():
            column = _event_time(spec, dataset, table)
            if column is not None and (count := _count(lake, spec.name, table, snapshot, column, before)):
                rows[table] = count
        if rows:
            ledger.record_removal(spec.name, dataset, before, rows)
            for table in rows:
                lake.forget(spec.name, dataset, table, before)
            log.info("removed by retention, of %s before %s: %s", dataset, f"{before:%Y-%m-%d}", rows)
            done |= rows
        if dataset == "predictions":
            shown = sink_erasure.remove_before(sink_url, spec.name, spec.event_time, before)
            done |= {f"{spec.name}_predictions": shown} if shown else {}
        if dataset == "tables":
            pushed = PushedRows(sink_url).remove_before(spec.name, before)
            done |= {"pushed_rows": pushed} if pushed else {}
        if dataset == FEATURES:
            asked = OnlineTable(sink_url).remove_before(spec.name, before)
            done |= {"online_features": asked} if asked else {}
    if (kept := spec.retention.requests) is not None:
        # Those that no run has published, since the model is not asked by key any more.
        unpublished = RequestTable(sink_url).remove_before(spec.name, now - kept)
        done["online_requests"] = done.get("online_requests", 0) + unpublished
        if not done["online_requests"]:
            del done["online_requests"]
    if spec.online is None and (asked := OnlineTable(sink_url).keep_only(spec.name)):
        done |= {"online_features": asked}
    return done


def removable(ledger: Ledger, spec: ModelSpec, *, now: datetime) -> dict[str, datetime]:
    """For each dataset with a stated retention, and for features that nobody needs, the day before which rows may go now."""
    keeps = spec.retention
    stated = {
        "tables": keeps.tables, "features": keeps.features, "predictions": keeps.predictions, "shadows": keeps.predictions,
    }  # fmt: skip
    found = {}
    for dataset, duration in stated.items():
        published = ledger.publications(spec.name, dataset) if duration is not None else []
        if duration is None or not published:
            continue
        needed = min(_needed(ledger, spec, dataset, max(one.interval.end for one in published)))
        before = min(now - duration, needed)
        found[dataset] = before.replace(hour=0, minute=0, second=0, microsecond=0)
    if keeps.requests is not None and ledger.publications(spec.name, REQUESTS):
        # Nothing is made from them but the parity of the newest days.
        found[REQUESTS] = (now - keeps.requests).replace(hour=0, minute=0, second=0, microsecond=0)
    return found | _unused_features(ledger, spec, now=now)


def _unused_features(ledger: Ledger, spec: ModelSpec, *, now: datetime) -> dict[str, datetime]:
    """Features of versions whose features are no longer the folder's, if no version has needed a day of them for long.

    All of their rows may go: if a version needs them again, they are made again from the tables.
    """
    found = {}
    for dataset in ledger.datasets(spec.name):
        if dataset == FEATURES or not is_features(dataset):
            continue
        published = ledger.publications(spec.name, dataset)
        if published[-1].published_at < now - spec.retention.snapshots:
            last = max(one.interval.end for one in published) + timedelta(days=1)
            found[dataset] = last.replace(hour=0, minute=0, second=0, microsecond=0)
    return found


def _needed(ledger: Ledger, spec: ModelSpec, dataset: str, newest: datetime) -> Iterable[datetime]:
    """For each use of a dataset, the first moment from which its rows are still needed."""
    champion, versions = ledger.champion(spec.name), ledger.versions(spec.name)
    serving = next((record for record in versions if record.version == champion), None)
    delay = label_delay(spec.label, serving or (versions[-1] if versions else None))
    if dataset in ("predictions", "shadows"):
        # A window is measured when its labels have arrived, and then compared with the versions in the shadow.
        windows = max(2, spec.shadow.windows + 1)
        return [newest - windows * spec.schedules.window - spec.watch.labels - delay]
    # The holdout ends before the newest day, and the window before the holdout, by the time that labels take.
    learned = [newest - delay - spec.training.holdout - delay - spec.training.longest]
    kept = [*versions[-spec.retention.versions :], *(record for record in versions if record.version == champion)]
    learned += [record.training.interval("window").start for record in kept]
    if dataset == "features":
        return learned
    volumes = [table.checks.volume.past for table in spec.tables.values() if table.checks.volume is not None]
    return [min(learned) - spec.features.lookback, newest - max(volumes, default=timedelta())]


def _event_time(spec: ModelSpec, dataset: str, table: str) -> str | None:
    """The column with the event time; None for tables that are replaced as a whole, or have another rule of retention."""
    if dataset == REQUESTS:
        return ASKED_AT
    if dataset != "tables":
        return spec.event_time
    return spec.tables[table].event_time if table in spec.tables else None


def _count(lake: Lake, model: str, table: str, snapshot: int, column: str, before: datetime) -> int:
    if column not in lake.columns(model, table, snapshot):
        return 0  # the event time is another one now, and no row has it yet
    old = Interval(_FIRST, before)
    with lake.scan(model, table, snapshot, columns=[column], interval=old, event_time=column) as rows:
        return sum(batch.num_rows for batch in rows)
