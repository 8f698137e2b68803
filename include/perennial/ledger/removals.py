"""Records of rows that retention removed. Without them, the missing rows would look like a gap in the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from perennial.core.intervals import Interval, merged
from perennial.ledger import tables
from perennial.ledger.rows import TableFamily, now


@dataclass(frozen=True)
class Removal:
    """Rows of a dataset that were removed.

    Attributes:
        before: all rows of earlier events were removed.
        publication_id: the newest publication at that time; later publications are not affected.
        rows: by table, the number of removed rows.
    """

    id: int
    model: str
    dataset: str
    before: datetime
    publication_id: int
    rows: dict[str, int]
    removed_at: datetime


class Removals(TableFamily):
    """The table ``removals``."""

    def record_removal(self, model: str, dataset: str, before: datetime, rows: Mapping[str, int]) -> None:
        """Record a removal. Call it before the rows are removed, so that nothing relies on them any longer."""
        publications = tables.publications
        with self._database.writing(model, dataset) as connection:
            newest = connection.execute(
                sa.select(sa.func.max(publications.c.id)).where(
                    publications.c.model == model, publications.c.dataset == dataset
                )
            ).scalar_one()
            connection.execute(
                sa.insert(tables.removals).values(
                    model=model, dataset=dataset, before=before, publication_id=newest or 0, rows=dict(rows), removed_at=now()
                )
            )

    def removals(self, model: str, dataset: str | None = None) -> list[Removal]:
        """The removals of a model, or of one of its datasets, oldest first."""
        query = sa.select(tables.removals).where(tables.removals.c.model == model)
        if dataset is not None:
            query = query.where(tables.removals.c.dataset == dataset)
        return self._list(Removal, query.order_by(tables.removals.c.id))

    def removed(self, model: str, dataset: str, interval: Interval) -> list[Interval]:
        """The parts of an interval that were published, then removed, and not published again, in order of time."""
        removals = self.removals(model, dataset)
        if not removals or interval.start >= max(removal.before for removal in removals):
            return []
        publications = tables.publications
        query = (
            sa.select(publications.c.id, publications.c.start, publications.c.end)
            .where(
                publications.c.model == model, publications.c.dataset == dataset,
                publications.c.start < interval.end, publications.c.end > interval.start,
            )
            .order_by(publications.c.id)
        )  # fmt: skip
        with self._database.reading() as connection:
            made = [(row.id, Interval(row.start, row.end)) for row in connection.execute(query)]
        gone: list[Interval] = []
        for removal in removals:
            earlier = [one for number, one in made if number <= removal.publication_id]
            later = [one for number, one in made if number > removal.publication_id]
            for one in earlier:
                start, end = max(one.start, interval.start), min(one.end, interval.end, removal.before)
                if start < end:
                    left = [Interval(start, end)]
                    for again in later:
                        left = _without(left, again)
                    gone += left
        return merged(gone)


def _without(parts: list[Interval], cut: Interval) -> list[Interval]:
    found = []
    for part in parts:
        bounds = [(part.start, min(part.end, cut.start)), (max(part.start, cut.end), part.end)]
        found += [Interval(start, end) for start, end in bounds if start < end]
    return found
