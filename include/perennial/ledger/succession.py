"""Who was champion, who led to the current one, and what going back means. Pure: it reads what the ledger tells.

Neighbours: :mod:`perennial.ledger.store` keeps the changes, :mod:`perennial.registry.store` makes them,
:mod:`perennial.scoring.publish` lets an earlier champion score what the current one has learned from,
:mod:`perennial.monitoring.shadow` lets it score beside the current one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Protocol, TypeVar


class Change(Protocol):
    """What is read of the ledger's promotions."""

    @property
    def version(self) -> int: ...
    @property
    def action(self) -> str: ...
    @property
    def completed_at(self) -> datetime | None: ...


_C = TypeVar("_C", bound=Change)

#: Changes that lead back when their version was champion before; whoever promotes one again means a step forward.
_LEADS_BACK = ("rollback", "adopt")


def completed(changes: Iterable[_C]) -> list[_C]:
    """The changes that took place, in their order."""
    return [change for change in changes if change.completed_at is not None]


def in_force(changes: Iterable[_C], moment: datetime) -> _C | None:
    """The change that made the champion of a moment; None before the first champion."""
    made = [change for change in completed(changes) if change.completed_at is not None and change.completed_at <= moment]
    return made[-1] if made else None


def lineage(changes: Iterable[Change]) -> list[int]:
    """The champions that led to the current one, which is the last; what was rolled back from is no longer among them."""
    line: list[int] = []
    for change in completed(changes):
        if _leads_back(change, line):
            del line[line.index(change.version) + 1 :]
        else:
            line.append(change.version)
    return line


def newest_leads_back(changes: Iterable[Change]) -> bool:
    """Whether the newest change went back to an earlier champion, so that there is nothing left to undo."""
    made = completed(changes)
    return bool(made) and _leads_back(made[-1], lineage(made[:-1]))


def _leads_back(change: Change, line: list[int]) -> bool:
    return change.action in _LEADS_BACK and change.version in line
