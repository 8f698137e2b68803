"""What cannot work whatever data come is found without data: each problem with its file, line and key, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.core.settings import PROJECT, Settings
from perennial.operations.inspection import find_faults, find_remarks, find_unreviewed_types
from perennial.spec.folder import ModelFolder, read_model

SPEC = """\
name: shop
owner: shop
description: what will an order bring?
task: regression
sources:
  orders: {files: "orders/%Y-%m-%d.csv"}
  outcomes: {files: "outcomes/%Y-%m-%d.parquet"}
tables:
  orders:
    source: orders
    where: status <> 'test'
    key: [id]
    event_time: placed
    known: placed
    columns:
      id: {type: string}
      placed: {type: timestamp}
      order: {type: float, nullable: true}
      amount: {type: float, sql: "replace(price, ',', '.')"}
  outcomes:
    source: outcomes
    key: [id]
    event_time: placed
    known: placed + INTERVAL 1 HOUR
    columns:
      id: {type: string, sql: order_id}
      placed: {type: timestamp, sql: "date_trunc('hour', moment)"}
      paid: {type: float, sql: "price.gross * rate"}
entity: {table: orders, as_of: placed}
features:
  numeric: [amount]
label: {table: outcomes, sql: paid}
candidates:
  mean: {estimator: prior, baseline: true}
  linear: {estimator: linear_regression}
drift: {min_rows: 50}
"""
QUERY = "SELECT id, amount\nFROM entities\n"


def folder_of(place: Path, *changes: tuple[str, str], query: str = QUERY) -> ModelFolder:
    text = SPEC
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    folder = place / "shop"
    folder.mkdir()
    (folder / "model.yaml").write_text(text)
    (folder / "features.sql").write_text(query)
    return read_model(folder)


def faults(place: Path, *changes: tuple[str, str], query: str = QUERY) -> list[str]:
    folder = folder_of(place, *changes, query=query)
    return [message.removeprefix(f"{folder.path}/") for message in find_faults(folder)]


def test_a_sound_folder_has_no_faults(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)

    assert (find_faults(folder), find_remarks(folder)) == ([], [])


@pytest.mark.parametrize("path", ["include/models/flight_delay", "tests/models/energy_load"])
def test_the_projects_own_models_have_no_faults(path: str) -> None:
    folder = read_model(PROJECT / path)

    assert (find_faults(folder), find_remarks(folder)) == ([], [])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("known: placed\n", "known: placed + INTERVAL\n", "14: tables.orders.known: no column INTERVAL; there are "),
        ("known: placed\n", "known: place\n", "14: tables.orders.known: no column place; there are id, placed, "),
        ("known: placed\n", "known: order\n", 'order is a word of SQL: write "order", in double quotes'),
        ("known: placed + INTERVAL 1 HOUR", "known: paid", "24: tables.outcomes.known: gives DOUBLE; it must give the mom"),
        ("<> 'test'", "<> 'test' AND", "11: tables.orders.where: this expression cannot be used here: Parser Error"),
        ("replace(price", "replce(price", "19: tables.orders.columns.amount.sql: this expression cannot be used here"),
        ("\"replace(price, ',', '.')\"", "price * 2", "19: tables.orders.columns.amount.sql: this expression"),
        ("\"replace(price, ',', '.')\"", "\"strptime(a, '%x')\"", "19: tables.orders.columns.amount.sql: the result has"),
        ("\"replace(price, ',', '.')\"", "random()", "19: tables.orders.columns.amount.sql: this expression"),
        ("price.gross * rate", "gross(price)", "28: tables.outcomes.columns.paid.sql: this expression cannot be used"),
        ("price.gross * rate", "price *", "28: tables.outcomes.columns.paid.sql: this expression cannot be used"),
        ("as_of: placed}", "as_of: placed + 1 DAY}", "29: entity.as_of: "),
        ("as_of: placed}", "as_of: amount}", "29: entity.as_of: gives DOUBLE; it must give the moment"),
        ("sql: paid}", "sql: payd}", '32: label.sql: Binder Error: Referenced column "payd" not found'),
        ("sql: paid}", "sql: placed}", "32: label.sql: gives TIMESTAMP WITH TIME ZONE, but regression requires"),
        ("orders/%Y-%m-%d", "orders/%y-%m-%d", "6: sources.orders.files: %y stands for no time; write %Y, %m"),
        ("orders/%Y-%m-%d", "orders/%Y/%q", "6: sources.orders.files: %q stands for no time; write %Y, %m"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_found_with_its_line_and_key(tmp_path: Path, old: str, new: str, told: str) -> None:
    [message] = faults(tmp_path, (old, new))

    assert message.startswith("model.yaml:")
    assert told in message


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELEC id FROM entities WHERE (", 'features.sql:1: Parser Error: syntax error at or near "SELEC"'),
        ("-- amounts\nSELECT id, amoumt\nFROM entities", "features.sql:2: Binder Error: Referenced column"),
        ("SELECT id, amount FROM entitiez", "features.sql:1: Catalog Error: Table with name entitiez does not exist!"),
        ("SELECT id FROM entities", "features.sql: it must give exactly id and the features of model.yaml: amount missing"),
        (
            "SELECT id, placed AS amount FROM entities",
            "features.sql: amount is a numeric feature in model.yaml, but it is TIMEST",
        ),
        ("SELECT 1; SELECT 2", "features.sql: it must be exactly one SELECT"),
    ],
)
def test_a_query_that_cannot_work_is_found_with_its_line(tmp_path: Path, query: str, told: str) -> None:
    [message] = faults(tmp_path, query=query)

    assert message.startswith(told)


def test_all_faults_are_told_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        ("orders/%Y-%m-%d", "orders/%y-%m-%d"),
        ("known: placed\n", "known: placed +\n"),
        ("replace(price", "replce(price"),
        ("as_of: placed}", "as_of: plcd}"),
        ("sql: paid}", "sql: payd}"),
        query="SELECT id, amoumt FROM entities",
    )

    assert [message.split(": ")[0] for message in found] == [
        "model.yaml:6", "model.yaml:14", "model.yaml:19", "model.yaml:29", "model.yaml:32", "features.sql:1",
    ]  # fmt: skip


@pytest.mark.parametrize("address", ["s3://bucket/a%20b/%Y.csv", "https://host/%C3%A9t%c3%a9/%Y-%m-%d.csv"])
def test_an_escaped_character_of_an_address_is_no_time_code(tmp_path: Path, address: str) -> None:
    assert faults(tmp_path, ("orders/%Y-%m-%d.csv", address)) == []


def test_fewer_rows_than_a_distance_requires_are_remarked_and_are_no_fault(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ("min_rows: 50", "min_rows: 20"))

    [remark] = find_remarks(folder)
    assert "model.yaml:36: drift.min_rows: is 20, but a distance requires 50 values on each side" in remark
    assert find_faults(folder) == []


def test_types_that_the_reviewer_of_the_deployment_does_not_allow_are_remarked(tmp_path: Path, settings: Settings) -> None:
    folder = folder_of(tmp_path, ("label:", "training: {trusted_types: [a.B, c.D]}\nlabel:"))

    assert find_unreviewed_types(folder, settings) == []
    [remark] = find_unreviewed_types(folder, settings.model_copy(update={"trusted_types": ("a",)}))
    assert "training.trusted_types.1: c.D is not among PERENNIAL_TRUSTED_TYPES" in remark
