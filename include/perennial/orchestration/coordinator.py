"""How a worker watches its task: it is told at once when the task's process has ended.

Airflow's own supervisor waits for what the task writes, and once all of that is closed looks whether the process is gone. Often
it looks a moment too early, and then again only after ``[workers] min_heartbeat_interval``: a second or more in which a worker
that has nothing to do is no one else's. Here the process itself is waited for as well.

Airflow takes this in by ``[sdk] coordinators`` and ``queue_to_coordinator``; :mod:`perennial.stack.environment` sets both. Were
the supervisor to lose the methods that are extended here, tasks would be watched as Airflow does it.
"""

from __future__ import annotations

import os
import selectors
from contextlib import suppress
from typing import Any

from airflow.sdk.execution_time.coordinator import BaseCoordinator
from airflow.sdk.execution_time.supervisor import ActivitySubprocess


class PromptCoordinator(BaseCoordinator):
    """Runs tasks in Python as Airflow does, without the wait at their end."""

    def execute_task(self, **given: Any) -> BaseCoordinator.ExecutionResult:
        process = _Task.start(**given)
        return self.ExecutionResult(process.wait(), process.final_state)


class _Task(ActivitySubprocess):
    def _monitor_subprocess(self) -> None:
        # Linux has it; elsewhere, and should the process be gone already, Airflow's own way does.
        with suppress(AttributeError, OSError):
            ended = open(os.pidfd_open(self.pid), "rb", buffering=0)  # noqa: SIM115 - the supervisor closes it
            self.selector.register(ended, selectors.EVENT_READ, (lambda _: False, self.selector.unregister))
        super()._monitor_subprocess()  # type: ignore[no-untyped-call]
