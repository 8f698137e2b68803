"""From a source to one Parquet file of raw rows of an interval: files by pattern, SQL, a Python function.

Whatever the size of the source, memory stays bounded: record batches go from reader to writer. Only columns that the table
names are kept, so that nothing else of a file (a passenger's name, say) ever lies in the lake or its quarantine. Nothing is
judged here but whether the source *is* a table with the columns wanted; :mod:`perennial.ingestion.checks` judges rows.

Files: a pattern with time codes is expanded over the interval in steps of its smallest code (``%H`` hour, ``%d`` day,
``%m`` month, ``%Y`` year), each step must have a file, and a row's event time must lie in the period of its file: thus the
days of a week hold the same rows whether they are ingested one by one or at once. A pattern without codes means all files
that match, of which the interval's rows are chosen by event time. A local file must be a regular one below the data
folder, symbolic links included, and must not change while it is read. The name decides between CSV and Parquet, the content
between gzip and plain.

Neighbours: :mod:`perennial.ingestion.delimited` reads CSV, :mod:`perennial.ingestion.casting` says what raw values become.
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
        table: its name.
        path: Parquet file: the raw columns that the table names, and :data:`perennial.ingestion.casting.LANDED_EXTRAS`.
        rows: in the file, those of other intervals included.
        files: what was read: ``name``, ``bytes`` as stored, ``sha256``, and ``period``, the key of the time that a dated
            pattern says its rows are of. Empty for SQL and Python.
        notices: what was accepted but should be known.
    """

    table: str
    path: Path
    rows: int
    files: list[dict[str, Any]]
    notices: list[str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Landed:
        return cls(**{**value, "path": Path(value["path"])})


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
        table: the table's name in the spec.
        directory: where the Parquet file is put, under a name of its own; made if need be.
        data: the folder that relative patterns start from.
        connect: gives the engine for a ``connection`` of the spec.

    Raises:
        SourceError: the source is not there, is not what its name says, or lacks a column: which, where, what to do.
        SpecError: an expression of the table is wrong whatever the source, or ``model.py`` cannot be imported.
    """
    name = folder.spec.tables[table].source
    source = folder.spec.sources[name]
    directory.mkdir(parents=True, exist_ok=True)
    writer = LandingWriter(folder, table, directory / f"{table}-{uuid4().hex}.landed.parquet")
    files: list[dict[str, Any]] = []
    notices: list[str] = []
    try:
        if source.files is not None:
            land_files(source, interval, data, writer, files, notices)
        elif source.sql is not None:
            assert source.connection is not None  # the spec's own rule
            land_sql(source.sql, name, interval, connect(source.connection), writer)
        else:
            assert source.python is not None
            land_python(folder, source.python, name, interval, writer)
        rows = writer.finish()
    except PerennialError as error:
        raise type(error)(f"{folder.spec.name}, {interval}, source {name}: {error}") from error
    finally:
        writer.clear()
    notices.extend(writer.notices)
    for notice in notices:
        log.info("source %s: %s", name, notice)
    log.info("landed %d rows for table %s from source %s", rows, table, name)
    return Landed(table, writer.target, rows, files, notices)
