"""Which parts of an interval are published, and up to which time a version has learned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta

from perennial.core.intervals import Interval, utc
from perennial.ledger.records import Publication, VersionRecord
from perennial.spec.data import Label


def trained_as_of(record: VersionRecord | None) -> datetime | None:
    """The time up to which a version may have learned (``as_of`` of its training); None if that is not recorded."""
    return utc(record.training.as_of) if record is not None and record.training.as_of else None


def label_delay(label: Label, record: VersionRecord | None) -> timedelta:
    """How many whole days labels take: as the spec states, else as the version's training measured; zero if it did not."""
    if label.delay is not None:
        return timedelta(days=math.ceil(label.delay / timedelta(days=1)))
    return timedelta(days=record.training.label_delay) if record is not None else timedelta()


def uncovered(interval: Interval, publications: Iterable[Publication]) -> list[Interval]:
    """The parts of an interval that no publication covers, in order."""
    gaps: list[Interval] = []
    reached = interval.start
    for start, end in sorted((publication.interval.start, publication.interval.end) for publication in publications):
        if reached < start:
            gaps.append(Interval(reached, min(start, interval.end)))
        reached = max(reached, end)
        if reached >= interval.end:
            return gaps
    return [*gaps, Interval(reached, interval.end)]
