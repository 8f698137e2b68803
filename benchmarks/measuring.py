"""How a claim is measured: each piece in a process of its own, one after the other. Medians and their ratio are kept.

A piece is a function of a benchmark that prepares and returns what is to be timed::

    def ours(state: str) -> Callable[[], Any]:
        parts = Deployment(...)          # not timed
        return lambda: score(parts)      # timed; what it returns must be JSON

    taken = apart(ours, state="...", repeat=3)

Each repetition has a process of its own, in which all that a worker of Perennial has imported before it forks is imported
before the clock starts, for both sides alike.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from perennial.core.settings import PROJECT

RESULTS = PROJECT / "benchmarks" / "results"
#: A thread of OpenMP for each core, for both sides: what is measured has the machine to itself. A worker of the embedded stack
#: gets fewer, one on two cores, since others work beside it. The rest is as there: threads sleep while they wait.
THREADS = {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
_PACKAGES = (
    "apache-airflow", "duckdb", "evidently", "great-expectations", "mlflow", "numpy", "pandas", "pyarrow", "pyiceberg",
    "scikit-learn", "sqlalchemy",
)  # fmt: skip


@dataclass(frozen=True)
class Taken:
    """What one run of a piece took.

    Attributes:
        seconds: by the wall's clock.
        processor_seconds: of the process and its children, all threads.
        peak_mb: most memory of the process while it ran, its libraries included.
        libraries_mb: memory when it began.
        result: what it returned.
    """

    seconds: float
    processor_seconds: float
    peak_mb: float
    libraries_mb: float
    result: Any

    @property
    def own_mb(self) -> float:
        """Most memory above the libraries."""
        return round(self.peak_mb - self.libraries_mb, 1)


def seconds(taken: Iterable[Taken]) -> list[float]:
    return [one.seconds for one in taken]


def processor_seconds(taken: Iterable[Taken]) -> list[float]:
    return [one.processor_seconds for one in taken]


def apart(piece: Callable[..., Callable[[], Any]], *, repeat: int = 1, **arguments: Any) -> list[Taken]:
    """Run a piece in processes of its own, one after the other.

    Args:
        piece: a function at the top of a module, see the module's docstring.
        repeat: how often.
        arguments: of ``piece``; must be JSON.
    """
    target = f"{_module(piece)}:{piece.__name__}"
    program = [sys.executable, "-m", "benchmarks.measuring", target, json.dumps(arguments)]
    found = []
    for _ in range(repeat):
        done = subprocess.run(program, env={**os.environ, **THREADS}, cwd=PROJECT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{target} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
        found.append(Taken(**json.loads(done.stdout.splitlines()[-1])))
    return found


def _module(piece: Callable[..., Any]) -> str:
    if piece.__module__ != "__main__":
        return piece.__module__
    # Set by `python -m`, by which the scripts here are started.
    spec = importlib.import_module("__main__").__spec__
    assert spec is not None
    return spec.name


def _run(target: str, arguments: Mapping[str, Any]) -> None:
    import_as_workers()
    module, _, name = target.partition(":")
    piece = getattr(importlib.import_module(module), name)(**arguments)
    libraries = _memory("VmRSS")
    # Linux forgets the highest mark so far.
    Path("/proc/self/clear_refs").write_text("5")
    began, spent = time.perf_counter(), processor_time()
    result = piece()
    took, spent = time.perf_counter() - began, processor_time() - spent
    taken = Taken(round(took, 4), round(spent, 3), round(_memory("VmHWM"), 1), round(libraries, 1), result)
    sys.stdout.write("\n" + json.dumps(asdict(taken)) + "\n")


def _memory(line: str) -> float:
    """MB that the process has, or had at most."""
    status = Path("/proc/self/status").read_text()
    [found] = [text for text in status.splitlines() if text.startswith(f"{line}:")]
    return int(found.split()[1]) / 1024


def import_as_workers() -> None:
    """Import what a worker has imported before it forks, and let no collection of garbage look through it again, as there."""
    importlib.import_module("perennial.orchestration.warm")
    gc.collect()
    gc.freeze()


def processor_time() -> float:
    """Seconds of this process and of its children that have ended, all threads."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


# --- what is told ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A claim and what came out.

    Attributes:
        claim: what is measured, in a few words.
        beside: the peer, or the limit.
        ours, peer: a number for each repetition.
        unit: of these numbers, ``s`` or ``MB``.
        goal: what the ratio is to keep; None for a line that is shown beside, and claims nothing.
        faster: whether the ratio says how many times faster ours is, which is to be at least ``goal``. Otherwise it says how
            many times more it takes, which is to be at most ``goal``.
        note: what a reader should know with it.
    """

    claim: str
    beside: str
    ours: Sequence[float]
    peer: Sequence[float]
    unit: str = "s"
    goal: float | None = None
    faster: bool = False
    note: str = ""

    @property
    def ratio(self) -> float:
        ours, peer = statistics.median(self.ours), statistics.median(self.peer)
        return peer / ours if self.faster else ours / peer

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.faster else self.ratio <= self.goal

    def text(self) -> str:
        told = f"{self.claim}: {self.amount(self.ours)}; {self.beside}: {self.amount(self.peer)}; ratio={self.ratio:.2f}"
        if self.goal is None:
            return told
        return f"{told} goal{'>=' if self.faster else '<='}{self.goal:.2f} {'ok' if self.met else 'MISSED'}"

    def amount(self, values: Sequence[float]) -> str:
        middle = statistics.median(values)
        return f"{middle:,.0f} {self.unit}" if middle >= 100 else f"{middle:.3g} {self.unit}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": round(self.ratio, 3), "met": self.met}


@dataclass
class Told:
    """What a benchmark has to say; written as ``results/<name>.json``.

    Attributes:
        name: the script's.
        details: whatever else explains the lines; must be JSON.
    """

    name: str
    lines: list[Line] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)
    _busy: float = field(default_factory=lambda: os.getloadavg()[0])

    def add(self, line: Line) -> None:
        self.lines.append(line)
        print(line.text(), flush=True)

    def write(self) -> None:
        report = {
            "day": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": versions(),
            # More than a little means that something else was running.
            "load_before": round(self._busy, 2),
            "lines": [line.to_json() for line in self.lines],
            "details": self.details,
            "seconds": round(time.monotonic() - self._began, 1),
        }
        keep(self.name, report)


def keep(name: str, report: Mapping[str, Any]) -> None:
    """Write what a benchmark has to say, its ``seconds`` included, as ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{report['seconds']:.0f} s; written to {file.relative_to(PROJECT)}", flush=True)


def machine() -> str:
    """Cores, their kind, memory."""
    kinds = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({kinds[0] if kinds else platform.machine()}), {memory:.0f} GiB, {platform.system()}"


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


if __name__ == "__main__":
    _run(sys.argv[1], json.loads(sys.argv[2]))
