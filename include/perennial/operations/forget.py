"""Erases one entity from everywhere: rows, older snapshots, samples of stored models, files, texts.

The ledger records an erasure before anything is erased. It does not record the values. From then on the erasure is a fence:
runs that started before it cannot publish. Every step can be repeated, so the same call resumes an erasure that was killed.
The entity's own table is erased last: if the entity was named by a column's value, that table's rows lead to its keys, and a
resumed erasure needs these keys again.

During an erasure, no other process removes or rewrites files of the lake
(:func:`perennial.lake.removal.removing_alone`). An erasure cannot run during a backup.

Neighbours: :mod:`perennial.operations.entity` finds the rows; :mod:`perennial.lake.erasure` erases them from the lake,
:mod:`perennial.registry.samples` from stored models, :mod:`perennial.scoring.sink_erasure` from the predictions database.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from perennial.core.errors import ErasureError
from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.evidence.training import PARTS, TrainingSet
from perennial.ingestion.pushed import PushedRows
from perennial.lake.erasure import Eraser, Finder, Findings
from perennial.lake.removal import removing_alone
from perennial.ledger.erasures import Erasure
from perennial.operations.entity import Entity, check_values
from perennial.scoring import sink_erasure
from perennial.serving.online_table import OnlineTable
from perennial.serving.recorded import TABLE as REQUESTS
from perennial.serving.request_table import RequestTable
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)

_QUARANTINE, _FEATURES, _PUSHED = "quarantine", "features", "pushed_rows"
#: Tables of the predictions database that hold rows of several models.
_BESIDE = ("online_features", REQUESTS, _PUSHED)


@dataclass(frozen=True)
class Survey:
    """What is known of an entity.

    Attributes:
        rows: number of distinct rows, including those of older snapshots; by table of the lake, ``<model>_predictions`` and
            ``online_features`` and ``pushed_rows``. Those of ``online_requests`` are of both places.
        files: number of data files of the lake that hold such a row; they are rewritten or removed.
        snapshots: number of snapshots of the lake that hold such a row; they are expired.
        pins: pins of training sets that are removed.
        samples: by MLflow's id, stored models that keep such a row as a sample, with their version; None for a candidate.
        staging, reports: files that quote the entity's values.
        texts: number of warnings, refusals, verdicts and alerts of the ledger that quote the entity's values.
        learned: versions that were trained or evaluated on the entity's rows.
        unpinned: versions whose training rows are no longer kept.
        notes: what was not searched, and why.
    """

    model: str
    rows: dict[str, int] = field(default_factory=dict)
    files: int = 0
    snapshots: int = 0
    pins: list[str] = field(default_factory=list)
    samples: dict[str, int | None] = field(default_factory=dict)
    staging: list[Path] = field(default_factory=list)
    reports: list[Path] = field(default_factory=list)
    texts: int = 0
    learned: list[int] = field(default_factory=list)
    unpinned: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        """Whether nothing is known of the entity."""
        return not (any(self.rows.values()) or self.files or self.samples or self.staging or self.reports or self.texts)

    def describe(self) -> list[str]:
        """The survey as lines for people."""
        if self.nothing:
            return [f"{self.model}: nothing is known of it", *self.notes]
        lines = [f"{table}: {count:,} rows" for table, count in self.rows.items() if count]
        lines.append(f"lake: {self.files:,} data files contain them, {self.snapshots:,} snapshots are expired")
        versions = sorted(version for version in self.samples.values() if version is not None)
        others = sum(version is None for version in self.samples.values())
        if self.samples:
            its = f"of versions {_numbers(versions)}" if versions else "of no version"
            lines.append(f"stored models: samples {its} and of {others} candidates are rewritten without them")
        lines += [
            f"{what}: {len(paths):,} files are removed"
            for what, paths in (("staging", self.staging), ("reports", self.reports))
            if paths
        ]
        if self.texts:
            lines.append(f"ledger: {self.texts:,} warnings, refusals, verdicts or alerts quote it; the value is replaced")
        if self.learned:
            lines.append(f"versions that were trained or evaluated on it, and are not changed: {_numbers(self.learned)}")
        if self.unpinned:
            lines.append(f"versions that can no longer be reproduced: {_numbers(self.unpinned)}")
        return [*lines, *self.notes]


def describe(erasure: Erasure) -> list[str]:
    """What an erasure did, as lines for people."""
    rows = ", ".join(f"{table} {count:,}" for table, count in sorted(erasure.rows.items()) if count) or "none"
    lines = [f"{erasure.model}: erasure {erasure.id} is complete; rows erased: {rows}"]
    for kind, words in (
        ("rewritten", "versions whose samples were rewritten, with a new manifest:"),
        ("learned", "versions that were trained or evaluated on it, and are not changed:"),
        ("unpinned", "versions that can no longer be reproduced:"),
    ):
        if its := erasure.versions.get(kind):
            lines.append(f"{words} {_numbers(its)}")
    lines += [
        f"{name}: {count:,} {what}"
        for name, what in (
            ("files", "files of the lake removed"), ("staging", "files removed"), ("reports", "files removed"),
            ("texts", "texts of the ledger changed"),
        )
        if (count := erasure.details.get(name))
    ]  # fmt: skip
    return [
        *lines,
        "Erase it from the source as well, or the next run for its days reads it again. Backups, logs and copies elsewhere "
        "still contain it (docs/security.md).",
    ]


def _numbers(versions: Collection[int]) -> str:
    return ", ".join(map(str, sorted(versions))) or "none"


def entity_of(spec: ModelSpec, *, key: Mapping[str, str] | None, column: Mapping[str, str] | None) -> Entity:
    """The entity that a key or a column's value names.

    Args:
        spec: the model's spec.
        key: the value of each column of the entity's key.
        column: a column of any table, and its value; this means all entities whose rows have that value.

    Raises:
        ErasureError: the key is incomplete, no table has such a column, or the value is not of the column's type.
    """
    values = dict(key or column or {})
    wanted = spec.entity_table.key
    if key is not None and set(key) != set(wanted):
        raise ErasureError(
            f"{spec.name}: an entity is named by {', '.join(wanted)}: give --key {'=… --key '.join(wanted)}=…; for another "
            "column use --column"
        )
    check_values(spec, values)
    keys = frozenset([tuple(values[name] for name in wanted)]) if key is not None else frozenset()
    return Entity(spec, values, keys)


class Forgetting:
    """The erasure of one entity.

    Args:
        parts: the deployment.
        entity: the entity.
    """

    def __init__(self, parts: Deployment, entity: Entity) -> None:
        self._parts = parts
        self._entity = entity
        self._eraser = Eraser(parts.settings, parts.ledger)

    @property
    def model(self) -> str:
        return self._entity.spec.name

    def survey(self) -> Survey:
        """Search for the entity everywhere. Nothing is changed."""
        return self._survey(datetime.now(UTC))[0]

    def run(self, *, actor: str, reason: str, say: Callable[[str], object] = lambda _: None) -> Erasure | None:
        """Erase the entity.

        Args:
            actor: who asks for the erasure.
            reason: why.
            say: is called with a message for each step.

        Returns:
            The record; None if nothing is known of the entity and no erasure of it was interrupted.

        Raises:
            BackupError: a backup is being made.
            StaleDecision: other runs published each time before the readers could be switched; try again.
        """
        ledger, model = self._parts.ledger, self.model
        with removing_alone(self._parts.settings):
            cut_off = any(one.completed_at is None and one.is_of(self._entity.values) for one in ledger.erasures(model))
            if not cut_off and self.survey().nothing:
                return None
            begun = ledger.begin_erasure(model, self._entity.values, actor=actor, reason=reason)
            say(f"erasure {begun.id}: runs of {model} that started before it can no longer publish")
            # The fence exists, so no run that started earlier can publish any more. The search begins now, so it finds all
            # that these runs have published.
            return self._erase(begun, datetime.now(UTC), say)

    def _erase(self, begun: Erasure, since: datetime, say: Callable[[str], object]) -> Erasure:
        parts, ledger, model = self._parts, self._parts.ledger, self.model
        found, entity, findings = self._survey(since)
        rows = {name: one.found.num_rows for name, one in findings.items()}
        ledger.note_erasure(
            begun.id,
            rows=rows
            | {name: found.rows.get(name, 0) for name in (f"{model}_predictions", "online_features", REQUESTS, _PUSHED)},
            versions={"learned": found.learned, "unpinned": found.unpinned},
            details={"staging": len(found.staging), "reports": len(found.reports), "texts": found.texts},
        )
        for path in (*found.staging, *found.reports):
            path.unlink(missing_ok=True)
        say(f"{len(found.staging):,} staging files and {len(found.reports):,} reports were removed")
        features = findings.get(_FEATURES)
        rewritten = parts.registry.erase_samples(
            model,
            features.found if features is not None else pa.table({}),
            entity.spec.event_time,
            pending=begun.details.get("samples", {}),
            intend=lambda samples: ledger.note_erasure(begun.id, details={"samples": samples}),
        )
        ledger.note_erasure(begun.id, versions={"rewritten": rewritten})
        # Both are found by the entity's keys. Once the rows are gone, a column's value no longer leads to these keys.
        ledger.erase_texts(model, entity.words)
        self._erase_from_sink(entity)
        self._erase_from_online_table(entity)
        self._erase_from_requests(entity)
        self._erase_from_pushed(entity)
        for pin in found.pins:
            parts.lake.unpin(model, pin)
        removed = sum(self._erase_table(begun, name, finder, since, say) for name, finder in self._finders(entity))
        # Again: a run may have copied to the predictions database what it had published before the fence.
        self._erase_from_sink(entity)
        self._erase_from_online_table(entity)
        self._erase_from_requests(entity)
        self._erase_from_pushed(entity)
        ledger.note_erasure(begun.id, details={"files": removed})
        done = ledger.complete_erasure(begun.id)
        log.info("erasure %d of %s is complete: %s", done.id, model, done.rows)
        return done

    def _erase_table(self, begun: Erasure, name: str, finder: Finder, since: datetime, say: Callable[[str], object]) -> int:
        model, ledger, eraser = self.model, self._parts.ledger, self._eraser
        left = eraser.rewrite(model, name, finder, older_than=since)
        before: list[str] = begun.details.get("doomed", {}).get(name, [])
        paths = sorted({*before, *eraser.doomed(model, name, left)})
        # The ledger keeps these paths: once the snapshots are gone, nothing else names the files.
        ledger.note_erasure(begun.id, details={"doomed": {**begun.details.get("doomed", {}), name: paths}})
        eraser.let_go(model, name, left)
        removed = eraser.remove(model, name, paths)
        if removed:
            say(f"{name}: {len(left.tainted):,} snapshots were expired and {removed:,} files were removed")
        return removed

    def _survey(self, older_than: datetime) -> tuple[Survey, Entity, dict[str, Findings]]:
        parts, model = self._parts, self.model
        entity = self._with_keys(older_than)
        findings = {
            name: self._eraser.look(model, name, finder, older_than=older_than) for name, finder in self._finders(entity)
        }
        held = findings[_QUARANTINE].found if _QUARANTINE in findings else pa.table({})
        entity = replace(entity, quoted=_quotes(held))
        rows = {name: one.found.num_rows for name, one in findings.items()}
        rows[f"{model}_predictions"] = self._erase_from_sink(entity, dry_run=True)
        rows["online_features"] = self._erase_from_online_table(entity, dry_run=True)
        rows[REQUESTS] = rows.get(REQUESTS, 0) + self._erase_from_requests(entity, dry_run=True)
        rows[_PUSHED] = self._erase_from_pushed(entity, dry_run=True)
        features = findings.get(_FEATURES)
        its = features.found if features is not None else pa.table({})
        reports = parts.settings.reports / model
        pins = sorted({pin for one in findings.values() for pin in one.pins})
        records = parts.ledger.versions(model)
        words = entity.words
        notes = [] if words else ["reports, alerts and warnings were not searched: the value is too short to be found reliably"]
        if others := self._others():
            notes.append(f"other models have columns of that name and were not searched: {', '.join(others)}")
        return (
            Survey(
                model=model,
                rows=rows,
                files=sum(len(one.files) + len(one.unnamed) for one in findings.values()),
                snapshots=sum(len(one.tainted) for one in findings.values()),
                pins=pins,
                samples=parts.registry.sampled(model, its, entity.spec.event_time),
                staging=_quoting(entity, parts.settings.staging / model),
                reports=sorted({*_quoting(entity, reports), *_pages(reports / "checks", held)}),
                texts=parts.ledger.erase_texts(model, words, dry_run=True),
                learned=[record.version for record in records if _used(record.training, its, entity.spec.event_time)],
                unpinned=[record.version for record in records if record.training.pin in pins],
                notes=notes,
            ),
            entity,
            findings,
        )

    def _others(self) -> list[str]:
        wanted = set(self._entity.columns)
        others = [model for model in self._parts.ledger.models() if model != self.model]
        return [model for model in others if any(wanted <= set(schema.names) for schema in self._eraser.tables(model).values())]

    def _with_keys(self, older_than: datetime) -> Entity:
        """The entity with its keys: if it was named by a column, the keys of all rows that have that column's value."""
        entity = self._entity
        if entity.keys:
            return entity
        keys: frozenset[tuple[str, ...]] = frozenset()
        for name, finder in self._finders(entity):
            if name not in (_QUARANTINE, REQUESTS):
                keys |= entity.keys_in(self._eraser.look(self.model, name, finder, older_than=older_than).found)
        for found in PushedRows(self._parts.settings.predictions_url).find(self.model, entity.in_pushed):
            keys |= entity.keys_in_pushed(found)
        return replace(entity, keys=keys)

    def _finders(self, entity: Entity) -> list[tuple[str, Finder]]:
        """Each table and the finder of its rows. Tables that lead to rows of others come last, the entity's own very last."""
        found = []
        for name, schema in self._eraser.tables(self.model).items():
            special = {_QUARANTINE: entity.in_quarantine, REQUESTS: entity.in_requests}
            finder = special[name]() if name in special else entity.in_table(schema)
            if finder is not None:
                leads = name != REQUESTS and set(entity.columns) <= set(schema.names)
                found.append(((leads, name == entity.spec.entity.table, name), name, finder))
        return [(name, finder) for _, name, finder in sorted(found, key=lambda one: one[0])]

    def _erase_from_sink(self, entity: Entity, *, dry_run: bool = False) -> int:
        url, model = self._parts.settings.predictions_url, self.model
        schema = self._eraser.tables(model).get("predictions")
        return sum(
            sink_erasure.erase(url, model, one.columns, one.tuples, dry_run=dry_run)
            for one in (entity.equal(schema) if schema is not None else [])
        )

    def _erase_from_online_table(self, entity: Entity, *, dry_run: bool = False) -> int:
        return OnlineTable(self._parts.settings.predictions_url).erase(self.model, entity.typed_keys, dry_run=dry_run)

    def _erase_from_requests(self, entity: Entity, *, dry_run: bool = False) -> int:
        finds = entity.in_requests().finds
        return RequestTable(self._parts.settings.predictions_url).erase(self.model, finds, dry_run=dry_run)

    def _erase_from_pushed(self, entity: Entity, *, dry_run: bool = False) -> int:
        return PushedRows(self._parts.settings.predictions_url).erase(self.model, entity.in_pushed, dry_run=dry_run)


def _quoting(entity: Entity, folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            if path.is_file() and not path.is_symlink() and entity.in_file(path):
                found.append(path)
        except FileNotFoundError:
            continue  # a temporary file that was removed meanwhile
    return found


def _quotes(quarantined: pa.Table) -> frozenset[str]:
    """How warnings quote quarantined rows."""
    rows = quarantined.to_pylist()
    return frozenset(f"{row['position']}: {reason}" for row in rows for reason in row.get("reasons") or ())


def _pages(folder: Path, quarantined: pa.Table) -> list[Path]:
    """The pages of Data Docs for the intervals of the quarantined rows. These pages quote values."""
    found = []
    for row in quarantined.to_pylist():
        for page in sorted((folder / str(row["table"])).glob("*.html")):
            interval = Interval.from_key(page.stem)
            if interval.start <= row["_event_time"] < interval.end:
                found.append(page)
    return found


def _used(training: TrainingSet, rows: pa.Table, event_time: str) -> bool:
    """Whether the event time of one of the rows lies in a part of the version's training set."""
    if event_time not in rows.column_names:
        return False
    parts = [training.interval(part) for part in PARTS if training.key(part)]
    return any(part.start <= moment < part.end for part in parts for moment in rows[event_time].to_pylist())
