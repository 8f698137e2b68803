"""Selects the version that scores an interval."""

from __future__ import annotations

import logging
from collections.abc import Callable

from perennial.core.errors import NoChampion
from perennial.core.intervals import Interval
from perennial.ledger.coverage import trained_as_of
from perennial.ledger.records import VersionRecord
from perennial.ledger.store import Ledger
from perennial.ledger.succession import lineage
from perennial.registry.store import Registry

log = logging.getLogger(__name__)


def resolve_champion(
    registry: Registry, ledger: Ledger, model: str, interval: Interval, *, can_score: Callable[[int], bool] = lambda _: True
) -> int:
    """Return the version that scores an interval. Call this once per run.

    This is the champion, unless it was trained as of a time after the interval's start. Then it may have learned from the
    rows that it is to predict. In that case it is the newest of its predecessors that cannot have learned from them.
    Predecessors that were rolled back are skipped. If no predecessor qualifies, the champion scores.

    Args:
        registry: says who is champion.
        ledger: says what a version was trained on.
        model: the model's name.
        interval: what is scored.
        can_score: whether a predecessor can still be used for the interval. It is asked of nobody else: if the champion
            cannot be used, that must be told, not avoided.

    Raises:
        NoChampion: no version was ever promoted.
    """
    champion = registry.champion(model)
    if champion is None:
        raise NoChampion(
            f"{model}: no version has been promoted yet, so {interval} cannot be scored: run {model}.train, or promote a "
            "registered version by hand"
        )
    records = {record.version: record for record in ledger.versions(model)}
    if _was_trained_before(records.get(champion), interval):
        return champion
    for version in reversed(lineage(ledger.promotions(model))):
        if version == champion or version not in records or not _was_trained_before(records[version], interval):
            continue
        if can_score(version):
            log.info("version %d scores: champion %d was trained as of a time after %s began", version, champion, interval)
            return version
    log.warning(
        "champion %d was trained as of a time after the start of %s, and no earlier champion can stand in: it may have learned "
        "from the rows that it predicts, so these predictions do not show how good it is",
        champion,
        interval,
    )
    return champion


def _was_trained_before(record: VersionRecord | None, interval: Interval) -> bool:
    # Nothing is known of a version that was registered by hand; it may score because it was made champion.
    as_of = trained_as_of(record)
    return as_of is None or as_of <= interval.start
