"""Find features that depend on which other entities are asked with theirs.

A batch asks for all entities of a day at once. Online, one is asked alone. Both get the same features only if ``features.sql``
computes each entity's from the tables, not from the other rows of ``entities``. This module tests it: the features of a random
half of the entities, of single ones and of single days must equal those of all of them, byte for byte, at the same ``as_of``.

Neighbours: :mod:`perennial.features.leaks` looks for features that use what was not known; :mod:`perennial.serving` asks single
entities.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.intervals import Interval
from perennial.core.sql import quoted
from perennial.features.leaks import Change, changes, features_of, features_of_asked
from perennial.features.point_in_time import offer, open_database
from perennial.spec.folder import ModelFolder


@dataclass(frozen=True)
class Dependence(Change):
    """A feature that depends on which entities are asked.

    Attributes:
        asked: which entities were asked when it changed.
    """

    asked: str

    def __str__(self) -> str:
        return (
            f"{self.feature} is another when {self.asked} asked ({self.entities:,} entities, for example {self.example} at "
            f"{self.as_of:%Y-%m-%d %H:%M}): compute it from the tables, not from the other rows of entities"
        )


def find(folder: ModelFolder, tables: Mapping[str, pa.Table], interval: Interval, *, singles: int = 5) -> list[Dependence]:
    """Compute the features of a sample for all entities together, and for some of them alone.

    Args:
        folder: the model's folder.
        tables: rows of the tables that ``features.sql`` names, as for :func:`perennial.features.point_in_time.compute`.
        interval: the sample, best of several days.
        singles: number of entities that are asked alone, evenly chosen from those of the sample.

    Returns:
        At most one dependence per feature, in the order of the spec; empty if there are none, so also without entities.

    Raises:
        SpecError: ``features.sql`` cannot be run, or cannot be run for fewer entities.
    """
    spec = folder.spec
    found: dict[str, Dependence] = {}
    with closing(open_database(threads=1)) as connection:
        together = features_of(connection, folder, tables, interval)
        for asked, chosen, alone in _tries(connection, folder, tables, interval, together, singles):
            for one in changes(spec, chosen, alone):
                found.setdefault(one.feature, Dependence(one.feature, one.entities, one.example, one.as_of, asked))
    return sorted(found.values(), key=lambda one: spec.features.names.index(one.feature))


def _tries(
    connection: duckdb.DuckDBPyConnection,
    folder: ModelFolder,
    tables: Mapping[str, pa.Table],
    interval: Interval,
    together: pa.Table,
    singles: int,
) -> Iterator[tuple[str, pa.Table, pa.Table]]:
    """Which entities are asked, their features among all, and their features alone."""
    count = together.num_rows
    # The same half of the same sample each time.
    half = sorted(random.Random(interval.key).sample(range(count), count // 2))  # noqa: S311 - nothing secret
    for asked, places in (
        ("only half of the entities are", half),
        *(("it alone is", [place]) for place in sorted({int((n + 0.5) * count / singles) for n in range(singles)}) if count),
    ):
        if places:
            chosen = together.take(pa.array(places, pa.int64()))
            yield asked, chosen, _alone(connection, folder, tables, interval, chosen)
    days = interval.days()
    for day in days if len(days) > 1 else []:
        moments = together[folder.spec.event_time]
        start, end = (pa.scalar(moment, moments.type) for moment in (day.start, day.end))
        chosen = together.filter(pc.and_(pc.greater_equal(moments, start), pc.less(moments, end)))
        yield "only its day is", chosen, features_of(connection, folder, tables, day)


def _alone(
    connection: duckdb.DuckDBPyConnection,
    folder: ModelFolder,
    tables: Mapping[str, pa.Table],
    interval: Interval,
    chosen: pa.Table,
) -> pa.Table:
    """The features of some of an interval's entities, when no others are asked."""
    key = folder.spec.entity_table.key
    offer(connection, folder, tables, interval, known_by=pc.max(chosen["as_of"]).as_py())
    same = " AND ".join(f"chosen.{quoted(name)} = asked.{quoted(name)}" for name in key)
    connection.register("_chosen", chosen.select(key))
    connection.execute(f"DELETE FROM perennial.asked AS asked WHERE NOT EXISTS (FROM _chosen AS chosen WHERE {same})")
    connection.unregister("_chosen")
    return features_of_asked(connection, folder)
