"""The page at the end of ``perennial try``: what a model's life looked like, from its rows to a verdict on drift, on one page.

It is read from the scratch deployment before that is removed. Neighbours: :mod:`perennial.cli.starting` lives the life;
:mod:`perennial.reports.documents` draws pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from perennial.core.errors import ArtifactRejected, CardError, TrainingError
from perennial.deployment import Deployment
from perennial.reports.documents import Block, Chapter, Document, Facts, Grid, Mark, Picture, Points, Words
from perennial.spec.folder import ModelFolder

if TYPE_CHECKING:
    from perennial.ledger.records import Verdict, VersionRecord

#: Most rows of a table of reasons, features or columns.
_MOST = 15


@dataclass(frozen=True)
class Step:
    """A step of the rehearsal: what was done, what it said, and how long it took, in seconds."""

    name: str
    said: str
    seconds: float


def rehearsal(folder: ModelFolder, parts: Deployment, steps: Sequence[Step], *, as_of: datetime) -> Document:
    """The page of a rehearsal.

    Args:
        folder: the model's folder.
        parts: the scratch deployment; nothing is written to it.
        steps: what was done, in order; a step that failed is not among them.
        as_of: the end of the data.
    """
    ledger, model = parts.ledger, folder.spec.name
    version = max(ledger.versions(model), key=lambda one: one.version, default=None)
    verdicts = ledger.verdicts(model)
    # Without one, the check has found why there can be none.
    promoted = ledger.champion(model) is not None
    mark = Mark("champion", "good") if promoted else Mark("refused" if version else "not trained", "bad")
    figures = [] if version is None else _figures(version)
    return Document(
        kind="Rehearsal",
        title=model,
        lead=f"Lived without a stack on data up to {as_of:%Y-%m-%d}, and then removed. {folder.spec.description}",
        mark=mark,
        figures=figures,
        sections=[
            Chapter("Steps", [Grid(["step", "seconds"], [[step.name, round(step.seconds, 1)] for step in steps])], "steps"),
            Chapter("Rows", _rows(parts, model), "published rows"),
            Chapter("What check says", [Points(_lines(steps, "check"))], "the step check"),
            *([] if version is None else [Chapter("What the gates say", _gates(version), "a decision")]),
            *([] if version is None else _of_importance(folder, parts, version)),
            *([] if not verdicts else [Chapter("Drift of the last week", _drift(verdicts[-1]), "a verdict")]),
        ],
    )


def _lines(steps: Sequence[Step], name: str) -> list[str]:
    return [line for step in steps if step.name.split()[0] == name for line in step.said.splitlines()] or ["It was not run."]


def _figures(version: VersionRecord) -> list[tuple[str, str, str]]:
    evaluation = version.evaluation
    metric = evaluation.metric
    return [
        (f"{metric} of {one.name}", f"{value:.4g}", "baseline" if one.role == "baseline" else "on the holdout")
        for one in (evaluation.candidate, *evaluation.baselines)
        if (value := one.metrics.get(metric)) is not None
    ]


def _rows(parts: Deployment, model: str) -> list[Block]:
    tables = parts.ledger.published(model, "tables")
    if tables is None:
        return [Words("Nothing is published.")]
    features = parts.ledger.published(model, "features")
    counts = {**tables.rows, **(features.rows if features is not None else {})}
    blocks: list[Block] = [
        Words(f"Of {tables.interval}."),
        Grid(["table", "rows"], [[name, count] for name, count in counts.items()]),
    ]
    if tables.rows.get("quarantine"):
        reasons: Counter[tuple[str, str]] = Counter()
        columns = ["table", "reasons"]
        with parts.lake.scan(model, "quarantine", tables.snapshots["quarantine"], columns=columns) as rows:
            for batch in rows:
                for table, why in zip(*(batch[name].to_pylist() for name in columns), strict=True):
                    # The column and what is wrong with it; values differ from row to row.
                    reasons.update((table, reason.partition(":")[0]) for reason in why)
        most = [[table, reason, count] for (table, reason), count in reasons.most_common(_MOST)]
        blocks += [Words("Went to quarantine:"), Grid(["table", "column or check", "rows"], most)]
    return blocks


def _gates(version: VersionRecord) -> list[Block]:
    said = [
        [result.gate, Mark("passed", "good") if result.passed else Mark("refused", "bad"), result.reason]
        for result in version.decision.results
    ]
    training = version.training
    facts = Facts(
        [
            ("candidate", training.candidate),
            ("learned from", f"{training.window} ({training.rows.get('window', 0):,} rows)"),
            ("holdout", f"{training.holdout} ({training.rows.get('holdout', 0):,} rows)"),
        ]
    )
    return [facts, Grid(["gate", "", "why"], said)]


def _of_importance(folder: ModelFolder, parts: Deployment, version: VersionRecord) -> list[Chapter]:
    from perennial.reports.dossier import gather

    with suppress(CardError, TrainingError, ArtifactRejected):  # a page without it is better than none
        dossier = gather(folder, parts, version.model, version.version)
        if dossier.importance:
            metric = dossier.evaluation.metric
            shown = [[name, drop] for name, drop in list(dossier.importance.items())[:_MOST]]
            blocks: list[Block] = [Grid(["feature", f"drop of {metric}"], shown)]
            if png := dossier.artifacts.get("validation/importance.png"):
                blocks.append(Picture("importance.png", "Permutation importance on the validation rows", png))
            return [Chapter("Which features matter", blocks, "importance")]
    return []


def _drift(verdict: Verdict) -> list[Block]:
    return [Facts([("window", verdict.interval.in_words), ("verdict", verdict.verdict)]), Points(list(verdict.reasons))]
