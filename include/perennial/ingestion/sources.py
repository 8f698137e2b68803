"""From a source to Parquet files with the raw rows of an interval.

A source is a pattern of files, a SQL query, or a Python function. Memory stays bounded for a source of any size: record
batches go from the reader to the writer. Only columns that the table mentions are kept. So nothing else of a file, such as a
passenger's name, reaches the lake or its quarantine. Here only the source is judged: whether it is a table with the required
columns. :mod:`perennial.ingestion.checks` judges the rows.

Neighbours: :mod:`perennial.ingestion.files` and :mod:`perennial.ingestion.queries` read. :mod:`perennial.ingestion.landing`
writes. :mod:`perennial.ingestion.casting` says what raw values become.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from perennial.core.errors import PerennialError
from perennial.core.intervals import Interval
from perennial.ingestion.files import land_files
from perennial.ingestion.landing import LandingWriter
from perennial.ingestion.queries import land_python, land_sql
from perennial.spec.folder import ModelFolder

log = logging.getLogger(__name__)


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
    """

    table: str
    paths: list[Path]
    rows: int
    files: list[dict[str, Any]]
    notices: list[str]
    absences: list[str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "paths": [str(path) for path in self.paths]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Landed:
        return cls(**{**value, "paths": [Path(path) for path in value["paths"]]})


def land(
    folder: ModelFolder,
    table: str,
    interval: Interval,
    directory: Path,
    *,
    data: Path,
    connect: Callable[[str], sa.Engine],
) -> Landed:
    """Read the table's source for an interval.

    Args:
        folder: the model's folder.
        table: the table's name in the spec.
        interval: the interval.
        directory: folder for the Parquet files, which get unique names. It is created if it does not exist.
        data: the folder that relative patterns start from.
        connect: gives the engine for a ``connection`` of the spec.

    Raises:
        SourceError: the source is missing, is not of the format that its name says, or lacks a column. The message says
            which source, where, and what to do.
        SpecError: an expression of the table is wrong for any source, or ``model.py`` cannot be imported.
    """
    name = folder.spec.tables[table].source
    source = folder.spec.sources[name]
    directory.mkdir(parents=True, exist_ok=True)
    writer = LandingWriter(folder, table, directory / f"{table}-{uuid4().hex}.landed.parquet")
    files: list[dict[str, Any]] = []
    notices: list[str] = []
    try:
        if source.files is not None:
            land_files(source, interval, data, writer, files, notices, closed=folder.spec.schedules.is_closed)
        elif source.sql is not None:
            assert source.connection is not None  # the spec guarantees it
            land_sql(source.sql, name, interval, connect(source.connection), writer)
        else:
            assert source.python is not None
            land_python(folder, source.python, name, interval, writer)
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
    return Landed(table, paths, rows, files, notices, writer.absences)
