"""``docker-compose.yaml`` as compose understands it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from perennial.settings import PROJECT

COMPOSE = PROJECT / "docker-compose.yaml"

_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>[A-Z_]+)(?P<rule>:\?|:-)?(?P<text>[^}]*)\}")


def read_compose(environment: Mapping[str, str]) -> dict[str, Any]:
    """The file as compose understands it: variables filled in, merges resolved.

    Raises:
        KeyError: a variable that is demanded (``${NAME:?…}``) is not set, or blank.
    """

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        value = environment.get(match["name"], "")
        if not value and match["rule"] == ":?":
            raise KeyError(f"{match['name']}: {match['text']}")
        return value or (match["text"] if match["rule"] == ":-" else "")

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolve(part) for key, part in value.items()}
        if isinstance(value, list):
            return [resolve(part) for part in value]
        return _VARIABLE.sub(fill, value) if isinstance(value, str) else value

    return {key: resolve(part) for key, part in yaml.safe_load(COMPOSE.read_text(encoding="utf-8")).items()}
