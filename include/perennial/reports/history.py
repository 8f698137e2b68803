"""The history of champions: which version, since when, why, on what evidence, and who decided.

Neighbours: :mod:`perennial.ledger.store` keeps the records. The command line shows them as a table or as JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perennial.core.errors import ArtifactRejected
from perennial.core.intervals import Interval, merged
from perennial.evidence.decision import GateDecision
from perennial.ledger.coverage import Waiting, outdated
from perennial.ledger.records import Promotion, Retraining
from perennial.ledger.store import Ledger
from perennial.ledger.succession import completed

if TYPE_CHECKING:
    from rich.console import Console


def history(ledger: Ledger, model: str) -> list[dict[str, Any]]:
    """Every change of champion, oldest first, as plain values.

    Returns:
        For each change: ``since``, ``until`` (None: it is champion now), ``version``, ``over`` (the previous champion),
        ``action``, ``by``, ``why``, ``run`` and ``evidence``.
    """
    made = completed(ledger.promotions(model))
    ends = {retired.promotion_id: retired.retired_at.isoformat(timespec="seconds") for retired in ledger.retirements(model)}
    return [
        {
            "since": _moment(promotion),
            "until": ends.get(promotion.id) or (_moment(made[number]) if number < len(made) else None),
            "version": promotion.version,
            "over": promotion.previous,
            "action": promotion.action,
            "by": promotion.actor,
            "why": promotion.reason,
            "run": promotion.run_id,
            "evidence": promotion.evidence,
        }
        for number, promotion in enumerate(made, start=1)
    ]


def again(model: str, interval: Interval) -> str:
    """How to score an interval again, for people."""
    return f"to score it again, run: perennial score {model} {interval.start:%Y-%m-%d} {interval.end:%Y-%m-%d}"


def unfinished(ledger: Ledger, model: str) -> list[str]:
    """What published days of a model still lack, a line each: tables that they wait for, and new predictions."""
    stale = outdated(ledger.publications(model, "features"), ledger.publications(model, "predictions"))
    lines = [
        f"{stretch.in_words} was scored before its features changed; {again(model, stretch)}." for stretch in merged(stale)
    ]
    return lines + [
        f"{table} has not come for {', '.join(stretch.in_words for stretch in merged(one.day for one in awaited))}: published "
        f"without it since {min(one.since for one in awaited):%Y-%m-%d %H:%M} UTC."
        for table, awaited in Waiting(ledger.publications(model, "tables")).tables.items()
    ]


def requests(ledger: Ledger, model: str) -> list[str]:
    """The trainings that monitoring asked for, a line each, oldest first: why, what was expected, and what came of it."""
    return [
        f"After {asked.window_end:%Y-%m-%d} monitoring asked for a training ({asked.cause}): {in_short(asked)}."
        for asked in ledger.retrainings(model)
        if asked.asked
    ]


def signed(ledger: Ledger, model: str) -> list[str]:
    """What the signed chain of decisions says of the model's, a line each: that they are sound, or what is wrong."""
    checked = ledger.check_decisions(model)
    if checked.problems:
        return [f"PROBLEM {problem}" for problem in checked.problems]
    if checked.head is None:
        return []
    return [
        f"Checked: the {checked.rows} records of {model}'s versions and champions are as they were signed; the chain of "
        f"{checked.entries} entries is whole; key {checked.head.key} ({checked.trust}).",
        *checked.notes,
    ]


def in_short(asked: Retraining) -> str:
    """What was expected of a requested training, and what came of it."""
    if asked.expectation.is_empty:
        expected = "what was expected is not recorded"
    else:
        expected = f"expected {asked.expectation.figure}" if asked.expectation.figure else "it was not known what to expect"
    return f"{expected}; {asked.audit.words or 'what came of it is not known yet'}"


def explain(ledger: Ledger, model: str, version: int) -> dict[str, Any]:
    """All records of a version as plain values: its training, its evaluation, the decisions on it, and its time as champion.

    Raises:
        ArtifactRejected: the version is not in the ledger.
    """
    record = ledger.version(model, version)
    if record is None:
        there = ", ".join(str(known.version) for known in ledger.versions(model)) or "none"
        raise ArtifactRejected(f"{model} version {version} is not in the ledger; there are: {there}")
    training, evaluation, decision = record.training, record.evaluation, record.decision
    changes = history(ledger, model)
    reigns = [change for change in changes if change["version"] == version]
    return {
        "model": model,
        "version": version,
        "status": _status(version, changes, decision),
        "registered_at": record.created_at.isoformat(),
        "mlflow_run": record.mlflow_run_id,
        "code": {name: getattr(record.code, name) for name in ("commit", "dirty", "python")},
        "spec_digest": record.spec_digest,
        "trained": {
            name: getattr(training, name)
            for name in ("candidate", "params", "as_of", "window", "holdout", "rows", "labelled", "snapshots", "content")
        },
        "serves": {
            "interval": record.learned_from,
            "refit": evaluation.refit is not None,
            "agreement": evaluation.refit.agreement if evaluation.refit is not None else None,
            "refreshes": evaluation.refresh.champion if evaluation.refresh is not None else None,
            "withheld": training.withheld,
        },
        "judged": {
            "interval": evaluation.interval,
            "rows": evaluation.rows,
            "metric": evaluation.metric,
            "metrics": evaluation.candidate.metrics,
            "champion": evaluation.champion_version,
            "champion_metrics": evaluation.champion.metrics if evaluation.champion else {},
            "comparison": evaluation.comparison.to_json() if evaluation.comparison else None,
        },
        "gates": [result.to_json() for result in decision.results],
        "passed": decision.promote,
        "champion_unusable": decision.champion_unusable,
        "approvals": [
            {
                "answer": approval.answer,
                "by": approval.approver,
                "words": approval.words,
                "at": approval.answered_at.isoformat(),
                "run": approval.run_id,
            }
            for approval in ledger.approvals(model, version)
        ],
        "shadows": [
            {
                "version": seen.version,
                "champion": seen.champion,
                "interval": seen.interval.key,
                "rows": seen.rows,
                "outcome": seen.outcome,
                "reason": seen.reason,
                "metrics": seen.metrics,
            }
            for seen in ledger.shadow_comparisons(model)
            if version in (seen.version, seen.champion)
        ],
        "champion": reigns,
        "followed_by": [change for change in changes if change["over"] == version],
    }


def _moment(promotion: Promotion) -> str:
    assert promotion.completed_at is not None  # completed
    return promotion.completed_at.isoformat(timespec="seconds")


def _status(version: int, changes: list[dict[str, Any]], decision: GateDecision) -> str:
    if changes and changes[-1]["version"] == version:
        return "champion" if changes[-1]["until"] is None else "retired"
    if any(change["version"] == version for change in changes):
        after = [change for change in changes if change["over"] == version]
        return "rolled back from" if after and after[-1]["action"] == "rollback" else "former champion"
    return "not promoted" if decision.promote else "refused"


# --- for people ------------------------------------------------------------------------------------------------------


def show_history(console: Console, model: str, changes: list[dict[str, Any]]) -> None:
    """Print the changes of champion as a table, the newest last."""
    from rich.table import Column, Table

    if not changes:
        console.print(f"{model} has had no champion yet.")
        return
    table = Table("since", Column("version", justify="right"), Column("over", justify="right"), "action", "by", "why")
    for change in changes:
        over = "" if change["over"] is None else str(change["over"])
        table.add_row(_minute(change["since"]), str(change["version"]), over, change["action"], change["by"], change["why"])
    console.print(table)
    if changes[-1]["until"] is not None:
        console.print(f"{model} was retired on {_minute(changes[-1]['until'])} and has had no champion since then.")


def show_story(console: Console, story: dict[str, Any]) -> None:
    """Print the records of a version, section by section."""
    from rich.markup import escape
    from rich.table import Column, Table

    trained, judged = story["trained"], story["judged"]
    content = (trained["content"] or {}).get("window", "unknown")

    def say(text: str) -> None:
        console.print(escape(text))

    say(f"{story['model']} version {story['version']}: {story['status']}")
    dirty = ", with uncommitted changes" if story["code"]["dirty"] else ""
    say(f"  registered {_minute(story['registered_at'])}, MLflow run {story['mlflow_run']}")
    say(f"  code {story['code']['commit']}{dirty}, spec {story['spec_digest'][:12]}")
    say("What it learned from")
    say(f"  {trained['candidate']} with {trained['params']}, as of {trained['as_of']}")
    say(f"  rows of {trained['window']}: {(trained['rows'] or {}).get('window')}, content {content[:12]}")
    say(f"  snapshots {', '.join(f'{table} {number}' for table, number in (trained['snapshots'] or {}).items())}")
    if (serves := story["serves"])["refit"]:
        agrees = "" if serves["agreement"] is None else f", which agrees with the judged model: {serves['agreement']:.3f}"
        recipe = "the same recipe" if serves["refreshes"] is None else f"the recipe of version {serves['refreshes']}"
        say(f"  serves {recipe} fitted again on {serves['interval']}{agrees}")
    if serves["withheld"]:
        say(f"  without {', '.join(serves['withheld'])}, which is withheld (perennial data held)")
    say(f"How it was judged, on {judged['interval']} ({judged['rows']} rows)")
    rival = "no champion yet" if judged["champion"] is None else f"champion, version {judged['champion']}"
    metrics = Table("metric", Column(f"version {story['version']}", justify="right"), Column(rival, justify="right"))
    for metric, value in judged["metrics"].items():
        other = judged["champion_metrics"].get(metric)
        metrics.add_row(metric, f"{value:.4g}", "" if other is None else f"{other:.4g}")
    console.print(metrics)
    gates = Table("gate", "", "reason")
    for gate in story["gates"]:
        gates.add_row(gate["gate"], "passed" if gate["passed"] else "refused", escape(gate["reason"]))
    console.print(gates)
    if story["champion_unusable"]:
        say(f"Nothing was compared with the champion, which can never be used again: {story['champion_unusable']}")
    say("Who decided")
    for approval in story["approvals"]:
        say(f"  {_minute(approval['at'])} {approval['answer']} by {approval['by'] or 'nobody'}: {approval['words']}")
    for change in [*story["champion"], *story["followed_by"]]:
        over = "" if change["over"] is None else f" over {change['over']}"
        say(
            f"  {_minute(change['since'])} {change['action']} of version {change['version']}{over} by {change['by']}: "
            f"{change['why']}"
        )
    if not (story["approvals"] or story["champion"]):
        say("  nobody; it never became champion")
    if story["shadows"]:
        say("What labels said")
        for seen in story["shadows"]:
            say(f"  {seen['interval']}: {seen['reason']}")


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")
