"""
# Score: from published features to published predictions

The champion is resolved once, by number, and that number is what every prediction records. Predictions are written for
their interval as one, to the lake and to the table `<model>_predictions` of the predictions database, with version,
feature snapshot, run and time. Scoring a day again replaces its predictions.

After a promotion the champion before keeps scoring in the shadow of the new one for some windows, and so may a refused
candidate that came close (`shadow` in `model.yaml`). What they say lies in the lake, as the dataset `shadows`; nobody who
reads predictions sees it, and the champion's are published before.

Runs for each day that `ingest` announces. By hand: give `start` and `end`; a long range is scored in parts, a task each, by
the same version, and each part's predictions can be read as soon as it is done.

## When it fails
- **resolve_champion is skipped**: no version has been promoted yet. Trigger `<model>.train`.
- **ScoringError**: the champion gave NaN, infinite or constant predictions, and nothing was written. Look at the day's
  features first; if they are sound, roll back with `<model>.rollback`, then clear this run.
- **ArtifactRejected**: the stored model differs from what was registered. Do not force it: roll back, and find out who
  changed the file.
- **A part of predict is red**: the other parts are published. Mend the cause and clear that part alone.
- **score_shadows is skipped**: no failure. No version is in the shadow now.
- **score_shadows is red**: the champion's predictions are published all the same; a version that cannot predict is left out
  and does not fail the task. Clear it, or let it be: these days are then missing in a comparison.
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
        schedule=assets.when_published(assets.features(model.name), "day"),
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
