"""What becomes of a version that was trained, by the gates' word and by a person's answer."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from perennial.core.errors import PromotionRefused
from perennial.evidence.decision import GateDecision
from perennial.stages.promote import Decided, announce_question, promote_by_hand, promote_champion
from perennial.stages.run import StageRun
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

ANSWER = {"answer": "approved", "approver": "airflow:Ann", "words": "fine", "answered_at": "2013-04-01T12:00:00+00:00"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Its model wants an approval."""
    return make_world(
        tmp_path, synthetic.deployment(tmp_path), approval="owner: testers => owner: testers\npromotion: approval"
    )


def decided(world: World) -> Decided:
    version = world.register()
    record = world.ledger.version("toy", version)
    assert record is not None
    return Decided(version, synthetic.judge(synthetic.evaluation_of()), None, {"MLflow": "http://mlflow/1"}, "side by side")


def run(world: World) -> StageRun:
    return StageRun(world.folder, world.deployment, "manual", "toy.train/manual")


def test_an_approval_promotes_in_the_name_of_who_gave_it(world: World) -> None:
    version = decided(world)

    outcome = promote_champion(run(world), version, cause="calendar", actor="airflow:toy.train", answer=ANSWER)

    assert outcome.became == "champion"
    [made] = world.ledger.promotions("toy")
    assert (made.actor, made.run_id) == ("airflow:Ann", "toy.train/manual")
    assert made.reason.startswith("calendar; ")
    assert made.evidence["approval"] == ANSWER
    [approval] = world.ledger.approvals("toy", version.version)
    assert (approval.answer, approval.approver) == ("approved", "airflow:Ann")


@pytest.mark.parametrize("answer", [{**ANSWER, "answer": "refused"}, {**ANSWER, "answer": "expired", "approver": None}])
def test_no_approval_leaves_the_version_refused(world: World, answer: dict[str, str | None]) -> None:
    version = decided(world)

    outcome = promote_champion(run(world), version, cause="calendar", actor="airflow:toy.train", answer=answer)

    assert outcome.became == "refused"
    assert outcome.words.startswith("toy version 1 does not become champion: ")
    assert world.ledger.champion("toy") is None
    with pytest.raises(PromotionRefused, match="it was not approved"):
        promote_by_hand(run(world), version.version, override=None, actor="by hand: ann")


def test_nobody_was_asked_so_it_waits(world: World) -> None:
    outcome = promote_champion(run(world), decided(world), cause="by hand", actor="by hand: ann")

    assert outcome.became == "waiting"
    assert world.ledger.promotions("toy") == []
    assert [entry.alert.kind for entry in world.ledger.alerts()] == []


def test_what_the_gates_refuse_nobody_is_asked_about(world: World) -> None:
    version = decided(world)
    refused: GateDecision = synthetic.judge(synthetic.evaluation_of(auc=0.4))
    bad = Decided(version.version, refused, None, {}, "")

    outcome = promote_champion(run(world), bad, cause="by hand", actor="by hand: ann", answer=ANSWER)

    assert outcome.became == "refused"
    assert outcome.words == f"toy version 1 is refused: {refused.reasons[0]}"
    assert world.ledger.approvals("toy", 1) == []


def test_a_question_is_told_once_with_where_it_is_answered(world: World) -> None:
    version = decided(world)
    for _ in range(2):
        announce_question(run(world), version, until=datetime(2013, 4, 4, tzinfo=UTC), page="http://airflow/answer")

    [entry] = world.ledger.alerts()
    assert entry.alert.kind == "approval_wanted"
    assert dict(entry.alert.links)["Answer"] == "http://airflow/answer"


def test_what_is_handed_on_is_the_same_after_json(world: World) -> None:
    version = decided(world)
    assert Decided.from_json(version.to_json()) == version
    assert set(version.to_json()) == {"version", "decision", "expected", "links", "comparison"}
