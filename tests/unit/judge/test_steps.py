"""What the judge does with proposals, and what it refuses whatever a worker writes into them."""

from __future__ import annotations

from typing import Any

import pytest

from perennial.judge.people import People
from perennial.judge.service import rule
from perennial.judge.steps import STEPS, Ruled
from tests.unit.monitored import World


def asked(world: World, step: str, *, dag_id: str | None = None, run_id: str = "manual", **said: Any) -> Ruled:
    dag = dag_id or f"toy.{STEPS[step][0]}"
    number = world.ledger.propose(
        f"{dag}/{run_id}/{step}/1", model="toy", step=step, dag_id=dag, run_id=run_id, said=said
    )  # fmt: skip
    return rule(world.deployment, world.ledger.proposal(number), People({}))


def by_hand(**form: Any) -> dict[str, Any]:
    return {"form": form, "actor": "airflow:ann"}


def test_a_person_rolls_back_and_promotes(world: World) -> None:
    done = asked(world, "roll_back", **by_hand(reason="it is worse", version=None))
    assert (done.outcome, done.value["champion"]) == ("done", 1)
    assert world.ledger.champion("toy") == 1
    assert world.ledger.promotions("toy")[-1].actor == "airflow:ann"
    done = asked(world, "promote_by_hand", **by_hand(version=2, override="it was better all the same"))
    assert (done.outcome, done.value) == ("done", {"champion": 2, "action": "override"})
    assert world.ledger.promotions("toy")[-1].reason == "it was better all the same"


def test_what_cannot_be_cured_fails_at_once_with_the_reason(world: World) -> None:
    done = asked(world, "roll_back", **by_hand(reason="it is worse", version=7))
    assert (done.outcome, done.words[:21]) == ("refused", "NoChampion: toy versi")
    assert world.ledger.champion("toy") == 2


def test_a_promotion_that_needs_an_override_is_an_answer_and_no_failure(world: World) -> None:
    done = asked(world, "promote_by_hand", **by_hand(version=1, override=None))
    assert done.outcome == "skipped"
    assert "--override REASON" in done.words
    assert world.ledger.champion("toy") == 2


def test_a_version_that_is_not_there_is_told_to_who_asked_for_it(world: World) -> None:
    done = asked(world, "promote_by_hand", **by_hand(version=7, override="because"))
    assert (done.outcome, done.words[:18]) == ("refused", "ArtifactRejected: ")


@pytest.mark.parametrize(
    ("step", "dag_id"),
    [
        ("run_anything", "toy.train"),
        ("roll_back", "toy.promote"),
        # A run of another model that a person has started.
        ("promote_by_hand", "other.promote"),
        ("promote_champion", "toy.monitor"),
    ],
)
def test_a_run_asks_for_the_steps_of_its_own_stage_and_model(world: World, step: str, dag_id: str) -> None:
    done = asked(world, step, dag_id=dag_id, **by_hand(reason="it is worse", version=1))
    assert (done.outcome, done.words) == ("failed", f"{dag_id} may not ask for {step!r}")
    assert world.ledger.champion("toy") == 2


def test_a_run_promotes_its_own_version_only(world: World) -> None:
    done = asked(world, "promote_champion", version=1, answer=None, cause="by hand")
    assert done.outcome == "failed"
    assert "was not made by run toy.train/manual" in done.words


def test_what_cannot_be_read_changes_nothing_and_is_no_traceback(world: World) -> None:
    done = asked(world, "decide_promotion", training_set={"run_id": 7}, fitted="nothing", evaluation=None)
    assert done.outcome == "again"
    assert done.words.endswith("The log of the judge says where")
    assert world.ledger.champion("toy") == 2


def test_a_broken_folder_is_named(world: World) -> None:
    (world.folder.path / "model.yaml").write_text("name: toy\nowner: [")
    done = asked(world, "align_alias")
    assert done.outcome == "failed"
    assert done.words.startswith("SpecError: ")


def test_the_alias_follows_the_ledger(world: World) -> None:
    world.registry._client.set_registered_model_alias("toy", "champion", "1")
    assert world.registry.misaligned() == ["toy"]
    done = asked(world, "align_alias")
    assert (done.outcome, done.value) == ("done", 1)
    assert world.registry.misaligned() == []
