"""Times of a local clock as moments. Clocks that are set back show an hour twice. Clocks that are set forward skip one.

DuckDB takes one of the two moments of a repeated hour, and makes one up for a skipped hour, without a word. The macros of
:data:`MACROS` tell both cases. :func:`strictly` lets the ``AT TIME ZONE`` of an expression fail for such a row.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import duckdb

from perennial.core.sql import literal

#: Scalar macros over a zone's name and a TIMESTAMP that its clocks show. They suppose one change of the clocks in two days.
MACROS = (
    # By how much the clocks are ahead of UTC, in microseconds.
    "CREATE OR REPLACE TEMP MACRO local_offset(zone, shown) AS epoch_us(shown) - epoch_us(timezone(zone, shown))",
    "CREATE OR REPLACE TEMP MACRO local_first(zone, shown) AS "
    "timezone('UTC', make_timestamp(epoch_us(shown) - local_offset(zone, shown - INTERVAL 24 HOUR)))",
    "CREATE OR REPLACE TEMP MACRO local_last(zone, shown) AS "
    "timezone('UTC', make_timestamp(epoch_us(shown) - local_offset(zone, shown + INTERVAL 24 HOUR)))",
    # How often the clocks show the time: 0, 1 or 2.
    "CREATE OR REPLACE TEMP MACRO local_times(zone, shown) AS CASE "
    "WHEN NOT isfinite(shown) "
    "OR local_offset(zone, shown - INTERVAL 24 HOUR) = local_offset(zone, shown + INTERVAL 24 HOUR) THEN 1 "
    "ELSE (timezone(zone, local_first(zone, shown)) = shown)::INT + (timezone(zone, local_last(zone, shown)) = shown)::INT END",
    # The moment, NULL unless there is exactly one.
    "CREATE OR REPLACE TEMP MACRO local_moment(zone, shown) AS "
    "CASE WHEN local_times(zone, shown) = 1 THEN timezone(zone, shown) END",
    # What timezone() gives, but an error unless there is exactly one moment. A text that is no time cannot be cast.
    "CREATE OR REPLACE TEMP MACRO strict_timezone(zone, given) AS timezone(zone, CASE WHEN given IS NULL "
    "OR typeof(given) = 'TIMESTAMP WITH TIME ZONE' OR local_times(zone, given::TIMESTAMP) = 1 THEN given "
    "ELSE ('no single moment: ' || given::VARCHAR)::TIMESTAMP END)",
)
_CONVERTS = re.compile(r"\b(time\s+zone|timezone)\b", re.IGNORECASE)
_FIXED = {"UTC", "GMT", "Z", "ZULU", "ETC/UTC", "ETC/GMT"}


def add_macros(connection: duckdb.DuckDBPyConnection) -> None:
    """Make :data:`MACROS` known to a connection."""
    for macro in MACROS:
        connection.execute(macro)


@cache
def strictly(sql: str) -> str:
    """The expression, whose conversions of local times raise an error for a time that is shown twice or never.

    An expression that cannot be parsed is given back as it is.
    """
    if not _CONVERTS.search(sql):
        return sql
    with duckdb.connect() as connection:
        [(text,)] = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{sql}\n)"]).fetchall()
        tree = json.loads(text)
        if tree["error"] or not _replace(tree):
            return sql
        [(written,)] = connection.execute("SELECT json_deserialize_sql(?::JSON)", [json.dumps(tree)]).fetchall()
    return str(written).removeprefix("SELECT ")


def zone_of(sql: str) -> str:
    """The zone that an expression names first, for messages."""
    named = re.search(r"\btime\s+zone\s+'([^']+)'|\btimezone\s*\(\s*'([^']+)'", sql, re.IGNORECASE)
    return (named[1] or named[2]) if named else "the zone"


def _replace(node: Any) -> bool:
    """Put the strict function in the place of ``timezone`` in a parsed expression; whether there was one to replace."""
    if isinstance(node, list):
        found = [_replace(each) for each in node]  # all of them: any() alone would stop at the first
        return any(found)
    if not isinstance(node, dict):
        return False
    replaced = _replace(list(node.values()))
    if node.get("class") == "FUNCTION" and node.get("function_name") == "timezone" and len(node["arguments"]) == 2:
        zone = node["arguments"][0]
        zone = zone.get("expression", zone)
        constant = str((zone.get("literal") or zone.get("value") or {}).get("text", "")).upper()
        if constant not in _FIXED:
            node["function_name"] = "strict_timezone"
            if "qualified_name" in node:
                node["qualified_name"] = {"path": ["strict_timezone"]}
            return True
    return replaced


_ANOTHER = "; if the times are of another zone, correct time_zone of the source"


def shown_twice_or_never(zone: str, shown: str) -> str:
    """SQL for what is wrong with a time of a zone's clocks, as the end of a sentence; NULL if nothing is."""
    name = literal(zone)
    return f"""CASE local_times({name}, {shown})
        WHEN 2 THEN {literal(f" is shown twice by the clocks of {zone}, at ")}
            || strftime(timezone('UTC', local_first({name}, {shown})), '%H:%M') || ' and '
            || strftime(timezone('UTC', local_last({name}, {shown})), '%H:%M') || ' UTC; deliver it with its offset from UTC'
        WHEN 0 THEN {literal(f" does not exist in {zone}, whose clocks were set forward{_ANOTHER}")} END"""
