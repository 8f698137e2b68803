"""Commands that begin a model: draft its folder from data, and try its whole life before there is a stack."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import available_timezones

from perennial.cli.command import MODEL, argument, command, moment, tell
from perennial.core.errors import SpecError
from perennial.core.files import replacing
from perennial.core.intervals import Interval, utc
from perennial.core.settings import Settings, settings

if TYPE_CHECKING:
    from perennial.authoring.draft import Query
    from perennial.authoring.profile import Profile
    from perennial.reports.rehearsal import Step
    from perennial.spec.folder import ModelFolder


@command(
    "new",
    "draft the folder of a model from a file or a database table of its history",
    argument("name", help="the model's name: the folder, its DAGs and its registered model are called so"),
    argument(
        "--from",
        dest="data",
        required=True,
        metavar="FILE|DATABASE/TABLE",
        help="a .csv, .tsv (also .gz) or .parquet file; or a table, as postgresql+psycopg2://user@host/database/table",
    ),
    argument(
        "--connection",
        metavar="NAME",
        help="with a table: the connection of the source; if the variable NAME holds the address, --from is the table alone",
    ),
    argument("--label", metavar="COLUMN", help="the column to predict (default: the one with a usual name, such as target)"),
    argument("--time", metavar="COLUMN", help="the column that says when a row happened (default: the one with times)"),
    argument("--key", nargs="+", metavar="COLUMN", help="the columns that tell rows apart (default: the fewest that do)"),
    argument("--time-zone", metavar="ZONE", help="the zone of the file's clock, such as America/New_York"),
)
def new(chosen: argparse.Namespace) -> int:
    return tell(
        draft_model(
            settings(),
            chosen.name,
            chosen.data,
            connection=chosen.connection,
            ask=_ask if sys.stdin.isatty() and sys.stdout.isatty() else None,
            label=chosen.label,
            when=chosen.time,
            key=chosen.key,
            time_zone=chosen.time_zone,
        )
    )


@command(
    "try",
    "live a model's whole life in a scratch folder, without a stack: load, check, train, score, monitor",
    MODEL,
    argument("--as-of", type=moment, metavar="DAY", help="the end of the data, exclusive (default: today)"),
)
def try_out(chosen: argparse.Namespace) -> int:
    as_of = chosen.as_of or utc(datetime.now(UTC).date().isoformat())
    return 0 if rehearse(settings(), chosen.model, as_of, say=tell) else 1


def draft_model(
    settings: Settings,
    name: str,
    data: Path | str,
    *,
    connection: str | None = None,
    ask: Callable[[str], str] | None = None,
    label: str | None = None,
    when: str | None = None,
    key: Sequence[str] | None = None,
    time_zone: str | None = None,
) -> str:
    """Draft a model's folder from a file or a table, and put a file where the model reads it.

    Args:
        settings: the deployment; its folders of models and of data.
        name: the model's name.
        data: the history: a file, or the address of a database with a table after its last slash. With ``connection``, it may
            be the table alone.
        connection: what the source calls its database, see :class:`perennial.spec.data.Source`. The address is written nowhere.
        ask: asks a person a question that no data answer; None: nobody is there, and what is not known is marked TODO.
        label, when, key: columns of the file; None: a guess.
        time_zone: the zone of the file's clock.

    Returns:
        What was seen and written, what a person has to decide, and what to do next.

    Raises:
        SpecError: nothing can be drafted from the file, or the model exists; the message says what to do. Nothing was written.
    """
    from perennial.authoring.draft import choose_label, draft, task_of, write
    from perennial.operations.inspection import find_faults
    from perennial.spec.folder import read_model

    folder = settings.models / name
    if folder.exists():
        raise SpecError(f"{folder} exists already: choose another name, or remove it")
    with tempfile.TemporaryDirectory(prefix="perennial-new-") as scratch:
        found = _look(settings, Path(scratch), name, data, connection, label=label, when=when, key=key)
        profile = found.profile
        predicted = choose_label(profile, label or _asked_label(profile, ask))
        zone = time_zone or _asked_zone(profile, ask)
        owner = ask("Who answers for this model? (Enter: decide later) ").strip() if ask is not None else None
        made = draft(name, profile, predicted, source=found.source, time_zone=zone, owner=owner)
        write(Path(scratch) / name, made)
        read = read_model(Path(scratch) / name)
        if faults := find_faults(read):
            raise SpecError("\n".join(faults))
        if found.file is not None and found.place is not None and found.place != found.file.absolute():
            found.place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.file, found.place)
        write(folder, made)
    kind = f"a row every {profile.step}" if profile.is_series else "another thing in each row"
    keys = ", ".join(profile.columns[one].source if one in profile.columns else profile.time.source for one in profile.key)
    return "\n".join(
        [
            f"{profile.rows:,} rows of {profile.first:%Y-%m-%d} to {profile.last:%Y-%m-%d}, {kind}; key: {keys}",
            f"predicts {predicted.source}: {task_of(predicted).replace('_', ' ')}",
            f"{folder}: model.yaml and features.sql, with {len(read.spec.features.names)} features",
            *(f"TODO: {todo}" for todo in made.todos),
            "Next, without a stack:",
            *found.before,
            f"  perennial try {name} --as-of {made.last}",
            f"Or in Airflow: trigger {name}.load from {made.first} to {profile.last:%Y-%m-%d}, then {name}.train",
        ]
    )


@dataclass(frozen=True)
class _Found:
    """What a history holds, and how a source reads it.

    Attributes:
        profile: what it holds.
        source: the pattern of a file, or a query.
        file, place: a file, and where it lies or will lie; None for a table.
        before: what a person does before anything else, a line each.
    """

    profile: Profile
    source: str | Query
    file: Path | None = None
    place: Path | None = None
    before: tuple[str, ...] = ()


def _look(
    settings: Settings,
    scratch: Path,
    name: str,
    data: Path | str,
    connection: str | None,
    *,
    label: str | None,
    when: str | None,
    key: Sequence[str] | None,
) -> _Found:
    from perennial.authoring.profile import look

    text = str(data)
    if "://" not in text and connection is None:
        file = Path(data)
        profile = look(file, time=when, key=key, label=label)
        place = _place(settings, name, file)
        return _Found(profile, place.relative_to(settings.data.absolute()).as_posix(), file, place)
    from perennial.authoring.database import copy_table
    from perennial.authoring.draft import Query

    called = connection or f"{name.upper()}_DB"
    address, _, table = text.rpartition("/") if "://" in text else (os.environ.get(called, ""), "", text)
    if "://" not in address:
        raise SpecError(
            f"set the variable {called} to the SQLAlchemy URL of the database, or write the table after the address: "
            "--from postgresql+psycopg2://user@host/database/table"
        )
    copied = copy_table(address, table, scratch)
    try:
        profile = look(copied.file, time=when, key=key, label=label)
    except SpecError as error:
        raise SpecError(str(error).replace(str(copied.file), f"table {table}")) from error
    profile = replace(profile, file=Path(f"table {table}"))
    if profile.time.sql is not None:
        raise SpecError(
            f"table {table}: the time of a row is made of texts ({profile.time.source}), and a source of a database is read by "
            "a column that is a date or timestamp there: make one in a view, and draft from that"
        )
    query = Query(called, copied.query(profile.time.source), copied.is_whole)
    before = () if os.environ.get(called) else (
        f"  export {called}=…  # the address of the database; in Airflow, make a connection of this name. It is in no file",
    )  # fmt: skip
    return _Found(profile, query, before=before)


def _ask(question: str) -> str:
    return input(question)


def _asked_label(profile: Profile, ask: Callable[[str], str] | None) -> str | None:
    """The column that a person names, if none has a usual name."""
    from perennial.authoring.profile import LABELS

    if ask is None or any(name in profile.columns for name in LABELS):
        return None
    able = [one.source for one in profile.columns.values() if one.name not in profile.key]
    return ask(f"Which column is to be predicted: {', '.join(able)}? ").strip() or None


def _asked_zone(profile: Profile, ask: Callable[[str], str] | None) -> str | None:
    """The zone that a person names, if the times have none."""
    if ask is None or profile.has_offset:
        return None
    while zone := ask(
        f"{profile.time.source} names no zone. Which one is it in, such as America/New_York or UTC? (Enter: decide later) "
    ).strip():
        if zone in available_timezones():
            return zone
        print(f"there is no zone {zone}")  # noqa: T201  # at a terminal
    return None


def _place(settings: Settings, name: str, file: Path) -> Path:
    """Where a file lies, or will lie, below the folder of data."""
    whole, data = file.resolve(), settings.data.resolve()
    if whole.is_relative_to(data):
        return settings.data.absolute() / whole.relative_to(data)
    place = settings.data.absolute() / name / file.name
    if place.exists() and place.read_bytes() != file.read_bytes():
        raise SpecError(f"{place} exists already and is another file: remove it, or rename {file.name}")
    return place


def rehearse(settings: Settings, model: str, as_of: datetime, *, say: Callable[[str], object]) -> bool:
    """Live a model's life with the real stages, in a scratch folder that is removed at the end.

    Of the deployment only one page is written, ``try/<model>.html`` in its state folder: what was found.

    Args:
        settings: the deployment; its models and data are read.
        model: the model.
        as_of: the training's; data up to it are loaded.
        say: gets a line for each step.

    Returns:
        Whether the whole life succeeded: data were published, no feature leaks, and a version was trained. A version that its
        gates refuse is an answer, too.

    Raises:
        PerennialError: a step failed; the message says why.
    """
    from perennial.deployment import Deployment
    from perennial.reports.rehearsal import rehearsal

    with tempfile.TemporaryDirectory(prefix="perennial-try-") as folder:
        state = Path(folder)
        scratch = settings.model_copy(
            update={
                "state": state,
                "database_url": f"sqlite:///{state / 'perennial.db'}",
                "catalog_url": f"sqlite:///{state / 'catalog.db'}",
                "warehouse": str(state / "lake"),
                "predictions_url": f"sqlite:///{state / 'perennial.db'}",
                "mlflow_url": f"sqlite:///{state / 'mlflow.db'}",
                "may_promote": True,
            }
        )
        parts = Deployment(scratch)
        model_folder = parts.model(model)
        parts.ledger.migrate()
        parts.registry.migrate()
        steps: list[Step] = []
        succeeded = False
        try:
            succeeded = _live(scratch, model_folder, as_of, say=say, steps=steps)
        finally:
            # Also of a life that has failed: how far it came, and what was found until then.
            if parts.ledger.published(model, "tables") is not None:
                page = settings.state / "try" / f"{model}.html"
                page.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with replacing(page) as draft:
                    draft.write_text(rehearsal(model_folder, parts, steps, as_of=as_of).to_html(), encoding="utf-8")
                say(f"All of it on one page: {page}")
        return succeeded


def _live(scratch: Settings, folder: ModelFolder, as_of: datetime, *, say: Callable[[str], object], steps: list[Step]) -> bool:
    """The steps of a life; what each said is told, and added to ``steps``."""
    from perennial.cli import by_hand
    from perennial.deployment import Deployment
    from perennial.reports.rehearsal import Step

    model, training = folder.spec.name, folder.spec.training
    length = (
        training.longest + training.holdout + folder.spec.features.lookback + (folder.spec.label.delay or timedelta(days=1))
    )
    history, week = Interval(as_of - length, as_of), Interval(as_of - timedelta(days=7), as_of)

    def step(name: str, do: Callable[[], str]) -> None:
        say(f"--- {name}")
        started = time.monotonic()
        # A report that is drawn in the scratch folder goes with it.
        said = "\n".join(line for line in do().splitlines() if not line.startswith("report: "))
        steps.append(Step(name, said, time.monotonic() - started))
        say(f"{said}\n    {steps[-1].seconds:.1f} s")

    in_order = False

    def check() -> str:
        nonlocal in_order
        found, in_order = by_hand.inspect(scratch, model)
        return found

    step(f"load {history}", lambda: by_hand.ingest(scratch, model, history))
    step("check", check)
    if not in_order:
        return False
    step("train", lambda: by_hand.train(scratch, model, as_of, "a rehearsal"))
    if Deployment(scratch).ledger.champion(model) is not None:
        step(f"score {week}", lambda: by_hand.score(scratch, model, week))
        step(f"monitor {week}", lambda: by_hand.monitor(scratch, model, week))
    return True
