"""What is known of one entity goes from everywhere, once, whatever kills or crosses the work, and nothing else goes."""

from __future__ import annotations

import io
import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.cli.main import main
from perennial.core.errors import BackupError, ErasureError, Superseded, TrainingError
from perennial.core.intervals import Interval
from perennial.core.settings import Settings, read_settings
from perennial.core.settings import settings as settings_of_the_process
from perennial.deployment import Deployment
from perennial.features.point_in_time import feature_schema
from perennial.ingestion.pushed import PushedRow, PushedRows
from perennial.lake.erasure import Eraser
from perennial.lake.publish import TableWrite
from perennial.lake.removal import hold, removing
from perennial.ledger.records import VersionRecord
from perennial.ledger.store import Ledger
from perennial.operations.agreement import verify
from perennial.operations.forget import Forgetting, describe, entity_of
from perennial.registry.store import Registry
from perennial.serving.online_table import Made, OnlineTable, Part, place_of
from perennial.serving.recorded import publish_requests, read_published
from perennial.serving.request_table import SCHEMA, RequestTable
from perennial.training.reproduce import reproduce
from tests.faults.signals import processes, trap
from tests.states.unpack import unpack
from tests.unit import synthetic
from tests.unit.monitored import DAY, World, make_world, open_world

NEXT = Interval.day("2013-04-02")
#: An entity of the first day, with the kind of no other.
VISIT, KIND = "v000007-11", "peculiar"


def mark(rows: pd.DataFrame) -> None:
    """One visit of its kind."""
    rows.loc[rows["visit"] == VISIT, "kind"] = KIND


#: What an erasure removes from :func:`lived_in`, which is not asked online.
GONE = {
    "visits": 1,
    "outcomes": 1,
    "features": 1,
    "predictions": 1,
    "toy_predictions": 1,
    "online_features": 0,
    "online_requests": 0,
    "pushed_rows": 0,
}


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    return lived_in(tmp_path, settings)


@pytest.fixture
def world_on_each_database(tmp_path: Path, settings_on_each_database: Settings) -> World:
    return lived_in(tmp_path, settings_on_each_database)


def lived_in(place: Path, settings: Settings) -> World:
    world = make_world(place, settings)
    world.publish(DAY, change=mark)
    version = world.register()
    world.promote(version)
    world.score(version, DAY)
    # Published twice, so that older snapshots hold it in other files too; and joined with a day without it.
    world.publish(DAY, change=mark, seed=11)
    world.publish(NEXT, seed=12)
    return world


def work(world: World, *, key: str | None = VISIT, column: dict[str, str] | None = None) -> Forgetting:
    parts = Deployment(world.settings)
    return Forgetting(parts, entity_of(world.folder.spec, key={"visit": key} if key else None, column=column))


def holders(folder: Path, *values: str) -> list[str]:
    """Files below a folder that hold one of some values, in their bytes or in the cells of their rows."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        held = any(value.encode() in content for value in values)
        if file.suffix == ".parquet":
            cells = {str(cell) for column in pq.read_table(file).columns for cell in column.to_pylist()}
            held |= any(value in cell for value in values for cell in cells)
        if held:
            found.append(file.relative_to(folder).as_posix())
    return found


def visits(world: World, table: str, dataset: str) -> set[str]:
    snapshot = world.ledger.head("toy", dataset).snapshots[table]
    return set(world.lake.scan("toy", table, snapshot, columns=["visit"]).read_all()["visit"].to_pylist())


EVERYWHERE = (("visits", "tables"), ("outcomes", "tables"), ("features", "features"), ("predictions", "predictions"))


def assert_gone(world: World) -> None:
    assert holders(Path(world.settings.warehouse), VISIT) == []
    for table, dataset in EVERYWHERE:
        rows = visits(world, table, dataset)
        assert VISIT not in rows
        assert len(rows) == (59 if table == "predictions" else 119), f"{table} lost rows of others"
    assert len(world.sink()) == 59
    for url in {world.settings.predictions_url, world.settings.database_url, world.settings.catalog_url}:
        assert tables_that_hold(url, VISIT) == []
    file = Path(world.settings.predictions_url.removeprefix("sqlite:///"))
    assert [name for name in holders(file.parent, VISIT) if name.startswith("predictions.db")] == []


def tables_that_hold(url: str, value: str) -> list[str]:
    """Tables of a database with a row that tells a value."""
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        rows = {
            table: connection.exec_driver_sql(f'SELECT * FROM "{table}"').all()
            for table in sa.inspect(engine).get_table_names()
        }
    return [table for table, found in rows.items() if value in str(found)]


def test_an_entity_goes_from_all_tables_snapshots_and_files_and_no_other_row_does(world_on_each_database: World) -> None:
    world = world_on_each_database
    assert tables_that_hold(world.settings.predictions_url, VISIT) == ["toy_predictions"]
    assert holders(Path(world.settings.warehouse), VISIT) != []
    done = work(world).run(actor="tester", reason="she asked for it")
    assert done is not None
    assert done.completed_at is not None
    assert done.rows == GONE
    assert_gone(world)
    # Life goes on with what is left.
    assert world.score(1, DAY, run_id="again").rows == 59
    assert verify(Deployment(world.settings)).problems == [
        "toy version 1: the rows that it was trained on are not pinned as training-2013-03-26-5; it cannot be reproduced"
    ]


def test_the_ledger_keeps_who_asked_and_how_much_went_and_not_of_whom(world: World) -> None:
    work(world).run(actor="tester", reason="she asked for it")
    [record] = world.ledger.erasures("toy")
    assert (record.actor, record.reason, record.columns) == ("tester", "she asked for it", ["visit"])
    assert record.is_of({"visit": VISIT})
    assert not record.is_of({"visit": "v000008-11"})
    file = Path(world.settings.database_url.removeprefix("sqlite:///"))
    assert VISIT.encode() not in file.read_bytes()
    assert VISIT not in " ".join(describe(record))


def test_an_entity_that_was_forgotten_is_not_known_and_nothing_is_recorded_again(world: World) -> None:
    assert work(world).run(actor="tester", reason="once") is not None
    assert work(world).survey().nothing
    assert work(world).run(actor="tester", reason="twice") is None
    assert len(world.ledger.erasures("toy")) == 1


def test_a_survey_tells_what_would_go_and_changes_nothing(world: World) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(world.settings.warehouse).rglob("*")}
    found = work(world).survey()
    assert found.rows == GONE
    assert found.snapshots >= 6
    assert any(line.startswith("visits: 1 rows") for line in found.describe())
    assert {path: path.stat().st_mtime_ns for path in Path(world.settings.warehouse).rglob("*")} == before
    assert world.ledger.erasures("toy") == []


def test_a_value_of_a_column_stands_for_all_entities_that_have_it(world: World) -> None:
    """``kind`` is in no table of outcomes and predictions: their rows are found by the keys of those that have it."""
    done = work(world, key=None, column={"kind": KIND}).run(actor="tester", reason="asked")
    assert done is not None
    assert done.rows == GONE
    assert holders(Path(world.settings.warehouse), KIND) == []
    assert_gone(world)


@pytest.mark.parametrize(
    ("key", "column", "told"),
    [
        ({"visitor": "x"}, None, r"named by visit: give --key visit=…"),
        (None, {"shoe": "44"}, r"no table has a column shoe; there are: kind"),
        (None, {"x": "tall"}, r"the value given for x is not of the type float"),
        (None, {"x": "nan"}, r"the value given for x is not of the type float"),
    ],
)
def test_what_names_no_entity_is_refused(world: World, key: Any, column: Any, told: str) -> None:
    with pytest.raises(ErasureError, match=told):
        entity_of(world.folder.spec, key=key, column=column)


# --- versions --------------------------------------------------------------------------------------------------------


def pinned(world: World) -> VersionRecord:
    """The version, as if it had learned from the day, with its rows pinned."""
    snapshots = {**world.ledger.head("toy", "features").snapshots, **world.ledger.head("toy", "tables").snapshots}
    record = world.ledger.version("toy", 1)
    assert record is not None
    world.lake.pin("toy", snapshots, record.training.pin)
    return record


def test_a_training_set_that_holds_the_entity_is_let_go_and_its_version_says_why(world: World) -> None:
    record = pinned(world)
    done = work(world).run(actor="tester", reason="asked")
    assert done is not None
    assert done.versions["unpinned"] == [1]
    assert record.training.pin not in world.lake.pins("toy")
    with pytest.raises(TrainingError, match=r"cannot be made again.*erased on .*erasure 1"):
        reproduce("toy", 1, Deployment(world.settings), folder=world.folder)
    assert verify(Deployment(world.settings)).problems == []
    assert_gone(world)


def test_a_training_set_without_the_entity_stays_pinned(world: World) -> None:
    only = Interval.day("2013-05-01")
    other = make_rows_of(only)
    world.publish_features(other, only, run_id="other")
    world.lake.pin("toy", {"outcomes": empty_of(world, "outcomes")}, "training-of-another")
    work(world).run(actor="tester", reason="asked")
    assert "training-of-another" in world.lake.pins("toy")


def make_rows_of(day: Interval) -> pd.DataFrame:
    return synthetic.make_rows(1, 5, seed=3, start=day.start)


def empty_of(world: World, table: str) -> int:
    return int(world.lake._catalog.load("toy", table).metadata.refs["empty"].snapshot_id)


def sampled(world: World, as_of: str = "2013-03-27") -> int:
    """A version whose sample has the entity's features."""
    snapshot = world.ledger.head("toy", "features").snapshots["features"]
    rows = world.lake.scan("toy", "features", snapshot, columns=["x", "noise", "kind", "visit"]).read_all().to_pandas()
    mine = rows[rows["visit"] == VISIT].iloc[0]
    made = synthetic.make_rows

    def with_mine(*arguments: Any, **named: Any) -> pd.DataFrame:
        frame = made(*arguments, **named)
        for place in (0, 100):  # an example, and one of the sample alone
            frame.loc[place, ["x", "noise", "kind"]] = [mine["x"], mine["noise"], mine["kind"]]
        return frame

    patched = pytest.MonkeyPatch()
    patched.setattr(synthetic, "make_rows", with_mine)
    try:
        return world.register(as_of)
    finally:
        patched.undo()


def test_a_stored_sample_is_written_anew_and_the_version_stays_loadable(world: World) -> None:
    version = sampled(world)
    before = world.ledger.version("toy", version)
    assert before is not None
    assert world.registry.load("toy", version).reference().num_rows == 600
    done = work(world).run(actor="tester", reason="asked")
    assert done is not None
    assert done.versions["rewritten"] == [version]
    loaded = world.registry.load("toy", version)
    assert loaded.reference().num_rows == 598
    assert KIND not in loaded.reference()["kind"].to_pylist()
    after = world.ledger.version("toy", version)
    assert after is not None
    changed = {name for name, digest in after.manifest.items() if before.manifest[name] != digest}
    assert changed == {"reference.parquet", "example.parquet", "input_example.json", "serving_input_example.json"}
    # What was learned stays learned: an encoder knows the kinds that it was fitted on.
    assert {Path(name).name for name in holders(world.settings.state / "mlflow-artifacts", KIND)} <= {"model.skops"}


# --- files and texts -------------------------------------------------------------------------------------------------


def test_files_on_their_way_and_reports_that_quote_it_go_and_others_stay(world: World) -> None:
    staging, reports = world.settings.staging / "toy" / "run", world.settings.reports / "toy" / "drift"
    for folder in (staging, reports):
        folder.mkdir(parents=True)
    pq.write_table(pa.table({"visit": [VISIT, "v1"], "x": [1.0, 2.0]}), staging / "visits.landed.parquet")
    pq.write_table(pa.table({"visit": ["v1"], "x": [1.0]}), staging / "other.landed.parquet")
    (reports / "quotes.html").write_text(f"<td>{VISIT}</td>")
    (reports / "longer.html").write_text(f"<td>{VISIT}0</td>")
    done = work(world).run(actor="tester", reason="asked")
    assert done is not None
    assert (done.details["staging"], done.details["reports"]) == (1, 1)
    assert [path.name for path in staging.iterdir()] == ["other.landed.parquet"]
    assert [path.name for path in reports.iterdir()] == ["longer.html"]


def test_texts_of_the_ledger_that_quote_it_lose_the_value(world: World) -> None:
    world.ledger.record_refusal(
        model="toy", interval=NEXT, run_id="r", reasons=[f"visits: key: 2 rows are {VISIT}, and they differ"], rows={}
    )
    work(world).run(actor="tester", reason="asked")
    [refusal] = world.ledger.refusals("toy")
    assert refusal.reasons == ["visits: key: 2 rows are [erased], and they differ"]


def quarantine(world: World, rows: list[str]) -> None:
    table = pa.table(
        {
            "table": ["visits"] * len(rows),
            "position": [f"rows.csv:{number}" for number in range(len(rows))],
            "reasons": pa.array([["x: 1e9 is above 5"]] * len(rows), pa.list_(pa.string())),
            "row": rows,
            "_event_time": pa.array([NEXT.start] * len(rows), synthetic.MOMENT),
        }
    )
    world.lake.publish(
        model="toy",
        dataset="tables",
        interval=NEXT,
        tables={"quarantine": TableWrite(data=table.to_reader, event_time="_event_time", schema=table.schema)},
        order=world.ledger.next_order("toy", "tables", NEXT, "quarantine"),
        run_id="quarantine",
        inputs={"warnings": ["visits: 3 times, first rows.csv:0: x: 1e9 is above 5"]},
    )


def test_quarantined_rows_are_found_by_what_was_read_of_them(world: World) -> None:
    page = world.settings.reports / "toy" / "checks" / "visits" / f"{NEXT.key}.html"
    page.parent.mkdir(parents=True)
    page.write_text("x: 1e9")
    quarantine(
        world,
        [
            f'{{"visit": "{VISIT}", "x": "1e9"}}',
            '{"visit": "v000008-11", "x": "1e9"}',
            f'{{"_raw": "{VISIT},broken,line"}}',
            f'{{"visit": "v000009-11", "kind": "{VISIT}"}}',
        ],
    )
    done = work(world).run(actor="tester", reason="asked")
    assert done is not None
    assert done.rows["quarantine"] == 2
    snapshot = world.ledger.head("toy", "tables").snapshots["quarantine"]
    left = world.lake.scan("toy", "quarantine", snapshot, columns=["position"]).read_all()
    assert sorted(left["position"].to_pylist()) == ["rows.csv:1", "rows.csv:3"]
    assert not page.exists(), "Data Docs quote values of quarantined rows"
    newest = world.ledger.publications("toy", "tables")[-1]
    assert newest.inputs["warnings"] == ["visits: 3 times, first [erased]"]


# --- others at work --------------------------------------------------------------------------------------------------


def test_a_run_that_started_before_cannot_bring_it_back_and_a_new_one_may_publish(world: World) -> None:
    rows = synthetic.make_rows(1, 60, seed=11, start=DAY.start)
    world.ledger.next_order("toy", "tables", DAY, "ingest-at-work")
    work(world).run(actor="tester", reason="asked")
    with pytest.raises(Superseded, match=r"started before erasure 1 .*Start a new run"):
        synthetic.publish_tables(world.lake, world.ledger, rows, DAY, run_id="ingest-at-work")
    assert VISIT not in visits(world, "visits", "tables")
    synthetic.publish_tables(world.lake, world.ledger, rows[rows["visit"] != VISIT], DAY, run_id="ingest-new")
    assert len(visits(world, "visits", "tables")) == 119


def test_a_publication_that_comes_between_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new run publishes while files are written anew: the erasure goes on from there."""
    third = Interval.day("2013-04-03")
    original = Eraser._without
    crossed: list[bool] = []

    def crossing(*arguments: Any) -> Any:
        if not crossed:
            crossed.append(True)
            world.publish(third, seed=13)
        return original(*arguments)

    monkeypatch.setattr(Eraser, "_without", crossing)
    work(world).run(actor="tester", reason="asked")
    assert crossed
    for table, dataset in EVERYWHERE[:3]:
        rows = visits(world, table, dataset)
        assert (VISIT in rows, len(rows)) == (False, 179)
    assert holders(Path(world.settings.warehouse), VISIT) == []


def test_rows_of_an_attempt_that_died_are_found_and_removed(world: World) -> None:
    place = Path(world.settings.warehouse) / "toy" / "visits" / "data" / "left-by-the-dead.parquet"
    pq.write_table(pa.table({"visit": [VISIT]}), place)
    other = place.with_name("of-others.parquet")
    pq.write_table(pa.table({"visit": ["v1"]}), other)
    work(world).run(actor="tester", reason="asked")
    assert not place.exists()
    assert other.exists()


def test_nothing_is_erased_while_a_backup_is_made_or_others_remove(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perennial.lake.removal.PATIENCE", timedelta(0))
    with removing(world.settings), pytest.raises(BackupError, match="others have been removing"):
        work(world).run(actor="tester", reason="asked")
    hold(world.settings, datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(BackupError, match=r"a backup is being made.*try again"):
        work(world).run(actor="tester", reason="asked")
    assert world.ledger.erasures("toy") == []


# --- kill -9 ---------------------------------------------------------------------------------------------------------

STEPS: dict[str, tuple[Any, str, str]] = {
    "before the files": (Ledger, "note_erasure", "after"),
    "between sample and manifest": (Ledger, "replace_manifest", "before"),
    "before the predictions database": (Registry, "erase_samples", "after"),
    "after readers are sent on": (Ledger, "move", "after"),
    "between snapshots and files": (Eraser, "remove", "before"),
    "at the end": (Ledger, "complete_erasure", "before"),
}


def die(place: Path, settings: Settings, column: dict[str, str] | None, step: str) -> None:
    owner, name, when = STEPS[step]
    trap(owner, name, when, signal.SIGKILL)
    work(open_world(place, settings), key=None if column else VISIT, column=column).run(actor="tester", reason="asked")


@pytest.mark.parametrize(
    ("step", "column"),
    [
        *((step, None) for step in STEPS),
        # What a value stands for is found by rows that go, too.
        *((step, {"kind": KIND}) for step in ("before the predictions database", "between snapshots and files")),
    ],
)
def test_an_erasure_that_is_killed_is_taken_up_and_ends_the_same(
    world: World, tmp_path: Path, step: str, column: dict[str, str] | None
) -> None:
    version = sampled(world)
    child = processes.Process(target=die, args=(tmp_path, world.settings, column, step))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    [open_one] = world.ledger.erasures("toy")
    assert open_one.completed_at is None
    done = work(world, key=None if column else VISIT, column=column).run(actor="tester", reason="asked")
    assert done is not None
    assert done.id == open_one.id
    assert done.rows == GONE
    assert done.versions["rewritten"] == [version]
    assert "doomed" not in done.details
    assert world.registry.load("toy", version).reference().num_rows == 598
    assert_gone(world)


# --- a whole state ---------------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two models that have lived for a month, with quarantine, reports, shadows and a champion."""
    unpack("03fd27a", tmp_path / "old")
    state = tmp_path / "old" / "var"
    environment = {
        "PERENNIAL_STATE": str(state),
        "PERENNIAL_MODELS": str(tmp_path / "old" / "models"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{state / 'mlflow.db'}",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = read_settings(environment)
    Ledger(settings.database_url).migrate()
    return settings


def command(*words: str) -> int:
    settings_of_the_process.cache_clear()
    try:
        with pytest.raises(SystemExit) as ended:
            main(words)
    finally:
        settings_of_the_process.cache_clear()
    return int(ended.value.code or 0) if not isinstance(ended.value.code, str) else 1


def test_no_file_of_a_deployment_holds_a_forgotten_order_but_its_source_and_other_models(
    old: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    order = "0110-05"
    assert len(holders(old.state, order)) > 5
    assert command("forget", "shop", "--key", f"id={order}", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "samples of versions 1, 2, 3" in told
    assert "other models have columns of that name and were not searched: returns" in told
    assert command("forget", "shop", "--key", f"id={order}", "--yes") == 0
    assert "versions that can no longer be reproduced: 1, 2, 3" in capsys.readouterr().out
    assert command("forget", "returns", "--key", f"id={order}", "--yes") == 0
    assert holders(old.state, order) == ["data/orders/2024-01-10.csv", "data/outcomes/2024-01-10.csv"]
    parts = Deployment(old)
    assert verify(parts).problems == []
    assert parts.registry.load("shop", 2, spec=parts.model("shop").spec).reference().num_rows == 879


def test_nobody_is_asked_where_nobody_is(old: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("0110-05\n"))
    assert command("forget", "shop", "--key", "id=-") == 1
    assert Ledger(old.database_url).erasures("shop") == []


def test_an_entity_that_is_asked_online_by_key_is_erased_there(world_on_each_database: World) -> None:
    world = world_on_each_database
    online = OnlineTable(world.settings.predictions_url)
    asked = pa.table({"visit": pa.array([VISIT, "v000008-11"], pa.string())})
    rows = published(world).filter(pc.is_in(published(world)["visit"], value_set=asked["visit"].combine_chunks()))
    now = datetime.now(UTC)
    online.replace(world.folder, [Part(rows, now, now, 1)], Made(1, now, 0))
    assert None not in online.read(place_of(world.folder), asked).places

    forgetting = Forgetting(world.deployment, entity_of(world.folder.spec, key={"visit": VISIT}, column=None))
    assert forgetting.survey().rows["online_features"] == 1
    done = forgetting.run(actor="tester", reason="asked for")

    assert done is not None
    assert done.rows["online_features"] == 1
    assert online.read(place_of(world.folder), asked).places == [None, 0]


def test_what_was_asked_about_an_entity_is_erased_before_and_after_it_is_published(world_on_each_database: World) -> None:
    world = world_on_each_database
    table = RequestTable(world.settings.predictions_url)
    table.create()
    now = datetime.now(UTC)

    def record(number: int) -> None:
        asked = [(f'["{VISIT}"]', "b"), ('["v000008-11"]', "a"), (None, "named")]
        rows = [
            {
                "model": "toy", "chunk": f"one-{number}", "place": place, "asked_at": now, "request_id": "r",
                "row": 0, "version": 1, "role": "champion", "form": "key", "entity": entity, "came": "{}",
                "features": f'{{"kind":"{kind}","x":1.5}}',
                "prediction": "0.5", "seconds": 0.1,
            }
            for place, (entity, kind) in enumerate(asked)
        ]  # fmt: skip
        table.add("one", "toy", number, pa.RecordBatch.from_pylist(rows, schema=SCHEMA))

    record(1)
    publish_requests(world.lake, table, "toy", run_id="before")
    record(2)
    for named, key, column in ((VISIT, {"visit": VISIT}, None), ("named", None, {"kind": "named"})):
        forgetting = Forgetting(world.deployment, entity_of(world.folder.spec, key=key, column=column))
        assert forgetting.survey().rows["online_requests"] == 2
        done = forgetting.run(actor="tester", reason="asked for")
        assert done is not None
        assert done.rows["online_requests"] == 2
        assert forgetting.survey().rows["online_requests"] == 0
        left = [row["features"] for batch in read_published(world.lake, "toy") for row in batch.to_pylist()]
        assert not any(f'"{named}"' in features for features in left)

    assert table.count("toy") == 1
    assert publish_requests(world.lake, table, "toy", run_id="after").rows == 1
    kept = [row["entity"] for batch in read_published(world.lake, "toy") for row in batch.to_pylist()]
    assert kept == ['["v000008-11"]'] * 2


def test_what_was_pushed_about_an_entity_is_erased(world_on_each_database: World) -> None:
    world = world_on_each_database
    rows, now = PushedRows(world.settings.predictions_url), datetime.now(UTC)

    def push(table: str, **values: str | None) -> None:
        text = json.dumps({"moment": now.isoformat(), **values})
        rows.keep("toy", table, [PushedRow(now, text, text, text)], now)

    for visit, kind in ((VISIT, "b"), ("new", "named"), ("v000008-11", "a")):
        push("visits", visit=visit, kind=kind, x="1.5")
        push("outcomes", visit=visit, y="1.5")
    # Whoever is named by a column has a key in what was pushed, though in nothing that is published.
    for key, column in (({"visit": VISIT}, None), (None, {"kind": "named"})):
        forgetting = Forgetting(world.deployment, entity_of(world.folder.spec, key=key, column=column))
        assert forgetting.survey().rows["pushed_rows"] == 2
        done = forgetting.run(actor="tester", reason="asked for")
        assert done is not None
        assert done.rows["pushed_rows"] == 2
        assert forgetting.survey().rows["pushed_rows"] == 0

    [left] = rows.find("toy", lambda found: pa.repeat(True, found.num_rows))
    assert [json.loads(text)["visit"] for text in left["row"].to_pylist()] == ["v000008-11"] * 2


def published(world: World) -> pa.Table:
    newest = world.ledger.published("toy", "features")
    assert newest is not None
    rows = world.lake.scan("toy", "features", newest.snapshots["features"]).read_all()
    schema = feature_schema(world.folder.spec)
    return rows.select(schema.names).cast(schema)
