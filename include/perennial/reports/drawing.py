"""Where the lines of a chart run: axes, lines, bands and marks, in units of the drawing. A template draws them as SVG.

The functions are pure. Nothing is told by colour alone: each series has its own dash and dots, each kind of mark its sign.

Neighbours: :mod:`perennial.reports.model_page` says what is drawn, ``templates/model.html.j2`` draws it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Space around the plot, for the labels: left, right, top, bottom.
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 34.0, 26.0, 26.0
#: The fewest units of the drawing between two labels of the horizontal axis.
_LABEL = 92.0
#: Rows of letters above the plot.
_ROWS = 2
#: A reference line may make the vertical axis this much longer; else it is left out of the drawing.
_STRETCH = 2.0


@dataclass(frozen=True)
class Place:
    """One position of the horizontal axis, with its values. None leaves a gap.

    Attributes:
        label: shown at the axis where there is room.
        told: all about it in words, for a pointer and a screen reader.
        realised, estimated: values of the two series.
        usual: low and high end of the band.
        reference: value of a line to compare with.
        link: a page about it.
    """

    label: str
    told: str
    realised: float | None = None
    estimated: float | None = None
    usual: tuple[float, float] | None = None
    reference: float | None = None
    link: str | None = None


@dataclass(frozen=True)
class Mark:
    """Something that happened before a place.

    Attributes:
        place: index of the place before which it happened.
        sign: one letter that shows its kind.
        kind: its kind, in a word.
        told: what it was.
    """

    place: int
    sign: str
    kind: str
    told: str


@dataclass(frozen=True)
class Dot:
    """A point of a series."""

    kind: str
    x: float
    y: float
    told: str
    link: str | None

    @property
    def diamond(self) -> str:
        """The corners of a diamond around it."""
        x, y, size = self.x, self.y, 3.6
        corners = ((x, y - size), (x + size, y), (x, y + size), (x - size, y))
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)


@dataclass(frozen=True)
class Sign:
    """A mark in the drawing; ``row`` moves its letter up where another one is near."""

    x: float
    row: int
    sign: str
    kind: str
    told: str


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        width, height: of the drawing.
        left, right, top, bottom: edges of the plot.
        levels: labelled heights.
        ticks: labelled positions of the horizontal axis.
        realised, estimated, reference: polylines, one for each stretch without a gap: ``x,y x,y …``.
        usual: polygons of the band.
        dots: the points of both series.
        signs: the marks.
        left_out: whether the reference is so far away that it is not drawn.
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    levels: tuple[tuple[float, str], ...]
    ticks: tuple[tuple[float, str], ...]
    realised: tuple[str, ...]
    estimated: tuple[str, ...]
    reference: tuple[str, ...]
    usual: tuple[str, ...]
    dots: tuple[Dot, ...]
    signs: tuple[Sign, ...]
    left_out: bool


def chart(places: Sequence[Place], marks: Sequence[Mark], *, width: float, height: float) -> Chart | None:
    """The chart of these places, from left to right; None if they have no value.

    Args:
        places: in order.
        marks: what happened.
        width, height: of the drawing.
    """
    shown = [
        value for place in places for value in (place.realised, place.estimated, *(place.usual or ())) if value is not None
    ]
    if not any(place.realised is not None or place.estimated is not None for place in places):
        return None
    low, high = min(shown), max(shown)
    references = [place.reference for place in places if place.reference is not None]
    wide = (min(low, *references), max(high, *references)) if references else (low, high)
    left_out = bool(references) and wide[1] - wide[0] > _STRETCH * (high - low) > 0
    if not left_out:
        low, high = wide
    levels = levels_between(low, high)
    low, high = min(low, levels[0]), max(high, levels[-1])
    left, right, top, bottom = _LEFT, width - _RIGHT, _TOP, height - _BOTTOM
    step = (right - left) / len(places)

    def x(number: int) -> float:
        return round(left + (number + 0.5) * step, 1)

    def y(value: float) -> float:
        return round(float(bottom - (value - low) / ((high - low) or 1.0) * (bottom - top)), 1)

    def lines(values: Sequence[float | None]) -> tuple[str, ...]:
        parts = _stretches(values)
        return tuple(" ".join(f"{x(number)},{y(value)}" for number, value in part) for part in parts if len(part) > 1)

    realised, estimated = [place.realised for place in places], [place.estimated for place in places]
    dots = [
        Dot(kind, x(number), y(value), place.told, place.link)
        for kind, values in (("estimated", estimated), ("realised", realised))
        for number, (place, value) in enumerate(zip(places, values, strict=True))
        if value is not None
    ]
    every = max(1, math.ceil(_LABEL / step))
    # Counted from the newest, which always has its label.
    ticks = [(x(number), places[number].label) for number in range(len(places) - 1, -1, -every)]
    return Chart(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        levels=tuple((y(level), as_label(level, levels)) for level in levels),
        ticks=tuple(reversed(ticks)),
        realised=lines(realised),
        estimated=lines(estimated),
        reference=() if left_out else lines([place.reference for place in places]),
        usual=tuple(_bands([place.usual for place in places], x, y, step / 2)),
        dots=tuple(dots),
        signs=tuple(_signs(marks, left, step)),
        left_out=left_out,
    )


def levels_between(low: float, high: float) -> list[float]:
    """From three to six round numbers that span a range: 0.2, 0.25, 0.3."""
    span = (high - low) or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / 3))
    step = next(size * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if span / (size * factor) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def as_label(level: float, levels: Sequence[float]) -> str:
    """A level with as many digits as its neighbours need."""
    step = levels[1] - levels[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    # A step of 0.25 needs one digit more than one of 0.2.
    digits += round(step * 10**digits, 6) % 1 > 0
    return f"{level:,.{digits}f}"


def _stretches(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    found: list[list[tuple[int, float]]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            found.append([])
        else:
            found[-1].append((number, value))
    return [part for part in found if part]


def _bands(
    bands: Sequence[tuple[float, float] | None], x: Callable[[int], float], y: Callable[[float], float], half: float
) -> list[str]:
    """A rectangle for each stretch of places with the same band, since the band belongs to a version and not to a moment."""
    found: list[str] = []
    first = 0
    for number, band in enumerate(bands):
        if number + 1 < len(bands) and bands[number + 1] == band:
            continue
        if band is not None:
            start, end, (low, high) = x(first) - half, x(number) + half, band
            corners = ((start, y(high)), (end, y(high)), (end, y(low)), (start, y(low)))
            found.append(" ".join(f"{a:.1f},{b:.1f}" for a, b in corners))
        first = number + 1
    return found


def _signs(marks: Sequence[Mark], left: float, step: float) -> list[Sign]:
    """Marks at the border before their places. The letters of two at one border stand above each other; more have no room."""
    found: list[Sign] = []
    for mark in sorted(marks, key=lambda one: one.place):
        at = round(left + mark.place * step, 1)
        near = [other.row for other in found if abs(other.x - at) < 11]
        free = next((row for row in range(_ROWS) if row not in near), None)
        if free is not None:
            found.append(Sign(at, free, mark.sign, mark.kind, mark.told))
    return found
