"""The queues of Celery's workers: several, so that long trainings do not delay scoring. Other executors have none."""

from __future__ import annotations

#: Most tasks.
LIGHT = "light"
#: Tasks that change the champion. Only its workers have the identity that may.
PROMOTE = "promote"
#: The queue of a stage's tasks, if it is another one than :data:`LIGHT`.
QUEUES = {"train": "train", "refresh": "train", "score": "score", "promote": PROMOTE, "rollback": PROMOTE}
