"""Commands that answer a question about a model, a version or a prediction, and change nothing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.cli import by_hand
from perennial.cli.command import MODEL, VERSION, argument, command, console, interval, living_settings, moment, one_of, tell
from perennial.core.intervals import Interval
from perennial.core.settings import settings
from perennial.evidence.verdict import ESTIMATE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from perennial.alerts.outbox import OutboxEntry
    from perennial.ledger.records import ParityRecord
    from perennial.monitoring.estimation import WindowOutlook

JSON = argument("--json", action="store_true")


@command(
    "status",
    "how all models are, in ten lines: champion, last scored, last verdict, what waits, what is wrong and what to do",
    argument("--all", action="store_true", help="all models, in as many lines as it takes"),
    argument("--json", action="store_true", help="what the model board shows, as JSON, and what to do"),
)
def status(chosen: argparse.Namespace) -> int:
    from perennial.reports import status

    board = by_hand.board(settings())
    if chosen.json:
        return tell(json.dumps(status.to_json(board), indent=2))
    return tell("\n".join(status.lines(board, most=None if chosen.all else status.LINES)))


@command("performance", "each window's estimated and realised metric, and its verdict", MODEL)
def performance(chosen: argparse.Namespace) -> int:
    metric, windows = by_hand.outlook(settings(), chosen.model)
    screen = console()
    screen.print(_windows(metric, windows) if windows else f"no window of {chosen.model} has been judged or measured yet")
    if windows:
        screen.print(ESTIMATE_LIMIT, markup=False)
    for line in by_hand.requests(settings(), chosen.model):
        screen.print(line, markup=False)
    return 0


def _windows(metric: str, windows: Sequence[WindowOutlook]) -> Table:
    from rich.table import Column, Table

    numbers = ("estimated", "realised", "labels")
    table = Table("window", "version", *(Column(name, justify="right") for name in numbers), "verdict", title=metric, box=None)
    for window in windows:
        width = f" ±{(window.band[1] - window.band[0]) / 2:.2g}" if window.band else ""
        table.add_row(
            window.interval.key,
            str(window.version),
            "" if window.estimated is None else f"{window.estimated:.4g}{width}",
            "" if window.realised is None else f"{window.realised:.4g}",
            "" if window.coverage is None else f"{window.coverage:.0%}{'' if window.mature else ', early'}",
            " ".join(filter(None, (window.verdict, f"({window.severity})" if window.severity not in (None, "none") else ""))),
        )
    return table


@command(
    "parity",
    "how much of what was served online is what the published tables give, by day and feature",
    MODEL,
    argument("--json", action="store_true"),
    argument("--number", type=int, default=7, help="show this many of the newest days (default 7)"),
)
def parity(chosen: argparse.Namespace) -> int:
    found = by_hand.parity(settings(), chosen.model)[: max(1, chosen.number)]
    if chosen.json:
        shown = [{"definition": one.definition, **one.measured.to_json()} for one in found]
        return tell(json.dumps(shown, indent=2))
    screen = console()
    screen.print(_parities(found) if found else f"the parity of {chosen.model} has not been measured yet")
    return 0


def _parities(found: Sequence[ParityRecord]) -> Table:
    from rich.table import Column, Table

    numbers = ("rows", "equal", "share")
    table = Table("features of", "definition", *(Column(name, justify="right") for name in numbers), "not equal", box=None)
    for one in found:
        its = one.measured
        said = [*its.worst, *([f"not compared: {', '.join(its.unchecked)}"] if its.unchecked else [])]
        share = f"{its.share:.1%}{'' if its.is_judged else ', too few rows'}"
        table.add_row(its.interval, one.definition[:12], f"{its.rows:,}", f"{its.equal:,}", share, "; ".join(said))
    return table


@command(
    "history",
    "each change of the champion: when, from which version, why and by whom; and what published days still lack",
    MODEL,
    argument("--json", action="store_true", help="as JSON, with the evidence"),
)
def history(chosen: argparse.Namespace) -> int:
    from perennial.reports.history import show_history

    changes = by_hand.history(settings(), chosen.model)
    if chosen.json:
        return tell(json.dumps(changes, indent=2))
    screen = console()
    show_history(screen, chosen.model, changes)
    of_model = (by_hand.signed, by_hand.requests, by_hand.unfinished)
    for line in [line for lines in of_model for line in lines(settings(), chosen.model)]:
        screen.print(line, markup=False)
    return 0


@command(
    "alerts",
    "the alerts that were sent or wait to be sent, and why they wait",
    argument("model", nargs="?", help="only alerts of this model"),
    argument("--waiting", action="store_true", help="only alerts that have not been sent"),
    argument("--number", type=int, default=20, help="show this many of the newest alerts (default 20)"),
)
def alerts(chosen: argparse.Namespace) -> int:
    from perennial.ledger.store import Ledger

    ledger = Ledger(settings().database_url)
    entries = [entry for entry in ledger.alerts() if chosen.model in (None, entry.alert.model)]
    if chosen.waiting:
        entries = [entry for entry in entries if entry.waits]
    table, screen = _entries(entries[-chosen.number :]), console()
    screen.print(table) if table.rows else screen.print("No alert waits." if chosen.waiting else "There are no alerts.")
    for channel in ledger.outbox.channels():
        if channel.failures:
            next_at = f"{channel.next_attempt_at:%Y-%m-%d %H:%M}"
            screen.print(f"{channel.channel} failed {channel.failures} times: {channel.error}. Next attempt {next_at} UTC.")
    return 0


def _entries(entries: Sequence[OutboxEntry]) -> Table:
    from rich.table import Table

    table = Table("since (UTC)", "", "what", "channels")
    for entry in entries:
        word = "recovered" if entry.alert.kind == "recovered" else entry.alert.severity
        channels = "not yet assigned to channels" if entry.routed_at is None else "\n".join(map(str, entry.deliveries))
        table.add_row(f"{entry.created_at:%Y-%m-%d %H:%M}", word, entry.alert.title, channels or "no channel is named")
    return table


@command("explain", "all about a version: data, metrics, gates, approval, promotion", MODEL, VERSION, JSON)
def explain(chosen: argparse.Namespace) -> int:
    from perennial.reports.history import show_story

    story = by_hand.explain(settings(), chosen.model, chosen.version)
    if chosen.json:
        return tell(json.dumps(story, indent=2))
    show_story(console(), story)
    return 0


@command(
    "card",
    "write a version's model card and release report",
    MODEL,
    VERSION,
    argument("--out", type=Path, metavar="DIR", help="folder to write them to; default: the version's run in MLflow"),
)
def card(chosen: argparse.Namespace) -> int:
    return tell(
        by_hand.card(living_settings(only_reads_models=chosen.out is not None), chosen.model, chosen.version, chosen.out)
    )


@command(
    "lineage",
    "where a prediction came from, or where raw rows went",
    MODEL,
    one_of(
        argument("--prediction", nargs="+", metavar="KEY", help="values of the entity's key, or column=value"),
        argument("--request", metavar="ID", help="the id of a request that was asked online"),
        argument("--interval", nargs=2, type=moment, metavar=("START", "END"), help="days of the raw rows, without END"),
    ),
    argument("--at", type=moment, metavar="DAY", help="the day of the prediction's event, or of the request"),
    argument("--json", action="store_true", help="everything, as JSON"),
)
def lineage(chosen: argparse.Namespace) -> int:
    from perennial.reports.traces import draw

    if chosen.interval:
        chosen.start, chosen.end = chosen.interval
    found = by_hand.lineage(
        settings(),
        chosen.model,
        prediction=chosen.prediction,
        request=chosen.request,
        at=Interval.day(chosen.at) if chosen.at else None,
        interval=interval(chosen) if chosen.interval else None,
    )
    if chosen.json:
        return tell(json.dumps(found.to_json(), indent=2, default=str))
    console().print(draw(found))
    return 0


@command("reproduce", "train a version again on its pinned rows and compare the predictions", MODEL, VERSION)
def reproduce(chosen: argparse.Namespace) -> int:
    told, identical = by_hand.reproduce(living_settings(only_reads_models=True), chosen.model, chosen.version)
    return tell(told) if identical else tell(told) or 1
