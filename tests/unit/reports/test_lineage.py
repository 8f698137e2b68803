"""Back from a prediction to files, forward from raw rows to predictions, through what was published and replaced since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from threadpoolctl import threadpool_limits

from perennial.cli import by_hand
from perennial.cli.main import main
from perennial.core.errors import LineageError
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.features.publish import ensure_features
from perennial.ledger.records import Head, Publication
from perennial.operations.maintenance import maintain
from perennial.reports.lineage import ModelHistory, Node, trace_back, trace_forward
from perennial.reports.traces import draw, find_prediction, read_history
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

START = synthetic.START
PERIOD = Interval(START, START + timedelta(days=25))
SCORED = Interval.day(PERIOD.end)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Boosters on a few rows; with more threads than free cores they would wait for each other most of the time."""
    with threadpool_limits(1):
        yield


# --- which publication a reader sees, without any lake ---------------------------------------------------------------


def days(first: int, last: int) -> Interval:
    return Interval(START + timedelta(days=first), START + timedelta(days=last))


def publication(number: int, interval: Interval, *, dataset: str = "tables", **inputs: Any) -> Publication:
    table = "visits" if dataset == "tables" else dataset
    return Publication(
        id=number, model="toy", dataset=dataset, interval=interval, order=number, snapshots={table: 100 + number},
        hashes={table: str(number)}, rows={table: 10}, run_id=f"run-{number}", published_at=NOW, inputs=inputs,
    )  # fmt: skip


def history(*made: Publication, lookback: int = 0, timeless: frozenset[str] = frozenset()) -> ModelHistory:
    publications = {
        dataset: [one for one in made if one.dataset == dataset] for dataset in dict.fromkeys(one.dataset for one in made)
    }
    revisions = {dataset: [Head(one.id, one.id, one.snapshots) for one in ones] for dataset, ones in publications.items()}
    return ModelHistory("toy", publications, revisions, [], [], {"visits": "rows"}, timeless, timedelta(days=lookback))


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=12),
    st.tuples(st.integers(0, 12), st.integers(1, 6)),
    st.integers(0, 12),
)
def test_a_reader_sees_of_each_day_the_newest_publication_that_covers_it(
    spans: list[tuple[int, int]], read: tuple[int, int], upto: int
) -> None:
    made = [publication(number, days(first, first + length)) for number, (first, length) in enumerate(spans)]
    within = days(read[0], sum(read))
    expected = {
        max(covering)
        for day in within.days()
        if (covering := [one.id for one in made if one.id <= upto and one.interval.contains(day)])
    }
    assert {one.id for one in history(*made).standing("tables", "visits", within, upto)} == expected


def test_a_table_without_event_time_is_what_was_published_for_the_latest_interval() -> None:
    made = [publication(0, days(5, 6)), publication(1, days(0, 1))]
    known = history(*made, timeless=frozenset({"visits"}))
    assert known.standing("tables", "visits", days(0, 1)) == [made[0]]


def test_features_are_traced_to_what_their_lookback_offered_them_and_to_nothing_replaced_before() -> None:
    replaced, day_one, day_two = publication(1, days(0, 1)), publication(2, days(0, 1)), publication(3, days(1, 2))
    later = publication(5, days(0, 1))
    features = publication(4, days(1, 2), dataset="features", tables={"visits": 103}, publication=3, reads=days(0, 2).key)
    known = history(replaced, day_one, day_two, features, later)
    assert known.tables_of(features) == {"visits": [day_one, day_two]}
    onward = {node.facts["publication"]: node for node in trace_forward(known, days(0, 1)).leads_to}
    assert [node.kind for node in onward[1].leads_to] == ["missing"]
    assert [node.facts["publication"] for node in onward[2].leads_to] == [4]
    assert [node.kind for node in onward[5].leads_to] == ["missing"]
    assert {number: node.facts["standing"] for number, node in onward.items()} == {1: False, 2: False, 5: True}


def test_a_table_without_event_time_does_not_make_every_day_depend_on_every_other() -> None:
    raw = publication(1, days(0, 30))
    raw.rows["planes"] = 7
    features = publication(
        2, days(0, 30), dataset="features", tables={"visits": 101, "planes": 101}, publication=1, reads=days(-2, 30).key
    )
    [node] = trace_forward(history(raw, features, timeless=frozenset({"planes"})), days(3, 4)).leads_to
    assert [child.name for child in node.leads_to] == [
        f"features of {days(3, 6)}, out of {days(0, 30)}",
        "planes, which has no event time and was read whole",
    ]
    assert node.leads_to[1].facts["features"] == [2]


def test_predictions_are_found_through_the_features_that_they_read() -> None:
    raw = publication(1, days(0, 1))
    features = publication(2, days(0, 1), dataset="features", tables={"visits": 101}, publication=1)
    again = publication(3, days(0, 1), dataset="features", tables={"visits": 101}, publication=1)
    by_old, by_new = (
        publication(number, days(0, 1), dataset="predictions", version=7, features=snapshot)
        for number, snapshot in ((4, 102), (5, 103))
    )
    shadow = publication(6, days(0, 1), dataset="shadows", versions=[5, 6], features=103)
    forward = trace_forward(history(raw, features, again, by_old, by_new, shadow), days(0, 1))
    assert [node.facts["versions"] for node in forward.find("prediction")] == [[7], [7], [5, 6]]
    found = {node.facts["publication"]: [one.name for one in node.leads_to] for node in forward.find("features")}
    assert found == {2: [f"predictions of {days(0, 1)}"], 3: [f"predictions of {days(0, 1)}", f"shadows of {days(0, 1)}"]}


# --- a deployment ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Trained on 25 days; a day after them scored; then an old day published once more, and its features."""
    place = tmp_path_factory.mktemp("traced")
    world = make_world(place, synthetic.deployment(place))
    rows = synthetic.make_rows(26)
    for part in (days(0, 20), days(20, 25), days(25, 26)):
        of_part = rows[(rows["moment"] >= part.start) & (rows["moment"] < part.end)]
        synthetic.publish_tables(world.lake, world.ledger, of_part, part, run_id=f"ingest-{part.key}")
    with threadpool_limits(1):
        by_hand.train(world.settings, "toy", PERIOD.end)
        ensure_features(world.folder, world.lake, SCORED, run_id="features")
        world.score(1, SCORED)
        backfill = synthetic.make_rows(1, seed=9, start=days(25, 26).start)
        synthetic.publish_tables(world.lake, world.ledger, backfill, days(25, 26), run_id="backfill")
        ensure_features(world.folder, world.lake, SCORED, run_id="features again")
    return world


def trace(world: World, visit: str, at: Interval | None = None) -> Node:
    spec = world.folder.spec
    found = find_prediction(world.lake, world.ledger, spec, [visit], at)
    return trace_back(read_history(world.ledger, spec), found)


def test_a_prediction_is_traced_to_the_rows_it_was_made_from_and_not_to_those_that_came_later(world: World) -> None:
    visit = world.predictions(SCORED)[0]["visit"]
    node = trace(world, visit, SCORED)
    assert node.name == visit
    [version] = [child for child in node.leads_to if child.kind == "version"]
    record = world.ledger.version("toy", 1)
    assert record is not None
    assert version.facts["mlflow_run"] == record.mlflow_run_id
    [features] = [child for child in node.leads_to if child.kind == "features"]
    assert features.facts["run"] == "features"
    runs = {table.name: {made.facts["run"] for made in table.leads_to} for table in features.leads_to}
    # The lookback is two days.
    assert runs == {"visits": {"ingest-2013-03-21--2013-03-26", "ingest-2013-03-26"}}
    assert "it was published before that was recorded" in features.find("missing")[0].name


def test_a_version_is_traced_to_its_own_training_set(world: World) -> None:
    node = trace(world, world.predictions(SCORED)[0]["visit"])
    [learned] = node.find("training set")
    assert learned.name == (
        "1,200 rows of 2013-03-01--2013-03-21, judged on 300 of 2013-03-21--2013-03-26; it serves a refit on 1,500 rows of "
        "2013-03-01--2013-03-26"
    )
    record = world.ledger.version("toy", 1)
    assert record is not None
    assert record.evaluation.refit is not None
    assert learned.facts["content"] == {**record.training.content, "refit": record.evaluation.refit.content}
    names = [child.name for child in learned.leads_to]
    assert names == [
        "features: 1 publication of 2013-03-01--2013-03-26",
        "outcomes, for keys and labels: 2 publications of 2013-03-01--2013-03-26",
        "visits, for keys and labels: 2 publications of 2013-03-01--2013-03-26",
        "tables that these were made from: 2 publications of 2013-03-01--2013-03-26",
    ]


def test_raw_rows_are_followed_to_features_versions_and_predictions(world: World) -> None:
    forward = trace_forward(read_history(world.ledger, world.folder.spec), days(22, 23))
    [raw] = forward.leads_to
    assert raw.facts["run"] == "ingest-2013-03-21--2013-03-26"
    # The day that was scored lies three days later, beyond the lookback.
    [trained] = raw.find("features")
    assert [child.name for child in trained.leads_to] == ["version 1"]
    assert trained.leads_to[0].facts["predicted"]["publications"] == 1
    assert trained.leads_to[0].facts["took"] == "features, for its holdout"
    near = trace_forward(read_history(world.ledger, world.folder.spec), days(24, 25))
    found = {node.facts["run"]: [child.name for child in node.leads_to] for node in near.find("features")}
    assert list(found.values())[1:] == [["predictions of 2013-03-26"], []]
    assert list(found)[1:] == ["features", "features again"]
    early = trace_forward(read_history(world.ledger, world.folder.spec), days(0, 1))
    assert {node.facts["took"] for node in early.find("version")} == {
        "features, for its window", "keys and labels, for its window"
    }  # fmt: skip
    # It was one publication of 25 days, of which the first three may know of the first day.
    assert early.find("features")[0].name == f"features of {days(0, 3)}, out of {days(0, 25)}"


def test_maintenance_does_not_break_the_thread(world: World, tmp_path: Path) -> None:
    visit = world.predictions(SCORED)[0]["visit"]
    before = trace(world, visit).to_json()
    maintain(world.deployment, world.folder.spec, now=NOW + timedelta(days=400))
    assert trace(world, visit).to_json() == before


def test_a_prediction_that_there_is_not_and_a_key_that_is_none_are_errors(world: World) -> None:
    with pytest.raises(LineageError, match="no prediction of visit nobody among all predictions is published"):
        trace(world, "nobody")
    with pytest.raises(LineageError, match=r"no prediction of visit nobody of 2013-03-26 is published"):
        trace(world, "visit=nobody", SCORED)
    with pytest.raises(LineageError, match="a prediction is named by visit; 2 values were given"):
        find_prediction(world.lake, world.ledger, world.folder.spec, ["a", "b"], None)


def test_what_was_never_published_leads_nowhere(world: World) -> None:
    forward = trace_forward(read_history(world.ledger, world.folder.spec), days(300, 301))
    assert [node.name for node in forward.leads_to] == ["publications: nothing of 2013-12-26 was ever published"]


def test_files_are_found_by_name_and_hash(tmp_path: Path) -> None:
    world = make_world(tmp_path, synthetic.deployment(tmp_path))
    (world.settings.data / "rows").mkdir(parents=True)
    rows = synthetic.make_rows(3)
    for day in days(0, 3).days():
        of_day = rows[(rows["moment"] >= day.start) & (rows["moment"] < day.end)]
        of_day.to_csv(world.settings.data / "rows" / f"{day.key}.csv", index=False)
    by_hand.ingest(world.settings, "toy", days(0, 3))
    world.score(world.register(), days(2, 3))
    node = trace(world, world.predictions(days(2, 3))[5]["visit"])
    [features] = [child for child in node.leads_to if child.kind == "features"]
    content = (world.settings.data / "rows" / "2013-03-03.csv").read_bytes()
    files = {file.name: file.facts["sha256"] for file in features.find("file")}
    assert sorted(files) == [f"rows/2013-03-0{day}.csv" for day in (1, 2, 3)]
    assert files["rows/2013-03-03.csv"] == hashlib.sha256(content).hexdigest()
    # What the version learned from was made up; that is said, not guessed.
    assert "the ledger has no revision with the snapshot" in node.find("training set")[0].find("missing")[0].name
    forward = trace_forward(read_history(world.ledger, world.folder.spec), days(0, 1))
    assert forward.leads_to[0].facts["files"] == ["rows/2013-03-01.csv"]
    assert [found.name for found in forward.find("prediction")] == ["predictions of 2013-03-03"]


def test_the_command_draws_a_tree_and_writes_json(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("perennial.cli.questions.settings", lambda: world.settings)
    visit = world.predictions(SCORED)[0]["visit"]
    for arguments in (["--prediction", visit, "--at", "2013-03-26"], ["--interval", "2013-03-21", "2013-03-22"]):
        with pytest.raises(SystemExit) as ended:
            main(["lineage", "toy", *arguments])
        assert ended.value.code == 0
    told = capsys.readouterr().out
    assert f"{visit}  value" in told
    assert "version 1" in told
    with pytest.raises(SystemExit):
        main(["lineage", "toy", "--prediction", visit, "--json"])
    assert json.loads(capsys.readouterr().out)["name"] == visit


def test_a_name_is_never_taken_for_markup() -> None:
    console = Console(width=200)
    with console.capture() as drawn:
        console.print(draw(Node("prediction", "[bold red]x[/]", {"value": "[link=http://a]b[/link]"})))
    assert "[bold red]x[/]" in drawn.get()
    assert "[link=http://a]b[/link]" in drawn.get()


def test_many_neighbours_are_counted_rather_than_drawn(settings: Settings) -> None:
    console = Console(width=200)
    with console.capture() as drawn:
        console.print(draw(Node("table", "t", {}, tuple(Node("file", f"file {n}") for n in range(20)))))
    assert "file 5" in drawn.get()
    assert "14 more" in drawn.get()
    assert "file 6" not in drawn.get()
