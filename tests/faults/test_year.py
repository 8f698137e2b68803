"""A year in the life of a small model, with what goes wrong in a year, and no person except where a message asks for one.

The year is simulated: :class:`Operation` runs the stages that Airflow would start, and its clock is that of the data. Days are
ingested together where none of them is refused, which makes no difference (``test_deliveries.py``) and saves minutes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import NoReturn

import pytest
from mlflow import MlflowClient
from threadpoolctl import threadpool_limits

from perennial.alerts.alert import Alert
from perennial.core.errors import PerennialError
from perennial.core.intervals import Interval, merged, utc
from perennial.features.maturity import mature_until
from perennial.ledger.coverage import uncovered
from perennial.spec.folder import read_model
from perennial.spec.windows import windows_ending
from perennial.stages.ingest import ingest
from perennial.stages.monitor import monitor
from perennial.stages.overdue import days_to_score, find_overdue
from perennial.stages.run import StageRun
from perennial.stages.score import score
from perennial.stages.train import train
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

pytestmark = [pytest.mark.slow, pytest.mark.rare]

DAY, WEEK = timedelta(days=1), timedelta(days=7)
#: How many days are ingested together.
STEP = 2 * WEEK
#: 52 weeks from a Monday.
YEAR = Interval.of("2024-01-01", "2024-12-30")
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
      amount: {type: float, min: 0}
      qty: {type: integer}
  outcomes:
    source: outcomes
    key: [id]
    event_time: settled
    known: settled
    columns:
      id: {type: string}
      settled: {type: timestamp}
      paid: {type: float}
    checks: {rows: {min: 0}}
entity: {table: orders, as_of: placed}
features: {numeric: [amount, qty]}
label: {table: outcomes, sql: paid}
candidates: {mean: {estimator: prior, baseline: true}, linear: {estimator: linear_regression}}
training: {window: 35d, holdout: 14d, validation: 7d, min_rows: 350}
gates:
  min_rows: 50
  leak: 1.0
  operation: {latency: 60000}
  champion: {mode: not_worse, margin: 2}
  robustness: {noise_drop: null, missing_drop: null}
drift: {min_rows: 50, numeric_threshold: 0.5, prediction_threshold: 0.6}
shadow: {windows: 0}
schedules: {train: month, refresh: never, monitor: week, closed: [2024-05-01, 08-15]}
"""
FEATURES = "SELECT id, amount, qty FROM entities\n"
#: Nothing runs in these days: the stack is stopped.
PAUSES = (Interval.of("2024-04-08", "2024-05-01"), Interval.of("2024-10-07", "2024-10-25"))
#: The shop is closed: no file comes.
CLOSED = {date(2024, 5, 1), date(2024, 8, 15)}
#: All amounts of the day are negative. Nobody ever corrects it.
REFUSED = Interval.day("2024-06-12")
#: In these weeks somebody renames a feature in the folder, and somebody deletes the champion's version in MLflow.
RENAMED, DELETED = utc("2024-05-20"), utc("2024-08-12")
#: How long outcomes take to come.
LATE = timedelta(days=10)
#: What was ingested after there was a champion.
SCORED = Interval.of("2024-04-08", "2024-12-30")
_ORDERS = 12


def deliver(data: Path) -> None:
    """Write all files of the year. An outcome comes ten days after its order, in the file of the day that it comes on."""
    draw = random.Random(2024)
    orders: dict[date, list[str]] = {day.start.date(): [] for day in YEAR.days()}
    outcomes: dict[date, list[str]] = {day: [] for day in orders}
    for day in YEAR.days():
        if day.start.date() in CLOSED:
            continue
        for n in range(_ORDERS):
            placed = day.start + timedelta(minutes=n * 115)
            amount, qty = draw.uniform(10, 100), draw.randint(1, 9)
            paid = 0.8 * amount + 3 * qty + draw.choice((-6, 6))
            settled = placed + LATE - timedelta(hours=draw.random() * 2)
            sign = -1 if day == REFUSED else 1
            orders[day.start.date()].append(f"{placed:%Y%m%d}-{n},{placed.isoformat()},{sign * amount:.2f},{qty}")
            if settled < YEAR.end and settled.date() in outcomes:
                outcomes[settled.date()].append(f"{placed:%Y%m%d}-{n},{settled.isoformat()},{paid:.2f}")
    for name, header, rows in (("orders", "id,placed,amount,qty", orders), ("outcomes", "id,settled,paid", outcomes)):
        (data / name).mkdir()
        for its_day, lines in rows.items():
            if its_day not in CLOSED:
                (data / name / f"{its_day}.csv").write_text("\n".join([header, *lines]) + "\n")


@dataclass
class Operation:
    """What Airflow does for the model: what is due by the clock, and what follows from what is published.

    Attributes:
        world: the deployment and the model.
        reached: up to when days were ingested, or refused.
        failed: by stage and interval, the message of each run that failed.
        by_hand: by the title of the message that asked for it, the intervals that a person scored.
    """

    world: World
    reached: datetime = YEAR.start
    failed: dict[tuple[str, str], str] = field(default_factory=dict)
    made_up: list[str] = field(default_factory=list)
    _runs: Iterator[int] = field(default_factory=count)

    def run(self, stage: str) -> StageRun:
        name = f"{stage}-{next(self._runs)}"
        return StageRun(read_model(self.world.folder.path), self.world.deployment, name, name)

    def until(self, now: datetime) -> None:
        """Ingest what is missing up to now, oldest first, and do all that follows from it."""
        self.reached = max(self.reached, now - self.run("schedule").folder.spec.schedules.catch_up)
        while self.reached < now:
            part = Interval(self.reached, min(now, self.reached + STEP))
            # A range is refused as a whole, a day alone.
            borders = sorted(
                {part.start, part.end, *(moment for moment in (REFUSED.start, REFUSED.end) if part.contains(REFUSED))}
            )
            for start, end in pairwise(borders):
                self.ingest(Interval(start, end))
            self.reached = part.end
            for window in find_overdue(self.run("ingest"), "monitor", part, now=datetime.now(UTC)):
                self.monitor(window)
            for window in find_overdue(self.run("ingest"), "train", part, now=datetime.now(UTC)):
                self.train(window)

    def ingest(self, part: Interval) -> None:
        with self._telling("ingest", part):
            ingest(self.run("ingest"), part, connect=no_database)
            self.score(part)
            for month in windows_ending(part, "month"):
                if not self.missing("features", month):
                    self.train(month)

    def score(self, part: Interval) -> None:
        if self.world.ledger.champion("shop") is None:
            return
        with self._telling("score", part):
            score(self.run("score"), part)
            for week in YEAR.windows(WEEK):
                if week.overlaps(part) and not self.missing("predictions", week):
                    self.monitor(week)

    def make_up(self) -> None:
        """Score the days that no champion could score, as the run for the newest day does."""
        spec, later = self.run("ingest").folder.spec, datetime.now(UTC) + timedelta(hours=4)
        since = Interval(self.reached - spec.schedules.catch_up, self.reached)
        for days in merged(days_to_score(spec, self.world.ledger, since, later)):
            self.score(days)
            if not self.missing("predictions", days):
                self.made_up.append(days.key)

    def monitor(self, week: Interval) -> None:
        with self._telling("monitor", week):
            asked = monitor(self.run("monitor"), week, training_under_way=False).request
            assert asked is None, "nothing changes in the data of this year"

    def train(self, month: Interval) -> None:
        with self._telling("train", month):
            outcome = train(self.run("train"), as_of=month.end, cause=f"{month} is published", actor="airflow: shop.train")
            assert outcome.became == "champion", outcome.words

    def missing(self, dataset: str, interval: Interval) -> list[Interval]:
        return uncovered(interval, self.world.ledger.publications("shop", dataset))

    @contextmanager
    def _telling(self, stage: str, interval: Interval) -> Iterator[None]:
        """A run that fails sends an alert with its error, and disturbs no other run."""
        try:
            yield
        except PerennialError as error:
            self.failed[stage, interval.key] = str(error)


def no_database(name: str) -> NoReturn:
    raise AssertionError(f"nothing is in a database, so {name} is not asked for")


def make_shop(place: Path) -> World:
    world = make_world(place, synthetic.deployment(place))
    folder = place / "models" / "shop"
    folder.mkdir()
    (folder / "model.yaml").write_text(MODEL)
    (folder / "features.sql").write_text(FEATURES)
    deliver(world.settings.data)
    return World(world.deployment, read_model(folder))


def rename_a_feature(folder: Path) -> None:
    for file, old, new in (
        ("model.yaml", "numeric: [amount, qty]", "numeric: [amount, items]"),
        ("features.sql", "qty", "qty AS items"),
    ):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))


def delete_the_champion(world: World) -> None:
    """As somebody does it in MLflow's own pages."""
    client = MlflowClient(tracking_uri=world.settings.mlflow_url, registry_uri=world.settings.mlflow_url)
    client.delete_model_version("shop", str(world.ledger.champion("shop")))


@pytest.fixture(scope="module")
def operation(tmp_path_factory: pytest.TempPathFactory) -> Operation:
    """The operation of a model at the end of its year."""
    world = make_shop(tmp_path_factory.mktemp("year"))
    operation = Operation(world)
    with threadpool_limits(1):
        for n in range(YEAR.length // STEP):
            start, now = YEAR.start + n * STEP, YEAR.start + (n + 1) * STEP
            if start == RENAMED:
                rename_a_feature(world.folder.path)
            if start == DELETED:
                delete_the_champion(world)
            if not any(pause.start < now < pause.end for pause in PAUSES):
                operation.until(now)
            operation.make_up()
    return operation


def told(operation: Operation, kind: str) -> list[Alert]:
    return [entry.alert for entry in operation.world.ledger.alerts() if entry.alert.kind == kind]


def test_a_year_ends_with_a_champion_that_learned_from_its_last_months(operation: Operation) -> None:
    ledger = operation.world.ledger
    champion = ledger.champion("shop")

    assert champion is not None
    assert operation.world.registry.champion("shop") == champion
    record = ledger.version("shop", champion)
    assert record is not None
    assert record.training.as_of == "2024-12-01T00:00:00+00:00"
    # A month of a pause, of a refused day, of a renamed feature and of a deleted champion trained like any other.
    months = [promotion.reason.partition(" ")[0] for promotion in ledger.promotions("shop")]
    assert months == [month.key for month in windows_ending(Interval.of("2024-03-02", "2024-12-30"), "month")]
    assert sum("can never be used again" in promotion.reason for promotion in ledger.promotions("shop")) == 1


def test_each_day_of_a_year_is_published_or_somebody_was_told_why_not(operation: Operation) -> None:
    for dataset in ("tables", "features"):
        assert operation.missing(dataset, YEAR) == [REFUSED], dataset
    assert operation.missing("predictions", SCORED) == [REFUSED]
    [refused] = told(operation, "interval_refused")
    assert REFUSED.key in refused.title
    assert "Correct the source" in refused.text


def test_each_week_of_a_year_has_a_verdict_and_a_performance_when_its_labels_are_mature(operation: Operation) -> None:
    ledger = operation.world.ledger
    weeks = SCORED.windows(WEEK)
    judged = {verdict.interval: verdict for verdict in ledger.verdicts("shop")}

    assert sorted(judged) == weeks
    assert {verdict.verdict for verdict in judged.values()} == {"ok"}
    assert [week.key for week in weeks if judged[week].details.missing] == ["2024-06-10--2024-06-17"]
    assert judged[Interval.of("2024-06-10", "2024-06-17")].details.missing == [REFUSED.key]
    measured = {performance.interval for performance in ledger.performances("shop")}
    assert measured == {week for week in weeks if week.end <= mature_until(YEAR.end, LATE)}


def test_a_year_asks_nothing_of_a_person_but_to_correct_a_source(operation: Operation) -> None:
    alerts = operation.world.ledger.alerts()
    [gone] = told(operation, "champion_unusable")

    assert {entry.alert.kind for entry in alerts if entry.alert.severity == "critical"} == {"interval_refused", gone.kind}
    # What else was told, such as a week in which the model did a little worse, was over without a person.
    asking = [entry.alert.kind for entry in alerts if entry.alert.subject and entry.resolved_by is None]
    assert asking == ["interval_refused"]
    # The days that the champion could not score were scored once there was another one.
    assert operation.made_up == [Interval.of("2024-08-12", "2024-09-09").key]
    assert {stage for stage, _ in operation.failed} == {"ingest", "train", "score"}
    early = {month: message for (stage, month), message in operation.failed.items() if stage == "train"}
    assert list(early) == ["2024-01-01--2024-02-01", "2024-02-01--2024-03-01"]
    assert all("training passes as of 2024-03-" in message for message in early.values())
