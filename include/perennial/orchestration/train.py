"""The tasks of ``train``: from published features to a version that is champion, or refused with its reasons."""

from __future__ import annotations

from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from perennial.orchestration.answers import answer_to
from perennial.orchestration.approval import ASK
from perennial.orchestration.links import MLFLOW
from perennial.orchestration.queues import PROMOTE
from perennial.orchestration.runs import Run, Window, stage_run
from perennial.stages import promote, train


@task(multiple_outputs=False)
def build_training_set(model: str, window: Window) -> dict[str, Any]:
    """Pin the training set by snapshot and content hash: features and labels as they were known."""
    with stage_run(model, window=window) as run:
        calendar = run.whole if run.partition else None
        return train.build_training_set(run.stage, as_of=run.as_of, calendar=calendar).to_json()


@task(multiple_outputs=False)
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


@task(multiple_outputs=False, queue=PROMOTE)
def decide_promotion(
    model: str, training_set: dict[str, Any], fitted: list[dict[str, Any]], evaluation: dict[str, Any]
) -> dict[str, Any]:
    """Measure again from files and rows, let the gates decide, and register the version with its evidence, card and report."""
    from perennial.evidence.evaluation import Evaluation
    from perennial.evidence.training import TrainingSet
    from perennial.model.candidate import Fitted

    with stage_run(model) as run:
        candidates = [Fitted.from_json(candidate) for candidate in fitted]
        confirmed = train.confirm(
            run.stage, TrainingSet.from_json(training_set), candidates, Evaluation.from_json(evaluation)
        )  # fmt: skip
        decided = train.decide_promotion(run.stage, confirmed[0], candidates, confirmed[1])
        run.link(MLFLOW, run.deployment.registry.version_url(model, decided.version))
        return decided.to_json()


@task(multiple_outputs=False, trigger_rule="none_failed", queue=PROMOTE)
def promote_champion(model: str, decided: dict[str, Any], answer: dict[str, Any] | None = None) -> dict[str, Any]:
    """Move the alias ``champion`` to the version, or tag it refused and skip, as the gates or the approver decided.

    Args:
        model: the model.
        decided: the result of ``decide_promotion``. Only which version it is counts; the ledger has the decision.
        answer: the result of ``ask_approval``; None if no approval is required.
    """
    from perennial.core.errors import StaleDecision

    with stage_run(model) as run:
        version = promote.decided_of(run.stage, int(decided["version"]))
        run.link(MLFLOW, run.deployment.registry.version_url(model, version.version))
        actor = f"airflow:{run.context['dag'].dag_id}"
        try:
            given = answer_to(run, ASK, answer)
            outcome = promote.promote_champion(run.stage, version, cause=cause(run), actor=actor, answer=given)
        except StaleDecision as error:
            raise AirflowFailException(
                f"StaleDecision: {error}. The evaluation is stale: clear evaluate_candidates and what follows it in this run, "
                "and the version is compared with the new champion"
            ) from error
        if outcome.became == "refused":
            raise AirflowSkipException(outcome.words)
        if outcome.became == "waiting":
            raise AirflowFailException(f"{model} requires an approval, and nobody was asked: trigger {model}.train again")
        return {"champion": outcome.version}


def cause(run: Run) -> str:
    """Why this training runs: the cause in its form, the calendar, or a person."""
    asked = run.params.get("cause")
    return str(asked) if asked else f"calendar: {run.partition}" if run.partition else "by hand"
