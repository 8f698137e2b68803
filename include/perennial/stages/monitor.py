"""Monitor: whether data drifted, whether the champion still performs well, and whether to retrain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from perennial.core.intervals import Interval
from perennial.stages.run import StageRun

if TYPE_CHECKING:
    from perennial.ledger.records import ShadowComparison
    from perennial.monitoring.performance import Realised
    from perennial.monitoring.requests import RetrainingRequest
    from perennial.monitoring.verdicts import DriftVerdict


def measure_performance(run: StageRun, window: Interval) -> list[Realised]:
    """Measure realised metrics of all windows whose labels are known by this window's end."""
    from perennial.monitoring import performance

    return performance.measure_performance(run.folder, run.deployment, window, as_of=window.end, run_id=run.run_id)


def compare_shadows(run: StageRun, window: Interval) -> list[ShadowComparison]:
    """Compare the champion with its shadow versions on mature labels. Where the champion is worse, alert or roll back."""
    from perennial.monitoring import shadowing

    return shadowing.compare_shadows(run.folder, run.deployment, as_of=window.end, run_id=run.run_id)


def judge_drift(run: StageRun, window: Interval) -> DriftVerdict:
    """Compare the window's features and predictions with the champion's training reference."""
    from perennial.monitoring import verdicts

    return verdicts.judge_drift(
        run.folder, run.deployment, window, directory=run.deployment.settings.reports, run_id=run.run_id
    )


def decide_retraining(run: StageRun, window: Interval, *, training_under_way: bool) -> RetrainingRequest | None:
    """Decide whether to request a retraining. The reason is recorded in the ledger in both cases.

    Args:
        run: the run.
        window: the window that was judged.
        training_under_way: whether a training of the model is queued or running.

    Returns:
        The request; None if no retraining is requested.
    """
    from perennial.monitoring import requests

    return requests.request_retraining(
        run.folder.spec, run.deployment.ledger, window, run_id=run.run_id, training_under_way=training_under_way
    )


@dataclass(frozen=True)
class Monitored:
    """The results of a run of the stage.

    Attributes:
        measured: the windows that were measured.
        compared: the comparisons with shadow versions.
        verdict: the verdict on the window.
        request: the request for a retraining; None if there is none.
    """

    measured: list[Realised]
    compared: list[ShadowComparison]
    verdict: DriftVerdict
    request: RetrainingRequest | None


def monitor(run: StageRun, window: Interval, *, training_under_way: bool) -> Monitored:
    """The whole stage.

    Args:
        run: the run.
        window: the days or weeks to judge.
        training_under_way: whether a training of the model is queued or running.
    """
    # Before the verdict, since its severity depends on realised metrics.
    measured = measure_performance(run, window)
    compared = compare_shadows(run, window) if run.folder.spec.shadow.windows else []
    verdict = judge_drift(run, window)
    return Monitored(measured, compared, verdict, decide_retraining(run, window, training_under_way=training_under_way))
