"""Calibrate: the thresholds for drift from stable history; by hand alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.core.intervals import Interval
from perennial.spec.monitoring import DriftThresholds
from perennial.stages.run import StageRun

if TYPE_CHECKING:
    from perennial.drift.thresholds import Progress


def calibrate(
    run: StageRun, interval: Interval | None, *, replays: int, seed: int | None, progress: Progress
) -> DriftThresholds:
    """Set the thresholds for drift from stable history, and keep them as ``drift.yaml`` in the model's folder.

    Args:
        run: the run.
        interval: what was stable; None: all features that are published.
        replays: how many windows of it are compared.
        seed: of the draws; None: ``training.seed``.
        progress: see :func:`perennial.drift.thresholds.calibrate`.

    Returns:
        What is in the file now.

    Raises:
        CalibrationError: there is no such history.
        NoChampion: nobody predicts yet.
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
    thresholds.write(run.folder, found)
    return found
