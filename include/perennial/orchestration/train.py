"""The tasks of ``train``: from published features to a version that is champion, or refused with its reasons."""

from __future__ import annotations

from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from perennial.core import logs
from perennial.orchestration.dags import PROMOTE
from perennial.orchestration.links import MLFLOW
from perennial.orchestration.runs import Run, Window, stage_run


@task(multiple_outputs=False)
def build_training_set(model: str, window: Window) -> dict[str, Any]:
    """Pin what is learnt from: features and labels as they were known, by snapshot and content hash."""
    from perennial.training.training_set import build_training_set as build

    with stage_run(model, window=window) as run:
        parts = run.deployment
        training_set = build(
            run.folder, parts.lake, parts.ledger, as_of=run.as_of, run_id=run.qualified_id, staging=run.staging
        )
        return training_set.to_json()


@task(multiple_outputs=False)
def fit_candidate(model: str, candidate: str, training_set: dict[str, Any]) -> dict[str, Any]:
    """Search a candidate's parameters, fit it, and log it to MLflow."""
    from perennial.evidence.training import TrainingSet
    from perennial.training.fit import fit_candidate as fit

    with stage_run(model) as run:
        parts = run.deployment
        fitted = fit(
            run.folder,
            candidate,
            TrainingSet.from_json(training_set),
            parts.lake,
            parts.registry,
            run_id=run.qualified_id,
            staging=run.staging,
        )
        run.link(MLFLOW, parts.registry.run_url(fitted.mlflow_run_id))
        return fitted.to_json()


@task(multiple_outputs=False)
def evaluate_candidates(model: str, training_set: dict[str, Any], fitted: list[dict[str, Any]]) -> dict[str, Any]:
    """Judge the best candidate, the baselines and the champion on the same newest, untouched interval."""
    from perennial.evidence.training import TrainingSet
    from perennial.model.candidate import Fitted
    from perennial.training.evaluate import evaluate_training

    with stage_run(model) as run:
        parts = run.deployment
        evaluation = evaluate_training(
            run.folder,
            parts.lake,
            parts.ledger,
            parts.registry,
            TrainingSet.from_json(training_set),
            [Fitted.from_json(candidate) for candidate in fitted],
            run_id=run.qualified_id,
            staging=run.staging,
        )
        return evaluation.to_json()


@task(multiple_outputs=False, queue=PROMOTE)
def decide_promotion(
    model: str, training_set: dict[str, Any], fitted: list[dict[str, Any]], evaluation: dict[str, Any]
) -> dict[str, Any]:
    """Let the gates decide, and register the version with the decision, its evidence, its card and its release report."""
    from perennial.evaluation.gates import decide
    from perennial.evidence.evaluation import Evaluation
    from perennial.evidence.training import TrainingSet
    from perennial.model.candidate import Fitted
    from perennial.reports.approval import comparison_in_words
    from perennial.reports.releases import publish_pages
    from perennial.training.evaluate import choose

    with stage_run(model) as run:
        registry = run.deployment.registry
        judged = Evaluation.from_json(evaluation)
        decision = decide(judged, run.folder.spec.gates)
        version = registry.register(
            run.folder,
            TrainingSet.from_json(training_set),
            choose([Fitted.from_json(candidate) for candidate in fitted]),
            judged,
            decision,
            run_id=run.qualified_id,
        )
        logs.resolved(version=version)
        run.link(MLFLOW, registry.version_url(model, version))
        # Before anybody promotes or approves it: they are to have read them, and what they cannot say stops the promotion.
        publish_pages(run.folder, run.deployment.ledger, registry, version)
        links = registry.links(model, version)
        return {
            "version": version,
            "decision": decision.to_json(),
            "expected": judged.champion_version,
            "links": links,
            "comparison": comparison_in_words(version, judged, decision, links),
        }


@task(multiple_outputs=False, trigger_rule="none_failed", queue=PROMOTE)
def promote_champion(model: str, decided: dict[str, Any], answer: dict[str, Any] | None = None) -> dict[str, Any]:
    """Move the alias ``champion`` to the version, or tag it refused and skip: by the gates, or by whoever was asked.

    Args:
        model: the model.
        decided: what ``decide_promotion`` found.
        answer: of ``ask_approval``; None if nobody had to be asked.
    """
    from perennial.core.errors import StaleDecision
    from perennial.core.intervals import utc
    from perennial.evidence.decision import GateDecision
    from perennial.ledger.records import Approval

    with stage_run(model) as run:
        registry, version = run.deployment.registry, int(decided["version"])
        logs.resolved(version=version)
        decision = GateDecision.from_json(decided["decision"])
        run.link(MLFLOW, registry.version_url(model, version))
        if not decision.promote:
            registry.refuse(model, version, decision)
            raise AirflowSkipException(f"{model} version {version} is refused: {'; '.join(decision.reasons)}")
        evidence, reason, actor = dict(decided["decision"]), cause(run), f"airflow:{run.context['dag'].dag_id}"
        if answer is not None:
            answered = Approval(
                model=model, version=version, run_id=run.qualified_id, **{**answer, "answered_at": utc(answer["answered_at"])}
            )
            if answered.answer != "approved":
                registry.decline(answered)
                raise AirflowSkipException(f"{model} version {version} does not become champion: {answered.told}")
            run.deployment.ledger.record_approval(answered)
            evidence, actor = {**evidence, "approval": answer}, str(answered.approver)
            reason = f"{reason}; {answered.told}"
        elif run.folder.spec.promotion == "approval":
            raise AirflowFailException(f"{model} wants an approval, and nobody was asked: trigger {model}.train again")
        try:
            registry.promote(
                model,
                version,
                expected=decided["expected"],
                reason=reason,
                actor=actor,
                run_id=run.qualified_id,
                evidence=evidence,
            )
        except StaleDecision as error:
            raise AirflowFailException(
                f"StaleDecision: {error}. The evaluation is stale: clear evaluate_candidates and what follows it in this run, "
                "and the version is compared with the new champion"
            ) from error
        return {"champion": version}


def cause(run: Run) -> str:
    """Why this training runs: what monitoring said, the calendar, or a person."""
    asked = run.params.get("cause")
    return str(asked) if asked else f"calendar: {run.partition}" if run.partition else "by hand"
