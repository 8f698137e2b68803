"""Run the benchmarks, or those that are named, and rewrite the table of ``benchmarks/README.md`` from what all have left.

python -m benchmarks              all, from nothing; takes hours
python -m benchmarks score drift  some
python -m benchmarks --table      none, the table alone
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from typing import Any

from benchmarks.measuring import RESULTS, Line
from benchmarks.prepared import KEPT
from perennial.core.settings import PROJECT

README = PROJECT / "benchmarks" / "README.md"
PICTURE = RESULTS / "claims.png"
#: What the table claims, in its order; each is a module beside this one.
CLAIMS = (
    "score", "ingest", "features", "drift_report", "train", "task_overhead", "weekly_cycle", "many_models", "history",
    "workers", "peers", "online",
)  # fmt: skip
#: What is told elsewhere: how good decisions are, and what a million rows cost.
STUDIES = ("flight_delay", "gates", "drift", "value", "windows", "faults", "cost_per_million")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def read_results() -> dict[str, Any]:
    """By claim, in the table's order, what its script has left."""
    there = [name for name in CLAIMS if (RESULTS / f"{name}.json").exists()]
    return {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in there}


def run(names: list[str]) -> list[str]:
    """Run benchmarks one after the other; returns those that failed."""
    failed = []
    for name in names:
        began = time.monotonic()
        print(f"=== {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=PROJECT, check=False)
        print(f"=== {name}: {'FAILED' if done.returncode else 'done'} after {time.monotonic() - began:.0f} s", flush=True)
        if done.returncode:
            failed.append(name)
    return failed


def table(told: dict[str, Any]) -> str:
    """The claims that results hold, as Markdown."""
    rows = [
        "| Claim | Ours | Beside | Theirs | Ratio | Goal | |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- |",
        *(_row(name, _line(found)) for name, report in told.items() for found in report["lines"]),
    ]
    return "\n".join([*rows, "", *_made_with(told)])


def draw(told: dict[str, Any]) -> None:
    """A bar a claim: how much of what its goal allows it needs."""
    from matplotlib.figure import Figure

    bars = []
    for report in told.values():
        for line in map(_line, report["lines"]):
            if line.goal is not None:
                used = line.goal / line.ratio if line.faster else line.ratio / line.goal
                bars.append((f"{line.claim}\nbeside {line.beside}", used, line))
    figure = Figure(figsize=(10, 1 + 0.5 * len(bars)), layout="constrained")
    axes = figure.subplots()
    places = range(len(bars), 0, -1)
    colours = ["#2a7f62" if line.met else "#c1442e" for _, _, line in bars]
    axes.barh(places, [min(used, 2) for _, used, _ in bars], color=colours, height=0.6)
    for place, (_, used, line) in zip(places, bars, strict=True):
        sign = "≥" if line.faster else "≤"
        axes.text(min(used, 2) + 0.02, place, f"{line.ratio:.2f} x ({sign} {line.goal:g})", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(list(places), [title for title, _, _ in bars], fontsize=8)
    axes.set_xlim(0, 2.3)
    axes.set_xlabel("share of what the goal allows; less is better, 1 is the goal")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=110)


def with_table(page: str, told: dict[str, Any]) -> str:
    """The page with its table made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(told)}\n{END}{after}"


def _line(found: dict[str, Any]) -> Line:
    return Line(**{field: found[field] for field in Line.__dataclass_fields__})


def _row(name: str, line: Line) -> str:
    sign = "≥" if line.faster else "≤"
    goal = "" if line.goal is None else f"{sign} {line.goal:g} x"
    verdict = {True: "ok", False: "**missed**", None: ""}[line.met]
    script = f"{name}.py" if (RESULTS.parent / f"{name}.py").exists() else f"{name}/__main__.py"
    claim = f"[{line.claim}]({script})" + (f"; {line.note}" if line.note else "")
    faster = " faster" if line.faster else ""
    ours, theirs, ratio = line.amount(line.ours), line.amount(line.peer), f"{line.ratio:.2f} x{faster}"
    return f"| {claim} | {ours} | {line.beside} | {theirs} | {ratio} | {goal} | {verdict} |"


def _made_with(told: dict[str, Any]) -> list[str]:
    machines = sorted({report["machine"] for report in told.values()})
    days = sorted({report["day"] for report in told.values()})
    each = [report["versions"] for report in told.values()]
    versions = sorted({", ".join(f"{name} {number}" for name, number in one.items()) for one in each})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else "never"
    return [f"Measured {when} on {'; '.join(machines)}, with {'; or '.join(versions)}."]


def main(arguments: list[str]) -> int:
    names = [argument for argument in arguments if argument != "--table"]
    if unknown := [name for name in names if name not in (*CLAIMS, *STUDIES)]:
        print(f"there is no benchmark {', '.join(unknown)}; there are: {', '.join((*CLAIMS, *STUDIES))}")
        return 2
    if not arguments:
        shutil.rmtree(KEPT, ignore_errors=True)
        names = [*CLAIMS, *STUDIES]
    failed = run(names)
    told = read_results()
    README.write_text(with_table(README.read_text(encoding="utf-8"), told), encoding="utf-8")
    draw(told)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
