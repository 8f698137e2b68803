"""
# Score: from published features to published predictions

The run looks up the champion's version number once, and every prediction records that number. The predictions of an interval
are written in one step: to the lake, and to the table `<model>_predictions` of the predictions database. Each has its version,
feature snapshot, run and time. Scoring a day again replaces its predictions.

After a promotion, the former champion keeps scoring in the shadow of the new one for some windows. A refused candidate that
came close can do so, too (`shadow` in `model.yaml`). The lake keeps shadow predictions in the separate dataset `shadows`, so
readers of predictions do not see them. The champion's predictions are published first.

Runs for each day that `ingest` announces. By hand: give `start` and `end`. A long range is scored in parts, one task per part,
all with the same version. Each part's predictions can be read as soon as the part is done.

## When it fails
- **resolve_champion is skipped**: no version has been promoted yet. Trigger `<model>.train`.
- **ScoringError**: the champion's predictions were NaN, infinite or constant, and nothing was written. Look at the day's
  features first. If they are correct, roll back with `<model>.rollback`, then clear this run.
- **VersionUnusable**: MLflow or the tables no longer have what the champion needs, or its files differ from what was
  registered; then also find out who changed them. The next training replaces the champion; trigger `<model>.train` or
  `<model>.rollback` to have that now, then clear this run.
- **ArtifactRejected**: the champion's files cannot be fetched now. Clear this run once MLflow's store answers.
- **ModelRenamed**: the registered model has another name in MLflow. Rename it back, then clear this run.
- **A part of predict is red**: the other parts are published. Correct the cause and clear only that part.
- **score_shadows is skipped**: this is not a failure. No version is in the shadow now.
- **score_shadows is red**: the champion's predictions are published nevertheless. (A version that cannot predict is left out
  and does not fail the task.) Clear it, or leave it: then these days are missing from a comparison.
- You may ignore a failure if a later run for the same day has succeeded.
"""

from airflow.sdk import chain

from perennial.orchestration import assets
from perennial.orchestration.dags import day, days_per_part, models, parts_at_once, stage
from perennial.orchestration.score import predict, resolve_champion, score_shadows

for model in models():
    with stage(
        model,
        "score",
        schedule=assets.when_published(assets.features(model.name), "day", due=assets.due(model.name, "score")),
        doc=__doc__,
        params={
            "start": day("First day", "For a range: its first day (UTC). Empty: the run's own partition."),
            "end": day("End", "For a range: the first day that is left out (UTC)."),
            "days_per_part": days_per_part(),
        },
        max_active_runs=4,
    ):
        work = resolve_champion(model=model.name)
        scored = (
            predict.override(outlets=[assets.predictions(model.name)], max_active_tis_per_dagrun=parts_at_once())
            .partial(model=model.name)
            .expand(work=work)
        )
        chain(work, scored)
        if model.shadow.windows:
            chain(scored, score_shadows.partial(model=model.name).expand(work=scored))
