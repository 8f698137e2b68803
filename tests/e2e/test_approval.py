"""A person is asked before a version becomes champion, by real Airflow runs in the real stack."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import pytest

from perennial.core.errors import StackError
from perennial.stack.airflow_api import DagRun
from tests.living import PATIENCE, Living

pytestmark = pytest.mark.stack

ASKED, HASTY = "energy_asked", "energy_hasty"


def run(living: Living, model: str, stage: str, conf: dict[str, Any]) -> DagRun:
    living.api.unpause(f"{model}.{stage}")
    return living.api.trigger(f"{model}.{stage}", conf=conf)


def done(living: Living, started: DagRun) -> DagRun:
    return living.api.wait(started, patience=PATIENCE, check=living.stack.check)


def load_history(living: Living, model: str) -> None:
    if living.deployment.ledger.published(model, "features") is None:
        conf = {"start": "2024-01-01", "end": "2024-01-17", "announce_scoring": False, "announce_training": False}
        assert done(living, run(living, model, "ingest", conf)).state == "success"


def train(living: Living, model: str, as_of: str) -> DagRun:
    """A training run that waits for a person."""
    started = run(living, model, "train", {"as_of": as_of})
    deadline = time.monotonic() + PATIENCE
    while {task.task_id: task.state for task in living.api.task_instances(started)}.get("ask_approval") != "awaiting_input":
        living.stack.check()
        assert not living.api.run(started.dag_id, started.run_id).ended, living.api.failure(started)
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # An answer that comes before Airflow has noticed that the asking process has ended, it takes for a crash, and asks again.
    told = living.stack.state / "logs" / "scheduler.log"
    while not any(
        "Received executor event" in line and "'ask_approval'" in line and started.run_id in line
        for line in told.read_text(encoding="utf-8").splitlines()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return started


def details(started: DagRun) -> str:
    return f"/dags/{started.dag_id}/dagRuns/{quote(started.run_id, safe='')}/taskInstances/ask_approval/-1/hitlDetails"


def answer(living: Living, started: DagRun, option: str, words: str) -> None:
    living.api._call("PATCH", details(started), json={"chosen_options": [option], "params_input": {"words": words}})


@pytest.fixture(scope="module", autouse=True)
def hasty(living: Living) -> DagRun:
    """A run that nobody will answer; its minute passes while the others are tested."""
    load_history(living, HASTY)
    return train(living, HASTY, "2024-01-17")


def test_a_version_waits_for_approval_and_is_promoted_with_the_approvers_words(living: Living) -> None:
    load_history(living, ASKED)
    ledger, registry = living.deployment.ledger, living.deployment.registry
    waiting = train(living, ASKED, "2024-01-17")
    assert registry.champion(ASKED) is None
    asked = living.api._call("GET", details(waiting))
    assert asked["subject"] == f"Make version 1 the champion of {ASKED}?"
    # Letter by letter, since an answer to another question does not count.
    given = ledger.values_of_run(waiting.dag_id, waiting.run_id)
    assert [asked["body"]] == [value["comparison"] for value in given]
    assert "| **rmse** |" in asked["body"]
    assert "/versions/1" in asked["body"]
    assert "card.html" in asked["body"]

    answer(living, waiting, "Approve", "compared both on the holdout")

    assert done(living, waiting).state == "success"
    assert registry.champion(ASKED) == 1
    [approval] = ledger.approvals(ASKED)
    assert (approval.version, approval.answer, approval.words) == (1, "approved", "compared both on the holdout")
    [made] = ledger.promotions(ASKED)
    assert made.actor == approval.approver == "airflow:admin"
    assert made.evidence["approval"]["words"] == "compared both on the holdout"
    assert "compared both on the holdout" in made.reason


def test_a_version_that_a_person_refuses_leaves_the_champion_and_only_an_override_promotes_it(living: Living) -> None:
    ledger, registry = living.deployment.ledger, living.deployment.registry
    load_history(living, ASKED)
    waiting = train(living, ASKED, "2024-01-17")
    before, version = registry.champion(ASKED), ledger.versions(ASKED)[-1].version

    answer(living, waiting, "Reject", "too early in the year")

    assert done(living, waiting).state == "success"
    assert registry.champion(ASKED) == before
    assert ledger.approvals(ASKED, version)[-1].told == "refused by airflow:admin: too early in the year"
    told = registry._version(ASKED, version)
    assert told.tags["perennial.status"] == "refused"
    assert told.description.startswith("Refused by airflow:admin: too early in the year\n")

    # That it needs an override is an answer, and no failure.
    assert done(living, run(living, ASKED, "promote", {"version": version})).state == "success"
    assert registry.champion(ASKED) == before
    overridden = run(living, ASKED, "promote", {"version": version, "override": "asked in person"})
    assert done(living, overridden).state == "success"
    assert registry.champion(ASKED) == version
    made = ledger.promotions(ASKED)[-1]
    assert (made.action, made.reason, made.actor) == ("override", "asked in person", "airflow:admin")
    assert registry._version(ASKED, version).tags["perennial.override_reason"] == "asked in person (airflow:admin)"


def test_an_approval_that_nobody_gives_in_time_leaves_the_champion(living: Living, hasty: DagRun) -> None:
    ledger, registry = living.deployment.ledger, living.deployment.registry

    ended = done(living, hasty)

    assert ended.state == "success"
    assert registry.champion(HASTY) is None
    [approval] = ledger.approvals(HASTY)
    assert (approval.answer, approval.approver) == ("expired", None)
    assert registry._version(HASTY, approval.version).description.startswith("Refused: nobody answered until")
    with pytest.raises(StackError):
        answer(living, ended, "Approve", "too late")
