"""Records of erasures: when, why and how much was erased, but never which entity.

An erasure is also a fence. A run that started before it may hold rows of the entity, so that run can no longer publish
(:meth:`perennial.ledger.publications.Publications.commit`).

Neighbour: :mod:`perennial.operations.forget` does the erasing.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from perennial.alerts import outbox
from perennial.core.intervals import Interval
from perennial.evidence.training import StoredModel
from perennial.ledger import tables
from perennial.ledger.records import VersionRecord
from perennial.ledger.rows import TableFamily, now

#: Replaces an erased value in texts of the ledger.
ERASED = "[erased]"
#: Datasets that a run may publish for the first time during an erasure.
_DATASETS = ("tables", "features", "predictions", "shadows", "requests")
#: By table of the ledger, the columns that may quote a value of the data.
_QUOTING = {"publications": ("inputs",), "refusals": ("reasons",), "verdicts": ("reasons", "details")}


@dataclass(frozen=True)
class Erasure:
    """The record of an erasure.

    Attributes:
        columns: names of the columns that named the entity.
        salt, digest: of the values, see :meth:`is_of`. Anyone who has both can test guesses of the values, at about 50 ms per
            guess.
        actor: who asked for it.
        reason: why.
        fence: runs with a lower order can no longer publish.
        completed_at: None while it is in progress or after it was interrupted.
        rows: by table, the number of distinct rows that were erased, including those of older snapshots.
        versions: ``learned``: versions that were trained or evaluated on the rows. ``unpinned``: versions whose training rows
            are no longer kept, so that they cannot be reproduced exactly. ``rewritten``: versions whose stored sample was
            rewritten.
        details: ``staging``, ``reports``, ``texts`` and ``files``: the number of each that was removed or changed. While the
            erasure is in progress, also ``doomed``: by table, the files to remove.
    """

    id: int
    model: str
    columns: list[str]
    salt: str
    digest: str
    actor: str
    reason: str
    fence: int
    asked_at: datetime
    completed_at: datetime | None
    rows: dict[str, int]
    versions: dict[str, list[int]]
    details: dict[str, Any]

    def is_of(self, values: Mapping[str, str]) -> bool:
        """Whether this is the erasure of the entity with these values (column: value)."""
        return sorted(values) == self.columns and secrets.compare_digest(self.digest, _digest(self.salt, values))


def _digest(salt: str, values: Mapping[str, str]) -> str:
    text = json.dumps(sorted(values.items())).encode()
    return hashlib.scrypt(text, salt=bytes.fromhex(salt), n=2**14, r=8, p=1).hex()


class Erasures(TableFamily):
    """The table ``erasures``, and the texts of other tables that quote erased values."""

    def begin_erasure(self, model: str, values: Mapping[str, str], *, actor: str, reason: str) -> Erasure:
        """Begin the erasure of an entity, or resume one that was interrupted. Runs that have started can no longer publish.

        Args:
            model: the model.
            values: by column, the values that name the entity. They are not stored.
            actor: who asks for the erasure.
            reason: why.
        """
        cut_off = next((one for one in self.erasures(model) if one.completed_at is None and one.is_of(values)), None)
        moment = now()
        rank = {"model": model, "dataset": "erasures", "start": moment, "end": Interval.day(moment.date()).end}
        salt = secrets.token_hex(16)
        with self._database.writing("orders") as connection:
            fence = connection.execute(
                sa.insert(tables.orders).values(**rank, run_id=uuid4().hex).returning(tables.orders.c.id)
            ).scalar_one()
            if cut_off is not None:
                number = cut_off.id
                connection.execute(sa.update(tables.erasures).where(tables.erasures.c.id == number).values(fence=fence))
            else:
                number = connection.execute(
                    sa.insert(tables.erasures)
                    .values(
                        model=model, columns=sorted(values), salt=salt, digest=_digest(salt, values), actor=actor,
                        reason=reason, fence=fence, asked_at=moment, completed_at=None, rows={}, versions={}, details={},
                    )
                    .returning(tables.erasures.c.id)
                ).scalar_one()  # fmt: skip
        with self._database.reading() as connection:
            known = connection.execute(
                sa.select(tables.revisions.c.dataset).where(tables.revisions.c.model == model).distinct()
            ).scalars()
            datasets = {*_DATASETS, *known}
        for dataset in sorted(datasets):
            # A commit may have looked for the fence before it existed. Once this lock is free, that commit has ended.
            with self._database.writing(model, dataset):
                pass
        [begun] = [one for one in self.erasures(model) if one.id == number]
        return begun

    def note_erasure(
        self,
        number: int,
        *,
        rows: Mapping[str, int] | None = None,
        versions: Mapping[str, Collection[int]] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Update the record of an erasure in progress.

        The larger of two counts is kept. Versions are added to the recorded ones. Details replace the recorded ones of the
        same name. A count is recorded before its rows are removed, so a resumed erasure, which finds fewer rows, does not
        lower the count.
        """
        with self._database.writing("erasures") as connection:
            where = tables.erasures.c.id == number
            row = connection.execute(sa.select(tables.erasures).where(where)).mappings().one()
            total = {**row["rows"]}
            for table, count in (rows or {}).items():
                total[table] = max(total.get(table, 0), count)
            united = {**row["versions"]}
            for kind, its in (versions or {}).items():
                united[kind] = sorted({*united.get(kind, []), *its})
            connection.execute(
                sa.update(tables.erasures)
                .where(where)
                .values(rows=total, versions=united, details={**row["details"], **(details or {})})
            )

    def complete_erasure(self, number: int) -> Erasure:
        """Mark an erasure as complete. Remove from its record what was only needed to resume it."""
        with self._database.writing("erasures") as connection:
            where = tables.erasures.c.id == number
            row = connection.execute(sa.select(tables.erasures).where(where)).mappings().one()
            details = {name: value for name, value in row["details"].items() if name != "doomed"}
            done = {"details": details, "completed_at": row["completed_at"] or now()}
            connection.execute(sa.update(tables.erasures).where(where).values(done))
        return Erasure(**{**row, **done})

    def erasures(self, model: str) -> list[Erasure]:
        """The erasures of a model, oldest first."""
        query = sa.select(tables.erasures).where(tables.erasures.c.model == model).order_by(tables.erasures.c.id)
        return self._list(Erasure, query)

    def replace_manifest(self, record: VersionRecord, stored: StoredModel) -> None:
        """Replace the manifest of one of a version's models after an erasure rewrote some of its files.

        Args:
            record: the version's record.
            stored: the model that was judged, or the one that serves. Entries of other files must be unchanged.
        """
        if stored.model_id == record.training.model_id:
            values: dict[str, Any] = {"manifest": stored.manifest}
        else:
            assert record.evaluation.refit is not None
            refit = replace(record.evaluation.refit, stored=stored)
            values = {"evaluation": replace(record.evaluation, refit=refit).to_json()}
        with self._deciding(record.model) as decisions:
            where = (tables.versions.c.model == record.model, tables.versions.c.version == record.version)
            decisions.write(sa.update(tables.versions).where(*where).values(values))

    def erase_texts(self, model: str, values: Sequence[str], *, dry_run: bool = False) -> int:
        """Replace values in the texts that quote them: warnings, refusals, reasons of verdicts, alerts.

        Args:
            model: the model of the texts.
            values: as texts. Only whole words are replaced.
            dry_run: only count the rows.

        Returns:
            The number of rows that quote a value.
        """
        pattern = word_pattern(values)
        if pattern is None:
            return 0
        changed = 0
        with self._database.writing(model) as connection:
            self._database.leave_nothing(connection)
            for name, columns in _QUOTING.items():
                table: sa.Table = getattr(tables, name)
                key = list(table.primary_key.columns)
                query = sa.select(*key, *(table.c[column] for column in columns)).where(table.c.model == model)
                for row in connection.execute(query).mappings().all():
                    clean = {column: _without(row[column], pattern) for column in columns}
                    if any(clean[column] != row[column] for column in columns):
                        changed += 1
                        if not dry_run:
                            which = [column == row[column.name] for column in key]
                            connection.execute(sa.update(table).where(*which).values(clean))
        with self._database.writing("outbox") as connection:
            self._database.leave_nothing(connection)
            changed += outbox.rewrite(connection, model, lambda alert: _without(alert, pattern), dry_run=dry_run)
        if changed and not dry_run:
            self._database.empty_the_log()
        return changed


def word_pattern(values: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern that finds each value as a whole word, also where it is escaped in HTML or JSON; None if all are blank."""
    words = {form for value in values for form in (value, json.dumps(value)[1:-1], _as_html(value)) if form.strip()}
    if not words:
        return None
    anyone = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![\w.-])(?:{anyone})(?![\w-])(?!\.\w)")


def _as_html(value: str) -> str:
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;").replace("'", "&#x27;")


def _without(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(ERASED, value)
    if isinstance(value, Mapping):
        return {pattern.sub(ERASED, key): _without(inner, pattern) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without(inner, pattern) for inner in value]
    return value
