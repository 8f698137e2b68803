"""From a source to one Parquet file of raw rows of an interval: files by pattern, SQL, a Python function.

Whatever the size of the source, memory stays bounded: record batches go from reader to writer. Only columns that the table
names are kept, so that nothing else of a file (a passenger's name, say) ever lies in the lake or its quarantine. Nothing is
judged here but whether the source *is* a table with the columns wanted; :mod:`perennial.checks` judges rows.

Files: a pattern with time codes is expanded over the interval in steps of its smallest code (``%H`` hour, ``%d`` day,
``%m`` month, ``%Y`` year), each step must have a file, and a row's event time must lie in the period of its file: thus the
days of a week hold the same rows whether they are ingested one by one or at once. A pattern without codes means all files
that match, of which the interval's rows are chosen by event time. A local file must be a regular one below the data
folder, symbolic links included, and must not change while it is read. The name decides between CSV and Parquet, the content
between gzip and plain.

Neighbours: :mod:`perennial.delimited` reads CSV, :mod:`perennial.casting` says what raw values become.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import IO, Any
from uuid import UUID, uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from perennial import logs
from perennial.casting import FROM, LANDED_EXTRAS, UNTIL, bind, mentioned, taken
from perennial.delimited import CHUNK, FAULT, POSITION, RAW, DelimitedFile
from perennial.errors import PerennialError, SourceError
from perennial.folder import folder_function
from perennial.intervals import Interval
from perennial.redaction import redact
from perennial.spec import ModelFolder, Source

log = logs.get(__name__)

#: How many times its size a gzip file may hold before it is taken for a bomb, once it has given ``BOMB_FROM`` bytes.
BOMB_RATIO = 250
BOMB_FROM = 256 << 20
#: Rows fetched from a database at a time.
SQL_ROWS = 20_000
#: Rows of a Parquet file or a Python function's table at a time.
ARROW_ROWS = 64_000
#: What is gathered for a row group of the landed file: a day's file alone would make one so small that all who read it
#: spend their time on its metadata.
GROUP_ROWS = 122_880
GROUP_BYTES = 32 << 20

_TIME_CODES = re.compile(r"%[YmdH]")


@dataclass(frozen=True)
class Landed:
    """The raw rows of one table's interval, as the source gave them.

    Attributes:
        table: its name.
        path: Parquet file: the raw columns that the table names, and :data:`perennial.casting.LANDED_EXTRAS`.
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
    writer = _Writer(folder, table, directory / f"{table}-{uuid4().hex}.landed.parquet")
    files: list[dict[str, Any]] = []
    notices: list[str] = []
    try:
        if source.files is not None:
            _land_files(source, interval, data, writer, files, notices)
        elif source.sql is not None:
            assert source.connection is not None  # the spec's own rule
            _land_sql(source.sql, name, interval, connect(source.connection), writer)
        else:
            assert source.python is not None
            _land_python(folder, source.python, name, interval, writer)
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


# --- writing ---------------------------------------------------------------------------------------------------------


class _Writer:
    """Collects raw batches in one Parquet file, which appears under its name only when it is complete.

    A database or a row of files gives types as it goes along: a column may be all null at first, or an integer and later a
    float. Each change of schema begins a new part, and parts are brought to one schema at the end.

    A thread writes what was gathered while more is read.
    """

    def __init__(self, folder: ModelFolder, table: str, target: Path) -> None:
        self.target = target
        self._folder, self._table, self._spec = folder, table, folder.spec.tables[table]
        self._bound: dict[pa.Schema, list[str]] = {}
        self._names: dict[str, str] = {}
        self._schema: pa.Schema | None = None
        self._parts: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._gathered: list[pa.Table] = []
        self._gathered_rows = self._gathered_bytes = 0
        self._rows = 0
        self._thread = ThreadPoolExecutor(1, "landing")
        self._writing: Future[None] | None = None
        self.notices: list[str] = []

    def takes(self, names: Sequence[str]) -> list[str]:
        """Those of a source's columns that the table takes."""
        return list(taken(self._spec, pa.schema([(name, pa.null()) for name in names])).names)

    def begin(self, raw: pa.Schema, place: str) -> list[str]:
        """Make sure that a source with these columns can give the table; returns the names that it takes of them."""
        if raw in self._bound:
            return self._bound[raw]
        landable = _landable(raw)
        bind(self._folder, self._table, landable, place)
        notice = _unknown_columns(self._folder, self._spec.source, raw.names)
        if notice and notice not in self.notices:
            self.notices.append(notice)
        wanted = taken(self._spec, landable)
        for name in wanted.names:
            self._names.setdefault(name.casefold(), name)
        if self._schema is None:
            self._open(pa.schema([*wanted, *LANDED_EXTRAS]))
        return self._bound.setdefault(raw, wanted.names)

    def write(self, batch: pa.RecordBatch, place: str, period: Interval | None = None) -> None:
        """Append a batch that has ``_position`` and, where they are not null, the other extras."""
        batch = _to_landable(batch)
        # Files that differ in the case of a name mean one column, as SQL has it.
        batch = batch.rename_columns([self._names.get(name.casefold(), name) for name in batch.schema.names])
        for name, value in ((FROM, period and period.start), (UNTIL, period and period.end)):
            batch = batch.append_column(name, pa.repeat(pa.scalar(value, LANDED_EXTRAS.field(name).type), len(batch)))
        for name in (FAULT, RAW):
            if name not in batch.schema.names:
                batch = batch.append_column(name, pa.nulls(len(batch), pa.string()))
        assert self._schema is not None
        assert self._writer is not None
        if any(field not in self._schema for field in batch.schema):
            try:
                wider = pa.unify_schemas([self._schema, batch.schema], promote_options="permissive")
            except pa.ArrowException as error:
                raise SourceError(f"{place}: a column has one type in some rows and another in others: {error}") from error
            if wider != self._schema:
                self._open(wider)
        self._gathered.append(_conform(pa.table(batch), self._schema, place))
        self._rows += len(batch)
        self._gathered_rows += len(batch)
        self._gathered_bytes += batch.nbytes
        if self._gathered_rows >= GROUP_ROWS or self._gathered_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        assert self._writer is not None
        if self._gathered:
            self._wait()  # one group at a time, so that memory stays bounded
            self._writing = self._thread.submit(self._writer.write_table, pa.concat_tables(self._gathered))
            self._gathered, self._gathered_rows, self._gathered_bytes = [], 0, 0

    def _wait(self) -> None:
        """Until what was given to the thread is written; raises what it raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _open(self, schema: pa.Schema) -> None:
        if self._writer is not None:
            self._flush()
            self._wait()
            self._writer.close()
        self._schema = schema
        self._parts.append(self.target.with_suffix(f".{len(self._parts)}.part"))
        self._writer = pq.ParquetWriter(self._parts[-1], schema, compression="lz4")

    def finish(self) -> int:
        """Put the file in its place; returns its rows."""
        assert self._writer is not None
        assert self._schema is not None
        self._flush()
        self._wait()
        self._writer.close()
        if len(self._parts) > 1:
            whole = self.target.with_suffix(".whole.part")
            with pq.ParquetWriter(whole, self._schema, compression="lz4") as writer:
                for part in self._parts:
                    with pq.ParquetFile(part) as file:
                        for batch in file.iter_batches(ARROW_ROWS):
                            writer.write_table(_conform(pa.table(batch), self._schema, self._table))
            self._parts.append(whole)
        os.replace(self._parts[-1], self.target)
        return self._rows

    def clear(self) -> None:
        """Remove what is not the finished file."""
        self._thread.shutdown()
        if self._writer is not None:
            self._writer.close()
        for part in self._parts:
            part.unlink(missing_ok=True)


def _conform(rows: pa.Table, schema: pa.Schema, place: str) -> pa.Table:
    """The rows in the order and types of a wider schema; a column they lack is null."""
    columns = []
    for field in schema:
        index = rows.schema.get_field_index(field.name)
        try:
            column = pa.nulls(len(rows), field.type) if index < 0 else rows.column(index)
            columns.append(column if column.type == field.type else column.cast(field.type))
        except pa.ArrowException as error:
            raise SourceError(f"{place}: column {field.name} cannot be kept as {field.type}: {error}") from error
    return pa.table(columns, schema=schema)


def _landable_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _landable_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_float16(kind):
        return pa.float32()
    return kind


@lru_cache(maxsize=16)  # thousands of small files have one schema
def _landable(schema: pa.Schema) -> pa.Schema:
    """The schema with types that Parquet and DuckDB keep alike."""
    return pa.schema([pa.field(field.name, _landable_type(field.type)) for field in schema])


def _unknown_columns(folder: ModelFolder, source: str, names: Sequence[str]) -> str | None:
    """A notice of the columns that no table fed by the source mentions; None if there are none."""
    known = frozenset().union(*(mentioned(table) for table in folder.spec.tables.values() if table.source == source))
    extra = [name for name in names if name and name.casefold() not in known]
    if not extra:
        return None
    return "columns that no table names are left out: " + ", ".join(extra[:10]) + (", …" if len(extra) > 10 else "")


def _to_landable(batch: pa.RecordBatch) -> pa.RecordBatch:
    schema = _landable(batch.schema)
    if schema == batch.schema:
        return batch
    # safe=False: what lies beyond microseconds is dropped.
    columns = [column.cast(field.type, safe=False) for column, field in zip(batch.columns, schema, strict=True)]
    return pa.record_batch(columns, schema=schema)


# --- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A file that was found.

    Attributes:
        name: for messages and positions: below the data folder, or an address without credentials.
        period: the time that a dated pattern says its rows are of.
        path: where ``system`` finds it.
        system: an fsspec file system; None for the local one.
        size: in bytes, if the system says so.
    """

    name: str
    period: Interval | None
    path: str
    system: Any
    size: int | None


def _land_files(
    source: Source,
    interval: Interval,
    data: Path,
    writer: _Writer,
    files: list[dict[str, Any]],
    notices: list[str],
) -> None:
    assert source.files is not None
    found = [file for pattern, period in _expand(source.files, interval) for file in _find(pattern, period, data, source.files)]
    for file in _without_copies(found, notices):
        with _opened(file) as stream:
            counted = _Counted(file.name, stream)
            if file.path.endswith(".parquet"):
                _read_parquet(file, stream, counted, writer)
            else:
                _read_csv(file, counted, source, writer, notices)
            read = {"name": file.name, "bytes": counted.bytes, "sha256": counted.digest.hexdigest()}
            files.append({**read, "period": file.period.key} if file.period else read)


def _expand(pattern: str, interval: Interval) -> list[tuple[str, Interval | None]]:
    """The pattern for each step of the interval, with the period the step stands for."""
    codes = set(_TIME_CODES.findall(pattern))
    if not codes:
        return [(pattern, None)]
    step = next(code for code in ("%H", "%d", "%m", "%Y") if code in codes)
    start = interval.start.replace(minute=0, second=0, microsecond=0)
    if step != "%H":
        start = start.replace(hour=0)
    if step in ("%m", "%Y"):
        start = start.replace(day=1)
    if step == "%Y":
        start = start.replace(month=1)
    steps: list[tuple[str, Interval | None]] = []
    while start < interval.end:
        end = _next_step(start, step)
        steps.append((_at(pattern, start), Interval(start, end)))
        start = end
    return steps


def _at(pattern: str, moment: datetime) -> str:
    # Not strftime on the whole: an address may hold other percent signs.
    return _TIME_CODES.sub(lambda code: moment.strftime(code[0]), pattern)


def _next_step(start: datetime, step: str) -> datetime:
    match step:
        case "%H":
            return start + timedelta(hours=1)
        case "%d":
            return start + timedelta(days=1)
        case "%m":
            return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
        case _:
            return start.replace(year=start.year + 1)


def _find(pattern: str, period: Interval | None, data: Path, written: str) -> list[_File]:
    magic = "*" in pattern or "?" in pattern
    system, path = None, pattern
    if "://" in pattern:
        try:
            system, path = fsspec.core.url_to_fs(pattern)
        except (ImportError, ValueError) as error:
            raise SourceError(f"{_masked(pattern)}: no file system for this address: {error}") from error
        if "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)):
            system = None
    if system is None:
        root = data if path == pattern else Path("/")
        # Only * and ? are special in a pattern; glob would take brackets for a choice of letters.
        names = sorted(glob(path.replace("[", "[[]"), root_dir=root)) if magic else [path]
        found = [
            _File(name if root == data else f"file://{name}", period, str(root / name), None, None)
            for name in names
            if os.path.lexists(root / name)
        ]
        for file in found:
            if not file.name.isprintable():
                raise SourceError(f"{file.name!a}: a file name with characters that cannot be shown; rename the file")
            _refuse_outside(file, data if root == data else None)
    else:
        try:
            system.invalidate_cache()
            names = sorted(system.glob(path)) if magic else [path] if system.exists(path) else []
            found = [
                _File(_masked(str(system.unstrip_protocol(name))), period, name, system, system.size(name)) for name in names
            ]
        except Exception as error:  # each file system raises errors of its own
            raise SourceError(f"{_masked(pattern)}: cannot be listed: {_one_line(error)}") from error
    if not found:
        hint = f", as `files: {_masked(written)}` has it for {period}" if period else f", as `files: {_masked(written)}` has it"
        base = "" if "://" in pattern else f" below {data}"
        raise SourceError(f"{_masked(pattern)}: there is no such file{base}{hint}; deliver it, then ingest again")
    return found


def _refuse_outside(file: _File, data: Path | None) -> None:
    try:
        resolved = Path(file.path).resolve(strict=True)
        kind = resolved.stat()
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{file.name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if data is not None and not resolved.is_relative_to(data.resolve()):
        raise SourceError(f"{file.name}: leads out of the data folder {data}; put the file itself there")
    if not stat.S_ISREG(kind.st_mode):
        raise SourceError(f"{file.name}: not a regular file but a {_kind_of(kind.st_mode)}; put a file there")


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _without_copies(files: Sequence[_File], notices: list[str]) -> Iterator[_File]:
    """The files, less those of an undated pattern that have the same content as an earlier one: each row would be doubled."""
    sizes: dict[int, list[_File]] = {}
    for file in files:
        size = os.stat(file.path).st_size if file.system is None else file.size
        if file.period is None and size:
            sizes.setdefault(size, []).append(file)
    copies = set()
    for same in (group for group in sizes.values() if len(group) > 1):
        first: dict[str, str] = {}
        for file in same:
            with _opened(file) as stream:
                counted = _Counted(file.name, stream)
                counted.drain()
            original = first.setdefault(counted.digest.hexdigest(), file.name)
            if original != file.name:
                copies.add(file.name)
                notices.append(f"{file.name}: has the same content as {original}; read once")
    return (file for file in files if file.name not in copies)


@contextmanager
def _opened(file: _File) -> Iterator[IO[bytes]]:
    """The file's bytes; on leaving, make sure that they were the same all the while.

    Raises:
        SourceError: it cannot be opened or read, or has changed.
    """
    try:
        if file.system is None:
            # O_NONBLOCK: a FIFO that has come in the file's place would otherwise be waited on for ever.
            resolved = Path(file.path).resolve(strict=True)
            descriptor = os.open(resolved, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            opened: Any = os.fdopen(descriptor, "rb", buffering=0)
        else:
            opened = file.system.open(file.path, "rb")
    except Exception as error:  # each file system raises errors of its own
        raise SourceError(f"{file.name}: cannot be read: {_one_line(error)}") from error
    with opened as stream:
        before = _version(file, opened)
        yield stream
        changed = _version(file, opened) != before
    if changed:
        raise SourceError(
            f"{file.name}: changed while it was read; write it under another name and rename it when it is complete"
        )


def _version(file: _File, opened: Any) -> object:
    """What differs once the file's content does."""
    if file.system is not None:
        try:
            file.system.invalidate_cache()
            return file.system.ukey(file.path)
        except Exception as error:  # each file system raises errors of its own
            raise SourceError(f"{file.name}: is gone: {_one_line(error)}") from error
    state = os.fstat(opened.fileno())
    if not stat.S_ISREG(state.st_mode):
        raise SourceError(f"{file.name}: not a regular file but a {_kind_of(state.st_mode)}; put a file there")
    return state.st_size, state.st_mtime_ns


class _Counted:
    """Bytes with their number and digest, and a look at the first ones."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self.bytes = 0
        self._name = name
        self.digest = hashlib.sha256()
        self._stream = stream
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        while len(self._ahead) < size and (more := self._take(size)):
            self._ahead += more
        return self._ahead[:size]

    def read(self, size: int = CHUNK) -> bytes:
        if self._ahead:
            given, self._ahead = self._ahead[:size], self._ahead[size:]
            return given
        return self._take(size)

    def _take(self, size: int) -> bytes:
        try:
            given = self._stream.read(size) or b""
        except Exception as error:  # each file system raises errors of its own
            raise SourceError(f"{self._name}: cannot be read to its end: {_one_line(error)}") from error
        self.bytes += len(given)
        self.digest.update(given)
        return given

    def drain(self) -> None:
        while self._take(CHUNK):
            pass


def _read_csv(file: _File, counted: _Counted, source: Source, writer: _Writer, notices: list[str]) -> None:
    is_gzip = counted.peek(2) == b"\x1f\x8b"
    read = _unzipped(file.name, counted) if is_gzip else counted.read
    if is_gzip != file.path.endswith(".gz"):
        notices.append(f"{file.name}: read as {'gzip' if is_gzip else 'plain text'}, which it is, whatever its name says")
    table = DelimitedFile(
        read, name=file.name, delimiter=source.delimiter, encoding=source.encoding, null_values=source.null_values
    )
    place = f"{file.name}:{table.header_line}"
    raw = pa.schema([(name, pa.string()) for name in table.header if name])
    for batch in table.batches(writer.begin(raw, place)):
        writer.write(batch, file.name, file.period)
    counted.drain()
    notices.extend(table.notices)


def _unzipped(name: str, counted: _Counted) -> Callable[[int], bytes]:
    stream = gzip.GzipFile(fileobj=counted, mode="rb")  # type: ignore[call-overload]  # read() is all it asks for
    given = 0

    def read(size: int) -> bytes:
        nonlocal given
        try:
            piece: bytes = stream.read(size)
        except EOFError as error:
            raise SourceError(f"{name}: cut: its gzip ends early; deliver it again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise SourceError(f"{name}: damaged: {error}; deliver it again") from error
        given += len(piece)
        if given > BOMB_FROM and given > BOMB_RATIO * counted.bytes:
            raise SourceError(
                f"{name}: holds more than {BOMB_RATIO} times its size, like a bomb; if it is right, deliver it as Parquet"
            )
        return piece

    return read


def _read_parquet(file: _File, stream: IO[bytes], counted: _Counted, writer: _Writer) -> None:
    if counted.peek(4) != b"PAR1":
        raise SourceError(f"{file.name}: not Parquet, whatever its name says: it begins with {counted.peek(20)!r}")
    local: IO[bytes] | None = None
    try:
        if file.system is None:
            counted.drain()
        else:
            # Parquet is read from its end, in leaps: once over the network, then from here.
            copy = writer.target.with_suffix(".remote.part")
            local = copy.open("w+b")
            copy.unlink()
            shutil.copyfileobj(counted, local, CHUNK)
        with _parquet(file.name, local or stream) as table:
            raw = table.schema_arrow
            if doubled := sorted({name for name in raw.names if raw.names.count(name) > 1}):
                raise SourceError(f"{file.name}: has the column {doubled[0]} twice")
            names = writer.begin(raw, f"{file.name}: its columns")
            first = 1
            for batch in _sound(file.name, table.iter_batches(ARROW_ROWS, columns=names)):
                writer.write(_positioned(batch, file.name, first), file.name, file.period)
                first += len(batch)
    finally:
        if local is not None:
            local.close()


def _parquet(name: str, stream: IO[bytes]) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{name}: damaged Parquet: {_one_line(error)}; deliver it again") from error


def _sound(name: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    # Around the reading alone: an error of what is done with a batch is not the file's.
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{name}: damaged Parquet: {_one_line(error)}; deliver it again") from error
        if batch is None:
            return
        yield batch


def _positioned(batch: pa.RecordBatch, name: str, first: int) -> pa.RecordBatch:
    positions = [f"{name}:{n}" for n in range(first, first + len(batch))]
    return batch.append_column(POSITION, pa.array(positions, pa.string()))


def _masked(address: str) -> str:
    """An address without the user and password it may hold."""
    return re.sub(r"//[^/@]*@", "//***@", address)


def _one_line(error: BaseException) -> str:
    # Before it is cut: half a secret is one, too.
    text = redact(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


# --- SQL and Python --------------------------------------------------------------------------------------------------


def _land_sql(query: str, name: str, interval: Interval, engine: sa.Engine, writer: _Writer) -> None:
    statement = sa.text(query).bindparams(
        sa.bindparam("start", interval.start, sa.DateTime(timezone=True)),
        sa.bindparam("end", interval.end, sa.DateTime(timezone=True)),
    )
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection = connection.execution_options(postgresql_readonly=True)
                # So that columns without a zone compare with the bounds as UTC.
                connection.execute(sa.text("SET LOCAL TIME ZONE 'UTC'"))
            result = connection.execution_options(stream_results=True, max_row_buffer=SQL_ROWS).execute(statement)
            names = list(result.keys())
            if doubled := sorted({column for column in names if names.count(column) > 1}):
                raise SourceError(f"the query gives the column {doubled[0]} twice; name it by AS")
            takes = writer.takes(names)
            kept = [n for n, column in enumerate(names) if column in takes]
            types = [pa.null()] * len(kept)
            if engine.dialect.name == "postgresql":
                described = result.cursor.description
                types = [_POSTGRESQL.get(described[n][1], pa.null()) for n in kept]
            schema = pa.schema([(names[n], kind) for n, kind in zip(kept, types, strict=True)])
            first = 1
            for rows in result.partitions(SQL_ROWS):
                values = list(zip(*rows, strict=True))
                arrays = [_array(values[n], names[n], kind) for n, kind in zip(kept, types, strict=True)]
                batch = pa.record_batch(arrays, names=schema.names)
                if first == 1:
                    writer.begin(batch.schema, "the query")
                writer.write(_positioned(batch, name, first), "the query")
                first += len(rows)
            if first == 1:
                writer.begin(schema, "the query")
    except sa.exc.SQLAlchemyError as error:
        raise SourceError(f"the query failed: {_one_line(getattr(error, 'orig', None) or error)}") from error


#: The types of PostgreSQL's columns, by number, for those in which nothing has been seen yet.
_POSTGRESQL: dict[object, pa.DataType] = {
    16: pa.bool_(), 20: pa.int64(), 21: pa.int64(), 23: pa.int64(), 25: pa.string(), 700: pa.float64(), 701: pa.float64(),
    1042: pa.string(), 1043: pa.string(), 1082: pa.date32(), 1114: pa.timestamp("us"), 1184: pa.timestamp("us", "UTC"),
}  # fmt: skip


def _array(values: Sequence[Any], column: str, kind: pa.DataType) -> pa.Array:
    """A database's values of one column as an Arrow array; structures become JSON texts, UUIDs texts.

    Args:
        kind: the type if there are none.
    """
    sample = next((value for value in values if value is not None), None)
    if isinstance(sample, UUID):
        values = [None if value is None else str(value) for value in values]
    elif isinstance(sample, dict | list):
        values = [None if value is None else json.dumps(value, default=str) for value in values]
    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise SourceError(f"the query's column {column} is of no one type; CAST it: {_one_line(error)}") from error
    if pa.types.is_null(array.type):
        return array.cast(kind)
    if pa.types.is_timestamp(array.type) and array.type.tz is not None:
        return array.cast(pa.timestamp("us", "UTC"))
    return array


def _land_python(folder: ModelFolder, reference: str, name: str, interval: Interval, writer: _Writer) -> None:
    function = folder_function(folder, reference)
    try:
        given = function(interval.start.astimezone(UTC), interval.end.astimezone(UTC))
        if not hasattr(given, "__arrow_c_stream__"):
            raise SourceError(f"{reference} gives a {type(given).__name__}; an Arrow table or record batch reader is wanted")
        reader = pa.RecordBatchReader.from_stream(given)
        raw = reader.schema
        if doubled := sorted({column for column in raw.names if raw.names.count(column) > 1}):
            raise SourceError(f"{reference} gives the column {doubled[0]} twice")
        names = writer.begin(raw, reference)
        first = 1
        for batch in reader:
            for offset in range(0, len(batch), ARROW_ROWS):
                piece = batch.slice(offset, ARROW_ROWS).select(names)
                writer.write(_positioned(piece, name, first), reference)
                first += len(piece)
    except PerennialError:
        raise
    except Exception as error:  # the team's code may raise anything
        raise SourceError(f"{reference} raised {type(error).__name__}: {_one_line(error)}") from error
