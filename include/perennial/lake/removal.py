"""Lock the removal of files of the lake while a backup is made.

A backup copies the catalog first, and the files after it. So no file may be removed in between. The lock is in the
deployment's state folder, which all processes share.

Neighbours: :mod:`perennial.operations.maintenance` removes files. :mod:`perennial.operations.backup` and
``scripts/backup.sh`` hold the removal.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from perennial.core.errors import BackupError
from perennial.core.files import replacing
from perennial.core.settings import Settings

#: How long a backup waits for a running removal to end.
PATIENCE = timedelta(minutes=30)

_LOCK, _HOLD = "removing.lock", "backup-until"


@contextmanager
def removing(settings: Settings) -> Iterator[datetime | None]:
    """Mark that files of the lake are being removed, for as long as the context lasts.

    Yields:
        None if files may be removed now; else the moment until which a backup holds them.
    """
    settings.state.mkdir(parents=True, exist_ok=True)
    # The lock means that a process is removing files. It ends with the process. The note means that no process may begin.
    with (settings.state / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield held_until(settings)


@contextmanager
def removing_alone(settings: Settings) -> Iterator[None]:
    """While files of the lake are removed and nobody else removes or rearranges any; waits for those who are at it.

    Raises:
        BackupError: a backup holds the files, or the others go on for longer than :data:`PATIENCE`.
    """
    settings.state.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE.total_seconds()
    with (settings.state / _LOCK).open("a") as lock:
        while True:
            if (held := held_until(settings)) is not None:
                raise BackupError(
                    f"a backup is being made and holds the files of the lake until {held:%Y-%m-%d %H:%M} UTC or its end: try "
                    "again when it has ended (perennial backup --release ends one that died)"
                )
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BackupError(
                        f"others have been removing files of the lake for {PATIENCE}: look at <model>.maintain, and try again "
                        "when it has ended"
                    ) from None
                time.sleep(0.1)
        yield


def hold(settings: Settings, until: datetime) -> None:
    """Forbid the removal of files of the lake until a moment, or until :func:`let_go`. Wait for running removals to end.

    Raises:
        BackupError: a removal runs for longer than :data:`PATIENCE`.
    """
    note = settings.state / _HOLD
    with replacing(note) as draft:
        draft.write_text(until.isoformat(), encoding="utf-8")
    deadline = time.monotonic() + PATIENCE.total_seconds()
    with (settings.state / _LOCK).open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    let_go(settings)
                    raise BackupError(
                        f"a removal of files of the lake has been running for {PATIENCE}: look at <model>.maintain, "
                        "and try again when it has ended"
                    ) from None
                time.sleep(0.1)


def let_go(settings: Settings) -> None:
    """Undo :func:`hold`."""
    (settings.state / _HOLD).unlink(missing_ok=True)


def held_until(settings: Settings) -> datetime | None:
    """The moment until which no file may be removed; None if files may be removed now."""
    try:
        until = datetime.fromisoformat((settings.state / _HOLD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return until if until > datetime.now(UTC) else None
