"""The process of the judge: takes proposals from the ledger, and gives each to a process of its own, which rules on it.

So its memory stays flat, and a ruling that needs too much memory or time ends alone. Proposals of one model are taken one after
the other. Rulings are idempotent: if the judge is killed, it takes again what it has not ruled on.

It also looks every few seconds whether somebody has moved an alias in MLflow, and whether a promotion was left half done.

``perennial judge`` runs this: beside the embedded stack, and as a service of the deployed one. Neighbours:
:mod:`perennial.judge.steps` decides; :mod:`perennial.evaluation.confined` runs the code of models without any rights.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType
from typing import Any

import sqlalchemy as sa
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict, Field

from perennial.alerts.alert import linking
from perennial.core import logs
from perennial.core.confinement import end_with_parent, keep_ready
from perennial.core.errors import PerennialError, SettingsError, SpecError
from perennial.core.settings import settings, settings_of
from perennial.deployment import Deployment
from perennial.judge.people import People
from perennial.judge.steps import Ruled, take
from perennial.ledger.proposals import Proposal
from perennial.stages.run import StageRun

log = logging.getLogger(__name__)

#: Seconds between two looks for proposals, and between two looks at MLflow's aliases.
EVERY, ALIASES_EVERY = 0.25, 2.0
#: A proposal whose process has ended this often without a ruling fails.
ATTEMPTS = 3
#: Longest time of a ruling. Confined processes have shorter ones.
LONGEST = timedelta(hours=3)
#: Rulings are kept for this long; what they led to is kept elsewhere.
KEPT = timedelta(days=90)

#: What a ruling needs, imported once, before it is forked.
IMPORTED_AHEAD = (
    "skops.io", "mlflow.sklearn", "pyiceberg.catalog.sql", "pyiceberg.io.pyarrow", "duckdb", "perennial.evaluation.confined",
    "perennial.evaluation.gates", "perennial.monitoring.shadowing", "perennial.operations.standing",
    "perennial.reports.approval", "perennial.reports.releases", "perennial.training.evaluate", "perennial.training.refresh",
)  # fmt: skip


class JudgeSettings(BaseModel):
    """The judge's settings, from the environment.

    Attributes:
        at_once: most rulings at once.
        pulse: a file that is touched as long as the judge works, for a health check; None: none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_once: int = Field(default=2, ge=1, le=64)
    pulse: Path | None = None


_VARIABLES = {"at_once": "PERENNIAL_JUDGE_AT_ONCE", "pulse": "PERENNIAL_PULSE"}


def read_judge_settings(environment: Mapping[str, str]) -> JudgeSettings:
    """The judge's settings.

    Raises:
        SettingsError: a variable is unusable; the message names it.
    """
    return settings_of(JudgeSettings, _VARIABLES, environment, who="the judge")


@dataclass
class _Running:
    """A process that rules on a proposal, or aligns an alias."""

    process: ForkProcess
    model: str
    since: float


class Judge:
    """The judge.

    Args:
        deployment: ledger, lake and registry, with the rights to change the champion.
        given: its settings.

    Raises:
        SettingsError: this process may not change the champion.
    """

    def __init__(self, deployment: Deployment, given: JudgeSettings) -> None:
        if not deployment.settings.may_promote:
            raise SettingsError("the judge needs the right to change the champion: PERENNIAL_MAY_PROMOTE is false")
        self._deployment, self._given = deployment, given
        # A fork is safe: this process has one thread, and holds no connection of a database between two looks.
        self._context = get_context("fork")
        self._running: dict[int, _Running] = {}
        self._aligning: dict[str, _Running] = {}
        self._lost: Counter[int] = Counter()
        self._silent: set[str] = set()
        self._stopping = False

    def run(self) -> None:
        """Rule until SIGTERM or SIGINT comes. Rulings that have begun then end by themselves, or are taken again."""
        keep_ready("perennial.evaluation.confined")
        # Otherwise each ruling would wait for its imports, and have memory of its own for them.
        for module in IMPORTED_AHEAD:
            importlib.import_module(module)
        gc.freeze()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        log.info("waiting for proposals; at most %d rulings at once", self._given.at_once)
        aliases_at = tidied_at = 0.0
        try:
            while not self._stopping:
                began = time.monotonic()
                self._look("the ledger", self._take_proposals)
                if began - aliases_at >= ALIASES_EVERY:
                    aliases_at = began
                    self._look("MLflow", self._watch_aliases)
                if began - tidied_at >= 3600:
                    tidied_at = began
                    self._look("the ledger", self._tidy)
                if self._given.pulse is not None:
                    self._given.pulse.touch()
                time.sleep(EVERY)
        finally:
            for one in (*self._running.values(), *self._aligning.values()):
                one.process.join(timeout=10)
                one.process.kill()
            log.info("stopped")

    def _stop(self, _: int, __: FrameType | None) -> None:
        self._stopping = True

    def _look(self, what: str, look: Callable[[], None]) -> None:
        try:
            look()
            if what in self._silent:
                self._silent.discard(what)
                log.info("%s answers again", what)
        except (sa.exc.SQLAlchemyError, PerennialError, MlflowException) as error:
            if what not in self._silent:
                # Its text may name an address.
                log.warning("%s does not answer (%s); trying again", what, type(error).__name__)
            self._silent.add(what)

    def _take_proposals(self) -> None:
        waiting = {one.id: one for one in self._deployment.ledger.unruled()}
        for number, one in list(self._running.items()):
            if one.process.is_alive():
                if time.monotonic() - one.since > LONGEST.total_seconds():
                    one.process.kill()
                continue
            one.process.join()
            del self._running[number]
            if number in waiting:
                self._lost[number] += 1
                log.warning("a process that ruled on proposal %d has ended with %s", number, one.process.exitcode)
                if self._lost[number] >= ATTEMPTS:
                    words = (
                        f"the judge's process has ended {ATTEMPTS} times without an answer, the last time with exit code "
                        f"{one.process.exitcode}: it may need more memory, or more time than {LONGEST}"
                    )
                    self._deployment.ledger.rule(number, "failed", words=words)
                    del waiting[number]
        for number in set(self._lost) - set(waiting):
            del self._lost[number]
        busy = {one.model for one in self._running.values()}
        for number, proposal in waiting.items():
            if len(self._running) >= self._given.at_once:
                break
            if number not in self._running and proposal.model not in busy:
                busy.add(proposal.model)
                self._running[number] = self._start(_rule, proposal.model, number)

    def _watch_aliases(self) -> None:
        for model, one in list(self._aligning.items()):
            if not one.process.is_alive():
                one.process.join()
                del self._aligning[model]
        busy = {one.model for one in self._running.values()} | set(self._aligning)
        for model in self._deployment.registry.misaligned():
            if model not in busy:
                self._aligning[model] = self._start(_align, model, model)

    def _tidy(self) -> None:
        self._deployment.ledger.remove_proposals(datetime.now(UTC) - KEPT)

    def _start(self, work: Callable[[Any], None], model: str, argument: int | str) -> _Running:
        process = self._context.Process(target=work, args=(argument,), name=f"judge {model}")
        process.start()
        return _Running(process, model, time.monotonic())


# --- what runs in a process of its own ---------------------------------------------------------------------------------


def _rule(number: int) -> None:
    """Rule on a proposal, and record it."""
    _begin()
    deployment = Deployment(settings())
    proposal = deployment.ledger.proposal(number)
    with logs.context(model=proposal.model, interval=proposal.said.get("interval"), run=proposal.run_id):
        began = time.monotonic()
        ruled = rule(deployment, proposal, People(os.environ))
        deployment.ledger.rule(number, ruled.outcome, words=ruled.words, value=ruled.value, page=ruled.page)
        log.info("%s: %s after %.1f s. %s", proposal.step, ruled.outcome, time.monotonic() - began, ruled.words)


def rule(deployment: Deployment, proposal: Proposal, people: People) -> Ruled:
    """The ruling on a proposal. The code of models runs in processes that can do nothing but compute.

    Args:
        deployment: ledger, lake and registry.
        proposal: what is asked.
        people: what people have said.
    """
    from perennial.evaluation.confined import Confinement
    from perennial.model.authors_code import running_in

    try:
        folder = deployment.model(proposal.model)
    except SpecError as error:
        return Ruled("failed", f"SpecError: {error}")
    run = StageRun(folder, deployment, proposal.run_id, f"{proposal.dag_id}/{proposal.run_id}")
    page = deployment.settings.model_url(proposal.model)
    with Confinement() as place, running_in(place), linking({"Model": page} if page else {}):
        return take(run, proposal, people)


def _align(model: str) -> None:
    """Finish a promotion that was left half done; adopt what somebody has promoted in MLflow, or put it back."""
    _begin()
    with logs.context(model=model, run="judge"):
        try:
            champion = Deployment(settings()).registry.reconcile(model)
            log.info("MLflow's alias and the ledger agree: the champion is %s", champion)
        except PerennialError as error:
            log.warning("%s", error)


def _begin() -> None:
    # It ends with the judge, also if that is killed: the next judge takes the proposal again.
    end_with_parent()
    # Ctrl-C at a terminal is for the judge itself, which lets this process end. It ends this one by SIGTERM if need be.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logs.configure(os.environ, logging.INFO)
