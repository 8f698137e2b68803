"""MLflow: runs, stored models, versions and the alias ``champion``. No other module knows its names.

The ledger decides and MLflow follows. A promotion is first a row in the ledger, compared and set there, since MLflow's
aliases are last-writer-wins; then the alias moves; then the row is completed. Whoever finds an open row finishes it. One
process at a time moves the alias and says so in the ledger before and after: what a process that was put to sleep in
between writes late is known for what it is, and put right.
An artifact is checked against the manifest in the ledger before anything of it is opened (:mod:`perennial.model.artifacts`).

Everything goes through one client that is given its addresses, so nothing depends on, or leaves behind, MLflow's
process-wide state.
"""

from __future__ import annotations

from perennial.registry.champion import Champions
from perennial.registry.runs import Runs
from perennial.registry.samples import Samples


class Registry(Runs, Champions, Samples):
    """MLflow's tracking and registry, led by the ledger."""
