"""Materialize: from published features to the online table."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from perennial.stages.run import StageRun

if TYPE_CHECKING:
    from perennial.serving.materialize import Materialized


def materialize(run: StageRun) -> Materialized:
    """The whole stage: the rows of the champion, of the versions in its shadow, and of the folder as it is now.

    Raises:
        SpecError: the model is not asked by key, or its features cannot be made.
        SnapshotMissing, ScoringError: there are no features.
        Superseded: an entity is being erased; start a new run.
        ServingError: the predictions database refused the rows.
    """
    from perennial.scoring.challengers import resolve_shadows
    from perennial.serving.materialize import materialize, newest_day

    ledger, spec = run.deployment.ledger, run.folder.spec
    champion = ledger.champion(run.model)
    versions: list[int] = []
    if champion is not None:
        day = newest_day(run.folder, run.deployment.lake)
        versions = [champion, *resolve_shadows(spec, ledger, day, champion=champion)]
    return materialize(run.folder, run.deployment, versions=versions, now=datetime.now(UTC), run_id=run.run_id)
