"""The recipe of a version: how it is made of rows. Two versions with one recipe differ in the rows that they learned from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from perennial.spec.folder import ModelFolder
from perennial.spec.types import write_window


def recipe_digest(folder: ModelFolder, candidate: str, params: Mapping[str, Any], window: str) -> str:
    """SHA-256 of a recipe: features, label, estimator, parameters, seed, which rows and their weights, and ``model.py``.

    What judges a model (gates, metrics), or only says when and how it runs, is no part of it.

    Args:
        folder: the model's folder.
        candidate: the candidate's name in ``model.yaml``.
        params: the parameters that it is fitted with, those that a search found included.
        window: the length of the training window, as ``model.yaml`` names it; empty if there is no choice.
    """
    spec = folder.spec
    made = spec.candidates[candidate]
    # What came later counts where it is given, so that a recipe without it is still the same.
    later = {"weight": spec.training.weight.model_dump(mode="json")} if spec.training.weight is not None else {}
    later |= {"monotone": made.monotone} if made.monotone else {}
    said = spec.model_dump(mode="json", include={"task": True, "label": {"table", "sql"}})
    meaning = {
        **said,
        "features": folder.features_digest,
        "estimator": made.estimator,
        "params": dict(params),
        "seed": spec.training.seed,
        "max_rows": spec.training.max_rows,
        "window": write_window(spec.training.length(window)),
        "code": folder.files.get("model.py", ""),
        **later,
    }
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()
