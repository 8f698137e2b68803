"""Requests a retraining if the ledger's records of a model call for it, and records each decision.

Neighbours: :mod:`perennial.monitoring.retraining` decides, and :mod:`perennial.monitoring.expectation` says what may be
expected of a training and what came of it. Neither reads anything. This module reads the ledger for them and keeps the results.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from perennial.alerts import of_models
from perennial.core.errors import StaleDecision
from perennial.core.intervals import Interval
from perennial.evidence.monitoring import Expectation
from perennial.ledger.coverage import trained_as_of
from perennial.ledger.records import Retraining
from perennial.ledger.store import Ledger
from perennial.ledger.succession import completed
from perennial.monitoring.expectation import audit, expect
from perennial.monitoring.performance import judged_windows, recipe_of, trainings_of
from perennial.monitoring.retraining import PastTraining, RetrainingDecision, decide_retraining, retraining_run_id
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)


#: How often a decision is repeated because another window of the model was decided meanwhile.
_ATTEMPTS = 20


@dataclass(frozen=True)
class RetrainingRequest:
    """A training run that monitoring asks for.

    Attributes:
        run_id: always the same for the same model and window.
        cause: the cause in words and numbers.
    """

    run_id: str
    cause: str


def request_retraining(
    spec: ModelSpec, ledger: Ledger, interval: Interval, *, run_id: str, training_under_way: bool
) -> RetrainingRequest | None:
    """Decide whether to retrain after the window ``interval``, and record the decision with its reason and its expectation.

    Earlier requests of which it is now known what came of them are audited first.

    Args:
        spec: the model's spec.
        ledger: is read, and gets the decision.
        interval: the monitoring window that was just judged.
        run_id: the monitoring run.
        training_under_way: whether a training run of the model is queued or running.

    Returns:
        The training run to start; None if none is requested. A window that was decided before keeps its decision.

    Raises:
        StaleDecision: other windows of the model were decided meanwhile, again and again.
    """
    audit_requests(spec, ledger)
    for _ in range(_ATTEMPTS):
        decisions = ledger.retrainings(spec.name)
        decision = _decide(spec, ledger, interval, decisions, training_under_way=training_under_way)
        expected = _expect(spec, ledger) if decision.ask else None
        try:
            stands = ledger.record_retraining(
                model=spec.name,
                window_end=interval.end,
                asked=decision.ask,
                cause=decision.cause,
                reason=decision.reason if expected is None else f"{decision.reason} {expected.words}.",
                run_id=run_id,
                after=len(decisions),
                expectation=expected,
                alert=of_models.breaker(spec.name, interval, reason=decision.reason) if decision.breaker else None,
            )
        except StaleDecision as error:
            log.info("%s", error)
            continue
        log.info("%s", stands.reason)
        if not stands.asked:
            return None
        return RetrainingRequest(run_id=retraining_run_id(spec.name, interval.end), cause=f"{stands.cause}: {stands.reason}")
    raise StaleDecision(
        f"{spec.name}, {interval}: other windows were decided during each of {_ATTEMPTS} attempts. Run the task again"
    )


def audit_requests(spec: ModelSpec, ledger: Ledger) -> None:
    """Record what came of each request for a training, once that is known (:func:`perennial.monitoring.expectation.audit`)."""
    asked = [decision for decision in ledger.retrainings(spec.name) if decision.asked]
    if all(not decision.audit.is_empty for decision in asked):
        return
    trainings, promotions = trainings_of(ledger.versions(spec.name)), ledger.promotions(spec.name)
    comparisons = ledger.shadow_comparisons(spec.name)
    for decision in asked:
        found = audit(
            decision.window_end,
            trainings=trainings,
            promotions=promotions,
            comparisons=comparisons,
            windows=spec.shadow.windows,
            asked_again=decision.window_end < asked[-1].window_end,
        )
        if found is not None and decision.audit.is_empty:
            log.info("requested after %s: %s", decision.window_end, found.words)
            ledger.record_audit(spec.name, decision.window_end, found)


def _expect(spec: ModelSpec, ledger: Ledger) -> Expectation:
    return expect(ledger.promotions(spec.name), ledger.shadow_comparisons(spec.name), spec.primary_metric)


def _decide(
    spec: ModelSpec, ledger: Ledger, interval: Interval, decisions: Sequence[Retraining], *, training_under_way: bool
) -> RetrainingDecision:
    model, champion, versions = spec.name, ledger.champion(spec.name), ledger.versions(spec.name)
    promoted = {promotion.version for promotion in completed(ledger.promotions(model))}
    return decide_retraining(
        spec.retraining,
        window_end=interval.end,
        verdicts=ledger.verdicts(model, before=interval.end),
        windows=judged_windows(spec, ledger, champion, until=interval.end),
        decisions=decisions,
        trainings=[
            PastTraining(as_of, record.version in promoted)
            for record in trainings_of(versions)
            if (as_of := trained_as_of(record)) is not None
        ],
        recipe=recipe_of(versions, champion),
        open_run=training_under_way,
    )
