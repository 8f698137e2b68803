"""The timetable of ``ingest``: a run per day, also for the days of a pause.

Airflow has two ways to go on after a pause: ``catchup=False`` runs the last missed tick alone, ``catchup=True`` runs them all,
however long the pause was. :class:`EachDay` runs those that are not older than a bound. Airflow stores the timetable with the
DAG, so the plugin ``plugins/perennial_timetables.py`` names it to the scheduler.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk.timezone import coerce_datetime, utcnow
from airflow.timetables.base import DagRunInfo, TimeRestriction
from airflow.timetables.trigger import CronPartitionTimetable


class EachDay(CronPartitionTimetable):
    """A run at each tick, for the day before. Ticks that were missed are made up for, oldest first, one after another.

    Args:
        cron: five cron fields, in UTC.
        key_format: format of the partition key.
        run_immediately: a DAG without runs also runs its last tick if it is not older than this.
        catch_up: missed ticks that are older than this are left out. The newest tick never is.
    """

    def __init__(self, cron: str, *, key_format: str, run_immediately: timedelta, catch_up: timedelta) -> None:
        super().__init__(cron, timezone="UTC", run_offset=-1, key_format=key_format, run_immediately=run_immediately)
        self.expression, self.catch_up = cron, catch_up
        self._stored = {"key_format": key_format, "run_immediately": run_immediately.total_seconds()}

    def serialize(self) -> dict[str, Any]:
        return {"cron": self.expression, "catch_up": self.catch_up.total_seconds(), **self._stored}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> EachDay:
        return cls(
            data["cron"],
            key_format=data["key_format"],
            run_immediately=timedelta(seconds=data["run_immediately"]),
            catch_up=timedelta(seconds=data["catch_up"]),
        )

    def next_dagrun_info_v2(self, *, last_dagrun_info: DagRunInfo | None, restriction: TimeRestriction) -> DagRunInfo | None:
        """The tick after the last run's, or the oldest that is within the bound, or the newest."""

        def after(last: DagRunInfo | None, *, catchup: bool) -> DagRunInfo | None:
            asked = TimeRestriction(restriction.earliest, restriction.latest, catchup)
            return super(EachDay, self).next_dagrun_info_v2(last_dagrun_info=last, restriction=asked)

        following, newest = (after(last_dagrun_info, catchup=catchup) for catchup in (True, False))
        bound = coerce_datetime(utcnow()) - self.catch_up
        if following is None or newest is None or following.run_after >= bound:
            return following
        # The first tick after the bound, as if a run had been at the bound.
        within = after(DagRunInfo(run_after=bound, data_interval=None, partition_date=None, partition_key=None), catchup=True)
        return newest if within is None or within.run_after > newest.run_after else within
