"""A reference is unknown only if no name, broken ones included, may be meant by it."""

from __future__ import annotations

import pytest

from perennial.spec.names import is_unknown


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
