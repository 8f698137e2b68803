"""Alerts leave the outbox for a real HTTP server and a real mail server, through Airflow's own connections."""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from perennial import alerts
from perennial.intervals import Interval
from perennial.ledger import Ledger
from perennial.settings import PROJECT, Settings

MODEL = "flight_delay"


class _Webhook(BaseHTTPRequestHandler):
    answers: list[int]
    received: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            self.received.append(json.loads(body))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"ok" if status == 200 else b"no")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Mail(socketserver.StreamRequestHandler):
    received: list[str]

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            match line[:4].upper().strip():
                case b"EHLO" | b"HELO" | b"MAIL" | b"RCPT" | b"RSET" | b"NOOP":
                    self.wfile.write(b"250 ok\r\n")
                case b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    text = b""
                    while (part := self.rfile.readline()) != b".\r\n":
                        text += part
                    self.received.append(text.decode())
                    self.wfile.write(b"250 ok\r\n")
                case b"QUIT":
                    self.wfile.write(b"221 bye\r\n")
                    return
                case _:
                    self.wfile.write(b"502 what?\r\n")


@contextmanager
def _serve(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _deliver(settings: Settings, models: Path, home: Path, connections: dict[str, Any]) -> dict[str, int]:
    """What the task says it did, run as Airflow would, in a process of its own."""
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "PERENNIAL_MODELS": str(models),
        "PERENNIAL_STATE": str(settings.state),
        "PERENNIAL_DATABASE_URL": settings.database_url,
        **{f"AIRFLOW_CONN_{name}": json.dumps(value) for name, value in connections.items()},
    }
    program = "import json; from perennial.orchestration.notifiers import deliver_alerts as d; print(json.dumps(d.function()))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The example, with a Slack channel and an address to tell."""
    folder = tmp_path / "models" / MODEL
    shutil.copytree(PROJECT / "include" / "models" / MODEL, folder)
    spec = folder / "model.yaml"
    spec.write_text(spec.read_text() + "\nalerts: {slack: team_slack, email: [team@example.org]}\n")
    return tmp_path / "models"


def test_an_alert_reaches_each_channel_once_although_one_is_down_at_first(
    settings: Settings, ledger: Ledger, models: Path, tmp_path: Path
) -> None:
    _Webhook.answers, _Webhook.received, _Mail.received = [500], [], []
    alert = alerts.drift(MODEL, Interval.day("2013-04-01"), version=3, reasons=["<b>humidity</b> moved"])
    ledger.record_alert(alert, key="drift")
    with (
        _serve(ThreadingHTTPServer(("127.0.0.1", 0), _Webhook)) as web,
        _serve(socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Mail)) as mail,
    ):
        connections = {
            "TEAM_SLACK": {"conn_type": "slackwebhook", "host": f"http://127.0.0.1:{web}", "password": "T0/B0/X0"},
            "SMTP_DEFAULT": {
                "conn_type": "smtp",
                "host": "127.0.0.1",
                "port": mail,
                "extra": {"disable_ssl": True, "disable_tls": True, "from_email": "perennial@example.org"},
            },
        }
        down = _deliver(settings, models, tmp_path / "airflow", connections)
        assert down == {"delivered": 0, "failed": 1, "unaddressed": 0}
        [waiting] = ledger.pending_alerts(datetime.now(UTC) + timedelta(days=1))
        assert waiting.attempts == 1
        assert ledger.pending_alerts(datetime.now(UTC)) == [], "it is tried again later, not at once"

        ledger.mark_failed(waiting.id, "the wait is over", datetime.now(UTC) - timedelta(seconds=1))
        assert _deliver(settings, models, tmp_path / "airflow", connections)["delivered"] == 1
        assert _deliver(settings, models, tmp_path / "airflow", connections)["delivered"] == 0

    [message] = _Webhook.received
    assert "drift in 2013-04-01" in message["text"]
    [mail_text] = _Mail.received
    assert "team@example.org" in mail_text
    assert "<b>humidity" not in mail_text


def test_a_warning_stays_at_home_where_only_critical_alerts_are_asked_for(
    settings: Settings, ledger: Ledger, models: Path, tmp_path: Path
) -> None:
    spec = models / MODEL / "model.yaml"
    spec.write_text(spec.read_text().replace("alerts: {slack", "alerts: {severity: critical, slack"))
    ledger.record_alert(alerts.drift(MODEL, Interval.day("2013-04-01"), version=3, reasons=["moved"]), key="drift")
    done = _deliver(settings, models, tmp_path / "airflow", {})
    assert done == {"delivered": 0, "failed": 0, "unaddressed": 1}
