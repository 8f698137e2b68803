"""A process that gives up its rights before it runs code that nobody here has read.

:func:`start` makes a new interpreter without the caller's environment, so without its secrets. Before it imports anything else,
it confines itself as far as the kernel lets it: no network, no file beyond Python's own and one folder, no file to write, no
signal to other processes, and limits of memory and of the size of files. It answers over a pipe. What comes from it is
data: nothing is unpickled.

Neighbours: :mod:`perennial.evaluation.confined` runs the code of models in it.

References:
    The kernel's documentation of Landlock, ``Documentation/userspace-api/landlock.rst``, ABI 1 to 7; ``unshare(2)``,
    ``prctl(2)``, ``setrlimit(2)``.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import BinaryIO

#: Variables of the caller that the process keeps. None of them holds a secret.
_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH", "PYTHONHASHSEED", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")

# System calls of Landlock have the same numbers on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _NO_NEW_PRIVILEGES, _SET_DUMPABLE = 1, 38, 4
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


class _Rules(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def start(module: str, folder: Path, errors: BinaryIO, *, memory: int) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start a confined process that runs ``module.serve(connection, folder, walls)``.

    Args:
        module: what to import and run, once the process is confined.
        folder: the only folder of the caller's that it may read. It may write none.
        errors: gets what it writes to its standard error, at most :data:`_MOST_ERRORS` bytes.
        memory: most bytes that it may allocate.

    Returns:
        The process, and the caller's end of the pipe.
    """
    ours, its = Pipe()
    with its:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        process = subprocess.Popen(  # noqa: S603  # this interpreter, this module
            [sys.executable, "-m", __name__, module, str(its.fileno()), str(folder), str(memory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[its.fileno()],
            cwd=folder,
            # In a group of its own, so that what it starts ends with it.
            process_group=0,
            env={
                **environment,
                "HOME": str(folder),
                "PYTHONNOUSERSITE": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                # One thread before it is confined. Idle threads that spin would slow down the caller.
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "PASSIVE",
            },
        )
    return process, ours


def hide_this_process() -> None:
    """Let no process of the same user read this one's memory or environment, as a debugger does."""
    ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)


def confine(folder: Path, memory: int) -> list[str]:
    """Give up this process's rights. There is no way back.

    Args:
        folder: may be read.
        memory: most bytes of memory.

    Returns:
        What holds it, for people. A kernel that does not offer something leaves it out.
    """
    library, walls = ctypes.CDLL(None, use_errno=True), ["memory", "files"]
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_ERRORS, _MOST_ERRORS))
    # A kernel may let only an administrator have a network of its own, or only somebody who is none.
    if library.unshare(_NEW_USER | _NEW_NET) == 0 or library.unshare(_NEW_NET) == 0:
        walls.append("network")
    library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    version = library.syscall(_CREATE_RULESET, None, 0, 1)
    if version >= 1:
        _landlock(library, version, folder)
        walls.append(f"Landlock {version}")
    return walls


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


def main(arguments: Sequence[str]) -> None:
    """The process that :func:`start` starts."""
    module, descriptor, folder, memory = arguments
    walls = confine(Path(folder), int(memory))
    with Connection(int(descriptor)) as connection:
        import_module(module).serve(connection, Path(folder), walls)


if __name__ == "__main__":
    main(sys.argv[1:])
