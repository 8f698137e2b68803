"""Refresh: the champion's recipe, fitted on newer rows, becomes champion; or it is refused, and its rows are held back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from perennial.core import logs
from perennial.core.errors import StaleDecision
from perennial.core.intervals import Interval
from perennial.stages.promote import (
    Decided,
    Outcome,
    make_champion,
    promoted_before,
    refuse_rows_of_another_run,
    register_decided,
)
from perennial.stages.run import StageRun

if TYPE_CHECKING:
    from perennial.ledger.records import Hold, What
    from perennial.training.refresh import Refreshed


def fit_refresh(run: StageRun, *, as_of: datetime, calendar: Interval | None = None) -> Refreshed:
    """Fit the champion's recipe on the rows up to now, log the model, and measure what its gates need.

    Args:
        run: the run.
        as_of: only data known by then are used.
        calendar: the week or month whose end started the refresh; None if something else did.

    Raises:
        NothingToRefresh: there is nothing to do; the message says why.
        TrainingError: there is too little data, or the recipe could not be fitted.
        VersionUnusable: what the champion's recipe needs is gone.
    """
    from perennial.scoring.predictor import refuse_other_predictions
    from perennial.training.refresh import refresh_champion

    refuse_other_predictions(run.folder.spec, run.deployment.lake)
    return refresh_champion(run.folder, run.deployment, as_of=as_of, run_id=run.qualified_id, calendar=calendar)


def confirm(run: StageRun, refreshed: Refreshed) -> Refreshed:
    """Measure again what another process has measured.

    Raises:
        StaleDecision, TrainingError: see :func:`perennial.training.refresh.confirm_refresh`.
    """
    from perennial.training.refresh import confirm_refresh

    refuse_rows_of_another_run(run, refreshed.training_set)
    if (made := promoted_before(run, refreshed.fitted.mlflow_run_id)) is not None:
        return replace(refreshed, evaluation=made.evaluation)
    return confirm_refresh(run.folder, run.deployment, refreshed)


def decide_refresh(run: StageRun, refreshed: Refreshed) -> Decided:
    """Decide by the gates, and register the version with the decision, its evidence, its card and its release report.

    Args:
        run: the run.
        refreshed: the model and its measurements.

    Raises:
        CardError: the version passed its gates, but a section of its card is empty.
    """
    from perennial.evaluation.gates import decide
    from perennial.registry.folders import open_folder

    registry, ledger, evaluation = run.deployment.registry, run.deployment.ledger, refreshed.evaluation
    assert evaluation.refresh is not None
    champion = ledger.version(run.model, evaluation.refresh.champion)
    assert champion is not None
    decision = decide(evaluation, run.folder.gates)
    with open_folder(champion, run.folder, registry, []) as recipe:
        return register_decided(run, recipe, refreshed.training_set, refreshed.fitted, evaluation, decision)


def promote_refresh(
    run: StageRun, decided: Decided, *, cause: str, actor: str, answer: Mapping[str, Any] | None = None
) -> Outcome:
    """Make a refresh champion that passed. Otherwise hold back what was found to be at fault.

    - Where its newest rows are doubted, no later version learns from them until a person releases them.
    - Where earlier refreshes did harm, the older version that they were compared with is champion again, and refreshes stop.

    Args:
        run: the run that refreshed the champion.
        decided: the version and the gates' decision.
        cause: why the refresh ran.
        actor: who promotes, if there is no approver.
        answer: of an approver, as for :func:`perennial.stages.promote.promote_champion`; None if nobody was asked.

    Raises:
        StaleDecision: the champion is no longer the one that was refreshed. There is nothing to repair: the next refresh is of
            the new champion.
    """
    from perennial.evaluation.gates import undoes_refreshes, withholds_rows

    registry, decision = run.deployment.registry, decided.decision
    name = f"{run.model} version {decided.version}"
    logs.resolved(version=decided.version)
    if decision.promote:
        if answer is None and run.folder.spec.asks_for_refreshes:
            return Outcome(
                decided.version, "waiting", f"{name} passed its gates and waits for an approval (approval.refreshes)"
            )  # fmt: skip
        words = f"{name} is champion: it is version {decided.expected} with newer rows"
        return make_champion(run, decided, cause=cause, actor=actor, answer=answer, action="refresh", words=words)
    registry.refuse_refresh(run.model, decided.version, decision, withheld=withholds_rows(decision))
    told = [f"{name} is refused: {'; '.join(decision.reasons)}"]
    if withholds_rows(decision):
        told.append(_hold(run, decided, "data"))
    if undoes_refreshes(decision):
        told.append(_restore(run, decided, actor=actor))
    return Outcome(decided.version, "refused", ". ".join(told))


def _hold(run: StageRun, decided: Decided, what: What, interval: Interval | None = None) -> str:
    ledger = run.deployment.ledger
    record = ledger.version(run.model, decided.version)
    assert record is not None
    held = interval or record.training.interval("holdout")
    ledger.hold(
        run.model, what, held, version=decided.version, reasons=decided.decision.reasons, run_id=run.qualified_id
    )  # fmt: skip
    return f"the rows of {held} are withheld from later trainings" if what == "data" else "refreshes have stopped"


def _restore(run: StageRun, decided: Decided, *, actor: str) -> str:
    """Make the version champion again that refreshes were compared with, and stop refreshes."""
    from perennial.alerts import of_models

    ledger, registry = run.deployment.ledger, run.deployment.registry
    record = ledger.version(run.model, decided.version)
    assert record is not None
    refresh = record.evaluation.refresh
    assert refresh is not None
    assert refresh.rolling is not None
    keys = [Interval.from_key(key) for key in refresh.rolling.days]
    judged = Interval(min(key.start for key in keys), max(key.end for key in keys))
    reason = next(result.reason for result in decided.decision.results if result.gate == "refresh.harm")
    # First the stop: after a crash in between, nothing is refreshed until this has run again.
    told = _hold(run, decided, "refreshes", judged)
    try:
        registry.rollback(
            run.model, refresh.rolling.anchor, actor=actor, reason=reason, run_id=run.qualified_id,
            expected=decided.expected, evidence=decided.decision.to_json(),
        )  # fmt: skip
    except StaleDecision:
        if registry.champion(run.model) != refresh.rolling.anchor:
            raise
    ledger.record_alert(
        alert := of_models.refreshes_stopped(
            run.model, version=refresh.rolling.anchor, reason=reason, links=registry.links(run.model, refresh.rolling.anchor)
        ),
        f"{alert.kind}/{run.model}/version-{decided.version}",
    )
    return f"version {refresh.rolling.anchor} is champion again, and {told}"


def refresh(run: StageRun, *, as_of: datetime, cause: str, actor: str) -> Outcome:
    """The whole stage. It does not ask for an approval: a version that requires one waits."""
    return promote_refresh(run, decide_refresh(run, fit_refresh(run, as_of=as_of)), cause=cause, actor=actor)


def release(run: StageRun, what: What, within: Interval | None, *, reason: str, actor: str) -> list[Hold]:
    """Release data that are held back, or refreshes that have stopped.

    Args:
        run: the run.
        what: ``data`` or ``refreshes``.
        within: only data that overlap these days; None: all that are held back.
        reason: why.
        actor: who releases them.

    Returns:
        What was released; empty if nothing was held back.
    """
    return run.deployment.ledger.release(run.model, what, within, actor=actor, reason=reason)
