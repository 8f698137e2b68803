"""A task proposes once for each try, and the first ruling stands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from perennial.ledger.store import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.migrate()
    return ledger


def propose(ledger: Ledger, key: str) -> int:
    said = {"version": 3, "gain": float("nan")}
    return ledger.propose(key, model="toy", step="promote_champion", dag_id="toy.train", run_id="by hand", said=said)


def test_a_try_that_proposes_twice_has_one_proposal(ledger: Ledger) -> None:
    first = propose(ledger, "toy.train/by hand/promote_champion/1")
    assert propose(ledger, "toy.train/by hand/promote_champion/1") == first
    assert propose(ledger, "toy.train/by hand/promote_champion/2") > first


def test_proposals_wait_in_their_order_until_they_are_ruled_on(ledger: Ledger) -> None:
    first, second = propose(ledger, "one"), propose(ledger, "two")
    assert [waiting.id for waiting in ledger.unruled()] == [first, second]
    assert ledger.unruled_since() == ledger.proposal(first).proposed_at
    assert ledger.ruling(first) is None
    ledger.rule(first, "done", value={"champion": 3}, page="http://here/3")
    assert [waiting.id for waiting in ledger.unruled()] == [second]
    assert ledger.unruled_since() == ledger.proposal(second).proposed_at
    ruling = ledger.ruling(first)
    assert ruling is not None
    assert (ruling.outcome, ruling.words, ruling.value, ruling.page) == ("done", "", {"champion": 3}, "http://here/3")


def test_the_first_ruling_stands(ledger: Ledger) -> None:
    proposed = propose(ledger, "one")
    ledger.rule(proposed, "failed", words="refused")
    ledger.rule(proposed, "done")
    ruling = ledger.ruling(proposed)
    assert ruling is not None
    assert (ruling.outcome, ruling.words) == ("failed", "refused")


def test_old_rulings_are_removed_with_their_proposals_and_what_waits_stays(ledger: Ledger) -> None:
    ruled, waits = propose(ledger, "one"), propose(ledger, "two")
    ledger.rule(ruled, "done")
    assert ledger.remove_proposals(datetime.now(UTC) - timedelta(days=1)) == 0
    assert ledger.remove_proposals(datetime.now(UTC) + timedelta(seconds=1)) == 1
    assert ledger.ruling(ruled) is None
    assert [waiting.id for waiting in ledger.unruled()] == [waits]
