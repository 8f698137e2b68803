"""Retires a model: it has no DAGs, no champion and no open alerts. Its history is kept, and its lake unless it is dropped.

Parsing DAGs never reads the ledger. So the folder must first say that the model has ended: the folder is removed, or it has
``retired: true``. Every step can be repeated, so the same call resumes a retirement that was interrupted.

Neighbours: :mod:`perennial.ledger.retirements` records it; :mod:`perennial.operations.remembered` finds a removed folder's
content.
"""

from __future__ import annotations

from datetime import UTC, datetime

from perennial.core.errors import ErasureError, SpecError
from perennial.core.files import replacing
from perennial.deployment import Deployment
from perennial.ingestion.pushed import PushedRows
from perennial.lake.erasure import Eraser
from perennial.lake.removal import removing_alone
from perennial.operations.remembered import remembered
from perennial.serving.online_table import OnlineTable
from perennial.serving.request_table import RequestTable
from perennial.spec.folder import is_model_folder, read_model

_MARK = "\n# This model is retired: it has no DAGs and is not monitored.\nretired: true\n"


def mark_retired(parts: Deployment, model: str) -> bool:
    """Write ``retired: true`` into a model's folder.

    Returns:
        True if it was written; False if the model was already marked.

    Raises:
        SpecError: there is no such folder, or it is broken.
        ErasureError: the file cannot be written here, or it says ``retired: false``.
    """
    folder = parts.model(model)
    if folder.spec.retired:
        return False
    file = folder.path / "model.yaml"
    text = file.read_text(encoding="utf-8")
    try:
        with replacing(file) as draft:
            draft.write_text(text.rstrip("\n") + "\n" + _MARK, encoding="utf-8")
        read_model(folder.path)
    except SpecError as error:
        file.write_text(text, encoding="utf-8")
        raise ErasureError(
            f"{file} could not be marked and is unchanged: write retired: true into it yourself ({error})"
        ) from error
    except OSError as error:
        raise ErasureError(
            f"{file} cannot be written here ({error.strerror}): write retired: true into it in its repository"
        ) from error
    return True


def retire(parts: Deployment, model: str, *, actor: str, reason: str, drop_lake: bool = False) -> list[str]:
    """Retire a model.

    Args:
        parts: the deployment.
        model: its name.
        actor: who retires it.
        reason: why.
        drop_lake: also remove its tables, features and predictions from the lake.

    Returns:
        What was done, as lines for people.

    Raises:
        ErasureError: the model is unknown, or its folder still exists without ``retired: true``.
        PromotionRefused: this process may not change the champion.
        BackupError: the lake cannot be dropped because a backup is being made.
    """
    ledger = parts.ledger
    if model not in ledger.models():
        raise ErasureError(f"nothing is known of a model {model}; there are: {', '.join(ledger.models()) or 'none'}")
    if is_model_folder(parts.settings.models / model) and not parts.model(model).spec.retired:
        raise ErasureError(
            f"{model} has a folder, so its DAGs would keep running: write `retired: true` into {model}/model.yaml (--mark does "
            "this), or remove the folder. Run this again after that is deployed everywhere"
        )
    try:
        files = remembered(parts, model).files
    except SpecError:
        files = {}
    retired = parts.registry.retire(model, actor=actor, reason=reason, files=files)
    was = "it had no champion" if retired.champion is None else f"version {retired.champion} is no longer champion"
    told = [f"{model} is retired since {retired.retired_at:%Y-%m-%d %H:%M} UTC ({retired.actor}: {retired.reason}); {was}"]
    if resolved := _resolve_alerts(parts, model):
        told.append(f"{resolved} open alerts are resolved")
    if rows := OnlineTable(parts.settings.predictions_url).keep_only(model):
        told.append(f"{rows:,} rows that were asked online by key are removed")
    if rows := RequestTable(parts.settings.predictions_url).remove_before(model):
        told.append(f"{rows:,} rows that were asked online and not published yet are removed")
    if rows := PushedRows(parts.settings.predictions_url).remove_before(model):
        told.append(f"{rows:,} rows that clients pushed are removed")
    if drop_lake and retired.dropped_at is None:
        told.append(_drop_lake(parts, model, retired.id))
    elif retired.dropped_at is not None:
        told.append(f"its lake was removed on {retired.dropped_at:%Y-%m-%d}")
    else:
        told.append("its lake is kept; perennial maintain maintains it, --drop-lake removes it")
    return told


def _resolve_alerts(parts: Deployment, model: str) -> int:
    subjects = {
        entry.alert.subject
        for entry in parts.ledger.alerts()
        if entry.alert.model == model and entry.alert.subject is not None and entry.resolved_by is None
    }
    return sum(parts.ledger.resolve(subject, f"{model} is retired.") for subject in sorted(subjects))


def _drop_lake(parts: Deployment, model: str, retirement: int) -> str:
    ledger = parts.ledger
    with removing_alone(parts.settings):
        ledger.revoke_claims(model, datetime.now(UTC))
        for dataset in ledger.datasets(model):
            ends = [made.interval.end for made in ledger.publications(model, dataset)]
            ledger.record_removal(model, dataset, max(ends), {})
            # Before anything is removed, the ledger names no snapshots any more. A later ingestion starts from nothing.
            while (head := ledger.head(model, dataset)).snapshots:
                ledger.move(model, dataset, base=head, snapshots={})
        names = Eraser(parts.settings, ledger).drop(model)
        ledger.note_dropped(retirement)
    return f"its lake is removed: {', '.join(names) or 'there was none'}"
