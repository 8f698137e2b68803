"""Which parts of an interval are published, what they still wait for, and up to which time a version has learned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True, order=True)
class Awaited:
    """A day that was published without a table, because the table may come late (``late`` in ``model.yaml``).

    Attributes:
        day: the day.
        since: when it was first published without the table.
    """

    day: Interval
    since: datetime


class Waiting:
    """The tables that published days wait for, found by going through a model's publications of tables, oldest first."""

    def __init__(self, publications: Iterable[Publication] = ()) -> None:
        self._since: dict[tuple[str, Interval], datetime] = {}
        for publication in publications:
            self.add(publication)

    def add(self, publication: Publication) -> None:
        """Take a publication into account that is newer than those before."""
        still = {
            (table, Interval.from_key(key))
            for table, keys in publication.inputs.get("awaited", {}).items()
            # A table that was not written has the rows of before.
            if table in publication.rows
            for key in keys
        }
        for table, day in list(self._since):
            if table in publication.rows and day.overlaps(publication.interval) and (table, day) not in still:
                del self._since[table, day]
        for one in still:
            self._since.setdefault(one, publication.published_at)

    @property
    def tables(self) -> dict[str, list[Awaited]]:
        """The days that each table is waited for, oldest first."""
        found: dict[str, list[Awaited]] = {}
        for (table, day), since in sorted(self._since.items()):
            found.setdefault(table, []).append(Awaited(day, since))
        return found


def outdated(features: Iterable[Publication], predictions: Iterable[Publication]) -> list[Interval]:
    """The scored days whose features were published again since with other rows, oldest first.

    Features that another ``features.sql`` makes of the same rows outdate no predictions.

    Args:
        features: publications of features, oldest first.
        predictions: publications of predictions, oldest first.
    """
    before: dict[Interval, Publication] = {}
    changed: dict[Interval, int] = {}
    for publication in features:
        for day in publication.interval.touched_days():
            former = before.get(day)
            if former is not None and _differs(former, publication):
                changed[day] = publication.id
            before[day] = publication
    scored = {day: publication for publication in predictions for day in publication.interval.touched_days()}
    # A run may publish its predictions after the features that it did not see.
    seen = {day: publication.inputs.get("features_publication", publication.id) for day, publication in scored.items()}
    return sorted(day for day, number in changed.items() if day in seen and number > seen[day])


def _differs(former: Publication, publication: Publication) -> bool:
    """Whether features of a day may have other rows than before, by the same definition."""
    if former.inputs.get("features_digest") != publication.inputs.get("features_digest"):
        return False
    # Content can be compared for the same interval alone.
    return former.interval != publication.interval or former.hashes != publication.hashes
