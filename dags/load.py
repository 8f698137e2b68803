"""
# Load: history, in parts that many workers share

Does for a long range of past days what `ingest` does for one day. The range is cut into parts. For each part, separate tasks
read, check and publish its tables; several parts run at the same time. When all tables are published, the features of each
part are computed: features look back over earlier parts. A table without event time is read once, and published with the last
part.

Runs only by hand: give `start` and `end`. Nothing follows a load unless you ask for it: `announce_scoring`,
`announce_monitoring` and `announce_training` start these stages for the loaded days. When every part is
published, all days are announced, and the stages take them oldest first. What the next run of `ingest` finds overdue within
`schedules.catch_up` follows in any case.

A training takes longer than the scoring of a day. If a load starts both, a day may be scored before the training of the week
before it has ended, and then an older version scores it. To have each day scored by the newest version that has not learned
from it, load with `announce_training`, wait for the trainings, and load again with `announce_scoring`.

Daily runs do not wait for a load: it uses at most as many workers as its pool and `PERENNIAL_PARTS_AT_ONCE` allow.

## When it fails
- **check_… of a part is red**: as in `ingest`, but for that part; the tables of the others are published. Correct the source,
  then clear the red tasks and their downstream tasks. If these days cannot be corrected, load the days before and after them.
- **build_features is not started**: tables of a part are missing. Features that look back into a gap would be wrong.
- **announce_days is skipped**: this is not a failure. The three switches are off.
- **announce_days is not started**: a part has no features. When you have corrected it, clear it with its downstream tasks.
- **Superseded**: a newer run has replaced this one for the same days. You need not do anything.
- Loading the same range again is always safe.
"""

from airflow.sdk import XComArg, chain, task_group

from perennial.orchestration import assets
from perennial.orchestration.dags import announcements, day, days_per_part, models, parts_at_once, result, stage
from perennial.orchestration.ingest import (
    announce_days,
    build_features,
    check_task_id,
    land_and_check,
    plan_announcements,
    publish_tables,
    split_range,
)
from perennial.spec.model import ModelSpec


@task_group
def load_part(model: ModelSpec, part: str, whole: list[XComArg]) -> None:
    """The tables of one part.

    Args:
        model: the model.
        part: key of the part's days.
        whole: results of the tables without event time.
    """
    checked = [
        land_and_check.override(task_id=check_task_id(name))(model=model.name, table=name, part=part)
        for name, table in model.tables.items()
        if table.event_time
    ]
    publish_tables(model=model.name, checked=[result(table) for table in (*checked, *whole)], part=part)


for model in models():
    with stage(
        model,
        "load",
        schedule=None,
        doc=__doc__,
        params={
            "start": day("First day", "The first day (UTC)."),
            "end": day("End", "The first day that is left out (UTC)."),
            "days_per_part": days_per_part(),
            **announcements(default=False),
        },
        max_active_tasks=parts_at_once(),
    ):
        parts = split_range(model=model.name)
        whole = [
            land_and_check.override(task_id=check_task_id(name))(model=model.name, table=name)
            for name, table in model.tables.items()
            if not table.event_time
        ]
        chain(
            load_part.partial(model=model, whole=whole).expand(part=parts),
            build_features.partial(model=model.name).expand(part=parts),
            announce_days.override(outlets=[assets.features(model.name), assets.trainable(model.name)])
            .partial(model=model.name)
            .expand(part=plan_announcements(model=model.name)),
        )
