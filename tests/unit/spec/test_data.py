"""What a source, a table or a column says does not contradict itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.spec.folder import read_model
from tests.unit.spec.late import GOOD, changed, problems, read

CONTRADICTIONS = {
    "a source of no kind": (
        changed('{files: "trips/%Y-%m-%d.csv"}', '{delimiter: ";"}'),
        ["model.yaml:6: sources.trips: give exactly one of files, sql, python and pushed"],
    ),
    "a source of two kinds, each wrong": (
        changed('files: "trips/%Y-%m-%d.csv"', 'files: "/trips.txt", sql: "SELECT 1"'),
        [
            "model.yaml:6: sources.trips: give exactly one of files, sql, python and pushed",
            "model.yaml:6: sources.trips: sql is given alone; give both sql and connection",
            "model.yaml:6: sources.trips.files: must end in .csv, .tsv, .jsonl or .ndjson, also with .gz or .zst after it, "
            "or in .parquet",
            "model.yaml:6: sources.trips.files: must stay below the data folder; write no leading / and no ..",
            "model.yaml:6: sources.trips.sql: must bind :start and :end; otherwise every run would read everything",
        ],
    ),
    "one character for groups and fractions": (
        changed('%d.csv"}', '%d.csv", decimal: ",", thousands: ","}'),
        ["model.yaml:6: sources.trips.thousands: is ,, as decimal is; a number would have two meanings"],
    ),
    "files that leave the data folder": (
        changed("trips/%Y", "../trips/%Y"),
        ["model.yaml:6: sources.trips.files: must stay below the data folder; write no leading / and no .."],
    ),
    "files that leave the data folder later": (
        changed("trips/%Y", "trips/../../%Y"),
        ["model.yaml:6: sources.trips.files: must stay below the data folder; write no leading / and no .."],
    ),
    "checks that do not fit the type": (
        changed("id: {type: string}", "id: {type: string, min: 3, max: 2, matches: '('}"),
        [
            "model.yaml:14: tables.trips.columns.id: min and max are for integer and float columns, the type of this one is "
            "string; remove them",
            "model.yaml:14: tables.trips.columns.id: min 3 is above max 2",
            "model.yaml:14: tables.trips.columns.id.matches: is not a regular expression: missing ), unterminated subpattern "
            "at position 0",
        ],
    ),
    "values of a number": (
        changed("type: integer, min: 0", "type: integer, values: ['1']"),
        [
            "model.yaml:16: tables.trips.columns.minutes: values and matches are for string columns, the type of this one is "
            "integer; remove them"
        ],
    ),
    "a column read in two ways": (
        changed("id: {type: string}", "id: {type: string, sql: upper(key), from: [key, Key]}"),
        [
            "model.yaml:14: tables.trips.columns.id.from: sql is given too; "
            "write the choice between columns as sql, or remove sql",
            "model.yaml:14: tables.trips.columns.id.from: names a column twice, and upper and lower case do not count: key",
        ],
    ),
    "an event time that is no moment": (
        changed("left_at: {type: timestamp}", "left_at: {type: date}"),
        ["model.yaml:11: tables.trips.event_time: column left_at must be a timestamp and not nullable"],
    ),
    "checks over time of a table without": (
        changed("entity:", "  lines:\n    source: trips\n    key: [id]\n    known: always\n    columns: {id: {type: string}}\n"
                "    checks: {freshness: {within: 1d}, volume: {}, rows: {min: 9, max: 3}}\nentity:"),
        [
            "model.yaml:22: tables.lines.checks.freshness: requires an event_time; name the table's, or remove this check",
            "model.yaml:22: tables.lines.checks.volume: requires an event_time; name the table's, or remove this check",
            "model.yaml:22: tables.lines.checks.rows: min 9 is above max 3",
        ],
    ),
    "a feature named twice": (
        changed("numeric: [distance]", "numeric: [distance]\n  categorical: [distance]"),
        ["model.yaml:18: features: named more than once: distance"],
    ),
    "no feature": (
        changed("numeric: [distance]", "numeric: []"),
        ["model.yaml:18: features: name at least one numeric or categorical feature"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_refused_with_what_to_write(case: str, tmp_path: Path) -> None:
    text, messages = CONTRADICTIONS[case]

    assert problems(tmp_path, text) == messages


def test_names_of_a_column_are_kept_with_the_folder(tmp_path: Path) -> None:
    text = changed("id: {type: string}", "id: {type: string, from: [key, number]}")
    folder = read(tmp_path, text)
    copy = tmp_path / "copy" / "late"
    copy.mkdir(parents=True)
    for name, content in folder.files.items():
        (copy / name).write_text(content)

    assert read_model(copy).spec == folder.spec
    assert folder.spec.tables["trips"].columns["id"].alternatives == ["key", "number"]


def test_a_broken_field_hides_no_contradiction_of_the_others(tmp_path: Path) -> None:
    text = GOOD.replace("type: integer, min: 0,", "type: integer, min: 4, max: 3, sql: 7,")

    assert problems(tmp_path, text) == [
        "model.yaml:16: tables.trips.columns.minutes.sql: must be a text, this is 7; put it in quotes",
        "model.yaml:16: tables.trips.columns.minutes: min 4 is above max 3",
    ]


def test_a_contradiction_that_rests_on_a_broken_field_is_not_reported(tmp_path: Path) -> None:
    text = GOOD.replace("type: integer, min: 0,", "type: number, min: 0,")

    [message] = problems(tmp_path, text)

    assert message.startswith('model.yaml:16: tables.trips.columns.minutes.type: "number" is none of')


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/secret.csv", "local:///etc/secret.csv", "FILE:///etc/secret.csv", "dir://etc/secret.csv",
        "zip://secret.csv::file:///tmp/secrets.zip/a.csv", "simplecache::file:///etc/secret.csv",
        "s3::file:///etc/secret.csv", "s3://bucket/a::file:///etc/secret.csv", "generic://file:///etc/secret.csv",
        "reference://a::file:///etc/secret.csv", "git://srv/models:main@secret.csv", "asynclocal:///etc/secret.csv",
    ],
)  # fmt: skip
def test_an_address_that_can_read_files_of_this_machine_is_refused(address: str, tmp_path: Path) -> None:
    [problem] = problems(tmp_path, changed("trips/%Y-%m-%d.csv", address))

    assert "sources.trips.files: must stay below the data folder, or begin with the address of a store" in problem


@pytest.mark.parametrize("address", ["s3://bucket/%Y-%m-%d.csv", "https://host/a%20b/%Y.csv", "gs://bucket/day=%Y-%m-%d/*.csv"])
def test_the_address_of_a_store_is_taken(address: str, tmp_path: Path) -> None:
    assert read(tmp_path, changed("trips/%Y-%m-%d.csv", address)).spec.sources["trips"].files == address
