"""Airflow's own API server with the project's plugins, on a fresh database. Run in a process of its own.

Prints the routes that the plugins add, as JSON, then serves until it is ended. The environment says which sign-in
it has: ``AIRFLOW__CORE__AUTH_MANAGER``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def fill_database(models: list[str]) -> None:
    """DAGs of these models, as the dag-processor would have written them."""
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils.db import initdb
    from airflow.utils.session import create_session

    initdb()
    with create_session() as session:
        session.add(DagBundleModel(name="dags-folder"))
        session.flush()
        for model in models:
            for stage in ("ingest", "train", "monitor"):
                dag_id = f"{model}.{stage}"
                # Airflow gives it no types.
                dag = DagModel(dag_id=dag_id, bundle_name="dags-folder", fileloc="x", owners="x")  # type: ignore[no-untyped-call]
                session.add(dag)


def add_people() -> None:
    """Who signs in where the deployment's sign-in is used; elsewhere the environment says so."""
    from airflow.configuration import conf

    if "simple" in conf.get("core", "auth_manager"):
        return
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    from perennial.orchestration.users import USERS, keep_users

    keep_users({name: name for name in USERS})
    with get_application_builder() as builder:
        manager = builder.sm
        manager.bulk_sync_roles(
            [
                {"role": "Nobody", "perms": [("can_read", "Website")]},
                {"role": "OneModel", "perms": [("can_read", "Website"), ("can_read", "DAG:first.monitor")]},
            ]
        )
        for name, role in (("nobody", "Nobody"), ("one", "OneModel"), ("viewer", "Viewer")):
            manager.add_user(name, name, name, f"{name}@localhost", manager.find_role(role), password=name)


def routes() -> list[dict[str, str]]:
    """Every route of every application that a plugin adds, whatever is mounted below it."""
    from airflow import plugins_manager

    def walk(app: Any, prefix: str) -> list[dict[str, str]]:
        found = []
        for route in app.routes:
            path = prefix + route.path
            methods = getattr(route, "methods", None)
            if methods is None:
                # A mount: what lies below it has none of the checks of the application above.
                found += walk(route.app, path) if hasattr(route, "app") and hasattr(route.app, "routes") else []
                found.append({"method": "GET", "path": path})
            found += [{"method": method, "path": path} for method in sorted(methods or ())]
        return found

    apps, middlewares = plugins_manager.get_fastapi_plugins()
    assert [one["name"] for one in middlewares] == ["Perennial behind a proxy"] * ("PERENNIAL_TRUSTED_PROXY" in os.environ)
    assert plugins_manager.get_flask_plugins() == ([], [], [])
    return [route for one in apps for route in walk(one["app"], one["url_prefix"])]


def main(port: str, *models: str) -> None:
    import uvicorn
    from airflow.api_fastapi.app import create_app

    fill_database(list(models))
    add_people()
    app = create_app(apps="core")
    sys.stdout.write("\n" + json.dumps(routes()) + "\n")
    sys.stdout.flush()
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
