"""Whether ledger, lake, registry and predictions agree: what a restore, or a doubt, is followed by.

The ledger leads. :func:`settle` lets the others follow a ledger that was restored, since a backup that is made while work
goes on holds a little more of them than of the ledger; :func:`verify` only looks. Neighbour:
:mod:`perennial.operations.backup`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from perennial.core.errors import ArtifactRejected, SnapshotMissing
from perennial.deployment import Deployment
from perennial.ledger.records import Publication
from perennial.scoring import sink

#: Rows of it are forgotten by and by, without a publication.
_FORGOTTEN = "quarantine"


@dataclass(frozen=True)
class Agreement:
    """What was compared, and what does not agree; each a sentence.

    Attributes:
        found: by model and overall, what was looked at.
        problems: what does not agree, with what is at fault and what to do.
    """

    found: list[str]
    problems: list[str]


def settle(parts: Deployment, now: datetime) -> list[str]:
    """Let lake, registry and predictions follow a ledger that has just been restored, before anything works again.

    Alerts that waited for delivery when the backup was made are not sent: people may have had them since. Doing it twice
    changes nothing more.

    Returns:
        What was changed, for people.
    """
    withheld = parts.ledger.outbox.withhold(now, reason="it waited when the backup was made that was restored")
    done = [
        f"not sent, since it may have been: {entry.alert.title} ({entry.created_at:%Y-%m-%d %H:%M} UTC)" for entry in withheld
    ]
    for model in parts.ledger.models():
        parts.lake.follow_ledger(model)
        before = parts.registry.follow_ledger(model)
        champion = parts.ledger.champion(model)
        if before is not None:
            done.append(
                f"{model}: the alias champion pointed to version {before}; now to {_version(champion)}, as the ledger says"
            )
        newest = max((made.id for made in parts.ledger.publications(model, "predictions")), default=0)
        if newer := sink.forget_newer(parts.settings.predictions_url, model, newest):
            done.append(f"{model}: {newer} intervals in {model}_predictions are newer than the ledger; score them again")
    return done


def verify(parts: Deployment, say: Callable[[str], object] = lambda _: None) -> Agreement:
    """Compare them.

    For each model: every snapshot that readers are sent to, or that is pinned, is in the lake with all its files; the rows of
    each newest interval hash to what was published; MLflow's alias is the ledger's champion, whose artifact loads by its
    manifest; no predictions are newer than the ledger.

    Args:
        parts: the deployment.
        say: told each sentence as it is found.
    """
    found, problems = [], []
    for model in parts.ledger.models():
        of_model = [*_of_lake(parts, model), *_of_registry(parts, model), *_of_predictions(parts, model)]
        for problem in of_model:
            say(f"PROBLEM {problem}")
        problems += of_model
        datasets = ", ".join(parts.ledger.datasets(model)) or "nothing published"
        pins = len(parts.lake.pins(model))
        found.append(f"{model}: champion {_version(parts.ledger.champion(model))}; {datasets}; {pins} pins")
        say(found[-1])
    waiting = sum(entry.waits for entry in parts.ledger.alerts())
    found.append(f"{len(parts.ledger.models())} models, {len(problems)} problems; {waiting} alerts wait for delivery")
    say(found[-1])
    return Agreement(found, problems)


def _of_lake(parts: Deployment, model: str) -> Iterator[str]:
    read: dict[str, dict[str, int]] = {}
    for dataset in parts.ledger.datasets(model):
        read[f"published as {dataset}"] = parts.ledger.head(model, dataset).snapshots
    read |= {f"pinned as {name}": snapshots for name, snapshots in parts.lake.pins(model).items()}
    lost: set[str] = set()
    for why, snapshots in read.items():
        for table, snapshot in snapshots.items():
            try:
                missing = parts.lake.missing(model, table, snapshot)
            except SnapshotMissing as error:
                yield f"{model}: {error} ({why})"
                lost.add(table)
                continue
            for file in missing:
                yield f"{model}: table {table}, {why} at snapshot {snapshot}, lacks {file}: restore the lake from a backup"
                lost.add(table)
    erasures = parts.ledger.erasures(model)
    for dataset in parts.ledger.datasets(model):
        for newest in parts.ledger.publications(model, dataset)[-1:]:
            for table in newest.hashes:
                # Fewer rows than were published, as it should be.
                if any(one.asked_at > newest.published_at and one.rows.get(table) for one in erasures):
                    continue
                if parts.ledger.removed(model, dataset, newest.interval):
                    continue
                if table not in lost and (problem := _content(parts, newest, table)) is not None:
                    yield problem


def _content(parts: Deployment, newest: Publication, table: str) -> str | None:
    try:
        holds = parts.lake.holds(newest, table, newest.snapshots[table])
    except SnapshotMissing:
        # Maintenance has sent readers to the same rows in other files, or, of what is kept for a time, to fewer.
        if table == _FORGOTTEN:
            return None
        now = parts.ledger.head(newest.model, newest.dataset).snapshots[table]
        holds = parts.lake.holds(newest, table, now)
    if holds:
        return None
    return (
        f"{newest.model}: table {table} holds other rows for {newest.interval} than were published by {newest.run_id}: "
        "publish the interval again, or restore the lake from a backup"
    )


def _of_registry(parts: Deployment, model: str) -> Iterator[str]:
    champion, alias = parts.ledger.champion(model), parts.registry.alias(model)
    if champion != alias:
        yield (
            f"{model}: the ledger says that {_version(champion)} is champion, MLflow's alias says {_version(alias)}: after a "
            "restore run perennial verify --settle; else the next run of maintain brings them in line"
        )
    if champion is None:
        return
    try:
        parts.registry.load(model, champion)
    except ArtifactRejected as error:
        yield f"{error}: restore MLflow's artifacts from a backup, or roll back"
    record = parts.ledger.version(model, champion)
    pin = record.training.get("pin") if record else None
    if any(champion in one.versions.get("unpinned", []) for one in parts.ledger.erasures(model)):
        return
    if pin not in parts.lake.pins(model):
        yield f"{model} version {champion}: the rows that it was trained on are not pinned as {pin}; it cannot be made again"


def _of_predictions(parts: Deployment, model: str) -> Iterator[str]:
    written = sink.newest_publication(parts.settings.predictions_url, model)
    newest = max((made.id for made in parts.ledger.publications(model, "predictions")), default=0)
    if written is not None and written > newest:
        yield (
            f"{model}: {model}_predictions was written from publication {written}, and the ledger's newest is {newest}: run "
            "perennial verify --settle, then score those intervals again"
        )


def _version(number: int | None) -> str:
    return "none" if number is None else f"version {number}"
