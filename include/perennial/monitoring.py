"""From what the ledger knows of a model to a request for retraining, or a recorded refusal to ask.

Neighbours: :mod:`perennial.retraining` decides and reads nothing; this module reads for it and writes down what it said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perennial import logs
from perennial.intervals import Interval, utc
from perennial.ledger import Ledger, VersionRecord
from perennial.retraining import BUDGET_SPAN, decide_retraining, retraining_run_id
from perennial.spec import ModelSpec

log = logs.get(__name__)


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
    model = spec.name
    versions = ledger.versions(model)
    decision = decide_retraining(
        spec.retraining,
        window_end=interval.end,
        verdicts=ledger.verdicts(model, before=interval.end),
        performances=ledger.performances(model),
        champion=ledger.champion(model),
        holdout_metrics={record.version: _holdout_metric(spec, record) for record in versions},
        metric=spec.primary_metric,
        task=spec.task,
        retrainings=ledger.retrainings(model, since=interval.end - max(BUDGET_SPAN, spec.retraining.cooldown)),
        trainings=[as_of for record in versions if (as_of := utc(record.training["as_of"])) <= interval.end],
        open_run=training_under_way,
    )
    ledger.record_retraining(
        model=model,
        window_end=interval.end,
        asked=decision.ask,
        cause=decision.cause,
        reason=decision.reason,
        run_id=run_id,
    )
    log.info("%s", decision.reason)
    if not decision.ask:
        return None
    return RetrainingRequest(run_id=retraining_run_id(model, interval.end), cause=f"{decision.cause}: {decision.reason}")


def _holdout_metric(spec: ModelSpec, record: VersionRecord) -> float:
    """The primary metric that the version had on its own holdout; NaN if its evaluation does not hold it."""
    value = record.evaluation.get("candidate", {}).get("metrics", {}).get(spec.primary_metric)
    return float(value) if isinstance(value, int | float) else math.nan
