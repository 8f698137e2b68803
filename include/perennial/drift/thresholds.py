"""Calibrate drift thresholds, so that stable history raises no more alarms than allowed.

No threshold is right for every column, since some columns differ from week to week by nature. So stable history is replayed:
windows of it are compared hundreds of times with earlier rows that a version would have been trained on. The thresholds of
all columns are set together, so that the verdict as a whole keeps ``drift.false_alarms``. So a window may differ as much as
the weeks of history differ from each other, season included as far as history covers it.

:func:`calibrate` is pure. :func:`read_history` reads its input. :func:`write` keeps the result beside ``model.yaml``, where
:mod:`perennial.drift.compare` finds it. Neighbour: :mod:`perennial.drift.distances`.

References:
    Politis, Romano: A Circular Block-Resampling Procedure for Stationary Data. In: Exploring the Limits of Bootstrap, 1992.
    Politis, Romano: The Stationary Bootstrap. Journal of the American Statistical Association 89, 1994.
    Westfall, Young: Resampling-Based Multiple Testing. Wiley 1993 (single-step maxT).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from perennial.deployment import Deployment
from perennial.drift.distances import PreparedColumn, prepare_all
from perennial.drift.sampling import take_sample
from perennial.registry.folders import own_folder
from perennial.spec.folder import THRESHOLDS_FILE, ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.monitoring import Drift, DriftThresholds, Threshold

log = logging.getLogger(__name__)


#: Number of windows that are compared. It is enough to count one alarm per hundred windows.
REPLAYS = 1_000
#: The most rows of history that are kept, sampled by the hash of their key.
MAX_ROWS = 500_000
#: The least length of history, in windows.
LEAST_WINDOWS = 8
#: Number of parts of history. Each part is judged by the others.
_FOLDS = 5
#: The least threshold of a distance and of a change of the share missing. Nobody would call less than this drift.
_NEGLIGIBLE = 0.01
#: The least unit of a distance, and of a change of the share missing. Without it, a column that hardly ever changes would
#: determine the thresholds of all columns at its first outage.
_LEAST_UNIT = np.array([[0.01], [0.02]])
_PREDICTION = "prediction"
#: Takes the replays, gives them back one by one, and shows the progress.
Progress = Callable[[Sequence[Future[None]]], Iterable[Future[None]]]
_YEAR = timedelta(days=365.25)


@dataclass(frozen=True)
class StableHistory:
    """Stable rows of the past.

    Attributes:
        rows: n rows in order of time: the features, and ``prediction``, all by one version.
        moments: their n event times.
        interval: the interval of the rows.
        snapshot: snapshot of the features.
        version: the version that made the predictions.
        reference: key of the interval that this version learned from.
    """

    rows: pa.Table
    moments: NDArray[np.datetime64]
    interval: Interval
    snapshot: int | None = None
    version: int | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Geometry:
    """The position of monitoring windows relative to training data, in days.

    Attributes:
        window: length of a monitoring window.
        reference: length of the training window.
        unseen: length of its newest part, whose rows have predictions.
        gap: least and greatest distance between the end of the training window and a monitoring window.
    """

    window: int
    reference: int
    unseen: int
    gap: tuple[int, int]

    @classmethod
    def of(cls, spec: ModelSpec) -> Geometry:
        """The geometry that follows from the model's schedules and training windows.

        A champion serves from its training until the next scheduled one. Without a schedule it serves for as long as its
        training window. With ``training.refit``, the reference ends where labels are mature, and its newest part, which has
        predictions, is the holdout. A refresh serves until the next one, and only the newest week or month of its reference
        has predictions. Without refit, the reference is the training window. Between its end and the training lie the
        holdout, and twice the time that labels take.
        """

        def days(length: timedelta) -> int:
            return max(1, round(length / timedelta(days=1)))

        window = days(spec.schedules.window)
        training = spec.training
        labels = days(spec.label.delay) if spec.label.delay else 0
        learned, unseen, before = days(training.longest), days(training.validation), days(training.holdout) + 2 * labels
        if training.refit:
            learned, unseen, before = learned + labels + days(training.holdout), days(training.holdout), labels
        serves = {"week": 7, "month": 31, "never": days(training.longest)}[spec.schedules.train]
        if spec.refreshes:
            unseen, serves = (7, 7) if spec.schedules.refresh == "week" else (28, 31)
        return cls(window, learned, unseen, (before, before + serves))


# --- one replay: which days -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """How often each of h days counts in a window, in the reference, and in the part of the reference with predictions.

    Attributes:
        start: number of the window's first day.
        window, reference, unseen: h counts each.
    """

    start: int
    window: NDArray[np.int64]
    reference: NDArray[np.int64]
    unseen: NDArray[np.int64]


def draw(days: int, geometry: Geometry, random: np.random.Generator) -> Replay:
    """Draw a window of history, and days before it as a reference.

    History is treated as a circle, so that each day is equally likely (Politis, Romano 1992). A window is one block of it. The
    days of the reference lie before the window. They are drawn in blocks with the mean length of a window (Politis, Romano
    1994). If history is too short for both, the reference consists of the days outside the window.

    Args:
        days: number of days of history.
        geometry: of the model.
        random: the random generator.
    """
    length = min(geometry.reference, days - geometry.window)
    room = days - geometry.window - length
    gap = int(random.integers(min(geometry.gap[0], room), min(geometry.gap[1], room) + 1))
    start = int(random.integers(days))
    begin = start - gap - length
    window = np.bincount((start + np.arange(geometry.window)) % days, minlength=days)
    # A new block begins with the probability 1/window. Otherwise the next day follows.
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
    """Set thresholds, so that a year of windows like those of history raises at most ``drift.false_alarms`` verdicts ``drift``.

    For one column alone, the quantile 1 - budget / (windows per year) of its distances would keep the budget. The unit of a
    column is the distance from its median to this quantile. In these units columns are comparable. The statistic of a window
    is the greatest value of its columns in these units (or the k-th greatest if ``drift.share`` requires k features), or the
    value of the predictions. The same quantile of this statistic is the factor by which all thresholds are stretched. It
    corrects for the number of columns, and accounts for their correlation (Westfall, Young 1993).

    Short history would give thresholds that are too low. Two measures prevent this. The units for a window's statistic come
    only from parts of history that share no day with it (cross-validation by blocks: Burman, Chow, Nolan: A Cross-Validatory
    Method for Dependent Data. Biometrika 81, 1994). And the factor is at least the prediction bound of a t distribution over
    as many windows as fit into history without overlap (Hahn, Meeker: Statistical Intervals. Wiley 1991).

    Args:
        policy: ``drift`` of the spec.
        geometry: of the model.
        history: stable rows.
        seed: seed of the draws.
        replays: number of windows to compare.
        progress: see :data:`Progress`.

    Returns:
        The thresholds of all columns.

    Raises:
        CalibrationError: history is too short or empty, or raises too many alarms with any thresholds.
    """
    columns = prepare_all(history.rows, history.rows.column_names)
    names = list(columns)
    calendar = _calendar(history.moments)
    days = len(calendar[1])
    if days < LEAST_WINDOWS * geometry.window:
        raise CalibrationError(
            f"history has {days} days; thresholds need at least {LEAST_WINDOWS * geometry.window} "
            f"({LEAST_WINDOWS} monitoring windows): load more history, or wait for it"
        )
    found, strange, starts = _compare_replays(
        policy, geometry, columns, calendar, seed=seed, replays=replays, progress=progress
    )
    usable = np.isfinite(found[:, 0]).any(axis=1)
    if usable.sum() < replays / 2:
        raise CalibrationError(
            f"only {usable.sum()} of {replays} windows of history could be compared: the others, or their reference, "
            f"have fewer than {policy.min_rows} rows (drift.min_rows; drift.match is {policy.match})"
        )
    seen, novel = np.nan_to_num(found[usable], nan=0.0), strange[usable] >= policy.max_new_categories
    bounds, expected = _stretch(policy, geometry, names, seen, novel, starts[usable], days)
    reach = {name: column.farthest() for name, column in columns.items()}
    return DriftThresholds(
        computed_at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        history=history.interval.key,
        features_snapshot=history.snapshot,
        version=history.version,
        reference=history.reference,
        constant=[name for name in names if reach[name] == 0 and not columns[name].absent.all()],
        wide=[name for place, name in enumerate(names) if 0 < reach[name] <= bounds[0, place]],
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


def _compare_replays(
    policy: Drift,
    geometry: Geometry,
    columns: Mapping[str, PreparedColumn],
    calendar: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    *,
    seed: int,
    replays: int,
    progress: Progress,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Compare windows of history with earlier rows.

    Args:
        policy: ``drift`` of the spec.
        geometry: of the model.
        columns: by name, the columns of history.
        calendar: from :func:`_calendar`.
        seed: seed of the draws.
        replays: number of windows.
        progress: see :data:`Progress`.

    Returns:
        Replays by two (distance, change of the share missing) by columns, NaN where nothing was compared; replays by columns,
        the share of values in new categories; and the first day of each replay's window.
    """
    day_of, weekday, month = calendar
    found = np.full((replays, 2, len(columns)), np.nan)
    strange = np.zeros((replays, len(columns)))
    starts = np.zeros(replays, dtype=np.int64)

    def replay(number: int) -> None:
        random = np.random.default_rng([seed, number])
        drawn = draw(len(weekday), geometry, random)
        starts[number] = drawn.start
        alike = _alike(policy, drawn.window, weekday, month)
        window = _thin(drawn.window[day_of].astype(np.float64), policy.sample, random)
        reference = _thin((drawn.reference * alike)[day_of].astype(np.float64), policy.sample, random)
        unseen = _thin((drawn.unseen * alike)[day_of].astype(np.float64), policy.sample, random)
        if min(window.sum(), reference.sum()) < policy.min_rows:
            return
        for place, (name, column) in enumerate(columns.items()):
            known = unseen if name == _PREDICTION else reference
            if known.any():
                found[number, 0, place] = column.distance(window, known)
                found[number, 1, place] = abs(_share(column.absent, window) - _share(column.absent, known))
                strange[number, place] = column.strange(window, known)

    with ThreadPoolExecutor() as pool:  # sorting, counting and adding release the GIL
        for running in progress([pool.submit(replay, number) for number in range(replays)]):
            running.result()
    return found, strange, starts


def _stretch(
    policy: Drift,
    geometry: Geometry,
    names: list[str],
    seen: NDArray[np.float64],
    novel: NDArray[np.bool_],
    starts: NDArray[np.int64],
    days: int,
) -> tuple[NDArray[np.float64], float]:
    """The thresholds, and the verdicts ``drift`` per year that they raise on parts of history that they were not set by.

    Args:
        policy: ``drift`` of the spec.
        geometry: of the model.
        names: names of the columns.
        seen: replays by two (distance, change of the share missing) by columns.
        novel: replays by columns: whether new categories alone make the column drift.
        starts: first day of each replay's window.
        days: number of days of history.

    Returns:
        Two (distance, change of the share missing) by columns, and the verdicts per year.
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
            f"values that are new in a window alarm in {np.mean(np.isinf(statistic)):.1%} of stable windows, more than the "
            f"budget of {level:.1%}, whatever the thresholds ({often}): raise drift.max_new_categories, group rare "
            "categories in features.sql, or calibrate from later history if a column had only one value before"
        )
    finite, independent = statistic[np.isfinite(statistic)], days / geometry.window
    spread = float(finite.std()) * math.sqrt(1 + 1 / independent)
    bound = float(finite.mean()) + float(stats.t.ppf(1 - level, independent - 1)) * spread
    # A column that reaches its threshold has drifted. So the threshold lies slightly above the last window that may pass.
    factor = max(bound, float(np.quantile(statistic, 1 - level, method="higher"))) * (1 + 1e-9)
    usual, unit = units(np.ones(len(seen), dtype=bool))
    bounds = np.ceil(np.maximum(usual + factor * unit, _NEGLIGIBLE) * 10_000) / 10_000
    return bounds, float(np.mean(statistic >= factor)) * windows


def _calendar(moments: NDArray[np.datetime64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The number of each row's day, and the weekday and month of each day. Only days with rows are counted, from 0."""
    date = moments.astype("datetime64[D]")
    present, day_of = np.unique(date, return_inverse=True)
    # 1970-01-01 was a Thursday.
    return day_of, (present.astype(np.int64) + 3) % 7, present.astype("datetime64[M]").astype(np.int64) % 12


def _alike(policy: Drift, window: NDArray[np.int64], weekday: NDArray[np.int64], month: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each day has a weekday or month of the window, as ``drift.match`` requires."""
    if policy.match == "none":
        return np.ones(len(window), dtype=bool)
    kind = weekday if policy.match == "weekday" else month
    return np.isin(kind, kind[window > 0])


def _thin(counts: NDArray[np.float64], most: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Keep about as many rows as a sample has. The counts of the others become 0."""
    total = float(counts.sum())
    if total > most:
        counts = np.where(random.random(len(counts)) < most / total, counts, 0.0)
    return counts


def _share(which: NDArray[np.bool_], counts: NDArray[np.float64]) -> float:
    return float(counts[which].sum() / counts.sum())


# --- from the lake, and to the folder ---------------------------------------------------------------------------------


def read_history(
    folder: ModelFolder, deployment: Deployment, interval: Interval | None = None, version: int | None = None
) -> StableHistory:
    """Read published features of the past, with predictions of one version.

    One version predicts all rows, since predictions of different versions differ for other reasons than drift. It was trained
    on some of these rows. They occur on both sides of the comparison.

    Args:
        folder: the model's folder.
        deployment: has the features and the champion.
        interval: the stable interval; by default everything that is published.
        version: the version; by default the champion.

    Raises:
        CalibrationError: no features are published in the interval, or the version has other features than the folder.
        NoChampion: the model has no champion.
    """
    spec, ledger, registry = folder.spec, deployment.ledger, deployment.registry
    published, intervals = ledger.published(spec.name, "features"), ledger.publications(spec.name, "features", interval)
    if published is None or not intervals:
        raise CalibrationError(f"{spec.name}: no features are published{f' for {interval}' if interval else ''}; ingest first")
    if interval is None:
        interval = Interval(min(p.interval.start for p in intervals), max(p.interval.end for p in intervals))
    version = registry.champion(spec.name) if version is None else version
    if version is None:
        raise NoChampion(f"{spec.name} has no champion, and its predictions are needed for the comparison: train first")
    own = own_folder(registry, version, folder)
    if not own.is_current:
        raise CalibrationError(
            f"{spec.name}: version {version} predicts by its own folder, whose features are not those of the "
            "present folder: calibrate when a version of the present folder is champion"
        )
    snapshot = published.snapshots["features"]
    reader = deployment.lake.scan(spec.name, "features", snapshot, interval=interval, event_time=spec.event_time)
    rows, total = take_sample(reader, list(spec.entity_table.key), size=MAX_ROWS, seed=spec.training.seed)
    if total > rows.num_rows:
        log.info("%s of %s rows of history are used", f"{rows.num_rows:,}", f"{total:,}")
    rows = rows.sort_by(spec.event_time)
    said = registry.load(spec.name, version, spec=spec).predict(rows).values
    kind = pa.string() if said.dtype.kind == "O" else pa.float64()
    moments = rows.column(spec.event_time).to_numpy().astype("datetime64[us]")
    rows = rows.select(spec.features.names).append_column(_PREDICTION, pa.array(said, kind))
    return StableHistory(rows, moments, interval, snapshot, version, own.record.training.window or None)


def write(folder: ModelFolder, thresholds: DriftThresholds) -> Path:
    """Write thresholds to ``drift.yaml`` beside ``model.yaml``. An existing file is replaced.

    Returns:
        The path of the file.
    """
    file = folder.path / THRESHOLDS_FILE
    kept = thresholds.model_dump(mode="json", exclude={"columns"}, exclude_none=True)
    kept = {key: value for key, value in kept.items() if value != []}
    lines = [
        f"# Written by `perennial calibrate {folder.spec.name}`: when a column has drifted. Windows like those of",
        "# history raise at most `false_alarms` verdicts per year. distance: standard deviations of the reference (numbers)",
        "# or Jensen-Shannon (categories). missing: change of the share of missing values. constant: one value in all of",
        "# history. wide: not even the farthest value of history in every row would alarm.",
        yaml.safe_dump(kept, sort_keys=False).rstrip(),
        "columns:",
        *(f"  {name}: {{distance: {one.distance:g}, missing: {one.missing:g}}}" for name, one in thresholds.columns.items()),
    ]
    with replacing(file) as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
