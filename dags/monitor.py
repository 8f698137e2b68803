"""
# Monitor: has the world changed, is the champion still good, is it time to retrain?

The window's features and predictions are compared with what the champion was trained on (Evidently; methods are those of
`model.yaml`, thresholds too, or those of `drift.yaml`, which `perennial calibrate` takes from stable history). The verdict
is `ok`, `drift` or `unknown`; what could not be computed is `unknown`, which is never `ok`. Drift is a warning; it is
critical if it lasts, or if the estimated or realised performance falls with it. Where labels have become known, the
realised metrics of earlier windows are measured. Then the retraining policy weighs verdicts, history and budget, and asks
for a training run, or declines and says why.

For some windows after a promotion, the champion is also compared with the versions in its shadow (`shadow` in `model.yaml`) on
the rows that both predicted, once their labels are mature. A champion that surely does worse than the one before raises an
alert, and is rolled back where the spec says so.

Runs when all days of the window (a day or a week, as `model.yaml` says) are scored. By hand: give `start` and `end`.

## When it fails
- A red task here never stops scoring. Clear it once the cause is mended.
- **Verdict unknown**: the report could not be made; the reasons are on the task and in the alert. Usually a column is
  missing or empty: look at `<model>.ingest` for these days.
- **decide_retraining stops the run**: no failure. Nothing was asked for; the ledger says why.
- You may ignore a failure if the next window's run succeeds: labels are measured then, too.
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
        schedule=assets.when_published(assets.predictions(model.name), window),
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
        # What was realised weighs in the verdict's severity; the verdict is made although nothing could be measured.
        chain(measured, judged)
        chain(
            [judged, measured],
            decide_retraining(model=model.name, window=window),
            # The run id is a function of model and window: asking twice starts one run.
            TriggerDagRunOperator(
                task_id="request_training",
                trigger_dag_id=f"{model.name}.train",
                trigger_run_id="{{ ti.xcom_pull(task_ids='decide_retraining')['run_id'] }}",
                # A template of JSON, which the operator reads; its types say that it takes a dictionary.
                conf="{{ ti.xcom_pull(task_ids='decide_retraining')['conf'] | tojson }}",  # type: ignore[arg-type]
                logical_date=None,
                skip_when_already_exists=True,
            ),
        )
