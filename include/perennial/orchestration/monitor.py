"""The tasks of ``monitor``: has the world changed, is the champion still good, and is it time to retrain?"""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from perennial.orchestration.judged import judged
from perennial.orchestration.links import MLFLOW, REPORT
from perennial.orchestration.runs import Window, stage_run
from perennial.stages import monitor


@task(multiple_outputs=False, trigger_rule="all_done")
def judge_drift(model: str, window: Window) -> dict[str, Any]:
    """Compare the window's features and predictions with the champion's own training reference."""
    with stage_run(model, window=window) as run:
        verdict = monitor.judge_drift(run.stage, run.interval)
        run.link(REPORT, verdict.report_url)
        run.link(MLFLOW, verdict.run_url)
        run.note(f"{run.interval.in_words}: {verdict.verdict}")
        return verdict.to_json()


@task(multiple_outputs=False)
def measure_performance(model: str, window: Window) -> list[dict[str, Any]]:
    """Measure realised metrics of every window whose labels were known by this window's end."""
    with stage_run(model, window=window) as run:
        return [measured.to_json() for measured in monitor.measure_performance(run.stage, run.interval)]


@judged()
def compare_shadows(model: str, window: Window) -> dict[str, Any]:
    """Compare the champion with the versions in its shadow on mature labels; raise an alert, or roll back, if it is worse."""
    with stage_run(model, window=window) as run:
        return {"interval": run.interval.key}


@task.short_circuit(multiple_outputs=False)
def decide_retraining(model: str, window: Window) -> dict[str, Any]:
    """Decide whether to ask for a retraining; the reason goes into the ledger. Empty if none is asked for."""
    with stage_run(model, window=window) as run:
        under_way = run.context["ti"].get_dr_count(f"{model}.train", states=["queued", "running"]) > 0
        request = monitor.decide_retraining(run.stage, run.interval, training_under_way=under_way)
        if request is None:
            return {}
        run.note(f"{run.interval.in_words}: a training is asked for: {request.cause}")
        return {
            "run_id": request.run_id,
            "conf": {"as_of": run.interval.end.date().isoformat(), "cause": request.cause},
        }
