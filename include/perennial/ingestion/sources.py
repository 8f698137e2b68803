"""From a source to Parquet files with the raw rows of an interval.

A source is a pattern of files, a SQL query, or a Python function; or clients push its rows, which
:mod:`perennial.ingestion.pushed` lands. Memory stays bounded for a source of any size: record batches go from the reader to
the writer. Only columns that the table mentions are kept. So nothing else of a file, such as a passenger's name, reaches the
lake or its quarantine. Here only the source is judged: whether it is a table with the required columns.
:mod:`perennial.ingestion.checks` judges the rows.

Neighbours: :mod:`perennial.ingestion.files` and :mod:`perennial.ingestion.queries` read. :mod:`perennial.ingestion.landing`
writes. :mod:`perennial.ingestion.casting` says what raw values become.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from perennial.core.errors import PerennialError
from perennial.core.files import replacing
from perennial.core.intervals import Interval
from perennial.ingestion.files import land_files, versions
from perennial.ingestion.landing import LandingWriter
from perennial.ingestion.pushed import Pushed
from perennial.ingestion.queries import land_python, land_sql
from perennial.spec.folder import ModelFolder

log = logging.getLogger(__name__)

#: How long landed rows that no run uses are kept for other runs.
_UNUSED = timedelta(days=1)


@dataclass(frozen=True)
class Landed:
    """The raw rows of one table's interval, as the source gave them.

    Attributes:
        table: name of the table.
        paths: Parquet files of the raw columns that the table mentions, and
            :data:`perennial.ingestion.casting.LANDED_EXTRAS`. More than one if columns or types of the source differ.
            None if all days are closed, and no file came.
        rows: number of rows in the files, those of other intervals included.
        files: the files that were read: ``name``, ``bytes`` as stored, ``sha256``, and ``period``, the key of the file's
            period by a dated pattern. Empty for SQL and Python.
        notices: what was accepted but is unusual.
        absences: columns that the source, or some of its files, do not have, and that are NULL therefore.
        absent: keys of the periods of a dated pattern that have no file, for a table that may come late.
        pushed: rows that were pushed online; None if none can be.
    """

    table: str
    paths: list[Path]
    rows: int
    files: list[dict[str, Any]]
    notices: list[str]
    absences: list[str]
    absent: list[str] = field(default_factory=list)
    pushed: Pushed | None = None

    def to_json(self) -> dict[str, Any]:
        pushed = None if self.pushed is None else self.pushed.to_json()
        return {**asdict(self), "paths": [str(path) for path in self.paths], "pushed": pushed}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Landed:
        pushed = Pushed.from_json(value["pushed"]) if value.get("pushed") else None
        return cls(**{**value, "paths": [Path(path) for path in value["paths"]], "pushed": pushed})


def land(
    folder: ModelFolder,
    table: str,
    interval: Interval,
    directory: Path,
    *,
    data: Path,
    connect: Callable[[str], sa.Engine],
    again: Sequence[Interval] = (),
) -> Landed:
    """Read the table's source for an interval.

    For a table with ``late``, a database is read from that long before the interval, and files up to that long after it, as
    far as they exist: they may hold late rows of the interval.

    Args:
        folder: the model's folder.
        table: the table's name in the spec.
        interval: the interval.
        directory: folder for the Parquet files, which get unique names. It is created if it does not exist.
        data: the folder that relative patterns start from.
        connect: gives the engine for a ``connection`` of the spec.
        again: days before the interval whose files are read too, as far as they exist.

    Raises:
        SourceMissing: there is no file of the interval, or, unless the table may come late, of one of its days.
        SourceError: the source is missing, is not of the format that its name says, or lacks a column. The message says
            which source, where, and what to do.
        SpecError: an expression of the table is wrong for any source, or ``model.py`` cannot be imported.
    """
    name = folder.spec.tables[table].source
    source = folder.spec.sources[name]
    directory.mkdir(parents=True, exist_ok=True)
    if source.pushed:
        return Landed(table, [], 0, [], [], [])
    writer = LandingWriter(folder, table, directory / f"{table}-{uuid4().hex}.landed.parquet")
    files: list[dict[str, Any]] = []
    notices: list[str] = []
    absent: list[Interval] = []
    late = folder.spec.tables[table].late or timedelta()
    reread = Interval(interval.start - late, interval.end)
    try:
        if source.files is not None:
            closed = folder.spec.schedules.is_closed
            read = interval if folder.spec.tables[table].event_time else _newest_day(interval, closed)
            absent = land_files(
                source, read, data, writer, files, notices,
                closed=closed,
                further=[*again, Interval(interval.end, interval.end + late)] if late else again,
                may_be_absent=bool(late) and table != folder.spec.entity.table,
            )  # fmt: skip
        elif source.sql is not None:
            assert source.connection is not None  # the spec guarantees it
            land_sql(source, name, reread, connect(source.connection), writer)
        else:
            assert source.python is not None
            land_python(folder, source.python, name, reread, writer)
        paths: list[Path] = []
        rows = 0
        if source.files is not None and not files:
            notices.append(f"no file came: {interval} is closed (schedules.closed in model.yaml)")
        else:
            paths, rows = writer.finish()
    except PerennialError as error:
        raise type(error)(f"{folder.spec.name}, {interval}, source {name}: {error}") from error
    finally:
        writer.clear()
    notices.extend(writer.notices)
    for notice in notices:
        log.info("source %s: %s", name, notice)
    log.info("landed %d rows for table %s from source %s", rows, table, name)
    return Landed(table, paths, rows, files, notices, writer.absences, [period.key for period in absent])


def land_once(
    folder: ModelFolder, table: str, interval: Interval, directory: Path, *, data: Path, connect: Callable[[str], sa.Engine]
) -> Landed:
    """As :func:`land`, for files whose pattern has no dates: they are read once for all intervals, until one changes.

    Args:
        folder: the model's folder.
        table: the table's name in the spec.
        interval: the interval.
        directory: folder for the Parquet files, which runs share. What no run has used for a day is removed from it.
        data: the folder that relative patterns start from.
        connect: as for :func:`land`.

    Raises:
        SourceError, SpecError: see :func:`land`.
    """
    spec = folder.spec.tables[table]
    source = folder.spec.sources[spec.source]
    before = {name: version for name, (_, version) in versions(source, interval, data).items()}
    reads = [source.model_dump(mode="json"), spec.model_dump(mode="json", include={"source", "where", "columns"})]
    key = hashlib.sha256(json.dumps([*reads, str(data), before], sort_keys=True).encode()).hexdigest()[:16]
    record = directory / f"{table}-{key}.json"
    with suppress(OSError, ValueError, TypeError):  # nothing was landed, or it was removed
        landed = Landed.from_json(json.loads(record.read_text(encoding="utf-8")))
        for file in (record, *landed.paths):
            os.utime(file)
        log.info("the files of table %s have not changed since they were read; they are not read again", table)
        return landed
    landed = land(folder, table, interval, directory, data=data, connect=connect)
    if {name: version for name, (_, version) in versions(source, interval, data).items()} == before:
        with replacing(record) as draft:
            draft.write_text(json.dumps(landed.to_json()), encoding="utf-8")
    unused = time.time() - _UNUSED.total_seconds()
    for old in directory.glob(f"{table}-*"):
        if old.stat().st_mtime < unused:
            old.unlink(missing_ok=True)
    return landed


def _newest_day(interval: Interval, closed: Callable[[Interval], bool]) -> Interval:
    """The part of an interval whose dated files make up a table that is replaced as a whole.

    If such a table comes whole each day, the days of a range are the same keys again and again. So a range leaves what its days
    would leave one after the other: the last one that is not closed.
    """
    days = [Interval(max(day.start, interval.start), min(day.end, interval.end)) for day in interval.touched_days()]
    return next((day for day in reversed(days) if not closed(day)), days[-1])
