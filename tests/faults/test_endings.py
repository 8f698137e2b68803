"""No fault of the machine or of a database ends a command in a traceback: each ends in one sentence that says what to do.

The commands are those of the parser. They run on a deployment with a history (``tests/states``), in a process of their own in
which modes of files count also for root. The faults are real: a full file system, folders without the right to write, torn
files, a server that is not there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from perennial.core.settings import PROJECT, read_settings
from perennial.ledger.store import Ledger
from perennial.operations.secret_file import SECRETS
from tests.composed import read_compose
from tests.faults.commands import ARGUMENTS, commands
from tests.project.test_old_state import COMMIT, environment
from tests.states.unpack import unpack

pytestmark = pytest.mark.slow

#: What ends by itself, but for `deploy`, which knows another environment, and the demo, whose state is another one.
ALL = [name for name, given in ARGUMENTS.items() if given is not None and name != "demo" and not name.startswith("deploy")]
#: What writes nothing here: it asks a scorer, or reads a file, or is refused before.
WRITES_NOTHING = ["ask", "push", "token list", "new", "try"]
#: What needs no databases.
WITHOUT_DATABASES = ["example-data", "schema", "token make", "token revoke", *WRITES_NOTHING]
#: What reads or writes the lake, and so needs its catalog; what asks MLflow.
OF_CATALOG = ["check", "ingest", "score", "train", "refresh", "calibrate", "reproduce", "maintain", "verify", "forget", "up"]
OF_MLFLOW = ["score", "train", "refresh", "calibrate", "controls", "rollback", "promote", "card", "reproduce", "maintain", "up"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A deployment with a history, whose ledger is up to date."""
    place = tmp_path / "place"
    make(place)
    yield place
    subprocess.run(["chmod", "-R", "u+w", str(place)], check=False)


def make(place: Path) -> None:
    unpack(COMMIT, place)
    Ledger(read_settings(environment(place)).database_url).migrate()


def run(place: Path, names: Sequence[str], **given: str) -> dict[str, dict[str, Any]]:
    """Run commands one after the other, and say how each ended."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PERENNIAL", "MLFLOW"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.commands", str(place), *names],
        env={**inherited, **environment(place), **given}, cwd=PROJECT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def expect(found: dict[str, dict[str, Any]], *said: str, apart_from: Sequence[str] = ()) -> None:
    """Each command ended with 1 and one sentence, which has one of these texts, unless the fault does not concern it."""
    assert {name: ended["trace"] for name, ended in found.items() if ended["trace"]} == {}
    for name, ended in found.items():
        if name in apart_from:
            continue
        assert ended["code"] == 1, (name, ended)
        assert len(ended["words"].strip().splitlines()) == 1, (name, ended["words"])
        assert any(text in ended["words"] for text in said), (name, ended["words"])


def tear(file: Path, first: int = 0) -> None:
    for beside in (file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
        beside.unlink(missing_ok=True)
    content = file.read_bytes()
    file.write_bytes(content[:first] + os.urandom(len(content) - first))


def test_every_command_of_the_parser_is_tried() -> None:
    assert set(commands()) == set(ARGUMENTS)


def test_folders_that_may_not_be_written_are_told(place: Path) -> None:
    for folder, _, files in os.walk(place):
        for file in files:
            (Path(folder) / file).chmod(0o444)
        Path(folder).chmod(0o555)

    expect(
        run(place, [*ALL, "demo", "deploy secrets"]),
        "may not read or write it: run the command as its owner, or give the user the right", "is not a complete backup",
        apart_from=WRITES_NOTHING,
    )  # fmt: skip


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """The same deployment on a file system that has no byte left."""
    mount = tmp_path / "full"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mount)], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("only root may mount a file system of its own here")
    try:
        make(mount)
        with (mount / "rest").open("wb", buffering=0) as rest:
            while (mount / "rest").stat().st_size < 1 << 27:
                try:
                    rest.write(bytes(4096))
                except OSError:
                    break
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_told(full: Path) -> None:
    expect(
        run(full, [*ALL, "demo", "deploy secrets"]),
        f"the disk of {full}", "is not a complete backup", "MB left, and the stack needs",
        apart_from=[*WRITES_NOTHING, "token revoke"],  # there is no token to revoke
    )  # fmt: skip


def test_a_limit_of_file_size_is_told(place: Path) -> None:
    """What stands for a full disk where no file system can be mounted: the kernel refuses to let files grow."""
    found = run(place, ["init", "ingest", "history", "alerts", "train", "verify", "example-data"], LARGEST_FILE="4096")

    expect(found, "no file may become that large here: raise the limit (ulimit -f)")


def test_a_damaged_ledger_is_told(place: Path) -> None:
    tear(place / "var" / "perennial.db")

    expect(
        run(place, ALL),
        "var/perennial.db is damaged: it is not a SQLite database. Stop everything that uses it, ",
        "var/perennial.db cannot be copied: file is not a database. If it is damaged, restore an earlier backup",
        "is not a complete backup", apart_from=WITHOUT_DATABASES,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "concerned"), [("catalog", OF_CATALOG), ("mlflow", OF_MLFLOW)])
def test_a_torn_catalog_or_database_of_mlflow_is_told(place: Path, name: str, concerned: list[str]) -> None:
    tear(place / "var" / f"{name}.db", 4096)

    expect(run(place, concerned), f"var/{name}.db is damaged: ", "MLflow")


def test_a_database_that_is_down_is_told_without_its_password(place: Path) -> None:
    address = "postgresql+psycopg2://perennial:correct-horse-battery@127.0.0.1:9/perennial"
    names = ("PERENNIAL_DATABASE_URL", "PERENNIAL_CATALOG_URL", "PERENNIAL_PREDICTIONS_URL")
    found = run(place, ALL, **dict.fromkeys(names, address))  # the demo has databases of its own

    expect(
        found, "at 127.0.0.1:9/perennial does not answer (", "not in SQLite", "is not a complete backup",
        apart_from=[*WITHOUT_DATABASES, "record"],  # which says first that the model is not asked by key
    )  # fmt: skip
    assert "correct-horse-battery" not in json.dumps(found)


def test_the_init_job_of_a_deployment_says_that_the_database_is_down(place: Path) -> None:
    given = read_compose({name: make() for name, make in SECRETS.items()})["services"]["init"]["environment"]
    down = {name: str(value).replace("@postgres:5432", "@127.0.0.1:9") for name, value in given.items() if value is not None}
    down |= environment(place)
    down |= {f"AIRFLOW__CORE__{name.upper()}_FOLDER": str(PROJECT / name) for name in ("dags", "plugins")}

    expect(run(place, ["deploy init"], **down), "does not answer (")


@pytest.mark.postgres
def test_a_database_that_refuses_the_user_is_told(place: Path, postgres: str) -> None:
    from sqlalchemy.engine import make_url

    address = make_url(postgres).set(username="nobody_here", password="correct-horse-battery")
    refused = address.render_as_string(hide_password=False)
    names = ["init", "check", "history", "alerts", "verify", "score"]

    found = run(place, names, PERENNIAL_DATABASE_URL=refused, PERENNIAL_CATALOG_URL=refused, PERENNIAL_PREDICTIONS_URL=refused)
    expect(found, "refuses the sign-in (")
    assert "correct-horse-battery" not in json.dumps(found)
