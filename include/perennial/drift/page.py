"""The page that explains the verdict on a window: the verdict, all columns, and a picture of each.

Evidently's own page is 4 MB whatever the data, since it contains a plotting library. So its result is kept as JSON, from which
Evidently shows its page (docs/observe.md), and the pictures of this page are drawn without scripts
(``docs/decisions/0075-a-drift-report-is-drawn-and-kept-once.md``).

Neighbour: :mod:`perennial.drift.compare` judges.
"""

from __future__ import annotations

import gzip
import html
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.core.files import replacing
from perennial.core.intervals import Interval
from perennial.core.text import UNSAFE
from perennial.evidence.verdict import ESTIMATE_LIMIT

if TYPE_CHECKING:
    from perennial.drift.findings import DriftComparison
    from perennial.evidence.verdict import AskedDrift, Estimate, VerdictDetails

log = logging.getLogger(__name__)


_COLORS = {"ok": "#1a7f37", "drift": "#b35900", "unknown": "#57606a"}
#: The folder of the page about what was asked online, in that of the window.
ASKED = "asked"
_STATUS = {
    "stable": "stable",
    "drifted": "<b>drifted</b>",
    "left_out": "left out",
    "unusable": "<b>cannot be judged</b>",
}


def write_report(
    model: str,
    interval: Interval,
    version: int | None,
    comparison: DriftComparison,
    details: VerdictDetails,
    folder: Path,
    *,
    about: str = "",
) -> bool:
    """Write ``verdict.json``, ``report.html`` if a column was drawn, and ``evidently.json.gz`` if Evidently was called.

    An error is logged, and does not change the verdict.

    Args:
        model: name of the model.
        interval: the monitoring window.
        version: the version that was compared; None if there is none.
        comparison: what was found.
        details: of the verdict, as the ledger keeps them.
        folder: where the files are written. It is created if it does not exist.
        about: what was judged, if it is not what the batch predicted on.

    Returns:
        Whether ``report.html`` was written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        verdict = {
            "model": model, "interval": interval.key, "about": about, "version": version, "verdict": comparison.verdict,
            "reasons": comparison.reasons, "details": details.to_json(),
        }  # fmt: skip
        _replace(folder / "verdict.json", json.dumps(verdict, indent=2, default=str).encode())
        # What an earlier attempt left would contradict the verdict.
        if comparison.snapshot is None:
            (folder / "evidently.json.gz").unlink(missing_ok=True)
        if not comparison.shapes:
            (folder / "report.html").unlink(missing_ok=True)
            return False
        title = ", ".join(_as_text(part) for part in (model, about, interval.key) if part)
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: '
            f"{comparison.verdict}</title></head><body>{_verdict(title, version, comparison, details)}"
            f"{_pictures(comparison)}</body></html>"
        )
        _replace(folder / "report.html", page.encode())
        if comparison.snapshot is not None:
            _replace(folder / "evidently.json.gz", gzip.compress(comparison.snapshot.dumps().encode(), mtime=0))
        (folder / "evidently.json").unlink(missing_ok=True)  # as an earlier release wrote it
    except Exception:
        log.exception("the report could not be written to %s; the verdict does not change", folder)
        return False
    return True


def _replace(file: Path, content: bytes) -> None:
    with replacing(file) as draft:
        draft.write_bytes(content)


def _verdict(title: str, version: int | None, comparison: DriftComparison, details: VerdictDetails) -> str:
    """The verdict and a table of all columns."""
    items = "".join(f"<li>{_as_text(reason)}</li>" for reason in comparison.reasons)
    weight = "".join(f"<p>{line}</p>" for line in (*_impact(details), *_estimate(details.estimate), *_asked(details.asked)))
    rows = "".join(
        f"<tr><td>{_as_text(column.column)}</td><td>{_STATUS[column.status]}</td>"
        f"<td>{'' if column.score is None else f'{column.score:.3f}'}</td><td>{column.threshold:g}</td>"
        f"<td>{'Wasserstein, standard deviations' if column.kind == 'numeric' else 'Jensen-Shannon'}</td>"
        f"<td>{column.missing:.1%}</td><td>{column.reference_missing:.1%}</td></tr>"
        for column in sorted(comparison.columns, key=lambda column: -(column.score or 0) / column.threshold)
    )
    calibrated = details.calibrated
    source = f"Thresholds: drift.yaml of {_as_text(calibrated)}." if calibrated else "Thresholds: those of model.yaml."
    return (
        "<style>.perennial{font-family:sans-serif;max-width:1200px;margin:24px auto;padding:1px 24px;"
        "background:#fff;color:#111}"
        ".perennial td,.perennial th{padding:4px 16px 4px 0;text-align:left}</style>"
        f'<section class="perennial"><h1>{title}: '
        f'<span style="color:{_COLORS[comparison.verdict]}">{comparison.verdict}</span></h1>'
        f"{weight}<p>Compared with what version {version} was trained on. {source}</p><ul>{items}</ul>"
        "<table><tr><th>column</th><th>found</th><th>distance</th><th>threshold</th><th>measured by</th><th>missing</th>"
        f"<th>missing in the reference</th></tr>{rows}</table></section>"
    )


def _pictures(comparison: DriftComparison) -> str:
    """A picture of each column that has a distance, in the order of the columns."""
    drawn = "".join(
        f"<figure><figcaption>{_as_text(column.column)}: {_STATUS[column.status]}</figcaption>"
        f"{comparison.shapes[column.column].to_svg()}</figure>"
        for column in comparison.columns
        if column.column in comparison.shapes
    )
    return (
        "<style>figure{display:inline-block;margin:12px 24px 12px 0;vertical-align:top}svg text{font-size:11px}</style>"
        '<section class="perennial"><h2>Distributions</h2><p>Blue: this window. Grey: what the version was trained on.</p>'
        f"{drawn}</section>"
    )


def _impact(details: VerdictDetails) -> Iterator[str]:
    severity = details.severity or "none"
    if severity != "none":
        reasons = "; ".join(details.impact.reasons if details.impact else ())
        yield f"<b>{_as_text(severity.capitalize())}</b>{f': {_as_text(reasons)}' if reasons else ''}."


def _estimate(found: Estimate | None) -> Iterator[str]:
    if found is None:
        return
    if found.reason:
        yield f"Performance without labels: {_as_text(found.reason)}."
        return
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in found.metrics.items())
    said = [f"Estimated before labels: {numbers}."]
    if found.band:
        said.append(f"{found.metric} is probably between {found.band[0]:.4g} and {found.band[1]:.4g}.")
    if found.usual:
        said.append(f"Usual in training: {found.usual[0]:.4g} to {found.usual[1]:.4g}.")
    yield _as_text(" ".join([*said, ESTIMATE_LIMIT]))


def _asked(found: AskedDrift | None) -> Iterator[str]:
    if found is None:
        return
    verdict = {"not_judged": "not judged"}.get(found.verdict, found.verdict)
    page = f' <a href="{ASKED}/report.html">Its page</a>.' if found.report else ""
    yield f"Asked online in this window: <b>{verdict}</b>: {_as_text('; '.join(found.reasons))}.{page}"


def _as_text(text: str) -> str:
    return html.escape(UNSAFE.sub(" ", text))
