"""The results of the demo: a line per week, the table at the end, and ``summary.json``.

All of it is read from where it is kept: the ledger, the predictions database, Airflow's own list of runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.table import Column, Table

from perennial.core.intervals import Interval, utc
from perennial.core.settings import mlflow_page
from perennial.demo.client import Asked, told
from perennial.demo.worth import DAILY, worth
from perennial.ledger.records import Promotion, Publication, VersionRecord, judged_or_newest
from perennial.ledger.store import Ledger
from perennial.stack.airflow_api import DagRun
from perennial.stack.embedded import Stack

_KINDS = ("read", "published", "quarantined")
#: How many reasons of a verdict are shown, the most important ones.
_REASONS = 3


def week_in_words(ledger: Ledger, model: str, interval: Interval) -> str:
    """What was read, predicted, judged and trained for an interval, in words."""
    words = []
    rows = _rows(_newest(ledger.publications(model, "tables", interval)))
    read, quarantined = (sum(table[kind] for table in rows.values()) for kind in ("read", "quarantined"))
    words.append(f"{read:,} rows read, {quarantined:,} quarantined")
    predicted = sum(
        publication.rows["predictions"]
        for publication in _newest(ledger.publications(model, "predictions", interval))
        if interval.contains(publication.interval)
    )
    if predicted:
        words.append(f"{predicted:,} predictions")
    verdicts = {verdict.interval: verdict.verdict for verdict in ledger.verdicts(model, before=interval.end)}
    if interval in verdicts:
        words.append(f"verdict {verdicts[interval]}")
    for record in ledger.versions(model):
        if interval.start < utc(record.training.as_of) <= interval.end:
            kind = "refresh " if record.is_refresh else ""
            words.append(f"{kind}version {record.version} {_decided(record)}")
    return ", ".join(words)


def what_monitoring_says(ledger: Ledger, model: str, interval: Interval) -> list[str]:
    """Why an interval has drifted, and why a training was requested after it; empty if neither."""
    drifted = [
        f"drift: {'; '.join(verdict.reasons[:_REASONS])}"
        for verdict in ledger.verdicts(model, before=interval.end)
        if verdict.interval == interval and verdict.verdict == "drift"
    ]
    return [*drifted, *(one.reason for one in ledger.retrainings(model) if one.asked and one.window_end == interval.end)]


def _decided(record: VersionRecord) -> str:
    """``promoted``, or ``refused (classes, refresh.skill)``."""
    refused = record.decision.refused_by
    return "promoted" if record.decision.promote else f"refused ({', '.join(refused)})"


def summarise(
    stack: Stack, model: str, weeks: Sequence[Interval], seconds: Mapping[str, float], runs: Sequence[DagRun], asked: Asked
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
        stack: that it happened on.
        model: the model's name.
        weeks: replayed by this run of the demo.
        seconds: how long each step of this run took.
        runs: of the model's DAGs, by all runs of the demo.
        asked: what the scorer was asked in this run.
    """
    ledger = Ledger(stack.settings.database_url)
    verdicts = ledger.verdicts(model, limit=1000)[::-1]
    versions = ledger.versions(model)
    promotions = [promotion for promotion in ledger.promotions(model) if promotion.completed_at]
    reports = [(stack.settings.reports / verdict.report).as_uri() for verdict in verdicts if verdict.report]
    return {
        "model": model,
        "addresses": {
            "airflow": stack.airflow_url,
            "mlflow": mlflow_page(stack.mlflow_url),
            "scorer": stack.scorer_url,
            "newest_drift_report": reports[-1] if reports else None,
            "user": "admin",
            "password": stack.password,
        },
        "tables": _rows(_newest(ledger.publications(model, "tables"))),
        "intervals": {
            "weeks_of_this_run": [week.key for week in weeks],
            "published": [publication.interval.key for publication in _newest(ledger.publications(model, "tables"))],
            "refused": [
                {"interval": refusal.interval.key, "reasons": refusal.reasons, "rows": refusal.rows}
                for refusal in ledger.refusals(model)
            ],
        },
        "versions": [_version(record, promotions) for record in versions],
        "promotions": [
            {
                "version": promotion.version,
                "over": promotion.previous,
                "action": promotion.action,
                "reason": promotion.reason,
                "actor": promotion.actor,
                "run": promotion.run_id,
            }
            for promotion in promotions
        ],
        "refusals": [
            {"version": record.version, "reasons": record.decision.reasons}
            for record in versions
            if not record.decision.promote
        ],
        "champion": ledger.champion(model),
        "held_back": [
            {"what": hold.what, "interval": hold.interval.key, "reasons": hold.reasons, "released": hold.release_reason}
            for hold in ledger.holds(model)
        ],
        "worth": worth(stack.settings, model),
        "predictions": _predictions(stack.settings.predictions_url, model),
        "online": {
            **told(asked, _published(stack.settings.predictions_url, model, [key for key, _, _ in asked.answers])),
            "parity": _parity(ledger, model) if asked.answers else None,
        },
        "drift_verdicts": [
            {
                "interval": verdict.interval.key,
                "version": verdict.version,
                "verdict": verdict.verdict,
                "reasons": verdict.reasons,
                "report": verdict.report,
            }
            for verdict in verdicts
        ],
        "performance": [
            {
                "interval": performance.interval.key,
                "version": performance.version,
                "metrics": performance.metrics,
                "rows": performance.rows,
                "coverage": performance.coverage,
            }
            for performance in ledger.performances(model)
        ],
        "retrainings": [
            {
                "window_end": retraining.window_end.isoformat(),
                "asked": retraining.asked,
                "cause": retraining.cause,
                "reason": retraining.reason,
                "expected": retraining.expectation.words,
                "got": retraining.audit.words,
            }
            for retraining in ledger.retrainings(model)
        ],
        "runs": _runs(runs),
        "seconds": {
            "steps": {name: round(value, 1) for name, value in seconds.items()},
            "stages": _stage_seconds(runs),
        },
    }


def show(console: Console, summary: Mapping[str, Any], file: Path) -> None:
    """The tables at the end, with the addresses of the UIs."""
    metric = next((version["metric"] for version in summary["versions"]), "metric")
    console.print(_weeks(summary, metric))
    tables = Table("table", *(Column(kind, justify="right") for kind in _KINDS))
    for name, rows in summary["tables"].items():
        tables.add_row(name, *(f"{rows[kind]:,}" for kind in _KINDS))
    console.print(tables)
    asked = sum(retraining["asked"] for retraining in summary["retrainings"])
    addresses = summary["addresses"]
    for line in (
        f"{summary['predictions']['rows']:,} predictions, {len(summary['versions'])} versions, "
        f"{len(summary['promotions'])} promotions, {len(summary['refusals'])} refusals, {asked} retrainings requested by "
        f"monitoring, {sum(run['runs'] for run in summary['runs'].values())} Airflow runs, {summary['seconds']['all']:.0f} s",
        *_worth(summary["worth"], metric),
        *online_in_words(summary["online"]),
        f"Airflow       {addresses['airflow']}   sign in as {addresses['user']}, password {addresses['password']}",
        f"MLflow        {addresses['mlflow']}",
        f"Scorer        {addresses['scorer']}/models/{summary['model']}",
        f"Drift report  {addresses['newest_drift_report']}",
        f"Summary       {file}",
    ):
        console.print(line, soft_wrap=True)


def _worth(found: Mapping[str, Any], metric: str) -> list[str]:
    if not found:
        return []
    lines = {
        DAILY: f"{metric}, mean of the days", metric: f"{metric}, all rows together",
        "log_loss": "log loss", "cost": "cost per row",
    }  # fmt: skip
    return [
        f"{words}: {', '.join(f'{name} {value[key]:.4f}' for name, value in found.items() if key in value)}"
        for key, words in lines.items()
        if any(key in value for value in found.values())
    ]


def online_in_words(found: Mapping[str, Any]) -> list[str]:
    """What the client of the scorer has seen, and how far what was served equals what is published."""
    lines = [
        f"online {way}: {said['requests']} requests, {said['failed']} failed"
        + (f", p50 {said['p50']:,.0f} ms, p99 {said['p99']:,.0f} ms" if "p50" in said else "")
        for way, said in found["ways"].items()
    ]
    if found["again"]:
        lines.append(f"online: {found['again']} times a request was told to come again")
    if found["compared"]:
        lines.append(
            f"online: {found['equal']} of {found['compared']} answers equal what the batch published by the same version for "
            f"the same flight, to the last bit; {found['other_version']} by another version"
        )
    if (parity := found["parity"]) is not None:
        lines.append(
            f"online: parity {parity['share']:.1%} (online.parity requires {parity['bound']:.1%}): {parity['equal']} of "
            f"{parity['rows']} rows with features of {parity['day']} were served as the published tables give them, to the "
            "last bit"
            + (f"; {', '.join(parity['worst'])}" if parity["worst"] else "")
            + ("" if parity["judged"] else "; too few to be judged")
        )
    return [*lines, *([f"online: the first failure was {found['reason']}"] if found["reason"] else [])]


def _weeks(summary: Mapping[str, Any], metric: str) -> Table:
    verdicts = {verdict["interval"]: verdict["verdict"] for verdict in summary["drift_verdicts"]}
    asked = {utc(retraining["window_end"]) for retraining in summary["retrainings"] if retraining["asked"]}
    realised = {result["interval"]: result["metrics"] for result in summary["performance"]}
    table = Table(
        "week", "verdict", Column(f"realised {metric}", justify="right"), "version", "what", "decision",
        Column("s", justify="right"),
    )  # fmt: skip
    for key in summary["intervals"]["weeks_of_this_run"]:
        week = Interval.from_key(key)
        made = [version for version in summary["versions"] if week.start < utc(version["as_of"]) <= week.end]
        table.add_row(
            f"{week.start:%d %b}",
            f"{verdicts.get(key, '')}{', asks' if week.end in asked else ''}",
            _three_digits(realised.get(key, {}), metric),
            "\n".join(str(version["version"]) for version in made),
            "\n".join("refresh" if version["refreshes"] else "replacement" for version in made),
            "\n".join("promoted" if version["passed"] else f"refused: {', '.join(version['refused_by'])}" for version in made),
            f"{summary['seconds']['steps'].get(key, 0):.0f}",
        )
    return table


def _newest(publications: Sequence[Publication]) -> list[Publication]:
    """The newest publication of each interval."""
    return list({publication.interval: publication for publication in publications}.values())


def _rows(publications: Sequence[Publication]) -> dict[str, dict[str, int]]:
    total: dict[str, Counter[str]] = defaultdict(Counter)
    for publication in publications:
        for table, rows in publication.inputs["rows"].items():
            total[table].update(rows)
    return {table: {kind: rows[kind] for kind in _KINDS} for table, rows in total.items()}


def _version(record: VersionRecord, promotions: Sequence[Promotion]) -> dict[str, Any]:
    evaluation = record.evaluation
    champion = evaluation.champion
    return {
        "version": record.version,
        "candidate": record.training.candidate,
        "params": record.training.params,
        "as_of": record.training.as_of,
        "run": evaluation.run_id,
        "mlflow_run": record.mlflow_run_id,
        "holdout": evaluation.interval,
        "rows": evaluation.rows,
        "metric": evaluation.metric,
        "metrics": evaluation.candidate.metrics,
        "champion": None if champion is None else {"version": champion.version, "metrics": champion.metrics},
        "baselines": {baseline.name: baseline.metrics for baseline in evaluation.baselines},
        "refreshes": evaluation.refresh.champion if evaluation.refresh is not None else None,
        "passed": record.decision.promote,
        "refused_by": record.decision.refused_by,
        "promoted": any(promotion.version == record.version for promotion in promotions),
    }


def _predictions(url: str, model: str) -> dict[str, Any]:
    engine = sa.create_engine(url)
    table = sa.table(f"{model}_predictions", sa.column("version"))
    query = sa.select(table.c.version, sa.func.count()).group_by(table.c.version).order_by(table.c.version)
    try:
        if not sa.inspect(engine).has_table(table.name):
            return {"rows": 0, "by_version": {}}
        with engine.connect() as connection:
            by_version = {str(version): int(rows) for version, rows in connection.execute(query)}
    finally:
        engine.dispose()
    return {"rows": sum(by_version.values()), "by_version": by_version}


def _published(url: str, model: str, keys: Sequence[str]) -> dict[tuple[str, int], float]:
    """What the batch predicts, by key and version."""
    if not keys:
        return {}
    engine = sa.create_engine(url)
    table = sa.table(f"{model}_predictions", sa.column("flight_id"), sa.column("version"), sa.column("prediction"))
    try:
        with engine.connect() as connection:
            rows = connection.execute(sa.select(*table.c).where(table.c.flight_id.in_(sorted(set(keys)))))
            return {(row.flight_id, int(row.version)): float(row.prediction) for row in rows}
    finally:
        engine.dispose()


def _parity(ledger: Ledger, model: str) -> dict[str, Any] | None:
    """The newest parity with enough rows, or the newest; None if none was measured."""
    found = judged_or_newest(ledger.parities(model))
    if found is None:
        return None
    its = found.measured
    return {
        "day": its.interval, "rows": its.rows, "equal": its.equal, "share": its.share, "bound": its.bound,
        "judged": its.is_judged, "worst": its.worst,
    }  # fmt: skip


def _runs(runs: Sequence[DagRun]) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        counted[run.dag_id].update(["runs", run.state])
    return {dag_id: dict(states) for dag_id, states in sorted(counted.items())}


def _stage_seconds(runs: Sequence[DagRun]) -> dict[str, float]:
    seconds: defaultdict[str, float] = defaultdict(float)
    for run in runs:
        seconds[run.dag_id.rpartition(".")[2]] += run.seconds
    return {stage: round(value, 1) for stage, value in sorted(seconds.items())}


def _three_digits(metrics: Mapping[str, float], metric: str) -> str:
    return f"{metrics[metric]:.3f}" if metric in metrics else ""
