"""From sources to one publication of the interval, or to one refusal with every reason.

Neighbours: :mod:`perennial.ingestion.sources` lands each table. :mod:`perennial.ingestion.checks` judges it.
:mod:`perennial.lake.publish` publishes all tables at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from perennial.alerts import of_models
from perennial.core.errors import IntervalRefused, SourceMissing
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.ingestion.checks import CheckResult, check, ingest_writes, nothing_yet, open_days
from perennial.ingestion.files import is_dated
from perennial.ingestion.late import find_files, told
from perennial.ingestion.pushed import INPUT, PushedRows
from perennial.ingestion.sources import Landed, land, land_once
from perennial.lake.publish import Lake
from perennial.lake.schema import MOMENT
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)


#: The ledger's name for the raw tables of a model and its quarantine.
DATASET = "tables"


def land_and_check(
    folder: ModelFolder,
    lake: Lake,
    settings: Settings,
    table: str,
    interval: Interval,
    staging: Path,
    *,
    connect: Callable[[str], sa.Engine],
    run_id: str,
) -> CheckResult:
    """Read a table's rows of the interval and let Great Expectations judge them.

    Args:
        folder: the model's folder.
        lake: has the published rows; its ledger has the number of rows of the past, and the files that were read.
        settings: gives the data folder and the folder of reports.
        table: the table's name in the spec.
        interval: the interval of the rows.
        staging: folder for the resulting files. It is created if it does not exist.
        connect: gives the engine for a ``connection`` of the spec.
        run_id: the ingesting run.

    Raises:
        SourceError, SpecError: see :func:`perennial.ingestion.sources.land`.
    """
    spec, ledger = folder.spec, lake.ledger
    earlier = find_files(folder, ledger, DATASET, table, interval, settings.data)
    pushes = spec.online is not None and table in spec.online.push
    try:
        if (source := spec.sources[spec.tables[table].source]).files is not None and not is_dated(source):
            shared = settings.staging / spec.name / "undated"
            landed = land_once(folder, table, interval, shared, data=settings.data, connect=connect)
        else:
            landed = land(folder, table, interval, staging, data=settings.data, connect=connect, again=earlier.periods)
    except SourceMissing:
        # An entity is never waited for without end: what has no entities has nothing to predict.
        may_wait = spec.tables[table].late is not None and table != spec.entity.table
        if not may_wait or _was_read(ledger, spec, table, interval):
            raise
        if not pushes:
            return nothing_yet(folder, table, interval, staging)
        closed = spec.schedules.is_closed
        landed = Landed(table, [], 0, [], [], [], [day.key for day in interval.touched_days() if not closed(day)])
    if pushes:
        staging.mkdir(parents=True, exist_ok=True)
        # A source that does not say of which day a row is brings those of earlier days each time.
        late = Interval(interval.start - (spec.tables[table].late or timedelta()), interval.start)
        pushed = PushedRows(settings.predictions_url).land(
            folder, table, interval, ledger.publications(spec.name, DATASET), staging,
            first=landed.rows,
            again=earlier.periods if is_dated(source) or source.pushed else [late],
        )  # fmt: skip
        landed = replace(landed, pushed=replace(pushed, alone=not landed.paths))
        if not landed.paths and not pushed.rows and landed.absent:
            return replace(nothing_yet(folder, table, interval, staging), pushed={"through": pushed.through, "alone": True})
    result = check(
        folder,
        landed,
        interval,
        staging,
        past_rows_per_day=past_rows_per_day(ledger, spec, table, interval),
        docs=settings.reports / spec.name / "checks",
        run_id=run_id,
        published=_published_keys(folder, lake, table, interval) if spec.tables[table].duplicates == "refuse" else None,
    )
    return replace(result, warnings=[*result.warnings, *told(folder, table, earlier)])


def _was_read(ledger: Ledger, spec: ModelSpec, table: str, interval: Interval) -> bool:
    """Whether rows of a table are published for an interval that were not only pushed, so that its files were there."""
    return any(
        publication.rows.get(table) and not publication.inputs.get(INPUT, {}).get(table, {}).get("alone")
        for publication in ledger.publications(spec.name, DATASET, interval)
    )


def _published_keys(folder: ModelFolder, lake: Lake, name: str, interval: Interval) -> pa.Table | None:
    """The keys that a table has outside the days that are read; None if nothing is published or it is replaced as a whole."""
    spec, table = folder.spec, folder.spec.tables[name]
    published = lake.ledger.published(spec.name, DATASET)
    if published is None or name not in published.snapshots or table.event_time is None:
        return None
    columns = list(dict.fromkeys([*table.key, table.event_time]))
    rows = lake.scan(spec.name, name, published.snapshots[name], columns=columns).read_all()
    moments = rows.column(table.event_time)
    start, end = (pa.scalar(at, MOMENT) for at in (interval.start - (table.late or timedelta()), interval.end))
    return rows.filter(pc.or_(pc.less(moments, start), pc.greater_equal(moments, end))).select(table.key)


def past_rows_per_day(ledger: Ledger, spec: ModelSpec, table: str, interval: Interval) -> float | None:
    """Mean rows per open day of a table in the past that its volume check looks at; None without a check or a past."""
    volume = spec.tables[table].checks.volume
    if volume is None:
        return None
    past = Interval(interval.start - volume.past, interval.start)
    rows, days = 0, 0.0
    for publication in ledger.publications(spec.name, DATASET, past):
        # A publication that begins before the past counts with its own mean.
        if publication.interval.end <= interval.start and table in publication.rows:
            rows += publication.rows[table]
            days += open_days(publication.interval, spec.schedules.is_closed)
    return rows / days if days else None


def publish_interval(
    folder: ModelFolder,
    lake: Lake,
    interval: Interval,
    results: Sequence[CheckResult],
    *,
    tables: Collection[str] | None = None,
    run_id: str,
) -> Publication:
    """Publish all tables of the interval at once, or refuse all of them. What was published before stays in that case.

    Args:
        folder: the model's folder.
        lake: keeps the tables.
        ledger: records the publication or the refusal.
        interval: the interval.
        results: one result per table.
        tables: names of the required tables; by default all tables of the spec.
        run_id: the ingesting run. It took its order with :meth:`Ledger.next_order` before it read anything.

    Raises:
        IntervalRefused: a table is missing or was refused. The refusal and its alert are in the ledger.
        Superseded: a later run of the same days has taken over.
    """
    model = folder.spec.name
    by_table = {result.table: result for result in results}
    wanted = folder.spec.tables if tables is None else tables
    reasons = [f"{table}: it was not read; its task says why" for table in wanted if table not in by_table]
    reasons += [f"{result.table}: {reason}" for result in results if result.refused for reason in result.reasons]
    if reasons:
        rows = {result.table: result.rows_in for result in results}
        lake.ledger.record_refusal(
            model=model,
            interval=interval,
            run_id=run_id,
            reasons=reasons,
            rows=rows,
            alert=of_models.interval_refused(model, interval, reasons=reasons, rows=rows),
        )
        raise IntervalRefused(
            f"{model}, {interval}: nothing of the interval is published; what was published before stays: {'; '.join(reasons)}"
        )
    for result in results:
        if result.rows_in != result.rows_published + result.rows_quarantined + result.rows_late + result.rows_replaced:
            raise AssertionError(f"{model}, {interval}, {result.table}: rows were lost before publishing: {result}")
    absent = {result.table for result in results if result.awaited and not result.rows_in}
    publication = lake.publish(
        model=model,
        dataset=DATASET,
        interval=interval,
        tables={
            table: write
            for table, write in ingest_writes(folder, list(results)).items()
            # What a later day's ingest brought of a table that had not come is kept.
            if table not in absent or not _was_read(lake.ledger, folder.spec, table, interval)
        },
        order=lake.ledger.next_order(model, DATASET, interval, run_id),
        run_id=run_id,
        inputs={
            "spec": folder.spec.digest,
            "rows": {
                result.table: {
                    "read": result.rows_in,
                    "published": result.rows_published,
                    "quarantined": result.rows_quarantined,
                    "late": result.rows_late,
                }
                for result in results
            },
            "warnings": [f"{result.table}: {warning}" for result in results for warning in result.warnings],
            "files": _files(folder.spec, results),
            "awaited": {result.table: result.awaited for result in results if result.awaited},
            "too_late": {result.table: result.too_late for result in results if result.too_late},
            **({INPUT: pushed} if (pushed := {one.table: one.pushed for one in results if one.pushed is not None}) else {}),
        },
    )
    log.info("published %s", ", ".join(f"{table}: {rows} rows" for table, rows in publication.rows.items()))
    return publication


def _files(spec: ModelSpec, results: Sequence[CheckResult]) -> dict[str, list[dict[str, Any]]]:
    """The files of each source. Tables of one source read the same files, unless a file changed in between."""
    read: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        seen = read.setdefault(spec.tables[result.table].source, [])
        known = {(file["name"], file["sha256"]) for file in seen}
        seen += [file for file in result.files if (file["name"], file["sha256"]) not in known]
    return {source: files for source, files in read.items() if files}
