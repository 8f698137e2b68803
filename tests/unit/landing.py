"""A small model of trips, and the way from its files to published and quarantined rows, for tests of that boundary."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from perennial.core.errors import SourceError
from perennial.core.intervals import Interval
from perennial.ingestion.checks import CheckResult, check, ingest_writes
from perennial.ingestion.sources import Landed, land
from perennial.spec.folder import ModelFolder, read_model

DAY = Interval.day("2013-04-01")
SIX = datetime(2013, 4, 1, 6, tzinfo=UTC)
FILE = "trips/2013-04-01.csv"
PARQUET = {"files": "trips/%Y-%m-%d.parquet"}
HEADER = "id,begun,place,n,x\n"
#: What :func:`row` gives, as it is published.
GOOD = {"id": "a", "begun": SIX, "place": "EWR", "n": 1, "x": 0.5, "_known_at": SIX}

COLUMNS: dict[str, Any] = {
    "id": {"type": "string"},
    "begun": {"type": "timestamp"},
    "place": {"type": "string"},
    "n": {"type": "integer", "nullable": True},
    "x": {"type": "float", "nullable": True},
}


def row(id: str = "a", begun: str = "2013-04-01T06:00:00Z", place: str = "EWR", n: str = "1", x: str = "0.5") -> str:  # noqa: A002  # the column's name
    return f"{id},{begun},{place},{n},{x}\n"


def trips(
    path: Path,
    *,
    source: Mapping[str, Any] | None = None,
    table: Mapping[str, Any] | None = None,
    columns: Mapping[str, Any] | None = None,
    code: str = "",
    closed: Sequence[str] = (),
) -> ModelFolder:
    """The folder of a model ``trips`` below ``path``, whose parts may be given in another way."""
    spec: dict[str, Any] = {
        "name": "trips",
        "owner": "tests",
        "description": "Is a trip late?",
        "task": "binary_classification",
        "sources": {"files": dict(source or {"files": "trips/%Y-%m-%d.csv"})},
        "tables": {
            "trips": {
                "source": "files",
                "key": ["id"],
                "event_time": "begun",
                "known": "begun",
                "columns": {**COLUMNS, **(columns or {})},
                "tolerance": 0.75,
                **(table or {}),
            }
        },
        "entity": {"table": "trips", "as_of": "begun"},
        "features": {"numeric": ["one"]},
        "label": {"table": "trips", "sql": "n > 15"},
        "candidates": {"prior": {"estimator": "prior", "baseline": True}, "boosting": {"estimator": "gradient_boosting"}},
        "schedules": {"closed": list(closed)},
    }
    if spec["tables"]["trips"]["event_time"] is None:  # an entity needs one, so another table is that
        del spec["tables"]["trips"]["event_time"]
        spec["tables"]["asked"] = {
            "source": "files",
            "key": ["id"],
            "event_time": "begun",
            "known": "begun",
            "columns": COLUMNS,
        }
        spec["entity"]["table"] = "asked"
    folder = path / "models" / "trips"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(json.dumps(spec, ensure_ascii=False))
    (folder / "features.sql").write_text("SELECT id, 1 AS one FROM entities")
    (folder / "model.py").write_text(code)
    return read_model(folder)


def at(hour: int, day: int = 1) -> str:
    return f"2013-04-{day:02}T{hour:02}:00:00Z"


def typed(**columns: Any) -> pa.Table:
    rows = len(next(iter(columns.values()))) if columns else 1
    given = {
        "id": [f"r{n}" for n in range(rows)],
        "begun": pa.array([datetime(2013, 4, 1, 6, tzinfo=UTC)] * rows, pa.timestamp("us", "UTC")),
        "place": ["EWR"] * rows,
        "n": pa.array([1] * rows, pa.int64()),
        "x": [0.5] * rows,
    }
    return pa.table({**given, **columns})


def parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def write_parquet(path: Path, table: pa.Table, name: str = "trips/2013-04-01.parquet") -> None:
    (path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path / "data" / name)


def no_connection(name: str) -> NoReturn:
    raise AssertionError(f"a file was asked for, not the connection {name}")


@dataclass(frozen=True)
class Ingested:
    """What came of a table's interval, read back as the lake would read it."""

    landed: Landed
    result: CheckResult
    published: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.published]

    @property
    def faults(self) -> dict[str, list[str]]:
        """Reasons by position."""
        return {row["position"]: row["reasons"] for row in self.quarantined}


def ingest(
    folder: ModelFolder,
    path: Path,
    interval: Interval = DAY,
    *,
    table: str = "trips",
    connect: Any = no_connection,
    past_rows_per_day: float | None = None,
) -> Ingested:
    """Land and check a table's interval below ``path``, whose folder ``data`` holds the files."""
    staging = path / "staging"
    landed = Landed.from_json(land(folder, table, interval, staging, data=path / "data", connect=connect).to_json())
    result = check(folder, landed, interval, staging, past_rows_per_day=past_rows_per_day, docs=path / "docs", run_id="a run")
    assert CheckResult.from_json(result.to_json()) == result
    if result.refused:
        assert result.published is None
        assert result.rows_published == 0
        published = []
        quarantined = pq.read_table(result.quarantined).to_pylist()
    else:
        writes = ingest_writes(folder, [result])
        published = writes[table].data().read_all().to_pylist()
        quarantined = writes["quarantine"].data().read_all().to_pylist()
        assert result.rows_in == len(published) + len(quarantined)
    assert result.rows_quarantined == len(quarantined)
    assert not list(staging.glob("*.part"))
    return Ingested(landed, result, published, quarantined)


def write(path: Path, content: str | bytes, name: str = FILE) -> Path:
    """Put a file into the data folder below ``path``."""
    file = path / "data" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def sqlite(path: Path) -> sa.Engine:
    return sa.create_engine(f"sqlite:///{path / 'source.db'}", poolclass=sa.pool.NullPool)


def checked(path: Path, *rows: str, **model: Any) -> Ingested:
    write(path, HEADER + "".join(rows))
    return ingest(trips(path, **model), path)


def rejects(
    path: Path, message: str, *, error: type[Exception] = SourceError, connect: Any = no_connection, **model: Any
) -> None:
    """The source is rejected with this message, and nothing of it is left behind."""
    with pytest.raises(error) as raised:
        land(trips(path, **model), "trips", DAY, path / "staging", data=path / "data", connect=connect)
    assert message in str(raised.value)
    assert str(raised.value).startswith("trips, 2013-04-01, source files: ")
    assert list((path / "staging").iterdir()) == []
