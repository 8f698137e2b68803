"""The judge asks Airflow what people have said, and does not believe tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from perennial.core.errors import PromotionRefused
from perennial.judge.people import JUDGE, People
from perennial.ledger.proposals import Proposal
from tests.unit.airflow_stand_in import AirflowStandIn, Serving

RUN = "manual__2026-01-01"
TOLD = {"answer": "approved", "approver": "airflow:ann", "words": "forged", "answered_at": "2026-01-03T00:00:00+00:00"}
#: The version was registered before it was asked about.
BEFORE = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def airflow() -> Iterator[AirflowStandIn]:
    """What Airflow says of its runs and questions, to its user of the judge alone."""
    said = AirflowStandIn(user=JUDGE, password="a-password-of-the-judge")
    serving = Serving(said)
    yield said
    serving.close()
    assert said.complaints == []


@pytest.fixture
def people(airflow: AirflowStandIn) -> People:
    return People({"PERENNIAL_AIRFLOW_URL": airflow.url, "AIRFLOW_JUDGE_PASSWORD": airflow.password})


def answer(people: People, told: dict[str, Any] | None = TOLD, *, registered_at: datetime = BEFORE) -> Mapping[str, Any] | None:
    return people.answer(proposal("train", answer=told), version=3, registered_at=registered_at, shown=ASKED[1])


def proposal(stage: str, **said: Any) -> Proposal:
    return Proposal(1, "a key", "toy", "a_step", f"toy.{stage}", RUN, said, BEFORE)


#: What the judge has given to be asked.
ASKED = "Make version 3 the champion of toy?", "It passed every gate."


def answered(
    airflow: AirflowStandIn, user: str | None, chosen: str, *, received: bool = True, question: tuple[str, str] = ASKED
) -> None:
    airflow.add_question(
        "toy.train", RUN, "ask_approval",
        response_received=received,
        responded_by_user={"id": "7", "name": user} if user else None,
        responded_at="2026-01-02T03:04:05Z",
        chosen_options=[chosen],
        subject=question[0],
        body=question[1],
        params_input={"words": "seen"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("user", "chosen", "expected"),
    [
        ("bob", "Approve", ("approved", "airflow:bob")),
        ("bob", "Reject", ("refused", "airflow:bob")),
        (None, "Reject", ("expired", None)),
        # A task can write an answer as nobody alone.
        (None, "Approve", ("expired", None)),
    ],
)
def test_the_answer_is_airflows_whatever_a_task_says(
    airflow: AirflowStandIn, people: People, user: str | None, chosen: str, expected: tuple[str, str]
) -> None:
    answered(airflow, user, chosen)
    found = answer(people)
    assert found is not None
    assert (found["answer"], found["approver"]) == expected
    assert found["answered_at"] == "2026-01-02T03:04:05+00:00"
    assert found["words"] == "seen"
    assert airflow.signed_in == [JUDGE]


def test_an_answer_that_airflow_does_not_know_promotes_nothing(airflow: AirflowStandIn, people: People) -> None:
    answered(airflow, None, "Approve", received=False)
    with pytest.raises(PromotionRefused, match="Airflow knows no answer to it"):
        answer(people)


@pytest.mark.parametrize(
    "question",
    [
        ("Make version 2 the champion of toy?", ASKED[1]),
        (ASKED[0], "It passed every gate, and is far better."),
        (ASKED[0], ""),
    ],
)
def test_an_answer_to_a_question_that_a_worker_has_changed_promotes_nothing(
    airflow: AirflowStandIn, people: People, question: tuple[str, str]
) -> None:
    answered(airflow, "bob", "Approve", question=question)
    with pytest.raises(PromotionRefused, match="is not the one about version 3 as the judge has measured it"):
        answer(people)


def test_an_answer_promotes_nothing_if_the_judge_has_given_no_question(airflow: AirflowStandIn, people: People) -> None:
    answered(airflow, "bob", "Approve")
    with pytest.raises(PromotionRefused, match="is not the one about version 3 as the judge has measured it"):
        people.answer(proposal("train", answer=TOLD), version=3, registered_at=BEFORE, shown=None)


def test_an_answer_does_not_count_for_a_version_that_was_registered_after_it(airflow: AirflowStandIn, people: People) -> None:
    answered(airflow, "bob", "Approve")
    with pytest.raises(PromotionRefused, match="registered later, so the question was about another one"):
        answer(people, registered_at=datetime(2026, 1, 2, 4, tzinfo=UTC))


def test_nobody_is_asked_where_no_approval_is_required(airflow: AirflowStandIn, people: People) -> None:
    assert answer(people, None) is None
    assert airflow.asked == []


def started(airflow: AirflowStandIn, triggered_by: str, user: str | None, conf: dict[str, Any] | None = None) -> None:
    airflow.runs.clear()
    airflow.add_run(
        "toy.promote", RUN, "running", run_type="manual", triggered_by=triggered_by, triggering_user_name=user, conf=conf or {}
    )


def test_a_run_that_a_task_has_started_in_a_persons_name_changes_nothing(airflow: AirflowStandIn, people: People) -> None:
    started(airflow, "ui", "ann", {"version": 3})
    # The form is the one that the person has filled in, and not what the task says.
    assert people.starter(proposal("promote", actor="airflow:eve", form={"version": 7})) == ("airflow:ann", {"version": 3})
    for by, user in (("operator", "ann"), ("rest_api", None), ("timetable", None)):
        started(airflow, by, user)
        with pytest.raises(PromotionRefused, match="only a person may change the champion by hand"):
            people.starter(proposal("promote", actor="airflow:ann", form={"version": 7}))


def test_the_embedded_stack_has_one_identity_and_believes_its_tasks() -> None:
    people = People({})
    assert answer(people) == TOLD
    said = {"actor": "airflow:ann", "form": {"version": 7}}
    assert people.starter(proposal("promote", **said)) == ("airflow:ann", {"version": 7})
