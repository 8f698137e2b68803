"""MLflow follows the ledger: versions, the champion, and what crashes and people leave between the two."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from perennial.core.errors import ArtifactRejected, NoChampion, PromotionRefused, StaleDecision
from perennial.core.settings import Settings
from perennial.ledger.records import Answer, Approval
from perennial.ledger.store import Ledger
from perennial.registry import champion
from perennial.registry.champion import LEASE
from perennial.registry.permissions import MOVED_BY
from perennial.registry.server import CHALLENGER, CHAMPION
from perennial.registry.store import Registry
from perennial.spec.folder import ModelFolder
from tests.unit import synthetic


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.make_template(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def registry(settings: Settings, ledger: Ledger, empty_store: Path) -> Registry:
    synthetic.copy_store(empty_store, settings)
    return Registry(settings, ledger)


@pytest.fixture
def client(settings: Settings, registry: Registry) -> MlflowClient:
    registry.migrate()
    return MlflowClient(tracking_uri=settings.mlflow_url, registry_uri=settings.mlflow_url)


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return synthetic.write_folder(tmp_path / "models")


def promote(registry: Registry, version: int, expected: int | None, run_id: str | None = None) -> None:
    registry.promote(
        "toy", version, expected=expected, reason="it is better", actor="tester", run_id=run_id, evidence={"auc": 0.7}
    )


@pytest.fixture
def three(registry: Registry, folder: ModelFolder) -> list[int]:
    """Three registered versions, each of which became champion in turn."""
    versions = [synthetic.register(registry, folder, f"run-{n}")[0] for n in range(3)]
    for previous, version in zip([None, *versions], versions, strict=False):
        promote(registry, version, previous, f"run-{version}")
    return versions


def aliases(client: MlflowClient) -> dict[str, int]:
    return {alias: int(version) for alias, version in client.get_registered_model("toy").aliases.items()}


# --- versions --------------------------------------------------------------------------------------------------------


def test_registering_twice_by_the_same_run_gives_one_version(
    registry: Registry, folder: ModelFolder, client: MlflowClient, ledger: Ledger
) -> None:
    evaluation, fitted = synthetic.evaluation_of(), synthetic.log_candidate(registry, folder)
    decision = synthetic.judge(evaluation)
    arguments = (folder, synthetic.training_set_of(folder), fitted, evaluation, decision)
    first, again = (registry.register(*arguments, run_id="run-1") for _ in range(2))
    assert first == again == 1
    assert len(client.search_model_versions("name = 'toy'")) == len(ledger.versions("toy")) == 1


def test_a_crash_between_mlflow_and_the_ledger_leaves_no_second_version(
    registry: Registry, folder: ModelFolder, client: MlflowClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, fitted = synthetic.evaluation_of(), synthetic.log_candidate(registry, folder)
    decision = synthetic.judge(evaluation)
    arguments = (folder, synthetic.training_set_of(folder), fitted, evaluation, decision)
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "record_version", _crash)
        with pytest.raises(_Crash):
            registry.register(*arguments, run_id="run-1")
    assert ledger.versions("toy") == []
    assert registry.register(*arguments, run_id="run-1") == 1
    assert len(client.search_model_versions("name = 'toy'")) == 1


def test_a_version_answers_what_it_came_from(registry: Registry, folder: ModelFolder, ledger: Ledger) -> None:
    version, decision = synthetic.register(registry, folder)
    record = ledger.version("toy", version)
    assert record is not None
    assert record.spec_digest == folder.digest
    assert record.training.snapshots == {"features": 1, "outcomes": 2}
    assert record.training.content["window"] == "a" * 64
    assert record.training.as_of == "2013-03-26T00:00:00+00:00"
    assert record.evaluation.candidate.metrics == {"roc_auc": 0.7}
    assert record.decision == decision
    assert record.code.python == platform.python_version()
    assert "scikit-learn" in record.code.packages
    assert (record.code.commit, record.code.dirty) == ("unknown", None)  # a folder of no repository
    assert {"MLmodel", "model.skops", "reference.parquet"} <= set(record.manifest)


def test_people_find_in_mlflow_what_they_look_for(registry: Registry, folder: ModelFolder, client: MlflowClient) -> None:
    version, _ = synthetic.register(registry, folder)
    found = client.get_model_version("toy", str(version))
    assert found.tags["perennial.status"] == "candidate"
    assert found.tags["holdout.roc_auc"] == "0.7"
    assert str(found.description).startswith("All gates passed")
    assert set(found.tags) == {"perennial.status", "perennial.candidate", "holdout.roc_auc", "perennial.run_id"}
    assert client.get_registered_model("toy").description == folder.spec.description
    assert aliases(client) == {CHALLENGER: version}
    promote(registry, version, None)
    found = client.get_model_version("toy", str(version))
    assert found.tags["perennial.status"] == CHAMPION
    assert re.match(r"Champion since .* UTC, promoted by tester: ", str(found.description))
    assert "All gates passed" in str(found.description)
    assert aliases(client) == {CHAMPION: version}


def test_mlflows_own_tools_can_load_a_version(registry: Registry, folder: ModelFolder, settings: Settings) -> None:
    version, _ = synthetic.register(registry, folder)
    promote(registry, version, None)
    rows = synthetic.make_rows(1)[["x", "noise", "kind"]]
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(settings.mlflow_url)
        # The registry's address follows the tracking address.
        predicted = mlflow.pyfunc.load_model("models:/toy@champion").predict(rows)
    finally:
        mlflow.set_tracking_uri(before)
    assert predicted.shape == (60, 2)


def test_a_refused_version_says_why_and_people_are_told(
    registry: Registry, folder: ModelFolder, client: MlflowClient, ledger: Ledger
) -> None:
    version, decision = synthetic.register(registry, folder, auc=0.45)
    assert not decision.promote
    for _ in range(2):
        registry.refuse("toy", version, decision)
    found = client.get_model_version("toy", str(version))
    assert found.tags["perennial.status"] == "refused"
    assert re.match("Refused: .*0.45", str(found.description))
    assert aliases(client) == {}
    told = [entry.alert.kind for entry in ledger.alerts()]
    assert told == ["promotion_refused"]
    assert registry.champion("toy") is None


def test_nothing_depends_on_mlflows_process_wide_state(
    registry: Registry, folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    version, _ = synthetic.register(registry, folder)
    promote(registry, version, None)
    registry.load("toy", version)
    assert list(elsewhere.iterdir()) == []
    assert mlflow.active_run() is None


# --- promotion -------------------------------------------------------------------------------------------------------


def test_there_is_no_champion_before_the_first_promotion(registry: Registry, folder: ModelFolder) -> None:
    assert registry.champion("toy") is None
    synthetic.register(registry, folder)
    assert registry.champion("toy") is None


def test_a_promotion_moves_ledger_and_alias(three: list[int], registry: Registry, client: MlflowClient, ledger: Ledger) -> None:
    assert registry.champion("toy") == ledger.champion("toy") == aliases(client)[CHAMPION] == three[-1]
    assert client.get_model_version("toy", str(three[1])).tags["perennial.status"] == "former champion"
    assert [made.previous for made in ledger.promotions("toy")] == [None, *three[:-1]]
    assert [entry.alert.kind for entry in ledger.alerts()] == ["promoted"] * 3


def test_a_decision_against_a_former_champion_is_stale(three: list[int], registry: Registry, folder: ModelFolder) -> None:
    version, _ = synthetic.register(registry, folder, "late")
    with pytest.raises(StaleDecision):
        promote(registry, version, three[0], "late")
    assert registry.champion("toy") == three[-1]


def recipe_of(ledger: Ledger, version: int) -> str:
    record = ledger.version("toy", version)
    assert record is not None
    return record.training.recipe


def test_a_decision_against_a_recipe_holds_for_its_newer_versions(
    three: list[int], registry: Registry, folder: ModelFolder, ledger: Ledger
) -> None:
    version, _ = synthetic.register(registry, folder, "late")
    replace_champion = partial(
        registry.promote, "toy", version, expected=three[0], reason="better", actor="tester", run_id="late", evidence={}
    )
    with pytest.raises(StaleDecision):
        replace_champion(recipe="another recipe")
    made = replace_champion(recipe=recipe_of(ledger, three[0]))
    assert (registry.champion("toy"), made.previous) == (version, three[-1])


def test_a_person_needs_no_reason_if_the_champion_is_a_newer_version_of_the_compared_recipe(
    three: list[int], registry: Registry, folder: ModelFolder, ledger: Ledger
) -> None:
    for recipe in ("another recipe", recipe_of(ledger, three[0])):
        evaluation = synthetic.evaluation_of()
        decision = replace(synthetic.judge(evaluation), champion=three[0], champion_recipe=recipe)
        fitted = synthetic.log_candidate(registry, folder, run_id=recipe)
        training_set = synthetic.training_set_of(folder, recipe)
        version = registry.register(folder, training_set, fitted, evaluation, decision, run_id=recipe)
        if recipe == "another recipe":
            with pytest.raises(PromotionRefused, match="the evaluation is stale"):
                registry.promote_by_hand(folder.spec, version, override=None, actor="ann")
        else:
            made = registry.promote_by_hand(folder.spec, version, override=None, actor="ann")
            assert (made.action, made.version, made.previous) == ("promote", version, three[-1])


def test_nobody_is_alerted_of_a_candidate_that_is_only_the_champions_recipe(
    registry: Registry, folder: ModelFolder, client: MlflowClient, ledger: Ledger
) -> None:
    version, decision = synthetic.register(registry, folder, auc=0.45)
    registry.refuse("toy", version, replace(decision, same_recipe=True))
    assert client.get_model_version("toy", str(version)).tags["perennial.status"] == "refused"
    assert ledger.alerts() == []


def test_of_two_promotions_at_once_one_wins_and_the_alias_is_its(
    three: list[int], registry: Registry, folder: ModelFolder, ledger: Ledger, settings: Settings
) -> None:
    rivals = [synthetic.register(registry, folder, f"rival-{n}")[0] for n in range(2)]
    together = threading.Barrier(2)

    def attempt(version: int) -> int | None:
        own = Registry(settings, ledger)
        own.migrate()
        together.wait()
        try:
            promote(own, version, three[-1], f"rival-{version}")
        except StaleDecision:
            return None
        return version

    with ThreadPoolExecutor(2) as pool:
        winners = [version for version in pool.map(attempt, rivals) if version is not None]
    assert len(winners) == 1
    assert registry.champion("toy") == winners[0]
    assert len(ledger.promotions("toy")) == 4


def test_promoting_the_champion_changes_nothing(three: list[int], registry: Registry, ledger: Ledger) -> None:
    promote(registry, three[-1], three[-1], "once more")
    assert len(ledger.promotions("toy")) == 3
    assert registry.rollback("toy", actor="tester", reason="bad").version == three[1]


def test_the_retry_of_a_promotion_does_not_undo_what_came_after_it(three: list[int], registry: Registry) -> None:
    promote(registry, three[0], None, f"run-{three[0]}")
    assert registry.champion("toy") == three[-1]


def test_a_version_that_scoring_would_reject_cannot_be_promoted(
    registry: Registry, folder: ModelFolder, settings: Settings, ledger: Ledger
) -> None:
    version, _ = synthetic.register(registry, folder)
    (_artifact(settings, "model.skops")).unlink()
    with pytest.raises(ArtifactRejected, match=r"model\.skops is missing"):
        promote(registry, version, None)
    assert ledger.promotions("toy") == []


def test_a_version_that_perennial_did_not_register_cannot_be_promoted(registry: Registry, client: MlflowClient) -> None:
    client.create_registered_model("toy")
    client.create_model_version("toy", source="/tmp/nowhere")
    with pytest.raises(ArtifactRejected, match="not in the ledger"):
        promote(registry, 1, None)


# --- crashes and hands in between -------------------------------------------------------------------------------------


class _Crash(BaseException):
    """A process that dies; nothing may catch it."""


def _crash(*_: Any, **__: Any) -> None:
    raise _Crash


@pytest.mark.parametrize("dies_at", ["set_registered_model_alias", "complete_promotion", "set_model_version_tag"])
def test_a_promotion_that_dies_halfway_is_finished_by_whoever_comes_next(
    dies_at: str, registry: Registry, folder: ModelFolder, ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, _ = synthetic.register(registry, folder)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient if "model" in dies_at else Ledger, dies_at, _crash)
        with pytest.raises(_Crash):
            promote(registry, version, None, "run-1")
    monkeypatch.setattr(champion, "LEASE", timedelta(0))  # the dead process's turn is over
    other = Registry(settings, ledger)
    assert other.champion("toy") == version
    assert other._alias("toy", CHAMPION) == version
    assert [made.completed_at is not None for made in ledger.promotions("toy")] == [True]
    promote(registry, version, None, "run-1")  # the retry of the task that died
    assert len(ledger.promotions("toy")) == 1
    tags = registry._version("toy", version).tags
    assert tags["perennial.status"] == CHAMPION


def test_an_alias_moved_by_hand_is_adopted_if_the_ledger_knows_the_version(
    three: list[int], registry: Registry, client: MlflowClient, ledger: Ledger
) -> None:
    client.set_registered_model_alias("toy", CHAMPION, str(three[0]))
    assert registry.champion("toy") == three[0]
    last = ledger.promotions("toy")[-1]
    assert (last.version, last.previous, last.action, last.actor) == (three[0], three[-1], "adopt", "MLflow")
    assert registry.champion("toy") == three[0]
    assert len(ledger.promotions("toy")) == 4


def test_the_first_champion_may_be_made_by_hand_in_mlflow(
    registry: Registry, folder: ModelFolder, client: MlflowClient, ledger: Ledger
) -> None:
    version, _ = synthetic.register(registry, folder)
    client.set_registered_model_alias("toy", CHAMPION, str(version))
    assert registry.champion("toy") == version
    assert ledger.promotions("toy")[0].action == "adopt"


def test_an_alias_moved_to_an_unknown_version_is_put_back(
    three: list[int], registry: Registry, client: MlflowClient, ledger: Ledger
) -> None:
    foreign = client.create_model_version("toy", source="/tmp/nowhere")
    client.set_registered_model_tag("toy", MOVED_BY, f"{foreign.version} eve")
    client.set_registered_model_alias("toy", CHAMPION, foreign.version)
    assert registry.champion("toy") == aliases(client)[CHAMPION] == three[-1]
    *_, told = ledger.alerts()
    assert told.alert.kind == "alias_put_back"
    assert "mlflow:eve moved the alias" in told.alert.text
    assert "Perennial did not register it" in told.alert.text


def test_models_whose_alias_differs_are_found_at_once_and_models_of_others_are_none_of_ours(
    three: list[int], registry: Registry, client: MlflowClient, ledger: Ledger
) -> None:
    other = client.create_registered_model("of somebody else").name
    client.set_registered_model_alias(other, CHAMPION, client.create_model_version(other, source="/tmp/nowhere").version)
    assert registry.misaligned() == []
    client.set_registered_model_alias("toy", CHAMPION, str(three[0]))
    assert registry.misaligned() == ["toy"]
    assert registry.champion("toy") == three[0]
    assert registry.misaligned() == []
    client.delete_registered_model_alias("toy", CHAMPION)
    assert registry.misaligned() == ["toy"]


def test_who_moved_the_alias_is_recorded_only_for_the_version_that_was_asked_for(
    three: list[int], registry: Registry, client: MlflowClient, ledger: Ledger
) -> None:
    client.set_registered_model_tag("toy", MOVED_BY, f"{three[0]} ann")
    client.set_registered_model_alias("toy", CHAMPION, str(three[1]))
    assert registry.champion("toy") == three[1]
    assert ledger.promotions("toy")[-1].actor == "MLflow"
    client.set_registered_model_alias("toy", CHAMPION, str(three[0]))
    assert registry.champion("toy") == three[0]
    assert ledger.promotions("toy")[-1].actor == "mlflow:ann"


def test_an_alias_removed_by_hand_is_put_back(three: list[int], registry: Registry, client: MlflowClient) -> None:
    client.delete_registered_model_alias("toy", CHAMPION)
    assert registry.champion("toy") == three[-1]
    assert aliases(client)[CHAMPION] == three[-1]


def test_a_deleted_champion_can_still_be_rolled_back_from(three: list[int], registry: Registry, client: MlflowClient) -> None:
    client.delete_model_version("toy", str(three[-1]))
    with pytest.raises(ArtifactRejected, match="deleted from MLflow"):
        registry.load("toy", three[-1])
    assert registry.champion("toy") == three[-1]
    assert registry.rollback("toy", actor="tester", reason="it is gone").version == three[1]
    assert registry.champion("toy") == three[1]


def test_a_promotion_whose_version_was_deleted_does_not_block_others_for_ever(
    three: list[int], registry: Registry, folder: ModelFolder, client: MlflowClient, ledger: Ledger
) -> None:
    lost, _ = synthetic.register(registry, folder, "lost")
    ledger.intend_promotion(
        model="toy", version=lost, expected=three[-1], action="promote", reason="", actor="", run_id="lost", evidence={}
    )
    client.delete_model_version("toy", str(lost))
    assert registry.champion("toy") == three[-1]
    version, _ = synthetic.register(registry, folder, "next")
    promote(registry, version, three[-1], "next")
    assert registry.champion("toy") == version


@pytest.mark.parametrize("read_before", [True, False])
def test_an_alias_read_while_another_process_promotes_is_not_taken_for_a_hands_work(
    read_before: bool,
    three: list[int],
    registry: Registry,
    folder: ModelFolder,
    ledger: Ledger,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version, _ = synthetic.register(registry, folder, "fourth")
    other, read = Registry(settings, ledger), Registry._alias

    def slow_reading(self: Registry, model: str, alias: str) -> int | None:
        monkeypatch.setattr(Registry, "_alias", read)
        promote(other, version, three[-1], "fourth")
        return three[-1] if read_before else version

    monkeypatch.setattr(Registry, "_alias", slow_reading)
    # Either was champion at a moment of the call.
    assert registry.champion("toy") == (three[-1] if read_before else version)
    assert registry.champion("toy") == version
    assert [made.action for made in ledger.promotions("toy")] == ["promote"] * 4


def test_an_alias_moved_by_hand_to_a_refused_version_is_put_back_and_people_are_told_how_to_override(
    three: list[int], registry: Registry, folder: ModelFolder, client: MlflowClient, ledger: Ledger
) -> None:
    refused, decision = synthetic.register(registry, folder, "bad", auc=0.45)
    registry.refuse("toy", refused, decision)
    for _ in range(2):
        client.set_registered_model_alias("toy", CHAMPION, str(refused))
        assert registry.champion("toy") == aliases(client)[CHAMPION] == three[-1]
    assert [made.action for made in ledger.promotions("toy")] == ["promote"] * 3
    *_, told = ledger.alerts()
    assert (told.alert.kind, told.alert.severity) == ("alias_put_back", "warning")
    assert f"moved it back to version {three[-1]}" in told.alert.text
    assert f"perennial promote toy {refused} --override REASON" in told.alert.text
    assert "0.45" in told.alert.text


def test_before_the_first_champion_an_alias_on_a_refused_version_is_removed(
    registry: Registry, folder: ModelFolder, client: MlflowClient
) -> None:
    refused, _ = synthetic.register(registry, folder, "bad", auc=0.45)
    client.set_registered_model_alias("toy", CHAMPION, str(refused))
    assert registry.champion("toy") is None
    assert CHAMPION not in aliases(client)


def test_a_late_write_of_a_process_that_slept_is_not_taken_for_a_hands_work(
    three: list[int], registry: Registry, client: MlflowClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = three[0]
    # It began to promote, slept for longer than its lease, and died right after it woke and moved the alias.
    asleep = ledger.intend_promotion(
        model="toy", version=version, expected=three[-1], action="promote", reason="", actor="", run_id="slow", evidence={}
    )
    assert ledger.begin_move(asleep, lease=LEASE) is not None
    monkeypatch.setattr(champion, "LEASE", timedelta(0))
    assert registry.champion("toy") == version
    promote(registry, three[1], version, "later")
    client.set_registered_model_alias("toy", CHAMPION, str(version))
    assert registry.champion("toy") == aliases(client)[CHAMPION] == three[1]
    assert [made.action for made in ledger.promotions("toy")] == ["promote"] * 5
    # Long after, the same move can only be a person's.
    monkeypatch.setattr(champion, "_LATE", timedelta(0))
    client.set_registered_model_alias("toy", CHAMPION, str(version))
    assert registry.champion("toy") == version
    assert ledger.promotions("toy")[-1].action == "adopt"


# --- people decide ---------------------------------------------------------------------------------------------------


def answer(version: int, said: Answer, words: str = "looked at it") -> Approval:
    who = None if said == "expired" else "ann"
    return Approval("toy", version, said, who, words, datetime.now(UTC), "toy.train/run")


def test_a_version_that_passed_is_promoted_by_hand_without_a_word(
    registry: Registry, folder: ModelFolder, ledger: Ledger
) -> None:
    version, _ = synthetic.register(registry, folder)
    for _ in range(2):
        made = registry.promote_by_hand(folder.spec, version, override=None, actor="ann")
        assert (made.action, made.actor, made.version) == ("promote", "ann", version)
    assert len(ledger.promotions("toy")) == 1


@pytest.mark.parametrize("override", [None, "", "  \n"])
def test_a_refused_version_is_not_promoted_without_a_reason(
    registry: Registry, folder: ModelFolder, ledger: Ledger, override: str | None
) -> None:
    version, _ = synthetic.register(registry, folder, auc=0.45)
    with pytest.raises(PromotionRefused, match=r"the gates refused it: .*0\.45.* --override REASON"):
        registry.promote_by_hand(folder.spec, version, override=override, actor="ann")
    with pytest.raises(PromotionRefused):
        promote(registry, version, None)
    assert ledger.promotions("toy") == []


def test_an_override_is_recorded_and_marked_for_ever(
    three: list[int], registry: Registry, folder: ModelFolder, client: MlflowClient, ledger: Ledger
) -> None:
    version, _ = synthetic.register(registry, folder, "bad", auc=0.45)
    registry.promote_by_hand(folder.spec, version, override="the holdout was a holiday", actor="ann")
    made = ledger.promotions("toy")[-1]
    assert (made.action, made.reason, made.actor, made.previous) == (
        "override", "the holdout was a holiday", "ann", three[-1],
    )  # fmt: skip
    assert "the gates refused it" in made.evidence["overridden"]
    back(registry)
    client.set_registered_model_alias("toy", CHAMPION, str(version))  # it was champion, so a person may bring it back
    assert registry.champion("toy") == version
    assert client.get_model_version("toy", str(version)).tags["perennial.override_reason"] == "the holdout was a holiday (ann)"


def test_an_evaluation_against_a_former_champion_is_stale_for_people_too(
    three: list[int], registry: Registry, folder: ModelFolder
) -> None:
    version, _ = synthetic.register(registry, folder, "late")  # judged as if there were no champion
    with pytest.raises(PromotionRefused, match=f"compared with no champion, and the champion is version {three[-1]}"):
        registry.promote_by_hand(folder.spec, version, override=None, actor="ann")


@pytest.mark.parametrize("said", ["refused", "expired"])
def test_a_version_that_nobody_approved_cannot_become_champion_by_any_way_but_an_override(
    registry: Registry, folder: ModelFolder, client: MlflowClient, ledger: Ledger, said: Answer
) -> None:
    version, _ = synthetic.register(registry, folder)
    registry.decline(answer(version, said, "too sure of itself"))
    for _ in range(2):
        client.set_registered_model_alias("toy", CHAMPION, str(version))
        assert registry.champion("toy") is None
    with pytest.raises(PromotionRefused):
        promote(registry, version, None)
    because = str(client.get_model_version("toy", str(version)).description).partition("\n")[0]
    assert ("Refused by ann: too sure of itself" if said == "refused" else "nobody answered until") in because
    assert {entry.alert.kind for entry in ledger.alerts()} == {"promotion_refused", "alias_put_back"}
    registry.promote_by_hand(folder.spec, version, override="asked again in person", actor="ann")
    assert registry.champion("toy") == version


def test_where_approval_is_wanted_a_hand_needs_it_too(registry: Registry, tmp_path: Path, ledger: Ledger) -> None:
    folder = synthetic.write_folder(tmp_path / "models", change="owner: testers => owner: testers\npromotion: approval")
    version, _ = synthetic.register(registry, folder)
    with pytest.raises(PromotionRefused, match="nobody has approved it yet"):
        registry.promote_by_hand(folder.spec, version, override=None, actor="ann")
    ledger.record_approval(answer(version, "approved"))
    assert registry.promote_by_hand(folder.spec, version, override=None, actor="ann").action == "promote"


def test_a_candidate_that_is_compared_anew_is_judged_by_the_newest_comparison(
    three: list[int], registry: Registry, folder: ModelFolder, client: MlflowClient, ledger: Ledger
) -> None:
    fitted = synthetic.log_candidate(registry, folder, run_id="again")
    for auc in (0.7, 0.45):
        evaluation = synthetic.evaluation_of(auc)
        decision = synthetic.judge(evaluation)
        version = registry.register(
            folder, synthetic.training_set_of(folder, "again"), fitted, evaluation, decision, run_id="again"
        )
    record = ledger.version("toy", version)
    assert record is not None
    assert record.decision.promote is False
    assert str(client.get_model_version("toy", str(version)).description).startswith("Refused by the gates: ")
    # What a promotion rested on stays.
    ledger.intend_promotion(
        model="toy", version=version, expected=three[-1], action="override", reason="", actor="", run_id=None, evidence={}
    )
    assert not ledger.record_decision("toy", version, evaluation, decision)


# --- rollback --------------------------------------------------------------------------------------------------------


def back(registry: Registry, to: int | None = None, **more: Any) -> int:
    return registry.rollback("toy", to, actor="tester", reason="bad", **more).version


def test_a_rollback_undoes_the_newest_promotion_and_a_second_one_is_none(
    three: list[int], registry: Registry, folder: ModelFolder, ledger: Ledger
) -> None:
    assert back(registry) == three[1]
    again = registry.rollback("toy", actor="ann", reason="I saw it, too")
    assert (again.version, again.changed) == (three[1], False)
    assert f"is already a rollback, from version {three[-1]} to {three[1]} by tester (bad)" in again.words
    assert len(ledger.promotions("toy")) == 4
    # Once something was promoted again, there is something to undo again.
    version, _ = synthetic.register(registry, folder, "fourth")
    promote(registry, version, three[1], "fourth")
    assert back(registry) == three[1]


def test_going_further_back_takes_a_version(three: list[int], registry: Registry) -> None:
    back(registry)
    assert back(registry, three[0]) == three[0]
    assert back(registry) == three[0]


def test_the_first_champion_cannot_be_undone(registry: Registry, folder: ModelFolder) -> None:
    version, _ = synthetic.register(registry, folder)
    promote(registry, version, None)
    with pytest.raises(NoChampion, match="no earlier champion"):
        back(registry)
    assert registry.champion("toy") == version


def test_an_alias_that_was_moved_back_by_hand_leaves_nothing_to_undo(
    three: list[int], registry: Registry, client: MlflowClient, ledger: Ledger
) -> None:
    client.set_registered_model_alias("toy", CHAMPION, str(three[0]))
    assert back(registry) == three[0]
    assert [made.action for made in ledger.promotions("toy")] == ["promote"] * 3 + ["adopt"]


def test_of_two_rollbacks_at_once_one_is_made(
    three: list[int], registry: Registry, settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, load = Registry(settings, ledger), Registry.load

    def slow_load(self: Registry, *arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(Registry, "load", load)
        back(other)  # while this one makes sure that the version can be loaded
        return load(self, *arguments, **named)

    monkeypatch.setattr(Registry, "load", slow_load)
    done = registry.rollback("toy", actor="tester", reason="bad")
    assert (done.version, done.changed) == (three[1], False)
    assert [made.action for made in ledger.promotions("toy")] == ["promote"] * 3 + ["rollback"]


def test_a_rollback_may_be_meant_for_one_champion_alone(three: list[int], registry: Registry) -> None:
    with pytest.raises(StaleDecision, match=f"the champion is version {three[-1]}, not {three[1]}"):
        back(registry, expected=three[1])
    assert back(registry, expected=three[-1]) == three[1]


def test_rollback_to_the_champion_changes_nothing(three: list[int], registry: Registry, ledger: Ledger) -> None:
    assert back(registry, three[0]) == three[0]
    assert back(registry, three[0]) == three[0]
    assert [made.action for made in ledger.promotions("toy")] == ["promote"] * 3 + ["rollback"]


def test_the_retry_of_a_rollback_does_not_go_back_once_more(three: list[int], registry: Registry) -> None:
    for _ in range(2):
        assert back(registry, run_id="rollback-1") == three[1]


def test_after_a_rollback_the_version_that_was_left_is_no_earlier_champion(
    three: list[int], registry: Registry, folder: ModelFolder, client: MlflowClient
) -> None:
    back(registry)
    left = client.get_model_version("toy", str(three[-1]))
    assert left.tags["perennial.status"] == "rolled back from"
    assert f"when version {three[1]} was made champion again by" in str(left.description).partition("\n")[0]
    version, _ = synthetic.register(registry, folder, "fourth")
    promote(registry, version, three[1], "fourth")
    assert back(registry) == three[1]


def test_rollback_to_a_version_that_cannot_be_loaded_leaves_the_champion(
    three: list[int], registry: Registry, client: MlflowClient
) -> None:
    client.delete_model_version("toy", str(three[1]))
    with pytest.raises(ArtifactRejected):
        back(registry)
    assert registry.champion("toy") == three[-1]


def test_there_is_no_going_back_to_a_version_that_never_was_champion(
    three: list[int], registry: Registry, folder: ModelFolder
) -> None:
    version, _ = synthetic.register(registry, folder, "fourth")
    with pytest.raises(NoChampion, match=f"was never champion, .* perennial promote toy {version}"):
        back(registry, version)
    assert registry.champion("toy") == three[-1]


def test_rollback_without_a_champion_says_so(registry: Registry) -> None:
    with pytest.raises(NoChampion):
        back(registry)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_killed_is_closed_when_its_retry_looks_for_it(registry: Registry, client: MlflowClient) -> None:
    tags = {"perennial.key": "k1"}
    context = registry.open_run("toy", "boosting", tags)
    killed = context.__enter__()  # never left, as by a process that was killed
    assert registry.find_run("toy", "k1") is None
    assert client.get_run(killed.id).info.status == "KILLED"
    with registry.open_run("toy", "boosting", tags) as run:
        run.log(tags={"perennial.fitted": "{}"})
    found = registry.find_run("toy", "k1")
    assert found is not None
    assert found["perennial.fitted"] == "{}"


def test_an_error_leaves_a_run_failed(registry: Registry, client: MlflowClient) -> None:
    with pytest.raises(ValueError, match="bad"), registry.open_run("toy", "boosting", {}) as run:
        raise ValueError("bad")
    assert client.get_run(run.id).info.status == "FAILED"


def test_runs_that_no_fit_can_still_be_writing_are_closed(registry: Registry, client: MlflowClient) -> None:
    killed = registry.open_run("toy", "boosting", {})
    killed.__enter__()
    assert registry.close_abandoned_runs("toy") == 0
    assert registry.close_abandoned_runs("toy", older_than=timedelta(0)) == 1


def test_an_infinite_metric_is_left_out_rather_than_read_back_as_another_number(
    registry: Registry, client: MlflowClient
) -> None:
    with registry.open_run("toy", "boosting", {}) as run:
        run.log(metrics={"good": 1.0, "bad": float("inf"), "worse": float("nan")})
    assert client.get_run(run.id).data.metrics == {"good": 1.0}


def test_a_deleted_experiment_is_restored(registry: Registry, client: MlflowClient) -> None:
    with registry.open_run("toy", "boosting", {}):
        pass
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with registry.open_run("toy", "boosting", {}) as run:
        run.log(metrics={"good": 1.0})


def test_links_are_for_people_or_there_are_none(registry: Registry, settings: Settings, ledger: Ledger) -> None:
    with registry.open_run("toy", "boosting", {}) as run:
        pass
    assert registry.version_url("toy", 3) is None
    assert registry.run_url(run.id) is None
    public = Registry(settings.model_copy(update={"mlflow_public_url": "https://ml.example.org/"}), ledger)
    assert public.version_url("toy", 3) == "https://ml.example.org/#/models/toy/versions/3?workflowType=machine_learning"
    assert public.run_url(run.id) == f"https://ml.example.org/#/experiments/1/runs/{run.id}?workflowType=machine_learning"


# --- stores ----------------------------------------------------------------------------------------------------------


def _touch(settings: Settings, barrier: Any) -> None:
    barrier.wait()
    registry = Registry(settings, Ledger(settings.database_url))
    registry.migrate()
    with registry.open_run("toy", "boosting", {}) as run:
        run.log(metrics={"good": 1.0})


def test_processes_that_first_touch_a_fresh_store_do_not_break_it(settings: Settings, ledger: Ledger) -> None:
    spawn = multiprocessing.get_context("forkserver")
    spawn.set_forkserver_preload(["perennial.registry.store"])
    barrier = spawn.Barrier(3)
    processes = [spawn.Process(target=_touch, args=(settings, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    client = MlflowClient(tracking_uri=settings.mlflow_url, registry_uri=settings.mlflow_url)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 3


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[str]:
    """Address of a real MLflow server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = tmp_path / "server.db"
    store.write_bytes(empty_store.read_bytes())
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{store}", "--artifacts-destination", str(tmp_path / "served"),
        ],
        stdout=log, stderr=log, start_new_session=True, cwd=tmp_path,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: urllib.request.urlopen(f"{address}/health", timeout=5).status == 200, process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
        log.close()


def _wait(answers: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if answers():
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail("the MLflow server did not start")


def test_a_version_lives_its_whole_life_on_a_real_server(
    server: str, settings: Settings, ledger: Ledger, folder: ModelFolder
) -> None:
    registry = Registry(settings.model_copy(update={"mlflow_url": server}), ledger)
    registry.migrate()
    first, _ = synthetic.register(registry, folder, "run-1")
    assert registry.champion("toy") is None
    promote(registry, first, None, "run-1")
    second, _ = synthetic.register(registry, folder, "run-2")
    promote(registry, second, first, "run-2")
    assert registry.champion("toy") == second
    assert back(registry) == first
    loaded = registry.load("toy", first, spec=folder.spec)
    assert len(loaded.reference()) == 300
    refused, decision = synthetic.register(registry, folder, "run-3", auc=0.4)
    registry.refuse("toy", refused, decision)
    assert registry.version_url("toy", first) == f"{server}/#/models/toy/versions/{first}?workflowType=machine_learning"
    with urllib.request.urlopen(registry.version_url("toy", first) or "", timeout=10) as page:
        assert page.status == 200


# --- what tests look into --------------------------------------------------------------------------------------------


def _artifact(settings: Settings, name: str) -> Path:
    return next((settings.state / "mlflow-artifacts").rglob(name))


# --- who may ---------------------------------------------------------------------------------------------------------


def test_a_process_that_may_not_promote_reads_the_champion_and_changes_nothing(
    registry: Registry, folder: ModelFolder, settings: Settings, ledger: Ledger, client: MlflowClient, three: list[int]
) -> None:
    client.set_registered_model_alias("toy", CHAMPION, str(three[0]))
    reader = Registry(settings.model_copy(update={"may_promote": False}), ledger)

    assert reader.champion("toy") == three[-1], "the ledger's, whatever somebody did to the alias"
    for change in (
        lambda: promote(reader, three[0], three[-1]),
        lambda: reader.promote_by_hand(folder.spec, three[0], override="I know better", actor="tester"),
        lambda: reader.rollback("toy", actor="tester", reason="it hurts"),
        lambda: reader.reconcile("toy"),
        lambda: synthetic.register(reader, folder, "run-9"),
    ):
        with pytest.raises(PromotionRefused, match="only the judge may"):
            change()
    assert aliases(client)[CHAMPION] == three[0]
    assert [made.version for made in ledger.promotions("toy")] == three
    assert len(ledger.versions("toy")) == len(three)
