"""A page of Great Expectations' Data Docs for one table and interval, without a Great Expectations project around it.

Its renderers quote values of the data as they are, markup included (1.24.1); here they are escaped before they get there.
Its pages fetch styles, scripts and a picture from seven other servers; here they are one file that asks nobody for anything.
Neighbour: :mod:`perennial.ingestion.checks`, which judges in batches and tells here what came of it over all of them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult, ExpectationValidationResult
from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
from great_expectations.render.view.view import DefaultJinjaPageView

from perennial.core.files import replacing

# One for the process, since it keeps its compiled templates.
_view = DefaultJinjaPageView()

_FETCHED = re.compile(
    r"<script\b.*?</script>|<style\b.*?</style>|<footer\b.*?</footer>|<link\b[^>]*>|<img\b[^>]*>", re.DOTALL | re.IGNORECASE
)
_POLICY = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
_STYLE = """<style>
body { max-width: 76rem; margin: 0 auto; padding: 1.5rem; color: #1b2330; font: 14px/1.5 system-ui, "Segoe UI", sans-serif; }
a { color: #0d7d74; text-decoration: none; } ul, ol { list-style: none; padding: 0; margin: 0; } h2 { font-size: 1.2rem; }
nav, .col-lg-2, .btn-group, .collapse, [data-toggle=collapse] { display: none; }
h5, h6 { font-size: 1.05rem; margin: .6rem 0 .2rem; }
.row { display: block; } .badge { padding: .05rem .5rem; border-radius: 1rem; background: #eaeef3; font-size: .8rem; }
.table-responsive { overflow-x: auto; } table { width: 100%; border-collapse: collapse; margin: .3rem 0; }
th, td { padding: .35rem .7rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e3e8ee; }
.fas::before { content: "?"; font-style: normal; font-weight: 700; }
.fa-check-circle::before { content: "\\2713"; color: #17734a; } .fa-times::before { content: "\\2717"; color: #b42318; }
.fa-exclamation-triangle::before { content: "!"; color: #9a5b00; }
.ge-section { margin-top: 1.4rem; } .show-scrollbars { overflow-wrap: anywhere; }
</style>"""


@dataclass(frozen=True)
class Judged:
    """What one expectation came to.

    Attributes:
        configuration: Great Expectations' configuration of it.
        elements: values that were judged, the missing ones included.
        failures: values that failed.
        missing: values that were not there.
        values: some that failed, fit to be shown.
        computed: whether it could be judged at all.
    """

    configuration: Any
    elements: int
    failures: int
    missing: int
    values: Sequence[str]
    computed: bool

    @property
    def success(self) -> bool:
        return self.computed and not self.failures


def write_page(path: Path, *, title: str, run_id: str, judged: Sequence[Judged]) -> Path:
    """Write the page and return its path; one that is being read is replaced whole."""
    results = [_result(one) for one in judged]
    passed = sum(one.success for one in judged)
    whole = ExpectationSuiteValidationResult(
        results=results,
        success=passed == len(judged),
        suite_name=title,
        statistics={
            "evaluated_expectations": len(judged),
            "successful_expectations": passed,
            "unsuccessful_expectations": len(judged) - passed,
            "success_percent": 100 * passed / max(len(judged), 1),
        },
        meta={"run_id": {"run_name": html.escape(run_id), "run_time": datetime.now(UTC).isoformat()}},
    )
    document = ValidationResultsPageRenderer().render(whole)
    page = _FETCHED.sub("", _view.render(document))  # type: ignore[no-untyped-call]
    page = page.replace("<head>", f"<head>{_POLICY}", 1).replace("</head>", f"{_STYLE}</head>", 1)
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return path


def _result(one: Judged) -> ExpectationValidationResult:
    present = max(one.elements - one.missing, 0)
    values = [html.escape(value) for value in one.values]
    return ExpectationValidationResult(
        success=one.success,
        expectation_config=one.configuration,
        result={
            "element_count": one.elements,
            "unexpected_count": one.failures,
            "unexpected_percent": 100 * one.failures / present if present else 0.0,
            "unexpected_percent_total": 100 * one.failures / one.elements if one.elements else 0.0,
            "unexpected_percent_nonmissing": 100 * one.failures / present if present else 0.0,
            "missing_count": one.missing,
            "missing_percent": 100 * one.missing / one.elements if one.elements else 0.0,
            "partial_unexpected_list": values,
            "partial_unexpected_counts": [{"value": value, "count": values.count(value)} for value in dict.fromkeys(values)],
        },
        meta={},
        exception_info={"raised_exception": False, "exception_message": None, "exception_traceback": None},
    )
