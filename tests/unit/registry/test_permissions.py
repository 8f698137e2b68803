"""Who may change what in the deployed MLflow: each route of a real server, asked by each kind of user."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from mlflow import MlflowClient

from perennial.core.settings import PROJECT
from perennial.operations.identities import make_mlflow
from perennial.registry.permissions import APPROVER, JUDGE, MOVED_BY, OPERATOR, SCORER, VIEWER, WORKER, may_ask
from tests.composed import free_port

USERS = (JUDGE, WORKER, SCORER, VIEWER, OPERATOR, APPROVER, "nobody")
PASSWORDS = {name: f"a-password-of-{name}" for name in ("admin", *USERS)}
#: What ``perennial deploy mlflow`` does.
START = "import os, sys; from perennial.operations.deployed import serve_mlflow; serve_mlflow(os.environ, sys.argv[1:])"
#: Prints the routes of the server: those of Flask, and those that are answered before it.
LIST = """
import json, os
os.environ["_MLFLOW_SGI_NAME"] = "uvicorn"
from mlflow.server import auth, app
served = auth.create_app(app)
routes = [(rule.rule, sorted(rule.methods)) for rule in app.url_map.iter_rules()]
routes += [(route.path, sorted(route.methods)) for route in served.routes if getattr(route, "methods", None)]
print(json.dumps(routes))
"""
#: What may be sent with another method than GET, by role; everybody may search.
SEARCHES = {
    "mlflow/experiments/search", "mlflow/experiments/search-datasets", "mlflow/runs/search",
    "mlflow/logged-models/search",
    "mlflow/registered-models/get-latest-versions", "mlflow/traces/search", "mlflow/traces/metrics",
    "mlflow/datasets/search",
    "mlflow/traces/batchGetInfos", "mlflow/traces/calculate-filter-correlation", "mlflow/issues/search", "graphql",
    "mlflow/artifacts/presigned-download-url", "mlflow/ui-telemetry",
}  # fmt: skip
RUNS = {
    "mlflow/experiments/create", "mlflow/experiments/restore", "mlflow/runs/create", "mlflow/runs/update",
    "mlflow/runs/set-tag", "mlflow/runs/delete-tag", "mlflow/runs/log-batch", "mlflow/runs/log-inputs",
    "mlflow/runs/log-metric", "mlflow/runs/log-model", "mlflow/runs/log-parameter", "mlflow/runs/outputs",
    "mlflow/logged-models", "mlflow/logged-models/1", "mlflow/logged-models/1/params",
    "mlflow/logged-models/1/tags", "mlflow/logged-models/1/tags/1", "mlflow/artifacts/presigned-upload-url",
    "mlflow-artifacts/artifacts/1", "mlflow-artifacts/mpu/abort/1", "mlflow-artifacts/mpu/complete/1",
    "mlflow-artifacts/mpu/create/1",
}  # fmt: skip
REGISTRY = {
    "mlflow/registered-models/create", "mlflow/registered-models/rename", "mlflow/registered-models/update",
    "mlflow/registered-models/delete", "mlflow/registered-models/set-tag", "mlflow/registered-models/delete-tag",
    "mlflow/registered-models/alias", "mlflow/model-versions/create", "mlflow/model-versions/update",
    "mlflow/model-versions/delete", "mlflow/model-versions/set-tag", "mlflow/model-versions/delete-tag",
    "mlflow/model-versions/transition-stage",
}  # fmt: skip
NOTES = {"mlflow/runs/set-tag", "mlflow/runs/delete-tag", "mlflow/users/update-password"}
MAY = {
    JUDGE: SEARCHES | RUNS | REGISTRY,
    WORKER: SEARCHES | RUNS,
    SCORER: SEARCHES,
    VIEWER: SEARCHES | {"mlflow/users/update-password"},
    OPERATOR: SEARCHES | NOTES,
    # With the alias champion alone, as below.
    APPROVER: SEARCHES | NOTES,
    "nobody": SEARCHES | {"mlflow/users/update-password"},
}


class Server:
    def __init__(self, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.folder = folder
        self.store = f"sqlite:///{folder / 'mlflow.db'}"
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{PROJECT / 'include'}:{os.environ.get('PYTHONPATH', '')}",
            "MLFLOW_BACKEND_STORE_URI": self.store,
            "_MLFLOW_SERVER_FILE_STORE": self.store,
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-of-a-test-0123456789",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PERENNIAL_MLFLOW_ARTIFACTS": str(folder / "artifacts"),
        }

    def client(self, user: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, auth=(user, PASSWORDS[user]), trust_env=False, timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow as ``perennial deploy mlflow`` starts it, with the users of the init job and people of each role."""
    server = Server(tmp_path_factory.mktemp("mlflow"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # MLflow's own
        warnings.simplefilter("ignore", UserWarning)
        make_mlflow(sa.make_url(server.store), {name: PASSWORDS[name] for name in ("admin", JUDGE, WORKER, SCORER)})
    port = server.url.rpartition(":")[2]
    command = [sys.executable, "-c", START, "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    log = (server.folder / "log").open("wb")
    process = subprocess.Popen(
        command, env=server.environment, stdout=log, stderr=log, cwd=server.folder, start_new_session=True
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"{server.url}/health", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert process.poll() is None, (server.folder / "log").read_text()
            assert time.monotonic() < deadline, (server.folder / "log").read_text()
            time.sleep(0.2)
        with server.client("admin") as admin:
            roles = {role["name"]: role["id"] for role in admin.get("/api/3.0/mlflow/roles/list").json()["roles"]}
            for name in (VIEWER, OPERATOR, APPROVER, "nobody"):
                person = {"username": name, "password": PASSWORDS[name]}
                admin.post("/api/2.0/mlflow/users/create", json=person).raise_for_status()
                if name in roles:
                    given = {"username": name, "role_id": roles[name]}
                    admin.post("/api/3.0/mlflow/roles/assign", json=given).raise_for_status()
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


@pytest.fixture(scope="module")
def routes(server: Server) -> list[tuple[str, str]]:
    """Path and method of each route that may change something; a placeholder has the value 1."""
    listed = subprocess.run(
        [sys.executable, "-c", LIST], env=server.environment, cwd=server.folder, capture_output=True, text=True, check=True
    )  # fmt: skip
    found = {
        (re.sub(r"<[^>]+>|\{[^}]+\}", "1", path), method)
        for path, methods in json.loads(listed.stdout.splitlines()[-1])
        for method in methods
        if method not in ("GET", "HEAD", "OPTIONS")
    }
    assert len(found) > 250
    return sorted(found)


def short(path: str) -> str:
    return re.sub(r"^/((ajax-)?api/\d\.\d/?)?", "", path)


@pytest.mark.parametrize("user", USERS)
def test_a_user_may_change_what_is_listed_and_nothing_else(server: Server, routes: list[tuple[str, str]], user: str) -> None:
    asked = [(path, method) for path, method in routes if may_ask({user}, method, path)]
    assert {short(path) for path, _ in asked} == MAY[user]
    with server.client(user) as client:
        for path, method in sorted(set(routes) - set(asked)):
            answer = client.request(method, path, json={"name": "toy"})
            assert answer.status_code == 403, (method, path, answer.text)


def test_nobody_changes_anything_without_signing_in(server: Server, routes: list[tuple[str, str]]) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        assert {client.request(method, path, json={}).status_code for path, method in routes} == {401}


def as_user(server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS[name])
    return MlflowClient(tracking_uri=server.url, registry_uri=server.url)


def store(server: Server, name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[str, str]:
    """A run and a stored model, written as a worker does; returns the ids of both."""
    (folder / "model.skops").write_text("a model")
    worker = as_user(server, WORKER, monkeypatch)
    experiment = worker.create_experiment(name)
    run = str(worker.create_run(experiment).info.run_id)
    worker.log_metric(run, "auc", 0.7)
    worker.log_artifacts(run, str(folder), "files")
    model = worker.create_logged_model(experiment, source_run_id=run)
    worker.log_model_artifacts(model.model_id, str(folder))
    worker.finalize_logged_model(model.model_id, "READY")
    worker.set_logged_model_tags(model.model_id, {"a": "b"})
    worker.set_terminated(run)
    return run, str(model.model_id)


def register(server: Server, name: str, run: str, model: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A version with the alias, made as the judge does; returns its number."""
    judge = as_user(server, JUDGE, monkeypatch)
    judge.create_registered_model(name)
    made = judge.create_model_version(name, f"models:/{model}", run, model_id=model)
    judge.set_registered_model_alias(name, "champion", made.version)
    judge.set_model_version_tag(name, made.version, "a", "b")
    return str(made.version)


def test_a_worker_owns_no_model_that_it_would_be_the_first_to_register(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/api/2.0/mlflow"
    prompt = {"name": "words", "tags": [{"key": "mlflow.prompt.is_prompt", "value": "true"}]}
    with server.client(WORKER) as worker, server.client("admin") as admin:
        for prefix in ("/api/2.0", "/ajax-api/2.0"):
            for wanted in ({"name": "toy"}, prompt):
                assert worker.post(f"{prefix}/mlflow/registered-models/create", json=wanted).status_code == 403
        run, model = store(server, "toy", monkeypatch, tmp_path)
        alias = {"name": "toy", "alias": "champion", "version": register(server, "toy", run, model, monkeypatch)}
        # A release before let a worker register first, and MLflow still says that the model is the worker's.
        grant = {"username": WORKER, "resource_type": "registered_model", "resource_id": "toy", "permission": "MANAGE"}
        admin.post("/api/3.0/mlflow/users/permissions/grant", json=grant).raise_for_status()

        for method, what, body in (
            ("POST", "registered-models/alias", {**alias, "alias": "challenger"}),
            ("DELETE", "registered-models/alias", alias),
            ("DELETE", "model-versions/delete", alias),
            ("DELETE", "registered-models/delete", alias),
            ("POST", "registered-models/rename", {"name": "toy", "new_name": "mine"}),
            ("POST", "model-versions/create", {"name": "toy", "source": f"models:/{model}", "model_id": model}),
            ("POST", "model-versions/set-tag", {**alias, "key": "a", "value": "b"}),
        ):
            answer = worker.request(method, f"{path}/{what}", json=body)
            assert answer.status_code == 403, (what, answer.text)
        kept = worker.get(f"{path}/registered-models/get", params={"name": "toy"}).json()["registered_model"]
        assert kept["aliases"] == [{"alias": "champion", "version": alias["version"]}]


def test_an_approver_moves_the_alias_champion_alone_and_the_server_notes_who_did(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = store(server, "moved", monkeypatch, tmp_path)
    first = register(server, "moved", run, model, monkeypatch)
    judge = as_user(server, JUDGE, monkeypatch)
    second = str(judge.create_model_version("moved", f"models:/{model}", run, model_id=model).version)
    path, asked = "/mlflow/registered-models/alias", {"name": "moved", "alias": "champion", "version": second}
    with server.client(APPROVER) as approver:
        # MLflow's pages, and its client.
        for prefix in ("/ajax-api/2.0", "/api/2.0"):
            answer = approver.post(f"{prefix}{path}", json=asked)
            assert answer.status_code == 200, answer.text
        for method, body in (
            ("POST", {**asked, "alias": "challenger"}), ("POST", {**asked, "alias": ["champion"]}), ("DELETE", asked),
        ):  # fmt: skip
            assert approver.request(method, f"/api/2.0{path}", json=body).status_code == 403
        # What is not sent as JSON is read by MLflow all the same, and here by nobody.
        raw = approver.post(f"/api/2.0{path}", content=json.dumps(asked), headers={"Content-Type": "text/plain"})
        assert raw.status_code == 403
        tag = {"name": "moved", "key": MOVED_BY, "value": f"{first} judge"}
        assert approver.post("/api/2.0/mlflow/registered-models/set-tag", json=tag).status_code == 403
    for name in (OPERATOR, VIEWER, WORKER):
        with server.client(name) as client:
            assert client.post(f"/api/2.0{path}", json=asked).status_code == 403
    found = judge.get_registered_model("moved")
    assert (found.aliases["champion"], found.tags[MOVED_BY]) == (second, f"{second} {APPROVER}")


def test_the_promoter_of_earlier_releases_is_gone_after_init(server: Server) -> None:
    former = {"username": "promoter", "password": "a-password-that-is-kept"}
    with server.client("admin") as admin:
        admin.post("/api/2.0/mlflow/users/create", json=former).raise_for_status()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's own
            make_mlflow(sa.make_url(server.store), {name: PASSWORDS[name] for name in ("admin", JUDGE, WORKER, SCORER)})
        assert admin.get("/api/2.0/mlflow/users/get", params={"username": "promoter"}).status_code == 404


def test_each_role_does_its_work(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, model = store(server, "work", monkeypatch, tmp_path)
    version = register(server, "work", run, model, monkeypatch)
    for name in (OPERATOR, APPROVER):
        as_user(server, name, monkeypatch).set_tag(run, "mlflow.note.content", f"a note of {name}")
    viewer = as_user(server, VIEWER, monkeypatch)
    assert viewer.get_run(run).data.tags["mlflow.note.content"] == "a note of approver"
    assert viewer.get_model_version_by_alias("work", "champion").version == version
    assert [file.path for file in viewer.list_artifacts(run, "files")] == ["files/model.skops"]
    with server.client(VIEWER) as client:
        for page in ("/", "/version", "/api/2.0/mlflow/users/current"):
            assert client.get(page).status_code in (200, 404), page
        changed = {"username": VIEWER, "password": "another-password-of-viewer"}
        assert client.patch("/api/2.0/mlflow/users/update-password", json={**changed, "username": WORKER}).status_code == 403
