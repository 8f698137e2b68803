"""Log lines carry what they speak of, in text and in JSON, in Airflow and outside of it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.core import logs
from perennial.core.errors import SettingsError

LEVELS = ("debug", "info", "warning", "error", "critical")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_of_text_names_what_it_speaks_of(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure({}, logging.INFO)
    with logs.context(model="flights", interval="2013-04-01", run="r 50%", version=None):
        logging.getLogger("perennial.x").warning("%d rows are %s", 3, "odd")
    logging.getLogger("perennial.x").info("outside")

    first, second = lines(capsys)
    assert first.endswith("WARNING [model=flights interval=2013-04-01 run=r 50%] 3 rows are odd")
    assert second.endswith("INFO outside")


@pytest.mark.parametrize("level", LEVELS)
def test_a_line_of_json_has_the_fields_at_each_level(capsys: pytest.CaptureFixture[str], level: str) -> None:
    logs.configure({logs.FORMAT: "json"}, logging.DEBUG)
    with logs.context(model="flights"), logs.context(interval="2013-04-01", run="r1", version=7):
        getattr(logging.getLogger("perennial.x"), level)("said %s", "so")

    [line] = lines(capsys)
    said = json.loads(line)
    assert said.pop("timestamp")
    assert said == {
        "event": "said so",
        "level": level,
        "logger": "perennial.x",
        "model": "flights",
        "interval": "2013-04-01",
        "run": "r1",
        "version": "7",
    }


@pytest.mark.parametrize("wording", ["text", "json"])
def test_an_error_is_written_with_where_it_came_from(capsys: pytest.CaptureFixture[str], wording: str) -> None:
    logs.configure({logs.FORMAT: wording}, logging.INFO)
    try:
        raise ValueError("no good")
    except ValueError:
        logging.getLogger("perennial.x").exception("it failed")

    written = capsys.readouterr().err
    assert "it failed" in written
    assert "ValueError: no good" in written
    assert wording == "text" or "ValueError: no good" in json.loads(written)["exception"]


def test_fields_end_with_their_context_and_give_way_to_inner_ones(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure({logs.FORMAT: "json"}, logging.INFO)
    with logs.context(model="a", version=1):
        with logs.context(version=2):
            logging.getLogger("perennial.x").info("inner")
        logging.getLogger("perennial.x").info("outer")
    logging.getLogger("perennial.x").info("outside")

    inner, outer, outside = map(json.loads, lines(capsys))
    assert (inner["version"], outer["version"], outside.get("version"), outside.get("model")) == ("2", "1", None, None)


def test_what_becomes_known_is_said_from_then_on_and_ends_with_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure({logs.FORMAT: "json"}, logging.INFO)
    logs.resolved(version=1)
    with logs.context(model="a"):
        logging.getLogger("perennial.x").info("before")
        logs.resolved(version=2)
        logging.getLogger("perennial.x").info("after")
    logging.getLogger("perennial.x").info("outside")

    assert [json.loads(line).get("version") for line in lines(capsys)] == [None, "2", None]


def test_libraries_are_heard_when_they_warn(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure({}, logging.INFO)
    logging.getLogger("httpx").info("a request")
    logging.getLogger("httpx").warning("a complaint")
    logging.getLogger("perennial.x").info("ours")

    assert [line.partition(" ")[2] for line in lines(capsys)] == ["WARNING a complaint", "INFO ours"]


def test_another_format_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="PERENNIAL_LOG_FORMAT is 'xml'; write text or json"):
        logs.configure({logs.FORMAT: "xml"}, logging.INFO)


def test_airflow_writes_the_fields_of_each_level_as_keys_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "task.log"
    program = f"""
import logging
from airflow.sdk.log import configure_logging
configure_logging(output=open({str(file)!r}, "wb", buffering=0), json_output=True, log_level="DEBUG")
from perennial.core import logs
with logs.context(model="flights", interval="2013-04-01", run="r1", version=7):
    for level in {LEVELS}:
        getattr(logging.getLogger("perennial.x"), level)("said %s", level)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)

    said = [json.loads(line) for line in file.read_text().splitlines()]
    ours = [line for line in said if line["logger"] == "perennial.x"]
    assert [line["event"] for line in ours] == [f"said {level}" for level in LEVELS]
    for line in ours:
        fields = {name: line[name] for name in ("model", "interval", "run", "version")}
        assert fields == {"model": "flights", "interval": "2013-04-01", "run": "r1", "version": "7"}
