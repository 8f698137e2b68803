"""What people write into specs, files and forms stays what it is: a name, a value, a path below its root."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from perennial.core.errors import SpecError
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT, Settings
from perennial.core.sql import connect, literal, quoted
from perennial.deployment import Deployment
from perennial.ledger.store import Ledger
from perennial.spec.folder import read_model

HOSTILE = (
    'a"; DROP TABLE x; --', "a'b", "a; SELECT 1", "a b", "../x", "a/b", "a\\b", "{{ 7*7 }}", "$(id)", "`id`", "a\n", "a\0b",
    "A", "ä", "1a", "", "a" * 64, "a.b", "a-b", "\u202ea",
)  # fmt: skip

#: Where a spec takes a name, and how to put one there.
PLACES = {
    "model": ("name: energy_load", "name: {}"),
    "source": ("meters: {{python", "{}: {{python"),
    "table": ("  readings:\n", "  {}:\n"),
    "column": ("      load: {{type", "      {}: {{type"),
    "key": ("key: [meter, hour]", "key: [{}, hour]"),
    "event time": ("event_time: hour", "event_time: {}"),
    "feature": ("numeric: [hour_of_day,", "numeric: [{},"),
    "category": ("categorical: [which_meter]", "categorical: [{}]"),
    "candidate": ("  linear: {{", "  {}: {{"),
}


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_spec_admits_no_name_that_is_more_than_a_name(name: str, place: str, tmp_path: Path) -> None:
    folder = tmp_path / "energy_load"
    shutil.copytree(PROJECT / "tests" / "models" / "energy_load", folder)
    spec = folder / "model.yaml"
    old, new = PLACES[place]
    written = '"' + "".join(f"\\u{ord(character):04x}" for character in name) + '"'
    text = spec.read_text()
    assert old.replace("{{", "{") in text
    spec.write_text(text.replace(old.replace("{{", "{"), new.format(written), 1))
    with pytest.raises(SpecError, match=r"model\.yaml"):
        read_model(folder)


TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=50)


@trials(deadline=None)
@given(TEXTS)
def test_a_quoted_name_is_one_name_and_a_literal_one_text(text: str) -> None:
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT {literal(text)} AS {quoted(text)}")
        assert found.description[0][0] == text
        assert found.fetchall() == [(text,)]


@trials(deadline=None)
@given(TEXTS)
def test_the_sink_quotes_names_as_the_database_does(text: str) -> None:
    engine = sa.create_engine("sqlite://")
    name = engine.dialect.identifier_preparer.quote_identifier(text)
    with engine.connect() as connection:
        # The driver takes a % for a parameter's beginning only where there are parameters.
        assert connection.exec_driver_sql(f"SELECT 1 AS {name}").keys() == {text}
    engine.dispose()


@trials(deadline=None)
@given(model=TEXTS, dataset=TEXTS, run=TEXTS)
def test_the_ledger_binds_every_value(model: str, dataset: str, run: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    ledger = _ledger(tmp_path_factory)
    first = ledger.next_order(model, dataset, Interval.day("2024-01-01"), run)
    assert ledger.next_order(model, dataset, Interval.day("2024-01-01"), run) == first
    assert ledger.publications(model, dataset) == []


_made: list[Ledger] = []


def _ledger(places: pytest.TempPathFactory) -> Ledger:
    if not _made:
        _made.append(Ledger(f"sqlite:///{places.mktemp('injection') / 'ledger.db'}"))
        _made[0].migrate()
    return _made[0]


# --- a spec's SQL ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_csv('http://127.0.0.1:1/x.csv')",
        "SELECT * FROM glob('/etc/*')",
        "COPY (SELECT 1) TO '/tmp/perennial-was-here.csv'",
        "ATTACH '/tmp/perennial-was-here.db' AS other",
        "EXPORT DATABASE '/tmp/perennial-was-here'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "LOAD '/tmp/evil.duckdb_extension'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "SET allowed_paths = ['/etc/passwd']",
        "SELECT getenv('HOME')",
    ],
)
def test_sql_of_a_spec_reads_and_writes_in_its_own_folder_alone(statement: str, tmp_path: Path) -> None:
    with connect(tmp_path) as connection:
        connection.execute(f"COPY (SELECT 1 AS x) TO {literal(str(tmp_path / 'fine.parquet'))}")
        with pytest.raises(duckdb.Error):
            connection.execute(statement).fetchall()
    assert not list(Path("/tmp").glob("perennial-was-here*"))


@pytest.mark.parametrize("climb", ["../secret.csv", "sub/../../secret.csv"])
def test_sql_of_a_spec_climbs_out_of_no_folder(climb: str, tmp_path: Path) -> None:
    (tmp_path / "inside" / "sub").mkdir(parents=True)
    (tmp_path / "secret.csv").write_text("secret\n1\n")
    with connect(tmp_path / "inside") as connection, pytest.raises(duckdb.Error):
        connection.execute(f"SELECT * FROM read_csv({literal(str(tmp_path / 'inside' / climb))})").fetchall()


@pytest.mark.parametrize(
    "sql",
    ["load); COPY (SELECT 1) TO '/tmp/perennial-was-here.csv'; SELECT (1", "(SELECT content FROM read_text('/etc/passwd'))"],
)
def test_an_expression_of_a_spec_is_one_expression(sql: str, settings: Settings, tmp_path: Path) -> None:
    from perennial.cli import by_hand
    from perennial.core.errors import PerennialError

    folder = tmp_path / "models" / "energy_load"
    shutil.copytree(PROJECT / "tests" / "models" / "energy_load", folder)
    spec = folder / "model.yaml"
    spec.write_text(spec.read_text().replace("load: {type: float, min: 0}", f'load: {{type: float, sql: "{sql}"}}'))
    Ledger(settings.database_url).migrate()
    with pytest.raises(PerennialError):
        by_hand.ingest(settings.model_copy(update={"models": folder.parent}), "energy_load", Interval.day("2024-01-01"))
    assert not list(Path("/tmp").glob("perennial-was-here*"))


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../models", "..", ".", "", "/etc", "flight_delay/../flight_delay", "a/b"])
def test_a_model_is_a_folder_of_the_models_folder_and_no_path(name: str, settings: Settings) -> None:
    with pytest.raises(SpecError, match="no model is named"):
        Deployment(settings).model(name)


@trials(deadline=None)
@given(st.one_of(st.sampled_from(["..", ".", "../..", "/etc", "a/../../b", "~", "\\..\\x"]), TEXTS))
def test_what_a_run_hands_on_lies_below_its_model_whatever_its_name(run_id: str) -> None:
    from perennial.stages.run import StageRun

    settings = SimpleNamespace(staging=Path("/srv/staging"))
    folder: Any = SimpleNamespace(spec=SimpleNamespace(name="energy_load"))
    deployment: Any = SimpleNamespace(settings=settings)
    place = StageRun(folder, deployment, run_id, f"energy_load.ingest/{run_id}").staging
    assert place.parent == Path("/srv/staging/energy_load")
    assert place.name not in ("", ".", "..")
