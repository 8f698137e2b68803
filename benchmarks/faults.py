"""Faulty weeks under a policy with the net under refreshes, and without it: what was served, and what was to be had.

A fault changes the rows of one week, or of four, in the middle of a stream. A changed label is learned from; a changed feature
is also what versions predict from while the fault lasts. What is true stays as it is. Predictions are compared with it over the
seven weeks from the fault's beginning:

- ``never``: the version of the fault's beginning serves to the end.
- ``without``: a refresh each week, promoted as it comes.
- ``with``: a refresh each week under the net.
- ``knowing``: the version of the fault's beginning serves until the fault is over, and no refresh learns from it: what was to
  be had.

A fault harms if ``without`` is surely worse than ``knowing``. Then ``with`` must not be: the net held. Intervals are those of
:mod:`benchmarks.value`. Holds without a fault are counted there.

    python -m benchmarks.faults
    python -m benchmarks.faults --stream gradual
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import get_context
from typing import Any

# Two replays share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.measuring import keep
from benchmarks.replay import WEEK, Course, Fault, World, begin, new
from benchmarks.streams import flights, made_stream
from benchmarks.value import Floats, Job, gain_in_words, resampled, show_on_page
from perennial.core.intervals import Interval
from perennial.evaluation.resampling import spread
from perennial.model.labels import LABEL

Change = Callable[[pa.Table, np.random.Generator], pa.Table]

#: Weeks of the stream before the fault, and weeks that are measured from its beginning.
BEFORE, MEASURED = 5, 7
LENGTHS = (1, 4)
#: By stream, the window that is learned from, in days. The stream that takes longest comes first.
WINDOWS = {"flights": 90, "gradual": 90}
#: The features that are swapped, multiplied and silent, by stream.
SWAPPED = {"gradual": ("x0", "x7"), "flights": ("scheduled_minutes", "distance")}
SCALED = {"gradual": "x0", "flights": "scheduled_minutes"}
SILENT = {
    "gradual": ("x0", "x1"),
    "flights": (
        "wind_direction",
        "wind_speed",
        "wind_gust",
        "precipitation",
        "visibility",
        "pressure",
        "dew_point",
        "humidity",
    ),
}


def _set(rows: pa.Table, name: str, values: Any) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, pa.array(values, rows.schema.field(name).type))


def _labels(rows: pa.Table) -> Any:
    return rows.column(LABEL).combine_chunks().to_numpy(zero_copy_only=False)


def _late(rows: pa.Table, which: Any, by: timedelta) -> pa.Table:
    """Some labels become known later."""
    known = rows.column("label_known_at")
    later = pc.add(known, pa.scalar(by, pa.duration("us"))).cast(known.type)
    return rows.set_column(
        rows.column_names.index("label_known_at"), "label_known_at", pc.if_else(pa.array(which), later, known)
    )


def changes(stream: str) -> dict[str, Change]:
    """What can be wrong with rows, by name."""
    one, other = SWAPPED[stream]
    scaled, silent = SCALED[stream], SILENT[stream]

    def silence(rows: pa.Table, _: np.random.Generator) -> pa.Table:
        for name in silent:
            rows = rows.set_column(rows.column_names.index(name), name, pa.nulls(rows.num_rows, rows.schema.field(name).type))
        return rows

    def delay(rows: pa.Table, random: np.random.Generator) -> pa.Table:
        # What happened is known two months later, and what did not happen at once.
        return _late(rows, _labels(rows) & (random.random(rows.num_rows) < 0.7), timedelta(days=60))

    return {
        "inverted labels": lambda rows, _: _set(rows, LABEL, ~_labels(rows)),
        "shuffled labels": lambda rows, random: _set(rows, LABEL, random.permutation(_labels(rows))),
        "constant labels": lambda rows, _: _set(rows, LABEL, np.zeros(rows.num_rows, dtype=bool)),
        "delayed labels": delay,
        "one class": lambda rows, _: _late(rows, _labels(rows), timedelta(days=3650)),
        "swapped columns": lambda rows, _: _set(
            _set(rows, one, rows.column(other).to_numpy()), other, rows.column(one).to_numpy()
        ),
        "units x 1000": lambda rows, _: _set(rows, scaled, 1000 * rows.column(scaled).to_numpy()),
        "silent sensor": silence,
    }


@dataclass(frozen=True)
class Trial:
    """A fault of a length in a stream."""

    stream: str
    fault: str
    weeks: int


def run(stream: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Some faults of a stream, of each length."""
    job = Job(stream, WINDOWS[stream], 1)
    source = flights() if stream == "flights" else made_stream(stream, job.seed)
    source = source.learning_from(job.days, 2013 + job.seed)
    source = replace(source, weeks=BEFORE + MEASURED)
    clean = World(source)
    at = source.begin + BEFORE * WEEK
    return [
        _run(clean, job, Trial(stream, name, weeks), Interval(at, at + weeks * WEEK)) for name in names for weeks in LENGTHS
    ]


def _run(clean: World, job: Job, trial: Trial, interval: Interval) -> dict[str, Any]:
    made = changes(trial.stream)[trial.fault]
    world = World(clean.stream, Fault(trial.fault, interval, lambda rows: made(rows, np.random.default_rng(job.seed))), clean)
    faulty = [Interval(interval.start + number * WEEK, interval.start + (number + 1) * WEEK) for number in range(trial.weeks)]
    courses = {
        "without": _replay(world, net=False),
        "with": _replay(world, net=True),
        "knowing": _replay(world, net=False, withheld=faulty),
    }
    served = {name: course.served[BEFORE:] for name, course in courses.items()}
    served["never"] = [courses["with"].served[BEFORE]] * MEASURED
    found = {name: resampled(world, versions, job, world.weeks[BEFORE:]) for name, versions in served.items()}
    harm, left = (_difference(found[name], found["knowing"]) for name in ("without", "with"))
    held = [number - BEFORE for number, what, _ in courses["with"].events if what == "refused" and number > BEFORE]
    line = {
        "stream": trial.stream,
        "fault": trial.fault,
        "weeks": trial.weeks,
        "auc": {name: round(float(values["roc_auc"][0]), 4) for name, values in found.items()},
        "without_less_knowing": harm,
        "with_less_knowing": left,
        "harms": harm[2] < 0,
        "held": left[2] >= 0,
        "refused_weeks": held,
        "withheld": len(courses["with"].withheld),
        "restored": sum(what == "restored" for _, what, _ in courses["with"].events),
        "gates": sorted({reason for _, what, reasons in courses["with"].events if what == "refused" for reason in reasons}),
    }
    print(show(line), flush=True)
    return line


def _replay(world: World, *, net: bool, withheld: Sequence[Interval] = ()) -> Course:
    course = Course(begin(world), withheld=list(withheld))
    for week in world.weeks:
        course.served.append(course.serving)
        if week not in withheld:
            new(world, course, week, net=net, replacements=False)
    return course


def _difference(ours: dict[str, Floats], theirs: dict[str, Floats]) -> list[float]:
    gains = ours["roc_auc"] - theirs["roc_auc"]
    bounds = spread(gains[1:], 7 * MEASURED, 0.95)
    assert bounds is not None
    return [round(float(number), 5) for number in (gains[0], bounds.low, bounds.high)]


def show(line: dict[str, Any]) -> str:
    auc = line["auc"]
    gain, low, high = line["without_less_knowing"]
    left, least, most = line["with_less_knowing"]
    return (
        f"| {line['stream']} | {line['fault']} | {line['weeks']} | {auc['never']:.4f} | {auc['without']:.4f} | "
        f"{auc['with']:.4f} | {auc['knowing']:.4f} | {gain:+.4f} [{low:+.4f}, {high:+.4f}] | "
        f"{left:+.4f} [{least:+.4f}, {most:+.4f}] | {', '.join(map(str, line['refused_weeks']))} | {', '.join(line['gates'])} |"
    )


def tables(report: dict[str, Any]) -> str:
    """What docs/decide.md shows of a report."""
    rows = [
        "| Stream | Fault | Weeks | Never | Without | With | To be had | Without, less that | With, less that | Refused |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in report["lines"]:
        auc = line["auc"]
        rows.append(
            f"| {line['stream']} | {line['fault']} | {line['weeks']} | {auc['never']:.4f} | {auc['without']:.4f} | "
            f"{auc['with']:.4f} | {auc['knowing']:.4f} | {gain_in_words(line['without_less_knowing'])}"
            f"{', harms' if line['harms'] else ''} | {gain_in_words(line['with_less_knowing'])} | "
            f"{len(line['refused_weeks'])} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", choices=tuple(WINDOWS), nargs="+", default=tuple(WINDOWS))
    parser.add_argument("--fault", nargs="+", help="some faults; all by default")
    parser.add_argument("--beside", type=int, default=2, help="replays at a time (2)")
    chosen = parser.parse_args()
    started = time.monotonic()
    lines = []
    names = "Stream, Fault, Weeks, Never, Without, With, Knowing, Without less knowing, With less knowing, Refused, By"
    print(f"| {names.replace(', ', ' | ')} |")
    with ProcessPoolExecutor(chosen.beside, mp_context=get_context("fork")) as pool:
        running = []
        for stream in chosen.stream:
            faults = chosen.fault or list(changes(stream))
            halves = [faults[half::2] for half in range(2)]
            running += [pool.submit(run, stream, half) for half in halves if half]
        for future in as_completed(running):
            lines += future.result()
    order = {name: number for number, name in enumerate(changes("flights"))}
    lines.sort(key=lambda line: (line["stream"], order[line["fault"]], line["weeks"]))
    harm = [line for line in lines if line["harms"]]
    goals = {
        "the net holds in each fault that harms": all(line["held"] for line in harm),
        "under the net, no fault does sure harm": all(line["held"] for line in lines),
    }
    print(f"{len(harm)} of {len(lines)} harm; {goals}; {time.monotonic() - started:.0f} s")
    if tuple(chosen.stream) == tuple(WINDOWS) and not chosen.fault:
        report = {"goals_met": goals, "lines": lines, "seconds": round(time.monotonic() - started, 1)}
        keep("faults", report)
        show_on_page("faults", tables(report))


if __name__ == "__main__":
    main()
