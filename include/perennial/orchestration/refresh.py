"""The tasks of ``refresh`` and ``release``: the champion's recipe with newer rows, and what was held back."""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from perennial.core.errors import NothingToRefresh, StaleDecision
from perennial.orchestration.answers import actor, answer_to
from perennial.orchestration.approval import ASK
from perennial.orchestration.links import MLFLOW
from perennial.orchestration.queues import PROMOTE
from perennial.orchestration.runs import Window, stage_run
from perennial.orchestration.train import cause
from perennial.stages import refresh
from perennial.stages.promote import decided_of

log = logging.getLogger(__name__)


@task(multiple_outputs=False)
def fit_refresh(model: str, window: Window) -> dict[str, Any]:
    """Fit the champion's recipe on the rows up to now, and measure the model before it on the newest of them."""
    with stage_run(model, window=window) as run:
        calendar = run.whole if run.partition else None
        try:
            fitted = refresh.fit_refresh(run.stage, as_of=run.as_of, calendar=calendar)
        except NothingToRefresh as error:
            raise AirflowSkipException(str(error)) from error
        run.link(MLFLOW, run.deployment.registry.run_url(fitted.fitted.mlflow_run_id))
        return fitted.to_json()


@task(multiple_outputs=False, queue=PROMOTE)
def decide_refresh(model: str, refreshed: dict[str, Any]) -> dict[str, Any]:
    """Measure again from files and rows, let the gates of a refresh decide, and register the version with its evidence."""
    from perennial.training.refresh import Refreshed

    with stage_run(model) as run:
        try:
            confirmed = refresh.confirm(run.stage, Refreshed.from_json(refreshed))
        except (StaleDecision, NothingToRefresh) as error:
            raise AirflowSkipException(f"{error}. The next refresh is of the present champion") from error
        decided = refresh.decide_refresh(run.stage, confirmed)
        run.link(MLFLOW, run.deployment.registry.version_url(model, decided.version))
        return decided.to_json()


@task(multiple_outputs=False, trigger_rule="none_failed", queue=PROMOTE)
def promote_refresh(model: str, decided: dict[str, Any] | None, answer: dict[str, Any] | None = None) -> dict[str, Any]:
    """Make the refreshed version champion; or hold back its rows, or undo refreshes, and skip.

    Args:
        model: the model.
        decided: the result of ``decide_refresh``; None if there was nothing to refresh. Only which version it is counts.
        answer: the result of ``ask_approval``; None if no approval is required.
    """
    if decided is None:
        raise AirflowSkipException("there was nothing to refresh")
    with stage_run(model) as run:
        version = decided_of(run.stage, int(decided["version"]))
        run.link(MLFLOW, run.deployment.registry.version_url(model, version.version))
        try:
            outcome = refresh.promote_refresh(
                run.stage, version, cause=cause(run), actor=f"airflow:{run.context['dag'].dag_id}",
                answer=answer_to(run, ASK, answer),
            )  # fmt: skip
        except StaleDecision as error:
            raise AirflowSkipException(f"{error}. The next refresh is of the new champion") from error
        if outcome.became == "refused":
            raise AirflowSkipException(outcome.words)
        if outcome.became == "waiting":
            raise AirflowFailException(f"{outcome.words}, and nobody was asked: trigger {model}.refresh again")
        return {"champion": outcome.version}


@task(multiple_outputs=False)
def release(model: str) -> list[str]:
    """Release the data, and the refreshes, that the form names."""
    with stage_run(model) as run:
        params, released = run.params, []
        if params.get("start") or params.get("end"):
            released += refresh.release(run.stage, "data", run.whole, reason=params["reason"], actor=actor(run))
        if params.get("refreshes"):
            released += refresh.release(run.stage, "refreshes", None, reason=params["reason"], actor=actor(run))
        if not released:
            raise AirflowSkipException(f"nothing of {model} that the form names is held back")
        told = [f"{one.what} of {one.interval}" for one in released]
        log.info("released: %s", ", ".join(told))
        return told
