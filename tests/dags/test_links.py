"""The links of a task lead to its model, and to the servers as they are called today."""

from __future__ import annotations

import pytest

from perennial.core.settings import Settings
from perennial.orchestration.links import model_page, todays


@pytest.fixture
def today(settings: Settings) -> Settings:
    return settings.model_copy(update={"airflow_public_url": "https://air.test/", "mlflow_public_url": "https://ml.test"})


def test_a_task_of_a_model_leads_to_the_models_page(today: Settings, settings: Settings) -> None:
    assert model_page(today, "energy_load.train") == "https://air.test/perennial/models/energy_load"
    assert model_page(today, "perennial.notify") == ""
    assert model_page(settings.model_copy(update={"airflow_public_url": None}), "energy_load.train") == ""


@pytest.mark.parametrize(
    ("pushed", "shown"),
    [
        ("http://127.0.0.1:4711/perennial/reports/m/x%20y.html", "https://air.test/perennial/reports/m/x%20y.html"),
        ("http://127.0.0.1:4712/#/models/m/versions/3?a=b", "https://ml.test/#/models/m/versions/3?a=b"),
        ("http://elsewhere.test/page", "http://elsewhere.test/page"),
        ("", ""),
    ],
)
def test_an_old_address_is_shown_on_todays_server(pushed: str, shown: str, today: Settings) -> None:
    assert todays(today, pushed) == shown


def test_an_address_stays_where_no_server_is_known(settings: Settings) -> None:
    unknown = settings.model_copy(update={"airflow_public_url": None, "mlflow_public_url": None})
    assert todays(unknown, "http://127.0.0.1:1/#/models/m") == "http://127.0.0.1:1/#/models/m"
