"""Asks the ledger who scores in the shadow of the champion, and who may answer a share of what is asked online.

Neighbours: :mod:`perennial.scoring.shadow` decides. :mod:`perennial.monitoring.shadowing` scores with them and compares them;
:mod:`perennial.serving.challengers` lets them answer online.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from perennial.core.intervals import Interval
from perennial.features.published import DATASET as FEATURES
from perennial.ledger.coverage import trained_as_of
from perennial.ledger.records import Promotion, VersionRecord
from perennial.ledger.store import Ledger
from perennial.ledger.succession import completed, newest_leads_back
from perennial.scoring.predictor import DATASET as PREDICTIONS
from perennial.scoring.shadow import Challenger, choose, may_answer
from perennial.spec.model import ModelSpec
from perennial.spec.training import METRICS

_DAY = timedelta(days=1)


def resolve_shadows(spec: ModelSpec, ledger: Ledger, interval: Interval, *, champion: int) -> list[int]:
    """The versions that score an interval in the shadow of the champion; often none.

    Args:
        spec: the model's spec.
        ledger: holds promotions, refused versions, and publications.
        interval: the interval to score.
        champion: the version that scores the interval. If it is neither the champion nor an earlier refresh of its recipe, no
            version scores in its shadow.
    """
    reign = reign_of(ledger, spec.name)
    if spec.shadow.windows == 0 or reign is None or champion not in reign.versions:
        return []
    records = {record.version: record for record in ledger.versions(spec.name)}
    challengers = _challengers(spec, ledger, reign, records)
    if not challengers:
        return []
    began = _began(spec, ledger, reign, trained_as_of(records.get(reign.versions[0])))
    return choose(spec.shadow, challengers, interval=interval, began=began, window=spec.schedules.window)


@dataclass(frozen=True)
class Reign:
    """The time of one recipe as champion. A refresh has newer rows, and does not end it.

    Attributes:
        promotion: the change that began it.
        versions: the champions since then, the present one last.
    """

    promotion: Promotion
    versions: list[int]

    @property
    def id(self) -> int:
        return self.promotion.id

    @property
    def previous(self) -> int | None:
        return self.promotion.previous

    @property
    def version(self) -> int:
        """The present champion."""
        return self.versions[-1]


def reign_of(ledger: Ledger, model: str) -> Reign | None:
    """The reign of the current champion; None if there is none."""
    made = completed(ledger.promotions(model))
    begun = [place for place, change in enumerate(made) if change.action != "refresh"]
    if not begun:
        return None
    return Reign(made[begun[-1]], [change.version for change in made[begun[-1] :]])


def _challengers(spec: ModelSpec, ledger: Ledger, reign: Reign, records: Mapping[int, VersionRecord]) -> list[Challenger]:
    """The previous champion, unless it was rolled back to this one, then the refused candidates, newest first."""
    promotions = ledger.promotions(spec.name)
    found = []
    begun = [change for change in promotions if change.id <= reign.id]
    if reign.previous is not None and reign.previous not in reign.versions and not newest_leads_back(begun):
        found.append(Challenger(reign.previous, "predecessor", trained_as_of(records.get(reign.previous))))
    if spec.shadow.close is not None:
        promoted = {made.version for made in completed(promotions)}
        answers = {approval.version: approval.answer for approval in ledger.approvals(spec.name)}
        for version, record in sorted(records.items(), reverse=True):
            refused = not record.decision.promote or answers.get(version) in ("refused", "expired")
            if version in promoted or record.is_refresh:
                continue
            if refused and record.decision.champion in reign.versions:
                found.append(Challenger(version, "refused", trained_as_of(record), _loss(spec, record)))
    return found


def _loss(spec: ModelSpec, record: VersionRecord) -> float:
    """By how much a candidate's primary metric was worse than the champion's; NaN if one of them is not known."""
    its, champions = (
        math.nan if contender is None else contender.metrics.get(spec.primary_metric, math.nan)
        for contender in (record.evaluation.candidate, record.evaluation.champion)
    )
    return champions - its if METRICS[spec.task][spec.primary_metric] else its - champions


def _began(spec: ModelSpec, ledger: Ledger, reign: Reign, as_of: datetime | None) -> datetime | None:
    """The first moment that a champion scored since its promotion and had not learned from; None if there is none."""
    starts = [
        publication.interval.start
        for publication in ledger.publications(spec.name, PREDICTIONS)
        if publication.inputs.get("version") in reign.versions
        and reign.promotion.completed_at is not None
        and publication.published_at >= reign.promotion.completed_at
        and (as_of is None or publication.interval.start >= as_of)
    ]
    return min(starts, default=None)


@dataclass(frozen=True)
class Beside:
    """Who answers online beside the champion.

    Attributes:
        shadows: versions whose answers nobody gets.
        challenger: the one of them that may answer a share of what is asked; None if none may.
    """

    shadows: list[int]
    challenger: int | None = None


def beside_online(spec: ModelSpec, ledger: Ledger, *, champion: int, now: datetime) -> Beside:
    """Who answers online beside a champion: those in its shadow by the newest published day.

    Only the previous champion may answer clients. A candidate that the gates or a person have refused may not.

    Args:
        spec: the model's spec.
        ledger: holds promotions, versions, publications and comparisons.
        champion: the version that answers.
        now: the time.
    """
    published = ledger.publications(spec.name, FEATURES)
    reign = reign_of(ledger, spec.name)
    if not published or reign is None:
        return Beside([])
    end = max(one.interval.end for one in published)
    shadows = resolve_shadows(spec, ledger, Interval(end - _DAY, end), champion=champion)
    former, promoted_at = reign.previous, reign.promotion.completed_at
    if former is None or former not in shadows or promoted_at is None:
        return Beside(shadows)
    allowed = may_answer(
        spec.shadow,
        promoted_at=promoted_at,
        now=now,
        window=spec.schedules.window,
        grace=spec.schedules.grace,
        comparisons=ledger.shadow_comparisons(spec.name, promotion=reign.id, version=former),
    )
    return Beside(shadows, former if allowed else None)
