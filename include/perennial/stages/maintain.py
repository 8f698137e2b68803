"""Maintain: keep what must be kept, and no more."""

from __future__ import annotations

from datetime import UTC, datetime

from perennial.stages.run import StageRun


def clear_files(run: StageRun) -> dict[str, dict[str, int]]:
    """Remove what past runs handed from step to step, and reports older than the model keeps.

    Returns:
        What was removed, by kind.
    """
    from perennial.operations import maintenance

    settings, now = run.deployment.settings, datetime.now(UTC)
    return {
        "staging": maintenance.remove_staging(settings, run.model, now=now),
        "reports": maintenance.remove_reports(settings, run.folder.spec, now=now),
    }


def tidy_lake(run: StageRun) -> dict[str, dict[str, int]]:
    """Forget old quarantined rows, let go of what no kept version pins, join small files, remove orphans: in this order.

    Returns:
        What was done, by function; empty while a backup is made.
    """
    from perennial.operations import maintenance

    return maintenance.tidy_lake(run.deployment, run.folder.spec, now=datetime.now(UTC))


def align_alias(run: StageRun) -> int | None:
    """Bring MLflow's alias in line with the ledger, and finish a promotion that was left open; the champion's version."""
    return run.deployment.registry.reconcile(run.model)


def close_abandoned_runs(run: StageRun) -> dict[str, int]:
    """Mark MLflow runs that their process left open when it was killed; how many."""
    from perennial.operations import maintenance

    return maintenance.close_abandoned_runs(run.deployment.registry, run.folder.spec)


def maintain(run: StageRun) -> dict[str, dict[str, int]]:
    """The whole stage; who may not promote leaves the alias as it is.

    Returns:
        What was done, by function.
    """
    from perennial.operations import maintenance

    if run.deployment.settings.may_promote:
        align_alias(run)
    return maintenance.maintain(run.deployment, run.folder.spec, now=datetime.now(UTC))
