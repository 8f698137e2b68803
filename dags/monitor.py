"""
# Monitor: has the world changed, is the champion still good, is it time to retrain?

Evidently compares the window's features and predictions with the champion's training data. `model.yaml` sets the methods
and thresholds; thresholds in `drift.yaml`, which `perennial calibrate` computes from stable history, replace them. The verdict
is `ok`, `drift` or `unknown`. If something could not be computed, the verdict is `unknown`, never `ok`. Drift is a warning. It
is critical if it lasts, or if the estimated or realised performance falls with it. What was asked online in the window gets a
verdict of its own beside it, with its own page and alert; it asks for no training. When labels have arrived, the realised
metrics of earlier windows are measured. Then the retraining policy considers verdicts, history and budget. It asks for a
training run, or declines and says why.

For some windows after a promotion, the champion is also compared with the versions in its shadow (`shadow` in `model.yaml`).
The comparison uses the rows that both predicted, once their labels are mature. If the champion is clearly worse than the one
before, an alert is raised, and where the spec says so, the champion is rolled back.

Runs when all days of the window (a day or a week, as `model.yaml` says) are scored. If some do not come, it runs when
`schedules.grace` is over, on the days that are there, and the verdict says which are missing. With fewer than
`schedules.min_days` the verdict is `unknown`. If a missing day comes later, the window is judged again. By hand: give `start`
and `end`.

## When it fails
- A red task here never stops scoring. Clear it once the cause is corrected.
- **Verdict unknown**: the report could not be made; the reasons are on the task and in the alert. Usually a column is
  missing or empty: look at `<model>.ingest` for these days.
- **Unknown for online requests**: usually the predictions database did not answer, so requests may not be published yet. Repair
  it, run `<model>.record`, then clear `judge_drift`.
- **decide_retraining stops the run**: this is not a failure. No training was requested; the ledger says why.
- You may ignore a failure if the next window's run succeeds: it also measures the windows of this one.
"""

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import chain

from perennial.orchestration import assets
from perennial.orchestration.dags import day, models, stage
from perennial.orchestration.monitor import compare_shadows, decide_retraining, judge_drift, measure_performance

for model in models():
    window = model.schedules.monitor
    with stage(
        model,
        "monitor",
        schedule=assets.when_published(assets.predictions(model.name), window, due=assets.due(model.name, "monitor")),
        doc=__doc__,
        params={
            "start": day("First day", "For a range: its first day (UTC). Empty: the run's own window."),
            "end": day("End", "For a range: the first day that is left out (UTC)."),
        },
    ):
        measured = measure_performance(model=model.name, window=window)
        if model.shadow.windows:
            chain(measured, compare_shadows(model=model.name, window=window))
        judged = judge_drift(model=model.name, window=window)
        # Realised metrics affect the verdict's severity. The verdict is made even if measuring failed.
        chain(measured, judged)
        chain(
            [judged, measured],
            decide_retraining(model=model.name, window=window),
            # The run id is a function of model and window: asking twice starts only one run.
            TriggerDagRunOperator(
                task_id="request_training",
                trigger_dag_id=f"{model.name}.train",
                trigger_run_id="{{ ti.xcom_pull(task_ids='decide_retraining')['run_id'] }}",
                # The operator also takes a template of JSON; its types name only a dictionary.
                conf="{{ ti.xcom_pull(task_ids='decide_retraining')['conf'] | tojson }}",  # type: ignore[arg-type]
                logical_date=None,
                skip_when_already_exists=True,
            ),
        )
