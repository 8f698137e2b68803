"""The embedded stack: Airflow and MLflow as plain processes of one machine, started, watched and stopped together.

Begin with :mod:`perennial.stack.embedded`, which knows which processes there are and when they are healthy.
:mod:`~perennial.stack.environment` decides how they are configured. :mod:`~perennial.stack.processes` keeps processes alive
and leaves none behind.
"""

from __future__ import annotations
