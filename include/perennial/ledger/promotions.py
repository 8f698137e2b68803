"""Versions and the champion: registered versions, approvals, promotions, and moves of the alias.

The newest completed promotion decides which version is champion. :mod:`perennial.registry.champion` then moves MLflow's alias
to that version.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from perennial.alerts import outbox
from perennial.alerts.alert import Alert, reign
from perennial.core.errors import ArtifactRejected, StaleDecision
from perennial.core.intervals import utc
from perennial.evidence.decision import GateDecision
from perennial.evidence.evaluation import Evaluation
from perennial.ledger import tables
from perennial.ledger.records import (
    Action,
    Approval,
    Promotion,
    VersionRecord,
)
from perennial.ledger.retirements import counts
from perennial.ledger.rows import TableFamily, as_columns, as_record, matches, now
from perennial.ledger.succession import in_force


def champion_of(connection: sa.Connection, model: str) -> int | None:
    """The champion's version, read within a transaction; None before the first promotion and after a retirement."""
    # Only one promotion is open at a time, so the ids have the order in which promotions were completed.
    return connection.execute(
        sa.select(tables.promotions.c.version)
        .where(tables.promotions.c.model == model, tables.promotions.c.completed_at.is_not(None), counts(tables.promotions))
        .order_by(tables.promotions.c.id.desc())
        .limit(1)
    ).scalar_one_or_none()


class Promotions(TableFamily):
    """The tables ``versions``, ``approvals``, ``promotions`` and ``alias_moves``."""

    def record_version(self, record: VersionRecord) -> None:
        """Record a version. If it is recorded already, only fill in the values that are empty.

        Raises:
            ArtifactRejected: the version is recorded with another run or other files. This happens when MLflow's database was
                replaced, so that its version numbers begin at 1 again.
        """
        key = {"model": record.model, "version": record.version}
        values = as_columns(record)
        with self._deciding(record.model) as decisions:
            query = sa.select(tables.versions).where(*matches(tables.versions, key))
            row = decisions.connection.execute(query).mappings().one_or_none()
            if row is None:
                decisions.write(sa.insert(tables.versions).values(values))
                return
            for name in ("mlflow_run_id", "manifest"):
                if row[name] and values[name] and row[name] != values[name]:
                    raise ArtifactRejected(
                        f"{record.model}: version {record.version} is recorded with another {name}, so the registry does not "
                        "belong to this ledger. Restore both from the same backup"
                    )
            if empty := {name: value for name, value in values.items() if value and not row[name]}:
                decisions.write(sa.update(tables.versions).where(*matches(tables.versions, key)).values(empty))

    def record_decision(self, model: str, version: int, evaluation: Evaluation, decision: GateDecision) -> bool:
        """Replace a version's evaluation and decision, for example after the champion changed and both were compared again.

        Returns:
            Whether they were replaced. False if the version has a promotion, because that promotion rests on the recorded ones.
        """
        with self._deciding(model) as decisions:
            if self._promotions(decisions.connection, model, tables.promotions.c.version == version):
                return False
            decisions.write(
                sa.update(tables.versions)
                .where(tables.versions.c.model == model, tables.versions.c.version == version)
                .values(evaluation=evaluation.to_json(), decision=decision.to_json())
            )
            return True

    def version(self, model: str, version: int) -> VersionRecord | None:
        """The record of a version; None if there is none."""
        found = self._list(
            VersionRecord,
            sa.select(tables.versions).where(tables.versions.c.model == model, tables.versions.c.version == version),
        )
        return found[0] if found else None

    def versions(self, model: str) -> list[VersionRecord]:
        """All recorded versions of a model, oldest first."""
        return self._list(
            VersionRecord,
            sa.select(tables.versions).where(tables.versions.c.model == model).order_by(tables.versions.c.version),
        )

    def standings(self, *, opened_before: datetime) -> tuple[dict[str, int | None], set[str]]:
        """The champion of each model that has a version, None if it has none; and the models with a promotion that was opened
        before a moment and not closed since.
        """
        made = tables.promotions
        stands = made.c.completed_at.is_not(None) & counts(made)
        newest = sa.select(sa.func.max(made.c.id)).where(stands).group_by(made.c.model)
        opened = (made.c.completed_at.is_(None), made.c.withdrawn_at.is_(None), made.c.intended_at < opened_before)
        with self._database.reading() as connection:
            standings: dict[str, int | None] = dict.fromkeys(connection.scalars(sa.select(tables.versions.c.model).distinct()))
            rows = connection.execute(sa.select(made.c.model, made.c.version).where(made.c.id.in_(newest)))
            standings |= {row.model: int(row.version) for row in rows}
            return standings, set(connection.scalars(sa.select(made.c.model).where(*opened)))

    def marks(self) -> tuple[int, ...]:
        """Numbers of which at least one changes when a promotion or an answer to one, a publication, a version or a comparison
        of shadows is recorded, of whichever model. To read them takes little, so they tell whether it is worth reading more.
        """
        made, published = tables.promotions, tables.publications
        found = [
            sa.func.max(made.c.id), sa.func.count(made.c.completed_at), sa.func.count(made.c.withdrawn_at),
        ]  # fmt: skip
        counted = (tables.versions, tables.approvals, tables.shadow_comparisons)
        query = sa.select(
            *(sa.select(one).scalar_subquery() for one in (*found, sa.func.max(published.c.id))),
            *(sa.select(sa.func.count()).select_from(table).scalar_subquery() for table in counted),
        )
        with self._database.reading() as connection:
            return tuple(int(one or 0) for one in connection.execute(query).one())

    def intend_promotion(
        self,
        *,
        model: str,
        version: int,
        expected: int | None,
        action: Action,
        reason: str,
        actor: str,
        run_id: str | None,
        evidence: Mapping[str, Any],
    ) -> Promotion:
        """Open a promotion: record that a version is about to become champion.

        :meth:`complete_promotion` follows after the registry has moved the alias. If the same run asks again, it gets the same
        promotion, in whatever state it is.

        Args:
            model: the model.
            version: the new champion.
            expected: the champion that the decision was made against; None if there was none.
            action: the kind of change.
            reason: a text for people.
            actor: the person or process that decided.
            run_id: the run that decided; None if a person decided by hand.
            evidence: the evidence for the decision.

        Raises:
            StaleDecision: the champion is not ``expected``, or another promotion is open.
            ChainBroken: the model's records are not as the judge has written them.
        """
        with self._deciding(model) as decisions:
            connection = decisions.connection
            if run_id is not None:
                same = self._promotions(
                    connection, model, tables.promotions.c.run_id == run_id, tables.promotions.c.version == version
                )
                if same:
                    return same[0]
            decisions.require_sound(model)
            if intents := self._promotions(
                connection, model, tables.promotions.c.completed_at.is_(None), tables.promotions.c.withdrawn_at.is_(None)
            ):
                raise StaleDecision(
                    f"{model}: version {version} cannot be promoted while the promotion of version {intents[0].version} "
                    f"(number {intents[0].id}) is open. Complete or withdraw that promotion first"
                )
            champion = champion_of(connection, model)
            if champion != expected:
                raise StaleDecision(
                    f"{model}: the decision on version {version} was made against champion {expected or 'none'}, but the "
                    f"champion is now {champion or 'none'}. Decide again"
                )
            values: dict[str, Any] = {
                "model": model, "version": version, "previous": expected, "action": action, "reason": reason,
                "actor": actor, "run_id": run_id, "evidence": dict(evidence), "intended_at": now(),
                "completed_at": None, "withdrawn_at": None,
            }  # fmt: skip
            [row] = decisions.write(sa.insert(tables.promotions).values(values))
            return Promotion(id=row["id"], **values)

    def complete_promotion(self, promotion_id: int, alert: Alert | None = None) -> None:
        """Complete a promotion after the registry has moved the alias: from now on the version is champion.

        A second call changes nothing.

        Raises:
            StaleDecision: there is no such promotion, or it was withdrawn.
        """
        self._close_promotion(promotion_id, "completed_at", alert)

    def withdraw_promotion(self, promotion_id: int) -> None:
        """Give up a promotion that cannot be completed, for example because its version was deleted from the registry.

        Raises:
            StaleDecision: there is no such promotion, or it was completed.
        """
        self._close_promotion(promotion_id, "withdrawn_at", None)

    def _close_promotion(self, promotion_id: int, how: Literal["completed_at", "withdrawn_at"], alert: Alert | None) -> None:
        with self._database.reading() as connection:
            model = connection.execute(
                sa.select(tables.promotions.c.model).where(tables.promotions.c.id == promotion_id)
            ).scalar_one_or_none()
        if model is None:
            raise StaleDecision(f"there is no promotion {promotion_id}")
        with self._deciding(model) as decisions:
            connection = decisions.connection
            row = (
                connection.execute(sa.select(tables.promotions).where(tables.promotions.c.id == promotion_id)).mappings().one()
            )
            other = "withdrawn_at" if how == "completed_at" else "completed_at"
            if row[other] is not None:
                raise StaleDecision(
                    f"{model}: promotion {promotion_id} of version {row['version']} was already {other.removesuffix('_at')}"
                )
            if row[how] is None:
                decisions.write(sa.update(tables.promotions).where(tables.promotions.c.id == promotion_id).values({how: now()}))
                if how == "completed_at":
                    for subject in (reign(model, "breaker"), reign(model, "shadow"), reign(model, "unusable")):
                        outbox.resolve(connection, subject, f"Version {row['version']} is now champion ({row['action']}).")
            if alert is not None:
                outbox.record(connection, alert, f"{alert.kind}/{model}/promotion-{promotion_id}")

    def begin_move(self, promotion: Promotion, *, lease: timedelta) -> int | None:
        """Reserve the registry's alias to move it to a promotion's version. Only one process at a time can reserve it.

        Args:
            promotion: open or completed.
            lease: how long a reservation holds. After that its process counts as dead, and another one may reserve the alias.

        Returns:
            The number of the move, for :meth:`end_move`; None while another process has reserved the alias.

        Raises:
            StaleDecision: the promotion was withdrawn, or is no longer the newest.
        """
        model = promotion.model
        with self._database.writing(model) as connection:
            standing = self._promotions(connection, model, tables.promotions.c.withdrawn_at.is_(None))
            if not standing or standing[-1].id != promotion.id:
                raise StaleDecision(
                    f"{model}: promotion {promotion.id} of version {promotion.version} is no longer the newest one"
                )
            began_at = now()
            busy = sa.select(tables.alias_moves.c.id).where(
                tables.alias_moves.c.model == model, tables.alias_moves.c.began_at > began_at - lease
            )
            if connection.execute(busy.limit(1)).first() is not None:
                return None
            values = {"model": model, "version": promotion.version, "promotion_id": promotion.id, "began_at": began_at}
            return int(
                connection.execute(sa.insert(tables.alias_moves).values(values).returning(tables.alias_moves.c.id)).scalar_one()
            )

    def end_move(self, model: str, move: int) -> None:
        """End a move of the alias that :meth:`begin_move` began: the alias is at its version."""
        with self._database.writing(model) as connection:
            connection.execute(sa.delete(tables.alias_moves).where(tables.alias_moves.c.id == move))

    def unended_moves(self, model: str, since: datetime) -> set[int]:
        """Versions to which a move of the alias began after ``since`` and has not ended."""
        query = sa.select(tables.alias_moves.c.version).where(
            tables.alias_moves.c.model == model, tables.alias_moves.c.began_at > since
        )
        with self._database.reading() as connection:
            return set(connection.execute(query).scalars())

    def promotion(self, promotion_id: int) -> Promotion:
        """One promotion.

        Raises:
            StaleDecision: there is no such promotion.
        """
        found = self._list(Promotion, sa.select(tables.promotions).where(tables.promotions.c.id == promotion_id))
        if not found:
            raise StaleDecision(f"there is no promotion {promotion_id}")
        return found[0]

    def promotions(self, model: str) -> list[Promotion]:
        """All promotions of a model, oldest first, including open and withdrawn ones."""
        with self._database.reading() as connection:
            return self._promotions(connection, model)

    def champion_at(self, model: str, moment: datetime) -> Promotion | None:
        """The promotion of the version that was champion at a moment. It also tells the reason, the evidence and the actor.

        Returns:
            The promotion in force; None before the first champion.
        """
        return in_force(self.promotions(model), utc(moment))

    def record_approval(self, approval: Approval) -> None:
        """Record a person's answer. The same answer is recorded once."""
        values = as_columns(approval)
        key = {name: values[name] for name in ("model", "version", "answered_at")}
        with self._deciding(approval.model) as decisions:
            query = sa.select(tables.approvals).where(*matches(tables.approvals, key))
            row = decisions.connection.execute(query).mappings().one_or_none()
            if row is None:
                decisions.write(sa.insert(tables.approvals).values(values))
            elif dict(row) != values:
                decisions.write(sa.update(tables.approvals).where(*matches(tables.approvals, key)).values(values))

    def approvals(self, model: str, version: int | None = None) -> list[Approval]:
        """The answers of people who were asked to approve versions of a model, or one version; oldest first."""
        query = sa.select(tables.approvals).where(tables.approvals.c.model == model)
        if version is not None:
            query = query.where(tables.approvals.c.version == version)
        return self._list(Approval, query.order_by(tables.approvals.c.answered_at))

    def champion(self, model: str) -> int | None:
        """The champion's version; None before the first promotion and after a retirement."""
        with self._database.reading() as connection:
            return champion_of(connection, model)

    def _promotions(self, connection: sa.Connection, model: str, *where: sa.ColumnElement[bool]) -> list[Promotion]:
        query = sa.select(tables.promotions).where(tables.promotions.c.model == model, *where).order_by(tables.promotions.c.id)
        return [as_record(Promotion, row) for row in connection.execute(query).mappings()]
