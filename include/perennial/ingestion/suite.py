"""From a table's spec to a suite of expectations: every check, its severity and its words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
from great_expectations.expectations.core.expect_column_values_to_be_in_set import ExpectColumnValuesToBeInSet
from great_expectations.expectations.core.expect_column_values_to_be_null import ExpectColumnValuesToBeNull
from great_expectations.expectations.core.expect_column_values_to_match_regex import ExpectColumnValuesToMatchRegex
from great_expectations.expectations.core.expect_column_values_to_not_be_null import ExpectColumnValuesToNotBeNull
from great_expectations.expectations.core.expect_table_columns_to_match_set import ExpectTableColumnsToMatchSet
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

from perennial.ingestion.data_docs import Judged
from perennial.lake.schema import KNOWN
from perennial.spec.data import Column, Table
from perennial.spec.types import Severity

# Names of what is judged besides the spec's columns; people read them in Data Docs.
BROKEN, UNTOLD, COPIES = "row, why it is unreadable", "known, why it is unreadable", "rows with this key"


@dataclass(frozen=True)
class Check:
    """One expectation that the spec makes.

    Attributes:
        expectation: Great Expectations' form of it.
        looks_at: the column it is about, in the frame that is judged.
        severity: of a row or an interval that fails it.
        explain: from a value that fails to what is wrong with it, for people.
        follows: what is looked at by checks whose failing on a row explains that this one fails, too.
    """

    expectation: Expectation
    looks_at: str
    severity: Severity
    explain: Callable[[Any], str]
    follows: tuple[str, ...] = ()


@dataclass
class Tally:
    """What one check found over all batches."""

    check: Check
    elements: int = 0
    failures: int = 0
    missing: int = 0
    values: list[Any] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    count: int = 0
    broken: str | None = None

    def reasons(self) -> list[str]:
        """Nothing, or a line for people: how many, and the first of them."""
        if not self.count:
            return []
        return [self.examples[0] if self.count == 1 else f"{self.count:,} times, first {self.examples[0]}"]

    def judged(self) -> Judged:
        return Judged(
            self.check.expectation.configuration, self.elements, self.failures, self.missing, self.values, self.broken is None
        )


def unreadable(column: str) -> str:
    return f"{column}, why it is unreadable"


def _expect(
    kind: type[Expectation],
    column: str,
    severity: Severity,
    explain: Callable[[Any], str] = str,
    follows: tuple[str, ...] = (),
    **settings: Any,
) -> Check:
    expectation = kind(column=column, severity=FailureSeverity(severity), **settings)  # type: ignore[call-arg]
    return Check(expectation, column, severity, explain, follows)


def row_checks(table: Table) -> list[Check]:
    """The suite over rows, in the order in which reasons are told."""
    present = ExpectTableColumnsToMatchSet(column_set=list(table.columns), exact_match=False, severity=FailureSeverity.CRITICAL)
    checks = [Check(present, "", "critical", str), _expect(ExpectColumnValuesToBeNull, BROKEN, "critical")]
    for name, column in table.columns.items():
        checks += _column_checks(name, column, placed=name in (*table.key, table.event_time))
    unknown = f"known: {table.known} gives no moment for this row"
    parts = [name for name in table.columns if re.search(rf"\b{name}\b", table.known, re.IGNORECASE)]
    return [
        *checks,
        _expect(ExpectColumnValuesToBeBetween, COPIES, "critical", max_value=1),
        _expect(ExpectColumnValuesToBeNull, UNTOLD, "critical"),
        _expect(
            ExpectColumnValuesToNotBeNull,
            KNOWN,
            "critical",
            lambda _: unknown,
            (BROKEN, UNTOLD, *parts, *map(unreadable, parts)),
        ),
    ]


def _column_checks(name: str, column: Column, *, placed: bool) -> list[Check]:
    """The checks of one column.

    Args:
        placed: the column names or places the row: without it there is nothing to publish, whatever the severity.
    """
    severity = column.severity
    checks = [_expect(ExpectColumnValuesToBeNull, unreadable(name), "critical")]
    if placed or not column.nullable:
        needed: Severity = "critical" if placed else severity
        checks.append(
            _expect(ExpectColumnValuesToNotBeNull, name, needed, lambda _: f"{name}: missing", (BROKEN, unreadable(name)))
        )
    if column.min is not None or column.max is not None:
        checks.append(
            _expect(
                ExpectColumnValuesToBeBetween,
                name,
                severity,
                lambda value: f"{name}: {value} is {_beyond(value, column.min, column.max)}",
                min_value=column.min,
                max_value=column.max,
            )
        )
    if column.values is not None:
        allowed = ", ".join(column.values[:10]) + (", …" if len(column.values) > 10 else "")
        checks.append(
            _expect(
                ExpectColumnValuesToBeInSet,
                name,
                severity,
                lambda value: f"{name}: {_quote(value)} is none of {allowed}",
                value_set=column.values,
            )
        )
    if column.matches is not None:
        # Python's $ holds before a last line break as well, which a value cut out of a file may well have.
        checks.append(
            _expect(
                ExpectColumnValuesToMatchRegex,
                name,
                severity,
                lambda value: f"{name}: {_quote(value)} does not match {column.matches}",
                regex=rf"^(?!(?s:.*)\n\Z)(?:{column.matches})",
            )
        )
    return checks


def _beyond(value: float, least: float | None, most: float | None) -> str:
    return f"below {least:.15g}" if least is not None and value < least else f"above {most:.15g}"


def _quote(value: Any) -> str:
    text = str(value)
    return f"'{text if len(text) <= 60 else text[:59] + '…'}'"


def whole(name: str, least: float | None, most: float | None, severity: Severity, explain: Callable[[Any], str]) -> Check:
    return _expect(ExpectColumnValuesToBeBetween, name, severity, explain, min_value=least, max_value=most)
