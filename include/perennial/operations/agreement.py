"""Compares ledger, lake, registry and predictions, after a restore or at any time.

The ledger leads. :func:`verify` only compares. :func:`settle` brings the others in line with a restored ledger: a backup that
is made during work has slightly newer copies of them than of the ledger. Neighbour:
:mod:`perennial.operations.backup`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from perennial.core.errors import SnapshotMissing, SpecError
from perennial.deployment import Deployment
from perennial.ledger.records import Publication
from perennial.operations.standing import standing
from perennial.registry.server import unanswered
from perennial.scoring import sink
from perennial.serving.online_table import OnlineTable
from perennial.spec.folder import ModelFolder

#: Maintenance removes rows of this table without a publication.
_FORGOTTEN = "quarantine"


@dataclass(frozen=True)
class Agreement:
    """The result of a comparison, in sentences.

    Attributes:
        found: what was compared, per model and in total.
        problems: what does not agree, the cause, and what to do.
    """

    found: list[str]
    problems: list[str]


def settle(parts: Deployment, now: datetime, *, actor: str = "perennial", noted: Sequence[str] = ()) -> list[str]:
    """Bring lake, registry and predictions in line with a ledger that has just been restored, before work starts again.

    Alerts that waited for delivery when the backup was made are not sent, since they may have been sent after it. It can be
    repeated.

    Args:
        parts: the deployment.
        now: the time.
        actor: who restored it.
        noted: newest decisions that are known from elsewhere, each as ``NUMBER:HASH``.

    Returns:
        What was changed, in sentences.
    """
    goes_on = parts.ledger.follow_restored(actor=actor, noted=noted)
    withheld = parts.ledger.outbox.withhold(now, reason="it waited when the restored backup was made")
    done = [] if goes_on is None else [goes_on]
    done += [
        f"not sent, because it may have been sent after the backup: {entry.alert.title} ({entry.created_at:%Y-%m-%d %H:%M} UTC)"
        for entry in withheld
    ]
    for model in parts.ledger.models():
        parts.lake.follow_ledger(model)
        before = parts.registry.follow_ledger(model)
        champion = parts.ledger.champion(model)
        if before is not None:
            done.append(
                f"{model}: the alias champion was moved from version {before} to {_version(champion)}, as in the ledger"
            )
        newest = max((made.id for made in parts.ledger.publications(model, "predictions")), default=0)
        if newer := sink.forget_newer(parts.settings.predictions_url, model, newest):
            done.append(f"{model}: {newer} intervals of {model}_predictions are newer than the ledger: score them again")
        if OnlineTable(parts.settings.predictions_url).forget_newer(model, parts.ledger.newest_publication(model)):
            done.append(f"{model}: the rows asked online were newer than the ledger and are removed: materialize them again")
    return done


def verify(parts: Deployment, say: Callable[[str], object] = lambda _: None, *, noted: Sequence[str] = ()) -> Agreement:
    """Compare ledger, lake, registry and predictions, and the ledger's decisions with their signed chain.

    For each model it checks that every published or pinned snapshot is in the lake with all its files, that the rows of each
    newest interval have the published hash, that MLflow's alias is the ledger's champion and its artifact loads by its
    manifest, and that no predictions are newer than the ledger.

    Args:
        parts: the deployment.
        say: called with each sentence.
        noted: newest decisions that are known from elsewhere, each as ``NUMBER:HASH``.
    """
    checked = parts.ledger.check_decisions(noted=noted)
    problems = list(checked.problems)
    for problem in problems:
        say(f"PROBLEM {problem}")
    found = [*checked.notes, checked.words]
    for sentence in found:
        say(sentence)
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
                yield f"{model}: table {table}, {why} at snapshot {snapshot}, has lost {file}: restore the lake from a backup"
                lost.add(table)
    erasures = parts.ledger.erasures(model)
    for dataset in parts.ledger.datasets(model):
        for newest in parts.ledger.publications(model, dataset)[-1:]:
            for table in newest.hashes:
                # An erasure or retention has removed rows since. So fewer rows than were published are correct.
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
        # Maintenance has moved the rows to other files, or has removed some of them after their retention.
        if table == _FORGOTTEN:
            return None
        now = parts.ledger.head(newest.model, newest.dataset).snapshots[table]
        holds = parts.lake.holds(newest, table, now)
    if holds:
        return None
    return (
        f"{newest.model}: table {table} holds other rows for {newest.interval} than {newest.run_id} published: "
        "publish the interval again, or restore the lake from a backup"
    )


def _of_registry(parts: Deployment, model: str) -> Iterator[str]:
    champion = parts.ledger.champion(model)
    stands = standing(parts, model, _folder(parts, model))
    try:
        alias, renamed = parts.registry.alias(model), parts.registry.renamed_to(model)
    # Whatever MLflow's client raises if its server does not answer.
    except Exception as error:
        yield f"{model}: {stands.words if stands is not None else unanswered(error, parts.settings) or error}"
        return
    if renamed is not None:
        yield (
            f"{model}: the registered model was renamed to {renamed} in MLflow: rename it back to {model}. Until then "
            "nothing is scored or trained, and maintain leaves MLflow as it is"
        )
        return
    if champion is not None and alias is None and stands is not None and stands.usable is False:
        yield f"{model}: {stands.words}. Restore MLflow from a backup, roll back, or train; maintain leaves MLflow as it is"
        return
    if champion != alias:
        yield (
            f"{model}: the ledger's champion is {_version(champion)}, but MLflow's alias points to {_version(alias)}: after a "
            f"restore, run perennial verify --settle; otherwise the judge {_next(parts, model, alias)}"
        )
    if champion is None:
        return
    if stands is not None and stands.usable is not True:
        yield f"{model}: {stands.words}; or restore MLflow's artifacts from a backup, if they are gone, or roll back"
    record = parts.ledger.version(model, champion)
    pin = record.training.pin if record else None
    if any(champion in one.versions.get("unpinned", []) for one in parts.ledger.erasures(model)):
        return
    if pin not in parts.lake.pins(model):
        yield f"{model} version {champion}: the rows that it was trained on are not pinned as {pin}; it cannot be reproduced"


def _next(parts: Deployment, model: str, alias: int | None) -> str:
    """What becomes of an alias that is not the ledger's champion; see :meth:`Champions.reconcile`."""
    if alias is None or parts.ledger.retirement(model) is not None:
        return "puts it right"
    if parts.ledger.version(model, alias) is None:
        return "moves the alias back, since Perennial did not register that version"
    if parts.registry.may_adopt(model, alias):
        return f"makes version {alias} champion, since somebody moved the alias there"
    return "moves the alias back"


def _of_predictions(parts: Deployment, model: str) -> Iterator[str]:
    written = sink.newest_publication(parts.settings.predictions_url, model)
    newest = max((made.id for made in parts.ledger.publications(model, "predictions")), default=0)
    if written is not None and written > newest:
        yield (
            f"{model}: {model}_predictions was written from publication {written}, and the ledger's newest is {newest}: run "
            "perennial verify --settle, then score those intervals again"
        )
    asked, newest = (
        OnlineTable(parts.settings.predictions_url).newest_publication(model),
        parts.ledger.newest_publication(model),
    )
    if asked is not None and asked > newest:
        yield (
            f"{model}: online_features was made from publication {asked}, and the ledger's newest is {newest}: run perennial "
            f"verify --settle, then perennial materialize {model}"
        )


def _folder(parts: Deployment, model: str) -> ModelFolder | None:
    """The model's folder, if it has one that works."""
    try:
        folder = parts.model(model)
    except SpecError:
        return None
    return None if folder.spec.retired else folder


def _version(number: int | None) -> str:
    return "none" if number is None else f"version {number}"
