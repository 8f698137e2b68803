"""When labels are mature: how long they take to arrive, and up to when enough of them are known.

Labels arrive late: a flight lands hours after its prediction, a chargeback comes weeks after the purchase. Rows are used for
training and evaluation only when their labels are mature. Earlier, only the first labels would count, and these differ from the
later ones.

A model states the delay (``label.delay``), or it is measured (:func:`measure_delay`). :func:`mature_until` decides; it reads
nothing. Training and monitoring follow it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime, timedelta

from perennial.core.sql import quoted
from perennial.features.point_in_time import instant, open_database
from perennial.features.published import scan
from perennial.lake.publish import Lake
from perennial.lake.schema import KNOWN
from perennial.spec.folder import ModelFolder

#: The share of the labels that must arrive within the measured delay.
SHARE = 0.95
_DAY = timedelta(days=1)
#: The farthest day that :func:`passes_from` looks at.
_FARTHEST = 3660


def mature_until(as_of: datetime, delay: timedelta) -> datetime:
    """The moment up to which labels are mature: labels of earlier events have had enough time to arrive.

    Args:
        as_of: the current time of the training or the monitoring.
        delay: how long labels take. It is rounded up to whole days, so that windows stay whole days.
    """
    return as_of - math.ceil(delay / _DAY) * _DAY


def typical_delay(days: Mapping[int, int], share: float = SHARE) -> timedelta:
    """The delay within which a share of the labels came.

    Args:
        days: number of labels by how many days after their event they came, rounded up to whole days.
        share: the share, above 0.

    Returns:
        Whole days. A delay of one day or less counts as none: only labels of a window's last hours are then unknown, and
        ``gates.label_coverage`` judges whether too many are.
    """
    needed, came = share * sum(days.values()), 0
    for late in sorted(days):
        came += days[late]
        if came >= needed:
            return late * _DAY if late > 1 else timedelta()
    return timedelta()


def measure_delay(folder: ModelFolder, lake: Lake, snapshots: Mapping[str, int], *, as_of: datetime) -> timedelta:
    """How long after their event labels came, among those that came in the time that a training looks at.

    They are chosen by when they came. If they were chosen by their event, labels of new events that will come late would be
    absent, and the delay would look shorter than it is.

    Args:
        folder: the model's folder.
        lake: holds the tables.
        snapshots: snapshots of the entity table and the label table, by table.
        as_of: only labels known by this moment are used.

    Returns:
        See :func:`typical_delay`. Zero if no label is known.

    Raises:
        SnapshotMissing: a table was not published, or lacks a column of the spec.
    """
    spec = folder.spec
    key = ", ".join(quoted(name) for name in spec.entity_table.key)
    event = quoted(spec.event_time)
    with closing(open_database()) as connection:
        rows = scan(folder, lake, spec.label.table, snapshots, columns=[*spec.entity_table.key, KNOWN], known_by=as_of)
        connection.register("_rows", rows)
        # A second row of a key is a correction. The label came with the first one.
        connection.execute(f"CREATE TEMP TABLE came AS SELECT {key}, min({KNOWN}) AS known FROM _rows GROUP BY ALL")
        entities = scan(folder, lake, spec.entity.table, snapshots, columns=[*spec.entity_table.key, spec.event_time])
        connection.register("_entities", entities)
        late = f"greatest(0, ceil((epoch_us(known) - epoch_us({event})) / {_DAY // timedelta(microseconds=1)}))::INT"
        connection.execute(
            f"CREATE TEMP TABLE delays AS SELECT known, {late} AS late FROM _entities JOIN came USING ({key}) "
            f"WHERE {event} < {instant(as_of)}"
        )
        since = instant(as_of - spec.training.longest - spec.training.holdout)
        for recent in (f"WHERE known >= {since}", ""):
            found = dict(connection.execute(f"SELECT late, count(*) FROM delays {recent} GROUP BY late").fetchall())
            if found:
                return typical_delay(found)
    return timedelta()


def passes_from(
    days: Mapping[datetime, int],
    *,
    as_of: datetime,
    window: timedelta,
    validation: timedelta,
    holdout: timedelta,
    delay: timedelta,
    share: float,
    min_rows: int,
) -> datetime | None:
    """The first day as of which a training has enough rows, if as many come per day as until now.

    Args:
        days: number of entities by the start of their day.
        as_of: the day as of which there were too few.
        window, validation, holdout, delay, min_rows: what the training requires.
        share: the share of the entities that have a label once labels are mature.

    Returns:
        None if the window is too short for so many rows, however much time passes.
    """
    if not days or not share:
        return None
    first, last = min(days), max(days)
    usual = sum(days.values()) / ((last - first) / _DAY + 1)
    for later in range(1, _FARTHEST):
        end = mature_until(mature_until(as_of + later * _DAY, delay) - holdout, delay)
        start = max(first, end - window)
        seen = sum(count for day, count in days.items() if start <= day < end)
        to_come = max(0.0, (end - max(start, last + _DAY)) / _DAY) * usual
        if share * (seen + to_come) >= min_rows and start < end - validation:
            return as_of + later * _DAY
    return None
