"""
# Load: history, in parts that many workers share

Does for a long range of past days what `ingest` does for one day. The range is cut into parts. For each part, separate tasks
read, check and publish its tables; several parts run at the same time. When all tables are published, the features of each
part are computed: features look back over earlier parts. A table without event time is read once, and published with the last
part.

Runs only by hand: give `start` and `end`. Turn `announce` on to have these days scored, monitored and trained on. Daily runs
do not wait for a load: it uses at most as many workers as its pool and `PERENNIAL_PARTS_AT_ONCE` allow.

## When it fails
- **check_… of a part is red**: as in `ingest`, but for that part; the tables of the others are published. Correct the source,
  then clear the red tasks and their downstream tasks. If these days cannot be corrected, load the days before and after them.
- **build_features is not started**: tables of a part are missing. Features that look back into a gap would be wrong.
- **Superseded**: a newer run has replaced this one for the same days. You need not do anything.
- Loading the same range again is always safe.
"""

from airflow.sdk import XComArg, chain, task_group

from perennial.orchestration import assets
from perennial.orchestration.dags import day, days_per_part, models, parts_at_once, result, stage, switch
from perennial.orchestration.ingest import build_features, check_task_id, land_and_check, publish_tables, split_range
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
            "announce": switch("Announce", "Start scoring, monitoring and training for these days.", default=False),
        },
        max_active_tasks=parts_at_once(),
    ):
        parts = split_range(model=model.name)
        whole = [
            land_and_check.override(task_id=check_task_id(name))(model=model.name, table=name)
            for name, table in model.tables.items()
            if not table.event_time
        ]
        build_part = build_features.override(outlets=[assets.features(model.name)]).partial(model=model.name)
        chain(load_part.partial(model=model, whole=whole).expand(part=parts), build_part.expand(part=parts))
