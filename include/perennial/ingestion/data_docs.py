"""A page of Great Expectations' Data Docs for one table and interval, without a Great Expectations project around it.

Great Expectations' renderers (1.24.1) quote values of the data unescaped, so values are escaped before they are rendered.
Its pages fetch styles, scripts and a picture from seven other servers. Here a page is one file that fetches nothing.

Neighbour: :mod:`perennial.ingestion.checks` judges in batches and sums the results up over all of them.
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

# One view for the process: it keeps its compiled templates.
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
class ExpectationResult:
    """The result of one expectation.

    Attributes:
        configuration: Great Expectations' configuration of the expectation.
        elements: number of judged values, missing ones included.
        failures: number of values that failed.
        missing: number of missing values.
        values: examples of values that failed, ready to be shown.
        computed: whether the expectation could be judged.
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


def write_page(path: Path, *, title: str, run_id: str, judged: Sequence[ExpectationResult]) -> Path:
    """Write the page. The file is replaced as a whole, so that a reader never sees a part of it.

    Args:
        path: the file.
        title: title of the page.
        run_id: shown on the page.
        judged: one result per expectation.

    Returns:
        The path.
    """
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
    page = _FETCHED.sub("", _view.render(document))  # type: ignore[no-untyped-call]  # it has no types
    page = page.replace("<head>", f"<head>{_POLICY}", 1).replace("</head>", f"{_STYLE}</head>", 1)
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return path


def _result(one: ExpectationResult) -> ExpectationValidationResult:
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
