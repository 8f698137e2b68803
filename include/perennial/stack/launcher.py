"""Starts many processes of one program from a process that has imported it already.

Each of Airflow's processes would spend seconds on importing the same modules, most of the start on two cores. Here one process
imports them, and is forked for each. It has one thread and no open connections, so a fork of it is safe.

The launcher is itself a process, ``python -m perennial.stack.launcher <socket> <program> <module>…``. :class:`Launcher` is
the stack's end of it. They exchange lines of JSON over the socket: requests, and in return process ids and exit codes.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from setproctitle import setproctitle

from perennial.core.errors import StackError


def private_log(log: Path) -> IO[bytes]:
    """Open a log file for appending; a new one can be read by this user alone."""
    return open(log, "ab", opener=lambda file, flags: os.open(file, flags, 0o600))


class Launched:
    """A process that the launcher started, with a part of the interface of :class:`subprocess.Popen`."""

    def __init__(self, launcher: Launcher, pid: int) -> None:
        self.pid = pid
        self._launcher = launcher

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._launcher.exit_code(self.pid)

    def wait(self) -> int:
        return self._launcher.wait(self.pid)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Launcher:
    """The stack's end of a launcher.

    Args:
        program: the package that is run as by ``python -m``.
        modules: imported ahead; those that cannot be imported are skipped. ``module:function`` is also called.
        environment: of the launcher and of everything that it starts.
        log: its own log file.
        umask: of the launcher and of everything that it starts.
    """

    def __init__(self, program: str, modules: Sequence[str], environment: Mapping[str, str], log: Path, umask: int) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs, private_log(log) as stream:
            self._process = subprocess.Popen(  # noqa: S603 - this module itself
                [sys.executable, "-m", __name__, str(theirs.fileno()), program, *modules],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
                umask=umask,
            )
        self._one_at_a_time = threading.Lock()
        self._news = threading.Condition()
        self._started: SimpleQueue[int | None] = SimpleQueue()
        self._exit_codes: dict[int, int] = {}
        self._lost = False
        self._listener = threading.Thread(target=self._listen, name="launcher", daemon=True)
        self._listener.start()

    @property
    def lost(self) -> bool:
        """Whether it has died."""
        return self._lost

    def import_ahead(self, modules: Sequence[str]) -> None:
        """Import these before processes that are started from now on."""
        self._ask({"modules": list(modules)})

    def start(self, arguments: Sequence[str], log: Path) -> Launched:
        """Run the program with these arguments.

        Raises:
            StackError: the launcher has died.
        """
        with self._one_at_a_time:
            self._ask({"arguments": list(arguments), "log": str(log)})
            pid = None if self._lost else self._started.get()
        if pid is None:
            raise StackError("the launcher of Airflow's processes was killed")
        return Launched(self, pid)

    def exit_code(self, pid: int) -> int | None:
        """None while the process runs. Once the launcher has died, its processes count as killed."""
        with self._news:
            return self._exit_codes.get(pid, -signal.SIGKILL if self._lost else None)

    def wait(self, pid: int) -> int:
        """Wait for the process to end."""
        with self._news:
            self._news.wait_for(lambda: pid in self._exit_codes or self._lost)
            return self._exit_codes.get(pid, -signal.SIGKILL)

    def close(self) -> None:
        """End the launcher. Its processes keep running."""
        with suppress(OSError):  # it has died
            self._socket.shutdown(socket.SHUT_RDWR)
        self._process.wait()
        self._listener.join()
        self._socket.close()

    def _ask(self, request: dict[str, Any]) -> None:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError:  # it has died, which _listen finds out as well
            self._lost = True

    def _listen(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    news: dict[str, int] = json.loads(line)
                    with self._news:
                        if "exit" in news:
                            self._exit_codes[news["pid"]] = news["exit"]
                            self._news.notify_all()
                        else:
                            self._started.put(news["pid"])
        except OSError:
            pass
        with self._news:
            self._lost = True
            self._started.put(None)
            self._news.notify_all()


def main() -> None:
    """The launcher, until the stack's end closes; and in each fork of it, the program."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    program, *modules = sys.argv[2:]
    _import(modules)
    asked = _serve(channel)
    if asked is None:
        # Nothing has to be cleaned up, and modules that try would write long error messages.
        os._exit(0)
    os.setsid()
    log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)
    sys.argv = [program, *asked["arguments"]]
    setproctitle(" ".join(sys.argv))
    runpy.run_module(program, run_name="__main__", alter_sys=True)


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Serve requests until the other end closes.

    Returns:
        In each process that is started, its request; in the launcher itself, at the end, None.
    """
    unread = b""
    while True:
        # Exit codes are reported at the next turn. A signal handler would be inherited by all forks.
        ready, _, _ = select.select([channel], [], [], 0.1)
        _tell_deaths(channel)
        if not ready:
            continue
        received = channel.recv(65536)
        if not received:
            return None
        *requests, unread = (unread + received).split(b"\n")
        for request in requests:
            asked: dict[str, Any] = json.loads(request)
            if "modules" in asked:
                _import(asked["modules"])
                continue
            pid = os.fork()
            if pid == 0:
                channel.close()
                return asked
            _tell(channel, {"pid": pid})


def _import(modules: Sequence[str]) -> None:
    logging.disable(logging.INFO)
    with warnings.catch_warnings():
        # The libraries' warnings while they are imported fill thousands of lines.
        warnings.simplefilter("ignore")
        for module in modules:
            try:
                name, _, function = module.partition(":")
                found = importlib.import_module(name)
                if function:
                    getattr(found, function)()
            except ImportError as error:
                print(f"{module} could not be imported ahead: {error}", file=sys.stderr)  # noqa: T201
    logging.disable(logging.NOTSET)
    # The forks share this memory as long as the garbage collector does not touch it.
    gc.collect()
    gc.freeze()


def _tell_deaths(channel: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _tell(channel, {"pid": pid, "exit": os.waitstatus_to_exitcode(status)})


def _tell(channel: socket.socket, news: dict[str, int]) -> None:
    with suppress(OSError):  # the other end has closed, which the next turn notices
        channel.sendall(json.dumps(news).encode() + b"\n")


if __name__ == "__main__":
    main()
