"""Records of retired models: when, why and by whom each was retired, and the content of its folder.

After a retirement, the model has no champion: earlier promotions no longer count. A later promotion brings the model back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from perennial.ledger import tables
from perennial.ledger.rows import TableFamily, as_record, now


@dataclass(frozen=True)
class Retirement:
    """The record of a model's retirement.

    Attributes:
        promotion_id: the last promotion before it; 0 if there was none.
        champion: the version that was champion until then; None if there was none.
        actor: who retired it.
        reason: why.
        files: the texts of the model's folder by file name; empty if the folder was not found. They replace a removed folder.
        dropped_at: when its lake was removed; None while the lake is kept.
    """

    id: int
    model: str
    promotion_id: int
    champion: int | None
    actor: str
    reason: str
    files: dict[str, str]
    retired_at: datetime
    dropped_at: datetime | None


def counts(promotions: sa.Table) -> sa.ColumnElement[bool]:
    """A condition that holds for promotions after the model's last retirement."""
    last = sa.select(sa.func.coalesce(sa.func.max(tables.retirements.c.promotion_id), 0)).where(
        tables.retirements.c.model == promotions.c.model
    )
    return promotions.c.id > last.scalar_subquery()


class Retirements(TableFamily):
    """The table ``retirements``."""

    def retire(self, model: str, *, actor: str, reason: str, files: Mapping[str, str]) -> Retirement:
        """Record the retirement of a model. If it is retired already, return that retirement.

        A promotion that has not been completed is withdrawn.
        """
        promotions = tables.promotions
        with self._deciding(model) as decisions:
            connection = decisions.connection
            if (standing := self._standing(connection, model)) is not None:
                return standing
            is_open = promotions.c.completed_at.is_(None) & promotions.c.withdrawn_at.is_(None)
            decisions.write(sa.update(promotions).where(promotions.c.model == model, is_open).values(withdrawn_at=now()))
            last = connection.execute(
                sa.select(promotions.c.id, promotions.c.version)
                .where(promotions.c.model == model, promotions.c.completed_at.is_not(None), counts(promotions))
                .order_by(promotions.c.id.desc())
                .limit(1)
            ).one_or_none()
            values: dict[str, Any] = {
                "model": model, "promotion_id": last.id if last else 0, "champion": last.version if last else None,
                "actor": actor, "reason": reason, "files": dict(files), "retired_at": now(), "dropped_at": None,
            }  # fmt: skip
            [row] = decisions.write(sa.insert(tables.retirements).values(values))
            return Retirement(id=row["id"], **values)

    def retirement(self, model: str) -> Retirement | None:
        """The retirement of a model; None if it was never retired or was promoted again later."""
        with self._database.reading() as connection:
            return self._standing(connection, model)

    def retirements(self, model: str) -> list[Retirement]:
        """All retirements of a model, oldest first."""
        query = sa.select(tables.retirements).where(tables.retirements.c.model == model).order_by(tables.retirements.c.id)
        return self._list(Retirement, query)

    def note_dropped(self, retirement: int) -> None:
        """Record that the lake of a retired model was removed."""
        with self._deciding("retirements") as decisions:
            decisions.write(sa.update(tables.retirements).where(tables.retirements.c.id == retirement).values(dropped_at=now()))

    def _standing(self, connection: sa.Connection, model: str) -> Retirement | None:
        found = (
            connection.execute(
                sa.select(tables.retirements)
                .where(tables.retirements.c.model == model)
                .order_by(tables.retirements.c.id.desc())
                .limit(1)
            )
            .mappings()
            .one_or_none()
        )
        if found is None:
            return None
        promotions = tables.promotions
        after = sa.select(promotions.c.id).where(
            promotions.c.model == model, promotions.c.completed_at.is_not(None), promotions.c.id > found["promotion_id"]
        )
        return None if connection.execute(after.limit(1)).first() is not None else as_record(Retirement, found)
