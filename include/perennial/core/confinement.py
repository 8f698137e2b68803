"""Processes that have given up their rights before they run code that nobody here has read.

A :class:`Nursery` is a new interpreter without the caller's environment, so without its secrets. It imports a module and is
forked for each confined process, which takes milliseconds. A confined process has no network, no file beyond Python's own and
one folder, no file to write, no signal to other processes, and limits of memory and of the size of files, as far as the kernel
lets it. It answers over a pipe, and what comes from it is data: nothing is unpickled.

Neighbours: :mod:`perennial.evaluation.confined` runs the code of models in them.

References:
    The kernel's documentation of Landlock, ``Documentation/userspace-api/landlock.rst``, ABI 1 to 7; ``unshare(2)``,
    ``prctl(2)``, ``setrlimit(2)``.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, BinaryIO

#: Variables of the caller that the process keeps. None of them holds a secret.
_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH", "PYTHONHASHSEED", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")

# System calls of Landlock have the same numbers on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _NO_NEW_PRIVILEGES, _SET_DEATH_SIGNAL = 1, 38, 1
_NEW_USER, _NEW_NET = 0x1000_0000, 0x4000_0000

_EXECUTE, _READ_FILE, _READ_DIRECTORY = 1 << 0, 1 << 2, 1 << 3
#: How many kinds of access to files a version of Landlock knows; later ones know more of the network and of signals.
_KINDS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP, _SIGNALS_AND_SOCKETS = 0b11, 0b11

#: Harmless files outside Python's own that numerical libraries read: processors, memory, the time zone, randomness.
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/dev/null", "/dev/urandom",
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu", "/sys/fs/cgroup",
)  # fmt: skip


#: Longest file that it can write, where it can write any.
_MOST_ERRORS = 65_536
#: The variable that says where a nursery is ready, or ``keep``: that one is to be made ready.
_READY = "PERENNIAL_NURSERY"
#: Longest message to a nursery, in bytes.
_LONGEST = 65_536


class _Rules(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


class Nursery:
    """The caller's end of a process that is forked for each confined process. Threads may share it.

    Args:
        control: connected to that process.
        process: the process, if this one has started it; it ends with this end.
    """

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._pid, self._control, self._process = os.getpid(), control, process
        self._one_at_a_time = threading.Lock()

    @classmethod
    def new(cls, module: str, place: Path | None = None) -> Nursery:
        """Start one.

        Args:
            module: what it imports; a confined process runs its ``serve(connection, folder)``.
            place: a socket that other processes of this user may find it by; None: only this process uses it.
        """
        control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        with its:
            process = subprocess.Popen(  # noqa: S603  # this interpreter, this module
                [sys.executable, "-m", __name__, module, str(its.fileno()), *([str(place)] if place else [])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                cwd="/",
                # Ctrl-C is for the caller, which ends it.
                start_new_session=True,
                env={
                    **environment,
                    "PYTHONNOUSERSITE": "1",
                    "PYTHONDONTWRITEBYTECODE": "1",
                    # A process is forked safely while it has one thread. Idle threads that spin would slow down the caller.
                    "OPENBLAS_NUM_THREADS": "1",
                    "OMP_WAIT_POLICY": "PASSIVE",
                    # Semaphores are files. Threads are left to scikit-learn.
                    "JOBLIB_MULTIPROCESSING": "0",
                },
            )
        return cls(control, process)

    @classmethod
    def at(cls, place: Path) -> Nursery | None:
        """That at a socket; None if there is none."""
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            control.connect(str(place))
        except OSError:
            control.close()
            return None
        return cls(control)

    @property
    def usable(self) -> bool:
        """Whether this end belongs to this process, and the other end lives. A fork would talk into the same socket."""
        return self._pid == os.getpid() and (self._process is None or self._process.poll() is None)

    def start(self, folder: Path, errors: BinaryIO, *, memory: int) -> tuple[int, Connection]:
        """Start a confined process.

        Args:
            folder: the only folder of the caller's that it may read. It may write none.
            errors: gets what it writes to its standard error, at most :data:`_MOST_ERRORS` bytes.
            memory: most bytes that it may allocate.

        Returns:
            Its id, and the caller's end of the pipe.

        Raises:
            EOFError: the nursery has ended.
        """
        ours, its = Pipe()
        with its:
            said = {"folder": str(folder), "memory": memory}
            answer = self._ask(said, [its.fileno(), errors.fileno()])
        return int(answer["pid"]), ours

    def end(self, pid: int) -> int:
        """End a confined process and what it has started, if that has not happened yet.

        Returns:
            Its exit code, negative for a signal; 0 if it was ended by an earlier call.

        Raises:
            EOFError: the nursery has ended, and with it the process.
        """
        return int(self._ask({"end": pid}, [])["status"])

    def close(self) -> None:
        """End all processes that this end has started, and the nursery if this process has started it."""
        self._control.close()
        if self._process is not None and self._pid == os.getpid():
            self._process.kill()
            self._process.wait()

    def _ask(self, said: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        with self._one_at_a_time:
            try:
                socket.send_fds(self._control, [json.dumps(said).encode()], descriptors)
                answer = self._control.recv(_LONGEST)
            except OSError as error:
                raise EOFError(str(error)) from error
        if not answer:
            raise EOFError("the process that starts confined processes has ended")
        return dict(json.loads(answer))


_nurseries: dict[str, Nursery] = {}
_making = threading.Lock()


def nursery(module: str) -> Nursery:
    """The nursery that this process uses for a module: one that :func:`keep_ready` has started, or its own.

    Its own is made when it is first needed, and ends with this process.
    """
    with _making:
        found = _nurseries.get(module)
        if found is None or not found.usable:
            place = os.environ.get(_READY)
            found = (Nursery.at(Path(place)) if place else None) or Nursery.new(module)
            _nurseries[module] = found
            atexit.register(found.close)
        return found


def keep_ready(module: str) -> None:
    """Start a nursery that the processes use which this one forks: none of them waits for its imports.

    Nothing is done unless :data:`_READY` is ``keep`` in the environment.
    """
    if os.environ.get(_READY) == "keep":
        place = Path(tempfile.mkdtemp(prefix="perennial-nursery-")) / "socket"
        kept = Nursery.new(module, place)
        os.environ[_READY] = str(place)
        atexit.register(_remove, kept, place.parent, os.getpid())


def _remove(kept: Nursery, folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # and not in a fork
        kept.close()
        shutil.rmtree(folder, ignore_errors=True)


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that forked it ends, also if that is killed."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def _leave_the_network() -> None:
    """While this process has one thread, and as far as the kernel lets it."""
    library = ctypes.CDLL(None, use_errno=True)
    # A kernel may let only an administrator have a network of its own, or only somebody who is none.
    if library.unshare(_NEW_USER | _NEW_NET) != 0:
        library.unshare(_NEW_NET)
    library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _confine(folder: Path, memory: int) -> None:
    """Give up this process's rights, for ever, as far as the kernel lets it."""
    library = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_ERRORS, _MOST_ERRORS))
    version = library.syscall(_CREATE_RULESET, None, 0, 1)
    if version >= 1:
        _landlock(library, version, folder)


def _landlock(library: ctypes.CDLL, version: int, folder: Path) -> None:
    files = (1 << _KINDS.get(version, 16)) - 1
    rules = _Rules(files, _TCP if version >= 4 else 0, _SIGNALS_AND_SOCKETS if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(library.syscall(_CREATE_RULESET, ctypes.byref(rules), size, 0))
    for path in dict.fromkeys([folder, *_own_code(), *map(Path, _SYSTEM)]):
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # this machine does not have it
        allowed = _EXECUTE | _READ_FILE | (_READ_DIRECTORY if path.is_dir() else 0)
        rule = _Beneath(allowed, opened)
        _checked(library.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0))
        os.close(opened)
    _checked(library.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _own_code() -> list[Path]:
    """Python, its packages, and this project's package."""
    importable = [Path(entry).resolve() for entry in sys.path if entry]
    return [Path(place).resolve() for place in (sys.prefix, sys.base_prefix, Path(__file__).parents[1])] + [
        # The folder of the project's packages holds models too, and the state by default lies beside it.
        entry for entry in importable if entry.name == "site-packages" or entry.is_relative_to(Path(sys.base_prefix).resolve())
    ]  # fmt: skip


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _serve(module: str, owner: socket.socket, place: Path | None) -> None:
    """The nursery: fork for each request, until the process that has started it has ended."""
    _leave_the_network()
    program = import_module(module)
    gc.freeze()
    started: dict[socket.socket, set[int]] = {owner: set()}
    with selectors.DefaultSelector() as waiting:
        waiting.register(owner, selectors.EVENT_READ)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if place is not None:
            listener.bind(str(place))
            listener.listen()
            waiting.register(listener, selectors.EVENT_READ)
        while owner in started:
            for key, _ in waiting.select():
                caller = key.fileobj
                assert isinstance(caller, socket.socket)
                if caller is listener:
                    fresh, _ = listener.accept()
                    started[fresh] = set()
                    waiting.register(fresh, selectors.EVENT_READ)
                    continue
                message, descriptors, _, _ = socket.recv_fds(caller, _LONGEST, 2)
                if not message:
                    waiting.unregister(caller)
                    for pid in started.pop(caller):
                        _end(pid)
                    caller.close()
                    continue
                said = json.loads(message)
                if "end" in said:
                    status = _end(said["end"]) if said["end"] in started[caller] else 0
                    started[caller].discard(said["end"])
                    caller.send(json.dumps({"status": status}).encode())
                    continue
                pid = os.fork()
                if pid == 0:
                    for other in (listener, *started):
                        other.close()
                    _be_born(program, descriptors, Path(said["folder"]), said["memory"])
                started[caller].add(pid)
                for descriptor in descriptors:
                    os.close(descriptor)
                caller.send(json.dumps({"pid": pid}).encode())


def _end(pid: int) -> int:
    """End a confined process and what it has started, if that has not happened yet, and return its exit code."""
    found, status = os.waitpid(pid, os.WNOHANG)
    for kill in (os.killpg, os.kill):  # the group is made a moment after the process
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    if not found:
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _be_born(program: Any, descriptors: Sequence[int], folder: Path, memory: int) -> None:
    """A confined process, from its fork to its end."""
    try:
        end_with_parent()
        pipe, errors = descriptors
        # In a group of its own, so that what it starts ends with it.
        os.setpgid(0, 0)
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        os.chdir(folder)
        _confine(folder, memory)
        with Connection(pipe) as connection:
            program.serve(connection, folder)
    except BaseException as error:  # there is nobody above
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[2])) as opened:
        _serve(sys.argv[1], opened, Path(sys.argv[3]) if len(sys.argv) > 3 else None)
