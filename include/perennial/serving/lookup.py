"""From keys of entities, or from entities themselves, to rows of features.

By key, they are looked up in the online table, then replaced where the client knows better. ``online`` of ``model.yaml`` says
what is done for an entity that has no row, or an old one. By entity, they are computed now.

Neighbours: :mod:`perennial.serving.online_table` has the rows, :mod:`perennial.serving.on_demand` computes them;
:mod:`perennial.serving.requests` reads what is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa

from perennial.core.errors import NotAnswered, ServingError, SnapshotMissing, SpecError
from perennial.serving.champion import Served
from perennial.serving.on_demand import OnDemand
from perennial.serving.online_table import Found, OnlineTable
from perennial.serving.requests import GIVEN, MISSING, Entities, Keys, Rows
from perennial.spec.operation import Online

log = logging.getLogger(__name__)

STORED, COMPUTED = "stored", "computed"
#: What applied instead of a row that is new enough.
Fallback = Literal["null", "last"]


def look_up(table: OnlineTable, served: Served, asked: Keys, now: datetime) -> Rows:
    """The features of entities.

    Args:
        table: the online tables.
        served: the version that answers.
        asked: keys, and the features that the client gives beside them.
        now: the age of a row counts to here.

    Raises:
        NotAnswered: an entity has no row, or an old one, and the model refuses that; or the table does not answer.
    """
    online, at = served.online, served.stored
    assert online is not None  # requests without `online` are refused before
    assert at is not None
    try:
        found = table.read(at, asked.table)
    except ServingError as error:
        if online.missing != "null":
            raise NotAnswered("the online table does not answer; try again", status=503, retry_after=5) from error
        found = None
    columns: dict[str, list[Any]] = {name: [] for name in served.loaded.features}
    came, origins, event_times = [], [], []
    for row, given in enumerate(asked.overrides):
        place = None if found is None else found.places[row]
        place, fallback = _applies(found, place, online, now, row)
        origin: dict[str, Any] = {} if fallback is None else {"fallback": fallback}
        stored: Mapping[str, Any] = dict.fromkeys(columns)
        if found is not None and place is not None:
            stored = found.features[place]
            origin |= _told(found, place, now)
        how: dict[str, list[str]] = {STORED: [], GIVEN: [], MISSING: []}
        for name, column in columns.items():
            value = given[name] if name in given else stored[name]
            column.append(value)
            how[MISSING if value is None else GIVEN if name in given else STORED].append(name)
        came.append(how)
        origins.append(origin)
        event_times.append(None if found is None or place is None else found.event_time[place])
    return Rows(columns, len(came), came, origins, asked.table, event_times)


def compute_all(on_demand: OnDemand, served: Served, asked: Sequence[Entities]) -> list[Rows | NotAnswered]:
    """The features of entities that are in no table yet, computed now, for several requests together.

    Args:
        on_demand: computes them.
        served: the version that answers.
        asked: the entities of each request. If one has ``as_of``, it is the only request.

    Returns:
        For each request its features; or why it has none: a value is wrong, or the features cannot be computed for one entity
        alone, or not now.
    """
    assert served.folder is not None  # requests without `online` are refused before
    found = on_demand.features_together(served.folder, [one.table for one in asked], asked[0].as_of)
    return [_refusal(served, one) if isinstance(one, Exception) else _computed(served, one) for one in found]


def _refusal(served: Served, error: Exception) -> NotAnswered:
    match error:
        case NotAnswered():
            return error
        case ServingError():
            return NotAnswered(str(error))
        case SnapshotMissing():
            words = "the tables that features are computed from are not published yet"
            return NotAnswered(words, status=503, retry_after=60)
        case SpecError():
            # Its text may quote values.
            log.warning("%s: features.sql fails on entities that a client gave", served.name)
            return NotAnswered("the features of these entities cannot be computed from what was given")
    raise error


def _computed(served: Served, found: pa.Table) -> Rows:
    columns = {name: found[name].to_pylist() for name in served.loaded.features}
    came: list[Mapping[str, Sequence[str]]] = []
    for row in range(found.num_rows):
        missing = [name for name, values in columns.items() if values[row] is None]
        came.append({COMPUTED: [name for name in columns if name not in missing], MISSING: missing})
    origins = [{"as_of": moment.isoformat()} for moment in found["as_of"].to_pylist()]
    assert served.folder is not None  # its features were computed
    spec = served.folder.spec
    event_times = found[spec.event_time].to_pylist()
    return Rows(columns, found.num_rows, came, origins, found.select(spec.entity_table.key), event_times)


def _applies(
    found: Found | None, place: int | None, online: Online, now: datetime, row: int
) -> tuple[int | None, Fallback | None]:
    """The row that is used, if any, and what applied instead of one that is new enough.

    Raises:
        NotAnswered: the model refuses to answer.
    """
    if found is None or place is None:
        if online.missing == "null":
            return None, "null"
        raise NotAnswered(f"row {row}: no features are stored for this entity", status=404, row=row)
    if now - found.published_at[place] <= online.max_age:
        return place, None
    if online.missing == "last":
        return place, "last"
    if online.missing == "null":
        return None, "null"
    raise NotAnswered(f"row {row}: the stored features are older than online.max_age", status=503, row=row)


def _told(found: Found, place: int, now: datetime) -> Mapping[str, Any]:
    return {
        "as_of": found.as_of[place].isoformat(),
        "computed_at": found.computed_at[place].isoformat(),
        "age_seconds": round((now - found.published_at[place]).total_seconds(), 1),
        "features_snapshot": found.snapshot[place],
    }


def ages(origins: Sequence[Mapping[str, Any]]) -> list[float]:
    """How old the stored features are that were used, in seconds, for each row that has some."""
    return [origin["age_seconds"] for origin in origins if "age_seconds" in origin]


def fallbacks(origins: Sequence[Mapping[str, Any]]) -> list[str]:
    """What applied instead of rows that are new enough, for each row where it did."""
    return [origin["fallback"] for origin in origins if "fallback" in origin]
