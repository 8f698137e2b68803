"""Two models live in the containers of docker-compose.yaml, and a person approves a third. What an operator or a failure does
to the containers loses nothing. The tests follow each other: each one finds what those before it have left."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from perennial.stack.airflow_api import AirflowApi, DagRun
from tests.browsing import open_page
from tests.containers.conftest import ASKED, MODELS, PATIENCE, STAGES, Containers
from tests.living import run_stage

pytestmark = [pytest.mark.containers, pytest.mark.stack]

METERS, HOURS = 5, 24
#: The services that run all the time.
SERVICES = (
    "postgres", "redis", "mlflow", "api", "execution", "scheduler", "dag-processor", "triggerer", "worker", "trainer",
    "judge", "watch",
)  # fmt: skip


@pytest.fixture(scope="module")
def api(containers: Containers) -> Iterator[AirflowApi]:
    """Airflow's API, after the history, the training and two days of two models."""
    with containers.sign_in() as api:
        dags = [f"{model}.{stage}" for model in MODELS for stage in STAGES] + [f"{ASKED}.ingest", f"{ASKED}.train"]
        api.wait_for_dags(dags, patience=PATIENCE)
        for dag in dags:
            api.unpause(dag)
        began = time.monotonic()
        live(containers, api, "load", {"start": "2024-01-01", "end": "2024-01-17", "days_per_part": 8})
        live(containers, api, "train", {"as_of": "2024-01-17"})
        live(containers, api, "ingest", {"start": "2024-01-17", "end": "2024-01-19"})
        containers.took["the lives of two models"] = time.monotonic() - began
        yield api


def live(containers: Containers, api: AirflowApi, stage: str, conf: dict[str, object]) -> None:
    run_stage(api, MODELS, stage, conf, check=containers.check, patience=PATIENCE)


def predictions(containers: Containers, model: str) -> list[str]:
    """How many predictions each version has made."""
    return containers.sql(f"SELECT version, count(*) FROM predictions.{model}_predictions GROUP BY version ORDER BY version")


def wait_for_task(containers: Containers, api: AirflowApi, run: DagRun, task: str, state: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while state not in {found.state for found in api.task_instances(run) if found.task_id == task}:
        containers.check()
        assert not api.run(run.dag_id, run.run_id).ended, api.failure(run)
        assert time.monotonic() < deadline, f"{task} of {run.dag_id} is not {state}"
        time.sleep(0.2)


# --- it works ---------------------------------------------------------------------------------------------------------


def test_three_commands_start_every_service(containers: Containers) -> None:
    found = containers.services()
    assert {name: found[name]["Health"] for name in SERVICES} == dict.fromkeys(SERVICES, "healthy")
    assert found["init"]["ExitCode"] == 0


@pytest.mark.parametrize("model", MODELS)
def test_a_model_lives_in_containers(containers: Containers, api: AirflowApi, model: str) -> None:
    stages = [stage for stage in STAGES if stage != "rollback"]
    states = {stage: {run.state for run in api.runs(f"{model}.{stage}")} for stage in stages}
    assert states == {stage: {"success"} for stage in stages}
    assert predictions(containers, model) == [f"1|{2 * METERS * HOURS}"]
    assert re.search(r"\bv?1\b", containers.inside("judge", "perennial", "history", model))


def test_a_version_names_the_commit_that_the_image_was_built_from(containers: Containers, api: AirflowApi) -> None:
    head = containers.run("git", "rev-parse", "HEAD").strip()
    assert containers.sql(
        f"SELECT DISTINCT code::json ->> 'commit' FROM perennial.perennial_versions WHERE model = '{MODELS[0]}'"
    ) == [head]


def test_a_person_approves_a_version_in_a_browser(containers: Containers, api: AirflowApi, chromium: str) -> None:
    conf = {"start": "2024-01-01", "end": "2024-01-17", "announce_scoring": False, "announce_training": False}
    loaded = api.wait(api.trigger(f"{ASKED}.ingest", conf=conf), patience=PATIENCE, check=containers.check)
    assert loaded.state == "success", api.failure(loaded)
    run = api.trigger(f"{ASKED}.train", conf={"as_of": "2024-01-17"})
    wait_for_task(containers, api, run, "ask_approval", "awaiting_input")
    # An answer that comes before Airflow has noticed that the asking process has ended, it takes for a crash, and asks again.
    noticed = re.compile(rf"executor event with state success.*'ask_approval'.*{re.escape(run.run_id)}")
    deadline = time.monotonic() + PATIENCE
    while not noticed.search(containers.compose("logs", "--since", "10m", "scheduler")):
        assert time.monotonic() < deadline
        time.sleep(1)
    with sync_playwright() as playwright:
        page = open_page(playwright, chromium, patience=120)
        page.goto(containers.airflow_url)
        page.fill("input[name=username]", "admin")
        page.fill("input[name=password]", containers.secrets["AIRFLOW_ADMIN_PASSWORD"])
        page.locator("[type=submit]").click()
        page.wait_for_url(re.compile(re.escape(containers.airflow_url) + "/(?!auth)"))
        page.goto(f"{containers.airflow_url}/dags/{run.dag_id}/runs/{run.run_id}/tasks/ask_approval/required_actions")
        expect(page.get_by_text(f"Make version 1 the champion of {ASKED}?").first).to_be_visible()
        page.locator("#element_words").fill("seen in a browser")
        with page.expect_response(lambda answer: answer.request.method == "PATCH" and "hitl" in answer.url) as answered:
            page.get_by_role("button", name="Approve").click()
        assert answered.value.ok, answered.value.text()
        ended = api.wait(run, patience=PATIENCE, check=containers.check)
        page.context.close()
    assert ended.state == "success", api.failure(run)
    answers = f"SELECT answer, approver, replace(words, ' ', '_') FROM perennial.perennial_approvals WHERE model = '{ASKED}'"
    assert containers.sql(answers) == ["approved|airflow:admin|seen_in_a_browser"]


def test_temporary_files_lie_on_a_disk(containers: Containers) -> None:
    for service in ("worker", "trainer", "judge"):
        where = containers.inside(service, "python", "-c", "import tempfile; print(tempfile.gettempdir())").strip()
        assert where == "/scratch"
        assert containers.inside(service, "stat", "--file-system", "--format", "%T", where).strip() != "tmpfs"
        containers.inside(service, "sh", "-c", "echo ok >/scratch/written && rm /scratch/written")


def test_nobody_reads_without_signing_in(containers: Containers) -> None:
    assert httpx.get(f"{containers.airflow_url}/api/v2/dags").status_code == 401
    assert httpx.get(f"{containers.mlflow_url}/api/2.0/mlflow/registered-models/search").status_code == 401


def test_a_folder_that_the_containers_cannot_read_stops_init(containers: Containers) -> None:
    hidden = containers.folder / "dags" / "ingest.py"
    mode = hidden.stat().st_mode
    hidden.chmod(0o600)
    try:
        told = containers.compose("run", "--rm", "--no-deps", "--no-TTY", "init", check=False)
    finally:
        hidden.chmod(mode)
    assert "/opt/perennial/dags/ingest.py cannot be read by user 50000" in told
    assert "chmod -R a+rX dags plugins include/models monitoring" in told


# --- nothing is lost --------------------------------------------------------------------------------------------------


def test_databases_and_workers_end_in_order(containers: Containers, api: AirflowApi) -> None:
    began = time.monotonic()
    containers.compose("stop")
    containers.took["docker compose stop"] = time.monotonic() - began
    codes = {name: row["ExitCode"] for name, row in containers.services().items()}
    # 137: killed, because it had not ended within its time.
    assert [name for name, code in codes.items() if code == 137] == []
    assert (codes["postgres"], codes["redis"]) == (0, 0)


def test_down_and_up_lose_nothing(containers: Containers, api: AirflowApi) -> None:
    containers.compose("down")
    began = time.monotonic()
    containers.compose("up", "--detach")
    containers.wait_until_healthy()
    containers.took["docker compose up after down"] = time.monotonic() - began
    assert "PROBLEM" not in containers.inside("judge", "perennial", "verify")
    live(containers, api, "ingest", {"start": "2024-01-19", "end": "2024-01-20"})
    assert [predictions(containers, model) for model in MODELS] == [[f"1|{3 * METERS * HOURS}"]] * 2


def test_each_killed_container_comes_back(containers: Containers, api: AirflowApi) -> None:
    began = time.monotonic()
    for service in SERVICES:
        identity = containers.compose("ps", "--quiet", service).strip()
        pid = containers.engine.docker("inspect", "--format", "{{.State.Pid}}", identity).strip()
        containers.run("kill", "-9", pid)
        deadline = time.monotonic() + 60
        # Its main process is another one, without an operator.
        while containers.engine.docker("inspect", "--format", "{{.State.Pid}} {{.State.Running}}", identity).split() in (
            [pid, "true"], [pid, "false"], ["0", "false"],
        ):  # fmt: skip
            assert time.monotonic() < deadline, service
            time.sleep(0.2)
    containers.wait_until_healthy()
    containers.took["every container killed, until all are healthy"] = time.monotonic() - began
    live(containers, api, "ingest", {"start": "2024-01-20", "end": "2024-01-21"})
    assert [predictions(containers, model) for model in MODELS] == [[f"1|{4 * METERS * HOURS}"]] * 2


def test_a_training_survives_a_rolling_restart_of_the_workers(containers: Containers, api: AirflowApi) -> None:
    run = api.trigger(f"{MODELS[0]}.train", conf={"as_of": "2024-01-20"})
    wait_for_task(containers, api, run, "build_training_set", "running")
    for service in ("trainer", "worker", "judge"):
        containers.compose("up", "--detach", "--no-deps", "--force-recreate", service)
    ended = api.wait(run, patience=PATIENCE, check=containers.check)
    assert ended.state == "success", api.failure(run)


def test_runs_survive_a_restart_of_postgres(containers: Containers, api: AirflowApi) -> None:
    containers.wait_until_healthy()
    runs = [api.trigger(f"{model}.ingest", conf={"start": "2024-01-21", "end": "2024-01-23"}) for model in MODELS]
    # A run takes a few seconds, so it is not waited for.
    containers.compose("restart", "postgres")
    containers.wait_until_healthy("postgres", "api")
    for run in runs:
        ended = api.wait(run, patience=PATIENCE, check=containers.check)
        assert ended.state == "success", api.failure(run)
    live(containers, api, "ingest", {"start": "2024-01-23", "end": "2024-01-24"})
    assert "PROBLEM" not in containers.inside("judge", "perennial", "verify")


def test_what_it_took(containers: Containers, capsys: pytest.CaptureFixture[str]) -> None:
    """Show the figures; they depend on the machine, so none of them is a rule."""
    memory = containers.engine.docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}")
    size = containers.engine.docker("images", "--format", "{{.Size}}", "perennial")
    times = "\n".join(f"{seconds:7.1f} s  {what}" for what, seconds in containers.took.items())
    with capsys.disabled():
        sys.stdout.write(f"\n{times}\nimage: {size.strip()}\n{memory}")
