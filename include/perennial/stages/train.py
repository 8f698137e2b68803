"""Train: from published features to a version that is champion, refused, or waits for a person."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from perennial.core import logs
from perennial.core.errors import StaleDecision
from perennial.stages.promote import Decided, Outcome, promote_champion
from perennial.stages.run import StageRun

if TYPE_CHECKING:
    from perennial.evidence.evaluation import Evaluation
    from perennial.evidence.training import TrainingSet
    from perennial.model.candidate import Fitted


def build_training_set(run: StageRun, *, as_of: datetime) -> TrainingSet:
    """Pin what is learned from: features and labels as they were known, by snapshot and content hash.

    Args:
        run: the run.
        as_of: only what was known by then is used; the end of the holdout.

    Raises:
        TrainingError: there is too little to learn from; the message says what is missing.
    """
    from perennial.training import training_set

    return training_set.build_training_set(
        run.folder, run.deployment, as_of=as_of, run_id=run.qualified_id, staging=run.staging
    )


def fit_candidate(run: StageRun, candidate: str, training_set: TrainingSet) -> Fitted:
    """Search a candidate's parameters, fit it, and log it to MLflow.

    Args:
        run: the run.
        candidate: its name in ``model.yaml``.
        training_set: what it learns from.

    Raises:
        TrainingError: it could not be fitted.
    """
    from perennial.training import fit

    return fit.fit_candidate(run.folder, candidate, training_set, run.deployment, run_id=run.qualified_id, staging=run.staging)


def evaluate_candidates(run: StageRun, training_set: TrainingSet, fitted: Sequence[Fitted]) -> Evaluation:
    """Measure the best candidate, the baselines and the champion on the same newest, untouched interval.

    Args:
        run: the run.
        training_set: what they learned from, and the holdout.
        fitted: all candidates.

    Raises:
        TrainingError: no candidate can be chosen, or the rows are no longer those that were pinned.
    """
    from perennial.training import evaluate

    return evaluate.evaluate_training(
        run.folder, run.deployment, training_set, fitted, run_id=run.qualified_id, staging=run.staging
    )


def decide_promotion(run: StageRun, training_set: TrainingSet, fitted: Sequence[Fitted], evaluation: Evaluation) -> Decided:
    """Let the gates decide, and register the version with the decision, its evidence, its card and its release report.

    Args:
        run: the run.
        training_set: what the candidates learned from.
        fitted: all candidates.
        evaluation: what was measured.

    Raises:
        CardError: a version that passed has a card with an empty section, so nobody could read what they promote.
    """
    from perennial.evaluation.gates import decide
    from perennial.reports.approval import comparison_in_words
    from perennial.reports.releases import publish_pages
    from perennial.training.evaluate import choose

    registry = run.deployment.registry
    decision = decide(evaluation, run.folder.spec.gates)
    version = registry.register(run.folder, training_set, choose(fitted), evaluation, decision, run_id=run.qualified_id)
    logs.resolved(version=version)
    # Before anybody promotes or approves it: they are to have read them, and what they cannot say stops the promotion.
    publish_pages(run.folder, run.deployment, version)
    links = registry.links(run.model, version)
    return Decided(
        version=version,
        decision=decision,
        expected=evaluation.champion_version,
        links=links,
        comparison=comparison_in_words(version, evaluation, decision, links),
    )


def train(run: StageRun, *, as_of: datetime, cause: str, actor: str) -> Outcome:
    """The whole stage. Nobody is asked for an approval: a version that requires one waits.

    Args:
        run: the run.
        as_of: only what was known by then is used.
        cause: why the training runs, for the record.
        actor: who started it.

    Returns:
        What became of the version.

    Raises:
        TrainingError: there is too little to learn from, or no candidate could be fitted.
        CardError: see :func:`decide_promotion`.
        StaleDecision: the champion changed meanwhile. The version is registered, and is not promoted.
    """
    training_set = build_training_set(run, as_of=as_of)
    fitted = [fit_candidate(run, candidate, training_set) for candidate in run.folder.spec.candidates]
    evaluation = evaluate_candidates(run, training_set, fitted)
    decided = decide_promotion(run, training_set, fitted, evaluation)
    try:
        return promote_champion(run, decided, cause=cause, actor=actor)
    except StaleDecision as error:
        raise StaleDecision(
            f"StaleDecision: {error}. The evaluation of version {decided.version} is stale, so it was not promoted: train "
            f"again, and the new version is compared with the new champion"
        ) from error
