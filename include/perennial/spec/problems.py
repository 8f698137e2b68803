"""A problem of a YAML file, and how all problems of a file are written: one line each, in the order of the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

#: Keys and list positions that lead from the root of a YAML file to a value.
YamlPath = tuple[str | int, ...]


#: Most problems of a file that are shown.
MAX_MESSAGES = 100


class Problem(NamedTuple):
    """What is wrong at one place of a YAML file, and what to do about it.

    Attributes:
        path: the place; the root if the problem does not concern one value.
        message: one line.
        line: line number, from 1. None: the line of the path.
    """

    path: YamlPath
    message: str
    line: int | None = None


def write_problems(file: Path, lines: Mapping[YamlPath, int], problems: Iterable[Problem]) -> list[str]:
    """Each problem as ``file:line: tables.trips.key.0: message``, in the order of lines, none twice.

    Args:
        lines: the line of each path. A path that is absent, such as that of a missing field, has the line of the nearest
            section around it.
    """
    placed = [(problem.line or line_of(problem.path, lines), problem) for problem in dict.fromkeys(problems)]
    told = [
        f"{file}:{line}: {'.'.join(map(str, path))}{': ' if path else ''}{message}"
        for line, (path, message, _) in sorted(placed, key=lambda problem: problem[0])
    ]
    more = len(told) - MAX_MESSAGES
    return told if more <= 0 else [*told[:MAX_MESSAGES], f"{file}: … and {more:,} more"]


def line_of(path: YamlPath, lines: Mapping[YamlPath, int]) -> int:
    """The line of a path, or of the nearest section around it."""
    return next((lines[path[:length]] for length in range(len(path), -1, -1) if path[:length] in lines), 1)
