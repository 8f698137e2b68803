"""Sources that are files: find them by their pattern, open them safely, read CSV or Parquet, and land the rows.

A pattern with time codes is expanded over the interval in steps of its smallest code (``%H`` hour, ``%d`` day, ``%m`` month,
``%Y`` year). Each step must have a file, and the event time of a row must lie in the period of its file. So the days of a
week hold the same rows whether they are ingested one by one or together. A pattern without codes means all files that match.
The interval's rows are then chosen by event time. By the source's ``time_zone`` steps are local: a day in UTC is read from the
two local days that it touches.

A local file must be a regular file below the data folder, also after symbolic links are resolved. A hard link to a file
elsewhere cannot be told from a file. It must not change while it is read. The name of a file decides between CSV, JSON lines
and Parquet, and its content between gzip, zstd and plain text. The names of its folders may give columns:
``day=2013-04-01/``. A dated file gives the column ``file_time``: when its period begins.

Neighbours: :mod:`perennial.ingestion.delimited` reads CSV, :mod:`perennial.ingestion.json_lines` reads JSON lines.
:mod:`perennial.ingestion.landing` writes the landed files.
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
from datetime import UTC, datetime, timedelta, tzinfo
from glob import glob
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from perennial.core.errors import SourceError, SourceMissing
from perennial.core.files import open_below
from perennial.core.intervals import Interval
from perennial.core.text import one_line
from perennial.ingestion.delimited import CHUNK, DelimitedFile
from perennial.ingestion.json_lines import JsonLines
from perennial.ingestion.landing import ARROW_ROWS, LandingWriter, positioned
from perennial.spec.data import Source

#: A compressed file is refused if it expands to more than this many times its size, and to more than ``BOMB_FROM`` bytes.
BOMB_RATIO = 250
BOMB_FROM = 256 << 20

#: The column that a table can take from a dated pattern: the time that its codes stand for.
FILE_TIME = "file_time"

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
        path: its path in ``system``, or below ``root``.
        root: the data folder; None for a file of ``system``.
        system: an fsspec file system; None for the local file system.
        size: in bytes, if the file system gives it.
        time: when the period begins, as the source's clock shows it; None without a period.
    """

    name: str
    period: Interval | None
    path: str
    root: Path | None
    system: Any
    size: int | None
    time: str | None

    @property
    def partitions(self) -> dict[str, str | None]:
        """What the file's place says: :data:`FILE_TIME`, and ``day`` of ``day=2013-04-01/``, as Hive and Spark write it."""
        found = {FILE_TIME: self.time} if self.time is not None else {}
        found |= {unquote(name): unquote(value) for name, value in _PARTITION.findall(self.name)}
        return {name: None if value == "__HIVE_DEFAULT_PARTITION__" else value for name, value in found.items()}


def land_files(
    source: Source,
    interval: Interval,
    data: Path,
    writer: LandingWriter,
    files: list[dict[str, Any]],
    notices: list[str],
    *,
    closed: Callable[[Interval], bool],
    further: Sequence[Interval] = (),
    may_be_absent: bool = False,
) -> list[Interval]:
    """Land the rows of all files of an interval.

    Args:
        source: a source with ``files``.
        interval: the interval.
        data: the folder that relative patterns start from.
        writer: takes the rows.
        files: gets one entry per file that was read: ``name``, ``bytes``, ``sha256``, ``version`` (:func:`versions`), and
            ``period`` of a dated pattern.
        notices: gets what was accepted but is unusual.
        closed: whether a period needs no file (``schedules.closed``).
        further: other intervals whose files are read too, as far as they exist; for a dated pattern.
        may_be_absent: whether steps of a dated pattern may be without a file, as long as one of all steps has one.

    Returns:
        The steps of the interval without a file.

    Raises:
        SourceMissing: there is no file of a step.
        SourceError: a file is missing, unsafe, damaged, or lacks a column.
    """
    assert source.files is not None
    found, absent = _all_files(source, interval, data, further, closed)
    if absent and (not may_be_absent or not found):
        raise next(iter(absent.values()))
    for file in _without_copies(found, notices):
        with _opened(file) as stream:
            counted = _Counted(file.name, stream)
            if file.path.endswith(".parquet"):
                _read_parquet(file, stream, counted, writer)
            else:
                _read_text(file, counted, source, writer, notices)
            read = {"name": file.name, "bytes": counted.bytes, "sha256": counted.digest.hexdigest()}
            read["version"] = _stamp(_version(file, stream))
            files.append({**read, "period": file.period.key} if file.period else read)
    return [period for period in absent if period is not None]


def versions(source: Source, interval: Interval, data: Path) -> dict[str, tuple[Interval | None, str]]:
    """The period and the version of each file of an interval, by the file's name. Without dates, a file has no period.

    The version is a text that changes if the file is replaced. It is made from the size and the time of change, or from what
    the store of objects says instead, such as the ETag.

    Raises:
        SourceError: a place cannot be listed.
    """
    assert source.files is not None
    found, _ = _all_files(source, interval, data, (), closed=lambda _: True)
    return {file.name: (file.period, _stamp(_unopened_version(file))) for file in found}


def is_dated(source: Source) -> bool:
    """Whether the source is files whose pattern has time codes."""
    return source.files is not None and _TIME_CODES.search(source.files) is not None


def _all_files(
    source: Source, interval: Interval, data: Path, further: Sequence[Interval], closed: Callable[[Interval], bool]
) -> tuple[list[_File], dict[Interval | None, SourceMissing]]:
    """The files of an interval and of further ones, each once; and by its period an error for each step without its file."""
    assert source.files is not None
    zone = ZoneInfo(source.time_zone) if source.time_zone else UTC
    found: list[_File] = []
    absent: dict[Interval | None, SourceMissing] = {}
    steps: set[tuple[str, Interval | None]] = set()
    for span in (interval, *further):
        for pattern, period in _expand(source.files, span, zone):
            if (pattern, period) in steps:
                continue
            steps.add((pattern, period))
            optional = period is not None and closed(_on_calendar(period, zone))
            try:
                found += _find(pattern, period, data, source, optional=optional)
            except SourceMissing as error:
                if span == interval:
                    absent[period] = error
    return found, absent


def _stamp(version: object) -> str:
    return hashlib.sha256(repr(version).encode()).hexdigest()[:16]


def _unopened_version(file: _File) -> object:
    if file.system is not None:
        return _version(file, None)
    state = os.stat(_place(file))
    return state.st_size, state.st_mtime_ns


def _expand(pattern: str, interval: Interval, zone: tzinfo = UTC) -> list[tuple[str, Interval | None]]:
    """The pattern for each step that the interval touches, with the period of the step.

    Args:
        pattern: with time codes.
        interval: the interval.
        zone: whose clocks the time codes stand for. An hour that they show twice is one step, an hour that they skip is none.
    """
    codes = set(_TIME_CODES.findall(pattern))
    if not codes:
        return [(pattern, None)]
    step = next(code for code in ("%H", "%d", "%m", "%Y") if code in codes)
    shown = interval.start.astimezone(zone).replace(tzinfo=None, fold=0, minute=0, second=0, microsecond=0)
    if step != "%H":
        shown = shown.replace(hour=0)
    if step in ("%m", "%Y"):
        shown = shown.replace(day=1)
    if step == "%Y":
        shown = shown.replace(month=1)
    steps: list[tuple[str, Interval | None]] = []
    while (start := _moment(shown, zone)) < interval.end:
        following = _next_step(shown, step)
        end = _moment(following, zone)
        if max(start, interval.start) < end:
            steps.append((_at(pattern, shown), Interval(start, end)))
        shown = following
    return steps


def _on_calendar(period: Interval, zone: tzinfo) -> Interval:
    """The period as the clocks of a zone show it, written as if in UTC."""
    start, end = (moment.astimezone(zone).replace(tzinfo=UTC, fold=0) for moment in (period.start, period.end))
    return Interval(start, end)


def _moment(shown: datetime, zone: tzinfo) -> datetime:
    """The first moment at which the clocks show a time, or at which they skip it."""
    return shown.replace(tzinfo=zone, fold=0).astimezone(UTC)


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


def _find(pattern: str, period: Interval | None, data: Path, source: Source, *, optional: bool = False) -> list[_File]:
    magic = "*" in pattern or "?" in pattern
    system, path = None, pattern
    zone = ZoneInfo(source.time_zone) if source.time_zone else UTC
    time = f"{_on_calendar(period, zone).start:%Y-%m-%d %H:%M:%S}" if period is not None else None
    if "://" in pattern:
        try:
            system, path = fsspec.core.url_to_fs(pattern)
        except (ImportError, ValueError) as error:
            raise SourceError(f"{_masked(pattern)}: no file system for this address: {error}") from error
    if system is None:
        # Only * and ? are special in a pattern. glob would read brackets as a set of letters.
        names = sorted(glob(path.replace("[", "[[]"), root_dir=data)) if magic else [path]
        found = [_File(name, period, name, data, None, None, time) for name in names if os.path.lexists(data / name)]
        for file in found:
            if not file.name.isprintable():
                raise SourceError(f"{file.name!a}: the file name has characters that cannot be shown; rename the file")
            _place(file)
    else:
        try:
            system.invalidate_cache()
            names = sorted(system.glob(path)) if magic else [path] if system.exists(path) else []
            found = [
                _File(_masked(str(system.unstrip_protocol(name))), period, name, None, system, system.size(name), time)
                for name in names
            ]
        except Exception as error:  # each file system raises its own errors
            raise SourceError(f"{_masked(pattern)}: cannot be listed: {one_line(error)}") from error
    if not found and not optional:
        when = f" for {period}" if period else ""
        when += f", by the clocks of {source.time_zone}" if period and source.time_zone else ""
        hint = f" (`files: {_masked(str(source.files))}`{when})"
        base = "" if "://" in pattern else f" below {data}"
        raise SourceMissing(f"{_masked(pattern)}: there is no such file{base}{hint}; deliver it, then ingest again")
    return found


def _place(file: _File) -> Path:
    """Where a local file really is, all links followed.

    Raises:
        SourceError: it is outside of the data folder, cannot be read, or is no regular file.
    """
    assert file.root is not None
    try:
        resolved = (file.root / file.path).resolve(strict=True)
        kind = resolved.stat()
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{file.name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not resolved.is_relative_to(file.root.resolve()):
        raise SourceError(f"{file.name}: it leads out of the data folder {file.root}; put the file itself there")
    if not stat.S_ISREG(kind.st_mode):
        raise SourceError(f"{file.name}: this is a {_kind_of(kind.st_mode)}, not a regular file; put a file there")
    return resolved


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _without_copies(files: Sequence[_File], notices: list[str]) -> Iterator[_File]:
    """The files, without those of an undated pattern that have the same content as an earlier file.

    Otherwise each row would be doubled.
    """
    sizes: dict[int, list[_File]] = {}
    for file in files:
        size = _place(file).stat().st_size if file.root is not None else file.size
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
        if file.root is not None:
            # A link or a FIFO that has replaced the file since it was looked at is not opened.
            data = file.root.resolve()
            descriptor = open_below(data, _place(file).relative_to(data).parts)
            opened: Any = os.fdopen(descriptor, "rb", buffering=0)
        else:
            opened = file.system.open(file.path, "rb")
    except SourceError:
        raise
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


#: How file systems of fsspec name what identifies a file's content, the best first: a mark of the content, or the time of
#: change. What fsspec makes of all they say (``ukey``) changes with copies of the same content, and over HTTP it never does.
_MARKS = ("etag", "generation", "lastmodified", "last_modified", "updated", "mtime", "modified", "modificationtime", "created")


def _version(file: _File, opened: Any) -> object:
    """A value that changes if the content of the file changes."""
    if file.system is not None:
        try:
            file.system.invalidate_cache()
            said = {name.casefold().replace("-", "_"): value for name, value in file.system.info(file.path).items()}
            mark = next((said[name] for name in _MARKS if said.get(name)), None)
            return file.system.ukey(file.path) if mark is None else (said.get("size"), str(mark))
        except Exception as error:  # each file system raises its own errors
            raise SourceError(f"{file.name}: the file is gone: {one_line(error)}") from error
    state = os.fstat(opened.fileno())
    if not stat.S_ISREG(state.st_mode):
        raise SourceError(f"{file.name}: this is a {_kind_of(state.st_mode)}, not a regular file; put a file there")
    return state.st_size, state.st_mtime_ns


_PARTITION = re.compile(r"([^=/]+)=([^/]*)/")


class _Counted:
    """A stream that counts and hashes its bytes, and allows a look at the first ones."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self.bytes = 0
        self.closed = False  # PyArrow asks
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

    def close(self) -> None:
        """Who opened the stream closes it."""

    def drain(self) -> None:
        while self._take(CHUNK):
            pass


def _read_text(file: _File, counted: _Counted, source: Source, writer: LandingWriter, notices: list[str]) -> None:
    """Land a file of texts, CSV or JSON lines, which may be compressed."""
    read: Callable[[int], bytes] = counted.read
    said = {".gz": "gzip", ".zst": "zstd"}.get(Path(file.path).suffix, _PLAIN)
    found = _PLAIN
    if counted.peek(2) == b"\x1f\x8b":
        found, read = "gzip", _unzipped(file.name, counted)
    elif counted.peek(4) == b"\x28\xb5\x2f\xfd":
        found, read = "zstd", _unpacked(file.name, counted)
    if found != said:
        notices.append(f"{file.name}: read as {found}: the content says so, although the name does not")
    kind = Path(file.path.removesuffix(".gz").removesuffix(".zst")).suffix
    if kind in (".jsonl", ".ndjson"):
        _read_json_lines(file, read, source, writer)
    else:
        _read_csv(file, read, "\t" if kind == ".tsv" and source.delimiter == "," else source.delimiter, source, writer, notices)
    counted.drain()


_PLAIN = "plain text"


def _read_csv(
    file: _File,
    read: Callable[[int], bytes],
    delimiter: str,
    source: Source,
    writer: LandingWriter,
    notices: list[str],
) -> None:
    table = DelimitedFile(read, name=file.name, delimiter=delimiter, encoding=source.encoding, null_values=source.null_values)
    place = f"{file.name}:{table.header_line}"
    raw = pa.schema([(name, pa.string()) for name in table.header if name])
    names, partitions = _begin(file, raw, place, writer)
    for batch in table.batches([name for name in names if name not in partitions]):
        writer.write(_with_constants(batch, partitions), file.period)
    notices.extend(table.notices)


def _read_json_lines(file: _File, read: Callable[[int], bytes], source: Source, writer: LandingWriter) -> None:
    partitions: dict[str, str | None] = {}
    seen: dict[str, None] = {}

    def choose(keys: list[str]) -> tuple[list[str], list[str]]:
        seen.update(dict.fromkeys(keys))
        # A key that no line has had may be in the next one. Until then its value is missing.
        names = [*seen, *writer.unnamed([*seen, *file.partitions])]
        chosen, given = _begin(file, pa.schema([(name, pa.string()) for name in names]), file.name, writer)
        partitions.clear()
        partitions.update(given)
        columns = [name for name in chosen if name not in given]
        return columns, writer.texts(columns)

    lines = JsonLines(read, name=file.name, decimal=source.decimal)
    for batch in lines.batches(choose):
        writer.write(_with_constants(batch, partitions), file.period)
    if lines.blank:  # no rows: the table's checks say whether that may be
        seen.update(dict.fromkeys(writer.expected()))
    if not seen:
        raise SourceError(f"{file.name}: has no JSON object; write one object per line")
    _begin(file, pa.schema([(name, pa.string()) for name in seen]), file.name, writer)


def _begin(file: _File, raw: pa.Schema, place: str, writer: LandingWriter) -> tuple[list[str], dict[str, str | None]]:
    """The columns that are landed of a file, and those of them whose value the file's folders give."""
    own = {name.casefold() for name in raw.names}
    added = [name for name in writer.takes(list(file.partitions)) if name.casefold() not in own]
    names = writer.begin(pa.schema([*raw, *(pa.field(name, pa.string()) for name in added)]), place)
    return names, {name: file.partitions[name] for name in added}


def _with_constants(batch: pa.RecordBatch, constants: dict[str, str | None]) -> pa.RecordBatch:
    for name, value in constants.items():
        batch = batch.append_column(name, pa.repeat(pa.scalar(value, pa.string()), len(batch)))
    return batch


def _unpacked(name: str, counted: _Counted) -> Callable[[int], bytes]:
    stream = pa.CompressedInputStream(pa.PythonFile(counted, mode="r"), "zstd")

    def read(size: int) -> bytes:
        try:
            piece: bytes = stream.read(size)
        except OSError as error:
            raise SourceError(f"{name}: damaged or truncated zstd: {one_line(error)}; deliver it again") from error
        return piece

    return _bounded(name, counted, read)


def _unzipped(name: str, counted: _Counted) -> Callable[[int], bytes]:
    stream = gzip.GzipFile(fileobj=counted, mode="rb")  # type: ignore[call-overload]  # it only calls read()

    def read(size: int) -> bytes:
        try:
            piece: bytes = stream.read(size)
        except EOFError as error:
            raise SourceError(f"{name}: truncated: its gzip ends early; deliver it again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise SourceError(f"{name}: damaged: {error}; deliver it again") from error
        return piece

    return _bounded(name, counted, read)


def _bounded(name: str, counted: _Counted, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Reads what is unpacked, and refuses a file that expands too far."""
    given = 0

    def bounded(size: int) -> bytes:
        nonlocal given
        piece = read(size)
        given += len(piece)
        if given > BOMB_FROM and given > BOMB_RATIO * counted.bytes:
            raise SourceError(
                f"{name}: it expands to more than {BOMB_RATIO} times its size; if that is right, deliver it as Parquet"
            )
        return piece

    return bounded


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
            names, partitions = _begin(file, raw, f"{file.name}: its columns", writer)
            own = [name for name in names if name not in partitions]
            first = 1
            for batch in _sound(file.name, table.iter_batches(ARROW_ROWS, columns=own)):
                writer.write(_with_constants(positioned(batch, file.name, first), partitions), file.period)
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
