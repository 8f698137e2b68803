"""Rules that every DAG of the project keeps; each message tells how to comply."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perennial.core.settings import PROJECT
from perennial.judge.steps import STEPS
from perennial.watchdog.rules import BROKEN_MODELS
from tests.dags.conftest import parse

STAGES = {
    "ingest", "materialize", "record", "train", "refresh", "score", "monitor", "promote", "rollback", "release", "maintain",
    "load",
}  # fmt: skip
Parsed = dict[str, Any]


def _upstream(tasks: dict[str, Any], task: str) -> set[str]:
    """Every task that must end before ``task`` begins."""
    direct = set(tasks[task]["upstream"])
    return direct.union(*(_upstream(tasks, before) for before in direct))


def test_every_model_has_one_dag_for_each_stage(parsed: Parsed) -> None:
    assert parsed["import_errors"] == {}
    models = {file.parent.name for file in (PROJECT / "include" / "models").glob("*/model.yaml")}
    assert set(parsed["dags"]) == {f"{model}.{stage}" for model in models for stage in STAGES}


def test_parsing_the_dags_imports_nothing_heavy(parsed: Parsed) -> None:
    assert parsed["heavy"] == [], "import it inside the task: DAG files are parsed again and again"


def test_promotion_has_its_gate_upstream(parsed: Parsed) -> None:
    tasks = parsed["dags"]["flight_delay.train"]["tasks"]
    before = _upstream(tasks, "promote_champion")
    assert {"decide_promotion", "evaluate_candidates", "fit_candidate", "build_training_set"} <= before


def test_where_a_person_is_asked_nothing_is_promoted_before_the_answer(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(PROJECT / "include" / "models" / "flight_delay", models / "flight_delay")
    spec = models / "flight_delay" / "model.yaml"
    spec.write_text(spec.read_text() + "\npromotion: approval\napproval: {within: 5d, approvers: [ann]}\n")

    parsed = parse(PROJECT / "dags", models, tmp_path / "airflow")

    assert parsed["import_errors"] == {}
    train = parsed["dags"]["flight_delay.train"]
    assert {"ask_approval", "decide_promotion"} <= _upstream(train["tasks"], "promote_champion")
    assert "decide_promotion" in train["tasks"]["ask_approval"]["upstream"]
    assert train["run_limit"] > 5 * 86_400, "a run that waits for a person must not be ended while it does"
    assert parsed["heavy"] == []


def test_nobody_is_asked_where_promotion_is_automatic(parsed: Parsed) -> None:
    assert "ask_approval" not in parsed["dags"]["flight_delay.train"]["tasks"]


def test_candidates_are_fitted_in_a_mapped_task_each(parsed: Parsed) -> None:
    assert parsed["dags"]["flight_delay.train"]["tasks"]["fit_candidate"]["mapped"]


def test_nothing_is_published_before_every_table_is_checked(parsed: Parsed) -> None:
    tasks = parsed["dags"]["flight_delay.ingest"]["tasks"]
    checks = {task for task in tasks if task.startswith("check_")}
    assert len(checks) == 5
    assert checks <= _upstream(tasks, "publish_tables")
    assert "publish_tables" in _upstream(tasks, "build_features")


def test_no_task_after_the_features_hides_that_a_day_was_refused(parsed: Parsed) -> None:
    """A run is a success for Airflow if its last tasks are."""
    tasks = parsed["dags"]["flight_delay.ingest"]["tasks"]
    assert not any(_upstream(tasks, task) for task in tasks if task.startswith("announce_overdue_"))
    assert not any("build_features" in _upstream(tasks, task) for task in tasks)


def test_history_has_no_features_before_the_tables_of_every_part(parsed: Parsed) -> None:
    tasks = parsed["dags"]["flight_delay.load"]["tasks"]
    by_part = {task for task in tasks if task.startswith("load_part.")}
    assert len(by_part) == 5
    assert tasks["build_features"]["mapped"]
    assert by_part <= _upstream(tasks, "build_features")
    # Parts end in any order, and their days are announced oldest first.
    assert {"build_features", "plan_announcements"} <= _upstream(tasks, "announce_days")
    # A table without event time is read once, not once a part.
    assert "check_aircraft" in _upstream(tasks, "load_part.publish_tables")


def test_a_day_has_no_task_that_only_says_what_there_is_to_do(parsed: Parsed) -> None:
    ingest, score = (parsed["dags"][f"flight_delay.{stage}"]["tasks"] for stage in ("ingest", "score"))
    assert "split_range" not in ingest
    assert set(score) == {"resolve_champion", "predict", "score_shadows"}
    assert score["predict"]["mapped"]
    assert score["score_shadows"]["mapped"]


def test_what_takes_long_waits_for_what_is_due(parsed: Parsed) -> None:
    priorities = {dag_id.partition(".")[2]: dag["tasks"].values() for dag_id, dag in parsed["dags"].items()}
    weights = {stage: {task["priority"] for task in tasks} for stage, tasks in priorities.items()}
    assert all(len(found) == 1 for found in weights.values()), "a task's priority is its stage's: override neither"
    ordered = ["promote", "score", "monitor", "load", "train"]
    assert sorted(ordered, key=lambda stage: -min(weights[stage])) == ordered


def test_no_task_waits_for_a_pool_that_nobody_has_said_the_size_of(parsed: Parsed) -> None:
    assert {task["pool"] for dag in parsed["dags"].values() for task in dag["tasks"].values()} == {"default_pool"}


def test_trainings_and_loads_have_pools_where_the_deployment_says_how_large(tmp_path: Path) -> None:
    slots = {"PERENNIAL_TRAIN_SLOTS": "2", "PERENNIAL_LOAD_SLOTS": "3", "PERENNIAL_PARTS_AT_ONCE": "5"}
    parsed = parse(PROJECT / "dags", PROJECT / "include" / "models", tmp_path / "airflow", slots)
    pools = {
        dag_id.partition(".")[2]: {task["pool"] for task in dag["tasks"].values()} for dag_id, dag in parsed["dags"].items()
    }
    assert pools["train"] == {"perennial_train"}
    assert pools["load"] == {"perennial_load"}
    assert pools["score"] == pools["ingest"] == {"default_pool"}
    assert parsed["dags"]["flight_delay.load"]["max_active_tasks"] == 5
    assert parsed["dags"]["flight_delay.score"]["tasks"]["predict"]["at_once"] == 5


def test_a_champion_is_resolved_before_anything_is_predicted(parsed: Parsed) -> None:
    assert "resolve_champion" in _upstream(parsed["dags"]["flight_delay.score"]["tasks"], "predict")


def test_what_is_in_the_shadow_waits_until_the_champions_predictions_are_published(parsed: Parsed) -> None:
    score, monitor = (parsed["dags"][f"flight_delay.{stage}"]["tasks"] for stage in ("score", "monitor"))
    assert "predict" in _upstream(score, "score_shadows")
    assert "score_shadows" not in _upstream(score, "predict")
    assert "measure_performance" in _upstream(monitor, "compare_shadows")
    assert "compare_shadows" not in _upstream(monitor, "request_training")


def test_retraining_is_requested_only_after_it_was_decided(parsed: Parsed) -> None:
    tasks = parsed["dags"]["flight_delay.monitor"]["tasks"]
    assert {"decide_retraining", "judge_drift", "measure_performance"} <= _upstream(tasks, "request_training")


def test_every_dag_tells_what_to_do_when_it_fails(parsed: Parsed) -> None:
    for dag_id, dag in parsed["dags"].items():
        assert dag["doc"], f"{dag_id}: give its file a docstring; it is the DAG's page in the UI"
        assert "## When it fails" in dag["doc"], f"{dag_id}: end the docs with triage notes"


def test_every_dag_is_tagged_and_bounded(parsed: Parsed) -> None:
    for dag_id, dag in parsed["dags"].items():
        model, _, stage = dag_id.partition(".")
        assert {"perennial", model, stage} <= set(dag["tags"]), f"{dag_id}: make it with perennial.orchestration.dags.stage"
        assert dag["run_limit"], f"{dag_id}: give it a dagrun_timeout"
        assert not dag["catchup"], f"{dag_id}: catching up has a bound (orchestration/timetables.py), and catchup=True has none"


def test_every_task_retries_with_back_off_within_a_limit_and_alerts(parsed: Parsed) -> None:
    for dag_id, dag in parsed["dags"].items():
        for task_id, task in dag["tasks"].items():
            rule = (
                f"{dag_id}, {task_id}: make the DAG with perennial.orchestration.dags.stage and override none of its defaults"
            )
            assert task["retries"] >= 1, rule
            assert task["back_off"], rule
            assert task["limit"], rule
            assert task["alerts"], rule


@pytest.mark.parametrize("stage", ["ingest", "load", "train", "monitor", "promote", "rollback", "maintain"])
def test_runs_whose_order_matters_go_one_at_a_time(parsed: Parsed, stage: str) -> None:
    assert parsed["dags"][f"flight_delay.{stage}"]["max_active_runs"] == 1


def test_stages_start_when_their_input_is_published(parsed: Parsed) -> None:
    timetables = {dag_id.partition(".")[2]: dag["timetable"] for dag_id, dag in parsed["dags"].items()}
    assert timetables["ingest"] == "EachDay"
    assert {timetables[stage] for stage in ("train", "score", "materialize", "record", "monitor")} == {
        "PartitionedAssetTimetable"
    }


def test_rows_asked_by_key_are_computed_at_the_rate_that_the_model_states(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(PROJECT / "include" / "models" / "flight_delay", models / "flight_delay")
    spec = models / "flight_delay" / "model.yaml"
    spec.write_text(spec.read_text().replace("\nonline: {}\n", "\nonline: {refresh: 5m}\n"))

    parsed = parse(PROJECT / "dags", models, tmp_path / "airflow")

    assert parsed["import_errors"] == {}
    assert parsed["dags"]["flight_delay.materialize"]["timetable"] == "DeltaTriggerTimetable"


@pytest.mark.parametrize("stage", ["ingest", "maintain"])
def test_a_dag_that_is_switched_on_waits_for_its_next_tick_and_does_not_miss_it(parsed: Parsed, stage: str) -> None:
    first = parsed["dags"][f"flight_delay.{stage}"]["first_run"]
    assert first == {"late": 86_400, "at once": 0}


def test_only_these_are_started_by_a_clock(parsed: Parsed) -> None:
    timed = {dag_id.partition(".")[2] for dag_id, dag in parsed["dags"].items() if dag["first_run"]["late"] is not None}
    assert timed == {"ingest", "maintain"}


def test_forms_refuse_what_is_no_day(parsed: Parsed) -> None:
    for stage, fields in {
        "ingest": ("start", "end"),
        "load": ("start", "end"),
        "score": ("start", "end"),
        "train": ("as_of",),
    }.items():
        for field in fields:
            schema = parsed["dags"][f"flight_delay.{stage}"]["params"][field]
            assert schema["format"] == "date"


def test_dag_files_are_tables_of_contents() -> None:
    for file in sorted((PROJECT / "dags").glob("*.py")):
        lines = file.read_text().splitlines()
        assert len(lines) <= 100, (
            f"{file.name}: {len(lines)} lines; a DAG file wires, its tasks live in perennial.orchestration"
        )


def test_a_broken_model_is_an_import_error_and_takes_no_other_model_down(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(PROJECT / "include" / "models" / "flight_delay", models / "flight_delay")
    shutil.copytree(PROJECT / "include" / "models" / "flight_delay", models / "broken")
    broken = models / "broken" / "model.yaml"
    broken.write_text(broken.read_text().replace("name: flight_delay", "name: broken").replace("owner:", "ownr:"))

    parsed = parse(PROJECT / "dags", models, tmp_path / "airflow")

    assert {dag_id.partition(".")[0] for dag_id in parsed["dags"]} == {"flight_delay"}
    assert len(parsed["dags"]) == len(STAGES)
    [(file, message)] = parsed["import_errors"].items()
    assert Path(file).name == BROKEN_MODELS, "Airflow switches off all DAGs of a file with an import error"
    assert "broken/model.yaml:" in message
    assert "ownr: unknown key" in message
    assert "owner: missing" in message
    assert message.splitlines()[-1].endswith("cannot be read: broken. All other models run on.")


def test_the_file_that_tells_of_broken_models_has_no_dag(parsed: Parsed) -> None:
    assert BROKEN_MODELS not in {Path(dag["file"]).name for dag in parsed["dags"].values()}
    assert (PROJECT / "dags" / BROKEN_MODELS).is_file()


def test_a_task_of_a_model_whose_folder_broke_says_why_it_fails(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("flight_delay", "broken"):
        shutil.copytree(PROJECT / "include" / "models" / "flight_delay", models / name)

    given = {"_AIRFLOW_PARSING_CONTEXT_DAG_ID": "broken.ingest"}
    parsed = parse(PROJECT / "dags" / "ingest.py", models, tmp_path / "airflow", given)

    [message] = parsed["import_errors"].values()
    assert message.splitlines()[-1].endswith(
        "model.yaml:2: name: is flight_delay, but the folder is broken; make them the same"
    )


def test_a_worker_reads_the_model_of_its_task_alone(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("flight_delay", "other"):
        shutil.copytree(PROJECT / "include" / "models" / "flight_delay", models / name)
    spec = models / "other" / "model.yaml"
    spec.write_text(spec.read_text().replace("name: flight_delay", "name: other"))

    def dags(task_of: str) -> set[str]:
        given = {"_AIRFLOW_PARSING_CONTEXT_DAG_ID": task_of, "PERENNIAL_ALERTS_EMAIL": "ann@example.com"}
        parsed = parse(PROJECT / "dags", models, tmp_path / "airflow", given)
        assert parsed["import_errors"] == {}
        return set(parsed["dags"])

    assert {dag.partition(".")[0] for dag in dags("other.score")} == {"other", "perennial"}
    # What is there for all models is decided by all of them.
    assert {dag.partition(".")[0] for dag in dags("perennial.notify")} == {"flight_delay", "other", "perennial"}


def test_the_domain_imports_no_airflow() -> None:
    program = """
import importlib, pkgutil, sys
import perennial
for module in pkgutil.iter_modules(perennial.__path__):
    if module.name not in ("orchestration", "__main__"):
        importlib.import_module(f"perennial.{module.name}")
print(sorted(name for name in sys.modules if name.partition(".")[0] == "airflow"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_may_change_the_champion_is_left_to_the_judge(parsed: Parsed) -> None:
    judged = {
        (stage, task)
        for dag, described in parsed["dags"].items()
        for task, made in described["tasks"].items()
        if made["kind"] == "JudgedOperator" and (stage := dag.partition(".")[2])
    }
    assert judged == {(stage, step) for step, (stage, _) in STEPS.items()}
    assert {parsed["dags"][f"flight_delay.{stage}"]["tasks"][task]["queue"] for stage, task in judged} == {"light"}


def test_operators_run_everything_but_promotions_which_are_for_approvers(parsed: Parsed) -> None:
    editors = {dag.partition(".")[2]: set(described["editors"]) for dag, described in parsed["dags"].items()}
    assert {stage for stage, roles in editors.items() if "Operator" not in roles} == {"promote"}
    assert {stage for stage, roles in editors.items() if "Approver" in roles} == {"train", "promote", "rollback", "release"}
