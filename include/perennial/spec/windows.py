"""The windows of ``schedules.train`` and ``schedules.monitor``: UTC days, weeks from Monday, and months."""

from __future__ import annotations

from datetime import datetime, timedelta

from perennial.core.intervals import Interval, window_start


def last_window(by: datetime, every: str) -> Interval:
    """The newest day, week or month that ends by ``by``.

    Args:
        by: a moment.
        every: ``day``, ``week`` or ``month``.
    """
    if every == "month":
        end = by.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return Interval((end - timedelta(days=1)).replace(day=1), end)
    length = timedelta(days=7 if every == "week" else 1)
    end = window_start(by, length)
    return Interval(end - length, end)


def windows_ending(within: Interval, every: str) -> list[Interval]:
    """The windows whose end lies in an interval, oldest first; an end at its end counts, one at its start does not.

    Args:
        within: when they end.
        every: ``day``, ``week``, ``month`` or ``never``, which has no windows.
    """
    found: list[Interval] = []
    if every == "never":
        return found
    window = last_window(within.end, every)
    while window.end > within.start:
        found.append(window)
        window = last_window(window.start, every)
    return found[::-1]
