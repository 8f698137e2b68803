"""The assets and timetables that connect the DAGs. An event of an asset says what is published, and starts what follows."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import (
    Asset,
    CronTriggerTimetable,
    DeltaTriggerTimetable,
    IdentityMapper,
    MonthWindow,
    PartitionedAssetTimetable,
    PartitionMapper,
    RollupMapper,
    StartOfMonthMapper,
    StartOfWeekMapper,
    WeekWindow,
)

from perennial.orchestration.timetables import EachDay
from perennial.spec.model import ModelSpec
from perennial.stages.overdue import Follower

#: Format of a partition key: a UTC day. A week or month is named by its first day.
DAY = "%Y-%m-%d"
#: A DAG that has just been switched on runs a past tick only if the tick is younger than this; otherwise it waits for the next
#: one. Airflow's default is a tenth of the time between two ticks, so whether the DAG runs at once would depend on the hour.
#: Without any grace, the first tick could be lost: at each parse, Airflow computes the next run of a DAG without runs again,
#: perhaps before the scheduler has handled the tick.
_GRACE = timedelta(minutes=5)


def features(model: str) -> Asset:
    """The features of a day are published, and the day is to be scored."""
    return Asset(name=f"{model}.features", uri=f"perennial://{model}/features", group="perennial")


def trainable(model: str) -> Asset:
    """The features of a day are published, and a training that learns from it may start."""
    return Asset(name=f"{model}.trainable", uri=f"perennial://{model}/trainable", group="perennial")


def predictions(model: str) -> Asset:
    """The predictions of a day are published."""
    return Asset(name=f"{model}.predictions", uri=f"perennial://{model}/predictions", group="perennial")


def followers(model: ModelSpec) -> list[Follower]:
    """The stages that publications start."""
    found: list[Follower] = ["score", "monitor"]
    if model.schedules.train != "never":
        found.append("train")
    if model.refreshes:
        found.append("refresh")
    return found


def due(model: str, stage: str) -> Asset:
    """Work of a stage is due that no publication will start: the days of its window that are missing were waited for."""
    return Asset(name=f"{model}.{stage}.due", uri=f"perennial://{model}/{stage}/due", group="perennial")


def each_day(cron: str, *, catch_up: timedelta) -> EachDay:
    """A run at each tick of ``cron`` (UTC), for the day before; also at missed ticks that are not older than ``catch_up``."""
    return EachDay(cron, key_format=DAY, run_immediately=_GRACE, catch_up=catch_up)


def at(cron: str) -> CronTriggerTimetable:
    """A run at each tick of ``cron`` (UTC)."""
    return CronTriggerTimetable(cron, timezone="UTC", run_immediately=_GRACE)


def every(period: timedelta) -> DeltaTriggerTimetable:
    """A run at once, and then one in each period."""
    return DeltaTriggerTimetable(period)


def each(asset: Asset) -> PartitionedAssetTimetable:
    """A run for each day that is published."""
    return PartitionedAssetTimetable(assets=asset, default_partition_mapper=IdentityMapper())


def when_published(asset: Asset, window: str, *, due: Asset) -> PartitionedAssetTimetable | None:
    """A run for each ``day``, ``week`` (from Monday) or ``month`` once all its days are published; None for ``never``.

    Args:
        asset: what is published, with a day as partition.
        window: the period of a run.
        due: starts the run of a window that is not published wholly; its partition is the window's first day.
    """
    mapper: PartitionMapper
    match window:
        case "day":
            mapper = IdentityMapper()
        case "week":
            mapper = RollupMapper(upstream_mapper=StartOfWeekMapper(input_format=DAY, output_format=DAY), window=WeekWindow())
        case "month":
            mapper = RollupMapper(upstream_mapper=StartOfMonthMapper(input_format=DAY, output_format=DAY), window=MonthWindow())
        case _:
            return None
    # Both are events of the same partition: one run for it, and nothing is left waiting for the missing days.
    return PartitionedAssetTimetable(
        assets=asset | due, default_partition_mapper=mapper, partition_mapper_config={due: IdentityMapper()}
    )
