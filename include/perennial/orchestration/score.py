"""The tasks of ``score``: from published features to published predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowSkipException

from perennial.core.private_parts import add_partitions_in_order, withhold_event
from perennial.orchestration.links import MLFLOW
from perennial.orchestration.runs import stage_run
from perennial.stages import score


@task(multiple_outputs=False)
def resolve_champion(model: str) -> list[dict[str, Any]]:
    """Look up who scores: for each part of the run's days, the numbers of the champion and of the versions in its shadow.

    Every try of every task of the run uses the same versions.
    """
    from perennial.core.errors import NoChampion

    with stage_run(model) as run:
        try:
            who = score.resolve_champion(run.stage, run.interval)
        except NoChampion as error:
            raise AirflowSkipException(str(error)) from error
        run.link(MLFLOW, run.deployment.registry.version_url(model, who.version))
        return [{"part": part.key, "version": who.version, "shadows": who.shadows} for part in run.parts]


@task(multiple_outputs=False)
def predict(model: str, work: dict[str, Any], *, outlet_events: Any = None) -> dict[str, Any] | None:
    """Predict a part's days in chunks and publish to the lake and to the SQL sink.

    Returns:
        The work for the versions in the shadow; None if there are none. Airflow makes one task of ``score_shadows`` for each
        result that is not None.
    """
    from perennial.orchestration import assets

    with stage_run(model, part=work["part"]) as run:
        scored = score.predict(run.stage, run.interval, version=work["version"])
        event = outlet_events[assets.predictions(model)]
        event.extra = scored.to_json()
        if not is_monitored(run.context["triggering_asset_events"]):
            withhold_event(run.context["ti"], assets.predictions(model))
        elif run.partition is None:
            add_partitions_in_order(event, [day.key for day in run.interval.days()])
        run.note(f"{run.interval.in_words}: scored by v{work['version']}")
        return {**work, "features_snapshot": scored.features_snapshot} if work["shadows"] else None


def is_monitored(announcements: Mapping[Any, Sequence[Any]]) -> bool:
    """Whether monitoring follows the scoring: unless every announcement that started it says otherwise.

    Args:
        announcements: the events that started the run, by asset; none if a person started it.
    """
    told = [event.extra.get("monitoring", True) for events in announcements.values() for event in events]
    return any(told) or not told


@task(multiple_outputs=False)
def score_shadows(model: str, work: dict[str, Any]) -> dict[str, Any]:
    """Let the versions in the champion's shadow predict the rows that the champion predicted."""
    with stage_run(model, part=work["part"]) as run:
        return score.score_shadows(
            run.stage,
            run.interval,
            version=work["version"],
            shadows=work["shadows"],
            features_snapshot=work["features_snapshot"],
        ).to_json()
