"""A task that a server or a disk has failed says which and what to do. A fault of the program is not hidden."""

from __future__ import annotations

import errno
import os

from mlflow.exceptions import MlflowException

from perennial.core.settings import Settings
from perennial.orchestration.runs import in_words


def test_a_full_disk_is_told_with_its_place_and_what_was_said(settings: Settings) -> None:
    told = in_words(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/x"), settings)
    assert told is not None
    assert told.startswith("the disk of /scratch/x is full: make room, and clear the task if its tries are over ([Errno 28] ")


def test_mlflow_that_does_not_answer_is_told_with_its_address(settings: Settings) -> None:
    there = settings.model_copy(update={"mlflow_url": "http://worker:a-password@mlflow:5000"})
    told = in_words(MlflowException("API request failed\nwith more"), there)
    assert told is not None
    assert told.startswith(
        "MLflow at http://worker:***@mlflow:5000 does not answer as it should: API request failed. Nothing is wrong"
    )


def test_a_fault_of_the_program_is_raised_as_it_is(settings: Settings) -> None:
    assert in_words(ValueError("a fault"), settings) is None
