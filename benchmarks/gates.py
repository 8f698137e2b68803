"""How often the champion gate is wrong: promotions that nothing justifies, and improvements that it misses.

Candidate and champion are compared recipe against recipe, as a replacement is: both learn from the same window of the real
flights, at seven moments of 2013, and meet on the same holdout, a stretch of the twelve weeks after. So neither is older.
Three kinds of trial in which the candidate is truly no better:

- another seed: the same estimator on the same rows, with other random numbers;
- another draw: the same estimator on training days that were drawn anew, with replacement;
- swapped by day: of two quite different models, a coin decides each day who plays the candidate.

Of the first two, the candidate is the one that is worse over all twelve weeks, if only by a little; in the third neither is
better. A fourth has no goal and shows a limit: if the same model were ahead for whole weeks by chance (swapped by week), days
would not be the right blocks, and ``gates.resampling.block`` should be ``7d``.

And two in which it is better by a stated area under the ROC curve, over the twelve weeks: the weaker one has noise in its
log-odds (an improvement in every row alike), or is drawn towards a model that lacks the features of what happened just before
(an improvement as real features bring it, on some days more than on others).

The peer is what pipelines do by default: promote when the metric is at least the champion's (``>=``), on the same trials.

    python -m benchmarks.gates
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import beta
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from benchmarks.flight_delay import YEAR, flight_delay, labelled_features, read_tables
from benchmarks.measuring import keep
from perennial.core.intervals import Interval, utc
from perennial.evaluation.comparison import Arena, compare
from perennial.evaluation.gates import decide
from perennial.evaluation.resampling import resample
from perennial.evidence.evaluation import Contender, Evaluation
from perennial.model.artifacts import FeatureList, Prediction
from perennial.model.estimators import make_estimator
from perennial.spec.data import Features
from perennial.spec.folder import ModelFolder

#: The moments: what is learned from ends there, and the weeks that are drawn from begin.
MOMENTS = ("2013-03-31", "2013-05-05", "2013-06-09", "2013-07-14", "2013-08-18", "2013-09-22", "2013-10-06")
POOL = timedelta(days=84)
HOLDOUTS = (42, 28, 7)
TRIALS = 210
EFFECTS = (0.005, 0.01, 0.02, 0.03)
#: The improvement that the power is stated for.
STATED = 0.02

#: What the weaker model does without: all that is known of delays just before.
NEWS = ("delay", "late", "waiting", "waited", "previous")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moment:
    """Models of one moment, on the twelve weeks after it.

    Attributes:
        rows: event time and label of n flights.
        truth: their labels.
        day: days since the moment.
        odds: log-odds that they are late, by model.
    """

    start: str
    rows: pa.Table
    truth: NDArray[np.bool_]
    day: NDArray[np.intp]
    odds: dict[str, Floats]


def train(folder: ModelFolder, year: pa.Table) -> Iterator[Moment]:
    """The models of each moment."""
    spec, plain = folder.spec, without_news(folder)
    for start in MOMENTS:
        moment = utc(start)
        known = pc.less_equal(year["label_known_at"], _at(moment))
        past = _between(year.filter(known), moment - spec.training.longest, moment)
        rows = _between(year, moment, moment + POOL)
        odds = {}
        for name, model, seed, learned in (
            ("model", folder, 1, past),
            ("another seed", folder, 2, past),
            ("another draw", folder, 1, _draw_days(past)),
            ("without news", plain, 1, past),
        ):
            features = FeatureList.of(model.spec)
            estimator = make_estimator(model, "boosting", {"random_state": seed})
            with threadpool_limits(1):
                estimator.fit(features.frame(learned), learned["label"].to_numpy())
                odds[name] = logit(np.clip(estimator.predict_proba(features.frame(rows))[:, 1], 1e-6, 1 - 1e-6))
        event = rows[spec.event_time].cast(pa.int64()).to_numpy()
        day = (event - int(moment.timestamp() * 1e6)) // 86_400_000_000
        yield Moment(start, rows.select([spec.event_time]), rows["label"].to_numpy().astype(bool), day, odds)


def without_news(folder: ModelFolder) -> ModelFolder:
    """The example without the features of what happened just before."""
    known = folder.spec.features
    numeric = [name for name in known.numeric if not any(word in name for word in NEWS)]
    features = Features(numeric=numeric, categorical=known.categorical, lookback=known.lookback)
    return folder.model_copy(update={"spec": folder.spec.model_copy(update={"features": features})})


def _draw_days(rows: pa.Table) -> pa.Table:
    """As many days as there are, drawn with replacement."""
    day = rows["scheduled_departure"].cast(pa.int64()).to_numpy() // 86_400_000_000
    drawn = np.random.default_rng(1).choice(np.unique(day), size=len(np.unique(day)))
    return rows.take(pa.array(np.concatenate([np.flatnonzero(day == one) for one in drawn])))


def _at(moment: object) -> pa.Scalar:
    return pa.scalar(moment, pa.timestamp("us", "UTC"))


def _between(rows: pa.Table, begin: object, end: object) -> pa.Table:
    event = rows["scheduled_departure"]
    return rows.filter(pc.and_(pc.greater_equal(event, _at(begin)), pc.less(event, _at(end))))


# --- candidate and champion ------------------------------------------------------------------------------------------


def same(moment: Moment, kind: str, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """A candidate that is truly no better than the champion."""
    model = moment.odds["model"]
    if kind.startswith("swapped"):
        other, length = moment.odds["without news"], 1 if kind == "swapped by day" else 7
        heads = (generator.random(POOL.days // length) < 0.5)[moment.day // length]
        return np.where(heads, model, other), np.where(heads, other, model)
    other = moment.odds[kind]
    other_is_worse = roc_auc_score(moment.truth, other) <= roc_auc_score(moment.truth, model)
    return (other, model) if other_is_worse else (model, other)


def better(moment: Moment, kind: str, effect: float, seed: int) -> tuple[Floats, Floats]:
    """A candidate that is better by ``effect`` over all twelve weeks."""
    model = moment.odds["model"]
    noise = np.random.default_rng(seed).normal(size=len(model))

    def weaken(amount: float) -> Floats:
        if kind == "in every row alike":
            return model + amount * noise
        return (1 - amount) * model + amount * moment.odds["without news"]

    whole = roc_auc_score(moment.truth, model)
    low, high = 0.0, 10.0 if kind == "in every row alike" else 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if whole - roc_auc_score(moment.truth, weaken(middle)) < effect else (low, middle)
    return model, weaken(high)


# --- a trial ---------------------------------------------------------------------------------------------------------


def promotes(
    folder: ModelFolder, moment: Moment, candidate: Floats, champion: Floats, days: int, trial: int
) -> tuple[bool, bool, float]:
    """What the champion gate says of a holdout drawn from the twelve weeks, what ``>=`` says, and the gain there."""
    generator = np.random.default_rng([trial, days])
    first = int(generator.integers(POOL.days - days + 1))
    inside = (moment.day >= first) & (moment.day < first + days)
    start = utc(moment.start) + timedelta(days=first)
    interval = Interval(start, start + timedelta(days=days))
    resampling = folder.spec.gates.resampling.model_copy(update={"seed": trial})
    gates = folder.spec.gates.model_copy(update={"resampling": resampling})
    spec = folder.spec.model_copy(update={"gates": gates})
    rows, truth = moment.rows.filter(pa.array(inside)), moment.truth[inside]
    arena = Arena.of(spec, rows, truth, interval, None)
    new, old = (Prediction(expit(odds[inside]), None, None, ()) for odds in (candidate, champion))
    ours, its = (resample(spec.task, ["roc_auc"], truth, prediction, arena.blocks, arena.weights) for prediction in (new, old))
    found, _ = compare(arena, new, old, (ours, its))

    def contender(role: Literal["candidate", "champion"], value: float) -> Contender:
        version = 1 if role == "champion" else None
        return Contender("boosting", role, {"roc_auc": value}, len(truth), "rows", None, version=version)

    evaluation = Evaluation(
        model=spec.name,
        task=spec.task,
        metric="roc_auc",
        interval=interval.key,
        entities=len(truth),
        rows=len(truth),
        rows_hash="rows",
        classes={},
        not_finite_inputs={},
        candidate=contender("candidate", float(ours["roc_auc"][0])),
        baselines=[],
        champion=contender("champion", float(its["roc_auc"][0])),
        comparison=found,
    )
    return "champion" not in decide(evaluation, gates).refused_by, found.gain >= 0, found.gain


def rate(outcomes: list[bool]) -> dict[str, float]:
    """Share of the trials, with its exact interval (Clopper and Pearson, 1934) at 95 %."""
    n, k = len(outcomes), sum(outcomes)
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return {"share": k / n, "low": low, "high": high, "trials": n}


def run(folder: ModelFolder, moments: list[Moment]) -> list[dict[str, Any]]:
    """All trials, a line for each kind and length of the holdout."""
    lines: list[dict[str, Any]] = []
    for days in HOLDOUTS:
        for what, kind in (
            ("false promotions", "another seed"),
            ("false promotions", "another draw"),
            ("false promotions", "swapped by day"),
            ("limit", "swapped by week"),
        ):
            pairs = (same(moments[trial % len(moments)], kind, np.random.default_rng([trial, days])) for trial in range(TRIALS))
            outcomes = [promotes(folder, moments[n % len(moments)], *pair, days, n) for n, pair in enumerate(pairs)]
            lines.append(_line(what, kind, None, days, outcomes))
        for kind in ("in every row alike", "as features bring it"):
            for effect in EFFECTS:
                improved = [better(moment, kind, effect, seed) for seed, moment in enumerate(moments)]
                outcomes = [
                    promotes(folder, moments[trial % len(moments)], *improved[trial % len(moments)], days, 10_000 + trial)
                    for trial in range(TRIALS)
                ]
                lines.append(_line("power", kind, effect, days, outcomes))
    return lines


def _line(what: str, kind: str, effect: float | None, days: int, outcomes: list[tuple[bool, bool, float]]) -> dict[str, Any]:
    line = {
        "what": what,
        "trial": kind,
        "effect": effect,
        "holdout_days": days,
        "gate": rate([gate for gate, _, _ in outcomes]),
        "at_least": rate([peer for _, peer, _ in outcomes]),
        "spread_of_gains": float(np.std([gain for _, _, gain in outcomes])),
    }
    _show(line)
    return line


def meets_goals(lines: list[dict[str, Any]], days: int) -> dict[str, bool]:
    """Whether every kind of trial with a holdout of that many days is decided as well as it must be."""
    own = [line for line in lines if line["holdout_days"] == days]
    return {
        "false promotions at most 5 %": all(
            line["gate"]["share"] <= 0.05 for line in own if line["what"] == "false promotions"
        ),
        f"power at least 80 % at {STATED:g} AUC": all(
            line["gate"]["share"] >= 0.80 for line in own if line["what"] == "power" and line["effect"] == STATED
        ),
    }


def _show(line: dict[str, Any]) -> None:
    gate, peer = line["gate"], line["at_least"]
    effect = "" if line["effect"] is None else f"{line['effect']:.3f} AUC"
    goal = {"false promotions": "at most 5 %", "power": "at least 80 %"}.get(str(line["what"]), "")
    shown = f"{100 * gate['share']:5.1f} % ({100 * gate['low']:.1f}-{100 * gate['high']:.1f})"
    print(
        f"{line['holdout_days']:>4} d  {line['what']:<17} {line['trial']:<21} {effect:<10} {shown:<22} {goal:<15}"
        f"{100 * peer['share']:5.1f} %   sd of gains {line['spread_of_gains']:.4f}",
        flush=True,
    )


def main() -> None:
    began = time.perf_counter()
    folder = flight_delay()
    with tempfile.TemporaryDirectory() as scratch:
        year = labelled_features(folder, read_tables(folder, Path(scratch)), YEAR)
    moments = list(train(folder, year))
    for moment in moments:
        aucs = ", ".join(f"{name} {roc_auc_score(moment.truth, odds):.3f}" for name, odds in moment.odds.items())
        print(f"{moment.start}: {len(moment.truth):,} flights of twelve weeks, AUC {aucs}")
    print(f"trained after {time.perf_counter() - began:.0f} s\n")
    print(f"hold{'':<4}{'what':<17} {'trial':<21} {'effect':<10} {'gate':<22} {'goal':<15}{'>=':>7}")
    lines = run(folder, moments)
    own = folder.spec.training.holdout.days
    goals = meets_goals(lines, own)
    report = {
        "goals_met": goals,
        "holdout_of_the_example_days": own,
        "resamples": folder.spec.gates.resampling.resamples,
        "confidence": folder.spec.gates.resampling.confidence,
        "trials_a_line": TRIALS,
        "seconds": round(time.perf_counter() - began, 1),
        "lines": lines,
    }
    met = "; ".join(f"{goal}: {'met' if met else 'missed'}" for goal, met in goals.items())
    print(f"\n{met}; the example's holdout has {own} days")
    keep("gates", report)


if __name__ == "__main__":
    main()
