"""Makes a worker notice at once that its task's process has ended.

Airflow's supervisor waits until the task's output streams are closed, then checks whether the process has ended. Often it
checks a moment too early, and checks again only after ``[workers] min_heartbeat_interval``. So a worker is idle for a second
or more. Here the supervisor also waits for the process itself.

Airflow finds this class by ``[sdk] coordinators`` and ``queue_to_coordinator``; :mod:`perennial.stack.environment` sets both.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk.execution_time.coordinator import BaseCoordinator
from airflow.sdk.execution_time.supervisor import ActivitySubprocess

from perennial.core.private_parts import watch_for_the_end


class PromptCoordinator(BaseCoordinator):
    """Runs Python tasks as Airflow does, without the delay at their end."""

    def execute_task(self, **given: Any) -> BaseCoordinator.ExecutionResult:
        process = ActivitySubprocess.start(**given)
        watch_for_the_end(process)
        return self.ExecutionResult(process.wait(), process.final_state)
