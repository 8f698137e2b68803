"""What retraining is worth: 39 weeks under seven policies, on the flights of 2013 and on made streams, week by week.

- ``never``: the first version serves to the end.
- ``judged weekly``: fitted each week on the window before a holdout of four weeks, promoted as it was judged, whatever it
  reached there.
- ``weekly``: fitted again each week on all rows up to now, promoted as it comes. It is the new policy without its net.
- ``monthly``: the same when a month is over.
- ``drift``: the same on each drift verdict.
- ``old``: fitted each month on the window before the holdout; if surely better there than the stored champion, fitted again.
- ``new``: a refresh each week under the net, and each month a replacement, recipe against recipe.

Only the first version and replacements search parameters: for the others, a search would cost time and change little.

:mod:`benchmarks.replay` replays them in memory, by the product's functions; :mod:`benchmarks.streams` has the rows. All begin
with the same version. Differences are paired, over all rows of the 39 weeks, with intervals of 95 % by a bootstrap of whole
days. A made stream is drawn anew with each seed; on the flights only the estimator's random numbers differ. The mean of the
seeds is taken, and seeds are drawn with replacement, too, since one fit is always ahead of another by a little, by luck. A
promotion is harmful if over the next four weeks the new version is surely worse than the one before it, on the same rows, if
only by a little: of two fits on rows of which nothing has changed, one is.

    python -m benchmarks.value
    python -m benchmarks.value --stream flights --seeds 1
    python -m benchmarks.value --resume
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Two replays share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import keep
from benchmarks.prepared import KEPT
from benchmarks.replay import POLICIES, Course, Version, World, replay
from benchmarks.streams import KNOWN, PUT_ASIDE, Stream, flights, made_stream
from perennial.core.files import replacing
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT
from perennial.evaluation.resampling import draw, find_blocks, resample, spread
from perennial.model.artifacts import Prediction
from perennial.spec.gates import Resampling

PAGE = PROJECT / "docs" / "decide.md"
PICTURE = PROJECT / "docs" / "images" / "value.png"
METRICS = {"roc_auc": 1, "log_loss": -1, "cost": -1}
#: By stream, the windows that are learned from, in days.
WINDOWS = {"flights": (365, 90), **dict.fromkeys((*KNOWN, *PUT_ASIDE), (90,))}
SEEDS = 3
OTHERS = ("never", "judged weekly", "weekly", "monthly", "drift", "old")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """One stream with one seed and one window."""

    stream: str
    days: int
    seed: int

    def read(self) -> Stream:
        stream = flights() if self.stream == "flights" else made_stream(self.stream, self.seed)
        return stream.learning_from(self.days, 2013 + self.seed)


def run(job: Job) -> dict[str, dict[str, Any]]:
    """All policies of a job. By policy: what it led to, and ``resampled``, by metric: 1 + 1000 values."""
    world = World(job.read())
    found = {}
    for name, policy in POLICIES.items():
        course = replay(world, policy)
        found[name] = {**told(world, course), "resampled": resampled(world, course.served, job)}
    return found


def told(world: World, course: Course) -> dict[str, Any]:
    """What a policy did, in numbers."""
    weekly = []
    for version, week in zip(course.served, world.weeks, strict=True):
        truth, said, _ = seen(world, [version], [week])
        one = np.ones((1, 1))
        blocks = find_blocks(_rows(world, [week]), Resampling(block=week.end - week.start), event_time=world.spec.event_time,
                             start=week.start)  # fmt: skip
        values = resample(world.spec.task, list(METRICS), truth, said, blocks, one, cost=world.cost)
        weekly.append({metric: round(float(values[metric][0]), 5) for metric in METRICS})
    of = [what for _, what, _ in course.events]
    judged = [harmful(world, course, number) for number, what, _ in course.events if what in ("promoted", "restored")]
    return {
        "weekly": weekly,
        "promotions": of.count("promoted"),
        "refusals": of.count("refused") + of.count("not replaced"),
        "held": of.count("refused"),
        "withheld": len(course.withheld),
        "restored": of.count("restored"),
        "replaced": of.count("replaced"),
        "alarms": of.count("drift"),
        "harmful": sum(one is True for one in judged),
        "judged_promotions": sum(one is not None for one in judged),
        "fits": course.fits,
        "seconds": round(course.seconds, 1),
        "events": [[number, what, reasons] for number, what, reasons in course.events if what != "promoted"],
    }


def seen(world: World, versions: Sequence[Version], weeks: Sequence[Interval]) -> tuple[Any, Prediction, Any]:
    """Truth and predictions of weeks, each with the version that served it, and their rows."""
    parts = [world.predict(version, week).values for version, week in zip(versions, weeks, strict=True)]
    values = np.concatenate(parts)
    first, last = world.between(Interval(weeks[0].start, weeks[-1].end))
    return world.truth[first:last], Prediction(values, values, None, ()), None


def _rows(world: World, weeks: Sequence[Interval]) -> Any:
    first, last = world.between(Interval(weeks[0].start, weeks[-1].end))
    return world.stream.rows.slice(first, last - first).select([world.spec.event_time])


def resampled(
    world: World,
    versions: Sequence[Version],
    job: Job,
    weeks: Sequence[Interval] | None = None,
    metrics: Sequence[str] = tuple(METRICS),
) -> dict[str, Floats]:
    """By metric, its value over all weeks and in each resample of whole days."""
    weeks = weeks or world.weeks
    # Days of the same flights are drawn together for all seeds; each made stream has days of its own.
    rule = Resampling(seed=2013 if job.stream == "flights" else 2013 + job.seed)
    blocks = find_blocks(_rows(world, weeks), rule, event_time=world.spec.event_time, start=weeks[0].start)
    weights = np.vstack([np.ones(blocks.count), draw(blocks, rule)])
    truth, said, _ = seen(world, versions, weeks)
    return resample(world.spec.task, metrics, truth, said, blocks, weights, cost=world.cost)


def harmful(world: World, course: Course, number: int) -> bool | None:
    """Whether the change after a week was surely for the worse over the next four; None if these are not over."""
    weeks = world.weeks[number : number + 4]
    if len(weeks) < 4:
        return None
    job = Job("flights", 0, 0)
    after, before = (
        resampled(world, [course.served[place]] * 4, job, weeks, ["roc_auc"])["roc_auc"] for place in (number, number - 1)
    )
    bounds = spread((after - before)[1:], 28, 0.95)
    return bounds is not None and bounds.high < 0


def difference(ours: Sequence[dict[str, Floats]], theirs: Sequence[dict[str, Floats]], metric: str) -> list[float]:
    """How much better ours is, with its interval. Seeds are drawn with replacement, too: luck of a fit is no merit."""
    gains = METRICS[metric] * np.array([one[metric] - other[metric] for one, other in zip(ours, theirs, strict=True)])
    seeds = np.random.default_rng(2013).integers(len(gains), size=(gains.shape[1] - 1, len(gains)))
    drawn = gains[seeds, np.arange(1, gains.shape[1])[:, None]].mean(axis=1)
    bounds = spread(drawn, 273, 0.95)
    assert bounds is not None
    return [round(float(number), 5) for number in (gains[:, 0].mean(), bounds.low, bounds.high)]


def summarise(jobs: dict[Job, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """By stream and window: each policy over all seeds, and the differences of the new one."""
    lines = []
    for stream, days in [(stream, days) for stream, windows in WINDOWS.items() for days in windows]:
        found = [jobs[job] for job in sorted(jobs, key=lambda job: job.seed) if (job.stream, job.days) == (stream, days)]
        if not found:
            continue
        of = {name: [one[name]["resampled"] for one in found] for name in POLICIES}
        policies = {}
        for name in POLICIES:
            told_of = [one[name] for one in found]
            policies[name] = {
                **{metric: round(float(np.mean([one[metric][0] for one in of[name]])), 5) for metric in METRICS},
                **{
                    what: round(float(np.mean([one[what] for one in told_of])), 2)
                    for what in told_of[0]
                    if what not in ("weekly", "resampled", "events")
                },
                "weekly": [
                    {metric: round(float(np.mean(values)), 5) for metric, values in
                     {metric: [one["weekly"][week][metric] for one in told_of] for metric in METRICS}.items()}
                    for week in range(len(told_of[0]["weekly"]))
                ],
                "events": [one["events"] for one in told_of],
            }  # fmt: skip
        lines.append(
            {
                "stream": stream,
                "window_days": days,
                "seeds": len(found),
                "policies": policies,
                "new_over": {
                    other: {metric: difference(of["new"], theirs, metric) for metric in METRICS}
                    for other, theirs in {**{other: of[other] for other in OTHERS}, **_always(jobs, stream, days)}.items()
                    if len(theirs) == len(found)
                },
            }
        )
    return lines


def _always(jobs: dict[Job, dict[str, dict[str, Any]]], stream: str, days: int) -> dict[str, list[dict[str, Floats]]]:
    """Judged weekly with the shortest window of a stream that has several: the *always* of earlier releases."""
    shortest = min(WINDOWS[stream])
    found = [jobs[job] for job in sorted(jobs, key=lambda job: job.seed) if (job.stream, job.days) == (stream, shortest)]
    return {} if days == shortest else {f"judged weekly, {shortest} d": [one["judged weekly"]["resampled"] for one in found]}


def show(line: dict[str, Any]) -> str:
    rows = [
        f"{line['stream']}, window of {line['window_days']} days, {line['seeds']} seeds",
        "| Policy | AUC | Log loss | Cost | Fits | Promotions | Refused | Withheld | Restored | Harmful | Compute |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in line["policies"].items():
        rows.append(
            f"| {name} | {one['roc_auc']:.4f} | {one['log_loss']:.4f} | {one['cost']:.4f} | {one['fits']:.0f} | "
            f"{one['promotions']:.0f} | {one['refusals']:.1f} | {one['withheld']:.1f} | {one['restored']:.1f} | "
            f"{one['harmful']:.1f} of {one['judged_promotions']:.0f} | {one['seconds']:.0f} s |"
        )
    for other, found in line["new_over"].items():
        said = "; ".join(f"{metric} {gain:+.4f} [{low:+.4f}, {high:+.4f}]" for metric, (gain, low, high) in found.items())
        rows.append(f"new over {other}: {said}")
    return "\n".join(rows)


def goals(lines: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """Whether the new policy does what it must."""
    of_flights = [line["new_over"] for line in lines if (line["stream"], line["window_days"]) == ("flights", 365)]

    def surely(*others: str) -> bool:
        gains = [gain for over in of_flights for other in others for gain in over.get(other, {"": (0, 0, 0)}).values()]
        return bool(gains) and all(low > 0 for _, low, _ in gains)

    may = [
        gain for line in lines for other in ("never", "judged weekly", "weekly") for gain in line["new_over"][other].values()
    ]
    weeks = sum(39 * line["seeds"] for line in lines)
    held = sum(line["policies"]["new"]["held"] * line["seeds"] for line in lines)
    return {
        "surely better than never and than judged weekly on the flights": surely("never", "judged weekly"),
        "surely better than never and than judged weekly with the window of earlier releases": surely(
            "never", f"judged weekly, {min(WINDOWS['flights'])} d"
        ),
        "nowhere surely worse than never, judged weekly or weekly": all(high >= 0 for _, _, high in may),
        "fewer than one false hold in 50 weeks": held * 50 < weeks,
    }


def tables(report: dict[str, Any]) -> str:
    """What docs/decide.md shows of a report."""
    rows = []
    for line in report["lines"]:
        if line["stream"] != "flights":
            continue
        rows += [
            f"The flights, learning from {line['window_days']} days before the holdout, and from the holdout ({_seeds(line)}):",
            "",
            "| Policy | AUC | Log loss | Cost per flight | Fits | Promotions | Harmful | Compute |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name, one in line["policies"].items():
            rows.append(
                f"| {name} | {one['roc_auc']:.4f} | {one['log_loss']:.4f} | {one['cost']:.4f} | {one['fits']:.0f} | "
                f"{one['promotions']:.0f} | {one['harmful']:.0f} of {one['judged_promotions']:.0f} | {one['seconds']:.0f} s |"
            )
        rows += ["", "| The new policy over | AUC | Log loss | Cost per flight |", "| --- | ---: | ---: | ---: |"]
        for other in (name for name in line["new_over"] if name not in ("weekly", "monthly")):
            rows.append(f"| {other} | {' | '.join(gain_in_words(line['new_over'][other][metric]) for metric in METRICS)} |")
        rows.append("")
    names = ("never", "judged weekly", "weekly", "drift", "old", "new")
    rows += [
        "Area under the ROC curve on all streams, and what the new policy gains in it:",
        "",
        f"| Stream | {' | '.join(names)} | Over never | Over judged weekly | Over weekly | Held, of weeks | Undone |",
        f"| --- |{' ---: |' * (len(names) + 5)}",
    ]
    for line in report["lines"]:
        new, over = line["policies"]["new"], line["new_over"]
        rows.append(
            f"| {line['stream']}, {line['window_days']} d, {_seeds(line)} | "
            f"{' | '.join(format(line['policies'][name]['roc_auc'], '.4f') for name in names)} | "
            f"{' | '.join(gain_in_words(over[other]['roc_auc']) for other in ('never', 'judged weekly', 'weekly'))} | "
            f"{round(new['held'] * line['seeds'])} of {39 * line['seeds']} | {round(new['restored'] * line['seeds'])} |"
        )
    return "\n".join(rows)


def _seeds(line: dict[str, Any]) -> str:
    return "1 seed" if line["seeds"] == 1 else f"{line['seeds']} seeds"


def gain_in_words(found: Sequence[float]) -> str:
    """A difference with its interval."""
    gain, low, high = (f"{number:+.4f}".replace("-0.0000", "0").replace("+0.0000", "0") for number in found)
    return f"{gain} [{low}, {high}]"


def with_tables(page: str, name: str, shown: str) -> str:
    """A page with what is between two of its marks replaced."""
    start, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
    before, rest = page.split(start, 1)
    return f"{before}{start}{shown}{end}{rest.split(end, 1)[1]}"


def show_on_page(name: str, shown: str) -> None:
    """Put what a study has found on the page about decisions."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), name, shown), encoding="utf-8")


def picture(lines: Sequence[dict[str, Any]], file: Path) -> None:
    """The policies on the flights by week, and what the new one gains on each stream."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    colours = {"never": "#8c8c8c", "judged weekly": "#d98c00", "old": "#7a5aa6", "drift": "#b3403a", "new": "#1f6fb2"}
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), width_ratios=[1.35, 1], layout="constrained")
    year = next(line for line in lines if (line["stream"], line["window_days"]) == ("flights", 365))
    for name, colour in colours.items():
        values = np.array([week["roc_auc"] for week in year["policies"][name]["weekly"]])
        smooth = [values[max(0, number - 3) : number + 1].mean() for number in range(len(values))]
        axes[0].plot(range(1, len(values) + 1), smooth, color=colour, lw=2, label=name)
    axes[0].set(title="area under the ROC curve on the flights", xlabel="week after 1 April 2013, mean of the last four")
    axes[0].legend(frameon=False, ncols=3)
    names = [f"{line['stream']}, {line['window_days']} d" for line in lines]
    for shift, other in ((-0.2, "never"), (0.0, "judged weekly"), (0.2, "old")):
        found = np.array([line["new_over"][other]["roc_auc"] for line in lines])
        axes[1].errorbar(
            found[:, 0], np.arange(len(lines)) + shift, xerr=[found[:, 0] - found[:, 1], found[:, 2] - found[:, 0]],
            fmt="o", ms=4, color=colours[other], label=f"over {other}", capsize=2,
        )  # fmt: skip
    axes[1].axvline(0, color="black", lw=0.8)
    axes[1].set_yticks(range(len(names)), names)
    axes[1].invert_yaxis()
    axes[1].set(title="what the new policy gains in it, 95 % intervals")
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", choices=tuple(WINDOWS), nargs="+", default=tuple(WINDOWS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--beside", type=int, default=2, help="replays at a time (2)")
    parser.add_argument("--resume", action="store_true", help="go on with a run of the same code that was stopped")
    chosen = parser.parse_args()
    started = time.monotonic()
    if "flights" in chosen.stream:
        flights()  # made once, before two processes need it
    # The flights once, then the made streams, then the flights again; the longest first.
    jobs = sorted(
        (
            Job(stream, days, seed)
            for stream in chosen.stream
            for days in WINDOWS[stream]
            for seed in range(1, chosen.seeds + 1)
        ),
        key=lambda job: (job.stream == "flights" and job.seed > 1, job.stream != "flights", job.seed, -job.days),
    )
    found = {job: _read_kept(job) for job in jobs if chosen.resume and _kept(job).exists()}
    with ProcessPoolExecutor(chosen.beside, mp_context=get_context("fork")) as pool:
        running = {pool.submit(run, job): job for job in jobs if job not in found}
        for future in as_completed(running):
            found[running[future]] = future.result()
            with replacing(_kept(running[future])) as file:
                file.write_text(json.dumps(found[running[future]], default=np.ndarray.tolist), encoding="utf-8")
            print(f"{time.monotonic() - started:.0f} s: {running[future]}", flush=True)
            if tuple(chosen.stream) == tuple(WINDOWS):
                report(found, time.monotonic() - started)
    for line in summarise(found):
        print(show(line), end="\n\n")


def _kept(job: Job) -> Path:
    """Where the results of a job are kept, so that a run of an hour may be stopped."""
    return KEPT / "value" / f"{job.stream}-{job.days}-{job.seed}.json"


def _read_kept(job: Job) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(_kept(job).read_text(encoding="utf-8"))
    for one in found.values():
        one["resampled"] = {metric: np.array(values) for metric, values in one["resampled"].items()}
    return found


def report(found: dict[Job, dict[str, dict[str, Any]]], seconds: float) -> None:
    """Write what is there: a run that is stopped leaves what it has found."""
    lines = summarise(found)
    told_all = {"goals_met": goals(lines), "weeks": 39, "lines": lines, "seconds": round(seconds, 1)}
    keep("value", told_all)
    show_on_page("value", tables(told_all))
    if any((line["stream"], line["window_days"]) == ("flights", 365) for line in lines):
        picture(lines, PICTURE)


if __name__ == "__main__":
    main()
