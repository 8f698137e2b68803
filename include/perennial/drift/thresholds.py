"""From where on a distance means something: thresholds by which stable history raises no more alarms than it may.

A distance has no threshold that is right for every column: some differ from week to week by nature. So stable history is
replayed: windows of it are compared with what a version would have learned from before, hundreds of times, and thresholds
are set for all columns at once so that the verdict as a whole keeps ``drift.false_alarms``. What the weeks of history
differ by among themselves, season included as far as history has seen it, is thereby what a window may differ by.

:func:`calibrate` is pure; :func:`read_history` reads for it, and :func:`write` keeps the result beside ``model.yaml``, from
where :mod:`perennial.drift.compare` takes it. Neighbour: :mod:`perennial.drift.distances`.

References:
    Politis, Romano: A Circular Block-Resampling Procedure for Stationary Data. In: Exploring the Limits of Bootstrap, 1992.
    Politis, Romano: The Stationary Bootstrap. Journal of the American Statistical Association 89, 1994.
    Westfall, Young: Resampling-Based Multiple Testing. Wiley 1993 (single-step maxT).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray
from scipy import stats

from perennial.core.errors import CalibrationError, NoChampion
from perennial.core.files import replacing
from perennial.core.intervals import Interval
from perennial.drift.distances import prepare_all
from perennial.drift.sampling import take_sample
from perennial.lake.publish import Lake
from perennial.ledger.store import Ledger
from perennial.registry.store import Registry
from perennial.spec.folder import THRESHOLDS_FILE, ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.monitoring import Drift, DriftThresholds, Threshold

log = logging.getLogger(__name__)


#: Windows of history that are compared; enough to count one alarm in a hundred of them.
REPLAYS = 1_000
#: Most rows of history that are held, drawn by the hash of their key.
MAX_ROWS = 500_000
#: Fewest windows that history must be as long as.
LEAST_WINDOWS = 8
#: Parts of history of which each is judged by the others.
_FOLDS = 5
#: What nobody would call drift: no threshold is below it, in either unit.
_NEGLIGIBLE = 0.01
#: Least unit of a distance, and of a change of the share missing: where history knows next to none, its first outage would
#: otherwise be the measure of all columns.
_LEAST_UNIT = np.array([[0.01], [0.02]])
_PREDICTION = "prediction"
#: Is given the replays, gives them back one by one as they are waited for, and shows how far it is.
Progress = Callable[[Sequence[Future[None]]], Iterable[Future[None]]]
_YEAR = timedelta(days=365.25)


@dataclass(frozen=True)
class StableHistory:
    """Stable rows of the past.

    Attributes:
        rows: n rows in order of time: the features, and ``prediction``, all by one version.
        moments: their n event times.
        interval: what they are of.
        snapshot: of the features.
        version: that predicted.
    """

    rows: pa.Table
    moments: NDArray[np.datetime64]
    interval: Interval
    snapshot: int | None = None
    version: int | None = None


@dataclass(frozen=True)
class Geometry:
    """How windows and what they are compared with lie to each other, in days.

    Attributes:
        window: length of a monitoring window.
        reference: length of what a version learns from.
        unseen: the newest part of that, which has predictions.
        gap: least and greatest distance between the end of what was learned from and a window.
    """

    window: int
    reference: int
    unseen: int
    gap: tuple[int, int]

    @classmethod
    def of(cls, spec: ModelSpec) -> Geometry:
        """As the model's schedules and training windows make it.

        A champion serves from the end of its holdout until the calendar's next training, or for as long as it has learned
        where there is no calendar.
        """

        def days(length: timedelta) -> int:
            return max(1, round(length / timedelta(days=1)))

        window = days(spec.schedules.window)
        training, holdout = spec.training, days(spec.training.holdout)
        serves = {"week": 7, "month": 31, "never": days(training.window)}[spec.schedules.train]
        return cls(window, days(training.window), days(training.validation), (holdout, holdout + serves))


# --- one replay: which days -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """How often each of h days is counted in a window, in the reference, and in that part of it that has predictions.

    Attributes:
        start: number of the window's first day.
    """

    start: int
    window: NDArray[np.int64]
    reference: NDArray[np.int64]
    unseen: NDArray[np.int64]


def draw(days: int, geometry: Geometry, random: np.random.Generator) -> Replay:
    """A window of history, and days before it as a reference.

    History is bent to a circle, so that each day is as likely (Politis, Romano 1992). A window is one block of it. The days
    that a version would have learned from lie before it; they are drawn in blocks of a window's mean length (Politis, Romano
    1994). Where history is too short for both, the reference is what the window leaves.

    Args:
        days: how many days history has.
        geometry: of the model.
        random: where chance comes from.
    """
    length = min(geometry.reference, days - geometry.window)
    room = days - geometry.window - length
    gap = int(random.integers(min(geometry.gap[0], room), min(geometry.gap[1], room) + 1))
    start = int(random.integers(days))
    begin = start - gap - length
    window = np.bincount((start + np.arange(geometry.window)) % days, minlength=days)
    # A new block begins with probability 1/window, otherwise the day after follows.
    fresh = random.random(length) < 1 / geometry.window
    fresh[0] = True
    first = np.flatnonzero(fresh)
    block = np.cumsum(fresh) - 1
    offset = random.integers(length, size=len(first))[block] + np.arange(length) - first[block]
    reference = np.bincount((begin + offset % length) % days, minlength=days)
    newest = begin + length - 1 - np.arange(min(geometry.unseen, length))
    return Replay(start, window, reference, np.bincount(newest % days, minlength=days))


# --- all replays: thresholds ------------------------------------------------------------------------------------------


def calibrate(
    policy: Drift,
    geometry: Geometry,
    history: StableHistory,
    *,
    seed: int,
    replays: int = REPLAYS,
    progress: Progress = iter,
) -> DriftThresholds:
    """Thresholds by which a year of windows like those of history raises at most ``drift.false_alarms`` verdicts ``drift``.

    A column alone would keep the budget by the quantile 1 - budget / windows a year of its own distances. That quantile,
    measured from the median, is its unit, in which columns are comparable. A window's statistic is the greatest column in
    these units (or as great a one as ``drift.share`` asks for), or the predictions; the same quantile of this statistic is
    the factor by which all thresholds are stretched. It corrects for the number of columns, and makes use of how they move
    together (Westfall, Young 1993).

    Two things keep short history from flattering itself. The statistic of a window is taken in units of those parts of
    history alone that share no day with it (cross-validation by blocks: Burman, Chow, Nolan: A Cross-Validatory Method for
    Dependent Data. Biometrika 81, 1994). And the factor is never below the prediction bound of a t distribution over as many
    windows as fit into history side by side (Hahn, Meeker: Statistical Intervals. Wiley 1991).

    Args:
        policy: ``drift`` of the spec.
        geometry: of the model.
        history: stable rows.
        seed: of the draws.
        replays: how many windows are compared.
        progress: see :data:`Progress`.

    Raises:
        CalibrationError: history is too short or empty, or alarms whatever the thresholds.
    """
    columns = prepare_all(history.rows, history.rows.column_names)
    names = list(columns)
    day_of, weekday, month = _calendar(history.moments)
    days = len(weekday)
    if days < LEAST_WINDOWS * geometry.window:
        raise CalibrationError(
            f"history has {days} days; thresholds need at least {LEAST_WINDOWS * geometry.window} "
            f"({LEAST_WINDOWS} monitoring windows): load more history, or wait for it"
        )
    found = np.full((replays, 2, len(names)), np.nan)  # of each replay: distance and change of the share missing
    strange = np.zeros((replays, len(names)))
    starts = np.zeros(replays, dtype=np.int64)

    def replay(number: int) -> None:
        random = np.random.default_rng([seed, number])
        drawn = draw(days, geometry, random)
        starts[number] = drawn.start
        alike = _alike(policy, drawn.window, weekday, month)
        window = _thin(drawn.window[day_of].astype(np.float64), policy.sample, random)
        reference = _thin((drawn.reference * alike)[day_of].astype(np.float64), policy.sample, random)
        unseen = _thin((drawn.unseen * alike)[day_of].astype(np.float64), policy.sample, random)
        if min(window.sum(), reference.sum()) < policy.min_rows:
            return
        for place, name in enumerate(names):
            column, known = columns[name], unseen if name == _PREDICTION else reference
            if known.any():
                found[number, 0, place] = column.distance(window, known)
                found[number, 1, place] = abs(_share(column.absent, window) - _share(column.absent, known))
                strange[number, place] = column.strange(window, known)

    with ThreadPoolExecutor() as pool:  # sorting, counting and adding let other threads run
        for running in progress([pool.submit(replay, number) for number in range(replays)]):
            running.result()
    usable = np.isfinite(found[:, 0]).any(axis=1)
    if usable.sum() < replays / 2:
        raise CalibrationError(
            f"only {usable.sum()} of {replays} windows of history could be compared: the others, or their reference, "
            f"have fewer than {policy.min_rows} rows (drift.min_rows; drift.match is {policy.match})"
        )
    seen, novel = np.nan_to_num(found[usable], nan=0.0), strange[usable] >= policy.max_new_categories
    bounds, expected = _stretch(policy, geometry, names, seen, novel, starts[usable], days)
    return DriftThresholds(
        computed_at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        history=history.interval.key,
        features_snapshot=history.snapshot,
        version=history.version,
        window="week" if geometry.window == 7 else "day",
        match=policy.match,
        replays=len(seen),
        seed=seed,
        false_alarms=policy.false_alarms,
        expected=round(expected, 2),
        columns={
            name: Threshold(distance=float(bounds[0, place]), missing=min(float(bounds[1, place]), 1.0))
            for place, name in enumerate(names)
        },
    )


def _stretch(
    policy: Drift,
    geometry: Geometry,
    names: list[str],
    seen: NDArray[np.float64],
    novel: NDArray[np.bool_],
    starts: NDArray[np.int64],
    days: int,
) -> tuple[NDArray[np.float64], float]:
    """The thresholds, two by columns, and the verdicts ``drift`` a year that they raise on history they were not set by.

    Args:
        policy: ``drift`` of the spec.
        geometry: of the model.
        names: of the columns.
        seen: replays by two (distance, change of the share missing) by columns.
        novel: replays by columns: whether categories alone make it drift.
        starts: first day of each replay's window.
        days: of history.
    """
    windows = _YEAR / timedelta(days=geometry.window)
    level = min(policy.false_alarms / windows, 0.5)
    features = np.array([name != _PREDICTION for name in names])
    wanted = policy.features_wanted(int(features.sum()), calibrated=True)

    def units(which: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        usual = np.median(seen[which], axis=0)
        own = np.quantile(seen[which], 1 - level, axis=0, method="higher")
        return usual, np.maximum(own - usual, _LEAST_UNIT)

    def statistics(which: NDArray[np.bool_], usual: NDArray[np.float64], unit: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = np.where(novel[which], np.inf, ((seen[which] - usual) / unit).max(axis=1))
        greatest = np.sort(moved[:, features], axis=1)[:, -wanted] if features.any() else np.full(len(moved), -np.inf)
        return np.asarray(np.maximum(greatest, moved[:, ~features].max(axis=1, initial=-np.inf)))

    statistic = np.empty(len(seen))
    fold = starts * _FOLDS // days
    for number in range(_FOLDS):
        held = fold == number
        first, last = -(-number * days // _FOLDS), -(-(number + 1) * days // _FOLDS) - 1
        apart = np.minimum((starts - last) % days, (first - starts) % days) >= geometry.window
        statistic[held] = statistics(held, *units(~held & apart))
    if float(np.mean(np.isinf(statistic))) > level:
        often = ", ".join(f"{name} {share:.1%}" for name, share in zip(names, novel.mean(axis=0), strict=True) if share)
        raise CalibrationError(
            f"categories that are new in a window alarm in {np.mean(np.isinf(statistic)):.1%} of stable windows, more than the "
            f"budget of {level:.1%}, whatever the thresholds ({often}): raise drift.max_new_categories, or group rare "
            "categories in features.sql"
        )
    finite, independent = statistic[np.isfinite(statistic)], days / geometry.window
    spread = float(finite.std()) * math.sqrt(1 + 1 / independent)
    bound = float(finite.mean()) + float(stats.t.ppf(1 - level, independent - 1)) * spread
    # A column that reaches its threshold has drifted, so it lies a little beyond the last window that may pass.
    factor = max(bound, float(np.quantile(statistic, 1 - level, method="higher"))) * (1 + 1e-9)
    usual, unit = units(np.ones(len(seen), dtype=bool))
    bounds = np.ceil(np.maximum(usual + factor * unit, _NEGLIGIBLE) * 10_000) / 10_000
    return bounds, float(np.mean(statistic >= factor)) * windows


def _calendar(moments: NDArray[np.datetime64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The day of each row, counted from 0, and weekday and month of each day; days without rows are not counted."""
    date = moments.astype("datetime64[D]")
    present, day_of = np.unique(date, return_inverse=True)
    # 1970-01-01 was a Thursday.
    return day_of, (present.astype(np.int64) + 3) % 7, present.astype("datetime64[M]").astype(np.int64) % 12


def _alike(policy: Drift, window: NDArray[np.int64], weekday: NDArray[np.int64], month: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which days fall on the window's weekdays or into its months, as ``drift.match`` has it."""
    if policy.match == "none":
        return np.ones(len(window), dtype=bool)
    kind = weekday if policy.match == "weekday" else month
    return np.isin(kind, kind[window > 0])


def _thin(counts: NDArray[np.float64], most: int, random: np.random.Generator) -> NDArray[np.float64]:
    """About as many rows as a sample has; counts of others become 0."""
    total = float(counts.sum())
    if total > most:
        counts = np.where(random.random(len(counts)) < most / total, counts, 0.0)
    return counts


def _share(which: NDArray[np.bool_], counts: NDArray[np.float64]) -> float:
    return float(counts[which].sum() / counts.sum())


# --- from the lake, and to the folder ---------------------------------------------------------------------------------


def read_history(
    folder: ModelFolder, lake: Lake, ledger: Ledger, registry: Registry, interval: Interval | None = None
) -> StableHistory:
    """Published features of the past, as the champion would predict them.

    One version predicts all of them, since predictions of different versions differ for another reason than drift. It has
    learned from a part of them, on both sides of what is compared.

    Args:
        folder: the model's folder.
        lake: where the features are.
        ledger: says which are published.
        registry: has the champion.
        interval: what was stable; None: all that is published.

    Raises:
        CalibrationError: no features are published there.
        NoChampion: nobody predicts yet.
    """
    spec = folder.spec
    published, intervals = ledger.published(spec.name, "features"), ledger.publications(spec.name, "features", interval)
    if published is None or not intervals:
        raise CalibrationError(f"{spec.name}: no features are published{f' for {interval}' if interval else ''}; ingest first")
    if interval is None:
        interval = Interval(min(p.interval.start for p in intervals), max(p.interval.end for p in intervals))
    version = registry.champion(spec.name)
    if version is None:
        raise NoChampion(f"{spec.name} has no champion, whose predictions are compared too: train first")
    snapshot = published.snapshots["features"]
    reader = lake.scan(spec.name, "features", snapshot, interval=interval, event_time=spec.event_time)
    rows, total = take_sample(reader, list(spec.entity_table.key), size=MAX_ROWS, seed=spec.training.seed)
    if total > rows.num_rows:
        log.info("%s of %s rows of history are replayed", f"{rows.num_rows:,}", f"{total:,}")
    rows = rows.sort_by(spec.event_time)
    said = registry.load(spec.name, version, spec=spec).predict(rows).values
    kind = pa.string() if said.dtype.kind == "O" else pa.float64()
    moments = rows.column(spec.event_time).to_numpy().astype("datetime64[us]")
    rows = rows.select(spec.features.names).append_column(_PREDICTION, pa.array(said, kind))
    return StableHistory(rows, moments, interval, snapshot, version)


def write(folder: ModelFolder, thresholds: DriftThresholds) -> Path:
    """Keep thresholds as ``drift.yaml`` beside ``model.yaml``, in place of those before."""
    file = folder.path / THRESHOLDS_FILE
    kept = thresholds.model_dump(mode="json", exclude={"columns"}, exclude_none=True)
    lines = [
        f"# Written by `perennial calibrate {folder.spec.name}`: from where on a column has drifted, so that windows like",
        "# those of history raise at most `false_alarms` verdicts a year. distance: standard deviations of the reference",
        "# (numbers) or Jensen-Shannon (categories); missing: change of the share of missing values.",
        yaml.safe_dump(kept, sort_keys=False).rstrip(),
        "columns:",
        *(f"  {name}: {{distance: {one.distance:g}, missing: {one.missing:g}}}" for name, one in thresholds.columns.items()),
    ]
    with replacing(file) as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
