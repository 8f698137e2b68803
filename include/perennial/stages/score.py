"""Score: from published features to published predictions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perennial.core import logs
from perennial.core.errors import VersionUnusable
from perennial.core.intervals import Interval
from perennial.stages.run import StageRun, declare_unusable

if TYPE_CHECKING:
    from perennial.monitoring.shadowing import ShadowScored
    from perennial.scoring.publish import Scored

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resolved:
    """The versions that score an interval.

    Attributes:
        version: the champion, or a former champion that was not trained on these rows.
        shadows: the champion's shadow versions.
    """

    version: int
    shadows: list[int]


def resolve_champion(run: StageRun, interval: Interval) -> Resolved:
    """Choose the versions that score, once per run, so that every attempt of every step uses the same versions.

    Raises:
        NoChampion: no version has been promoted yet.
    """
    from perennial.scoring import champion
    from perennial.scoring.challengers import resolve_shadows

    registry, ledger = run.deployment.registry, run.deployment.ledger
    version = champion.resolve_champion(
        registry, ledger, run.model, interval, can_score=lambda version: _can_score(run, interval, version)
    )
    return Resolved(version, resolve_shadows(run.folder.spec, ledger, interval, champion=version))


def _can_score(run: StageRun, interval: Interval, version: int) -> bool:
    """Whether a former champion can still be used for an interval."""
    from perennial.registry.folders import own_features, own_folder

    try:
        run.deployment.registry.load(run.model, version, spec=run.folder.spec)
        own = own_folder(run.deployment.registry, version, run.folder)
        # Its own SQL may fail on these rows, so its features are made.
        own_features(own, run.deployment.lake, interval, run_id=run.run_id)
    except VersionUnusable as error:
        log.warning("version %d does not score %s: %s", version, interval, error)
        return False
    return True


def predict(run: StageRun, interval: Interval, *, version: int) -> Scored:
    """Predict an interval in chunks, and publish the predictions to the lake and the predictions database.

    Raises:
        ScoringError: features are missing, or the predictions cannot be published.
        VersionUnusable: the version can never score here again; people are told.
        ArtifactRejected: the stored model is not what was registered.
        Superseded: a later run has taken over.
    """
    from perennial.scoring import publish

    logs.resolved(version=version)
    try:
        return publish.score(
            run.folder,
            run.deployment,
            interval,
            version=version,
            order=run.deployment.ledger.next_order(run.model, "predictions", interval, run.run_id),
            run_id=run.run_id,
            sink_url=run.deployment.settings.predictions_url,
        )
    except VersionUnusable as error:
        declare_unusable(run, version, str(error))
        raise


def score_shadows(
    run: StageRun, interval: Interval, *, version: int, shadows: Sequence[int], features_snapshot: int
) -> ShadowScored:
    """Predict the rows that the champion has predicted with its shadow versions.

    Args:
        run: the run.
        interval: the interval that was scored.
        version: the version that scored it.
        shadows: the shadow versions.
        features_snapshot: the snapshot of the features that the version read.

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
        What the champion predicted, and what its shadow versions predicted; None if there are no shadow versions.

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
