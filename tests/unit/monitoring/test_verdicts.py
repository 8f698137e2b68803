"""The verdict on a window is recorded with its report, its estimate and its alert, whatever fails."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from mlflow import MlflowClient

from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.evidence.evaluation import Evaluation, GainOverChampion
from perennial.evidence.monitoring import Constant
from perennial.evidence.verdict import ESTIMATE_LIMIT, Estimate
from perennial.monitoring import estimation
from perennial.monitoring.verdicts import DriftVerdict, estimate_bound, judge_drift, read_outlook
from perennial.spec.model import ModelSpec
from tests.unit.monitored import WEEK, World, make_world
from tests.unit.synthetic import MODEL, evaluation_of

# Evidently, once :mod:`perennial.drift.compare` has imported it without its warnings.
from evidently.core.report import Snapshot  # isort: skip


# --- what a fall is measured from --------------------------------------------------------------------------------------


def test_an_estimate_is_compared_with_the_surest_bound_there_is() -> None:
    automatic, asked = make_spec(), make_spec("retraining: {on_performance: 0.05}")
    without = evaluation_of(0.8)
    holdout = dataclasses.replace(
        without, candidate=dataclasses.replace(without.candidate, intervals={"roc_auc": [0.77, 0.83]})
    )
    known = Estimate("roc_auc", usual=[0.7, 0.9], rows=100)

    def value(spec: ModelSpec, evaluation: Evaluation, estimate: Estimate | None) -> float | None:
        found = estimate_bound(spec, evaluation, estimate, WEEK.length)
        return None if found is None else round(found.value, 6)

    assert value(asked, holdout, known) == value(asked, without, known) == 0.75
    many, few = (value(automatic, holdout, dataclasses.replace(known, rows=rows)) for rows in (known.rows, 25))
    assert many is not None
    assert few is not None
    assert 0.75 < many < 0.77
    assert few < many
    assert value(automatic, without, known) == 0.7
    assert value(automatic, without, None) is None
    assert value(asked, evaluation_of(math.nan), dataclasses.replace(known, usual=None)) is None


# --- an interval: from the lake to the ledger ------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    return make_world(tmp_path, settings)


def judge_interval(world: World, interval: Interval = WEEK) -> DriftVerdict:
    return judge_drift(world.folder, world.deployment, interval, directory=world.settings.reports, run_id="monitor")


def make_spec(more: str = "") -> ModelSpec:
    text = MODEL.format(
        task="binary_classification", label="y > 0.5", baseline="logistic: {estimator: logistic_regression, baseline: true}"
    )
    return ModelSpec.model_validate(yaml.safe_load(f"{text}{more}"))


def alerts(world: World) -> list[str]:
    told = world.ledger.alerts()
    return [entry.alert.kind for entry in told if entry.alert.kind != "promoted"]


def move(rows: pd.DataFrame) -> None:
    rows["x"] += 3


def test_a_stable_week_is_recorded_as_ok_with_its_report(world: World) -> None:
    world.publish(WEEK)
    version = world.register()
    world.score(version, WEEK)
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.version) == ("ok", version)
    (recorded,) = world.ledger.verdicts("toy")
    assert (recorded.verdict, recorded.version, recorded.reasons) == ("ok", version, verdict.reasons)
    assert recorded.details.rows is not None
    assert recorded.details.rows.features == recorded.details.rows.predictions == 420
    found = {column.column: column for column in recorded.details.columns}
    assert set(found) == {"prediction", "x", "noise", "kind"}
    assert all(isinstance(column.score, float) and not column.drifted for column in found.values())
    assert verdict.report == recorded.report == "toy/drift/2013-04-01--2013-04-08/report.html"
    folder = (world.settings.reports / verdict.report).parent
    assert {path.name for path in folder.iterdir()} == {"report.html", "evidently.json.gz", "verdict.json"}
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == "ok"
    unpacked = folder / "evidently.json"
    unpacked.write_bytes(gzip.decompress((folder / "evidently.json.gz").read_bytes()))
    assert Snapshot.load(unpacked).dict()["metrics"]
    assert alerts(world) == []
    assert DriftVerdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


def test_a_drifted_week_is_recorded_and_people_are_told(world: World) -> None:
    world.publish(WEEK, change=move)
    world.score(world.register(), WEEK)
    verdict = judge_interval(world)
    assert verdict.verdict == world.ledger.verdicts("toy")[0].verdict == "drift"
    assert any(reason.startswith("x moved by 3.") for reason in verdict.reasons)
    assert alerts(world) == ["drift"]
    judge_interval(world)
    assert len(world.ledger.verdicts("toy")) == 1
    assert alerts(world) == ["drift"]


def test_the_report_says_the_verdict_and_is_named_in_mlflow(world: World) -> None:
    world.publish(WEEK, change=move)
    version = world.register()
    world.score(version, WEEK)
    verdict = judge_interval(world)
    page = (world.settings.reports / str(verdict.report)).read_text()
    assert '<span style="color:#b35900">drift</span>' in page
    assert "x moved by" in page
    record = world.ledger.version("toy", version)
    assert record is not None
    client = MlflowClient(tracking_uri=world.settings.mlflow_url)
    assert client.list_artifacts(record.mlflow_run_id, "drift") == []
    tags = client.get_run(record.mlflow_run_id).data.tags
    assert tags["drift report 2013-04-01 to 2013-04-08"] == str(world.settings.reports / str(verdict.report))


def test_a_report_takes_little_room_and_runs_and_fetches_nothing(world: World) -> None:
    world.publish(WEEK, change=move)
    world.score(world.register(), WEEK)
    verdict = judge_interval(world)
    file = world.settings.reports / str(verdict.report)
    page = file.read_text()
    assert sum(part.stat().st_size for part in file.parent.iterdir()) < 200_000
    assert page.count("<svg ") == len(verdict.details.columns) == 4
    assert not re.search(r"<script|<link|<iframe|<img|javascript:| on\w+=|(src|href)=", page)
    assert "http" not in page


def test_values_in_the_data_cannot_run_in_the_browser_of_whoever_opens_the_report(world: World) -> None:
    attack = "</script><script>alert(1)</script>"
    world.publish(WEEK, change=lambda rows: rows.__setitem__("kind", attack))
    world.score(world.register(), WEEK)
    verdict = judge_interval(world)
    page = (world.settings.reports / str(verdict.report)).read_text()
    assert "script" in " ".join(verdict.reasons)
    assert "<script>alert(1)" not in page


def test_the_version_that_predicted_is_the_one_compared_with(world: World) -> None:
    world.publish(WEEK)
    old, new = world.register("2013-03-10"), world.register("2013-03-20", seed=6)
    world.promote(new)
    world.score(old, WEEK)
    assert judge_interval(world).version == old
    world.score(new, Interval.of("2013-04-02", "2013-04-08"), run_id="again")
    verdict = judge_interval(world)
    assert verdict.version == new
    assert f"compared with version {new}, which made 86% of the predictions; the others, by version {old}, were left out" in (
        verdict.reasons
    )


def test_a_feature_that_was_never_published_costs_only_itself_and_people_are_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(WEEK)
    version = world.register()
    world.score(version, WEEK)
    model = world.registry.load("toy", version)
    takes = dataclasses.replace(model.takes, numeric=(*model.takes.numeric, "gone"))
    sample = model.sample.append_column("gone", pa.array(np.arange(float(model.sample.num_rows))))
    wider = dataclasses.replace(model, takes=takes, sample=sample)
    monkeypatch.setattr(world.registry, "load", lambda *_: wider)
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.reasons[1]) == ("ok", "gone is not among the published features")
    assert verdict.details.severity == "warning"
    [told] = [entry.alert for entry in world.ledger.alerts() if entry.alert.kind == "unknown_verdict"]
    assert told.title == "toy: drift of gone in 2013-04-01--2013-04-08 could not be judged"
    assert "gone is not among the published features" in told.text
    assert "<td>gone</td><td><b>cannot be judged</b>" in (world.settings.reports / str(verdict.report)).read_text()
    monkeypatch.undo()
    assert judge_interval(world).details.severity == "none"
    assert alerts(world) == ["unknown_verdict", "recovered"]


def test_a_week_of_fewer_days_says_so(world: World) -> None:
    part = Interval.of("2013-04-01", "2013-04-06")
    world.publish(part)
    world.score(world.register(), part)
    verdict = judge_interval(world)
    assert verdict.verdict == "ok"
    assert verdict.reasons[-1] == "no predictions are published for 2013-04-06--2013-04-08"
    assert verdict.details.missing == ["2013-04-06--2013-04-08"]


def test_a_week_with_fewer_days_than_it_needs_is_unknown_and_says_what_is_missing(world: World) -> None:
    half = Interval.of("2013-04-01", "2013-04-05")  # four days; schedules.min_days is five
    world.publish(half)
    world.score(world.register(), half)

    verdict = judge_interval(world)

    assert verdict.verdict == "unknown"
    assert verdict.details.missing == ["2013-04-05--2013-04-08"]
    assert verdict.reasons == [
        "4 of the 7 days of 2013-04-01--2013-04-08 have predictions, and 5 are required (schedules.min_days); missing: "
        "2013-04-05--2013-04-08"
    ]


def test_a_week_without_predictions_is_unknown_and_people_are_told(world: World) -> None:
    world.publish(WEEK)
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.version, verdict.report) == ("unknown", None, None)
    assert verdict.reasons == ["no predictions are published for 2013-04-01--2013-04-08"]
    assert world.ledger.verdicts("toy")[0].verdict == "unknown"
    assert alerts(world) == ["unknown_verdict"]


def test_whatever_fails_makes_the_verdict_unknown(world: World) -> None:
    world.publish(WEEK)
    version = world.register()
    world.score(version, WEEK)
    assert judge_interval(world).verdict == "ok"
    (stored,) = world.settings.state.rglob("reference.parquet")
    stored.unlink()
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.version, verdict.report) == ("unknown", version, None)
    assert verdict.reasons[0].startswith("the comparison failed, VersionUnusable: toy version 1: reference.parquet is missing")
    assert world.ledger.verdicts("toy")[0].verdict == "unknown"
    # The report of the verdict before would say something else.
    assert not list(world.settings.reports.rglob("report.html"))


def test_a_report_that_cannot_be_kept_takes_nothing_from_the_verdict(world: World) -> None:
    world.publish(WEEK, change=move)
    world.score(world.register(), WEEK)
    world.settings.reports.write_text("a file where the folder should be")
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.report) == ("drift", None)
    assert alerts(world) == ["drift"]


def severities(world: World) -> list[str]:
    told = world.ledger.alerts()
    return [entry.alert.severity for entry in told if entry.alert.kind == "drift"]


def test_drift_is_a_warning_at_first_and_critical_once_it_lasts(world: World) -> None:
    second = Interval.of("2013-04-08", "2013-04-15")
    version = world.register()
    for week, seed in ((WEEK, 11), (second, 12)):
        world.publish(week, change=move, seed=seed)
        world.score(version, week)
    first, then = judge_interval(world), judge_interval(world, second)
    assert (first.details.severity, then.details.severity) == ("warning", "critical")
    assert severities(world) == ["warning", "critical"]
    assert "<b>Critical</b>: 2 of the last 3 windows drifted" in (world.settings.reports / str(then.report)).read_text()


def test_performance_is_estimated_before_labels_and_drawn_beside_what_came(world: World) -> None:
    world.publish(WEEK)
    version = world.register()
    world.score(version, WEEK)
    verdict = judge_interval(world)
    estimate = verdict.details.estimate
    assert estimate is not None
    assert estimate.reason == ""
    assert 0.5 < estimate.metrics["roc_auc"] <= 1
    assert {"log_loss", "brier", "average_precision"} <= set(estimate.metrics)
    assert "Estimated before labels: roc_auc" in (world.settings.reports / str(verdict.report)).read_text()
    (window,) = read_outlook(world.folder.spec, world.ledger)
    assert (window.estimated, window.realised, window.verdict) == (estimate.metrics["roc_auc"], None, "ok")
    record = world.ledger.version("toy", version)
    assert record is not None
    logged = MlflowClient(tracking_uri=world.settings.mlflow_url).list_artifacts(record.mlflow_run_id, "performance")
    assert [file.path for file in logged] == ["performance/performance.png"]


def test_an_estimate_that_fails_takes_nothing_from_the_verdict(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(estimation, "estimate", broken)
    world.publish(WEEK)
    world.score(world.register(), WEEK)
    verdict = judge_interval(world)
    assert verdict.verdict == "ok"
    assert verdict.details.estimate is not None
    assert verdict.details.estimate.reason == "the estimate failed, ZeroDivisionError: inside"


def test_a_regression_is_estimated_before_labels(tmp_path: Path, settings: Settings) -> None:
    world = make_world(tmp_path, settings, "regression")
    world.publish(WEEK)
    world.score(world.register(), WEEK)
    verdict = judge_interval(world)
    assert verdict.verdict in ("ok", "drift")
    estimate = verdict.details.estimate
    assert estimate is not None
    assert estimate.reason == ""
    assert (estimate.rows, set(estimate.metrics)) == (420, {"rmse", "mae"})
    assert estimate.metrics["rmse"] > 0
    assert ESTIMATE_LIMIT in (world.settings.reports / str(verdict.report)).read_text()


def test_realised_performance_that_fell_is_told_although_nothing_drifted(world: World) -> None:
    before = Interval.of("2013-03-25", "2013-04-01")
    world.publish(WEEK)
    version = world.register()
    world.score(version, WEEK)
    world.ledger.record_performance(
        model="toy", interval=before, version=version, metrics={"roc_auc": 0.2}, rows=400, coverage=1.0,
        as_of=WEEK.end, run_id="monitor",
    )  # fmt: skip
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.details.severity) == ("ok", "warning")
    assert alerts(world) == ["performance_fell"]


def test_a_champion_that_is_worse_than_the_same_answer_for_every_row_is_critical(world: World) -> None:
    world.publish(WEEK)
    version = world.register()
    world.score(version, WEEK)
    compared = GainOverChampion(
        gain=-0.3, low=-0.35, high=-0.25, lower=None, upper=None, identical=0.0, blocks=7, block="1d", resamples=1_000,
        seed=1, confidence=0.95,
    )  # fmt: skip
    world.ledger.record_performance(
        model="toy", interval=Interval.of("2013-04-01", "2013-04-08"), version=version, metrics={"roc_auc": 0.2}, rows=400,
        coverage=1.0, as_of=WEEK.end, run_id="monitor", constant=Constant({"roc_auc": 0.5}, compared),
    )  # fmt: skip
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.details.severity) == ("ok", "critical")
    (alert,) = (entry.alert for entry in world.ledger.alerts() if entry.alert.kind != "promoted")
    assert (alert.kind, alert.severity) == ("performance_fell", "critical")
    assert alert.title == f"toy: version {version} is worse than the same answer for every row"
    assert "with 95% confidence it is worse by 0.25 to 0.35" in alert.text


def test_links_lead_to_the_run_and_its_report(tmp_path: Path, settings: Settings) -> None:
    public = {"mlflow_public_url": "https://mlflow.example.org/", "airflow_public_url": "https://airflow.example.org/"}
    world = make_world(tmp_path, settings.model_copy(update=public))
    world.publish(WEEK)
    world.score(world.register(), WEEK)
    verdict = judge_interval(world)
    assert verdict.run_url is not None
    assert verdict.run_url.startswith("https://mlflow.example.org/#/experiments/")
    place = "perennial/reports/toy/drift/2013-04-01--2013-04-08/report.html"
    assert verdict.report_url == f"https://airflow.example.org/{place}"
