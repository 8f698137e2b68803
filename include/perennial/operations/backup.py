"""Backup and restore of a deployment on one machine: SQLite databases and folders. docs/operate.md has the deployed stack's.

A backup is made during work. Its order ensures that it holds every file that it names:

1. From now on, no file of the lake is removed (:func:`perennial.lake.removal.hold`). Files never change.
2. The databases are copied, each as of one moment. Airflow's is first, so that at worst a run is repeated. Predictions and the
   ledger follow, then the catalog and MLflow's, which so hold everything that the ledger names.
3. The files are copied, so that everything that the databases name is there.

What was written in between is in the later copies, but not in the ledger. After a restore no reader sees it, and
:func:`perennial.operations.agreement.settle` brings the other stores in line.

Iceberg's files name each other by their full address, so a lake must be restored to the same place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from perennial.core.errors import BackupError
from perennial.core.settings import Settings
from perennial.lake import removal
from perennial.ledger.chain import head_of
from perennial.ledger.signing import HEAD_FILE, KEY_FILE, ChainHead, Keys, read_head

log = logging.getLogger(__name__)


#: If the backup's process dies, files of the lake are removed again after this long.
LONGEST = timedelta(hours=24)

_MANIFEST, _SUMS = "backup.json", "SHA256SUMS"
#: The embedded stack's secrets. Without them the connections in Airflow's database cannot be read.
_SECRETS = "secrets.json"
#: What :func:`known_head` reads.
_HEAD = re.compile(r"\d{1,18}:[0-9a-f]{64}")
_CHUNK = 1 << 20


def make_backup(settings: Settings, place: Path, environment: Mapping[str, str], *, now: datetime) -> dict[str, Any]:
    """Copy databases, lake, stored models, reports and the stack's own secrets into a new folder.

    Args:
        settings: of the deployment.
        place: the folder, which must not exist yet, or be empty. Only this user can read it.
        environment: what else names places: ``AIRFLOW__DATABASE__SQL_ALCHEMY_CONN``, ``PERENNIAL_MLFLOW_ARTIFACTS``.
        now: the time.

    Returns:
        The manifest: what it holds, from where.

    Raises:
        BackupError: something is not on this machine, or the folder is taken. A backup without its manifest was not finished.
    """
    databases, folders = _databases(settings, environment), _folders(settings, environment)
    if not databases["ledger"].exists():
        raise BackupError(f"there is no ledger at {databases['ledger']}: check PERENNIAL_STATE ({settings.state})")
    if place.exists() and any(place.iterdir()):
        raise BackupError(f"{place} is not empty; name a new folder")
    for folder in folders.values():
        if place.absolute().is_relative_to(folder.absolute()):
            raise BackupError(f"{place} is in {folder}, which is copied; name a folder elsewhere, best on another disk")
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o700)
    removal.hold(settings, now + LONGEST)
    try:
        sums = {}
        for name, file in databases.items():
            if file.exists():
                sums[f"databases/{name}.db"] = _copy_database(file, place / "databases" / f"{name}.db")
        for relative, file in _files(settings, folders):
            # A file that no longer exists belonged to an attempt that was superseded. Nothing names it.
            if (digest := _copy(file, place / relative)) is not None:
                sums[relative] = digest
    finally:
        removal.let_go(settings)
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    (place / _SUMS).write_text(text, encoding="utf-8")
    manifest = {
        "format": 1,
        "made_at": now.isoformat(),
        "databases": {name: str(file) for name, file in databases.items() if f"databases/{name}.db" in sums},
        "folders": {name: str(folder) for name, folder in folders.items()},
        "files": len(sums),
        "bytes": sum((place / name).stat().st_size for name in sums),
        "decisions": _newest_decision(place / "databases" / "ledger.db"),
        "sums": hashlib.sha256(text.encode()).hexdigest(),
    }
    os.sync()
    # Written last, so that an interrupted backup has no manifest.
    (place / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return manifest


def restore_backup(settings: Settings, place: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Put a backup back, where nothing is yet, to the addresses that it was made from.

    The whole backup is checked before the first file is written. The databases are restored last.

    Returns:
        The manifest.

    Raises:
        BackupError: the backup is not whole, the deployment keeps things elsewhere, or something is there already.
    """
    manifest = _check(place)
    databases, folders = _databases(settings, environment), _folders(settings, environment)
    here = {name: str(path) for name, path in {**databases, **folders}.items()}
    for name, address in {**manifest["databases"], **manifest["folders"]}.items():
        if here.get(name) != address:
            raise BackupError(
                f"the backup's {name} was at {address}, but here it is at {here.get(name, 'no place')}: files of the lake and "
                "of MLflow contain absolute addresses. Set the variables of .env.example to their old values, or link the old "
                "place to the new one"
            )
    taken = [path for path in databases.values() if path.exists()]
    taken += [file for _, file in islice(_files(settings, folders), 1)]
    if taken:
        raise BackupError(f"these exist already: {_some(map(str, taken))}. Move them away first; nothing was changed")
    for name in sorted(_sums(place), key=lambda name: name.startswith("databases/")):
        kind, _, relative = name.partition("/")
        if kind == "databases":
            target = databases[Path(relative).stem]
        else:
            target = folders[kind] / relative if relative else settings.state / name
        if _copy(place / name, target) is None:
            raise BackupError(f"{place / name} was removed while the backup was being restored")
    log.info("restored %s of %s", place, manifest["made_at"])
    return manifest


def note_decisions(settings: Settings, manifest: Mapping[str, Any]) -> None:
    """Write down the newest decision of a restored backup, unless the state folder knows a newer one."""
    if (head := manifest.get("decisions")) is not None:
        Keys(settings.state).note(ChainHead(**head))


def known_head(text: str) -> str:
    """The newest decision that a text names, as ``NUMBER:HASH``.

    Args:
        text: that itself, the folder of a backup, or the path or the content of a file of the state folder or of a backup.

    Raises:
        ValueError: it names none.
    """
    if _HEAD.fullmatch(text.strip()):
        return text.strip()
    if not text.lstrip().startswith("{"):
        file = Path(text)
        file = file / _MANIFEST if (file / _MANIFEST).is_file() else file / HEAD_FILE if file.is_dir() else file
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(str(error)) from error
    found = json.loads(text)
    if isinstance(found, dict) and "sums" in found:
        found = found.get("decisions")
    return str(read_head(json.dumps(found)))


def _newest_decision(ledger: Path) -> dict[str, Any] | None:
    """The newest entry of the chain in a copy of the ledger; None if there is none. The copy is only read."""
    with closing(sqlite3.connect(f"file:{ledger}?immutable=1", uri=True)) as copy:
        copy.row_factory = sqlite3.Row
        try:
            row = copy.execute("SELECT * FROM perennial_chain ORDER BY number DESC LIMIT 1").fetchone()
        except sqlite3.OperationalError:  # a ledger of an earlier release
            return None
    return None if row is None else asdict(head_of({**row, "about": json.loads(row["about"])}))


def _check(place: Path) -> dict[str, Any]:
    """The manifest of a backup, after a check that its files are unchanged."""
    try:
        manifest: dict[str, Any] = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
        text = (place / _SUMS).read_bytes()
    except (OSError, ValueError) as error:
        raise BackupError(f"{place} is not a complete backup: {error}") from error
    if hashlib.sha256(text).hexdigest() != manifest["sums"]:
        raise BackupError(f"{place / _SUMS} was changed after the backup; use another backup")
    wrong = []
    for name, digest in _sums(place).items():
        found = _digest(place / name)
        if found is None:
            wrong.append(f"{name} is missing")
        elif found != digest:
            wrong.append(f"{name} is truncated or changed")
    if wrong:
        raise BackupError(f"the backup {place} is damaged: {_some(wrong)}. Nothing was restored; use another backup")
    return manifest


def _sums(place: Path) -> dict[str, str]:
    lines = (place / _SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _some(words: Iterable[str]) -> str:
    every = list(words)
    return "; ".join(every[:5]) + (f"; and {len(every) - 5} more" if len(every) > 5 else "")


# --- what there is ---------------------------------------------------------------------------------------------------


def _databases(settings: Settings, environment: Mapping[str, str]) -> dict[str, Path]:
    """By name, in the order in which they are to be copied."""
    airflow = environment.get("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN") or f"sqlite:///{settings.state / 'airflow' / 'airflow.db'}"
    # The server of the embedded stack keeps it here.
    mlflow = settings.mlflow_url if settings.mlflow_url.startswith("sqlite:") else f"sqlite:///{settings.state / 'mlflow.db'}"
    urls = {
        "airflow": airflow,
        "predictions": settings.predictions_url,
        "ledger": settings.database_url,
        "catalog": settings.catalog_url,
        "mlflow": mlflow,
    }
    elsewhere = [name for name, url in urls.items() if not url.startswith("sqlite:///")]
    if elsewhere:
        raise BackupError(
            f"{', '.join(elsewhere)}: not in SQLite. PostgreSQL has its own tools: scripts/backup.sh uses them, in the "
            "order that keeps ledger, lake and MLflow in line"
        )
    files = {name: Path(str(make_url(url).database)).absolute() for name, url in urls.items()}
    if files["predictions"] == files["ledger"]:
        del files["predictions"]
    return files


def _folders(settings: Settings, environment: Mapping[str, str]) -> dict[str, Path]:
    """By name; one that is missing holds nothing."""
    if "://" in settings.warehouse:
        raise BackupError(
            f"the lake is at {settings.warehouse}, not on this machine: let the store keep versions of its objects, see "
            "docs/operate.md"
        )
    return {
        "lake": Path(settings.warehouse).absolute(),
        "models": Path(environment.get("PERENNIAL_MLFLOW_ARTIFACTS") or settings.state / "mlartifacts").absolute(),
        "models-by-hand": (settings.state / "mlflow-artifacts").absolute(),
        "reports": settings.reports.absolute(),
    }


def _files(settings: Settings, folders: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """All files beside databases, with the names that they have in a backup."""
    for name in (_SECRETS, KEY_FILE):
        if (settings.state / name).exists():
            yield name, settings.state / name
    for name, folder in folders.items():
        for top, _, files in os.walk(folder):
            for file in (Path(top) / file for file in files):
                if file.is_file():
                    yield f"{name}/{file.relative_to(folder).as_posix()}", file


# --- copying ---------------------------------------------------------------------------------------------------------


def _copy_database(source: Path, target: Path) -> str:
    """Copy a SQLite database as of one moment, also while others write, and check the copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=60), sqlite3.connect(target)
    try:
        reading.backup(writing)
        answer = writing.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise BackupError(f"{source} cannot be copied: {error}. If it is damaged, restore an earlier backup") from error
    finally:
        reading.close()
        writing.close()
    if answer != "ok":
        raise BackupError(f"{source} is damaged: {answer}. Restore an earlier backup")
    target.chmod(0o600)
    digest = _digest(target)
    assert digest is not None
    return digest


def _copy(source: Path, target: Path) -> str | None:
    """Copy a file with its mode and times.

    Returns:
        SHA-256 of what was copied; None if the source is not there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        with source.open("rb") as given, target.open("wb") as taken:
            while chunk := given.read(_CHUNK):
                digest.update(chunk)
                taken.write(chunk)
        shutil.copystat(source, target)
    except FileNotFoundError:
        target.unlink(missing_ok=True)
        return None
    return digest.hexdigest()


def _digest(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None
