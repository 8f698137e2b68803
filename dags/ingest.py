"""
# Ingest: a day from the sources to published features

For each table, this DAG reads the rows of the interval. Great Expectations checks them as `model.yaml` says. Rows that fail a
critical check go to the **quarantine** table with every reason; the others are published. All tables of the interval are
published in one step, and until then readers see the old state. Then the features of the interval are computed. Each row
uses only what was known at its own as-of time. Last, every day is announced to scoring, monitoring and training, oldest first;
a run by hand can leave out each of them (`announce_…`).

Runs automatically each day, for the day before. After a pause of this DAG or of the whole stack, the missed days follow, oldest
first, one after another, as far back as `schedules.catch_up` in `model.yaml` says. By hand: give `start` and `end` for days
that belong together, such as those of a correction. They are published in one step. Use `<model>.load` to load history in
parts.

Each run also starts what no publication will: a week or month of which days are still missing when its `schedules.grace` is
over, days that were not scored while `score` was switched off, days whose features late or corrected rows of an earlier run
have changed since they were scored, and windows that were not judged (`announce_overdue_…`).

## When it fails
- **check_… is red**: the message names the check, the column and the share of rows. Nothing of the interval was published;
  what was published before stays. Look at the Data Docs under `var/reports/<model>/checks`. Correct the source, then clear
  the failed tasks. If the data are right and the check is wrong, change `model.yaml` and clear them.
- **"there is no such file"**: the source has not delivered. The task was retried several times. Clear it once the file is
  there. If no data come on such days, say so: `schedules.closed` in `model.yaml` publishes them empty; then clear the task.
- **"0 rows arrived"**: the same, or `checks: {rows: {min: 0}}` for a table that may have no rows.
- **Days are missing after a long pause**: they were due longer ago than `schedules.catch_up`. The alert `silent` names them:
  trigger `<model>.load` for them.
- **announce_overdue_… is skipped**: this is not a failure. Nothing is overdue.
- **Superseded**: a newer run has replaced this one for the same days. You need not do anything.
- You may ignore a failure if a later run for the same days has succeeded.
"""

from airflow.sdk import chain

from perennial.orchestration import assets
from perennial.orchestration.dags import announcements, day, models, result, stage
from perennial.orchestration.ingest import announce_overdue, build_features, check_task_id, land_and_check, publish_tables

for model in models():
    with stage(
        model,
        "ingest",
        schedule=assets.each_day(model.schedules.ingest, catch_up=model.schedules.catch_up),
        doc=__doc__,
        params={
            "start": day("First day", "For a range: its first day (UTC). Empty: the run's own partition."),
            "end": day("End", "For a range: the first day that is left out (UTC)."),
            **announcements(default=True),
        },
    ):
        checked = [
            result(land_and_check.override(task_id=check_task_id(table))(model=model.name, table=table))
            for table in model.tables
        ]
        published = publish_tables(model=model.name, checked=checked)
        features = build_features.override(outlets=[assets.features(model.name), assets.trainable(model.name)])(
            model=model.name
        )
        chain(published, features)
        # They wait for nothing: a day that is refused must not stop the week before it. Nor may they follow the features: a run
        # whose last task succeeds is a success for Airflow, whatever failed before it.
        for follower in assets.followers(model):
            announce_overdue.override(task_id=f"announce_overdue_{follower}", outlets=[assets.due(model.name, follower)])(
                model=model.name, follower=follower
            )
