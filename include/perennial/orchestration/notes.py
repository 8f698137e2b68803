"""The note of a run in Airflow's UI: what came of it, in the words of its tasks.

A task pushes a sentence to XCom (:meth:`perennial.orchestration.runs.Run.note`); a worker has no way to set a note. When the
run ends, Airflow's scheduler tells its listeners, and this one makes it the note. The plugin ``perennial_notes`` hands it over.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

from airflow.listeners import hookimpl

from perennial.orchestration.links import NOTE

log = logging.getLogger(__name__)

#: Longest note, in characters; Airflow keeps a thousand.
LONGEST = 900
#: Most tasks of one name that are quoted: a load of years has many parts.
_PARTS = 4


def compose(said: Iterable[tuple[str, str]]) -> str:
    """The note of a run: what its last task said, or all instances of it; empty if none said anything.

    Args:
        said: the id of each task and its sentence, the last task last.
    """
    told = list(said)
    if not told:
        return ""
    last = [words for task_id, words in told if task_id == told[-1][0]]
    more = f"; and {len(last) - _PARTS} more" if len(last) > _PARTS else ""
    note = "; ".join(last[:_PARTS]) + more
    return note if len(note) <= LONGEST else f"{note[: LONGEST - 1]}…"


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:  # noqa: ARG001  # as Airflow calls it
    """Note what came of a run."""
    keep(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:  # noqa: ARG001  # as Airflow calls it
    """Note why a run failed."""
    keep(dag_run)


def keep(dag_run: Any) -> None:
    """Make what a run's tasks said its note. What a person has noted stays. An error is logged, and changes no run."""
    from airflow.utils.session import create_session
    from sqlalchemy.orm import object_session

    try:
        # The scheduler holds a lock on the run, so only its own session may write what belongs to the run.
        if (session := object_session(dag_run)) is not None:
            _note(session, dag_run)
            return
        with create_session() as session:
            _note(session, dag_run)
    except Exception:
        log.exception("run %s of %s has no note", dag_run.run_id, dag_run.dag_id)


def _note(session: Any, dag_run: Any) -> None:
    from airflow.models.dagrun import DagRunNote

    note = session.get(DagRunNote, dag_run.id)
    if (note is not None and note.user_id is not None) or not (told := compose(_said(session, dag_run))):
        return
    if note is None:
        note = DagRunNote(told)  # type: ignore[no-untyped-call]  # Airflow gives it no types
        note.dag_run_id = dag_run.id
        session.add(note)
    note.content = told


def _said(session: Any, dag_run: Any) -> list[tuple[str, str]]:
    """What tasks of the run have said, the last task last, and the instances of a mapped task in their order."""
    from airflow.models.xcom import XComModel

    pushed = XComModel.get_many(key=NOTE, run_id=dag_run.run_id, dag_ids=dag_run.dag_id)
    columns = (XComModel.timestamp, XComModel.map_index, XComModel.task_id, XComModel.value)
    rows = sorted(session.execute(pushed.with_only_columns(*columns)), key=lambda row: row.timestamp)
    ends = {row.task_id: row.timestamp for row in rows}
    rows.sort(key=lambda row: (ends[row.task_id], row.task_id, row.map_index))
    return [(row.task_id, _as_text(row.value)) for row in rows]


def _as_text(value: object) -> str:
    """A text of XCom, which is JSON within JSON or not, by how it was pushed."""
    try:
        inner = json.loads(str(value))
    except ValueError:
        return str(value)
    return inner if isinstance(inner, str) else str(value)
