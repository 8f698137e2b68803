"""From the body of a request to columns of features: three forms, each read strictly, without a lenient case.

Whatever is not exactly a value of its feature is refused with its row and field, since a wrong value would be predicted without
a word. All functions are pure. Messages are for the client, who has sent the values; nothing of a request goes to a log.

Neighbours: :mod:`perennial.serving.app` serves them; :mod:`perennial.serving.answers` makes the answers.

References:
    Open Inference Protocol, version 2 (REST). MLflow's documentation of the scoring server, ``/invocations``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from perennial.core.errors import NotAnswered
from perennial.core.text import visible
from perennial.model.artifacts import FeatureList

#: How a feature came.
GIVEN, MISSING = "given", "missing"
#: The data types of the Open Inference Protocol that a number may have, each with the least and greatest integer of it.
INTEGERS = {
    f"{sign}INT{bits}": (0 if sign else -(1 << (bits - 1)), (1 << (bits if sign else bits - 1)) - 1)
    for sign in ("", "U")
    for bits in (8, 16, 32, 64)
}
#: Largest integers that float64 holds exactly.
_EXACT = 1 << 53
#: Most columns that entities are described by.
_MOST_COLUMNS = 1_000


@dataclass(frozen=True)
class Rows:
    """Rows of features that a client asks for.

    Attributes:
        columns: by feature, a number, a text or None per row.
        count: number of rows.
        came: per row, how its features came: ``stored``, ``computed``, ``given``, ``missing``, each with names of features.
        origins: per row, what else is told of where its features come from; empty if nothing is.
        keys: a row per row, with the columns of the entity's key; None if entities are not known.
        event_times: per row, the event time of its entity, None where it is not known; empty if none is.
    """

    columns: Mapping[str, list[Any]]
    count: int
    came: Sequence[Mapping[str, Sequence[str]]]
    origins: Sequence[Mapping[str, Any]] = ()
    keys: pa.Table | None = None
    event_times: Sequence[datetime | None] = ()


@dataclass(frozen=True)
class Keys:
    """Entities that a client asks for.

    Attributes:
        table: a row per entity, with the columns of the key.
        overrides: per row, features that the client gives instead of the stored ones; None where it says that one is missing.
    """

    table: pa.Table
    overrides: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Entities:
    """Entities that a client describes, since they are in no table yet.

    Attributes:
        table: a row per entity, with columns of the entity's table as the client has written them.
        as_of: the moment that the features are of; None: the entity's own, but not later than now.
    """

    table: pa.Table
    as_of: datetime | None


@dataclass(frozen=True)
class _NoNumber:
    """``NaN`` or ``Infinity``, which Python's parser takes for JSON."""

    text: str


class _Doubled(dict[str, Any]):
    """An object in which a field stands twice."""

    field = ""


def read_json(body: bytes) -> Any:
    """The value of a body.

    Raises:
        NotAnswered: it is not JSON in UTF-8.
    """
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_NoNumber)
    except UnicodeDecodeError as error:
        raise NotAnswered(f"the body is not UTF-8 (byte {error.start})", status=400) from None
    except json.JSONDecodeError as error:
        raise NotAnswered(
            f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})", status=400
        ) from None
    except RecursionError:
        raise NotAnswered("the body is nested too deeply", status=400) from None
    except ValueError:  # Python reads no integer of more than 4,300 digits
        raise NotAnswered("the body has a number that is too long", status=400) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    doubled, seen = _Doubled(found), set[str]()
    for name, _ in pairs:
        if name in seen:
            doubled.field = name
            break
        seen.add(name)
    return doubled


# --- the three forms -------------------------------------------------------------------------------------------------


def from_question(body: bytes, takes: FeatureList, most: int, key: pa.Schema | None) -> Rows | Keys | Entities:
    """The plain form: ``{"features": [{"name": value, …}, …]}``; ``{"keys": […]}`` with or without features beside it; or
    ``{"entities": […]}`` with or without ``as_of``.

    Args:
        body: of the request.
        takes: the features of the version that answers.
        most: most rows of a request.
        key: the columns of an entity's key; None if the model cannot be asked by key or by entity.

    Raises:
        NotAnswered: the first thing that is wrong, with its row and field.
    """
    said = _fields(read_json(body), "the body", may=("features", "keys", "entities", "as_of"))
    if "entities" in said:
        return _described(said, most, asked=key is not None)
    if "as_of" in said:
        raise NotAnswered("as_of is for entities alone", field="as_of")
    if "keys" not in said:
        if "features" not in said:
            raise NotAnswered("the body lacks the field features" + (" or keys" if key is not None else ""), field="features")
        return _of_records(_list(said["features"], "features"), takes, most, "features")
    if key is None:
        raise NotAnswered("this model cannot be asked by key: its model.yaml has no `online`", field="keys")
    entities = _list(said["keys"], "keys")
    _bound(len(entities), most)
    columns: dict[str, list[Any]] = {name: [] for name in key.names}
    for row, entity in enumerate(entities):
        values = _fields(entity, f"row {row} of keys", needs=key.names, row=row)
        for part in key:
            columns[part.name].append(_key_value(values[part.name], part, row))
    table = pa.table({part.name: pa.array(columns[part.name], part.type) for part in key})
    if "features" not in said:
        return Keys(table, [{}] * len(entities))
    records = _list(said["features"], "features")
    if len(records) != len(entities):
        raise NotAnswered(f"there are {len(entities)} keys, and features for {len(records)} rows", field="features")
    return Keys(table, [_record(record, takes, row, "features") for row, record in enumerate(records)])


def from_push(body: bytes, most: int) -> list[dict[str, Any]]:
    """Rows of a table: ``{"rows": [{"column": value, …}, …]}``, with the values as they were written.

    Raises:
        NotAnswered: the first thing that is wrong, with its row and field.
    """
    rows = _list(_fields(read_json(body), "the body", needs=("rows",))["rows"], "rows")
    _bound(len(rows), most)
    return [
        {name: _described_value(value, name, row) for name, value in _in_row(one, row, "rows", "columns").items()}
        for row, one in enumerate(rows)
    ]


def _described(said: Mapping[str, Any], most: int, *, asked: bool) -> Entities:
    """Entities as their client describes them; :mod:`perennial.ingestion.given` casts and checks the values."""
    if other := next((name for name in ("keys", "features") if name in said), None):
        raise NotAnswered(f"the body has entities and {other}; ask for one of them", field=other)
    if not asked:
        raise NotAnswered("this model cannot be asked by entity: its model.yaml has no `online`", field="entities")
    entities = _list(said["entities"], "entities")
    _bound(len(entities), most)
    columns: dict[str, list[Any]] = {}
    for row, entity in enumerate(entities):
        for name, value in _in_row(entity, row, "entities", "columns").items():
            if name not in columns and len(columns) == _MOST_COLUMNS:
                raise NotAnswered(f"the entities have more than {_MOST_COLUMNS} different columns", row=row, field=_name(name))
            columns.setdefault(name, [None] * len(entities))[row] = _described_value(value, name, row)
    as_of = said.get("as_of")
    moment = None if as_of is None else _moment(as_of)
    return Entities(pa.table({name: _column(name, values) for name, values in columns.items()}), moment)


def _described_value(value: Any, name: str, row: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _category(value, name, row)
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return value
    if isinstance(value, float):
        return _number(value, name, row)
    raise NotAnswered(f"row {row}, {_shown(name)}: {_shown(value)} is no value of a column", row=row, field=_name(name))


def _column(name: str, values: Sequence[Any]) -> pa.Array:
    """A column of one type: an integer among numbers with a fraction is one of them."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        values = [None if value is None else _number(value, name, row) for row, value in enumerate(values)]
    elif len(kinds) > 1:
        raise NotAnswered(f"{_shown(name)} is a text in one row and something else in another", field=_name(name))
    return pa.array(values, pa.string() if not kinds else None)


def _moment(value: Any) -> datetime:
    if (moment := _zoned(value)) is not None and moment <= datetime.now(UTC):
        return moment
    raise NotAnswered(
        f"as_of: {_shown(value)} is no moment up to now; write a time with its zone, such as 2024-05-01T12:00:00Z",
        field="as_of",
    )


def _zoned(value: Any) -> datetime | None:
    """A time with its zone; None if it is something else."""
    if not (isinstance(value, str) and value.isascii()):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else None


def _key_value(value: Any, part: pa.Field, row: int) -> Any:
    """A value of an entity's key, of the type that its column has in the lake."""
    kind, where = part.type, f"row {row}, {part.name}"
    if pa.types.is_string(kind) and isinstance(value, str):
        return _category(value, part.name, row)
    if pa.types.is_boolean(kind) and isinstance(value, bool):
        return value
    if pa.types.is_integer(kind) and isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63:
        return value
    if pa.types.is_floating(kind) and isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, part.name, row)
    if pa.types.is_timestamp(kind) and (moment := _zoned(value)) is not None:
        return moment
    if pa.types.is_date(kind) and isinstance(value, str) and value.isascii():
        with suppress(ValueError, OverflowError):
            return date.fromisoformat(value)
    wanted = "a time with its zone, such as 2024-05-01T12:00:00Z" if pa.types.is_timestamp(kind) else str(kind)
    raise NotAnswered(f"{where}: {_shown(value)} is not a value of the key; write {wanted}", row=row, field=part.name)


def from_invocations(body: bytes, takes: FeatureList, most: int) -> Rows:
    """MLflow's form: ``dataframe_split``, ``dataframe_records`` or ``inputs`` (a list of values by column).

    Arguments and errors are those of :func:`from_question`.
    """
    forms = ("dataframe_split", "dataframe_records", "inputs")
    said = _fields(read_json(body), "the body", may=forms)
    if len(said) != 1:
        raise NotAnswered(f"the body must have exactly one of {', '.join(forms)}")
    [(form, value)] = said.items()
    if form == "dataframe_records":
        return _of_records(_list(value, form), takes, most, form)
    if form == "inputs":
        columns = _fields(value, form, may=takes.names, kind="feature")
        return _of_columns({name: _list(values, name) for name, values in columns.items()}, takes, most)
    split = _fields(value, form, needs=("columns", "data"), may=("index",))
    names, lines = _list(split["columns"], "columns"), _list(split["data"], "data")
    for name in names:
        if not isinstance(name, str) or name not in takes.names:
            raise NotAnswered(f"the model has no feature {_shown(name)}", field=_name(name))
        if names.count(name) > 1:
            raise NotAnswered(f"the column {name} stands twice", field=name)
    _bound(len(lines), most)
    for row, line in enumerate(lines):
        if not isinstance(line, list) or len(line) != len(names):
            raise NotAnswered(f"row {row} must be a list of {len(names)} values, one for each column", row=row)
    return _of_columns({name: [line[place] for line in lines] for place, name in enumerate(names)}, takes, most, len(lines))


@dataclass(frozen=True)
class Inference:
    """A request of the Open Inference Protocol.

    Attributes:
        rows: what is asked.
        id: the client's identifier; None if it gave none.
        outputs: the outputs that the client wants; None: all.
    """

    rows: Rows
    id: str | None
    outputs: Sequence[str] | None


def from_inference(body: bytes, takes: FeatureList, most: int, outputs: Sequence[str]) -> Inference:
    """The form of the Open Inference Protocol: a tensor per feature, of the shape ``[rows]`` or ``[rows, 1]``.

    Args:
        body, takes, most: see :func:`from_question`.
        outputs: the names of the outputs that there are.

    Raises:
        NotAnswered: see :func:`from_question`.
    """
    said = _fields(read_json(body), "the body", needs=("inputs",), may=("id", "outputs", "parameters"))
    _no_parameters(said, "the body")
    identifier = said.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise NotAnswered("id must be a text", field="id")
    wanted: list[str] | None = None
    if said.get("outputs") is not None:
        wanted = []
        for output in _list(said["outputs"], "outputs"):
            name = _fields(output, "an output", needs=("name",), may=("parameters",))["name"]
            _no_parameters(output, "an output")
            if name not in outputs:
                raise NotAnswered(f"the model has no output {_shown(name)}; it has {', '.join(outputs)}", field=_name(name))
            wanted.append(name)
    columns: dict[str, list[Any]] = {}
    for tensor in _list(said["inputs"], "inputs"):
        tensor = _fields(tensor, "an input", needs=("name", "shape", "datatype", "data"), may=("parameters",))
        name = tensor["name"]
        if not isinstance(name, str) or name not in takes.names:
            raise NotAnswered(f"the model has no feature {_shown(name)}", field=_name(name))
        if name in columns:
            raise NotAnswered(f"the input {name} stands twice", field=name)
        _no_parameters(tensor, f"the input {name}")
        columns[name] = _tensor(tensor, name, numeric=name in takes.numeric)
    return Inference(_of_columns(columns, takes, most), identifier, wanted)


def _tensor(tensor: Mapping[str, Any], name: str, *, numeric: bool) -> list[Any]:
    kind, shape, data = tensor["datatype"], tensor["shape"], _list(tensor["data"], name)
    kinds = ("FP64", *INTEGERS) if numeric else ("BYTES",)
    if kind not in kinds:
        raise NotAnswered(f"the input {name} has the datatype {_shown(kind)}; it must be {kinds[0]}", field=name)
    if any(isinstance(value, list) for value in data):
        if not all(isinstance(value, list) and len(value) == 1 for value in data):
            raise NotAnswered(f"the data of {name} must be one value per row", field=name)
        data = [value[0] for value in data]
    if shape not in ([len(data)], [len(data), 1]) or any(isinstance(part, bool) for part in shape):
        raise NotAnswered(f"the input {name} has {len(data)} values, so its shape must be [{len(data)}]", field=name)
    if kind in INTEGERS:
        low, high = INTEGERS[kind]
        for row, value in enumerate(data):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high):
                raise NotAnswered(f"row {row}, {name}: {_shown(value)} is no {kind}", row=row, field=name)
    return data


# --- parts of them ---------------------------------------------------------------------------------------------------


def _of_records(records: list[Any], takes: FeatureList, most: int, where: str) -> Rows:
    _bound(len(records), most)
    columns: dict[str, list[Any]] = {name: [] for name in takes.names}
    came: list[Mapping[str, Sequence[str]]] = []
    for row, record in enumerate(records):
        values = _record(record, takes, row, where)
        for name, column in columns.items():
            column.append(values.get(name))
        came.append(_how([name for name in columns if values.get(name) is None], takes, row))
    return Rows(columns, len(records), came)


def _record(record: Any, takes: FeatureList, row: int, where: str) -> dict[str, Any]:
    """The features that an object gives."""
    values: dict[str, Any] = {}
    for name, value in _in_row(record, row, where, "features").items():
        if name in takes.numeric:
            values[name] = None if value is None else _number(value, name, row)
        elif name in takes.categorical:
            values[name] = None if value is None else _category(value, name, row)
        else:
            raise NotAnswered(f"row {row}: the model has no feature {_shown(name)}", row=row, field=_name(name))
    return values


def _in_row(value: Any, row: int, where: str, of: str) -> dict[str, Any]:
    """A row that is an object, with each field once."""
    if not isinstance(value, dict):
        raise NotAnswered(f"row {row} of {where} must be an object of {of}", row=row)
    if isinstance(value, _Doubled):
        raise NotAnswered(f"row {row}: the field {_shown(value.field)} stands twice", row=row, field=_name(value.field))
    return value


def _of_columns(given: Mapping[str, list[Any]], takes: FeatureList, most: int, count: int | None = None) -> Rows:
    counts = {len(values) for values in given.values()} | ({count} if count is not None else set())
    if len(counts) > 1:
        raise NotAnswered(f"the columns have different numbers of rows: {', '.join(map(str, sorted(counts)))}")
    rows = next(iter(counts), 0)
    _bound(rows, most)
    columns: dict[str, list[Any]] = {}
    for name in takes.names:
        check = _number if name in takes.numeric else _category
        values = given.get(name)
        columns[name] = (
            [None] * rows
            if values is None
            else [None if value is None else check(value, name, row) for row, value in enumerate(values)]
        )
    came = [_how([name for name in columns if columns[name][row] is None], takes, row) for row in range(rows)]
    return Rows(columns, rows, came)


def _how(missing: list[str], takes: FeatureList, row: int) -> Mapping[str, Sequence[str]]:
    if len(missing) == len(takes.names):
        raise NotAnswered(f"row {row} has no feature at all", row=row)
    lacking = set(missing)
    given = [name for name in takes.names if name not in lacking] if lacking else takes.names
    return {GIVEN: given, MISSING: missing}


def _number(value: Any, name: str, row: int) -> float:
    """A number as float64, as the batch casts it."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise NotAnswered(f"row {row}, {name}: the number is too large", row=row, field=name)
    if isinstance(value, int) and not isinstance(value, bool):
        if -_EXACT <= value <= _EXACT:
            return float(value)
        raise NotAnswered(f"row {row}, {name}: the integer is too large to be held exactly", row=row, field=name)
    raise NotAnswered(f"row {row}, {name}: {_shown(value)} is not a number", row=row, field=name)


def _category(value: Any, name: str, row: int) -> str:
    """A category as text, as the batch casts it: an integer becomes its digits, a boolean ``true`` or ``false``."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NotAnswered(f"row {row}, {name}: the text has half a surrogate pair", row=row, field=name) from None
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
        return str(value)
    raise NotAnswered(f"row {row}, {name}: {_shown(value)} is not a category; write a text", row=row, field=name)


def _fields(
    value: Any,
    what: str,
    *,
    needs: Iterable[str] = (),
    may: Iterable[str] = (),
    kind: str = "field",
    row: int | None = None,
) -> dict[str, Any]:
    """The fields of an object that has all of ``needs`` and nothing beside them and ``may``."""
    if not isinstance(value, dict):
        raise NotAnswered(f"{what} must be an object", row=row)
    if isinstance(value, _Doubled):
        raise NotAnswered(f"{what}: the field {_shown(value.field)} stands twice", field=_name(value.field), row=row)
    needs = tuple(needs)
    for name in value:
        if name not in needs and name not in may:
            raise NotAnswered(f"{what} has the unknown {kind} {_shown(name)}", field=_name(name), row=row)
    for name in needs:
        if name not in value:
            raise NotAnswered(f"{what} lacks the field {name}", field=name, row=row)
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise NotAnswered(f"{what} must be a list", field=what)
    return value


def _bound(rows: int, most: int) -> None:
    if rows == 0:
        raise NotAnswered("the request has no row")
    if rows > most:
        raise NotAnswered(f"the request has {rows:,} rows; at most {most:,} are answered at once", status=413)


def _no_parameters(value: Mapping[str, Any], what: str) -> None:
    if value.get("parameters"):
        raise NotAnswered(f"{what} has parameters, and none are known here", field="parameters")


def _shown(value: Any) -> str:
    """A value of the client in the answer to it, bounded."""
    match value:
        case _NoNumber(text):
            return text
        case str():
            text = json.dumps(visible(value), ensure_ascii=False)
            return text if len(text) <= 60 else f"{text[:59]}…"
        case bool() | None:
            return json.dumps(value)
        case int() | float():
            return "a number" if isinstance(value, int) and abs(value) >= 1 << 64 else repr(value)
        case list():
            return "a list"
        case _:
            return "an object"


def _name(value: Any) -> str | None:
    return visible(value)[:60] if isinstance(value, str) else None
