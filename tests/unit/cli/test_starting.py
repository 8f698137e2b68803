"""From somebody's file to a model that trains: what is refused, what is written, and that it lives."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool
from threadpoolctl import threadpool_limits

from perennial.cli import by_hand
from perennial.cli.starting import draft_model, rehearse
from perennial.core.errors import SpecError
from perennial.core.intervals import Interval, utc
from perennial.core.settings import PROJECT, Settings
from perennial.spec.folder import ModelFolder, read_model
from tests.unit.authoring.histories import events, half_hourly, hourly


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


def drafted(place: Settings, file: Path, **given: Any) -> tuple[str, ModelFolder]:
    told = draft_model(place, "mine", file, **given)
    return told, read_model(place.models / "mine")


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


def test_check_names_what_a_person_must_say_until_it_is_said(place: Settings, tmp_path: Path) -> None:
    drafted(place, hourly(tmp_path / "a.csv"))
    spec = place.models / "mine" / "model.yaml"
    told, _ = by_hand.inspect(place, "mine")
    assert f"{spec}:4: TODO: name who answers for this model" in told.splitlines()
    spec.write_text(re.sub(r"# TODO.*", "", spec.read_text()))
    assert "TODO" not in by_hand.inspect(place, "mine")[0]


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


# --- a table of a database -------------------------------------------------------------------------------------------

PASSWORD = "correct-horse-battery"


def _rides(address: str) -> None:
    """Rides by the hour, as an application keeps them."""
    with tempfile.TemporaryDirectory() as scratch:
        frame = pd.read_csv(hourly(Path(scratch) / "rides.csv"))
    frame["begun"] = pd.date_range("2011-01-01", periods=len(frame), freq="h")
    engine = sa.create_engine(address, poolclass=NullPool)
    frame[["begun", "temp", "holiday", "cnt"]].to_sql("rides", engine, index=False)


@pytest.fixture(params=["sqlite", "postgres"])
def rides(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database with a table ``rides``."""
    kind = request.param
    address: str = f"sqlite:///{tmp_path / 'shop.db'}" if kind == "sqlite" else request.getfixturevalue("postgres")
    _rides(address)
    return address


def test_a_table_is_drafted_as_a_query_of_a_connection(place: Settings, rides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINE_DB", raising=False)
    told = draft_model(place, "mine", f"{rides}/rides")
    source = read_model(place.models / "mine").spec.sources["rows"]
    assert source.connection == "MINE_DB"
    assert source.sql == 'SELECT * FROM "rides" WHERE "begun" >= :start AND "begun" < :end'
    assert "export MINE_DB=" in told
    monkeypatch.setenv("MINE_DB", rides)
    days = Interval.of("2011-01-01", "2011-01-15")
    made = place.model_copy(update={"mlflow_url": f"sqlite:///{place.state / 'mlflow.db'}"})
    assert "published wanted 336, measured 336, quarantine 0" in by_hand.ingest(made, "mine", days)


def test_the_address_of_a_database_is_written_nowhere_and_told_without_its_password(place: Settings, postgres: str) -> None:
    _rides(postgres)
    address = sa.make_url(postgres)
    told = draft_model(place, "mine", f"{postgres}/rides")
    written = "".join(file.read_text() for file in (place.models / "mine").iterdir())
    for secret in (str(address.password), str(address.port), str(address.database)):
        assert secret not in written
        assert secret not in told
    with pytest.raises(SpecError, match="has no table ride; there are rides") as raised:
        draft_model(place, "other", f"{postgres}/ride")
    assert str(address.password) not in str(raised.value)
    wrong = address.set(password=PASSWORD).render_as_string(hide_password=False)
    with pytest.raises(SpecError, match=r"cannot be read: .*password authentication failed") as raised:
        draft_model(place, "other", f"{wrong}/rides")
    assert PASSWORD not in str(raised.value)
    assert list(place.models.iterdir()) == [place.models / "mine"]


def test_a_connection_that_has_the_address_needs_the_table_alone(
    place: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"sqlite:///{tmp_path / 'shop.db'}"
    _rides(address)
    monkeypatch.setenv("SHOP", address)
    told = draft_model(place, "mine", "rides", connection="SHOP")
    assert read_model(place.models / "mine").spec.sources["rows"].connection == "SHOP"
    assert "export" not in told
    with pytest.raises(SpecError, match="set the variable OTHER to the SQLAlchemy URL"):
        draft_model(place, "other", "rides", connection="OTHER")


def test_a_table_whose_times_are_texts_is_refused_with_what_to_do(place: Settings, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'shop.db'}"
    frame = pd.read_csv(hourly(tmp_path / "a.csv"))
    frame["begun"] = pd.date_range("2011-01-01", periods=len(frame), freq="h").strftime("%Y-%m-%d %H:%M")
    frame[["begun", "temp", "cnt"]].to_sql("rides", sa.create_engine(address, poolclass=NullPool), index=False)
    with pytest.raises(SpecError, match="begun is no date or timestamp there"):
        draft_model(place, "mine", f"{address}/rides")
    assert list(place.models.iterdir()) == []


@pytest.mark.parametrize("address", ["nothing://host/x/rides", "postgresql+psycopg2://127.0.0.1:9/x/rides"])
def test_a_database_that_cannot_be_read_is_told(place: Settings, address: str) -> None:
    with pytest.raises(SpecError, match=r"none that SQLAlchemy knows|cannot be read: connection to server"):
        draft_model(place, "mine", address)


# --- what only a person can know -------------------------------------------------------------------------------------


def test_at_a_terminal_a_person_is_asked_what_no_data_tell(place: Settings, tmp_path: Path) -> None:
    file = hourly(tmp_path / "a.csv")
    renamed = pd.read_csv(file).rename(columns={"cnt": "rentals"})
    renamed.to_csv(file, index=False)
    given = {"PERENNIAL_MODELS": str(place.models), "PERENNIAL_DATA": str(place.data), "PERENNIAL_STATE": str(place.state)}
    own, theirs = pty.openpty()
    command = [sys.executable, "-m", "perennial.cli", "new", "mine", "--from", str(file)]
    with subprocess.Popen(command, env={**os.environ, **given}, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = ""
        for question, answer in [
            ("Which column is to be predicted: ", "rentals"), ("names no zone", "Mars/Olympus"),
            ("names no zone", "Europe/Berlin"), ("Who answers for this model?", "bikes"),
        ]:  # fmt: skip
            before = len(said)
            while question not in said[before:]:
                said += os.read(own, 1024).decode()
            os.write(own, f"{answer}\n".encode())
        with contextlib.suppress(OSError):  # the end of a terminal
            while more := os.read(own, 1024):
                said += more.decode()
    os.close(own)
    assert process.returncode == 0, said
    assert "there is no zone Mars/Olympus" in said
    spec = read_model(place.models / "mine").spec
    assert (spec.owner, spec.sources["rows"].time_zone, spec.label.sql) == ("bikes", "Europe/Berlin", "rentals")
    assert "TODO" not in (place.models / "mine" / "model.yaml").read_text()


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
    assert sorted(path.name for path in place.state.iterdir()) == ["data", "try"], "the deployment was not touched"
    page = (place.state / "try" / "mine.html").read_text()
    assert f"All of it on one page: {place.state / 'try' / 'mine.html'}" in told
    for chapter in ("Rows", "What check says", "What the gates say", "Which features matter"):
        assert f">{chapter}</h2>" in page, chapter
    assert "report: " not in told, "which would lie in the folder that is gone"
    assert "<script" not in page


def test_the_page_of_a_life_that_fails_says_how_far_it_came(place: Settings, tmp_path: Path) -> None:
    drafted(place, hourly(tmp_path / "a.csv"))
    features = place.models / "mine" / "features.sql"
    features.write_text(features.read_text().replace("measured._known_at <= entities.as_of", "TRUE"))
    said: list[str] = []
    assert not rehearse(place, "mine", utc("2011-02-10"), say=said.append)
    page = (place.state / "try" / "mine.html").read_text()
    assert "leak: " in page
    assert "not trained" in page


def test_mlflow_tells_nothing_of_its_tables(place: Settings, tmp_path: Path) -> None:
    program = "from perennial.deployment import Deployment; from perennial.core.settings import settings; "
    program += "Deployment(settings()).registry.migrate()"
    given = {**os.environ, "PERENNIAL_STATE": str(tmp_path / "var")}
    given.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run([sys.executable, "-c", program], env=given, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "INFO" not in done.stderr
