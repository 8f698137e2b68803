"""
# Maintain: keep what must be kept, and no more

Once a day Airflow removes what runs handed from task to task, reports and quarantined rows older than `retention` in
`model.yaml`, rows of tables, features and predictions where a duration is stated there, and Iceberg snapshots that nobody
needs. What a kept version learned from stays. A snapshot that a kept version was trained on is pinned and never
dropped. Small files of a table are joined, files that no snapshot names are removed, and runs that MLflow still shows as
running although their process is dead are closed. Should MLflow's alias `champion` and the ledger differ, because somebody
moved the one or a promotion was cut off, they are brought in line.

Readers and writers may work meanwhile: a table is only ever replaced by one with the same rows, or without those whose time
is over.

## When it fails
- Nothing is lost and nothing stops; disks fill more slowly than you have time to read the log. Clear it, or wait for tomorrow.
- **align_alias** with *ArtifactRejected*: somebody moved the alias to a version that Perennial did not register. Move it back.
- **no space left**: `retention` is longer than the disk. Shorten it, then trigger this DAG by hand.
"""

from airflow.sdk import chain

from perennial.orchestration.dags import models, stage
from perennial.orchestration.operate import align_alias, clear_files, close_abandoned_runs, tidy_lake

for model in models():
    with stage(model, "maintain", schedule=model.schedules.maintain, doc=__doc__):
        align_alias(model=model.name)
        chain(clear_files(model=model.name), tidy_lake(model=model.name), close_abandoned_runs(model=model.name))
