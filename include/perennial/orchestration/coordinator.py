"""Tells a worker at once that its task's process has ended.

Airflow's own supervisor waits for what the task writes. When all of that is closed, it looks whether the process has ended.
Often it looks a moment too early, and looks again only after ``[workers] min_heartbeat_interval``: for a second or more, an
idle worker is lost to other tasks. Here the supervisor waits for the process as well.

Airflow finds this class by ``[sdk] coordinators`` and ``queue_to_coordinator``; :mod:`perennial.stack.environment` sets both.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk.execution_time.coordinator import BaseCoordinator
from airflow.sdk.execution_time.supervisor import ActivitySubprocess

from perennial.core.private_parts import watch_for_the_end


class PromptCoordinator(BaseCoordinator):
    """Runs tasks in Python as Airflow does, without the wait at their end."""

    def execute_task(self, **given: Any) -> BaseCoordinator.ExecutionResult:
        process = ActivitySubprocess.start(**given)
        watch_for_the_end(process)
        return self.ExecutionResult(process.wait(), process.final_state)
