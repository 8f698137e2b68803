"""Who is champion in MLflow: the alias follows the ledger.

A promotion is first a row in the ledger, compared and set there, since MLflow's aliases are last-writer-wins; then the alias
moves; then the row is completed. Whoever finds an open row finishes it. One process at a time moves the alias and says so in
the ledger before and after: what a process that was put to sleep in between writes late is known for what it is, and put right.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from mlflow.exceptions import MlflowException

from perennial.alerts import of_models
from perennial.core.errors import ArtifactRejected, NoChampion, PromotionRefused, StaleDecision
from perennial.evidence.decision import GateDecision
from perennial.ledger.records import Action, Approval, Promotion
from perennial.ledger.retirements import Retirement
from perennial.ledger.succession import completed, lineage, newest_leads_back
from perennial.registry.server import CHALLENGER, CHAMPION, MISSING
from perennial.registry.versions import Versions
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)

#: How often :meth:`Registry.reconcile` reads again when others keep changing what it reads.
_READS = 5
#: How long moving an alias may take; a process that has not said by then that it is done has died or sleeps.
LEASE = timedelta(seconds=15)
#: How long the late write of such a process is looked out for. Later, a person is taken to have moved the alias.
_LATE = timedelta(hours=1)
#: How long others wait for their turn, and how often they look.
_PATIENCE, _LOOK = timedelta(seconds=60), timedelta(milliseconds=50)


@dataclass(frozen=True)
class Rollback:
    """What came of asking for a rollback.

    Attributes:
        version: the champion from now on.
        changed: whether it is another one than before.
        words: what was done, or why nothing was, for people.
    """

    version: int
    changed: bool
    words: str


def _still_asked(spec: ModelSpec, answers: list[Approval]) -> str | None:
    """Whether the approval that the model wants is missing."""
    if spec.promotion == "approval" and not any(answer.answer == "approved" for answer in answers):
        return "nobody has approved it yet"
    return None


def _called(version: int | None) -> str:
    return "no champion" if version is None else f"version {version}"


class Champions(Versions):
    """The alias ``champion``: promotion, rollback, and keeping it in line with the ledger."""

    def champion(self, model: str) -> int | None:
        """The champion's version; None before the first promotion.

        A process that may promote brings ledger and alias in line first; another believes the ledger.

        Raises:
            ArtifactRejected: as in :meth:`reconcile`.
        """
        return self.reconcile(model) if self._settings.may_promote else self._ledger.champion(model)

    def promote(
        self,
        model: str,
        version: int,
        *,
        expected: int | None,
        reason: str,
        actor: str,
        run_id: str | None,
        evidence: Mapping[str, Any],
    ) -> Promotion:
        """Make a version champion, if the champion still is the one that the decision was made against.

        A retry of the same run changes nothing once it is done, nor does promoting the champion.

        Args:
            model: its name.
            version: the new champion; it has passed its gates.
            expected: the champion it was compared with; None if there was none.
            reason: for people.
            actor: who or what decided.
            run_id: the run that decided; None when a person did by hand.
            evidence: what the decision rested on.

        Raises:
            PromotionRefused: the ledger says that it did not pass its gates, or was not approved.
            StaleDecision: another version became champion meanwhile, or another promotion is open.
            ArtifactRejected: the version could not be loaded by those who would score with it.
        """
        if self.reconcile(model) == version:
            made = completed(self._ledger.promotions(model))[-1]
            self._show(made)  # an attempt that promoted it may have died before it came to this
            return made
        if bar := self._bar(model, version):
            raise PromotionRefused(f"{model} version {version} cannot be promoted: {bar}")
        return self._change(
            model, version, expected=expected, action="promote", reason=reason, actor=actor, run_id=run_id, evidence=evidence
        )

    def promote_by_hand(
        self, spec: ModelSpec, version: int, *, override: str | None, actor: str, run_id: str | None = None
    ) -> Promotion:
        """Make a version champion because a person says so.

        One that has passed its gates against the current champion, and was approved where the model wants that, needs no
        more. Any other needs a reason; it is recorded as an ``override`` and bears a tag that says so for ever.

        Args:
            spec: of the model.
            version: the new champion.
            override: why, whatever stands against it; None or blank: only if nothing does.
            actor: who.
            run_id: the run; its retry promotes nothing once more.

        Returns:
            What made it champion, now or before.

        Raises:
            PromotionRefused: something stands against it, and no reason is given; the message says what.
            ArtifactRejected: the version cannot be loaded; the champion stays.
            StaleDecision: another promotion came in between.
        """
        model = spec.name
        champion = self.reconcile(model)
        if champion == version:
            return completed(self._ledger.promotions(model))[-1]
        reason = (override or "").strip()
        record = self._ledger.version(model, version)
        obstacle = self._bar(model, version) or _still_asked(spec, self._ledger.approvals(model, version))
        if obstacle is None and record is not None and (compared := record.decision.champion) != champion:
            obstacle = (
                f"it was compared with {_called(compared)}, and the champion is {_called(champion)}: the evaluation is stale"
            )
        if obstacle is not None and not reason:
            raise PromotionRefused(
                f"{model} version {version} was not promoted: {obstacle}. Train again, or, if you know better, give a reason: "
                f"perennial promote {model} {version} --override REASON"
            )
        return self._change(
            model,
            version,
            expected=champion,
            action="promote" if obstacle is None else "override",
            reason=reason or "by hand",
            actor=actor,
            run_id=run_id,
            evidence={**(record.decision.to_json() if record else {}), **({"overridden": obstacle} if obstacle else {})},
        )

    def _bar(self, model: str, version: int) -> str | None:
        """What only an override can overcome; None if the gates passed the version and no approver refused it.

        Nor is anything said of a version that the ledger does not know: no override helps it, see :meth:`load`.
        """
        record = self._ledger.version(model, version)
        if record is None:
            return None
        if not record.decision.promote:
            reasons = record.decision.reasons or ["no complete evaluation of it is recorded"]
            return f"the gates refused it: {'; '.join(reasons)}"
        answers = self._ledger.approvals(model, version)
        if answers and answers[-1].answer != "approved":
            return f"it was not approved: {answers[-1].told}"
        return None

    def refuse(self, model: str, version: int, decision: GateDecision) -> None:
        """Tag a version refused, with every reason, and tell people; the champion stays."""
        self._refuse(model, version, decision.reasons, champion=decision.champion)

    def decline(self, approval: Approval) -> None:
        """Record that nobody approved a version, tag it so, and tell people; the champion stays."""
        model, version = approval.model, approval.version
        self._ledger.record_approval(approval)
        self._refuse(model, version, [approval.told], champion=self._ledger.champion(model))

    def _refuse(self, model: str, version: int, reasons: list[str], *, champion: int | None) -> None:
        self._tag(model, version, {"perennial.status": "refused", "perennial.refused_because": "; ".join(reasons)})
        self._drop_challenger(model, version)
        self._ledger.record_alert(
            of_models.promotion_refused(
                model, version=version, champion=champion, reasons=reasons, links=self._links(model, version)
            ),
            f"promotion_refused/{model}/version-{version}",
        )

    def rollback(
        self,
        model: str,
        to: int | None = None,
        *,
        actor: str,
        reason: str,
        run_id: str | None = None,
        expected: int | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> Rollback:
        """Make an earlier champion champion again.

        Without a version, the newest promotion is undone. If the newest change already went back, there is nothing to undo
        and nothing happens: two who see the same trouble and both roll back do not go back two steps. Going further back
        takes a version.

        Args:
            model: its name.
            to: the version, a former champion; None for the one before. If it already is champion, nothing happens.
            actor: who.
            reason: why, for people.
            run_id: the run; its retry does not go back once more.
            expected: roll back from this champion only; None: whichever it is.
            evidence: what it rests on, if a program decided.

        Raises:
            NoChampion: there is no champion, or none before it, or the version never was.
            ArtifactRejected: the version cannot be loaded; the champion stays.
            StaleDecision: the champion is not ``expected``, or another promotion came in between.
        """
        champion = self.reconcile(model)
        promotions = self._ledger.promotions(model)
        if champion is None:
            raise NoChampion(f"{model} has no champion to roll back from; train a version first")
        if run_id is not None:
            done = [made for made in completed(promotions) if made.run_id == run_id and made.action == "rollback"]
            if done:
                return Rollback(done[-1].version, False, f"this run has rolled back to version {done[-1].version} already")
        if expected is not None and champion != expected:
            raise StaleDecision(f"{model}: the champion is version {champion}, not {expected}: it is not rolled back")
        if to is None:
            if newest_leads_back(promotions):
                last = completed(promotions)[-1]
                return Rollback(
                    champion,
                    False,
                    f"nothing was changed: the newest change already is a rollback, from version {last.previous} to {champion} "
                    f"by {last.actor} ({last.reason}); to go back further, name the version",
                )
            before = lineage(promotions)[:-1]
            if not before:
                raise NoChampion(f"{model} version {champion} has no earlier champion: name a version, or train a new one")
            to = before[-1]
        if to == champion:
            return Rollback(champion, False, f"nothing was changed: version {champion} is champion already")
        if to not in {made.version for made in completed(promotions)}:
            raise NoChampion(
                f"{model} version {to} never was champion, so there is no going back to it; to make it champion: "
                f"perennial promote {model} {to}"
            )
        try:
            made = self._change(
                model, to, expected=champion, action="rollback", reason=reason, actor=actor, run_id=run_id,
                evidence=evidence or {},
            )  # fmt: skip
        except StaleDecision:
            if self.reconcile(model) != to:
                raise
            return Rollback(to, False, f"nothing was changed: somebody else has rolled back to version {to} meanwhile")
        return Rollback(made.version, True, f"version {made.version} is champion again, instead of version {champion}")

    def _change(
        self,
        model: str,
        version: int,
        *,
        expected: int | None,
        action: Action,
        reason: str,
        actor: str,
        run_id: str | None,
        evidence: Mapping[str, Any],
    ) -> Promotion:
        self.load(model, version)  # a version that scoring would reject must not become champion
        promotion = self._ledger.intend_promotion(
            model=model,
            version=version,
            expected=expected,
            action=action,
            reason=reason,
            actor=actor,
            run_id=run_id,
            evidence=dict(evidence),
        )
        if promotion.withdrawn_at is not None:
            raise StaleDecision(f"{model}: the promotion of version {version} was given up; start a new run to decide again")
        if promotion.completed_at is None and not self._finish(promotion):
            raise ArtifactRejected(f"{model} version {version} was deleted from MLflow and cannot become champion")
        return promotion

    def reconcile(self, model: str) -> int | None:
        """Bring MLflow's alias and the ledger in line.

        A promotion that a crash left open is finished. An alias that someone moved in MLflow is taken over as a promotion
        by ``MLflow``, if the ledger knows the version and it has passed its gates or been champion before; to a version
        that was refused, it is put back, and people are told how to override. An alias that someone removed is put back,
        too: to withdraw a champion, roll back. So is one that a process left behind that was put to sleep while it
        promoted, and woke up when others had gone on.

        Returns:
            The champion's version; None if the model has none.

        Raises:
            PromotionRefused: this process may not promote.
            ArtifactRejected: the alias points to a version that the ledger does not know.
            StaleDecision: others kept changing the champion meanwhile.
        """
        self._check_that_it_may_promote(model)
        for _ in range(_READS):
            # An alias that is not the champion's is believed between two equal readings of the ledger: otherwise one that a
            # promotion has just moved, or is just about to, would look as if a person had.
            before = self._ledger.promotions(model)
            open_ones = [made for made in before if made.completed_at is None and made.withdrawn_at is None]
            if open_ones:
                if not self._finish(open_ones[0]):
                    log.warning("version %s of %s was deleted before it became champion", open_ones[0].version, model)
                continue
            made = self._standing(model, before)
            champion = made[-1].version if made else None
            alias = self._alias(model, CHAMPION)
            if alias == champion:
                return champion
            late = self._ledger.unended_moves(model, since=datetime.now(UTC) - _LATE)
            if self._ledger.promotions(model) != before:
                continue
            if alias is None:
                if self._version(model, made[-1].version) is None:
                    log.warning("the champion of %s, version %s, was deleted from MLflow: roll back", model, champion)
                    return champion
                log.warning("the alias %s of %s was removed; it points to version %s again", CHAMPION, model, champion)
            elif champion is None and self._ledger.retirement(model) is not None:
                log.warning("%s is retired and its alias %s was at version %s; it is removed", model, CHAMPION, alias)
            elif alias in late and champion is not None:
                log.warning("%s: a process that had slept moved the alias to version %s; it is put back", model, alias)
            elif alias not in {change.version for change in made} and (bar := self._bar(model, alias)):
                log.warning("%s: the alias was moved to version %s, but %s; it is put back", model, alias, bar)
                self._ledger.record_alert(
                    of_models.alias_put_back(
                        model, version=alias, champion=champion, reason=bar, links=self._links(model, alias)
                    ),
                    # Once an hour: MLflow does not tell one move from the next.
                    f"alias_put_back/{model}/version-{alias}/{datetime.now(UTC):%Y-%m-%dT%H}",
                )
            else:
                self._adopt(model, alias, champion)
                continue
            self._put_back(model, made[-1] if made else None)
        raise StaleDecision(f"{model}: the champion kept changing while it was looked up; try again")

    def alias(self, model: str) -> int | None:
        """The version that MLflow calls champion, which the ledger may not; None if it calls none so."""
        return self._alias(model, CHAMPION)

    def follow_ledger(self, model: str) -> int | None:
        """Let the aliases say what the ledger says, whoever moved them, as after a restore: MLflow's database may be newer.

        Returns:
            The version that was called champion before, if it was another one.

        Raises:
            PromotionRefused: this process may not promote.
        """
        self._check_that_it_may_promote(model)
        made = self._standing(model, self._ledger.promotions(model))
        alias = self.alias(model)
        if alias != (made[-1].version if made else None):
            self._put_back(model, made[-1] if made else None)
        challenger = self._alias(model, CHALLENGER)
        if challenger is not None and self._ledger.version(model, challenger) is None:
            self._drop_challenger(model, challenger)
        return None if made and made[-1].version == alias else alias

    def retire(self, model: str, *, actor: str, reason: str, files: Mapping[str, str]) -> Retirement:
        """Take the champion away because the model ends: first in the ledger, then its aliases in MLflow.

        Doing it twice changes nothing more. A promotion brings the model back.

        Args:
            model: its name.
            actor: who.
            reason: why, for people.
            files: what its folder says, by name.

        Raises:
            PromotionRefused: this process may not promote.
        """
        self._check_that_it_may_promote(model)
        retired = self._ledger.retire(model, actor=actor, reason=reason, files=files)
        for alias in (CHAMPION, CHALLENGER):
            if self._alias(model, alias) is not None:
                self._client.delete_registered_model_alias(model, alias)
        if retired.champion is not None:
            until = f"{retired.retired_at:%Y-%m-%d %H:%M UTC}"
            tags = {"perennial.status": "retired", "perennial.champion_until": until}
            self._tag(model, retired.champion, tags, missing_ok=True)
        return retired

    def _standing(self, model: str, promotions: list[Promotion]) -> list[Promotion]:
        """The promotions that made champions since the model was last retired, if it was."""
        last = max((retired.promotion_id for retired in self._ledger.retirements(model)), default=0)
        return [made for made in completed(promotions) if made.id > last]

    def _put_back(self, model: str, promotion: Promotion | None) -> None:
        if promotion is None:
            self._client.delete_registered_model_alias(model, CHAMPION)
            return
        with suppress(StaleDecision):  # overtaken: reconcile looks again
            self._point(promotion)

    def _adopt(self, model: str, alias: int, champion: int | None) -> None:
        """Take over an alias that a person moved in MLflow."""
        if self._ledger.version(model, alias) is None:
            back = f"move it back to version {champion}" if champion is not None else "remove it"
            raise ArtifactRejected(
                f"{model}: the alias {CHAMPION} points to version {alias}, which Perennial did not register and cannot vouch "
                f"for: {back} in MLflow"
            )
        try:
            promotion = self._ledger.intend_promotion(
                model=model,
                version=alias,
                expected=champion,
                action="adopt",
                reason=f"the alias {CHAMPION} was moved in MLflow",
                actor="MLflow",
                run_id=None,
                evidence={},
            )
        except StaleDecision:
            return  # another process adopted it, or promoted a version; reconcile looks again
        self._finish(promotion)

    def _finish(self, promotion: Promotion) -> bool:
        """Let MLflow follow an intended promotion, and complete it.

        Returns:
            Whether it could: a promotion whose version was deleted after the intent is withdrawn, or it would block
            every other one for ever.
        """
        model, version = promotion.model, promotion.version
        if self._version(model, version) is None:
            self._ledger.withdraw_promotion(promotion.id)
            return False
        if promotion.action == "override":
            # Before it is champion: a crash must not leave an override that bears no mark.
            self._tag(model, version, {"perennial.override_reason": f"{promotion.reason} ({promotion.actor})"})
        compose = of_models.rollback if promotion.action == "rollback" else of_models.promoted
        try:
            if not self._point(promotion):
                return True
            self._ledger.complete_promotion(
                promotion.id,
                alert=compose(
                    model,
                    version=version,
                    previous=promotion.previous,
                    reason=promotion.reason,
                    actor=promotion.actor,
                    links=self._links(model, version),
                ),
            )
        except StaleDecision:
            now = self._ledger.promotion(promotion.id)
            if now.completed_at is None and now.withdrawn_at is None:
                raise
            return now.completed_at is not None  # somebody else has finished it, or given it up, and gone on
        self._show(promotion)
        return True

    def _point(self, promotion: Promotion) -> bool:
        """Move the alias, when it is this process's turn.

        Returns:
            Whether it had to: somebody else may have completed the promotion meanwhile.

        Raises:
            StaleDecision: a later promotion has overtaken this one, or it is nobody's turn for too long.
        """
        model, deadline = promotion.model, time.monotonic() + _PATIENCE.total_seconds()
        while (move := self._ledger.begin_move(promotion, lease=LEASE)) is None:
            time.sleep(_LOOK.total_seconds())
            if promotion.completed_at is None and self._ledger.promotion(promotion.id).completed_at is not None:
                return False
            if time.monotonic() > deadline:
                raise StaleDecision(f"{model}: others have been moving the alias for {_PATIENCE.seconds} seconds; try again")
        self._client.set_registered_model_alias(model, CHAMPION, str(promotion.version))
        # Should this process have slept here for longer than its lease, a later promotion's version has the last word.
        newest = [made for made in self._ledger.promotions(model) if made.withdrawn_at is None][-1]
        if newest.id != promotion.id:
            self._client.set_registered_model_alias(model, CHAMPION, str(newest.version))
        self._ledger.end_move(model, move)
        return True

    def _show(self, promotion: Promotion) -> None:
        """Write on both versions what people look for in MLflow."""
        model, version = promotion.model, promotion.version
        if self._ledger.champion(model) != version:
            return  # others have gone on meanwhile
        since = promotion.intended_at.strftime("%Y-%m-%d %H:%M UTC")
        word = {
            "promote": "promoted",
            "rollback": "rolled back to",
            "adopt": "taken over",
            "override": "promoted against what stood in its way",
        }[promotion.action]
        self._tag(
            model,
            version,
            {
                "perennial.status": CHAMPION,
                "perennial.champion_since": since,
                "perennial.promoted_by": promotion.actor,
                "perennial.promoted_because": f"{word}: {promotion.reason}",
            },
        )
        self._drop_challenger(model, version)
        if promotion.previous is not None and promotion.previous != version:
            status = "rolled back from" if promotion.action == "rollback" else "former champion"
            self._tag(
                model, promotion.previous, {"perennial.status": status, "perennial.champion_until": since}, missing_ok=True
            )

    def _alias(self, model: str, alias: str) -> int | None:
        try:
            aliases = self._client.get_registered_model(model).aliases
        except MlflowException as error:
            if error.error_code == MISSING:
                return None
            raise
        return int(aliases[alias]) if alias in aliases else None

    def _drop_challenger(self, model: str, version: int) -> None:
        if self._alias(model, CHALLENGER) == version:
            self._client.delete_registered_model_alias(model, CHALLENGER)
