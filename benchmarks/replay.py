"""Replay a stream week by week under a policy, in memory, by the product's own functions.

The product's estimators, contest, refresh, gates and resampling decide here on rows in memory. Lake, registry and Airflow are
left out, so a year takes minutes, not a quarter of an hour per policy. ``tests/project/test_replay.py`` compares the fits with
the product's, bit by bit. The clean process that tries each version is left out too, and counts as passed.

All policies begin with the same version: trained as of the beginning, with a search, and fitted again on all rows up to it.
After each week a policy may change the version that serves from then on. What it knows are the labels that are known by then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.measuring import processor_time
from benchmarks.streams import Stream
from perennial.core.errors import TrainingError
from perennial.core.intervals import Interval
from perennial.drift.compare import compare
from perennial.evaluation.contest import Contest, Entrant, hold
from perennial.evaluation.gates import decide, undoes_refreshes, withholds_rows
from perennial.evaluation.metrics import evaluate_prediction
from perennial.evaluation.refreshed import LOOK_BACK, Stretch, measure_refresh, roll
from perennial.evidence.decision import GateDecision
from perennial.evidence.evaluation import Contender, Operation, Refit
from perennial.evidence.training import StoredModel
from perennial.model.artifacts import FeatureList, LoadedModel, Prediction, predict
from perennial.model.costs import cost_function
from perennial.model.estimators import combinations, fit_estimator
from perennial.model.labels import LABEL, count_classes
from perennial.spec.training import METRICS
from perennial.training.fit import reference_sample

WEEK = timedelta(weeks=1)
#: How a version of the replay works in a clean process, which nobody asks here.
_WORKS = Operation(rows=1, difference=0.0, same_features=True, latency=1.0, load_seconds=0.0, artifact_mb=1.0)


@dataclass(frozen=True, eq=False)
class Version:
    """A fitted model.

    Attributes:
        number: in the order of the fits; equal fits have the same.
        model: it.
        interval: what it learned from.
        candidate, params: its recipe.
        classes: the number of rows of each class that it learned from.
        coverage: share of these rows whose label was known.
        rows: number of rows that it learned from.
        seconds: processor time of the fit.
    """

    number: int
    model: LoadedModel
    interval: Interval
    candidate: str
    params: dict[str, Any]
    classes: dict[str, int]
    coverage: float
    rows: int
    seconds: float


@dataclass(frozen=True)
class Fault:
    """What is wrong with the rows of an interval. What is true stays as it is.

    Attributes:
        name: what it is called.
        interval: when.
        change: gives the faulty rows.
    """

    name: str
    interval: Interval
    change: Callable[[pa.Table], pa.Table]


class World:
    """A stream, and the fits and predictions that its policies have in common.

    Args:
        stream: the rows.
        fault: what is wrong with them; None: nothing.
        like: another world of the same stream: what both have in common is fitted once.
    """

    def __init__(self, stream: Stream, fault: Fault | None = None, like: World | None = None) -> None:
        self.stream, self.folder, self.spec, self.fault = stream, stream.folder, stream.folder.spec, fault
        self.truth = stream.rows.column(LABEL).combine_chunks().to_numpy(zero_copy_only=False)
        self.moments = _microseconds(stream.rows, self.spec.event_time)
        self.rows = stream.rows
        if fault is not None:
            first, last = self.between(fault.interval)
            parts = [self.rows.slice(0, first), fault.change(self.rows.slice(first, last - first)), self.rows.slice(last)]
            self.rows = pa.concat_tables([part.cast(stream.rows.schema) for part in parts]).combine_chunks()
        self.known = _microseconds(self.rows, "label_known_at")
        self.frame = FeatureList.of(self.spec).frame(self.rows)
        self.labels = self.rows.column(LABEL).combine_chunks().to_numpy(zero_copy_only=False)
        self.cost = cost_function(self.folder)
        self.fits: dict[Any, Version] = like.fits if like else {}
        self.predicted: dict[Any, Prediction] = like.predicted if like else {}

    @property
    def candidate(self) -> str:
        return next(name for name, candidate in self.spec.candidates.items() if not candidate.baseline)

    @property
    def weeks(self) -> list[Interval]:
        starts = [self.stream.begin + number * WEEK for number in range(self.stream.weeks)]
        return [Interval(start, start + WEEK) for start in starts]

    def between(self, interval: Interval) -> tuple[int, int]:
        """The first row of an interval, and the one after its last."""
        first, last = np.searchsorted(self.moments, [_micro(interval.start), _micro(interval.end)])
        return int(first), int(last)

    def places(self, interval: Interval, known_by: datetime, without: Sequence[Interval] = ()) -> NDArray[np.intp]:
        """The rows of an interval whose label is known by a moment, without those of some intervals."""
        first, last = self.between(interval)
        kept = self.known[first:last] <= _micro(known_by)
        for one in without:
            begin, end = self.between(one)
            kept[max(begin - first, 0) : max(end - first, 0)] = False
        return first + np.flatnonzero(kept)

    def labelled(self, interval: Interval, known_by: datetime, without: Sequence[Interval] = ()) -> pa.Table:
        return self.rows.take(pa.array(self.places(interval, known_by, without)))

    def window(self, end: datetime) -> Interval:
        """What is learned from before a holdout that begins at a moment."""
        return Interval(end - self.spec.training.longest, end)

    def everything(self, end: datetime) -> Interval:
        """What a model that serves learns from: the window and the holdout, up to a moment."""
        return Interval(end - self.spec.training.holdout - self.spec.training.longest, end)

    def fit(
        self,
        interval: Interval,
        params: dict[str, Any],
        *,
        known_by: datetime | None = None,
        without: Sequence[Interval] = (),
        candidate: str = "",
    ) -> Version:
        """Fit a recipe on the rows of an interval; ``known_by`` is its end if nothing else is said."""
        candidate, known_by = candidate or self.candidate, known_by or interval.end
        without = tuple(one for one in without if one.overlaps(interval))
        key = (candidate, interval.key, known_by, without, tuple(sorted(params.items())), self._fault_within(interval, without))
        if key not in self.fits:
            self.fits[key] = self._fit(len(self.fits) + 1, interval, known_by, without, candidate, params)
        return self.fits[key]

    def _fault_within(self, interval: Interval, without: Sequence[Interval] = ()) -> tuple[str, str]:
        if self.fault is None or not self.fault.interval.overlaps(interval):
            return "", ""
        weeks = [week for week in _weeks(self.fault.interval) if week.overlaps(interval) and week not in without]
        return (self.fault.name, self.fault.interval.key) if weeks else ("", "")

    def _fit(
        self,
        number: int,
        interval: Interval,
        known_by: datetime,
        without: Sequence[Interval],
        name: str,
        params: dict[str, Any],
    ) -> Version:
        used = self.places(interval, known_by, without)
        everyone = self.places(interval, datetime.max.replace(tzinfo=interval.end.tzinfo), without)
        frame, truth = _select(self.frame, used), self.labels[used]
        started = processor_time()
        with threadpool_limits(1):
            estimator = fit_estimator(self.folder, name, params, frame, truth)
        seconds = processor_time() - started
        model = LoadedModel(
            f"{self.spec.name} version {number}", number, self.spec.task, FeatureList.of(self.spec), interval.key,
            self.folder.features_digest, estimator, pa.table({}),
        )  # fmt: skip
        classes = {str(label): int(count) for label, count in zip(*np.unique(truth, return_counts=True), strict=True)}
        return Version(number, model, interval, name, dict(params), classes, len(used) / len(everyone), len(used), seconds)

    def predict(self, version: Version, week: Interval) -> Prediction:
        """Predictions for all rows of a week, as they are seen."""
        key = version.number, week.key, self._fault_within(week)
        if key not in self.predicted:
            first, last = self.between(week)
            self.predicted[key] = self.predict_rows(version, np.arange(first, last))
        return self.predicted[key]

    def predict_rows(self, version: Version, places: NDArray[np.intp]) -> Prediction:
        with threadpool_limits(1):
            return predict(self.spec.task, version.model.estimator, _select(self.frame, places))

    def search(self, window: Interval, known_by: datetime, without: Sequence[Interval] = ()) -> tuple[dict[str, Any], float]:
        """The best parameters by validation on the newest part of a window, and the processor time of the search."""
        border = window.end - self.spec.training.validation
        newest = self.places(Interval(border, window.end), known_by, without)
        metric, best, seconds = self.spec.primary_metric, None, 0.0
        sign = 1 if METRICS[self.spec.task][metric] else -1
        for params in combinations(self.folder, self.candidate):
            version = self.fit(Interval(window.start, border), params, known_by=known_by, without=without)
            seconds += version.seconds
            found = evaluate_prediction(self.spec.task, self.labels[newest], self.predict_rows(version, newest), self.cost)
            score = sign * found.get(metric, -np.inf)
            if best is None or score > best[0]:
                best = score, params
        assert best is not None  # combinations gives at least one
        return best[1], seconds


def _micro(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def _microseconds(rows: pa.Table, column: str) -> NDArray[np.int64]:
    return np.asarray(rows.column(column).cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy())


def _select(frame: pd.DataFrame, places: NDArray[np.intp]) -> pd.DataFrame:
    if len(places) and places[-1] - places[0] + 1 == len(places):
        return frame.iloc[places[0] : places[-1] + 1]
    return frame.iloc[places]


def _weeks(interval: Interval) -> list[Interval]:
    count = (interval.end - interval.start) // WEEK
    return [Interval(interval.start + number * WEEK, interval.start + (number + 1) * WEEK) for number in range(count)]


# --- policies --------------------------------------------------------------------------------------------------------


@dataclass
class Course:
    """How a policy went.

    Attributes:
        serving: the version that serves next.
        served: the version that served each week so far.
        withheld: weeks that nothing learns from.
        refused: the newest refresh that was refused since the last one that passed.
        stopped: whether refreshes have stopped.
        begun: number of weeks that were served before the present recipe did.
        events: what happened after which week: number of the week, what, and why.
        fits: how many models were fitted; those of a search count.
        seconds: processor time of fits and evaluations.
        reference: rows that the serving version is compared with for drift.
    """

    serving: Version
    served: list[Version] = field(default_factory=list)
    withheld: list[Interval] = field(default_factory=list)
    refused: Version | None = None
    stopped: bool = False
    begun: int = 0
    events: list[tuple[int, str, list[str]]] = field(default_factory=list)
    fits: int = 0
    seconds: float = 0.0
    reference: pa.Table | None = None

    def bill(self, *versions: Version) -> None:
        self.fits += len(versions)
        self.seconds += sum(version.seconds for version in versions)

    def note(self, what: str, reasons: Sequence[str] = ()) -> None:
        self.events.append((len(self.served), what, list(reasons)))

    def promote(self, version: Version) -> None:
        self.serving, self.refused = version, None
        self.note("promoted")


Policy = Callable[[World, Course, Interval], None]


def replay(world: World, policy: Policy) -> Course:
    """A policy from the beginning of the stream to its end."""
    course = Course(begin(world))
    for week in world.weeks:
        course.served.append(course.serving)
        policy(world, course, week)
    return course


def begin(world: World) -> Version:
    """The version that all begin with: judged on the holdout, then fitted again on all rows up to the beginning."""
    end = world.stream.begin
    border = end - world.spec.training.holdout
    params, _ = world.search(world.window(border), border)
    return world.fit(world.everything(end), params)


def never(world: World, course: Course, week: Interval) -> None:
    """The first version serves to the end."""


def judged_weekly(world: World, course: Course, week: Interval) -> None:
    """Fitted each week on the window before a holdout of four weeks, promoted as it could be judged there."""
    course.promote(_judged(world, course, week.end))


def weekly(world: World, course: Course, week: Interval) -> None:
    """Fitted again each week on all rows up to now, promoted as it comes: a refresh without a net."""
    version = world.fit(world.everything(week.end), course.serving.params, without=course.withheld)
    course.bill(version)
    course.promote(version)


def monthly(world: World, course: Course, week: Interval) -> None:
    """The same when a month is over."""
    if month_ends(week):
        weekly(world, course, week)


def drift(world: World, course: Course, week: Interval) -> None:
    """The same on each drift verdict."""
    started = processor_time()
    if course.reference is None:
        border = week.start - world.spec.training.holdout
        judged = world.fit(world.window(border), course.serving.params, known_by=border)
        course.reference = _reference(world, judged, course.serving, week.start)
    first, last = world.between(week)
    seen = world.rows.slice(first, last - first)
    said = pa.table({"prediction": world.predict(course.serving, week).values})
    names = [*world.spec.features.names, "prediction"]
    verdict = compare(
        world.spec.drift, seen.select(world.spec.features.names), said, course.reference.select(names),
        world.folder.thresholds, report=False,
    )  # fmt: skip
    course.seconds += processor_time() - started
    if verdict.verdict == "drift":
        course.note("drift")
        judged = _judged(world, course, week.end)
        weekly(world, course, week)
        course.reference = _reference(world, judged, course.serving, week.end)


def _reference(world: World, judged: Version, served: Version, end: datetime) -> pa.Table:
    """As the product keeps it of a version that was fitted again: predictions are those of the judged model."""
    rows = world.labelled(served.interval, end)
    newest = world.places(Interval(judged.interval.end, end), end)
    unseen = world.predict_rows(judged, newest)
    return reference_sample(world.spec, rows, rows.num_rows - len(newest), unseen)


def old(world: World, course: Course, week: Interval) -> None:
    """Trained when a month is over; promoted, fitted again, if surely better than the stored champion on four weeks."""
    if not month_ends(week):
        return
    judged, champion = _judged(world, course, week.end), course.serving
    entrant = Entrant(_contender(champion, "champion", champion.number), lambda: champion.model)
    if _replaces(world, course, judged, entrant, Interval(week.end - world.spec.training.holdout, week.end)):
        weekly(world, course, week)


def new(world: World, course: Course, week: Interval, *, net: bool = True, replacements: bool = True) -> None:
    """A refresh each week under the net, and each month another recipe, if the search finds one, against the champion's."""
    if not course.stopped and net:
        refresh(world, course, week)
    elif not course.stopped:
        weekly(world, course, week)
    if replacements and month_ends(week):
        replacement(world, course, week)


def refresh(world: World, course: Course, week: Interval) -> None:
    """Fit the champion's recipe on the newest rows, and let it serve if the net holds nothing against it."""
    try:
        refreshed = world.fit(world.everything(week.end), course.serving.params, without=course.withheld)
    except TrainingError as error:
        course.note("failed", [str(error)])
        return
    course.bill(refreshed)
    started = processor_time()
    decision = judge_refresh(world, course, week, refreshed)
    course.seconds += processor_time() - started
    if decision.promote:
        course.promote(refreshed)
        return
    withheld, undone = withholds_rows(decision), undoes_refreshes(decision)
    course.note("refused", decision.refused_by)
    course.refused = refreshed
    if withheld:
        course.withheld.append(week)
    if undone:
        course.serving, course.stopped = _anchor(course), True
        course.note("restored", decision.reasons)


def _anchor(course: Course) -> Version:
    """The version in force four weeks ago, or the first of the recipe."""
    return course.served[max(course.begun, len(course.served) - LOOK_BACK)]


def judge_refresh(world: World, course: Course, week: Interval, refreshed: Version) -> GateDecision:
    spec = world.spec
    rows = world.labelled(week, week.end)
    reference = course.serving
    if course.refused is not None:
        metric, sign = spec.primary_metric, 1 if METRICS[spec.task][spec.primary_metric] else -1
        places = world.places(week, week.end)
        scores = [
            sign
            * evaluate_prediction(spec.task, world.labels[places], world.predict_rows(one, places), world.cost).get(
                metric, -np.inf
            )
            for one in (course.serving, course.refused)
        ]
        reference = course.refused if scores[1] > scores[0] else course.serving
    older = world.labelled(Interval(refreshed.interval.start, week.start), week.end, course.withheld).select([LABEL])
    first, last = world.between(week)
    contest = Contest(
        folder=world.folder,
        interval=week,
        rows=rows,
        rows_hash=week.key,
        entities=last - first,
        as_of=week.end.isoformat(),
        training_classes=count_classes(spec, older),
        training_coverage=refreshed.coverage,
        candidate=Entrant(_contender(reference, "candidate", rows_hash=week.key, rows=rows.num_rows), lambda: reference.model),
        baselines=[],
        champion=None,
        without_values=_without_values(world, refreshed),
    )
    with threadpool_limits(1):
        measured = measure_refresh(
            contest,
            champion=course.serving.number,
            reference=reference.number,
            refreshed=refreshed.model,
            refit=Refit(StoredModel("", {}), refreshed.interval.key, refreshed.rows, "", operation=_WORKS),
            rolling=_rolling(world, course, week),
        )
    return decide(measured.evaluation, spec.gates)


def _rolling(world: World, course: Course, week: Interval) -> Any:
    """Refreshes of the last four weeks against the version of four weeks ago, without weeks that are withheld."""
    anchor = _anchor(course)
    stretches = []
    for back in range(min(LOOK_BACK, len(course.served) - course.begun) - 1, -1, -1):
        one, version = Interval(week.start - back * WEEK, week.end - back * WEEK), course.served[-1 - back]
        if one in course.withheld or version is anchor:
            continue
        places, (first, _) = world.places(one, week.end), world.between(one)
        if not len(places):
            continue
        stretches.append(
            Stretch(
                one, version.number, world.rows.take(pa.array(places)),
                world.predict(version, one)[places - first], world.predict(anchor, one)[places - first],
            )
        )  # fmt: skip
    return roll(world.spec, anchor.number, stretches, world.cost)


def replacement(world: World, course: Course, week: Interval) -> None:
    """Search another recipe; if there is one, fit it and the champion's on the same rows, and compare them on the holdout."""
    border = week.end - world.spec.training.holdout
    window = world.window(border)
    params, seconds = world.search(window, border, course.withheld)
    course.fits, course.seconds = course.fits + len(combinations(world.folder, world.candidate)), course.seconds + seconds
    if params == course.serving.params:
        return
    candidate = world.fit(window, params, known_by=border, without=course.withheld)
    rival = world.fit(window, course.serving.params, known_by=border, without=course.withheld)
    course.bill(candidate, rival)
    champion = Entrant(_contender(rival, "champion", course.serving.number), lambda: rival.model)
    if _replaces(world, course, candidate, champion, Interval(border, week.end)):
        version = world.fit(world.everything(week.end), params, without=course.withheld)
        course.bill(version)
        course.promote(version)
        course.stopped, course.begun = False, len(course.served)
        course.note("replaced")


def month_ends(week: Interval) -> bool:
    """Whether a month begins within the week, or with its end."""
    return (week.end - timedelta(microseconds=1)).month != week.start.month or week.end.day == 1


def _judged(world: World, course: Course, as_of: datetime) -> Version:
    """The recipe, fitted on the window before the holdout."""
    border = as_of - world.spec.training.holdout
    version = world.fit(world.window(border), course.serving.params, known_by=border)
    course.bill(version)
    return version


def _contender(version: Version, role: Any, number: int | None = None, *, rows_hash: str = "", rows: int = 0) -> Contender:
    return Contender(
        version.candidate, role, {}, rows, rows_hash, None, version=number, trained_on=version.interval.key
    )  # fmt: skip


def _replaces(world: World, course: Course, candidate: Version, champion: Entrant, holdout: Interval) -> bool:
    """Whether the gates let a candidate replace the champion."""
    rows, (first, last) = world.labelled(holdout, holdout.end, course.withheld), world.between(holdout)
    baselines = [
        world.fit(candidate.interval, {}, known_by=holdout.start, without=course.withheld, candidate=name)
        for name, one in world.spec.candidates.items()
        if one.baseline
    ]
    course.bill(*baselines)
    started = processor_time()

    def entrant(version: Version, role: str) -> Entrant:
        return Entrant(_contender(version, role, rows_hash=holdout.key, rows=rows.num_rows), lambda: version.model)

    contest = Contest(
        folder=world.folder,
        interval=holdout,
        rows=rows,
        rows_hash=holdout.key,
        entities=last - first,
        as_of=holdout.end.isoformat(),
        training_classes=candidate.classes,
        training_coverage=candidate.coverage,
        candidate=entrant(candidate, "candidate"),
        baselines=[entrant(one, "baseline") for one in baselines],
        champion=replace(champion, blank=replace(champion.blank, rows=rows.num_rows, rows_hash=holdout.key)),
        without_values=_without_values(world, candidate),
    )
    with threadpool_limits(1):
        result = hold(contest)
    decision = decide(replace(result.evaluation, operation=_WORKS), world.spec.gates)
    course.seconds += processor_time() - started
    if not decision.promote:
        course.note("not replaced", decision.refused_by)
    return decision.promote


def _without_values(world: World, version: Version) -> list[str]:
    frame = _select(world.frame, world.places(version.interval, version.interval.end))
    return [str(name) for name in frame.columns if not (frame[name].head(100).notna().any() or frame[name].notna().any())]


POLICIES: dict[str, Policy] = {
    "never": never,
    "judged weekly": judged_weekly,
    "weekly": weekly,
    "monthly": monthly,
    "drift": drift,
    "old": old,
    "new": new,
}
