"""What is published: the orders, claims and publications of intervals, and the snapshots that readers read.

An interval is published when ``publications`` has a row for it. Readers read the snapshots of the dataset's newest revision.

Neighbour: :mod:`perennial.lake.publish` writes the snapshots.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from perennial.alerts import outbox
from perennial.alerts.alert import refused_data
from perennial.core.errors import Superseded
from perennial.core.intervals import Interval
from perennial.ledger import tables
from perennial.ledger.records import (
    Claim,
    Head,
    Publication,
)
from perennial.ledger.rows import TableFamily, as_record, matches, now


class Publications(TableFamily):
    """The tables ``orders``, ``claims``, ``publications`` and ``revisions``."""

    def next_order(self, model: str, dataset: str, interval: Interval, run_id: str) -> int:
        """The order (rank) of a run that is about to publish an interval. Call it before the run reads its input.

        If two runs publish overlapping intervals, the run with the higher order wins, whichever ends first. A run that asks
        again gets the same order, so its retries do not overtake a run that started later.
        """
        key = {"model": model, "dataset": dataset, "start": interval.start, "end": interval.end, "run_id": run_id}
        with self._database.writing("orders") as connection:
            found = connection.execute(sa.select(tables.orders.c.id).where(*matches(tables.orders, key))).scalar_one_or_none()
            if found is None:
                found = connection.execute(sa.insert(tables.orders).values(key).returning(tables.orders.c.id)).scalar_one()
            return int(found)

    def claim(self, model: str, dataset: str, interval: Interval, *, order: int, run_id: str) -> Claim:
        """Claim an interval for this attempt of a run. Earlier attempts of the same run can then no longer publish it."""
        key = {"model": model, "dataset": dataset, "start": interval.start, "end": interval.end, "run_id": run_id}
        # A random token, not a counter: a counter could give a later claim the number of a revoked one.
        token = uuid.uuid4().hex
        with self._database.writing(model, dataset) as connection:
            self._replace(connection, tables.claims, key, {"token": token, "claimed_at": now()})
        return Claim(model, dataset, interval, order, run_id, token)

    def head(self, model: str, dataset: str) -> Head:
        """The head of a dataset: its newest revision."""
        with self._database.reading() as connection:
            return self._head(connection, model, dataset)

    def commit(
        self,
        claim: Claim,
        *,
        base: Head,
        snapshots: Mapping[str, int],
        hashes: Mapping[str, str],
        rows: Mapping[str, int],
        inputs: Mapping[str, Any],
    ) -> Publication | None:
        """Publish: from this row on, readers see ``snapshots``.

        Args:
            claim: the attempt's claim.
            base: the head that ``snapshots`` were derived from.
            snapshots: by table, for every table of the dataset, including those that were not written.
            hashes: see :class:`Publication`.
            rows: see :class:`Publication`.
            inputs: see :class:`Publication`.

        Returns:
            The publication; None if ``base`` is no longer the head. Then derive the snapshots from the new head and try again.

        Raises:
            Superseded: another attempt of the run has claimed the interval, or a later run has published it.
        """
        model, dataset, interval = claim.model, claim.dataset, claim.interval
        with self._database.writing(model, dataset) as connection:
            self._check(connection, claim)
            head = self._head(connection, model, dataset)
            if head.revision != base.revision:
                return None
            published_at = now()
            stored: dict[str, Any] = {
                "model": model, "dataset": dataset, "order": claim.order, "run_id": claim.run_id,
                "snapshots": dict(snapshots), "hashes": dict(hashes), "rows": dict(rows), "inputs": dict(inputs),
                "published_at": published_at,
            }  # fmt: skip
            number = connection.execute(
                sa.insert(tables.publications)
                .values(**stored, start=interval.start, end=interval.end)
                .returning(tables.publications.c.id)
            ).scalar_one()
            self._move(connection, model, dataset, Head(head.revision + 1, number, dict(snapshots)))
            for subject in outbox.open_subjects(connection, refused_data(model, dataset)):
                if interval.contains(Interval.from_key(subject.rpartition("/")[2])):
                    outbox.resolve(connection, subject, f"{interval.key} is published, by run {claim.run_id}.")
            return Publication(id=number, interval=interval, **stored)

    def check(self, claim: Claim) -> None:
        """Raise the error that :meth:`commit` would raise now, so that an attempt that cannot commit stops early.

        Raises:
            Superseded: as in :meth:`commit`.
        """
        with self._database.reading() as connection:
            self._check(connection, claim)

    def move(self, model: str, dataset: str, *, base: Head, snapshots: Mapping[str, int]) -> bool:
        """Point readers to other snapshots with the same rows, for example after a compaction.

        Returns:
            Whether readers were pointed to them; False if ``base`` is no longer the head.
        """
        with self._database.writing(model, dataset) as connection:
            head = self._head(connection, model, dataset)
            if head.revision != base.revision or head.revision == 0:
                return False
            self._move(connection, model, dataset, Head(head.revision + 1, head.publication_id, dict(snapshots)))
            return True

    def published(self, model: str, dataset: str) -> Publication | None:
        """The newest publication of a dataset, with the snapshots that readers read now; None before the first."""
        with self._database.reading() as connection:
            head = self._head(connection, model, dataset)
            row = connection.execute(
                sa.select(tables.publications).where(tables.publications.c.id == head.publication_id)
            ).mappings().one_or_none()  # fmt: skip
        # Maintenance moves the head, but the row of the publication keeps the snapshots that it was published at.
        return None if row is None else as_record(Publication, {**row, "snapshots": head.snapshots})

    def publications(self, model: str, dataset: str, interval: Interval | None = None) -> list[Publication]:
        """Publications of a dataset, oldest first, each with the snapshots it was published at.

        Args:
            model: the model.
            dataset: the dataset.
            interval: leave out those that do not overlap with it.
        """
        query = sa.select(tables.publications).where(
            tables.publications.c.model == model, tables.publications.c.dataset == dataset
        )
        if interval is not None:
            query = query.where(tables.publications.c.start < interval.end, tables.publications.c.end > interval.start)
        return self._list(Publication, query.order_by(tables.publications.c.id))

    def newest_publication(self, model: str) -> int:
        """The highest number of a model's publications, of any dataset; 0 before the first."""
        with self._database.reading() as connection:
            newest = sa.select(sa.func.max(tables.publications.c.id)).where(tables.publications.c.model == model)
            return connection.execute(newest).scalar_one() or 0

    def publications_after(self, number: int, limit: int) -> list[Publication]:
        """Publications of all models with a number above ``number``, at most ``limit`` of them, the lowest number first.

        A publication with a lower number may become visible after one with a higher number. A caller that follows them must
        therefore read some earlier numbers again.
        """
        return self._list(
            Publication,
            sa.select(tables.publications)
            .where(tables.publications.c.id > number)
            .order_by(tables.publications.c.id)
            .limit(limit),
        )

    def revisions(self, model: str, dataset: str) -> list[Head]:
        """All heads that a dataset has had, oldest first: one per publication and one per maintenance."""
        query = sa.select(tables.revisions).where(tables.revisions.c.model == model, tables.revisions.c.dataset == dataset)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(tables.revisions.c.revision))
            return [Head(row.revision, row.publication_id, row.snapshots) for row in rows]

    def models(self) -> list[str]:
        """The models with at least one publication, version or promotion."""
        query = sa.union(
            *(sa.select(table.c.model) for table in (tables.revisions, tables.versions, tables.promotions))
        ).order_by("model")
        with self._database.reading() as connection:
            return list(connection.execute(query).scalars())

    def datasets(self, model: str) -> list[str]:
        """The datasets of a model with at least one publication."""
        query = (
            sa.select(tables.revisions.c.dataset)
            .where(tables.revisions.c.model == model)
            .distinct()
            .order_by(tables.revisions.c.dataset)
        )
        with self._database.reading() as connection:
            return list(connection.execute(query).scalars())

    def snapshots_since(self, model: str, dataset: str, since: datetime) -> dict[str, set[int]]:
        """By table, the snapshots that were the head's at ``since`` or later."""
        query = (
            sa.select(tables.revisions.c.snapshots, tables.revisions.c.since)
            .where(tables.revisions.c.model == model, tables.revisions.c.dataset == dataset)
            .order_by(tables.revisions.c.revision.desc())
        )
        found: dict[str, set[int]] = {}
        with self._database.reading() as connection:
            for row in connection.execute(query.execution_options(yield_per=100)):
                for table, snapshot in row.snapshots.items():
                    found.setdefault(table, set()).add(snapshot)
                # A revision that began before ``since`` was the head until the next one came, so it counts too.
                if row.since < since:
                    break
        return found

    def revoke_claims(self, model: str, before: datetime) -> None:
        """Revoke the claims that were made before ``before``: the files of those attempts are about to be removed."""
        stale = (tables.claims.c.model == model, tables.claims.c.claimed_at < before)
        with self._database.reading() as connection:
            datasets = connection.execute(sa.select(tables.claims.c.dataset).where(*stale).distinct()).scalars().all()
        for dataset in datasets:
            # A commit holds the same lock while it looks for its claim.
            with self._database.writing(model, dataset) as connection:
                connection.execute(sa.delete(tables.claims).where(*stale, tables.claims.c.dataset == dataset))

    def latest(self, model: str, dataset: str, table: str) -> Publication | None:
        """The publication that contains ``table`` and whose interval ends last; among equal ends, the highest order."""
        query = (
            sa.select(tables.publications)
            .where(tables.publications.c.model == model, tables.publications.c.dataset == dataset)
            .order_by(tables.publications.c.end.desc(), tables.publications.c.order.desc(), tables.publications.c.id.desc())
        )
        with self._database.reading() as connection:
            for row in connection.execute(query.execution_options(yield_per=20)).mappings():
                if table in row["rows"]:
                    return as_record(Publication, row)
        return None

    def _head(self, connection: sa.Connection, model: str, dataset: str) -> Head:
        row = connection.execute(
            sa.select(tables.revisions.c.revision, tables.revisions.c.publication_id, tables.revisions.c.snapshots)
            .where(tables.revisions.c.model == model, tables.revisions.c.dataset == dataset)
            .order_by(tables.revisions.c.revision.desc())
            .limit(1)
        ).one_or_none()
        return Head(0, 0, {}) if row is None else Head(row.revision, row.publication_id, row.snapshots)

    def _check(self, connection: sa.Connection, claim: Claim) -> None:
        model, dataset, interval = claim.model, claim.dataset, claim.interval
        key = {"model": model, "dataset": dataset, "start": interval.start, "end": interval.end, "run_id": claim.run_id}
        token = connection.execute(sa.select(tables.claims.c.token).where(*matches(tables.claims, key))).scalar_one_or_none()
        if token != claim.token:
            raise Superseded(
                f"{model}: {dataset} of {interval}: another attempt of run {claim.run_id} has taken over, or the claim of this "
                "attempt was revoked. This attempt has published nothing. If no other attempt is running, clear the task"
            )
        fenced = sa.select(tables.erasures.c.id).where(tables.erasures.c.model == model, tables.erasures.c.fence > claim.order)
        if (erasure := connection.execute(fenced.limit(1)).scalar_one_or_none()) is not None:
            raise Superseded(
                f"{model}: {dataset} of {interval}: run {claim.run_id} started before erasure {erasure} (perennial forget) and "
                "may hold erased rows. It has published nothing. Start a new run for this interval"
            )
        later = connection.execute(
            sa.select(tables.publications.c.run_id, tables.publications.c.start, tables.publications.c.end)
            .where(
                tables.publications.c.model == model,
                tables.publications.c.dataset == dataset,
                tables.publications.c.start < interval.end,
                tables.publications.c.end > interval.start,
                tables.publications.c.order > claim.order,
            )
            .limit(1)
        ).one_or_none()
        if later is not None:
            raise Superseded(
                f"{model}: {dataset} of {interval}: run {later.run_id}, which started after run {claim.run_id}, has published "
                f"{Interval(later.start, later.end)}. To publish this interval again, start a new run for it"
            )

    def _move(self, connection: sa.Connection, model: str, dataset: str, head: Head) -> None:
        connection.execute(
            sa.insert(tables.revisions).values(
                model=model, dataset=dataset, revision=head.revision, publication_id=head.publication_id,
                snapshots=head.snapshots, since=now(),
            )
        )  # fmt: skip
