"""Eleven weeks of a model with refreshes: one whose labels are wrong, two that teach what does not last, a stop, and another
recipe that a team commits. No person acts except where a message asks for it.

Like :mod:`tests.faults.test_year`, whose model is never refreshed, this runs the stages that Airflow would start. Each run is
repeated under its own id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from threadpoolctl import threadpool_limits

from perennial.core.errors import NothingToRefresh
from perennial.core.intervals import Interval, utc
from perennial.spec.folder import read_model
from perennial.stages.refresh import refresh, release
from perennial.stages.run import StageRun
from perennial.stages.score import score
from perennial.stages.train import train
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

#: Visits of a day.
A_DAY = 60
HISTORY = Interval(synthetic.START, synthetic.START + timedelta(days=25))
WEEKS = [Interval(HISTORY.end + timedelta(weeks=n), HISTORY.end + timedelta(weeks=n + 1)) for n in range(11)]
#: All labels have the wrong sign. The source is corrected, and a person releases the week, in the week of :data:`CORRECTED`.
WRONG, CORRECTED = 1, 3
#: All labels are too high by so much. That is learned, and does harm once it is over.
HIGH, TOO_HIGH = (4, 5), 0.4
#: After these weeks: refreshes are undone and stop; there is none; a team commits another recipe.
UNDONE, STOPPED, COMMITTED = 7, 8, 9
SMALL = {
    "gates": "gates: {min_rows: 50} => "
    "gates: {min_rows: 50, operation: {latency: 60000}, champion: {mode: not_worse, margin: 1}}",
    "search": "\n    search: {max_leaf_nodes: [4, 8]} => ",
}


@dataclass
class Operation:
    """What Airflow does for the model, and what people do whom a message asks.

    Attributes:
        world: the deployment and the model.
        served: the champion when each week came, and the versions that its predictions are by.
        outcome: what the first refresh made of each week: ``champion``, ``refused``, or why there was none.
        withheld: the weeks that were withheld when each version was made.
        changed: the weeks of which a second run of scoring or of the refresh changed something.
    """

    world: World
    served: dict[int, tuple[int | None, set[int]]] = field(default_factory=dict)
    outcome: dict[int, str] = field(default_factory=dict)
    withheld: dict[int, list[Interval]] = field(default_factory=dict)
    changed: list[int] = field(default_factory=list)

    def run(self, stage: str, number: int) -> StageRun:
        name = f"{stage}-{number}"
        return StageRun(read_model(self.world.folder.path), self.world.deployment, name, f"toy.{stage}/{name}")

    def deliver(self, number: int, *, corrected: bool = False) -> None:
        week = WEEKS[number]
        rows = synthetic.make_rows(7, A_DAY, seed=number + 1, start=week.start)
        if number == WRONG and not corrected:
            rows["y"] = -rows["y"]
        if number in HIGH:
            rows["y"] += TOO_HIGH
        run_id = f"ingest-{number}-{corrected}"
        synthetic.publish_tables(self.world.lake, self.world.ledger, rows, week, run_id=run_id)

    def live(self, number: int) -> None:
        """A week comes, is scored twice, and the champion is refreshed twice."""
        self.deliver(number)
        champion = self.world.ledger.champion("toy")
        self.twice(number, lambda: self.score(number))
        self.served[number] = champion, {row["version"] for row in self.world.predictions(WEEKS[number])}
        if number == CORRECTED:
            self.deliver(WRONG, corrected=True)
            assert release(self.run("release", number), "data", WEEKS[WRONG], reason="it was delivered again", actor="ann")
        if number == COMMITTED:
            self.commit(number)
        else:
            self.twice(number, lambda: self.refresh(number))

    def twice(self, number: int, run: Callable[[], None]) -> None:
        run()
        before = self.state()
        run()
        if self.state() != before:
            self.changed.append(number)

    def score(self, number: int) -> None:
        score(self.run("score", number), WEEKS[number])

    def refresh(self, number: int) -> None:
        known = self.world.ledger.withheld("toy")
        try:
            outcome = refresh(
                self.run("refresh", number), as_of=WEEKS[number].end, cause="a week", actor="airflow: toy.refresh"
            )
        except NothingToRefresh as nothing:
            self.outcome.setdefault(number, str(nothing))
            return
        self.withheld.setdefault(outcome.version, known)
        self.outcome.setdefault(number, outcome.became)

    def commit(self, number: int) -> None:
        """The team commits a recipe, and trains by it."""
        file = self.world.folder.path / "model.yaml"
        file.write_text(file.read_text().replace("max_iter: 30", "max_iter: 40"))
        outcome = train(self.run("train", number), as_of=WEEKS[number].end, cause="another recipe", actor="ann")
        self.withheld[outcome.version] = self.world.ledger.withheld("toy")
        self.outcome[number] = outcome.became

    def state(self) -> Any:
        """All that a run could change, without when it did."""
        ledger = self.world.ledger
        return (
            ledger.champion("toy"),
            self.world.registry.champion("toy"),
            # The gates' words have measured times in them.
            [(record.version, record.decision.refused_by, record.served) for record in ledger.versions("toy")],
            [(made.version, made.action, made.reason) for made in ledger.promotions("toy")],
            [(hold.what, hold.interval, hold.version, hold.released_by) for hold in ledger.holds("toy")],
            [entry.key for entry in ledger.alerts()],
            [[(row["visit"], row["prediction"], row["version"]) for row in self.world.predictions(week)] for week in WEEKS],
        )


@pytest.fixture(scope="module")
def operation(tmp_path_factory: pytest.TempPathFactory) -> Operation:
    """The operation of the model at the end of its weeks."""
    place = tmp_path_factory.mktemp("refreshed")
    world = make_world(place, synthetic.deployment(place), "regression", **SMALL)
    operation = Operation(world)
    with threadpool_limits(1):
        synthetic.publish_tables(world.lake, world.ledger, synthetic.make_rows(25, A_DAY), HISTORY)
        first = train(operation.run("train", 0), as_of=HISTORY.end, cause="the first", actor="ann")
        assert first.became == "champion", first.words
        operation.withheld[first.version] = []
        for number in range(len(WEEKS)):
            operation.live(number)
    return operation


@pytest.mark.slow
def test_bad_weeks_are_held_back_harm_is_undone_and_a_replacement_lets_refreshes_go_on(operation: Operation) -> None:
    outcome, world = operation.outcome, operation.world

    refreshed = [number for number, became in outcome.items() if became == "champion"]
    assert refreshed == [0, 2, 3, 4, 5, 6, COMMITTED, 10]
    assert [outcome[number] for number in (WRONG, UNDONE)] == ["refused", "refused"]
    assert [(hold.what, hold.released_by) for hold in world.ledger.holds("toy")] == [("data", "ann"), ("refreshes", None)]
    assert world.ledger.withheld("toy") == []
    assert world.ledger.stopped_refreshes("toy") is None
    actions = [(made.action, made.version) for made in world.ledger.promotions("toy")]
    # The refresh of the week of the stop was registered, and not promoted. The version of before the high weeks came back.
    anchor = operation.served[HIGH[0]][0]
    assert actions[-3:] == [("rollback", anchor), ("promote", 10), ("refresh", 11)]


@pytest.mark.slow
def test_a_refreshed_model_always_has_a_way_forward(operation: Operation) -> None:
    world = operation.world
    told = [(entry.alert.kind, entry.alert.severity, entry.alert.text) for entry in world.ledger.alerts()]

    assert world.ledger.champion("toy") == world.registry.champion("toy") is not None
    # Where the champion did not get newer rows, a message names the command that ends it.
    released = f"perennial data release toy {WEEKS[WRONG].start:%Y-%m-%d} {WEEKS[WRONG].end:%Y-%m-%d}"
    assert [kind for kind, _, text in told if released in text] == ["refresh_refused"]
    [stopped] = [text for kind, severity, text in told if (kind, severity) == ("refreshes_stopped", "critical")]
    for text in (stopped, operation.outcome[STOPPED]):
        assert "perennial data release toy --refreshes" in text


@pytest.mark.slow
def test_no_version_learns_from_a_withheld_week_or_from_one_that_has_not_been(operation: Operation) -> None:
    for record in operation.world.ledger.versions("toy"):
        learned, judged = Interval.from_key(record.learned_from), record.training.interval("holdout")
        assert learned.end <= utc(record.training.as_of)
        # The newest rows of a refresh are what it is judged by: then they may be withheld.
        without = [week for week in operation.withheld[record.version] if week.overlaps(learned) and week != judged]
        assert record.training.withheld == [week.key for week in without]
        days = [day for day in learned.days() if not any(day.overlaps(week) for week in without)]
        assert record.evaluation.refit is not None
        assert record.evaluation.refit.rows == A_DAY * len(days), record.version


@pytest.mark.slow
def test_each_week_is_scored_by_the_champion_in_force(operation: Operation) -> None:
    for number, (champion, versions) in operation.served.items():
        assert versions == {champion}, number
    # In the weeks after the stop it is the version that came back.
    assert operation.served[STOPPED][0] == operation.served[COMMITTED][0] == operation.served[HIGH[0]][0]


@pytest.mark.slow
def test_a_second_run_of_a_week_changes_nothing(operation: Operation) -> None:
    assert operation.changed == []
