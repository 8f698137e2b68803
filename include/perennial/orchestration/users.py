"""Airflow's roles for the deployment's people, and its first users. Run by the init job, before any server starts.

=========  =========================================================================================================
Viewer     reads everything; Airflow's own role
Operator   also triggers, clears and pauses DAGs, and rolls back; cannot promote a version or answer an approval
Approver   reads everything, answers approvals, promotes with a reason, rolls back
Admin      everything, including connections and users; Airflow's own role
=========  =========================================================================================================

A role's rights on a DAG come with the DAG (:data:`ACCESS`). Its other rights are given here.
"""

from __future__ import annotations

import os
from typing import Any

OPERATOR, APPROVER = "Operator", "Approver"

#: The users that the init job makes, with their roles.
USERS = {"admin": "Admin", "watchdog": "Viewer", "judge": "Viewer"}

#: By stage, the roles besides Admin that may trigger its DAG and change its runs. On all other stages, the operator may.
ACCESS = {
    "promote": (APPROVER,),
    "rollback": (OPERATOR, APPROVER),
    "train": (OPERATOR, APPROVER),
    "release": (OPERATOR, APPROVER),
}


def access(stage: str) -> dict[str, dict[str, set[str]]]:
    """The roles that may do more than read the DAG of a stage, as Airflow's ``access_control``."""
    return {role: {"DAGs": {"can_edit"}} for role in ACCESS.get(stage, (OPERATOR,))}


def keep_users(passwords: dict[str, str]) -> None:
    """Make the roles and the users ``admin``, ``watchdog`` and ``judge``; if these exist, set their passwords.

    Raises:
        SystemExit: a user could not be made.
    """
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    with get_application_builder() as builder:
        manager = builder.sm
        manager.sync_roles()
        looks = manager.VIEWER_PERMISSIONS
        runs = [("can_create", "DAG Runs"), ("can_edit", "DAG Runs")]
        operates = [("can_edit", "Task Instances"), ("can_create", "Backfills"), ("can_edit", "Backfills")]
        answers = [("can_edit", "HITL Detail"), ("menu_access", "HITL Detail")]
        manager.bulk_sync_roles(
            [
                {"role": OPERATOR, "perms": [*looks, *runs, *operates]},
                {"role": APPROVER, "perms": [*looks, *runs, *answers]},
            ]
        )
        # Of earlier releases. Its password is in files that are kept.
        if (former := manager.find_user(username="promoter")) is not None:
            manager.session.delete(former)
            manager.session.commit()
        for name, role in USERS.items():
            _keep_user(manager, name, role, passwords[name])


def _keep_user(manager: Any, name: str, role: str, password: str) -> None:
    if (found := manager.find_user(username=name)) is not None:
        manager.reset_password(found.id, password)
        return
    made = manager.add_user(
        username=name,
        first_name="Perennial",
        last_name=name.title(),
        email=f"{name}@localhost",
        role=manager.find_role(role),
        password=password,
    )
    if not made:
        raise SystemExit(f"Airflow's user {name} could not be made; the log above says why")


if __name__ == "__main__":
    keep_users({name: os.environ[f"AIRFLOW_{name.upper()}_PASSWORD"] for name in USERS})
