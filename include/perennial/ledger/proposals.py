"""What tasks ask the judge for, and what it has answered.

A task that may not change the champion adds a proposal, and waits for the ruling. Where processes have identities, workers
may add proposals and change none, and only the judge writes rulings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from perennial.ledger import tables
from perennial.ledger.rows import TableFamily, now

#: ``done``; ``skipped``, if the gates or a person refused, or there is nothing to do; ``refused``, if what a person asked for
#: in a form cannot be done; ``failed``, if asking again would not help; ``again``, if it may.
Outcome = Literal["done", "skipped", "refused", "failed", "again"]


@dataclass(frozen=True)
class Proposal:
    """What a task asks the judge for.

    Attributes:
        id: proposals are taken in the order of their ids.
        key: unique for each try of a task.
        model: the model.
        step: what is to be done; a function of :mod:`perennial.judge.steps`.
        dag_id, run_id: the run that asks.
        said: what it says, such as the names of files and its own measurements. The judge believes none of it.
        proposed_at: when it was added.
    """

    id: int
    key: str
    model: str
    step: str
    dag_id: str
    run_id: str
    said: dict[str, Any]
    proposed_at: datetime


@dataclass(frozen=True)
class Waiting:
    """A proposal that waits for a ruling, without what it says, which may be long."""

    id: int
    model: str


@dataclass(frozen=True)
class Ruling:
    """The judge's answer to a proposal.

    Attributes:
        id: grows with each ruling.
        proposal_id: the proposal.
        outcome: what came of it.
        words: for people: why, unless it is done.
        value: the task's result, as plain values.
        page: address of MLflow's page about the version; None if there is none.
        ruled_at: when it was answered.
    """

    id: int
    proposal_id: int
    outcome: Outcome
    words: str
    value: Any
    page: str | None
    ruled_at: datetime


def _waits() -> sa.ColumnElement[bool]:
    return ~sa.exists().where(tables.rulings.c.proposal_id == tables.proposals.c.id)


class Proposals(TableFamily):
    """The tables ``proposals`` and ``rulings``."""

    def propose(self, key: str, *, model: str, step: str, dag_id: str, run_id: str, said: Mapping[str, Any]) -> int:
        """Add a proposal, and return its id. If there is one with this key, return the id of that one."""
        proposals = tables.proposals
        with self._database.writing("proposals", key) as connection:
            before = connection.execute(sa.select(proposals.c.id).where(proposals.c.key == key)).scalar_one_or_none()
            if before is not None:
                return int(before)
            values = {
                "key": key, "model": model, "step": step, "dag_id": dag_id, "run_id": run_id, "said": dict(said),
                "proposed_at": now(),
            }  # fmt: skip
            return int(connection.execute(sa.insert(proposals).values(values).returning(proposals.c.id)).scalar_one())

    def proposal(self, proposal_id: int) -> Proposal:
        """A proposal by its id."""
        [found] = self._list(Proposal, sa.select(tables.proposals).where(tables.proposals.c.id == proposal_id))
        return found

    def unruled(self) -> list[Waiting]:
        """The proposals that wait for a ruling, the oldest first."""
        proposals = tables.proposals
        return self._list(Waiting, sa.select(proposals.c.id, proposals.c.model).where(_waits()).order_by(proposals.c.id))

    def unruled_since(self) -> datetime | None:
        """When the oldest proposal that waits for a ruling was added; None if none waits."""
        oldest = sa.select(sa.func.min(tables.proposals.c.proposed_at)).where(_waits())
        with self._database.reading() as connection:
            since: datetime | None = connection.execute(oldest).scalar_one()
            return since

    def ruling(self, proposal_id: int) -> Ruling | None:
        """The ruling on a proposal; None if there is none yet."""
        found = self._list(Ruling, sa.select(tables.rulings).where(tables.rulings.c.proposal_id == proposal_id))
        return found[0] if found else None

    def values_of_run(self, dag_id: str, run_id: str) -> list[Any]:
        """What the judge has given to the tasks of a run, the oldest first."""
        rulings, proposals = tables.rulings, tables.proposals
        joined = rulings.join(proposals, rulings.c.proposal_id == proposals.c.id)
        query = sa.select(rulings.c.value).select_from(joined).order_by(rulings.c.id)
        with self._database.reading() as connection:
            of_run = query.where(proposals.c.dag_id == dag_id, proposals.c.run_id == run_id, rulings.c.outcome == "done")
            return list(connection.execute(of_run).scalars())

    def rule(
        self, proposal_id: int, outcome: Outcome, *, words: str = "", value: object = None, page: str | None = None
    ) -> None:
        """Record the ruling on a proposal. If there is one, it stands."""
        rulings = tables.rulings
        with self._database.writing("rulings") as connection:
            before = sa.select(rulings.c.proposal_id).where(rulings.c.proposal_id == proposal_id)
            if connection.execute(before).first() is None:
                values = {
                    "proposal_id": proposal_id, "outcome": outcome, "words": words, "value": value, "page": page,
                    "ruled_at": now(),
                }  # fmt: skip
                connection.execute(sa.insert(rulings).values(values))

    def remove_proposals(self, before: datetime) -> int:
        """Remove proposals, with their rulings, that were ruled on before a moment. What they led to is recorded elsewhere.

        Returns:
            How many were removed.
        """
        proposals, rulings = tables.proposals, tables.rulings
        with self._database.writing("rulings") as connection:
            old = sa.select(rulings.c.proposal_id).where(rulings.c.ruled_at < before)
            removed = connection.execute(sa.delete(proposals).where(proposals.c.id.in_(old)))
            connection.execute(sa.delete(rulings).where(rulings.c.ruled_at < before))
            return int(removed.rowcount)
