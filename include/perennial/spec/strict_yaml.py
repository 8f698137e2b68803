"""YAML read strictly: no tags, aliases or duplicate keys, none of YAML 1.1's surprises, and a line for each value."""

from __future__ import annotations

import math
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from perennial.core.errors import SpecError
from perennial.spec.problems import Problem, YamlPath

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
#: Of mappings, lists and scalars. A thousand columns and features take some 15,000; a million take seconds for each DAG file.
MAX_NODES = 50_000
#: Neither PostgreSQL nor what Airflow's processes tell each other has room for these.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")

#: Stands for a value that YAML gives, but that is not allowed here. The document's problems name it.
REFUSED: Final = object()

# The loader of libyaml, if PyYAML was built with it, is ten times as fast. Airflow reads all models for each DAG file.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_PLAIN_TAGS = {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value"}
_KINDS = {"map": "a mapping", "seq": "a list", "str": "a text"}
_NULL = re.compile(r"^(?:~|null|)$")
_BOOL = re.compile(r"^(?:true|false)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?$")
_NOT_FINITE = re.compile(r"^[-+]?\.(?:inf|nan)$", re.IGNORECASE)


@dataclass
class Document:
    """What a YAML file says.

    Attributes:
        file: the file.
        value: mappings, lists and plain values, by the core schema of YAML 1.2.
        lines: the line of each path in it.
        problems: keys and values that are not allowed. The rest of the document can be read.
    """

    file: Path
    value: Any = REFUSED
    lines: dict[YamlPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def parse_yaml(file: Path) -> Document:
    """Read a file as YAML 1.2. (YAML 1.1, which PyYAML follows, reads ``NO`` as false and ``12:30:00`` as 45000.)

    Raises:
        SpecError: the file as a whole cannot be read: it is missing, too large, no YAML, or has no mapping at its root.
    """
    text = read_text(file)
    try:
        _refuse_dangers(file, text)
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"{file}:{line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError(f"{file}: not YAML: {error}") from error
    if node is None:
        raise SpecError(f'{file}: empty; the README\'s "use your own data" shows what belongs here')
    if not isinstance(node, yaml.MappingNode):
        kind = node.tag.rpartition(":")[2]
        raise SpecError(f"{file}:1: the root must be a mapping (name: …, owner: …), this is {_KINDS.get(kind, f'a {kind}')}")
    document = Document(file)
    document.value = _construct(document, node, ())
    return document


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


def _refuse_dangers(file: Path, text: str) -> None:
    """Anchors and aliases, which can grow without bound, and deep nesting. libyaml raises no RecursionError: it crashes."""
    depth = nodes = 0
    references = []
    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            references.append(line)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise SpecError(f"{file}:{line}: nested deeper than {MAX_DEPTH} levels")
        nodes += isinstance(event, yaml.NodeEvent) and not isinstance(event, yaml.AliasEvent)
        if nodes > MAX_NODES:
            raise SpecError(f"{file}:{line}: more than {MAX_NODES:,} values")
        if isinstance(event, yaml.ScalarEvent) and _UNSTORABLE.search(event.value):
            raise SpecError(f"{file}:{line}: a text with a NUL character, or with half of a surrogate pair")
    if references:
        message = "anchors and aliases (& and *) are not allowed here; repeat the value"
        raise SpecError("\n".join(f"{file}:{line}: {message}" for line in dict.fromkeys(references)))


def _construct(document: Document, node: yaml.Node, path: YamlPath) -> Any:
    document.lines[path] = node.start_mark.line + 1
    if node.tag.removeprefix("tag:yaml.org,2002:") not in _PLAIN_TAGS:
        document.problems.append(Problem((), f"the tag {node.tag} is not allowed; write a plain value", document.lines[path]))
        return REFUSED
    if isinstance(node, yaml.MappingNode):
        return _construct_mapping(document, node, path)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(document, item, (*path, position)) for position, item in enumerate(node.value)]
    return _scalar(node)


def _construct_mapping(document: Document, node: yaml.MappingNode, path: YamlPath) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(Problem((), "a key must be a plain word", line))
            continue
        key: str = key_node.value
        if key in mapping:
            first = document.lines[(*path, key)]
            document.problems.append(Problem((), f"the key {key} is given twice, first on line {first}", line))
            continue
        mapping[key] = _construct(document, value_node, (*path, key))
        document.lines[(*path, key)] = line
    return mapping


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
