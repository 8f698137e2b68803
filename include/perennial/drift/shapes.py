"""The distribution of a column on both sides, coarse enough to be drawn in a few hundred bytes without a plotting library.

Neighbours: :mod:`perennial.drift.compare` makes shapes of the values that it compares, :mod:`perennial.drift.page` shows them.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perennial.core.text import UNSAFE
from perennial.evidence.verdict import Kind

#: Bars of a numeric column, and of a categorical one, whose other values are taken together.
BINS, CATEGORIES = 30, 12

_WIDTH, _HEIGHT, _ROW = 360, 120, 18
_REFERENCE, _CURRENT = "#8c959f", "#0969da"


@dataclass(frozen=True)
class Shape:
    """Shares of the values by bar.

    Attributes:
        labels: of each bar of a categorical column; the smallest and the largest value that a numeric one shows.
        reference, current: share of the side's values in each bar, 0 to 1.
        numeric: whether the bars are an axis.
    """

    labels: Sequence[str]
    reference: Sequence[float]
    current: Sequence[float]
    numeric: bool

    def to_svg(self) -> str:
        """The picture: the window in colour, the reference in grey. It contains no script."""
        return self._axis() if self.numeric else self._bars()

    def _axis(self) -> str:
        top = max(*self.reference, *self.current, 1e-9)
        low, high = map(_safe, self.labels)
        return (
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 16}" width="{_WIDTH}" role="img">'
            f'<path d="{_steps(self.reference, top)}" fill="{_REFERENCE}" fill-opacity=".35"/>'
            f'<path d="{_steps(self.current, top)}" fill="none" stroke="{_CURRENT}" stroke-width="2"/>'
            f'<text x="0" y="{_HEIGHT + 13}">{low}</text>'
            f'<text x="{_WIDTH}" y="{_HEIGHT + 13}" text-anchor="end">{high}</text></svg>'
        )

    def _bars(self) -> str:
        top = max(*self.reference, *self.current, 1e-9)
        rows = "".join(
            f'<text x="130" y="{n * _ROW + 13}" text-anchor="end">{_safe(label)}</text>'
            f'<rect x="136" y="{n * _ROW + 2}" width="{220 * before / top:.0f}" height="7" fill="{_REFERENCE}"/>'
            f'<rect x="136" y="{n * _ROW + 9}" width="{220 * now / top:.0f}" height="7" fill="{_CURRENT}"/>'
            for n, (label, before, now) in enumerate(zip(self.labels, self.reference, self.current, strict=True))
        )
        height = _ROW * len(self.labels)
        return f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">{rows}</svg>'


def shape_of(kind: Kind, current: pd.Series[Any], reference: pd.Series[Any]) -> Shape:
    """The shape of a column.

    Args:
        kind: numeric or categorical.
        current, reference: the values of each side; missing ones are left out.
    """
    if kind == "numeric":
        sides = [side.to_numpy(dtype=np.float64, na_value=np.nan) for side in (reference, current)]
        before, now = (side[np.isfinite(side)] for side in sides)
        both = np.concatenate([before, now])
        low, high = np.quantile(both, [0.005, 0.995]) if len(both) else (0.0, 0.0)
        edges = np.linspace(low, high if high > low else low + max(1.0, abs(low) * 1e-9), BINS + 1)
        # What lies beyond the ends counts for the outermost bars.
        shares = [_shares(np.histogram(np.clip(side, edges[0], edges[-1]), edges)[0]) for side in (before, now)]
        return Shape([f"{edges[0]:.4g}", f"{edges[-1]:.4g}"], shares[0], shares[1], numeric=True)
    counts = pd.DataFrame({"reference": reference.dropna().value_counts(), "current": current.dropna().value_counts()}).fillna(
        0
    )
    counts = counts / counts.sum().clip(lower=1)
    order = counts.max(axis=1).sort_values(ascending=False, kind="stable").index
    shown, rest = counts.loc[order[:CATEGORIES]], counts.loc[order[CATEGORIES:]].sum()
    labels = [str(label) for label in shown.index]
    sides_shown = [[float(share) for share in shown[side]] for side in ("reference", "current")]
    if len(order) > CATEGORIES:
        labels.append(f"{len(order) - CATEGORIES} others")
        for side, name in zip(sides_shown, ("reference", "current"), strict=True):
            side.append(float(rest[name]))
    return Shape(labels, sides_shown[0], sides_shown[1], numeric=False)


def _shares(counts: NDArray[Any]) -> list[float]:
    return [float(share) for share in counts / max(1, counts.sum())]


def _steps(shares: Sequence[float], top: float) -> str:
    width = _WIDTH / len(shares)
    heights = [_HEIGHT - _HEIGHT * share / top for share in shares]
    return f"M0 {_HEIGHT}" + "".join(f"V{y:.0f}H{width * (n + 1):.0f}" for n, y in enumerate(heights)) + f"V{_HEIGHT}Z"


def _safe(label: str) -> str:
    text = UNSAFE.sub(" ", label)
    return html.escape(text if len(text) <= 20 else f"{text[:19]}…")
