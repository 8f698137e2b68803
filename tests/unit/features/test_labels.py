"""Labels are those that were known by a moment."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.core.errors import SpecError
from perennial.core.intervals import Interval
from perennial.features.labels import read_labels
from perennial.lake.publish import Lake
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder
from tests.unit.features.shop import FIRST, SECOND, SPEC, april, hours, ingest, ingest_tables, shop, table, tables_of


def labels(folder: ModelFolder, lake: Lake, ledger: Ledger, as_of: datetime, interval: Interval = FIRST) -> pa.Table:
    newest = ledger.published("returns", "tables")
    assert newest is not None
    return read_labels(folder, lake, newest.snapshots, interval, as_of=as_of)


def test_labels_are_those_known_by_then_in_order(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    ingest(lake, ledger, folder, FIRST)
    ingest(lake, ledger, folder, SECOND)

    found = labels(folder, lake, ledger, hours(18))

    moment = pa.timestamp("us", "UTC")
    wanted = [("order_id", pa.string()), ("placed", moment), ("label", pa.bool_()), ("label_known_at", moment)]
    assert found.schema == pa.schema(wanted)
    assert found.to_pylist() == [
        {"order_id": "o1", "placed": hours(1), "label": False, "label_known_at": hours(6)},
        {"order_id": "o7", "placed": hours(7), "label": True, "label_known_at": hours(12)},
        {"order_id": "o13", "placed": hours(13), "label": False, "label_known_at": hours(18)},
    ]


def test_labels_with_a_time_of_their_own_are_found_wherever_it_lies(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    returned = {**SPEC["tables"]["returned"], "event_time": "sent_back"}
    folder = shop(tmp_path, tables={**SPEC["tables"], "returned": returned})
    tables = tables_of(folder, [1, 22])
    ingest_tables(lake, ledger, folder, april(1, 2), tables)

    assert labels(folder, lake, ledger, hours(48)).column("order_id").to_pylist() == ["o1", "o22"]


@pytest.mark.parametrize(
    ("task", "sql", "wanted"),
    [
        ("binary_classification", "reason", [False, True, False, True]),
        ("multiclass_classification", "reason", ["0", "1", "0", "1"]),
        ("multiclass_classification", "CASE WHEN reason > 0 THEN 'worn' END", ["worn", "worn"]),
        ("regression", "reason * 1.5", [0.0, 1.5, 0.0, 1.5]),
    ],
)
def test_labels_are_what_the_task_wants(
    tmp_path: Path, lake: Lake, ledger: Ledger, task: str, sql: str, wanted: list[Any]
) -> None:
    folder = shop(tmp_path, task=task, label={"table": "returned", "sql": sql})
    ingest(lake, ledger, folder, FIRST)

    assert labels(folder, lake, ledger, hours(48)).column("label").to_pylist() == wanted


@pytest.mark.parametrize(
    ("task", "sql", "message"),
    [
        ("binary_classification", "reasn > 0", r"label\.sql: .*reasn"),
        ("binary_classification", "reason + 3", r"label\.sql: gives 3, but binary_classification requires true or false"),
        ("binary_classification", "order_id", r"label\.sql: gives VARCHAR, but binary_classification requires true or false"),
        ("regression", "order_id", r"label\.sql: gives VARCHAR, but regression requires a number"),
        ("multiclass_classification", "reason * 0.5", r"label\.sql: gives DECIMAL.* requires a class as text"),
    ],
)
def test_a_wrong_label_is_an_error_that_names_it(
    tmp_path: Path, lake: Lake, ledger: Ledger, task: str, sql: str, message: str
) -> None:
    folder = shop(tmp_path, task=task, label={"table": "returned", "sql": sql})
    ingest(lake, ledger, folder, FIRST)

    with pytest.raises(SpecError, match=message):
        labels(folder, lake, ledger, hours(48))


def test_two_labels_of_an_entity_are_an_error(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    returned = {**SPEC["tables"]["returned"], "key": ["order_id", "sent_back"]}
    folder = shop(tmp_path, tables={**SPEC["tables"], "returned": returned})
    tables = tables_of(folder, [1, 2])
    other = {"order_id": "o1", "placed": hours(1), "sent_back": hours(9), "reason": 1}
    tables["returned"] = pa.concat_tables([tables["returned"], table(folder, "returned", [other], [hours(9)])])
    ingest_tables(lake, ledger, folder, FIRST, tables)

    with pytest.raises(SpecError, match=r"1 rows of returned in 2013-04-01 repeat a label"):
        labels(folder, lake, ledger, hours(48))


@pytest.mark.parametrize("own_time", [False, True])
def test_a_corrected_label_is_the_one_known_last_by_then(tmp_path: Path, lake: Lake, ledger: Ledger, own_time: bool) -> None:
    returned = {**SPEC["tables"]["returned"], **({"event_time": "sent_back"} if own_time else {})}
    folder = shop(tmp_path, tables={**SPEC["tables"], "returned": returned})
    tables = tables_of(folder, [1, 2])
    corrected = {"order_id": "o1", "placed": hours(1), "sent_back": hours(30), "reason": 1}
    tables["returned"] = pa.concat_tables([tables["returned"], table(folder, "returned", [corrected], [hours(30)])])
    ingest_tables(lake, ledger, folder, april(1, 3), tables)

    assert labels(folder, lake, ledger, hours(29)).column("label").to_pylist() == [False, True]
    assert labels(folder, lake, ledger, hours(30)).column("label").to_pylist() == [True, True]


def test_of_labels_known_at_once_the_one_published_last_counts(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    returned = {**SPEC["tables"]["returned"], "event_time": "sent_back"}
    folder = shop(tmp_path, tables={**SPEC["tables"], "returned": returned})
    tables = tables_of(folder, [1])
    again = {"order_id": "o1", "placed": hours(1), "sent_back": hours(30), "reason": 1}
    tables["returned"] = pa.concat_tables([table(folder, "returned", [again], [hours(6)]), tables["returned"]])
    ingest_tables(lake, ledger, folder, april(1, 3), tables)

    assert labels(folder, lake, ledger, hours(48)).column("label").to_pylist() == [True]
