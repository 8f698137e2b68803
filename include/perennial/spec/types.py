"""The types of the fields of ``model.yaml``: identifiers, SQL, durations, numbers, shares, cron expressions."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from croniter import CroniterError, croniter
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

IDENTIFIER = r"^[a-z_][a-z0-9_]{0,62}$"
FUNCTION = r"^model:[A-Za-z_][A-Za-z0-9_]*$"
_DURATION = r"^[1-9][0-9]{0,4}(m|h|d|w)$"
#: Letters that croniter replaces by a number of its choice.
_NOT_FIXED = re.compile(r"(?<![A-Za-z])[HRhr](?![A-Za-z])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Task = Literal["binary_classification", "multiclass_classification", "regression"]
ColumnType = Literal["string", "integer", "float", "boolean", "timestamp", "date"]


def _no_template(text: str) -> str:
    if "{{" in text or "{%" in text:
        raise ValueError("templates are not rendered here; write the value itself")
    return text


def _ticks(text: str) -> str:
    """A text that Airflow would refuse would take down the DAGs of all models, which share their files."""
    if _NOT_FIXED.search(text) or not croniter.is_valid(text):
        raise ValueError(f"{text} is not a cron expression; write five fields such as 0 2 * * *")
    try:
        croniter(text, datetime(2000, 1, 1, tzinfo=UTC)).get_next()
    except CroniterError as error:
        raise ValueError(f"{text} names a day that never comes") from error
    return text


_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def _is_closed_day(text: str) -> str:
    if text not in _WEEKDAYS:
        try:
            # 2024 has a 29 February.
            day = date.fromisoformat(text if len(text) > 5 else f"2024-{text}")
            if not day.isoformat().endswith(text):  # fromisoformat also reads 20261225 and 2026-W52-5
                raise ValueError(text)
        except ValueError:
            raise ValueError("write a day (2026-12-25), a day of each year (12-25) or a weekday (sunday)") from None
    return text


def matches_day(closed: str, day: date) -> bool:
    """Whether an entry of ``schedules.closed`` means this day."""
    return closed in (day.isoformat(), f"{day:%m-%d}", _WEEKDAYS[day.weekday()])


def sets_apart(delimiter: str) -> str:
    if not delimiter.isascii() or delimiter.isalnum() or delimiter in '"\r\n\0':
        raise ValueError("write one ASCII character that is not a letter, digit, quote or line break, such as ; or \\t")
    return delimiter


def _names_a_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # ZoneInfo looks for a file of this name
        raise ValueError(f"{name} is no time zone; write a name such as America/New_York or Europe/Berlin") from error
    return name


def _parse_duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or not re.match(_DURATION, value):
        raise ValueError("write a whole number and a unit: 90m, 2h, 28d or 12w")
    return timedelta(**{_UNITS[value[-1]]: int(value[:-1])})


def _write_duration(value: timedelta) -> str:
    minutes = int(value.total_seconds() // 60)
    for unit, size in (("d", 1440), ("h", 60)):
        if minutes % size == 0:
            return f"{minutes // size}{unit}"
    return f"{minutes}m"


Text = Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(_no_template)]
Identifier = Annotated[str, Field(pattern=IDENTIFIER)]
Sql = Text
Duration = Annotated[
    timedelta,
    BeforeValidator(_parse_duration),
    PlainSerializer(_write_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _DURATION, "examples": ["90m", "2h", "28d", "12w"]}),
]

#: Longer than any history: a training window of everything that is there.
ALL = timedelta(days=36_500)


def _parse_windows(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return ALL if value == "all" else _parse_duration(value)
    found = tuple(_parse_windows(one) for one in value)
    if not found or any(isinstance(one, tuple) for one in found):
        raise ValueError("write a length of time, all, or a list of them: [90d, 180d, all]")
    if len(set(found)) < len(found):
        raise ValueError("a length of time is named twice")
    return found


def write_window(value: timedelta) -> str:
    """A window as ``model.yaml`` names it."""
    return "all" if value == ALL else _write_duration(value)


def _write_windows(value: timedelta | tuple[timedelta, ...]) -> str | list[str]:
    return write_window(value) if isinstance(value, timedelta) else [write_window(one) for one in value]


_WINDOW = {"type": "string", "pattern": rf"^all$|{_DURATION}", "examples": ["90d", "all"]}
Windows = Annotated[
    timedelta | tuple[timedelta, ...],
    BeforeValidator(_parse_windows),
    PlainSerializer(_write_windows, return_type=str | list[str]),
    WithJsonSchema({"anyOf": [_WINDOW, {"type": "array", "items": _WINDOW, "minItems": 1, "uniqueItems": True}]}),
]
ClosedDay = Annotated[
    str,
    AfterValidator(_is_closed_day),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": rf"^(?:(?:[0-9]{{4}}-)?[0-9]{{2}}-[0-9]{{2}}|{'|'.join(_WEEKDAYS)})$",
            "examples": ["2026-12-25", "12-25", "sunday"],
        }
    ),
]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
CanaryShare = Annotated[float, Field(gt=0, le=0.5, allow_inf_nan=False)]
PositiveShare = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Function = Annotated[str, Field(pattern=FUNCTION)]
ConnectionId = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]
TimeZone = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_names_a_zone)]
Cron = Annotated[str, Field(pattern=r"^\S+( \S+){4}$"), AfterValidator(_ticks)]
