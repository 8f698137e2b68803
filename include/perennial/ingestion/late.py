"""What comes late: rows of earlier days, files of earlier days, and files that were replaced after they were read.

A day's ingest reads what belongs to the days before it, and these rows are published into their own days. What an earlier
ingest published of a day stays, as far as the new rows do not correct it. Where nothing is new, nothing is published.

Neighbours: :mod:`perennial.ingestion.sources` reads. :mod:`perennial.ingestion.checks` judges the rows, and tells those of
earlier days apart. :mod:`perennial.ingestion.publish` publishes the interval itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from perennial.core.errors import Superseded
from perennial.core.intervals import Interval
from perennial.core.sql import connect, literal, quoted
from perennial.ingestion.checks import CheckResult
from perennial.ingestion.files import is_dated, versions
from perennial.lake.publish import Lake, TableWrite
from perennial.lake.schema import KNOWN, published_schema
from perennial.ledger.coverage import uncovered
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger
from perennial.spec.data import Table
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)

#: How far back replaced files are looked for, where ``late`` does not say more.
NOTICED = timedelta(days=7)
#: How often rows are merged again because another run has published the day meanwhile.
_ATTEMPTS = 3


@dataclass(frozen=True)
class ReadAgain:
    """Files of earlier days that a day's ingest has to do with.

    Attributes:
        periods: the periods of the files to read.
        replaced: names of the files that were replaced after they were read.
    """

    periods: list[Interval]
    replaced: list[str]


def choose_files(
    table: Table,
    before: Interval,
    *,
    now: Mapping[str, tuple[Interval, str]],
    read: Mapping[str, str | None],
    published: Sequence[Interval],
) -> ReadAgain:
    """Decide which files of earlier days are read with a day.

    Args:
        table: the table's spec.
        before: the time before the day.
        now: period and version of the files that are there now, by name.
        read: version of the files that were read for their own day, by name. None if it is not known.
        published: intervals that are published.
    """
    since = before.end - (table.late or timedelta())
    periods, replaced = [], []
    for name, (period, version) in now.items():
        if name not in read:
            # Its day was published without it.
            if table.late and period.start >= since and any(period.overlaps(interval) for interval in published):
                periods.append(period)
        elif read[name] not in (None, version):
            replaced.append(name)
            if table.replaced == "read":
                periods.append(period)
    return ReadAgain(sorted(set(periods)), sorted(replaced))


def find_files(folder: ModelFolder, ledger: Ledger, dataset: str, name: str, interval: Interval, data: Path) -> ReadAgain:
    """Look for the files of earlier days that are read with an interval; see :func:`choose_files`.

    Args:
        folder: the model's folder.
        ledger: says which files were read.
        dataset: the ledger's name for the raw tables.
        name: name of the table.
        interval: the interval.
        data: the folder that relative patterns start from.

    Raises:
        SourceError: a place cannot be listed.
    """
    spec, table = folder.spec, folder.spec.tables[name]
    source = spec.sources[table.source]
    before = Interval(interval.start - max(table.late or timedelta(), NOTICED), interval.start)
    publications = ledger.publications(spec.name, dataset, before) if is_dated(source) else []
    if not publications:
        return ReadAgain([], [])
    latest: dict[str, str | None] = {}
    own: set[str] = set()
    for publication in publications:
        for file in publication.inputs.get("files", {}).get(table.source, []):
            latest[file["name"]] = file.get("version")
            # A day also reads the files of the days after it, for its late rows alone.
            if "period" in file and Interval.from_key(file["period"]).overlaps(publication.interval):
                own.add(file["name"])
    read = {name: latest[name] for name in own}
    there = versions(source, before, data).items()
    now = {file: (period, version) for file, (period, version) in there if period is not None}
    found = choose_files(table, before, now=now, read=read, published=[one.interval for one in publications])
    for replaced in found.replaced:
        log.warning("table %s: %s was replaced after it was read; %s", name, replaced, _advice(spec, table))
    return found


def told(folder: ModelFolder, name: str, found: ReadAgain) -> list[str]:
    """A line for people for each file that was replaced."""
    advice = _advice(folder.spec, folder.spec.tables[name])
    return [f"{replaced} was replaced after it was read; {advice}" for replaced in found.replaced]


def _advice(spec: ModelSpec, table: Table) -> str:
    if table.replaced == "read":
        return "it is read again, and what it adds or corrects is published"
    return f"run {spec.name}.ingest again for its day, or set `replaced: read` of the table"


def publish_late(
    folder: ModelFolder, lake: Lake, dataset: str, interval: Interval, results: Sequence[CheckResult], *, run_id: str
) -> list[Publication]:
    """Publish the late rows of an interval's ingest into their own days.

    A day that is not published yet is left to its own ingest, which reads these rows too.

    Args:
        folder: the model's folder.
        lake: holds the tables.
        dataset: the ledger's name for the raw tables.
        interval: the interval that was ingested.
        results: the results of the checks, which have the late rows.
        run_id: the run.

    Returns:
        A publication for each day that has changed, oldest first.

    Raises:
        Superseded: later runs publish these days at the same time. Nothing of the late rows is lost: clear the task.
    """
    late = [result for result in results if result.late is not None]
    done = []
    for day in sorted({day for result in late for day in _days(folder, result, interval)}):
        for attempt in range(_ATTEMPTS):
            try:
                publication = _publish_day(folder, lake, dataset, day, interval, late, run_id)
            except Superseded:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            done += [publication] if publication is not None else []
            break
    return done


def _days(folder: ModelFolder, result: CheckResult, interval: Interval) -> list[Interval]:
    assert result.late is not None
    event = quoted(str(folder.spec.tables[result.table].event_time))
    with closing(connect(result.late.parent)) as connection:
        found = connection.execute(
            f"SELECT DISTINCT date_trunc('day', {event})::DATE FROM read_parquet({literal(str(result.late))})"
        ).fetchall()
    days = [Interval.day(day) for (day,) in found]
    # An interval may begin within a day.
    return [Interval(day.start, min(day.end, interval.start)) for day in days]


def _publish_day(
    folder: ModelFolder,
    lake: Lake,
    dataset: str,
    day: Interval,
    interval: Interval,
    late: Sequence[CheckResult],
    run_id: str,
) -> Publication | None:
    spec, ledger = folder.spec, lake.ledger
    publications = ledger.publications(spec.name, dataset, day)
    published = ledger.published(spec.name, dataset)
    if published is None or uncovered(day, publications):
        log.info("late rows of %s are left to the ingest of that day, which is not published yet", day)
        return None
    writes: dict[str, TableWrite] = {}
    counts: dict[str, int] = {}
    for result in late:
        table, name = spec.tables[result.table], result.table
        snapshot = published.snapshots.get(name)
        schema = published_schema(table)
        there = schema.empty_table()
        if snapshot is not None:
            there = lake.scan(
                spec.name, name, snapshot, columns=schema.names, interval=day, event_time=table.event_time
            ).read_all()  # fmt: skip
        merged, new = merge(table, there, _rows_of(table, result, day))
        if new:
            writes[name] = TableWrite(merged.to_reader, table.event_time, schema)
            counts[name] = new
    if not writes:
        return None
    publication = lake.publish(
        model=spec.name,
        dataset=dataset,
        interval=day,
        tables=writes,
        order=ledger.next_order(spec.name, dataset, day, run_id),
        run_id=run_id,
        inputs={
            "spec": spec.digest,
            "rows": {
                name: {"read": count, "published": count, "quarantined": 0, "late": count} for name, count in counts.items()
            },
            "late": counts,
            "ingested_with": interval.key,
            "warnings": [],
            "files": _files(spec, late, day),
        },
        since=publications[-1].id,
    )
    rows = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    log.info("late or corrected rows are published into %s: %s", day, rows)
    return publication


def _files(spec: ModelSpec, late: Sequence[CheckResult], day: Interval) -> dict[str, list[dict[str, Any]]]:
    """The files of the day itself that were read with a later day."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in late:
        own = [file for file in result.files if "period" in file and Interval.from_key(file["period"]).overlaps(day)]
        if own:
            found.setdefault(spec.tables[result.table].source, []).extend(own)
    return found


def _rows_of(table: Table, result: CheckResult, day: Interval) -> pa.Table:
    names = ", ".join(map(quoted, published_schema(table).names))
    event = quoted(str(table.event_time))
    start, end = (f"TIMESTAMPTZ {literal(moment.isoformat())}" for moment in (day.start, day.end))
    assert result.late is not None
    with closing(connect(result.late.parent)) as connection:
        found: pa.Table = connection.sql(
            f"SELECT {names} FROM read_parquet({literal(str(result.late))}) WHERE {event} >= {start} AND {event} < {end}"
        ).to_arrow_table()
    return found.cast(published_schema(table))


def merge(table: Table, published: pa.Table, late: pa.Table) -> tuple[pa.Table, int]:
    """A day's rows with late ones.

    A late row with a new key, or of which something else became known at another moment, is added. One with the key and the
    moment of knowing of a published row takes its place.

    Args:
        table: the table's spec.
        published: the day's rows.
        late: the late rows, one per key and moment of knowing.

    Returns:
        The merged rows, and how many of the late ones are new or changed.
    """
    schema = published_schema(table)
    same = ", ".join(map(quoted, [*table.key, KNOWN]))
    with closing(connect()) as connection:
        connection.register("published", published)
        connection.register("late", late)
        [(new,)] = connection.execute("SELECT count(*) FROM (FROM late EXCEPT FROM published)").fetchall()
        merged: pa.Table = connection.sql(f"FROM published ANTI JOIN late USING ({same}) UNION ALL FROM late").to_arrow_table()
    return merged.select(schema.names).cast(schema), int(new)
