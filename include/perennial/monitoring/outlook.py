"""Draws estimated and realised performance of a version, window by window."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from perennial.evaluation.plots import GREY, save
from perennial.evidence.verdict import ESTIMATE_LIMIT
from perennial.monitoring.estimation import WindowOutlook


def draw_outlook(windows: Sequence[WindowOutlook], directory: Path, *, metric: str, version: int) -> Path | None:
    """Draw a version's estimated performance with its band, and its realised performance.

    Args:
        windows: the version's windows, oldest first.
        directory: the folder for the PNG file.
        metric: the primary metric.
        version: the version's number, for the title.

    Returns:
        The file; None if no window has an estimate or a measurement.
    """
    expected = [window for window in windows if window.estimated is not None]
    came = [window for window in windows if window.realised is not None]
    if not expected and not came:
        return None
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes: Any = figure.subplots()
    if expected:
        ends = [window.interval.end for window in expected]
        axes.plot(ends, [window.estimated for window in expected], marker="o", markersize=4, label="estimated before labels")
        bands = [window.band or (np.nan, np.nan) for window in expected]
        axes.fill_between(ends, [low for low, _ in bands], [high for _, high in bands], alpha=0.2, linewidth=0)
    if came:
        ends = [window.interval.end for window in came]
        axes.plot(ends, [window.realised for window in came], marker="s", markersize=4, color="C1", label="realised")
        for window in came:
            if not window.mature:
                note = f"{window.coverage:.0%} of labels"
                axes.annotate(note, (window.interval.end, window.realised), fontsize=7, color=GREY)
    drifted = [window.interval.end for window in windows if window.verdict == "drift"]
    if drifted:
        axes.plot(drifted, [0.02] * len(drifted), "v", color="C3", transform=axes.get_xaxis_transform(), label="drift")
    axes.set(title=f"Version {version}, window by window", ylabel=metric, xlabel="end of the window")
    if expected:
        figure.supxlabel(ESTIMATE_LIMIT, fontsize=7, color=GREY)
    axes.tick_params(axis="x", rotation=30)
    axes.legend()
    return save(figure, directory / "performance.png")
