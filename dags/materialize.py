"""
# Materialize: from published features to rows that are asked by key

It exists for models with the section `online` in `model.yaml`. It writes a row of features for each entity of the newest
published day, and for each published entity whose event comes within `online.horizon`, to the table `online_features` of the
predictions database. The online scorer reads it by the entity's key.

The rows are replaced all at once. What a later run has written is not replaced by an earlier one that runs late. The rows of an
entity to come are computed as of now, without the other entities of its day. If a feature depends on these, it has no row, and
the task's log says so.

Runs for each day that `ingest` announces; with `online.refresh` at that rate instead. It can be triggered by hand in Airflow at
any time.

## When it fails
- The rows that were there are still served, and grow older. After `online.max_age` the scorer answers as `online.missing` says.
- **ServingError**: the predictions database refused the rows. Repair it, then clear the task.
- **SnapshotMissing** or **SpecError**: the features cannot be made. Scoring fails in the same way; its message says what to do.
- **Superseded**: an entity was erased meanwhile. Trigger this DAG by hand, or wait for its next run.
- You may ignore a failure if a later run has succeeded.
"""

from perennial.orchestration import assets
from perennial.orchestration.dags import models, stage
from perennial.orchestration.materialize import fill_online_table

for model in models():
    if model.online is not None:
        refresh = model.online.refresh
        published = assets.features(model.name)
        with stage(model, "materialize", schedule=assets.every(refresh) if refresh else assets.each(published), doc=__doc__):
            fill_online_table(model=model.name)
