"""Files that others may read while they are written."""

from __future__ import annotations

from collections.abc import Iterator
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
