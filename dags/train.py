"""
# Train: from published features to a champion, or a refusal with its reasons

The training set is pinned first: features and labels as they were known at the as-of time, by Iceberg snapshot and content
hash. Every candidate of `model.yaml`, the baselines among them, is fitted in a task of its own and logged to MLflow. The
best one by validation is then judged beside the baselines and the champion on the newest interval, which none of them was
trained on. The gates decide: the version is registered, and becomes `champion` or is tagged refused with every reason.

Where `model.yaml` says `promotion: approval`, a person is asked before a version that passed becomes champion: the run waits
in `ask_approval`, which shows the comparison (*Required Actions*), for as long as `approval.within`. Who answered, with
which words and when goes into the ledger. A refusal, or no answer in time, leaves the champion as it is.

Runs when the days of a week (or month, as `model.yaml` says) are published, when monitoring asks for it, or by hand.

## When it fails
- **build_training_set**: too few labelled rows, or one class alone. The message tells how many there are; ingest more
  history, or shorten `training.window`.
- **decide_promotion**: a model card has nothing to show in one of its sections, and nobody promotes what they cannot read
  about. The message names the section and what would fill it.
- **promote_champion is skipped**: no failure. The gates or a person refused the version; its reasons are on the task and in
  MLflow. If you know better: `<model>.promote`, with a reason.
- **StaleDecision**: the champion changed in between, so the evaluation is stale. Clear `evaluate_candidates` and what follows
  it: the candidate is measured again, beside the new champion.
- **PromotionRefused**: an earlier attempt was refused by a person. `<model>.promote` overrides that, with a reason.
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
        schedule=assets.when_published(assets.features(model.name), model.schedules.train),
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
            asked = ask_approval(model)
            chain(decided, asked, promote_champion(model=model.name, decided=result(decided), answer=result(asked.output)))
        else:
            chain(decided, promote_champion(model=model.name, decided=result(decided)))
