"""The model board in Airflow's navigation."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin


class PerennialBoard(AirflowPlugin):
    """All models on one page, which the API server serves behind Airflow's own sign-in."""

    name = "perennial_board"
    # Addresses are relative to where Airflow's pages lie.
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

    # The plugin's class has a list here, which Airflow reads of the instance and never sets.
    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Made when the API server asks: every process of Airflow loads the plugins, and no other needs a web application."""
        from perennial.orchestration.board import PREFIX, app

        return [{"app": app, "url_prefix": PREFIX, "name": "Perennial"}]
