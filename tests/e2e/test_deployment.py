"""The life of two models in the deployed stack: the services of docker-compose.yaml, as processes, with real PostgreSQL,
Redis, Celery workers on queues of their own, MLflow behind its sign-in, lake and artifacts on an object store. A third model
cannot reach its source."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from moto.server import ThreadedMotoServer
from playwright.sync_api import Page, expect, sync_playwright
from pyarrow import fs
from sqlalchemy.pool import NullPool

from perennial.core.settings import PROJECT
from perennial.ledger.store import Ledger
from perennial.stack.airflow_api import AirflowApi
from tests.browsing import open_page
from tests.certificates import write_certificate
from tests.composed import Composed, compose, free_port
from tests.conftest import _without, postgres_server
from tests.living import run_stage

# In CI the same services live in containers (tests/containers), where an engine runs.
pytestmark = [pytest.mark.stack, pytest.mark.postgres, pytest.mark.rare]

MODELS = ("energy_load", "energy_other")
#: Its source is a database that does not answer, and whose password nobody must ever see.
BROKEN = "energy_broken"
CANARY = "canary-c4b1d9f03e7a5528"
STAGES = ("load", "train", "ingest", "score", "monitor")
WORKERS = ("worker", "trainer")
SERVICES = ("mlflow", "api", "execution", "scheduler", "dag-processor", "triggerer", "judge", "watch", "proxy", *WORKERS)
#: Behind TLS, Airflow and MLflow are at these names, which no server of names knows.
PUBLIC = "perennial.test"
NAMES = (f"airflow.{PUBLIC}", f"mlflow.{PUBLIC}")
METERS, HOURS = 5, 24
PATIENCE = 420


@dataclass
class Deployed:
    """The deployment, after the life of its models.

    Attributes:
        composed: its processes.
        api: Airflow, as its administrator.
        key: what a browser knows the key of the proxy's certificate by.
    """

    composed: Composed
    api: AirflowApi
    key: str

    @property
    def secrets(self) -> dict[str, str]:
        return self.composed.secrets

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.composed.environment("judge")["PERENNIAL_DATABASE_URL"])

    def database(self, service: str) -> sa.Engine:
        """The ledger, as the service's process sees it."""
        return sa.create_engine(self.composed.environment(service)["PERENNIAL_DATABASE_URL"], poolclass=NullPool)

    def mlflow(self, user: str) -> httpx.Client:
        password = self.secrets[f"MLFLOW_{user.upper()}_PASSWORD"]
        return httpx.Client(base_url=f"{self.composed.mlflow_url}/api/2.0/mlflow", auth=(user, password), trust_env=False)

    def objects(self) -> dict[str, bytes]:
        """What lies in the object store."""
        given = self.composed.environment("worker")
        store = fs.S3FileSystem(
            access_key=given["AWS_ACCESS_KEY_ID"], secret_key=given["AWS_SECRET_ACCESS_KEY"], region=given["AWS_REGION"],
            endpoint_override=given["AWS_ENDPOINT_URL"],
        )  # fmt: skip
        found = store.get_file_info(fs.FileSelector("bucket", recursive=True))
        return {file.path: store.open_input_stream(file.path).readall() for file in found if file.is_file}

    def logs(self) -> dict[str, str]:
        """What each kind of worker has written."""
        return {name: self.composed.log(name).read_text(errors="replace") for name in WORKERS}

    def run(self, stage: str, conf: dict[str, Any]) -> None:
        """Start a stage of each model, and wait until these runs and all they led to have ended."""
        run_stage(self.api, MODELS, stage, conf, check=self.composed.check)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    if shutil.which("redis-server") is None:
        _without("Redis")
    if shutil.which("nginx", path=f"{os.defpath}:/usr/sbin") is None:
        _without("nginx")
    folder, models = tmp_path_factory.mktemp("deployed"), tmp_path_factory.mktemp("models")
    for name in (*MODELS, BROKEN):
        shutil.copytree(PROJECT / "tests" / "models" / MODELS[0], models / name)
        spec = models / name / "model.yaml"
        text = spec.read_text().replace(f"name: {MODELS[0]}", f"name: {name}")
        if name == BROKEN:
            text = text.replace(
                '{python: "model:read_meters"}',
                '{sql: "SELECT * FROM meters WHERE hour >= :start AND hour < :end", connection: meters_db}',
            )
        spec.write_text(text)
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    object_store = {
        "AWS_ACCESS_KEY_ID": "perennial",
        "AWS_SECRET_ACCESS_KEY": os.urandom(16).hex(),
        "AWS_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    httpx.put(f"{object_store['AWS_ENDPOINT_URL']}/bucket").raise_for_status()
    connections = folder / "connections.env"
    connections.write_text(f"AIRFLOW_CONN_METERS_DB=postgres://reader:{CANARY}@127.0.0.1:{free_port()}/meters\n")
    chosen = {
        "PERENNIAL_WORKER_TASKS": "2",
        "PERENNIAL_TRAINER_TASKS": "1",
        "PERENNIAL_JUDGE_AT_ONCE": "1",
        "PERENNIAL_TRAINING_THREADS": "1",
        "PERENNIAL_CONNECTIONS_FILE": str(connections),
        "PERENNIAL_WAREHOUSE": "s3://bucket/lake",
        "PERENNIAL_MLFLOW_ARTIFACTS": "s3://bucket/mlflow",
        "PERENNIAL_PUBLIC_HOST": f"{PUBLIC}:{(public := free_port())}",
        "PERENNIAL_PUBLIC_PORT": str(public),
        "PERENNIAL_TRUSTED_PROXY": "127.0.0.1",
        **object_store,
    }
    key = write_certificate(folder / "tls", *NAMES)
    with (
        postgres_server("postgres") as server,
        compose(
            folder, models, postgres_port=int(server.port or 0), postgres_password=str(server.password), chosen=chosen
        ) as stack,
    ):
        assert stack.run("init") == 0, stack.last_words("init")
        for service in SERVICES:
            stack.start(service)
        for service in SERVICES:
            stack.wait_until_healthy(service)
        with AirflowApi(stack.airflow_url, "admin", stack.secrets["AIRFLOW_ADMIN_PASSWORD"]) as api:
            dags = [f"{model}.{stage}" for model in MODELS for stage in (*STAGES, "rollback")] + [f"{BROKEN}.ingest"]
            api.wait_for_dags(dags)
            for dag in dags:
                api.unpause(dag)
            life = Deployed(stack, api, key)
            broken = api.trigger(f"{BROKEN}.ingest", conf={"start": "2024-01-01", "end": "2024-01-02"})
            life.run("load", {"start": "2024-01-01", "end": "2024-01-17", "days_per_part": 8})
            life.run("train", {"as_of": "2024-01-17"})
            life.run("ingest", {"start": "2024-01-17", "end": "2024-01-19"})
            assert api.wait(broken, patience=PATIENCE, check=stack.check).state == "failed"
            yield life
    store.stop()


# --- it works ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_model_lives_through_celery_workers(deployed: Deployed, model: str) -> None:
    states = {stage: {run.state for run in deployed.api.runs(f"{model}.{stage}")} for stage in STAGES}
    assert states == {stage: {"success"} for stage in STAGES}

    assert deployed.ledger.champion(model) == 1
    with deployed.database("worker").connect() as connection:
        rows = connection.execute(sa.text(f"SELECT version, count(*) FROM {model}_predictions GROUP BY version")).all()
    assert [tuple(row) for row in rows] == [(1, 2 * METERS * HOURS)]


def test_each_queue_has_workers_of_its_own_and_the_judge_has_none(deployed: Deployed) -> None:
    [run] = deployed.api.runs(f"{MODELS[0]}.train")
    ran = {
        worker: set(re.findall(rf"dag_id={run.dag_id}/run_id={re.escape(run.run_id)}/task_id=(\w+)/", log))
        for worker, log in deployed.logs().items()
    }
    assert ran == {
        "worker": {"decide_promotion", "promote_champion"},
        "trainer": {"build_training_set", "fit_candidate", "evaluate_candidates"},
    }
    said = [json.loads(line) for line in deployed.composed.log("judge").read_text().splitlines() if line.startswith("{")]
    ruled = {line["event"].partition(":")[0] for line in said if line.get("run") == run.run_id and line["model"] == MODELS[0]}
    assert {"decide_promotion", "promote_champion"} <= ruled


def test_an_alias_that_somebody_moves_in_mlflow_is_noticed_within_seconds(deployed: Deployed) -> None:
    alias = {"name": MODELS[0], "alias": "champion"}
    with deployed.mlflow("admin") as client:
        assert client.request("DELETE", "registered-models/alias", json=alias).status_code == 200
        deadline = time.monotonic() + 60
        while not client.get(f"registered-models/get?name={MODELS[0]}").json()["registered_model"].get("aliases"):
            assert time.monotonic() < deadline, deployed.composed.last_words("judge")
            time.sleep(0.2)


def test_lake_and_models_lie_in_the_object_store(deployed: Deployed) -> None:
    kinds = {re.sub(r"^bucket/(lake|mlflow)/.*(\.\w+)$", r"\1 \2", path) for path in deployed.objects()}
    assert {"lake .parquet", "lake .avro", "mlflow .skops", "mlflow .html"} <= kinds
    assert not (deployed.composed.folder / "state" / "lake").exists()


def test_init_can_be_run_again(deployed: Deployed) -> None:
    assert deployed.composed.run("init") == 0, deployed.composed.last_words("init")
    assert deployed.ledger.champion(MODELS[0]) == 1


def test_the_watchdog_looks_after_the_deployment(deployed: Deployed) -> None:
    url = f"http://127.0.0.1:{deployed.composed.ports['watch:9464']}/metrics"
    figures = dict(line.rsplit(" ", 1) for line in httpx.get(url).text.splitlines() if line and not line.startswith("#"))
    assert figures["perennial_airflow_up"] == "1.0"
    assert [figures[f'perennial_version{{model="{model}",which="champion"}}'] for model in MODELS] == ["1.0", "1.0"]


# --- nobody gets in ---------------------------------------------------------------------------------------------------


def test_nobody_reads_without_signing_in(deployed: Deployed) -> None:
    assert httpx.get(f"{deployed.composed.airflow_url}/api/v2/dags").status_code == 401
    path = f"registered-models/get?name={MODELS[0]}"
    assert httpx.get(f"{deployed.composed.mlflow_url}/api/2.0/mlflow/{path}").status_code == 401
    with deployed.mlflow("worker") as client:
        assert client.get(path).json()["registered_model"]["aliases"] == [{"alias": "champion", "version": "1"}]


def test_a_role_of_one_database_cannot_connect_to_another(deployed: Deployed) -> None:
    own = deployed.database("judge").url
    with pytest.raises(sa.exc.OperationalError, match="permission denied for database"):
        sa.create_engine(own.set(database="airflow")).connect()


@pytest.mark.parametrize("service", ["worker", "trainer", "api", "dag-processor"])
def test_the_judges_identity_alone_may_write_who_is_champion(deployed: Deployed, service: str) -> None:
    for statement in (
        "UPDATE perennial_promotions SET version = 7",
        "DELETE FROM perennial_promotions",
        "UPDATE perennial_versions SET manifest = '{}'",
        "INSERT INTO perennial_approvals (model) VALUES ('energy_load')",
        "INSERT INTO perennial_retirements (model) VALUES ('energy_load')",
    ):
        with (
            deployed.database(service).connect() as connection,
            pytest.raises(sa.exc.ProgrammingError, match="permission denied"),
        ):
            connection.execute(sa.text(statement))


def test_who_looks_at_the_board_can_write_nothing(deployed: Deployed) -> None:
    with deployed.database("api").connect() as connection:
        tables = [table for table in sa.inspect(connection).get_table_names() if table.startswith("perennial_")]
        assert tables
        for table in tables:
            connection.execute(sa.text(f"SELECT count(*) FROM {table}"))
    for table in tables:
        with (
            deployed.database("api").connect() as connection,
            pytest.raises(sa.exc.ProgrammingError, match="permission denied"),
        ):
            connection.execute(sa.text(f"DELETE FROM {table}"))


def test_a_workers_identity_cannot_move_an_alias(deployed: Deployed) -> None:
    alias = {"name": MODELS[0], "alias": "champion", "version": "1"}
    with deployed.mlflow("worker") as client:
        assert client.post("registered-models/alias", json=alias).status_code == 403
        assert client.request("DELETE", "registered-models/alias", json=alias).status_code == 403
        assert client.post("model-versions/set-tag", json={**alias, "key": "a", "value": "b"}).status_code == 403
        assert client.request("DELETE", "model-versions/delete", json=alias).status_code == 403
    with deployed.mlflow("judge") as client:
        assert client.post("registered-models/alias", json=alias).status_code == 200


def test_a_role_of_airflow_may_do_what_it_is_for(deployed: Deployed) -> None:
    runs = {stage: f"/api/v2/dags/{MODELS[0]}.{stage}/dagRuns" for stage in ("ingest", "promote", "rollback", "train")}
    # A run of an unknown day is refused for its conf, by those who may ask for one.
    body = {"logical_date": None, "conf": {"start": 7, "version": "none", "reason": 7, "as_of": 7}}
    allowed: dict[str, set[str]] = {}
    for role in ("Viewer", "Operator", "Approver"):
        with _someone(deployed, role) as client:
            assert client.get("/api/v2/dags").status_code == 200
            answers = {stage: client.post(path, json=body).status_code for stage, path in runs.items()}
            assert set(answers.values()) <= {400, 403, 422}
            allowed[role] = {stage for stage, status in answers.items() if status != 403}
            assert client.get("/api/v2/connections").status_code == 403
            assert client.get("/api/v2/variables").status_code == 403
    assert allowed == {
        "Viewer": set(),
        "Operator": {"ingest", "rollback", "train"},
        "Approver": {"promote", "rollback", "train"},
    }


def _someone(deployed: Deployed, role: str) -> httpx.Client:
    """A person of a role, signed in."""
    name, password = role.lower(), f"for-a-test-{os.urandom(8).hex()}"
    person = {
        "username": name, "password": password, "first_name": role, "last_name": "Person", "email": f"{name}@example.org",
        "roles": [{"name": role}],
    }  # fmt: skip
    with _signed_in(deployed, "admin", deployed.secrets["AIRFLOW_ADMIN_PASSWORD"]) as admin:
        made = admin.post("/auth/fab/v1/users", json=person)
        assert made.is_success, made.text
    return _signed_in(deployed, name, password)


def _signed_in(deployed: Deployed, user: str, password: str) -> httpx.Client:
    url = deployed.composed.airflow_url
    token = httpx.post(f"{url}/auth/token", json={"username": user, "password": password}).json()["access_token"]
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=30)


# --- behind TLS -------------------------------------------------------------------------------------------------------


def _public(deployed: Deployed, name: str) -> str:
    """The address that people open."""
    return f"https://{name}:{deployed.composed.ports['proxy:8443']}"


def _asked(
    deployed: Deployed, name: str, path: str, *, host: str | None = None, method: str = "GET", **asked: Any
) -> httpx.Response:
    """The answer to a request through the proxy, whose certificate is checked."""
    url = f"https://127.0.0.1:{deployed.composed.ports['proxy:8443']}"
    trust = ssl.create_default_context(cafile=str(deployed.composed.folder / "tls" / "authority.pem"))
    with httpx.Client(base_url=url, verify=trust, trust_env=False, timeout=60) as client:
        headers = {"Host": host or _public(deployed, name).removeprefix("https://"), **asked.pop("headers", {})}
        return client.request(method, path, headers=headers, extensions={"sni_hostname": name}, **asked)


@pytest.fixture(scope="module")
def page(deployed: Deployed, chromium: str) -> Iterator[Page]:
    """A browser that comes through the proxy."""
    flags = [
        f"--host-resolver-rules=MAP *.{PUBLIC} 127.0.0.1",
        # It trusts this key as if its authority were installed.
        f"--ignore-certificate-errors-spki-list={deployed.key}",
    ]
    with sync_playwright() as playwright:
        page = open_page(playwright, chromium, patience=60, flags=flags)
        yield page
        page.context.close()


def test_a_person_uses_airflow_behind_tls(deployed: Deployed, page: Page) -> None:
    url = _public(deployed, NAMES[0])
    page.goto(url)
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", deployed.secrets["AIRFLOW_ADMIN_PASSWORD"])
    page.get_by_role("button", name=re.compile("sign in", re.IGNORECASE)).click()
    page.wait_for_url(re.compile(re.escape(url) + "/(?!auth)"))
    cookies = {cookie["name"]: cookie for cookie in page.context.cookies(url)}
    assert {"_token", "session"} <= set(cookies)
    assert all(cookie["secure"] and cookie["httpOnly"] for cookie in cookies.values())
    # MLflow, under a name of its own, is told nothing of them.
    assert page.context.cookies(_public(deployed, NAMES[1])) == []

    page.goto(f"{url}/dags/{MODELS[0]}.train")
    expect(page.get_by_text(f"{MODELS[0]}.train").first).to_be_visible()
    # A change, for which the browser says which page it comes from.
    with page.expect_response(lambda answer: answer.url.endswith("/favorite")) as changed:
        page.get_by_role("button", name=re.compile("favorite", re.IGNORECASE)).first.click()
    assert changed.value.status == 204, changed.value.text()
    assert changed.value.request.header_value("origin") == url

    board = page.goto(f"{url}/perennial/")
    assert board is not None
    assert "default-src 'none'" in board.headers["content-security-policy"]
    expect(page.get_by_role("link", name=MODELS[0], exact=True).first).to_be_visible()


def test_a_person_writes_a_note_in_mlflow_behind_tls(deployed: Deployed, page: Page) -> None:
    record = deployed.ledger.versions(MODELS[0])[0]
    with deployed.mlflow("worker") as client:
        run = client.get("runs/get", params={"run_id": record.mlflow_run_id}).json()["run"]["info"]
    url = _public(deployed, NAMES[1])
    # As if the name and password had been typed into the browser's own window.
    signed_in = url.replace("//", f"//admin:{deployed.secrets['MLFLOW_ADMIN_PASSWORD']}@")
    page.goto(f"{signed_in}/ajax-api/2.0/mlflow/users/current")
    page.goto(f"{url}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}")
    page.get_by_role("button", name="Edit description").click()
    page.locator("textarea").first.fill("seen behind TLS")
    with page.expect_response(lambda answer: answer.url.endswith("/runs/set-tag")) as changed:
        page.get_by_role("button", name="Save").click()
    assert changed.value.status == 200
    assert changed.value.request.header_value("origin") == url
    expect(page.get_by_text("seen behind TLS")).to_be_visible()


def test_a_large_file_goes_through_the_proxy_both_ways(deployed: Deployed) -> None:
    with deployed.mlflow("worker") as client:
        experiment = client.post("experiments/create", json={"name": "large files"}).json()["experiment_id"]
    path = f"/api/2.0/mlflow-artifacts/artifacts/{experiment}/large.bin"
    person = ("admin", deployed.secrets["MLFLOW_ADMIN_PASSWORD"])
    large = os.urandom(8_000_000)
    assert _asked(deployed, NAMES[1], path, method="PUT", content=large, auth=person).status_code == 200
    assert _asked(deployed, NAMES[1], path, auth=person).content == large


@pytest.mark.parametrize(("name", "path"), [(NAMES[0], "/"), (NAMES[0], "/perennial/"), (NAMES[1], "/health")])
def test_a_browser_is_told_to_come_by_tls_only_and_to_show_nothing_in_frames_of_others(
    deployed: Deployed, name: str, path: str
) -> None:
    headers = _asked(deployed, name, path).headers
    assert headers.get_list("strict-transport-security") == ["max-age=31536000"]
    # Once, whether the page or the proxy says it.
    assert headers.get_list("x-frame-options") == ["SAMEORIGIN"]
    assert headers.get_list("x-content-type-options") == ["nosniff"]


def test_plain_http_and_old_tls_are_not_served(deployed: Deployed) -> None:
    port = deployed.composed.ports["proxy:8443"]
    assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 400
    old = ssl.create_default_context(cafile=str(deployed.composed.folder / "tls" / "authority.pem"))
    # A client that would take any cipher; the version is what the proxy refuses.
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"),
    ):
        old.wrap_socket(connection, server_hostname=NAMES[0])


def test_another_name_is_not_answered(deployed: Deployed) -> None:
    with pytest.raises(httpx.ConnectError, match="unrecognized name"):
        _asked(deployed, "evil.test", "/")
    for name in NAMES:
        assert _asked(deployed, name, "/health", host="evil.test").status_code == 421
    # MLflow looks at the port too.
    assert _asked(deployed, NAMES[1], "/", host=NAMES[1]).status_code == 403


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_of_another_site_is_refused(deployed: Deployed, name: str, method: str) -> None:
    for origin in ("https://evil.test", "null", f"https://{PUBLIC}", _public(deployed, NAMES[1 - NAMES.index(name)])):
        assert _asked(deployed, name, "/health", method=method, headers={"Origin": origin}).status_code == 403


def test_nobody_but_the_proxy_says_where_a_request_comes_from(deployed: Deployed) -> None:
    forged = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "evil.test"}
    answer = _asked(deployed, NAMES[0], "/auth/login/", headers={**forged, "Forwarded": "host=evil.test;proto=http"})
    assert answer.status_code == 200
    assert all("; Secure" in cookie for cookie in answer.headers.get_list("set-cookie"))
    assert "evil.test" not in answer.text
    # Addresses that a client makes up do not give it more tries.
    tries = (
        _asked(
            deployed, NAMES[0], "/auth/token", method="POST", json={}, headers={"X-Forwarded-For": f"203.0.113.{number}"}
        ).status_code
        for number in range(200)
    )  # fmt: skip
    assert next(status for status in tries if status != 400) == 429


# --- no secret gets out -----------------------------------------------------------------------------------------------


def test_a_failed_source_is_told_without_its_password(deployed: Deployed) -> None:
    with deployed.database("worker").connect() as connection:
        outbox = connection.execute(sa.text("SELECT alert FROM perennial_outbox")).scalars().all()
    assert [alert for alert in outbox if BROKEN in alert and "run_failed" in alert]


def test_no_secret_is_in_a_log_a_report_or_a_file(deployed: Deployed) -> None:
    hidden = {**deployed.secrets, "the source's password": CANARY}
    folder = deployed.composed.folder
    kept = {folder / ".env", folder / "connections.env", folder / "tmp" / "basic_auth.ini"}
    files = [file for file in folder.rglob("*") if file.is_file() and file not in kept and "redis" not in file.parts]
    assert len(list(folder.glob("*.log"))) > len(SERVICES)
    contents = {str(file.relative_to(folder)): file.read_bytes() for file in files} | deployed.objects()
    for name, content in contents.items():
        leaked = [secret for secret, value in hidden.items() if value.encode() in content]
        assert not leaked, f"{leaked} in {name}"


def test_no_secret_is_in_a_database(deployed: Deployed) -> None:
    hidden = {**deployed.secrets, "the source's password": CANARY}
    init = deployed.composed.environment("init")
    names = ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "PERENNIAL_MLFLOW_STORE_URL", "PERENNIAL_DATABASE_URL")
    urls = [init[name] for name in names]
    superuser = sa.make_url(init["PERENNIAL_POSTGRES_URL"])  # the ledger's owner cannot read what workers made
    for url in (superuser.set(database=sa.make_url(url).database) for url in urls):
        dumped = subprocess.run(
            ["pg_dump", "--host", str(url.host), "--port", str(url.port), "--username", str(url.username), str(url.database)],
            env={**os.environ, "PGPASSWORD": str(url.password)}, capture_output=True, check=True,
        ).stdout  # fmt: skip
        assert len(dumped) > 10_000
        assert not [name for name, secret in hidden.items() if secret.encode() in dumped]


def test_secrets_are_in_no_argument_of_a_process(deployed: Deployed) -> None:
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = arguments.read_bytes().decode(errors="replace")
        except OSError:
            continue
        assert not [name for name, secret in deployed.secrets.items() if secret in text], text[:80]


def test_a_weak_secret_stops_init(deployed: Deployed) -> None:
    environment = {**deployed.composed.environment("init"), "REDIS_PASSWORD": "changeme"}
    done = subprocess.run(["perennial", "deploy", "init"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "REDIS_PASSWORD: too weak for a secret" in done.stderr
