"""A stored booster for a few rows: its preprocessing without pandas, and all its trees at once. What scikit-learn does to a row
takes most of the time of its prediction.

Only pipelines as :mod:`perennial.model.estimators` makes them for boosters are known: numbers unchanged, categories as
ordinals. :mod:`perennial.serving.champion` uses a form only after it gave the same bits for a sample of rows. Any other
pipeline is used as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

from perennial.core.private_parts import BoostedTrees
from perennial.model.artifacts import FeatureList

#: Makes the estimator's input, of the shape rows by columns, from columns by feature and the number of rows.
Assemble = Callable[[Mapping[str, Sequence[Any]], int], NDArray[np.float64]]

#: Most rows that are predicted by all trees at once; with more, scikit-learn's way through one tree after another is faster.
FEW = 8
#: A category that no row has: its code is that of unknown categories.
_NEVER = "\0never\0"


def compiled(pipeline: Any, takes: FeatureList) -> tuple[Assemble, Any] | None:
    """What makes the input of a pipeline's estimator, and the estimator; None if the pipeline is of another kind.

    Args:
        pipeline: a fitted pipeline that takes a data frame.
        takes: its features.
    """
    if not (isinstance(pipeline, Pipeline) and len(pipeline.steps) == 2 and isinstance(pipeline[0], ColumnTransformer)):
        return None
    numeric: list[tuple[int, str]] = []
    categorical: list[tuple[int, str, dict[Any, float], float]] = []
    place = 0
    for _, step, columns in pipeline[0].transformers_:
        if isinstance(columns, str | slice) or not all(isinstance(name, str) for name in columns):
            return None
        names = list(columns)
        if step == "drop":
            continue
        if isinstance(step, OrdinalEncoder):
            for name, (codes, unknown) in zip(names, _codes(step, len(names)), strict=True):
                categorical.append((place, name, codes, unknown))
                place += 1
        elif step == "passthrough" or _changes_nothing(step):
            numeric += [(place + number, name) for number, name in enumerate(names)]
            place += len(names)
        else:
            return None
    if {name for _, name in numeric} - set(takes.numeric) or {name for _, name, _, _ in categorical} - set(takes.categorical):
        return None

    def assemble(columns: Mapping[str, Sequence[Any]], count: int) -> NDArray[np.float64]:
        made = np.empty((count, place))
        for number, name in numeric:
            made[:, number] = np.array(columns[name], dtype=np.float64)  # None becomes NaN
        for number, name, codes, unknown in categorical:
            made[:, number] = [codes.get(value, unknown) for value in columns[name]]
        return made

    return assemble, few_at_once(pipeline[1])


def few_at_once(estimator: Any) -> Any:
    """An estimator that gives a few rows to all its trees at once, if it is a booster whose features are all numbers."""
    try:
        trees = BoostedTrees(estimator)
    except ValueError:
        return estimator
    nodes = [one for trees_of_iteration in trees.iterations for one in trees_of_iteration]
    roots = np.cumsum([0, *(len(one) for one in nodes)])[:-1]
    every = np.concatenate(nodes)
    own = np.arange(len(every))
    leaf = every["is_leaf"].astype(bool)
    first = np.repeat(roots, [len(one) for one in nodes])
    # A leaf leads to itself, so that all paths are as long as the longest.
    left, right = (np.where(leaf, own, first + every[side]) for side in ("left", "right"))
    feature, threshold, value = every["feature_idx"] * ~leaf, every["num_threshold"].copy(), every["value"].copy()
    missing_left, deepest = every["missing_go_to_left"].astype(bool), int(every["depth"].max())
    baseline, count = trees.baseline, len(trees.iterations[0])

    def add(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        place = np.broadcast_to(roots, (len(rows), len(roots)))
        for _ in range(deepest):
            seen = np.take_along_axis(rows, feature[place], axis=1)
            goes_left = (seen <= threshold[place]) | (np.isnan(seen) & missing_left[place])
            place = np.where(goes_left, left[place], right[place])
        values = value[place].reshape(len(rows), -1, count)
        begun = np.broadcast_to(baseline, (len(rows), 1, count))
        # Added one after another, as scikit-learn does: a sum in another order would have other last bits.
        return np.asfortranarray(np.cumsum(np.concatenate([begun, values], axis=1), axis=1)[:, -1])

    return trees.predicting_by(add, FEW)


def _changes_nothing(step: Any) -> bool:
    # What a fitted ColumnTransformer has in place of "passthrough".
    return type(step).__name__ == "FunctionTransformer" and step.func is None


def _codes(encoder: OrdinalEncoder, count: int) -> list[tuple[dict[Any, float], float]]:
    """By column, the code of each category and of None, and that of a category that is unknown: asked of the encoder itself."""
    values = [[*categories, None, _NEVER] for categories in encoder.categories_]
    found = []
    for column, own in enumerate(values):
        rows = np.full((len(own), count), None, dtype=object)
        rows[:, column] = own
        named = pd.DataFrame(rows, columns=getattr(encoder, "feature_names_in_", None))
        codes = encoder.transform(named)[:, column].astype(np.float64)
        found.append((dict(zip(own[:-1], codes[:-1].tolist(), strict=True)), float(codes[-1])))
    return found
