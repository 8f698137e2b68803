"""What monitoring saw and decided: verdicts, performance, shadow comparisons, retraining requests, refused data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from perennial.alerts import outbox
from perennial.alerts.alert import Alert, judged
from perennial.core.columns import insert
from perennial.core.errors import StaleDecision
from perennial.core.intervals import Interval, utc
from perennial.evidence.verdict import VerdictDetails
from perennial.ledger import tables
from perennial.ledger.promotions import champion_of
from perennial.ledger.records import (
    Performance,
    Refusal,
    Retraining,
    ShadowComparison,
    Verdict,
    VerdictName,
)
from perennial.ledger.rows import TableFamily, as_column, as_columns, as_record, matches, now


class Observations(TableFamily):
    """The tables ``verdicts``, ``performances``, ``shadow_comparisons``, ``retrainings`` and ``refusals``."""

    def record_verdict(
        self,
        *,
        model: str,
        interval: Interval,
        version: int | None,
        verdict: VerdictName,
        reasons: Sequence[str],
        details: VerdictDetails,
        report: str | None,
        run_id: str,
        alert: Alert | None = None,
    ) -> None:
        """Record whether an interval drifted, in place of what was recorded for it before."""
        key = {"model": model, "start": interval.start, "end": interval.end}
        values = {
            "version": version, "verdict": verdict, "reasons": list(reasons), "details": as_column(details), "report": report,
            "run_id": run_id, "recorded_at": now(),
        }  # fmt: skip
        with self._database.writing(model) as connection:
            self._replace(connection, tables.verdicts, key, values)
            said = f"The verdict on {interval.key} is {verdict}."
            if verdict != "unknown":
                self._resolve_judged(connection, judged(model, "unknown"), interval, said)
            if verdict == "ok":
                self._resolve_judged(connection, judged(model, "drift"), interval, said)
                if alert is None:
                    self._resolve_judged(connection, judged(model, "performance"), interval, said)
            if alert is not None:
                outbox.record(connection, alert, f"{alert.kind}/{model}/{interval.key}/version-{version}")

    def verdicts(self, model: str, *, before: datetime | None = None, limit: int = 100) -> list[Verdict]:
        """Verdicts of a model, those on the newest intervals first.

        Args:
            model: the model.
            before: leave out intervals that end after this.
            limit: most that are returned.
        """
        query = sa.select(tables.verdicts).where(tables.verdicts.c.model == model)
        if before is not None:
            query = query.where(tables.verdicts.c.end <= before)
        return self._list(Verdict, query.order_by(tables.verdicts.c.end.desc(), tables.verdicts.c.start.desc()).limit(limit))

    def record_performance(
        self,
        *,
        model: str,
        interval: Interval,
        version: int,
        metrics: Mapping[str, float],
        rows: int,
        coverage: float,
        as_of: datetime,
        run_id: str,
    ) -> None:
        """Record how a version did on an interval, in place of what was recorded for the two before."""
        key = {"model": model, "start": interval.start, "end": interval.end, "version": version}
        values = {
            "metrics": dict(metrics), "rows": rows, "coverage": coverage, "as_of": as_of, "run_id": run_id,
            "recorded_at": now(),
        }  # fmt: skip
        with self._database.writing(model) as connection:
            self._replace(connection, tables.performances, key, values)

    def performances(self, model: str) -> list[Performance]:
        """Realised performance of a model's versions, oldest interval first."""
        query = sa.select(tables.performances).where(tables.performances.c.model == model)
        return self._list(
            Performance, query.order_by(tables.performances.c.start, tables.performances.c.end, tables.performances.c.version)
        )

    def record_shadow_comparison(self, record: ShadowComparison, alert: Alert | None = None) -> None:
        """Record what was seen of a champion and a version in its shadow; the first look at a number of windows stands.

        Args:
            record: what was seen.
            alert: what people are told of the pair, once.
        """
        with self._database.writing(record.model) as connection:
            connection.execute(
                insert(connection, tables.shadow_comparisons)
                .values(as_columns(record))
                .on_conflict_do_nothing(index_elements=["model", "promotion_id", "version", "windows"])
            )
            if alert is not None:
                key = f"{alert.kind}/{record.model}/promotion-{record.promotion_id}/version-{record.version}"
                outbox.record(connection, alert, key)

    def shadow_comparisons(
        self, model: str, *, promotion: int | None = None, version: int | None = None
    ) -> list[ShadowComparison]:
        """What was seen of champions and versions in their shadows, in the order of promotions, versions and looks.

        Args:
            model: the model.
            promotion: only in the shadow of the champion that this one made.
            version: only of this version.
        """
        table = tables.shadow_comparisons
        query = sa.select(table).where(table.c.model == model)
        if promotion is not None:
            query = query.where(table.c.promotion_id == promotion)
        if version is not None:
            query = query.where(table.c.version == version)
        return self._list(ShadowComparison, query.order_by(table.c.promotion_id, table.c.version, table.c.windows))

    def record_retraining(
        self,
        *,
        model: str,
        window_end: datetime,
        asked: bool,
        cause: str,
        reason: str,
        run_id: str,
        after: int | None = None,
        alert: Alert | None = None,
    ) -> Retraining:
        """Record whether monitoring asks for a retraining after a window.

        Args:
            model: the model.
            window_end: end of the window.
            asked, cause, reason: the decision.
            run_id: the run.
            after: how many decisions on other windows it was made in the knowledge of; None: that does not matter.
            alert: recorded with it, once for the same cause until a version is promoted.

        Returns:
            What stands: the first word on a window, whoever says another one later.

        Raises:
            StaleDecision: other windows were decided meanwhile, so cooldown and budget must be looked at again.
        """
        key = {"model": model, "window_end": utc(window_end)}
        values = {"asked": asked, "cause": cause, "reason": reason, "run_id": run_id, "recorded_at": now()}
        with self._database.writing(model) as connection:
            row = (
                connection.execute(sa.select(tables.retrainings).where(*matches(tables.retrainings, key)))
                .mappings()
                .one_or_none()
            )
            if row is not None:
                return as_record(Retraining, row)
            if after is not None:
                made = connection.execute(
                    sa.select(sa.func.count()).select_from(tables.retrainings).where(tables.retrainings.c.model == model)
                ).scalar_one()
                if made != after:
                    raise StaleDecision(
                        f"{model}: {made - after} other windows were decided while that to {utc(window_end)} was: decide again"
                    )
            connection.execute(sa.insert(tables.retrainings).values(key | values))
            if alert is not None:
                champion = champion_of(connection, model)
                outbox.record(connection, alert, f"{alert.kind}/{model}/champion-{champion}")
            return as_record(Retraining, key | values)

    def retrainings(self, model: str, since: datetime | None = None) -> list[Retraining]:
        """What was decided on retraining a model, oldest window first.

        Args:
            model: the model.
            since: leave out windows that end before this.
        """
        query = sa.select(tables.retrainings).where(tables.retrainings.c.model == model)
        if since is not None:
            query = query.where(tables.retrainings.c.window_end >= since)
        return self._list(Retraining, query.order_by(tables.retrainings.c.window_end))

    def record_refusal(
        self,
        *,
        model: str,
        interval: Interval,
        run_id: str,
        reasons: Sequence[str],
        rows: Mapping[str, int],
        alert: Alert | None = None,
    ) -> None:
        """Record that a run refused an interval's data, in place of what the run recorded for it before."""
        key = {"model": model, "start": interval.start, "end": interval.end, "run_id": run_id}
        values = {"reasons": list(reasons), "rows": dict(rows), "recorded_at": now()}
        with self._database.writing(model) as connection:
            self._replace(connection, tables.refusals, key, values)
            if alert is not None:
                outbox.record(connection, alert, f"{alert.kind}/{model}/{interval.key}/{run_id}")

    def refusals(self, model: str) -> list[Refusal]:
        """Refused intervals of a model, oldest first."""
        query = sa.select(tables.refusals).where(tables.refusals.c.model == model)
        return self._list(
            Refusal, query.order_by(tables.refusals.c.start, tables.refusals.c.end, tables.refusals.c.recorded_at)
        )

    @staticmethod
    def _resolve_judged(connection: sa.Connection, topic: str, by: Interval, cause: str) -> None:
        """Resolve what was said of windows that ended no later than ``by``: an older window says nothing of a newer one."""
        for subject in outbox.open_subjects(connection, topic):
            if Interval.from_key(subject.rpartition("/")[2]).end <= by.end:
                outbox.resolve(connection, subject, cause)
