"""Promote and roll back: change the champion by the gates' decision, by an approval, or by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from perennial.core import logs
from perennial.core.errors import PromotionRefused, TrainingError
from perennial.core.intervals import utc
from perennial.stages.run import StageRun

if TYPE_CHECKING:
    from perennial.evidence.decision import GateDecision
    from perennial.evidence.evaluation import Evaluation
    from perennial.evidence.training import TrainingSet
    from perennial.ledger.records import Approval, Promotion, VersionRecord
    from perennial.model.candidate import Fitted
    from perennial.registry.champion import Rollback
    from perennial.spec.folder import ModelFolder


@dataclass(frozen=True)
class Decided:
    """A registered version, and the gates' decision on it.

    Attributes:
        version: the version's number.
        decision: the gates' decision.
        expected: the champion that the version was compared with; None if there was none.
        links: pages about the version, by name.
        comparison: the version and the champion side by side, in Markdown, for an approver.
    """

    version: int
    decision: GateDecision
    expected: int | None
    links: dict[str, str]
    comparison: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "decision": self.decision.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Decided:
        from perennial.evidence.decision import GateDecision

        decision = GateDecision.from_json(value["decision"])
        return cls(**{**value, "version": int(value["version"]), "decision": decision})


@dataclass(frozen=True)
class Outcome:
    """The outcome for a trained version.

    Attributes:
        version: the version's number.
        became: ``champion``; ``refused``, by the gates or by an approver; or ``waiting``, if the model requires an approval
            that was not asked for.
        words: the same as a text for people, with the reasons.
    """

    version: int
    became: Literal["champion", "refused", "waiting"]
    words: str


def register_decided(
    run: StageRun,
    folder: ModelFolder,
    training_set: TrainingSet,
    fitted: Fitted,
    evaluation: Evaluation,
    decision: GateDecision,
) -> Decided:
    """Register a version with the gates' decision, its evidence, its card and its release report.

    Args:
        run: the run.
        folder: the model folder that the version was made with.
        training_set, fitted: what it was made of.
        evaluation, decision: the measurements, and the gates' decision on them.

    Raises:
        CardError: the version passed its gates, but a section of its card is empty.
    """
    from perennial.reports.approval import comparison_in_words
    from perennial.reports.releases import publish_pages

    registry = run.deployment.registry
    version = registry.register(folder, training_set, fitted, evaluation, decision, run_id=run.qualified_id)
    logs.resolved(version=version)
    # Before a promotion or an approval, since people must read these pages first. An empty section stops the promotion.
    publish_pages(run.folder, run.deployment, version)
    links = registry.links(run.model, version)
    return Decided(
        version=version,
        decision=decision,
        expected=evaluation.champion_version,
        links=links,
        comparison=comparison_in_words(version, evaluation, decision, links),
    )


def decided_of(run: StageRun, version: int) -> tuple[Decided, datetime]:
    """The decision on a version of this run, as the ledger has it, and when the version was registered.

    Raises:
        PromotionRefused: the ledger has no such version, or another run has made it.
    """
    record = run.deployment.ledger.version(run.model, version)
    if record is None or record.training.run_id != run.qualified_id:
        raise PromotionRefused(f"{run.model} version {version} was not made by run {run.qualified_id}")
    decided = Decided(version, record.decision, record.evaluation.champion_version, links={}, comparison="")
    return decided, record.created_at


def refuse_rows_of_another_run(run: StageRun, training_set: TrainingSet) -> None:
    """Refuse a training set that another run has pinned: the version would count as that run's.

    Raises:
        TrainingError: it is of another run.
    """
    if training_set.run_id != run.qualified_id:
        raise TrainingError(f"{run.model}: the training set is of run {training_set.run_id}, and not of {run.qualified_id}")


def promoted_before(run: StageRun, mlflow_run_id: str) -> VersionRecord | None:
    """The version of an MLflow run, if an earlier attempt has made it champion: its decision stands."""
    ledger = run.deployment.ledger
    changed_to = {change.version for change in ledger.promotions(run.model) if change.withdrawn_at is None}
    return next(
        (one for one in ledger.versions(run.model) if one.mlflow_run_id == mlflow_run_id and one.version in changed_to), None
    )


def promote_champion(
    run: StageRun, decided: Decided, *, cause: str, actor: str, answer: Mapping[str, Any] | None = None
) -> Outcome:
    """Move the alias ``champion`` to the version, or tag the version as refused by the gates or by the approver.

    Args:
        run: the run that trained the version.
        decided: the version and the gates' decision.
        cause: why the training ran.
        actor: who promotes, if there is no approver.
        answer: ``answer``, ``approver``, ``words`` and ``answered_at`` (ISO time) of an approver; None if nobody was asked.

    Raises:
        StaleDecision: the champion is no longer the one that the version was compared with, nor another version of its recipe.
        PromotionRefused: an approver refused the version before.
        ArtifactRejected: the stored model cannot be loaded.
    """
    registry, version = run.deployment.registry, decided.version
    logs.resolved(version=version)
    name, decision = f"{run.model} version {version}", decided.decision
    if not decision.promote:
        registry.refuse(run.model, version, decision)
        return Outcome(version, "refused", f"{name} is refused: {'; '.join(decision.reasons)}")
    if answer is None and run.folder.spec.promotion == "approval":
        return Outcome(
            version,
            "waiting",
            f"{name} passed its gates and waits for an approval, which {run.model}.train asks for in Airflow. To promote it "
            f"without one: perennial promote {run.model} {version} --override REASON",
        )
    return make_champion(
        run, decided, cause=cause, actor=actor, answer=answer, action="promote", recipe=decision.champion_recipe,
        words=f"{name} is champion",
    )  # fmt: skip


def make_champion(
    run: StageRun,
    decided: Decided,
    *,
    cause: str,
    actor: str,
    answer: Mapping[str, Any] | None,
    action: Literal["promote", "refresh"],
    words: str,
    recipe: str = "",
) -> Outcome:
    """Move the alias ``champion`` to a version that passed its gates, unless an approver has refused it.

    Args:
        run, decided, cause, actor, answer: see :func:`promote_champion`.
        action, recipe: see :meth:`perennial.registry.champion.Champions.promote`.
        words: the outcome for people, if the version becomes champion.
    """
    version, evidence = decided.version, decided.decision.to_json()
    if answer is not None:
        approval = approve(run, version, answer)
        if approval.answer != "approved":
            return Outcome(version, "refused", f"{run.model} version {version} does not become champion: {approval.told}")
        evidence, actor = {**evidence, "approval": dict(answer)}, str(approval.approver)
        cause = f"{cause}; {approval.told}"
    if decided.decision.champion_unusable is not None:
        cause = f"{cause}; not compared with version {decided.expected}, which can never be used again"
    run.deployment.registry.promote(
        run.model,
        version,
        expected=decided.expected,
        reason=cause,
        actor=actor,
        run_id=run.qualified_id,
        evidence=evidence,
        recipe=recipe,
        action=action,
    )
    return Outcome(version, "champion", words)


def approve(run: StageRun, version: int, answer: Mapping[str, Any]) -> Approval:
    """Record an approver's answer. A version that was not approved is tagged as refused.

    Args:
        run: the run that asked.
        version: the version in question.
        answer: ``answer``, ``approver``, ``words`` and ``answered_at`` (ISO time).
    """
    from perennial.ledger.records import Approval

    approval = Approval(
        model=run.model, version=version, run_id=run.qualified_id, **{**answer, "answered_at": utc(answer["answered_at"])}
    )
    if approval.answer == "approved":
        run.deployment.ledger.record_approval(approval)
    else:
        run.deployment.registry.decline(approval)
    return approval


def announce_question(run: StageRun, decided: Decided, *, until: datetime, page: str | None) -> None:
    """Record an alert that a version waits for an approval.

    Args:
        run: the run that trained the version.
        decided: the version and the gates' decision.
        until: when the question expires.
        page: address of the page where the question is answered; None if there is no address.
    """
    from perennial.alerts import of_models

    links = {**decided.links, "Answer": page} if page else decided.links
    alert = of_models.approval_wanted(run.model, version=decided.version, champion=decided.expected, until=until, links=links)
    run.deployment.ledger.record_alert(alert, f"{alert.kind}/{run.model}/version-{decided.version}")


def promote_by_hand(run: StageRun, version: int, *, override: str | None, actor: str) -> Promotion:
    """Make a version champion by hand. A reason is required if there is an objection, such as a gate that refused.

    Args:
        run: the run.
        version: the new champion.
        override: reason to promote despite objections; None: promote only if there is no objection.
        actor: who promotes.

    Raises:
        PromotionRefused: there is an objection, and no reason is given.
        ArtifactRejected: the stored model cannot be loaded.
        StaleDecision: another promotion came in between.
    """
    logs.resolved(version=version)
    return run.deployment.registry.promote_by_hand(
        run.folder.spec, version, override=override, actor=actor, run_id=run.qualified_id, check=partial(_check_use, run)
    )


def roll_back(run: StageRun, version: int | None, *, reason: str, actor: str) -> Rollback:
    """Make the previous champion, or another former one, champion again.

    Args:
        run: the run.
        version: the former champion; None: the previous one.
        reason: why the champion is rolled back.
        actor: who rolls it back.

    Raises:
        NoChampion: there is no former champion.
        ArtifactRejected: the stored model cannot be loaded.
        StaleDecision: another promotion came in between.
    """
    return run.deployment.registry.rollback(
        run.model, version, actor=actor, reason=reason, run_id=run.qualified_id, check=partial(_check_use, run)
    )


def _check_use(run: StageRun, version: int) -> None:
    """Refuse a version that scoring would refuse.

    Raises:
        VersionUnusable: the tables or MLflow no longer have what it needs, or the model is asked for something else.
    """
    from perennial.registry.folders import computable, own_folder

    registry = run.deployment.registry
    registry.load(run.model, version, spec=run.folder.spec)
    computable(own_folder(registry, version, run.folder), None, None)
