"""Commands that run a stage by hand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.cli import by_hand
from perennial.cli.command import (
    END,
    MODEL,
    START,
    VERSION,
    Command,
    argument,
    command,
    console,
    interval,
    living_settings,
    moment,
    tell,
)
from perennial.core.settings import settings

if TYPE_CHECKING:
    from rich.table import Table

    from perennial.spec.folder import ModelFolder
    from perennial.spec.monitoring import DriftThresholds


_AS_OF = argument("--as-of", required=True, type=moment, help="use only data known by this day")
_CAUSE = argument("--cause", metavar="TEXT", help="why, for the record (default: by hand)")


@command(
    "check",
    "read a model folder and try its features on published data",
    MODEL,
    argument("--sample", type=Path, metavar="FILE", help="a file of a source, to read as ingestion would"),
)
def check(chosen: argparse.Namespace) -> int:
    found, in_order = by_hand.inspect(settings(), chosen.model, chosen.sample)
    return tell(found) if in_order else tell(found) or 1


@command("ingest", "by hand: publish an interval's tables and features", MODEL, START, END)
def ingest(chosen: argparse.Namespace) -> int:
    return tell(by_hand.ingest(settings(), chosen.model, interval(chosen)))


@command("score", "by hand: predict an interval with the champion", MODEL, START, END)
def score(chosen: argparse.Namespace) -> int:
    return tell(by_hand.score(living_settings(only_reads_models=True), chosen.model, interval(chosen)))


@command("materialize", "by hand: write the rows of features that are asked online by key", MODEL)
def materialize(chosen: argparse.Namespace) -> int:
    return tell(by_hand.materialize(living_settings(only_reads_models=True), chosen.model))


@command("record", "by hand: publish what was asked online, and measure whether what was served is what is published", MODEL)
def record(chosen: argparse.Namespace) -> int:
    return tell(by_hand.record(living_settings(only_reads_models=True), chosen.model))


@command("monitor", "by hand: judge the drift of an interval, and measure windows whose labels are known", MODEL, START, END)
def monitor(chosen: argparse.Namespace) -> int:
    return tell(by_hand.monitor(living_settings(), chosen.model, interval(chosen)))


@command(
    "train",
    "by hand: fit the candidates, and promote the best one if it passes the gates",
    MODEL,
    _AS_OF,
    _CAUSE,
)
def train(chosen: argparse.Namespace) -> int:
    return tell(by_hand.train(living_settings(), chosen.model, chosen.as_of, chosen.cause))


@command(
    "refresh",
    "by hand: fit the champion's recipe on newer rows, too; it becomes champion if it passes the gates of a refresh",
    MODEL,
    _AS_OF,
    _CAUSE,
)
def refresh(chosen: argparse.Namespace) -> int:
    return tell(by_hand.refresh(living_settings(), chosen.model, chosen.as_of, chosen.cause))


@command("held", "show what is held back, and what was", MODEL)
def _held(chosen: argparse.Namespace) -> int:
    return tell(by_hand.held(settings(), chosen.model))


@command(
    "release",
    "let the model learn again from data that are held back, or let refreshes go on",
    MODEL,
    argument("start", nargs="?", type=moment, help="first day of the data"),
    argument("end", nargs="?", type=moment, help="the day after the last day"),
    argument("--refreshes", action="store_true", help="refreshes that have stopped"),
    argument("--reason", required=True, help="recorded in the ledger"),
)
def _release(chosen: argparse.Namespace) -> int:
    if (chosen.start is None) != (chosen.end is None):
        raise SystemExit("give both days of the data, or neither")
    if chosen.start is None and not chosen.refreshes:
        raise SystemExit("name the days to release, or --refreshes")
    days = interval(chosen) if chosen.start is not None else None
    told, done = by_hand.release(settings(), chosen.model, days, refreshes=chosen.refreshes, reason=chosen.reason)
    return tell(told) if done else tell(told) or 1


data = Command("data", "what is held back from a model: held, release", steps=(_held, _release))


@command(
    "calibrate",
    "by hand: set the thresholds for drift from stable history",
    MODEL,
    argument("start", nargs="?", type=moment, help="first day of the stable history (default: all published days)"),
    argument("end", nargs="?", type=moment, help="the day after its last day"),
    argument(
        "--replays", type=int, choices=range(200, 100_001), metavar="N", default=1_000, help="windows to compare (default 1000)"
    ),
    argument("--seed", type=int, help="seed of the random draws (default: training.seed)"),
)
def calibrate(chosen: argparse.Namespace) -> int:
    from rich.progress import track

    from perennial.spec.folder import THRESHOLDS_FILE

    if (chosen.start is None) != (chosen.end is None):
        raise SystemExit("give both days of the history, or neither")
    screen = console()
    folder, found = by_hand.calibrate(
        living_settings(),
        chosen.model,
        interval(chosen) if chosen.start is not None else None,
        replays=chosen.replays,
        seed=chosen.seed,
        progress=lambda replays: track(replays, "replaying history", console=screen, transient=True),
    )
    screen.print(_thresholds(folder, found))
    screen.print(
        f"On windows like those of {found.history}, expect {found.expected:g} verdicts of drift per year "
        f"(budget {found.false_alarms:g}; {found.replays:,} replays). Written to {folder.path / THRESHOLDS_FILE}"
    )
    learned = f", which learned from {found.reference}" if found.reference else ""
    screen.print(f"For version {found.version}{learned}, and its refreshes: calibrate again once another training is champion")
    if found.wide:
        screen.print(f"Too wide ever to alarm, even if every row had the farthest value of history: {', '.join(found.wide)}")
    if found.constant:
        screen.print(f"One value in all of history; another one is drift: {', '.join(found.constant)}")
    if (net := found.refresh) is not None:
        screen.print(
            f"From {net.refreshes} refreshes: an agreement of at least {net.agreement:g} and a skill of at least "
            f"{net.skill:g}, where model.yaml states none (gates.refresh)"
        )
    return 0


def _thresholds(folder: ModelFolder, found: DriftThresholds) -> Table:
    """A table of each column's thresholds, before and after."""
    from rich.table import Column, Table

    policy, before = folder.spec.drift, folder.thresholds.columns if folder.thresholds else {}
    table = Table("column", *(Column(name, justify="right") for name in ("before", "now", "missing before", "now")), box=None)
    for name, one in found.columns.items():
        old = before.get(name)
        fixed = policy.categorical_threshold if name in folder.spec.features.categorical else policy.numeric_threshold
        if name == "prediction" and folder.spec.task != "multiclass_classification":
            fixed = policy.prediction_threshold
        table.add_row(
            name,
            f"{old.distance if old else fixed:.4g}",
            f"{one.distance:.4g}",
            f"{old.missing:.1%}" if old else "",
            f"{one.missing:.1%}",
        )
    return table


@command("controls", "by hand: test whether the gates refuse bad candidates; exit with 1 if they do not", MODEL)
def controls(chosen: argparse.Namespace) -> int:
    report = by_hand.controls(living_settings(), chosen.model)
    return tell(report.describe()) if report.sound else tell(report.describe()) or 1


@command(
    "rollback",
    "by hand: make an earlier version champion again",
    MODEL,
    argument("--to", type=int, metavar="VERSION", help="a former champion; default: the previous one"),
    argument("--reason", required=True, help="recorded in the ledger"),
)
def rollback(chosen: argparse.Namespace) -> int:
    return tell(by_hand.rollback(living_settings(), chosen.model, chosen.to, chosen.reason))


@command(
    "promote",
    "by hand: make a version champion",
    MODEL,
    VERSION,
    argument("--override", metavar="REASON", help="why to promote it in spite of an obstacle; recorded permanently"),
)
def promote(chosen: argparse.Namespace) -> int:
    return tell(by_hand.promote(living_settings(), chosen.model, chosen.version, chosen.override))


@command("maintain", "by hand: remove what retention allows, compact files, and close runs of killed processes", MODEL)
def maintain(chosen: argparse.Namespace) -> int:
    return tell(by_hand.tidy(living_settings(), chosen.model))
