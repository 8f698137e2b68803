"""The same facts are published as the same state, in whatever way they are delivered.

A shop has orders, and learns later what they brought; some of this is corrected. A :class:`Delivery` says in which order days
are ingested, which of them twice, which files and rows come late, and by which clock files and times are written. :func:`state`
reads what is published as of a moment. None of the delivery may show in it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perennial.core.errors import SourceError
from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.features.labels import read_labels
from perennial.features.publish import ensure_features
from perennial.ledger.coverage import uncovered
from perennial.stages.ingest import ingest
from perennial.stages.run import StageRun
from tests.unit import synthetic

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
DAYS = 4
#: The first of four days. The clocks of New York are set on the third: forward in spring, back in autumn.
SPRING, AUTUMN = datetime(2024, 3, 8, tzinfo=UTC), datetime(2024, 11, 1, tzinfo=UTC)

MODEL = """
name: shop
owner: shop
description: What does an order bring?
task: regression
sources:
  orders: {files: "orders/%Y-%m-%d.csv", time_zone: ZONE}
  outcomes: {files: "outcomes/%Y-%m-%d.csv", time_zone: ZONE}
tables:
  orders:
    source: orders
    key: [id]
    event_time: placed
    known: placed
    late: 1d
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
    event_time: placed
    known: settled
    late: 3d
    columns:
      id: {type: string}
      placed: {type: timestamp}
      settled: {type: timestamp}
      region: {type: string}
      paid: {type: float}
    checks: {rows: {min: 0}}
entity: {table: orders, as_of: placed}
features: {numeric: [amount, last_paid, settled, earlier], categorical: [region, channel], lookback: 2d}
label: {table: outcomes, sql: paid}
candidates: {mean: {estimator: prior, baseline: true}, linear: {estimator: linear_regression}}
"""
#: Of the region, as known at the order: what the last outcome was, how many orders have one, and how many orders came before.
FEATURES = """
WITH paid AS (
  SELECT e.id, arg_max(o.paid, o._known_at) AS last_paid, count(DISTINCT o.id) AS settled
  FROM entities e JOIN outcomes o ON e.region = o.region AND o._known_at <= e.as_of AND o.placed > e.as_of - INTERVAL 36 HOUR
  GROUP BY ALL
), earlier AS (
  SELECT e.id, count(*) AS earlier
  FROM entities e JOIN orders o ON e.region = o.region AND o._known_at < e.as_of AND o.placed > e.as_of - INTERVAL 1 DAY
  GROUP BY ALL
)
SELECT id, amount, last_paid, coalesce(settled, 0) AS settled, coalesce(earlier, 0) AS earlier, region, channel
FROM entities LEFT JOIN paid USING (id) LEFT JOIN earlier USING (id)
"""


# --- the facts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """An order of the shop, which is known as soon as it is placed. The shop asks for its channel from the third day on."""

    id: str
    placed: datetime
    region: str
    amount: float
    channel: str | None


@dataclass(frozen=True)
class Outcome:
    """What an order brought, as it is delivered when it is settled. A second one of an order corrects the first."""

    id: str
    placed: datetime
    settled: datetime
    region: str
    paid: float


@dataclass(frozen=True)
class Facts:
    """What happened on four days."""

    within: Interval
    orders: tuple[Order, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def moments(self) -> list[datetime]:
        """When the state is looked at."""
        return [self.within.start + 32 * HOUR, self.within.start + 3 * DAY, self.within.end]


@lru_cache
def facts_from(first: datetime) -> Facts:
    """Six orders a day, and most of their outcomes.

    Some orders lie close to the midnight of UTC, New York or Kolkata. On the day that the clocks of New York are set back, two
    of them have the same local time. Each third outcome is corrected a day or so later.
    """
    within = Interval(first, first + DAYS * DAY)
    orders = [
        Order(
            f"{day}-{n}", first + day * DAY + hour * HOUR, ("north", "south")[n % 2], 10.0 + day + n,
            ("web", "shop")[n % 2] if day >= 2 else None,
        )
        for day in range(DAYS)
        for n, hour in enumerate((0.1, 5.2, 6.2, 12, 18.75, 23.9))
    ]  # fmt: skip
    outcomes = []
    for n, order in enumerate(orders):
        settled = order.placed + timedelta(minutes=3 + n % 4 * 700)
        outcomes.append(Outcome(order.id, order.placed, settled, order.region, order.amount + n))
        if n % 3 == 0:
            corrected = settled + timedelta(minutes=1501 + n % 2 * 120)
            outcomes.append(Outcome(order.id, order.placed, corrected, order.region, order.amount - n))
    return Facts(within, tuple(orders), tuple(outcome for outcome in outcomes if outcome.settled < within.end))


# --- deliveries ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delivery:
    """How the facts are delivered.

    Attributes:
        runs: the first and the last day (UTC) of each run of ingest, in order, as numbers.
        missing: days whose files do not come before all runs have been tried.
        unfinished: days of whose files only the first rows are there until all runs have been tried.
        late: the position of the orders of a day that come with the next day's; None: all come with their own day's.
        repeated: whether the file of a day also has the last rows of the file before.
        zone: the zone by whose clocks files are cut into days, and times are written.
        offsets: whether times are written with their offset.
        first: the first day.
    """

    runs: tuple[tuple[int, int], ...]
    missing: frozenset[int] = frozenset()
    unfinished: frozenset[int] = frozenset()
    late: int | None = None
    repeated: bool = False
    zone: str = "UTC"
    offsets: bool = True
    first: datetime = SPRING


@st.composite
def deliveries(draw: st.DrawFn) -> Delivery:
    """Deliveries in spring: in autumn, times without an offset may mean two moments."""
    borders = sorted(draw(st.sets(st.integers(1, DAYS - 1), max_size=2)))
    parts = [(start, end - 1) for start, end in zip([0, *borders], [*borders, DAYS], strict=True)]
    again = draw(st.lists(st.sampled_from(parts), max_size=1))
    some = st.frozensets(st.integers(0, DAYS - 1), max_size=1)
    return Delivery(
        runs=tuple(draw(st.permutations([*parts, *again]))),
        missing=draw(some),
        unfinished=draw(some),
        late=draw(st.sampled_from([None, 1, 5])),
        repeated=draw(st.booleans()),
        zone=draw(st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata"])),
        offsets=draw(st.booleans()),
    )


def deliver(delivery: Delivery, deployment: Deployment) -> None:
    """Ingest the facts."""
    files = Files(delivery, deployment.settings.data)
    within = facts_from(delivery.first).within
    today = delivery.first.date()
    missing, unfinished = ({today + day * DAY for day in days} for days in (delivery.missing, delivery.unfinished))
    for day in files.days - missing:
        files.write(day, finished=day not in unfinished)
    for n, (first, last) in enumerate(delivery.runs):
        with suppress(SourceError):
            publish(deployment, Interval(delivery.first + first * DAY, delivery.first + (last + 1) * DAY), f"run-{n}")
    for day in missing | unfinished:
        files.write(day)
    touched = {part for day in unfinished for part in files.period(day).touched_days() if within.contains(part)}
    # A run of several days was refused as a whole if a file of one of them was missing.
    for part in sorted({*touched, *uncovered(within, deployment.ledger.publications("shop", "tables"))}):
        publish(deployment, part, f"later-{part.key}")


class Files:
    """The files of the facts: one for each day and table, by the clocks of the delivery's zone."""

    def __init__(self, delivery: Delivery, data: Path) -> None:
        self._data, self._offsets = data, delivery.offsets
        self._zone = ZoneInfo(delivery.zone)
        self._asked_for_channel = delivery.first.date() + DAY
        facts = facts_from(delivery.first)
        first, last = (self._day(moment) for moment in (facts.within.start, facts.within.end - timedelta(seconds=1)))
        self.days = {first + n * DAY for n in range((last - first).days + 1)}
        self._orders: dict[date, list[Order]] = {day: [] for day in self.days}
        self._outcomes: dict[date, list[Outcome]] = {day: [] for day in self.days}
        for order in facts.orders:
            day = self._day(order.placed)
            late = order.id.endswith(f"-{delivery.late}") and day < last
            self._orders[day + DAY if late else day].append(order)
        for outcome in facts.outcomes:
            self._outcomes[self._day(outcome.settled)].append(outcome)
        if delivery.repeated:
            for day in sorted(self.days - {first}, reverse=True):
                self._orders[day] += self._orders[day - DAY][-2:]
                self._outcomes[day] += self._outcomes[day - DAY][-2:]

    def _day(self, moment: datetime) -> date:
        return moment.astimezone(self._zone).date()

    def period(self, day: date) -> Interval:
        """A local day."""
        start, end = (datetime(each.year, each.month, each.day, tzinfo=self._zone) for each in (day, day + DAY))
        return Interval(start, end)

    def write(self, day: date, *, finished: bool = True) -> None:
        """Write the files of a day, or only their first rows."""
        rows = None if finished else 2
        channel = ["channel"] if day >= self._asked_for_channel else []
        self._write("orders", day, self._orders[day][:rows], ["id", "placed", "region", "amount", *channel])
        self._write("outcomes", day, self._outcomes[day][:rows], ["id", "placed", "settled", "region", "paid"])

    def _write(self, table: str, day: date, facts: Sequence[Order | Outcome], columns: Sequence[str]) -> None:
        path = self._data / table / f"{day}.csv"
        path.parent.mkdir(exist_ok=True)
        lines = [",".join(self._text(getattr(fact, name)) for name in columns) for fact in facts]
        path.write_text("\n".join([",".join(columns), *lines]) + "\n")

    def _text(self, value: Any) -> str:
        if isinstance(value, datetime):
            local = value.astimezone(self._zone)
            return (local if self._offsets else local.replace(tzinfo=None)).isoformat()
        return "" if value is None else str(value)


def publish(deployment: Deployment, interval: Interval, run_id: str) -> None:
    run = StageRun(deployment.model("shop"), deployment, run_id, run_id)
    ingest(run, interval, connect=no_database)


def no_database(name: str) -> NoReturn:
    raise AssertionError(f"nothing is in a database, so {name} is not asked for")


# --- what is published ---------------------------------------------------------------------------------------------------

Rows = list[dict[str, Any]]


def state(deployment: Deployment, facts: Facts) -> dict[str, Rows]:
    """What is published, as of each moment: rows of tables, features of entities, labels.

    Features are brought up to date first, as every training does.
    """
    folder, lake, ledger, within = deployment.model("shop"), deployment.lake, deployment.ledger, facts.within
    ensure_features(folder, lake, within, run_id="reader")
    tables, features = ledger.published("shop", "tables"), ledger.published("shop", "features")
    assert tables is not None
    assert features is not None
    made = lake.scan("shop", "features", features.snapshots["features"], interval=within, event_time="placed").read_all()
    found: dict[str, Rows] = {}
    for moment in facts.moments:
        for name, table in folder.spec.tables.items():
            rows = lake.scan(
                "shop", name, tables.snapshots[name], columns=[*table.columns, "_known_at"],
                interval=within, event_time=table.event_time, known_by=moment,
            ).read_all()  # fmt: skip
            found[f"{name} as of {moment}"] = _in_order(rows.to_pylist())
        found[f"features as of {moment}"] = _in_order(row for row in made.to_pylist() if row["as_of"] <= moment)
        labels = read_labels(folder, lake, tables.snapshots, within, as_of=moment)
        found[f"labels as of {moment}"] = _in_order(labels.to_pylist())
    return found


def _in_order(rows: Iterable[dict[str, Any]]) -> Rows:
    return sorted(rows, key=lambda row: [str(value) for value in row.values()])


def published_by(delivery: Delivery) -> dict[str, Rows]:
    """The state after a delivery into a deployment of its own."""
    place = Path(tempfile.mkdtemp(prefix="perennial-shop-"))
    try:
        folder = place / "models" / "shop"
        folder.mkdir(parents=True)
        (folder / "model.yaml").write_text(MODEL.replace("ZONE", delivery.zone))
        (folder / "features.sql").write_text(FEATURES)
        deployment = Deployment(synthetic.deployment(place))
        deliver(delivery, deployment)
        return state(deployment, facts_from(delivery.first))
    finally:
        shutil.rmtree(place)


@lru_cache
def published_plainly(first: datetime) -> dict[str, Rows]:
    """The state after all files were there and all days were ingested once, together."""
    return published_by(Delivery(runs=((0, DAYS - 1),), first=first))


def test_a_plain_delivery_publishes_the_facts() -> None:
    found, facts = published_plainly(SPRING), facts_from(SPRING)
    for moment in facts.moments:
        placed = sorted(order.id for order in facts.orders if order.placed <= moment)
        known = [outcome for outcome in facts.outcomes if outcome.settled <= moment]
        newest = {outcome.id: outcome.paid for outcome in sorted(known, key=lambda outcome: outcome.settled)}
        assert [row["id"] for row in found[f"orders as of {moment}"]] == placed
        assert [row["id"] for row in found[f"features as of {moment}"]] == placed
        outcomes = sorted((row["id"], row["paid"]) for row in found[f"outcomes as of {moment}"])
        assert outcomes == sorted((outcome.id, outcome.paid) for outcome in known)
        assert {row["id"]: row["label"] for row in found[f"labels as of {moment}"]} == newest
    last = found[f"features as of {facts.within.end}"][-1]
    assert last["channel"] == "shop"
    assert last["last_paid"] is not None
    assert last["earlier"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "delivery",
    [
        Delivery(tuple((day, day) for day in reversed(range(DAYS))), zone="America/New_York", offsets=False),
        Delivery(((0, 1), (2, 3), (0, 1)), missing=frozenset({1}), unfinished=frozenset({3}), zone="Asia/Kolkata"),
        Delivery(((2, 3), (0, 1)), late=1, repeated=True, zone="America/New_York", first=AUTUMN),
    ],
    ids=["backwards", "in overlapping parts", "late and twice"],
)
def test_the_same_facts_are_published_alike_in_other_orders_files_and_zones(delivery: Delivery) -> None:
    assert_published_as_plainly(delivery)


@pytest.mark.rare
@settings(max_examples=20, derandomize=True, suppress_health_check=list(HealthCheck))
@given(delivery=deliveries())
def test_the_same_facts_are_published_alike_however_they_are_delivered(delivery: Delivery) -> None:
    assert_published_as_plainly(delivery)


def assert_published_as_plainly(delivery: Delivery) -> None:
    found, plain = published_by(delivery), published_plainly(delivery.first)
    for what, rows in plain.items():
        assert found[what] == rows, what
