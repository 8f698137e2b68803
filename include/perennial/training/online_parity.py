"""What was measured of the parity of what is served online, as evidence for a candidate.

Neighbours: :mod:`perennial.serving.parity` measures it; :mod:`perennial.evaluation.gates` decides by it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from perennial.core.errors import LedgerDamaged
from perennial.evidence.parity import Parity
from perennial.ledger.records import judged_or_newest
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder

#: For how long a measure of parity counts.
_PARITY_COUNTS = timedelta(days=30)


def online_parity(folder: ModelFolder, ledger: Ledger) -> Parity | None:
    """The parity of what is served online, for the folder's definition of features; None if the model is not asked by key.

    It is that of the newest day with enough rows. What was measured longer ago than :data:`_PARITY_COUNTS` says nothing of what
    is served now, so a model that nobody asks any more is not refused for ever.
    """
    online = folder.spec.online
    if online is None:
        return None
    since = datetime.now(UTC) - _PARITY_COUNTS
    try:
        found = judged_or_newest(
            record
            for record in ledger.parities(folder.spec.name)
            if record.definition in folder.features_digests and record.recorded_at >= since
        )
    except LedgerDamaged as error:
        return Parity(bound=online.parity, damaged=str(error))
    # The bound of today counts, not that of the day of the measure.
    return replace(found.measured if found is not None else Parity(), bound=online.parity)
