"""The succession of champions: which version was champion when, and which earlier champions led to the current one.

These are pure functions of the ledger's promotions.

Neighbours: :mod:`perennial.ledger.store` keeps the promotions, and :mod:`perennial.registry.store` makes them.
:mod:`perennial.scoring.publish` scores days with an earlier champion if the current one has learned from them.
:mod:`perennial.scoring.shadow` lets an earlier champion score beside the current one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Protocol, TypeVar


class Change(Protocol):
    """The attributes of a promotion that this module reads."""

    @property
    def version(self) -> int: ...
    @property
    def action(self) -> str: ...
    @property
    def completed_at(self) -> datetime | None: ...


_C = TypeVar("_C", bound=Change)

#: Actions that lead back if their version was champion before. Any other promotion of such a version is a step forward.
_LEADS_BACK = ("rollback", "adopt")


def completed(changes: Iterable[_C]) -> list[_C]:
    """The completed changes, in their order."""
    return [change for change in changes if change.completed_at is not None]


def in_force(changes: Iterable[_C], moment: datetime) -> _C | None:
    """The change that made the version champion that was in force at a moment; None before the first champion."""
    made = [change for change in completed(changes) if change.completed_at is not None and change.completed_at <= moment]
    return made[-1] if made else None


def lineage(changes: Iterable[Change]) -> list[int]:
    """The champions that led to the current one, which comes last. Versions that were rolled back are left out."""
    line: list[int] = []
    for change in completed(changes):
        if _leads_back(change, line):
            del line[line.index(change.version) + 1 :]
        else:
            line.append(change.version)
    return line


def newest_leads_back(changes: Iterable[Change]) -> bool:
    """Whether the newest change returned to an earlier champion. Then there is nothing left to undo."""
    made = completed(changes)
    return bool(made) and _leads_back(made[-1], lineage(made[:-1]))


def _leads_back(change: Change, line: list[int]) -> bool:
    return change.action in _LEADS_BACK and change.version in line
