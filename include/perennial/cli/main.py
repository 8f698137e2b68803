"""``perennial``: the stack, the demo, and the stages by hand.

Each command imports what it needs when it is called, since some need much.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.cli import endings
from perennial.core import logs
from perennial.core.errors import PerennialError, StackError
from perennial.core.intervals import Interval, utc
from perennial.core.settings import PROJECT, Settings, settings

if TYPE_CHECKING:
    from rich.console import Console


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, and exit: 0 if it succeeded, 1 with a sentence if not, 130 if it was interrupted."""
    chosen = _parser().parse_args(arguments)
    # Whoever stops us means the same: put everything in order and go.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        logs.configure(os.environ, getattr(chosen, "log_level", logging.WARNING))
        sys.exit(chosen.command(chosen))
    except PerennialError as error:
        sys.exit(str(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"the disk of {error.filename or _state()} is full: make room and run the command again")
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="perennial", description="Keeps machine-learning models alive in production.")
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("up", help="start Airflow and MLflow on this machine; Ctrl-C stops them")
    command.set_defaults(command=_up)

    command = commands.add_parser("demo", help="the life of a model on the flights of 2013")
    command.add_argument("--once", action="store_true", help="stop at the end instead of staying up")
    command.add_argument("--weeks", type=int, choices=range(40), metavar="N", default=12, help="how many weeks to replay (12)")
    command.set_defaults(command=_demo)

    command = commands.add_parser("watch", help="look after Airflow and the ledger, and tell what is wrong; Ctrl-C stops it")
    command.set_defaults(command=_watch, log_level=logging.INFO)

    command = commands.add_parser("init", help="make the ledger's tables, or bring them up to date")
    command.set_defaults(command=_init)

    command = commands.add_parser("example-data", help="write the example's files into the landing zone")
    command.add_argument("start", nargs="?", type=_moment, default="2013-01-01", help="first day (2013-01-01)")
    command.add_argument("end", nargs="?", type=_moment, default="2014-01-01", help="first day that is left out (2014-01-01)")
    command.set_defaults(command=_example_data)

    command = commands.add_parser("schema", help="write the JSON schema of model.yaml beside the model folders")
    command.set_defaults(command=_schema)

    command = commands.add_parser("check", help="read a model folder and try its features on published data")
    command.add_argument("model")
    command.set_defaults(command=_check)

    for name, words in (
        ("ingest", "publish an interval's tables and features"),
        ("score", "predict an interval with the champion"),
        ("monitor", "judge an interval's drift, measure what has become known"),
    ):
        command = commands.add_parser(name, help=f"by hand: {words}")
        command.add_argument("model")
        command.add_argument("start", type=_moment, help="first day, such as 2013-04-01")
        command.add_argument("end", type=_moment, help="first day that is left out")
        command.set_defaults(command=_interval_stage, stage=name)

    command = commands.add_parser("train", help="by hand: fit the candidates, promote the best if the gates let it")
    command.add_argument("model")
    command.add_argument("--as-of", required=True, type=_moment, help="only what was known by this day is used")
    command.set_defaults(command=_train)

    command = commands.add_parser("calibrate", help="by hand: set the thresholds for drift from stable history")
    command.add_argument("model")
    command.add_argument("start", nargs="?", type=_moment, help="first day of what was stable (all that is published)")
    command.add_argument("end", nargs="?", type=_moment, help="first day that is left out")
    command.add_argument("--replays", type=int, choices=range(200, 100_001), metavar="N", default=1_000, help="windows (1000)")
    command.add_argument("--seed", type=int, help="of the draws (training.seed)")
    command.set_defaults(command=_calibrate)

    command = commands.add_parser("performance", help="what was expected of each window, and what came")
    command.add_argument("model")
    command.set_defaults(command=_performance)

    command = commands.add_parser("rollback", help="by hand: make an earlier version champion again")
    command.add_argument("model")
    command.add_argument("--to", type=int, metavar="VERSION", help="a former champion; by default the one before this one")
    command.add_argument("--reason", required=True, help="goes into the ledger")
    command.set_defaults(command=_rollback)

    command = commands.add_parser("promote", help="by hand: make a version champion")
    command.add_argument("model")
    command.add_argument("version", type=int)
    command.add_argument("--override", metavar="REASON", help="why, although something stands against it; kept for ever")
    command.set_defaults(command=_promote)

    command = commands.add_parser("history", help="who was champion since when, over whom, why and by whom")
    command.add_argument("model")
    command.add_argument("--json", action="store_true", help="with the evidence")
    command.set_defaults(command=_history)

    command = commands.add_parser("alerts", help="what people were told, what waits to be sent, and why")
    command.add_argument("model", nargs="?", help="of this model alone")
    command.add_argument("--waiting", action="store_true", help="only what has not been sent")
    command.add_argument("--number", type=int, default=20, help="the newest so many (default 20)")
    command.set_defaults(command=_alerts)

    command = commands.add_parser("explain", help="a version's whole story: data, metrics, gates, approval, promotion")
    command.add_argument("model")
    command.add_argument("version", type=int)
    command.add_argument("--json", action="store_true")
    command.set_defaults(command=_explain)

    command = commands.add_parser("card", help="write a version's model card and release report")
    command.add_argument("model")
    command.add_argument("version", type=int)
    command.add_argument("--out", type=Path, metavar="DIR", help="by default they are logged to the version's run in MLflow")
    command.set_defaults(command=_card)

    command = commands.add_parser("lineage", help="where a prediction came from, or where raw rows went")
    command.add_argument("model")
    traced = command.add_mutually_exclusive_group(required=True)
    traced.add_argument("--prediction", nargs="+", metavar="KEY", help="values of the entity's key, or column=value")
    traced.add_argument("--interval", nargs=2, type=_moment, metavar=("START", "END"), help="of raw rows; END is left out")
    command.add_argument("--at", type=_moment, metavar="DAY", help="the day of the prediction's event")
    command.add_argument("--json", action="store_true", help="all of it, for programs")
    command.set_defaults(command=_lineage)

    command = commands.add_parser("reproduce", help="make a version once more from its pinned rows and compare predictions")
    command.add_argument("model")
    command.add_argument("version", type=int)
    command.set_defaults(command=_reproduce)

    command = commands.add_parser("maintain", help="by hand: retention, compaction, what the dead left open")
    command.add_argument("model")
    command.set_defaults(command=_maintain)

    command = commands.add_parser("backup", help="copy the embedded stack's databases, lake, models and reports")
    command.add_argument("place", nargs="?", type=Path, metavar="FOLDER", help="a new folder, best on another disk")
    command.add_argument("--hold", type=int, metavar="HOURS", help="copy nothing: let nothing be removed while others copy")
    command.add_argument("--release", action="store_true", help="end --hold")
    command.set_defaults(command=_backup)

    command = commands.add_parser("restore", help="put a backup of the embedded stack back, where nothing is yet")
    command.add_argument("place", type=Path, metavar="FOLDER")
    command.set_defaults(command=_restore)

    command = commands.add_parser("verify", help="compare ledger, lake, MLflow and predictions; exit with 1 if they differ")
    command.add_argument(
        "--settle", action="store_true", help="after a restore, before all else: let the others follow the ledger"
    )
    command.set_defaults(command=_verify)
    endings.add_to(commands, _living_settings)
    _add_deploy(commands)
    return parser


def _add_deploy(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What ``docker-compose.yaml`` and the Makefile call."""
    steps = commands.add_parser("deploy", help="the deployed stack: secrets, init job, MLflow's server, health").add_subparsers(
        required=True, metavar="step"
    )
    step = steps.add_parser("secrets", help="write what .env lacks of the deployment's secrets")
    step.add_argument("file", nargs="?", type=Path, default=PROJECT / ".env")
    step.set_defaults(command=_deploy_secrets)
    steps.add_parser("init", help="databases, roles, schemas and users, in order").set_defaults(command=_deploy_init)
    step = steps.add_parser("mlflow", help="become MLflow's server, behind its sign-in")
    step.add_argument("--host", required=True)
    step.add_argument("--port", required=True)
    step.set_defaults(command=_deploy_mlflow)
    step = steps.add_parser("ping", help="exit with 0 if the server at an address, or this container's worker, answers")
    step.add_argument("target", help="an address, or celery:NAME")
    step.set_defaults(command=_deploy_ping)


def _moment(text: str) -> datetime:
    try:
        return utc(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _interval(chosen: argparse.Namespace) -> Interval:
    try:
        return Interval(chosen.start, chosen.end)
    except ValueError as error:
        raise SystemExit(str(error)) from error


def _state() -> Path:
    return Path(os.environ.get("PERENNIAL_STATE") or PROJECT / "var").absolute()


def _living_settings() -> Settings:
    """The settings, with the address of MLflow if that is the embedded stack's.

    Raises:
        StackError: there is no MLflow to talk to.
    """
    from perennial.stack.embedded import find_running

    if os.environ.get("MLFLOW_TRACKING_URI"):
        return settings()
    running = find_running(_state())
    if running is None or "mlflow" not in running:
        raise StackError(f"no stack runs on {_state()}: start one with `make up`, or name an MLflow by MLFLOW_TRACKING_URI")
    return settings().model_copy(update={"mlflow_url": running["mlflow"], "mlflow_public_url": running["mlflow"]})


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _up(_: argparse.Namespace) -> int:
    from perennial.stack.embedded import Stack

    console = _console()
    console.print("Starting Airflow and MLflow …")
    try:
        with Stack(_state(), os.environ, say=console.print) as stack:
            console.print(f"Airflow  {stack.airflow_url}   sign in as admin, password {stack.password}")
            console.print(f"MLflow   {stack.mlflow_url}")
            console.print(f"Metrics  {stack.metrics_url}")
            console.print(f"Logs     {stack.state / 'logs'}")
            console.print("DAGs start paused. Ctrl-C stops everything.")
            stack.wait()
    except KeyboardInterrupt:
        console.print("Stopped.")
    return 0


def _demo(chosen: argparse.Namespace) -> int:
    from perennial.demo.replay import run_demo

    run_demo(_state() / "demo", os.environ, _console(), once=chosen.once, weeks=chosen.weeks)
    return 0


def _watch(_: argparse.Namespace) -> int:
    from perennial.watchdog.process import Watchdog, read_watch_settings

    Watchdog(settings(), read_watch_settings(os.environ)).run()
    return 0


def _init(_: argparse.Namespace) -> int:
    from perennial.ledger.store import Ledger

    Ledger(settings().database_url).migrate()
    return 0


def _example_data(chosen: argparse.Namespace) -> int:
    from perennial.demo.example_data import write_landing_zone

    data = settings().data
    files = write_landing_zone(data, _interval(chosen))
    return _tell(f"{len(files)} files in {data}")


def _schema(_: argparse.Namespace) -> int:
    from perennial.spec.model import json_schema

    file = settings().models / "model.schema.json"
    file.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    return _tell(str(file))


def _check(chosen: argparse.Namespace) -> int:
    from perennial.cli import by_hand

    found, in_order = by_hand.inspect(settings(), chosen.model)
    return _tell(found) if in_order else _tell(found) or 1


def _interval_stage(chosen: argparse.Namespace) -> int:
    from perennial.cli import by_hand

    if chosen.stage == "ingest":
        return _tell(by_hand.ingest(settings(), chosen.model, _interval(chosen)))
    stage = {"score": by_hand.score, "monitor": by_hand.monitor}[chosen.stage]
    return _tell(stage(_living_settings(), chosen.model, _interval(chosen)))


def _train(chosen: argparse.Namespace) -> int:
    from perennial.cli import by_hand

    return _tell(by_hand.train(_living_settings(), chosen.model, chosen.as_of))


def _calibrate(chosen: argparse.Namespace) -> int:
    from rich.progress import track
    from rich.table import Column, Table

    from perennial.cli import by_hand
    from perennial.spec.folder import THRESHOLDS_FILE

    if (chosen.start is None) != (chosen.end is None):
        raise SystemExit("give both days of the history, or none")
    console = _console()
    folder, found = by_hand.calibrate(
        _living_settings(),
        chosen.model,
        _interval(chosen) if chosen.start is not None else None,
        replays=chosen.replays,
        seed=chosen.seed,
        progress=lambda replays: track(replays, "replaying history", console=console, transient=True),
    )
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
    console.print(table)
    console.print(
        f"{found.expected:g} verdicts drift a year are expected of windows like those of {found.history} "
        f"(budget {found.false_alarms:g}; {found.replays:,} replays). Written to {folder.path / THRESHOLDS_FILE}"
    )
    return 0


def _performance(chosen: argparse.Namespace) -> int:
    from rich.table import Column, Table

    from perennial.cli import by_hand

    metric, windows = by_hand.outlook(settings(), chosen.model)
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
    console = _console()
    console.print(table if windows else f"no window of {chosen.model} has been judged or measured yet")
    return 0


def _rollback(chosen: argparse.Namespace) -> int:
    from perennial.cli import by_hand

    return _tell(by_hand.rollback(_living_settings(), chosen.model, chosen.to, chosen.reason))


def _promote(chosen: argparse.Namespace) -> int:
    from perennial.cli import by_hand

    return _tell(by_hand.promote(_living_settings(), chosen.model, chosen.version, chosen.override))


def _history(chosen: argparse.Namespace) -> int:
    from perennial.cli import by_hand
    from perennial.reports.history import show_history

    changes = by_hand.history(settings(), chosen.model)
    if chosen.json:
        return _tell(json.dumps(changes, indent=2))
    show_history(_console(), chosen.model, changes)
    return 0


def _alerts(chosen: argparse.Namespace) -> int:
    from rich.table import Table

    from perennial.ledger.store import Ledger

    ledger = Ledger(settings().database_url)
    entries = [entry for entry in ledger.alerts() if chosen.model in (None, entry.alert.model)]
    if chosen.waiting:
        entries = [entry for entry in entries if entry.waits]
    table = Table("since (UTC)", "", "what", "channels")
    for entry in entries[-chosen.number :]:
        word = "well again" if entry.alert.kind == "recovered" else entry.alert.severity
        channels = "waits to be routed" if entry.routed_at is None else "\n".join(map(str, entry.deliveries))
        table.add_row(f"{entry.created_at:%Y-%m-%d %H:%M}", word, entry.alert.title, channels or "nobody is named")
    console = _console()
    console.print(table) if table.rows else console.print("Nothing waits." if chosen.waiting else "There are none.")
    for channel in ledger.outbox.channels():
        if channel.failures:
            next_at = f"{channel.next_attempt_at:%Y-%m-%d %H:%M}"
            console.print(f"{channel.channel} failed {channel.failures} times: {channel.error}. Next attempt {next_at} UTC.")
    return 0


def _explain(chosen: argparse.Namespace) -> int:
    from perennial.cli import by_hand
    from perennial.reports.history import show_story

    story = by_hand.explain(settings(), chosen.model, chosen.version)
    if chosen.json:
        return _tell(json.dumps(story, indent=2))
    show_story(_console(), story)
    return 0


def _card(chosen: argparse.Namespace) -> int:
    from perennial.cli import by_hand

    return _tell(by_hand.card(_living_settings(), chosen.model, chosen.version, chosen.out))


def _lineage(chosen: argparse.Namespace) -> int:
    from perennial.cli import by_hand
    from perennial.reports.traces import draw

    if chosen.interval:
        chosen.start, chosen.end = chosen.interval
    found = by_hand.lineage(
        settings(),
        chosen.model,
        prediction=chosen.prediction,
        at=Interval.day(chosen.at) if chosen.at else None,
        interval=_interval(chosen) if chosen.interval else None,
    )
    if chosen.json:
        return _tell(json.dumps(found.to_json(), indent=2, default=str))
    _console().print(draw(found))
    return 0


def _reproduce(chosen: argparse.Namespace) -> int:
    from perennial.cli import by_hand

    told, identical = by_hand.reproduce(_living_settings(), chosen.model, chosen.version)
    return _tell(told) if identical else _tell(told) or 1


def _maintain(chosen: argparse.Namespace) -> int:
    from perennial.cli import by_hand

    return _tell(by_hand.tidy(_living_settings(), chosen.model))


def _backup(chosen: argparse.Namespace) -> int:
    from perennial.lake import removal

    now = datetime.now(UTC)
    if chosen.release:
        removal.let_go(settings())
        return _tell("Maintenance may remove what is not needed again.")
    if chosen.hold is not None:
        removal.hold(settings(), now + timedelta(hours=chosen.hold))
        return _tell(f"Nothing is removed from the lake for {chosen.hold} hours, or until perennial backup --release.")
    if chosen.place is None:
        raise SystemExit("name a new folder for the backup")
    from perennial.operations import backup

    made = backup.make_backup(settings(), chosen.place, os.environ, now=now)
    return _tell(f"{made['files']:,} files, {made['bytes'] / 1e6:,.1f} MB in {chosen.place}")


def _restore(chosen: argparse.Namespace) -> int:
    from perennial.deployment import Deployment
    from perennial.operations import backup
    from perennial.operations.agreement import settle

    made = backup.restore_backup(settings(), chosen.place, os.environ)
    for change in settle(Deployment(settings()), datetime.now(UTC)):
        _tell(change)
    return _tell(f"Restored as of {made['made_at']}. Start the stack with make up, then run perennial verify.")


def _verify(chosen: argparse.Namespace) -> int:
    from perennial.deployment import Deployment
    from perennial.operations.agreement import settle, verify

    parts = Deployment(_living_settings())
    if chosen.settle:
        for change in settle(parts, datetime.now(UTC)):
            _tell(change)
    return 1 if verify(parts, _tell).problems else 0


def _deploy_secrets(chosen: argparse.Namespace) -> int:
    from perennial.operations.deployed import write_secrets

    made = write_secrets(chosen.file)
    return _tell(f"{chosen.file}: made {', '.join(made)}" if made else f"{chosen.file} has every secret already")


def _deploy_init(_: argparse.Namespace) -> int:
    from perennial.operations.deployed import initialise

    logging.getLogger("perennial").setLevel(logging.INFO)
    initialise(os.environ)
    return 0


def _deploy_mlflow(chosen: argparse.Namespace) -> int:
    from perennial.operations.deployed import serve_mlflow

    serve_mlflow(os.environ, ["--host", chosen.host, "--port", chosen.port])
    return 1


def _deploy_ping(chosen: argparse.Namespace) -> int:
    from perennial.operations.deployed import ping

    return 0 if ping(chosen.target) else 1


def _tell(text: str) -> int:
    sys.stdout.write(f"{text}\n")
    return 0
