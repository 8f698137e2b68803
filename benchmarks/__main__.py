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
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, Line
from benchmarks.prepared import KEPT
from perennial.settings import PROJECT

README = PROJECT / "benchmarks" / "README.md"
#: What the table claims, in its order; each is a module beside this one.
CLAIMS = (
    "score", "ingest", "features", "drift_report", "train", "task_overhead", "weekly_cycle", "many_models", "history",
    "workers", "peers",
)  # fmt: skip
#: What is told elsewhere: how good decisions are, and what a million rows cost.
STUDIES = ("flight_delay", "gates", "drift", "value", "cost_per_million")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


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


def table(results: Path) -> str:
    """The claims that results hold, as Markdown."""
    told = {}
    for name in CLAIMS:
        if (file := results / f"{name}.json").exists():
            told[name] = json.loads(file.read_text())
    rows = [
        "| Claim | Ours | Beside | Theirs | Ratio | Goal | |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for name, report in told.items():
        rows += [_row(name, line) for line in report["lines"]]
    rows += ["", *_made_with(told)]
    return "\n".join(rows)


def _row(name: str, found: dict[str, Any]) -> str:
    line = Line(**{field: found[field] for field in Line.__dataclass_fields__})
    sign = "≥" if line.faster else "≤"
    goal = "" if line.goal is None else f"{sign} {line.goal:g} x"
    verdict = {True: "ok", False: "**missed**", None: ""}[line.met]
    claim = f"[{line.claim}]({name}.py)" + (f"; {line.note}" if line.note else "")
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
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{table(RESULTS)}\n{END}{after}", encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
