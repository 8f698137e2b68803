"""Reads the records for lineage from the ledger and the lake, and draws the tree of :mod:`perennial.reports.lineage`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from functools import reduce
from itertools import chain, repeat
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.text import Text
from rich.tree import Tree

from perennial.core.errors import LineageError
from perennial.core.intervals import Interval
from perennial.lake.publish import Lake
from perennial.ledger.store import Ledger
from perennial.reports.lineage import ModelHistory, Node, PredictionRow, RequestRow
from perennial.scoring.predictor import DATASET as PREDICTIONS
from perennial.scoring.predictor import of_other_entities
from perennial.serving.recorded import read_published
from perennial.serving.request_table import RequestTable
from perennial.spec.model import ModelSpec

__all__ = ["draw", "find_prediction", "find_request", "read_history"]

#: Columns that every published prediction has; see :mod:`perennial.scoring.publish`.
_ANSWERS = ("as_of", "prediction", "version", "features_snapshot", "run_id", "predicted_at")
#: Columns of a recorded request that are shown as they are.
_OF_REQUEST = ("request_id", "row", "asked_at", "form", "version", "role", "event_time", "as_of", "features_snapshot")
#: The largest number of children that are drawn; the others are only counted.
_SHOWN = 6


def read_history(ledger: Ledger, spec: ModelSpec) -> ModelHistory:
    """The ledger's records of a model that lineage needs."""
    datasets = ledger.datasets(spec.name)
    return ModelHistory(
        model=spec.name,
        publications={dataset: ledger.publications(spec.name, dataset) for dataset in datasets},
        revisions={dataset: ledger.revisions(spec.name, dataset) for dataset in datasets},
        versions=ledger.versions(spec.name),
        promotions=ledger.promotions(spec.name),
        sources={name: table.source for name, table in spec.tables.items()},
        timeless=frozenset(name for name, table in spec.tables.items() if table.event_time is None),
        lookback=spec.features.lookback,
    )


def find_prediction(lake: Lake, ledger: Ledger, spec: ModelSpec, key: Sequence[str], at: Interval | None) -> PredictionRow:
    """A published prediction, read from the lake.

    Args:
        lake: holds the predictions.
        ledger: holds the snapshot at which to read them.
        spec: the model's spec.
        key: the values of the entity's key, as texts, in the key's order; or each as ``column=value``.
        at: the day of the entity's event time; None: search all days.

    Raises:
        LineageError: no prediction or more than one is found, or ``key`` is not a key of the entity.
    """
    published = ledger.published(spec.name, PREDICTIONS)
    if published is None:
        raise LineageError(f"{spec.name}: no {PREDICTIONS} are published yet; run {spec.name}.score for a day")
    if PREDICTIONS not in published.snapshots:
        raise LineageError(f"{spec.name}: its lake was removed when it was retired; you can still trace an interval")
    columns = [*dict.fromkeys([*spec.entity_table.key, spec.event_time, *_ANSWERS])]
    if (others := of_other_entities(spec, lake, PREDICTIONS, published.snapshots[PREDICTIONS])) is not None:
        raise LineageError(f"{spec.name}: {others}; to trace one of them, put the model folder back as it was")
    rows = lake.scan(
        spec.name, PREDICTIONS, published.snapshots[PREDICTIONS], columns=columns, interval=at, event_time=spec.event_time
    )
    wanted = _key(spec, key, rows.schema)
    found = pa.Table.from_batches(
        [batch.filter(mask) for batch in rows if (mask := _matches(batch, wanted)).true_count], rows.schema
    ).to_pylist()
    named = ", ".join(f"{name} {value}" for name, value in wanted.items())
    if len(found) != 1:
        where = f"of {at}" if at else f"among all {PREDICTIONS}"
        moments = ", ".join(sorted(f"{row[spec.event_time]:%Y-%m-%d %H:%M}" for row in found)[:5])
        raise LineageError(
            f"{spec.name}: no prediction of {named} {where} is published"
            if not found
            else f"{spec.name}: {len(found)} predictions of {named} are published, at {moments}. Give the day with --at"
        )
    row = found[0]
    return PredictionRow(
        key={name: row[name] for name in spec.entity_table.key},
        event_time=row[spec.event_time].astimezone(UTC),
        as_of=row["as_of"].astimezone(UTC),
        value=row["prediction"],
        version=row["version"],
        features_snapshot=row["features_snapshot"],
        run_id=row["run_id"],
        predicted_at=row["predicted_at"].astimezone(UTC),
    )


def find_request(lake: Lake, table: RequestTable, model: str, request_id: str, at: Interval | None) -> list[RequestRow]:
    """The rows of a request that was asked online, whether they are published yet or not.

    Args:
        lake: holds those that are.
        table: holds those that are not.
        model: the model.
        request_id: of the request, as its answer has it.
        at: the day on which it was asked; None: search all days.

    Raises:
        LineageError: no such request was recorded.
    """
    found: dict[tuple[str, int], RequestRow] = {}
    waiting = table.of_request(model, request_id).to_batches()
    for published, batch in chain(zip(repeat(True), read_published(lake, model, at)), zip(repeat(False), waiting)):
        for row in batch.filter(pc.equal(batch["request_id"], request_id)).to_pylist():
            found.setdefault(
                (row["chunk"], row["place"]),
                RequestRow(
                    **{name: row[name] for name in _OF_REQUEST},
                    value=json.loads(row["prediction"]),
                    came=json.loads(row["came"]),
                    features=json.loads(row["features"]),
                    published=published,
                ),
            )
    if not found:
        where = f" on {at}" if at else ""
        raise LineageError(f"{model}: no request {request_id} was recorded{where} (online.record in model.yaml)")
    # What clients got comes before what nobody got.
    return sorted(found.values(), key=lambda row: (row.asked_at, row.row, row.role == "shadow", row.version))


def _key(spec: ModelSpec, given: Sequence[str], schema: pa.Schema) -> dict[str, Any]:
    names = spec.entity_table.key
    if len(given) != len(names):
        raise LineageError(f"{spec.name}: a prediction is named by {', '.join(names)}; {len(given)} values were given")
    values = dict(zip(names, given, strict=True))
    for text in given:
        name, separator, value = text.partition("=")
        if separator and name in names:
            values[name] = value
    try:
        return {name: pa.scalar(value).cast(schema.field(name).type) for name, value in values.items()}
    except pa.ArrowInvalid as error:
        raise LineageError(f"{spec.name}: the key cannot be read: {error}") from error


def _matches(batch: pa.RecordBatch, wanted: Mapping[str, Any]) -> pa.BooleanArray:
    return reduce(pc.and_, (pc.fill_null(pc.equal(batch.column(name), value), False) for name, value in wanted.items()))


# --- for people ------------------------------------------------------------------------------------------------------


def draw(node: Node) -> Tree:
    """The tree for a terminal. Values are never read as markup. Only the first children of a node are drawn."""
    tree = Tree(_label(node))
    _grow(tree, node)
    return tree


def _grow(tree: Tree, node: Node) -> None:
    for child in node.leads_to[:_SHOWN]:
        _grow(tree.add(_label(child)), child)
    if (more := len(node.leads_to) - _SHOWN) > 0:
        tree.add(Text(f"… {more:,} more; --json shows all", style="dim"))


def _label(node: Node) -> Text:
    if node.kind == "missing":
        return Text(f"not known: {node.name}", style="yellow")
    label = Text(node.name, style="bold")
    shown = {name: _short(value) for name, value in node.facts.items() if name != "name" and _short(value)}
    for name, value in shown.items():
        label.append(f"  {name} ", style="dim").append(value, style="not bold")
    return label


def _short(value: Any) -> str:
    """A fact as one short line; --json shows it whole."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(part)}" for name, part in list(value.items())[:_SHOWN])
    if isinstance(value, list | tuple):
        more = f" … {len(value) - 3:,} more" if len(value) > 3 else ""
        return ", ".join(str(part) for part in value[:3]) + more
    if isinstance(value, datetime | date):
        return value.isoformat()
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    is_digest = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return f"{text[:12]}…" if is_digest else text
