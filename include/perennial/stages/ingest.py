"""Ingest: read an interval from the sources, and publish its tables and features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from perennial.core.errors import Superseded
from perennial.core.intervals import Interval
from perennial.stages.run import StageRun

if TYPE_CHECKING:
    import sqlalchemy as sa

    from perennial.ingestion.checks import CheckResult
    from perennial.ledger.records import Publication


def settle_order(run: StageRun, interval: Interval) -> None:
    """Fix the run's order among the runs of the same interval, before it reads the first row."""
    run.deployment.ledger.next_order(run.model, "tables", interval, run.run_id)


def check_table(run: StageRun, table: str, interval: Interval, *, connect: Callable[[str], sa.Engine]) -> CheckResult:
    """Read a table's rows of an interval, and check them with Great Expectations.

    Args:
        run: the run.
        table: the table's name.
        interval: the interval of event times.
        connect: opens the database that a spec's ``connection`` names.

    Returns:
        The result of the checks, also if the rows are refused.

    Raises:
        SourceError: the source cannot be read.
    """
    from perennial.ingestion.publish import land_and_check

    settle_order(run, interval)
    lake, settings = run.deployment.lake, run.deployment.settings
    return land_and_check(run.folder, lake, settings, table, interval, run.staging, connect=connect, run_id=run.run_id)


@dataclass(frozen=True)
class Published:
    """What a run has published of the raw tables.

    Attributes:
        tables: the publication of the interval.
        late: a publication for each earlier day that late rows have changed.
    """

    tables: Publication
    late: list[Publication]

    @property
    def late_rows(self) -> dict[str, dict[str, int]]:
        """New or changed rows by day and table."""
        return {publication.interval.key: dict(publication.inputs["late"]) for publication in self.late}


def publish_tables(run: StageRun, interval: Interval, checked: Sequence[CheckResult], *, whole: Interval) -> Published:
    """Publish all tables of an interval together, and then its late rows into their own days.

    A table without event time is replaced as a whole. If a run publishes several intervals, only the last one publishes it.

    Args:
        run: the run.
        interval: the interval to publish.
        checked: the results of the checks, one per table.
        whole: all days of the run.

    Raises:
        IntervalRefused: a table was refused or was not checked; nothing is published.
    """
    from perennial.ingestion.late import publish_late
    from perennial.ingestion.publish import DATASET, publish_interval

    tables = run.folder.spec.tables
    if interval.end < whole.end:
        tables = {name: table for name, table in tables.items() if table.event_time}
    results = [result for result in checked if result.table in tables]
    lake = run.deployment.lake
    published = publish_interval(run.folder, lake, interval, results, tables=tables, run_id=run.run_id)
    return Published(published, publish_late(run.folder, lake, DATASET, interval, results, run_id=run.run_id))


def build_features(run: StageRun, interval: Interval) -> Publication:
    """Compute an interval's features from the published tables, and publish them.

    Features of the days before it are computed again where late rows have changed them.

    Returns:
        The publication that contains the features. It is another run's if a training has rebuilt these days meanwhile.
    """
    from perennial.features.publish import ensure_features, outdated_days, publish_features

    lake, ledger = run.deployment.lake, run.deployment.ledger
    late = max((table.late or timedelta() for table in run.folder.spec.tables.values()), default=timedelta())
    if late:
        # Day by day: so it can be told which of them have changed.
        for day in outdated_days(run.folder, ledger, Interval(interval.start - late, interval.start)):
            ensure_features(run.folder, lake, day, run_id=run.run_id)
    order = ledger.next_order(run.model, "features", interval, run.run_id)
    try:
        return publish_features(run.folder, lake, interval, order=order, run_id=run.run_id)
    except Superseded:
        ensure_features(run.folder, lake, interval, run_id=run.run_id)
        return ledger.publications(run.model, "features", interval)[-1]


@dataclass(frozen=True)
class Ingested:
    """What a run of the stage published."""

    tables: Published
    features: Publication


def ingest(run: StageRun, interval: Interval, *, connect: Callable[[str], sa.Engine]) -> Ingested:
    """The whole stage.

    Args:
        run: the run.
        interval: whole days.
        connect: opens the database that a spec's ``connection`` names.

    Raises:
        IntervalRefused: a critical check failed; nothing is published.
        SourceError: a source cannot be read.
    """
    checked = [check_table(run, table, interval, connect=connect) for table in run.folder.spec.tables]
    tables = publish_tables(run, interval, checked, whole=interval)
    return Ingested(tables, build_features(run, interval))
