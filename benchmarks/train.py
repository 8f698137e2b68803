"""Training on a million rows, beside the bare fits of the same estimator on the same frames.

Ours is what the tasks ``build_training_set`` and ``fit_candidate`` do: pin the training set (a million labelled rows of
1,117 days, and the holdout, joined with their labels, hashed and counted), take the rows that were left for the second task
and hold them against their hash, search the learning rate of the example's booster (two fits on all but the last two weeks,
measured on these), fit on all rows, and log the candidate with its reference, its pictures, the importance of its features
and the model's folder to MLflow (SQLite, files on the local disk). The bare fits are the same three, of the same estimators
with the same parameters on the same rows, which lie in memory as frames before the clock starts; nothing is read, predicted,
measured or kept.

Beside it, without a goal: a whole training with all candidates of the example (a prior and a logistic regression too), the
contest on the holdout, gates, pages and promotion.

The flights of a year stand for four years, see :mod:`benchmarks.prepared`.

    python -m benchmarks.train
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks import prepared
from benchmarks.measuring import Line, Told, apart, processor_seconds, seconds
from benchmarks.prepared import MODEL

REPEAT = 2
#: Copies of a year; the window and the holdout of 28 days lie in them.
YEARS = 4
#: So long a window has a million labelled rows.
WINDOW = "1117d"
AS_OF = prepared.span(YEARS).end - timedelta(days=30)
CANDIDATE = "boosting"


# --- the pieces ------------------------------------------------------------------------------------------------------


def ours(state: str) -> Callable[[], Any]:
    from perennial.training.fit import fit_candidate
    from perennial.training.training_set import build_training_set

    parts = prepared.deployment(state)
    folder = parts.model(MODEL)
    run_id = f"benchmark-{uuid4().hex}"
    # Whoever is the first to touch MLflow's store makes its tables.
    parts.registry.find_run(MODEL, uuid4().hex)

    def run() -> Any:
        staging = parts.settings.staging / MODEL / run_id
        training_set = build_training_set(folder, parts, as_of=AS_OF, run_id=run_id, staging=staging)
        fitted = fit_candidate(folder, CANDIDATE, training_set, parts, run_id=run_id, staging=staging)
        return {
            "rows": training_set.rows["window"], "params": fitted.params, "score": fitted.score, "seconds": fitted.seconds,
        }  # fmt: skip

    return run


def bare(state: str, params: dict[str, Any]) -> Callable[[], Any]:
    """Args: state: the deployment's; params: those that ours chose, with which all rows are fitted."""
    import pyarrow.compute as pc

    from perennial.model.artifacts import FeatureList
    from perennial.model.estimators import combinations, make_estimator
    from perennial.model.labels import labels_of
    from perennial.training.training_set import build_training_set, load_rows

    parts = prepared.deployment(state)
    folder = parts.model(MODEL)
    training_set = build_training_set(folder, parts, as_of=AS_OF, run_id=f"benchmark-{uuid4().hex}")
    rows = load_rows(folder, parts.lake, training_set, "window")
    frame, truth = FeatureList.of(folder.spec).frame(rows), labels_of(rows)
    border = training_set.interval("window").end - folder.spec.training.validation
    older = pc.sum(pc.less(rows.column(folder.spec.event_time), border)).as_py()

    def run() -> Any:
        for tried in combinations(folder, CANDIDATE):
            make_estimator(folder, CANDIDATE, tried).fit(frame.iloc[:older], truth[:older])
        make_estimator(folder, CANDIDATE, params).fit(frame, truth)
        return {"rows": len(frame), "older": older}

    return run


def whole(state: str) -> Callable[[], Any]:
    from perennial.cli import by_hand

    parts = prepared.deployment(state)
    return lambda: by_hand.train(parts.settings, MODEL, AS_OF)


# --- what they work on -----------------------------------------------------------------------------------------------


def state() -> Path:
    """State of a deployment with features and labels of four years, and nothing trained."""

    def make(folder: Path) -> None:
        source, parts = prepared.deployment(prepared.flights()), prepared.new_deployment(folder)
        prepared.train_on(folder, WINDOW)
        prepared.repeat(source, parts, "tables", range(YEARS), tables=["flights", "arrivals"])
        prepared.repeat(source, parts, "features", range(YEARS))

    return prepared.made(f"train-{YEARS}", make)


def main() -> None:
    told = Told("train")
    place = str(state())
    trained = apart(ours, repeat=REPEAT, state=place)
    fits = apart(bare, repeat=REPEAT, state=place, params=trained[0].result["params"])
    assert all(one.result["rows"] == fits[0].result["rows"] for one in trained)
    told.add(
        Line(
            "train on 1 M rows: pin, read, search, fit, log", "the same three fits, frames in memory",
            seconds(trained), seconds(fits), goal=1.15,
        )
    )  # fmt: skip
    [everything] = apart(whole, state=place)
    told.add(
        Line(
            "a whole training of all candidates on 1 M rows, to the promotion", "the booster's three fits",
            [everything.seconds], seconds(fits),
            note="two more candidates are fitted, and all are judged on the holdout",
        )
    )  # fmt: skip
    told.add(
        Line(
            "memory to train on 1 M rows, above the libraries", "the booster's three fits, their frames included",
            # The bare fits begin with their frames in memory, so what libraries take is that of ours.
            [one.own_mb for one in trained], [one.peak_mb - trained[0].libraries_mb for one in fits], unit="MB",
        )
    )  # fmt: skip
    told.details = {
        "rows": fits[0].result, "ours": [one.result for one in trained], "whole": everything.result,
        "processor_seconds": {
            "ours": processor_seconds(trained), "bare": processor_seconds(fits),
            "whole": everything.processor_seconds,
        },
        "seconds_beside_the_fits": statistics.median(
            one.seconds - sum(one.result["seconds"].values()) for one in trained
        ),
    }  # fmt: skip
    told.write()


if __name__ == "__main__":
    main()
