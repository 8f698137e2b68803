"""The state of all models, or of one of them, read with a fixed number of queries, whatever there is of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from perennial.alerts import outbox
from perennial.alerts.outbox import OutboxEntry
from perennial.ledger import holds, tables
from perennial.ledger.records import (
    Approval,
    Hold,
    Overview,
    ParityRecord,
    Performance,
    Promotion,
    Publication,
    Refusal,
    Retraining,
    Verdict,
    VersionRecord,
)
from perennial.ledger.retirements import counts
from perennial.ledger.rows import TableFamily, as_record

#: Publications of a dataset that an overview may return, per model: six weeks of days.
_PUBLICATIONS = 42
#: Measures of parity, per model: those of days with too few rows may stand before one that counts.
_PARITIES = 10
_DATASETS = ("tables", "features", "predictions")

_W = TypeVar("_W", Verdict, Performance)


def _by_model(found: Sequence[_W]) -> dict[str, list[_W]]:
    grouped: dict[str, list[_W]] = {}
    for one in sorted(found, key=lambda one: one.interval):
        grouped.setdefault(one.model, []).append(one)
    return grouped


def _newest(
    table: sa.Table, *order: sa.Column[Any], number: int = 1, where: sa.ColumnElement[bool] | None = None
) -> sa.Select[Any]:
    """A query for the last ``number`` rows of each model (and dataset, if the table has one), by ``order``."""
    each = [table.c.model, *(table.c[name] for name in ("dataset",) if name in table.c)]
    rank = sa.func.row_number().over(partition_by=each, order_by=[column.desc() for column in order])
    ranked = sa.select(table, rank.label("rank"))
    if where is not None:
        ranked = ranked.where(where)
    rows = ranked.subquery()
    return sa.select(*(rows.c[column.name] for column in table.c)).where(rows.c.rank <= number)


class Overviews(TableFamily):
    """Reads the tables of all families at one moment."""

    def overview(
        self,
        *,
        windows: int,
        alerts_since: datetime,
        publications: bool = True,
        parities: bool = False,
        model: str | None = None,
    ) -> Overview:
        """The state of all models. The number of queries does not grow with the number of models.

        Args:
            windows: how many of the newest monitoring windows to return per model.
            alerts_since: leave out older alerts, unless they wait for delivery.
            publications: whether to read the newest publications, too.
            parities: whether to read what was measured of parity, too.
            model: read only what concerns this model; None: all models.
        """

        def mine(table: sa.Table) -> sa.ColumnElement[bool]:
            return sa.true() if model is None else table.c.model == model

        newest_version = (
            sa.select(tables.versions.c.model, sa.func.max(tables.versions.c.version))
            .where(mine(tables.versions))
            .group_by(tables.versions.c.model)
        )
        ends = sa.select(
            tables.publications.c.model, tables.publications.c.dataset, sa.func.max(tables.publications.c.end).label("end")
        ).where(mine(tables.publications))
        published: dict[str, dict[str, datetime]] = {}
        told: dict[str, list[OutboxEntry]] = {}
        newest: dict[str, dict[str, list[Publication]]] = {}
        held: dict[str, list[Hold]] = {}
        measures: dict[str, list[ParityRecord]] = {}
        with self._database.reading() as connection:
            for row in connection.execute(ends.group_by(tables.publications.c.model, tables.publications.c.dataset)):
                published.setdefault(row.model, {})[row.dataset] = row.end
            standing = tables.promotions.c.completed_at.is_not(None) & counts(tables.promotions) & mine(tables.promotions)
            made = _newest(tables.promotions, tables.promotions.c.id, where=standing)
            champions = {row["model"]: as_record(Promotion, row) for row in connection.execute(made).mappings()}
            kept = {(model, promotion.version) for model, promotion in champions.items()}
            kept |= {(row[0], row[1]) for row in connection.execute(newest_version)}
            known = sa.select(tables.versions).where(
                sa.tuple_(tables.versions.c.model, tables.versions.c.version).in_(sorted(kept))
            )
            versions = [as_record(VersionRecord, row) for row in connection.execute(known).mappings()]
            answered = connection.execute(
                _newest(
                    tables.approvals, tables.approvals.c.version, tables.approvals.c.answered_at, where=mine(tables.approvals)
                )
            ).mappings()
            approvals = {row["model"]: as_record(Approval, row) for row in answered}
            refused = connection.execute(
                _newest(tables.refusals, tables.refusals.c.recorded_at, where=mine(tables.refusals))
            ).mappings()
            refusals = {row["model"]: as_record(Refusal, row) for row in refused}
            asked = _newest(
                tables.retrainings, tables.retrainings.c.window_end, where=tables.retrainings.c.asked & mine(tables.retrainings)
            )
            requests = {row["model"]: as_record(Retraining, row) for row in connection.execute(asked).mappings()}
            judged = connection.execute(
                _newest(
                    tables.verdicts, tables.verdicts.c.end, tables.verdicts.c.start, number=windows, where=mine(tables.verdicts)
                )
            ).mappings()
            verdicts = [as_record(Verdict, row) for row in judged]
            # A window in which the champion changed has a row for each version.
            measured = _newest(
                tables.performances, tables.performances.c.end, tables.performances.c.version, number=2 * windows,
                where=mine(tables.performances),
            )  # fmt: skip
            performances = [as_record(Performance, row) for row in connection.execute(measured).mappings()]
            latest = _newest(
                tables.publications,
                tables.publications.c.end,
                tables.publications.c.id,
                number=_PUBLICATIONS,
                where=tables.publications.c.dataset.in_(_DATASETS) & mine(tables.publications),
            ).order_by(sa.text("id"))
            for newer in connection.execute(latest).mappings() if publications else ():
                newest.setdefault(newer["model"], {}).setdefault(newer["dataset"], []).append(as_record(Publication, newer))
            holding = (
                sa.select(tables.holds)
                .where(holds.in_force(), mine(tables.holds))
                .order_by(tables.holds.c.start, tables.holds.c.id)
            )
            for hold in (as_record(Hold, row) for row in connection.execute(holding).mappings()):
                held.setdefault(hold.model, []).append(hold)
            served = _newest(
                tables.parities, tables.parities.c.end, tables.parities.c.recorded_at, number=_PARITIES,
                where=mine(tables.parities),
            )  # fmt: skip
            ordered = served.order_by(sa.desc("end"), sa.desc("recorded_at"))
            for parity in connection.execute(ordered).mappings() if parities else ():
                measures.setdefault(parity["model"], []).append(as_record(ParityRecord, parity))
            for entry in outbox.entries(connection, since=alerts_since, model=model):
                told.setdefault(entry.alert.model, []).append(entry)
        by_model: dict[str, dict[int, VersionRecord]] = {}
        for record in versions:
            by_model.setdefault(record.model, {})[record.version] = record
        return Overview(
            published,
            champions,
            by_model,
            approvals,
            refusals,
            _by_model(verdicts),
            _by_model(performances),
            told,
            newest,
            requests,
            held,
            measures,
        )
