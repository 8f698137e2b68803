"""The ledger, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from typing import Any

import pytest

from perennial.alerts import of_models
from perennial.core.errors import ArtifactRejected, StaleDecision, Superseded
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.evidence.decision import GateDecision, GateResult
from perennial.evidence.evaluation import Evaluation
from perennial.evidence.training import CodeState, TrainingRecord
from perennial.evidence.verdict import VerdictDetails
from perennial.ledger.records import Approval, Head, Promotion, Publication, VersionRecord
from perennial.ledger.store import Ledger

MODEL = "flight_delay"
DAY = Interval.day("2013-04-01")
NEXT_DAY = Interval.day("2013-04-02")
WEEK = Interval.of("2013-04-01", "2013-04-08")
NOW = datetime(2013, 4, 9, 2, tzinfo=UTC)


@pytest.fixture
def ledger(settings_on_each_database: Settings) -> Ledger:
    ledger = Ledger(settings_on_each_database.database_url, settings_on_each_database.state)
    ledger.migrate()
    return ledger


def publish(ledger: Ledger, interval: Interval, run_id: str, snapshot: int, order: int | None = None) -> Publication | None:
    order = order or ledger.next_order(MODEL, "tables", interval, run_id)
    claim = ledger.claim(MODEL, "tables", interval, order=order, run_id=run_id)
    return ledger.commit(
        claim,
        base=ledger.head(MODEL, "tables"),
        snapshots={"flights": snapshot},
        hashes={"flights": f"hash-{snapshot}"},
        rows={"flights": 3},
        inputs={"files": [snapshot]},
    )


def promote(ledger: Ledger, version: int, expected: int | None, run_id: str | None = None) -> Promotion:
    promotion = ledger.intend_promotion(
        model=MODEL, version=version, expected=expected, action="promote", reason="better", actor="gates", run_id=run_id,
        evidence={},
    )  # fmt: skip
    ledger.complete_promotion(promotion.id)
    return promotion


def record(version: int = 1, **changes: object) -> VersionRecord:
    fields: dict[str, object] = {
        "model": MODEL, "version": version, "mlflow_run_id": "run", "spec_digest": "spec", "features_digest": "features",
        "manifest": {"model.skops": "0" * 64}, "training": TrainingRecord.from_json({"rows": {"window": 10}}),
        "evaluation": Evaluation.from_json({}), "decision": GateDecision.from_json({}), "code": CodeState(), "created_at": NOW,
    }  # fmt: skip
    return VersionRecord(**(fields | changes))  # type: ignore[arg-type]


def _migrate(url: str) -> None:
    Ledger(url).migrate()


def test_tables_are_created_once_by_processes_that_start_together(settings_on_each_database: Settings) -> None:
    url = settings_on_each_database.database_url
    context = get_context("forkserver")
    context.set_forkserver_preload(["perennial.lake.publish"])
    processes = [context.Process(target=_migrate, args=(url,)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert Ledger(url).champion(MODEL) is None


# --- publications ----------------------------------------------------------------------------------------------------


def test_nothing_is_published_before_the_first_publication(ledger: Ledger) -> None:
    assert ledger.published(MODEL, "tables") is None
    assert ledger.head(MODEL, "tables") == Head(0, 0, {})


def test_publication_is_told_as_it_was_committed(ledger: Ledger) -> None:
    publication = publish(ledger, DAY, "run", 1)
    assert publication is not None
    assert ledger.published(MODEL, "tables") == publication
    assert ledger.publications(MODEL, "tables") == [publication]
    assert Publication.from_json(publication.to_json()) == publication
    assert (publication.interval, publication.snapshots, publication.inputs) == (DAY, {"flights": 1}, {"files": [1]})


def test_publications_are_found_by_overlap(ledger: Ledger) -> None:
    publish(ledger, DAY, "a", 1)
    publish(ledger, NEXT_DAY, "b", 2)
    publish(ledger, WEEK, "c", 3)
    assert [p.run_id for p in ledger.publications(MODEL, "tables", NEXT_DAY)] == ["b", "c"]
    assert ledger.publications(MODEL, "features", NEXT_DAY) == []
    assert ledger.publications("other", "tables") == []


def test_run_keeps_its_order_and_later_runs_rank_higher(ledger: Ledger) -> None:
    first = ledger.next_order(MODEL, "tables", DAY, "first")
    second = ledger.next_order(MODEL, "tables", DAY, "second")
    assert first < second
    assert ledger.next_order(MODEL, "tables", DAY, "first") == first


def test_runs_that_ask_at_once_get_orders_of_their_own(ledger: Ledger) -> None:
    runs = [f"run-{n % 8}" for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        orders = list(pool.map(lambda run: (run, ledger.next_order(MODEL, "tables", DAY, run)), runs))
    assert len({order for _, order in orders}) == len(set(orders)) == 8


def test_attempt_cannot_commit_once_its_retry_has_claimed(ledger: Ledger) -> None:
    order = ledger.next_order(MODEL, "tables", DAY, "run")
    base = ledger.head(MODEL, "tables")
    stale = ledger.claim(MODEL, "tables", DAY, order=order, run_id="run")
    retry = ledger.claim(MODEL, "tables", DAY, order=order, run_id="run")
    with pytest.raises(Superseded, match="another attempt of run run"):
        ledger.commit(stale, base=base, snapshots={"flights": 1}, hashes={}, rows={}, inputs={})
    assert ledger.commit(retry, base=base, snapshots={"flights": 2}, hashes={}, rows={}, inputs={})
    with pytest.raises(Superseded):
        ledger.check(stale)
    assert ledger.head(MODEL, "tables").snapshots == {"flights": 2}


def test_earlier_run_cannot_commit_over_a_later_one(ledger: Ledger) -> None:
    earlier = ledger.next_order(MODEL, "tables", WEEK, "earlier")
    publish(ledger, NEXT_DAY, "later", 1)
    with pytest.raises(Superseded, match="run later, which started after run earlier"):
        publish(ledger, WEEK, "earlier", 2, earlier)
    assert publish(ledger, Interval.day("2013-04-09"), "elsewhere", 3, earlier)


def test_commit_on_a_base_that_moved_publishes_nothing(ledger: Ledger) -> None:
    base = ledger.head(MODEL, "tables")
    publish(ledger, DAY, "a", 1)
    claim = ledger.claim(MODEL, "tables", NEXT_DAY, order=99, run_id="b")
    assert ledger.commit(claim, base=base, snapshots={"flights": 2}, hashes={}, rows={}, inputs={}) is None
    assert len(ledger.publications(MODEL, "tables")) == 1


def test_of_commits_on_one_base_exactly_one_succeeds(ledger: Ledger) -> None:
    base = ledger.head(MODEL, "tables")
    days = [Interval.day(DAY.start + timedelta(days=n)) for n in range(8)]
    claims = [ledger.claim(MODEL, "tables", day, order=n + 1, run_id=f"run-{n}") for n, day in enumerate(days)]
    together = threading.Barrier(len(claims))

    def commit(snapshot: int) -> Publication | None:
        together.wait()
        return ledger.commit(claims[snapshot], base=base, snapshots={"flights": snapshot}, hashes={}, rows={}, inputs={})

    with ThreadPoolExecutor(len(claims)) as pool:
        committed = [publication for publication in pool.map(commit, range(len(claims))) if publication]
    assert len(committed) == 1
    assert ledger.publications(MODEL, "tables") == committed


def test_maintenance_moves_readers_but_not_history(ledger: Ledger) -> None:
    publish(ledger, DAY, "a", 1)
    head = ledger.head(MODEL, "tables")
    assert ledger.move(MODEL, "tables", base=head, snapshots={"flights": 7})
    assert not ledger.move(MODEL, "tables", base=head, snapshots={"flights": 8})
    published = ledger.published(MODEL, "tables")
    assert published is not None
    assert published.snapshots == {"flights": 7}
    assert ledger.publications(MODEL, "tables")[0].snapshots == {"flights": 1}


def test_snapshots_that_readers_were_sent_to_are_remembered(ledger: Ledger) -> None:
    publish(ledger, DAY, "a", 1)
    publish(ledger, DAY, "b", 2)
    before = datetime.now(UTC)
    publish(ledger, DAY, "c", 3)
    # 2 was current until 3 came, which was after ``before``.
    assert ledger.snapshots_since(MODEL, "tables", before) == {"flights": {2, 3}}
    assert ledger.snapshots_since(MODEL, "tables", datetime.now(UTC)) == {"flights": {3}}


def test_latest_publication_is_that_of_the_interval_that_ends_last(ledger: Ledger) -> None:
    publish(ledger, NEXT_DAY, "a", 1)
    publish(ledger, DAY, "b", 2)
    latest = ledger.latest(MODEL, "tables", "flights")
    assert latest is not None
    assert latest.run_id == "a"
    assert ledger.latest(MODEL, "tables", "weather") is None


def test_revoked_claim_cannot_commit_even_after_the_run_claimed_again(ledger: Ledger) -> None:
    asleep = ledger.claim(MODEL, "tables", DAY, order=1, run_id="run")
    ledger.revoke_claims(MODEL, datetime.now(UTC) + timedelta(seconds=1))
    with pytest.raises(Superseded):
        ledger.check(asleep)
    ledger.claim(MODEL, "tables", DAY, order=1, run_id="run")
    with pytest.raises(Superseded):
        ledger.check(asleep)


# --- versions and promotions -----------------------------------------------------------------------------------------


def test_version_recorded_twice_keeps_its_first_word_and_fills_in_what_was_empty(ledger: Ledger) -> None:
    ledger.record_version(record())
    evaluation = {"metric": "auc", "candidate": {"metrics": {"auc": float("nan")}}}
    ledger.record_version(
        record(
            training=TrainingRecord.from_json({"rows": {"window": 99}}),
            evaluation=Evaluation.from_json(evaluation),
            decision=GateDecision(False, [GateResult("champion", False, "worse")], "boosting", 3),
        )
    )
    stored = ledger.version(MODEL, 1)
    assert stored is not None
    assert stored.training.rows == {"window": 10}
    assert (stored.decision.reasons, stored.decision.champion) == (["worse"], 3)
    assert str(stored.evaluation.candidate.metrics["auc"]) == "nan"
    assert stored.code.is_empty
    assert [v.version for v in ledger.versions(MODEL)] == [1]
    assert ledger.version(MODEL, 2) is None


def test_version_of_another_registry_is_refused(ledger: Ledger) -> None:
    ledger.record_version(record())
    with pytest.raises(ArtifactRejected, match="version 1 is recorded with another manifest"):
        ledger.record_version(record(manifest={"model.skops": "1" * 64}))


def test_champion_is_the_newest_completed_promotion(ledger: Ledger) -> None:
    assert ledger.champion(MODEL) is None
    promote(ledger, 1, None)
    promote(ledger, 2, 1)
    open_ = ledger.intend_promotion(
        model=MODEL, version=1, expected=2, action="rollback", reason="worse", actor="ann", run_id=None, evidence={"auc": 0.5}
    )
    assert ledger.champion(MODEL) == 2
    ledger.complete_promotion(open_.id)
    ledger.complete_promotion(open_.id)
    assert ledger.champion(MODEL) == 1
    assert [(p.version, p.previous, p.action) for p in ledger.promotions(MODEL)] == [
        (1, None, "promote"), (2, 1, "promote"), (1, 2, "rollback"),
    ]  # fmt: skip


def test_promotion_decided_against_another_champion_is_refused(ledger: Ledger) -> None:
    promote(ledger, 1, None)
    with pytest.raises(StaleDecision, match="made against champion none, but the champion is now 1"):
        promote(ledger, 2, None)


def test_promotion_waits_for_the_open_one(ledger: Ledger) -> None:
    intent: dict[str, Any] = {
        "model": MODEL, "action": "promote", "reason": "better", "actor": "gates", "expected": None, "evidence": {},
    }  # fmt: skip
    first = ledger.intend_promotion(**intent, version=1, run_id="a")
    with pytest.raises(StaleDecision, match="while the promotion of version 1"):
        ledger.intend_promotion(**intent, version=2, run_id="b")
    assert ledger.intend_promotion(**intent, version=1, run_id="a") == first
    ledger.withdraw_promotion(first.id)
    with pytest.raises(StaleDecision, match="was already withdrawn"):
        ledger.complete_promotion(first.id)
    promote(ledger, 2, None, "b")
    assert ledger.champion(MODEL) == 2


def test_retry_of_a_promotion_does_not_undo_a_later_one(ledger: Ledger) -> None:
    promote(ledger, 1, None, "a")
    promote(ledger, 2, 1, "b")
    assert promote(ledger, 1, None, "a").id == ledger.promotions(MODEL)[0].id
    assert ledger.champion(MODEL) == 2


def test_of_promotions_decided_at_once_exactly_one_is_intended(ledger: Ledger) -> None:
    together = threading.Barrier(8)

    def intend(version: int) -> bool:
        together.wait()
        try:
            promote(ledger, version, None, f"run-{version}")
        except StaleDecision:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(intend, range(1, 9))) == 1
    assert len(ledger.promotions(MODEL)) == 1


def test_the_champion_of_any_moment_is_told_with_why_and_by_whom(ledger: Ledger) -> None:
    before = datetime.now(UTC)
    promote(ledger, 1, None, "a")
    between = datetime.now(UTC)
    promote(ledger, 2, 1, "b")
    assert ledger.champion_at(MODEL, before) is None
    for moment, version in ((between, 1), (datetime.now(UTC), 2)):
        found = ledger.champion_at(MODEL, moment)
        assert found is not None
        assert (found.version, found.reason, found.actor, found.run_id) == (version, "better", "gates", "ab"[version - 1])


def test_one_process_at_a_time_has_the_right_to_move_the_alias(ledger: Ledger) -> None:
    first = ledger.intend_promotion(
        model=MODEL, version=1, expected=None, action="promote", reason="", actor="", run_id="a", evidence={}
    )
    lease = timedelta(minutes=1)
    move = ledger.begin_move(first, lease=lease)
    assert move is not None
    assert ledger.begin_move(first, lease=lease) is None
    # One that took it too long ago has died or sleeps; it is remembered all the same.
    second = ledger.begin_move(first, lease=timedelta(0))
    assert second is not None
    ledger.end_move(MODEL, second)
    assert ledger.unended_moves(MODEL, datetime.now(UTC) - lease) == {1}
    assert ledger.unended_moves(MODEL, datetime.now(UTC)) == set()
    ledger.end_move(MODEL, move)
    assert ledger.unended_moves(MODEL, datetime.now(UTC) - lease) == set()


def test_who_was_overtaken_may_not_move_the_alias(ledger: Ledger) -> None:
    first, lease = promote(ledger, 1, None, "a"), timedelta(minutes=1)
    promote(ledger, 2, 1, "b")
    with pytest.raises(StaleDecision, match="no longer the newest one"):
        ledger.begin_move(first, lease=lease)


def test_what_people_answered_is_kept(ledger: Ledger) -> None:
    refused = Approval(MODEL, 1, "refused", "ann", "a\0 holiday", NOW, "run")
    expired = Approval(MODEL, 1, "expired", None, "", NOW + timedelta(days=1), "run")
    for answer in (refused, refused, expired):
        ledger.record_approval(answer)
    assert [answer.told for answer in ledger.approvals(MODEL, 1)] == [
        "refused by ann: a\ufffd holiday", "nobody answered until 2013-04-10 02:00 UTC",
    ]  # fmt: skip
    assert ledger.approvals(MODEL, 2) == []
    assert len(ledger.approvals(MODEL)) == 2


# --- verdicts, performance, retraining, refusals ---------------------------------------------------------------------


def test_verdict_on_an_interval_replaces_the_one_before(ledger: Ledger) -> None:
    details = VerdictDetails(share=float("inf"))
    common = {"model": MODEL, "version": 1, "reasons": ["r"], "details": details, "report": None, "run_id": "a"}
    ledger.record_verdict(**common, interval=DAY, verdict="unknown")  # type: ignore[arg-type]
    ledger.record_verdict(**common, interval=DAY, verdict="ok")  # type: ignore[arg-type]
    ledger.record_verdict(**common, interval=NEXT_DAY, verdict="drift")  # type: ignore[arg-type]
    assert [(v.interval, v.verdict) for v in ledger.verdicts(MODEL)] == [(NEXT_DAY, "drift"), (DAY, "ok")]
    assert [v.verdict for v in ledger.verdicts(MODEL, before=DAY.end)] == ["ok"]
    assert [v.verdict for v in ledger.verdicts(MODEL, limit=1)] == ["drift"]
    assert ledger.verdicts(MODEL)[0].details == details


def test_text_that_quotes_a_broken_file_is_kept(ledger: Ledger) -> None:
    ledger.record_retraining(model=MODEL, window_end=DAY.end, asked=False, cause="none", reason="a\0b\ud800c", run_id="a")
    ledger.record_refusal(model=MODEL, interval=DAY, run_id="a", reasons=["a\0b\ud800c"], rows={})
    assert ledger.retrainings(MODEL)[0].reason == "a\ufffdb?c"
    assert ledger.refusals(MODEL)[0].reasons == ["a\0b\ud800c"]


def test_performance_is_kept_for_each_interval_and_version(ledger: Ledger) -> None:
    def measured(interval: Interval, version: int, auc: float) -> None:
        ledger.record_performance(
            model=MODEL,
            interval=interval,
            version=version,
            metrics={"roc_auc": auc},
            rows=9,
            coverage=0.9,
            as_of=NOW,
            run_id="a",
        )

    measured(NEXT_DAY, 1, 0.7)
    measured(DAY, 1, 0.5)
    measured(DAY, 1, 0.6)
    measured(DAY, 2, 0.8)
    found = ledger.performances(MODEL)
    assert [(p.interval, p.version, p.metrics["roc_auc"]) for p in found] == [(DAY, 1, 0.6), (DAY, 2, 0.8), (NEXT_DAY, 1, 0.7)]
    assert (found[0].as_of, found[0].coverage, found[0].rows) == (NOW, 0.9, 9)


def test_first_word_on_retraining_after_a_window_stands(ledger: Ledger) -> None:
    first = ledger.record_retraining(model=MODEL, window_end=DAY.end, asked=True, cause="drift", reason="2 of 3", run_id="a")
    again = ledger.record_retraining(model=MODEL, window_end=DAY.end, asked=False, cause="budget", reason="", run_id="b")
    assert again == first
    ledger.record_retraining(model=MODEL, window_end=NEXT_DAY.end, asked=False, cause="cooldown", reason="", run_id="c")
    assert [r.asked for r in ledger.retrainings(MODEL)] == [True, False]
    assert [r.cause for r in ledger.retrainings(MODEL, since=NEXT_DAY.end)] == ["cooldown"]


def test_refusal_and_its_alert_are_recorded_once_however_often_the_run_is_tried(ledger: Ledger) -> None:
    alert = of_models.interval_refused(MODEL, DAY, reasons=["flights: 3 rows"], rows={"flights": 3})
    for _ in range(3):
        ledger.record_refusal(
            model=MODEL, interval=DAY, run_id="a", reasons=["flights: 3 rows"], rows={"flights": 3}, alert=alert
        )
    assert [(r.interval, r.rows) for r in ledger.refusals(MODEL)] == [(DAY, {"flights": 3})]
    assert [entry.alert for entry in ledger.alerts()] == [alert]
