"""Promotions that are killed, put to sleep or made by many at once: ledger and alias always agree in the end."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from contextlib import closing
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from perennial.core.errors import StaleDecision
from perennial.core.settings import Settings
from perennial.ledger.store import Ledger
from perennial.registry import champion
from perennial.registry.server import CHAMPION
from perennial.registry.store import Registry
from tests.faults.signals import processes, trap, wait_until_stopped
from tests.unit import synthetic

MODEL = "toy"
PROMOTERS = 16
_PATIENCE = 120
_STALE = 3

#: What a promotion does, in order: which function, and whether the trap lies before or behind it.
STEPS = {
    "before it is intended": (Ledger, "intend_promotion", "before"),
    "after it is intended": (Ledger, "intend_promotion", "after"),
    "when its turn has come": (Ledger, "begin_move", "after"),
    "before the alias moves": (MlflowClient, "set_registered_model_alias", "before"),
    "after the alias has moved": (MlflowClient, "set_registered_model_alias", "after"),
    "when its turn is over": (Ledger, "end_move", "after"),
    "before it is completed": (Ledger, "complete_promotion", "before"),
    "after it is completed": (Ledger, "complete_promotion", "after"),
    "when versions are tagged": (MlflowClient, "set_model_version_tag", "before"),
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder with twenty versions in it that passed their gates, and MLflow's database of them."""
    state = tmp_path_factory.mktemp("promotions")
    settings = synthetic.deployment(state)
    ledger = Ledger(settings.database_url, settings.state)
    registry = Registry(settings, ledger)
    registry.migrate()
    folder = synthetic.write_folder(state / "models")
    for number in range(20):
        synthetic.register(registry, folder, f"run-{number}")
    return state, (state / "mlflow.db").read_bytes()


@pytest.fixture
def place(prepared: tuple[Path, bytes], tmp_path: Path, settings_on_each_database: Settings) -> Settings:
    """A deployment of its own with the versions of ``prepared``, the first of which is champion."""
    state, database = prepared
    (tmp_path / "mlflow.db").write_bytes(database)
    settings = settings_on_each_database.model_copy(update={"mlflow_url": f"sqlite:///{tmp_path / 'mlflow.db'}"})
    ledger = Ledger(settings.database_url, settings.state)
    ledger.migrate()
    for record in Ledger(f"sqlite:///{state / 'perennial.db'}").versions(MODEL):
        ledger.record_version(record)
    promote(Registry(settings, ledger), 1, None, "first")
    return settings


def promote(registry: Registry, version: int, expected: int | None, run_id: str) -> None:
    registry.promote(MODEL, version, expected=expected, reason="better", actor="gates", run_id=run_id, evidence={"auc": 0.7})


def watch(settings: Settings) -> None:
    """Let MLflow's database itself write down each change of the alias, in the order of its commits."""
    with closing(sqlite3.connect(settings.mlflow_url.removeprefix("sqlite:///"))) as database:
        database.execute("CREATE TABLE watched (id INTEGER PRIMARY KEY AUTOINCREMENT, version INTEGER)")
        for event in ("INSERT", "UPDATE"):
            database.execute(
                f"CREATE TRIGGER watch_{event} AFTER {event} ON registered_model_aliases WHEN NEW.alias = '{CHAMPION}' "
                "BEGIN INSERT INTO watched (version) VALUES (NEW.version); END"
            )
        database.commit()


def watched(settings: Settings) -> list[int]:
    """Where the alias has pointed since :func:`watch`; a version that it pointed to already is no change."""
    with closing(sqlite3.connect(settings.mlflow_url.removeprefix("sqlite:///"))) as database:
        moves = [version for (version,) in database.execute("SELECT version FROM watched ORDER BY id")]
    return [version for before, version in zip([None, *moves], moves, strict=False) if version != before]


def settle(settings: Settings) -> int:
    """The champion, once ledger and alias agree about it."""
    registry = Registry(settings, Ledger(settings.database_url, settings.state))
    champion = registry.champion(MODEL)
    assert champion is not None
    assert registry._alias(MODEL, CHAMPION) == Ledger(settings.database_url, settings.state).champion(MODEL) == champion
    return champion


# --- many at once ----------------------------------------------------------------------------------------------------


def _promote_again_and_again(settings: Settings, rounds: int, number: int, start: Any, end: Any) -> None:
    """In a child: in each round, decide against the champion of its beginning."""
    ledger = Ledger(settings.database_url, settings.state)
    registry = Registry(settings, ledger)
    won = 0
    for turn in range(rounds):
        expected = ledger.champion(MODEL)
        start.wait(_PATIENCE)
        try:
            promote(registry, 1 + (number + turn) % 20, expected, f"promoter-{number}-{turn}")
            won += 1
        except StaleDecision:
            pass
        end.wait(_PATIENCE)


# A round takes about a second of both cores.
@pytest.mark.slow
@pytest.mark.parametrize("rounds", [5, pytest.param(30, marks=pytest.mark.rare)])
def test_sixteen_promoters_at_once_round_after_round_move_the_alias_as_the_ledger_says(
    place: Settings, children: list[BaseProcess], rounds: int
) -> None:
    watch(place)
    start, end = processes.Barrier(PROMOTERS), processes.Barrier(PROMOTERS)
    for number in range(PROMOTERS):
        child: BaseProcess = processes.Process(target=_promote_again_and_again, args=(place, rounds, number, start, end))
        child.start()
        children.append(child)
    for child in children:
        child.join(_PATIENCE * 3)
    assert [child.exitcode for child in children] == [0] * PROMOTERS
    ledger = Ledger(place.database_url, place.state)
    made = ledger.promotions(MODEL)
    assert all(promotion.completed_at is not None and promotion.action == "promote" for promotion in made)
    # Nobody promotes the champion, so a round in which the only one who is left wins nothing may be missing.
    assert rounds - max(1, rounds // 10) <= len(made) - 1 <= rounds
    # Each was decided against the champion that it took the place of.
    assert [promotion.previous for promotion in made] == [None, *(promotion.version for promotion in made[:-1])]
    assert watched(place) == [promotion.version for promotion in made[1:]]
    passed = {record.version for record in ledger.versions(MODEL) if record.decision.promote and not record.evaluation.is_empty}
    assert set(watched(place)) <= passed
    assert settle(place) == made[-1].version


# --- killed and put to sleep -----------------------------------------------------------------------------------------


def _promote(settings: Settings, version: int, step: str, signals: list[int]) -> None:
    """In a child: promote, and send itself signals at the step; of two, the second one behind the function."""
    registry = Registry(settings, Ledger(settings.database_url, settings.state))
    registry.migrate()
    trap(*STEPS[step], *signals)
    try:
        promote(registry, version, 1, "slow")
    except StaleDecision:
        sys.exit(_STALE)


def start(children: list[BaseProcess], settings: Settings, step: str, *signals: int) -> BaseProcess:
    child = processes.Process(target=_promote, args=(settings, 2, step, list(signals)))
    child.start()
    children.append(child)
    return child


@pytest.fixture
def turns_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the right to move the alias is taken for dead at once."""
    monkeypatch.setattr(champion, "LEASE", timedelta(0))


@pytest.mark.usefixtures("turns_are_over")
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_is_repaired_and_the_retry_changes_nothing_more(
    step: str, place: Settings, children: list[BaseProcess]
) -> None:
    watch(place)
    child = start(children, place, step, signal.SIGKILL)
    child.join(_PATIENCE)
    assert child.exitcode == -signal.SIGKILL
    assert settle(place) == (1 if step == "before it is intended" else 2)
    ledger = Ledger(place.database_url, place.state)
    promote(Registry(place, ledger), 2, 1, "slow")
    assert settle(place) == 2
    assert [(made.version, made.action) for made in ledger.promotions(MODEL)] == [(1, "promote"), (2, "promote")]
    assert watched(place) == [2]
    assert Registry(place, ledger)._version(MODEL, 2).tags["perennial.status"] == CHAMPION


@pytest.mark.usefixtures("turns_are_over")
@pytest.mark.parametrize("step", ["after it is intended", "when its turn has come", "before the alias moves"])
def test_a_sleeper_does_not_bring_its_version_back_when_others_have_gone_on(
    step: str, place: Settings, children: list[BaseProcess]
) -> None:
    sleeper = start(children, place, step, signal.SIGSTOP)
    wait_until_stopped(sleeper)
    assert settle(place) == 2  # others finish what it began,
    promote(Registry(place, Ledger(place.database_url, place.state)), 3, 2, "quick")  # and go on
    os.kill(sleeper.pid or 0, signal.SIGCONT)
    sleeper.join(_PATIENCE)
    assert sleeper.exitcode == 0
    assert settle(place) == 3
    made = Ledger(place.database_url, place.state).promotions(MODEL)
    assert [(promotion.version, promotion.action) for promotion in made] == [(n, "promote") for n in (1, 2, 3)]


@pytest.mark.usefixtures("turns_are_over")
def test_a_sleeper_that_moves_the_alias_late_and_dies_is_not_taken_for_a_person(
    place: Settings, children: list[BaseProcess]
) -> None:
    watch(place)
    sleeper = start(children, place, "before the alias moves", signal.SIGSTOP, signal.SIGKILL)
    wait_until_stopped(sleeper)
    assert settle(place) == 2
    promote(Registry(place, Ledger(place.database_url, place.state)), 3, 2, "quick")
    os.kill(sleeper.pid or 0, signal.SIGCONT)
    sleeper.join(_PATIENCE)
    assert sleeper.exitcode == -signal.SIGKILL
    assert watched(place) == [2, 3, 2]
    assert settle(place) == 3
    assert [made.action for made in Ledger(place.database_url, place.state).promotions(MODEL)] == ["promote"] * 3


def test_others_wait_for_their_turn_and_give_up_with_a_sentence(
    place: Settings, children: list[BaseProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champion, "LEASE", timedelta(hours=1))
    monkeypatch.setattr(champion, "_PATIENCE", timedelta(seconds=0))
    sleeper = start(children, place, "before the alias moves", signal.SIGSTOP)
    wait_until_stopped(sleeper)
    with pytest.raises(StaleDecision, match="others have moved the alias"):
        Registry(place, Ledger(place.database_url, place.state)).champion(MODEL)
    os.kill(sleeper.pid or 0, signal.SIGCONT)
    sleeper.join(_PATIENCE)
    assert settle(place) == 2
