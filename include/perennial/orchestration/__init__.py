"""The only part of Perennial that imports Airflow: assets, defaults, tasks, callbacks, notifiers."""

from __future__ import annotations
