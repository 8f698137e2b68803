"""Rows that clients push are stored before they are confirmed, and only by those who may."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from perennial.cli.main import main
from perennial.core.errors import NotAnswered
from perennial.core.settings import PROJECT
from perennial.deployment import Deployment
from perennial.serving.pushing import Pushing
from perennial.serving.tokens import make_token
from perennial.spec.folder import read_model
from tests.unit import synthetic
from tests.unit.ingestion.test_pushed import url
from tests.unit.monitored import World, make_world
from tests.unit.serving.conftest import running

__all__ = ["url"]

ADDRESS = "/models/toy/tables/outcomes"


def pushable(place: Path, database: str | None = None, tables: str = "outcomes") -> World:
    """A deployment whose model has no champion yet."""
    settings = synthetic.deployment(place)
    if database is not None:
        settings = settings.model_copy(update={"predictions_url": database})
    online = f"label: => online: {{push: [{tables}]}}\nlabel:"
    return make_world(place, settings, online=online)


def row(visit: Any, y: Any = 1.5, **more: Any) -> dict[str, Any]:
    return {"visit": visit, "moment": "2013-04-01T10:00:00Z", "y": y, **more}


def stored(world: World) -> list[str]:
    with sa.create_engine(world.settings.predictions_url).connect() as connection:
        if not sa.inspect(connection).has_table("pushed_rows"):
            return []
        return [json.loads(text)["visit"] for text in connection.execute(sa.text('SELECT "row" FROM pushed_rows')).scalars()]


def push(client: httpx.Client, *rows: Any, **how: Any) -> httpx.Response:
    return client.post(ADDRESS, json={"rows": list(rows)}, **how)


def test_good_rows_are_stored_once_and_bad_ones_are_told_with_their_field(tmp_path: Path, url: str | None) -> None:
    world = pushable(tmp_path, url)
    with running(world) as (_, client):
        rows = [row("a"), row("b", "x"), {**row("c"), "colour": 1}, row("d", 2), {"visit": "e", "y": 1.0}, row(1), row(2.5)]
        answer = push(client, *rows)
        said = answer.json()
        assert (answer.status_code, said["accepted"], said["new"]) == (200, 3, 3)
        assert [(one["row"], one["field"]) for one in said["refused"]] == [(1, "y"), (2, "colour"), (4, "moment"), (6, "visit")]
        assert "a number with a fraction cannot become string" in said["refused"][3]["reason"]
        assert stored(world) == ["a", "d", "1"]

        again = push(client, row("a"), row("d", 2)).json()
        assert (again["accepted"], again["new"], again["refused"]) == (2, 0, [])
        assert stored(world) == ["a", "d", "1"]

        refused = push(client, row("b", "x"))
        said = refused.json()
        assert (refused.status_code, said["row"], said["field"], said["accepted"]) == (422, 0, "y", 0)
        assert said["refused"] == [{"row": 0, "field": "y", "reason": said["error"]}]
        assert client.post("/models/toy/tables/visits", json={"rows": [row("a")]}).status_code == 404
        assert client.post("/models/other/tables/visits", json={"rows": [row("a")]}).status_code == 404
        assert client.post("/models/..%2Fmodels/tables/visits", json={"rows": [row("a")]}).status_code == 404
        figures = client.get("/metrics").text
        assert 'perennial_serve_pushed_total{model="toy",outcome="refused",table="outcomes"} 5.0' in figures
        assert 'perennial_serve_pushed_total{model="toy",outcome="known",table="outcomes"} 2.0' in figures


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"rows": [{"visit": ["a"]}]}', 422, "is no value of a column"),
        (b'{"rows": [{"visit": {"a": 1}}]}', 422, "is no value of a column"),
        (b'{"rows": [{"y": NaN}]}', 422, "is no value of a column"),
        (b'{"rows": [{"y": 1e999}]}', 422, "y"),
        (b'{"rows": [{"y": 123456789012345678901234567890}]}', 422, "is no value of a column"),
        (b'{"rows": [{"visit": "\\ud800"}]}', 422, "half a surrogate pair"),
        (b'{"rows": [{"visit": "a\\u0000b", "moment": "2013-04-01T10:00:00Z", "y": 1}]}', 422, "invisible"),
        (b'{"rows": [{"visit": "a", "visit": "b"}]}', 422, "stands twice"),
        (b'{"rows": []}', 422, "has no row"),
        (b'{"rows": [1]}', 422, "must be an object of columns"),
        (b'{"rows": {}}', 422, "must be a list"),
        (b'{"rows": [], "more": 1}', 422, "more"),
        (b'{"rows": [{}]}', 422, "missing"),
        (b'{"rows": [{"visit": "a", "moment": "0001-01-02", "y": 1}]}', 422, "moment: lies before 1900 or not before 2200"),
        (b"[]", 422, "must be an object"),
        (b"{", 400, "JSON"),
        (b"x" * 2_000, 413, "more than 1,500 bytes"),
        (json.dumps({"rows": [{}] * 11}).encode(), 413, "11 rows"),
    ],
)
def test_what_is_no_row_is_refused_with_its_reason(tmp_path: Path, body: bytes, status: int, words: str) -> None:
    with running(pushable(tmp_path), most_bytes=1_500, most_rows=10) as (_, client):
        answer = client.post(ADDRESS, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text


def test_values_of_several_types_are_cast_each_by_its_own(tmp_path: Path) -> None:
    world = pushable(tmp_path)
    taken = Pushing(world.deployment).take("toy", "outcomes", [row("a", 1), row("b", 1.5), row("c", "2.5"), row("d", "x")])
    assert (taken.accepted, [one.row for one in taken.refused]) == (3, [3])
    # What costs a cast of its own is bounded: each column doubles it.
    file = world.settings.models / "toy" / "model.yaml"
    text = file.read_text()
    assert text.count("      y: ") == 1
    more = "".join(f"      c{number}: {{type: string, nullable: true}}\n" for number in range(5))
    file.write_text(text.replace("      y: ", f"{more}      y: "))
    mixed = [row("a", **{f"c{n}": n if number >> n & 1 else "x" for n in range(5)}) for number in range(32)]
    with pytest.raises(NotAnswered, match="mix types within columns in 32 ways"):
        Pushing(world.deployment).take("toy", "outcomes", mixed)


def test_only_a_token_that_may_push_pushes(tmp_path: Path) -> None:
    world = pushable(tmp_path)
    tokens = world.settings.state / "tokens.json"
    asks = make_token(tokens, "asks", ("toy",))
    pushes = make_token(tokens, "pushes", ("toy",), push=True)
    other = make_token(tokens, "other", ("other",), push=True)
    with running(world) as (_, client):
        for token, status in ((asks, 403), (other, 403), ("perennial_none", 401), (pushes, 200)):
            assert push(client, row("a"), headers={"Authorization": f"Bearer {token}"}).status_code == status
    assert stored(world) == ["a"]


def test_the_present_folder_says_what_can_be_pushed_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    world = pushable(tmp_path)
    file = world.settings.models / "toy" / "model.yaml"
    text = file.read_text()
    pushing = Pushing(world.deployment)
    pushing.take("toy", "outcomes", [row("a")])
    file.write_text("{")
    assert pushing.take("toy", "outcomes", [row("b")]).new == 1
    with pytest.raises(NotAnswered, match="folder cannot be read now") as refused:
        Pushing(world.deployment).take("toy", "outcomes", [row("c")])
    assert refused.value.status == 503

    file.write_text(text + "\nretired: true\n")
    with pytest.raises(NotAnswered, match="toy is retired"):
        pushing.take("toy", "outcomes", [row("c")])
    file.write_text(text.replace("online: {push: [outcomes]}", ""))
    with pytest.raises(NotAnswered, match="no rows can be pushed here") as refused:
        pushing.take("toy", "outcomes", [row("d")])
    assert refused.value.status == 404
    assert stored(world) == ["a", "b"]


def test_a_row_that_is_confirmed_by_one_scorer_counts_at_another_within_a_second(tmp_path: Path) -> None:
    world = pushable(tmp_path, tables="visits")
    world.publish()
    world.promote(world.register())
    day = datetime(2013, 4, 2, tzinfo=UTC)
    asked = {"visit": "new-1", "moment": (day + timedelta(hours=5)).isoformat(), "x": 1.0, "kind": "a"}
    with running(world) as (_, one), running(world) as (second, other):
        question = {"entities": [asked]}
        assert other.post("/models/toy/predict", json=question).status_code == 200
        [maker] = second._on_demand._makers.values()
        pushed = {**asked, "visit": "new-2"}
        assert one.post("/models/toy/tables/visits", json={"rows": [pushed]}).json()["new"] == 1
        deadline = time.monotonic() + 30  # a busy machine; the looks are 0.4 s apart
        while not (maker._hot and "visits" in maker._hot.pushed and maker._hot.pushed["visits"].read):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        shown = maker._hot.pushed["visits"].rows
        assert shown is not None
        assert shown["visit"].to_pylist() == ["new-2"]


def command(*words: str) -> Any:
    """The exit code of a command, or why it failed."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code


def test_a_file_is_pushed_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = pushable(tmp_path)
    file, lines = tmp_path / "outcomes.csv", tmp_path / "outcomes.jsonl"
    rows = [f"v{number},2013-04-01T10:00:00Z,{number}.5" for number in range(1_200)]
    file.write_text("\n".join(["visit,moment,y", *rows, "bad,2013-04-01T10:00:00Z,x"]) + "\n")
    lines.write_text(json.dumps(row("w")) + "\n\n" + json.dumps(row("v1", 9)) + "\n")
    with running(world) as (scorer, _):
        monkeypatch.setenv("PERENNIAL_SERVE_URL", f"http://127.0.0.1:{scorer.port}")
        assert command("push", "toy", "outcomes", str(file)) == 1
        assert capsys.readouterr().out.splitlines() == [
            f"{file}:1202: y: 'x' is not a plain finite number",
            "1,200 of 1,201 rows are confirmed; 0 of them were there already",
        ]
        assert command("push", "toy", "outcomes", str(lines)) == 0
        assert "2 of 2 rows are confirmed; 0 of them" in capsys.readouterr().out
        for _ in range(2):
            assert command("push", "toy", "outcomes", str(lines)) == 0
        assert "2 of 2 rows are confirmed; 2 of them" in capsys.readouterr().out
        refused = command("push", "toy", "visits", str(lines))
        assert "online.push of model.yaml does not name this table; nothing is confirmed" in refused
        for text, words in (("visit,visit\n", "name each column once"), ('visit\n"a', ":2: "), ("visit,y\na\n", "1 fields")):
            file.write_text(text)
            assert words in command("push", "toy", "outcomes", str(file))
        lines.write_text("[]\n")
        assert f"{lines}:1: this line is JSON, but not an object" in command("push", "toy", "outcomes", str(lines))
        assert "cannot be read: No such file" in command("push", "toy", "outcomes", str(tmp_path / "none.csv"))
    assert len(stored(world)) == 1_202


def test_the_request_of_the_page_pushes_rows_of_the_example(tmp_path: Path) -> None:
    (command,) = re.findall(r"(?ms)^curl [^\n]*/tables/.*?(?=^\S)", (PROJECT / "docs" / "online.md").read_text())
    words = shlex.split(command)
    model, table = words[2].split("/")[-3], words[2].split("/")[-1]
    shutil.copytree(PROJECT / "include" / "models" / model, tmp_path / "models" / model)
    spec = tmp_path / "models" / model / "model.yaml"
    spec.write_text(spec.read_text().replace("online: {}", f"online: {{push: [{table}]}}"))
    settings = synthetic.deployment(tmp_path)
    folder = read_model(tmp_path / "models" / model)
    with running(World(Deployment(settings), folder)) as (_, client):
        said = client.post(words[2].removeprefix("http://127.0.0.1:8090"), json=json.loads(words[4])).json()
    assert said.get("refused") == [], said
    assert said["accepted"] == len(json.loads(words[4])["rows"])
