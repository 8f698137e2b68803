"""The queues of Celery's workers: several, so that long trainings do not delay scoring. Other executors have none."""

from __future__ import annotations

#: Most tasks.
LIGHT = "light"
#: The queue of a stage's tasks, if it is another one than :data:`LIGHT`.
QUEUES = {"train": "train", "refresh": "train", "score": "score"}
