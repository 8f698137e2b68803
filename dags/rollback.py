"""
# Rollback: an earlier version becomes champion again

Runs only by hand, in the Airflow UI: press *Trigger*, say why, and leave `version` empty for the champion before this one.
The ledger records who, when and why. The next scoring uses the version. Rolling back to the version that is already champion
changes nothing. Nor does a second rollback without a version right after a first one: two people who see the same problem do
not go back two steps. Predictions that were already written stay; to replace them, trigger `<model>.score` for their days.

## When it fails
- **no earlier champion**: there is nothing to go back to. Train a new version, or make another one champion with
  `<model>.promote`.
- **was never champion**: a rollback only goes to former champions. Use `<model>.promote`.
- **VersionUnusable**: that version's stored model differs from what was registered, or is gone. Choose another one.
"""

from perennial.orchestration.dags import models, stage, text, version
from perennial.orchestration.operate import roll_back

for model in models():
    with stage(
        model,
        "rollback",
        schedule=None,
        doc=__doc__,
        params={
            "reason": text("Reason", "Why; it is kept with the rollback."),
            "version": version("Version", "The former champion to go back to. Empty: the champion before this one."),
        },
    ):
        roll_back(model=model.name)
