"""The only part of Perennial that imports Airflow: assets, defaults, tasks, callbacks, notifiers."""
