"""What every DAG of Perennial has in common, and one DAG a model for each stage.

A DAG file loops over :func:`models` and opens :func:`stage`. A broken model folder has no DAGs; a file without any DAG calls
:func:`report_broken_models`, which shows what is wrong as that file's import error.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, XComArg, get_parsing_context
from airflow.sdk.bases.timetable import BaseTimetable

from perennial.core.errors import SpecError
from perennial.core.pools import pools
from perennial.core.settings import settings
from perennial.orchestration import assets
from perennial.orchestration.callbacks import alert_of_failure, resolve_failure
from perennial.orchestration.users import access
from perennial.spec.folder import ModelFolder, is_model_folder, read_models
from perennial.spec.model import ModelSpec

#: Queues of Celery's workers, by stage: what trains for an hour must not keep scoring waiting. Other executors have none.
LIGHT = "light"
#: Of the tasks that change who is champion: its workers alone have the identity that may.
PROMOTE = "promote"
_QUEUES = {"train": "train", "score": "score", "promote": PROMOTE, "rollback": PROMOTE}

#: By stage, which tasks go first of those that wait for a worker: what a person asked for just now, what is due each day,
#: what looks back at it, history, and last what takes long and nobody waits for.
_PRIORITIES = {
    "promote": 50, "rollback": 50, "notify": 50,
    "score": 40, "ingest": 40,
    "monitor": 30,
    "load": 20,
    "train": 10, "maintain": 10,
}  # fmt: skip

#: Most tasks of one DAG at once, those that wait in a worker's queue among them.
MOST_TASKS = 16

#: Longest time a run may take, unless it waits for a person.
RUN_LIMIT = timedelta(hours=12)

#: Most lines that are shown of what is wrong with a folder, and most characters of a line.
_LINES, _LINE = 20, 500


def models() -> list[ModelSpec]:
    """The models that have a sound folder and are not retired, by name.

    Raises:
        SpecError: a worker asks, for a task of a model whose folder is broken. The task fails, and its log says why.
    """
    own = _own()
    sound, broken = _folders(settings().models, own)
    if own in broken:
        raise broken[own]
    return [folder.spec for _, folder in sorted(sound.items()) if not folder.spec.retired]


def report_broken_models() -> None:
    """Show what is wrong with the other folders as an import error of the calling DAG file.

    That file must have no DAG: Airflow marks all DAGs of a file with an import error as stale, so that they are neither
    scheduled nor can be triggered.

    Raises:
        SpecError: there are broken folders. Its last line names them all.
    """
    _, broken = _folders(settings().models, _own())
    if broken:
        said = [line for _, error in sorted(broken.items()) for line in _shown(str(error))]
        names = ", ".join(sorted(broken))
        said.append(f"No DAGs, because the model's folder cannot be read: {names}. All other models run on.")
        raise SpecError("\n".join(said))


def _shown(error: str) -> list[str]:
    lines = [line if len(line) <= _LINE else f"{line[:_LINE]}…" for line in error.splitlines()]
    return lines if len(lines) <= _LINES else [*lines[:_LINES], f"… and {len(lines) - _LINES} more lines"]


def _own() -> str | None:
    """The model whose task a worker parses the file for; None elsewhere, and for what concerns all models."""
    own = (get_parsing_context().dag_id or "").partition(".")[0]
    return own if own and is_model_folder(settings().models / own) else None


@lru_cache(maxsize=1)
def _folders(everything: Path, own: str | None) -> tuple[dict[str, ModelFolder], dict[str, SpecError]]:
    """Every folder, read once a process: Airflow parses each DAG file in a process of its own.

    A worker parses the file anew for each task, and only wants the task's DAG: it reads that model alone.
    """
    return read_models(everything, own)


def stage(
    model: ModelSpec,
    name: str,
    *,
    schedule: BaseTimetable | str | None,
    doc: str | None,
    params: Mapping[str, Param] | None = None,
    max_active_runs: int = 1,
    max_active_tasks: int = MOST_TASKS,
    run_limit: timedelta = RUN_LIMIT,
    task_limit: timedelta = timedelta(hours=3),
) -> DAG:
    """The DAG ``<model>.<stage>``.

    Args:
        model: whose DAG it is.
        name: of the stage, a verb.
        schedule: a timetable, cron text, or None for by hand alone.
        doc: Markdown shown in the UI, ending with what to do about a failure.
        params: the fields of the trigger form.
        max_active_runs: runs at once; one where their order matters.
        max_active_tasks: tasks at once.
        run_limit: longest time a run may take.
        task_limit: longest time a try of a task may take.
    """
    return common(
        f"{model.name}.{name}",
        owner=model.owner,
        description=model.description,
        schedule=schedule,
        doc=doc,
        tags={model.name, name},
        params=params,
        max_active_runs=max_active_runs,
        run_limit=run_limit,
        task_limit=task_limit,
        max_active_tasks=max_active_tasks,
    )


def common(
    dag_id: str,
    *,
    owner: str,
    description: str,
    schedule: BaseTimetable | str | None,
    doc: str | None,
    tags: set[str],
    params: Mapping[str, Param] | None = None,
    max_active_runs: int = 1,
    max_active_tasks: int = MOST_TASKS,
    run_limit: timedelta,
    task_limit: timedelta,
) -> DAG:
    """A DAG with the house's retries, limits, alerts and priorities; :func:`stage` says what the arguments mean."""
    name = dag_id.rpartition(".")[2]
    pool = pools(settings()).get(name)
    defaults: dict[str, Any] = {
        "owner": owner,
        "retries": 2,
        "retry_delay": timedelta(seconds=20),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=10),
        "execution_timeout": task_limit,
        "queue": _QUEUES.get(name, LIGHT),
        **({"pool": pool.name} if pool else {}),
        "priority_weight": _PRIORITIES[name],
        # A task's own number; Airflow would add up those of all that follow it.
        "weight_rule": "absolute",
        "on_failure_callback": alert_of_failure,
        "on_success_callback": resolve_failure,
    }
    return DAG(
        dag_id=dag_id,
        description=description,
        doc_md=inspect.cleandoc(doc or ""),
        schedule=assets.at(schedule) if isinstance(schedule, str) else schedule,
        # No start date: with one, Airflow would run the last missed tick as soon as the DAG is switched on, whatever
        # the timetable says of it.
        catchup=False,
        max_active_runs=max_active_runs,
        max_active_tasks=max_active_tasks,
        dagrun_timeout=run_limit,
        default_args=defaults,
        # Heeded by the deployment's auth manager, which knows roles; the embedded stack has one user.
        access_control=access(name),
        params=dict(params or {}),
        tags={"perennial", *tags},
    )


def result(of: XComArg) -> Any:
    """What a task returns, to be passed to another task.

    The call of a task gives a reference, and Airflow passes the task that takes it what the first one returned. Airflow's types
    do not say what that is: to the type checker it may be anything.

    Args:
        of: what the call of the task gave.
    """
    return of


def _field(default: object, **schema: Any) -> Param:
    """A form field.

    Airflow checks each field of each task, and the field's schema itself, whenever it parses the DAG; by the older of JSON
    Schema's drafts that takes a third of the time, and what is used here means the same in both.
    """
    schema["$schema"] = "http://json-schema.org/draft-07/schema#"
    return Param(default, **schema)


def day(title: str, description: str) -> Param:
    """A form field for a UTC day that may be left empty."""
    return _field(None, type=["null", "string"], format="date", title=title, description_md=description)


def days_per_part() -> Param:
    """A form field for how a range is cut up.

    A part has a fixed cost: some four seconds for a load, a second or two for scoring (tasks, a publication). A quarter of a
    thousand rows a day is worth more than that; more rows a day want shorter parts.
    """
    return _field(
        91,
        type="integer",
        minimum=1,
        maximum=366,
        title="Days a part",
        description_md="A range is worked on in parts of so many days, beside each other; fewer where a day has many rows.",
    )


def parts_at_once() -> int:
    """Most tasks at once of a range that is worked on in parts."""
    return settings().parts_at_once


def switch(title: str, description: str, *, default: bool) -> Param:
    """A form field that is on or off."""
    return _field(default, type="boolean", title=title, description_md=description)


def text(title: str, description: str, *, required: bool = True, longest: int = 500) -> Param:
    """A form field for a text of so many characters; it must be given if it is required."""
    if not required:
        return _field(None, type=["null", "string"], maxLength=longest, title=title, description_md=description)
    return _field(None, type="string", minLength=3, maxLength=longest, title=title, description_md=description)


def version(title: str, description: str, *, required: bool = False) -> Param:
    """A form field for a model version's number; it may be left empty unless it is required."""
    kinds = "integer" if required else ["null", "integer"]
    return _field(None, type=kinds, minimum=1, title=title, description_md=description)
