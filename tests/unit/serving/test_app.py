"""A real server on this machine: what clients get, in each form, and what they do not get."""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import mlflow
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from perennial.cli.main import make_parser
from perennial.core.settings import PROJECT
from perennial.serving.app import HEADERS
from perennial.serving.champion import Served
from perennial.serving.figures import quantile
from perennial.serving.tokens import make_token, revoke_tokens
from tests.unit.monitored import World
from tests.unit.serving.conftest import running

TASKS = ["binary_classification", "multiclass_classification", "regression"]
RECORDS: list[dict[str, Any]] = [{"x": 0.3, "noise": -1.25, "kind": "a"}, {"x": 2, "kind": "b"}, {"x": -0.1, "noise": 0.5}]


@pytest.fixture
def client(clients: dict[str, httpx.Client]) -> httpx.Client:
    return clients["binary_classification"]


def expected(world: World) -> Any:
    rows = pa.table({name: [record.get(name) for record in RECORDS] for name in ("x", "noise", "kind")})
    return world.registry.load("toy", 1).predict(rows)


def predict(client: httpx.Client, records: Any = RECORDS, **options: Any) -> httpx.Response:
    return client.post("/models/toy/predict", json={"features": records}, **options)


# --- the three forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_plain_form_gives_predictions_and_where_they_come_from(
    clients: dict[str, httpx.Client], worlds: dict[str, World], task: str
) -> None:
    answer, prediction = predict(clients[task]), expected(worlds[task])
    said = answer.json()
    assert answer.status_code == 200
    assert (said["model"], said["version"], said["degraded"]) == ("toy", 1, False)
    assert said["request_id"] == answer.headers["x-request-id"]
    assert said["champion_checked_seconds_ago"] < 10
    assert [row["prediction"] for row in said["predictions"]] == prediction.values.tolist()
    assert said["predictions"][1]["features"] == {"given": ["x", "kind"], "missing": ["noise"]}
    if task == "multiclass_classification":
        assert [row["probability"] for row in said["predictions"]] == prediction.probability.tolist()
        named = [dict(zip(prediction.classes, row, strict=True)) for row in prediction.probabilities.tolist()]
        assert [row["probabilities"] for row in said["predictions"]] == named


@pytest.mark.parametrize("task", TASKS)
def test_clients_of_mlflows_server_get_what_it_would_give(
    clients: dict[str, httpx.Client], worlds: dict[str, World], tmp_path: Path, task: str
) -> None:
    registry = worlds[task].registry
    frame = pd.DataFrame(RECORDS, columns=["x", "noise", "kind"]).astype({"x": float})
    frame["kind"] = [record.get("kind") for record in RECORDS]
    # MLflow writes into a folder that it loads from.
    copy = registry.fetch(registry.record("toy", 1).served.model_id, tmp_path)
    its = mlflow.pyfunc.load_model(str(copy)).predict(frame)
    columns = {name: [record.get(name) for record in RECORDS] for name in ("x", "noise", "kind")}
    for body in (
        {"dataframe_split": json.loads(frame.to_json(orient="split"))},
        {"dataframe_records": RECORDS},
        {"inputs": columns},
    ):
        said = clients[task].post("/models/toy/invocations", json=body).json()
        assert said["predictions"] == expected(worlds[task]).numbers.squeeze().tolist() == its.tolist()
        assert said["version"] == 1


@pytest.mark.parametrize("task", TASKS)
def test_the_inference_protocol_tells_and_answers(
    clients: dict[str, httpx.Client], worlds: dict[str, World], task: str
) -> None:
    client, prediction = clients[task], expected(worlds[task])
    told = client.get("/v2/models/toy").json()
    assert [(one["name"], one["datatype"]) for one in told["inputs"]] == [("x", "FP64"), ("noise", "FP64"), ("kind", "BYTES")]
    data = {name: [record.get(name) for record in RECORDS] for name in ("x", "noise", "kind")}
    inputs = [
        {"name": one["name"], "datatype": one["datatype"], "shape": [3], "data": data[one["name"]]} for one in told["inputs"]
    ]
    answer = client.post("/v2/models/toy/versions/1/infer", json={"id": "q7", "inputs": inputs}).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("toy", "1", "q7")
    outputs = {one["name"]: one for one in answer["outputs"]}
    assert list(outputs) == [one["name"] for one in told["outputs"]]
    for one in told["outputs"]:
        assert outputs[one["name"]]["datatype"] == one["datatype"]
        assert outputs[one["name"]]["shape"] == [3, *one["shape"][1:]]
    assert outputs["prediction"]["data"] == prediction.values.tolist()
    if task == "multiclass_classification":
        assert outputs["probabilities"]["data"] == prediction.probabilities.ravel().tolist()
        assert outputs["probabilities"]["parameters"] == {"classes": list(prediction.classes)}
        [only] = client.post("/v2/models/toy/infer", json={"inputs": inputs, "outputs": [{"name": "probability"}]}).json()[
            "outputs"
        ]
        assert only["name"] == "probability"


def test_health_and_metadata_are_told(client: httpx.Client) -> None:
    for address in ("/v2/health/live", "/v2/health/ready", "/v2", "/v2/models/toy/ready", "/v2/models/toy/versions/1",
                    "/v2/models/toy/versions/1/ready", "/models/toy/ping"):  # fmt: skip
        assert client.get(address).status_code == 200, address
    assert client.get("/v2/health/ready").json()["degraded"] is False


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "address", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/", 405),
        ("GET", "/models/toy/predict", 405),
        ("POST", "/models/other/predict", 404),
        ("POST", "/models/%2e%2e%2ftoy/predict", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/toy/versions/2", 404),
        ("GET", "/v2/models/toy/versions/01", 404),
        ("POST", "/v2/models/toy/versions/2/infer", 404),
    ],
)
def test_what_is_not_there_is_told_in_json(client: httpx.Client, method: str, address: str, status: int) -> None:
    answer = client.request(method, address, json={} if method == "POST" else None)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "request_id"}


def test_a_refusal_names_row_and_field_and_is_not_logged(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = predict(client, [{"x": 1}, {"x": "secret-of-a-client"}])
    assert answer.status_code == 422
    assert (answer.json()["row"], answer.json()["field"]) == (1, "x")
    assert "secret-of-a-client" not in caplog.text
    assert "Traceback" not in answer.text


def test_other_bodies_than_json_are_refused(client: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post("/models/toy/predict", content=b'{"features": [{"x": 1}]}', headers={"content-type": kind})
        assert answer.status_code == 415
    assert client.post("/models/toy/predict", content=b"{", headers={"content-type": "application/json"}).status_code == 400


def test_a_large_body_is_refused_also_if_it_does_not_say_how_large_it_is(client: httpx.Client) -> None:
    headers = {"content-type": "application/json"}

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 50_000

    for content in (b" " * 2_000_000, chunks()):
        try:
            answer = client.post("/models/toy/predict", content=content, headers=headers)
        except httpx.TransportError:  # the server has closed the connection while the client was still sending
            continue
        assert answer.status_code == 413
    assert predict(client).status_code == 200


def test_every_answer_has_the_headers_that_protect_it(client: httpx.Client) -> None:
    for answer in (predict(client), predict(client, []), client.get("/nothing"), client.get("/metrics")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


def test_a_request_keeps_the_id_that_its_client_gave_unless_it_is_not_plain(client: httpx.Client) -> None:
    assert predict(client, headers={"x-request-id": "order-7.b"}).json()["request_id"] == "order-7.b"
    for bad in ("a b", "x" * 65, "é".encode()):
        assert re.fullmatch(r"[0-9a-f]{32}", predict(client, headers={"x-request-id": bad}).json()["request_id"])


def test_a_page_in_a_browser_cannot_ask_by_another_name_of_this_machine(client: httpx.Client) -> None:
    assert predict(client, headers={"host": "evil.example"}).status_code == 403
    assert predict(client, headers={"host": "localhost:8090"}).status_code == 200


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_with_tokens_each_client_asks_only_its_models(world: World) -> None:
    file = world.settings.state / "tokens.json"
    with running(world) as (_, client):
        assert predict(client).status_code == 200
        shop, other = make_token(file, "shop", ("toy",)), make_token(file, "other", ("another",))
        refused = predict(client)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert predict(client, headers={"authorization": f"Bearer {shop}"}).status_code == 200
        assert predict(client, headers={"authorization": f"Bearer {other}"}).status_code == 403
        for address in ("/metrics", "/openapi.json", "/v2", "/v2/models/toy"):
            assert client.get(address).status_code == 401, address
        assert client.get("/v2/health/live").status_code == 200
        seen = client.get("/openapi.json", headers={"authorization": f"Bearer {other}"}).text
        assert "toy" not in seen
        revoke_tokens(file, "shop")
        assert predict(client, headers={"authorization": f"Bearer {shop}"}).status_code == 401


# --- the champion changes --------------------------------------------------------------------------------------------


def test_no_request_fails_while_the_champion_is_swapped_and_each_is_answered_by_one_version(world: World) -> None:
    new = world.register(seed=6)
    answers = {
        version: world.registry.load("toy", version).predict(pa.table({"x": [0.3], "noise": [0.1], "kind": ["a"]})).values[0]
        for version in (1, new)
    }
    seen: list[tuple[int, int, float]] = []
    over = threading.Event()

    def ask(url: httpx.URL) -> None:
        with httpx.Client(base_url=url, trust_env=False) as client:
            while not over.is_set():
                answer = predict(client, [{"x": 0.3, "noise": 0.1, "kind": "a"}])
                said = answer.json()
                assert str(said["version"]) == answer.headers["x-model-version"]
                seen.append((answer.status_code, said["version"], said["predictions"][0]["prediction"]))

    with running(world) as (_, client), ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(ask, client.base_url) for _ in range(2)]
        try:
            world.promote(new)
            deadline = time.monotonic() + 20
            while predict(client).json()["version"] != new and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            over.set()
        for one in asking:
            one.result()
    assert {status for status, _, _ in seen} == {200}
    assert {(version, value) for _, version, value in seen} == set(answers.items())


# --- load ------------------------------------------------------------------------------------------------------------


HEAD = "POST /models/toy/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_requests_beyond_the_bound_are_told_to_come_again_and_those_taken_are_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go = threading.Event(), threading.Event()
    predicts = Served.predict

    def slow(self: Served, *arguments: Any) -> Any:
        began.set()
        assert go.wait(20)
        return predicts(self, *arguments)

    with running(world, at_once=3) as (_, client), ThreadPoolExecutor(3) as threads:
        monkeypatch.setattr(Served, "predict", slow)

        def ask() -> httpx.Response:
            return httpx.post(f"{client.base_url}/models/toy/predict", json={"features": RECORDS}, timeout=20, trust_env=False)

        taken = [threads.submit(ask) for _ in range(3)]
        assert began.wait(20)
        deadline = time.monotonic() + 20
        while "perennial_serve_at_once 4.0" not in client.get("/metrics").text and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = predict(client)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert set(HEADERS) <= {(name.encode(), value.encode()) for name, value in refused.headers.items()}
        assert refused.json()["request_id"] == refused.headers["x-request-id"]
        assert client.get("/v2/health/live").status_code == 200
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as one:
            # Its body comes in parts and is dropped; the connection stays, and what comes next is refused, too.
            for _ in range(2):
                one.sendall(f"{HEAD}Content-Length: 300000\r\n\r\n".encode())
                one.sendall(b"x" * 200_000)
                one.sendall(b"POST / HTTP/1.1\r\n" * 5_000 + b"x" * 15_000)
                assert one.recv(4096).startswith(b"HTTP/1.1 503")
            # A client that waits before it sends its body is told at once.
            one.sendall(f"{HEAD}Content-Length: 9\r\nExpect: 100-continue\r\n\r\n".encode())
            assert one.recv(4096).startswith(b"HTTP/1.1 503")
            assert one.recv(4096) == b""
        go.set()
        assert [one.result().status_code for one in taken] == [200, 200, 200]
        assert predict(client).status_code == 200
        refusals = 'perennial_serve_requests_total{form="predict",model="",status="503"} 4.0'
        assert refusals in client.get("/metrics").text


def test_a_request_that_takes_too_long_ends_at_its_deadline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    with running(world, deadline=0.2) as (_, client):
        with monkeypatch.context() as patch:
            patch.setattr(Served, "predict", lambda *_: go.wait(20))
            answer = predict(client)
        go.set()
        assert answer.status_code == 503
        assert "took too long" in answer.json()["error"]
        # A client that sends half of its body and then nothing.
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as slow:
            head = (
                "POST /models/toy/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99"
            )
            slow.sendall(f"{head}\r\n\r\n{{".encode())
            assert slow.recv(100).startswith(b"HTTP/1.1 503")
        assert predict(client).status_code == 200


def test_what_has_begun_is_answered_when_the_server_stops(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    began, predicts = threading.Event(), Served.predict

    def slow(self: Served, *arguments: Any) -> Any:
        began.set()
        time.sleep(0.2)
        return predicts(self, *arguments)

    with running(world) as (scorer, client), ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr(Served, "predict", slow)
        asked = threads.submit(predict, client)
        assert began.wait(20)
        scorer.stop()
        assert asked.result().status_code == 200


# --- what is told of all of it ---------------------------------------------------------------------------------------


def test_figures_of_a_model_are_told_to_who_may_ask_it(client: httpx.Client) -> None:
    before = client.get("/models/toy/figures").json()
    predict(client)
    predict(client, [{"unknown": 1}])
    told = client.get("/models/toy/figures").json()
    assert told["requests"].get("200", 0) - before["requests"].get("200", 0) == 1
    assert told["requests"].get("422", 0) - before["requests"].get("422", 0) == 1
    assert 0 < told["seconds"]["predict"]["p50"] <= told["seconds"]["predict"]["p99"]
    assert told["rows"] >= told["batches"] > 0
    assert told["age_seconds"] == {"p50": None, "p99": None}
    assert told["parity"] is None
    assert client.get("/models/other/figures").status_code == 404


@given(st.lists(st.floats(0.0005, 9.0), min_size=1, max_size=50), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_quantiles_lie_in_the_bucket_of_the_value_they_stand_for(values: list[float], share: float) -> None:
    bounds = [0.001, 0.01, 0.1, 1.0, 10.0, math.inf]
    found = quantile([(bound, sum(value <= bound for value in values)) for bound in bounds], share)
    if share == 0:
        assert found is None
        return
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    upper = next(bound for bound in bounds if exact <= bound)
    assert found is not None
    assert (0.0 if upper == bounds[0] else bounds[bounds.index(upper) - 1]) <= found <= upper


def test_a_value_above_all_bounds_counts_as_the_last_of_them() -> None:
    assert quantile([(1.0, 0.0), (math.inf, 3.0)], 0.5) == 1.0
    assert quantile([(1.0, 0.0), (math.inf, 0.0)], 0.5) is None
    assert quantile([], 0.5) is None


def test_figures_are_in_prometheus_form(client: httpx.Client) -> None:
    predict(client)
    predict(client, [{"x": "1"}])
    figures = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert {"perennial_serve_requests", "perennial_serve_request_seconds", "perennial_serve_batch_rows"} <= figures.keys()
    statuses = {sample.labels["status"] for sample in figures["perennial_serve_requests"].samples}
    assert {"200", "422"} <= statuses
    assert figures["perennial_serve_version"].samples[0].labels == {"model": "toy"}
    page = (PROJECT / "docs" / "online.md").read_text()
    # Beside each counter is the time of its making, which the library adds.
    for name in (name for name in figures if not name.endswith("_created")):
        assert f"`{name}" in page, "docs/online.md names every metric"


def test_the_openapi_document_accepts_what_is_answered_and_refuses_what_is_refused(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    post = document["paths"]["/models/toy/predict"]["post"]
    schema = {**post["requestBody"]["content"]["application/json"]["schema"], "components": document["components"]}
    asked: list[Any] = [RECORDS, [{"x": "1"}], [{"z": 1}], [], [{}], {}]
    bodies: list[dict[str, Any]] = [{}, *({"features": features} for features in asked)]
    for body in bodies:
        status = client.post("/models/toy/predict", json=body).status_code
        valid = jsonschema.Draft202012Validator(schema).is_valid(body)
        assert valid == (status == 200), body
        assert str(status) in post["responses"]


@pytest.mark.parametrize(("file", "number"), [("docs/online.md", 6), ("README.md", 1)])
def test_commands_of_the_pages_work_as_they_stand_there(client: httpx.Client, file: str, number: int) -> None:
    """With the address and the features of this model in place of the example's."""
    page = (PROJECT / file).read_text()
    here = str(client.base_url).rstrip("/")
    there = {
        "http://127.0.0.1:8090": here,
        "flight_delay": "toy",
        '"distance"': '"x"',
        '"weekday"': '"noise"',
        '"carrier"': '"kind"',
    }
    for old, new in there.items():
        page = page.replace(old, new)
    commands = [
        command
        for block in re.findall(r"(?ms)^```sh\n(.*?)^```", page)
        for command in re.findall(r"(?ms)^(?:curl|\.venv/bin/perennial ask) .*?(?=^\S|\Z)", block)
        if "/tables/" not in command  # tests/unit/serving/test_pushing.py
    ]
    assert len(commands) == number
    for command in commands:
        words = shlex.split(command)
        if words[0] != "curl":
            chosen = make_parser().parse_args([*words[1:], "--url", here])
            assert chosen.command(chosen) == 0
            continue
        said = json.loads(subprocess.run([*words, "--noproxy", "*"], capture_output=True, check=True).stdout)
        refused = '"1400"' in command
        assert ("error" in said) is refused, command


def test_pages_are_not_needed_to_know_a_models_features(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert list(schemas["toy_features"]["properties"]) == ["x", "noise", "kind"]


def test_the_page_of_the_scorer_names_every_status(client: httpx.Client) -> None:
    page = (PROJECT / "docs" / "online.md").read_text()
    statuses = client.get("/openapi.json").json()["paths"]["/models/toy/predict"]["post"]["responses"].keys() - {"200"}
    rows = " ".join(re.findall(r"(?m)^\| (\d[\d, ]+) \|", page))
    assert statuses == set(re.findall(r"\d+", rows))


def test_what_the_page_tells_of_a_model_are_the_fields_that_it_takes(clients: dict[str, httpx.Client]) -> None:
    [told] = clients["multiclass_classification"].get("/models").json()["models"]
    assert (told["model"], told["version"], told["classes"]) == ("toy", 1, ["high", "low", "middle"])
    fields = {field["name"]: field for field in told["features"]}
    assert [field["kind"] for field in fields.values()] == ["number", "number", "category"]
    low, high = fields["x"]["usual"]
    assert low < high
    assert set(fields["kind"]["values"]) == {"a", "b"}
    assert told["key"] is told["entity"] is None


def test_the_page_is_the_same_for_all_and_allows_only_what_is_in_it(client: httpx.Client) -> None:
    first, other = client.get("/"), client.get("/models/anything")
    assert first.status_code == other.status_code == 200
    assert first.content == other.content
    [policy] = first.headers.get_list("content-security-policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert first.headers["x-frame-options"] == "DENY"
    assert not re.search(rb"https?://|innerHTML|\son\w+=|style=", first.content)
