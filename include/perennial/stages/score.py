"""Score: from published features to published predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perennial.core import logs
from perennial.core.intervals import Interval
from perennial.stages.run import StageRun

if TYPE_CHECKING:
    from perennial.monitoring.shadowing import ShadowScored
    from perennial.scoring.publish import Scored


@dataclass(frozen=True)
class Resolved:
    """Who scores an interval.

    Attributes:
        version: the champion's number, or that of a former one which cannot have learned from these rows.
        shadows: the versions in its shadow.
    """

    version: int
    shadows: list[int]


def resolve_champion(run: StageRun, interval: Interval) -> Resolved:
    """Resolve once, by number, who scores, so that every attempt of every step uses the same versions.

    Raises:
        NoChampion: no version has been promoted yet.
    """
    from perennial.monitoring.shadowing import resolve_shadows
    from perennial.scoring import champion

    registry, ledger = run.deployment.registry, run.deployment.ledger
    version = champion.resolve_champion(registry, ledger, run.model, interval)
    return Resolved(version, resolve_shadows(run.folder.spec, ledger, interval, champion=version))


def predict(run: StageRun, interval: Interval, *, version: int) -> Scored:
    """Predict an interval in chunks, and publish to the lake and to the predictions database.

    Raises:
        ScoringError: features are missing, or the predictions cannot be published.
        ArtifactRejected: the stored model is not what was registered.
        Superseded: a later run has taken over.
    """
    from perennial.scoring import publish

    logs.resolved(version=version)
    return publish.score(
        run.folder,
        run.deployment,
        interval,
        version=version,
        order=run.deployment.ledger.next_order(run.model, "predictions", interval, run.run_id),
        run_id=run.run_id,
        sink_url=run.deployment.settings.predictions_url,
    )


def score_shadows(
    run: StageRun, interval: Interval, *, version: int, shadows: Sequence[int], features_snapshot: int
) -> ShadowScored:
    """Let the versions in the champion's shadow predict the rows that it has predicted.

    Args:
        run: the run.
        interval: what was scored.
        version: who scored it.
        shadows: the versions in its shadow.
        features_snapshot: what it read.

    Raises:
        Superseded: a later run has taken over.
    """
    from perennial.monitoring import shadowing

    logs.resolved(version=version)
    return shadowing.score_shadows(
        run.folder,
        run.deployment,
        interval,
        champion=version,
        versions=shadows,
        features_snapshot=features_snapshot,
        order=run.deployment.ledger.next_order(run.model, shadowing.DATASET, interval, run.run_id),
        run_id=run.run_id,
    )


def score(run: StageRun, interval: Interval) -> tuple[Scored, ShadowScored | None]:
    """The whole stage.

    Returns:
        What the champion predicted, and what its shadows did; None if there are none.

    Raises:
        NoChampion: no version has been promoted yet.
        ScoringError, ArtifactRejected, Superseded: see :func:`predict`.
    """
    who = resolve_champion(run, interval)
    scored = predict(run, interval, version=who.version)
    if not who.shadows:
        return scored, None
    return scored, score_shadows(
        run, interval, version=who.version, shadows=who.shadows, features_snapshot=scored.features_snapshot
    )
