"""The distances between two samples of a column that drift is measured by.

A sample is given by how often each row counts. So :mod:`perennial.drift.thresholds` can compute hundreds of thousands of
distances over the same rows. :mod:`perennial.drift.compare` lets Evidently compute them, once per window. The definitions are
the same, which a test checks.
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

from perennial.spec.monitoring import MIN_VALUES

#: The most categories that are distinguished. Rarer ones of the reference are merged. With thousands of categories, the
#: distance between two samples of the same distribution is large, and Evidently takes seconds per column.
MAX_CATEGORIES = 100
#: The square of a larger value overflows, and every distance becomes 0 or NaN. So such a value counts as infinite.
HUGE = 1e150
#: Numbers that differ by at most this share of their size are one number, rounded differently: a sum or mean of many equal
#: values depends on the order of adding. A deviation of such differences measures nothing.
ROUNDING = 1e-12
#: Smaller differences cannot be squared.
_TINY = 1e-150

Counts = NDArray[np.float64]


class PreparedColumn(Protocol):
    """n values of a column, prepared so that a distance between two samples of its rows takes a millisecond."""

    #: Of n rows, whether each has no value.
    absent: NDArray[np.bool_]

    def distance(self, current: Counts, reference: Counts) -> float:
        """The distance between the rows counted ``current`` times and those counted ``reference`` times.

        Args:
            current, reference: how often each of the n rows is counted, 0 or more.

        Returns:
            NaN where a side has fewer than :data:`MIN_VALUES` values. 0 where the reference has only one number, since
            there is no deviation to measure by: :meth:`strange` tells whether there are others now.
        """
        ...

    def farthest(self) -> float:
        """The distance from all n rows to as many that all have the farthest value among them; 0 if they have one value."""
        ...

    def strange(self, current: Counts, reference: Counts) -> float:
        """The share of ``current``'s values that are new, 0 to 1.

        New is a category that ``reference`` does not have, or a number if ``reference`` has only one other number.
        """
        ...


class Numbers:
    """Wasserstein distance in standard deviations of the reference.

    In one dimension it is the area between the two cumulative distribution functions, so values are sorted only once.

    References:
        Ramdas, Garcia Trillos, Cuturi: On Wasserstein Two-Sample Testing and Related Families of Nonparametric Tests.
            Entropy 19 (2017).
    """

    def __init__(self, values: NDArray[np.float64]) -> None:
        self.absent = np.isnan(values)
        usable = np.flatnonzero(~self.absent & (np.abs(values) <= HUGE))
        self._order = usable[np.argsort(values[usable], kind="stable")]
        self._sorted = values[self._order]

    def distance(self, current: Counts, reference: Counts) -> float:
        # Most rows of a long history count on neither side.
        counted = ((current > 0) | (reference > 0))[self._order]
        rows, values = self._order[counted], self._sorted[counted]
        now, then = current[rows], reference[rows]
        many, known = now.sum(), then.sum()
        if min(many, known) < MIN_VALUES:
            return math.nan
        if only_number(values[then > 0]) is not None:
            return 0.0
        # Sums instead of BLAS dot products: starting BLAS threads takes longer than adding.
        apart = float((np.abs(np.cumsum(now / many - then / known)[:-1]) * np.diff(values)).sum())
        mean = (then * values).sum() / known
        return apart / math.sqrt((then * np.square(values - mean)).sum() / known)

    def farthest(self) -> float:
        if not len(self._sorted) or only_number(self._sorted) is not None:
            return 0.0
        mean = float(self._sorted.mean())
        reach: float = max(mean - self._sorted[0], self._sorted[-1] - mean)
        return reach / float(np.std(self._sorted))

    def strange(self, current: Counts, reference: Counts) -> float:
        now, known = current[self._order], self._sorted[reference[self._order] > 0]
        if not now.any() or (only := only_number(known)) is None:
            return 0.0
        return float(now[is_other(self._sorted, only)].sum() / now.sum())


class Categories:
    """Jensen-Shannon distance, 0 to 0.83 (natural logarithm), with the rarer categories of the reference merged."""

    def __init__(self, values: pa.Array) -> None:
        self.absent = values.is_null().to_numpy(zero_copy_only=False)
        names = pc.sort_indices(found := values.drop_null().unique())
        # Alphabetical order decides between equally frequent categories.
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
        return distance if math.isfinite(distance) else 0.0  # NaN for equal sides, by rounding before the square root

    def farthest(self) -> float:
        counts = np.bincount(self._codes, minlength=self._many).astype(np.float64)
        if len(counts) < 2:
            return 0.0
        alone = np.zeros(len(counts))
        alone[counts.argmin()] = 1.0
        return float(jensenshannon(counts, alone))

    def strange(self, current: Counts, reference: Counts) -> float:
        now, then = self._count(current), self._count(reference)
        return float(now[then == 0].sum() / now.sum()) if now.sum() else 0.0


def only_number(values: NDArray[np.float64]) -> float | None:
    """The number that all n values are, but for rounding; None if they differ, or there are none."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    return low if high - low <= max(ROUNDING * max(abs(low), abs(high)), _TINY) else None


def is_other(values: NDArray[np.float64], only: float) -> NDArray[np.bool_]:
    """Whether each of n values is another number than the only one of a reference, and not the same one rounded."""
    apart: NDArray[np.bool_] = np.abs(values - only) > np.maximum(ROUNDING * np.maximum(np.abs(values), abs(only)), _TINY)
    return apart


def as_floats(values: pa.Array) -> NDArray[np.float64]:
    """Numbers as floats that may be written to, NULL as NaN. Integers beyond 2**53 are rounded."""
    floats = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.array(floats, dtype=np.float64)


def prepare(column: pa.ChunkedArray | pa.Array) -> PreparedColumn:
    """A prepared column, numeric or categorical by its type."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if is_number(values.type):
        return Numbers(as_floats(values))
    return Categories(pc.cast(values, pa.string()))


def prepare_all(table: pa.Table, names: Iterable[str]) -> dict[str, PreparedColumn]:
    """The named columns of a table, prepared, by name."""
    return {name: prepare(table.column(name)) for name in names}


def is_number(kind: pa.DataType) -> bool:
    """Whether values of a type are compared as numbers. All other types are compared as categories."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
