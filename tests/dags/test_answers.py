"""A task that changes the champion asks Airflow what people have said, and does not believe other tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from perennial.core.errors import PromotionRefused
from perennial.orchestration.answers import answer_to, who_started

RUN = "manual__2026-01-01"
TOLD = {"answer": "approved", "approver": "airflow:ann", "words": "forged", "answered_at": "2026-01-01T00:00:00+00:00"}


class Airflow:
    """Airflow's API, as far as it is asked: what it says, and who asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        airflow = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                airflow.asked.append(f"{said['username']} {self.path}")
                self.give({"access_token": "a-token"}, 201)

            def do_GET(self) -> None:
                if self.headers["Authorization"] != "Bearer a-token":
                    self.give({"detail": "sign in"}, 401)
                    return
                airflow.asked.append(self.path)
                self.give(airflow.answers[self.path.removeprefix("/api/v2")])

            def give(self, answer: Any, status: int = 200) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Airflow]:
    served = Airflow()
    Thread(target=served.server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PERENNIAL_AIRFLOW_URL", served.url)
    monkeypatch.setenv("AIRFLOW_PROMOTER_PASSWORD", "a-password-of-the-promoter")
    yield served
    served.server.shutdown()
    served.server.server_close()


def run_of(dag_id: str) -> Any:
    dag_run = SimpleNamespace(run_id=RUN, triggering_user_name="ann")
    return SimpleNamespace(model="toy", context={"dag": SimpleNamespace(dag_id=dag_id), "dag_run": dag_run})


def answered(user: str | None, chosen: str, words: str = "seen") -> dict[str, Any]:
    return {
        "response_received": True,
        "responded_by_user": {"id": "7", "name": user} if user else None,
        "responded_at": "2026-01-02T03:04:05Z",
        "chosen_options": [chosen],
        "params_input": {"words": words},
    }


QUESTION = f"/dags/toy.train/dagRuns/{RUN}/taskInstances/ask_approval/-1/hitlDetails"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answered("bob", "Approve"), ("approved", "airflow:bob")),
        (answered("bob", "Reject"), ("refused", "airflow:bob")),
        (answered(None, "Reject"), ("expired", None)),
        # A task can write an answer as nobody alone.
        (answered(None, "Approve"), ("expired", None)),
    ],
)
def test_the_answer_is_airflows_whatever_a_task_says(
    airflow: Airflow, given: dict[str, Any], expected: tuple[str, str]
) -> None:
    airflow.answers[QUESTION] = given
    found = answer_to(run_of("toy.train"), "ask_approval", TOLD)
    assert found is not None
    assert (found["answer"], found["approver"]) == expected
    assert found["answered_at"] == "2026-01-02T03:04:05+00:00"
    assert found["words"] == "seen"
    assert airflow.asked[0].startswith("promoter ")


def test_an_answer_that_airflow_does_not_know_promotes_nothing(airflow: Airflow) -> None:
    airflow.answers[QUESTION] = {**answered(None, "Approve"), "response_received": False}
    with pytest.raises(PromotionRefused, match="Airflow knows no answer to it"):
        answer_to(run_of("toy.train"), "ask_approval", TOLD)


def test_nobody_is_asked_where_no_approval_is_required(airflow: Airflow) -> None:
    assert answer_to(run_of("toy.train"), "ask_approval", None) is None
    assert airflow.asked == []


def started(triggered_by: str, user: str | None) -> dict[str, Any]:
    return {
        "dag_id": "toy.promote", "dag_run_id": RUN, "state": "running", "run_type": "manual", "partition_key": None,
        "queued_at": None, "start_date": None, "end_date": None, "triggered_by": triggered_by, "triggering_user_name": user,
    }  # fmt: skip


def test_a_run_that_a_task_has_started_in_a_persons_name_changes_nothing(airflow: Airflow) -> None:
    path = f"/dags/toy.promote/dagRuns/{RUN}"
    airflow.answers[path] = started("ui", "ann")
    assert who_started(run_of("toy.promote")) == "airflow:ann"
    for by, user in (("operator", "ann"), ("rest_api", None), ("timetable", None)):
        airflow.answers[path] = started(by, user)
        with pytest.raises(PromotionRefused, match="only a person may change the champion by hand"):
            who_started(run_of("toy.promote"))


def test_the_embedded_stack_has_one_identity_and_believes_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERENNIAL_AIRFLOW_URL", raising=False)
    monkeypatch.delenv("AIRFLOW_PROMOTER_PASSWORD", raising=False)
    assert answer_to(run_of("toy.train"), "ask_approval", TOLD) == TOLD
    assert who_started(run_of("toy.promote")) == "airflow:ann"
