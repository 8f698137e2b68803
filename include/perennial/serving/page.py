"""A page to try a model by hand: one file that holds nothing of a model, and what it asks for to draw its form.

The page itself is the same for everyone, so anybody may have it. What it shows it asks for as any other client does, with the
token that a person types; that token is kept in the memory of the page alone. Its policy allows the one script and the one
style in it, by their hashes, and no other address than the scorer's.

Neighbours: :mod:`perennial.serving.app` serves both; ``templates/page.html`` is the page.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from perennial.core.errors import PerennialError
from perennial.ledger.records import judged_or_newest
from perennial.ledger.store import Ledger
from perennial.serving.champion import Served

#: A category with more values than this in the version's sample is typed without suggestions.
_SUGGESTED = 200
#: What is usual for a number: between these quantiles of the version's sample. Its ends may be values of single rows.
_USUAL = (0.05, 0.95)
#: Fewest rows of a sample that something is usual in.
_FEWEST = 20


@cache
def page() -> tuple[bytes, str]:
    """The page, and its content security policy."""
    text = (files("perennial.serving") / "templates" / "page.html").read_text(encoding="utf-8")
    hashes = {}
    for element in ("script", "style"):
        [inline] = re.findall(rf"(?s)<{element}>(.*?)</{element}>", text)
        hashes[element] = "sha256-" + base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src '{hashes['script']}'; style-src '{hashes['style']}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


def describe_for_page(
    served: Served, since: datetime | None, challenger: Served | None = None, share: float | None = None
) -> dict[str, Any]:
    """What the page shows of a model, and the fields of its form.

    Args:
        served: the version that answers.
        since: when it became champion; None if that is not known.
        challenger: the version that answers a share of the keys; None if none does.
        share: that share.

    Returns:
        ``model``, ``description``, ``task``, ``classes``, ``version``, ``since``, ``challenger`` (null, or ``version`` and
        ``share``), ``trained_on``, ``features`` (each with
        ``name``, ``kind`` and what is ``usual`` or the known ``values``), and ``key``, ``entity`` with ``name`` and ``kind`` of
        their columns; null where it cannot be asked so.
    """
    loaded, folder = served.loaded, served.folder
    sample = loaded.reference()
    features = [{"name": name, "kind": "number", "usual": _usual(sample, name)} for name in loaded.takes.numeric]
    features += [{"name": name, "kind": "category", "values": _values(sample, name)} for name in loaded.takes.categorical]
    key = served.key
    entity = None
    if key is not None and folder is not None:
        columns = folder.spec.entity_table.columns
        entity = [{"name": name, "kind": column.type, "values": column.values or []} for name, column in columns.items()]
    return {
        "model": served.model,
        "description": folder.spec.description if folder is not None else "",
        "task": loaded.task,
        "classes": list(loaded.classes),
        "version": served.version,
        "since": since.isoformat() if since is not None else None,
        "challenger": None if challenger is None else {"version": challenger.version, "share": share},
        "trained_on": loaded.trained_on,
        "features": features,
        "key": None if key is None else [{"name": part.name, "kind": _kind(part.type)} for part in key],
        "entity": entity,
    }


def parity_for_page(ledger: Ledger, model: str) -> dict[str, Any] | None:
    """What was measured last of how far what is served equals what the published tables give.

    Returns:
        ``share`` of the ``rows`` that are equal, ``bound``, whether there are enough rows (``judged``), the ``day`` that the
        features are of, when it was ``measured``, and the features that differ (``worst``); None if nothing was measured, or
        the ledger does not answer.
    """
    try:
        found = judged_or_newest(ledger.parities(model))
    except (sa.exc.SQLAlchemyError, PerennialError):
        return None
    if found is None or not found.measured.rows:
        return None
    its = found.measured
    return {
        "share": its.share,
        "rows": its.rows,
        "bound": its.bound,
        "judged": its.is_judged,
        "day": found.interval.start.date().isoformat(),
        "measured": found.recorded_at.isoformat(),
        "worst": its.worst,
    }


def _kind(of: pa.DataType) -> str:
    if pa.types.is_timestamp(of):
        return "timestamp"
    if pa.types.is_boolean(of):
        return "boolean"
    return "number" if pa.types.is_integer(of) or pa.types.is_floating(of) else str(of)


def _usual(sample: pa.Table, name: str) -> Sequence[float]:
    """The two ends of what is usual; empty if the sample does not say."""
    if name not in sample.column_names:
        return []
    values = np.asarray(sample[name].drop_null().to_pylist(), dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) < _FEWEST:
        return []
    return [float(f"{end:.4g}") for end in np.quantile(values, _USUAL)]


def _values(sample: pa.Table, name: str) -> list[str]:
    """The values of a category, most frequent first, without those of a single row; empty if there are too many of them."""
    if name not in sample.column_names:
        return []
    counted = pc.value_counts(sample[name].drop_null().cast(pa.string()).combine_chunks()).to_pylist()
    if len(counted) > _SUGGESTED:
        return []
    ordered = sorted(counted, key=lambda one: (-one["counts"], one["values"]))
    return [one["values"] for one in ordered if one["counts"] > 1]
