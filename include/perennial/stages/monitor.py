"""Monitor: has the world changed, is the champion still good, and is it time to retrain?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from perennial.core.intervals import Interval
from perennial.stages.run import StageRun

if TYPE_CHECKING:
    from perennial.ledger.records import ShadowComparison
    from perennial.monitoring.judge import DriftVerdict
    from perennial.monitoring.performance import Realised
    from perennial.monitoring.requests import RetrainingRequest


def measure_performance(run: StageRun, window: Interval) -> list[Realised]:
    """Realised metrics of every window whose labels have become known by this window's end."""
    from perennial.monitoring import performance

    return performance.measure_performance(run.folder, run.deployment, window, as_of=window.end, run_id=run.run_id)


def compare_shadows(run: StageRun, window: Interval) -> list[ShadowComparison]:
    """Compare the champion with the versions in its shadow on mature labels; tell people, or roll back, where it is worse."""
    from perennial.monitoring import shadowing

    return shadowing.compare_shadows(run.folder, run.deployment, as_of=window.end, run_id=run.run_id)


def judge_drift(run: StageRun, window: Interval) -> DriftVerdict:
    """Compare the window's features and predictions with the champion's own training reference."""
    from perennial.monitoring import judge

    return judge.judge_drift(run.folder, run.deployment, window, directory=run.deployment.settings.reports, run_id=run.run_id)


def decide_retraining(run: StageRun, window: Interval, *, training_under_way: bool) -> RetrainingRequest | None:
    """Ask for a retraining, or not; the reason is in the ledger either way.

    Args:
        run: the run.
        window: what was judged.
        training_under_way: whether a training of the model waits or runs.

    Returns:
        What is asked for; None if nothing is.
    """
    from perennial.monitoring import requests

    return requests.request_retraining(
        run.folder.spec, run.deployment.ledger, window, run_id=run.run_id, training_under_way=training_under_way
    )


@dataclass(frozen=True)
class Monitored:
    """What a run of the stage found.

    Attributes:
        measured: windows whose labels were new.
        compared: what was seen of the versions in the shadow.
        verdict: on the window.
        request: the retraining that is asked for; None if none is.
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
        training_under_way: whether a training of the model waits or runs.
    """
    # First, since what was realised so far weighs in the verdict's severity.
    measured = measure_performance(run, window)
    compared = compare_shadows(run, window) if run.folder.spec.shadow.windows else []
    verdict = judge_drift(run, window)
    return Monitored(measured, compared, verdict, decide_retraining(run, window, training_under_way=training_under_way))
