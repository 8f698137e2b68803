"""The tasks of ``monitor``: has the world changed, is the champion still good, and is it time to retrain?"""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from perennial.orchestration.dags import PROMOTE
from perennial.orchestration.links import MLFLOW, REPORT
from perennial.orchestration.runs import Window, stage_run


@task(multiple_outputs=False, trigger_rule="all_done")
def judge_drift(model: str, window: Window) -> dict[str, Any]:
    """Compare the window's features and predictions with the champion's own training reference."""
    from perennial.monitoring.judge import judge_drift as judge

    with stage_run(model, window=window) as run:
        parts = run.deployment
        verdict = judge(
            run.folder,
            parts.lake,
            parts.ledger,
            parts.registry,
            run.interval,
            directory=parts.settings.reports,
            run_id=run.run_id,
        )
        run.link(REPORT, verdict.report_url)
        run.link(MLFLOW, verdict.run_url)
        return verdict.to_json()


@task(multiple_outputs=False)
def measure_performance(model: str, window: Window) -> list[dict[str, Any]]:
    """Realised metrics of every window whose labels have become known by this window's end."""
    from perennial.monitoring.performance import measure_performance as measure

    with stage_run(model, window=window) as run:
        parts = run.deployment
        realised = measure(run.folder, parts.lake, parts.ledger, run.interval, as_of=run.interval.end, run_id=run.run_id)
        return [window.to_json() for window in realised]


@task(multiple_outputs=False, queue=PROMOTE)
def compare_shadows(model: str, window: Window) -> list[dict[str, Any]]:
    """Compare the champion with the versions in its shadow on mature labels; tell people, or roll back, where it is worse."""
    from perennial.monitoring.shadowing import compare_shadows as compare

    with stage_run(model, window=window) as run:
        parts = run.deployment
        seen = compare(run.folder, parts.lake, parts.ledger, parts.registry, as_of=run.interval.end, run_id=run.run_id)
        return [{"version": found.version, "outcome": found.outcome, "reason": found.reason} for found in seen]


@task.short_circuit(multiple_outputs=False)
def decide_retraining(model: str, window: Window) -> dict[str, Any]:
    """Ask for a retraining, or not; the reason is in the ledger either way. Empty when nothing is asked for."""
    from perennial.monitoring import requests

    with stage_run(model, window=window) as run:
        request = requests.request_retraining(
            run.folder.spec,
            run.deployment.ledger,
            run.interval,
            run_id=run.run_id,
            training_under_way=run.context["ti"].get_dr_count(f"{model}.train", states=["queued", "running"]) > 0,
        )
        if request is None:
            return {}
        return {
            "run_id": request.run_id,
            "conf": {"as_of": run.interval.end.date().isoformat(), "cause": request.cause},
        }
