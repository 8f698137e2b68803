"""
# Maintain: keep what must be kept, and no more

Once a day, this DAG removes:

- files that past runs passed from task to task, and temporary files of tasks that were killed;
- reports and quarantined rows that are older than `retention` in `model.yaml`;
- old rows of tables, features and predictions, where `retention` states a duration for them;
- Iceberg snapshots that are no longer needed;
- files that no snapshot names.

Data that a kept version was trained on are kept: their snapshot is pinned and never dropped. Small files of a table are
compacted. Runs that MLflow still shows as running although their process is dead are closed. MLflow's alias `champion` and
the ledger can differ, if somebody moved the alias or a promotion was interrupted; then they are made to agree.

Readers and writers can work meanwhile: a table is only replaced by one with the same rows, or without those past retention.

## When it fails
- Nothing is lost, and no other DAG stops. Disks fill slowly, so it is not urgent. Clear the task, or wait for tomorrow's run.
- **align_alias** with *ArtifactRejected*: somebody moved the alias to a version that Perennial did not register. Move it back.
- **no space left**: the disk is too small for this `retention`. Shorten it, then trigger this DAG by hand.
"""

from airflow.sdk import chain

from perennial.orchestration.dags import models, stage
from perennial.orchestration.operate import align_alias, clear_files, close_abandoned_runs, tidy_lake

for model in models():
    with stage(model, "maintain", schedule=model.schedules.maintain, doc=__doc__):
        align_alias(model=model.name)
        chain(clear_files(model=model.name), tidy_lake(model=model.name), close_abandoned_runs(model=model.name))
