"""A small model folder, ``late``, that tests of the spec break."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.core.errors import SpecError
from perennial.spec.folder import ModelFolder, read_model

GOOD = """\
name: late
owner: operations
description: Will it be late?
task: binary_classification
sources:
  trips: {files: "trips/%Y-%m-%d.csv"}
tables:
  trips:
    source: trips
    key: [id]
    event_time: left_at
    known: left_at
    columns:
      id: {type: string}
      left_at: {type: timestamp}
      minutes: {type: integer, min: 0, nullable: true}
entity: {table: trips, as_of: left_at}
features:
  numeric: [distance]
label: {table: trips, sql: minutes > 15}
candidates:
  prior: {estimator: prior, baseline: true}
  boosting: {estimator: gradient_boosting}
gates:
  at_least: {roc_auc: 0.6}
"""


def write(models: Path, text: str | bytes, *, name: str = "late", code: str | None = None) -> Path:
    folder = models / name
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "features.sql").write_text("SELECT id, 1 AS distance FROM entities")
    if code is not None:
        (folder / "model.py").write_text(code)
    return folder


def read(models: Path, text: str | bytes, *, code: str | None = None) -> ModelFolder:
    return read_model(write(models, text, code=code))


def problems(models: Path, text: str | bytes, *, code: str | None = None) -> list[str]:
    """The messages about a ``model.yaml``, without the folder's path."""
    folder = write(models, text, code=code)
    with pytest.raises(SpecError) as raised:
        read_model(folder)
    return str(raised.value).replace(f"{folder}/", "").splitlines()


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)
