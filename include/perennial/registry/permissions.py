"""Who may change what in the deployed MLflow: a rule that its server asks before its own.

By MLflow's own rule, each signed-in user may create experiments and registered models, and may do everything with what they
created. Whoever was the first to create a model's entry in the registry could so move its alias ``champion`` for ever. Here,
what is not listed may only be read, except by administrators; what is listed is then judged by MLflow's own rule as well.

``perennial deploy mlflow`` names :func:`authenticate` in the server's configuration. The users and roles are those of
:mod:`perennial.operations.identities`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from importlib import import_module
from typing import Any

#: Roles in MLflow. The first three are also the names of the users that processes sign in as.
JUDGE, WORKER, SCORER = "judge", "worker", "scorer"
VIEWER, OPERATOR, APPROVER = "viewer", "operator", "approver"

#: Requests that only read, although their method is POST; MLflow's pages send the last two.
_READS = re.compile(
    r"mlflow/(experiments/(search|search-datasets)|runs/search|logged-models/search|registered-models/get-latest-versions"
    r"|traces/(search|metrics|batchGetInfos|calculate-filter-correlation)|(datasets|issues)/search"
    r"|artifacts/presigned-download-url|ui-telemetry)|graphql"
)
#: What tasks write of a run: its figures, its files, its stored models.
_RUNS = re.compile(
    r"mlflow/(experiments/(create|restore)|runs/(create|update|set-tag|delete-tag|log-[a-z]+|outputs)"
    r"|logged-models(/.+)?|artifacts/presigned-upload-url)|mlflow-artifacts/.+"
)
#: The registry: what is registered, which version an alias names.
_REGISTRY = re.compile(r"mlflow/(registered-models|model-versions)/[a-z-]+")
_NOTES = re.compile(r"mlflow/runs/(set-tag|delete-tag)")
#: An approver may move the alias ``champion``, and no other. The judge adopts what passed its gates, and puts back the rest.
_ALIAS, _MOVED = re.compile(r"mlflow/registered-models/alias"), "champion"
#: The tag of a registered model that says who has asked to move the alias, and to which version: ``3 ann``.
MOVED_BY = "perennial.alias_moved_by"
#: MLflow itself makes sure that it is one's own.
_PASSWORD = re.compile(r"mlflow/users/update-password")

_WRITES: dict[str, tuple[re.Pattern[str], ...]] = {
    JUDGE: (_RUNS, _REGISTRY),
    WORKER: (_RUNS,),
    OPERATOR: (_NOTES,),
    APPROVER: (_NOTES, _ALIAS),
}
_PREFIX = re.compile(r"/((ajax-)?api/\d+\.\d+/?)?")


def may_ask(roles: Collection[str], method: str, path: str, alias: str | None = None) -> bool:
    """Whether the rule lets a request of somebody who is no administrator through to MLflow's own.

    Args:
        roles: the names of the user's roles.
        method: of HTTP.
        path: of the address, without its query.
        alias: the alias that the request would set.
    """
    if method in ("GET", "HEAD", "OPTIONS"):
        return True
    asked = _PREFIX.sub("", path, count=1)
    listed = [pattern for role in roles for pattern in _WRITES.get(role, ())]
    if JUDGE not in roles and _ALIAS.fullmatch(asked):
        listed = [pattern for pattern in listed if method == "POST" and alias == _MOVED]
    if not {JUDGE, WORKER, SCORER} & set(roles):
        # A process whose identity was stolen must not lock the others out.
        listed.append(_PASSWORD)
    return any(pattern.fullmatch(asked) for pattern in (_READS, *listed))


def authenticate() -> Any:
    """Say who sends the request that MLflow's server is about to answer.

    Returns:
        The user's name and password, or the response that refuses: 401 for who is not signed in, 403 for who may not do it.
    """
    # The server has imported them; nobody else needs them.
    flask, signed_in = import_module("flask"), import_module("mlflow.server.auth")
    found = signed_in.authenticate_request_basic_auth()
    if isinstance(found, flask.Response):
        return found
    method, path = flask.request.method, flask.request.path
    if may_ask((), method, path) and not _PASSWORD.search(path):
        return found
    said = flask.request.get_json(silent=True) if _ALIAS.search(path) and method == "POST" else None
    asked: dict[str, Any] = said if isinstance(said, dict) else {}
    user = signed_in.store.get_user(found.username)
    roles = {role.name for role in signed_in.store.list_user_roles(user.id)}
    if user.is_admin or may_ask(roles, method, path, asked.get("alias")):
        if asked.get("alias") == _MOVED and JUDGE not in roles:
            _note_who_moves(found.username, asked)
        return found
    return flask.Response(
        f"{found.username} may not {method} {path} here: docs/security.md says what each role of MLflow may change\n",
        status=403,
        mimetype="text/plain",
    )


def _note_who_moves(user: str, asked: dict[str, Any]) -> None:
    """Note in a tag who moves the alias, since MLflow does not. Nobody but the judge and administrators may write this tag."""
    mlflow, store = import_module("mlflow"), os.environ["MLFLOW_BACKEND_STORE_URI"]
    client = mlflow.MlflowClient(tracking_uri=store, registry_uri=store)
    with suppress(mlflow.MlflowException):  # there is no such model, as MLflow itself is about to say
        client.set_registered_model_tag(str(asked.get("name")), MOVED_BY, f"{asked.get('version')} {user}")
