"""Shows that a Celery worker is alive: its main loop writes the file ``PERENNIAL_PULSE``, which a health check looks at.

The loop that takes tasks from the broker writes it. It stops while the broker cannot be reached, and when the loop hangs. To
ask the worker itself, whoever asks would have to be allowed to tell workers what to do.

Celery imports this module before a worker starts (``imports`` of its settings). Neighbour:
:mod:`perennial.operations.health` reads the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.providers.celery.executors.celery_executor import app
from celery import bootsteps

#: Seconds between two beats.
EVERY = 5.0


class Pulse(bootsteps.StartStopStep):  # type: ignore[misc]  # untyped
    """Beats from when the worker is connected until it loses the broker, and from when it is connected again."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        if place := os.environ.get("PERENNIAL_PULSE"):
            file = Path(place)
            file.touch()
            # A worker that loses the broker clears its timers, and starts its steps again when it is back.
            parent.timer.call_repeatedly(EVERY, file.touch)


app.steps["consumer"].add(Pulse)
