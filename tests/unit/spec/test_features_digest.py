"""Only what changes features counts as another making of them, and what earlier releases made stays valid."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.spec.data import Column, Entity, Features, Source, Table
from perennial.spec.features_digest import feature_tables, features_digest, first_features_digest
from perennial.spec.model import ModelSpec
from perennial.spec.types import ColumnType
from tests.unit.features.shop import SPEC

QUERY = "SELECT order_id, amount FROM entities LEFT JOIN customers USING (customer)"


def digest(said: dict[str, Any], query: str = QUERY) -> str:
    return features_digest(ModelSpec.model_validate(said), query)


Change: TypeAlias = Callable[[dict[str, Any]], object]


def changed(change: Change) -> dict[str, Any]:
    said = copy.deepcopy(SPEC)
    change(said)
    return said


def orders(**fields: Any) -> Change:
    return lambda said: said["tables"]["orders"].update(fields)


def column(name: str, table: str = "orders", **fields: Any) -> Change:
    return lambda said: said["tables"][table]["columns"].setdefault(name, {"type": "string"}).update(fields)


def source(**fields: Any) -> Change:
    return lambda said: said["sources"]["shop"].update(fields)


COUNT: dict[str, Change] = {
    "the where of a table": orders(where="amount <> ''"),
    "the key of a table": lambda said: said["tables"]["customers"].update(key=["customer", "city"]),
    "what a second row of a key is": orders(duplicates="refuse"),
    "when a row is known": orders(known="placed + INTERVAL 1 HOUR"),
    "how a value is made": column("amount", sql="replace(amount, ',', '.')"),
    "the type of a column": column("city", "customers", type="integer"),
    "a new column": column("channel", nullable=True),
    "the zone of the source's clock": source(time_zone="America/New_York"),
    "how numbers are written": source(decimal=",", thousands="."),
    "texts that mean a missing value": source(null_values=["", "NA"]),
    "the moment of a prediction": lambda said: said["entity"].update(as_of="placed + INTERVAL 1 MINUTE"),
    "the features": lambda said: said["features"].update(categorical=["city"]),
    "how far a feature looks back": lambda said: said["features"].update(lookback="3d"),
}
RENAMED: dict[str, Any] = {"from": ["town", "city"]}
DO_NOT_COUNT: dict[str, Change] = {
    "another name of a source's column": column("city", "customers", **RENAMED),
    "rows a day": orders(checks={"rows": {"min": 0}}),
    "a check on volume": orders(checks={"volume": {"tolerance": 0.9}}),
    "how late a row may be": orders(late="3d"),
    "what becomes of a replaced file": orders(replaced="read"),
    "the tolerance": orders(tolerance=0.5),
    "bounds of a value": column("amount", min=0, max=100, severity="warning"),
    "values that are allowed": column("customer", values=["a", "b"]),
    "a pattern of values": column("customer", matches="^[a-z]$"),
    "names that a column has in its source": lambda said: said["tables"]["orders"]["columns"]["customer"].update(
        {"from": ["customer", "buyer"]}
    ),
    "whether a value may be missing": column("customer", nullable=True),
    "the folder that files land in": source(files="elsewhere/%Y-%m-%d.csv"),
    "how a file is written": source(delimiter=";", encoding="latin-1"),
    "a table that features.sql does not name": column("note", "returned"),
    "the label": lambda said: said["label"].update(sql="reason > 1"),
    "the gates": lambda said: said.update(gates={"min_rows": 10}),
    "the candidates": lambda said: said["candidates"].update(line={"estimator": "logistic_regression"}),
    "drift": lambda said: said.update(drift={"min_rows": 60}),
    "the owner": lambda said: said.update(owner="somebody"),
}


@pytest.mark.parametrize("change", COUNT)
def test_what_changes_features_counts(change: str) -> None:
    assert digest(changed(COUNT[change])) != digest(SPEC)


def test_another_query_counts() -> None:
    assert digest(SPEC, QUERY + " -- otherwise") != digest(SPEC)


@pytest.mark.parametrize("change", DO_NOT_COUNT)
def test_what_changes_no_feature_does_not_count(change: str) -> None:
    assert digest(changed(DO_NOT_COUNT[change])) == digest(SPEC)


@given(st.sets(st.sampled_from(sorted(COUNT))), st.sets(st.sampled_from(sorted(DO_NOT_COUNT))))
def test_changes_together_count_if_one_of_them_does(counting: set[str], others: set[str]) -> None:
    """In any number, whatever else is changed with them."""

    def all_of_them(said: dict[str, Any]) -> None:
        for name in sorted(counting):
            COUNT[name](said)
        for name in sorted(others):
            DO_NOT_COUNT[name](said)

    def those_that_count(said: dict[str, Any]) -> None:
        for name in sorted(counting):
            COUNT[name](said)

    assert (digest(changed(all_of_them)) == digest(SPEC)) is not bool(counting)
    assert digest(changed(all_of_them)) == digest(changed(those_that_count))


@given(st.permutations(sorted(SPEC["tables"])), st.permutations(sorted(SPEC["tables"]["orders"]["columns"])))
def test_the_order_of_keys_does_not_count(tables: list[str], columns: list[str]) -> None:
    said = copy.deepcopy(SPEC)
    said["tables"] = {name: said["tables"][name] for name in tables}
    said["tables"]["orders"]["columns"] = {name: said["tables"]["orders"]["columns"][name] for name in columns}

    assert digest(said) == digest(SPEC)


#: Each field of these sections, and whether it counts. A new field belongs here too.
FIELDS: dict[type[Any], dict[str, bool]] = {
    Source: {
        "files": False, "sql": True, "connection": False, "python": True, "null_values": True, "delimiter": False,
        "encoding": False, "time_zone": True, "decimal": True, "thousands": True, "pushed": False,
    },
    Table: {
        "source": False, "where": True, "key": True, "event_time": True, "known": True, "columns": True, "checks": False,
        "tolerance": False, "late": False, "duplicates": True, "replaced": False,
    },
    Column: {
        "type": True, "sql": True, "alternatives": False, "nullable": False, "min": False, "max": False, "values": False,
        "matches": False, "severity": False,
    },
    Entity: {"table": True, "as_of": True},
    Features: {"numeric": True, "categorical": True, "lookback": True},
}  # fmt: skip


@pytest.mark.parametrize("section", FIELDS, ids=lambda section: section.__name__)
def test_of_every_field_it_is_decided_whether_it_counts(section: type[Any]) -> None:
    assert set(FIELDS[section]) == set(section.model_fields)


def test_tables_of_features_are_the_entitys_and_those_that_the_query_names() -> None:
    assert feature_tables(ModelSpec.model_validate(SPEC), QUERY) == ["orders", "customers"]


def test_the_digest_of_an_earlier_release_is_the_one_it_gave() -> None:
    """The figure is the release's own. It must not follow fields that were added since."""
    said = ModelSpec.model_validate(SPEC)

    assert first_features_digest(said, QUERY) == FIRST


FIRST = "02f79de59e33ae6d1389323d19351b228d9bc15a11a0b18fc254894d436d4e00"


@pytest.mark.parametrize("kind", get_args(ColumnType))
def test_each_type_is_another_making(kind: str) -> None:
    same = digest(changed(column("note", type="string")))

    assert (digest(changed(column("note", type=kind))) == same) is (kind == "string")
