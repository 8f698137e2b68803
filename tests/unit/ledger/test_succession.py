"""Who was champion, and what going back means."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from perennial.ledger.succession import in_force, lineage, newest_leads_back

START = datetime(2013, 4, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Made:
    version: int
    action: str
    completed_at: datetime | None


def changes(*made: tuple[str, int] | None) -> list[Made]:
    """One a day; None is one that was withdrawn."""
    return [
        Made(given[1], given[0], START + timedelta(days=n)) if given else Made(99, "promote", None)
        for n, given in enumerate(made)
    ]


def test_the_line_is_of_those_that_led_to_the_champion() -> None:
    assert lineage([]) == []
    assert lineage(changes(("promote", 1), None, ("promote", 2), ("promote", 3))) == [1, 2, 3]
    assert lineage(changes(("promote", 1), ("promote", 2), ("promote", 3), ("rollback", 2), ("promote", 4))) == [1, 2, 4]
    assert lineage(changes(("promote", 1), ("promote", 2), ("adopt", 1))) == [1]
    assert lineage(changes(("promote", 1), ("adopt", 2))) == [1, 2]
    assert lineage(changes(("promote", 1), ("promote", 2), ("override", 1))) == [1, 2, 1]


def test_what_went_back_last_leaves_nothing_to_undo() -> None:
    assert not newest_leads_back([])
    assert not newest_leads_back(changes(("promote", 1), ("adopt", 2)))
    assert newest_leads_back(changes(("promote", 1), ("promote", 2), ("rollback", 1), None))
    assert newest_leads_back(changes(("promote", 1), ("promote", 2), ("adopt", 1)))
    assert not newest_leads_back(changes(("promote", 1), ("promote", 2), ("rollback", 1), ("promote", 3)))


def test_the_champion_of_a_moment_is_the_one_of_the_change_before_it() -> None:
    made = changes(("promote", 1), None, ("promote", 2))
    assert in_force(made, START - timedelta(seconds=1)) is None
    assert in_force(made, START) is made[0]
    assert in_force(made, START + timedelta(days=1, hours=23)) is made[0]
    assert in_force(made, START + timedelta(days=9)) is made[2]


@given(st.lists(st.tuples(st.sampled_from(["promote", "adopt", "rollback", "override"]), st.integers(1, 5)), max_size=12))
def test_the_last_of_the_line_is_the_champion_and_each_was_one(made: list[tuple[str, int]]) -> None:
    line = lineage(changes(*made))
    assert line[-1:] == [version for _, version in made[-1:]]
    assert set(line) <= {version for _, version in made}
