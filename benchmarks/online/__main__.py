"""The online scorer: how fast it answers, how much, and what it does when it is asked for more than it can.

Everything runs on the same cores: the scorer (``perennial serve``, one process), the client, and the peer when it is measured.
The client asks one row a request, each time another flight of December, over connections that stay open. Peers are set up as
their documentation recommends, with a worker process for each core:

- ``mlflow models serve`` with the champion's stored model.
- A bare FastAPI around the champion's estimator (``bare.py``).
- Feast's SDK, for the look-up of the same features by the same key (``feast/``). Its server asks the same of it.

    python -m benchmarks.online                   # all of it
    python -m benchmarks.online --only swap       # some, told and not kept
    python -m benchmarks.online --seconds 2       # shorter, told and not kept
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import prepared
from benchmarks.measuring import Line, Told, apart
from benchmarks.online.load import Answers, Ask, closed_loop, open_loop
from benchmarks.prepared import KEPT, MODEL
from benchmarks.stacks import HOST, environment, free_ports, inherited
from perennial.cli import by_hand
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT, read_settings
from perennial.deployment import Deployment
from tests.conftest import postgres_server

HERE = PROJECT / "benchmarks" / "online"
PARTS = ("key", "features", "lookup", "demand", "swap", "overload", "soak")
#: What is published, and when the two versions that are swapped were trained.
PUBLISHED = Interval(datetime(2013, 8, 1, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC))
TRAINED = (datetime(2013, 12, 18, tzinfo=UTC), datetime(2013, 12, 25, tzinfo=UTC))
#: The goals of the product, in seconds.
KEY_P50, KEY_P99, DEMAND_P99, REFUSED = 0.005, 0.020, 0.250, 0.050
#: Requests a second that a web shop of some size sends.
RATE = 200.0
#: Single look-ups in a process, and those before that are not counted.
LOOK_UPS, WARM = 2_000, 200


# --- what is asked ---------------------------------------------------------------------------------------------------


def state() -> Path:
    """State of a deployment with two versions, the first of them champion, and rows that can be asked by key."""

    def make(folder: Path) -> None:
        parts = prepared.new_deployment(folder, prepared.landing_zone(1))
        by_hand.ingest(parts.settings, MODEL, PUBLISHED)
        for as_of in TRAINED:
            by_hand.train(parts.settings, MODEL, as_of)
        by_hand.promote(parts.settings, MODEL, 1, "measured")
        by_hand.materialize(parts.settings, MODEL)

    return prepared.made("online", make)


def rows_of(parts: Deployment, interval: Interval) -> pa.Table:
    """Published features of an interval."""
    return prepared.read(parts, "features", interval=interval)


def newest_day(parts: Deployment) -> pa.Table:
    return rows_of(parts, Interval(PUBLISHED.end - timedelta(days=1), PUBLISHED.end))


def feature_names(parts: Deployment) -> tuple[list[str], list[str]]:
    """Numbers, and categories."""
    features = parts.model(MODEL).spec.features
    return list(features.numeric), list(features.categorical)


def keys(parts: Deployment) -> list[dict[str, Any]]:
    """The entities of the newest day."""
    found: list[dict[str, Any]] = newest_day(parts).select(["flight_id"]).to_pylist()
    return found


def by_key(port: int, parts: Deployment) -> Ask:
    return Ask(port, f"/models/{MODEL}/predict", [_json({"keys": [key]}) for key in keys(parts)])


def features_in_turn(parts: Deployment) -> list[dict[str, Any]]:
    """2,000 rows of features of December."""
    numbers, categories = feature_names(parts)
    december = Interval(datetime(2013, 12, 1, tzinfo=UTC), datetime(2013, 12, 8, tzinfo=UTC))
    found: list[dict[str, Any]] = rows_of(parts, december).select([*numbers, *categories]).slice(0, 2_000).to_pylist()
    return found


def entities(parts: Deployment, count: int) -> list[dict[str, Any]]:
    """Flights of the newest day, as a client that knows their schedule describes them."""
    spec = parts.model(MODEL).spec
    day = Interval(PUBLISHED.end - timedelta(days=1), PUBLISHED.end)
    rows = prepared.read(parts, "tables", spec.entity.table, columns=list(spec.entity_table.columns), interval=day)
    found = rows.slice(0, count).to_pylist()
    return [{name: _plain(value) for name, value in row.items()} for row in found]


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


# --- who is asked ----------------------------------------------------------------------------------------------------


@contextmanager
def server(program: Sequence[str], variables: Mapping[str, str], url: str, folder: Path | None = None) -> Iterator[int]:
    """The id of a server's process, once it answers; it is ended with what it has started."""
    KEPT.mkdir(exist_ok=True)
    log = KEPT / f"online-{Path(program[0]).name}.log"
    with log.open("w") as told:
        process = subprocess.Popen(
            program, env=dict(variables), cwd=folder, stdin=subprocess.DEVNULL, stdout=told, stderr=told, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 180
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(program)} does not answer:\n{log.read_text()[-3000:]}")
            try:
                if httpx.get(url, trust_env=False, timeout=5).status_code < 500:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def scorer(**more: str) -> Iterator[tuple[int, int]]:
    """Port and process of a scorer that serves version 1."""
    port = free_ports(["scorer"])["scorer"]
    variables = {**inherited(), **prepared.environment(state()), "PERENNIAL_SERVE_PORT": port, **more}
    program = [str(Path(sys.executable).with_name("perennial")), "serve"]
    with server(program, variables, f"http://{HOST}:{port}/v2/models/{MODEL}/ready") as process:
        yield int(port), process


@contextmanager
def mlflow_serves() -> Iterator[int]:
    """Port of MLflow's own server with the champion's model."""
    import mlflow

    parts = prepared.deployment(state())
    source = mlflow.MlflowClient(parts.settings.mlflow_url).get_model_version(MODEL, "1").source
    stored = KEPT / "online-model"
    shutil.rmtree(stored, ignore_errors=True)
    mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(stored), tracking_uri=parts.settings.mlflow_url)
    model, port = next(stored.rglob("MLmodel")).parent, free_ports(["mlflow"])["mlflow"]
    program = [
        str(Path(sys.executable).with_name("mlflow")), "models", "serve", "--model-uri", str(model), "--env-manager", "local",
        "--host", HOST, "--port", port, "--workers", str(os.cpu_count()),
    ]  # fmt: skip
    with server(program, inherited(), f"http://{HOST}:{port}/health"):
        yield int(port)


@contextmanager
def fastapi_serves() -> Iterator[int]:
    """Port of the bare FastAPI."""
    port = free_ports(["bare"])["bare"]
    program = [
        str(Path(sys.executable).with_name("uvicorn")), "benchmarks.online.bare:app", "--host", HOST, "--port", port,
        "--workers", str(os.cpu_count()), "--no-access-log",
    ]  # fmt: skip
    variables = {**inherited(), "BENCH_STATE": str(state()), "BENCH_VERSION": "1"}
    with server(program, variables, f"http://{HOST}:{port}/docs", PROJECT):
        yield int(port)


class Feast:
    """A repository of Feast with the features of the newest day in its online store.

    Args:
        store: its online store, as in ``feature_store.yaml``.
    """

    def __init__(self, store: Mapping[str, Any]) -> None:
        parts = prepared.deployment(state())
        numbers, categories = feature_names(parts)
        self.bin = environment("feast", HERE / "feast" / "requirements.txt") / "bin"
        self.folder = KEPT / "online-feast"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        rows = newest_day(parts)
        for name in numbers:
            rows = rows.set_column(rows.schema.get_field_index(name), name, pc.cast(rows[name], pa.float64()))
        pq.write_table(rows, self.folder / "features.parquet")
        shutil.copy(HERE / "feast" / "definitions.py", self.folder)
        config = {"project": "flights", "registry": "registry.db", "provider": "local", "online_store": dict(store)}
        (self.folder / "feature_store.yaml").write_text(json.dumps({**config, "entity_key_serialization_version": 3}))
        self.variables = {
            **inherited(self.bin),
            "FEAST_USAGE": "False",
            "BENCH_NUMERIC": ",".join(numbers),
            "BENCH_CATEGORICAL": ",".join(categories),
            "BENCH_FEATURES": str(self.folder / "features.parquet"),
        }
        self._run("feast", "apply")
        self._run("feast", "materialize", "2013-12-01T00:00:00", "2014-01-02T00:00:00")

    def look_ups(self, wanted: Sequence[dict[str, Any]]) -> list[float]:
        """Seconds of single look-ups by its SDK."""
        told = self._run("python", str(HERE / "feast" / "look_up.py"), str(WARM), given=json.dumps(wanted))
        found: list[float] = json.loads(told.splitlines()[-1])
        return found

    def _run(self, program: str, *arguments: str, given: str | None = None) -> str:
        done = subprocess.run(
            [str(self.bin / program), *arguments], cwd=self.folder, env=self.variables, input=given, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{program} {' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done.stdout


# --- what is measured ------------------------------------------------------------------------------------------------


class Online:
    """The claims.

    Args:
        told: takes them.
        seconds: of each measurement.
    """

    def __init__(self, told: Told, seconds: float) -> None:
        self.told, self.seconds = told, seconds
        self.parts = prepared.deployment(state())

    def keep(self, name: str, found: Answers) -> Answers:
        """For the details."""
        told = {"answered": len(found.seconds), "a_second": round(found.rate, 1), "statuses": dict(found.statuses)}
        if found.seconds:
            told |= {f"p{share}_ms": round(1_000 * found.quantile(share / 100), 2) for share in (50, 95, 99)}
        self.told.details[name] = told
        print(f"  {name}: {told}", flush=True)
        return found

    def key(self) -> None:
        with scorer() as (port, _):
            ask = by_key(port, self.parts)
            closed_loop(ask, connections=4, seconds=2)
            found = self.keep("by key, 200 requests/s", open_loop(ask, rate=RATE, seconds=self.seconds))
        _whole(found)
        for share, goal in ((0.5, KEY_P50), (0.99, KEY_P99)):
            claim = f"by key, {RATE:.0f} requests/s, open loop: p{share * 100:.0f}"
            self.told.add(Line(claim, "the goal", [found.quantile(share)], [goal], goal=1.0))

    def features(self) -> None:
        rows = features_in_turn(self.parts)
        with scorer() as (port, _):
            ask = Ask(port, f"/models/{MODEL}/predict", [_json({"features": [row]}) for row in rows])
            ours = self.saturated("by features", ask)
        with mlflow_serves() as port:
            theirs = self.saturated(
                "mlflow models serve", Ask(port, "/invocations", [_json({"dataframe_records": [row]}) for row in rows])
            )
        with fastapi_serves() as port:
            bare = self.saturated("bare FastAPI", Ask(port, "/predict", [_json(row) for row in rows]))
        for name, peer, goal in (("mlflow models serve", theirs, 10.0), ("a bare FastAPI", bare, 3.0)):
            claim = "by features, saturated, one row a request: 1,000 answers"
            self.told.add(Line(claim, name, [1_000 / ours], [1_000 / peer], goal=goal, faster=True))

    def saturated(self, name: str, ask: Ask) -> float:
        """Answers a second with as many connections as give the most."""
        closed_loop(ask, connections=8, seconds=2)
        best = 0.0
        for connections in (8, 32):
            found = self.keep(
                f"{name}, {connections} connections", closed_loop(ask, connections=connections, seconds=self.seconds)
            )
            _whole(found)
            best = max(best, found.rate)
        return best

    def lookup(self, postgres: Any) -> None:
        wanted = (keys(self.parts) * (LOOK_UPS // 100))[: LOOK_UPS + WARM]
        address = postgres.render_as_string(hide_password=False)
        stores: dict[str, tuple[str, Mapping[str, Any]]] = {
            "SQLite": ("", {"type": "sqlite", "path": "online.db"}),
            "PostgreSQL": (
                address,
                {
                    "type": "postgres", "host": postgres.host, "port": postgres.port, "database": postgres.database,
                    "db_schema": "feast", "user": postgres.username, "password": postgres.password, "sslmode": "disable",
                },
            ),
        }  # fmt: skip
        for name, (url, store) in stores.items():
            [ours] = apart(look_ups, url=url, wanted=wanted)
            theirs = Feast(store).look_ups(wanted)
            claim = f"look-up of one row of features, {name}: median"
            self.told.add(Line(claim, "Feast's SDK", [statistics.median(ours.result)], [statistics.median(theirs)], goal=0.5))

    def demand(self) -> None:
        flights = entities(self.parts, 64)
        with scorer() as (port, _):
            one = Ask(port, f"/models/{MODEL}/predict", [_json({"entities": [flight]}) for flight in flights])
            many = Ask(port, one.path, [_json({"entities": flights})])
            closed_loop(one, connections=1, seconds=4)
            alone = self.keep("on demand, one row", closed_loop(one, connections=1, seconds=2 * self.seconds))
            together = self.keep("on demand, 64 rows", closed_loop(many, connections=1, seconds=self.seconds))
            at_once = self.keep("on demand, 16 connections", closed_loop(one, connections=16, seconds=self.seconds))
        for found in (alone, together, at_once):
            _whole(found)
        self.told.add(Line("on demand, one row at a time: p99", "the goal", [alone.quantile(0.99)], [DEMAND_P99], goal=1.0))
        self.told.add(
            Line("on demand, 64 rows at once: median", "one row", [together.quantile(0.5)], [alone.quantile(0.5)], goal=1.5)
        )

    def swap(self) -> None:
        with scorer() as (port, _), promoting() as promote:
            ask = by_key(port, self.parts)
            closed_loop(ask, connections=4, seconds=2)
            # The first swap loads version 2; the way back, and the way there once more, need no loading.
            lasts, swapped = 40.0, list[float]()

            def change() -> None:
                began = time.perf_counter()
                for step, version in zip((8, 18, 28), (2, 1, 2), strict=True):
                    time.sleep(max(0.0, began + step - time.perf_counter()))
                    promote(version)
                    swapped.append(time.perf_counter() - began)

            with beside(change):
                found = self.keep(f"swaps under {RATE:.0f} requests/s", open_loop(ask, rate=RATE, seconds=lasts))
            promote(1)
        _whole(found)
        during = [took for when in swapped for took in found.between(when, when + 4)]
        calm = [took for start in (1, 15, 25, 35) for took in found.between(start, start + 3)]
        ours, else_ = (statistics.quantiles(part, n=100)[98] for part in (during, calm))
        claim = f"3 swaps of the champion under {RATE:.0f} requests/s: p99 in the 4 s after each"
        note = f"{found.failed} of {found.statuses.total():,} requests failed"
        self.told.add(Line(claim, "p99 without a swap", [ours], [else_], goal=3.0, note=note))

    def overload(self) -> None:
        rows = features_in_turn(self.parts)
        with scorer() as (port, process):
            ask = Ask(port, f"/models/{MODEL}/predict", [_json({"features": [row]}) for row in rows])
            most = self.saturated("before the overload", ask)
            full = self.keep("as many at once as are taken", closed_loop(ask, connections=128, seconds=self.seconds))
            before = psutil.Process(process).memory_info().rss
            found = self.keep("overload", open_loop(ask, rate=3 * most, seconds=6 * self.seconds, connections=1_024))
            grown = psutil.Process(process).memory_info().rss / before
        # Nothing breaks, and each refusal says when to come back.
        if set(found.statuses) - {200, 429, 503} or not found.polite == len(found.refused) > 0:
            raise SystemExit(f"overload was not refused as it should: {dict(found.statuses)}, {found.polite} said when")
        refused = statistics.quantiles(found.refused, n=100)
        told = {"refused": len(found.refused), "p50_ms": 1_000 * refused[49], "p99_ms": 1_000 * refused[98]}
        self.told.details["overload, refused"] = told
        print(f"  refused: {told}", flush=True)
        claim = f"three times saturation, {3 * most:,.0f} requests/s, for {6 * self.seconds:.0f} s"
        self.told.add(Line(f"{claim}: p99 of refusals", "the goal", [refused[98]], [REFUSED], goal=1.0))
        peer = "p99 with as many at once as are taken"
        self.told.add(Line(f"{claim}: p99 of answers", peer, [found.quantile(0.99)], [full.quantile(0.99)], goal=1.5))
        self.told.add(Line(f"{claim}: memory after", "memory before", [grown], [1.0], unit="x", goal=1.1))

    def soak(self, minutes: float) -> None:
        with scorer() as (port, process):
            ask = by_key(port, self.parts)
            closed_loop(ask, connections=8, seconds=20)
            held = [psutil.Process(process).memory_info().rss]
            for _ in range(4):
                found = self.keep(f"soak of {minutes:g} minutes, a quarter", open_loop(ask, rate=RATE, seconds=15 * minutes))
                _whole(found)
                held.append(psutil.Process(process).memory_info().rss)
        self.told.add(
            Line(
                f"{minutes:g} minutes of {RATE:.0f} requests/s: memory after",
                "memory before",
                [held[-1] / 2**20],
                [held[0] / 2**20],
                unit="MB",
                goal=1.1,
            )
        )


def look_ups(url: str, wanted: list[dict[str, Any]]) -> Callable[[], list[float]]:
    """Seconds of single look-ups by our own function, in the process; the rows are written to the database first."""
    from perennial.registry.folders import own_folder
    from perennial.serving.champion import prepare
    from perennial.serving.lookup import look_up
    from perennial.serving.online_table import OnlineTable
    from perennial.serving.requests import Keys, from_question

    more = {"PERENNIAL_PREDICTIONS_URL": url} if url else {}
    parts = Deployment(read_settings(prepared.environment(state()) | more))
    if url:
        by_hand.materialize(parts.settings, MODEL)
    folder = parts.model(MODEL)
    served = prepare(MODEL, parts.registry.load(MODEL, 1, spec=folder.spec))
    served = replace(served, folder=own_folder(parts.registry, 1, folder).folder, online=folder.spec.online)
    table = OnlineTable(parts.settings.predictions_url)
    bodies = [_json({"keys": [key]}) for key in wanted]

    def run() -> list[float]:
        took = []
        for body in bodies:
            began = time.perf_counter()
            asked = from_question(body, served.loaded.takes, 1, served.key)
            assert isinstance(asked, Keys)
            look_up(table, served, asked, datetime.now(UTC))
            took.append(time.perf_counter() - began)
        return took[WARM:]

    return run


#: Promotes the versions whose numbers it reads, each when its line comes.
PROMOTE = """
import sys
from benchmarks import prepared
from perennial.cli import by_hand
from perennial.orchestration import warm
settings = prepared.deployment(sys.argv[1]).settings
print("ready", flush=True)
for line in sys.stdin:
    by_hand.promote(settings, prepared.MODEL, int(line), "measured")
    print("done", flush=True)
"""


@contextmanager
def promoting() -> Iterator[Callable[[int], None]]:
    """What promotes a version, in a process of its own that has imported everything before."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROMOTE, str(state())], cwd=PROJECT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    def wait_for(word: str) -> None:
        assert process.stdout is not None
        while (line := process.stdout.readline().strip()) != word:
            if not line and process.poll() is not None:
                raise SystemExit("no version could be promoted")

    def promote(version: int) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{version}\n")
        process.stdin.flush()
        wait_for("done")

    wait_for("ready")
    try:
        yield promote
    finally:
        process.stdin.close()
        process.wait()


def _whole(found: Answers) -> None:
    if found.failed:
        raise SystemExit(f"requests failed: {dict(found.statuses)}")


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Work that goes on beside the block, and has ended after it."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failed:
        raise failed[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (5)")
    parser.add_argument("--minutes", type=float, default=2.0, help="of the soak (2)")
    chosen = parser.parse_args()
    told = Told("online")
    online = Online(told, chosen.seconds)
    for part in chosen.only:
        if part == "lookup":
            with postgres_server("perennial", durable=True) as url:
                online.lookup(url)
        elif part == "soak":
            online.soak(chosen.minutes)
        else:
            getattr(online, part)()
    if chosen.only == PARTS and chosen.seconds >= 5:
        told.write()


if __name__ == "__main__":
    main()
