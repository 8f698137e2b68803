"""Who may answer a request for approval in the deployed stack: people by the name that they sign in with.

``approval.approvers`` of ``model.yaml`` names people. The embedded stack identifies a user by that name, FAB
by a number that no author of a model knows. ``docker-compose.yaml`` names this class. Airflow gives people the rights that a
DAG states only if the name of the sign-in's class contains ``FabAuthManager``.
"""

from __future__ import annotations

from airflow.providers.fab.auth_manager.fab_auth_manager import FabAuthManager
from airflow.providers.fab.auth_manager.models import User


class NamedFabAuthManager(FabAuthManager):
    """FAB's sign-in, with approvers by user name."""

    def is_authorized_hitl_task(self, *, assigned_users: set[str], user: User) -> bool:
        """Whether the user is one of those whom the request is for.

        Args:
            assigned_users: names from ``approval.approvers``.
            user: who is signed in.
        """
        # Not by the number as well: somebody could be called 1.
        return user.username in assigned_users
