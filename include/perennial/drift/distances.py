"""How far two samples of a column lie apart: the distances that drift is told by, over rows that are counted anew each time.

:mod:`perennial.drift.compare` has Evidently take them, once a window; :mod:`perennial.drift.thresholds` takes them here,
hundreds of thousands of times, by the very same definitions (a test holds the two against each other).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon

#: Fewest values of a column, on either side, that a distance is taken of.
MIN_VALUES = 50
#: Most categories told apart; the rarer ones of the reference are taken together. With thousands of them, the distance of
#: two samples of the same distribution is large, and Evidently takes seconds a column.
MAX_CATEGORIES = 100
#: Beyond this, the square of a value overflows and every distance becomes 0 or NaN: as good as infinite.
HUGE = 1e150
#: What Evidently divides by where the reference has no deviation.
_LEAST_DEVIATION = 0.001

Counts = NDArray[np.float64]


class Column(Protocol):
    """n values of a column, prepared so that a distance between two ways of counting its rows takes a millisecond."""

    #: Which of the n rows have no value.
    absent: NDArray[np.bool_]

    def distance(self, current: Counts, reference: Counts) -> float:
        """The distance between the rows counted ``current`` times and those counted ``reference`` times.

        Args:
            current, reference: how often each of the n rows is counted, 0 or more.

        Returns:
            NaN where a side has fewer than :data:`MIN_VALUES` values.
        """
        ...

    def strange(self, current: Counts, reference: Counts) -> float:
        """Share of the values of ``current`` in categories of which ``reference`` has none."""
        ...


class Numbers:
    """Wasserstein distance in standard deviations of the reference.

    In one dimension it is the area between the two cumulative distribution functions (Ramdas, Garcia Trillos, Cuturi: On
    Wasserstein Two-Sample Testing and Related Families of Nonparametric Tests. Entropy 19, 2017), so values are sorted once.
    """

    def __init__(self, values: NDArray[np.float64]) -> None:
        self.absent = np.isnan(values)
        usable = np.flatnonzero(~self.absent & (np.abs(values) <= HUGE))
        self._order = usable[np.argsort(values[usable], kind="stable")]
        self._sorted = values[self._order]

    def distance(self, current: Counts, reference: Counts) -> float:
        # Most rows of a long history are counted on neither side.
        counted = ((current > 0) | (reference > 0))[self._order]
        rows, values = self._order[counted], self._sorted[counted]
        now, then = current[rows], reference[rows]
        many, known = now.sum(), then.sum()
        if min(many, known) < MIN_VALUES:
            return math.nan
        # Sums, not BLAS's dot products, whose threads take longer to meet than to add.
        apart = float((np.abs(np.cumsum(now / many - then / known)[:-1]) * np.diff(values)).sum())
        mean = (then * values).sum() / known
        deviation = math.sqrt((then * np.square(values - mean)).sum() / known)
        return apart / (deviation or _LEAST_DEVIATION)

    def strange(self, current: Counts, reference: Counts) -> float:  # noqa: ARG002
        return 0.0


class Categories:
    """Jensen-Shannon distance, 0 to 0.83 (natural logarithm), with the rarer categories of the reference taken together."""

    def __init__(self, values: pa.Array) -> None:
        self.absent = values.is_null().to_numpy(zero_copy_only=False)
        names = pc.sort_indices(found := values.drop_null().unique())
        # In alphabetical order, which decides between categories that are as frequent.
        codes = pc.index_in(values, value_set=found.take(names))
        self._present = np.flatnonzero(~self.absent)
        self._codes = codes.drop_null().to_numpy().astype(np.int64)
        self._many = len(found)

    def _count(self, rows: Counts) -> Counts:
        return np.bincount(self._codes, weights=rows[self._present], minlength=self._many).astype(np.float64, copy=False)

    def distance(self, current: Counts, reference: Counts) -> float:
        now, then = self._count(current), self._count(reference)
        if min(now.sum(), then.sum()) < MIN_VALUES:
            return math.nan
        told_apart = np.argsort(-then, kind="stable")[:MAX_CATEGORIES]
        told_apart = told_apart[then[told_apart] > 0]
        sides = [np.append(side[told_apart], side.sum() - side[told_apart].sum()) for side in (then, now)]
        distance = float(jensenshannon(*sides))
        return distance if math.isfinite(distance) else 0.0  # of equal sides, by the rounding of a square root

    def strange(self, current: Counts, reference: Counts) -> float:
        now, then = self._count(current), self._count(reference)
        return float(now[then == 0].sum() / now.sum()) if now.sum() else 0.0


def prepare(column: pa.ChunkedArray | pa.Array) -> Column:
    """A column of a table, as a number or as a category."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if is_number(values.type):
        return Numbers(pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64))
    return Categories(pc.cast(values, pa.string()))


def prepare_all(table: pa.Table, names: Iterable[str]) -> dict[str, Column]:
    """The named columns of a table."""
    return {name: prepare(table.column(name)) for name in names}


def is_number(kind: pa.DataType) -> bool:
    """Whether values of this type are compared as numbers; all others are categories."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
