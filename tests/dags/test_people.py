"""Who may answer a request for approval in the deployed stack."""

from __future__ import annotations

import pytest

# FAB still imports them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated"),
    pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`"),
]


@pytest.mark.parametrize(
    ("name", "approvers", "may"),
    [("ann", {"ann", "carl"}, True), ("bob", {"ann", "carl"}, False), ("7", {"ann"}, False), ("ann", {"7"}, False)],
)
def test_an_approver_is_known_by_the_name_of_the_sign_in(name: str, approvers: set[str], may: bool) -> None:
    from airflow.providers.fab.auth_manager.models import User

    from perennial.orchestration.people import NamedFabAuthManager

    user = User()
    user.id, user.username = 7, name
    manager = NamedFabAuthManager()  # type: ignore[no-untyped-call]  # FAB has no annotations
    assert manager.is_authorized_hitl_task(assigned_users=approvers, user=user) is may


def test_airflow_gives_people_the_rights_that_a_dag_states() -> None:
    from perennial.orchestration.people import NamedFabAuthManager

    # Airflow looks for this in the setting (airflow.dag_processing.collection).
    assert "FabAuthManager" in f"{NamedFabAuthManager.__module__}.{NamedFabAuthManager.__qualname__}"
