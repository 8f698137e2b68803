"""Names in ``model.yaml``: lists of them for messages, and references to what has no such name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches

from perennial.spec.types import IDENTIFIER

#: Columns that Perennial writes beside the features of an entity, or reads beside them in training and monitoring.
BESIDE_FEATURES = frozenset({"as_of", "label", "label_known_at", "prediction", "probability", "probabilities"})

#: Columns that Perennial writes beside the entity's key and event time, in features, labels and predictions.
BESIDE_KEYS = BESIDE_FEATURES | {"version", "features_snapshot", "run_id", "predicted_at"}

#: Columns that every table of PostgreSQL has already. The predictions may go there.
SYSTEM_COLUMNS = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})


def listed(names: Iterable[str]) -> str:
    """Names for a message, in alphabetical order."""
    return ", ".join(sorted(names))


def is_unknown(name: str, known: Collection[str]) -> bool:
    """Whether a reference is to none of the known names.

    A reference to a name that is broken itself, such as ``trips`` to a table ``Trips``, counts as known: the name has to be
    changed, and is reported already. An empty name may be any.
    """
    broken = [other.lower() for other in known if not re.match(IDENTIFIER, other)]
    return name not in known and "" not in known and not get_close_matches(name.lower(), broken, n=1)
