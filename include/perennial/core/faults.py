"""What a fault of the machine or of a database means for people: a full disk, a folder that may not be written, a damaged file.

Such a fault can end any command, in any library that it uses. So it is told in one place, from the error and the errors that
caused it. A sentence says what is wrong, where, and what to do.

Neighbours: :mod:`perennial.cli.main` asks it about each error that nobody has caught; :mod:`perennial.stack.embedded` looks at
the databases before it starts anything.
"""

from __future__ import annotations

import errno
import getpass
import os
import resource
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from perennial.core.text import one_line

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
#: With less, SQLite cannot write a page and its log.
_ROOM = 1 << 20
#: Larger files are not read as a whole to find out whether they are damaged.
_READ_WHOLE = 500 << 20
#: Seconds that a server has to answer.
_PATIENCE = 5


def in_words(
    error: BaseException, databases: Mapping[str, str], state: Path, *, again: str = "run the command again"
) -> str | None:
    """What people are told about an error that ended a command or a task; None if it is a fault of the program.

    Args:
        error: the error. What caused it is looked at too.
        databases: addresses of the databases, by what people call them.
        state: the folder that is meant where the error names no file.
        again: what to do once the fault is corrected.
    """
    for one in _chain(error):
        number = one.errno if isinstance(one, OSError) else None
        place = one.filename if isinstance(one, OSError) else None
        if (told := _of_files(number or _number_in(one), place or state, again)) is not None:
            return told
        if isinstance(one, MemoryError):
            return f"this machine has not enough memory left for this: end other work on it, and {again}"
        if type(one).__name__ == "OutOfMemoryException":
            return f"DuckDB has not enough memory or disk ({one_line(one)}): end other work, and {again}"
        if _is_of_a_database(one):
            found = (fault for name, url in databases.items() if (fault := find_fault(name, url)) is not None)
            return next(found, None) or _of_a_connection(one, again)
    return None


def find_fault(name: str, url: str) -> str | None:
    """Look whether a database can be opened, read and written, and say what is wrong; None if nothing is.

    Args:
        name: what people call it.
        url: SQLAlchemy URL of SQLite or PostgreSQL. Any other database is not looked at.
    """
    if url.startswith("sqlite:///"):
        return _fault_of_file(name, Path(url.removeprefix("sqlite:///")))
    if url.startswith("postgresql"):
        return _fault_of_server(name, url)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and what the database's driver said; each once."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [
            other for other in (one.__cause__, one.__context__, getattr(one, "orig", None)) if isinstance(other, BaseException)
        ]


def _of_files(number: int | None, place: object, again: str = "run the command again") -> str | None:
    where = os.fsdecode(place) if isinstance(place, (str, bytes, os.PathLike)) else "this machine"
    if number in _FULL:
        return f"the disk of {where} is full: make room, and {again}"
    if number == errno.EFBIG:
        return f"{where}: no file may become that large here: raise the limit (ulimit -f), and {again}"
    if number == errno.EROFS:
        return f"{where} is on a disk that is mounted read-only: mount it for writing, and {again}"
    if number in _FORBIDDEN:
        return (
            f"{where}: the user {_user()} may not read or write it: run the command as its owner, or give the user the right "
            "(chown, chmod). The embedded stack keeps everything in PERENNIAL_STATE"
        )
    if number == errno.EIO:
        return f"the disk of {where} fails (input/output error): look at the system's log, and restore a backup on another disk"
    if number in (errno.EMFILE, errno.ENFILE):
        return f"too many files are open: raise the limit (ulimit -n), and {again}"
    return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return str(os.geteuid())


def _number_in(error: BaseException) -> int | None:
    """The number of a fault that an error has in its text alone: DuckDB's, and that of copying many files."""
    if not isinstance(error, shutil.Error) and type(error).__module__.partition(".")[0] not in ("duckdb", "_duckdb"):
        return None
    return next((number for number in (*_FULL, *_FORBIDDEN, errno.EFBIG) if os.strerror(number) in str(error)), None)


def _is_of_a_database(error: BaseException) -> bool:
    """Whether a database failed; not whether it refused what it was asked."""
    alchemy: Any = sys.modules.get("sqlalchemy.exc")  # not imported: no error can be of it
    refused: tuple[type[BaseException], ...] = (sqlite3.IntegrityError, sqlite3.ProgrammingError)
    kinds: tuple[type[BaseException], ...] = (sqlite3.DatabaseError,)
    if alchemy is not None:
        kinds += (alchemy.DatabaseError, alchemy.InterfaceError, alchemy.TimeoutError)
        refused += (alchemy.IntegrityError, alchemy.ProgrammingError, alchemy.DataError, alchemy.NotSupportedError)
    return isinstance(error, kinds) and not isinstance(error, refused)


def _of_a_connection(error: BaseException, again: str) -> str | None:
    said = one_line(getattr(error, "orig", None) or error)
    if "locked" in said or "lock timeout" in said:
        return f"another process keeps a database busy ({said}): wait until it has ended, and {again}"
    if getattr(error, "connection_invalidated", False) or "connection" in said:
        return f"the connection to a database was lost ({said}): start the server, and {again}"
    return None


def _fault_of_file(name: str, file: Path) -> str | None:
    folder = next((place for place in file.parents if place.exists()), file.parent)
    restore = f"Stop everything that uses it, move {file.parent} away, and restore a backup: perennial restore FOLDER"
    try:
        if file.exists():
            with file.open("r+b") as stream:
                head = stream.read(16)
            if head and head != b"SQLite format 3\0":
                return f"the {name} {file} is damaged: it is not a SQLite database. {restore}"
        # SQLite writes a log beside the file. Nothing is kept of this one, also where the process is killed.
        with open(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600), "wb", buffering=0) as draft:
            draft.write(bytes(4096))
        if shutil.disk_usage(folder).free < _ROOM:
            return _of_files(errno.ENOSPC, folder)
    except OSError as error:
        return _of_files(error.errno, error.filename or folder)
    if 0 <= (limit := resource.getrlimit(resource.RLIMIT_FSIZE)[0]) < _ROOM + (file.stat().st_size if file.exists() else 0):
        return f"{_of_files(errno.EFBIG, file)}; it is {limit:,} bytes"
    if not file.exists() or not head:
        return None
    try:
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE)
        try:
            check = "PRAGMA quick_check(1)" if file.stat().st_size <= _READ_WHOLE else "SELECT 'ok' FROM sqlite_master LIMIT 1"
            found = connection.execute(check).fetchone()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        return None if "locked" in str(error) else f"the {name} {file} is damaged: {one_line(error)}. {restore}"
    return (
        None
        if found is None or found[0] == "ok"
        else f"the {name} {file} is damaged: {one_line(ValueError(found[0]))}. {restore}"
    )


def _fault_of_server(name: str, url: str) -> str | None:
    import psycopg2

    address = urlsplit(url.replace("postgresql+psycopg2:", "postgresql:", 1))
    shown = f"{name} at {address.hostname}:{address.port or 5432}{address.path}"
    try:
        psycopg2.connect(address.geturl(), connect_timeout=_PATIENCE).close()
    except psycopg2.Error as error:
        said = one_line(error)
        if any(
            word in said for word in ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry")
        ):
            return f"the {shown} refuses the sign-in ({said}): correct the user, password or name in its address"
        return f"the {shown} does not answer ({said}): start it, or correct its address, and run the command again"
    return None
