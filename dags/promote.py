"""
# Promote: a person makes a version champion

By hand alone, in the Airflow UI. A version that passed its gates against the current champion, and was approved where the
model requires that, becomes champion as it would have automatically. Any other (refused by the gates or by an approver, not
asked about, or compared with a former champion) needs an override: a reason, which is recorded as such and stays on the version
for ever.

The version must be loadable all the same: nothing overrides a changed file. To go back to a former champion, use
`<model>.rollback`.

## When it fails
- **PromotionRefused**: the message says what stands against the version. Train again, or give `override` a reason.
- **ArtifactRejected**: the stored model differs from what was registered, or Perennial did not register it.
- **StaleDecision**: somebody else changed the champion at the same moment. Look at it, then trigger this again.
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
            "override": text("Override", "Why, whatever stands against it. Empty: only if nothing does.", required=False),
        },
    ):
        promote_by_hand(model=model.name)
