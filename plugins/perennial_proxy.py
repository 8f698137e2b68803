"""Airflow's API server behind a proxy."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin


class PerennialProxy(AirflowPlugin):
    """Believes the proxy that the deployment names, and nobody else, where a request comes from."""

    name = "perennial_proxy"

    # The base class declares a list here. Airflow reads it from the instance and never sets it.
    @cached_property
    def fastapi_root_middlewares(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """None, unless ``PERENNIAL_TRUSTED_PROXY`` names a proxy."""
        proxy = os.environ.get("PERENNIAL_TRUSTED_PROXY")
        if not proxy:
            return []
        from perennial.orchestration.proxy import BehindProxy

        return [{"middleware": BehindProxy, "kwargs": {"proxy": proxy}, "name": "Perennial behind a proxy"}]
