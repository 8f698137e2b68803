"""Two models live in the containers of docker-compose.yaml, and a person approves a third. What an operator or a failure does
to the containers loses nothing. The tests follow each other: each one finds what those before it have left."""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from perennial.stack.airflow_api import AirflowApi, DagRun
from tests.browsing import open_page
from tests.containers.conftest import ASKED, BY_KEY, HOURS, METERS, MODELS, PATIENCE, STAGES, Containers

pytestmark = [pytest.mark.containers, pytest.mark.stack]

#: The services that run all the time.
SERVICES = (
    "postgres", "redis", "mlflow", "api", "execution", "scheduler", "dag-processor", "triggerer", "worker", "trainer",
    "judge", "watch", "scorer", "balancer",
)  # fmt: skip
#: Those that have no way out.
CONFINED = ("trainer", "judge", "scorer")
#: The name by which people would reach the deployment.
HOST = "ml.example.org"
#: Secrets that are rotated by removing them from .env: of the others, docs/operate.md says more.
ROTATED = (
    "AIRFLOW_DB_PASSWORD", "MLFLOW_DB_PASSWORD", "PERENNIAL_DB_PASSWORD", "PERENNIAL_WORKER_DB_PASSWORD",
    "PERENNIAL_READER_DB_PASSWORD", "PERENNIAL_SCORER_DB_PASSWORD", "MLFLOW_SCORER_PASSWORD",
    "REDIS_PASSWORD", "REDIS_SCHEDULER_PASSWORD", "REDIS_WORKER_PASSWORD",
    "REDIS_TRAINER_PASSWORD", "AIRFLOW_JWT_SECRET", "AIRFLOW_SESSION_KEY", "AIRFLOW_ADMIN_PASSWORD",
    "AIRFLOW_WATCHDOG_PASSWORD", "AIRFLOW_JUDGE_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_WORKER_PASSWORD",
    "MLFLOW_JUDGE_PASSWORD", "MLFLOW_SESSION_KEY",
)  # fmt: skip
#: Users of PostgreSQL, each with the name of its password in .env.
USERS = {
    "postgres": "POSTGRES_PASSWORD", "airflow": "AIRFLOW_DB_PASSWORD", "mlflow": "MLFLOW_DB_PASSWORD",
    "perennial": "PERENNIAL_DB_PASSWORD", "perennial_worker": "PERENNIAL_WORKER_DB_PASSWORD",
    "perennial_reader": "PERENNIAL_READER_DB_PASSWORD", "perennial_scorer": "PERENNIAL_SCORER_DB_PASSWORD",
}  # fmt: skip


def wait_for_task(containers: Containers, api: AirflowApi, run: DagRun, task: str, *states: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not {found.state for found in api.task_instances(run) if found.task_id == task} & set(states):
        containers.check()
        assert not api.run(run.dag_id, run.run_id).ended, api.failure(run)
        assert time.monotonic() < deadline, f"{task} of {run.dag_id} is not {states}"
        time.sleep(0.2)


def accepted(containers: Containers, secrets: dict[str, str]) -> list[str]:
    """Whom PostgreSQL lets in by these secrets, beside users of the two web servers."""
    let_in = []
    for user, secret in USERS.items():
        database = user.partition("_")[0]
        psql = f"PGPASSWORD={secrets[secret]} psql -h 127.0.0.1 -U {user} -d {database} -tAc 'SELECT 1'"
        if containers.inside("postgres", "sh", "-c", psql, check=False).strip() == "1":
            let_in.append(user)
    if httpx.get(f"{containers.mlflow_url}/", auth=("admin", secrets["MLFLOW_ADMIN_PASSWORD"])).status_code == 200:
        let_in.append("admin of MLflow")
    token = {"username": "admin", "password": secrets["AIRFLOW_ADMIN_PASSWORD"]}
    if httpx.post(f"{containers.airflow_url}/auth/token", json=token).is_success:
        let_in.append("admin of Airflow")
    return let_in


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
    assert containers.predictions(model) == 2 * METERS * HOURS
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


@contextmanager
def another_machine() -> Iterator[str]:
    """A machine outside: a network namespace behind a cable of its own, in which somebody listens. Its address and port."""
    name, ours, its, port = "perennial-outside", "198.51.100.1", "198.51.100.2", 8123
    within = ("ip", "netns", "exec", name)
    listen = f"import socket, time; held = socket.create_server(('{its}', {port})); print('ready', flush=True); time.sleep(600)"

    def run(*command: str) -> None:
        subprocess.run(command, check=True)

    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", "perennial0", "type", "veth", "peer", "name", "perennial1")
        run("ip", "link", "set", "perennial1", "netns", name)
        run("ip", "address", "add", f"{ours}/30", "dev", "perennial0")
        run("ip", "link", "set", "perennial0", "up")
        run(*within, "ip", "address", "add", f"{its}/30", "dev", "perennial1")
        run(*within, "ip", "link", "set", "perennial1", "up")
        run(*within, "ip", "route", "add", "default", "via", ours)
        with subprocess.Popen([*within, sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True) as listener:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "ready\n"
            yield f"{its} {port}"
            listener.kill()
    finally:
        # The cable ends with it.
        run("ip", "netns", "delete", name)


def test_trainings_the_judge_and_the_scorer_reach_no_other_machine_and_workers_do(containers: Containers) -> None:
    ask = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
    print("reached")
except OSError as error:
    print("no way:", error)
"""
    with another_machine() as address:
        asked = ("python", "-c", ask, *address.split())
        said = {name: containers.inside(name, *asked) for name in ("worker", *CONFINED)}
    assert "reached" in said["worker"], said
    assert all("no way:" in said[name] for name in CONFINED), said


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
    assert "chmod -R a+rX dags plugins include/models monitoring deploy" in told


# --- the scorers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def token(lived: Containers) -> str:
    """Of a client that may ask both models."""
    return lived.make_token("web_shop", *MODELS)


def ask(containers: Containers, token: str, model: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.post(
        f"{containers.scorer_url}/models/{model}/predict", json=body, headers=headers, trust_env=False, timeout=30
    )


def answered(containers: Containers, token: str, model: str, body: dict[str, Any]) -> dict[str, Any]:
    """The first row of an answer. A champion may not be loaded yet when the training has just ended."""
    deadline = time.monotonic() + 60
    while (answer := ask(containers, token, model, body)).status_code == 503:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.5)
    assert answer.status_code == 200, answer.text
    row: dict[str, Any] = answer.json()["predictions"][0]
    return row


def test_the_scorers_answer_by_features_by_key_and_by_entity_who_has_a_token(containers: Containers, token: str) -> None:
    for model in MODELS:
        assert answered(containers, token, model, {"features": [{"forecast": 7, "hour_of_day": 4}]})["features"]["given"]
    entity = {"meter": "m1", "hour": "2024-01-18T05:00:00Z"}
    by_key = answered(containers, token, BY_KEY, {"keys": [entity]})
    assert by_key["features"]["stored"] == ["hour_of_day", "forecast", "load_yesterday", "which_meter"]
    published = f"SELECT prediction FROM predictions.{BY_KEY}_predictions WHERE meter = 'm1' AND hour = '2024-01-18 05:00+00'"
    assert [by_key["prediction"]] == [float(value) for value in containers.sql(published)]
    assert "computed" in answered(containers, token, BY_KEY, {"entities": [{**entity, "forecast": 7}]})["features"]


def test_nobody_asks_the_scorers_without_a_token_of_theirs(containers: Containers, token: str) -> None:
    body = {"features": [{"forecast": 7}]}
    assert ask(containers, "none", MODELS[0], body).status_code == 401
    other = containers.make_token("other_shop", ASKED)
    assert ask(containers, other, MODELS[0], body).status_code == 403
    containers.compose("run", "--rm", "--no-TTY", "token", "revoke", "other_shop")
    assert ask(containers, other, MODELS[0], body).status_code == 401
    assert httpx.get(f"{containers.scorer_url}/metrics", trust_env=False).status_code == 404
    for words in ("touch /tokens/tokens.json", "touch /var/lib/perennial/x"):
        assert "Read-only file system" in containers.inside("scorer", "sh", "-c", words, check=False)


@dataclass
class Load:
    """Clients that ask without a pause.

    Attributes:
        answers: how many requests were answered.
        failures: what the others got.
    """

    answers: int = 0
    failures: list[str] = field(default_factory=list)


@contextmanager
def under_load(containers: Containers, token: str) -> Iterator[Load]:
    """Let two clients ask while the block runs."""
    load, over = Load(), threading.Event()

    def client() -> None:
        while not over.is_set():
            try:
                answer = ask(containers, token, MODELS[0], {"features": [{"forecast": 7, "hour_of_day": 4}]})
                said = "" if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
            except httpx.HTTPError as error:
                said = repr(error)
            if said:
                load.failures.append(said)
            else:
                load.answers += 1

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_scorers_are_replaced_one_after_another_and_no_request_fails(containers: Containers, token: str) -> None:
    before = set(containers.compose("ps", "--quiet", "scorer").split())
    with under_load(containers, token) as load, containers.engine.timed("make restart-scorers under load"):
        containers.run("make", "restart-scorers")
    now = set(containers.compose("ps", "--quiet", "scorer").split())
    assert (len(before), len(now), before & now) == (2, 2, set())
    assert load.failures == []
    assert load.answers > 20


def test_when_a_scorer_is_killed_the_other_answers(containers: Containers, token: str) -> None:
    [one, _] = containers.compose("ps", "--quiet", "scorer").split()
    pid = containers.engine.docker("inspect", "--format", "{{.State.Pid}}", one).strip()
    with under_load(containers, token) as load:
        while load.answers < 20:
            time.sleep(0.05)
        containers.run("kill", "-9", pid)
        asked = load.answers
        while load.answers < asked + 50:
            assert not load.failures
            time.sleep(0.05)
    assert load.failures == []
    containers.wait_until_healthy("scorer")


# --- nothing is lost --------------------------------------------------------------------------------------------------


def test_databases_and_workers_end_in_order(containers: Containers, api: AirflowApi) -> None:
    with containers.engine.timed("docker compose stop"):
        containers.compose("stop")
    codes = {name: row["ExitCode"] for name, row in containers.services().items()}
    # 137: killed, because it had not ended within its time.
    assert [name for name, code in codes.items() if code == 137] == []
    assert (codes["postgres"], codes["redis"]) == (0, 0)


def test_down_and_up_with_other_secrets_lose_nothing(containers: Containers, lived: Containers) -> None:
    containers.compose("start", "postgres")
    containers.wait_until_healthy("postgres")
    before = containers.secrets
    containers.set_password_of_postgres()
    containers.compose("down")
    # The former key signs which one comes after it.
    containers.choose(PERENNIAL_FORMER_JUDGE_KEY=before["PERENNIAL_JUDGE_KEY"])
    containers.rotate((*ROTATED, "PERENNIAL_JUDGE_KEY"))
    changed = {containers.secrets[name] for name in (*ROTATED, "PERENNIAL_JUDGE_KEY", "POSTGRES_PASSWORD")}
    assert not set(before.values()) & changed
    # For the next tests.
    containers.limit("state", megabytes=192)
    containers.publish(HOST)
    with containers.engine.timed("docker compose up after down"):
        containers.compose("--profile", "proxy", "up", "--detach")
    containers.wait_until_healthy("api")
    with containers.sign_in() as api:
        containers.live_a_day(api)
    containers.forget("PERENNIAL_FORMER_JUDGE_KEY")
    assert accepted(containers, before) == []
    assert accepted(containers, containers.secrets) == [*USERS, "admin of MLflow", "admin of Airflow"]
    containers.verify()


def test_both_uis_and_the_scorers_are_reached_by_tls_under_their_names(containers: Containers, token: str) -> None:
    containers.wait_until_healthy("proxy", "scorer")
    trusted = ssl.create_default_context(cafile=str(containers.folder / "tls" / "authority.pem"))
    port = containers.secrets["PERENNIAL_PUBLIC_PORT"]

    def answer(name: str, path: str, token: str = "none") -> httpx.Response:
        named = f"{name}.{HOST}"
        # A client of its own for each: another name over the same connection would not be a greeting.
        with httpx.Client(verify=trusted, trust_env=False) as client:
            url, sni = f"https://127.0.0.1:{port}{path}", {"sni_hostname": named}
            headers = {"Host": f"{named}:{port}"} | ({"Authorization": f"Bearer {token}"} if name == "scorer" else {})
            return client.get(url, headers=headers, extensions=sni)

    signing_in = answer("airflow", "/auth/login/")
    assert signing_in.status_code == 200
    assert "max-age=" in signing_in.headers["Strict-Transport-Security"]
    assert all("secure" in cookie.lower() for cookie in signing_in.headers.get_list("Set-Cookie"))
    assert answer("mlflow", "/api/2.0/mlflow/registered-models/search").status_code == 401
    assert answer("scorer", f"/v2/models/{MODELS[0]}").status_code == 401
    assert answer("scorer", f"/v2/models/{MODELS[0]}", token).json()["name"] == MODELS[0]
    assert answer("scorer", "/metrics", token).status_code == 404
    with pytest.raises(httpx.ConnectError, match=r"unrecognized name"):
        answer("another", "/")


def test_a_full_volume_is_told_publishes_nothing_and_is_made_up_for(containers: Containers, api: AirflowApi) -> None:
    filler = "/var/lib/perennial/filler"
    containers.inside("worker", "sh", "-c", f"cat /dev/zero >{filler}", check=False)
    published = "SELECT count(*) FROM perennial.perennial_publications"
    before = containers.sql(published)
    run = api.trigger(f"{MODELS[0]}.ingest", conf=containers.coming_day)
    wait_for_task(containers, api, run, "check_hours", "up_for_retry")
    [refused] = [task for task in api.task_instances(run) if task.task_id == "check_hours"]
    told = api.error(refused)
    assert containers.sql(published) == before
    containers.inside("worker", "rm", filler)
    ended = api.wait(run, patience=PATIENCE, check=containers.check)
    assert ended.state == "success", api.failure(run)
    containers.live_a_day(api)
    containers.verify()
    assert re.search(r"the disk of \S+ is full: make room, and clear the task if its tries are over", told), told


def test_each_killed_container_comes_back(containers: Containers, lived: Containers) -> None:
    with containers.engine.timed("every container killed, until runs go on"):
        for service in SERVICES:
            [identity, *_] = containers.compose("ps", "--quiet", service).split()
            pid = containers.engine.docker("inspect", "--format", "{{.State.Pid}}", identity).strip()
            containers.run("kill", "-9", pid)
            deadline = time.monotonic() + 60
            # Its main process is another one, without an operator.
            while containers.engine.docker("inspect", "--format", "{{.State.Pid}} {{.State.Running}}", identity).split() in (
                [pid, "true"], [pid, "false"], ["0", "false"],
            ):  # fmt: skip
                assert time.monotonic() < deadline, service
                time.sleep(0.2)
        containers.wait_until_healthy("api")
    with containers.sign_in() as api:
        containers.live_a_day(api)
    containers.wait_until_healthy()


def test_a_training_survives_a_rolling_restart_of_the_workers(containers: Containers, api: AirflowApi) -> None:
    run = api.trigger(f"{MODELS[0]}.train", conf={"as_of": "2024-01-20"})
    wait_for_task(containers, api, run, "build_training_set", "running", "success")
    for service in ("trainer", "worker", "judge"):
        containers.compose("up", "--detach", "--no-deps", "--force-recreate", service)
    ended = api.wait(run, patience=PATIENCE, check=containers.check)
    assert ended.state == "success", api.failure(run)


@pytest.mark.rare
def test_another_worker_takes_the_tasks_of_one_that_is_stopped(containers: Containers, api: AirflowApi) -> None:
    first = containers.compose("ps", "--quiet", "worker").strip()
    containers.compose("up", "--detach", "--scale", "worker=2", "--no-recreate")
    assert len(containers.compose("ps", "--quiet", "worker").split()) == 2
    containers.engine.docker("stop", first)
    containers.live_a_day(api)
    containers.engine.docker("start", first)


def test_runs_survive_a_restart_of_postgres(containers: Containers, api: AirflowApi) -> None:
    runs = [api.trigger(f"{model}.ingest", conf=containers.coming_day) for model in MODELS]
    # A run takes a few seconds, so it is not waited for.
    containers.compose("restart", "postgres")
    containers.wait_until_healthy("postgres", "api")
    for run in runs:
        ended = api.wait(run, patience=PATIENCE, check=containers.check)
        assert ended.state == "success", api.failure(run)
    containers.live_a_day(api)
    containers.verify()


def test_what_it_took(containers: Containers, capsys: pytest.CaptureFixture[str]) -> None:
    """Show the figures; they depend on the machine, so none of them is a rule."""
    memory = containers.engine.docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}")
    size = containers.engine.docker("images", "--format", "{{.Size}}", "perennial")
    times = "\n".join(f"{seconds:7.1f} s  {what}" for what, seconds in containers.engine.took.items())
    with capsys.disabled():
        sys.stdout.write(f"\n{times}\nimage: {size.strip()}\n{memory}")
