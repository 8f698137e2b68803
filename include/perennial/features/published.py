"""Read the published tables of a model, for features and for labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime

import pyarrow as pa

from perennial.core.errors import SnapshotMissing
from perennial.core.intervals import Interval
from perennial.lake.publish import Lake
from perennial.lake.schema import published_schema
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder

#: The ledger's name for what is published here, and the table's name.
DATASET = "features"
#: The ledger's name for the raw tables, as in :mod:`perennial.ingestion.publish`. That module imports Great Expectations,
#: which takes seconds.
TABLES = "tables"


#: How many characters of a definition's digest name its dataset.
_DIGEST_LENGTH = 12


def dataset_of(digest: str, current: str) -> str:
    """The name of the dataset, and of its table, in which the features of a definition are published.

    Args:
        digest: :attr:`perennial.spec.folder.ModelFolder.features_digest` of the definition.
        current: that of the model's folder as it is now. Its features are published as ``features``, whatever they were made
            by before. A folder that is put back as it was gets ``features`` back.
    """
    return DATASET if digest == current else f"{DATASET}_{digest[:_DIGEST_LENGTH]}"


def is_features(dataset: str) -> bool:
    """Whether a dataset has features, of the folder as it is now or of another definition."""
    return dataset == DATASET or re.fullmatch(rf"{DATASET}_[0-9a-f]{{{_DIGEST_LENGTH}}}", dataset) is not None


def published_tables(folder: ModelFolder, ledger: Ledger) -> Publication:
    """The newest publication of a model's tables.

    Raises:
        SnapshotMissing: no tables are published yet.
    """
    published = ledger.published(folder.spec.name, TABLES)
    if published is None:
        name = folder.spec.name
        raise SnapshotMissing(f"{name}: no tables are published yet; run {name}.ingest for a range of past days first")
    return published


def snapshot_of(folder: ModelFolder, name: str, snapshots: Mapping[str, int]) -> int:
    """The snapshot of one table of ``model.yaml``.

    Raises:
        SnapshotMissing: the table was never published.
    """
    if name not in snapshots:
        model = folder.spec.name
        raise SnapshotMissing(
            f"{model}: table {name} of model.yaml was never published; run {model}.ingest again for these days"
        )
    return snapshots[name]


def scan(
    folder: ModelFolder,
    lake: Lake,
    name: str,
    snapshots: Mapping[str, int],
    *,
    columns: Sequence[str] | None = None,
    within: Interval | None = None,
    known_by: datetime | None = None,
) -> pa.RecordBatchReader:
    """The rows of one table of ``model.yaml``, as a stream.

    Args:
        folder: the model's folder.
        lake: holds the tables.
        name: name of the table.
        snapshots: the snapshot to read, by table.
        columns: columns to read; by default all columns of the spec and ``_known_at``.
        within: only rows whose event time lies in it. It is ignored for a table without event time.
        known_by: only rows known by this moment.

    Raises:
        SnapshotMissing: the table was never published, or lacks a column of the spec.
    """
    model, table = folder.spec.name, folder.spec.tables[name]
    snapshot = snapshot_of(folder, name, snapshots)
    try:
        return lake.scan(
            model,
            name,
            snapshot,
            columns=columns or published_schema(table).names,
            interval=within if table.event_time else None,
            event_time=table.event_time,
            known_by=known_by,
        )
    except ValueError as error:
        raise SnapshotMissing(f"{error}, though model.yaml names it; run {model}.ingest again for these days") from error
