"""What sections of ``model.yaml`` say of each other agrees, and every reference that leads nowhere is reported."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from perennial.core.settings import PROJECT
from perennial.spec.model import json_schema
from perennial.spec.monitoring import RetrainingPolicy
from tests.unit.spec.late import GOOD, changed, problems, read

#: A model with a reference of each kind; each name after an ``@`` can be broken alone.
REFERENCES = """\
name: late
owner: operations
description: Will it be late?
task: binary_classification
sources:
  trips: {files: "trips/%Y-%m-%d.csv"}
  stops: {python: "model:@stops"}
tables:
  trips:
    source: @trips
    key: [id]
    event_time: @left_at
    known: left_at
    columns:
      id: {type: string}
      left_at: {type: timestamp}
      minutes: {type: integer}
  stops:
    source: @stops
    key: [id, @place]
    known: always
    columns:
      id: {type: string}
      place: {type: string}
entity: {table: @trips, as_of: left_at}
features:
  numeric: [distance]
  categorical: [line]
label:
  table: @trips
  sql: minutes > 15
candidates:
  prior: {estimator: prior, baseline: true}
  boosting: {estimator: "model:@boosting"}
cost:
  function: "model:@cost"
gates:
  metric: @roc_auc
  at_least:
    @brier: 0.1
  at_most:
    @log_loss: 0.6
  slices:
    columns:
      - line
      - @line
  fairness:
    - column: @id
  resampling:
    group: @line
  behaviour:
    farther:
      feature: @distance
      add: 1
    tested:
      function: "model:@tested"
"""
CODE = "def stops(): ...\ndef boosting(): ...\ndef cost(): ...\ndef tested(): ...\n"
PLACES = range(REFERENCES.count("@"))


def broken(places: set[int]) -> str:
    """The model with the references at these places replaced by names of nothing."""
    first, *rest = REFERENCES.split("@")
    return first + "".join(f"nowhere{place}_{text}" if place in places else text for place, text in enumerate(rest))


def lines_of(places: set[int]) -> list[int]:
    before = [REFERENCES.split("@", place + 1) for place in sorted(places)]
    return [sum(part.count("\n") for part in parts[:-1]) + 1 for parts in before]


def reported(text: str) -> list[str]:
    with tempfile.TemporaryDirectory() as models:
        return problems(Path(models), text, code=CODE)


def test_a_model_with_every_kind_of_reference_is_right(tmp_path: Path) -> None:
    assert read(tmp_path, broken(set()), code=CODE).spec.name == "late"


def test_four_wrong_references_are_four_messages_each_with_its_line(tmp_path: Path) -> None:
    text = changed("source: trips", "source: trip").replace("event_time: left_at", "event_time: left")
    text = text.replace("label: {table: trips", "label: {table: arrivals").replace("roc_auc: 0.6", "auc: 0.6")

    assert problems(tmp_path, text) == [
        "model.yaml:9: tables.trips.source: no source is named trip; there are trips",
        "model.yaml:11: tables.trips.event_time: left is no column of this table; its columns are id, left_at, minutes",
        "model.yaml:20: label.table: no table is named arrivals; there are trips",
        "model.yaml:25: gates.at_least.auc: binary_classification has no metric auc; there are average_precision, brier, "
        "calibration_error, cost, log_loss, roc_auc",
    ]


@settings(max_examples=50)
@given(st.sets(st.sampled_from(PLACES), min_size=1))
def test_each_broken_reference_is_one_message_with_its_line(places: set[int]) -> None:
    messages = reported(broken(places))

    assert [int(message.split(":")[1]) for message in messages] == lines_of(places)
    assert all(f"nowhere{place}_" in message for place, message in zip(sorted(places), messages, strict=True))


@settings(max_examples=50)
@given(st.sets(st.sampled_from(PLACES), min_size=1))
def test_a_broken_field_elsewhere_hides_no_broken_reference(places: set[int]) -> None:
    text = broken(places).replace("owner: operations", "owner: 3").replace("minutes: {type: integer}", "minutes: {type: int}")
    text = text.replace("trips/%Y-%m-%d.csv", "/trips.txt").replace("add: 1", "add: 1\n      share: 2")
    lines = [int(message.split(":")[1]) for message in reported(text)]
    after = text[: text.index("share: 2")].count("\n") + 1

    assert lines == sorted([2, 6, 6, 17, after, *(line + (line >= after) for line in lines_of(places))])


SECTIONS = {
    "entity": "entity: {table: trips, as_of: left_at}\n",
    "features": "features:\n  numeric: [distance]\n",
    "label": "label: {table: trips, sql: minutes > 15}\n",
    "sources": 'sources:\n  trips: {files: "trips/%Y-%m-%d.csv"}\n',
    "task": "task: binary_classification\n",
}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_one_message_and_hides_no_other(section: str, tmp_path: Path) -> None:
    text = changed(SECTIONS[section], "").replace("key: [id]", "key: [nr]") + "retraining: {alarms: 4}\n"

    assert [message.split(": ", 1)[1] for message in problems(tmp_path, text)] == [
        f"{section}: missing; it must be given",
        "tables.trips.key.0: nr is no column of this table; its columns are id, left_at, minutes",
        "retraining: 4 alarms can never occur in the last 3 windows; lower alarms, or raise of",
    ]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_is_no_mapping_is_one_message(section: str, tmp_path: Path) -> None:
    [message] = problems(tmp_path, changed(SECTIONS[section], f"{section}: [1]\n"))

    assert f" {section}: " in message


def test_a_reference_to_a_name_that_is_broken_itself_is_not_reported_too(tmp_path: Path) -> None:
    text = changed("      id: {type", "      Id: {type").replace("numeric: [distance]", "numeric: [Distance]")
    text += "  behaviour: {farther: {feature: distance, add: 1}}\n"

    assert [message.split(": ")[1] for message in problems(tmp_path, text)] == [
        "tables.trips.columns.Id",
        "features.numeric.0",
    ]


CONTRADICTIONS = {
    "a column of Perennial's own": (
        changed("id: {type: string}", "id: {type: string}\n      _known_at: {type: timestamp}"),
        ["model.yaml:15: tables.trips.columns._known_at: names that begin with _ are Perennial's own; choose another name"],
    ),
    "a table of Perennial's own": (
        GOOD.replace("  trips:\n    source", "  entities:\n    source").replace("table: trips", "table: entities"),
        ["model.yaml:8: tables.entities: Perennial makes a table named entities itself; choose another name"],
    ),
    "a source that no table reads": (
        changed("tables:", '  stops: {files: "stops.csv"}\ntables:'),
        ["model.yaml:7: sources.stops: no table reads this source; remove it, or name it in a table"],
    ),
    "a source that no table reads, beside a misspelt one": (
        changed("tables:", '  stops: {files: "stops.csv"}\ntables:').replace("source: trips", "source: trip"),
        [
            "model.yaml:7: sources.stops: no table reads this source; remove it, or name it in a table",
            "model.yaml:10: tables.trips.source: no source is named trip; there are stops, trips",
        ],
    ),
    "an entity without event time": (
        changed("    event_time: left_at\n", ""),
        ["model.yaml:16: entity.table: table trips has no event_time; name it there, predictions require it"],
    ),
    "features with taken names": (
        changed("numeric: [distance]", "numeric: [distance, label]\n  categorical: [id, line]"),
        [
            "model.yaml:19: features.numeric.1: a column named label is stored beside the features already; "
            "choose another name",
            "model.yaml:20: features.categorical.0: a column named id is stored beside the features already; "
            "choose another name",
        ],
    ),
    "a key that is named as what Perennial writes": (
        changed("key: [id]", "key: [version]").replace("id: {type: string}", "version: {type: string}"),
        [
            "model.yaml:10: tables.trips.key.0: Perennial writes a column named version beside the key; name the column "
            "otherwise, such as trips_version: {…, sql: version}"
        ],
    ),
    "an event time that is named as what Perennial writes": (
        GOOD.replace("left_at", "predicted_at").replace("predicted_at: {type", "predicted_at: {sql: left_at, type"),
        [
            "model.yaml:11: tables.trips.event_time: Perennial writes a column named predicted_at beside the key; name the "
            "column otherwise, such as trips_predicted_at"
        ],
    ),
    "a key that PostgreSQL refuses": (
        changed("key: [id]", "key: [ctid]").replace("id: {type: string}", "ctid: {type: string, sql: id}", 1),
        [
            "model.yaml:10: tables.trips.key.0: PostgreSQL allows no column named ctid of one's own; name the column "
            "otherwise, such as trips_ctid"
        ],
    ),
    "a feature that monitoring would take for a prediction": (
        changed("numeric: [distance]", "numeric: [distance, probability]"),
        [
            "model.yaml:19: features.numeric.1: a column named probability is stored beside the features already; "
            "choose another name"
        ],
    ),
    "a table with a name of Perennial's own kind": (
        GOOD.replace("  trips:\n    source", "  _trips:\n    source").replace("table: trips", "table: _trips"),
        ["model.yaml:8: tables._trips: Perennial makes a table named _trips itself; choose another name"],
    ),
    "no baseline": (
        changed(", baseline: true", ""),
        ["model.yaml:21: candidates: no candidate is a baseline; add `prior: {estimator: prior, baseline: true}`"],
    ),
    "baselines alone": (
        changed("  boosting: {estimator: gradient_boosting}\n", ""),
        ["model.yaml:21: candidates: every candidate is a baseline; add one that can be promoted"],
    ),
    "a bound on a cost that nobody gave": (
        changed("at_least: {roc_auc: 0.6}", "at_most: {cost: 1}"),
        ["model.yaml:25: gates.at_most.cost: requires the section cost; say there what outcomes cost"],
    ),
    "rates and costs of a yes or no for a number": (
        changed("binary_classification", "regression").replace("roc_auc", "r2")
        + "  fairness: [{column: distance}]\ncost: {outcomes: {}}\n",
        [
            "model.yaml:26: gates.fairness: requires the task binary_classification, the task is regression; remove it",
            "model.yaml:27: cost.outcomes: is not for regression; give a function",
        ],
    ),
    "a direction of classes, and a number added to a category": (
        changed("binary_classification", "multiclass_classification")
        .replace("roc_auc", "accuracy")
        .replace("numeric: [distance]", "categorical: [line]")
        + "  behaviour:\n    more: {feature: line, add: 1, expect: higher}\n",
        [
            "model.yaml:27: gates.behaviour.more.add: line is no numeric feature; give a value instead",
            "model.yaml:27: gates.behaviour.more.expect: a class is neither higher nor lower; expect same",
        ],
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_sections_that_contradict_each_other_are_refused(case: str, tmp_path: Path) -> None:
    text, messages = CONTRADICTIONS[case]

    assert problems(tmp_path, text) == messages


def test_a_label_table_without_the_key_is_refused(tmp_path: Path) -> None:
    arrivals = "  arrivals: {source: trips, key: [nr], known: always, columns: {nr: {type: string}}}\n"
    text = changed("entity:", f"{arrivals}entity:").replace("label: {table: trips", "label: {table: arrivals")

    assert problems(tmp_path, text) == ["model.yaml:21: label.table: table arrivals lacks the entity's key id; add it there"]


def test_null_of_an_earlier_release_leaves_performance_to_the_default() -> None:
    assert (
        RetrainingPolicy.model_validate({"on_performance": None})
        == RetrainingPolicy(on_performance="auto")
        == RetrainingPolicy()
    )
    for wrong in (0, -1.0, "sometimes", True):
        with pytest.raises(ValidationError):
            RetrainingPolicy.model_validate({"on_performance": wrong})


def test_the_schema_for_editors_is_in_step() -> None:
    file = PROJECT / "include" / "models" / "model.schema.json"
    expected = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"

    assert file.read_text(encoding="utf-8") == expected, "the spec has changed: run `perennial schema`"
