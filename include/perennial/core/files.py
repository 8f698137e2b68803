"""Files that others may read while they are written, and files in folders that others may change."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A draft that replaces a file when the block has ended. Readers see either the complete old file or the complete new one.

    If the block fails, the file stays as it was. The draft's name is unique, so several processes may write at once, and the
    last one counts. Missing folders are made. Nothing is flushed to the disk.

    Raises:
        OSError: the draft cannot replace the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        yield draft
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def write_private(file: Path, text: str) -> None:
    """Write a file atomically, readable by this user alone."""
    with replacing(file) as draft:
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_text(text, encoding="utf-8")


def open_below(root: Path, parts: Sequence[str]) -> int:
    """Open a file below a folder for reading, and return its descriptor.

    No symbolic link below the folder is followed. So nothing outside of it is opened, even if somebody changes files there
    meanwhile. A pipe does not block.

    Args:
        root: the folder.
        parts: the names that lead to the file; none of them may be ``..`` or contain a slash.

    Raises:
        OSError: there is no such file, or a symbolic link leads to it.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    flags = [os.O_DIRECTORY] * (len(parts) - 1) + [os.O_NONBLOCK]
    for part, flag in zip(parts, flags, strict=True):
        try:
            inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flag, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor
