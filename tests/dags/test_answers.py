"""A task that changes the champion asks Airflow what people have said, and does not believe other tasks."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from perennial.core.errors import PromotionRefused
from perennial.orchestration.answers import answer_to, who_started
from tests.unit.airflow_stand_in import AirflowStandIn, Serving

RUN = "manual__2026-01-01"
TOLD = {"answer": "approved", "approver": "airflow:ann", "words": "forged", "answered_at": "2026-01-01T00:00:00+00:00"}


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[AirflowStandIn]:
    """What Airflow says of its runs and questions, to its user of the promoter alone."""
    said = AirflowStandIn(user="promoter", password="a-password-of-the-promoter")
    serving = Serving(said)
    monkeypatch.setenv("PERENNIAL_AIRFLOW_URL", said.url)
    monkeypatch.setenv("AIRFLOW_PROMOTER_PASSWORD", said.password)
    yield said
    serving.close()
    assert said.complaints == []


def run_of(dag_id: str) -> Any:
    dag_run = SimpleNamespace(run_id=RUN, triggering_user_name="ann")
    return SimpleNamespace(model="toy", context={"dag": SimpleNamespace(dag_id=dag_id), "dag_run": dag_run})


def answered(airflow: AirflowStandIn, user: str | None, chosen: str, *, received: bool = True) -> None:
    airflow.add_question(
        "toy.train", RUN, "ask_approval",
        response_received=received,
        responded_by_user={"id": "7", "name": user} if user else None,
        responded_at="2026-01-02T03:04:05Z",
        chosen_options=[chosen],
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
    airflow: AirflowStandIn, user: str | None, chosen: str, expected: tuple[str, str]
) -> None:
    answered(airflow, user, chosen)
    found = answer_to(run_of("toy.train"), "ask_approval", TOLD)
    assert found is not None
    assert (found["answer"], found["approver"]) == expected
    assert found["answered_at"] == "2026-01-02T03:04:05+00:00"
    assert found["words"] == "seen"
    assert airflow.signed_in == ["promoter"]


def test_an_answer_that_airflow_does_not_know_promotes_nothing(airflow: AirflowStandIn) -> None:
    answered(airflow, None, "Approve", received=False)
    with pytest.raises(PromotionRefused, match="Airflow knows no answer to it"):
        answer_to(run_of("toy.train"), "ask_approval", TOLD)


def test_nobody_is_asked_where_no_approval_is_required(airflow: AirflowStandIn) -> None:
    assert answer_to(run_of("toy.train"), "ask_approval", None) is None
    assert airflow.asked == []


def started(airflow: AirflowStandIn, triggered_by: str, user: str | None) -> None:
    airflow.runs.clear()
    airflow.add_run("toy.promote", RUN, "running", run_type="manual", triggered_by=triggered_by, triggering_user_name=user)


def test_a_run_that_a_task_has_started_in_a_persons_name_changes_nothing(airflow: AirflowStandIn) -> None:
    started(airflow, "ui", "ann")
    assert who_started(run_of("toy.promote")) == "airflow:ann"
    for by, user in (("operator", "ann"), ("rest_api", None), ("timetable", None)):
        started(airflow, by, user)
        with pytest.raises(PromotionRefused, match="only a person may change the champion by hand"):
            who_started(run_of("toy.promote"))


def test_the_embedded_stack_has_one_identity_and_believes_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERENNIAL_AIRFLOW_URL", raising=False)
    monkeypatch.delenv("AIRFLOW_PROMOTER_PASSWORD", raising=False)
    assert answer_to(run_of("toy.train"), "ask_approval", TOLD) == TOLD
    assert who_started(run_of("toy.promote")) == "airflow:ann"
