"""Half-open intervals of time ``[start, end)``, the unit in which every stage works and writes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

_DAY = timedelta(days=1)
#: The first Monday after the Unix epoch. ISO weeks begin on a Monday.
_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)


def utc(value: str | date | datetime) -> datetime:
    """The moment a text, a date (its midnight) or a datetime means, in UTC.

    Raises:
        ValueError: the text is no ISO 8601 date or time, or a time names no zone other than by being a date.
    """
    if isinstance(value, str):
        text = value.strip()
        value = date.fromisoformat(text) if len(text) == 10 else datetime.fromisoformat(text)
    if not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if value.tzinfo is None:
        raise ValueError(f"{value.isoformat()} has no time zone: append Z or an offset such as +01:00")
    return value.astimezone(UTC)


def window_start(moment: datetime, length: timedelta) -> datetime:
    """The start of the UTC day or ISO week that a moment lies in.

    Args:
        moment: with a time zone.
        length: one day, or seven days for an ISO week, which begins on a Monday.
    """
    return _MONDAY + (moment - _MONDAY) // length * length


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same moments in as few intervals as possible, in order."""
    found: list[Interval] = []
    for interval in sorted(intervals):
        if found and interval.start <= found[-1].end:
            found[-1] = Interval(found[-1].start, max(found[-1].end, interval.end))
        else:
            found.append(interval)
    return found


@dataclass(frozen=True, order=True)
class Interval:
    """``[start, end)``, both in UTC; ``start < end``.

    Raises:
        ValueError: on construction, when a bound has no zone or the interval is empty or reversed.
    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", utc(self.start))
        object.__setattr__(self, "end", utc(self.end))
        if self.start >= self.end:
            raise ValueError(f"interval start {self.start.isoformat()} is not before its end {self.end.isoformat()}")

    @classmethod
    def day(cls, value: str | date | datetime) -> Interval:
        """The UTC day that begins at ``value`` (a date such as ``2013-04-01``)."""
        start = utc(value)
        return cls(start, start + _DAY)

    @classmethod
    def of(cls, start: str | date | datetime, end: str | date | datetime) -> Interval:
        """From the first moment of ``start`` to the first moment of ``end``, which is not included."""
        return cls(utc(start), utc(end))

    @classmethod
    def from_key(cls, key: str) -> Interval:
        """The inverse of :attr:`key`."""
        start, separator, end = key.partition("--")
        return cls.of(start, end) if separator else cls.day(start)

    @property
    def key(self) -> str:
        """A short, sortable name: ``2013-04-01`` for a day, ``2013-04-01--2013-04-08`` for whole days."""

        def text(moment: datetime) -> str:
            midnight = moment == moment.replace(hour=0, minute=0, second=0, microsecond=0)
            return f"{moment:%Y-%m-%d}" if midnight else f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"

        first = text(self.start)
        return first if len(first) == 10 and self.end - self.start == _DAY else f"{first}--{text(self.end)}"

    @property
    def length(self) -> timedelta:
        return self.end - self.start

    def overlaps(self, other: Interval) -> bool:
        return self.start < other.end and other.start < self.end

    def contains(self, other: Interval) -> bool:
        return self.start <= other.start and other.end <= self.end

    def days(self) -> list[Interval]:
        """The UTC days that lie wholly inside, oldest first."""
        return self.windows(_DAY)

    def touched_days(self) -> list[Interval]:
        """The UTC days that the interval touches, oldest first."""
        last = window_start(self.end - timedelta(microseconds=1), _DAY)
        return Interval(window_start(self.start, _DAY), last + _DAY).days()

    def windows(self, length: timedelta) -> list[Interval]:
        """The UTC days or ISO weeks that lie wholly inside, oldest first.

        Args:
            length: one day, or seven days for ISO weeks, which begin on a Monday.
        """
        start = window_start(self.start, length)
        first = start if start == self.start else start + length
        return [Interval(first + n * length, first + (n + 1) * length) for n in range((self.end - first) // length)]

    def parts(self, length: timedelta, most: int) -> list[Interval]:
        """The interval cut into parts of whole days, in order; the last one may be shorter.

        Args:
            length: of a part, in days; longer than this where there would be more than ``most`` parts.
            most: largest number of parts.
        """
        days = max(1, length // _DAY, math.ceil(self.length / _DAY / most))
        borders = [self.start + n * days * _DAY for n in range(math.ceil(self.length / (days * _DAY)))]
        return [Interval(start, min(start + days * _DAY, self.end)) for start in borders]

    @property
    def in_words(self) -> str:
        """The days for people: ``17 - 23 Jun 2013``; with its time, what is shorter than a day."""
        first, last = self.start, self.end - timedelta(microseconds=1)
        if self.length < _DAY:
            return f"{first:%-d %b %Y %H:%M}"
        if first.date() == last.date():
            return f"{last:%-d %b %Y}"
        shared = "%-d %b %Y"
        if first.year == last.year:
            shared = "%-d" if first.month == last.month else "%-d %b"
        return f"{first.strftime(shared)} - {last:%-d %b %Y}"

    def __str__(self) -> str:
        return self.key
