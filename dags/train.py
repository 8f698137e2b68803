"""
# Train: from published features to a champion, or a refusal with its reasons

The training set is pinned first, by Iceberg snapshot and content hash: features and labels as they were known at the as-of
time. Every candidate of `model.yaml`, including the baselines, is fitted in a separate task and logged to MLflow. The best
candidate by validation is then evaluated together with the baselines and the champion on the newest interval. None of them
was trained on it. A candidate that passes is fitted once more, on the newest interval too, and that model serves
(`training.refit`). The gates decide: the version is registered, and becomes `champion` or is tagged refused with every reason.

With `promotion: approval` in `model.yaml`, a person is asked before a version that passed becomes champion. The run waits in
`ask_approval`, which shows the comparison (*Required Actions*), for at most `approval.within`. The ledger records who
answered, when, and with which words. After a refusal, or without an answer in time, the champion stays as it is.

Runs when the days of a week (or month, as `model.yaml` says) are published, when monitoring asks for it, or by hand. If some
days do not come, it runs when `schedules.grace` is over, on the days that are there; the model card says which are missing.

## When it fails
- **build_training_set: "… days … have features, and … are required"**: `schedules.min_days`. The message names the days that
  are missing and what to do.
- **build_training_set**: too few labelled rows, or only one class. The message says how many there are. Ingest more
  history, or shorten `training.window`.
- **decide_promotion**: a section of the model card is empty, and a version is only promoted with a complete card. The
  message names the section and what would fill it.
- **promote_champion is skipped**: this is not a failure. The gates or a person refused the version; the reasons are on the task
  and in MLflow. To promote it nevertheless, use `<model>.promote` with a reason.
- **ModelRenamed**: the registered model has another name in MLflow. Rename it back, then clear this run.
- **StaleDecision**: another recipe became champion in between, so the evaluation is stale (a refresh does no harm). Clear
  `evaluate_candidates` and its downstream tasks: the candidate is evaluated again, together with the new champion.
- **PromotionRefused**: a person refused an earlier attempt. To override that, use `<model>.promote` with a reason.
- You may ignore a failed weekly run if the next one succeeds: the champion stays as it is.
"""

from datetime import timedelta

from airflow.sdk import chain

from perennial.orchestration import assets
from perennial.orchestration.approval import ask_approval
from perennial.orchestration.dags import RUN_LIMIT, day, models, result, stage, text
from perennial.orchestration.train import (
    build_training_set,
    decide_promotion,
    evaluate_candidates,
    fit_candidate,
    promote_champion,
)

for model in models():
    with stage(
        model,
        "train",
        schedule=assets.when_published(
            assets.trainable(model.name), model.schedules.train, due=assets.due(model.name, "train")
        ),
        doc=__doc__,
        run_limit=RUN_LIMIT + (model.approval.within if model.promotion == "approval" else timedelta()),
        params={
            "as_of": day("As of", "Only what was known by this day (UTC) is used. Empty: the end of the newest data."),
            "cause": text("Cause", "Why, for the record; monitoring gives its own.", required=False, longest=2000),
        },
    ):
        training_set = build_training_set(model=model.name, window=model.schedules.train)
        fitted = fit_candidate.partial(model=model.name, training_set=training_set).expand(candidate=list(model.candidates))
        evaluation = evaluate_candidates(model=model.name, training_set=result(training_set), fitted=result(fitted))
        decided = decide_promotion(
            model=model.name, training_set=result(training_set), fitted=result(fitted), evaluation=result(evaluation)
        )
        if model.promotion == "approval":
            asked = ask_approval(model, "decide_promotion")
            chain(decided, asked, promote_champion(model=model.name, decided=result(decided), answer=result(asked.output)))
        else:
            chain(decided, promote_champion(model=model.name, decided=result(decided)))
