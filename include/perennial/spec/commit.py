"""Which commit a model's folder is of: by Git itself, or by a record that was written when the folder was put there.

A record has the commit in its first line, then the SHA-256 of each file as ``sha256sum`` writes it, below the folder of all
models. So a folder that was changed since is noticed without Git. ``scripts/built.sh`` writes one into the image, and beside
the models of a checkout; :mod:`perennial.operations.follow` writes one beside the models of each commit.

This module imports nothing but the standard library, since the service that follows a repository has nothing else.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from functools import partial
from pathlib import Path

#: The record's name in the folder of all models.
RECORD = ".commit"
#: Beside the link to the models of the newest commit: a file that is touched whenever the repository has been followed.
FOLLOWED_FILE = "followed"
#: What is said where nothing is known.
UNKNOWN = "unknown"
#: In the record's first line, behind the commit: no file differed from it.
_CLEAN = "clean"


def commit_of(folder: Path, built: Path) -> tuple[str, bool | None]:
    """The commit of a model's folder.

    Args:
        folder: the folder. It may be missing: the folder that a version keeps is nowhere.
        built: the record of the image, for models that are part of it.

    Returns:
        The commit, ``unknown`` if nothing tells; and whether files differ from it, None if nothing tells.
    """
    if not folder.is_dir():
        return UNKNOWN, None
    if (recorded := recorded_commit(folder, folder.parent / RECORD)) is not None:
        return recorded
    if (git := shutil.which("git")) is not None:
        ask = partial(subprocess.run, cwd=folder, capture_output=True, text=True, timeout=30, check=False)
        head = ask([git, "rev-parse", "HEAD"])
        if head.returncode == 0:
            return head.stdout.strip(), bool(ask([git, "status", "--porcelain"]).stdout.strip())
    return recorded_commit(folder, built) or (UNKNOWN, None)


def recorded_commit(folder: Path, record: Path) -> tuple[str, bool | None] | None:
    """The commit that a record names, and whether files differed from it; None if it does not fit the folder.

    Args:
        folder: of the model.
        record: the file.
    """
    try:
        first, *lines = record.read_text(encoding="utf-8").splitlines()
        noted = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        here = {f"./{folder.name}/{name}": digest for name, digest in _digests(folder)}
    except (OSError, ValueError):
        return None
    commit, _, state = first.partition(" ")
    if commit == UNKNOWN or {name: noted[name] for name in noted if name.startswith(f"./{folder.name}/")} != here:
        return None
    return commit, False if state == _CLEAN else None


def write_record(models: Path, commit: str) -> None:
    """Write the record of a folder of models whose files are exactly those of a commit."""
    lines = [f"{commit} {_CLEAN}", *_lines(models)]
    (models / RECORD).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def fits_record(models: Path) -> bool:
    """Whether a folder of models has a record, and each of its files as the record says."""
    try:
        _, *lines = (models / RECORD).read_text(encoding="utf-8").splitlines()
        return lines == _lines(models)
    except (OSError, ValueError):
        return False


def _lines(models: Path) -> list[str]:
    return [f"{digest}  ./{name}" for name, digest in _digests(models) if name != RECORD]


def _digests(folder: Path) -> list[tuple[str, str]]:
    """Each file below a folder with its SHA-256. What Python compiles beside a file does not count."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return [(file.relative_to(folder).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
