"""What is due although no publication will start it: windows some of whose days do not come, work whose start was missed, and
days whose features have changed since they were scored.

A stage starts when its input is published. That is not enough for a week of which a day was refused, nor for what was published
while the stage was switched off. So each scheduled run of ``ingest`` asks here, for each stage that follows it. The clock is
the day that the run ingests, not the time: when the days of a pause are made up for, their weeks are settled in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from perennial.core.intervals import Interval
from perennial.ledger.coverage import outdated, uncovered
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger
from perennial.ledger.succession import in_force
from perennial.spec.model import ModelSpec
from perennial.spec.windows import windows_ending
from perennial.stages.run import StageRun
from perennial.watchdog.rules import STAGE, expected

#: The stages that publications start.
Follower = Literal["score", "train", "refresh", "monitor"]


def find_overdue(run: StageRun, follower: Follower, day: Interval, *, now: datetime) -> list[Interval]:
    """The days (to score) or windows (to train or monitor) that are overdue, oldest first.

    A window is due when its grace ends with ``day``: all days up to then were tried. A run for the newest day that is due also
    looks back over ``schedules.catch_up``, for days that were not scored, or before their features changed,
    and for windows that were not judged, or before a day of theirs came.

    Args:
        run: the run of ``ingest``.
        follower: the stage that is to be started.
        day: the day that the run ingests.
        now: the time. What was published less than three hours ago may be under way.
    """
    spec, ledger = run.folder.spec, run.deployment.ledger
    schedules = spec.schedules
    newest = expected(schedules.ingest, now)
    earliest = day.end - schedules.catch_up if newest is not None and newest[1] == day else day.end
    graced = Interval(day.start - schedules.grace, day.end - schedules.grace)
    match follower:
        case "score":
            return days_to_score(spec, ledger, Interval(earliest, day.start), now) if earliest < day.start else []
        case "train":
            windows = windows_ending(graced, schedules.train)
            return [window for window in windows if _is_untrained(spec, ledger, window, now, refreshes=False)]
        case "refresh":
            windows = windows_ending(graced, schedules.refresh)
            return [window for window in windows if _is_untrained(spec, ledger, window, now, refreshes=True)]
        case "monitor":
            windows = windows_ending(Interval(min(earliest, graced.start), graced.end), schedules.monitor)
            return [window for window in windows if _is_unjudged(spec, ledger, window, now)]


def days_to_score(spec: ModelSpec, ledger: Ledger, interval: Interval, now: datetime) -> list[Interval]:
    """Days that were scored before their features changed; and days that no version has scored, although there was a champion
    when their features were first published, hours ago.

    It need not be the present champion: the former one may have been unusable, and this one scores what that one left.

    Args:
        spec: the model.
        ledger: says what was published, and who was champion when.
        interval: whole days.
        now: the time.

    Returns:
        The days, oldest first; none if there is no champion.
    """
    if ledger.champion(spec.name) is None:
        return []
    promotions = ledger.promotions(spec.name)
    features = ledger.publications(spec.name, "features", interval)
    predictions = ledger.publications(spec.name, "predictions", interval)
    again = outdated(features, predictions)
    found = []
    for day in interval.days():
        if day in again:
            found.append(day)
            continue
        there = _of(features, day)
        if uncovered(day, there) or not uncovered(day, predictions):
            continue
        # History that was published before the first champion need not be scored.
        first = min(one.published_at for one in there)
        if in_force(promotions, first) is not None and now - _newest(there) > STAGE:
            found.append(day)
    return found


def _is_untrained(spec: ModelSpec, ledger: Ledger, window: Interval, now: datetime, *, refreshes: bool) -> bool:
    """Whether nothing was trained since the window's newest features, and their publication will not start it either.

    A training makes a refresh needless, as it learns from the same rows; a refresh is no training.
    """
    there = ledger.publications(spec.name, "features", window)
    if not there:
        return False
    versions = [record for record in ledger.versions(spec.name) if refreshes or not record.is_refresh]
    published_at = _newest(there)
    if versions and versions[-1].created_at >= published_at:
        return False
    # A window that is whole was announced. Before the first version, a person starts the training.
    return bool(uncovered(window, there)) or (bool(versions) and now - published_at > STAGE)


def _is_unjudged(spec: ModelSpec, ledger: Ledger, window: Interval, now: datetime) -> bool:
    """Whether the window has no verdict on what is there now, and its predictions will not bring one either."""
    there = ledger.publications(spec.name, "predictions", window)
    if not there:
        return False
    published_at = _newest(there)
    verdicts = ledger.verdicts(spec.name, before=window.end)
    if any(verdict.interval == window and verdict.recorded_at >= published_at for verdict in verdicts):
        return False
    if now - published_at > STAGE:
        return True
    gaps = uncovered(window, there)
    features = ledger.publications(spec.name, "features", window)
    under_way = any(now - one.published_at < STAGE for gap in gaps for one in _of(features, gap))
    return bool(gaps) and not under_way


def _of(publications: Sequence[Publication], interval: Interval) -> list[Publication]:
    return [one for one in publications if one.interval.overlaps(interval)]


def _newest(publications: Sequence[Publication]) -> datetime:
    return max(one.published_at for one in publications)
