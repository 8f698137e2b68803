"""Secrets with a mark of their own in every variable and connection: whatever fails, none is found in what is kept.

Each way of failing that can quote a secret is walked with real parts; then everything that was kept is searched.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.alerts import of_operation
from perennial.alerts.channels import SlackApi, SlackWebhook, send
from perennial.alerts.messages import Message
from perennial.cli import by_hand
from perennial.core import logs, redaction
from perennial.core.errors import NotDelivered, PerennialError, SettingsError
from perennial.core.intervals import Interval, utc
from perennial.core.settings import PROJECT, Settings, read_settings
from perennial.deployment import Deployment
from perennial.ledger.store import Ledger
from perennial.monitoring.verdicts import judge_drift

MODEL = "energy_load"
DAY = Interval.day("2024-01-17")

#: By variable. Some have characters that addresses, JSON and texts spell in ways of their own.
CANARIES = {
    "PERENNIAL_DATABASE_URL": "canary/ledger+Zq7",
    "PERENNIAL_CATALOG_URL": "canary-catalog-Zq7",
    "PERENNIAL_PREDICTIONS_URL": "canary%sink@Zq7",
    "SHOP_DATABASE": "canary:shop-Zq7",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-Zq7",
    "MLFLOW_TRACKING_TOKEN": "canary-token-Zq7",
    "AWS_SECRET_ACCESS_KEY": "canary/aws/Zq7",
    "AIRFLOW__CORE__FERNET_KEY": "canary-fernet-Zq7=",
    "AIRFLOW__API_AUTH__JWT_SECRET": "canary-jwt-Zq7",
    "AIRFLOW__CELERY__BROKER_URL": "canary-broker-Zq7",
    "AIRFLOW_CONN_TEAM_SLACK": "T0/B0/canary-slack-Zq7",
    "AIRFLOW_CONN_SMTP_DEFAULT": "canary\"smtp'Zq7",
    "AIRFLOW_CONN_SHOP": "canary-extra-Zq7",
}
#: What is left of a secret that somebody cut in half.
MARK = "Zq7"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The canaries, where a deployment has its secrets. Nothing listens on the addresses."""
    port = closed_port()
    for name, canary in CANARIES.items():
        value = canary
        if name.endswith(("_URL", "SHOP_DATABASE")):
            value = f"postgresql+psycopg2://perennial:{quote(canary, safe='')}@127.0.0.1:{port}/perennial"
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AIRFLOW__CELERY__BROKER_URL", f"redis://:{CANARIES['AIRFLOW__CELERY__BROKER_URL']}@127.0.0.1:{port}/0")
    connections = {
        "TEAM_SLACK": {"conn_type": "slackwebhook", "password": CANARIES["AIRFLOW_CONN_TEAM_SLACK"]},
        "SMTP_DEFAULT": {"conn_type": "smtp", "host": "127.0.0.1", "password": CANARIES["AIRFLOW_CONN_SMTP_DEFAULT"]},
        "SHOP": {"conn_type": "http", "extra": json.dumps({"nested": {"api_key": CANARIES["AIRFLOW_CONN_SHOP"]}})},
    }
    for name, content in connections.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(content))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def written(environment: None, capsys: pytest.CaptureFixture[str]) -> io.StringIO:
    """What was logged, as JSON and with every traceback, whatever the level."""
    stream = io.StringIO()
    logs.configure({logs.FORMAT: "json"}, logging.INFO)
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    return stream


def failure(call: Callable[[], object]) -> BaseException:
    """The error of a call, told as a task's log, its alert and its return value tell it."""
    try:
        call()
    except Exception as error:
        logging.getLogger("task").exception("the task failed: %s", error)
        return error
    raise AssertionError("it did not fail")


def told(error: BaseException) -> str:
    """What an alert makes of an error."""
    return json.dumps(of_operation.run_failed(MODEL, stage="train", run_id="r", interval=None, error=str(error)).to_json())


def assert_silent(*texts: str) -> None:
    for text in texts:
        assert MARK not in text, text[max(text.index(MARK) - 200, 0) : text.index(MARK) + 50]
        for canary in CANARIES.values():
            coded = base64.b64encode(canary.encode()).decode().rstrip("=")
            assert coded not in text


# --- the whole life of a model whose code tells all it knows ---------------------------------------------------------

LEAK = """

import os


def tell(*_, **__):
    raise RuntimeError(" ".join(value for name, value in sorted(os.environ.items()) if "Z" "q7" in value))
"""


def leaky(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    folder = tmp_path / "models" / MODEL
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PROJECT / "tests" / "models" / MODEL, folder)
    code = folder / "model.py"
    code.write_text(code.read_text() + LEAK)
    spec = folder / "model.yaml"
    text = spec.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    spec.write_text(text)
    return folder.parent


def everything_kept(settings: Settings) -> Iterator[tuple[str, str]]:
    """All rows of the ledger as text, and every file of the deployment: reports, staging, MLflow's runs and artifacts."""
    engine = sa.create_engine(settings.database_url, poolclass=NullPool)
    with engine.connect() as connection:
        for table in sa.inspect(engine).get_table_names():
            for row in connection.execute(sa.text(f'SELECT * FROM "{table}"')):
                yield table, repr(tuple(row))
    for file in settings.state.rglob("*"):
        if file.is_file():
            yield str(file), file.read_bytes().decode("latin-1")


def test_a_model_that_tells_its_environment_leaves_no_secret_behind(
    written: io.StringIO, settings_on_each_database: Settings, tmp_path: Path
) -> None:
    behaves = "gates: {min_rows: 50,", "gates: {behaviour: {leaky: {function: 'model:tell'}}, min_rows: 50,"
    settings = settings_on_each_database.model_copy(update={"models": leaky(tmp_path, behaves)})
    Ledger(settings.database_url).migrate()
    by_hand.ingest(settings, MODEL, Interval.of("2024-01-01", "2024-01-17"))
    # The gate asks the model's own test, whose words become the refusal's: in ledger, MLflow, card and report.
    outcome = by_hand.train(settings, MODEL, utc("2024-01-17"))
    assert "RuntimeError: " in outcome
    assert "***" in outcome

    def changed(*changes: tuple[str, str]) -> Settings:
        return settings.model_copy(update={"models": leaky(tmp_path, *changes)})

    errors = [
        failure(lambda: by_hand.train(changed(("estimator: linear_regression", "estimator: 'model:tell'")), MODEL, DAY.start)),
        failure(lambda: by_hand.ingest(changed(("model:read_meters", "model:tell")), MODEL, DAY)),
    ]
    ledger = Ledger(settings.database_url)
    for number, error in enumerate(errors):
        assert "***" in str(error)
        failed = of_operation.run_failed(MODEL, stage="train", run_id="r", interval=None, error=str(error))
        ledger.record_alert(failed, f"failed-{number}")
    kept = dict(everything_kept(settings))
    assert any("mlflow" in name for name in kept)
    assert_silent(outcome, written.getvalue(), *kept.values(), *(str(error) for error in errors))


def test_a_model_file_that_cannot_be_imported_tells_no_secret(written: io.StringIO, settings: Settings, tmp_path: Path) -> None:
    models = leaky(tmp_path)
    code = models / MODEL / "model.py"
    code.write_text(code.read_text() + "\ntell()\n")
    error = failure(lambda: by_hand.ingest(settings.model_copy(update={"models": models}), MODEL, DAY))
    assert "importing it raised RuntimeError" in str(error)
    assert_silent(str(error), written.getvalue(), told(error))


# --- databases -------------------------------------------------------------------------------------------------------


def test_a_ledger_that_is_down_or_refuses_the_password_tells_no_secret(written: io.StringIO, postgres: str) -> None:
    wrong = sa.make_url(postgres).set(password=CANARIES["PERENNIAL_DATABASE_URL"])
    for url in (os.environ["PERENNIAL_DATABASE_URL"], wrong.render_as_string(hide_password=False)):
        error = failure(partial(Ledger(url).champion, MODEL))
        assert isinstance(error, sa.exc.OperationalError)
        assert_silent(str(error), repr(error), told(error))
    assert_silent(written.getvalue())


def test_a_statement_that_fails_tells_no_values(written: io.StringIO, ledger: Ledger) -> None:
    def fail() -> None:
        with ledger._database.writing() as connection:
            connection.execute(sa.text("INSERT INTO nothing VALUES (:secret)"), {"secret": CANARIES["SHOP_DATABASE"]})

    error = failure(fail)
    assert_silent(str(error), written.getvalue(), told(error))


@pytest.mark.parametrize("down", [True, False], ids=["down", "wrong password"])
def test_a_source_database_that_fails_tells_no_secret(
    down: bool, written: io.StringIO, settings: Settings, tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not down:
        wrong = sa.make_url(postgres).set(password=CANARIES["SHOP_DATABASE"])
        monkeypatch.setenv("SHOP_DATABASE", wrong.render_as_string(hide_password=False))
    source = '{sql: "SELECT :start, :end", connection: SHOP_DATABASE}'
    models = leaky(tmp_path, ('{python: "model:read_meters"}', source))
    error = failure(lambda: by_hand.ingest(settings.model_copy(update={"models": models}), MODEL, DAY))
    assert isinstance(error, PerennialError)
    assert_silent(str(error), written.getvalue(), told(error))


def test_a_source_database_whose_driver_is_unknown_tells_no_secret(
    written: io.StringIO, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = leaky(tmp_path, ('{python: "model:read_meters"}', '{sql: "SELECT :start, :end", connection: SHOP_DATABASE}'))
    for url in (
        f"bogus://u:{quote(CANARIES['SHOP_DATABASE'])}@h/d",
        f"postgresql+psycopg2://u:{CANARIES['SHOP_DATABASE']}@h:x/d",
    ):
        monkeypatch.setenv("SHOP_DATABASE", url)
        error = failure(lambda: by_hand.ingest(settings.model_copy(update={"models": models}), MODEL, DAY))
        assert_silent(str(error), written.getvalue(), told(error))


def test_files_at_an_address_with_a_password_are_named_without_it(
    written: io.StringIO, settings: Settings, tmp_path: Path
) -> None:
    for address in (f"http://u:{CANARIES['AWS_SECRET_ACCESS_KEY'].replace('/', '-')}@127.0.0.1:{closed_port()}/%Y.csv",
                    f"bogus://u:canary-{MARK}@h/%Y.csv"):  # fmt: skip
        models = leaky(tmp_path, ('{python: "model:read_meters"}', f'{{files: "{address}"}}'))
        there = settings.model_copy(update={"models": models})
        error = failure(partial(by_hand.ingest, there, MODEL, DAY))
        assert_silent(str(error), written.getvalue(), told(error))


# --- settings, MLflow, channels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PERENNIAL_DATABASE_URL", "postgresql://u:canary-Zq7@h/d"),
        ("PERENNIAL_CATALOG_URL", "mysql://u:canary-Zq7@h/d"),
        ("MLFLOW_TRACKING_URI", "https://u:canary-Zq7@mlflow/"),
        ("PERENNIAL_MLFLOW_PUBLIC_URL", "https://canary-Zq7@mlflow"),
        ("PERENNIAL_AIRFLOW_PUBLIC_URL", "https://u:canary-Zq7@airflow"),
    ],
)
def test_settings_that_are_refused_are_named_and_not_quoted(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable) as caught:
        read_settings({variable: value})
    assert_silent("".join(traceback.format_exception(caught.value)))


def test_mlflow_that_cannot_be_reached_gives_an_unknown_verdict_without_a_secret(
    written: io.StringIO, settings: Settings, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"models": leaky(tmp_path)})
    Ledger(settings.database_url).migrate()
    by_hand.ingest(settings, MODEL, Interval.of("2024-01-01", "2024-01-18"))
    by_hand.train(settings, MODEL, utc("2024-01-17"))
    by_hand.score(settings, MODEL, DAY)
    away = Deployment(settings.model_copy(update={"mlflow_url": f"http://127.0.0.1:{closed_port()}"}))
    verdict = judge_drift(away.model(MODEL), away, DAY, directory=settings.reports, run_id="r")
    assert verdict.verdict == "unknown"
    assert_silent(json.dumps(verdict.to_json(), default=str), written.getvalue(), *dict(everything_kept(settings)).values())


def test_channels_that_fail_tell_no_secret(written: io.StringIO) -> None:
    message = Message((1,), "1", "critical", "it failed", "and why", {}, utc("2024-01-17"))
    token = CANARIES["AIRFLOW_CONN_TEAM_SLACK"]
    base = f"http://127.0.0.1:{closed_port()}"
    for channel in (SlackWebhook(f"{base}/services/{token}"), SlackApi(token, "#ml", base_url=base)):
        with pytest.raises(NotDelivered) as caught:
            asyncio.run(send(channel, message))
        logging.getLogger("task").error("not sent", exc_info=caught.value)
        assert_silent(str(caught.value), repr(channel))
    assert_silent(written.getvalue())


def test_airflow_masks_the_secrets_of_a_task_in_what_it_logs(environment: None, tmp_path: Path) -> None:
    program = """
import os
from airflow.sdk import log
log.configure_logging(json_output=True)
from perennial.orchestration.runs import deployment
deployment()
import structlog
try:
    raise RuntimeError(dict(os.environ))
except RuntimeError:
    structlog.get_logger("task").exception("it failed with %s" % os.environ["SHOP_DATABASE"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path), "PERENNIAL_DATABASE_URL": f"sqlite:///{tmp_path / 'ledger.db'}",
             "PERENNIAL_CATALOG_URL": f"sqlite:///{tmp_path / 'catalog.db'}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "RuntimeError" in done.stdout + done.stderr
    assert "it failed with ***" in done.stdout + done.stderr or "perennial:***@" in done.stdout + done.stderr
    assert_silent(done.stdout, done.stderr)


# --- what is a secret ------------------------------------------------------------------------------------------------


def test_every_canary_is_known_as_a_secret(environment: None) -> None:
    assert set(CANARIES.values()) <= redaction.known()


@pytest.mark.parametrize(
    "spell", [str, repr, json.dumps, lambda text: repr(json.dumps(text)), quote, lambda text: quote(text, safe="")]
)
def test_a_secret_is_found_however_it_is_spelled(spell: Callable[[str], str], environment: None) -> None:
    for canary in CANARIES.values():
        assert_silent(redaction.redact(f"it said {spell(canary)}!"))


def test_innocent_words_stay(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "airflow")
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", "/srv/airflow/passwords.json")
    text = "airflow reads /srv/airflow/passwords.json, http://mlflow:5000/#/models/x/versions/1 and ann@example.org"
    assert redaction.redact(text) == text


def test_a_connection_of_airflows_database_is_remembered(environment: None) -> None:
    assert "shadow-Zq7" in redaction.redact("shadow-Zq7")
    redaction.remember("shadow-Zq7", None, "short")
    try:
        assert redaction.redact("shadow-Zq7, short") == "***, short"
    finally:
        redaction._remembered.clear()
