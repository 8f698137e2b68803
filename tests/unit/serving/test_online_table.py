"""The online table: what is read is what was published, and one materialization is seen as a whole."""

from __future__ import annotations

import json
import math
import struct
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perennial.core.errors import ServingError, Superseded
from perennial.features.point_in_time import feature_schema
from perennial.serving.online_table import Made, OnlineTable, Part, place_of
from perennial.spec.folder import ModelFolder, read_model
from tests.unit.features.shop import SPEC, shop

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
NASTY = ["a,b", 'say "x"', "two\nlines", "", "\\N", "'; DROP TABLE orders; --", "ü漢", "null", "\\.", "\t", "[1]"]
#: One of each type that a column of the key may have.
KEY: dict[str, str] = {"a": "string", "b": "integer", "c": "float", "d": "boolean", "e": "timestamp", "f": "date"}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'predictions.db'}"
    return str(request.getfixturevalue("postgres"))


@pytest.fixture
def online(url: str) -> OnlineTable:
    return OnlineTable(url)


def folder_of(path: Path, **changes: Any) -> ModelFolder:
    return shop(path, **changes)


def features(folder: ModelFolder, names: list[str], amount: float | None = 1.0) -> pa.Table:
    rows = [{"order_id": name, "placed": NOW, "as_of": NOW - timedelta(hours=2), "amount": amount} for name in names]
    return pa.Table.from_pylist(rows, schema=feature_schema(folder.spec))


def part(rows: pa.Table, snapshot: int = 7) -> Part:
    return Part(rows, computed_at=NOW - timedelta(minutes=1), published_at=NOW - timedelta(hours=1), snapshot=snapshot)


def made(publication: int = 1, at: datetime = NOW) -> Made:
    return Made(publication, at, 0)


def asked(*names: str | None) -> pa.Table:
    return pa.table({"order_id": pa.array(names, pa.string())})


def test_a_row_is_found_by_its_key_with_all_that_is_said_of_it(tmp_path: Path, online: OnlineTable) -> None:
    folder = folder_of(tmp_path)
    assert online.replace(folder, [part(features(folder, NASTY)), part(features(folder, ["soon"], None), 8)], made()) == 12

    found = online.read(place_of(folder), asked("nobody", *NASTY, "soon", None, "soon"))

    assert found.places[0] is None
    assert found.places[-2] is None
    assert found.places[-1] == found.places[-3]
    assert len({place for place in found.places[1:12] if place is not None}) == len(NASTY)
    last = found.places[-1]
    assert last is not None
    assert (found.features[last], found.event_time[last]) == ({"amount": None}, NOW)
    assert (found.as_of[last], found.snapshot[last]) == (NOW - timedelta(hours=2), 8)
    assert (found.computed_at[last], found.published_at[last]) == (NOW - timedelta(minutes=1), NOW - timedelta(hours=1))


def test_before_anything_is_materialized_nothing_is_found(tmp_path: Path) -> None:
    online = OnlineTable(f"sqlite:///{tmp_path / 'new.db'}")
    folder = folder_of(tmp_path)

    assert online.read(place_of(folder), asked("a")).places == [None]
    assert online.made(folder) is None


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A model whose key has a column of each type."""
    columns = {name: {"type": kind} for name, kind in KEY.items()}
    orders = {**SPEC["tables"]["orders"], "key": list(KEY), "columns": {**SPEC["tables"]["orders"]["columns"], **columns}}
    returned = {**SPEC["tables"]["returned"], "columns": {**SPEC["tables"]["returned"]["columns"], **columns}}
    spec = {
        **SPEC,
        "tables": {**SPEC["tables"], "orders": orders, "returned": returned},
        "features": {"numeric": ["x", "y"], "categorical": ["s"]},
    }
    folder = tmp_path_factory.mktemp("wide") / "returns"
    folder.mkdir()
    (folder / "model.yaml").write_text(json.dumps(spec))
    (folder / "features.sql").write_text("SELECT * FROM entities")
    return read_model(folder)


# PostgreSQL stores no NUL in a text. Ingestion refuses it, and features have it only if a query makes one.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
moments = st.integers(-62_000_000_000_000_000, 253_000_000_000_000_000).map(
    lambda number: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=number)
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
keys = st.fixed_dictionaries(
    {
        "a": texts,
        "b": st.integers(-(2**63), 2**63 - 1),
        "c": numbers,
        "d": st.booleans(),
        "e": moments,
        "f": st.dates(),
    }
)
others = st.fixed_dictionaries(
    {"placed": moments, "as_of": moments, "x": st.none() | numbers, "y": st.none() | numbers, "s": st.none() | texts}
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(drawn=st.lists(st.tuples(keys, others), min_size=1, max_size=6))
def test_what_is_read_equals_what_was_published_to_the_last_bit(
    wide: ModelFolder, online: OnlineTable, drawn: list[tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    unique = {tuple(key.values()): {**key, **other} for key, other in drawn}
    schema = feature_schema(wide.spec)
    published = pa.Table.from_pylist(list(unique.values()), schema=schema)
    online.replace(wide, [part(published)], made())

    found = online.read(place_of(wide), published)

    assert None not in found.places
    places = [place for place in found.places if place is not None]
    assert [found.event_time[place] for place in places] == published[wide.spec.event_time].to_pylist()
    assert [found.as_of[place] for place in places] == published["as_of"].to_pylist()
    for name in wide.spec.features.names:
        got, wanted = [found.features[place][name] for place in places], published[name].to_pylist()
        assert got == wanted
        assert [bits(value) for value in got] == [bits(value) for value in wanted]


def bits(value: Any) -> bytes | None:
    return struct.pack("<d", value) if isinstance(value, float) else None


@pytest.mark.parametrize("value", [-0.0, 5e-324, -math.ulp(1.0), 1.7976931348623157e308, 2.0**53, 0.1 + 0.2])
def test_a_double_keeps_its_bits(tmp_path: Path, online: OnlineTable, value: float) -> None:
    folder = folder_of(tmp_path)
    online.replace(folder, [part(features(folder, ["a"], value))], made())

    assert bits(online.read(place_of(folder), asked("a")).features[0]["amount"]) == struct.pack("<d", value)


def test_a_date_of_a_key_is_found_as_a_date(wide: ModelFolder, online: OnlineTable) -> None:
    row = {
        "a": "x", "b": 1, "c": -0.0, "d": True, "e": NOW, "f": date(2024, 5, 1), "placed": NOW, "as_of": NOW,
        "x": 1.0, "y": None, "s": "",
    }  # fmt: skip
    published = pa.Table.from_pylist([row], schema=feature_schema(wide.spec))
    online.replace(wide, [part(published)], made())

    assert online.read(place_of(wide), pa.Table.from_pylist([{**row, "c": 0.0}], schema=published.schema)).places == [0]
    assert online.read(place_of(wide), pa.Table.from_pylist([{**row, "d": False}], schema=published.schema)).places == [None]


def test_rows_of_a_newer_materialization_replace_all_of_an_older_one(tmp_path: Path, online: OnlineTable) -> None:
    folder = folder_of(tmp_path)
    online.replace(folder, [part(features(folder, ["a", "b"]))], made(1))
    assert online.replace(folder, [part(features(folder, ["b", "c"], 2.0))], made(2)) == 2

    found = online.read(place_of(folder), asked("a", "b", "c"))

    assert found.places[0] is None
    assert found.features == [{"amount": 2.0}] * 2
    now = online.made(folder)
    assert now is not None
    assert (now.publication, now.rows) == (2, 2)


@pytest.mark.parametrize("late", [made(1), made(2, NOW - timedelta(minutes=5))])
def test_a_materialization_that_runs_late_replaces_nothing(tmp_path: Path, online: OnlineTable, late: Made) -> None:
    folder = folder_of(tmp_path)
    online.replace(folder, [part(features(folder, ["a"], 2.0))], made(2))

    assert online.replace(folder, [part(features(folder, ["a", "b"], 1.0))], late) is None

    assert online.read(place_of(folder), asked("a", "b")).features == [{"amount": 2.0}]


def test_a_run_that_may_no_longer_write_changes_nothing(tmp_path: Path, online: OnlineTable) -> None:
    folder = folder_of(tmp_path)
    online.replace(folder, [part(features(folder, ["a"]))], made(1))

    def refused() -> None:
        raise Superseded("an erasure has begun")

    with pytest.raises(Superseded):
        online.replace(folder, [part(features(folder, ["b"]))], made(2), check=refused)
    assert online.read(place_of(folder), asked("a", "b")).places == [0, None]


def test_rows_of_another_definition_of_features_are_not_found(tmp_path: Path, online: OnlineTable) -> None:
    one, other = folder_of(tmp_path / "1"), folder_of(tmp_path / "2", sql="SELECT order_id, 2 * amount AS amount FROM entities")
    online.replace(one, [part(features(one, ["a"], 1.0))], made(1))
    assert online.read(place_of(other), asked("a")).places == [None]

    online.replace(other, [part(features(other, ["a"], 2.0))], made(1))
    found = [online.read(place_of(folder), asked("a")).features for folder in (one, other)]
    assert found == [[{"amount": 1.0}], [{"amount": 2.0}]]

    assert online.keep_only("returns", [other]) == 1
    assert online.read(place_of(one), asked("a")).places == [None]
    assert online.read(place_of(other), asked("a")).places == [0]


def test_a_row_twice_is_refused_and_nothing_is_changed(tmp_path: Path, online: OnlineTable) -> None:
    folder = folder_of(tmp_path)
    online.replace(folder, [part(features(folder, ["a"]))], made(1))

    with pytest.raises(ServingError, match="refused the online table"):
        online.replace(folder, [part(features(folder, ["b", "b"]))], made(2))
    assert online.read(place_of(folder), asked("a", "b")).places == [0, None]


def test_an_erased_entity_is_gone(tmp_path: Path, online: OnlineTable) -> None:
    folder = folder_of(tmp_path)
    online.replace(folder, [part(features(folder, ["a", "b"]))], made())

    assert online.erase("returns", [("a",), ("nobody",)], dry_run=True) == 1
    assert online.read(place_of(folder), asked("a")).places == [0]
    assert online.erase("returns", [("a",), ("nobody",)]) == 1
    assert online.read(place_of(folder), asked("a", "b")).places == [None, 0]


def test_rows_of_events_before_a_moment_are_removed(tmp_path: Path, online: OnlineTable) -> None:
    folder = folder_of(tmp_path)
    online.replace(folder, [part(features(folder, ["a"]))], made())

    assert online.remove_before("returns", NOW) == 0
    assert online.remove_before("returns", NOW + timedelta(seconds=1)) == 1
    assert online.read(place_of(folder), asked("a")).places == [None]


def test_rows_of_publications_that_a_restored_ledger_does_not_know_are_removed(tmp_path: Path, online: OnlineTable) -> None:
    folder = folder_of(tmp_path)
    online.replace(folder, [part(features(folder, ["a"]))], made(5))

    assert online.forget_newer("returns", 5) == 0
    assert online.forget_newer("returns", 4) == 1
    assert online.newest_publication("returns") is None
    assert online.replace(folder, [part(features(folder, ["b"]))], made(4)) == 1


def test_a_thread_goes_on_after_its_connection_was_cut(tmp_path: Path, online: OnlineTable, url: str) -> None:
    folder = folder_of(tmp_path)
    online.replace(folder, [part(features(folder, ["a"]))], made())
    assert online.read(place_of(folder), asked("a")).places == [0]
    if url.startswith("postgresql"):
        with sa.create_engine(url).begin() as connection:
            others = "pid <> pg_backend_pid() AND datname = current_database()"
            connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    else:
        online._connection().driver_connection.close()

    assert online.read(place_of(folder), asked("a")).places == [0]


def test_a_database_that_does_not_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("this is no database, and it is longer than the header of one; " * 4)
    online = OnlineTable(f"sqlite:///{tmp_path / 'no.db'}")

    with pytest.raises(ServingError, match=r"returns: the predictions database sqlite:.* does not answer"):
        online.read(place_of(folder_of(tmp_path)), asked("a"))
