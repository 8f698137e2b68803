"""What benchmarks work on: the flights of 2013, repeated as those of later years, so that rows stay distinct.

Years lie 365 days apart in the lake; a landing zone has calendar years, and repeats 28 February on the 29th, since a day
without a file is a fault. What takes long to prepare is kept in ``.bench/`` and made once; ``make bench`` begins anew.
"""

from __future__ import annotations

import fcntl
import gzip
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from perennial.cli import by_hand
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT, Settings, read_settings
from perennial.demo.example_data import DAYS, write_landing_zone
from perennial.deployment import Deployment
from perennial.ingestion import publish
from perennial.ingestion.checks import CheckResult
from perennial.lake.publish import TableWrite
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder

KEPT = PROJECT / ".bench"
MODEL = "flight_delay"
#: Flights of a copy.
FLIGHTS = 336_776
YEAR = timedelta(days=365)
#: When the champion is trained; its interval for scoring begins then at the earliest.
TRAINED_AT = datetime(2013, 7, 1, tzinfo=UTC)
_COPIED = re.compile(r"(?m)^((?:[A-Z]{3},)?)2013,")


def span(years: int, first: int = 0) -> Interval:
    """The interval of so many copies, beginning with that of a number; 0 is the year itself."""
    return Interval(DAYS.start + first * YEAR, DAYS.start + (first + years) * YEAR)


def environment(state: Path) -> dict[str, str]:
    """Variables of a deployment that lies in a folder with its models and its landing zone."""
    return {"PERENNIAL_STATE": str(state), "PERENNIAL_MODELS": str(state / "models"), "PERENNIAL_DATA": str(state / "data")}


def deployment(state: str | Path) -> Deployment:
    return Deployment(read_settings(environment(Path(state))))


def made(name: str, make: Callable[[Path], Any]) -> Path:
    """A folder of :data:`KEPT` that is made once; a process that needs it meanwhile waits.

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
    """One file per day of flights and of weather, and the aircraft, as in the example's landing zone."""

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


def change_spec(state: Path, old: str, new: str) -> None:
    """Put other words into the ``model.yaml`` of a deployment that :func:`new_deployment` made."""
    file = state / "models" / MODEL / "model.yaml"
    text = file.read_text()
    assert old in text, f"the example does not say {old!r} any more"
    file.write_text(text.replace(old, new))


def train_on(state: Path, window: str) -> None:
    """Let the example of a deployment learn from a longer window, such as ``330d``."""
    change_spec(state, "training: {holdout", f"training: {{window: {window}, holdout")


def land_and_check(parts: Deployment, folder: ModelFolder, table: str, interval: Interval, staging: Path) -> CheckResult:
    """:func:`perennial.ingestion.publish.land_and_check` for the example, which has no source that is a database."""

    def connect(name: str) -> Any:
        raise LookupError(name)

    return publish.land_and_check(
        folder, parts.lake, parts.settings, table, interval, staging, connect=connect, run_id="benchmark"
    )


def train_champion(settings: Settings, as_of: datetime) -> None:
    """Train for the first time; what comes of it must become champion."""
    told = by_hand.train(settings, MODEL, as_of)
    assert told.endswith("is champion"), told


def flights() -> Path:
    """State of a deployment with a year of flights, published with their features, and a champion."""
    return made("flights-1", with_champion)


def with_champion(folder: Path) -> Deployment:
    """A new deployment like that of :func:`flights`, for those that add to it."""
    parts = new_deployment(folder, landing_zone(1))
    by_hand.ingest(parts.settings, MODEL, DAYS)
    train_champion(parts.settings, TRAINED_AT)
    return parts


def read(
    parts: Deployment, dataset: str, table: str = "", *, columns: Sequence[str] | None = None, interval: Interval | None = None
) -> pa.Table:
    """Published rows of a dataset, which is a table too unless another of its tables is named; in no particular order."""
    published, table = parts.ledger.published(MODEL, dataset), table or dataset
    assert published is not None
    with parts.lake.scan(MODEL, table, published.snapshots[table], columns=columns, interval=interval) as rows:
        return rows.read_all()


def repeat(source: Deployment, target: Deployment, dataset: str, copies: Iterable[int], *, tables: Sequence[str] = ()) -> None:
    """Publish a deployment's one year of a dataset as that of other years, there or in another deployment.

    Args:
        source: has the year, and nothing else of the dataset.
        target: where they are published.
        dataset: its name.
        copies: by how many years each copy is later; 0 is the year as it is.
        tables: those of the dataset; by default the one that is called like it.
    """
    published, present = source.ledger.published(MODEL, dataset), target.ledger.published(MODEL, "tables")
    assert published is not None
    inputs = dict(published.inputs)
    if "publication" in inputs and present is not None:
        # Features that were made from other tables than those that are there would be made again.
        inputs["publication"] = present.id
    year = {table: read(source, dataset, table) for table in tables or [dataset]}
    event_time = target.model(MODEL).spec.event_time
    for copy in copies:
        interval = span(1, copy)
        rows = {table: shifted(one, copy) for table, one in year.items()}
        target.lake.publish(
            model=MODEL, dataset=dataset, interval=interval, run_id="benchmark", inputs=inputs,
            order=target.ledger.next_order(MODEL, dataset, interval, "benchmark"),
            tables={table: TableWrite(one.to_reader, event_time, one.schema) for table, one in rows.items()},
        )  # fmt: skip


def shifted(rows: pa.Table, years: int) -> pa.Table:
    """Rows with all moments later by so many times 365 days, and a ``flight_id`` of their own that is as long."""
    for place, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            moved = pc.add(rows.column(place), pa.scalar(years * YEAR, pa.duration("us")))
            rows = rows.set_column(place, field, moved.cast(field.type))
        elif field.name == "flight_id":
            rest = pc.utf8_slice_codeunits(rows.column(place), 4)
            rows = rows.set_column(place, field, pc.binary_join_element_wise(str(2013 + years), rest, ""))
    return rows
