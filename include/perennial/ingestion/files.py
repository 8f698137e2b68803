"""Sources that are files: find them by their pattern, open them safely, read CSV or Parquet, and land the rows.

A pattern with time codes is expanded over the interval in steps of its smallest code (``%H`` hour, ``%d`` day, ``%m`` month,
``%Y`` year). Each step must have a file, and the event time of a row must lie in the period of its file. So the days of a
week hold the same rows whether they are ingested one by one or together. A pattern without codes means all files that match.
The interval's rows are then chosen by event time.

A local file must be a regular file below the data folder, also after symbolic links are resolved. It must not change while
it is read. The name of a file decides between CSV and Parquet, and its content between gzip and plain text.

Neighbours: :mod:`perennial.ingestion.delimited` reads CSV. :mod:`perennial.ingestion.landing` writes the landed file.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from glob import glob
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from perennial.core.errors import SourceError
from perennial.core.intervals import Interval
from perennial.core.text import one_line
from perennial.ingestion.delimited import CHUNK, DelimitedFile
from perennial.ingestion.landing import ARROW_ROWS, LandingWriter, positioned
from perennial.spec.data import Source

#: A gzip file is refused if it expands to more than this many times its size, and to more than ``BOMB_FROM`` bytes.
BOMB_RATIO = 250
BOMB_FROM = 256 << 20

_TIME_CODES = re.compile(r"%[YmdH]")
#: What looks like a time code. A file's address may have %20 or %C3, which are none.
_LIKE_A_CODE = re.compile(r"%[A-Za-z]")
_ESCAPED = re.compile(r"%[0-9A-Fa-f]{2}")


@dataclass(frozen=True)
class _File:
    """A file that was found.

    Attributes:
        name: for messages and positions: a path below the data folder, or an address without credentials.
        period: the period of its rows, by a dated pattern; None without one.
        path: its path in ``system``.
        system: an fsspec file system; None for the local file system.
        size: in bytes, if the file system gives it.
    """

    name: str
    period: Interval | None
    path: str
    system: Any
    size: int | None


def land_files(
    source: Source,
    interval: Interval,
    data: Path,
    writer: LandingWriter,
    files: list[dict[str, Any]],
    notices: list[str],
    *,
    closed: Callable[[Interval], bool],
) -> None:
    """Land the rows of all files of an interval.

    Args:
        source: a source with ``files``.
        interval: the interval.
        data: the folder that relative patterns start from.
        writer: takes the rows.
        files: gets one entry per file that was read: ``name``, ``bytes``, ``sha256``, and ``period`` of a dated pattern.
        notices: gets what was accepted but is unusual.
        closed: whether a period needs no file (``schedules.closed``).

    Raises:
        SourceError: a file is missing, unsafe, damaged, or lacks a column.
    """
    assert source.files is not None
    found = [
        file
        for pattern, period in _expand(source.files, interval)
        for file in _find(pattern, period, data, source.files, optional=period is not None and closed(period))
    ]
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
    """The pattern for each step of the interval, with the period of the step."""
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


def unknown_codes(pattern: str) -> list[str]:
    """What looks like a time code in a pattern, and stands for no time here."""
    plain = _ESCAPED.sub("", _TIME_CODES.sub("", pattern)) if "://" in pattern else _TIME_CODES.sub("", pattern)
    return sorted(set(_LIKE_A_CODE.findall(plain)))


def _at(pattern: str, moment: datetime) -> str:
    # strftime is applied to each code alone: an address may contain other percent signs.
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


def _find(pattern: str, period: Interval | None, data: Path, written: str, *, optional: bool = False) -> list[_File]:
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
        # Only * and ? are special in a pattern. glob would read brackets as a set of letters.
        names = sorted(glob(path.replace("[", "[[]"), root_dir=root)) if magic else [path]
        found = [
            _File(name if root == data else f"file://{name}", period, str(root / name), None, None)
            for name in names
            if os.path.lexists(root / name)
        ]
        for file in found:
            if not file.name.isprintable():
                raise SourceError(f"{file.name!a}: the file name has characters that cannot be shown; rename the file")
            _refuse_outside(file, data if root == data else None)
    else:
        try:
            system.invalidate_cache()
            names = sorted(system.glob(path)) if magic else [path] if system.exists(path) else []
            found = [
                _File(_masked(str(system.unstrip_protocol(name))), period, name, system, system.size(name)) for name in names
            ]
        except Exception as error:  # each file system raises its own errors
            raise SourceError(f"{_masked(pattern)}: cannot be listed: {one_line(error)}") from error
    if not found and not optional:
        hint = f" (`files: {_masked(written)}` for {period})" if period else f" (`files: {_masked(written)}`)"
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
        raise SourceError(f"{file.name}: it leads out of the data folder {data}; put the file itself there")
    if not stat.S_ISREG(kind.st_mode):
        raise SourceError(f"{file.name}: this is a {_kind_of(kind.st_mode)}, not a regular file; put a file there")


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _without_copies(files: Sequence[_File], notices: list[str]) -> Iterator[_File]:
    """The files, without those of an undated pattern that have the same content as an earlier file.

    Otherwise each row would be doubled.
    """
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
    """The bytes of the file. On exit, check that the file has not changed since it was opened.

    Raises:
        SourceError: the file cannot be opened or read, or has changed.
    """
    try:
        if file.system is None:
            # O_NONBLOCK: without it, opening would wait for ever if a FIFO has replaced the file.
            resolved = Path(file.path).resolve(strict=True)
            descriptor = os.open(resolved, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            opened: Any = os.fdopen(descriptor, "rb", buffering=0)
        else:
            opened = file.system.open(file.path, "rb")
    except Exception as error:  # each file system raises its own errors
        raise SourceError(f"{file.name}: cannot be read: {one_line(error)}") from error
    with opened as stream:
        before = _version(file, opened)
        yield stream
        changed = _version(file, opened) != before
    if changed:
        raise SourceError(
            f"{file.name}: the file changed while it was read; write it under another name, and rename it when it is complete"
        )


def _version(file: _File, opened: Any) -> object:
    """A value that changes if the content of the file changes."""
    if file.system is not None:
        try:
            file.system.invalidate_cache()
            return file.system.ukey(file.path)
        except Exception as error:  # each file system raises its own errors
            raise SourceError(f"{file.name}: the file is gone: {one_line(error)}") from error
    state = os.fstat(opened.fileno())
    if not stat.S_ISREG(state.st_mode):
        raise SourceError(f"{file.name}: this is a {_kind_of(state.st_mode)}, not a regular file; put a file there")
    return state.st_size, state.st_mtime_ns


class _Counted:
    """A stream that counts and hashes its bytes, and allows a look at the first ones."""

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
        except Exception as error:  # each file system raises its own errors
            raise SourceError(f"{self._name}: cannot be read to its end: {one_line(error)}") from error
        self.bytes += len(given)
        self.digest.update(given)
        return given

    def drain(self) -> None:
        while self._take(CHUNK):
            pass


def _read_csv(file: _File, counted: _Counted, source: Source, writer: LandingWriter, notices: list[str]) -> None:
    is_gzip = counted.peek(2) == b"\x1f\x8b"
    read = _unzipped(file.name, counted) if is_gzip else counted.read
    if is_gzip != file.path.endswith(".gz"):
        notices.append(
            f"{file.name}: read as {'gzip' if is_gzip else 'plain text'}: the content says so, although the name does not"
        )
    table = DelimitedFile(
        read, name=file.name, delimiter=source.delimiter, encoding=source.encoding, null_values=source.null_values
    )
    place = f"{file.name}:{table.header_line}"
    raw = pa.schema([(name, pa.string()) for name in table.header if name])
    for batch in table.batches(writer.begin(raw, place)):
        writer.write(batch, file.period)
    counted.drain()
    notices.extend(table.notices)


def _unzipped(name: str, counted: _Counted) -> Callable[[int], bytes]:
    stream = gzip.GzipFile(fileobj=counted, mode="rb")  # type: ignore[call-overload]  # it only calls read()
    given = 0

    def read(size: int) -> bytes:
        nonlocal given
        try:
            piece: bytes = stream.read(size)
        except EOFError as error:
            raise SourceError(f"{name}: truncated: its gzip ends early; deliver it again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise SourceError(f"{name}: damaged: {error}; deliver it again") from error
        given += len(piece)
        if given > BOMB_FROM and given > BOMB_RATIO * counted.bytes:
            raise SourceError(
                f"{name}: it expands to more than {BOMB_RATIO} times its size; if that is right, deliver it as Parquet"
            )
        return piece

    return read


def _read_parquet(file: _File, stream: IO[bytes], counted: _Counted, writer: LandingWriter) -> None:
    if counted.peek(4) != b"PAR1":
        raise SourceError(f"{file.name}: not Parquet, although its name says so: it begins with {counted.peek(20)!r}")
    local: IO[bytes] | None = None
    try:
        if file.system is None:
            counted.drain()
        else:
            # Parquet is read from its end, at random positions. So the file is copied here first.
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
                writer.write(positioned(batch, file.name, first), file.period)
                first += len(batch)
    finally:
        if local is not None:
            local.close()


def _parquet(name: str, stream: IO[bytes]) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{name}: damaged Parquet: {one_line(error)}; deliver it again") from error


def _sound(name: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    # Only reading is guarded: an error in the use of a batch is not the fault of the file.
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{name}: damaged Parquet: {one_line(error)}; deliver it again") from error
        if batch is None:
            return
        yield batch


def _masked(address: str) -> str:
    """An address without its user and password."""
    return re.sub(r"//[^/@]*@", "//***@", address)
