"""What is seen in somebody's file."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd

from perennial.authoring.profile import look
from tests.unit.authoring.histories import events, half_hourly, hourly


def test_a_day_and_its_hour_become_one_time(tmp_path: Path) -> None:
    seen = look(hourly(tmp_path / "a.csv"), label="cnt")
    assert seen.time.sql == """(strptime("dteday", '%m/%d/%Y')) + to_hours("hr"::INT)"""
    assert seen.key == ("dteday",)
    assert (seen.step, seen.fewest, seen.most) == (pd.Timedelta(hours=1), 24, 24)
    assert "hr" not in seen.columns


def test_a_european_spreadsheet_is_read_as_it_is_meant(tmp_path: Path) -> None:
    seen = look(half_hourly(tmp_path / "a.csv"))
    assert (seen.dialect.delimiter, seen.dialect.encoding) == (";", "latin-1")
    assert (seen.dialect.decimal, seen.dialect.thousands) == (",", ".")
    assert set(seen.dialect.null_values) == {"", "n/a", "-9999"}
    assert seen.key == ("region", "zeitpunkt")
    assert seen.step == pd.Timedelta(minutes=30)
    assert {name: column.kind for name, column in seen.columns.items()} == {
        "region": "category", "last_mw": "float", "preis": "float", "prognose_g_te": "float",
    }  # fmt: skip
    assert 1000 <= (seen.columns["last_mw"].minimum or 0) < (seen.columns["last_mw"].maximum or 0) <= 2500
    assert (seen.columns["preis"].minimum or 0) >= 20
    assert seen.columns["preis"].missing > 0


def test_numbers_with_leading_zeros_are_texts(tmp_path: Path) -> None:
    seen = look(events(tmp_path / "a.csv.gz"))
    assert seen.columns["customer_id"].kind == "string"
    assert seen.key == ("customer_id",)
    assert not seen.is_series
    assert seen.has_offset
    assert seen.columns["country"].kind == "constant"
    assert seen.columns["spend"].kind == "float"
    assert seen.columns["spend"].missing > 0


def test_parquet_is_seen_as_the_same_rows_in_csv(tmp_path: Path) -> None:
    text = look(hourly(tmp_path / "a.csv"))
    pd.read_csv(tmp_path / "a.csv").to_parquet(tmp_path / "a.parquet")
    assert look(tmp_path / "a.parquet").columns == text.columns


def test_a_packed_file_is_seen_as_the_file_itself(tmp_path: Path) -> None:
    seen = look(half_hourly(tmp_path / "a.csv"))
    with gzip.open(tmp_path / "b.csv.gz", "wb") as packed:
        packed.write((tmp_path / "a.csv").read_bytes())
    assert look(tmp_path / "b.csv.gz").columns == seen.columns


def test_weekdays_without_rows_are_seen(tmp_path: Path) -> None:
    days = pd.bdate_range("2022-01-03", periods=400)
    pd.DataFrame({"day": days.strftime("%Y-%m-%d"), "demand": range(400)}).to_csv(tmp_path / "a.csv", index=False)
    assert look(tmp_path / "a.csv").missing_days == (6, 7)
