"""Slack and the mail server are down for an hour while senders are killed, put to sleep, and run beside each other."""

from __future__ import annotations

import os
import signal
from collections import Counter
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

from perennial.alerts import channels, delivery, of_models
from perennial.alerts.channels import Mail, SlackWebhook
from perennial.alerts.delivery import Addresses
from perennial.alerts.outbox import Outbox
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.ledger.store import Ledger
from tests.faults.signals import processes, trap, wait_until_stopped
from tests.receivers import OK, Mails, Slack, answer

MODEL = "flight_delay"
MAIL = "email:ann@example.org"
_PATIENCE = 60

#: Where a sender dies: which function, and whether before or behind it. None of these may lose anything.
STEPS: dict[str, tuple[Any, str, str]] = {
    "before anything is routed": (Outbox, "route", "before"),
    "after it is routed": (Outbox, "route", "after"),
    "holding a channel": (Outbox, "claim", "after"),
    "before the sending": (channels, "send", "before"),
    "before the failure is marked": (Outbox, "mark_failed", "before"),
    "after the failure is marked": (Outbox, "mark_failed", "after"),
    "between the answer and its mark": (Outbox, "mark_delivered", "before"),
    "after the mark": (Outbox, "mark_delivered", "after"),
}


@pytest.fixture
def ledger(settings_on_each_database: Settings) -> Ledger:
    ledger = Ledger(settings_on_each_database.database_url)
    ledger.migrate()
    return ledger


@pytest.fixture
def url(settings_on_each_database: Settings) -> str:
    return settings_on_each_database.database_url


def send(url: str, ports: tuple[int, int], now: datetime) -> int:
    """Send what waits, at a given time; how many were told."""
    ways: dict[str, channels.Channel] = {"slack:team": SlackWebhook(f"http://127.0.0.1:{ports[0]}")}
    if ports[1]:
        ways[MAIL] = Mail("ann@example.org", "perennial@example.org", "127.0.0.1", ports[1], "none")
    return delivery.deliver(
        Ledger(url).outbox,
        Addresses(lambda _: set(ways), lambda: set(ways)),
        ways.__getitem__,
        clock=lambda: now,
        deadline=timedelta(seconds=8),
        pause=_no_pause,
    ).delivered


async def _no_pause(_: float) -> None:
    """The servers of the tests have no rate."""


def _send_and_die(url: str, ports: tuple[int, int], now: datetime, step: str, signals: list[int]) -> None:
    """In a child: send, and send itself signals at the step."""
    trap(*STEPS[step], *signals)
    send(url, ports, now)


def _send_again_and_again(url: str, ports: tuple[int, int], now: datetime, rounds: int, start: Any, end: Any) -> None:
    """In a child: send together with others, a minute later each time."""
    for turn in range(rounds):
        start.wait(_PATIENCE)
        send(url, ports, now + timedelta(minutes=turn))
        end.wait(_PATIENCE)


def die(children: list[BaseProcess], url: str, ports: tuple[int, int], now: datetime, step: str) -> None:
    child = processes.Process(target=_send_and_die, args=(url, ports, now, step, [signal.SIGKILL]))
    child.start()
    children.append(child)
    child.join(_PATIENCE)
    assert child.exitcode == -signal.SIGKILL, step


def drift(ledger: Ledger, number: int) -> str:
    """Record one; what it is known by in any message."""
    interval = Interval.day(datetime(2013, 4, 1, tzinfo=UTC) + timedelta(days=number))
    ledger.record_alert(of_models.drift(MODEL, interval, version=1, reasons=["moved"]), interval.key)
    return f"drift in {interval.key}"


def told(messages: list[str], what: list[str]) -> Counter[str]:
    return Counter({one: sum(one in message for message in messages) for one in what})


@pytest.mark.slow
def test_an_hour_of_outage_across_kills_loses_nothing_and_tells_nothing_more_than_twice(
    ledger: Ledger, url: str, web: Slack, mail: Mails, children: list[BaseProcess]
) -> None:
    began = datetime.now(UTC) + timedelta(minutes=1)
    web.then = answer(503)
    mail.refusals = {"ann@example.org": "451 down"}
    ports = (web.port, mail.port)
    down = [step for step in STEPS if "answer" not in step and "after the mark" not in step]
    recorded: list[str] = []
    minute = 0
    for minute in range(60):
        if minute % 10 == 0:
            recorded.append(drift(ledger, minute))
        now = began + timedelta(minutes=minute)
        # While all channels are to be left alone a sender does nothing at which it could die.
        busy = bool(ledger.outbox.due(now, before=now)) and minute % 10 == 0
        if busy and down:
            die(children, url, ports, now, down.pop(0))
        else:
            assert send(url, ports, now) == 0
    for step in down:
        minute += 15
        die(children, url, ports, began + timedelta(minutes=minute), step)
    assert not web.taken
    assert not mail.taken

    web.then, mail.refusals = OK, {}
    for step in ("before the sending", "between the answer and its mark", "after the mark"):
        minute += 15
        recorded.append(drift(ledger, minute))
        die(children, url, ports, began + timedelta(minutes=minute), step)
    for _ in range(3):
        minute += 5
        send(url, ports, began + timedelta(minutes=minute))

    assert [entry.key for entry in ledger.alerts() if entry.waits] == []
    for messages in (web.said, [str(mail) for _, mail in mail.taken]):
        times = told(messages, recorded)
        assert min(times.values()) >= 1, "none is lost"
        assert max(times.values()) <= 2, "at most one duplicate each"
        assert len(messages) < len(recorded), "and it was a digest"
    # Whoever has a mail program sees each once.
    assert len({mail["Message-ID"] for _, mail in mail.taken if "drift" in str(mail)}) <= len(mail.taken)


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_costs_one_duplicate_at_most_and_that_between_answer_and_mark_alone(
    step: str, ledger: Ledger, url: str, web: Slack, children: list[BaseProcess]
) -> None:
    now, ports = datetime.now(UTC) + timedelta(minutes=1), (web.port, 0)
    one = drift(ledger, 0)
    if "failure" in step:
        web.answers = [answer(503)]
    die(children, url, ports, now, step)
    for minute in (2, 4):
        send(url, ports, now + timedelta(minutes=minute))
    assert told(web.said, [one])[one] == (2 if step == "between the answer and its mark" else 1)
    assert [entry.key for entry in ledger.alerts() if entry.waits] == []


def test_senders_at_once_tell_everything_once(
    ledger: Ledger, url: str, web: Slack, mail: Mails, children: list[BaseProcess]
) -> None:
    senders, rounds = 4, 4
    now, start, end = datetime.now(UTC) + timedelta(minutes=1), processes.Barrier(senders + 1), processes.Barrier(senders + 1)
    for _ in range(senders):
        child: BaseProcess = processes.Process(
            target=_send_again_and_again, args=(url, (web.port, mail.port), now, rounds, start, end)
        )  # fmt: skip
        child.start()
        children.append(child)
    recorded = []
    for turn in range(rounds):
        recorded.append(drift(ledger, turn))
        ledger.record_alert(of_models.promoted(MODEL, version=turn, previous=None, reason="better", actor="ann"), f"v{turn}")
        recorded.append(f"version {turn} is champion")
        start.wait(_PATIENCE)
        end.wait(_PATIENCE)
    for child in children:
        child.join(_PATIENCE)
    assert [child.exitcode for child in children] == [0] * senders
    for messages in (web.said, [mail["Subject"] for _, mail in mail.taken]):
        assert told(messages, recorded) == Counter(recorded)


@pytest.mark.parametrize(("step", "times"), [("before the sending", 2), ("holding a channel", 1)])
def test_a_sender_that_slept_while_another_told_it_tells_it_once_more_at_most(
    step: str, times: int, ledger: Ledger, url: str, web: Slack, children: list[BaseProcess]
) -> None:
    now, ports = datetime.now(UTC) + timedelta(minutes=1), (web.port, 0)
    one = drift(ledger, 0)
    sleeper = processes.Process(target=_send_and_die, args=(url, ports, now, step, [signal.SIGSTOP]))
    sleeper.start()
    children.append(sleeper)
    wait_until_stopped(sleeper)
    assert send(url, ports, now) == 0, "it holds the channel"
    assert send(url, ports, now + timedelta(minutes=2)) == 1
    os.kill(sleeper.pid or 0, signal.SIGCONT)
    sleeper.join(_PATIENCE)
    assert sleeper.exitcode == 0
    assert told(web.said, [one])[one] == times
    assert send(url, ports, now + timedelta(minutes=4)) == 0
