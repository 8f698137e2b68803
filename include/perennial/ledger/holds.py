"""What is held back after a refresh was refused or undone: the data of an interval, or all refreshes of a model.

Data that are held back are left out of what later versions learn from, until a person releases them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from perennial.core.intervals import Interval
from perennial.ledger import tables
from perennial.ledger.rows import TableFamily, as_record, now

What = Literal["data", "refreshes"]


@dataclass(frozen=True)
class Hold:
    """Something that is, or was, held back.

    Attributes:
        what: ``data`` of the interval, which nothing learns from; or all ``refreshes`` of the model.
        interval: the data; for refreshes, the days that showed that they do harm.
        version: the refresh that was refused or undone.
        reasons: why, for people.
        run_id: the run that decided.
        released_at, released_by, release_reason: when, by whom and why it was released; None while it is held back.
    """

    id: int
    model: str
    what: What
    interval: Interval
    version: int
    reasons: list[str]
    run_id: str
    held_at: datetime
    released_at: datetime | None
    released_by: str | None
    release_reason: str | None


class Holds(TableFamily):
    """The table ``holds``."""

    def hold(
        self,
        model: str,
        what: What,
        interval: Interval,
        *,
        version: int,
        reasons: Sequence[str],
        run_id: str,
    ) -> None:
        """Hold something back. If it is held back already, nothing changes.

        Args:
            model: the model.
            what, interval: see :class:`Hold`.
            version: the refresh that was refused or undone.
            reasons: why.
            run_id: the run that decided.
        """
        with self._database.writing(model) as connection:
            held = [one for one in self._held(connection, model, what) if what == "refreshes" or one.interval == interval]
            if not held:
                values = {
                    "model": model, "what": what, "start": interval.start, "end": interval.end, "version": version,
                    "reasons": list(reasons), "run_id": run_id, "held_at": now(),
                }  # fmt: skip
                connection.execute(sa.insert(tables.holds).values(values))

    def release(self, model: str, what: What, within: Interval | None, *, actor: str, reason: str) -> list[Hold]:
        """Release what is held back.

        Args:
            model: the model.
            what: data or refreshes.
            within: only intervals of data that overlap this one; None: all.
            actor: who releases it.
            reason: why.

        Returns:
            What was released; empty if nothing was held back.
        """
        with self._database.writing(model) as connection:
            found = [one for one in self._held(connection, model, what) if within is None or one.interval.overlaps(within)]
            values = {"released_at": now(), "released_by": actor, "release_reason": reason}
            for one in found:
                connection.execute(sa.update(tables.holds).where(tables.holds.c.id == one.id).values(values))
            return found

    def holds(self, model: str) -> list[Hold]:
        """All that is or was held back of a model, oldest first."""
        return self._list(Hold, sa.select(tables.holds).where(tables.holds.c.model == model).order_by(tables.holds.c.id))

    def withheld(self, model: str) -> list[Interval]:
        """The intervals whose data are held back now, in the order of time."""
        return sorted(one.interval for one in self.holds(model) if one.what == "data" and one.released_at is None)

    def stopped_refreshes(self, model: str) -> Hold | None:
        """Why the model is not refreshed now; None if it is. A version that replaced the champion since has ended it."""
        for one in self.holds(model):
            if one.what == "refreshes" and one.released_at is None and not self._was_replaced_since(model, one.held_at):
                return one
        return None

    def _was_replaced_since(self, model: str, moment: datetime) -> bool:
        promotions = tables.promotions
        query = sa.select(promotions.c.id).where(
            promotions.c.model == model, promotions.c.action.in_(("promote", "override", "adopt")),
            promotions.c.completed_at > moment,
        )  # fmt: skip
        with self._database.reading() as connection:
            return connection.execute(query.limit(1)).first() is not None

    @staticmethod
    def _held(connection: sa.Connection, model: str, what: What) -> list[Hold]:
        query = sa.select(tables.holds).where(
            tables.holds.c.model == model, tables.holds.c.what == what, tables.holds.c.released_at.is_(None)
        )
        return [as_record(Hold, row) for row in connection.execute(query.order_by(tables.holds.c.id)).mappings()]
