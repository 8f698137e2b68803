"""Record: from what was asked online to a dataset of the lake, and to the parity of what was served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.stages.run import StageRun

if TYPE_CHECKING:
    from perennial.evidence.parity import Parity
    from perennial.serving.recorded import Published


def publish_requests(run: StageRun) -> Published:
    """Publish what scorers have recorded since.

    Raises:
        Superseded: another run has published the same hour, or an entity was erased; start a new run.
        ServingError: the predictions database does not answer.
    """
    from perennial.serving.recorded import publish_requests
    from perennial.serving.request_table import RequestTable

    table = RequestTable(run.deployment.settings.predictions_url)
    return publish_requests(run.deployment.lake, table, run.model, run_id=run.run_id)


def measure_parity(run: StageRun) -> list[Parity]:
    """Compute a sample of what was served again, and record how much of it is equal.

    Raises:
        NoChampion: nothing is served.
        SnapshotMissing, SpecError: the features cannot be computed.
    """
    from perennial.serving.parity import measure_parity

    return measure_parity(run.folder, run.deployment, run_id=run.run_id)
