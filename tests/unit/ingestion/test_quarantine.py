"""Great Expectations judges each value, and each row that fails goes to quarantine with its reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
import pytest

from perennial.ingestion import quarantine
from tests.unit.landing import (
    DAY,
    FILE,
    GOOD,
    HEADER,
    Ingested,
    checked,
    ingest,
    row,
    trips,
    write,
)

PLAIN_NUMBER = "is not a plain whole number"
COMMA = "if the comma is its decimal sign, write decimal: ',' for the source"
HIDDEN = "holds a character that is invisible, changes the direction of the text, or controls a terminal"
NO_TIME = "is not an existing time in ISO 8601, such as 2013-04-01T06:00:00Z"

QUARANTINED: dict[str, tuple[str, str]] = {
    "short row": ("b,2013-04-01T06:00:00Z,EWR\n", "the row has 3 fields, but the header has 5"),
    "long row": (row("b", x="0.5,7"), "the row has 6 fields, but the header has 5"),
    "last line cut": ("b,2013-04-01T06:0", "the row has 2 fields, but the header has 5"),
    "last line cut inside its last value": (
        row("b", x="0.512")[:-3],
        "the last line has no line end, so its last value may be cut; end the file with a line break",
    ),
    "a stray quote": (
        row("b", place='5" x 7"'),
        "a quote inside an unquoted field, or text after a closing quote",
    ),
    "a NUL inside a number": (row("b", n="1\x002"), f"n: '1\\u00002' {PLAIN_NUMBER}"),
    "a NUL inside a text": (row("b", place="E\0R"), f"place: 'E\\u0000R' {HIDDEN}"),
    "1e400": (row("b", x="1e400"), "x: '1e400' is too large for a 64-bit float"),
    "inf": (row("b", x="inf"), "x: 'inf' is not a plain finite number"),
    "nan": (row("b", x="nan"), "x: 'nan' is not a plain finite number"),
    "an integer above 2^63": (
        row("b", n="9223372036854775808"),
        "n: '9223372036854775808' is too large to be an exact 64-bit integer",
    ),
    "an integer that went through a float": (
        row("b", n="9007199254740994.0"),
        "n: '9007199254740994.0' is too large to be an exact 64-bit integer",
    ),
    "a fraction where an integer is wanted": (row("b", n="1.5"), f"n: '1.5' {PLAIN_NUMBER}"),
    "1,234": (row("b", n='"1,234"'), f"n: '1,234' {PLAIN_NUMBER}; {COMMA}"),
    "1_234": (row("b", n="1_234"), f"n: '1_234' {PLAIN_NUMBER}"),
    "a decimal comma": (row("b", x='"0,5"'), f"x: '0,5' is not a plain finite number; {COMMA}"),
    "30 February": (row("b", begun="2013-02-30"), f"begun: '2013-02-30' {NO_TIME}"),
    "24 o'clock": (row("b", begun="2013-04-01T24:00:00"), f"begun: '2013-04-01T24:00:00' {NO_TIME}"),
    "an American date": (
        row("b", begun="04/01/2013"),
        f"begun: '04/01/2013' {NO_TIME}; for another form write sql, such as strptime(begun, '%d.%m.%Y')",
    ),
    "a zone by name": (
        row("b", begun="2013-04-01T06:00:00 America/New_York"),
        f"begun: '2013-04-01T06:00:00 America/New_York' {NO_TIME}",
    ),
    "a formula in a number": (row("b", n="=1+1"), f"n: '=1+1' {PLAIN_NUMBER}"),
    "a call in a number": (row("b", n="@SUM(1)"), f"n: '@SUM(1)' {PLAIN_NUMBER}"),
    "a sum in a number": (row("b", n="+1+1"), f"n: '+1+1' {PLAIN_NUMBER}"),
    "a difference in a number": (row("b", n="-1-1"), f"n: '-1-1' {PLAIN_NUMBER}"),
    "ANSI escapes": (row("b", place="\x1b[31mEWR"), f"place: '\\u001b[31mEWR' {HIDDEN}"),
    "a no-break space in a number": (row("b", n="1\u00a0234"), f"n: '1\\u00a0234' {PLAIN_NUMBER}"),
    "a no-break space in a text": (row("b", place="EWR\u00a0"), f"place: 'EWR\\u00a0' {HIDDEN}"),
    "a zero-width space": (row("b", place="E\u200bWR"), f"place: 'E\\u200bWR' {HIDDEN}"),
    "a zero-width joiner between Latin letters": (row("b", place="E\u200dWR"), f"place: 'E\\u200dWR' {HIDDEN}"),
    "a right-to-left override": (row("b", place="\u202eRWE"), f"place: '\\u202eRWE' {HIDDEN}"),
    "a byte order mark inside": (row("b", place="\ufeffEWR"), f"place: '\\ufeffEWR' {HIDDEN}"),
    "a character lost before": (row("b", place="Z\ufffdrich"), f"place: 'Z\ufffdrich' {HIDDEN}"),
    "full-width digits in a number": (row("b", n="１２"), f"n: '１２' {PLAIN_NUMBER}"),  # noqa: RUF001
    "a time in the future": (
        row("b", begun="2099-01-01T00:00:00Z"),
        "begun: 2099-01-01 00:00:00+00 lies outside the period of its file",
    ),
    "a time of 1970": (
        row("b", begun="1970-01-01"),
        "begun: 1970-01-01 00:00:00+00 lies outside the period of its file; if files may hold rows of earlier days, state "
        "`late` of the table",
    ),
    "a year before Christ": (row("b", begun="0000-01-01"), f"begun: '0000-01-01' {NO_TIME}"),
    "no time at all": (row("b", begun=""), "begun: missing"),
    "no key": (row(""), "id: missing"),
    "sentinel -1": (row("b", n="-1"), "n: -1 is below 0"),
    "sentinel 9999": (row("b", n="9999"), "n: 9999 is above 1000"),
    "units off by 1000": (row("b", x="500"), "x: 500.0 is above 10"),
    "a column of another": (row("b", place="ZZZ"), "place: 'ZZZ' does not match ^(?!ZZZ).*"),
}

#: These are told by where the file ends, so each needs a file of its own.
AT_THE_END = [case for case in QUARANTINED if case.startswith("last line cut")]

CHECKED = {
    "place": {"type": "string", "matches": "^(?!ZZZ).*"},
    "n": {"type": "integer", "nullable": True, "min": 0, "max": 1000},
    "x": {"type": "float", "nullable": True, "max": 10},
}


@pytest.fixture(scope="module")
def ingested_at_once(tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    """One file in which every second row is a good one, and the others are the cases in order."""
    path = tmp_path_factory.mktemp("rows")
    bad = [content for case, (content, _) in QUARANTINED.items() if case not in AT_THE_END]
    write(path, HEADER + "".join(row(f"good{n}") + content for n, content in enumerate(bad)))
    return ingest(trips(path, columns=CHECKED), path)


@pytest.mark.parametrize("case", [case for case in QUARANTINED if case not in AT_THE_END])
def test_a_rows_fault_sends_that_row_to_quarantine_with_its_reason(case: str, ingested_at_once: Ingested) -> None:
    _, reason = QUARANTINED[case]
    line = 3 + 2 * [other for other in QUARANTINED if other not in AT_THE_END].index(case)

    assert reason in ingested_at_once.faults[f"{FILE}:{line}"]


def test_rows_beside_faulty_ones_are_published_as_they_are(ingested_at_once: Ingested) -> None:
    bad = len(QUARANTINED) - len(AT_THE_END)

    assert ingested_at_once.published == [{**GOOD, "id": f"good{n}"} for n in range(bad)]
    assert len(ingested_at_once.quarantined) == bad


def test_a_quarantined_row_is_kept_as_it_came(ingested_at_once: Ingested) -> None:
    by_position = {kept["position"]: kept for kept in ingested_at_once.quarantined}
    short, number = (by_position[f"{FILE}:{line}"] for line in (3, 9))

    assert json.loads(short["row"]) == {"_raw": "b,2013-04-01T06:00:00Z,EWR"}
    assert json.loads(number["row"]) == {"id": "b", "begun": "2013-04-01T06:00:00Z", "place": "EWR", "n": "1\0002", "x": "0.5"}
    for kept in ingested_at_once.quarantined:
        assert (kept["table"], kept["run_id"]) == ("trips", "a run")
        assert DAY.start <= kept["_event_time"] < DAY.end


@pytest.mark.parametrize("case", AT_THE_END)
def test_a_cut_last_line_goes_to_quarantine_alone(case: str, tmp_path: Path) -> None:
    cut, reason = QUARANTINED[case]
    write(tmp_path, HEADER + row(place='"New\nark"') + cut)

    done = ingest(trips(tmp_path), tmp_path)

    assert done.published == [{**GOOD, "place": "New\nark"}]
    # The line of the file, though a field of the row before holds a line break.
    assert done.faults == {f"{FILE}:4": [reason]}
    assert done.result.reasons == [f"{FILE}:4: {reason}"]


def test_a_row_is_quarantined_with_every_reason(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row() + row("", place="lga", n="x", x="1e999"))
    columns = {"place": {"type": "string", "matches": "^[A-Z]{3}$", "values": ["EWR", "LGA"]}}

    done = ingest(trips(tmp_path, columns=columns), tmp_path)

    assert done.faults == {
        f"{FILE}:3": [
            "id: missing",
            "place: 'lga' is not one of EWR, LGA",
            "place: 'lga' does not match ^[A-Z]{3}$",
            f"n: 'x' {PLAIN_NUMBER}",
            "x: '1e999' is too large for a 64-bit float",
        ]
    }


def test_of_rows_that_are_the_same_one_is_kept(tmp_path: Path) -> None:
    done = checked(tmp_path, row("a"), row("b"), row("a"), row("a", n="01"))

    assert done.column("id") == ["a", "b"]
    assert done.faults == {
        f"{FILE}:4": [f"key: the row repeats {FILE}:2"],
        f"{FILE}:5": [f"key: the row repeats {FILE}:2"],  # another text, the same row
    }


def test_of_rows_that_share_a_key_and_differ_none_is_kept(tmp_path: Path) -> None:
    done = checked(tmp_path, row("a"), row("b"), row("a", n="2"))

    assert done.column("id") == ["b"]
    assert done.faults == {f"{FILE}:{line}": ["key: 2 rows are a, and they differ"] for line in (2, 4)}


def test_a_row_of_the_same_event_that_is_known_from_another_moment_on_is_a_correction(tmp_path: Path) -> None:
    rows = [row("a"), row("a", n="2"), row("a", n="2"), row("b"), row("b", begun="2013-04-01T07:00:00Z", n="2")]

    done = checked(tmp_path, *rows, table={"known": "begun + n * INTERVAL 1 HOUR"})

    assert [(kept["id"], kept["n"]) for kept in done.published] == [("a", 1), ("a", 2)]
    assert done.faults == {
        f"{FILE}:4": [f"key: the row repeats {FILE}:3"],
        **{f"{FILE}:{line}": ["key: 2 rows are b, and they differ"] for line in (5, 6)},
    }


def test_a_key_of_several_columns_is_one_key(tmp_path: Path) -> None:
    rows = [row("a", place="EWR"), row("a", place="LGA"), row("b", place="LGA"), row("b", place="LGA", n="2")]

    done = checked(tmp_path, *rows, table={"key": ["id", "place"]})

    assert [(kept["id"], kept["place"]) for kept in done.published] == [("a", "EWR"), ("a", "LGA")]
    assert done.faults == {f"{FILE}:{line}": ["key: 2 rows are b, LGA, and they differ"] for line in (4, 5)}


@pytest.mark.parametrize("key", [["id"], ["id", "place"]], ids=["one column", "two columns"])
def test_a_key_has_the_verdict_of_great_expectations_own_uniqueness(key: list[str], tmp_path: Path) -> None:
    rows = [{"id": str(n * n % 97), "place": "EWR" if n % 3 else "LGA", "n": str(n)} for n in range(60)]
    frame = pd.DataFrame(rows, index=[f"{FILE}:{n}" for n in range(2, 62)])

    done = checked(tmp_path, *(row(**given) for given in rows), table={"key": key, "tolerance": 1.0})

    unique = (
        gx.expectations.ExpectColumnValuesToBeUnique(column="id")
        if len(key) == 1
        else gx.expectations.ExpectCompoundColumnsToBeUnique(column_list=key)
    )
    assert 0 < len(done.faults) < 60
    assert set(done.faults) == great_expectations_fails(frame, unique)


def test_a_value_that_many_rows_have_is_judged_as_in_each_row(tmp_path: Path) -> None:
    places, numbers, floats = ["EWR", "ewr", "LGA", "E\u00e9R", ""], ["1", "7", "-1", "", "3"], ["0.5", "-0.0", "9.5", "", "2"]
    rows = [{"id": str(n), "place": places[n % 5], "n": numbers[n // 5 % 5], "x": floats[n // 25 % 5]} for n in range(125)]
    frame = pd.DataFrame(rows, index=[f"{FILE}:{n}" for n in range(2, 127)]).replace("", None)
    frame = frame.astype({"n": float, "x": float})
    columns = {
        "place": {"type": "string", "matches": "^[A-Z]{3}$", "nullable": True},
        "n": {"type": "integer", "min": 0, "max": 5},
        "x": {"type": "float", "min": 0, "max": 9, "nullable": True},
    }

    done = checked(tmp_path, *(row(**given) for given in rows), columns=columns, table={"tolerance": 1.0})

    assert set(done.faults) == great_expectations_fails(
        frame,
        gx.expectations.ExpectColumnValuesToMatchRegex(column="place", regex="^[A-Z]{3}$"),
        gx.expectations.ExpectColumnValuesToNotBeNull(column="n"),
        gx.expectations.ExpectColumnValuesToBeBetween(column="n", min_value=0, max_value=5),
        gx.expectations.ExpectColumnValuesToBeBetween(column="x", min_value=0, max_value=9),
    )


def great_expectations_fails(frame: pd.DataFrame, *expectations: Any) -> set[str]:
    """The labels of the rows that fail when Great Expectations itself is given all of them."""
    asset = gx.get_context(mode="ephemeral", project_config=quarantine._in_memory()).data_sources.add_pandas("p")
    batch = asset.add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")
    result = batch.get_batch({"dataframe": frame.rename_axis("label").reset_index()}).validate(
        gx.ExpectationSuite(name="rows", expectations=list(expectations)),
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["label"]},
    )
    return {item["label"] for one in result.results for item in one.result.get("unexpected_index_list") or ()}


def test_rows_are_judged_the_same_in_batches_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(str(n % 17), n=str(n % 3), place="?" * (n % 5 == 0) + "EWR") for n in range(30)]
    columns = {"place": {"type": "string", "matches": "^[A-Z]+$"}, "n": {"type": "integer", "max": 1, "severity": "warning"}}

    at_once = checked(tmp_path / "1", *rows, columns=columns, table={"tolerance": 1.0})
    monkeypatch.setattr(quarantine, "BATCH_ROWS", 7)
    in_batches = checked(tmp_path / "2", *rows, columns=columns, table={"tolerance": 1.0})

    assert in_batches.published == at_once.published
    assert in_batches.faults == at_once.faults
    assert in_batches.result.warnings == at_once.result.warnings
    assert in_batches.result.reasons == at_once.result.reasons
    assert 0 < len(at_once.published) < 30


def test_great_expectations_is_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        checked(tmp_path, row("a"))

    assert capfd.readouterr() == ("", "")
    assert [record.getMessage() for record in caplog.records if not record.name.startswith("perennial")] == []
