"""From what the ledger knows of a model to a request for retraining, or a recorded refusal to ask.

Neighbours: :mod:`perennial.monitoring.retraining` decides and reads nothing; this module reads for it and writes down what
it said.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from perennial.alerts import of_models
from perennial.core.errors import StaleDecision
from perennial.core.intervals import Interval
from perennial.ledger.coverage import trained_as_of
from perennial.ledger.records import Retraining, VersionRecord
from perennial.ledger.store import Ledger
from perennial.monitoring.retraining import PastTraining, RetrainingDecision, decide_retraining, retraining_run_id
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)


#: How often a decision is made again because another window of the model was decided in between.
_ATTEMPTS = 20


@dataclass(frozen=True)
class RetrainingRequest:
    """A training run that monitoring asks for.

    Attributes:
        run_id: the same for the same model and window, however often it is asked.
        cause: in words and numbers.
    """

    run_id: str
    cause: str


def request_retraining(
    spec: ModelSpec, ledger: Ledger, interval: Interval, *, run_id: str, training_under_way: bool
) -> RetrainingRequest | None:
    """Decide for the window ``interval``, write the decision and its reason down, and say what to start.

    Args:
        spec: of the model.
        ledger: what is read and written.
        interval: the monitoring window just judged.
        run_id: of the monitoring run.
        training_under_way: whether a training run of the model is queued or running.

    Returns:
        What to start; None if nothing is asked for. A window that was decided before keeps its answer.
    """
    for _ in range(_ATTEMPTS):
        decisions = ledger.retrainings(spec.name)
        decision = _decide(spec, ledger, interval, decisions, training_under_way=training_under_way)
        try:
            stands = ledger.record_retraining(
                model=spec.name,
                window_end=interval.end,
                asked=decision.ask,
                cause=decision.cause,
                reason=decision.reason,
                run_id=run_id,
                after=len(decisions),
                alert=of_models.breaker(spec.name, interval, reason=decision.reason) if decision.breaker else None,
            )
        except StaleDecision as error:
            log.info("%s", error)
            continue
        log.info("%s", stands.reason)
        if not stands.asked:
            return None
        return RetrainingRequest(run_id=retraining_run_id(spec.name, interval.end), cause=f"{stands.cause}: {stands.reason}")
    raise StaleDecision(f"{spec.name}, {interval}: other windows kept being decided meanwhile; run the task again")


def _decide(
    spec: ModelSpec, ledger: Ledger, interval: Interval, decisions: Sequence[Retraining], *, training_under_way: bool
) -> RetrainingDecision:
    model = spec.name
    versions = ledger.versions(model)
    promoted = {promotion.version for promotion in ledger.promotions(model) if promotion.completed_at is not None}
    return decide_retraining(
        spec.retraining,
        window_end=interval.end,
        verdicts=ledger.verdicts(model, before=interval.end),
        performances=ledger.performances(model),
        champion=ledger.champion(model),
        holdout_metrics={record.version: _holdout_metric(spec, record) for record in versions},
        metric=spec.primary_metric,
        task=spec.task,
        decisions=decisions,
        trainings=[
            PastTraining(as_of, record.version in promoted)
            for record in versions
            if (as_of := trained_as_of(record)) is not None
        ],
        open_run=training_under_way,
    )


def _holdout_metric(spec: ModelSpec, record: VersionRecord) -> float:
    """The primary metric that the version had on its own holdout; NaN if its evaluation does not hold it."""
    return record.evaluation.candidate.metrics.get(spec.primary_metric, math.nan)
