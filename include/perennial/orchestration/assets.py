"""Every hand-off between DAGs, named once. An asset is a fact: these rows are published."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import (
    Asset,
    CronPartitionTimetable,
    CronTriggerTimetable,
    MonthWindow,
    PartitionedAssetTimetable,
    RollupMapper,
    StartOfMonthMapper,
    StartOfWeekMapper,
    WeekWindow,
)

#: A partition is a UTC day; so is the name of a week or month, by its first day.
DAY = "%Y-%m-%d"
#: A DAG that is switched on waits for its next tick. By itself Airflow would also run one that is less than a tenth of the time
#: between two ticks ago, and so what happens would depend on the hour. None at all would lose a first tick: whenever a file is
#: parsed, Airflow asks anew when a DAG without runs is due, and just after the tick the scheduler may not have come to it yet.
_GRACE = timedelta(minutes=5)


def features(model: str) -> Asset:
    """The features of a day are published, with the tables they were made from."""
    return Asset(name=f"{model}.features", uri=f"perennial://{model}/features", group="perennial")


def predictions(model: str) -> Asset:
    """The predictions of a day are published."""
    return Asset(name=f"{model}.predictions", uri=f"perennial://{model}/predictions", group="perennial")


def each_day(cron: str) -> CronPartitionTimetable:
    """At each tick of ``cron`` (UTC), the day before it."""
    return CronPartitionTimetable(cron, timezone="UTC", run_offset=-1, key_format=DAY, run_immediately=_GRACE)


def at(cron: str) -> CronTriggerTimetable:
    """At each tick of ``cron`` (UTC)."""
    return CronTriggerTimetable(cron, timezone="UTC", run_immediately=_GRACE)


def when_published(asset: Asset, window: str) -> PartitionedAssetTimetable | None:
    """Once for each ``day``, ``week`` (from Monday) or ``month`` whose days are all published; None for ``never``."""
    match window:
        case "day":
            return PartitionedAssetTimetable(assets=asset)
        case "week":
            mapper = RollupMapper(upstream_mapper=StartOfWeekMapper(input_format=DAY, output_format=DAY), window=WeekWindow())
        case "month":
            mapper = RollupMapper(upstream_mapper=StartOfMonthMapper(input_format=DAY, output_format=DAY), window=MonthWindow())
        case _:
            return None
    return PartitionedAssetTimetable(assets=asset, default_partition_mapper=mapper)
