"""Samples of rows in stored models: find an entity's rows in them, and remove these rows.

A model keeps a sample of its training rows, for drift, and a few rows as an example. Neither contains the entity's key. A
row belongs to the entity if its features equal those that were published for the entity. If the row has an event time,
that must be equal too.
Neighbours: :mod:`perennial.model.artifacts` says what a stored model holds; :mod:`perennial.operations.forget` erases.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import mlflow.artifacts
import pyarrow as pa
import pyarrow.parquet as pq

from perennial.evidence.training import StoredModel
from perennial.ledger.records import VersionRecord
from perennial.model import artifacts
from perennial.registry.versions import Versions

#: Columns of a reference sample that are not features.
_BESIDE = {"label", "prediction", "probabilities", artifacts.ANSWER}
_EXAMPLES = ("input_example.json", "serving_input_example.json")


class Samples(Versions):
    """Samples of rows in stored models."""

    def sampled(self, model: str, rows: pa.Table, event_time: str) -> dict[str, int | None]:
        """Find the stored models whose samples contain any of the rows.

        Args:
            model: the model.
            rows: features and event time.
            event_time: name of the column with the event time.

        Returns:
            The version by MLflow's id of the stored model; None for a candidate that was never registered.
        """
        return {model_id: version for model_id, version, _ in self._changed(model, rows, event_time)}

    def erase_samples(
        self,
        model: str,
        rows: pa.Table,
        event_time: str,
        *,
        pending: Mapping[str, Mapping[str, str]],
        intend: Callable[[dict[str, dict[str, str]]], None],
    ) -> list[int]:
        """Remove rows from the samples of stored models, and update the manifests of registered versions.

        Files are written first and the manifest is updated after them. In between, the version cannot be loaded. If an
        attempt dies there, the next one continues with ``pending``.

        Args:
            model: the model.
            rows: features and event time of the rows to remove.
            event_time: name of the column with the event time.
            pending: what an earlier attempt passed to ``intend`` before it died.
            intend: called before files are written, with the SHA-256 of the new files, by MLflow's id of the stored model and
                file name.

        Returns:
            The versions whose samples were rewritten.
        """
        # An erasure that an older release began names the version instead.
        ids = {str(record.version): record.training.model_id for record in self._ledger.versions(model)}
        told = {ids.get(name, name): dict(files) for name, files in pending.items()}
        done = {version for model_id, files in told.items() if (version := self._follow(model, model_id, files)) is not None}
        for model_id, version, files in self._changed(model, rows, event_time):
            if version is not None:
                told[model_id] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
                intend(told)
            with tempfile.TemporaryDirectory(prefix="perennial-samples-") as scratch:
                for name, content in files.items():
                    (Path(scratch) / name).write_bytes(content)
                self._client.log_model_artifacts(model_id, scratch)
            if version is not None and self._follow(model, model_id, told[model_id]) is not None:
                done.add(version)
        return sorted(done)

    def _follow(self, model: str, model_id: str, files: Mapping[str, str]) -> int | None:
        """Update the manifest of a version's model to the files as stored now, if they are the intended ones.

        Returns:
            The version; None if nothing was updated.
        """
        found = self._of_versions(model).get(model_id)
        if found is None:
            return None
        record, stored = found
        there = {name: self._read(model_id, name) for name in files}
        same = {
            name: digest
            for name, digest in files.items()
            if (content := there[name]) is not None and hashlib.sha256(content).hexdigest() == digest
        }
        if not same:
            return None
        self._ledger.replace_manifest(record, StoredModel(model_id, {**stored.manifest, **same}))
        return record.version

    def _of_versions(self, model: str) -> dict[str, tuple[VersionRecord, StoredModel]]:
        """The stored models of all versions, by MLflow's id."""
        return {
            stored.model_id: (record, stored)
            for record in self._ledger.versions(model)
            for stored in (record.judged, record.served)
        }

    def _changed(self, model: str, rows: pa.Table, event_time: str) -> Iterator[tuple[str, int | None, dict[str, bytes]]]:
        if not rows.num_rows:
            return
        known = {model_id: record.version for model_id, (record, _) in self._of_versions(model).items()}
        for model_id in self._stored(model):
            files = {}
            for name in (artifacts.REFERENCE_FILE, artifacts.EXAMPLE_FILE):
                content = self._read(model_id, name)
                if content is not None and (sample := _without(content, rows, event_time)) is not None:
                    files[name] = sample
            for name in _EXAMPLES:
                content = self._read(model_id, name)
                if content is not None and (example := _example_without(content, rows)) is not None:
                    files[name] = example
            if files:
                yield model_id, known.get(model_id), files

    def _stored(self, model: str) -> list[str]:
        found, token = [], None
        while True:
            page = self._client.search_logged_models([self._experiment(model)], page_token=token)
            found += [str(stored.model_id) for stored in page]
            token = page.token
            if not token:
                return found

    def _read(self, model_id: str, name: str) -> bytes | None:
        """Return the content of a stored model's file; None if there is no file of that name."""
        source = self._stored_at(model_id)
        artifacts.check_source(source)
        source = self._readable(source)
        with tempfile.TemporaryDirectory(prefix="perennial-samples-") as scratch:
            # If files cannot be listed, this raises. Otherwise the model would appear to have no samples.
            listed = mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=self._settings.mlflow_url)
            if name not in {Path(file.path).name for file in listed}:
                return None
            place = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{source.rstrip('/')}/{name}", dst_path=scratch, tracking_uri=self._settings.mlflow_url
            )
            return Path(place).read_bytes()


def _plain(value: Any) -> Any:
    """Convert a value so that values from Arrow and from JSON can be compared."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool | int | float):
        return float(value)
    return value if isinstance(value, datetime) else str(value)


def _tuples(rows: pa.Table, names: list[str]) -> list[tuple[Any, ...]]:
    return [tuple(_plain(value) for value in one) for one in zip(*(rows[name].to_pylist() for name in names), strict=True)]


def _without(content: bytes, rows: pa.Table, event_time: str) -> bytes | None:
    """Return a Parquet file without the rows; None if it contains none of them."""
    reference = pq.read_table(pa.BufferReader(content))
    names = [name for name in reference.column_names if name not in _BESIDE and name in rows.column_names]
    if not [name for name in names if name != event_time] or not reference.num_rows:
        return None
    wanted = set(_tuples(rows, names))
    kept = pa.array([one not in wanted for one in _tuples(reference, names)], pa.bool_())
    if kept.false_count == 0:
        return None
    sink = pa.BufferOutputStream()
    pq.write_table(reference.filter(kept), sink, compression="zstd")
    return bytes(sink.getvalue())


def _example_without(content: bytes, rows: pa.Table) -> bytes | None:
    """Return MLflow's example without the rows; None if it contains none of them."""
    example = json.loads(content)
    table = example.get("dataframe_split", example) if isinstance(example, dict) else None
    if not isinstance(table, dict) or not {"columns", "data"} <= table.keys():
        return None
    names = [name for name in table["columns"] if name in rows.column_names]
    if not names:
        return None
    wanted = set(_tuples(rows, names))
    places = [table["columns"].index(name) for name in names]
    kept = [line for line in table["data"] if tuple(_plain(line[place]) for place in places) not in wanted]
    if len(kept) == len(table["data"]):
        return None
    if "index" in table:
        table["index"] = table["index"][: len(kept)]
    table["data"] = kept
    return json.dumps(example).encode()
