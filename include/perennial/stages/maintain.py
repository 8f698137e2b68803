"""Maintain: remove data, files and runs that are no longer needed, and repair what is inconsistent."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.stages.run import StageRun, declare_unusable

if TYPE_CHECKING:
    from perennial.operations.standing import Standing


def clear_files(run: StageRun) -> dict[str, dict[str, int]]:
    """Remove the staging files of past runs, temporary files of killed tasks, and reports past the model's retention.

    Returns:
        Counts of what was removed, by kind.
    """
    from perennial.operations import maintenance

    settings, now = run.deployment.settings, datetime.now(UTC)
    return {
        "staging": maintenance.remove_staging(settings, run.model, now=now),
        "scratch": maintenance.remove_scratch(Path(tempfile.gettempdir())),
        "reports": maintenance.remove_reports(settings, run.folder.spec, now=now),
    }


def tidy_lake(run: StageRun) -> dict[str, dict[str, int]]:
    """Remove old quarantined rows, drop snapshots that no kept version pins, join small files, remove orphans: in this order.

    Returns:
        Counts of what was done, by function; empty while a backup runs.
    """
    from perennial.operations import maintenance

    return maintenance.tidy_lake(run.deployment, run.folder.spec, now=datetime.now(UTC))


def align_alias(run: StageRun) -> int | None:
    """Make MLflow's alias agree with the ledger, and complete an interrupted promotion. Returns the champion's version."""
    return run.deployment.registry.reconcile(run.model)


def look_at_champion(run: StageRun) -> Standing | None:
    """Look whether the champion can still be used. If it never can again, people are told.

    Returns:
        Where it stands; None if the model has no champion.
    """
    from perennial.operations.standing import standing

    # A model without folder has no DAGs; its champion need not fit what the folder said last.
    folder = run.folder if run.folder.path.is_dir() and not run.folder.spec.retired else None
    stands = standing(run.deployment, run.model, folder)
    if stands is not None and stands.usable is False:
        declare_unusable(run, stands.version, stands.reason)
    return stands


def close_abandoned_runs(run: StageRun) -> dict[str, int]:
    """Mark MLflow runs that stayed open when their process was killed. Returns how many."""
    from perennial.operations import maintenance

    return maintenance.close_abandoned_runs(run.deployment.registry, run.folder.spec)


def maintain(run: StageRun) -> dict[str, dict[str, int]]:
    """The whole stage. A process that may not promote does not change the alias.

    Returns:
        Counts of what was done, by function.
    """
    from perennial.operations import maintenance

    if run.deployment.settings.may_promote:
        align_alias(run)
    return maintenance.maintain(run.deployment, run.folder.spec, now=datetime.now(UTC))
