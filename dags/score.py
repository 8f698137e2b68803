"""
# Score: from published features to published predictions

The champion is resolved once, by number, and that number is what every prediction records. Predictions are written for
their interval as one, to the lake and to the table `<model>_predictions` of the predictions database, with version,
feature snapshot, run and time. Scoring a day again replaces its predictions.

Runs for each day that `ingest` announces. By hand: give `start` and `end`.

## When it fails
- **resolve_champion is skipped**: no version has been promoted yet. Trigger `<model>.train`.
- **ScoringError**: the champion gave NaN, infinite or constant predictions, and nothing was written. Look at the day's
  features first; if they are sound, roll back with `<model>.rollback`, then clear this run.
- **ArtifactRejected**: the stored model differs from what was registered. Do not force it: roll back, and find out who
  changed the file.
- You may ignore a failure if a later run for the same day has succeeded.
"""

from airflow.sdk import chain

from perennial.orchestration import assets
from perennial.orchestration.dags import day, models, stage
from perennial.orchestration.score import predict, resolve_champion

for model in models():
    with stage(
        model,
        "score",
        schedule=assets.when_published(assets.features(model.name), "day"),
        doc=__doc__,
        params={
            "start": day("First day", "For a range: its first day (UTC). Empty: the run's own partition."),
            "end": day("End", "For a range: the first day that is left out (UTC)."),
        },
        max_active_runs=3,
    ):
        version = resolve_champion(model=model.name)
        chain(version, predict.override(outlets=[assets.predictions(model.name)])(model=model.name, version=version))
