"""Airflow's first user, and the roles that the deployment's people have. Run by the init job, before any server starts.

Airflow's own roles serve: Viewer looks, User triggers and approves, Op manages connections, Admin does everything.
"""

from __future__ import annotations

import os

from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder


def keep_admin(password: str) -> None:
    """Make the user ``admin``, or give it this password."""
    with get_application_builder() as builder:
        manager = builder.sm
        manager.sync_roles()
        found = manager.find_user(username="admin")
        if found is None:
            made = manager.add_user(
                username="admin",
                first_name="Perennial",
                last_name="Admin",
                email="admin@localhost",
                role=manager.find_role("Admin"),
                password=password,
            )
            if not made:
                raise SystemExit("Airflow's user admin could not be made, see above")
        else:
            manager.reset_password(found.id, password)


if __name__ == "__main__":
    keep_admin(os.environ["AIRFLOW_ADMIN_PASSWORD"])
