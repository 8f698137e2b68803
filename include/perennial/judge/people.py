"""What people have said in Airflow, as Airflow itself tells it.

A worker's token may write the result of another task, and start a run in the name of the person who started its own. So where
processes have identities (``docker-compose.yaml``), the judge asks Airflow's API, as a user of its own: who answered what, who
has started a run, and with which form. The embedded stack has one identity for everything, and believes the proposal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from perennial.core.errors import PromotionRefused
from perennial.core.intervals import utc
from perennial.ledger.proposals import Proposal
from perennial.stack.airflow_api import AirflowApi

#: The judge's user in Airflow, a Viewer.
JUDGE = "judge"
#: How a run comes about if a person starts it. A task that starts one is ``operator``.
_BY_PEOPLE = ("ui", "rest_api", "cli")

#: The task that asks, and the options of its question.
ASK, APPROVE, REJECT = "ask_approval", "Approve", "Reject"


def subject(model: str, version: int | str) -> str:
    """What a person is asked about a version."""
    return f"Make version {version} the champion of {model}?"


def as_answer(user: str | None, chosen: object, words: object, answered_at: datetime) -> dict[str, Any]:
    """A person's answer to a question, as the ledger keeps it. Without a user, the time was up."""
    answer = "expired" if user is None else "approved" if chosen == [APPROVE] else "refused"
    return {
        "answer": answer,
        "approver": None if user is None else f"airflow:{user}",
        "words": str(words or ""),
        "answered_at": answered_at.isoformat(),
    }


class People:
    """What people have said about the run of a proposal.

    Args:
        environment: ``PERENNIAL_AIRFLOW_URL`` and ``AIRFLOW_JUDGE_PASSWORD`` say where Airflow is asked. Without them, the
            proposal is believed.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._url, self._password = environment.get("PERENNIAL_AIRFLOW_URL"), environment.get("AIRFLOW_JUDGE_PASSWORD")

    @contextmanager
    def _airflow(self) -> Iterator[AirflowApi | None]:
        if not self._url or not self._password:
            yield None
            return
        with AirflowApi(self._url, JUDGE, self._password) as api:
            yield api

    def answer(
        self, proposal: Proposal, *, version: int, registered_at: datetime, shown: str | None
    ) -> Mapping[str, Any] | None:
        """The answer to the question about the version of a proposal; None if nobody was asked.

        A worker writes the question into Airflow. So the answer counts only if the question was the judge's own.

        Args:
            proposal: in ``answer``, it says what the task was told.
            version: the version.
            registered_at: when the version was registered, which came before the question.
            shown: the comparison that the judge has given to be shown; None if it has given none in this run.

        Raises:
            PromotionRefused: according to Airflow, nobody has answered, or the answer is to another question.
        """
        told: Mapping[str, Any] | None = proposal.said.get("answer")
        if told is None:
            return None
        with self._airflow() as api:
            given = None if api is None else api.answer(proposal.dag_id, proposal.run_id, ASK)
            if api is not None:
                if given is None:
                    raise PromotionRefused(
                        f"{proposal.model}: the task {ASK} says {told.get('answer')}, but Airflow knows no answer to it"
                    )
                if (given.subject, given.body) != (subject(proposal.model, version), shown):
                    raise PromotionRefused(
                        f"{proposal.model}: the question that was answered in run {proposal.run_id} is not the one about "
                        f"version {version} as the judge has measured it: somebody has changed it in Airflow, so the answer "
                        f"does not count. Look at version {version} in MLflow, and clear {ASK} to ask again"
                    )
                told = as_answer(given.user, given.chosen, given.words, given.answered_at)
        if utc(told["answered_at"]) < registered_at:
            raise PromotionRefused(
                f"{proposal.model}: the answer in run {proposal.run_id} is of {told['answered_at']}, and the version was "
                f"registered later, so the question was about another one: clear {ASK}, and it is asked again"
            )
        return told

    def starter(self, proposal: Proposal) -> tuple[str, Mapping[str, Any]]:
        """The person who has started the run of a proposal, and the form that the person filled in.

        Raises:
            PromotionRefused: according to Airflow, no person has started it.
        """
        with self._airflow() as api:
            if api is None:
                return str(proposal.said["actor"]), proposal.said["form"]
            found = api.run(proposal.dag_id, proposal.run_id)
        if found.triggered_by not in _BY_PEOPLE or not found.user:
            by = found.triggered_by or "nobody known"
            raise PromotionRefused(
                f"{proposal.model}: this run was started by {by}, and only a person may change the champion by hand: start it "
                "in Airflow"
            )
        return f"airflow:{found.user}", found.conf
