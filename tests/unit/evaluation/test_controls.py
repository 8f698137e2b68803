"""Negative controls on real flights: each is refused by the gate that is there for it, and honest improvements are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.base import clone
from threadpoolctl import threadpool_limits

from benchmarks.flight_delay import SCHEDULE, flight_delay, labelled_features, read_tables
from perennial.core.intervals import Interval
from perennial.evaluation.contest import Contest, ContestResult, Entrant, hold
from perennial.evaluation.controls import NEGATIVE, Honest, broken_in_a_slice, improved
from perennial.evaluation.gates import decide
from perennial.evidence.evaluation import Contender, Evaluation, Operation
from perennial.model.artifacts import FeatureList, LoadedModel
from perennial.model.estimators import make_estimator
from perennial.model.labels import count_classes, labels_of
from perennial.spec.folder import ModelFolder
from perennial.spec.gates import SlicesGate
from perennial.training.training_set import content_hash

WINDOW = Interval.of("2013-02-02", "2013-05-03")
HOLDOUT = Interval.of("2013-05-03", "2013-05-17")
OLDER = Interval.of("2013-01-16", "2013-02-15")
#: What a clean process found is not at stake here; tests/unit/evaluation/test_readiness.py has it.
WORKING = Operation(rows=1_000, difference=0.0, same_features=True, latency=5.0, load_seconds=1.0, artifact_mb=0.5)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def folder() -> ModelFolder:
    """The example, which also looks at airports and airlines by themselves."""
    folder = flight_delay()
    gates = folder.spec.gates.model_copy(update={"slices": SlicesGate(columns=["origin", "carrier"])})
    return folder.model_copy(update={"spec": folder.spec.model_copy(update={"gates": gates})})


@pytest.fixture(scope="module")
def honest(folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Honest:
    """A candidate that knows all there is, against a champion that knows the schedule alone."""
    span = Interval(OLDER.start, HOLDOUT.end)
    flights = labelled_features(folder, read_tables(folder, tmp_path_factory.mktemp("flights")), span)
    target = "label_known_at"

    def rows(interval: Interval) -> tuple[pa.Table, int]:
        event = flights[folder.spec.event_time]
        inside = flights.filter(pc.and_(pc.greater_equal(event, at(interval.start)), pc.less(event, at(interval.end))))
        known = inside.filter(pc.less_equal(inside[target], at(interval.end)))
        return known.drop_columns(["as_of", target]), inside.num_rows

    window, entities = rows(WINDOW)
    older, _ = rows(OLDER)
    judged, due = rows(HOLDOUT)

    def entrant(name: str, role: Any, made_by: ModelFolder = folder, version: int | None = None) -> Entrant:
        takes = FeatureList.of(made_by.spec)
        estimator = make_estimator(made_by, name, {}).fit(takes.frame(window), labels_of(window))
        model = LoadedModel(name, version, folder.spec.task, takes, WINDOW.key, "", estimator, pa.table({}))
        rows_hash = content_hash(judged)
        blank = Contender(name, role, {}, judged.num_rows, rows_hash, None, version=version, trained_on=WINDOW.key)
        return Entrant(blank, lambda: model)

    schedule = folder.model_copy(update={"spec": folder.spec.model_copy(update={"features": SCHEDULE})})
    contest = Contest(
        folder=folder,
        interval=HOLDOUT,
        rows=judged,
        rows_hash=content_hash(judged),
        entities=due,
        as_of=HOLDOUT.end.isoformat(),
        training_classes=count_classes(folder.spec, window),
        training_coverage=window.num_rows / entities,
        without_values=[],
        candidate=entrant("boosting", "candidate"),
        baselines=[entrant(name, "baseline") for name in ("prior", "logistic")],
        champion=entrant("boosting", "champion", schedule, version=3),
    )
    return Honest(contest, window, older, OLDER)


def at(moment: datetime) -> pa.Scalar:
    return pa.scalar(moment, pa.timestamp("us", "UTC"))


def outcome(contest: Contest) -> ContestResult:
    outcome = hold(contest)
    return replace(outcome, evaluation=replace(outcome.evaluation, operation=WORKING))


@pytest.fixture(scope="module")
def found(honest: Honest) -> Evaluation:
    """What is measured of the honest candidate."""
    return outcome(honest.contest).evaluation


def test_the_honest_better_candidate_passes_every_gate(honest: Honest, found: Evaluation) -> None:
    decision = decide(found, honest.contest.folder.spec.gates)
    assert decision.promote, decision.reasons


def test_the_honest_first_candidate_passes_every_gate(honest: Honest, found: Evaluation) -> None:
    first = replace(found, champion=None, comparison=None, slices=None)
    decision = decide(first, honest.contest.folder.spec.gates)
    assert decision.promote, decision.reasons


#: What else such a fault is bound to be refused for.
RELATED: dict[str, set[str]] = {
    "an identical copy": {"baseline"},
    "a miscalibrated one": {"calibration.brier"},
    "one trained on stale data": {"champion"},
    "one that has seen the holdout": set(),
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_each_negative_control_is_refused_by_its_own_gate(name: str, honest: Honest) -> None:
    control = NEGATIVE[name]
    decision = decide(outcome(control.make(honest)).evaluation, honest.contest.folder.spec.gates)
    assert not decision.promote
    assert control.gate in decision.refused_by, decision.reasons
    if name in RELATED:
        assert set(decision.refused_by) <= {control.gate, *RELATED[name]}


def test_an_airline_for_which_it_is_broken_is_named(honest: Honest) -> None:
    decision = decide(outcome(broken_in_a_slice(honest, "carrier", "EV")).evaluation, honest.contest.folder.spec.gates)
    [reason] = [result.reason for result in decision.results if result.gate == "slices"]
    assert "slices" in decision.refused_by
    assert "carrier EV" in reason
    assert "carrier UA" not in reason


@pytest.mark.parametrize("by", [0.01, 0.03])
def test_a_true_improvement_of_a_stated_size_is_accepted(by: float, honest: Honest) -> None:
    judged = outcome(improved(honest, by)).evaluation
    assert judged.comparison is not None
    assert judged.comparison.gain == pytest.approx(by, abs=1e-4)
    decision = decide(judged, honest.contest.folder.spec.gates)
    assert decision.promote, decision.reasons


def test_evidence_is_the_same_each_time(honest: Honest, found: Evaluation) -> None:
    assert outcome(honest.contest).evaluation == found


def test_another_seed_of_the_same_recipe_is_no_reason_to_change(honest: Honest) -> None:
    model = honest.contest.candidate.load()
    again = clone(model.estimator)
    again[-1].set_params(random_state=99)
    again.fit(model.takes.frame(honest.window), labels_of(honest.window))
    champion = honest.contest.champion
    assert champion is not None
    rival = Entrant(champion.blank, lambda: replace(model, estimator=again))
    judged = outcome(replace(honest.contest, champion=rival)).evaluation
    assert judged.comparison is not None
    assert judged.comparison.identical < 0.5
    assert "champion" in decide(judged, honest.contest.folder.spec.gates).refused_by


def test_intervals_hold_what_they_are_of(found: Evaluation) -> None:
    assert found.champion is not None
    for contender in (found.candidate, found.champion):
        assert set(contender.intervals) == set(contender.metrics)
        for metric in ("roc_auc", "log_loss", "brier", "average_precision"):
            low, high = contender.intervals[metric]
            assert low < contender.metrics[metric] < high
    assert found.comparison is not None
    assert found.comparison.gain == pytest.approx(found.candidate.metrics["roc_auc"] - found.champion.metrics["roc_auc"])
