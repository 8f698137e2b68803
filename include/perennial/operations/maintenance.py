"""Removes what a deployment no longer needs. Each function can run at any time, and repeatedly.

It never removes what reproduces a kept version, what readers may be reading, or what a current run may use.

Neighbours: :mod:`perennial.lake.publish` removes what is in tables, :mod:`perennial.registry.store` closes runs in MLflow.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from perennial.core.settings import Settings
from perennial.deployment import Deployment
from perennial.lake.publish import Lake
from perennial.lake.removal import removing
from perennial.ledger.store import Ledger
from perennial.operations.retention import remove_old_rows
from perennial.registry.store import Registry
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)


#: Files that have not changed for this long belong to no current run.
ABANDONED = timedelta(days=1)
#: MLflow runs that have been open for this long have no process any more: no fit takes longer.
ABANDONED_FIT = timedelta(days=2)


def remove_staging(settings: Settings, model: str, *, now: datetime) -> dict[str, int]:
    """Remove the files that tasks of past runs handed to each other.

    Returns:
        ``runs`` and ``bytes`` removed.
    """
    runs, size = _remove_abandoned(_entries(settings.staging / model), now)
    return {"runs": runs, "bytes": size}


def remove_scratch(folder: Path) -> dict[str, int]:
    """Remove the temporary files of tasks that were killed: what DuckDB had put on the disk, and models on their way.

    Args:
        folder: where processes keep temporary files. All models share it, so the machine's own clock counts; other users may
            share it, too, and theirs are left.

    Returns:
        ``files`` (or folders of them) and ``bytes`` removed.
    """
    named = [path for path in _entries(folder) if path.name.startswith("perennial-")]
    files, size = _remove_abandoned(filter(_is_ours, named), datetime.now(UTC))
    return {"files": files, "bytes": size}


def remove_reports(settings: Settings, spec: ModelSpec, *, now: datetime) -> dict[str, int]:
    """Remove drift reports and pages of Data Docs that were written longer ago than ``retention.reports``.

    Returns:
        ``files`` and ``bytes`` removed.
    """
    removed = {"files": 0, "bytes": 0}
    before = (now - spec.retention.reports).timestamp()
    # The contents of a folder come before the folder.
    for path in sorted((settings.reports / spec.name).rglob("*"), reverse=True):
        # Drafts of a report may vanish meanwhile.
        with suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                # Another process may be about to write into a new, empty folder.
                if status.st_mtime < (now - ABANDONED).timestamp() and not any(path.iterdir()):
                    path.rmdir()
            elif status.st_mtime < before:
                path.unlink()
                removed["files"] += 1
                removed["bytes"] += status.st_size
    return removed


def forget_quarantine(lake: Lake, ledger: Ledger, spec: ModelSpec, *, now: datetime) -> dict[str, int]:
    """Drop quarantined rows whose event is older than ``retention.quarantine``.

    Returns:
        ``files`` of the table that were removed or rewritten.
    """
    if "quarantine" not in ledger.head(spec.name, "tables").snapshots:
        return {"files": 0}
    return {"files": lake.forget(spec.name, "tables", "quarantine", now - spec.retention.quarantine)}


def unpin_old_versions(lake: Lake, ledger: Ledger, spec: ModelSpec, *, now: datetime) -> dict[str, int]:
    """Unpin the training snapshots of all but the champion and the ``retention.versions`` newest versions.

    A training that has made no version keeps its snapshots while it may still run: as long as the ledger published one of them
    within ``retention.snapshots``.

    Returns:
        How many ``pins`` were removed, and how many were ``kept``.
    """
    versions = ledger.versions(spec.name)
    champion = ledger.champion(spec.name)
    kept = {record.training.pin for record in versions[-spec.retention.versions :]}
    kept |= {record.training.pin for record in versions if record.version == champion}
    registered = {record.training.pin for record in versions}
    recent: set[tuple[str, int]] = set()
    for dataset in ledger.datasets(spec.name):
        for table, snapshots in ledger.snapshots_since(spec.name, dataset, now - spec.retention.snapshots).items():
            recent |= {(table, snapshot) for snapshot in snapshots}
    done = {"pins": 0, "kept": 0}
    for name, pinned in lake.pins(spec.name).items():
        if name in kept or (name not in registered and recent & set(pinned.items())):
            done["kept"] += 1
        else:
            lake.unpin(spec.name, name)
            done["pins"] += 1
    return done


def tidy_tables(lake: Lake, spec: ModelSpec, *, now: datetime) -> dict[str, int]:
    """Join small files, expire snapshots older than ``retention.snapshots``, and remove files that no snapshot names.

    Returns:
        The numbers of ``joined`` files, expired ``snapshots`` and removed ``orphans``.
    """
    joined = lake.compact(spec.name)
    return {
        "joined": sum(joined.values()),
        "snapshots": lake.expire(spec.name, now - spec.retention.snapshots),
        "orphans": lake.remove_orphans(spec.name, now - ABANDONED),
    }


def close_abandoned_runs(registry: Registry, spec: ModelSpec) -> dict[str, int]:
    """Close runs in MLflow that a killed process left open.

    Returns:
        ``runs`` closed.
    """
    return {"runs": registry.close_abandoned_runs(spec.name, ABANDONED_FIT)}


def tidy_lake(deployment: Deployment, spec: ModelSpec, *, now: datetime) -> dict[str, dict[str, int]]:
    """Remove what is not needed from the lake. Each step builds on the one before. During a backup nothing is removed.

    Returns:
        What was done, by function.
    """
    lake, ledger = deployment.lake, deployment.ledger
    with removing(deployment.settings) as held:
        if held is not None:
            log.info("a backup is running: nothing is removed from the lake before it ends, or before %s", held)
            return {}
        return {
            "forget_quarantine": forget_quarantine(lake, ledger, spec, now=now),
            "remove_old_rows": remove_old_rows(deployment.settings.predictions_url, lake, ledger, spec, now=now),
            "unpin_old_versions": unpin_old_versions(lake, ledger, spec, now=now),
            "tidy_tables": tidy_tables(lake, spec, now=now),
        }


def maintain(deployment: Deployment, spec: ModelSpec, *, now: datetime) -> dict[str, dict[str, int]]:
    """Remove everything that one model no longer needs. Each step builds on the one before.

    Returns:
        What was done, by function.
    """
    done = {
        "remove_staging": remove_staging(deployment.settings, spec.name, now=now),
        "remove_scratch": remove_scratch(Path(tempfile.gettempdir())),
        "remove_reports": remove_reports(deployment.settings, spec, now=now),
        **tidy_lake(deployment, spec, now=now),
        "close_abandoned_runs": close_abandoned_runs(deployment.registry, spec),
    }
    log.info("%s", done)
    return done


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_ours(path: Path) -> bool:
    with suppress(FileNotFoundError):  # another worker may be removing it
        return path.lstat().st_uid == os.geteuid()
    return False


def _remove_abandoned(paths: Iterable[Path], now: datetime) -> tuple[int, int]:
    """Remove the files and folders that have not changed for a while. Returns how many, and their bytes."""
    removed, freed = 0, 0
    for path in paths:
        # Another worker may be removing it as well.
        with suppress(FileNotFoundError):
            newest, size = _newest_and_size(path)
            if newest < (now - ABANDONED).timestamp():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                removed, freed = removed + 1, freed + size
    return removed, freed


def _newest_and_size(path: Path) -> tuple[float, int]:
    """When anything in it last changed, and how many bytes it holds. Symbolic links are not followed."""
    newest, size = path.lstat().st_mtime, 0
    for below in path.rglob("*") if path.is_dir() and not path.is_symlink() else ():
        with suppress(FileNotFoundError):
            status = below.lstat()
            newest = max(newest, status.st_mtime)
            size += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return newest, size
