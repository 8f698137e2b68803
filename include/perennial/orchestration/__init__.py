"""The only part of Perennial that imports Airflow: assets, defaults, tasks, callbacks, notifiers.

Begin with :mod:`perennial.orchestration.dags`.
"""

from __future__ import annotations
