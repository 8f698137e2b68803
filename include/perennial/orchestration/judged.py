"""Tasks that the judge does. The task proposes and waits; it can change no champion itself.

Such a task is a function with :func:`judged`: what it returns is what the judge is told, and what the judge answers becomes
the task's result. It waits for a moment by itself, since most rulings take seconds, and then in the triggerer, where it holds
no worker.

Neighbours: :mod:`perennial.ledger.proposals` keeps proposals and rulings; :mod:`perennial.judge.steps` does each step.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import lru_cache
from typing import Any, NoReturn, ParamSpec, cast

import sqlalchemy as sa
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import Context, XComArg
from airflow.sdk.bases.decorator import DecoratedOperator, task_decorator_factory
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from perennial.core.errors import PerennialError
from perennial.core.settings import settings
from perennial.ledger.proposals import Ruling
from perennial.ledger.store import Ledger
from perennial.orchestration.links import MLFLOW
from perennial.orchestration.queues import LIGHT
from perennial.orchestration.runs import FormRefused, note

log = logging.getLogger(__name__)

P = ParamSpec("P")

#: Seconds that the task waits by itself. To wait in the triggerer costs two or three.
PATIENCE = 15.0
#: Seconds between two looks at the ledger: of the task, and of the triggerer.
_LOOK, _LOOK_LATER = 0.1, 0.5


@lru_cache(maxsize=1)
def _ledger() -> Ledger:
    return Ledger(settings().database_url)


class JudgedOperator(DecoratedOperator, PythonOperator):
    """Proposes what a function returns, and ends as the judge rules."""

    custom_operator_name = "@judged"
    template_fields = PythonOperator.template_fields

    def __init__(self, *, op_args: Any, op_kwargs: Any, **arguments: Any) -> None:
        super().__init__(
            kwargs_to_upstream={"python_callable": arguments["python_callable"], "op_args": op_args, "op_kwargs": op_kwargs},
            op_args=op_args,
            op_kwargs=op_kwargs,
            # By this it finds a worker again when the judge has ruled.
            queue=LIGHT,
            # What the judge has said is logged as a sentence.
            show_return_value_in_logs=False,
            **arguments,
        )

    def execute(self, context: Context) -> Any:
        said = super().execute(context)
        task, run_id = context["ti"], str(context["dag_run"].run_id)
        proposed = _ledger().propose(
            f"{self.dag_id}/{run_id}/{self.task_id}/{task.try_number}",
            model=self.dag_id.partition(".")[0],
            step=self.task_id,
            dag_id=self.dag_id,
            run_id=run_id,
            said=said,
        )
        until = time.monotonic() + PATIENCE
        while (ruling := _ledger().ruling(proposed)) is None and time.monotonic() < until:
            time.sleep(_LOOK)
        if ruling is None:
            log.info("the judge has not answered yet; waiting for it without a worker")
            self.defer(trigger=RulingTrigger(proposed), method_name="act")
        return self._act(context, ruling)

    def act(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Go on when the judge has ruled."""
        ruling = _ledger().ruling(int(event["proposal"]))
        assert ruling is not None
        return self._act(context, ruling)

    def _act(self, context: Context, ruling: Ruling) -> Any:
        if ruling.page:
            context["ti"].xcom_push(key=MLFLOW, value=ruling.page)
        if ruling.words:
            note(context, in_short(self.dag_id.partition(".")[0], ruling.words))
        if ruling.words and ruling.outcome == "done":
            log.info("%s", ruling.words)
        return ruling.value if ruling.outcome == "done" else _end(ruling)


def in_short(model: str, words: str) -> str:
    """The judge's words for a run's note, where the model needs no name: ``v3 is refused: …``."""
    short = words.removeprefix(f"{model} ")
    return f"v{short.removeprefix('version ')}" if short.startswith("version ") else words


def _end(ruling: Ruling) -> NoReturn:
    errors = {"skipped": AirflowSkipException, "refused": FormRefused, "failed": AirflowFailException}
    raise errors.get(ruling.outcome, AirflowException)(ruling.words)


class RulingTrigger(BaseTrigger):
    """Waits until the judge has ruled on a proposal.

    Args:
        proposal: its id.
    """

    def __init__(self, proposal: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow gives it no types
        self.proposal = proposal

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{RulingTrigger.__module__}.{RulingTrigger.__qualname__}", {"proposal": self.proposal}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while True:
            try:
                if await asyncio.to_thread(_ledger().ruling, self.proposal) is not None:
                    yield TriggerEvent({"proposal": self.proposal})  # type: ignore[no-untyped-call]
                    return
            except (sa.exc.SQLAlchemyError, PerennialError) as error:
                # Its text may name the address.
                log.warning("the ledger does not answer: %s", type(error).__name__)
            await asyncio.sleep(_LOOK_LATER)


def judged(*, trigger_rule: str = "all_success") -> Callable[[Callable[P, Mapping[str, Any]]], Callable[P, XComArg]]:
    """A task that the judge does, by the function's name. The function returns what the judge is told, as plain values.

    Args:
        trigger_rule: of the task.
    """

    def decorate(function: Callable[P, Mapping[str, Any]]) -> Callable[P, XComArg]:
        made: Any = task_decorator_factory(
            function, multiple_outputs=False, decorated_operator_class=JudgedOperator, trigger_rule=trigger_rule
        )
        return cast("Callable[P, XComArg]", made)

    return decorate
