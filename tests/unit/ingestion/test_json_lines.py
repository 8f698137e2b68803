"""JSON lines become rows of texts, or a fault with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.landing import GOOD, Ingested, ingest, rejects, trips, write

SOURCE = {"files": "trips/%Y-%m-%d.jsonl"}
FILE = "trips/2013-04-01.jsonl"
ONE: dict[str, Any] = {"id": "a", "begun": "2013-04-01T06:00:00Z", "place": "EWR", "n": 1, "x": 0.5}


def lines(*objects: dict[str, Any] | str) -> str:
    return "".join(
        f"{each if isinstance(each, str) else json.dumps({**ONE, **each}, ensure_ascii=False)}\n" for each in objects
    )


def read(path: Path, *objects: dict[str, Any] | str, **model: Any) -> Ingested:
    write(path, lines(*objects), FILE)
    return ingest(trips(path, source=SOURCE, **{"table": {"tolerance": 1.0}, **model}), path)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_object_is_a_row(compressed: bool, tmp_path: Path) -> None:
    content = lines({}).encode()
    write(tmp_path, gzip.compress(content) if compressed else content, f"{FILE}.gz" if compressed else FILE)

    done = ingest(trips(tmp_path, source={"files": SOURCE["files"] + (".gz" if compressed else "")}), tmp_path)

    assert done.published == [GOOD]
    assert done.landed.notices == []


def test_null_and_an_absent_key_are_missing_values(tmp_path: Path) -> None:
    absent = json.dumps({"id": "b", "begun": "2013-04-01T06:00:00Z", "n": 2})

    done = read(tmp_path, {"n": None}, absent)

    assert done.column("n") == [None]
    assert done.faults == {f"{FILE}:2": ["place: missing"]}


VALUES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an integer with all its digits": ({"n": 9007199254740993}, {"n": 9007199254740993}),
    "a number in a text": ({"n": "7"}, {"n": 7}),
    "a number for a text": ({"place": 7}, {"place": "7"}),
    "a truth": ({"flag": True}, {"flag": True}),
    "an object": ({"place": {"a": [1, "x"]}}, {"place": '{"a":[1,"x"]}'}),
    "an empty text": ({"place": ""}, {"place": ""}),
    "an escape": ({"place": "S\\u00e3o"}, {"place": "S\\u00e3o"}),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_value_becomes_the_columns_type(case: str, tmp_path: Path) -> None:
    given, kept = VALUES[case]

    done = read(tmp_path, given, columns={"flag": {"type": "boolean", "nullable": True}})

    assert {name: done.published[0][name] for name in kept} == kept


FAULTS = {
    "not JSON": ("{'id': 1}", "this line is not valid JSON"),
    "cut": ('{"id": "b", "beg', "this line is not valid JSON"),
    "not an object": ("[1, 2]", "this line is JSON, but not an object"),
    "a key twice": ('{"id": "b", "id": "c"}', "the object names a key twice"),
    "a long number for a text": (
        lines({"place": 0}).strip().replace('"place": 0', '"place": 123456789012345678901234567890'),
        "place: a number with a fraction, or beyond 64 bits, has no single spelling; deliver it as a text",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_line_that_is_no_row_is_quarantined_with_its_line(case: str, tmp_path: Path) -> None:
    line, reason = FAULTS[case]

    done = read(tmp_path, {}, "", line)

    assert done.column("id") == ["a"]
    assert done.faults == {f"{FILE}:3": [reason]}


def test_keys_may_come_and_go_between_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perennial.ingestion.json_lines.CHUNK", 256)
    objects = [{"id": f"r{n}", **({"more": n} if n % 50 > 25 else {})} for n in range(200)]

    done = read(tmp_path, *objects, columns={"more": {"type": "integer", "nullable": True}})

    assert done.column("more") == [n if n % 50 > 25 else None for n in range(200)]
    assert done.quarantined == []
    assert done.result.warnings == []


def test_a_column_that_no_line_has_is_named(tmp_path: Path) -> None:
    write(tmp_path, '{"id": "a", "begun": "2013-04-01T06:00:00Z", "plaice": "EWR"}\n', FILE)

    rejects(tmp_path, f"{FILE}: there is no column place; there are: ", source=SOURCE)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_lines_has_no_rows_and_the_check_of_rows_judges_it(content: str, tmp_path: Path) -> None:
    columns = {
        "n": {"type": "integer", "sql": "round(amount::DOUBLE)"},
        "place": {"type": "string", "from": ["place", "airport"]},
    }
    write(tmp_path, content, FILE)

    refused = ingest(trips(tmp_path, source=SOURCE, columns=columns), tmp_path)
    accepted = ingest(trips(tmp_path, source=SOURCE, columns=columns, table={"checks": {"rows": {"min": 0}}}), tmp_path)

    assert refused.result.reasons == [
        "2013-04-01: 0 rows arrived; at least 1 are required (schedules.closed in model.yaml names days without data)"
    ]
    assert not accepted.result.refused
    assert accepted.published == []


def test_a_number_keeps_its_value_where_texts_have_a_decimal_comma(tmp_path: Path) -> None:
    write(tmp_path, lines({"x": 1.234}, {"id": "b", "x": "1.234,5"}), FILE)

    done = ingest(trips(tmp_path, source={**SOURCE, "decimal": ",", "thousands": "."}), tmp_path)

    assert done.column("x") == [1.234, 1234.5]


def test_keys_that_differ_only_in_case_are_rejected(tmp_path: Path) -> None:
    write(tmp_path, lines({}, {"id": "b", "N": 9}), FILE)

    rejects(tmp_path, f"{FILE}: 'N' and 'n' differ only in case; rename one of them", source=SOURCE)


@pytest.mark.parametrize("content", ["[]\n"])
def test_a_file_without_an_object_is_rejected(content: str, tmp_path: Path) -> None:
    write(tmp_path, content, FILE)

    rejects(tmp_path, f"{FILE}: has no JSON object; write one object per line", source=SOURCE)


def test_another_encoding_is_rejected_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, lines({}).encode() + lines({"place": "São"}).encode("latin-1"), FILE)

    rejects(tmp_path, f"{FILE}:2: not utf-8; JSON lines are always in utf-8", source=SOURCE)
