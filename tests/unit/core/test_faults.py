"""A fault of the machine or of a database is told with its place and what to do; a fault of the program is not hidden."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import duckdb
import pytest
import sqlalchemy as sa

from perennial.core.faults import find_fault, in_words


def told(error: BaseException, state: Path = Path("/state"), **databases: str) -> str:
    found = in_words(error, databases, state)
    assert found is not None
    assert "\n" not in found
    return found


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk of /x/y is full: make room"),
        (errno.EDQUOT, "the disk of /x/y is full: make room"),
        (errno.EROFS, "/x/y is on a disk that is mounted read-only: mount it"),
        (errno.EACCES, "may not read or write it: run the command as its owner"),
        (errno.EFBIG, "raise the limit (ulimit -f)"),
        (errno.EIO, "the disk of /x/y fails"),
        (errno.EMFILE, "too many files are open: raise the limit (ulimit -n)"),
    ],
)
def test_a_fault_of_a_disk_is_told_with_its_place(number: int, said: str) -> None:
    assert said in told(OSError(number, os.strerror(number), "/x/y"))


def test_the_cause_of_an_error_is_told_also_where_a_library_hides_it() -> None:
    hidden = RuntimeError("cannot write")
    hidden.__context__, hidden.__suppress_context__ = OSError(errno.ENOSPC, "No space left on device"), True

    assert told(hidden) == "the disk of /state is full: make room, and run the command again"


def test_a_task_says_what_to_do_in_airflow_and_not_at_a_prompt() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert in_words(full, {}, Path("/s"), again="clear the task") == "the disk of /s is full: make room, and clear the task"


def test_duckdb_that_may_not_write_says_where(tmp_path: Path) -> None:
    with pytest.raises(duckdb.IOException) as raised:
        duckdb.sql("COPY (SELECT 1) TO '/proc/nothing/here.csv'")
    assert in_words(raised.value, {}, tmp_path) is None  # no such folder: this is no fault of the machine
    full = duckdb.IOException(f"IO Error: Could not write file: {os.strerror(errno.ENOSPC)}")
    assert told(full, tmp_path) == f"the disk of {tmp_path} is full: make room, and run the command again"


def test_a_fault_of_the_program_is_none_of_the_machine(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'sound.db'}", poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (n INTEGER UNIQUE)"))
        connection.execute(sa.text("INSERT INTO t VALUES (1)"))
    databases = {"ledger": f"sqlite:///{tmp_path / 'sound.db'}"}
    for query in ("SELECT nothing FROM t", "INSERT INTO t VALUES (1)", "SELECT * FROM nowhere"):
        with pytest.raises(sa.exc.DBAPIError) as raised, engine.begin() as connection:
            connection.execute(sa.text(query))
        assert in_words(raised.value, databases, tmp_path) is None
    for error in (ValueError("x"), KeyError("x"), FileNotFoundError(errno.ENOENT, "no", "/x")):
        assert in_words(error, databases, tmp_path) is None
    assert find_fault("ledger", databases["ledger"]) is None


@pytest.mark.parametrize("first", [0, 100, 40_000], ids=["no database", "torn head", "torn pages"])
def test_a_damaged_database_is_found_by_name(tmp_path: Path, first: int) -> None:
    file = tmp_path / "ledger.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE t (a, b)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(n, "x" * 90) for n in range(5000)])
    connection.close()
    content = file.read_bytes()
    file.write_bytes(content[:first] + os.urandom(60_000) + content[first + 60_000 :])

    found = find_fault("ledger", f"sqlite:///{file}")
    assert found is not None
    assert f"the ledger {file} is damaged: " in found
    assert found.endswith(f"move {tmp_path} away, and restore a backup: perennial restore FOLDER")
    assert "\n" not in found


def test_a_server_that_is_down_is_told_without_the_password(tmp_path: Path) -> None:
    url = "postgresql+psycopg2://someone:correct-horse@127.0.0.1:9/there"
    with pytest.raises(sa.exc.OperationalError) as raised:
        sa.create_engine(url, hide_parameters=True).connect()

    said = told(raised.value, tmp_path, ledger=url)
    assert said.startswith("the ledger at 127.0.0.1:9/there does not answer (")
    assert said.endswith("start it, or correct its address, and run the command again")
    assert "correct-horse" not in said


@pytest.mark.postgres
def test_a_server_that_refuses_the_database_or_the_user_is_told(postgres: str) -> None:
    good = sa.engine.make_url(postgres)
    for url in (good.set(database="nowhere"), good.set(username="nobody_here")):
        found = find_fault("ledger", url.render_as_string(hide_password=False))
        assert found is not None
        assert "refuses the sign-in" in found
        assert found.endswith("correct the user, password or name in its address")
    assert find_fault("ledger", postgres) is None


def test_a_full_memory_is_told() -> None:
    assert "not enough memory" in told(MemoryError())
