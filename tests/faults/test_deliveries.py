"""The same facts are published as the same state, in whatever way they are delivered.

A shop has orders, and learns later what they brought; some of this is corrected. :func:`state` reads what is published as of a
moment. A delivery decides in which order the days are ingested, which of them twice, and which files come late. None of it may
show in the state.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from perennial.core.errors import SourceError
from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.features.labels import read_labels
from perennial.features.publish import ensure_features
from perennial.ledger.coverage import uncovered
from perennial.spec.folder import read_model
from perennial.stages.ingest import ingest
from perennial.stages.run import StageRun
from tests.unit import synthetic

DAY = timedelta(days=1)
DAYS = 4
#: A Friday; the clocks of New York go forward on the Sunday.
FIRST = datetime(2024, 3, 8, tzinfo=UTC)
ALL = Interval(FIRST, FIRST + DAYS * DAY)

MODEL = """
name: shop
owner: shop
description: What does an order bring?
task: regression
sources:
  orders: {files: "orders/%Y-%m-%d.csv"}
  outcomes: {files: "outcomes/%Y-%m-%d.csv"}
tables:
  orders:
    source: orders
    key: [id]
    event_time: placed
    known: placed
    columns:
      id: {type: string}
      placed: {type: timestamp}
      region: {type: string}
      amount: {type: float}
      channel: {type: string, nullable: true}
    checks: {rows: {min: 0}}
  outcomes:
    source: outcomes
    key: [id]
    event_time: settled
    known: settled
    columns:
      id: {type: string}
      settled: {type: timestamp}
      region: {type: string}
      paid: {type: float}
    checks: {rows: {min: 0}}
entity: {table: orders, as_of: placed}
features: {numeric: [amount, last_paid, earlier], categorical: [region, channel], lookback: 2d}
label: {table: outcomes, sql: paid, delay: 1d}
candidates: {mean: {estimator: prior, baseline: true}, linear: {estimator: linear_regression}}
"""
#: What the last outcome of the region was, and how many orders of the region the day before had, as known at the order.
FEATURES = """
WITH paid AS (
  SELECT e.id, o.paid AS last_paid
  FROM entities e ASOF JOIN outcomes o ON e.region = o.region AND e.as_of >= o._known_at
  WHERE o._known_at > e.as_of - INTERVAL 1 DAY
), earlier AS (
  SELECT e.id, count(*) AS earlier
  FROM entities e JOIN orders o ON e.region = o.region AND o._known_at < e.as_of AND o._known_at > e.as_of - INTERVAL 1 DAY
  GROUP BY ALL
)
SELECT id, amount, last_paid, coalesce(earlier, 0) AS earlier, region, channel
FROM entities LEFT JOIN paid USING (id) LEFT JOIN earlier USING (id)
"""


# --- the facts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """An order of the shop, which is known as soon as it is placed."""

    id: str
    placed: datetime
    region: str
    amount: float
    channel: str | None


@dataclass(frozen=True)
class Outcome:
    """What an order brought. A second one of an order corrects the first."""

    id: str
    settled: datetime
    region: str
    paid: float


def _orders() -> list[Order]:
    """Six orders a day. The first ones and the last ones lie close to midnight, in whatever zone the days are."""
    hours = (0.1, 4.5, 5.2, 12, 18.75, 23.9)
    return [
        Order(
            f"{day}-{n}", FIRST + day * DAY + hour * timedelta(hours=1), ("north", "south")[n % 2], 10.0 + day + n,
            ("web", "shop")[n % 2] if day >= 2 else None,
        )
        for day in range(DAYS)
        for n, hour in enumerate(hours)
    ]  # fmt: skip


def _outcomes(orders: Sequence[Order]) -> list[Outcome]:
    """The outcome of each order, between minutes and a day and a half after it; and a correction of each third one."""
    found = []
    for n, order in enumerate(orders):
        settled = order.placed + timedelta(minutes=3 + n % 4 * 700)
        found.append(Outcome(order.id, settled, order.region, order.amount + n))
        if n % 3 == 0:
            again = settled + timedelta(minutes=1441 + n % 2 * 120)
            found.append(Outcome(order.id, again, order.region, order.amount - n))
    return [outcome for outcome in found if outcome.settled < ALL.end]


ORDERS = _orders()
OUTCOMES = _outcomes(ORDERS)


# --- deliveries --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delivery:
    """How the facts are delivered.

    Attributes:
        runs: the first and the last day of each run of ingest, in order, as numbers.
        missing: days whose files do not come before all runs have been tried. They are ingested afterwards, each alone.
        unfinished: days of whose files only the first rows are there until all runs were tried, and that are ingested again.
    """

    runs: tuple[tuple[int, int], ...]
    missing: frozenset[int] = frozenset()
    unfinished: frozenset[int] = frozenset()


PLAIN = Delivery(tuple((day, day) for day in range(DAYS)))


@st.composite
def deliveries(draw: st.DrawFn) -> Delivery:
    parts = [(day, day) for day in range(DAYS)]
    again = draw(st.lists(st.sampled_from(parts), max_size=1))
    some = st.sets(st.integers(0, DAYS - 1), max_size=1)
    return Delivery(
        tuple(draw(st.permutations([*parts, *again]))),
        frozenset(draw(some)),
        frozenset(draw(some)),
    )


def deliver(delivery: Delivery, deployment: Deployment) -> None:
    """Ingest the facts."""
    data = deployment.settings.data
    write(data, set(range(DAYS)) - delivery.missing, shortened=delivery.unfinished)
    for n, (first, last) in enumerate(delivery.runs):
        with suppress(SourceError):
            publish(deployment, days(first, last), f"run-{n}")
    later = sorted(delivery.missing | delivery.unfinished)
    write(data, later)
    for day in later:
        publish(deployment, days(day, day), f"later-{day}")
    for gap in uncovered(ALL, deployment.ledger.publications("shop", "tables")):  # what ran with a day that was missing
        publish(deployment, gap, f"again-{gap.key}")


def write(data: Path, days: Iterable[int], *, shortened: Iterable[int] = ()) -> None:
    for day in days:
        within = Interval.day(FIRST + day * DAY)
        cut = 2 if day in shortened else None
        orders = [fact for fact in ORDERS if within.start <= fact.placed < within.end][:cut]
        outcomes = [fact for fact in OUTCOMES if within.start <= fact.settled < within.end][:cut]
        _write(data / "orders" / f"{within.key}.csv", orders, ["id", "placed", "region", "amount", *["channel"] * (day >= 2)])
        _write(data / "outcomes" / f"{within.key}.csv", outcomes, ["id", "settled", "region", "paid"])


def _write(path: Path, facts: Iterable[Order | Outcome], columns: Sequence[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [",".join(_text(getattr(fact, name)) for name in columns) for fact in facts]
    path.write_text("\n".join([",".join(columns), *lines]) + "\n")


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def days(first: int, last: int) -> Interval:
    """From the first moment of a day to the last moment of another, by their numbers."""
    return Interval(FIRST + first * DAY, FIRST + (last + 1) * DAY)


def publish(deployment: Deployment, interval: Interval, run_id: str) -> None:
    run = StageRun(deployment.model("shop"), deployment, run_id, run_id)
    ingest(run, interval, connect=no_database)


def no_database(name: str) -> NoReturn:
    raise AssertionError(f"nothing is in a database, so {name} is not asked for")


# --- what is published -------------------------------------------------------------------------------------------------

Rows = list[dict[str, Any]]


def state(deployment: Deployment, moments: Sequence[datetime]) -> dict[str, Rows]:
    """What is published, as of each moment: rows of tables, features of entities, labels.

    Features are brought up to date first, as every training does.
    """
    folder, lake, ledger = deployment.model("shop"), deployment.lake, deployment.ledger
    ensure_features(folder, lake, ALL, run_id="reader")
    tables, features = ledger.published("shop", "tables"), ledger.published("shop", "features")
    assert tables is not None
    assert features is not None
    made = lake.scan("shop", "features", features.snapshots["features"], interval=ALL, event_time="placed").read_all()
    found: dict[str, Rows] = {}
    for moment in moments:
        for name, table in folder.spec.tables.items():
            rows = lake.scan(
                "shop", name, tables.snapshots[name], columns=[*table.columns, "_known_at"],
                interval=ALL, event_time=table.event_time, known_by=moment,
            ).read_all()  # fmt: skip
            found[f"{name} as of {moment}"] = _in_order(rows.to_pylist())
        found[f"features as of {moment}"] = _in_order(row for row in made.to_pylist() if row["as_of"] <= moment)
        labels = read_labels(folder, lake, tables.snapshots, ALL, as_of=moment)
        found[f"labels as of {moment}"] = _in_order(labels.to_pylist())
    return found


def _in_order(rows: Iterable[dict[str, Any]]) -> Rows:
    return sorted(rows, key=lambda row: [str(value) for value in row.values()])


MOMENTS = [FIRST + 1.3 * DAY, FIRST + 3 * DAY, ALL.end]


def published_by(delivery: Delivery) -> dict[str, Rows]:
    """The state after a delivery into a deployment of its own."""
    place = Path(tempfile.mkdtemp(prefix="perennial-shop-"))
    try:
        folder = place / "models" / "shop"
        folder.mkdir(parents=True)
        (folder / "model.yaml").write_text(MODEL)
        (folder / "features.sql").write_text(FEATURES)
        assert read_model(folder).spec.name == "shop"
        deployment = Deployment(synthetic.deployment(place))
        deliver(delivery, deployment)
        return state(deployment, MOMENTS)
    finally:
        shutil.rmtree(place)


@lru_cache(maxsize=1)
def published_plainly() -> dict[str, Rows]:
    return published_by(PLAIN)


def test_a_plain_delivery_publishes_the_facts() -> None:
    found = published_plainly()
    for moment in MOMENTS:
        assert [row["id"] for row in found[f"orders as of {moment}"]] == sorted(
            order.id for order in ORDERS if order.placed <= moment
        )
        known = [outcome for outcome in OUTCOMES if outcome.settled <= moment]
        assert sorted((row["id"], row["paid"]) for row in found[f"outcomes as of {moment}"]) == sorted(
            (outcome.id, outcome.paid) for outcome in known
        )
        newest = {outcome.id: outcome.paid for outcome in sorted(known, key=lambda outcome: outcome.settled)}
        assert {row["id"]: row["label"] for row in found[f"labels as of {moment}"]} == newest
        assert [row["id"] for row in found[f"features as of {moment}"]] == sorted(
            order.id for order in ORDERS if order.placed <= moment
        )


@pytest.mark.slow
@settings(max_examples=4, derandomize=True, suppress_health_check=list(HealthCheck))
@given(delivery=deliveries())
@example(delivery=Delivery(tuple((day, day) for day in reversed(range(DAYS)))))
@example(delivery=Delivery(((0, 0), (1, 1), (2, 2), (3, 3), (0, 0)), missing=frozenset({1}), unfinished=frozenset({3})))
def test_the_same_facts_are_published_alike_however_they_are_delivered(delivery: Delivery) -> None:
    found, plain = published_by(delivery), published_plainly()
    for what, rows in plain.items():
        assert found[what] == rows, what
