"""What is held back after a refresh was refused or undone: the data of an interval, or all refreshes of a model.

Data that are held back are left out of what later versions learn from, until a person releases them.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from perennial.core.intervals import Interval
from perennial.ledger import tables
from perennial.ledger.records import Hold, What
from perennial.ledger.rows import TableFamily, as_record, matches, now


def in_force() -> sa.ColumnElement[bool]:
    """A condition that holds for what is held back now: nobody has released it, and no version that replaced the champion has
    ended a stop of refreshes.
    """
    holds, promotions = tables.holds, tables.promotions
    replaced = sa.exists().where(
        promotions.c.model == holds.c.model, promotions.c.action.in_(("promote", "override", "adopt")),
        promotions.c.completed_at > holds.c.held_at,
    )  # fmt: skip
    return holds.c.released_at.is_(None) & ((holds.c.what == "data") | ~replaced)


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
        """Hold something back. If it is held back already, or was because of the same version, nothing changes: a run that is
        repeated does not hold back again what a person has released.

        Args:
            model: the model.
            what, interval: see :class:`Hold`.
            version: the refresh that was refused or undone.
            reasons: why.
            run_id: the run that decided.
        """
        with self._database.writing(model) as connection:
            held = [one for one in self._held(connection, model, what) if what == "refreshes" or one.interval == interval]
            mine = {"model": model, "what": what, "version": version, "start": interval.start, "end": interval.end}
            before = sa.select(tables.holds.c.id).where(*matches(tables.holds, mine))
            if not held and connection.execute(before).first() is None:
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
        with self._database.reading() as connection:
            return next(iter(self._held(connection, model, "refreshes")), None)

    @staticmethod
    def _held(connection: sa.Connection, model: str, what: What) -> list[Hold]:
        query = sa.select(tables.holds).where(tables.holds.c.model == model, tables.holds.c.what == what, in_force())
        return [as_record(Hold, row) for row in connection.execute(query.order_by(tables.holds.c.id)).mappings()]
