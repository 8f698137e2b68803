"""What comes with a trigger: Airflow checks the form's fields by their schema, the first task of a run everything else."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import pytest

from perennial.core.errors import SpecError
from perennial.core.settings import PROJECT
from perennial.ledger.store import Ledger
from perennial.orchestration.runs import LONGEST_CONF, check_conf
from tests.dags.conftest import trigger_dags

MODEL = "energy_load"
FORM = ("start", "end", "reason")
JINJA = "{{ 7*7 }}{% raw %}${IFS}`id`$(id)'; DROP TABLE perennial_promotions; --"


@dataclass(frozen=True)
class Asked:
    """What Airflow made of requests.

    Attributes:
        answers: by the request's name.
        log: everything that was logged.
        ledger: of the deployment that was asked.
    """

    answers: dict[str, dict[str, Any]]
    log: str
    ledger: Ledger


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """All requests of these tests, in one process: Airflow takes longer to start than they do."""
    home = tmp_path_factory.mktemp("conf")
    shutil.copytree(PROJECT / "tests" / "models" / MODEL, home / "models" / MODEL)
    ledger = Ledger(f"sqlite:///{home / 'var' / 'perennial.db'}")
    ledger.migrate()
    posts = {name: {"post": [dag_id, body]} for name, (dag_id, body, _, _) in ANSWERED_AT_ONCE.items()}
    runs = {name: {"run": [f"{MODEL}.{stage}", task, conf]} for name, (stage, task, conf, _) in REFUSED_BY_THE_TASK.items()}
    notes = {f"notes of {stage}": {"notes": [f"{MODEL}.{stage}"]} for stage in ("monitor", "rollback")}
    requests = {**posts, **runs, **notes}
    answers, log = trigger_dags(home, list(requests.values()))
    return Asked(dict(zip(requests, answers, strict=True)), log, ledger)


def trigger(stage: str, conf: Any, status: int, words: str, **more: Any) -> tuple[str, Any, int, str]:
    return f"{MODEL}.{stage}", {"conf": conf, "logical_date": None, **more}, status, words


def nested(depth: int) -> Any:
    inner: Any = 1
    for _ in range(depth):
        inner = {"a": inner}
    return {"reason": inner}


#: By name: which DAG is triggered, with what, and what Airflow answers at once.
ANSWERED_AT_ONCE: dict[str, tuple[str, Any, int, str]] = {
    "a list": trigger("rollback", ["reason"], 422, "valid dictionary"),
    "a text": trigger("rollback", "reason=because", 422, "valid dictionary"),
    "no JSON": (f"{MODEL}.rollback", '{"conf": {', 422, "json_invalid"),
    "nothing for a field that must be given": trigger("rollback", {}, 400, "reason"),
    "a number for a text": trigger("rollback", {"reason": 7}, 400, "reason"),
    "a text for a number": trigger("rollback", {"reason": "because", "version": "1"}, 400, "version"),
    "a version below the first": trigger("promote", {"version": 0}, 400, "version"),
    "a boolean for a version": trigger("promote", {"version": True}, 400, "version"),
    "an object for a text": trigger("rollback", nested(5), 400, "reason"),
    "an object a hundred levels deep": trigger("rollback", nested(100), 400, "reason"),
    "a text of ten megabytes": trigger("rollback", {"reason": "x" * 10_000_000}, 400, "reason"),
    "SQL for a day": trigger("ingest", {"start": "2024-01-01'; DROP TABLE x", "end": "2024-01-02"}, 400, "start"),
    "Jinja for a day": trigger("ingest", {"start": "{{ ds }}", "end": "2024-01-02"}, 400, "start"),
    "a path for a day": trigger("train", {"as_of": "../../etc/passwd"}, 400, "as_of"),
    "an address for a day": trigger("train", {"as_of": "http://169.254.169.254/"}, 400, "as_of"),
    "a day that is none": trigger("train", {"as_of": "2024-02-30"}, 400, "as_of"),
    "an unknown model": ("churn.train", {"conf": {}, "logical_date": None}, 404, "churn.train"),
    "a run id": trigger("rollback", {"reason": "because"}, 200, "queued", dag_run_id="once"),
    "a run id that is used twice": trigger(
        "rollback", {"reason": "another"}, 409, "Unique constraint violation", dag_run_id="once"
    ),
}

#: By name: what the first task of a run is given, and what it says.
REFUSED_BY_THE_TASK: dict[str, tuple[str, str, Any, str]] = {
    "another model": (
        "rollback", "roll_back", {"reason": "because", "model": "another"},
        "conf has 'model', which the form does not have; its fields are: reason, version",
    ),
    "an address": (
        "train", "build_training_set", {"PERENNIAL_DATABASE_URL": "sqlite:////tmp/mine.db"},
        "conf has 'PERENNIAL_DATABASE_URL', which the form does not have",
    ),
    "a path where there is no form": (
        "maintain", "clear_files", {"warehouse": "file:///etc"},
        "conf has 'warehouse', which the form does not have; its fields are: none",
    ),
    "a window reversed": ("monitor", "judge_drift", {"start": "2024-01-02", "end": "2024-01-01"}, "is not before its end"),
    "a window a hundred years long": ("monitor", "judge_drift", {"start": "1924-01-01", "end": "2024-01-01"}, "is longer than"),
    "Jinja, SQL and shell in a reason": ("rollback", "roll_back", {"reason": JINJA, "version": 7}, "NoChampion: energy_load"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERED_AT_ONCE)
def test_what_the_form_forbids_is_refused_at_once(name: str, asked: Asked) -> None:
    _, _, status, words = ANSWERED_AT_ONCE[name]
    assert asked.answers[name]["status"] == status, asked.answers[name]
    assert words in asked.answers[name]["text"], asked.answers[name]


@pytest.mark.parametrize("name", REFUSED_BY_THE_TASK)
def test_what_the_form_does_not_know_ends_the_task_with_a_clear_refusal(name: str, asked: Asked) -> None:
    _, task, _, words = REFUSED_BY_THE_TASK[name]
    # Not up for another try, which could not help.
    assert asked.answers[name] == {task: "failed"}
    assert any("AirflowFailException" in line or words in line for line in asked.log.splitlines())
    assert words in asked.log


def test_who_has_filled_in_the_form_is_told_and_nobody_else(asked: Asked) -> None:
    entries = asked.ledger.alerts()
    assert {entry.alert.kind for entry in entries} == {"form_refused"}
    assert len(entries) == len(REFUSED_BY_THE_TASK)
    assert not any(entry.waits or entry.deliveries or entry.alert.subject for entry in entries)
    told = asked.answers["notes of monitor"]["notes"]
    assert "is not before its end" in told[0]
    assert "is longer than" in told[1]
    assert "was never champion" in asked.answers["notes of rollback"]["notes"][-1] or "has no champion" in str(
        asked.answers["notes of rollback"]["notes"]
    )


def test_nothing_of_it_is_run_rendered_or_done(asked: Asked) -> None:
    assert asked.ledger.promotions(MODEL) == []
    assert asked.ledger.datasets(MODEL) == []
    assert "49{%" not in asked.log
    assert "uid=" not in asked.log


# --- the check itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conf", [None, {}, {"start": "2024-01-01", "end": None}, {"reason": JINJA}])
def test_the_fields_of_the_form_pass(conf: Any) -> None:
    check_conf(conf, FORM)


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ([], "conf is a list; it must be a JSON object with the fields of the form: end, reason, start"),
        ("start", "conf is a str"),
        (7, "conf is a int"),
        ({"Start": "2024-01-01"}, "conf has 'Start', which the form does not have"),
        ({1: 2, "x" * 10_000_000: 3}, "conf has '" + "x" * 59 + ", 1, which"),
        ({f"key{number}": 1 for number in range(9)}, "and 4 more"),
        ({"reason": "x" * 10_000_000}, f"at most {LONGEST_CONF:,} are read"),
    ],
    ids=["a list", "a text", "a number", "another case", "a long key", "many keys", "ten megabytes"],
)
def test_whatever_else_comes_is_refused_by_name(conf: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_conf(conf, FORM)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_conf_that_is_nested_too_deeply_is_refused() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SpecError, match="nested too deeply"):
        check_conf({"reason": deep}, FORM)
    loop: dict[str, Any] = {}
    loop["reason"] = loop
    with pytest.raises(SpecError, match="nested too deeply"):
        check_conf(loop, FORM)
