"""YAML read strictly: no tags, aliases or duplicate keys, none of YAML 1.1's surprises, and a line for each value."""

from __future__ import annotations

import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from perennial.core.errors import SpecError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
#: Of mappings, lists and scalars. A thousand columns and features take some 15,000; a million take seconds for each DAG file.
MAX_NODES = 50_000
#: Neither PostgreSQL nor what Airflow's processes tell each other has room for these.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


#: That of libyaml, where PyYAML was built with it, is ten times as fast: Airflow reads all models for each DAG file.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

YamlPath = tuple[str | int, ...]
_PLAIN_TAGS = {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value"}
_NULL = re.compile(r"^(?:~|null|)$")
_BOOL = re.compile(r"^(?:true|false)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?$")
_NOT_FINITE = re.compile(r"^[-+]?\.(?:inf|nan)$", re.IGNORECASE)


def parse_yaml(file: Path) -> tuple[Any, dict[YamlPath, int]]:
    """The file's value, by the core schema of YAML 1.2, and the line of each path in it.

    YAML 1.1, which PyYAML follows otherwise, reads ``NO`` as false and ``12:30:00`` as 45000.
    """
    text = read_text(file)
    try:
        depth = nodes = 0
        for event in yaml.parse(text, Loader=_LOADER):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise SpecError(f"{file}:{line}: anchors and aliases (& and *) are not used here; repeat the value")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # Before anything recurses into it: in C there is no RecursionError.
            if depth > MAX_DEPTH:
                raise SpecError(f"{file}:{line}: nested deeper than {MAX_DEPTH} levels")
            nodes += isinstance(event, yaml.NodeEvent) and not isinstance(event, yaml.AliasEvent)
            if nodes > MAX_NODES:
                raise SpecError(f"{file}:{line}: more than {MAX_NODES:,} values")
            if isinstance(event, yaml.ScalarEvent) and _UNSTORABLE.search(event.value):
                raise SpecError(f"{file}:{line}: a text with a NUL character, or with half of a surrogate pair")
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"{file}:{line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError(f"{file}: not YAML: {error}") from error
    if node is None:
        raise SpecError(f'{file}: empty; the README\'s "use your own data" shows what belongs here')
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(
            f"{file}:1: a mapping is wanted at the root (name: …, owner: …), this is a {node.tag.rpartition(':')[2]}"
        )
    lines: dict[YamlPath, int] = {}
    return _construct(file, node, (), lines), lines


def read_text(file: Path, limit: int = MAX_BYTES) -> str:
    """The text of a file that may be anything: a pipe is not waited for, and a device not opened.

    Args:
        file: the file.
        limit: the most bytes that it may have.

    Raises:
        SpecError: it is no regular file, is too large, or cannot be read as UTF-8.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise SpecError(f"{file}: not a regular file")
        # Not blocking: it may have become a pipe since.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            content = opened.read(limit + 1) or b""
        if len(content) > limit:
            raise SpecError(f"{file}: larger than {limit:,} bytes")
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise SpecError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{file}: not UTF-8 at byte {error.start}") from error


def _construct(file: Path, node: yaml.Node, path: YamlPath, lines: dict[YamlPath, int]) -> Any:
    line = node.start_mark.line + 1
    lines[path] = line
    if node.tag.removeprefix("tag:yaml.org,2002:") not in _PLAIN_TAGS:
        raise SpecError(f"{file}:{line}: the tag {node.tag} is not allowed; write a plain value")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise SpecError(f"{file}:{key_line}: a key must be a plain word")
            key: str = key_node.value
            if key in mapping:
                raise SpecError(f"{file}:{key_line}: the key {key} is given twice, first on line {lines[(*path, key)]}")
            mapping[key] = _construct(file, value_node, (*path, key), lines)
            lines[(*path, key)] = key_line
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(file, item, (*path, n), lines) for n, item in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    text: str = node.value
    if getattr(node, "style", None):  # a quoted text, or a block of it
        return text
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text == "true"
    if _INT.match(text):
        return int(text) if len(text) < 30 else text
    if _NOT_FINITE.match(text):
        return float(text.replace(".", "", 1))
    if _FLOAT.match(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text
