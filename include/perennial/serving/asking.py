"""Asks a scorer, and pushes rows to it, from the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from perennial.core.errors import NotAnswered, SourceError

#: Most rows, and about how many bytes of them, that are pushed at once. A scorer takes 1,000 rows and 1 MiB by default.
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 500, 500_000


def ask(url: str, model: str, body: dict[str, Any], *, token: str | None) -> dict[str, Any]:
    """The scorer's answer to a question in the plain form.

    Args:
        url: of the scorer.
        model: the model.
        body: what is asked.
        token: for the scorer; None if it needs none.

    Raises:
        NotAnswered: the scorer does not answer, or says why it answers nothing.
    """
    status, said = _post(url, f"/models/{quote(model, safe='')}/predict", body, token)
    if status != 200:
        raise NotAnswered(str(said.get("error", status)))
    return said


@dataclass
class Sent:
    """What became of the rows of a file.

    Attributes:
        accepted: how many rows are confirmed.
        new: how many of them were not there already.
        refused: what is wrong in the others, with their place.
    """

    accepted: int = 0
    new: int = 0
    refused: list[str] = field(default_factory=list)


def push(url: str, model: str, table: str, file: Path, *, token: str | None) -> Sent:
    """Push the rows of a file, in its order.

    Args:
        url: of the scorer.
        model: the model.
        table: the model's table.
        file: CSV with a header of the table's columns (an empty field is a missing value), or JSON lines.
        token: for the scorer; None if it needs none.

    Raises:
        SourceError: the file cannot be read. What was confirmed before stays.
        NotAnswered: the scorer does not take rows. To send all of them once more is safe.
    """
    done = Sent()
    rows = rows_of(file)
    last = 0
    try:
        while chunk := _chunk(rows):
            path = f"/models/{quote(model, safe='')}/tables/{quote(table, safe='')}"
            status, said = _post(url, path, {"rows": [row for _, row in chunk]}, token)
            if status not in (200, 422) or "refused" not in said:
                line = f"{file}:{chunk[int(said['row'])][0]}: " if "row" in said else ""
                raise NotAnswered(f"{line}{said.get('error', status)}")
            done.accepted += int(said["accepted"])
            done.new += int(said["new"])
            done.refused += [f"{file}:{chunk[one['row']][0]}: {one['reason']}" for one in said["refused"]]
            last = chunk[-1][0]
    except NotAnswered as error:
        so_far = f"; rows up to line {last} are confirmed, and may be sent again" if last else "; nothing is confirmed"
        raise NotAnswered(f"{error}{so_far}") from error
    return done


def _chunk(rows: Iterator[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    chunk, size = [], 0
    for line, row in islice(rows, _ROWS_AT_ONCE):
        chunk.append((line, row))
        size += len(json.dumps(row))
        if size > _BYTES_AT_ONCE:
            break
    return chunk


def rows_of(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file or of JSON lines, each with the number of its line.

    Raises:
        SourceError: it cannot be read, or a line is no row.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            if file.suffix.lower() in (".jsonl", ".ndjson"):
                yield from _of_json(file, opened)
            elif file.suffix.lower() == ".csv":
                yield from _of_csv(file, opened)
            else:
                raise SourceError(f"{file}: its name must end in .csv, .jsonl or .ndjson")
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{file}: it is not UTF-8") from error


def _of_json(file: Path, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{file}:{number}: this line is not valid JSON") from error
            if not isinstance(row, dict):
                raise SourceError(f"{file}:{number}: this line is JSON, but not an object")
            yield number, row


def _of_csv(file: Path, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header) or not all(header):
            raise SourceError(f"{file}:1: the header must name each column once")
        for fields in reader:
            if len(fields) != len(header):
                words = f"{len(fields)} fields, and the header has {len(header)}"
                raise SourceError(f"{file}:{reader.line_num}: the row has {words}")
            yield reader.line_num, {name: value or None for name, value in zip(header, fields, strict=True)}
    except csv.Error as error:
        raise SourceError(f"{file}:{reader.line_num}: {error}") from error


def _post(url: str, path: str, body: dict[str, Any], token: str | None) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        # A proxy of the environment is for other servers.
        answer = httpx.post(f"{url.rstrip('/')}{path}", json=body, headers=headers, timeout=30, trust_env=False)
        said = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotAnswered(f"no scorer answers at {url} ({type(error).__name__}): start one with `perennial serve`") from error
    except json.JSONDecodeError as error:
        raise NotAnswered(f"what answers at {url} is no scorer: it gives no JSON") from error
    except ValueError as error:  # NaN, which JSON does not have
        raise NotAnswered("a value cannot be written as JSON: NaN or infinity") from error
    if not isinstance(said, dict):
        raise NotAnswered(f"no scorer answers at {url}")
    return answer.status_code, said
