"""Sources that are files: found by their pattern, opened safely, read as CSV or Parquet, and landed."""

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

#: How many times its size a gzip file may hold before it is taken for a bomb, once it has given ``BOMB_FROM`` bytes.
BOMB_RATIO = 250
BOMB_FROM = 256 << 20

_TIME_CODES = re.compile(r"%[YmdH]")


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


def land_files(
    source: Source,
    interval: Interval,
    data: Path,
    writer: LandingWriter,
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
            raise SourceError(f"{_masked(pattern)}: cannot be listed: {one_line(error)}") from error
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
        raise SourceError(f"{file.name}: cannot be read: {one_line(error)}") from error
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
            raise SourceError(f"{file.name}: is gone: {one_line(error)}") from error
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


def _read_parquet(file: _File, stream: IO[bytes], counted: _Counted, writer: LandingWriter) -> None:
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
                writer.write(positioned(batch, file.name, first), file.name, file.period)
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
    # Around the reading alone: an error of what is done with a batch is not the file's.
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{name}: damaged Parquet: {one_line(error)}; deliver it again") from error
        if batch is None:
            return
        yield batch


def _masked(address: str) -> str:
    """An address without the user and password it may hold."""
    return re.sub(r"//[^/@]*@", "//***@", address)
