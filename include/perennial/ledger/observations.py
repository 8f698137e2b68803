"""The results of monitoring: verdicts, performance, shadow comparisons, retraining decisions, and refused data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from perennial.alerts import outbox
from perennial.alerts.alert import Alert, judged, judged_asked, online_parity
from perennial.core.columns import insert
from perennial.core.errors import StaleDecision
from perennial.core.intervals import Interval, utc
from perennial.evidence.monitoring import Audit, Constant, Expectation
from perennial.evidence.parity import Parity
from perennial.evidence.verdict import AskedDrift, VerdictDetails, uncompared
from perennial.ledger import tables
from perennial.ledger.promotions import champion_of
from perennial.ledger.records import (
    ParityRecord,
    Performance,
    Refusal,
    Retraining,
    ShadowComparison,
    Verdict,
    VerdictName,
)
from perennial.ledger.rows import TableFamily, as_column, as_columns, as_record, matches, now


class Observations(TableFamily):
    """The tables ``verdicts``, ``performances``, ``shadow_comparisons``, ``retrainings``, ``parities`` and ``refusals``."""

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
        asked: Alert | None = None,
    ) -> None:
        """Record the verdict on an interval. It replaces an earlier one. Alerts that it answers are resolved.

        Args:
            model: the model.
            interval: the monitoring window.
            version: the champion that was judged; None if there was none.
            verdict: ``ok``, ``drift`` or ``unknown``.
            reasons: for people, the most important first.
            details: the measurements.
            report: where the report is stored; None if there is none.
            run_id: the run.
            alert: sent at most once per window and version; None: send none.
            asked: likewise, about what was asked online in the window (``details.asked``).
        """
        key = {"model": model, "start": interval.start, "end": interval.end}
        values = {
            "version": version, "verdict": verdict, "reasons": list(reasons), "details": as_column(details), "report": report,
            "run_id": run_id, "recorded_at": now(),
        }  # fmt: skip
        with self._database.writing(model) as connection:
            self._replace(connection, tables.verdicts, key, values)
            said = f"The verdict on {interval.key} is {verdict}."
            if verdict != "unknown" and not uncompared(details.columns):
                self._resolve_judged(connection, judged(model, "unknown"), interval, said)
            if verdict == "ok":
                self._resolve_judged(connection, judged(model, "drift"), interval, said)
                if alert is None:
                    self._resolve_judged(connection, judged(model, "performance"), interval, said)
            if alert is not None:
                outbox.record(connection, alert, f"{alert.kind}/{model}/{interval.key}/version-{version}")
            self._tell_of_asked(connection, model, interval, details.asked, asked)

    def _tell_of_asked(
        self, connection: sa.Connection, model: str, interval: Interval, found: AskedDrift | None, alert: Alert | None
    ) -> None:
        """Resolve what a verdict on online requests answers, and record its alert."""
        verdict = "ok" if found is None else found.verdict
        said = f"In {interval.key} {'nothing was asked online' if found is None else f'the verdict on requests is {verdict}'}."
        if verdict in ("ok", "drift") and not (found and uncompared(found.columns)):
            self._resolve_judged(connection, judged_asked(model, "unknown"), interval, said)
        if verdict == "ok":
            self._resolve_judged(connection, judged_asked(model, "drift"), interval, said)
        if alert is not None and found is not None:
            outbox.record(connection, alert, f"asked/{alert.kind}/{model}/{interval.key}/version-{found.version}")

    def verdicts(self, model: str, *, before: datetime | None = None, limit: int = 100) -> list[Verdict]:
        """Verdicts of a model, those on the newest intervals first.

        Args:
            model: the model.
            before: leave out intervals that end after this.
            limit: the largest number of verdicts to return.
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
        constant: Constant | None = None,
    ) -> None:
        """Record the performance of a version on an interval. It replaces an earlier record of both.

        Args:
            model: the model.
            interval: the monitoring window.
            version: the version that made the predictions.
            metrics: by name.
            rows: the number of labelled predictions.
            coverage: the share of predictions with a known label, 0 to 1.
            as_of: labels that became known later are not used.
            run_id: the run.
            constant: what the same answer for every row would have reached; None: it is not known.
        """
        key = {"model": model, "start": interval.start, "end": interval.end, "version": version}
        values = {
            "metrics": dict(metrics), "rows": rows, "coverage": coverage, "as_of": as_of, "run_id": run_id,
            "recorded_at": now(), "constant": as_column(constant or Constant()),
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
        """Record a comparison of a champion with a version in its shadow.

        The first comparison of a pair at a number of windows is kept; later ones at the same number are ignored.

        Args:
            record: the comparison.
            alert: sent once per pair; None: send none.
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
        """The shadow comparisons of a model, ordered by promotion, version and number of windows.

        Args:
            model: the model.
            promotion: only comparisons with the champion of this promotion.
            version: only comparisons of this version.
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
        expectation: Expectation | None = None,
    ) -> Retraining:
        """Record whether monitoring asks for a retraining after a window.

        Args:
            model: the model.
            window_end: end of the window.
            asked, cause, reason: the decision.
            run_id: the run.
            after: how many decisions were recorded when this one was made; None: do not check.
            alert: recorded with the decision, once per champion; None: send none.
            expectation: what a requested training is expected to gain; None: no training is requested.

        Returns:
            The decision that counts: the first one that was recorded for the window.

        Raises:
            StaleDecision: other windows were decided meanwhile, so cooldown and budget must be checked again.
        """
        key = {"model": model, "window_end": utc(window_end)}
        values = {
            "asked": asked, "cause": cause, "reason": reason, "run_id": run_id, "recorded_at": now(),
            "expectation": as_column(expectation or Expectation()), "audit": {},
        }  # fmt: skip
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
                        f"{model}: {made - after} other windows were decided during the decision on the window to "
                        f"{utc(window_end)}. Decide again"
                    )
            connection.execute(sa.insert(tables.retrainings).values(key | values))
            if alert is not None:
                champion = champion_of(connection, model)
                outbox.record(connection, alert, f"{alert.kind}/{model}/champion-{champion}")
            return as_record(Retraining, key | values)

    def retrainings(self, model: str, since: datetime | None = None) -> list[Retraining]:
        """The decisions on retraining a model, oldest window first.

        Args:
            model: the model.
            since: leave out windows that end before this.
        """
        query = sa.select(tables.retrainings).where(tables.retrainings.c.model == model)
        if since is not None:
            query = query.where(tables.retrainings.c.window_end >= since)
        return self._list(Retraining, query.order_by(tables.retrainings.c.window_end))

    def record_audit(self, model: str, window_end: datetime, audit: Audit) -> None:
        """Record what came of a request for a training. The first audit is kept; later ones are ignored."""
        with self._database.writing(model) as connection:
            where = matches(tables.retrainings, {"model": model, "window_end": utc(window_end)})
            row = connection.execute(sa.select(tables.retrainings).where(*where)).mappings().one_or_none()
            if row is not None and as_record(Retraining, row).audit.is_empty:
                connection.execute(sa.update(tables.retrainings).where(*where).values(audit=as_column(audit)))

    def record_parity(
        self,
        *,
        model: str,
        definition: str,
        interval: Interval,
        measured: Parity,
        run_id: str,
        alert: Alert | None = None,
        well: str | None = None,
    ) -> None:
        """Record the parity of a definition of features on a day. It replaces an earlier record of both.

        Args:
            model: the model.
            definition: digest of the definition.
            interval: the day.
            measured: what was measured.
            run_id: the run.
            alert: recorded with it, at most once for a definition and day; None: send none.
            well: a sentence that ends open alerts; None: they stay open.
        """
        key = {"model": model, "definition": definition, "start": interval.start, "end": interval.end}
        values = {"measured": as_column(measured), "run_id": run_id, "recorded_at": now()}
        with self._database.writing(model) as connection:
            self._replace(connection, tables.parities, key, values)
            if well is not None:
                outbox.resolve(connection, online_parity(model), well)
            if alert is not None:
                outbox.record(connection, alert, f"{alert.kind}/{model}/{definition}/{interval.key}")

    def parities(self, model: str, *, limit: int = 100) -> list[ParityRecord]:
        """What was measured of a model's parity, the newest days first.

        Args:
            model: the model.
            limit: the largest number of records to return.
        """
        query = sa.select(tables.parities).where(tables.parities.c.model == model)
        newest = (tables.parities.c.end.desc(), tables.parities.c.recorded_at.desc())
        return self._list(ParityRecord, query.order_by(*newest).limit(limit))

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
        """Record that a run refused the data of an interval. It replaces an earlier record of the same run."""
        key = {"model": model, "start": interval.start, "end": interval.end, "run_id": run_id}
        values = {"reasons": list(reasons), "rows": dict(rows), "recorded_at": now()}
        with self._database.writing(model) as connection:
            self._replace(connection, tables.refusals, key, values)
            if alert is not None:
                outbox.record(connection, alert, f"{alert.kind}/{model}/{interval.key}/{run_id}")

    def refusals(self, model: str) -> list[Refusal]:
        """The refused intervals of a model, oldest first."""
        query = sa.select(tables.refusals).where(tables.refusals.c.model == model)
        return self._list(
            Refusal, query.order_by(tables.refusals.c.start, tables.refusals.c.end, tables.refusals.c.recorded_at)
        )

    @staticmethod
    def _resolve_judged(connection: sa.Connection, topic: str, by: Interval, cause: str) -> None:
        """Resolve the open alerts on windows that end no later than ``by``. An older window says nothing about a newer one."""
        for subject in outbox.open_subjects(connection, topic):
            if Interval.from_key(subject.rpartition("/")[2]).end <= by.end:
                outbox.resolve(connection, subject, cause)
