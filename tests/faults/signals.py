"""Processes that send themselves a signal on the way: killed, put to sleep, woken."""

from __future__ import annotations

import multiprocessing
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

import sqlalchemy as sa

processes = multiprocessing.get_context("forkserver")
# Imported once, so that a child begins at once. This must be said before the first child of the session starts.
processes.set_forkserver_preload(["perennial.scoring.publish", "tests.unit.monitored"])

_PATIENCE = 60


def trap(owner: Any, name: str, when: str, *signals: int) -> None:
    """In a child: send it a signal ``before`` or ``after`` the next call of a function; of two, the second one behind it.

    Args:
        owner: the class or module whose function it is.
        name: of the function.
        when: ``before`` or ``after``.
        signals: one or two.
    """
    original = getattr(owner, name)
    sa.event.listen(sa.Engine, "do_connect", _watch_sqlite)

    def trapped(*arguments: Any, **named: Any) -> Any:
        setattr(owner, name, original)  # a trap that has closed does not open again
        if when == "before":
            send_to_itself(signals[0])
        result = original(*arguments, **named)
        if when == "after" or len(signals) > 1:
            send_to_itself(signals[-1])
        return result

    setattr(owner, name, trapped)


def send_to_itself(number: int) -> None:
    """Send a signal that the calling thread hears before it goes on: a signal to the process may reach another thread first.

    Other threads are outside SQLite meanwhile. SQLite does not take a lock away from a process that sleeps, so one that is
    stopped in the middle of a write would stop all others too, and the test would be about SQLite.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        with _entry:
            if not _others_use_sqlite():
                signal.pthread_kill(threading.get_ident(), number)
                return
        assert time.monotonic() < deadline, "another thread did not leave SQLite"
        time.sleep(0.01)


#: Held while a thread enters SQLite: nobody enters while a signal is sent.
_entry = threading.Lock()
_inside: set[int] = set()
_connections: WeakSet[_Connection] = WeakSet()


def _others_use_sqlite() -> bool:
    me = threading.get_ident()
    return bool(_inside - {me}) or any(other.user != me and other.in_transaction for other in list(_connections))


@contextmanager
def _using_sqlite() -> Iterator[None]:
    me = threading.get_ident()
    with _entry:
        _inside.add(me)
    try:
        yield
    finally:
        _inside.discard(me)


class _Cursor(sqlite3.Cursor):
    def execute(self, *arguments: Any) -> Self:
        with _using_sqlite():
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> Self:
        with _using_sqlite():
            return super().executemany(*arguments)


class _Connection(sqlite3.Connection):
    """Tells which thread used it last, and when a thread is inside SQLite."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.user = threading.get_ident()
        _connections.add(self)

    def cursor(self, factory: Any = _Cursor) -> Any:
        self.user = threading.get_ident()
        return super().cursor(factory)

    def commit(self) -> None:
        with _using_sqlite():
            super().commit()

    def rollback(self) -> None:
        with _using_sqlite():
            super().rollback()

    def close(self) -> None:
        _connections.discard(self)
        with _using_sqlite():
            super().close()


def _watch_sqlite(dialect: sa.Dialect, record: object, arguments: object, named: dict[str, Any]) -> None:
    if dialect.name == "sqlite":
        named["factory"] = _Connection


def wait_until_stopped(child: BaseProcess) -> None:
    deadline = time.monotonic() + _PATIENCE
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert child.is_alive(), f"it ended with {child.exitcode} instead of stopping"
        assert time.monotonic() < deadline
        time.sleep(0.01)
