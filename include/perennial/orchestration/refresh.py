"""The tasks of ``refresh`` and ``release``: the champion's recipe with newer rows, and what was held back."""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowSkipException

from perennial.core.errors import NothingToRefresh
from perennial.orchestration.judged import judged
from perennial.orchestration.links import MLFLOW
from perennial.orchestration.runs import Window, stage_run
from perennial.orchestration.train import cause
from perennial.stages import refresh

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


@judged()
def decide_refresh(model: str, refreshed: dict[str, Any]) -> dict[str, Any]:
    """Measure again from files and rows, let the gates of a refresh decide, and register the version with its evidence."""
    with stage_run(model):
        return {"refreshed": refreshed}


@judged(trigger_rule="none_failed")
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
        return {"version": decided["version"], "answer": answer, "cause": cause(run)}


@task(multiple_outputs=False)
def release(model: str) -> list[str]:
    """Release the data, and the refreshes, that the form names."""
    with stage_run(model) as run:
        params, released = run.params, []
        if params.get("start") or params.get("end"):
            released += refresh.release(run.stage, "data", run.whole, reason=params["reason"], actor=run.actor)
        if params.get("refreshes"):
            released += refresh.release(run.stage, "refreshes", None, reason=params["reason"], actor=run.actor)
        if not released:
            raise AirflowSkipException(f"nothing of {model} that the form names is held back")
        told = [f"{one.what} of {one.interval}" for one in released]
        log.info("released: %s", ", ".join(told))
        return told
