"""Alerts say what happened to a person, and nothing that person should not read in a chat."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from perennial.alerts import of_models, of_operation
from perennial.alerts.alert import Alert, Kind, linked, recovered
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT

DAY = Interval.day("2013-04-01")

MOMENT = datetime(2013, 4, 2, tzinfo=UTC)

#: An argument of each name that a function of :mod:`perennial.alerts.of_models` takes.
SAMPLES: dict[str, Any] = {
    "model": "m", "interval": DAY, "version": 3, "champion": 2, "previous": 2, "reasons": ["0.31 above 0.15"],
    "reason": "worse", "rows": {"flights": 12}, "actor": "ann", "by": "mlflow:ann",
    "until": MOMENT, "since": MOMENT, "tick": MOMENT, "tried_at": MOMENT,
    "heartbeat": MOMENT, "former": True, "rolls_back": False, "stage": "score", "task": "predict", "run_id": "r",
    "error": "ValueError: no", "tries": 3, "subject": "failed/m.score/predict/-1", "severity": "critical", "links": {},
    "component": "scheduler", "errors": {"ingest.py": "SpecError: no"}, "stages": ["score"], "state": "queued",
    "missing": [DAY], "catch_up": timedelta(days=30), "table": "outcomes", "by_day": {"2013-04-01": 3},
    "late": timedelta(days=2),
    "age": timedelta(days=200), "limit": timedelta(days=180), "share": 0.8, "count": 3,
    "day": "2013-04-06", "compared": 400, "bound": 0.99, "worst": ["distance (3 different)"],
    "problems": ["m: promotion 2 was changed"],
    "withheld": DAY, "broken": "late", "channel": "slack:team", "refuses": True, "waiting": 2, "critical": 1, "columns": ["x"],
}  # fmt: skip


def _made(function: Callable[..., Alert]) -> Alert:
    names = inspect.signature(function).parameters
    return function(**{name: SAMPLES[name] for name in names})


_TOLD = [
    _made(function)
    for module in (of_models, of_operation)
    for _, function in inspect.getmembers(module, inspect.isfunction)
    if inspect.signature(function).return_annotation == "Alert" and "told" not in inspect.signature(function).parameters
    if function is not linked
]
EVERY_KIND = [*_TOLD, recovered(_TOLD[:2], since=MOMENT, cause="mended")]


@pytest.mark.parametrize("alert", EVERY_KIND, ids=lambda alert: alert.kind)
def test_alert_says_it_in_a_line_then_why_then_what_to_do_and_survives_the_outbox(alert: Alert) -> None:
    assert "\n" not in alert.title
    assert alert.text.count("\n\n") == 1
    assert Alert.from_json(json.loads(json.dumps(alert.to_json()))) == alert


def test_every_kind_that_there_is_has_a_function_that_makes_it() -> None:
    assert {alert.kind for alert in EVERY_KIND} == set(get_args(Kind))


def test_the_page_says_of_every_kind_how_bad_it_is_and_what_to_do() -> None:
    page = (PROJECT / "docs" / "alerts.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(row[0].strip("`") for row in rows) == sorted(get_args(Kind)), "a line each, and none too many"
    how_bad = {row[0].strip("`"): set(row[1].split(", ")) for row in rows}
    for alert in EVERY_KIND:
        assert alert.severity in how_bad[alert.kind], f"docs/alerts.md: {alert.kind} may be {alert.severity}"
    for row in rows:
        assert row[2], row
        assert row[3], row


def test_what_stays_wrong_has_a_subject_and_what_is_news_has_none() -> None:
    page = (PROJECT / "docs" / "alerts.md").read_text()
    for alert in _TOLD:
        [line] = [line for line in page.splitlines() if line.startswith(f"| `{alert.kind}`")]
        if alert.subject is not None:
            assert line.strip("|").split("|")[-1].strip(), f"docs/alerts.md: when is {alert.kind} over?"


def test_predictions_that_are_missing_are_critical() -> None:
    critical = {alert.kind for alert in EVERY_KIND if alert.severity == "critical"}
    assert {"interval_refused", "run_failed", "silent", "unscored"} <= critical
    assert of_models.promotion_refused("m", version=1, champion=None, reasons=[]).severity == "critical"


def test_a_recovery_says_what_was_wrong_since_when_and_not_what_to_do() -> None:
    refused = of_models.interval_refused("m", DAY, reasons=["12 rows"], rows={}, links={"Docs": "http://docs"})
    well = recovered([refused, refused], since=MOMENT, cause="2013-04-01 is published.")
    assert well.title == "m: recovered: the data of 2013-04-01 were refused"
    assert "2013-04-01 is published." in well.text
    assert "since 2013-04-02 00:00 UTC, reported 2 times" in well.text
    assert "12 rows" in well.text
    assert "Correct the source" not in well.text
    assert well.links == refused.links


@pytest.mark.parametrize(
    ("error", "secret"),
    [
        ("OperationalError: postgresql+psycopg2://perennial:hunter2@db:5432/x refused", "hunter2"),
        ("cannot log in with password=hunter2 as ann", "hunter2"),
        ('{"api_key": "hunter2"}', "hunter2"),
        ("Authorization: Bearer hunter2", "hunter2"),
        ("ValueError: bad row\nT1234, Ann Smith, 1970-01-01", "Ann Smith"),
    ],
)
def test_error_is_told_without_secrets_and_without_what_follows_its_first_line(error: str, secret: str) -> None:
    alert = of_operation.run_failed("m", stage="score", run_id="r", interval=None, error=error)
    assert secret not in alert.title + alert.text


def test_text_is_bounded_and_plain() -> None:
    reasons = [f"check {n} \x1b[31m\u202e" + "x" * 5_000 for n in range(50)]
    text = of_models.interval_refused("m", DAY, reasons=reasons, rows={}).text
    assert len(text) < 4_000
    assert "and 42 more" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
