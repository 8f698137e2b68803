"""Airflow's pools for what may keep workers busy for long: trainings, and loads of history.

A pool says how many tasks of a kind run at once, of all models together. Without it, all models that train on a Monday would
fill whatever Airflow has handed out to workers, and what is handed out cannot be overtaken any more, not even by what has the
higher priority. Scoring and all other work share what remains, and need no pool.

A task whose pool is missing waits for ever. So a stage uses its pool only where the deployment says how many slots it has
(:class:`perennial.core.settings.Settings`), and whatever starts that deployment makes the pools first, by :func:`commands`.
"""

from __future__ import annotations

from dataclasses import dataclass

from perennial.core.settings import Settings


@dataclass(frozen=True)
class Pool:
    """One of Airflow's pools.

    Attributes:
        name: what Airflow knows it by.
        slots: most tasks at once.
        description: shown in Airflow's UI.
    """

    name: str
    slots: int
    description: str


def pools(settings: Settings) -> dict[str, Pool]:
    """The pool of each stage that has one."""
    described = {
        "train": (settings.train_slots, "Trainings of all models at once; PERENNIAL_TRAIN_SLOTS says how many"),
        "load": (settings.load_slots, "Tasks that load history, of all models at once; PERENNIAL_LOAD_SLOTS says how many"),
    }
    return {stage: Pool(f"perennial_{stage}", slots, words) for stage, (slots, words) in described.items() if slots}


def commands(settings: Settings) -> list[tuple[str, ...]]:
    """What to ask the command ``airflow`` for, so that the pools are there and as large as the settings say."""
    return [("pools", "set", pool.name, str(pool.slots), pool.description) for pool in pools(settings).values()]
