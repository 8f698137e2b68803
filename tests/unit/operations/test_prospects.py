"""What cannot come of the rows there are is said before it is too late, with what to write."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.core.errors import SpecError
from perennial.operations.prospects import Seen, find_prospects, prospects, read_sample
from perennial.spec.folder import read_model
from perennial.spec.model import ModelSpec
from tests.unit.synthetic import MODEL

_TASK = {"task": "regression", "label": "y", "baseline": "linear: {estimator: linear_regression, baseline: true}"}


def spec_of(**sections: Any) -> ModelSpec:
    value = {**yaml.safe_load(MODEL.format(**_TASK)), "training": {"window": "90d", "holdout": "7d"}, "gates": {}, **sections}
    return ModelSpec.model_validate(value)


def told(spec: ModelSpec, seen: Seen) -> list[str]:
    return [f"{'.'.join(map(str, problem.path))} {problem.message}" for problem in prospects(spec, seen)]


def written(spec: ModelSpec, seen: Seen) -> set[str]:
    return {one.split(" is ")[0].split(" gives ")[0].split(" has ")[0] for one in told(spec, seen)}


def test_an_hourly_series_is_never_monitored_with_the_defaults_and_what_to_write_works() -> None:
    hourly = Seen(rows=24 * 100, days=100)
    assert told(spec_of(), hourly) == [
        "drift.min_rows is 200, but a week has some 168 rows, so every verdict on drift is unknown; write drift: {min_rows: "
        "100}",
        "gates.min_rows is 200, but the holdout of 7 days has some 168 rows, so every candidate is refused; write training: "
        "{holdout: 11d}, or gates: {min_rows: 100} if a decision by so few is wanted",
    ]
    assert told(spec_of(drift={"min_rows": 100}, training={"window": "90d", "holdout": "11d"}), hourly) == []
    assert told(spec_of(), Seen(rows=48 * 100, days=100)) == [], "half-hourly rows are enough"


def test_a_daily_series_can_be_judged_by_no_week() -> None:
    daily = Seen(rows=1_000, days=1_000)
    found = told(spec_of(), daily)
    assert "drift of such a model cannot be judged, since a distance requires 50 values" in found[0]
    assert "write training: {holdout: 250d}" in found[1]
    assert "training.min_rows is 100, but a window of 90 days has some 90 rows" in found[2]
    by_day = spec_of(schedules={"monitor": "day"})
    assert "write schedules: {monitor: week} and drift: {min_rows: 100}" in told(by_day, Seen(rows=2_400, days=100))[0]


def test_slices_that_the_holdout_has_too_few_rows_for_are_told() -> None:
    sliced = spec_of(gates={"min_rows": 100, "slices": {"columns": ["kind"]}}, drift={"min_rows": 100})
    assert written(sliced, Seen(rows=2_400, days=100)) == {"gates.slices.min_rows"}


def test_labels_that_take_longer_than_stated_are_told() -> None:
    many: dict[str, Any] = {"rows": 100_000, "days": 100, "label_rows": 100_000, "classes": 2}
    delayed = spec_of(label={"table": "visits", "sql": "y", "delay": "1d"})
    assert told(delayed, Seen(**many, label_takes=timedelta(days=1))) == []
    [late] = told(delayed, Seen(**many, label_takes=timedelta(days=2, hours=12)))
    assert late.startswith("label.delay is 1 days, but 80% of the labels are known only after 2.5 days")
    assert "write label: {delay: 3d}" in late
    assert told(spec_of(), Seen(**many, label_takes=timedelta(days=9))) == [], "without a statement it is measured"


def test_a_label_of_one_class_and_columns_of_one_value_are_told() -> None:
    seen = Seen(rows=100_000, days=100, label_rows=90_000, classes=1, constant={"visits": ["noise"]})
    assert written(spec_of(), seen) == {"label.sql", "tables.visits.columns.noise"}


# --- a sample, read as ingestion reads it --------------------------------------------------------------------------------

_HOURLY = """\
name: hourly
owner: me
description: How many come in an hour?
task: regression
sources:
  hours: {files: "hours.csv"}
tables:
  hours:
    source: hours
    key: [hour]
    event_time: hour
    known: hour + INTERVAL 36 HOUR
    columns:
      hour: {type: timestamp}
      flat: {type: float}
      many: {type: integer, min: 0}
    checks: {rows: {min: 20}}
entity: {table: hours, as_of: "hour - INTERVAL 1 HOUR"}
features: {numeric: [flat], lookback: 2d}
label: {table: hours, sql: many, delay: 1d}
candidates:
  mean: {estimator: prior, baseline: true}
  linear: {estimator: linear_regression}
training: {window: 60d, holdout: 7d}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "hourly"
    place.mkdir()
    (place / "model.yaml").write_text(_HOURLY)
    (place / "features.sql").write_text("SELECT e.hour, 0.3 AS flat FROM entities e")
    return place


def hours(file: Path, days: int = 10, many: str = "7") -> Path:
    lines = [f"2013-04-{1 + n // 24:02d} {n % 24:02d}:00:00,0.3,{many if n == 5 else n % 24}" for n in range(24 * days)]
    file.write_text("\n".join(["hour,flat,many", *lines, ""]))
    return file


def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def test_a_sample_is_read_cast_and_checked_as_ingestion_does(folder: Path, tmp_path: Path) -> None:
    model = read_model(folder)
    file = hours(tmp_path / "some.csv", many="-3")
    sampled = read_sample(model, file, scratch(tmp_path))
    assert list(sampled.words(file)) == [
        "some.csv, table hours: 240 rows, 1 would go to quarantine",
        "hours: some.csv:7: many: -3 is below 0",
    ]
    assert (sampled.seen.rows, sampled.seen.days, sampled.seen.constant) == (239, 10, {"hours": ["flat"]})
    assert sampled.seen.label_takes == timedelta(hours=36)
    found = "\n".join(find_prospects(model, sampled.seen))
    assert f"{folder / 'model.yaml'}:1: drift.min_rows: is 200, but a week has some 167 rows" in found
    assert f"{folder / 'model.yaml'}:15: tables.hours.columns.flat: has one value in all rows" in found
    assert "write label: {delay: 2d}" in found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hourly", "scratch", "some.csv"]


def test_a_sample_of_no_source_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no such file"):
        read_sample(read_model(folder), tmp_path / "none.csv", scratch(tmp_path))
