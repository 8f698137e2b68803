"""Airflow's pools for what may keep workers busy for long: trainings, and loads of history.

A pool limits how many tasks of a kind run at once, of all models together. Without it, all models that train on a Monday would
occupy the workers, and a task that a worker has taken cannot be overtaken, not even by one with a higher priority. Scoring and
all other work share the remaining workers, and need no pool.

A task whose pool is missing waits without end. So a stage uses its pool only if the deployment sets its number of slots
(:class:`perennial.core.settings.Settings`), and the start of that deployment makes the pools first, by :func:`commands`.
"""

from __future__ import annotations

from dataclasses import dataclass

from perennial.core.settings import Settings


@dataclass(frozen=True)
class Pool:
    """One of Airflow's pools.

    Attributes:
        name: its name in Airflow.
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
    """The arguments of the command ``airflow`` that make the pools, or set their sizes."""
    return [("pools", "set", pool.name, str(pool.slots), pool.description) for pool in pools(settings).values()]
