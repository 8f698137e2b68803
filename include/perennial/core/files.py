"""Files that others may read while they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A draft, which takes a file's place when the block has ended: who reads it sees the old one or the new one, whole.

    If the block fails the file stays as it was. The draft's name is no one else's, so that two may write at once and the
    last one counts. Folders are made. Nothing is flushed to the disk for it.

    Raises:
        OSError: it cannot be put in place.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        yield draft
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
