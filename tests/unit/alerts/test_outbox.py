"""An alert is written with what caused it, waits for each channel separately, and is open until it has recovered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from perennial.alerts import of_models, of_operation
from perennial.alerts.alert import Alert, linking
from perennial.alerts.outbox import ChannelState, Lease, Outbox
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.evidence.verdict import VerdictDetails
from perennial.ledger.records import VerdictName
from perennial.ledger.store import Ledger

MODEL = "flight_delay"
DAY = Interval.day("2013-04-01")
NEXT_DAY = Interval.day("2013-04-02")
SLACK, MAIL = "slack:team", "email:ann@example.org"
MINUTE = timedelta(minutes=1)


@pytest.fixture
def ledger(settings_on_each_database: Settings) -> Ledger:
    ledger = Ledger(settings_on_each_database.database_url, settings_on_each_database.state)
    ledger.migrate()
    return ledger


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC) + MINUTE


def drift(interval: Interval = DAY) -> Alert:
    return of_models.drift(MODEL, interval, version=1, reasons=["moved"])


def judge(ledger: Ledger, interval: Interval, verdict: VerdictName, alert: Alert | None = None) -> None:
    ledger.record_verdict(
        model=MODEL, interval=interval, version=1, verdict=verdict, reasons=[], details=VerdictDetails(), report=None,
        run_id="r", alert=alert,
    )  # fmt: skip


def keys(outbox: Outbox, channel: str) -> list[str]:
    return [waiting.key for waiting in outbox.waiting(channel)]


def claim(outbox: Outbox, channel: str, now: datetime) -> Lease:
    [found] = [due for due in outbox.due(now, before=now) if due.channel == channel]
    lease = outbox.claim(found, now, now + MINUTE)
    assert lease is not None
    return lease


def deliver(outbox: Outbox, channel: str, now: datetime, receipt: str | None = None) -> None:
    lease = claim(outbox, channel, now)
    numbers = [waiting.id for waiting in outbox.waiting(channel)]
    outbox.mark_delivered(lease, numbers, now, receipt=receipt, next_attempt_at=now)
    outbox.release(lease)


def told(ledger: Ledger) -> list[str]:
    return [entry.alert.kind for entry in ledger.alerts()]


# --- each channel separately -----------------------------------------------------------------------------------------


def test_what_one_channel_has_waits_on_for_another(ledger: Ledger, now: datetime) -> None:
    outbox = ledger.outbox
    ledger.record_alert(drift(), "one")
    ledger.record_alert(drift(), "one")
    ledger.record_alert(drift(NEXT_DAY), "two")
    assert outbox.backlog().count == 2
    assert outbox.route(lambda alert: [SLACK, MAIL], now) == 0
    lease = claim(outbox, SLACK, now)
    outbox.mark_failed(lease, [1, 2], now, error="503", next_attempt_at=now + MINUTE, refused=False)
    deliver(outbox, MAIL, now)
    assert (keys(outbox, SLACK), keys(outbox, MAIL)) == (["one", "two"], [])
    assert [channel.channel for channel in outbox.due(now, before=now)] == []
    later = now + MINUTE
    assert [(c.channel, c.failures, c.error) for c in outbox.due(later, before=later)] == [(SLACK, 1, "503")]
    deliver(outbox, SLACK, later)
    assert outbox.backlog().count == 0
    assert [(d.channel, d.attempts, d.error) for d in ledger.alerts()[0].deliveries] == [(MAIL, 0, None), (SLACK, 1, None)]


def test_an_alert_that_nobody_is_to_hear_of_is_done(ledger: Ledger, now: datetime) -> None:
    ledger.record_alert(of_models.promoted(MODEL, version=1, previous=None, reason="better", actor="gates"), "one")
    assert ledger.outbox.route(lambda alert: [], now) == 1
    assert not ledger.alerts()[0].waits
    assert ledger.alerts(since=now) == []
    ledger.record_alert(drift(), "two")
    ledger.outbox.route(lambda alert: [], now)
    assert [entry.key for entry in ledger.alerts(since=now)] == ["two"], "it is open"


def test_an_alert_whose_channels_cannot_be_told_waits(ledger: Ledger, now: datetime) -> None:
    ledger.record_alert(drift(), "one")
    ledger.outbox.route(lambda alert: None, now)
    assert ledger.outbox.backlog().count == 1
    assert [entry.key for entry in ledger.alerts(since=now)] == ["one"]
    ledger.outbox.route(lambda alert: [SLACK], now)
    assert keys(ledger.outbox, SLACK) == ["one"]


def test_of_many_senders_at_once_one_has_the_channel(ledger: Ledger, now: datetime) -> None:
    outbox = ledger.outbox
    ledger.record_alert(drift(), "one")
    outbox.route(lambda alert: [SLACK], now)
    [channel] = outbox.due(now, before=now)
    with ThreadPoolExecutor(6) as pool:
        leases = list(pool.map(lambda _: outbox.claim(channel, now, now + MINUTE), range(6)))
    assert len([lease for lease in leases if lease]) == 1
    # One who died while sending did not take the channel along, nor does it get it back.
    [dead] = [lease for lease in leases if lease]
    later = now + MINUTE
    assert outbox.due(now, before=now) == []
    lease = claim(outbox, SLACK, later)
    assert not outbox.keep(dead, later + MINUTE)
    assert outbox.keep(lease, later + MINUTE)


def test_who_looked_before_another_has_sent_does_not_send_after_it(ledger: Ledger, now: datetime) -> None:
    outbox = ledger.outbox
    ledger.record_alert(drift(), "one")
    outbox.route(lambda alert: [SLACK], now)
    [seen] = outbox.due(now, before=now)
    lease = claim(outbox, SLACK, now)
    outbox.mark_delivered(lease, [1], now, receipt=None, next_attempt_at=now + timedelta(seconds=1))
    outbox.release(lease)
    assert outbox.claim(seen, now, now + MINUTE) is None


def test_who_only_steps_in_leaves_alone_what_is_not_overdue(ledger: Ledger, now: datetime) -> None:
    outbox = ledger.outbox
    ledger.record_alert(drift(), "one")
    outbox.route(lambda alert: [SLACK], now)
    assert outbox.due(now, before=now - timedelta(minutes=10)) == []
    later = now + timedelta(minutes=10)
    assert [channel.channel for channel in outbox.due(later, before=later - timedelta(minutes=10))] == [SLACK]


def test_a_channel_that_nobody_names_any_more_is_given_up_with_its_reason(ledger: Ledger, now: datetime) -> None:
    outbox = ledger.outbox
    ledger.record_alert(drift(), "one")
    outbox.route(lambda alert: [SLACK], now)
    outbox.give_up(claim(outbox, SLACK, now), now, reason="no model names it")
    [entry] = ledger.alerts()
    assert not entry.waits
    assert entry.deliveries[0].given_up_at == now
    assert entry.deliveries[0].error == "no model names it"
    assert outbox.channels() == []


# --- open, and recovered ---------------------------------------------------------------------------------------------


def test_what_is_found_again_and_again_is_told_once_until_it_is_over(ledger: Ledger) -> None:
    silent = of_operation.airflow_silent("perennial", reason="refused")
    with pytest.raises(ValueError, match="needs a subject"):
        ledger.record_alert(silent)
    assert [ledger.record_alert(drift()) for _ in range(3)] == [True, False, False]
    [subject] = ledger.open_subjects(f"judged/{MODEL}")
    assert ledger.resolve(subject, "mended")
    assert not ledger.resolve(subject, "mended")
    assert ledger.open_subjects("judged") == []
    assert ledger.record_alert(drift())
    assert told(ledger) == ["drift", "recovered", "drift"]


def test_the_same_event_is_news_once_it_was_well_again(ledger: Ledger) -> None:
    for _ in range(2):
        assert ledger.record_alert(drift(), "key")
        assert not ledger.record_alert(drift(), "key")
        assert ledger.resolve(str(drift().subject), "mended")
    assert told(ledger) == ["drift", "recovered"] * 2


def test_that_it_is_well_again_goes_where_it_was_said_to_be_wrong(ledger: Ledger, now: datetime) -> None:
    outbox = ledger.outbox
    ledger.record_alert(drift(), "one")
    outbox.route(lambda alert: [SLACK, MAIL], now)
    deliver(outbox, MAIL, now, receipt="<one@example.org>")
    ledger.resolve(str(drift().subject), "mended")
    outbox.route(lambda alert: ["slack:another"], now)
    assert keys(outbox, "slack:another") == []
    [answer] = outbox.waiting(MAIL)
    assert (answer.resolves, answer.answers) == ((1,), "<one@example.org>")
    wrong, well = outbox.waiting(SLACK)
    assert (wrong.key, well.resolves, well.answers) == ("one", (1,), None)


def test_a_refused_interval_is_well_once_a_run_has_published_it(ledger: Ledger) -> None:
    for run in ("a", "b"):
        refused = of_models.interval_refused(MODEL, DAY, reasons=["3 rows"], rows={})
        ledger.record_refusal(model=MODEL, interval=DAY, run_id=run, reasons=[], rows={}, alert=refused)
    for interval in (NEXT_DAY, Interval(DAY.start, NEXT_DAY.end)):
        order = ledger.next_order(MODEL, "tables", interval, interval.key)
        claimed = ledger.claim(MODEL, "tables", interval, order=order, run_id=interval.key)
        base = ledger.head(MODEL, "tables")
        ledger.commit(claimed, base=base, snapshots={}, hashes={}, rows={}, inputs={})
        assert ("recovered" in told(ledger)) == (interval != NEXT_DAY)
    *_, well = ledger.alerts()
    assert well.alert.title == f"{MODEL}: recovered: the data of 2013-04-01 were refused"
    assert "reported 2 times" in well.alert.text
    assert "2013-04-01--2013-04-03 is published" in well.alert.text
    assert "Correct the source" not in well.alert.text


def test_drift_is_over_when_a_window_no_older_is_as_it_should_be(ledger: Ledger) -> None:
    judge(ledger, NEXT_DAY, "drift", drift(NEXT_DAY))
    judge(ledger, DAY, "ok")
    assert told(ledger) == ["drift"], "an older window says nothing of a newer one"
    judge(ledger, NEXT_DAY, "ok")
    assert told(ledger) == ["drift", "recovered"]


def test_an_unknown_verdict_is_resolved_by_one_that_is_known(ledger: Ledger) -> None:
    judge(ledger, DAY, "unknown", of_models.unknown_verdict(MODEL, DAY, version=1, reasons=["no reference"]))
    judge(ledger, DAY, "drift", drift())
    assert told(ledger) == ["unknown_verdict", "recovered", "drift"]
    judge(ledger, NEXT_DAY, "unknown", of_models.unknown_verdict(MODEL, NEXT_DAY, version=1, reasons=["no reference"]))
    assert told(ledger)[3:] == ["unknown_verdict"], "what is unknown says nothing of drift"


def test_fallen_performance_is_over_when_nothing_is_wrong_any_more(ledger: Ledger) -> None:
    fell = of_models.performance_fell(MODEL, DAY, version=1, reasons=["0.6"], severity="warning")
    judge(ledger, DAY, "ok", fell)
    again = of_models.performance_fell(MODEL, NEXT_DAY, version=1, reasons=["0.6"], severity="warning")
    judge(ledger, NEXT_DAY, "ok", again)
    assert told(ledger) == ["performance_fell"] * 2
    judge(ledger, Interval.day("2013-04-03"), "ok")
    assert told(ledger)[2:] == ["recovered"] * 2


def test_a_new_champion_resets_the_breaker(ledger: Ledger) -> None:
    ledger.record_alert(of_models.breaker(MODEL, DAY, reason="3 trainings"), "breaker")
    promotion = ledger.intend_promotion(
        model=MODEL, version=1, expected=None, action="promote", reason="better", actor="gates", run_id="r", evidence={}
    )
    assert told(ledger) == ["breaker"]
    for _ in range(2):
        ledger.complete_promotion(promotion.id)
    assert told(ledger) == ["breaker", "recovered"]


def test_people_are_told_once_that_a_channel_is_lost_and_once_that_it_is_back(ledger: Ledger, now: datetime) -> None:
    outbox = ledger.outbox
    ledger.record_alert(drift(), "one")
    outbox.route(lambda alert: [SLACK], now)
    for hour in range(3):
        at = now + timedelta(hours=hour)
        lost = of_operation.channel_lost(SLACK, reason="404", since=now, refuses=True, waiting=1, critical=0)
        lease = claim(outbox, SLACK, at)
        next_at = at + timedelta(hours=1)
        outbox.mark_failed(lease, [1], at, error="404", next_attempt_at=next_at, refused=True, lost=lost, tell=[MAIL])
    [channel] = [channel for channel in outbox.channels() if channel.channel == SLACK]
    assert (channel.failures, channel.failing_since, channel.refused_at) == (3, now, now)
    assert len(keys(outbox, MAIL)) == 1
    deliver(outbox, SLACK, now + timedelta(hours=3))
    outbox.route(lambda alert: None, now)
    assert [waiting.alert.title for waiting in outbox.waiting(MAIL)] == [
        "slack:team takes no alerts",
        "perennial: recovered: slack:team takes no alerts",
    ]
    assert outbox.channels()[1] == ChannelState(SLACK, now + timedelta(hours=3), 0, None, None, None)


def test_alerts_of_a_run_lead_to_it(ledger: Ledger) -> None:
    with linking({"Run": "http://airflow/run"}):
        ledger.record_alert(of_models.drift(MODEL, DAY, version=1, reasons=[], links={"Report": "http://mlflow"}), "one")
    assert ledger.alerts()[0].alert.links == {"Report": "http://mlflow", "Run": "http://airflow/run"}
