"""What is answered is recorded without a request waiting for it, and what cannot be recorded is counted."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.core.errors import SettingsError
from perennial.core.intervals import Interval
from perennial.features.point_in_time import feature_schema
from perennial.serving import recording
from perennial.serving.online_table import Made, OnlineTable, Part
from perennial.serving.recording import Recorder, Tally, is_recorded, settle
from perennial.serving.request_table import SCHEMA, RequestTable
from perennial.serving.service import Scorer, ServeSettings
from tests.composed import free_port
from tests.unit import synthetic
from tests.unit.monitored import DAY, World, make_world
from tests.unit.serving.conftest import running

NOW = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'predictions.db'}"
    return str(request.getfixturevalue("postgres"))


def recorded_rows(chunk: str, count: int = 3, at: datetime = NOW, model: str = "toy") -> pa.RecordBatch:
    rows = [
        {
            "model": model, "chunk": chunk, "place": place, "asked_at": at, "request_id": f"r{place}", "row": 0, "version": 1,
            "role": "champion", "form": "key", "definition": "d", "entity": '["a,\\"b\\n"]', "event_time": at, "as_of": at,
            "features_snapshot": 7, "fallback": None, "came": "{}", "features": '{"x":-0.0,"kind":""}', "prediction": "0.25",
            "seconds": 0.001,
        }
        for place in range(count)
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def stored(url: str) -> list[dict[str, Any]]:
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("online_requests"):
            return []
        rows = connection.execute(sa.text("SELECT * FROM online_requests ORDER BY chunk, place")).mappings()
        return [dict(row) for row in rows]


def asked_by_key(place: Path, **online: Any) -> World:
    """A model with a champion and a row of features."""
    said = ", ".join(f"{name}: {value}" for name, value in {"horizon": "1d", **online}.items())
    world = make_world(place, synthetic.deployment(place), online=f"label: => online: {{{said}}}\nlabel:")
    world.promote(world.register())
    now = datetime.now(UTC)
    row = {"visit": "new", "moment": NOW, "as_of": NOW - timedelta(hours=1), "x": 0.1, "noise": None, "kind": "a"}
    part = Part(pa.Table.from_pylist([row], schema=feature_schema(world.folder.spec)), now, now, snapshot=7)
    OnlineTable(world.settings.predictions_url).replace(world.folder, [part], Made(1, now, 0))
    return world


# --- the table ---------------------------------------------------------------------------------------------------------


def test_a_chunk_that_is_sent_twice_is_stored_once(url: str) -> None:
    table = RequestTable(url)
    table.create()
    for number in (1, 1, 2, 1, 2):
        table.add("one", "toy", number, recorded_rows(f"one-{number}"))

    assert [row["chunk"] for row in stored(url)] == ["one-1"] * 3 + ["one-2"] * 3
    hour = Interval(NOW - timedelta(minutes=30), NOW + timedelta(minutes=30))
    assert table.hours("toy") == [hour]
    assert table.chunks("toy", hour) == ["one-1", "one-2"]
    assert pa.Table.from_batches(table.read("toy", hour, ["one-1"])).equals(pa.Table.from_batches([recorded_rows("one-1")]))
    assert table.remove("toy", hour, ["one-1"]) == 3
    table.add("one", "toy", 1, recorded_rows("one-1"))
    assert table.chunks("toy", hour) == ["one-2"]


def test_hours_are_of_utc(url: str) -> None:
    table = RequestTable(url)
    table.create()
    for number, at in enumerate((NOW, NOW + timedelta(minutes=29, seconds=59), NOW + timedelta(minutes=30)), start=1):
        table.add("one", "toy", number, recorded_rows(f"one-{number}", at=at))
    table.add("two", "other", 1, recorded_rows("two-1", at=NOW - timedelta(days=9), model="other"))

    assert [hour.start.hour for hour in table.hours("toy")] == [12, 13]


# --- the scorer --------------------------------------------------------------------------------------------------------


def test_an_answer_is_recorded_with_all_that_led_to_it(tmp_path: Path) -> None:
    world = asked_by_key(tmp_path)
    body = {"keys": [{"visit": "new"}, {"visit": "new"}], "features": [{}, {"x": 2, "kind": None}]}
    with running(world) as (_, client):
        said = client.post("/models/toy/predict", json=body, headers={"X-Request-Id": "mine"}).json()
        client.post("/models/toy/predict", json={"features": [{"x": 1}]})
        client.post("/models/toy/predict", json={"features": [{"x": "1"}]})

    first, second, third = stored(world.settings.predictions_url)
    assert (first["request_id"], first["row"], second["row"]) == ("mine", 0, 1)
    assert (first["version"], first["role"], first["form"]) == (1, "champion", "key")
    assert (first["entity"], first["features_snapshot"]) == ('["new"]', 7)
    assert first["event_time"].startswith("2024-05-01 12:30")
    assert first["as_of"].startswith("2024-05-01 11:30")
    assert first["definition"] == world.folder.features_digest
    assert json.loads(first["features"]) == {"x": 0.1, "noise": None, "kind": "a"}
    assert json.loads(first["came"]) == {"stored": ["x", "kind"], "given": [], "missing": ["noise"]}
    assert json.loads(first["prediction"]) == said["predictions"][0]["prediction"]
    assert 0 < first["seconds"] < 60
    # What the client says is missing is given.
    assert json.loads(second["features"]) == {"x": 2.0, "noise": None, "kind": None}
    assert json.loads(second["came"]) == {"stored": [], "given": ["x", "kind"], "missing": ["noise"]}
    assert (third["form"], third["entity"], third["as_of"]) == ("features", None, None)


def test_an_entity_is_recorded_by_its_key(tmp_path: Path) -> None:
    world = asked_by_key(tmp_path)
    world.publish(DAY)
    visit = {"visit": "not known yet", "moment": "2013-04-08T12:00:00Z", "x": 0.1, "kind": "a"}
    with running(world) as (_, client):
        assert client.post("/models/toy/predict", json={"entities": [visit]}).status_code == 200

    [row] = stored(world.settings.predictions_url)
    assert (row["form"], row["entity"]) == ("entity", '["not known yet"]')
    assert row["event_time"].startswith("2013-04-08 12:00")
    assert row["as_of"].startswith("2013-04-08 11:00")
    assert json.loads(row["came"])["computed"] == ["x", "kind"]


@pytest.mark.parametrize(("record", "rows"), [("false", 0), ("50%", None)])
def test_the_model_says_which_share_is_recorded(tmp_path: Path, record: str, rows: int | None) -> None:
    world = asked_by_key(tmp_path, record=record)
    names = [f"request-{number}" for number in range(20)]
    with running(world) as (_, client):
        for name in names:
            client.post("/models/toy/predict", json={"features": [{"x": 1}, {"x": 2}]}, headers={"X-Request-Id": name})

    found = [row["request_id"] for row in stored(world.settings.predictions_url)]
    if rows is not None:
        assert len(found) == rows
    else:
        # A request is recorded as a whole, and always the same ones.
        assert found == [name for name in names if is_recorded(0.5, name) for _ in range(2)]
        assert 0 < len(found) < 40


def test_a_model_that_is_not_asked_by_key_is_not_recorded(world: World) -> None:
    with running(world) as (_, client):
        assert client.post("/models/toy/predict", json={"features": [{"x": 1}]}).status_code == 200
    assert stored(world.settings.predictions_url) == []


def test_without_the_database_requests_are_answered_and_counted_as_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = asked_by_key(tmp_path)
    broken = world.settings.state / "broken.db"
    broken.write_bytes(b"no database" * 1_000)
    settings = world.settings.model_copy(update={"predictions_url": f"sqlite:///{broken}"})
    monkeypatch.setattr(recording, "MOST_ROWS", 10)
    with running(World(type(world.deployment)(settings), world.folder)) as (_, client):
        for _ in range(15):
            assert client.post("/models/toy/predict", json={"features": [{"x": 1}]}).status_code == 200
        metrics = client.get("/metrics").text
    assert 'perennial_serve_unrecorded_total{model="toy",why="full"} 5.0' in metrics


def test_rows_wait_for_a_database_that_comes_back(tmp_path: Path) -> None:
    world = asked_by_key(tmp_path)
    database = Path(world.settings.predictions_url.removeprefix("sqlite:///"))
    whole = database.read_bytes()
    with running(world) as (_, client):
        database.write_bytes(b"no database" * 1_000)
        for _ in range(15):
            assert client.post("/models/toy/predict", json={"features": [{"x": 1}]}).status_code == 200
        for more in ("-wal", "-shm"):
            database.with_name(database.name + more).unlink(missing_ok=True)
        database.write_bytes(whole)
    assert len(stored(world.settings.predictions_url)) == 15


# --- what is killed ----------------------------------------------------------------------------------------------------


@contextmanager
def process(world: World) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A scorer in a process of its own, and its port."""
    settings = world.settings
    environment = {
        **os.environ,
        "PERENNIAL_STATE": str(settings.state),
        "PERENNIAL_MODELS": str(settings.models),
        "PERENNIAL_DATABASE_URL": settings.database_url,
        "PERENNIAL_CATALOG_URL": settings.catalog_url,
        "PERENNIAL_PREDICTIONS_URL": settings.predictions_url,
        "PERENNIAL_WAREHOUSE": str(settings.warehouse),
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
    }
    port = free_port()
    environment["PERENNIAL_SERVE_PORT"] = str(port)
    run = subprocess.Popen([sys.executable, "-m", "perennial.cli", "serve"], env=environment)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert run.poll() is None
            assert time.monotonic() < deadline
            try:
                if httpx.get(f"http://127.0.0.1:{port}/v2/models/toy/ready", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.05)
        yield run, port
    finally:
        run.kill()
        run.wait()


class Load:
    """Clients that ask without a pause until the scorer is gone, and count the answers."""

    def __init__(self, port: int, clients: int = 4) -> None:
        self.answers = [0] * clients
        self._url = f"http://127.0.0.1:{port}/models/toy/predict"
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            while True:
                try:
                    if client.post(self._url, json={"features": [{"x": 1}]}).status_code != 200:
                        return
                except httpx.HTTPError:
                    return
                self.answers[number] += 1

    def wait_for(self, answers: int) -> None:
        while sum(self.answers) < answers:
            assert any(thread.is_alive() for thread in self._threads)
            time.sleep(0.01)

    def join(self) -> int:
        for thread in self._threads:
            thread.join(60)
        return sum(self.answers)


def settled(world: World) -> int:
    """What a successor counts as lost."""
    lost: list[int] = []
    table = RequestTable(world.settings.predictions_url)
    settle(world.settings.state / "recorders", table, lambda _, rows: lost.append(rows))
    settle(world.settings.state / "recorders", table, lambda _, rows: lost.append(rows))
    assert sum(lost) == table.lost("toy")
    assert list((world.settings.state / "recorders").iterdir()) == []
    return sum(lost)


def test_what_a_killed_scorer_had_not_recorded_is_counted_once(tmp_path: Path) -> None:
    world = asked_by_key(tmp_path)
    with process(world) as (run, port):
        load = Load(port)
        load.wait_for(300)
        run.send_signal(signal.SIGKILL)
        run.wait()
        answers = load.join()

    there, lost = len(stored(world.settings.predictions_url)), settled(world)
    assert there < answers  # something was in memory
    # A client may have missed the answer that each of its requests waited for.
    assert answers - 4 <= there + lost <= answers + 4


def test_a_scorer_that_is_asked_to_end_loses_nothing(tmp_path: Path) -> None:
    world = asked_by_key(tmp_path)
    with process(world) as (run, port):
        load = Load(port)
        load.wait_for(300)
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 0
        answers = load.join()

    assert answers <= len(stored(world.settings.predictions_url)) <= answers + 4
    assert settled(world) == 0


def test_a_scorer_counts_what_another_one_has_lost(tmp_path: Path) -> None:
    world = asked_by_key(tmp_path)
    folder = world.settings.state / "recorders"
    folder.mkdir(parents=True)
    tally = Tally(folder, "dead", "toy")
    tally.count(answered=9, left_out=2)
    tally.close()
    with running(world) as (_, client):
        line = 'perennial_serve_unrecorded_total{model="toy",why="killed"} 7.0'
        deadline = time.monotonic() + 30
        while line not in client.get("/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert RequestTable(world.settings.predictions_url).lost("toy") == 7


def test_what_lives_is_not_counted_as_lost(url: str, tmp_path: Path) -> None:
    table, folder = RequestTable(url), tmp_path / "recorders"
    table.create()
    folder.mkdir()
    tally = Tally(folder, "alive", "toy")
    tally.count(answered=5)
    with pytest.raises(BlockingIOError), tally.file.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    found: list[int] = []
    settle(folder, table, lambda _, rows: found.append(rows))
    assert found == []
    tally.close()
    settle(folder, table, lambda _, rows: found.append(rows))
    assert found == [5]


def test_memory_is_bounded_and_nothing_fails_while_the_database_hangs(tmp_path: Path, worlds: dict[str, World]) -> None:
    del worlds
    world = asked_by_key(tmp_path)
    stopped = threading.Event()

    class Hanging(RequestTable):
        def add(self, *_: Any) -> None:
            stopped.wait(30)

    left: list[int] = []

    def count(_: str, rows: int, __: str) -> None:
        left.append(rows)

    (counts := tmp_path / "recorders").mkdir()
    recorder = Recorder(Hanging(world.settings.predictions_url), counts, left_out=count)
    recorder.start()
    answered = _answered(world)
    began = time.monotonic()
    for _ in range(recording.MOST_ROWS + 50):
        recorder.add(answered)
    assert time.monotonic() - began < 20
    assert sum(left) == 50
    stopped.set()
    recorder.close()


def _answered(world: World) -> recording.Answered:
    from perennial.serving.champion import Champions
    from perennial.serving.requests import Rows

    champions = Champions(world.deployment)
    champions.look()
    champions.wait()
    served = champions.of("toy")
    columns: dict[str, list[Any]] = {"x": [1.0], "noise": [None], "kind": ["a"]}
    prediction = served.predict(columns, 1)
    champions.stop()
    rows = Rows(columns, 1, [{"given": ["x", "kind"], "missing": ["noise"]}])
    return recording.Answered("one", NOW, 0.01, "features", served, rows, prediction)


def test_a_folder_for_the_counts_that_cannot_be_made_is_told_before_the_scorer_listens(world: World, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(SettingsError, match=r"cannot make the folder .*/taken/recorders.*PERENNIAL_SERVE_RECORDERS"):
        Scorer(world.deployment, ServeSettings(port=0, recorders=tmp_path / "taken" / "recorders"))
