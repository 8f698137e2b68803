"""The watchdog on a real ledger, beside an Airflow that dies, hangs and comes back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from perennial.alerts import of_operation
from perennial.alerts.alert import failure, failure_key
from perennial.core.errors import SettingsError, StackError
from perennial.core.intervals import Interval, utc
from perennial.core.settings import PROJECT, Settings
from perennial.evidence.decision import GateDecision
from perennial.evidence.evaluation import Evaluation, Refresh
from perennial.evidence.parity import FEWEST, Parity
from perennial.evidence.training import CodeState, TrainingRecord
from perennial.ledger.records import VersionRecord
from perennial.ledger.store import Ledger
from perennial.watchdog import process
from perennial.watchdog.process import Watchdog, WatchSettings, read_watch_settings
from tests.unit.airflow_stand_in import PASSWORD, AirflowStandIn, Serving

MODEL = "energy_load"
STAGES = ("ingest", "train", "refresh", "score", "monitor", "maintain")
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
NOW = datetime.now(UTC)
WELL = dict.fromkeys(("scheduler", "triggerer", "dag_processor"), ("healthy", NOW))


@pytest.fixture
def serving() -> Iterator[Serving]:
    served = Serving(AirflowStandIn(health=dict(WELL), dags={f"{MODEL}.{stage}": False for stage in STAGES}))
    yield served
    served.close()
    assert not served.airflow.complaints


@pytest.fixture
def airflow(serving: Serving) -> AirflowStandIn:
    return serving.airflow


@pytest.fixture
def deployed(settings_on_each_database: Settings, tmp_path: Path) -> Settings:
    return _deploy(settings_on_each_database, tmp_path)


@pytest.fixture
def embedded(settings: Settings, tmp_path: Path) -> Settings:
    return _deploy(settings, tmp_path)


def _deploy(settings: Settings, folder: Path) -> Settings:
    shutil.copytree(PROJECT / "tests" / "models" / MODEL, folder / "models" / MODEL)
    Ledger(settings.database_url).migrate()
    return settings.model_copy(update={"models": folder / "models"})


def watchdog(settings: Settings, airflow: AirflowStandIn) -> Watchdog:
    """One whose alerts go nowhere, as where no channel is named."""
    outbox = Ledger(settings.database_url).outbox
    given = WatchSettings(airflow_url=airflow.url, password=PASSWORD, port=0)

    def send() -> None:
        outbox.route(lambda alert: [], datetime.now(UTC))

    return Watchdog(settings, given, send=send)


def told(settings: Settings) -> list[str]:
    return [entry.alert.kind for entry in Ledger(settings.database_url).alerts()]


def publish(
    settings: Settings, dataset: str, interval: Interval, rows: int = 10, inputs: dict[str, Any] | None = None, **tables: int
) -> None:
    ledger = Ledger(settings.database_url)
    run = f"{dataset}-{interval.key}"
    claim = ledger.claim(MODEL, dataset, interval, order=ledger.next_order(MODEL, dataset, interval, run), run_id=run)
    head = ledger.head(MODEL, dataset)
    counts = tables or {dataset: rows}
    ledger.commit(claim, base=head, snapshots={dataset: 1}, hashes={dataset: "x"}, rows=counts, inputs=inputs or {})


def shown(watch: Watchdog) -> dict[tuple[str, ...], float]:
    """Every sample that Prometheus would read, by name and the values of its labels in their order."""
    with urlopen(f"http://127.0.0.1:{watch.port}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_where_all_is_well_nobody_is_told_anything(deployed: Settings, airflow: AirflowStandIn) -> None:
    watch = watchdog(deployed, airflow)
    for n in range(5):
        watch.look(NOW + n * MINUTE)

    assert told(deployed) == []
    with urlopen(f"http://127.0.0.1:{watch.port}/health") as answer:
        assert answer.status == 200
    with pytest.raises(HTTPError, match="404"):
        urlopen(f"http://127.0.0.1:{watch.port}/secrets")


def test_a_dead_scheduler_is_told_once_and_its_recovery_too_across_restarts(
    deployed: Settings, airflow: AirflowStandIn
) -> None:
    watch = watchdog(deployed, airflow)
    watch.look(NOW)
    airflow.health["scheduler"] = ("unhealthy", NOW)
    watch.look(NOW + MINUTE)
    assert told(deployed) == []

    watch.look(NOW + 2 * MINUTE)
    watch.look(NOW + 3 * MINUTE)
    assert told(deployed) == ["component_down"]

    restarted = watchdog(deployed, airflow)
    restarted.look(NOW + 4 * MINUTE)
    restarted.look(NOW + 6 * MINUTE)
    assert told(deployed) == ["component_down"]
    assert shown(restarted)["perennial_airflow_component_up", "scheduler"] == 0
    assert shown(restarted)["perennial_incidents", "components"] == 1

    airflow.health["scheduler"] = ("healthy", NOW)
    restarted.look(NOW + 7 * MINUTE)
    restarted.look(NOW + 8 * MINUTE)
    assert told(deployed) == ["component_down", "recovered"]
    assert shown(restarted)["perennial_incidents", "components"] == 0


def test_an_altered_record_of_decisions_is_told_once_and_checked_each_hour(embedded: Settings, airflow: AirflowStandIn) -> None:
    ledger = Ledger(embedded.database_url)
    ledger.retire(MODEL, actor="ann", reason="replaced", files={})
    watch = watchdog(embedded, airflow)
    watch.look(NOW)
    assert told(embedded) == []
    with closing(sqlite3.connect(embedded.state / "perennial.db")) as database:
        database.execute("UPDATE perennial_retirements SET actor = 'bob'")
        database.commit()
    for minutes in (30, 61, 62):
        watch.look(NOW + minutes * MINUTE)
    [entry] = ledger.alerts()
    assert (entry.alert.kind, entry.alert.severity) == ("decisions_altered", "critical")
    assert f"{MODEL}: retirement 1 was changed in the ledger" in entry.alert.text


def test_an_airflow_that_is_gone_is_told_and_hides_nothing_as_well(embedded: Settings, serving: Serving) -> None:
    airflow = serving.airflow
    airflow.errors["dags/x.py"] = "SpecError: broken"
    watch = watchdog(embedded, airflow)
    for n in range(4):
        watch.look(NOW + n * MINUTE)
    assert told(embedded) == ["import_errors"]

    serving.close()
    for n in range(4, 8):
        watch.look(NOW + n * MINUTE)
    assert told(embedded) == ["import_errors", "airflow_silent"]

    serving.open()
    airflow.broken = True
    watch.look(NOW + 8 * MINUTE)
    assert told(embedded) == ["import_errors", "airflow_silent"]

    airflow.broken = False
    airflow.errors.clear()
    watch.look(NOW + 9 * MINUTE)
    assert told(embedded) == ["import_errors", "airflow_silent", "recovered", "recovered"]


def test_a_task_that_was_killed_is_told_once(deployed: Settings, airflow: AirflowStandIn) -> None:
    airflow.add_run(f"{MODEL}.score", "r1", "failed", end_date=NOW, partition_key="2024-05-14")
    airflow.add_task(f"{MODEL}.score", "r1", "predict", "failed", NOW)
    watch = watchdog(deployed, airflow)
    watch.look(NOW + MINUTE / 3)
    assert told(deployed) == []

    for n in range(1, 4):
        watch.look(NOW + n * MINUTE)
    watchdog(deployed, airflow).look(NOW + 5 * MINUTE)

    [entry] = Ledger(deployed.database_url).alerts()
    assert (entry.alert.kind, entry.alert.severity, entry.alert.model) == ("run_failed", "critical", MODEL)
    assert "without an error message" in entry.alert.text
    assert "2024-05-14" in entry.alert.title


def test_what_its_own_callback_told_is_not_told_again_even_when_it_is_well_since(
    embedded: Settings, airflow: AirflowStandIn
) -> None:
    airflow.add_run(f"{MODEL}.score", "r1", "failed", end_date=NOW, partition_key="2024-05-14")
    airflow.add_task(f"{MODEL}.score", "r1", "predict", "failed", NOW)
    subject = failure(f"{MODEL}.score", "predict", -1)
    said = of_operation.task_died(MODEL, stage="score", task="predict", run_id="r1", interval=None, subject=subject)
    ledger = Ledger(embedded.database_url)
    ledger.record_alert(said, failure_key(f"{MODEL}.score", "r1", "predict", -1))
    ledger.resolve(str(said.subject), "it ran again")

    for _ in range(2):
        watchdog(embedded, airflow).look(NOW + 2 * MINUTE)

    assert told(embedded) == ["run_failed", "recovered"]


def test_a_run_that_was_ended_without_a_failed_task_is_told(embedded: Settings, airflow: AirflowStandIn) -> None:
    airflow.add_run(f"{MODEL}.train", "long", "failed", end_date=NOW)
    airflow.add_task(f"{MODEL}.train", "long", "fit_candidate", "skipped", NOW)
    airflow.add_run("somebody.elses", "r", "failed", end_date=NOW)
    watch = watchdog(embedded, airflow)
    watch.look(NOW + 2 * MINUTE)
    watch.look(NOW + 3 * MINUTE)

    [entry] = Ledger(embedded.database_url).alerts()
    assert entry.alert.title == f"{MODEL}: train was stopped"


def test_a_stuck_run_is_told_and_one_that_waits_for_a_person_is_not(embedded: Settings, airflow: AirflowStandIn) -> None:
    long_ago = NOW - timedelta(hours=7)
    airflow.add_run(f"{MODEL}.score", "stuck", "running", queued_at=long_ago, start_date=long_ago)
    airflow.add_task(f"{MODEL}.score", "stuck", "predict", "running")
    airflow.add_run(f"{MODEL}.train", "asks", "running", queued_at=long_ago, start_date=long_ago)
    airflow.add_task(f"{MODEL}.train", "asks", "ask_approval", "awaiting_input")
    airflow.add_run(f"{MODEL}.train", "behind", "queued", queued_at=long_ago)
    watch = watchdog(embedded, airflow)
    watch.look(NOW)
    assert told(embedded) == ["run_stuck"]

    del airflow.runs[0]
    watch.look(NOW + MINUTE)
    assert told(embedded) == ["run_stuck", "recovered"]


def test_a_silent_model_is_told_until_it_publishes(deployed: Settings, airflow: AirflowStandIn) -> None:
    publish(deployed, "tables", Interval.day("2024-01-01"))
    watch = watchdog(deployed, airflow)
    watch.look(NOW)
    assert told(deployed) == []

    later = NOW.replace(hour=12) + 2 * DAY
    watch.look(later)
    assert told(deployed) == ["silent"]

    due = Interval.of("2024-01-01", later.date())
    publish(deployed, "tables", due)
    publish(deployed, "features", due)
    watch.look(later + MINUTE)
    assert told(deployed) == ["silent", "recovered"]


def register(settings: Settings, version: int, *, refresh: bool, as_of: str) -> None:
    """Record a version that has passed, and make it champion."""
    ledger = Ledger(settings.database_url)
    evaluation = Evaluation.from_json({})
    if refresh:
        evaluation = replace(evaluation, refresh=Refresh(version - 1, version - 1, None, None, None))
    training = TrainingRecord.from_json({"as_of": as_of, "run_id": "run"})
    decision = GateDecision(True, [], "boosting", None)
    ledger.record_version(
        VersionRecord(MODEL, version, "m", "s", "f", {}, training, evaluation, decision, CodeState(), datetime.now(UTC))
    )
    made = ledger.intend_promotion(
        model=MODEL, version=version, expected=version - 1 or None, action="refresh" if refresh else "promote", reason="newer",
        actor="a", run_id=None, evidence={},
    )  # fmt: skip
    ledger.complete_promotion(made.id)


def test_a_week_without_a_training_is_told_although_each_week_is_refreshed_and_the_other_way_round(
    embedded: Settings, airflow: AirflowStandIn
) -> None:
    file = embedded.models / MODEL / "model.yaml"
    weekly = file.read_text().replace("{train: never, refresh: never,", "{train: week, refresh: week,")
    file.write_text(weekly)
    register(embedded, 1, refresh=False, as_of="2024-01-01T00:00:00+00:00")
    week = Interval.of("2024-01-01", "2024-01-08")
    for dataset in ("tables", "features"):
        publish(embedded, dataset, week)
    for version in (2, 3):
        register(embedded, version, refresh=True, as_of="2024-01-08T00:00:00+00:00")
    watch = watchdog(embedded, airflow)
    watch.look(NOW + 2 * DAY)
    assert "untrained" in told(embedded)
    assert "unrefreshed" not in told(embedded)

    register(embedded, 4, refresh=False, as_of="2024-01-08T00:00:00+00:00")
    for dataset in ("tables", "features"):
        publish(embedded, dataset, Interval.of("2024-01-08", "2024-01-15"))
    watch.look(datetime.now(UTC) + 2 * DAY)
    assert told(embedded).count("unrefreshed") == 1


def test_a_model_whose_folder_breaks_stays_what_it_was(embedded: Settings, airflow: AirflowStandIn) -> None:
    publish(embedded, "tables", Interval.day("2024-01-01"))
    watch = watchdog(embedded, airflow)
    watch.look(NOW + 2 * DAY)
    assert told(embedded) == ["silent"]
    spec = embedded.models / MODEL / "model.yaml"

    spec.write_text("name: [")
    watch.look(NOW + 2 * DAY + MINUTE)
    assert told(embedded) == ["silent"]

    shutil.rmtree(spec.parent)
    watch.look(NOW + 2 * DAY + 2 * MINUTE)
    assert told(embedded) == ["silent", "recovered"]


def test_a_ledger_that_is_gone_is_waited_for_and_told_of_afterwards(embedded: Settings, airflow: AirflowStandIn) -> None:
    file = embedded.state / "perennial.db"
    watch = watchdog(embedded, airflow)
    watch.look(NOW)
    file.rename(file.with_suffix(".away"))
    for n in range(1, 6):
        watch.look(NOW + n * MINUTE)
    assert shown(watch)["perennial_ledger_up",] == 0

    file.with_suffix(".away").rename(file)
    watch.look(NOW + 6 * MINUTE)

    [entry] = Ledger(embedded.database_url).alerts()
    assert entry.alert.kind == "ledger_silent"
    assert shown(watch)["perennial_ledger_up",] == 1


def test_without_a_ledger_for_long_the_process_ends(embedded: Settings, airflow: AirflowStandIn) -> None:
    watch = watchdog(embedded, airflow)
    (embedded.state / "perennial.db").unlink()
    watch.look(NOW)
    with pytest.raises(StackError, match="the ledger has not answered since"):
        watch.look(NOW + 11 * MINUTE)


def test_a_look_asks_little_and_only_for_what_has_changed(embedded: Settings, airflow: AirflowStandIn) -> None:
    watch = watchdog(embedded, airflow)
    watch.look(NOW)
    airflow.asked.clear()
    watch.look(NOW + MINUTE)

    assert len(airflow.asked) <= 6
    since = {query["updated_at_gte"][0] for _, query in airflow.asked if "updated_at_gte" in query}
    assert since == {(NOW - 10 * MINUTE).isoformat()}


def test_figures_are_those_of_the_ledger(deployed: Settings, airflow: AirflowStandIn) -> None:
    day, next_day = Interval.day("2024-01-01"), Interval.day("2024-01-02")
    for interval in (day, next_day):
        publish(deployed, "tables", interval, inputs={"rows": {"hours": {"read": 12, "published": 10, "quarantined": 2}}})
        publish(deployed, "features", interval, 7)
        publish(deployed, "predictions", interval, 5, {"version": 1})
    publish(deployed, "predictions", day, 5, {"version": 1})
    airflow.add_run(f"{MODEL}.score", "r1", "success", start_date=NOW - MINUTE, end_date=NOW)
    watch = watchdog(deployed, airflow)
    watch.look(NOW)
    watch.look(NOW + MINUTE)

    figures = shown(watch)
    rows = {stage: figures["perennial_rows_total", MODEL, stage] for stage in ("read", "published", "quarantined", "scored")}
    assert rows == {"read": 24, "published": 20, "quarantined": 4, "scored": 15}
    assert figures["perennial_rows_total", MODEL, "features"] == 14
    assert figures["perennial_run_seconds", MODEL, "score"] == 60
    until = figures["perennial_published_until_timestamp_seconds", "predictions", MODEL]
    assert until == next_day.end.timestamp()
    assert figures["perennial_alerts_waiting",] == 0
    assert figures["perennial_airflow_up",] == 1


def test_parity_is_that_of_the_newest_day_with_enough_rows(deployed: Settings, airflow: AirflowStandIn) -> None:
    ledger = Ledger(deployed.database_url)
    for day, rows, equal in (("2024-01-01", 100, 100), ("2024-01-02", 100, 98), ("2024-01-03", FEWEST - 1, 0)):
        measured = Parity(bound=0.99, interval=day, rows=rows, equal=equal)
        ledger.record_parity(model=MODEL, definition="d", interval=Interval.day(day), measured=measured, run_id="r")
    watch = watchdog(deployed, airflow)
    watch.look(NOW)

    figures = shown(watch)
    assert figures["perennial_parity", MODEL] == 0.98
    assert figures["perennial_parity_bound", MODEL] == 0.99
    assert figures["perennial_parity_rows", MODEL] == 100
    assert figures["perennial_parity_measured_timestamp_seconds", MODEL] == ledger.parities(MODEL)[1].recorded_at.timestamp()


def test_age_and_gaps_of_each_table_are_shown(deployed: Settings, airflow: AirflowStandIn) -> None:
    first, second, third, _, fifth = Interval.of("2024-01-01", "2024-01-06").days()
    for day, readings in ((first, 9), (second, 0), (third, 9), (fifth, 0)):
        awaited = {"awaited": {"readings": [day.key]}} if day == fifth else {}
        publish(deployed, "tables", day, inputs=awaited, hours=10, readings=readings)
    watch = watchdog(deployed, airflow)
    watch.look(utc("2024-01-06T12:00:00Z"))  # the fifth is the newest day that is due

    figures = shown(watch)
    until = {table: figures["perennial_table_until_timestamp_seconds", MODEL, table] for table in ("hours", "readings")}
    assert until == {"hours": fifth.end.timestamp(), "readings": third.end.timestamp()}
    assert {table: figures["perennial_table_days_missing", MODEL, table] for table in until} == {"hours": 1, "readings": 3}
    assert {table: figures["perennial_table_days_awaited", MODEL, table] for table in until} == {"hours": 0, "readings": 1}


def test_alerts_whose_sender_is_overdue_are_sent_by_the_watchdog(
    embedded: Settings, airflow: AirflowStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    took: list[bytes] = []

    class Slack(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            took.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
            pass

    spec = embedded.models / MODEL / "model.yaml"
    spec.write_text(f"{spec.read_text()}alerts: {{slack: team_slack}}\n")
    alert = of_operation.run_failed(MODEL, stage="score", run_id="r1", interval=None, error="ScoringError: constant")
    Ledger(embedded.database_url).record_alert(alert, "the key")
    with ThreadingHTTPServer(("127.0.0.1", 0), Slack) as slack:
        threading.Thread(target=slack.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{slack.server_port}/services"
        connection = {"conn_type": "slackwebhook", "host": host, "password": "T0/B0/secret"}
        for name, value in {
            "AIRFLOW_CONN_TEAM_SLACK": json.dumps(connection),
            "AIRFLOW_HOME": str(embedded.state / "airflow"),
            "PERENNIAL_STATE": str(embedded.state),
            "PERENNIAL_MODELS": str(embedded.models),
        }.items():
            monkeypatch.setenv(name, value)
        watch = Watchdog(embedded, WatchSettings(airflow_url=airflow.url, password=PASSWORD, port=0))
        watch.look(datetime.now(UTC))
        assert took == []

        # The sender goes by its own clock, so what waits is made old instead. The channel is new, and has its own while, too.
        for n in range(2):
            with sqlite3.connect(embedded.state / "perennial.db") as database:
                for table, column in (("outbox", "created_at"), ("channels", "next_attempt_at")):
                    older = f"strftime('%Y-%m-%d %H:%M:%f000', {column}, '-20 minutes')"
                    database.execute(f"UPDATE perennial_{table} SET {column} = {older}")
            watch.look(datetime.now(UTC) + 6 * n * MINUTE)
        slack.shutdown()

    assert len(took) == 1
    assert b"ScoringError: constant" in took[0]
    assert Ledger(embedded.database_url).outbox.backlog().count == 0


def test_a_wrong_setting_is_named_and_not_quoted() -> None:
    with pytest.raises(SettingsError, match="AIRFLOW_WATCHDOG_PASSWORD: Field required") as raised:
        read_watch_settings({"PERENNIAL_AIRFLOW_URL": "http://admin:hunter2@api:8080", "PERENNIAL_WATCH_PORT": "x"})
    assert "PERENNIAL_AIRFLOW_URL" in str(raised.value)
    assert "PERENNIAL_WATCH_PORT" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_the_process_is_light_shows_its_health_and_ends_when_told(embedded: Settings, airflow: AirflowStandIn) -> None:
    given = {
        **os.environ,
        "PERENNIAL_STATE": str(embedded.state),
        "PERENNIAL_MODELS": str(embedded.models),
        "PERENNIAL_AIRFLOW_URL": airflow.url,
        "AIRFLOW_WATCHDOG_PASSWORD": PASSWORD,
        "PERENNIAL_WATCH_PORT": "0",
        "PERENNIAL_WATCH_EVERY": "0.05",
        "PERENNIAL_LOG_FORMAT": "json",
    }
    command = [sys.executable, "-m", "perennial.cli", "watch"]
    with subprocess.Popen(command, env=given, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        deadline = time.monotonic() + 60
        while len(airflow.asked) < 50:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        memory = psutil.Process(process.pid).memory_info().rss
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 130
    assert '"event": "checking http://127.0.0.1' in said
    assert memory < 120_000_000


def test_when_the_repository_of_the_models_was_followed_is_read_beside_their_link(tmp_path: Path) -> None:
    models = tmp_path / "current"
    assert process._followed_at(models) is None
    models.mkdir()
    (tmp_path / "followed").touch()
    assert process._followed_at(models) is None, "a checkout, whatever lies beside it"
    models.rename(tmp_path / "commit")
    models.symlink_to("commit")
    os.utime(tmp_path / "followed", (60, 60))
    assert process._followed_at(models) == datetime(1970, 1, 1, 0, 1, tzinfo=UTC)
