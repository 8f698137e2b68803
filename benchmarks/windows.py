"""How much history the example should learn from: each week a refresh on the flights of April to June alone, by window.

The months after June are left unseen, since :mod:`benchmarks.value` measures policies on them with the window that was chosen.
A refresh learns from the window and the four weeks after it, up to its day, and is promoted as it comes: the policy ``weekly``.
Data begin on 1 January. So lengths have the same rows for as long as both reach back to the beginning; then they are fitted
once. All begin with the same version. Differences are those of :mod:`benchmarks.value`.

    python -m benchmarks.windows
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import timedelta

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.measuring import keep
from benchmarks.replay import World, replay, weekly
from benchmarks.streams import flights
from benchmarks.value import METRICS, Floats, Job, gain_in_words, resampled
from perennial.evaluation.resampling import spread

#: Lengths of the window, in days. The last is that of the example.
LENGTHS = (90, 180, 365)
#: 1 April to 30 June.
WEEKS = 13


def run(days: int) -> tuple[dict[str, Floats], list[int]]:
    """By metric, 1 + 1000 values over all weeks; and how many days each week's version learned from."""
    job = Job("flights", days, 1)
    stream = replace(flights().learning_from(days, 2013 + job.seed), weeks=WEEKS)
    world = World(stream)
    course = replay(world, weekly)
    first = stream.rows.column(world.spec.event_time)[0].as_py()
    learned = [version.interval for version in course.served]
    days_there = [(interval.end - max(interval.start, first)) // timedelta(days=1) for interval in learned]
    return resampled(world, course.served, job), days_there


def difference(ours: Floats, theirs: Floats, sign: int) -> list[float]:
    """How much better ours is, with its interval of 95 %."""
    gains = sign * (ours - theirs)
    bounds = spread(gains[1:], 7 * WEEKS, 0.95)
    assert bounds is not None
    return [round(float(number), 5) for number in (gains[0], bounds.low, bounds.high)]


def main() -> None:
    started = time.monotonic()
    found = {days: run(days) for days in LENGTHS}
    example = found[LENGTHS[-1]][0]
    lines = []
    for days, (values, learned) in found.items():
        reached = {metric: round(float(values[metric][0]), 5) for metric in METRICS}
        over = {metric: difference(example[metric], values[metric], sign) for metric, sign in METRICS.items()}
        lines.append({"window_days": days, **reached, "days_learned_from": learned, "example_over": over})
        print(
            f"{days} days: {', '.join(f'{metric} {value:.4f}' for metric, value in reached.items())}; learned from "
            f"{learned[0]} to {learned[-1]} days; {LENGTHS[-1]} days over it: "
            f"{'; '.join(f'{metric} {gain_in_words(gain)}' for metric, gain in over.items())}"
        )
    keep("windows", {"weeks": WEEKS, "lines": lines, "seconds": round(time.monotonic() - started, 1)})


if __name__ == "__main__":
    main()
