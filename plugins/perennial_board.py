"""The model board in Airflow's navigation."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin


class PerennialBoard(AirflowPlugin):
    """All models on one page, which the API server serves behind Airflow's own sign-in."""

    name = "perennial_board"
    # Addresses are relative to the base path of Airflow's pages.
    external_views = [  # noqa: RUF012
        {
            "name": "Models",
            "href": "perennial/",
            "url_route": "models",
            "icon": "perennial/static/board.svg",
            "icon_dark_mode": "perennial/static/board.svg",
            "destination": "nav",
            "nav_top_level": True,
        }
    ]

    # The base class declares a list here. Airflow reads it from the instance and never sets it.
    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Built when the API server reads it: every Airflow process loads the plugins, but only that server needs the app."""
        from perennial.orchestration.board import PREFIX, app

        return [{"app": app, "url_prefix": PREFIX, "name": "Perennial"}]
