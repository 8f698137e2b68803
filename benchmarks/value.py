"""What the retraining policy is worth: 2013 on the flights under four of them, week by week, each decided from what was known.

Every policy begins with the champion trained as of 1 April and scores each of the 39 weeks that follow with the champion of
that week. After each week it may train, as of the week's end, on the three months before:

- ``never``: the first champion serves to the end.
- ``weekly``: trained each week and promoted as it comes, without gates.
- ``drift``: trained whenever the week's drift verdict is ``drift`` and promoted as it comes: no gates, cooldown or budget.
- ``perennial``: the example as it is: by its calendar, by monitoring under its policy, promoted if the gates let it.

The real functions do all of it on a lake, a ledger and an MLflow store of each policy's own; only Airflow is left out. When the
year is over, the predictions are compared with the labels: area under the ROC curve, log loss and the cost per flight by the
example's ``cost``. Compute is processor time of the policy's trainings and verdicts, evaluation and card included where the
policy looks at them; scoring is the same for all.

    python -m benchmarks.value            # all four, two at a time
    python -m benchmarks.value --weeks 8  # a short one
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

# Two policies share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa

from benchmarks.measuring import keep, processor_time
from perennial.cli import by_hand
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT, Settings, read_settings
from perennial.demo.example_data import write_landing_zone
from perennial.deployment import Deployment
from perennial.evaluation.gates import decide
from perennial.evaluation.metrics import evaluate
from perennial.features.labels import read_labels
from perennial.model.costs import cost_function
from perennial.monitoring import requests
from perennial.monitoring.judge import judge_drift
from perennial.monitoring.performance import measure_performance
from perennial.scoring.predictor import DATASET
from perennial.scoring.publish import score
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.training.evaluate import choose, evaluate_training
from perennial.training.fit import fit_candidate
from perennial.training.training_set import build_training_set

MODEL = "flight_delay"
BEGIN = Interval.day("2013-04-01").start
HISTORY = Interval.of("2013-01-01", "2013-12-30")
WEEKS = 39
POLICIES = ("never", "weekly", "drift", "perennial")
PICTURE = PROJECT / "docs" / "images" / "value.png"


@dataclass
class Outcome:
    """What a policy led to.

    Attributes:
        metrics: over all rows of all weeks.
        weekly: the same, week by week.
        trainings: how many models were trained after the first.
        promotions: how many of them became champion.
        alarms: weeks with the verdict ``drift``; None where nothing was judged.
        seconds: processor time by stage.
        champions: the version that scored each week.
    """

    policy: str
    metrics: dict[str, float] = field(default_factory=dict)
    weekly: list[dict[str, float]] = field(default_factory=list)
    trainings: int = 0
    promotions: int = 0
    alarms: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    champions: list[int] = field(default_factory=list)


def replay(policy: str, data: Path, weeks: int) -> Outcome:
    """One policy from April on, in a deployment of its own."""
    with tempfile.TemporaryDirectory(prefix=f"value-{policy}-") as scratch:
        settings = read_settings({"PERENNIAL_STATE": scratch, "PERENNIAL_DATA": str(data)})
        outcome = Outcome(policy)
        by_hand.ingest(settings, MODEL, HISTORY)
        by_hand.train(settings, MODEL, BEGIN)
        parts = Deployment(settings)
        for number in range(weeks):
            week = Interval(BEGIN + timedelta(weeks=number), BEGIN + timedelta(weeks=number + 1))
            champion = parts.ledger.champion(MODEL)
            assert champion is not None
            outcome.champions.append(champion)
            with _timed(outcome, "score"):
                _score(settings, parts, week, champion)
            before = len(parts.ledger.versions(MODEL))
            _after(policy, settings, parts, week, outcome)
            outcome.trainings += len(parts.ledger.versions(MODEL)) - before
        outcome.promotions = len([made for made in parts.ledger.promotions(MODEL) if made.completed_at is not None]) - 1
        _measure(parts, weeks, outcome)
        return outcome


def _score(settings: Settings, parts: Deployment, week: Interval, version: int) -> None:
    score(
        parts.model(MODEL),
        parts,
        week,
        version=version,
        order=parts.ledger.next_order(MODEL, DATASET, week, "replay"),
        run_id="replay",
        sink_url=settings.predictions_url,
    )


def _after(policy: str, settings: Settings, parts: Deployment, week: Interval, outcome: Outcome) -> None:
    """What a policy does when a week is over."""
    if policy == "weekly":
        _train_and_promote(parts, week, outcome)
    elif policy == "drift":
        if _judge(settings, parts, week, outcome) == "drift":
            _train_and_promote(parts, week, outcome)
    elif policy == "perennial":
        _judge(settings, parts, week, outcome)
        folder = parts.model(MODEL)
        due = _due(folder.spec, week)
        with _timed(outcome, "monitor"):
            measure_performance(folder, parts, week, as_of=week.end, run_id="replay")
            request = requests.request_retraining(
                folder.spec, parts.ledger, week, run_id="replay", training_under_way=due is not None
            )
        if request is not None or due is not None:
            with _timed(outcome, "train"):
                by_hand.train(settings, MODEL, due or week.end)


def _due(spec: ModelSpec, week: Interval) -> datetime | None:
    """The time as of which the example's calendar trains once this week's data are there, if it does."""
    if spec.schedules.train == "week":
        return week.end
    first = week.end.replace(day=1)
    return first if spec.schedules.train == "month" and week.start < first else None


def _judge(settings: Settings, parts: Deployment, week: Interval, outcome: Outcome) -> str:
    with _timed(outcome, "monitor"):
        verdict = judge_drift(parts.model(MODEL), parts, week, directory=settings.reports, run_id="replay")
    outcome.alarms = (outcome.alarms or 0) + (verdict.verdict == "drift")
    return verdict.verdict


def _train_and_promote(parts: Deployment, week: Interval, outcome: Outcome) -> None:
    """Train as of the week's end and promote whatever comes of it; the evaluation it does not look at is not on its bill."""
    folder, registry = parts.model(MODEL), parts.registry
    run_id = f"replay-{week.key}"
    with _timed(outcome, "train"):
        training_set = build_training_set(folder, parts, as_of=week.end, run_id=run_id)
        fitted = [fit_candidate(folder, candidate, training_set, parts, run_id=run_id) for candidate in folder.spec.candidates]
    evaluation = evaluate_training(folder, parts, training_set, fitted, run_id=run_id)
    decision = decide(evaluation, folder.spec.gates)
    version = registry.register(folder, training_set, choose(fitted), evaluation, decision, run_id=run_id)
    registry.promote_by_hand(folder.spec, version, override="the policy promotes what it trains", actor="benchmark")


@contextmanager
def _timed(outcome: Outcome, stage: str) -> Iterator[None]:
    started = processor_time()
    yield
    outcome.seconds[stage] = outcome.seconds.get(stage, 0.0) + processor_time() - started


def _measure(parts: Deployment, weeks: int, outcome: Outcome) -> None:
    folder = parts.model(MODEL)
    spec = folder.spec
    published, tables = parts.ledger.published(MODEL, DATASET), parts.ledger.published(MODEL, "tables")
    assert published is not None
    assert tables is not None
    key = [*spec.entity_table.key, spec.event_time]
    kept: list[pa.Table] = []
    for number in range(weeks):
        week = Interval(BEGIN + timedelta(weeks=number), BEGIN + timedelta(weeks=number + 1))
        predicted = parts.lake.scan(
            MODEL, DATASET, published.snapshots[DATASET], columns=[*key, "prediction"], interval=week,
            event_time=spec.event_time,
        ).read_all()  # fmt: skip
        labels = read_labels(folder, parts.lake, tables.snapshots, week, as_of=HISTORY.end + timedelta(days=30))
        rows = predicted.join(labels.select([*key, "label"]), keys=key, join_type="inner")
        kept.append(rows)
        outcome.weekly.append(_metrics(folder, rows))
    outcome.metrics = _metrics(folder, pa.concat_tables(kept))


def _metrics(folder: ModelFolder, rows: pa.Table) -> dict[str, float]:
    truth, predicted = (rows.column(name).combine_chunks().to_numpy(zero_copy_only=False) for name in ("label", "prediction"))
    found = evaluate(folder.spec.task, truth, predicted, cost=cost_function(folder))
    return {**found, "rows": float(rows.num_rows), "late": float(truth.mean())}


def draw(outcomes: Sequence[Outcome], file: Path) -> None:
    """Each policy's realised metrics by week, smoothed over four, and what it cost to get them."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(POLICIES, ("#8c8c8c", "#d98c00", "#b3403a", "#1f6fb2"), strict=True))
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=[2.2, 2.2, 1.3], layout="constrained")
    for axis, metric, title in (
        (axes[0], "roc_auc", "area under the ROC curve, more is better"),
        (axes[1], "log_loss", "log loss, less is better"),
    ):
        for outcome in outcomes:
            values = np.array([week[metric] for week in outcome.weekly])
            smooth = np.array([values[max(0, n - 3) : n + 1].mean() for n in range(len(values))])
            axis.plot(range(1, len(values) + 1), smooth, color=colours[outcome.policy], lw=2, label=outcome.policy)
        axis.set(title=title, xlabel="week after 1 April 2013, mean of the last four")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    names = [outcome.policy for outcome in outcomes]
    bars = axes[2].barh(names, [outcome.trainings for outcome in outcomes], color=[colours[name] for name in names])
    axes[2].bar_label(bars, padding=3)
    axes[2].set(title="trainings after the first")
    axes[2].invert_yaxis()
    axes[2].spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def tell(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| policy | AUC | log loss | cost a flight | trainings | promotions | drift alarms | training, s | monitoring, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for outcome in outcomes:
        metrics = outcome.metrics
        cost = f"{metrics['cost']:.4f}" if "cost" in metrics else ""
        lines.append(
            f"| {outcome.policy} | {metrics['roc_auc']:.4f} | {metrics['log_loss']:.4f} | {cost} | {outcome.trainings} | "
            f"{outcome.promotions} | {'' if outcome.alarms is None else outcome.alarms} | "
            f"{outcome.seconds.get('train', 0.0):.0f} | {outcome.seconds.get('monitor', 0.0):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weeks", type=int, choices=range(1, WEEKS + 1), default=WEEKS, metavar="N")
    parser.add_argument("--policy", choices=POLICIES, nargs="+", default=POLICIES)
    parser.add_argument("--beside", type=int, default=2, help="policies replayed at a time (2)")
    chosen = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="value-data-") as data:
        write_landing_zone(Path(data), HISTORY)
        with ProcessPoolExecutor(chosen.beside, mp_context=get_context("fork")) as pool:
            running = [pool.submit(replay, policy, Path(data), chosen.weeks) for policy in chosen.policy]
            outcomes = [future.result() for future in running]
    print(tell(outcomes))
    print(f"{chosen.weeks} weeks, {time.monotonic() - started:.0f} s in all")
    if chosen.weeks == WEEKS and tuple(chosen.policy) == POLICIES:
        report = {
            "python": platform.python_version(), "weeks": chosen.weeks, "outcomes": [asdict(outcome) for outcome in outcomes],
            "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        keep("value", report)
        draw(outcomes, PICTURE)


if __name__ == "__main__":
    main()
