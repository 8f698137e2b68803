"""The public commands, as a person calls them: what they do, and the sentence when they cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perennial.core.settings import PROJECT
from perennial.ledger.store import Ledger
from perennial.spec.model import json_schema
from perennial.stack.processes import marked
from tests.living import free_ports

PROGRAMS = ("sh", "echo", "dirname", "make", "touch")
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-bootstrap.lock")


def perennial(*arguments: str, state: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "perennial.cli", *arguments],
        env={**os.environ, "PERENNIAL_STATE": str(state), **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )


# --- make ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make` needs of a fresh checkout."""
    for name in ("Makefile", *LOCKS, "pyproject.toml", "scripts"):
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    return tmp_path


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A folder of programs in which Python is missing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in PROGRAMS:
        found = shutil.which(program)
        assert found is not None
        (folder / program).symlink_to(found)
    return folder


def make(*arguments: str, folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env={**environment, "PATH": path}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("target", ["up", "demo", "test", "lint"])
def test_without_python_make_says_what_to_install(checkout: Path, bare_path: Path, target: str) -> None:
    made = make(target, folder=checkout, path=str(bare_path))

    assert made.returncode != 0
    assert "Perennial needs Python 3.11, 3.12 or 3.13" in made.stderr
    assert "apt-get install python3 python3-venv" in made.stderr


def test_a_shim_without_an_interpreter_behind_it_is_passed_over(checkout: Path, bare_path: Path) -> None:
    for name, content in (("python3.13", "echo 'pyenv: command not found' >&2; exit 127"), ("python3", "exit 1")):
        shim = bare_path / name
        shim.write_text(f"#!/bin/sh\n{content}\n")
        shim.chmod(0o755)

    made = make("lint", folder=checkout, path=str(bare_path))

    assert "Perennial needs Python" in made.stderr


def test_an_interpreter_that_is_named_but_does_not_fit_is_named_in_the_answer(checkout: Path) -> None:
    made = make("lint", "PYTHON=/no/such/python", folder=checkout, path=os.environ["PATH"])

    assert made.returncode != 0
    assert "/no/such/python is no usable interpreter" in made.stderr


def test_no_index_address_is_in_the_locks() -> None:
    for name in LOCKS:
        text = (PROJECT / name).read_text()
        assert "://" not in re.sub(r"^#.*$", "", text, flags=re.MULTILINE), name
        pins = re.findall(r"^[a-z0-9].*?==", text, flags=re.MULTILINE)
        assert pins
        assert text.count("--hash=sha256:") >= len(pins), name


def test_every_variable_that_is_read_is_in_the_example() -> None:
    code = "".join(
        file.read_text()
        for folder in ("include/perennial", "tests/containers")
        for file in [*(PROJECT / folder).rglob("*.py"), PROJECT / "tests/conftest.py"]
    )
    compose = (PROJECT / "docker-compose.yaml").read_text()
    # What compose passes on from one variable to another is its own affair.
    made = set(re.findall(r"^ +([A-Z_]+): ", compose, flags=re.MULTILINE))
    passed_on = set(re.findall(r"^ +([A-Z_]+):$", compose, flags=re.MULTILINE))
    to_the_build = set(re.findall(r"args: \[([A-Z_]+)\]", compose))
    chosen = set(re.findall(r"\$\{([A-Z_]+)", compose)) | passed_on | to_the_build
    read = set(re.findall(r'"(PERENNIAL_[A-Z_]+|MLFLOW_TRACKING_URI)"', code)) - {"PERENNIAL_STACK"} | chosen
    example = (PROJECT / ".env.example").read_text()
    shown = set(re.findall(r"^#?([A-Z_]+)=", example, flags=re.MULTILINE))

    assert read - made <= shown, f"add {read - made - shown} to .env.example"
    # make reads the first, and Docker Compose the second.
    assert shown - {"PYTHON", "COMPOSE_PROFILES"} <= read, f"nothing reads {shown - read}; remove it from .env.example"


# --- perennial -----------------------------------------------------------------------------------------------------------


def test_the_schema_beside_the_models_is_in_step_with_the_spec(tmp_path: Path) -> None:
    done = perennial("schema", state=tmp_path, PERENNIAL_MODELS=str(tmp_path))

    assert done.returncode == 0
    assert json.loads((tmp_path / "model.schema.json").read_text()) == json_schema()


def test_an_unknown_model_is_told_with_those_there_are(tmp_path: Path) -> None:
    done = perennial("check", "flihgt_delay", state=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert "no model is named flihgt_delay; there are: flight_delay" in done.stderr


def test_a_model_that_is_wrong_is_told_with_file_and_line(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "flight_delay"
    shutil.copytree(PROJECT / "include" / "models" / "flight_delay", folder)
    file = folder / "model.yaml"
    file.write_text(file.read_text().replace("source: flights", "source: fligths", 1))

    done = perennial("check", "flight_delay", state=tmp_path, PERENNIAL_MODELS=str(folder.parent))

    assert done.returncode == 1
    assert re.search(r"model\.yaml:\d+: .*no source is named fligths", done.stderr)


def test_a_days_data_can_be_ingested_and_checked_by_hand(tmp_path: Path) -> None:
    assert perennial("example-data", "2013-01-01", "2013-01-03", state=tmp_path).returncode == 0

    ingested = perennial("ingest", "flight_delay", "2013-01-01", "2013-01-03", state=tmp_path)
    checked = perennial("check", "flight_delay", state=tmp_path)

    assert ingested.returncode == 0, ingested.stderr
    assert "published flights " in ingested.stdout
    assert checked.returncode == 0, checked.stderr
    assert "features of 2013-01-02: " in checked.stdout
    assert "No feature depends on data that were not known yet" in checked.stdout


def test_without_mlflow_a_training_by_hand_says_how_to_start_one(tmp_path: Path) -> None:
    done = perennial("train", "flight_delay", "--as-of", "2013-04-01", state=tmp_path, MLFLOW_TRACKING_URI="")

    assert done.returncode == 1
    assert "start one with `make up`" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ingest", "flight_delay", "2013-01-02", "2013-01-01"), "is not before its end"),
        (("ingest", "flight_delay", "yesterday", "2013-01-01"), "argument start: "),
        (("train", "flight_delay", "--as-of", "2013-01-01T12:00"), "has no time zone"),
    ],
)
def test_an_interval_that_is_none_is_told(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    done = perennial(*arguments, state=tmp_path)

    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


# --- the demo ------------------------------------------------------------------------------------------------------------


def test_a_demo_on_a_taken_port_says_which_variable_chooses_another(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = str(server.getsockname()[1])

        done = perennial("demo", "--once", state=tmp_path, **{**free_ports(), "PERENNIAL_MLFLOW_PORT": port})

    assert done.returncode == 1
    assert f"another program uses port {port}, which MLflow needs" in done.stderr


def run_demo(folder: Path, *given: str) -> dict[str, Any]:
    """Run the demo as README says it, until it ends, and give its summary."""
    done = subprocess.run(
        ["make", "demo", "ONCE=1", *given], cwd=PROJECT, env={**os.environ, "PERENNIAL_STATE": str(folder), **free_ports()},
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not marked(str(folder))
    summary: dict[str, Any] = json.loads((folder / "demo" / "summary.json").read_text())
    weeks = summary["intervals"]["weeks_of_this_run"]
    assert summary["champion"] is not None
    assert set(summary["tables"]) == {"flights", "departures", "arrivals", "weather", "aircraft"}
    for table, rows in summary["tables"].items():
        assert rows["read"] == rows["published"] + rows["quarantined"] > 0, table
    assert [verdict["interval"] for verdict in summary["drift_verdicts"]] == weeks
    assert summary["predictions"]["rows"] == sum(summary["predictions"]["by_version"].values()) > 6000 * len(weeks)
    assert len(summary["promotions"]) + len(summary["refusals"]) >= len(summary["versions"]) > 0
    assert summary["retrainings"][0]["reason"]
    assert {"ingest", "score", "monitor", "train"} <= set(summary["seconds"]["stages"])
    assert all("failed" not in states for states in summary["runs"].values())
    assert summary["online"]["equal"] == summary["online"]["compared"] > 0
    assert summary["online"]["parity"]["judged"]
    assert summary["online"]["parity"]["equal"] == summary["online"]["parity"]["rows"], summary["online"]["parity"]["worst"]
    assert summary["runs"]["flight_delay.record"] == {"runs": 1, "success": 1}
    return summary


@pytest.mark.stack
@pytest.mark.rare
def test_the_demo_tells_its_whole_story(tmp_path: Path) -> None:
    summary = run_demo(tmp_path)

    weeks = ["2013-06-24--2013-07-01", "2013-07-01--2013-07-08", "2013-07-08--2013-07-15", "2013-07-15--2013-07-22"]
    assert summary["intervals"]["weeks_of_this_run"] == weeks
    assert summary["refusals"]
    for stage in ("promote", "rollback", "release"):
        assert summary["runs"][f"flight_delay.{stage}"] == {"runs": 1, "success": 1}


@pytest.mark.stack
def test_the_demo_goes_on_where_it_stopped(tmp_path: Path) -> None:
    before = run_demo(tmp_path, "WEEKS=1")

    assert before["intervals"]["weeks_of_this_run"] == ["2013-06-24--2013-07-01"]
    assert before["online"]["parity"]["day"] == "2013-06-30"

    second = perennial("demo", "--once", "--weeks", "0", state=tmp_path, **free_ports())

    assert second.returncode == 0, second.stdout + second.stderr
    state = tmp_path / "demo"
    after = json.loads((state / "summary.json").read_text())
    assert after["online"]["parity"] is None, "nothing was asked"
    of_a_run = dict.fromkeys(("seconds", "addresses", "intervals", "online"))
    assert {**after, **of_a_run} == {**before, **of_a_run}
    assert after["intervals"]["published"] == before["intervals"]["published"]
    ledger = Ledger(f"sqlite:///{state / 'perennial.db'}")
    assert ledger.champion("flight_delay") == before["champion"]
    assert not marked(str(tmp_path))
