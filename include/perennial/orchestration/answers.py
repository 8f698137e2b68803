"""What people have said in Airflow, as Airflow itself tells it.

A worker's token may write the result of another task, and start a run in the name of the person who started its own. So where
tasks have identities (``docker-compose.yaml``), a task that changes the champion asks Airflow's API, as a user of its own: who
answered what, and whether a person has started the run. The embedded stack has one identity for everything, and asks nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from perennial.core.errors import PromotionRefused
from perennial.orchestration.runs import Run
from perennial.stack.airflow_api import AirflowApi

#: Airflow's user of the tasks that change the champion.
PROMOTER = "promoter"
#: How a run comes about if a person starts it. A task that starts one is ``operator``.
_BY_PEOPLE = ("ui", "rest_api", "cli")

#: The options of a question.
APPROVE, REJECT = "Approve", "Reject"


@contextmanager
def _airflow() -> Iterator[AirflowApi | None]:
    url, password = os.environ.get("PERENNIAL_AIRFLOW_URL"), os.environ.get("AIRFLOW_PROMOTER_PASSWORD")
    if not url or not password:
        yield None
        return
    with AirflowApi(url, PROMOTER, password) as api:
        yield api


def as_answer(user: str | None, chosen: object, words: object, answered_at: datetime) -> dict[str, Any]:
    """A person's answer to a question, as the ledger keeps it. Without a user, the time was up."""
    answer = "expired" if user is None else "approved" if chosen == [APPROVE] else "refused"
    return {
        "answer": answer,
        "approver": None if user is None else f"airflow:{user}",
        "words": str(words or ""),
        "answered_at": answered_at.isoformat(),
    }


def answer_to(run: Run, task_id: str, told: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The answer to a question of this run.

    Args:
        run: the run that asked.
        task_id: the task that asked.
        told: the task's result; None if nobody was asked.

    Raises:
        PromotionRefused: according to Airflow, nobody has answered.
    """
    if told is None:
        return None
    with _airflow() as api:
        if api is None:
            return told
        given = api.answer(str(run.context["dag"].dag_id), str(run.context["dag_run"].run_id), task_id)
    if given is None:
        raise PromotionRefused(f"{run.model}: the task {task_id} says {told.get('answer')}, but Airflow knows no answer to it")
    return as_answer(given.user, given.chosen, given.words, given.answered_at)


def actor(run: Run) -> str:
    """Who triggered the run, as the run says."""
    return f"airflow:{run.context['dag_run'].triggering_user_name or 'unknown'}"


def who_started(run: Run) -> str:
    """The person who has started this run.

    Raises:
        PromotionRefused: according to Airflow, no person has.
    """
    with _airflow() as api:
        if api is None:
            return actor(run)
        found = api.run(str(run.context["dag"].dag_id), str(run.context["dag_run"].run_id))
    if found.triggered_by not in _BY_PEOPLE or not found.user:
        by = found.triggered_by or "nobody known"
        raise PromotionRefused(
            f"{run.model}: this run was started by {by}, and only a person may change the champion by hand: start it in Airflow"
        )
    return f"airflow:{found.user}"
