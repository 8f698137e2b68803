"""However many alarms come at once, and however many of those who handle them die, a window has one retraining."""

from __future__ import annotations

import os
import random
import signal
from collections import defaultdict
from datetime import timedelta
from itertools import pairwise
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest

from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.evidence.verdict import VerdictDetails
from perennial.ledger.store import Ledger
from perennial.monitoring import requests
from perennial.monitoring.requests import RetrainingRequest, request_retraining
from perennial.monitoring.retraining import retraining_run_id
from perennial.spec.folder import read_model
from perennial.spec.monitoring import RetrainingPolicy
from tests.faults.signals import processes, trap
from tests.unit import synthetic

_MONDAY = Interval.day("2013-04-01").start
WEEKS = [Interval(_MONDAY + timedelta(weeks=number), _MONDAY + timedelta(weeks=number + 1)) for number in range(8)]
POLICY = RetrainingPolicy(alarms=1, of=1, cooldown=timedelta(days=14), budget=5)
_PATIENCE = 120

#: When a process dies: which function, and whether before or behind it.
STEPS = (
    (requests, "_decide", "after"),
    (Ledger, "record_retraining", "before"),
    (Ledger, "record_retraining", "after"),
)


def _ask(settings: Settings, models: str, weeks: list[Interval], answers: SimpleQueue[tuple[str, str | None]]) -> None:
    """In a child: ask about each week, and tell the run that was asked for."""
    spec = read_model(Path(models) / "toy").spec.model_copy(update={"retraining": POLICY})
    ledger = Ledger(settings.database_url)
    for week in weeks:
        request = request_retraining(spec, ledger, week, run_id=f"monitor-{os.getpid()}", training_under_way=False)
        answers.put((week.key, request.run_id if request else None))


def _die(settings: Settings, models: str, step: int, answers: SimpleQueue[tuple[str, str | None]]) -> None:
    """In a child: ask about the last week, and be killed on the way."""
    trap(*STEPS[step], signal.SIGKILL)
    _ask(settings, models, WEEKS[-1:], answers)


def test_a_hundred_alarms_and_twenty_crashes_give_one_retraining_a_window(
    settings_on_each_database: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = settings_on_each_database
    models = tmp_path_factory.mktemp("models")
    synthetic.write_folder(models)
    ledger = Ledger(settings.database_url)
    ledger.migrate()
    for week in WEEKS:
        ledger.record_verdict(
            model="toy",
            interval=week,
            version=1,
            verdict="drift",
            reasons=["moved"],
            details=VerdictDetails(),
            report=None,
            run_id="monitor",
        )
    answers: SimpleQueue[tuple[str, str | None]] = processes.SimpleQueue()
    order = random.Random(2013)
    children = [
        processes.Process(target=_die, args=(settings, str(models), number % len(STEPS), answers)) for number in range(20)
    ] + [
        processes.Process(target=_ask, args=(settings, str(models), order.sample(WEEKS, len(WEEKS)), answers))
        for _ in range(13)
    ]
    order.shuffle(children)

    told: dict[str, set[str | None]] = defaultdict(set)
    for start in range(0, len(children), 6):  # as many at once as two cores bear
        beside = children[start : start + 6]
        for child in beside:
            child.start()
        for child in beside:
            child.join(_PATIENCE)
            assert child.exitcode in (0, -signal.SIGKILL)
        while not answers.empty():
            key, run_id = answers.get()
            told[key].add(run_id)

    assert [child.exitcode for child in children].count(-signal.SIGKILL) == 20
    decisions = ledger.retrainings("toy")
    asked = [decision.window_end for decision in decisions if decision.asked]
    assert [decision.window_end for decision in decisions] == [week.end for week in WEEKS]
    assert told == {
        week.key: {retraining_run_id("toy", week.end) if decision.asked else None}
        for week, decision in zip(WEEKS, decisions, strict=True)
    }
    assert asked
    assert all(later - earlier >= POLICY.cooldown for earlier, later in pairwise(asked))
    assert all(decision.reason for decision in decisions)


def test_a_tripped_breaker_is_told_once_until_a_version_is_promoted(
    ledger: Ledger, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = synthetic.write_folder(tmp_path_factory.mktemp("models"))
    policy = POLICY.model_copy(update={"breaker": 2})
    spec = folder.spec.model_copy(update={"retraining": policy})
    requests: list[RetrainingRequest | None] = []
    for week in WEEKS:
        ledger.record_verdict(
            model="toy",
            interval=week,
            version=1,
            verdict="drift",
            reasons=["moved"],
            details=VerdictDetails(),
            report=None,
            run_id="monitor",
        )
        requests.append(request_retraining(spec, ledger, week, run_id="monitor", training_under_way=False))

    assert [request is not None for request in requests] == [True, False, True, False, False, False, False, False]
    told = [entry.alert for entry in ledger.alerts() if entry.alert.kind == "breaker"]
    assert [alert.severity for alert in told] == ["critical"]
    assert "led to no promotion" in told[0].text
