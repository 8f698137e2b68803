"""What benchmarks work on: the flights of 2013, repeated as those of later years, so that rows stay distinct.

Years lie 365 days apart in the lake; a landing zone has calendar years, and repeats 28 February on the 29th, since a day
without a file is a fault. What takes long to prepare is kept in ``.bench/`` and made once; ``make bench`` begins anew.
"""

from __future__ import annotations

import fcntl
import gzip
import re
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from perennial import by_hand
from perennial.deployment import Deployment
from perennial.example import DAYS, write_landing_zone
from perennial.intervals import Interval
from perennial.lake import TableWrite
from perennial.ledger import Ledger
from perennial.settings import PROJECT, read_settings

KEPT = PROJECT / ".bench"
MODEL = "flight_delay"
#: Flights of a copy.
FLIGHTS = 336_776
YEAR = timedelta(days=365)
#: When the champion is trained; its interval for scoring begins then at the earliest.
TRAINED_AT = datetime(2013, 7, 1, tzinfo=UTC)
_COPIED = re.compile(r"(?m)^((?:[A-Z]{3},)?)2013,")


def span(years: int) -> Interval:
    """The interval of so many copies."""
    return Interval(DAYS.start, DAYS.start + years * YEAR)


def environment(state: Path) -> dict[str, str]:
    """Variables of a deployment that lies in a folder with its models and its landing zone."""
    return {"PERENNIAL_STATE": str(state), "PERENNIAL_MODELS": str(state / "models"), "PERENNIAL_DATA": str(state / "data")}


def deployment(state: str | Path) -> Deployment:
    return Deployment(read_settings(environment(Path(state))))


def made(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of :data:`KEPT` that is made once; others who want it wait.

    It is made where it stays, since a lake knows its own address; a mark beside it tells that it is whole.
    """
    KEPT.mkdir(exist_ok=True)
    folder, mark = KEPT / name, KEPT / f"{name}.made"
    with (KEPT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.exists():
            print(f"preparing {name} …", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            mark.touch()
    return folder


def landing_zone(years: int) -> Path:
    """A file a day of flights and of weather, and the aircraft, as in the example's landing zone."""

    def make(folder: Path) -> None:
        write_landing_zone(folder, DAYS)
        for kind in ("flights", "weather"):
            for file in sorted((folder / kind).glob("2013-*.csv.gz")):
                text = gzip.decompress(file.read_bytes()).decode()
                for year in range(2014, 2013 + years):
                    _copy(text, file, f"{year}{file.name[4:10]}")
                    if file.name.startswith("2013-02-28") and _is_leap(year):
                        _copy(text, file, f"{year}-02-29")

    return made(f"landing-{years}", make)


def _copy(text: str, file: Path, day: str) -> None:
    """The file of a day as that of another; its flights' own date is another too, since their key holds it."""
    year = day[:4]
    shifted = _COPIED.sub(rf"\g<1>{year},", text).replace(",2013-", f",{year}-")
    if day.endswith("02-29"):
        shifted = re.sub(rf"(?m)^((?:[A-Z]{{3}},)?){year},2,2[78],", rf"\g<1>{year},2,29,", shifted)
        shifted = shifted.replace(f",{year}-02-28", f",{year}-02-29")
    file.with_name(f"{day}.csv.gz").write_bytes(gzip.compress(shifted.encode(), compresslevel=1, mtime=0))


def _is_leap(year: int) -> bool:
    return (date(year, 3, 1) - date(year, 2, 28)).days == 2


def new_deployment(state: Path, data: Path | None = None) -> Deployment:
    """A deployment with the example model, and nothing ingested."""
    state.mkdir(parents=True, exist_ok=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "include" / "models" / MODEL, state / "models" / MODEL, ignore=ignored)
    if data is not None:
        (state / "data").symlink_to(data)
    parts = deployment(state)
    Ledger(parts.settings.database_url).migrate()
    return parts


def flights(years: int) -> Path:
    """State of a deployment with a champion and published features of so many years.

    The first year goes through ingestion; the other years' features are its own, with shifted times and keys.
    """

    def make(folder: Path) -> None:
        parts = new_deployment(folder, landing_zone(1))
        by_hand.ingest(parts.settings, MODEL, DAYS)
        told = by_hand.train(parts.settings, MODEL, TRAINED_AT)
        assert told.endswith("is champion"), told
        if years > 1:
            _repeat_features(parts, years)

    return made(f"flights-{years}", make)


def _repeat_features(parts: Deployment, years: int) -> None:
    folder, lake, ledger = parts.model(MODEL), parts.lake, parts.ledger
    published = ledger.published(MODEL, "features")
    assert published is not None
    event_time = folder.spec.event_time
    with lake.scan(MODEL, "features", published.snapshots["features"]) as reader:
        first = reader.read_all()
    for number in range(1, years):
        interval = Interval(DAYS.start + number * YEAR, DAYS.start + (number + 1) * YEAR)
        rows = shifted(first, number, key="flight_id")
        order = ledger.next_order(MODEL, "features", interval, "benchmark")
        lake.publish(
            model=MODEL, dataset="features", interval=interval, order=order, run_id="benchmark", inputs=published.inputs,
            tables={"features": TableWrite(rows.to_reader, event_time, rows.schema)},
        )  # fmt: skip


def shifted(rows: pa.Table, years: int, *, key: str) -> pa.Table:
    """Rows with all moments later by so many times 365 days, and a key of their own that is as long."""
    for place, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            moved = pc.add(rows.column(place), pa.scalar(years * YEAR, pa.duration("us")))
            rows = rows.set_column(place, field, moved.cast(field.type))
        elif field.name == key:
            rest = pc.utf8_slice_codeunits(rows.column(place), 4)
            rows = rows.set_column(place, field, pc.binary_join_element_wise(str(2013 + years), rest, ""))
    return rows
