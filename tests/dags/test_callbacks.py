"""A task that fails for good is told of, its later success too, and neither ever fails a task."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from perennial.core.settings import Settings
from perennial.core.settings import settings as of_process
from perennial.ledger.store import Ledger
from perennial.orchestration import runs
from perennial.orchestration.callbacks import alert_of_failure, resolve_failure

AIRFLOW = "http://airflow.example.org"


@pytest.fixture(autouse=True)
def _this_deployment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PERENNIAL_STATE", str(settings.state))
    monkeypatch.setenv("PERENNIAL_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("PERENNIAL_AIRFLOW_PUBLIC_URL", AIRFLOW)
    for cached in (of_process, runs.deployment):
        cached.cache_clear()
    yield
    for cached in (of_process, runs.deployment):
        cached.cache_clear()


def context(
    name: str = "predict",
    *,
    run: str = "asset_triggered__1",
    day: str | None = "2013-04-01",
    kind: str = "asset_triggered",
    tries: int = 1,
    index: int = -1,
    **more: Any,
) -> Any:
    """What Airflow hands to a callback."""
    instance = SimpleNamespace(dag_id="m.score", task_id=name, run_id=run, map_index=index, try_number=tries)
    return {
        "ti": instance,
        "dag_run": SimpleNamespace(run_id=run, partition_key=day, run_type=kind),
        "params": {"start": None, "end": None, **more.pop("params", {})},
        **more,
    }


def kinds(ledger: Ledger) -> list[str]:
    return [entry.alert.kind for entry in ledger.alerts()]


def test_a_failure_says_what_failed_how_often_and_leads_to_its_log(ledger: Ledger) -> None:
    failed = context(tries=3, index=2, exception=ValueError("no such column\nT1234, Ann Smith"))
    for _ in range(2):
        alert_of_failure(failed)
    [entry] = ledger.alerts()
    assert entry.alert.title == "m: score, task predict failed for 2013-04-01"
    assert "failed 3 times" in entry.alert.text
    assert "no such column" in entry.alert.text
    assert "Ann Smith" not in entry.alert.text
    assert entry.alert.links == {
        "Run": f"{AIRFLOW}/dags/m.score/runs/asset_triggered__1/tasks/predict/mapped/2",
        "Model": f"{AIRFLOW}/perennial/models/m",
    }


@pytest.mark.parametrize(
    "success",
    [
        pytest.param(context(tries=4), id="the same run, cleared"),
        pytest.param(context(run="another"), id="another run of the same day"),
        pytest.param(
            context(run="by hand", day=None, kind="manual", params={"start": "2013-04-01", "end": "2013-04-02"}),
            id="by hand for the same day",
        ),
    ],
)
def test_a_success_for_the_same_interval_is_told_once(ledger: Ledger, success: Any) -> None:
    alert_of_failure(context())
    for _ in range(2):
        resolve_failure(success)
    assert kinds(ledger) == ["run_failed", "recovered"]
    alert_of_failure(context())
    assert kinds(ledger) == ["run_failed", "recovered", "run_failed"], "the same task may fail again"


def test_a_success_for_more_days_closes_the_failures_of_each(ledger: Ledger) -> None:
    for day in ("2013-04-01", "2013-04-03", "2013-05-01"):
        alert_of_failure(context(run=day, day=day))
    resolve_failure(context(run="by hand", day=None, kind="manual", params={"start": "2013-04-01", "end": "2013-04-30"}))
    still = [entry.alert.title for entry in ledger.alerts() if entry.alert.kind == "run_failed" and entry.resolved_by is None]
    assert still == ["m: score, task predict failed for 2013-05-01"]


def test_a_part_that_fails_is_told_by_its_own_days(ledger: Ledger) -> None:
    days = {"start": "2013-04-01", "end": "2013-05-01"}
    part = SimpleNamespace(op_kwargs={"work": {"part": "2013-04-08--2013-04-15"}})
    alert_of_failure(context(index=1, day=None, params=days, task=part))
    assert ledger.alerts()[0].alert.title == "m: score, task predict failed for 2013-04-08--2013-04-15"


def test_what_a_person_asked_for_in_vain_goes_to_nobody_and_the_watchdog_is_silent_too(ledger: Ledger) -> None:
    from perennial.alerts import of_operation
    from perennial.alerts.alert import failure, failure_key

    refused = context(day=None, kind="manual", exception=runs.FormRefused("start 2024-01-02 is not before its end"))
    refused["dag_run"].triggering_user_name = "ann"
    alert_of_failure(refused)
    subject = failure("m.score", "predict", -1)
    died = of_operation.task_died("m", stage="score", task="predict", run_id="r", interval=None, subject=subject)
    ledger.record_alert(died, failure_key("m.score", "asset_triggered__1", "predict", -1))
    [entry] = ledger.alerts()
    assert entry.alert.title == "m: score, task predict, cannot do what ann asked for"
    assert not entry.waits
    assert entry.deliveries == ()
    assert ledger.outbox.backlog().count == 0


@pytest.mark.parametrize(
    "success",
    [
        pytest.param(context("resolve_champion"), id="another task"),
        pytest.param(context(day="2013-04-02", run="another"), id="another day"),
        pytest.param(context(index=1), id="another part"),
        pytest.param(context(kind="scheduled"), id="the first try of the calendar's run"),
    ],
)
def test_what_says_nothing_of_the_failure_resolves_nothing(ledger: Ledger, success: Any) -> None:
    alert_of_failure(context())
    resolve_failure(success)
    assert kinds(ledger) == ["run_failed"]


def test_the_watchdogs_word_on_a_killed_task_is_resolved_too(ledger: Ledger) -> None:
    from perennial.alerts import of_operation
    from perennial.alerts.alert import failure, failure_key

    subject = failure("m.score", "predict", None)
    died = of_operation.task_died(
        "m", stage="score", task="predict", run_id="asset_triggered__1", interval=None, subject=subject
    )  # fmt: skip
    ledger.record_alert(died, failure_key("m.score", "asset_triggered__1", "predict", None))
    alert_of_failure(context())
    assert kinds(ledger) == ["run_failed"], "the second one says nothing"
    resolve_failure(context(tries=2))
    assert kinds(ledger) == ["run_failed", "recovered"]


@pytest.mark.parametrize("wrong", [{"start": "nonsense", "end": "2013-04-02"}, {"start": "2013-04-02", "end": "2013-04-01"}])
def test_a_form_that_makes_no_interval_is_told_of_all_the_same(ledger: Ledger, wrong: dict[str, str]) -> None:
    alert_of_failure(context(day=None, params=wrong, exception=ValueError("reversed")))
    assert kinds(ledger) == ["run_failed"]


def test_an_outbox_that_cannot_be_written_fails_no_task(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    (settings.state / "perennial.db").write_bytes(b"this is no database, and never was one" * 100)
    alert_of_failure(context())
    resolve_failure(context(tries=2))
    assert "the alert about task predict could not be recorded" in caplog.text
    assert "the recovery of task predict could not be recorded" in caplog.text
