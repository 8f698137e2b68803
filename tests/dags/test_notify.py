"""Alerts leave the outbox for a real web server and a real mail server, through Airflow's own connections."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from perennial.alerts import of_models, of_operation
from perennial.alerts.alert import EVERYBODY, Severity
from perennial.core.errors import NotDelivered
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT, Settings
from perennial.deployment import Deployment
from perennial.ledger.store import Ledger
from perennial.orchestration.notifiers import deliver, open_channel
from tests import receivers
from tests.dags.conftest import parse
from tests.receivers import answer, words_of

MODEL = "flight_delay"
DAY = Interval.day("2013-04-01")
CANARY = "T0/B0/canary"


class Sender:
    """Sends as the task does, or as the watchdog, whose connections lie in the environment too."""

    def __init__(self, settings: Settings, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connections: dict[str, Any] = {}
        self._settings = settings.model_copy(update={"models": models})
        self._monkeypatch = monkeypatch

    def __call__(self, *, overdue_by: float = 0, at_once: bool = False, ahead: float = 0, **said: str | None) -> dict[str, int]:
        for name, value in self.connections.items():
            self._monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(value))
        done = deliver(
            Deployment(self._settings.model_copy(update=said)),
            overdue_by=timedelta(minutes=overdue_by),
            at_once=at_once,
            clock=lambda: datetime.now(UTC) + timedelta(minutes=ahead),
        )
        return {name: count for name, count in asdict(done).items() if count}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The example, which tells nobody yet."""
    shutil.copytree(PROJECT / "include" / "models" / MODEL, tmp_path / "models" / MODEL)
    return tmp_path / "models"


@pytest.fixture
def sender(settings: Settings, models: Path, monkeypatch: pytest.MonkeyPatch) -> Sender:
    return Sender(settings, models, monkeypatch)


def tell(models: Path, line: str) -> None:
    spec = models / MODEL / "model.yaml"
    spec.write_text(f"{spec.read_text()}\nalerts: {line}\n")


def webhook(port: int) -> dict[str, Any]:
    return {"conn_type": "slackwebhook", "host": f"http://127.0.0.1:{port}", "password": CANARY}


def api(port: int) -> dict[str, Any]:
    return {"conn_type": "slack", "password": "xoxb-canary", "extra": {"base_url": f"http://127.0.0.1:{port}/api/"}}


def smtp(port: int) -> dict[str, Any]:
    extra = {"disable_ssl": True, "disable_tls": True, "from_email": "perennial@example.org"}
    return {"conn_type": "smtp", "host": "127.0.0.1", "port": port, "extra": extra}


def record(ledger: Ledger, key: str = "drift", *, critical: bool = False) -> None:
    reasons = ["<b>humidity</b> moved"]
    severity: Severity = "critical" if critical else "warning"
    ledger.record_alert(of_models.drift(MODEL, DAY, version=3, reasons=reasons, severity=severity), key)


def test_an_alert_reaches_each_channel_once_although_one_is_down_at_first(
    sender: Sender, ledger: Ledger, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tell(models, "{slack: team_slack, email: [team@example.org, ann@example.org]}")
    record(ledger)
    with receivers.slack() as web, receivers.mails() as mail:
        web.answers = [answer(500, b"<html>no</html>", Content_Type="text/html")]
        sender.connections = {"TEAM_SLACK": webhook(web.port), "SMTP_DEFAULT": smtp(mail.port)}
        assert sender() == {"delivered": 2, "failed": 1}
        assert sender() == {}, "it is tried again later, not at once"
        assert sender(at_once=True) == {"delivered": 1}, "unless it is asked for"
        assert sender() == {}
    assert CANARY not in caplog.text
    [said] = web.said
    assert "drift in 2013-04-01" in said
    assert web.paths == [f"/{CANARY}"] * 2
    assert [address for address, _ in mail.taken] == ["ann@example.org", "team@example.org"]
    assert "<b>humidity" not in words_of(mail.taken[0][1], "html")


def test_what_is_critical_also_goes_to_who_is_on_call(sender: Sender, ledger: Ledger, models: Path) -> None:
    on_call = '{slack: app, channel: "#on-call", severity: critical}'
    boss = '{slack: app, channel: "#boss", kinds: [promoted]}'
    tell(models, f"{{slack: team, routes: [{on_call}, {boss}]}}")
    record(ledger, "warning")
    record(ledger, "critical", critical=True)
    with receivers.slack() as team, receivers.slack() as app:
        app.then = answer(200, b'{"ok": true, "ts": "1.5"}')
        sender.connections = {"TEAM": webhook(team.port), "APP": api(app.port)}
        assert sender() == {"delivered": 3}
    assert "2 times drift" in team.said[0]
    assert app.paths == ["/api/chat.postMessage"]
    assert "Authorization: Bearer xoxb-canary" in app.headers[0]
    [told] = [d for d in ledger.alerts()[1].deliveries if d.channel == "slack:app:#on-call"]
    assert told.receipt == "1.5"


def test_alerts_of_no_model_go_where_the_environment_says(sender: Sender, ledger: Ledger, models: Path) -> None:
    tell(models, "{slack: team}")
    ledger.record_alert(of_operation.airflow_silent(EVERYBODY, reason="refused"), "one")
    with receivers.slack() as team, receivers.slack() as operators:
        sender.connections = {"TEAM": webhook(team.port), "OPERATORS": webhook(operators.port)}
        assert sender(alerts_slack="operators") == {"delivered": 1}
        assert len(operators.taken) == 1
        ledger.record_alert(of_operation.airflow_silent(EVERYBODY, reason="refused"), "two")
        assert sender() == {"delivered": 1}
        assert len(team.taken) == 1, "without it, everyone who hears of any model hears of them"


def test_a_connection_that_is_missing_is_told_through_the_other_channel_until_it_is_there(
    sender: Sender, ledger: Ledger, models: Path
) -> None:
    tell(models, "{slack: team_slack, email: [ann@example.org]}")
    record(ledger)
    with receivers.slack() as web, receivers.mails() as mail:
        sender.connections = {"SMTP_DEFAULT": smtp(mail.port)}
        assert sender() == {"delivered": 2, "failed": 1}
        lost = mail.taken[0][1]
        assert lost["Subject"] == "CRITICAL: slack:team_slack takes no alerts"
        assert "no Airflow connection team_slack" in words_of(lost, "plain")
        assert [entry.waits for entry in ledger.alerts()] == [True, False]
        sender.connections["TEAM_SLACK"] = webhook(web.port)
        assert sender(at_once=True) == {"delivered": 1}
        assert sender(ahead=1) == {"delivered": 1}
    assert mail.taken[-1][1]["Subject"] == "perennial: recovered: slack:team_slack takes no alerts"


def test_a_channel_that_a_model_names_no_more_is_given_up(sender: Sender, ledger: Ledger, models: Path) -> None:
    tell(models, "{slack: gone}")
    record(ledger)
    assert sender() == {"failed": 1}
    spec = models / MODEL / "model.yaml"
    spec.write_text(spec.read_text().replace("alerts: {slack: gone}", ""))
    assert sender(at_once=True) == {"failed": 1}
    assert "neither a model nor the environment names the channel" in str(ledger.alerts()[0].deliveries[0].error)
    assert sender(at_once=True) == {"unaddressed": 1}, "that it recovered is told nobody"


@pytest.mark.parametrize("name", ["teams:ops", "team_slack", "slack:", "Slack:team_slack", ""])
def test_a_channel_of_an_unknown_kind_is_not_taken_for_slack(name: str) -> None:
    with pytest.raises(NotDelivered, match=f"^the channel {name} is unknown: a channel is slack:CONNECTION,") as refused:
        open_channel(name)
    assert refused.value.mend, "only a person can correct the name"


def test_who_steps_in_sends_what_is_overdue_and_leaves_alone_what_it_cannot_open(
    sender: Sender, ledger: Ledger, models: Path
) -> None:
    tell(models, "{slack: here, email: [ann@example.org]}")
    record(ledger)
    with receivers.slack() as web:
        sender.connections = {"HERE": webhook(web.port)}
        assert sender(overdue_by=10) == {}
        assert sender(overdue_by=10, ahead=9) == {}
        assert sender(overdue_by=10, ahead=11) == {"delivered": 1, "skipped": 1}
    channels = {channel.channel: channel.failures for channel in ledger.outbox.channels()}
    assert channels == {"email:ann@example.org": 0, "slack:here": 0}


def test_an_alert_of_a_broken_folder_waits(sender: Sender, ledger: Ledger, models: Path) -> None:
    tell(models, "{slack: team, nonsense: 1}")
    record(ledger)
    assert sender() == {}
    assert ledger.outbox.backlog().count == 1


def test_a_warning_stays_at_home_where_only_critical_alerts_are_asked_for(sender: Sender, ledger: Ledger, models: Path) -> None:
    tell(models, "{slack: team, severity: critical}")
    record(ledger)
    assert sender() == {"unaddressed": 1}


@pytest.mark.parametrize("line", ["{slack: team}", "{routes: [{email: [ann@example.org], severity: critical}]}"])
def test_the_dag_is_there_once_somebody_is_named(models: Path, tmp_path: Path, line: str) -> None:
    tell(models, line)
    parsed = parse(PROJECT / "dags", models, tmp_path / "airflow")
    assert parsed["import_errors"] == {}
    assert parsed["heavy"] == []
    assert list(parsed["dags"]["perennial.notify"]["tasks"]) == ["deliver_alerts"]
