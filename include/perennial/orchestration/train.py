"""The tasks of ``train``: from published features to a version that is champion, or refused with its reasons."""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from perennial.orchestration.judged import judged
from perennial.orchestration.links import MLFLOW
from perennial.orchestration.runs import Run, Window, stage_run
from perennial.stages import train


@task(multiple_outputs=False)
def build_training_set(model: str, window: Window) -> dict[str, Any]:
    """Pin the training set by snapshot and content hash: features and labels as they were known."""
    with stage_run(model, window=window) as run:
        calendar = run.whole if run.partition else None
        return train.build_training_set(run.stage, as_of=run.as_of, calendar=calendar).to_json()


@task(multiple_outputs=False, map_index_template="{{ task.op_kwargs['candidate'] }}")
def fit_candidate(model: str, candidate: str, training_set: dict[str, Any]) -> dict[str, Any]:
    """Search a candidate's parameters, fit it, and log it to MLflow."""
    from perennial.evidence.training import TrainingSet

    with stage_run(model) as run:
        fitted = train.fit_candidate(run.stage, candidate, TrainingSet.from_json(training_set))
        run.link(MLFLOW, run.deployment.registry.run_url(fitted.mlflow_run_id))
        return fitted.to_json()


@task(multiple_outputs=False)
def evaluate_candidates(model: str, training_set: dict[str, Any], fitted: list[dict[str, Any]]) -> dict[str, Any]:
    """Evaluate the best candidate, the baselines and the champion on the newest interval. Fit again what passes."""
    from perennial.evidence.training import TrainingSet
    from perennial.model.candidate import Fitted

    with stage_run(model) as run:
        candidates = [Fitted.from_json(candidate) for candidate in fitted]
        return train.evaluate_candidates(run.stage, TrainingSet.from_json(training_set), candidates).to_json()


@judged()
def decide_promotion(
    model: str, training_set: dict[str, Any], fitted: list[dict[str, Any]], evaluation: dict[str, Any]
) -> dict[str, Any]:
    """Measure again from files and rows, let the gates decide, and register the version with its evidence, card and report."""
    with stage_run(model):
        return {"training_set": training_set, "fitted": list(fitted), "evaluation": evaluation}


@judged(trigger_rule="none_failed")
def promote_champion(model: str, decided: dict[str, Any], answer: dict[str, Any] | None = None) -> dict[str, Any]:
    """Move the alias ``champion`` to the version, or tag it refused and skip, as the gates or the approver decided.

    Args:
        model: the model.
        decided: the result of ``decide_promotion``. Only which version it is counts; the ledger has the decision.
        answer: the result of ``ask_approval``; None if no approval is required.
    """
    with stage_run(model) as run:
        return {"version": decided["version"], "answer": answer, "cause": cause(run)}


def cause(run: Run) -> str:
    """Why this training runs: the cause in its form, the calendar, or a person."""
    asked = run.params.get("cause")
    return str(asked) if asked else f"calendar: {run.partition}" if run.partition else "by hand"
