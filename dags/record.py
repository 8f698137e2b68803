"""
# Record: from what was asked online to the lake, and to the parity of what was served

It exists for models with the section `online` in `model.yaml` whose requests are recorded (`online.record`). Scorers write what
they were asked and what they answered to the table `online_requests` of the predictions database. `publish_requests` moves
these rows to the dataset `requests` of the lake, each exactly once.

`measure_parity` computes a sample of the served features again, from the tables that are published now, as of the moment that
was served, and compares them to the last bit. If fewer rows are equal than `online.parity` allows, the alert `online_differs`
names the features, and no candidate with these features is promoted until it is well.

Runs for each day that `ingest` announces. It can be triggered by hand in Airflow at any time.

## When it fails
- Nothing is lost: rows wait in `online_requests`, and the next run publishes them.
- **ServingError**: the predictions database does not answer. Repair it, then clear the task.
- **Superseded**: an entity was erased meanwhile, or another run has published the same hour. Trigger this DAG by hand, or wait
  for its next run.
- **SnapshotMissing** or **SpecError** in `measure_parity`: features cannot be made. Scoring fails in the same way; its message
  says what to do.
- You may ignore a failure if a later run has succeeded.
"""

from perennial.orchestration import assets
from perennial.orchestration.dags import models, stage
from perennial.orchestration.record import measure_parity, publish_requests

for model in models():
    if model.online is not None and model.online.record:
        with stage(model, "record", schedule=assets.each(assets.features(model.name)), doc=__doc__):
            publish_requests(model=model.name) >> measure_parity(model=model.name)
