"""What was asked online in a window is judged like what the batch predicts on, beside it, and never passes unseen."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.evidence.verdict import AskedDrift, VerdictDetails
from perennial.monitoring.requests import request_retraining
from perennial.monitoring.verdicts import DriftVerdict, judge_drift
from perennial.operations.retention import remove_old_rows
from perennial.serving.recorded import publish_requests, read_published
from perennial.serving.request_table import SCHEMA, RequestTable
from perennial.spec.folder import read_model
from tests.unit import synthetic
from tests.unit.monitored import WEEK, World, make_world

NEXT = Interval(WEEK.end, WEEK.end + timedelta(days=7))
SECRET = "tiger-42"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return asked_online(tmp_path)


def asked_online(place: Path, task: str = "binary_classification") -> World:
    """A model that is asked online, with a champion whose batch is well."""
    world = make_world(place, synthetic.deployment(place), task, online="label: => online: {horizon: null}\nlabel:")
    world.promote(world.register())
    batch(world, WEEK)
    return world


def batch(world: World, week: Interval) -> None:
    world.publish(week)
    world.score(1, week)


def ask(world: World, at: datetime = WEEK.start, count: int = 300, *, moved: float = 0.0, **given: Any) -> None:
    """Record rows as a scorer does, one a minute; not published yet."""
    rows = synthetic.make_rows(7, 60, seed=31, start=WEEK.start).head(count)
    rows["x"] += moved
    features = rows[["x", "noise", "kind"]]
    said = world.registry.load("toy", 1).predict(pa.Table.from_pandas(features, preserve_index=False))
    # Texts are classes; a scorer records them with their probabilities.
    answers = [
        {"prediction": value, "probabilities": {}} if isinstance(value, str) else value for value in said.values.tolist()
    ]
    chunk = f"{at}-{count}-{moved}-{sorted(given.items())}"
    records = [
        {
            "model": "toy", "chunk": chunk, "place": place, "asked_at": at + timedelta(minutes=place),
            "request_id": f"r{place}", "row": 0, "version": 1, "role": "champion", "form": "key", "definition": "d",
            "came": json.dumps({"stored": list(row)}), "features": json.dumps(row), "prediction": json.dumps(answer),
            "seconds": 0.001, **given,
        }
        for place, (row, answer) in enumerate(zip(plain(features), answers, strict=True))
    ]  # fmt: skip
    table = RequestTable(world.settings.predictions_url)
    table.create()
    table.add(chunk, "toy", 1, pa.RecordBatch.from_pylist(records, schema=SCHEMA))


def plain(features: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values, without NaN."""
    rows: list[dict[str, Any]] = pa.Table.from_pandas(features, preserve_index=False).to_pylist()
    return rows


def judge(world: World, interval: Interval = WEEK) -> DriftVerdict:
    return judge_drift(world.folder, world.deployment, interval, directory=world.settings.reports, run_id="monitor")


def found(verdict: DriftVerdict) -> AskedDrift:
    assert verdict.details.asked is not None
    return verdict.details.asked


def alerts(world: World) -> list[tuple[str, str]]:
    told = [entry.alert for entry in world.ledger.alerts() if entry.alert.kind != "promoted"]
    return [(alert.kind, alert.severity) for alert in told]


def test_a_model_that_nobody_asked_is_judged_as_before(world: World, tmp_path: Path) -> None:
    ask(world, WEEK.start - timedelta(days=1))
    ask(world, WEEK.end)
    verdict = judge(world)
    assert (verdict.verdict, verdict.details.asked) == ("ok", None)
    assert alerts(world) == []
    assert verdict.report is not None
    assert not (world.settings.reports / verdict.report).with_name("asked").exists()

    batch_only = make_world(tmp_path / "batch", synthetic.deployment(tmp_path / "batch"))
    batch_only.promote(batch_only.register())
    batch(batch_only, WEEK)
    assert judge(batch_only).details.asked is None


@pytest.mark.parametrize("task", ["binary_classification", "multiclass_classification", "regression"])
def test_rows_like_those_of_the_training_are_ok_with_a_page_of_their_own(tmp_path: Path, task: str) -> None:
    world = asked_online(tmp_path, task)
    ask(world)
    verdict = judge(world)
    asked = found(verdict)
    assert (verdict.verdict, asked.verdict, asked.version) == ("ok", "ok", 1)
    assert (asked.rows, asked.compared, asked.left_out) == (300, 300, 0)
    assert {column.column for column in asked.columns} == {"prediction", "x", "noise", "kind"}
    assert alerts(world) == []
    assert asked.report == f"toy/drift/{WEEK.key}/asked/report.html"
    page = (world.settings.reports / asked.report).read_text()
    assert f"<h1>toy, asked online, {WEEK.key}: " in page
    assert verdict.report is not None
    assert "Asked online in this window: <b>ok</b>" in (world.settings.reports / verdict.report).read_text()
    (recorded,) = world.ledger.verdicts("toy")
    assert recorded.details.asked == asked
    assert VerdictDetails.from_json(json.loads(json.dumps(verdict.details.to_json()))) == verdict.details


def test_drift_of_requests_is_told_by_itself_and_asks_for_no_training(world: World) -> None:
    ask(world, moved=3)
    verdict = judge(world)
    assert (verdict.verdict, found(verdict).verdict) == ("ok", "drift")
    assert any(reason.startswith("x moved by 3.") for reason in found(verdict).reasons)
    assert alerts(world) == [("drift", "warning")]
    (told,) = (entry.alert for entry in world.ledger.alerts() if entry.alert.kind == "drift")
    assert told.title == f"toy: drift of online requests in {WEEK.key}"
    assert "online" in told.text.partition("\n")[0]
    request = request_retraining(world.folder.spec, world.ledger, WEEK, run_id="monitor", training_under_way=False)
    assert request is None

    assert judge(world) == verdict, "judged again, it is the same"
    assert alerts(world) == [("drift", "warning")]


def test_an_alert_ends_with_a_later_window_that_is_well_or_in_which_nothing_was_asked(world: World) -> None:
    def is_open() -> bool:
        return [entry.alert.kind for entry in world.ledger.alerts()].count("recovered") == 0

    ask(world, moved=3)
    judge(world)
    batch(world, NEXT)
    ask(world, NEXT.start, 5)
    assert found(judge(world, NEXT)).verdict == "not_judged"
    assert is_open(), "few rows say nothing"
    ask(world, NEXT.start)
    assert found(judge(world, NEXT)).verdict == "ok"
    assert not is_open()


def test_drift_that_lasts_is_critical(world: World) -> None:
    batch(world, NEXT)
    for week in (WEEK, NEXT):
        ask(world, week.start, moved=3)
        judge(world, week)
    assert alerts(world) == [("drift", "warning"), ("drift", "critical")]
    verdict = judge(world, NEXT)
    assert (verdict.verdict, verdict.details.severity) == ("ok", "none"), "the batch has a count of its own"


def test_few_rows_are_not_judged_and_that_is_said(world: World) -> None:
    ask(world, count=20, moved=3)
    verdict = judge(world)
    assert found(verdict).verdict == "not_judged"
    assert found(verdict).reasons == [
        f"20 rows were asked online and answered from features; a verdict requires at least {world.folder.spec.drift.min_rows}"
    ]
    assert alerts(world) == []
    assert verdict.report is not None
    assert "<b>not judged</b>: 20 rows" in (world.settings.reports / verdict.report).read_text()


def test_only_answers_of_the_champion_to_requests_of_the_window_count(world: World) -> None:
    ask(world)
    ask(world, WEEK.start - timedelta(minutes=300), moved=9)
    ask(world, WEEK.end, moved=9)
    for role in ("shadow", "canary"):
        ask(world, moved=9, role=role)
    ask(world, count=100, moved=9, version=7)
    asked = found(judge(world))
    assert (asked.verdict, asked.version, asked.rows, asked.compared) == ("ok", 1, 400, 300)
    assert "compared with version 1, which answered 75% of them; those of version 7 were left out" in asked.reasons


def test_rows_without_stored_features_are_left_out_and_what_clients_gave_counts(world: World) -> None:
    nothing = json.dumps({"x": None, "noise": None, "kind": None})
    ask(world)
    ask(world, count=200, fallback="null", features=nothing)
    asked = found(judge(world))
    assert (asked.verdict, asked.rows, asked.left_out, asked.compared) == ("ok", 500, 200, 300)
    assert "200 of 500 rows were answered without stored features, and left out" in asked.reasons
    ask(world, moved=4, count=299, fallback="last")
    ask(world, moved=4, came=json.dumps({"given": ["x"]}))
    assert found(judge(world)).verdict == "drift"


def test_a_feature_that_clients_leave_out_cannot_be_judged(world: World) -> None:
    ask(world, features=json.dumps({"x": 0.1, "kind": "a"}))
    asked = found(judge(world))
    assert asked.verdict != "ok"
    assert any(reason.startswith("noise had 100.0% missing values") for reason in asked.reasons)


def test_what_clients_send_is_quoted_nowhere(world: World, caplog: pytest.LogCaptureFixture) -> None:
    ask(world, features=json.dumps({"x": 0.1, "noise": 0.2, "kind": SECRET}))
    asked = found(judge(world))
    assert any("has 100.0% values in categories that are not in the reference" in reason for reason in asked.reasons)
    assert SECRET not in json.dumps([entry.alert.to_json() for entry in world.ledger.alerts()])
    assert SECRET not in json.dumps(world.ledger.verdicts("toy")[0].details.to_json())
    assert SECRET not in caplog.text
    for file in world.settings.reports.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    # Not in what a fault says, either.
    ask(world, features="not JSON: " + SECRET)
    assert found(judge(world)).verdict == "unknown"
    assert SECRET not in caplog.text
    assert SECRET not in json.dumps([entry.alert.to_json() for entry in world.ledger.alerts()])


def test_what_waits_to_be_published_is_published_first(world: World) -> None:
    ask(world, count=150)
    publish_requests(world.lake, RequestTable(world.settings.predictions_url), "toy", run_id="record")
    ask(world, WEEK.start + timedelta(days=1), count=151)
    assert found(judge(world)).rows == 301
    assert RequestTable(world.settings.predictions_url).hours("toy") == []
    assert sum(batch.num_rows for batch in read_published(world.lake, "toy")) == 301


def test_without_the_predictions_database_the_verdict_on_requests_is_unknown_and_that_on_the_batch_stands(
    world: World, tmp_path: Path
) -> None:
    ask(world)
    judge(world)
    folder = tmp_path / "a folder"
    folder.mkdir()
    whole = world.deployment
    world.deployment = Deployment(whole.settings.model_copy(update={"predictions_url": f"sqlite:///{folder}"}))
    verdict = judge(world)
    assert (verdict.verdict, found(verdict).verdict) == ("ok", "unknown")
    assert "run toy.record" in found(verdict).reasons[0]
    assert alerts(world) == [("unknown_verdict", "warning")]
    (told,) = (entry.alert for entry in world.ledger.alerts() if entry.alert.kind == "unknown_verdict")
    assert "online requests" in told.title

    world.deployment = whole
    assert found(judge(world)).verdict == "ok"
    assert [entry.alert.kind for entry in world.ledger.alerts()].count("recovered") == 1


def test_a_version_that_cannot_be_loaded_is_unknown(world: World) -> None:
    ask(world, version=9)
    asked = found(judge(world))
    assert (asked.verdict, asked.version, asked.rows, asked.compared) == ("unknown", None, 0, 0)


def test_requests_past_their_retention_are_not_judged_and_never_count_as_none(world: World) -> None:
    ask(world, moved=3)
    judge(world)
    file = world.folder.path / "model.yaml"
    file.write_text(file.read_text() + "retention: {requests: 90d}\n")
    spec = read_model(world.folder.path).spec
    remove_old_rows(world.settings.predictions_url, world.lake, world.ledger, spec, now=WEEK.end + timedelta(days=200))
    asked = found(judge(world))
    assert asked.verdict == "not_judged"
    assert "past their retention" in asked.reasons[0]
    assert [entry.alert.kind for entry in world.ledger.alerts()].count("recovered") == 0
