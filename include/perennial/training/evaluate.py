"""Measure the best candidate, the baselines and the champion on the holdout. Fit again what passes.

The process that trains measures first. The process that decides measures again, and decides by its own figures
(:func:`confirm_training`).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow as pa

from perennial.core.errors import TrainingError
from perennial.deployment import Deployment
from perennial.evaluation import plots
from perennial.evaluation.contest import Contest, Entrant, hold
from perennial.evaluation.gates import decide
from perennial.evaluation.readiness import CleanProcess
from perennial.evidence.evaluation import Contender, Evaluation, Refit, disputes
from perennial.evidence.training import TrainingSet
from perennial.model.artifacts import FeatureList, LoadedModel
from perennial.model.candidate import Fitted
from perennial.model.estimators import fit_rows
from perennial.registry.store import Registry
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.recipe import recipe_digest
from perennial.training.champion import champion_entrant
from perennial.training.fit import rows_before
from perennial.training.online_parity import online_parity
from perennial.training.refit import refit_candidate, try_refit
from perennial.training.training_set import content_hash, count_again, load_all_rows, load_rows, narrowed


def choose(fitted: Sequence[Fitted]) -> Fitted:
    """The candidate with the best validation score. Baselines are never chosen, and the holdout is not used.

    Raises:
        TrainingError: no candidate has a validation score.
    """
    scored = [(candidate.score, candidate) for candidate in fitted if not candidate.baseline and candidate.score is not None]
    if not scored:
        names = ", ".join(candidate.candidate for candidate in fitted) or "none"
        raise TrainingError(f"no candidate has a validation score (fitted: {names}): make training.validation longer")
    # Of equal scores, the first in model.yaml is chosen.
    return max(scored, key=lambda pair: pair[0] if pair[1].greater_is_better else -pair[0])[1]


#: Of how many classes MLflow's pages show figures.
MOST_CLASSES = 20


def evaluate_training(
    folder: ModelFolder,
    deployment: Deployment,
    training_set: TrainingSet,
    fitted: Sequence[Fitted],
    *,
    run_id: str,
    staging: Path | None = None,
) -> Evaluation:
    """Measure the candidate with the best validation score, all baselines and the champion on the same holdout rows.

    If the candidate passes its gates, it is fitted again on the newest rows (``training.refit``).
    The metrics of the candidate and of each baseline are logged to their runs in MLflow. Plots of the comparison are logged to
    the candidate's run.

    Args:
        folder: the model's folder.
        deployment: contains the rows and the models.
        training_set: says which rows.
        fitted: all candidates of the run.
        run_id: the orchestrator's run.
        staging: the folder that :func:`build_training_set` wrote the rows to; None if it wrote them to none.
    """
    spec, chosen, registry = folder.spec, choose(fitted), deployment.registry
    own = narrowed(folder, deployment.lake, training_set, chosen.window)
    with CleanProcess() as clean, tempfile.TemporaryDirectory(prefix="perennial-evaluation-") as scratch:
        rows = load_rows(folder, deployment.lake, training_set, "holdout", staging)
        clean.ask(spec, chosen, rows, partial(registry.fetch, chosen.model_id), registry.trusted(spec))

        def entrant(candidate: Fitted, role: Literal["candidate", "baseline"]) -> Entrant:
            blank = blank_contender(folder, training_set, candidate, role)
            return Entrant(blank, partial(registry.load_fitted, spec, training_set, candidate))

        outcome = hold(
            Contest.on_holdout(
                folder,
                own,
                rows,
                candidate=entrant(chosen, "candidate"),
                baselines=[entrant(baseline, "baseline") for baseline in fitted if baseline.baseline],
                champion=champion_entrant(folder, deployment, training_set, chosen, staging=staging),
                run_id=run_id,
            )
        )
        files, holdout = Path(scratch), f"holdout {outcome.evaluation.interval}"
        plots.draw_predictions(spec.task, outcome.truth, outcome.predictions, files, rows=holdout)
        plots.draw_comparison(outcome.evaluation, outcome.gains, files, rows=holdout)
        # The clean process takes longest, so its result is collected last.
        evaluation = replace(
            outcome.evaluation, operation=clean.wait(outcome.model), parity=online_parity(folder, deployment.ledger)
        )
        if spec.training.refit and decide(evaluation, spec.gates).promote:
            judged = outcome.predictions[chosen.candidate]
            evaluation = replace(evaluation, refit=refit_candidate(folder, deployment, own, chosen, rows, judged))
        _log_evaluation(spec, registry, training_set, chosen, fitted, evaluation, files)
    return evaluation


def confirm_training(
    folder: ModelFolder,
    deployment: Deployment,
    training_set: TrainingSet,
    fitted: Sequence[Fitted],
    claimed: Evaluation,
) -> tuple[TrainingSet, Evaluation]:
    """Measure a training again, from the candidate's files and the pinned rows alone. It may run in another process.

    What the candidate must beat is fitted anew: the baselines and the champion's recipe. So it depends on nothing that the
    process says that trained the candidate.

    Args:
        folder: the model's folder.
        deployment: contains the rows and the models.
        training_set: says which rows. What it says of them is counted again.
        fitted: all candidates of the run. Of the chosen one, the files count; of a baseline, its name and parameters.
        claimed: what the other process has measured. Of it, the files of the refit are used.

    Returns:
        The training set, and the evaluation; :attr:`Evaluation.disputed` says where the other one differs.

    Raises:
        TrainingError: no candidate can be chosen, or the lake's rows are not the pinned rows.
    """
    spec, registry, chosen = folder.spec, deployment.registry, choose(fitted)
    with CleanProcess() as clean, CleanProcess() as clean_refit:
        training_set, parts = count_again(folder, deployment.lake, training_set)
        window, rows = parts["window"], parts["holdout"]
        clean.ask(spec, chosen, rows, partial(registry.fetch, chosen.model_id), registry.trusted(spec))
        own = narrowed(folder, deployment.lake, training_set, chosen.window)

        def fit_baseline(baseline: Fitted) -> LoadedModel:
            part = training_set.newest(spec.training.length(baseline.window))
            learned = window.slice(rows_before(window, spec.event_time, part.start))
            takes = FeatureList.of(spec)
            estimator = fit_rows(folder, baseline.candidate, baseline.params, learned, takes)
            return LoadedModel(
                baseline.candidate, None, spec.task, takes, part.key, folder.features_digest, estimator, pa.table({})
            )  # fmt: skip

        declared = {name for name, candidate in spec.candidates.items() if candidate.baseline}
        outcome = hold(
            Contest.on_holdout(
                folder,
                own,
                rows,
                candidate=Entrant(
                    blank_contender(folder, training_set, chosen, "candidate"),
                    partial(registry.load_fitted, spec, training_set, chosen),
                ),
                baselines=[
                    Entrant(blank_contender(folder, training_set, one, "baseline"), partial(fit_baseline, one))
                    for one in fitted
                    if one.candidate in declared
                ],
                champion=champion_entrant(folder, deployment, training_set, chosen),
                run_id=claimed.run_id,
            )
        )
        evaluation = replace(
            outcome.evaluation, operation=clean.wait(outcome.model), parity=online_parity(folder, deployment.ledger)
        )
        if spec.training.refit and claimed.refit is not None and decide(evaluation, spec.gates).promote:
            interval, learned = load_all_rows(folder, deployment.lake, training_set)
            refit = Refit(
                claimed.refit.stored, interval.key, learned.num_rows, content_hash(learned), seconds=claimed.refit.seconds
            )  # fmt: skip
            judged = outcome.predictions[chosen.candidate]
            refit = try_refit(spec, registry, own, chosen, refit, rows, judged, clean_refit)
            evaluation = replace(evaluation, refit=refit)
    return training_set, replace(evaluation, disputed=disputes(claimed, evaluation))


def blank_contender(
    folder: ModelFolder, training_set: TrainingSet, fitted: Fitted, role: Literal["candidate", "baseline"]
) -> Contender:
    """A fitted candidate as it takes part in a contest on the holdout, without metrics."""
    return Contender(
        name=fitted.candidate,
        role=role,
        metrics={},
        rows=training_set.rows["holdout"],
        rows_hash=training_set.content["holdout"],
        predictions=None,
        mlflow_run_id=fitted.mlflow_run_id,
        trained_on=training_set.newest(folder.spec.training.length(fitted.window)).key,
        recipe=recipe_digest(folder, fitted.candidate, fitted.params, fitted.window),
    )


def _log_evaluation(
    spec: ModelSpec,
    registry: Registry,
    training_set: TrainingSet,
    chosen: Fitted,
    fitted: Sequence[Fitted],
    result: Evaluation,
    files: Path,
) -> None:
    """Log the evaluation and its files to the candidate's run, and each contender's metrics to its own run."""
    stored = {candidate.mlflow_run_id: candidate.model_id for candidate in fitted}
    for contender in (result.candidate, *result.baselines):
        if contender.mlflow_run_id is not None and contender.metrics:
            metrics = {f"holdout_{name}": value for name, value in {**_in_numbers(contender), **contender.metrics}.items()}
            if contender.role == "candidate" and result.champion is not None:
                metrics |= {f"champion_{name}": value for name, value in result.champion.metrics.items()}
            registry.run(contender.mlflow_run_id).log(metrics=metrics, model_id=stored[contender.mlflow_run_id])
    run = registry.run(chosen.mlflow_run_id)
    run.log_rows(
        "holdout",
        result.rows_hash,
        {"model": spec.name, "interval": result.interval, "snapshots": training_set.snapshots},
        rows=result.rows,
        context="evaluation",
    )
    (files / "evaluation.json").write_text(json.dumps(result.to_json(), indent=2), encoding="utf-8")
    run.log_files(files, "holdout")


def _in_numbers(contender: Contender) -> dict[str, float]:
    """What a contender answered, as metrics for MLflow's pages: per class for the most frequent ones."""
    answers = contender.answers
    if answers is None:
        return {}
    found: dict[str, float | None] = {"accuracy": answers.accuracy, "mape": answers.mape}
    found |= {f"pinball_{quantile}": value for quantile, value in answers.pinball.items()}
    classes = answers.by_class
    if answers.threshold is not None:
        if (yes := classes.get("true")) is not None:
            found |= {"precision": yes.precision, "recall": yes.recall, "f1": yes.f1}
        found |= {
            f"rows_{actual}_answered_{said}": answers.confusion.get(actual, {}).get(said, 0)
            for actual in ("true", "false")
            for said in ("true", "false")
        }
    else:
        for name, one in list(classes.items())[:MOST_CLASSES]:
            shown = re.sub(r"[^\w. /-]", "_", name, flags=re.ASCII)  # what MLflow allows in a name
            found |= {f"precision/{shown}": one.precision, f"recall/{shown}": one.recall, f"f1/{shown}": one.f1}
    return {name: value for name, value in found.items() if value is not None}
