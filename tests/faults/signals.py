"""Processes that send themselves a signal on the way: killed, put to sleep, woken."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

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
    """Send a signal that is heard before the caller goes on: of one to the process, another thread may hear first."""
    signal.pthread_kill(threading.get_ident(), number)


def wait_until_stopped(child: BaseProcess) -> None:
    deadline = time.monotonic() + _PATIENCE
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert child.is_alive(), f"it ended with {child.exitcode} instead of stopping"
        assert time.monotonic() < deadline
        time.sleep(0.01)
