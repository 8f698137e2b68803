"""Who is champion in MLflow: the alias follows the ledger.

A promotion has three steps. A row is written to the ledger, by compare-and-set, because MLflow's aliases are
last-writer-wins. Then the alias moves. Then the row is completed. Any process that finds an open row finishes it.

One process at a time moves the alias, and it records this in the ledger before and after. If that process is suspended in
between and writes the alias late, the record shows it, and the alias is corrected.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from mlflow.exceptions import MlflowException

from perennial.alerts import of_models
from perennial.core.errors import ArtifactRejected, NoChampion, PromotionRefused, StaleDecision
from perennial.evaluation.gates import is_disputed
from perennial.evidence.decision import GateDecision
from perennial.ledger.records import Action, Approval, Promotion
from perennial.ledger.retirements import Retirement
from perennial.ledger.succession import completed, lineage, newest_leads_back
from perennial.registry.permissions import MOVED_BY
from perennial.registry.server import CHALLENGER, CHAMPION, MISSING
from perennial.registry.versions import Versions
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)

#: How often :meth:`Registry.reconcile` reads again when others keep changing what it reads.
_READS = 5
#: How long moving an alias may take. A process that has not recorded the end of its move by then is dead or suspended.
LEASE = timedelta(seconds=15)
#: For how long an alias move may be the late write of such a process. After that, a person is assumed to have moved it.
_LATE = timedelta(hours=1)
#: How long other processes wait for their turn, and how often they check.
_PATIENCE, _LOOK = timedelta(seconds=60), timedelta(milliseconds=50)


@dataclass(frozen=True)
class Rollback:
    """The result of a rollback.

    Attributes:
        version: the champion after the rollback.
        changed: whether the champion changed.
        words: for people: what was done, or why nothing was done.
    """

    version: int
    changed: bool
    words: str


def _still_asked(spec: ModelSpec, answers: list[Approval]) -> str | None:
    """What to tell people if the model requires an approval and has none; None if nothing is missing."""
    if spec.promotion == "approval" and not any(answer.answer == "approved" for answer in answers):
        return "nobody has approved it yet"
    return None


def _called(version: int | None) -> str:
    return "no champion" if version is None else f"version {version}"


class Champions(Versions):
    """The alias ``champion``: promotes, rolls back, and keeps the alias in line with the ledger."""

    def champion(self, model: str) -> int | None:
        """Return the champion's version; None before the first promotion.

        A process that may promote brings the ledger and the alias in line first. Other processes only read the ledger.

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
        action: Literal["promote", "refresh"] = "promote",
        recipe: str = "",
    ) -> Promotion:
        """Make a version champion, if the champion is still the one that the decision was made against.

        If the decision was made against a recipe, a newer version of this recipe is as good: a refresh may have been promoted
        while the candidate was trained.

        A retry of the same run changes nothing after the promotion is done. Promoting the current champion changes nothing.

        Args:
            model: the model's name.
            version: the new champion; it has passed its gates.
            expected: the champion that the version was compared with; None if there was none.
            reason: for people.
            actor: who or what decided.
            run_id: the run that decided; None if a person decided by hand.
            evidence: what the decision is based on.
            action: whether it replaces the champion, or is the champion with newer rows.
            recipe: :attr:`GateDecision.champion_recipe`; empty if the version was compared with a stored model.

        Raises:
            PromotionRefused: according to the ledger, the version did not pass its gates or was not approved.
            StaleDecision: another version became champion in the meantime, or another promotion is open.
            ArtifactRejected: the version cannot be loaded, so it could not score.
        """
        champion = self.reconcile(model)
        if champion == version:
            made = completed(self._ledger.promotions(model))[-1]
            self._show(made)  # an earlier attempt may have promoted the version and died before this step
            return made
        if bar := self._bar(model, version):
            raise PromotionRefused(f"{model} version {version} cannot be promoted: {bar}")
        if self._has_recipe(model, champion, recipe):
            expected = champion
        return self._change(
            model, version, expected=expected, action=action, reason=reason, actor=actor, run_id=run_id, evidence=evidence
        )

    def promote_by_hand(
        self,
        spec: ModelSpec,
        version: int,
        *,
        override: str | None,
        actor: str,
        run_id: str | None = None,
        check: Callable[[int], object] = lambda _: None,
    ) -> Promotion:
        """Make a version champion at a person's request.

        No reason is required if the version has passed its gates against the current champion and has the approval that the
        model may require. Otherwise a reason is required. The promotion is then recorded as an ``override``, and the version
        has a permanent tag with the reason.

        Args:
            spec: the model's specification.
            version: the new champion.
            override: the reason to promote in spite of obstacles; None or blank: promote only if there are none.
            actor: who asks for it.
            run_id: the run; a retry of it does not promote again.
            check: raises an error if the version could not score.

        Returns:
            The promotion that made the version champion, now or earlier.

        Raises:
            PromotionRefused: there is an obstacle and no reason is given; the message names the obstacle.
            ArtifactRejected: the version cannot be loaded; the champion does not change.
            StaleDecision: another promotion was made in the meantime.
        """
        model = spec.name
        champion = self.reconcile(model)
        if champion == version:
            return completed(self._ledger.promotions(model))[-1]
        check(version)
        reason = (override or "").strip()
        record = self._ledger.version(model, version)
        obstacle = self._bar(model, version) or _still_asked(spec, self._ledger.approvals(model, version))
        if (
            obstacle is None
            and record is not None
            and (compared := record.decision.champion) != champion
            and not self._has_recipe(model, champion, record.decision.champion_recipe)
        ):
            obstacle = (
                f"it was compared with {_called(compared)}, and the champion is {_called(champion)}: the evaluation is stale"
            )
        if obstacle is not None and not reason:
            raise PromotionRefused(
                f"{model} version {version} was not promoted: {obstacle}. Train again. To promote it anyway, give a reason: "
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

    def _has_recipe(self, model: str, version: int | None, recipe: str) -> bool:
        """Whether a version was made by a recipe. It is no if one of them is not known."""
        record = None if version is None else self._ledger.version(model, version)
        return record is not None and recipe != "" and record.training.recipe == recipe

    def _bar(self, model: str, version: int) -> str | None:
        """Return the obstacle that only an override can overcome; None if the gates passed it and no approver refused it.

        For a version that the ledger does not know, the result is None too: an override cannot help, see :meth:`load`.
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
        """Tag a version as refused, with every reason, and alert people. The champion does not change.

        Nobody is told of a candidate that is only the champion's own recipe: nothing is wrong with it.
        """
        if decision.same_recipe:
            self._mark_refused(model, version, decision.reasons)
        elif is_disputed(decision):
            self._refuse_disputed(model, version, decision)
        else:
            self._refuse(model, version, decision.reasons, champion=decision.champion)

    def refuse_refresh(self, model: str, version: int, decision: GateDecision, *, withheld: bool) -> None:
        """Tag a refresh as refused, with every reason, and alert people. The champion does not change.

        Args:
            model: the model.
            version: the refresh.
            decision: the gates' decision.
            withheld: whether its newest rows are held back.
        """
        if is_disputed(decision):
            self._refuse_disputed(model, version, decision)
            return
        record = self._ledger.version(model, version)
        rows = record.training.interval("holdout") if record is not None and withheld else None
        self._mark_refused(model, version, decision.reasons)
        alert = of_models.refresh_refused(
            model, version=version, champion=decision.champion, reasons=decision.reasons, withheld=rows,
            links=self._links(model, version),
        )  # fmt: skip
        self._ledger.record_alert(alert, f"{alert.kind}/{model}/version-{version}")

    def decline(self, approval: Approval) -> None:
        """Record that a version was not approved, tag it as refused, and alert people. The champion does not change."""
        model, version = approval.model, approval.version
        self._ledger.record_approval(approval)
        self._refuse(model, version, [approval.told], champion=self._ledger.champion(model))

    def _refuse(self, model: str, version: int, reasons: list[str], *, champion: int | None) -> None:
        self._mark_refused(model, version, reasons)
        self._ledger.record_alert(
            of_models.promotion_refused(
                model, version=version, champion=champion, reasons=reasons, links=self._links(model, version)
            ),
            f"promotion_refused/{model}/version-{version}",
        )

    def _refuse_disputed(self, model: str, version: int, decision: GateDecision) -> None:
        self._mark_refused(model, version, decision.reasons)
        alert = of_models.evidence_mismatch(
            model, version=version, champion=decision.champion, reasons=decision.reasons, links=self._links(model, version)
        )
        self._ledger.record_alert(alert, f"{alert.kind}/{model}/version-{version}")

    def _mark_refused(self, model: str, version: int, reasons: list[str]) -> None:
        why = "; ".join(reasons)
        # What an approver answered says so itself.
        self._tell(model, version, "refused", why[:1].upper() + why[1:] if why.startswith("refused") else f"Refused: {why}")
        self._drop_challenger(model, version)

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
        check: Callable[[int], object] = lambda _: None,
    ) -> Rollback:
        """Make an earlier champion the champion again.

        Without a version, the newest promotion is undone. If the newest change was already a rollback, nothing happens. So
        two people who see the same problem and both roll back do not go back two steps. To go back further, name a version.

        Args:
            model: the model's name.
            to: a former champion; None: the previous champion. If this version is already champion, nothing happens.
            actor: who asks for it.
            reason: why, for people.
            run_id: the run; a retry of it does not roll back again.
            expected: roll back only from this champion; None: from any champion.
            evidence: what the decision is based on, if a program decided.
            check: raises an error if the version could not score.

        Raises:
            NoChampion: there is no champion, there was none before it, or the version was never champion.
            ArtifactRejected: the version cannot be loaded; the champion does not change.
            StaleDecision: the champion is not ``expected``, or another promotion was made in the meantime.
        """
        champion = self.reconcile(model)
        promotions = self._ledger.promotions(model)
        if champion is None:
            raise NoChampion(f"{model} has no champion to roll back from; train a version first")
        if run_id is not None:
            done = [made for made in completed(promotions) if made.run_id == run_id and made.action == "rollback"]
            if done:
                return Rollback(done[-1].version, False, f"this run has already rolled back to version {done[-1].version}")
        if expected is not None and champion != expected:
            raise StaleDecision(f"{model}: the champion is version {champion}, not {expected}, so it is not rolled back")
        if to is None:
            if newest_leads_back(promotions):
                last = completed(promotions)[-1]
                return Rollback(
                    champion,
                    False,
                    f"nothing was changed: the newest change is already a rollback, from version {last.previous} to {champion} "
                    f"by {last.actor} ({last.reason}); to go back further, name the version",
                )
            before = lineage(self._standing(model, promotions))[:-1]  # not to a champion of before a retirement
            if not before:
                raise NoChampion(f"{model} version {champion} has no earlier champion: name a version, or train a new one")
            to = before[-1]
        if to == champion:
            return Rollback(champion, False, f"nothing was changed: version {champion} is already champion")
        if to not in {made.version for made in completed(promotions)}:
            raise NoChampion(
                f"{model} version {to} was never champion, so you cannot roll back to it; to make it champion: "
                f"perennial promote {model} {to}"
            )
        check(to)
        try:
            made = self._change(
                model, to, expected=champion, action="rollback", reason=reason, actor=actor, run_id=run_id,
                evidence=evidence or {},
            )  # fmt: skip
        except StaleDecision:
            if self.reconcile(model) != to:
                raise
            return Rollback(to, False, f"nothing was changed: somebody else has already rolled back to version {to}")
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
            raise StaleDecision(f"{model}: the promotion of version {version} was withdrawn; start a new run to decide again")
        if promotion.completed_at is None and not self._finish(promotion):
            raise ArtifactRejected(f"{model} version {version} was deleted from MLflow and cannot become champion")
        return promotion

    def reconcile(self, model: str) -> int | None:
        """Bring MLflow's alias and the ledger in line.

        A promotion that a crash left open is finished. An alias that someone moved in MLflow is handled by its version:

        - The version passed its gates or was champion before: the move is recorded as a promotion by who moved it, if MLflow's
          server has noted that (:mod:`perennial.registry.permissions`), or by ``MLflow``.
        - The version was refused, or Perennial did not register it: the alias is put back, and an alert tells people why.

        An alias that someone removed is put back; to withdraw a champion, roll back. An alias is also put back if a process
        moved it late, because it was suspended during a promotion and others promoted in the meantime.

        Returns:
            The champion's version; None if the model has none.

        Raises:
            PromotionRefused: this process may not promote.
            StaleDecision: other processes kept changing the champion during the call.
        """
        self._check_that_it_may_promote(model)
        for _ in range(_READS):
            # If the alias differs from the champion, the ledger is read before and after. Only if both reads are equal was
            # the alias moved by a person. Otherwise a promotion may have just moved it, or be about to.
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
                    if (renamed := self.renamed_to(model)) is not None:
                        log.warning("%s was renamed to %s in MLflow, and nothing is changed: rename it back", model, renamed)
                    else:
                        log.warning(
                            "the champion of %s, version %s, was deleted from MLflow; nothing is changed: roll back or train",
                            model,
                            champion,
                        )
                    return champion
                log.warning("the alias %s of %s was removed; it points to version %s again", CHAMPION, model, champion)
            elif champion is None and self._ledger.retirement(model) is not None:
                log.warning("%s is retired, but its alias %s points to version %s; it is removed", model, CHAMPION, alias)
            elif alias in late and champion is not None:
                log.warning("%s: a suspended process moved the alias late, to version %s; it is put back", model, alias)
            elif alias not in {change.version for change in made} and (bar := self._bar_of_alias(model, alias)):
                log.warning("%s: the alias was moved to version %s, but %s; it is put back", model, alias, bar)
                self._ledger.record_alert(
                    of_models.alias_put_back(
                        model,
                        version=alias,
                        champion=champion,
                        by=self._moved_by(model, alias),
                        reason=bar,
                        links=self._links(model, alias),
                    ),
                    # At most once per hour: MLflow does not distinguish one move from the next.
                    f"alias_put_back/{model}/version-{alias}/{datetime.now(UTC):%Y-%m-%dT%H}",
                )
            else:
                self._adopt(model, alias, champion)
                continue
            self._put_back(model, made[-1] if made else None)
        raise StaleDecision(f"{model}: the champion kept changing while it was looked up; try again")

    def alias(self, model: str) -> int | None:
        """Return the version that MLflow's alias names, which may differ from the ledger; None if there is no alias."""
        return self._alias(model, CHAMPION)

    def may_adopt(self, model: str, version: int) -> bool:
        """Whether :meth:`reconcile` takes over a version that somebody moved the alias to."""
        made = self._standing(model, self._ledger.promotions(model))
        return version in {change.version for change in made} or self._bar_of_alias(model, version) is None

    def misaligned(self) -> list[str]:
        """The models whose alias names another version than the ledger, or that have a promotion which a crash left open.

        The number of requests to MLflow grows with the number of models only by a page for each thousand.
        """
        standings, open_ones = self._ledger.standings(opened_before=datetime.now(UTC) - LEASE)
        aliases: dict[str, int] = {}
        token = None
        while True:
            page = self._client.search_registered_models(max_results=1000, page_token=token)
            aliases |= {model.name: int(model.aliases[CHAMPION]) for model in page if CHAMPION in model.aliases}
            if not (token := page.token):
                break
        differing = {model for model, version in standings.items() if aliases.get(model) != version}
        return sorted(differing | open_ones)

    def _bar_of_alias(self, model: str, version: int) -> str | None:
        if self._ledger.version(model, version) is None:
            return "Perennial did not register it, and cannot check it"
        return self._bar(model, version)

    def _moved_by(self, model: str, version: int) -> str | None:
        """Who has moved the alias to this version, as MLflow's server has noted it; None if it has not."""
        said = str(self._client.get_registered_model(model).tags.get(MOVED_BY, ""))
        to, _, user = said.partition(" ")
        return f"mlflow:{user}" if user and to == str(version) else None

    def follow_ledger(self, model: str) -> int | None:
        """Set MLflow's aliases to what the ledger says, no matter who moved them.

        This is required after a restore, because MLflow's database may be newer than the ledger.

        Returns:
            The version that the alias named before, if it was a different one.

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
        """Retire a model: record it in the ledger, then remove the model's aliases in MLflow.

        A second call changes nothing. A promotion brings the model back.

        Args:
            model: the model's name.
            actor: who asks for it.
            reason: why, for people.
            files: texts of the model's folder, by file name.

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
            self._tell(model, retired.champion, "retired", f"Champion until the model ended, {until}.", missing_ok=True)
        return retired

    def _standing(self, model: str, promotions: list[Promotion]) -> list[Promotion]:
        """Return the completed promotions since the model was last retired; all of them if it never was."""
        last = max((retired.promotion_id for retired in self._ledger.retirements(model)), default=0)
        return [made for made in completed(promotions) if made.id > last]

    def _put_back(self, model: str, promotion: Promotion | None) -> None:
        if promotion is None:
            self._client.delete_registered_model_alias(model, CHAMPION)
            return
        with suppress(StaleDecision):  # overtaken: reconcile looks again
            self._point(promotion)

    def _adopt(self, model: str, alias: int, champion: int | None) -> None:
        """Record as a promotion that a person moved the alias in MLflow."""
        try:
            promotion = self._ledger.intend_promotion(
                model=model,
                version=alias,
                expected=champion,
                action="adopt",
                reason=f"the alias {CHAMPION} was moved in MLflow",
                actor=self._moved_by(model, alias) or "MLflow",
                run_id=None,
                evidence={},
            )
        except StaleDecision:
            return  # another process adopted it, or promoted a version; reconcile looks again
        self._finish(promotion)

    def _finish(self, promotion: Promotion) -> bool:
        """Apply an intended promotion in MLflow, and complete it.

        Returns:
            Whether the promotion was completed. If its version was deleted after the intent, the promotion is withdrawn,
            because it would block every other promotion for ever.
        """
        model, version = promotion.model, promotion.version
        if self._version(model, version) is None:
            self.check_name(model)
            self._ledger.withdraw_promotion(promotion.id)
            return False
        if promotion.action == "override":
            # Tag it before it is champion: a crash must not leave an override without the tag.
            self._tag(model, version, {"perennial.override_reason": f"{promotion.reason} ({promotion.actor})"})
        compose = of_models.rollback if promotion.action == "rollback" else of_models.promoted
        # A refresh is everyday work, and no news for anybody.
        alert = None if promotion.action == "refresh" else compose(
            model, version=version, previous=promotion.previous, reason=promotion.reason, actor=promotion.actor,
            links=self._links(model, version),
        )  # fmt: skip
        try:
            if not self._point(promotion):
                return True
            self._ledger.complete_promotion(promotion.id, alert=alert)
        except StaleDecision:
            now = self._ledger.promotion(promotion.id)
            if now.completed_at is None and now.withdrawn_at is None:
                raise
            return now.completed_at is not None  # another process completed or withdrew it
        self._show(promotion)
        return True

    def _point(self, promotion: Promotion) -> bool:
        """Wait for this process's turn, then move the alias.

        Returns:
            True if this process moved the alias; False if another process completed the promotion in the meantime.

        Raises:
            StaleDecision: a later promotion has replaced this one, or the wait for the turn took too long.
        """
        model, deadline = promotion.model, time.monotonic() + _PATIENCE.total_seconds()
        while (move := self._ledger.begin_move(promotion, lease=LEASE)) is None:
            time.sleep(_LOOK.total_seconds())
            if promotion.completed_at is None and self._ledger.promotion(promotion.id).completed_at is not None:
                return False
            if time.monotonic() > deadline:
                raise StaleDecision(f"{model}: others have moved the alias for {_PATIENCE.seconds} seconds; try again")
        self._client.set_registered_model_alias(model, CHAMPION, str(promotion.version))
        # If this process was suspended here for longer than its lease, a later promotion may exist: its version wins.
        newest = [made for made in self._ledger.promotions(model) if made.withdrawn_at is None][-1]
        if newest.id != promotion.id:
            self._client.set_registered_model_alias(model, CHAMPION, str(newest.version))
        self._ledger.end_move(model, move)
        return True

    def _show(self, promotion: Promotion) -> None:
        """Say in MLflow who is champion since when and why, and who was, for people."""
        model, version = promotion.model, promotion.version
        if self._ledger.champion(model) != version:
            return  # another version became champion in the meantime
        since = promotion.intended_at.strftime("%Y-%m-%d %H:%M UTC")
        word = {
            "promote": "promoted",
            "rollback": "made champion again",
            "adopt": "taken over",
            "override": "promoted in spite of an obstacle",
            "refresh": "promoted as a refresh",
        }[promotion.action]
        why = f"{word} by {promotion.actor}: {promotion.reason}"
        self._tell(model, version, CHAMPION, f"Champion since {since}, {why}")
        self._drop_challenger(model, version)
        if promotion.previous is not None and promotion.previous != version:
            back = promotion.action == "rollback"
            status = "rolled back from" if back else "former champion"
            until = f"Champion until {since}, when version {version} was {why}"
            self._tell(model, promotion.previous, status, until, missing_ok=True)

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
