"""Keeps processes running together, and leaves none behind.

Each process leads a session. Whatever it starts inherits its environment, and in it a mark, by which the whole family is found:
when the stack stops; by the reaper, when the stack was killed; and by the next start, when the reaper was killed too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from perennial.core.errors import StackError
from perennial.stack.launcher import Launched, Launcher, private_log

MARK = "PERENNIAL_STACK"

#: A process is restarted at most this often within this many seconds. If it dies more often, a restart does not help.
RESTARTS = 3
WITHIN = 300.0

#: What the processes make can be read by this user alone: databases, lake, reports, logs.
UMASK = 0o077

#: A log file is cut at this size.
LOG_BYTES = 50_000_000


def marked(prefix: str) -> list[psutil.Process]:
    """The processes of this user whose mark begins with ``prefix``, except this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK, "").startswith(prefix):
                found.append(process)
        except (psutil.Error, OSError):  # it has ended, or belongs to another user
            continue
    return found


def end(find: Callable[[], list[psutil.Process]], patience: float) -> None:
    """Stop the processes that ``find`` returns: by SIGTERM, and those that run after ``patience`` seconds by SIGKILL."""
    _signal(find(), signal.SIGTERM)
    _wait(lambda: not find(), patience)
    # A process may have started another one after it was listed. So this repeats until there is none.
    _wait(lambda: not _signal(find(), signal.SIGKILL), 10)


def _signal(processes: list[psutil.Process], number: signal.Signals) -> bool:
    """Send a signal to processes. Returns whether there were any."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue
    return bool(processes)


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass
class _Child:
    name: str
    command: Sequence[str]
    given: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | Launched
    restarts: deque[float] = field(default_factory=deque)


class Processes:
    """Named processes with a log file each, restarted when they die.

    A command that begins with ``python -m <program>`` is forked from a process that has imported that program.

    Args:
        family: the mark of all of them, unique to this run.
        program: the program that most of the processes run.
        modules: imported ahead for it.
        environment: their environment.
        logs: folder of their log files, ``<name>.log``.
        say: called with a sentence for each event.
    """

    def __init__(
        self,
        family: str,
        program: str,
        modules: Sequence[str],
        environment: Mapping[str, str],
        logs: Path,
        say: Callable[[str], None],
    ) -> None:
        self.failure: StackError | None = None
        self._family = family
        self._program = (sys.executable, "-m", program)
        self._modules = tuple(modules)
        # A process that renames itself would otherwise overwrite its environment, and the mark in it.
        self._environment = {**environment, MARK: family, "SPT_NOENV": "1"}
        self._logs = logs
        self._say = say
        self._children: dict[str, _Child] = {}
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="stack", daemon=True)
        logs.mkdir(mode=0o777 & ~UMASK, parents=True, exist_ok=True)
        # It notices the end of this process, also by a kill, because the pipe closes.
        self._reaper = subprocess.Popen(  # noqa: S603 - a module of this package
            [sys.executable, "-m", "perennial.stack.reaper", family],
            stdin=subprocess.PIPE,
            start_new_session=True,
            umask=UMASK,
            env=dict(environment),
        )
        self._launcher = self._make_launcher()

    def log(self, name: str) -> Path:
        """The log file of a process."""
        return self._logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """The current process id of a named process."""
        return self._children[name].process.pid

    def start(self, name: str, *command: str, given: Mapping[str, str] | None = None) -> None:
        """Start a process that runs until :meth:`stop`.

        Args:
            name: of the process and its log.
            command: the command.
            given: environment variables for this process alone; not for the program that most processes run.
        """
        process = self.run(name, *command, given=given)
        self._children[name] = _Child(name, command, given or {}, self.log(name), process)

    def run(self, name: str, *command: str, given: Mapping[str, str] | None = None) -> subprocess.Popen[bytes] | Launched:
        """Start a process that ends without being stopped; the caller waits for it."""
        if command[:3] == self._program:
            assert not given
            if self._launcher.lost:
                self._launcher.close()
                self._launcher = self._make_launcher()
            return self._launcher.start(command[3:], self.log(name))
        with private_log(self.log(name)) as log:
            return subprocess.Popen(  # noqa: S603 - the stack's own commands
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self._environment, **(given or {})},
                # A Ctrl-C in the terminal goes to the stack alone, which then stops its processes in order.
                start_new_session=True,
                umask=UMASK,
            )

    def import_ahead(self, modules: Sequence[str]) -> None:
        """Import these modules ahead for processes of the program that are started from now on."""
        self._modules = (*self._modules, *modules)
        self._launcher.import_ahead(modules)

    def watch(self) -> None:
        """Restart processes that die, from now on. One that keeps dying sets :attr:`failure`."""
        self._watcher.start()

    def dead(self) -> StackError | None:
        """The error of a process that has ended before :meth:`watch`; None if there is none."""
        for child in self._children.values():
            if (code := child.process.poll()) is not None:
                return StackError(f"{child.name} {_ended(code)} while starting; {last_words(child.log)}")
        return None

    def stop(self, patience: float = 2.5) -> None:
        """Stop everything. What does not stop within ``patience`` seconds is killed; at a second Ctrl-C, everything is."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        running = [child.process for child in self._children.values()]
        try:
            for process in running:
                process.send_signal(signal.SIGTERM)
            _wait(lambda: all(process.poll() is not None for process in running), patience)
            end(self._find, 3)
        except KeyboardInterrupt:
            end(self._find, 0)
        self._launcher.close()
        for process in running:
            process.wait()
        assert self._reaper.stdin is not None
        try:
            self._reaper.stdin.write(b"done")
            self._reaper.stdin.close()
        except OSError:  # it was killed
            pass
        self._reaper.wait()

    def _find(self) -> list[psutil.Process]:
        return marked(self._family)

    def _session(self, leader: int) -> list[psutil.Process]:
        found = []
        for process in self._find():
            try:
                if os.getsid(process.pid) == leader:
                    found.append(process)
            except ProcessLookupError:
                continue
        return found

    def _make_launcher(self) -> Launcher:
        return Launcher(self._program[-1], self._modules, self._environment, self.log("launcher"), UMASK)

    def _watch(self) -> None:
        while self.failure is None and not self._stopping.wait(0.25):
            for child in self._children.values():
                try:
                    if (code := child.process.poll()) is not None and not self._stopping.is_set():
                        self._revive(child, code)
                    cut(child.log)
                except (OSError, StackError) as error:
                    self.failure = StackError(f"{child.name} cannot be kept running: {error}")

    def _revive(self, child: _Child, code: int) -> None:
        now = time.monotonic()
        while child.restarts and child.restarts[0] < now - WITHIN:
            child.restarts.popleft()
        # Processes that it has left running would work beside its successor.
        end(lambda: self._session(child.process.pid), 1)
        if len(child.restarts) >= RESTARTS:
            self.failure = StackError(
                f"{child.name} {_ended(code)}, after {RESTARTS} restarts within {WITHIN / 60:.0f} minutes; "
                f"{last_words(child.log)}"
            )
            return
        child.restarts.append(now)
        self._say(f"{child.name} {_ended(code)} and was restarted; its log is {child.log}")
        child.process = self.run(child.name, *child.command, given=child.given)


def _ended(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def last_words(log: Path, lines: int = 8) -> str:
    """The end of a process's log, with its path."""
    if not log.exists():
        return f"there is no {log}"
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 8192))
        tail = stream.read().decode(errors="replace").splitlines()[-lines:]
    return f"the end of {log}:\n  " + "\n  ".join(tail) if tail else f"{log} is empty"


def cut(log: Path) -> None:
    """Keep a log from growing without bound: above the limit, its content moves to ``<name>.log.1``."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        shutil.copyfile(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)
