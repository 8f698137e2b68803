"""Of a section in which something is broken, what is readable can be read, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from perennial.spec.data import Table
from perennial.spec.partial import readable_part
from perennial.spec.sections import Unreadable


def table(**fields: Any) -> Table:
    return readable_part(Table, {"source": "trips", "columns": {"id": {"type": "string"}, "odd": {"type": "odd"}}, **fields})


def test_what_is_right_can_be_read_and_defaults_hold() -> None:
    assert table().source == "trips"
    assert table().columns["id"].type == "string"
    assert table().event_time is None


def test_a_missing_field_cannot_be_read() -> None:
    with pytest.raises(Unreadable):
        _ = table().key


def test_only_the_broken_field_of_a_section_inside_cannot_be_read() -> None:
    assert table().columns["odd"].nullable is False
    with pytest.raises(Unreadable):
        _ = table().columns["odd"].type


def test_a_default_cannot_be_read_where_its_field_may_be_misspelt() -> None:
    with pytest.raises(Unreadable):
        _ = table(eventtime="left_at").event_time


def test_a_broken_item_of_a_list_keeps_its_place() -> None:
    assert table(key=["id;", 3, "id"]).key == ["id;", "", "id"]


@pytest.mark.parametrize("value", [None, 3, "x", [1]])
def test_of_what_is_no_mapping_nothing_can_be_read(value: Any) -> None:
    with pytest.raises(Unreadable):
        _ = readable_part(Table, value).event_time
