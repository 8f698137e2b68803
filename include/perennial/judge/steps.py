"""What the judge does with a proposal: one function for each step that a task may ask for.

A step gets what the task said, and believes none of it. It takes names from it (of files, rows, a version), measures again
and decides by that. A worker may also write which run asks, and for which model. So a step of training takes only rows and
versions of that very run, and a step for a person is done only for a run that, according to Airflow, a person has started.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from perennial.core.errors import (
    FINAL,
    ArtifactRejected,
    NoChampion,
    NothingToRefresh,
    PerennialError,
    PromotionRefused,
    StaleDecision,
    VersionUnusable,
)
from perennial.core.intervals import Interval
from perennial.core.redaction import redact
from perennial.judge.people import People
from perennial.ledger.proposals import Outcome, Proposal
from perennial.stages import maintain, monitor, promote, refresh, train
from perennial.stages.run import StageRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ruled:
    """What came of a step; see :class:`perennial.ledger.proposals.Ruling`."""

    outcome: Outcome
    words: str = ""
    value: Any = None
    page: str | None = None


Step = Callable[[StageRun, Proposal, People], Ruled]


def decide_promotion(run: StageRun, proposal: Proposal, _: People) -> Ruled:
    """Measure again from files and rows, let the gates decide, and register the version with its evidence, card and report."""
    from perennial.evidence.evaluation import Evaluation
    from perennial.evidence.training import TrainingSet
    from perennial.model.candidate import Fitted

    said = proposal.said
    fitted = [Fitted.from_json(candidate) for candidate in said["fitted"]]
    training_set, evaluation = train.confirm(
        run, TrainingSet.from_json(said["training_set"]), fitted, Evaluation.from_json(said["evaluation"])
    )
    return _decided(run, train.decide_promotion(run, training_set, fitted, evaluation))


def decide_refresh(run: StageRun, proposal: Proposal, _: People) -> Ruled:
    """Measure again from files and rows, let the gates of a refresh decide, and register the version with its evidence."""
    from perennial.training.refresh import Refreshed

    try:
        confirmed = refresh.confirm(run, Refreshed.from_json(proposal.said["refreshed"]))
    except (StaleDecision, NothingToRefresh) as error:
        return Ruled("skipped", f"{error}. The next refresh is of the present champion")
    return _decided(run, refresh.decide_refresh(run, confirmed))


def _decided(run: StageRun, decided: promote.Decided) -> Ruled:
    page = run.deployment.registry.version_url(run.model, decided.version)
    return Ruled("done", decision_in_words(decided), decided.to_json(), page)


def decision_in_words(decided: promote.Decided) -> str:
    """What the gates decided, in a sentence."""
    decision = decided.decision
    if decision.promote:
        over = f" over version {decided.expected}" if decided.expected is not None else ""
        return f"version {decided.version} passed its gates{over}"
    gates, reasons = ", ".join(decision.refused_by), "; ".join(decision.reasons)
    return f"version {decided.version} is refused by {gates or 'its gates'}: {reasons or 'no reason was kept'}"


def promote_champion(run: StageRun, proposal: Proposal, people: People) -> Ruled:
    """Move the alias ``champion`` to the version, or tag it refused, as the gates or the approver decided."""
    try:
        return _act(run, proposal, people, promote.promote_champion)
    except StaleDecision as error:
        return Ruled(
            "failed",
            f"StaleDecision: {error}. The evaluation is stale: clear evaluate_candidates and what follows it in this run, and "
            "the version is compared with the new champion",
        )


def promote_refresh(run: StageRun, proposal: Proposal, people: People) -> Ruled:
    """Make the refreshed version champion; or hold back its rows, or undo refreshes."""
    try:
        return _act(run, proposal, people, refresh.promote_refresh)
    except StaleDecision as error:
        return Ruled("skipped", f"{error}. The next refresh is of the new champion")


def _act(run: StageRun, proposal: Proposal, people: People, act: Callable[..., promote.Outcome]) -> Ruled:
    """Act on the decision about a version of this run, and on what an approver has answered."""
    decided, registered_at = promote.decided_of(run, int(proposal.said["version"]))
    given = run.deployment.ledger.values_of_run(proposal.dag_id, proposal.run_id)
    shown = [
        one["comparison"]
        for one in given
        if isinstance(one, dict) and one.get("version") == decided.version and "comparison" in one
    ]
    answer = people.answer(
        proposal, version=decided.version, registered_at=registered_at, shown=shown[-1] if shown else None
    )  # fmt: skip
    outcome = act(run, decided, cause=str(proposal.said["cause"]), actor=f"airflow:{proposal.dag_id}", answer=answer)
    page = run.deployment.registry.version_url(run.model, outcome.version)
    match outcome.became:
        case "champion":
            return Ruled("done", outcome.words, {"champion": outcome.version}, page)
        case "refused":
            return Ruled("skipped", outcome.words, page=page)
        case _:
            return Ruled("failed", f"{outcome.words}. Nobody was asked in this run: trigger it again", page=page)


def promote_by_hand(run: StageRun, proposal: Proposal, people: People) -> Ruled:
    """Make the version that a person's form names champion; an override needs a reason."""
    person, form = people.starter(proposal)
    try:
        made = promote.promote_by_hand(run, int(form["version"]), override=form.get("override"), actor=person)
    except PromotionRefused as error:
        return Ruled("skipped", str(error))
    except VersionUnusable:  # which is no matter of the form
        raise
    except ArtifactRejected as error:
        return _refused(error)
    page = run.deployment.registry.version_url(run.model, made.version)
    words = f"version {made.version} is champion, by {person.removeprefix('airflow:')}"
    return Ruled("done", words, {"champion": made.version, "action": made.action}, page)


def _refused(error: PerennialError) -> Ruled:
    """What a person asked for is not there; nothing is wrong with the model."""
    return Ruled("refused", f"{type(error).__name__}: {error}")


def roll_back(run: StageRun, proposal: Proposal, people: People) -> Ruled:
    """Make the champion before this one, or the version that a person's form names, champion again."""
    person, form = people.starter(proposal)
    version = form.get("version")
    try:
        done = promote.roll_back(run, None if version is None else int(version), reason=str(form["reason"]), actor=person)
    except NoChampion as error:
        return _refused(error)
    page = run.deployment.registry.version_url(run.model, done.version)
    return Ruled("done", done.words, {"champion": done.version, "changed": done.changed, "words": done.words}, page)


def compare_shadows(run: StageRun, proposal: Proposal, _: People) -> Ruled:
    """Compare the champion with the versions in its shadow; raise an alert, or roll back, if it is worse."""
    seen = monitor.compare_shadows(run, Interval.from_key(proposal.said["interval"]))
    return Ruled("done", value=[{"version": one.version, "outcome": one.outcome, "reason": one.reason} for one in seen])


def align_alias(run: StageRun, _: Proposal, __: People) -> Ruled:
    """Make MLflow's alias agree with the ledger, finish an interrupted promotion, and look whether the champion is usable."""
    version = maintain.align_alias(run)
    maintain.look_at_champion(run)
    return Ruled("done", value=version)


#: By step, the stage whose runs may ask for it.
STEPS: Mapping[str, tuple[str, Step]] = {
    "decide_promotion": ("train", decide_promotion),
    "promote_champion": ("train", promote_champion),
    "decide_refresh": ("refresh", decide_refresh),
    "promote_refresh": ("refresh", promote_refresh),
    "promote_by_hand": ("promote", promote_by_hand),
    "roll_back": ("rollback", roll_back),
    "compare_shadows": ("monitor", compare_shadows),
    "align_alias": ("maintain", align_alias),
}


def take(run: StageRun, proposal: Proposal, people: People) -> Ruled:
    """Do what a proposal asks for.

    Args:
        run: of the proposal's model.
        proposal: what is asked.
        people: what people have said.

    Returns:
        What came of it. An error that is not final can be cured by asking again.
    """
    stage, step = STEPS.get(proposal.step, ("", None))
    if step is None or proposal.dag_id != f"{proposal.model}.{stage}":
        return Ruled("failed", f"{proposal.dag_id} may not ask for {proposal.step[:100]!r}")
    try:
        return step(run, proposal, people)
    except FINAL as error:
        return Ruled("failed", f"{type(error).__name__}: {error}")
    except PerennialError as error:
        return Ruled("again", f"{type(error).__name__}: {error}")
    except Exception as error:
        log.exception("%s failed", proposal.step)
        return Ruled("again", f"{type(error).__name__}: {redact(str(error))}. The log of the judge says where")
