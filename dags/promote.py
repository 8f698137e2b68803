"""
# Promote: a person makes a version champion

Runs only by hand, in the Airflow UI. A version needs no override if it passed its gates against the current champion, and was
approved where the model requires that. Any other version needs one: it was refused by the gates or by an approver, nobody was
asked about it, or it was compared with a former champion. An override is a reason; it is recorded as an override and stays
on the version for ever.

Even with an override, the version must be loadable: a changed file is always refused. To go back to a former champion, use
`<model>.rollback`.

## When it fails
- **promote_by_hand is skipped**: this is not a failure. The version needs an override: the task and the run's note say why.
  Train again, or give a reason in `override`.
- **FormRefused**: there is no such version. You alone are told, since you asked; trigger it again with another one.
- **VersionUnusable**: the stored model differs from what was registered, or is gone.
- **StaleDecision**: somebody else changed the champion at the same moment. Look at the new champion, then decide again.
"""

from perennial.orchestration.dags import models, stage, text, version
from perennial.orchestration.operate import promote_by_hand

for model in models():
    with stage(
        model,
        "promote",
        schedule=None,
        doc=__doc__,
        params={
            "version": version("Version", "The number of the version to make champion.", required=True),
            "override": text("Override", "The reason, if the version needs an override; otherwise empty.", required=False),
        },
    ):
        promote_by_hand(model=model.name)
