"""Train: make a version from published features. It becomes champion, is refused, or waits for an approval."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from perennial.core.errors import StaleDecision
from perennial.core.intervals import Interval
from perennial.stages.promote import (
    Decided,
    Outcome,
    promote_champion,
    promoted_before,
    refuse_rows_of_another_run,
    register_decided,
)
from perennial.stages.run import StageRun, declare_unusable

if TYPE_CHECKING:
    from perennial.evidence.evaluation import Evaluation
    from perennial.evidence.training import TrainingSet
    from perennial.model.candidate import Fitted


def build_training_set(run: StageRun, *, as_of: datetime, calendar: Interval | None = None) -> TrainingSet:
    """Pin features and labels, as they were known at ``as_of``, by snapshot and content hash.

    Args:
        run: the run.
        as_of: only data known by then are used; the end of the holdout.
        calendar: the week or month whose end started the training; None if something else did.

    Raises:
        TrainingError: there is too little data; the message says what is missing.
        ModelRenamed: the registered model has another name in MLflow, so no version could be registered.
        SpecError: the model's predictions could not be published.
    """
    from perennial.scoring.predictor import refuse_other_predictions
    from perennial.training import training_set

    refuse_other_predictions(run.folder.spec, run.deployment.lake)
    run.deployment.registry.check_name(run.model)
    return training_set.build_training_set(
        run.folder, run.deployment, as_of=as_of, run_id=run.qualified_id, staging=run.staging, calendar=calendar
    )


def fit_candidate(run: StageRun, candidate: str, training_set: TrainingSet) -> Fitted:
    """Search a candidate's parameters, fit the candidate, and log it to MLflow.

    Args:
        run: the run.
        candidate: the candidate's name in ``model.yaml``.
        training_set: the rows to learn from.

    Raises:
        TrainingError: the candidate could not be fitted.
    """
    from perennial.training import fit

    return fit.fit_candidate(run.folder, candidate, training_set, run.deployment, run_id=run.qualified_id, staging=run.staging)


def evaluate_candidates(run: StageRun, training_set: TrainingSet, fitted: Sequence[Fitted]) -> Evaluation:
    """Measure the best candidate, the baselines and the champion on the same holdout.

    Args:
        run: the run.
        training_set: the training rows and the holdout.
        fitted: all fitted candidates and baselines.

    Raises:
        TrainingError: no candidate can be chosen, or the rows are no longer the pinned rows.
        ModelRenamed: the registered model has another name in MLflow.
    """
    from perennial.training import evaluate

    evaluation = evaluate.evaluate_training(
        run.folder, run.deployment, training_set, fitted, run_id=run.qualified_id, staging=run.staging
    )
    if (champion := evaluation.champion) is not None and champion.unusable and champion.version is not None:
        declare_unusable(run, champion.version, champion.unusable)
    return evaluation


def decide_promotion(run: StageRun, training_set: TrainingSet, fitted: Sequence[Fitted], evaluation: Evaluation) -> Decided:
    """Decide by the gates, and register the version with the decision, its evidence, its card and its release report.

    Args:
        run: the run.
        training_set: the rows that the candidates were trained on.
        fitted: all fitted candidates and baselines.
        evaluation: the measurements.

    Raises:
        CardError: the version passed its gates, but a section of its card is empty.
    """
    from perennial.evaluation.gates import decide
    from perennial.training.evaluate import choose
    from perennial.training.training_set import narrowed

    spec = run.folder.spec
    decision = decide(evaluation, spec.gates, refit=spec.training.refit)
    chosen = choose(fitted)
    learned = narrowed(run.folder, run.deployment.lake, training_set, chosen.window)
    return register_decided(run, run.folder, learned, chosen, evaluation, decision)


def confirm(
    run: StageRun, training_set: TrainingSet, fitted: Sequence[Fitted], evaluation: Evaluation
) -> tuple[TrainingSet, Evaluation]:
    """Measure again what another process has measured.

    Args:
        run: the run.
        training_set, fitted, evaluation: what the other process says.

    Returns:
        The training set and the evaluation to decide on.

    Raises:
        TrainingError: see :func:`perennial.training.evaluate.confirm_training`.
    """
    from perennial.training.evaluate import choose, confirm_training

    refuse_rows_of_another_run(run, training_set)
    if (made := promoted_before(run, choose(fitted).mlflow_run_id)) is not None:
        return training_set, made.evaluation
    return confirm_training(run.folder, run.deployment, training_set, fitted, evaluation)


def train(run: StageRun, *, as_of: datetime, cause: str, actor: str) -> Outcome:
    """The whole stage. It does not ask for an approval: a version that requires one waits.

    Args:
        run: the run.
        as_of: only data known by then are used.
        cause: why the training runs, for the record.
        actor: who started the training.

    Returns:
        The outcome for the version.

    Raises:
        TrainingError: there is too little data, or a candidate could not be fitted.
        CardError: see :func:`decide_promotion`.
        StaleDecision: the champion changed during the training. The version is registered, but not promoted.
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
            f"again to compare a new version with the new champion"
        ) from error
