"""A reference is unknown only if no name, broken ones included, may be meant by it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from perennial.drift.compare import NOT_FEATURES
from perennial.features.point_in_time import feature_schema
from perennial.model.labels import LABEL
from perennial.scoring.predictor import predictions_schema
from perennial.spec.model import ModelSpec
from perennial.spec.names import BESIDE_FEATURES, BESIDE_KEYS, is_unknown
from perennial.spec.types import Task
from tests.unit.spec.late import GOOD, changed, problems, read


def of_task(tmp_path: Path, task: str) -> ModelSpec:
    text = changed("task: binary_classification", f"task: {task}").replace("gates:\n  at_least: {roc_auc: 0.6}\n", "")
    return read(tmp_path, text).spec


@pytest.mark.parametrize("task", get_args(Task))
def test_every_column_that_is_written_beside_keys_and_features_is_a_reserved_name(task: str, tmp_path: Path) -> None:
    spec = of_task(tmp_path, task)
    own = {*spec.entity_table.key, spec.event_time}

    assert set(predictions_schema(spec).names) - own <= BESIDE_KEYS
    assert set(feature_schema(spec).names) - own - set(spec.features.names) <= BESIDE_FEATURES
    assert {LABEL, *NOT_FEATURES} <= BESIDE_FEATURES


@pytest.mark.parametrize("name", sorted(BESIDE_KEYS))
def test_a_reserved_name_is_refused_as_a_key(name: str, tmp_path: Path) -> None:
    text = GOOD.replace("id: {type", f"{name}: {{type").replace("[id]", f"[{name}]")

    [message] = problems(tmp_path, text)
    assert f"tables.trips.key.0: Perennial writes a column named {name} beside the key" in message


def test_a_reserved_name_in_capitals_is_refused_too(tmp_path: Path) -> None:
    text = GOOD.replace("id: {type", "Version: {type").replace("[id]", "[Version]")

    assert all("Version" in message and "lower-case letters" in message for message in problems(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "known", "unknown"),
    [
        ("trips", ["trips", "stops"], False),
        ("trip", ["trips", "stops"], True),
        ("trips", ["Trips", "stops"], False),
        ("arrivals", ["Trips", "stops"], True),
        ("trips", ["", "stops"], False),
        ("trips", [], True),
    ],
)
def test_a_reference_to_a_name_that_is_broken_itself_is_known(name: str, known: list[str], unknown: bool) -> None:
    assert is_unknown(name, known) is unknown
