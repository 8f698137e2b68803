"""Alerts say what happened to a person, and nothing that person should not read in a chat."""

from __future__ import annotations

import pytest

from perennial import alerts
from perennial.alerts import Alert
from perennial.intervals import Interval

DAY = Interval.day("2013-04-01")

EVERY_KIND = [
    alerts.drift("m", DAY, version=3, reasons=["origin: 0.31 above 0.15"], links={"Drift report": "http://airflow/report"}),
    alerts.unknown_verdict("m", DAY, version=None, reasons=["reference is missing"]),
    alerts.interval_refused("m", DAY, reasons=["flights: 12 rows, at least 300 wanted"], rows={"flights": 12, "weather": 72}),
    alerts.promotion_refused("m", version=4, champion=3, reasons=["roc_auc 0.61 is below the champion's 0.68"]),
    alerts.promoted("m", version=4, previous=3, reason="all gates passed", actor="gates"),
    alerts.rollback("m", version=3, previous=4, reason="too many false alarms", actor="ann"),
    alerts.run_failed("m", stage="ingest", run_id="scheduled__2013-04-02", interval=DAY, error="SourceError: no file"),
]


@pytest.mark.parametrize("alert", EVERY_KIND, ids=lambda alert: alert.kind)
def test_alert_names_its_model_and_survives_the_outbox(alert: Alert) -> None:
    assert alert.title.startswith("m: ")
    assert "\n" not in alert.title
    assert Alert.from_json(alert.to_json()) == alert


def test_kinds_are_distinct() -> None:
    assert len({alert.kind for alert in EVERY_KIND}) == len(EVERY_KIND)


def test_predictions_that_are_missing_are_critical() -> None:
    critical = {alert.kind for alert in EVERY_KIND if alert.severity == "critical"}
    assert critical == {"interval_refused", "run_failed"}
    assert alerts.promotion_refused("m", version=1, champion=None, reasons=[]).severity == "critical"


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
    alert = alerts.run_failed("m", stage="score", run_id="r", interval=None, error=error)
    assert secret not in alert.title + alert.text


def test_text_is_bounded_and_plain() -> None:
    reasons = [f"check {n} \x1b[31m\u202e" + "x" * 5_000 for n in range(50)]
    text = alerts.interval_refused("m", DAY, reasons=reasons, rows={}).text
    assert len(text) < 4_000
    assert "and 42 more" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
