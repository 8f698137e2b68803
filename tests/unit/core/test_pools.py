"""Pools are used only where the deployment says how large they are, and makes them."""

from __future__ import annotations

from pathlib import Path

from perennial.core.pools import commands, pools
from perennial.core.settings import read_settings
from perennial.stack.environment import choose_ports, embedded_settings, environment, keep_secrets
from tests.living import free_ports


def test_without_a_word_on_slots_no_stage_waits_for_a_pool() -> None:
    assert pools(read_settings({})) == {}
    assert commands(read_settings({})) == []


def test_every_pool_that_a_stage_uses_is_made_with_its_slots() -> None:
    settings = read_settings({"PERENNIAL_TRAIN_SLOTS": "3", "PERENNIAL_LOAD_SLOTS": "5"})
    assert {stage: (pool.name, pool.slots) for stage, pool in pools(settings).items()} == {
        "train": ("perennial_train", 3),
        "load": ("perennial_load", 5),
    }
    assert [command[:4] for command in commands(settings)] == [
        ("pools", "set", "perennial_train", "3"),
        ("pools", "set", "perennial_load", "5"),
    ]


def test_the_embedded_stack_keeps_a_worker_free_of_trainings_and_loads(tmp_path: Path) -> None:
    ports = choose_ports(free_ports())
    settings = embedded_settings(tmp_path, ports, {})
    workers = int(environment(settings, ports, keep_secrets(tmp_path), inherited={})["AIRFLOW__CORE__PARALLELISM"])
    assert {pool.slots for pool in pools(settings).values()} == {workers - 1}
    assert settings.parts_at_once < workers
