"""Puts a state that ``make.py`` has packed into another folder than the one it was made in.

Whole addresses of files are in the SQLite databases of catalog and MLflow, and in Iceberg's metadata: JSON, and Avro for the
lists of manifests and of data files. All of them are rewritten, with the lengths that follow from it. What is hashed names
no file by its whole address, except each stored model's ``MLmodel``, which says where it was first stored and is left as it
was; Perennial does not go by that.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

from pyiceberg.avro.file import AvroFile, AvroOutputFile
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.typedef import Record

#: Fields of a list of manifests, by the Iceberg specification.
_MANIFEST_PATH, _MANIFEST_LENGTH = 500, 501


def unpack(commit: str, place: Path) -> dict[str, Any]:
    """Unpack a state into a folder, so that it can be used there.

    Args:
        commit: by whose code it was made; the archive beside this file that is named so.
        place: the new folder; made if it is missing.

    Returns:
        ``made.json``: which commit made it, and with what.
    """
    with tarfile.open(Path(__file__).with_name(f"{commit}.tar.xz")) as tar:
        tar.extractall(place, filter="data")
    made: dict[str, Any] = json.loads((place / "made.json").read_text())
    before, now = made["root"], str(place)
    for database in place.rglob("*.db"):
        _move_database(database, before, now)
    lake = place / "var" / "lake"
    for file in lake.rglob("*.metadata.json"):
        file.write_text(json.dumps(_moved(json.loads(file.read_text()), before, now)))
    lists = set(lake.rglob("snap-*.avro"))
    for file in sorted(lake.rglob("*.avro"), key=lists.__contains__):  # lists last, since they tell the others' lengths
        _move_avro(file, before, now, is_list=file in lists)
    return made


def _moved(value: Any, before: str, now: str) -> Any:
    """A value as JSON or Avro has it, with each address below one folder made one below the other."""
    if isinstance(value, str):
        for scheme in ("", "file://"):
            if value == scheme + before or value.startswith(f"{scheme}{before}/"):
                return scheme + now + value[len(scheme + before) :]
        return value
    if isinstance(value, dict):
        return {name: _moved(part, before, now) for name, part in value.items()}
    if isinstance(value, list):
        return [_moved(part, before, now) for part in value]
    if isinstance(value, Record):
        return Record(*(_moved(value[position], before, now) for position in range(len(value))))
    return value


def _move_database(file: Path, before: str, now: str) -> None:
    with sqlite3.connect(file) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for _, name, *_ in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
                connection.execute(
                    f'UPDATE "{table}" SET "{name}" = replace("{name}", :before, :now) WHERE instr("{name}", :before)',
                    {"before": before, "now": now},
                )
    connection.close()


def _move_avro(file: Path, before: str, now: str, *, is_list: bool) -> None:
    io = PyArrowFileIO()
    with AvroFile[Record](io.new_input(str(file))) as reading:
        schema, meta = reading.schema, dict(reading.header.meta)
        records = [_moved(record, before, now) for record in reading]
    if is_list:
        place = {field.field_id: position for position, field in enumerate(schema.fields)}
        for record in records:
            manifest = Path(record[place[_MANIFEST_PATH]].removeprefix("file://"))
            record[place[_MANIFEST_LENGTH]] = manifest.stat().st_size
    name = json.loads(meta["avro.schema"])["name"]
    with AvroOutputFile[Record](io.new_output(str(file)), schema, name, metadata=meta) as writing:
        writing.write_block(records)
