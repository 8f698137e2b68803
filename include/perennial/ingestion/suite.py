"""From a table's spec to a suite of expectations: each check with its severity and its message."""

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

from perennial.alerts.alert import Severity
from perennial.ingestion.data_docs import ExpectationResult
from perennial.lake.schema import KNOWN
from perennial.spec.data import Column, Table

# Names of what is judged besides the spec's columns. People read them in Data Docs.
BROKEN, UNTOLD, COPIES = "row, why it is unreadable", "known, why it is unreadable", "rows with this key"


@dataclass(frozen=True)
class Check:
    """One check that the spec requires.

    Attributes:
        expectation: the check as an expectation of Great Expectations.
        looks_at: its column in the judged frame; empty if it looks at no column.
        severity: severity of a failure.
        explain: takes a value that fails, and says what is wrong with it.
        follows: columns whose failed checks explain why this check fails too. It is then not reported.
    """

    expectation: Expectation
    looks_at: str
    severity: Severity
    explain: Callable[[Any], str]
    follows: tuple[str, ...] = ()


@dataclass
class CheckTally:
    """What one check found over all batches.

    Attributes:
        check: the check.
        elements: number of judged values.
        failures: number of values that failed.
        missing: number of missing values.
        values: examples of values that failed.
        examples: examples of failures with position and reason.
        count: number of failures to report.
        broken: why the check could not be judged; None if it could.
    """

    check: Check
    elements: int = 0
    failures: int = 0
    missing: int = 0
    values: list[Any] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    count: int = 0
    broken: str | None = None

    def reasons(self) -> list[str]:
        """One line for people with the number of failures and the first one; empty without failures."""
        if not self.count:
            return []
        return [self.examples[0] if self.count == 1 else f"{self.count:,} times, first {self.examples[0]}"]

    def judged(self) -> ExpectationResult:
        return ExpectationResult(
            self.check.expectation.configuration, self.elements, self.failures, self.missing, self.values, self.broken is None
        )


def unreadable(column: str) -> str:
    """The name of the column that says why a value of ``column`` could not be read."""
    return f"{column}, why it is unreadable"


def _expect(
    kind: type[Expectation],
    column: str,
    severity: Severity,
    explain: Callable[[Any], str] = str,
    follows: tuple[str, ...] = (),
    **settings: Any,
) -> Check:
    # Each kind of expectation declares its own arguments.
    expectation = kind(column=column, severity=FailureSeverity(severity), **settings)  # type: ignore[call-arg]  # see above
    return Check(expectation, column, severity, explain, follows)


def row_checks(table: Table) -> list[Check]:
    """The checks of rows, in the order in which their reasons are reported."""
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
        name: name of the column.
        column: its spec.
        placed: whether the column is a part of the key or the event time. A row without it cannot be published, whatever
            the severity.
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
                lambda value: f"{name}: {_quote(value)} is not one of {allowed}",
                value_set=column.values,
            )
        )
    if column.matches is not None:
        # Python's $ also matches before a last line break, which a value of a file may have.
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
    """A check of the interval as a whole: a number must lie between two inclusive bounds. None means no bound."""
    return _expect(ExpectColumnValuesToBeBetween, name, severity, explain, min_value=least, max_value=most)
