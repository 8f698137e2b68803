"""From somebody's file to a model that trains: what is seen in the file, what is written, and that it lives."""

from __future__ import annotations

import gzip
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from perennial.authoring.draft import choose_label, task_of
from perennial.authoring.profile import look
from perennial.cli.starting import draft_model, rehearse
from perennial.core.errors import SpecError
from perennial.core.intervals import utc
from perennial.core.settings import PROJECT, Settings
from perennial.spec.folder import ModelFolder, read_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Boosters on a few rows; with more threads than free cores they would wait for each other most of the time."""
    with threadpool_limits(1):
        yield


@pytest.fixture
def place(settings: Settings, tmp_path: Path) -> Settings:
    """A deployment without models."""
    (tmp_path / "models").mkdir()
    return settings.model_copy(update={"models": tmp_path / "models"})


def hourly(file: Path, days: int = 40) -> Path:
    """Rented bikes by the hour: a day in the American way, the hour beside it, and a running number."""
    hours = pd.date_range("2011-01-01", periods=24 * days, freq="h")
    random = np.random.default_rng(1)
    count = 100 + 80 * np.sin(hours.hour / 24 * 6.28) + random.normal(0, 10, len(hours))
    pd.DataFrame(
        {
            "instant": range(1, len(hours) + 1),
            "dteday": [f"{hour.month}/{hour.day}/{hour.year}" for hour in hours],
            "hr": hours.hour,
            "holiday": (hours.dayofyear % 20 == 0).astype(int),
            "temp": random.uniform(0, 1, len(hours)).round(2),
            "cnt": count.round().astype(int),
        }
    ).to_csv(file, index=False)
    return file


def half_hourly(file: Path, days: int = 30) -> Path:
    """Electricity of two regions, as a European spreadsheet exports it."""
    times = pd.date_range("2023-05-01", periods=48 * days, freq="30min")
    random = np.random.default_rng(2)
    lines = ["Region;Zeitpunkt;Last (MW);Preis;Prognose-Güte"]
    for region in ("Süd", "Nord"):
        for at in times:
            load = f"{random.uniform(1000, 2500):,.1f}".translate(str.maketrans(",.", ".,"))
            price = "-9999" if random.random() < 0.02 else f"{random.uniform(20, 80):.2f}".replace(".", ",")
            quality = "n/a" if random.random() < 0.05 else f"{random.uniform(0, 1):.3f}".replace(".", ",")
            lines.append(";".join([region, f"{at:%d.%m.%Y %H:%M}", load, price, quality]))
    file.write_text("\n".join(lines), encoding="latin-1")
    return file


def events(file: Path, days: int = 60, a_day: int = 30) -> Path:
    """Customers who leave or stay: another one in each row, with leading zeros, and texts for what is missing."""
    random = np.random.default_rng(3)
    rows = days * a_day
    visits = random.integers(0, 40, rows)
    frame = pd.DataFrame(
        {
            "customerID": [f"{number:07d}" for number in range(rows)],
            "signedUpAt": [
                f"{day:%Y-%m-%dT%H:%M:%S}+00:00"
                for day in pd.date_range("2024-01-01", periods=rows, freq=f"{1440 // a_day}min")
            ],
            "plan": random.choice(["free", "pro", "team"], rows),
            "visits": visits,
            "spend": [("NA" if random.random() < 0.1 else f"{value:.2f}") for value in random.uniform(0, 90, rows)],
            "country": "DE",
            "churn": np.where(random.random(rows) < 1 / (1 + np.exp((visits - 20) / 5)), "yes", "no"),
        }
    )
    frame.to_csv(file, index=False, compression="gzip" if file.suffix == ".gz" else None)
    return file


def drafted(place: Settings, file: Path, **given: str | None) -> tuple[str, ModelFolder]:
    told = draft_model(place, "mine", file, **given)
    return told, read_model(place.models / "mine")


# --- what is seen ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["0", "1"], "binary_classification"),
        (["yes", "no"], "binary_classification"),
        (["a", "b", "c"], "multiclass_classification"),
        (["0", "1", "2"], "multiclass_classification"),
        ([f"{n}.5" for n in range(60)], "regression"),
        ([str(n) for n in range(60)], "regression"),
    ],
)
def test_the_label_says_which_task_it_is(tmp_path: Path, values: list[str], task: str) -> None:
    times = pd.date_range("2022-01-01", periods=240, freq="h").strftime("%Y-%m-%d %H:%M")
    pd.DataFrame({"at": times, "label": (values * 240)[:240]}).to_csv(tmp_path / "a.csv", index=False)
    assert task_of(choose_label(look(tmp_path / "a.csv"), "label")) == task


# --- what is refused -------------------------------------------------------------------------------------------------


def _without_time(file: Path) -> None:
    pd.DataFrame({"a": range(9), "label": range(9)}).to_csv(file, index=False)


def _twice(file: Path) -> None:
    pd.DataFrame({"at": ["2022-01-01", "2022-01-02", "2022-01-03"] * 3, "label": [1.5, 2.5, 3.5] * 3}).to_csv(file, index=False)


def _without_label(file: Path) -> None:
    pd.DataFrame({"at": pd.date_range("2022-01-01", periods=9).strftime("%Y-%m-%d"), "a": range(9)}).to_csv(file, index=False)


def _one_class(file: Path) -> None:
    pd.DataFrame({"at": pd.date_range("2022-01-01", periods=9).strftime("%Y-%m-%d"), "label": 1}).to_csv(file, index=False)


def _short(file: Path) -> None:
    pd.DataFrame({"at": pd.date_range("2022-01-01", periods=9).strftime("%Y-%m-%d"), "label": range(9)}).to_csv(
        file, index=False
    )


def _empty(file: Path) -> None:
    file.write_text("at,label\n")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_without_time, "name one by --time"),
        (_twice, "name those that do by --key"),
        (_without_label, "name the column to predict by --label"),
        (_one_class, "has one value only"),
        (_short, "bring a longer history"),
        (_empty, "has no rows below its header"),
    ],
)
def test_what_cannot_be_a_model_is_told_and_nothing_is_written(
    place: Settings, tmp_path: Path, make: Callable[[Path], None], told: str
) -> None:
    make(tmp_path / "a.csv")
    with pytest.raises(SpecError, match=re.escape(told)):
        draft_model(place, "mine", tmp_path / "a.csv")
    assert list(place.models.iterdir()) == []
    assert list(place.data.iterdir()) == []


def test_a_model_that_is_there_is_not_overwritten(place: Settings, tmp_path: Path) -> None:
    file = hourly(tmp_path / "a.csv")
    draft_model(place, "mine", file)
    before = (place.models / "mine" / "model.yaml").read_bytes()
    with pytest.raises(SpecError, match="exists already"):
        draft_model(place, "mine", file)
    assert (place.models / "mine" / "model.yaml").read_bytes() == before


@pytest.mark.parametrize("name", ["Mine", "my model", "../mine"])
def test_a_name_that_no_model_may_have_is_refused(place: Settings, tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="name"):
        draft_model(place, name, hourly(tmp_path / "a.csv"))
    assert list(place.models.iterdir()) == []


# --- what is written, and lives --------------------------------------------------------------------------------------


def test_a_comment_says_what_each_guess_was_taken_from_and_what_a_person_must_say(place: Settings, tmp_path: Path) -> None:
    told, _ = drafted(place, hourly(tmp_path / "a.csv"))
    written = (place.models / "mine" / "model.yaml").read_text()
    assert "read as %m/%d/%Y" in written
    assert "Left out: instant (another value in each row)" in written
    assert "TODO: write time_zone" in written
    assert "TODO: name who answers for this model" in told


def test_a_file_outside_the_data_folder_is_copied_there(place: Settings, tmp_path: Path) -> None:
    file = hourly(tmp_path / "a.csv")
    _, folder = drafted(place, file)
    assert folder.spec.sources["rows"].files == "mine/a.csv"
    assert (place.data / "mine" / "a.csv").read_bytes() == file.read_bytes()


def test_a_file_in_the_data_folder_stays_where_it_is(place: Settings) -> None:
    (place.data / "bikes").mkdir()
    _, folder = drafted(place, hourly(place.data / "bikes" / "a.csv"))
    assert folder.spec.sources["rows"].files == "bikes/a.csv"
    assert [path.name for path in place.data.iterdir()] == ["bikes"]


def test_a_series_is_predicted_from_its_past_only(place: Settings, tmp_path: Path) -> None:
    _, folder = drafted(place, half_hourly(tmp_path / "a.csv"), label="Last (MW)", time_zone="Europe/Berlin")
    assert folder.spec.task == "regression"
    assert set(folder.spec.tables["wanted"].columns) == {"region", "zeitpunkt"}
    assert {"last_mw_last", "last_mw_day_before", "last_mw_mean_7d"} <= set(folder.spec.features.numeric)


def test_the_commands_of_the_readme_begin_a_model(place: Settings, tmp_path: Path) -> None:
    typed = re.findall(r"(?m)^\.venv/bin/perennial ((?:new|try) .*)$", (PROJECT / "README.md").read_text())
    assert typed
    hourly(tmp_path / "hour.csv")
    given = {"PERENNIAL_MODELS": str(place.models), "PERENNIAL_DATA": str(place.data), "PERENNIAL_STATE": str(place.state)}
    done = subprocess.run(
        [sys.executable, "-m", "perennial.cli", *shlex.split(typed[0])],
        cwd=tmp_path, env={**os.environ, **given}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "perennial try bike_demand --as-of 2011-02-10" in done.stdout
    assert shlex.split(typed[1])[:3] == ["try", "bike_demand", "--as-of"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "label", "end"),
    [(hourly, "cnt", "2011-02-10"), (half_hourly, "Last (MW)", "2023-05-31"), (events, "churn", "2024-03-01")],
)
def test_a_drafted_model_lives_without_an_edited_line(
    place: Settings, tmp_path: Path, make: Callable[[Path], Path], label: str, end: str
) -> None:
    drafted(place, make(tmp_path / "a.csv"), label=label)
    said: list[str] = []

    assert rehearse(place, "mine", utc(end), say=said.append)

    told = "\n".join(said)
    assert "No feature depends on data that were not known yet." in told
    assert re.search(r"mine version 1 (is champion|is refused)", told)
    if label != "Last (MW)":  # which is noise, so it may be refused
        assert "is champion" in told
        assert "--- monitor" in told
    assert not (place.state / "perennial.db").exists(), "the deployment was not touched"
