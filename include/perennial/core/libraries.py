"""Settings of libraries in our processes: no telemetry, no noise.

The package calls :func:`settle` when it is first imported, before any of these libraries is.
"""

from __future__ import annotations

import logging
import os
import warnings


def settle() -> None:
    """Set what libraries read when they are first imported, in this process and in those that it starts."""
    # Great Expectations and Evidently report their use to their makers unless told not to.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # OpenMP reads it when scikit-learn is first loaded. By default its idle threads spin: when several processes share the
    # cores, a booster's fit of half a second then takes most of a minute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # MLflow draws a progress bar for each file that it downloads, which fills a task's log.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # PyIceberg logs each file that it opens, Great Expectations each step, httpx each request with its address, which holds
    # the secret of a Slack webhook.
    for name in ("pyiceberg.io", "great_expectations", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # MLflow warns of type hints of its own.
    warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
