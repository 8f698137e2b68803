"""What all DAGs of Perennial have in common: their models, defaults and form fields.

A DAG file loops over :func:`models` and makes one DAG per model with :func:`stage`. A broken model folder has no DAGs. The file
``dags/broken_models.py`` has no DAG either; it calls :func:`report_broken_models`, which shows the errors as that file's import
error.
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
from airflow.timetables.base import Timetable

from perennial.core.errors import SpecError
from perennial.core.pools import pools
from perennial.core.settings import settings
from perennial.orchestration import assets
from perennial.orchestration.callbacks import alert_of_failure, resolve_failure
from perennial.orchestration.queues import LIGHT, QUEUES
from perennial.orchestration.users import access
from perennial.spec.folder import ModelFolder, is_model_folder, read_models
from perennial.spec.model import ModelSpec

#: By stage, the priority of tasks that wait for a worker. The order: what a person has just asked for, daily work, monitoring
#: of it, loads of history, and last long work that nobody waits for.
_PRIORITIES = {
    "promote": 50, "rollback": 50, "release": 50, "notify": 50,
    "score": 40, "ingest": 40, "materialize": 40,
    "monitor": 30, "refresh": 30, "record": 30,
    "load": 20,
    "train": 10, "maintain": 10,
}  # fmt: skip

#: Most tasks of one DAG at the same time, including those that wait in a worker's queue.
MOST_TASKS = 16

#: Longest duration of a run that does not wait for a person.
RUN_LIMIT = timedelta(hours=12)

#: Most lines that are shown of a folder's errors, and most characters of a line.
_LINES, _LINE = 20, 500


def models() -> list[ModelSpec]:
    """The models that have a sound folder and are not retired, by name.

    Raises:
        SpecError: a worker parses the file for a task of a model whose folder is broken. The task fails, and its log says why.
    """
    own = _own()
    sound, broken = _folders(settings().models, own)
    if own in broken:
        raise broken[own]
    return [folder.spec for _, folder in sorted(sound.items()) if not folder.spec.retired]


def report_broken_models() -> None:
    """Show the errors of all broken folders as an import error of the calling DAG file.

    That file must have no DAG: Airflow marks all DAGs of a file with an import error as stale. Stale DAGs are not scheduled and
    cannot be triggered.

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
    """The model of the task for which a worker parses the file; None in other processes, and for DAGs of all models."""
    own = (get_parsing_context().dag_id or "").partition(".")[0]
    return own if own and is_model_folder(settings().models / own) else None


@lru_cache(maxsize=1)
def _folders(everything: Path, own: str | None) -> tuple[dict[str, ModelFolder], dict[str, SpecError]]:
    """All folders, read once per process: Airflow parses each DAG file in a separate process.

    A worker parses the file again for each task, and needs only that task's DAG. So it reads only that model.
    """
    return read_models(everything, own)


def stage(
    model: ModelSpec,
    name: str,
    *,
    schedule: BaseTimetable | Timetable | str | None,
    doc: str | None,
    params: Mapping[str, Param] | None = None,
    max_active_runs: int = 1,
    max_active_tasks: int = MOST_TASKS,
    run_limit: timedelta = RUN_LIMIT,
    task_limit: timedelta = timedelta(hours=3),
) -> DAG:
    """The DAG ``<model>.<stage>``.

    Args:
        model: the DAG's model.
        name: the stage's name, a verb.
        schedule: a timetable or cron text; None if the DAG only runs by hand.
        doc: Markdown shown in the UI; it ends with what to do about a failure.
        params: the fields of the trigger form.
        max_active_runs: most runs at the same time; one if their order matters.
        max_active_tasks: most tasks at the same time.
        run_limit: longest duration of a run.
        task_limit: longest duration of one try of a task.
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
    schedule: BaseTimetable | Timetable | str | None,
    doc: str | None,
    tags: set[str],
    params: Mapping[str, Param] | None = None,
    max_active_runs: int = 1,
    max_active_tasks: int = MOST_TASKS,
    run_limit: timedelta,
    task_limit: timedelta,
) -> DAG:
    """A DAG with Perennial's retries, limits, alerts and priorities; :func:`stage` explains the arguments."""
    name = dag_id.rpartition(".")[2]
    pool = pools(settings()).get("train" if name == "refresh" else name)
    defaults: dict[str, Any] = {
        "owner": owner,
        "retries": 2,
        "retry_delay": timedelta(seconds=20),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=10),
        "execution_timeout": task_limit,
        "queue": QUEUES.get(name, LIGHT),
        **({"pool": pool.name} if pool else {}),
        "priority_weight": _PRIORITIES[name],
        # Use the task's own number. By default, Airflow adds the numbers of all downstream tasks.
        "weight_rule": "absolute",
        "on_failure_callback": alert_of_failure,
        "on_success_callback": resolve_failure,
    }
    return DAG(
        dag_id=dag_id,
        description=description,
        doc_md=inspect.cleandoc(doc or ""),
        schedule=assets.at(schedule) if isinstance(schedule, str) else schedule,
        # No start date: with one, Airflow would run the last missed tick as soon as the DAG is switched on, even if the
        # timetable forbids it.
        catchup=False,
        max_active_runs=max_active_runs,
        max_active_tasks=max_active_tasks,
        dagrun_timeout=run_limit,
        default_args=defaults,
        # The deployment's auth manager, which has roles, uses this. The embedded stack has only one user.
        access_control=access(name),
        params=dict(params or {}),
        tags={"perennial", *tags},
    )


def result(of: XComArg) -> Any:
    """A task's result, as an argument for another task.

    The call of a task returns a reference. When the other task runs, Airflow replaces the reference with the result. Airflow's
    types do not say which type the result has, so the type checker treats it as ``Any``.

    Args:
        of: the reference that the call of the task returned.
    """
    return of


def _field(default: object, **schema: Any) -> Param:
    """A form field.

    Whenever Airflow parses a DAG, it checks each field of each task, and the field's schema itself. With JSON Schema's draft 7,
    which is older than Airflow's default, this takes a third of the time. The keywords used here mean the same in both.
    """
    schema["$schema"] = "http://json-schema.org/draft-07/schema#"
    return Param(default, **schema)


def day(title: str, description: str) -> Param:
    """A form field for a UTC day that may be left empty."""
    return _field(None, type=["null", "string"], format="date", title=title, description_md=description)


def days_per_part() -> Param:
    """A form field for the length of a range's parts.

    A part has a fixed cost for its tasks and publication: some four seconds for a load, one or two for scoring. The work for a
    quarter of a year takes longer than that at a thousand rows per day. With more rows per day, shorter parts are better.
    """
    return _field(
        91,
        type="integer",
        minimum=1,
        maximum=366,
        title="Days per part",
        description_md="A range is cut into parts of this many days, which run at the same time. Use fewer if days are large.",
    )


def parts_at_once() -> int:
    """Most parts of a range that are worked on at the same time."""
    return settings().parts_at_once


def switch(title: str, description: str, *, default: bool) -> Param:
    """A form field that is on or off."""
    return _field(default, type="boolean", title=title, description_md=description)


def announcements(*, default: bool) -> dict[str, Param]:
    """The form fields that say which stages follow the publication of days; monitoring follows scoring, so it needs it."""
    return {
        "announce_scoring": switch("Announce to scoring", "Score these days, oldest first.", default=default),
        "announce_monitoring": switch(
            "Announce to monitoring", "Judge their weeks once they are scored. Needs *Announce to scoring*.", default=default
        ),
        "announce_training": switch(
            "Announce to training",
            "Train, and refresh the champion, when their weeks are complete, oldest first.",
            default=default,
        ),
    }


def text(title: str, description: str, *, required: bool = True, longest: int = 500) -> Param:
    """A form field for a text of at most ``longest`` characters; it may be left empty unless it is required."""
    if not required:
        return _field(None, type=["null", "string"], maxLength=longest, title=title, description_md=description)
    return _field(None, type="string", minLength=3, maxLength=longest, title=title, description_md=description)


def version(title: str, description: str, *, required: bool = False) -> Param:
    """A form field for a model version's number; it may be left empty unless it is required."""
    kinds = "integer" if required else ["null", "integer"]
    return _field(None, type=kinds, minimum=1, title=title, description_md=description)
