"""Ten errors that people make with their first model: each ends in a message that says what to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from perennial.core.errors import SourceError, SourceMissing, SpecError
from perennial.core.faults import in_words
from perennial.core.intervals import Interval
from perennial.evaluation.gates import decide
from perennial.ingestion.sources import land
from perennial.operations.prospects import find_prospects, read_sample
from perennial.spec.folder import read_model
from perennial.spec.gates import Gates
from tests.unit.synthetic import evaluation_of, with_evidence

_MODEL = """\
name: visits
owner: me
description: Will somebody come?
task: binary_classification
sources:
  visits: {files: "visits/%Y-%m-%d.csv"}
tables:
  visits:
    source: visits
    key: [visit]
    event_time: begun
    known: begun + INTERVAL 1 HOUR
    columns:
      visit: {type: string}
      begun: {type: timestamp}
      price: {type: float}
      came: {type: boolean}
entity: {table: visits, as_of: begun}
features: {numeric: [price], lookback: 2d}
label: {table: visits, sql: came}
candidates:
  prior: {estimator: prior, baseline: true}
  logistic: {estimator: logistic_regression}
"""
_HEADER = "visit,begun,price,came"


def rows(count: int = 400, *, a_day: int = 100) -> list[list[str]]:
    return [
        [f"v{n}", f"2013-03-{20 + n // a_day:02d}T10:{n % 60:02d}:00Z", f"{n % 7}.5", str(n % 3 == 0).lower()]
        for n in range(count)
    ]


def write_model(tmp_path: Path, old: str = "", new: str = "") -> Path:
    folder = tmp_path / "visits"
    folder.mkdir()
    assert old in _MODEL
    (folder / "model.yaml").write_text(_MODEL.replace(old, new, 1))
    (folder / "features.sql").write_text("SELECT e.visit, v.price FROM entities e LEFT JOIN visits v USING (visit)")
    return folder


def told(tmp_path: Path, lines: list[list[str]], *, header: str = _HEADER, delimiter: str = ",") -> str:
    """What `perennial check --sample` says of a file, as one text."""
    folder = read_model(tmp_path / "visits")
    file = tmp_path / "2013-03-20.csv"
    file.write_text("\n".join([header.replace(",", delimiter), *(delimiter.join(line) for line in lines), ""]))
    (scratch := tmp_path / "scratch").mkdir()
    sampled = read_sample(folder, file, scratch)
    return "\n".join([*sampled.words(file), *find_prospects(folder, sampled.seen)])


def changed(column: int, change: Callable[[str], str]) -> list[list[str]]:
    return [[change(value) if place == column else value for place, value in enumerate(line)] for line in rows()]


def test_a_decimal_comma(tmp_path: Path) -> None:
    write_model(tmp_path, 'd.csv"}', 'd.csv", delimiter: ";"}')
    said = told(tmp_path, changed(2, lambda price: price.replace(".", ",")), delimiter=";")
    assert (
        "price: '0,5' is not a plain finite number; if the comma is its decimal sign, write decimal: ',' for the source" in said
    )


def test_a_wrong_zone(tmp_path: Path) -> None:
    write_model(tmp_path, 'd.csv"}', 'd.csv", time_zone: Europe/Berlin}')
    said = told(tmp_path, [*rows(), ["v", "2013-03-31 02:30:00", "1.5", "true"], ["w", "2013-03-31 04:30:00", "1.5", "true"]])
    assert (
        "does not exist in Europe/Berlin, whose clocks were set forward; if the times are of another zone, correct time_zone"
        in said
    )


def test_the_label_among_the_features() -> None:
    decided = decide(replace(with_evidence(evaluation_of()), alone={"came_too": 1.0}), Gates())
    [gate] = [result for result in decided.results if result.gate == "leak"]
    assert not gate.passed
    assert "came_too (1) alone nearly predicts the label" in gate.reason
    assert "it may be derived from the label. If it is not, raise gates.leak" in gate.reason


def test_a_key_that_is_not_unique(tmp_path: Path) -> None:
    write_model(tmp_path)
    said = told(tmp_path, changed(0, lambda _: "v1"))
    assert "399 times" in said or "400 times" in said
    assert "key" in said


def test_a_holdout_that_is_too_short(tmp_path: Path) -> None:
    write_model(tmp_path)
    said = told(tmp_path, rows(40, a_day=10))
    assert "gates.min_rows: is 200, but the holdout of 7 days has some 70 rows" in said
    assert "write training: {holdout: 25d}" in said


def test_a_label_of_one_class(tmp_path: Path) -> None:
    write_model(tmp_path)
    said = told(tmp_path, changed(3, lambda _: "true"))
    assert "label.sql: gives one class in all 400 rows, so nothing can be learned; correct label.sql" in said


def test_a_date_as_text(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(SourceError, match="no row of the sample has a time for table visits") as refused:
        told(tmp_path, changed(1, lambda _: "20.03.2013 10:00"))
    assert "for another form write sql, such as strptime(begun, '%d.%m.%Y')" in str(refused.value)


def test_a_date_that_is_declared_as_text(tmp_path: Path) -> None:
    write_model(tmp_path, "begun: {type: timestamp}", "begun: {type: string}")
    with pytest.raises(SpecError, match="column begun must be a timestamp and not nullable"):
        read_model(tmp_path / "visits")


def test_a_day_whose_file_is_missing(tmp_path: Path) -> None:
    folder = read_model(write_model(tmp_path))
    (tmp_path / "data" / "visits").mkdir(parents=True)
    (tmp_path / "data" / "visits" / "2013-03-20.csv").write_text(f"{_HEADER}\n")
    with pytest.raises(SourceMissing) as missing:
        land(
            folder, "visits", Interval.of("2013-03-20", "2013-03-22"), tmp_path / "landed", data=tmp_path / "data",
            connect=lambda _: pytest.fail("a file needs no database"),
        )  # fmt: skip
    assert "visits/2013-03-21.csv: there is no such file" in str(missing.value)
    assert "deliver it, then ingest again" in str(missing.value)


def test_too_little_memory(tmp_path: Path) -> None:
    said = in_words(MemoryError(), {}, tmp_path)
    assert said == "this machine has not enough memory left for this: end other work on it, and run the command again"


def test_a_column_that_was_renamed(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(
        SourceError, match=r"there is no column price; .*is it now called prices\? Then write from: \[price, prices\]"
    ):
        told(tmp_path, rows(), header="visit,begun,prices,came")
