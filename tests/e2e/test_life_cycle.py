"""The whole life of a small model, by real Airflow runs in the real stack."""

from __future__ import annotations

import pyarrow.compute as pc
import pytest

from perennial.core.intervals import Interval
from tests.living import MODEL, Living, report_file, sink_rows

pytestmark = pytest.mark.stack

METERS, HOURS = 5, 24


def test_every_stage_ran_by_itself_from_one_ingest(living: Living) -> None:
    states = {stage: [run.state for run in living.runs(stage)] for stage in ("load", "ingest", "train", "score", "monitor")}
    assert states["load"] == ["success"]
    assert states["ingest"][:1] == ["success"]
    assert states["train"][:1] == ["success"]
    assert states["score"][:3] == ["success"] * 3
    assert states["monitor"][:3] == ["success"] * 3


def test_each_announced_day_is_scored_once_and_history_is_not(living: Living) -> None:
    rows = sink_rows(living)
    days = {str(row.hour)[:10] for row in rows}
    assert {"2024-01-17", "2024-01-18", "2024-01-19"} <= days
    assert not days & {f"2024-01-{day:02}" for day in range(1, 17)}
    assert len(rows) == METERS * HOURS * len(days)
    assert len({(row.meter, row.hour) for row in rows}) == len(rows)


def test_every_prediction_names_a_version_and_a_run_that_exist(living: Living) -> None:
    versions = {record.version for record in living.deployment.ledger.versions(MODEL)}
    runs = {run.run_id for run in living.runs("score")}
    for row in sink_rows(living):
        assert row.version in versions
        assert row.run_id in runs


def test_the_first_version_is_champion_in_ledger_and_mlflow(living: Living) -> None:
    [first, *_] = living.deployment.ledger.promotions(MODEL)
    assert first.version == 1
    assert first.previous is None
    assert first.completed_at is not None
    assert living.deployment.registry.champion(MODEL) == living.deployment.ledger.champion(MODEL)


def test_each_day_has_a_verdict_with_a_report(living: Living) -> None:
    verdicts = {verdict.interval.key: verdict for verdict in living.deployment.ledger.verdicts(MODEL)}
    for day in ("2024-01-17", "2024-01-18", "2024-01-19"):
        assert verdicts[day].verdict in ("ok", "drift")
        report = verdicts[day].report
        assert report is not None
        assert 5_000 < report_file(living, report).stat().st_size < 200_000


def test_realised_performance_is_measured_once_labels_are_known(living: Living) -> None:
    measured = {record.interval.key: record for record in living.deployment.ledger.performances(MODEL)}
    assert {"2024-01-17", "2024-01-18"} <= set(measured)
    assert measured["2024-01-17"].metrics["rmse"] < 3


def test_a_partition_is_ingested_by_its_key(living: Living) -> None:
    assert living.trigger("ingest", partition="2024-01-20").state == "success"
    assert "2024-01-20" in {str(row.hour)[:10] for row in sink_rows(living)}


def test_a_day_ingested_again_changes_no_row(living: Living) -> None:
    before = [row[:4] for row in sink_rows(living)]
    assert living.trigger("ingest", {"start": "2024-01-18", "end": "2024-01-19"}).state == "success"
    assert [row[:4] for row in sink_rows(living)] == before


def test_the_champion_before_scores_in_the_shadow_of_the_new_one(living: Living) -> None:
    registry, ledger, lake = living.deployment.registry, living.deployment.ledger, living.deployment.lake
    assert living.trigger("train", {"as_of": "2024-01-20"}).state == "success"
    assert registry.champion(MODEL) == 2

    assert living.trigger("ingest", partition="2024-01-20").state == "success"

    assert {row.version for row in sink_rows(living) if str(row.hour)[:10] == "2024-01-20"} == {2}
    published = ledger.published(MODEL, "shadows")
    assert published is not None
    rows = lake.scan(MODEL, "shadows", published.snapshots["shadows"]).read_all()
    assert rows.num_rows == METERS * HOURS
    assert set(rows.column("version").to_pylist()) == {1}
    assert [seen.version for seen in ledger.shadow_comparisons(MODEL)] == [1]


def test_rollback_makes_the_version_before_champion_and_scoring_uses_it(living: Living) -> None:
    registry, ledger = living.deployment.registry, living.deployment.ledger
    assert registry.champion(MODEL) == 2

    # Words from a form stay words: nothing renders, runs or cuts them short.
    reason = "not trusted yet: {{ 7*7 }} $(id) '; DROP TABLE perennial_promotions; --"
    assert living.trigger("rollback", {"reason": reason}).state == "success"
    assert registry.champion(MODEL) == 1
    newest = ledger.promotions(MODEL)[-1]
    assert (newest.action, newest.version, newest.previous) == ("rollback", 1, 2)
    assert newest.reason == reason
    assert "admin" in newest.actor

    assert living.trigger("ingest", partition="2024-01-21").state == "success"
    assert {row.version for row in sink_rows(living) if str(row.hour)[:10] == "2024-01-21"} == {1}


def test_a_refused_interval_fails_its_run_and_leaves_what_was_published(living: Living) -> None:
    ledger = living.deployment.ledger
    before = ledger.published(MODEL, "tables")
    # Meters that were mounted the wrong way round: model.py tells the day.
    assert living.trigger("ingest", {"start": "2024-03-01", "end": "2024-03-02"}).state == "failed"
    assert ledger.published(MODEL, "tables") == before
    [refusal] = ledger.refusals(MODEL)
    assert refusal.interval.key == "2024-03-01"
    assert any("load" in reason for reason in refusal.reasons)
    assert sum(refusal.rows.values()) == 2 * METERS * HOURS
    assert all(run.state == "success" for run in living.runs("score"))


def test_maintenance_drops_nothing_that_is_in_use(living: Living) -> None:
    before = sink_rows(living)
    assert living.trigger("maintain").state == "success"
    assert living.trigger("ingest", {"start": "2024-01-19", "end": "2024-01-20"}).state == "success"
    assert len(sink_rows(living)) == len(before)


@pytest.mark.parametrize(
    "conf",
    [
        {"start": "2024-01-18"},
        {"start": "2024-01-19", "end": "2024-01-18"},
        {"start": "1000-01-01", "end": "2024-01-18"},
    ],
    ids=["half a range", "reversed", "a thousand years"],
)
def test_a_range_that_cannot_be_meant_is_refused_before_anything_is_read(living: Living, conf: dict[str, str]) -> None:
    before = living.deployment.ledger.published(MODEL, "tables")
    run = living.trigger("ingest", {**conf, "announce_scoring": False, "announce_training": False})
    assert run.state == "failed"
    assert living.deployment.ledger.published(MODEL, "tables") == before


@pytest.mark.parametrize(
    "conf",
    [
        {"start": 7, "end": "2024-01-19"},
        {"start": "'; DROP TABLE x; --", "end": "2024-01-19"},
        {"announce_scoring": "{{ 7 * 7 }}"},
    ],
    ids=["a number", "SQL", "a template"],
)
def test_a_form_that_does_not_fit_its_schema_starts_no_run(living: Living, conf: dict[str, object]) -> None:
    from perennial.core.errors import StackError

    before = len(living.runs("ingest"))
    with pytest.raises(StackError):
        living.api.trigger(f"{MODEL}.ingest", conf=conf)
    assert len(living.runs("ingest")) == before


def test_history_is_loaded_in_parts_each_published_on_its_own(living: Living) -> None:
    ledger, lake = living.deployment.ledger, living.deployment.lake
    [load] = living.runs("load")[:1]
    assert load.state == "success"
    parts = ["2024-01-01--2024-01-07", "2024-01-07--2024-01-13", "2024-01-13--2024-01-17"]
    for dataset in ("tables", "features"):
        published = [publication for publication in ledger.publications(MODEL, dataset) if publication.run_id == load.run_id]
        assert sorted(publication.interval.key for publication in published) == parts
    # What looks back into the part before was computed when that was there.
    snapshot = ledger.publications(MODEL, "features", Interval.of("2024-01-01", "2024-01-17"))[2].snapshots["features"]
    features = lake.scan(MODEL, "features", snapshot, columns=["hour", "load_yesterday"]).read_all()
    first_of_part = pc.equal(pc.strftime(features["hour"], "%Y-%m-%d"), "2024-01-07")
    assert features.num_rows == 16 * METERS * HOURS
    assert features.filter(first_of_part)["load_yesterday"].null_count == 0


def test_a_range_is_scored_in_parts_by_one_version(living: Living) -> None:
    before = [row[:4] for row in sink_rows(living)]
    run = living.trigger("score", {"start": "2024-01-17", "end": "2024-01-20", "days_per_part": 1})
    assert run.state == "success"
    tasks = [task for task in living.api.task_instances(run) if task.task_id == "predict"]
    assert {task.map_index for task in tasks} == {0, 1, 2}
    scored = [row for row in sink_rows(living) if row.run_id == run.run_id]
    assert len(scored) == 3 * METERS * HOURS
    assert len({row.version for row in scored}) == 1
    assert [row[:2] for row in sink_rows(living)] == [row[:2] for row in before]


def test_an_empty_shadow_takes_no_worker(living: Living) -> None:
    first = living.runs("score")[0]
    [shadow] = [task for task in living.api.task_instances(first) if task.task_id == "score_shadows"]
    assert (shadow.state, shadow.try_number) == ("skipped", 0)


def test_a_part_that_is_refused_leaves_the_others_published_and_no_features_beside_a_gap(living: Living) -> None:
    conf = {"start": "2024-02-29", "end": "2024-03-03", "days_per_part": 1}
    run = living.trigger("load", conf)
    assert run.state == "failed"
    ledger = living.deployment.ledger
    published = {dataset: ledger.publications(MODEL, dataset) for dataset in ("tables", "features")}
    days = {name: sorted(one.interval.key for one in found if one.run_id == run.run_id) for name, found in published.items()}
    assert days == {"tables": ["2024-02-29", "2024-03-02"], "features": []}
    assert [refusal.interval.key for refusal in ledger.refusals(MODEL) if refusal.run_id == run.run_id] == ["2024-03-01"]
