"""MLflow: runs, stored models, versions and the alias ``champion``. Only this package uses MLflow's names.

The ledger decides and MLflow follows; :mod:`perennial.registry.champion` describes how the alias moves. Before any file of
an artifact is opened, the artifact is checked against the manifest in the ledger (:mod:`perennial.model.artifacts`).

All calls use one client with explicit addresses, so they neither read nor change MLflow's process-wide state.
"""

from __future__ import annotations

from perennial.registry.champion import Champions
from perennial.registry.runs import Runs
from perennial.registry.samples import Samples


class Registry(Runs, Champions, Samples):
    """MLflow's tracking and registry, led by the ledger."""
