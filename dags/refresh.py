"""
# Refresh: the champion's recipe, fitted on newer rows

The recipe of the champion (its features, label, estimator and parameters) is fitted once more on all rows up to now, without a
search. Nothing else changes, so the refreshed version need not be better than the champion. It must pass a net instead:

- The model before it has skill on the newest rows, which it had not learned from. Otherwise these labels are doubted.
- Both agree on the newest rows. Rows of one week that turn a model round are doubted.
- Data, sanity, robustness, operation and fairness gates that need no comparison.
- On the days that the last four refreshes had not learned from, they were not surely worse than the version before them.

Rows that are doubted are **withheld**: no later version learns from them until somebody releases them (`<model>.release`).
Refreshes that did harm are **undone**: the older version is champion again, and refreshes stop until they are released, or
until another version replaces the champion.

With `promotion: approval` in `model.yaml`, refreshes follow a recipe that was approved once; `approval: {refreshes: ask}` asks
each time.

Runs when the days of a week (or month, as `schedules.refresh` says) are published, or by hand. If some days do not come, it
runs when `schedules.grace` is over, on the days that are there.

## When it fails
- **fit_refresh is skipped**: this is not a failure. The task says why: there is no champion, it has learned from the newest
  rows already, or refreshes have stopped.
- **fit_refresh: "… days … have features, and … are required"**: `schedules.min_days`. The message names the days that are
  missing and what to do.
- **fit_refresh: VersionUnusable**: what the champion's recipe needs is gone. Train a new version with `<model>.train`.
- **promote_refresh is skipped**: this is not a failure. The gates or a person refused the version, or the champion was replaced
  meanwhile. The reasons are on the task and in MLflow.
- You may ignore a failed run if the next one succeeds: the champion stays as it is.
"""

from datetime import timedelta

from airflow.sdk import chain

from perennial.orchestration import assets
from perennial.orchestration.approval import ask_approval
from perennial.orchestration.dags import RUN_LIMIT, day, models, result, stage, text
from perennial.orchestration.refresh import decide_refresh, fit_refresh, promote_refresh

for model in models():
    if not model.refreshes:
        continue
    with stage(
        model,
        "refresh",
        schedule=assets.when_published(
            assets.trainable(model.name), model.schedules.refresh, due=assets.due(model.name, "refresh")
        ),
        doc=__doc__,
        run_limit=RUN_LIMIT + (model.approval.within if model.asks_for_refreshes else timedelta()),
        params={
            "as_of": day("As of", "Only what was known by this day (UTC) is used. Empty: the end of the newest data."),
            "cause": text("Cause", "Why, for the record.", required=False, longest=2000),
        },
    ):
        decided = decide_refresh(
            model=model.name, refreshed=result(fit_refresh(model=model.name, window=model.schedules.refresh))
        )
        if model.asks_for_refreshes:
            asked = ask_approval(model, "decide_refresh")
            chain(decided, asked, promote_refresh(model=model.name, decided=result(decided), answer=result(asked.output)))
        else:
            chain(decided, promote_refresh(model=model.name, decided=result(decided)))
