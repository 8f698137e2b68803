"""What the features of a model are made by, and the digest that identifies it.

Features with the same digest were made in the same way. What only checks rows, names the place that they come from, or serves
another stage does not change it. ``docs/decisions/0047-what-counts-as-another-making-of-features.md`` says why.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from perennial.spec.model import ModelSpec

#: What counts of each section. A field that is not stated does not count, so that a new field changes no digest.
_SOURCE = ("sql", "python", "null_values", "time_zone", "decimal", "thousands")
_TABLE = ("where", "key", "event_time", "known", "duplicates")
_COLUMN = ("type", "sql")
_ENTITY = ("table", "as_of")
_FEATURES = ("numeric", "categorical", "lookback")

#: Defaults of fields that came after digests were given. A folder that does not state them keeps its digest.
_LATER = [("decimal", ".")]

#: What counted in earlier releases: all that there was of these sections.
_FIRST: dict[str, Any] = {
    "sources": {"__all__": {"files", "sql", "connection", "python", "null_values", "delimiter", "encoding"}},
    "tables": {
        "__all__": {
            **dict.fromkeys(("source", "where", "key", "event_time", "known", "tolerance"), True),
            "columns": {"__all__": {"type", "sql", "nullable", "min", "max", "values", "matches", "severity"}},
            "checks": {"rows": {"min", "max", "severity"}, "freshness": True, "volume": True},
        }
    },
    "entity": {"table", "as_of"},
    "features": {"numeric", "categorical", "lookback"},
}


def mentions(sql: str, name: str) -> bool:
    """Whether a name occurs in a query. An occurrence in a comment counts too."""
    return re.search(rf"\b{re.escape(name)}\b", sql, re.IGNORECASE) is not None


def feature_tables(spec: ModelSpec, features_sql: str) -> list[str]:
    """The entity table, and every table whose name occurs in ``features.sql``, in the order of the spec."""
    return [name for name in spec.tables if name == spec.entity.table or mentions(features_sql, name)]


def features_digest(spec: ModelSpec, features_sql: str) -> str:
    """SHA-256 of everything that decides a feature's value, besides the rows of the sources."""
    said = spec.model_dump(mode="json")
    tables = {}
    for name in feature_tables(spec, features_sql):
        table = said["tables"][name]
        columns = {column: _stated(one, _COLUMN) for column, one in table["columns"].items()}
        source = _stated(said["sources"][table["source"]], _SOURCE)
        tables[name] = {**_stated(table, _TABLE), "columns": columns, "source": source}
    meaning = {
        "entity": _stated(said["entity"], _ENTITY),
        "features": _stated(said["features"], _FEATURES),
        "tables": tables,
    }
    return _sha256(meaning, features_sql)


def first_features_digest(spec: ModelSpec, features_sql: str) -> str:
    """The digest that the releases up to 0.1 gave the same folder. Features and versions of their time have it."""
    return _sha256(spec.model_dump(mode="json", include=_FIRST), features_sql)


def _stated(section: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    stated = {name: section[name] for name in fields if section[name] is not None}
    return {name: value for name, value in stated.items() if (name, value) not in _LATER}


def _sha256(meaning: dict[str, Any], features_sql: str) -> str:
    return hashlib.sha256((json.dumps(meaning, sort_keys=True) + features_sql).encode()).hexdigest()
