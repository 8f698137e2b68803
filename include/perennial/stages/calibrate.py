"""Calibrate: set the thresholds for drift from stable history; only run by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.core.intervals import Interval
from perennial.spec.monitoring import DriftThresholds, NetThresholds
from perennial.stages.run import StageRun

if TYPE_CHECKING:
    from perennial.drift.thresholds import Progress


def calibrate(
    run: StageRun, interval: Interval | None, *, replays: int, seed: int | None, progress: Progress
) -> DriftThresholds:
    """Set the thresholds for drift from stable history, and write them to ``drift.yaml`` in the model's folder.

    If the model has been refreshed often enough, the file also gets the thresholds of refreshes that follow from them.

    Args:
        run: the run.
        interval: the stable history; None: all published features.
        replays: number of windows of the history that are compared.
        seed: seed of the random draws; None: ``training.seed``.
        progress: see :func:`perennial.drift.thresholds.calibrate`.

    Returns:
        The thresholds that were written.

    Raises:
        CalibrationError: there is no such history.
        NoChampion: there is no champion yet.
    """
    from perennial.drift import thresholds

    spec = run.folder.spec
    found = thresholds.calibrate(
        spec.drift,
        thresholds.Geometry.of(spec),
        thresholds.read_history(run.folder, run.deployment, interval),
        seed=spec.training.seed if seed is None else seed,
        replays=replays,
        progress=progress,
    )
    found = found.model_copy(update={"refresh": _net(run)})
    thresholds.write(run.folder, found)
    return found


def _net(run: StageRun) -> NetThresholds | None:
    """The thresholds of refreshes, from the model's refreshes that passed."""
    from perennial.evaluation.tolerance import net_thresholds

    passed = [
        (record.evaluation.refit.agreement, record.evaluation.refresh.skill)
        for record in run.deployment.ledger.versions(run.model)
        if record.decision.promote and record.evaluation.refresh is not None and record.evaluation.refit is not None
    ]
    known = [(agreement, skill) for agreement, skill in passed if agreement is not None and skill is not None]
    return net_thresholds([agreement for agreement, _ in known], [skill for _, skill in known])
