"""The newest records of one model, read with a fixed number of queries and rows, however long the model has lived."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from perennial.ledger import tables
from perennial.ledger.overview import Overviews
from perennial.ledger.records import (
    Approval,
    Overview,
    ParityRecord,
    Promotion,
    Publication,
    Refusal,
    Retraining,
    ShadowComparison,
    VersionRecord,
)
from perennial.ledger.retirements import counts
from perennial.ledger.rows import as_record

#: How many of the newest records of each kind are read.
VERSIONS, CHANGES, DECISIONS, REFUSALS, COMPARISONS, PARITIES, ASKED_HOURS = 25, 50, 50, 42, 10, 30, 24 * 14


@dataclass(frozen=True)
class Life:
    """The newest records of one model.

    Attributes:
        state: the model's part of the overview, with as many windows as were asked for.
        versions: the newest versions, the newest first.
        version_count: how many versions there are.
        changes: the newest changes of champion that count, oldest first, without their evidence.
        approvals: the newest answers of approvers, oldest first.
        decisions: the newest decisions on retraining, oldest first.
        requests: the newest of those that asked for a training, oldest first.
        refusals: the newest refusals of data, oldest first.
        comparisons: the newest comparisons with versions in the shadow, oldest first.
        parities: the newest measures of parity, the newest first.
        asked: the newest publications of what was asked online, an hour each, oldest first.
    """

    state: Overview
    versions: list[VersionRecord]
    version_count: int
    changes: list[Promotion]
    approvals: list[Approval]
    decisions: list[Retraining]
    requests: list[Retraining]
    refusals: list[Refusal]
    comparisons: list[ShadowComparison]
    parities: list[ParityRecord]
    asked: list[Publication]


class Lives(Overviews):
    """Reads the tables of all families for one model."""

    def life(self, model: str, *, windows: int, alerts_since: datetime) -> Life:
        """The newest records of a model.

        Args:
            model: the model.
            windows: how many of the newest monitoring windows to return.
            alerts_since: leave out older alerts, unless they are open or wait for delivery.
        """
        state = self.overview(windows=windows, alerts_since=alerts_since, model=model)
        versions, promotions, approvals = tables.versions, tables.promotions, tables.approvals
        retrainings, refusals, compared = tables.retrainings, tables.refusals, tables.shadow_comparisons
        parities, publications = tables.parities, tables.publications
        # What a promotion has as evidence is the decision on its version, which may be long.
        told = [column for column in promotions.c if column.name != "evidence"]
        made = promotions.c.completed_at.is_not(None) & counts(promotions)
        decided = sa.select(retrainings).where(retrainings.c.model == model).order_by(retrainings.c.window_end.desc())
        online = (publications.c.model == model) & (publications.c.dataset == "requests")
        with self._database.reading() as connection:

            def read(query: sa.Select[tuple[object, ...]], limit: int) -> list[sa.RowMapping]:
                return list(connection.execute(query.limit(limit)).mappings())

            newest = sa.select(versions).where(versions.c.model == model).order_by(versions.c.version.desc())
            count = sa.select(sa.func.count()).select_from(versions).where(versions.c.model == model)
            changes = sa.select(*told).where(promotions.c.model == model, made).order_by(promotions.c.id.desc())
            answers = sa.select(approvals).where(approvals.c.model == model).order_by(approvals.c.answered_at.desc())
            refused = sa.select(refusals).where(refusals.c.model == model).order_by(refusals.c.recorded_at.desc())
            seen = sa.select(compared).where(compared.c.model == model).order_by(compared.c.end.desc(), compared.c.version)
            served = sa.select(parities).where(parities.c.model == model)
            return Life(
                state,
                [as_record(VersionRecord, row) for row in read(newest, VERSIONS)],
                int(connection.execute(count).scalar_one()),
                [as_record(Promotion, {**row, "evidence": {}}) for row in reversed(read(changes, CHANGES))],
                [as_record(Approval, row) for row in reversed(read(answers, CHANGES))],
                [as_record(Retraining, row) for row in reversed(read(decided, DECISIONS))],
                [as_record(Retraining, row) for row in reversed(read(decided.where(retrainings.c.asked), DECISIONS))],
                [as_record(Refusal, row) for row in reversed(read(refused, REFUSALS))],
                [as_record(ShadowComparison, row) for row in reversed(read(seen, COMPARISONS))],
                [
                    as_record(ParityRecord, row)
                    for row in read(served.order_by(parities.c.end.desc(), parities.c.recorded_at.desc()), PARITIES)
                ],
                [
                    as_record(Publication, row)
                    for row in reversed(
                        read(sa.select(publications).where(online).order_by(publications.c.end.desc()), ASKED_HOURS)
                    )
                ],
            )
