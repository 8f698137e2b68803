"""
# Release: let a model learn again from what was held back

Runs only by hand, in the Airflow UI. When a refresh is refused because its newest rows are doubted, these rows are withheld:
no later version learns from them. When refreshes did harm, they stop. Both stay so until somebody releases them, with a reason
that is recorded. The model board, `perennial data held` and each version's card show what is held back.

Correct wrong rows first: deliver them again, and run `<model>.load` for their days.

## When it fails
- **release is skipped**: this is not a failure. Nothing is held back of what the form names.
- **"no usable interval"**: give both days or none; the end is the first day that is left out.
"""

from perennial.orchestration.dags import day, models, stage, switch, text
from perennial.orchestration.refresh import release

for model in models():
    with stage(
        model,
        "release",
        schedule=None,
        doc=__doc__,
        params={
            "start": day("First day", "The first day (UTC) whose data are released. Empty: no data."),
            "end": day("End", "The first day that is left out (UTC)."),
            "refreshes": switch("Refreshes", "Whether refreshes that have stopped go on.", default=False),
            "reason": text("Reason", "Why it may be learned from again, for the record."),
        },
    ):
        release(model=model.name)
