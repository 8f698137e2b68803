"""Perennial: keeps machine-learning models alive in production, on Apache Airflow.

Each sub-package is a room of the house. They stand in rows, and import only from rows below their own; only
``perennial.orchestration`` imports Airflow. ``ARCHITECTURE.md`` draws the rows, and ``make lint`` holds them.
"""

from perennial.core.libraries import settle

settle()
