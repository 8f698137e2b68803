"""What the project adds to Airflow's API server, walked on the real server with the embedded and the deployed sign-in."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from perennial.alerts import of_operation
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT
from perennial.evidence.verdict import VerdictDetails
from perennial.ledger.store import Ledger
from tests.living import free_ports

SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
FAB = "perennial.orchestration.people.NamedFabAuthManager"

#: What an attacker would put into a model's words.
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"


@dataclass
class Server:
    """The running server.

    Attributes:
        url: where it listens.
        state: the deployment's folder.
        routes: those that plugins added.
        log: what it printed.
    """

    url: str
    state: Path
    routes: list[dict[str, str]]
    log: Path
    _signed_in: dict[str, httpx.Client] = field(default_factory=dict)

    def client(self, name: str | None = None) -> httpx.Client:
        """A client without a session, or one of somebody whose password is their name."""
        key = name or ""
        if key not in self._signed_in:
            client = httpx.Client(base_url=self.url, trust_env=False, timeout=60)
            if name is not None:
                answer = client.post("/auth/token", json={"username": name, "password": name})
                answer.raise_for_status()
                client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
            self._signed_in[key] = client
        return self._signed_in[key]

    @property
    def ledger(self) -> Ledger:
        return Ledger(f"sqlite:///{self.state / 'perennial.db'}")


@pytest.fixture(scope="module", params=[SIMPLE, FAB], ids=["simple", "fab"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server")
    state, models = home / "var", home / "models"
    for name in ("first", "second"):
        copy_model(models, name)
    copy_model(models, "broken", task="task: guess")
    reports = state / "reports" / "first" / "drift" / "2024-01-18"
    reports.mkdir(parents=True)
    (reports / "report.html").write_text("<h1>drifted</h1><script>1</script>")
    (home / "secret.html").write_text("secret")
    (reports / "link.html").symlink_to(home / "secret.html")
    (reports.parent / "away").symlink_to(home)
    (state / "reports" / "second").mkdir()
    (state / "reports" / "second" / "page.html").write_text("second's")
    (state / "reports" / "first" / ".draft.html").write_text("draft")
    (state / "reports" / "first" / "model.py").write_text("code")
    os.mkfifo(state / "reports" / "first" / "pipe.html")
    fill(Ledger(f"sqlite:///{state / 'perennial.db'}"))
    port = free_ports()["PERENNIAL_AIRFLOW_PORT"]
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({"admin": "admin", "viewer": "viewer"}))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PERENNIAL_"))},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__AUTH_MANAGER": request.param,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "no-dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__SECRET_KEY": "s" * 32,
        "AIRFLOW__API_AUTH__JWT_SECRET": "j" * 64,
        "PERENNIAL_MODELS": str(models),
        "PERENNIAL_STATE": str(state),
        "PERENNIAL_MLFLOW_PUBLIC_URL": "http://mlflow.test",
    }
    log = home / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("serve.py")), port, "first", "second"],
            env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        routes = next((json.loads(line) for line in process.stdout if line.startswith("[")), None)
        assert routes is not None, log.read_text()
        found = Server(f"http://127.0.0.1:{port}", state, routes, log)
        try:
            wait_for(found, process)
            yield found
        finally:
            for client in found._signed_in.values():
                client.close()
    finally:
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        process.wait(timeout=60)


def copy_model(models: Path, name: str, **replaced: str) -> None:
    shutil.copytree(PROJECT / "tests" / "models" / "energy_load", models / name)
    file = models / name / "model.yaml"
    text = file.read_text().replace("name: energy_load", f"name: {name}")
    for key, line in replaced.items():
        text = re.sub(rf"^{key}: .*$", line, text, flags=re.MULTILINE)
    file.write_text(text)


def fill(ledger: Ledger) -> None:
    ledger.migrate()
    for model in ("first", "second"):
        ledger.record_verdict(
            model=model, interval=Interval.day("2024-01-18"), version=1, verdict="drift", reasons=[HOSTILE],
            details=VerdictDetails(severity="warning"), report=f"{model}/drift/2024-01-18/report.html", run_id="r/../..?x#y",
        )  # fmt: skip
        ledger.record_alert(of_operation.run_failed(model, stage=HOSTILE, run_id="r", interval=None, error="e"), model)


def wait_for(server: Server, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            server.client().get("/api/v2/version")
            return
        except httpx.TransportError:
            assert process.poll() is None, server.log.read_text()
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.1)


def address(route: dict[str, str]) -> str:
    """A path that the route answers: each of its parameters filled in with something that is there."""
    given = {"place": "first/drift/2024-01-18/report.html", "name": "board.css", "model": "first"}
    return re.sub(r"{(\w+)(:\w+)?}", lambda found: given.get(found[1], "x"), route["path"])


#: The embedded sign-in knows no such thing.
with_rights_on_single_dags = pytest.mark.parametrize("server", [FAB], ids=["fab"], indirect=True)

# --- who may see what ------------------------------------------------------------------------------------------------


def test_plugins_add_the_routes_that_are_walked_here(server: Server) -> None:
    assert {address(route) for route in server.routes} >= {
        "/perennial/", "/perennial/api/models", "/perennial/models/first",
        "/perennial/reports/first/drift/2024-01-18/report.html",
    }  # fmt: skip


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_no_route_of_ours_answers_without_a_session(accept: str, server: Server) -> None:
    for route in server.routes:
        answer = server.client().request(route["method"], address(route), headers={"Accept": accept})
        assert answer.status_code in (401, 403), route
        assert "first" not in answer.text.replace(address(route).replace("/", "%2F"), ""), route


@pytest.mark.parametrize("token", ["x", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.", "Basic YWRtaW46YWRtaW4="])
def test_no_route_of_ours_answers_to_a_forged_token(token: str, server: Server) -> None:
    for headers in ({"Authorization": f"Bearer {token}"}, {"Cookie": f"_token={token}"}):
        for route in server.routes:
            answer = server.client().request(route["method"], address(route), headers=headers)
            assert answer.status_code in (401, 403), (route, headers)


def test_every_route_of_ours_answers_to_who_may_see_dags(server: Server) -> None:
    for name in ("admin", "viewer"):
        for route in server.routes:
            answer = server.client(name).request(route["method"], address(route))
            assert answer.status_code == 200, (name, route, answer.text)


@with_rights_on_single_dags
def test_who_may_see_no_dag_sees_nothing(server: Server) -> None:
    for route in server.routes:
        assert server.client("nobody").request(route["method"], address(route)).status_code == 403, route


@with_rights_on_single_dags
def test_who_may_see_the_dags_of_one_model_sees_that_model_alone(server: Server) -> None:
    one = server.client("one")
    assert [row["model"] for row in one.get("/perennial/api/models").json()["rows"]] == ["first"]
    assert "second" not in one.get("/perennial/").text
    assert one.get("/perennial/models/first").status_code == 200
    assert one.get("/perennial/models/second").status_code == 403
    assert one.get("/perennial/reports/first/drift/2024-01-18/report.html").status_code == 200
    assert one.get("/perennial/reports/second/page.html").status_code == 403
    # Airflow's own check reads a DAG's id from the query, too.
    assert one.get("/perennial/api/models", params={"dag_id": "second.monitor"}).status_code == 403


def test_a_browser_without_a_session_is_shown_the_way_to_sign_in(server: Server) -> None:
    answer = server.client().get("/perennial/", headers={"Accept": "text/html,*/*"})
    assert answer.status_code == 401
    assert 'href="/api/v2/auth/login?next=%2Fperennial%2F"' in answer.text


# --- what is served --------------------------------------------------------------------------------------------------


def test_the_board_is_in_the_navigation(server: Server) -> None:
    plugins = server.client("admin").get("/api/v2/plugins").json()["plugins"]
    views = [view for plugin in plugins for view in plugin["external_views"]]
    assert [(view["name"], view["href"], view["destination"]) for view in views] == [("Models", "perennial/", "nav")]


def test_every_model_has_a_row_and_a_broken_folder_its_error(server: Server) -> None:
    rows = {row["model"]: row for row in server.client("admin").get("/perennial/api/models").json()["rows"]}
    assert list(rows) == ["broken", "first", "second"]
    assert rows["broken"]["attention"] == "broken"
    assert rows["broken"]["why"].startswith("broken/model.yaml:")
    assert rows["first"]["judged"]["verdict"] == "drift"


def test_the_board_leads_to_the_page_of_each_model(server: Server) -> None:
    admin = server.client("admin")
    assert 'href="/perennial/models/first"' in admin.get("/perennial/").text
    text = admin.get("/perennial/models/first").text
    assert "<h1>first</h1>" in text
    assert 'href="/perennial/reports/first/drift/2024-01-18/report.html"' in text
    assert 'href="/dags/first.rollback"' in text


@pytest.mark.parametrize(("model", "status"), [("broken", 403), ("nobody", 403), ("first%2F..", 404), ("", 404)])
def test_a_page_of_no_model_is_refused(model: str, status: int, server: Server) -> None:
    assert ask_as_written(server, f"/perennial/models/{model}")[0] == status


@pytest.mark.parametrize("path", ["/perennial/", "/perennial/models/first"])
def test_what_data_say_stays_text_on_the_page(path: str, server: Server) -> None:
    text = server.client("admin").get(path).text
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "{{ 7*7 }}" in text
    assert "&lt;script&gt;alert(1)" in text
    assert path != "/perennial/" or 'href="/dags/first.monitor/runs/r%2F..%2F..%3Fx%23y"' in text


@pytest.mark.parametrize("path", ["/perennial/", "/perennial/models/first"])
def test_our_pages_run_no_script_but_our_own(path: str, server: Server) -> None:
    answer = server.client("admin").get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?! src=\"/perennial/static/board.js\"></script>)", answer.text)
    assert not re.search(r"\son\w+=|\sstyle=|javascript:|https?://(?!mlflow\.test)", answer.text.replace(escaped(HOSTILE), ""))
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


def escaped(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))


def test_a_report_can_neither_use_its_readers_session_nor_ask_a_server(server: Server) -> None:
    answer = server.client("admin").get("/perennial/reports/first/drift/2024-01-18/report.html")
    assert answer.text == "<h1>drifted</h1><script>1</script>"
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert policy["sandbox"] == "allow-scripts"
    assert policy["default-src"] == "'none'"
    assert not {"connect-src", "frame-src"} & set(policy)


@pytest.mark.parametrize(
    "place",
    [
        "first/../../../secret.html", "first/..%2f..%2f..%2fsecret.html", "first/%2e%2e/%2e%2e/%2e%2e/secret.html",
        "first/..%5c..%5csecret.html", "first//etc/passwd.html", "first/drift/2024-01-18/link.html",
        "first/drift/away/secret.html", "first/drift", "first/.draft.html", "first/model.py", "first/pipe.html",
        "first/nothing.html", "first/%00.html", "first/drift/2024-01-18/report.html/", "first",
    ],
)  # fmt: skip
def test_no_path_leaves_the_folder_of_reports(place: str, server: Server) -> None:
    status, text = ask_as_written(server, f"/perennial/reports/{place}")
    assert status in (403, 404), place
    assert "secret" not in text.replace("secret.html", "")


@pytest.mark.parametrize("place", ["%2fetc/passwd.html", "../secret.html", "%2e%2e/secret.html", "second%2f..%2ffirst/x", ""])
def test_a_report_of_no_model_is_refused(place: str, server: Server) -> None:
    assert ask_as_written(server, f"/perennial/reports/{place}")[0] in (403, 404)


def ask_as_written(server: Server, target: str) -> tuple[int, str]:
    """Status and body. Other clients make a path plain before they send it."""
    connection = http.client.HTTPConnection("127.0.0.1", httpx.URL(server.url).port, timeout=60)
    try:
        connection.request("GET", target, headers={"Authorization": server.client("admin").headers["Authorization"]})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_a_ledger_that_cannot_be_read_is_told_without_its_address(server: Server) -> None:
    file = server.state / "perennial.db"
    away = file.with_suffix(".away")
    for part in server.state.glob("perennial.db*"):
        part.rename(part.with_name(part.name.replace("perennial.db", "away.db")))
    file.mkdir()
    try:
        for path in ("/perennial/", "/perennial/api/models", "/perennial/models/first"):
            answer = server.client("admin").get(path)
            assert answer.status_code == 503, path
            assert "The ledger cannot be read" in answer.text
            assert str(server.state) not in answer.text
    finally:
        file.rmdir()
        for part in server.state.glob("away.db*"):
            part.rename(part.with_name(part.name.replace("away.db", "perennial.db")))
    assert not away.exists()
    assert server.client("admin").get("/perennial/").status_code == 200


def test_an_edited_folder_is_seen_at_once(server: Server) -> None:
    file = server.state.parent / "models" / "second" / "model.yaml"
    before = file.read_text()

    def rows() -> dict[str, Any]:
        return {row["model"]: row for row in server.client("admin").get("/perennial/api/models").json()["rows"]}

    try:
        file.write_text(before.replace("owner: grid-operations", "owner: somebody-else"))
        assert rows()["second"]["owner"] == "somebody-else"
    finally:
        file.write_text(before)
    assert rows()["second"]["owner"] == "grid-operations"
