"""What people and sources do in the demo, besides what time does."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT
from perennial.demo.example_data import write_landing_zone
from perennial.demo.story import FIRST, MODEL, STORY, misplace_delays, write_models
from perennial.spec.folder import read_model

EXAMPLE = PROJECT / "include" / "models" / MODEL


def test_the_demos_folder_is_the_example_with_another_recipe(tmp_path: Path) -> None:
    write_models(tmp_path, EXAMPLE, FIRST)
    first, example = read_model(tmp_path / MODEL), read_model(EXAMPLE)
    assert first.spec.candidates["boosting"].params == FIRST
    assert first.features_digest == example.features_digest
    write_models(tmp_path, EXAMPLE, {})
    assert read_model(tmp_path / MODEL).spec.candidates["boosting"] == example.spec.candidates["boosting"]


def test_no_commit_of_the_story_changes_the_tasks_of_a_dag(tmp_path: Path) -> None:
    """The demo reads DAG files once, so each recipe must have the same candidates."""
    names = []
    for recipe in [FIRST, *(week.recipe for week in STORY.values() if week.recipe is not None)]:
        write_models(tmp_path, EXAMPLE, recipe)
        names.append(list(read_model(tmp_path / MODEL).spec.candidates))
    assert all(one == names[0] for one in names)


def test_an_example_that_has_changed_is_told_before_the_demo_starts(tmp_path: Path) -> None:
    other = tmp_path / "example"
    other.mkdir()
    (other / "model.yaml").write_text("name: flight_delay\n")
    with pytest.raises(ValueError, match="does not have the line"):
        write_models(tmp_path / "models", other, FIRST)


def test_misplaced_delays_are_those_of_other_flights_and_the_right_ones_come_back(tmp_path: Path) -> None:
    days = Interval.of("2013-04-08", "2013-04-10")

    def delays() -> list[str]:
        found = []
        for day in days.days():
            with gzip.open(tmp_path / "flights" / f"{day.key}.csv.gz", "rt", newline="") as stream:
                found += [row["arr_delay"] for row in csv.DictReader(stream)]
        return found

    write_landing_zone(tmp_path, days)
    right = delays()
    misplace_delays(tmp_path, days)
    wrong = delays()
    assert sorted(wrong) == sorted(right)
    assert sum(one != other for one, other in zip(right, wrong, strict=True)) > len(right) / 2
    write_landing_zone(tmp_path, days)
    assert delays() == right
