"""What the client gives is what is published; it says what it is; and it cannot write, however it is asked to.

The deployment is one with a history (``tests/states``): orders, quarantined rows, three versions, predictions and verdicts.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa

from perennial import client
from perennial.client import Client
from perennial.core.errors import (
    ArtifactRejected,
    NoChampion,
    NotAnswered,
    PromotionRefused,
    ReadOnly,
    ScoringError,
    SettingsError,
    SnapshotMissing,
    TrainingError,
)
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT, Settings, read_settings
from perennial.deployment import Deployment
from perennial.lake.publish import TableWrite
from perennial.ledger.store import Ledger
from perennial.serving.service import Scorer, ServeSettings
from tests.project.test_old_state import COMMIT, environment, predicted
from tests.states.unpack import unpack

DAYS = ("2024-01-24", "2024-01-29")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    place = tmp_path_factory.mktemp("deployment")
    unpack(COMMIT, place)
    found = read_settings(environment(place))
    Ledger(found.database_url).migrate()
    return found


@pytest.fixture(scope="module")
def p(place: Settings) -> Client:
    return client.open(place)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_are_those_that_the_ledger_names(p: Client, place: Settings) -> None:
    found = p.predictions("shop", *DAYS).arrow().to_pylist()
    assert sorted((row["id"], row["prediction"].hex(), row["version"]) for row in found) == predicted(place)


def test_pandas_arrow_duckdb_and_a_stream_have_the_same_rows(p: Client) -> None:
    rows = p.features("shop", *DAYS)
    table = rows.arrow()
    assert rows.batches().read_all().equals(table)
    assert rows.pandas()["amount"].tolist() == table["amount"].to_pylist()
    with duckdb.connect() as own:
        assert rows.duckdb(own).aggregate("count(*)").fetchall() == [(table.num_rows,)]
    assert table.num_rows == 315


def test_a_result_says_of_which_model_interval_and_snapshots_it_is(p: Client, place: Settings) -> None:
    rows = p.features("shop", *DAYS)
    head = Deployment(place).ledger.head("shop", "features").snapshots
    assert rows.snapshots == head
    assert rows.pandas().attrs["perennial"]["snapshots"] == head
    assert json.loads(rows.arrow().schema.metadata[b"perennial"])["interval"] == "2024-01-24--2024-01-29"
    assert repr(rows) == f"<Rows: features of shop, 24 - 28 Jan 2024, snapshot {head['features']} of features>"


def test_days_that_nobody_published_are_named(p: Client, caplog: pytest.LogCaptureFixture) -> None:
    rows = p.predictions("shop", "2024-01-27", "2024-01-31")
    assert rows.missing == ("2024-01-30",)
    assert "no predictions are published of 2024-01-30" in caplog.text


def test_the_snapshots_of_a_result_give_its_rows_again_after_others_were_published(p: Client, place: Settings) -> None:
    heads = Deployment(place).ledger.revisions("shop", "features")
    first = {"features": heads[0].snapshots["features"]}
    then = p.features("shop", "2024-01-01", "2024-01-31", snapshots=first)
    assert then.snapshots == first
    assert 0 < then.arrow().num_rows < p.features("shop", "2024-01-01", "2024-01-31").arrow().num_rows


def test_a_snapshot_that_was_never_published_is_refused(p: Client) -> None:
    with pytest.raises(SnapshotMissing, match="features was never published at snapshot 7"):
        p.features("shop", *DAYS, snapshots={"features": 7})


def test_rows_of_a_table_are_those_that_were_known_by_a_moment(p: Client) -> None:
    known = p.table("shop", "outcomes", known_by="2024-01-10T00:30Z").pandas()
    assert known["_known_at"].max() <= pd.Timestamp("2024-01-10 00:30", tz="UTC")
    assert known["placed"].max() < pd.Timestamp("2024-01-10", tz="UTC")
    assert len(known) < len(p.table("shop", "outcomes").pandas())


def test_a_table_without_event_time_has_no_interval(p: Client) -> None:
    assert p.table("shop", "regions").arrow().num_rows == 4
    with pytest.raises(SnapshotMissing, match="has no event time"):
        p.table("shop", "regions", *DAYS)


def test_the_quarantine_has_each_row_with_its_reasons_and_its_place(p: Client) -> None:
    found = p.quarantine("shop", "2024-01-27", "2024-01-28", table="orders").arrow().to_pylist()
    assert [(row["reasons"], row["position"]) for row in found] == [(["amount: -128.8 is below 0"], "orders/2024-01-27.csv:9")]
    assert p.quarantine("shop", "2024-01-27", "2024-01-28", table="outcomes").arrow().num_rows == 0


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda p: p.table("shop", "order"), "no rows of order are published; there are features, "),
        (lambda p: p.features("nobody", *DAYS), "there are no tables of this model"),
        (lambda p: p.features("shop", *DAYS, columns=["price"]), "has no column price"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(p: Client, ask: Callable[[Client], Any], told: str) -> None:
    with pytest.raises(SnapshotMissing, match=told):
        ask(p)


# --- what models learn from, and how they do -------------------------------------------------------------------------


def test_the_rows_of_a_version_are_those_that_it_was_trained_on(p: Client, place: Settings) -> None:
    record = Deployment(place).ledger.version("shop", 2)
    assert record is not None
    found = p.training_set("shop", version=2)
    assert found.content == record.training.content
    assert found.window.arrow().num_rows == record.training.rows["window"]
    parts = found.pandas()["part"].value_counts().to_dict()
    assert parts == record.training.rows


def test_a_training_set_as_of_a_moment_is_what_a_training_would_pin(p: Client, place: Settings) -> None:
    record = Deployment(place).ledger.version("shop", 3)
    assert record is not None
    assert p.training_set("shop", as_of=record.training.as_of).content == record.training.content


def test_features_that_a_training_would_build_again_are_named(place: Settings, tmp_path: Path) -> None:
    shutil.copytree(place.models, tmp_path / "models")
    features = tmp_path / "models" / "shop" / "features.sql"
    features.write_text(f"SELECT * FROM ({features.read_text()})")
    changed = client.open(place.model_copy(update={"models": tmp_path / "models"}))
    with pytest.raises(TrainingError, match=r"run shop\.ingest for these days"):
        changed.training_set("shop", as_of="2024-01-29")


def test_performance_is_what_the_command_shows(p: Client) -> None:
    from perennial.cli.by_hand import outlook

    found = p.performance("shop").arrow().to_pylist()
    metric, windows = outlook(p._settings.model_copy(update={"read_only": False}), "shop")
    assert [(row["realised"], row["verdict"]) for row in found] == [(one.realised, one.verdict) for one in windows]
    assert {row["metric"] for row in found} == {metric}


def test_the_champion_predicts_what_the_batch_has_published(p: Client, place: Settings) -> None:
    rows = p.features("shop", *DAYS)
    champion = p.champion("shop")
    frame = rows.pandas().set_index("id")
    said = champion.predict(frame)
    assert champion.version == 2
    assert champion.since is not None
    assert said.equals(champion.predict(rows).set_index(frame.index))
    assert {key: value.hex() for key, value in said["prediction"].items()} == {key: it for key, it, _ in predicted(place)}


def test_a_feature_that_a_frame_lacks_is_named(p: Client) -> None:
    with pytest.raises(ScoringError, match="lack the features pieces"):
        p.champion("shop").predict(p.features("shop", *DAYS).pandas().drop(columns="pieces"))


def test_a_model_without_a_champion_says_so(p: Client) -> None:
    with pytest.raises(NoChampion, match="no version was promoted yet"):
        p.champion("nobody")


def test_a_version_whose_files_were_changed_is_not_loaded(place: Settings, tmp_path: Path) -> None:
    unpack(COMMIT, tmp_path / "own")
    own = read_settings(environment(tmp_path / "own"))
    Ledger(own.database_url).migrate()
    for file in own.state.rglob("model.skops"):
        file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(ArtifactRejected, match=r"model\.skops has SHA-256"):
        client.open(own).champion("shop")


# --- it cannot write -------------------------------------------------------------------------------------------------


def contents(place: Settings) -> dict[str, Any]:
    """All that is stored: rows of the databases, and files of the lake and of MLflow with their sizes and times."""
    found: dict[str, Any] = {}
    for name in ("perennial.db", "catalog.db", "mlflow.db"):
        with sqlite3.connect(place.state / name) as connection:
            found[name] = list(connection.iterdump())
        connection.close()
    files = [file for folder in ("lake", "mlflow-artifacts") for file in (place.state / folder).rglob("*") if file.is_file()]
    return found | {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def rows_to_publish() -> dict[str, TableWrite]:
    schema = pa.schema([("id", pa.string()), ("placed", pa.timestamp("us", tz="UTC"))])
    return {"orders": TableWrite(lambda: pa.RecordBatchReader.from_batches(schema, []), "placed", schema)}


WRITES: dict[str, Callable[[Deployment], Any]] = {
    "a row of the ledger": lambda it: it.ledger.next_order("shop", "tables", Interval.day("2024-02-01"), "run"),
    "a promotion": lambda it: it.registry.promote(
        "shop", 1, expected=2, action="promote", reason="x", actor="x", run_id=None, evidence={}
    ),
    "an intent": lambda it: it.ledger.intend_promotion(
        model="shop", version=1, expected=2, action="rollback", reason="x", actor="x", run_id=None, evidence={}
    ),
    "a retirement": lambda it: it.ledger.retire("shop", actor="x", reason="x", files={}),
    "the ledger's tables": lambda it: it.ledger._database.create(sa.MetaData()),
    "rows of the lake": lambda it: it.lake.publish(
        model="shop", dataset="tables", interval=Interval.day("2024-02-01"), tables=rows_to_publish(), order=99, run_id="run",
        inputs={},
    ),
    "a pin": lambda it: it.lake.pin("shop", it.ledger.head("shop", "features").snapshots, "mine"),
    "a compaction": lambda it: it.lake.compact("shop", many=1),
    "an expiry": lambda it: it.lake.expire("shop", older_than=pd.Timestamp("2100-01-01", tz="UTC").to_pydatetime()),
    "a file of the lake": lambda it: it.lake._catalog.load("shop", "orders").io.new_output(f"{it.settings.warehouse}/x"),
    "a removed file": lambda it: it.lake._catalog.load("shop", "orders").io.delete(f"{it.settings.warehouse}/x"),
    "MLflow's alias": lambda it: it.registry._client.set_registered_model_alias("shop", "champion", "1"),
    "a tag": lambda it: it.registry._client.set_model_version_tag("shop", "1", "a", "b"),
    "a deleted version": lambda it: it.registry._client.delete_model_version("shop", "1"),
    "a run": lambda it: it.registry.open_run("shop", "mine", {}).__enter__(),
    "an alias put back": lambda it: it.registry.reconcile("shop"),
}  # fmt: skip


def test_every_attempt_to_write_is_refused_and_nothing_is_changed(p: Client, place: Settings) -> None:
    before = contents(place)
    for what, write in WRITES.items():
        try:
            write(p._parts)
        except (ReadOnly, PromotionRefused):
            continue
        pytest.fail(f"{what} was written")
    for database in (p._parts.ledger._database.engine, p._parts.lake._catalog._catalog.engine):
        with database.connect() as connection, pytest.raises(sa.exc.OperationalError, match="readonly database"):
            connection.exec_driver_sql("CREATE TABLE mine (a INTEGER)")
    assert contents(place) == before


@pytest.mark.postgres
def test_a_session_of_postgresql_refuses_to_write(place: Settings, postgres: str) -> None:
    Ledger(postgres).migrate()
    p = client.open(place.model_copy(update={"database_url": postgres}))
    assert p.models() == []
    engine = p._parts.ledger._database.engine
    with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="read-only transaction"):
        connection.exec_driver_sql("DELETE FROM perennial_versions")


def test_where_there_is_no_deployment_none_is_made(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="there is no deployment yet"):
        client.open(settings)
    assert list(settings.state.iterdir()) == [settings.data]


# --- docs and the notebook -------------------------------------------------------------------------------------------

#: What stands in the page and the notebook, and what the deployment of these tests has instead.
HERE = {
    "flight_delay": "shop", '"flights"': '"orders"', '"carrier": "UA"': '"region": "N"', "distance\": 1400": "amount\": 14.0",
    "2013-06-24": "2024-01-24", "2013-07-01": "2024-01-29", "2013-06-01": "2024-01-24", "2013-06-08": "2024-01-29",
    "2013-06-03": "2024-01-26",
}  # fmt: skip


def here(text: str) -> str:
    for there, instead in HERE.items():
        text = text.replace(there, instead)
    return text


@contextmanager
def scorer(place: Settings) -> Iterator[str]:
    """The address of a real scorer."""
    serving = Scorer(Deployment(place), ServeSettings(port=0, deadline=60))
    thread = threading.Thread(target=serving.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not serving.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{serving.port}"
    finally:
        serving.stop()
        thread.join(30)


def run_cell(text: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does; the value of its last line, if that is an expression."""
    body = ast.parse(here(text)).body
    last = body[-1]
    shown = last.value if isinstance(last, ast.Expr) else None
    exec(compile(ast.Module(body if shown is None else body[:-1], []), "cell", "exec"), names)
    return None if shown is None else eval(compile(ast.Expression(shown), "cell", "eval"), names)


@pytest.fixture
def opened(place: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deployment, as the environment names it."""
    from perennial.core.settings import settings

    for name, value in environment(place.models.parent).items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    monkeypatch.setattr("perennial.client.reading.settings", lambda: place)


@pytest.mark.usefixtures("opened")
def test_the_snippets_of_the_page_run(place: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(r"(?ms)^```python\n(.*?)^```$", (PROJECT / "docs" / "client.md").read_text())
    names: dict[str, Any] = {}
    with scorer(place.model_copy(update={"may_promote": False})) as url:
        monkeypatch.setenv("PERENNIAL_SERVE_URL", url)
        values = [run_cell(snippet, names) for snippet in snippets]
    assert values[0] == ["returns", "shop"]
    assert values[2] is True, "the same snapshots give the same rows"
    assert len(names["window"]) > len(names["holdout"]) > 0
    assert values[-1]["version"] == 2


def test_a_scorer_that_is_not_there_is_told(p: Client) -> None:
    with pytest.raises(NotAnswered, match="start one with `perennial serve`"):
        p.ask("shop", {"id": "0128-00"}, url="http://127.0.0.1:9")
    with pytest.raises(NotAnswered, match="nothing is asked"):
        p.ask("shop")


@pytest.mark.usefixtures("opened")
def test_the_notebook_runs_cell_by_cell_and_holds_no_outputs() -> None:
    text = (PROJECT / "examples" / "notebooks" / "look_at_a_model.ipynb").read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names: dict[str, Any] = {}
    for cell in cells:
        run_cell("".join(cell["source"]), names)
    assert names["predictions"]["prediction"].sum() == pytest.approx(names["published"]["prediction"].sum())
    assert len(names["refused"]) > 0
