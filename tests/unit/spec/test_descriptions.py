"""Editors show what each field of ``model.yaml`` means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from perennial.spec.model import json_schema
from perennial.spec.operation import AlertRoutes

SCHEMA = json_schema()
SECTIONS: dict[str, Any] = {"ModelSpec": SCHEMA, **SCHEMA["$defs"]}


def undescribed() -> Iterator[str]:
    for name, section in SECTIONS.items():
        for field, schema in section["properties"].items():
            if not schema.get("description"):
                yield f"{name}.{field}"


def test_every_field_has_a_description() -> None:
    assert list(undescribed()) == []


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_describes_itself_without_its_fields(name: str) -> None:
    assert SECTIONS[name]["description"]
    assert "Attributes" not in SECTIONS[name]["description"]


def test_a_section_describes_the_fields_it_inherits() -> None:
    properties = AlertRoutes.model_json_schema()["properties"]

    assert properties["email"]["description"] == ("addresses. Messages are sent through the Airflow connection `smtp_default`.")
