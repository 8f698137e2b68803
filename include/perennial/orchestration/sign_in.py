"""Sign-in to the deployment's Airflow by OpenID Connect, with roles by the provider's groups.

Airflow's API server reads this file as the configuration of its sign-in (``AIRFLOW__FAB__CONFIG_FILE`` of
``docker-compose.yaml``). Without ``PERENNIAL_OIDC_ISSUER`` people sign in by a password of Airflow's own, as processes always
do. ``docs/operate.md`` says how to switch it on.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from airflow.providers.fab.auth_manager.models import User
from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride
from flask_appbuilder.const import AUTH_DB, AUTH_OAUTH

from perennial.core.errors import SettingsError
from perennial.orchestration.users import APPROVER, OPERATOR, USERS

log = logging.getLogger(__name__)

#: What the provider is called in addresses and on the page.
PROVIDER = "oidc"
#: Airflow's own roles that people may have, and ours.
ROLES = ("Admin", APPROVER, OPERATOR, "Viewer")
#: Users of processes, those of earlier releases too, and the one for emergencies. Nobody becomes one of them by their name at
#: the provider.
RESERVED = frozenset({*USERS, "promoter"})


def configure(environment: Mapping[str, str]) -> dict[str, Any]:
    """The configuration of FAB's sign-in.

    Args:
        environment: of the process; ``.env.example`` tells the variables ``PERENNIAL_OIDC_…``.

    Raises:
        SettingsError: a variable is missing or wrong.
    """
    # What the file that Airflow writes for itself has.
    always = {"AUTH_TYPE": AUTH_DB, "WTF_CSRF_ENABLED": True, "WTF_CSRF_TIME_LIMIT": None}
    issuer = environment.get("PERENNIAL_OIDC_ISSUER", "").rstrip("/")
    if not issuer:
        return always
    if not re.match(r"https://|http://(127\.0\.0\.1|localhost)[:/]", issuer):
        raise SettingsError(f"PERENNIAL_OIDC_ISSUER is {issuer}: it must begin with https://")
    missing = [
        name
        for name in ("PERENNIAL_OIDC_CLIENT_ID", "PERENNIAL_OIDC_CLIENT_SECRET", "PERENNIAL_OIDC_ROLES")
        if not environment.get(name)
    ]
    if missing:
        raise SettingsError(f"PERENNIAL_OIDC_ISSUER is set, so {', '.join(missing)} must be set as well")
    return {
        **always,
        "AUTH_TYPE": AUTH_OAUTH,
        "OAUTH_PROVIDERS": [
            {
                "name": PROVIDER,
                "icon": "fa-key",
                "token_key": "access_token",
                "remote_app": {
                    "client_id": environment["PERENNIAL_OIDC_CLIENT_ID"],
                    "client_secret": environment["PERENNIAL_OIDC_CLIENT_SECRET"],
                    "server_metadata_url": f"{issuer}/.well-known/openid-configuration",
                    "client_kwargs": {
                        "scope": environment.get("PERENNIAL_OIDC_SCOPE") or "openid profile email",
                        "code_challenge_method": "S256",
                    },
                },
            }
        ],
        "SECURITY_MANAGER_CLASS": SignedInElsewhere,
        "PERENNIAL_OIDC_NAME": environment.get("PERENNIAL_OIDC_NAME") or "preferred_username",
        "PERENNIAL_OIDC_GROUPS": environment.get("PERENNIAL_OIDC_GROUPS") or "groups",
        "AUTH_ROLES_MAPPING": roles_by_group(environment["PERENNIAL_OIDC_ROLES"]),
        "AUTH_ROLES_SYNC_AT_LOGIN": True,
        "AUTH_USER_REGISTRATION": True,
        # Airflow's role without any right. Nobody is let in with it alone.
        "AUTH_USER_REGISTRATION_ROLE": "Public",
    }


def roles_by_group(text: str) -> dict[str, list[str]]:
    """The roles of each group.

    Args:
        text: ``Role=group`` pairs, separated by commas, such as ``Approver=ml-approvers,Viewer=staff``.

    Raises:
        SettingsError: a pair cannot be read, or names a role that there is not.
    """
    found: dict[str, list[str]] = {}
    for pair in text.split(","):
        role, equals, group = (part.strip() for part in pair.partition("="))
        if role not in ROLES or not equals or not group:
            raise SettingsError(
                f"PERENNIAL_OIDC_ROLES: {pair.strip()!r} is no pair of a role and a group, such as Viewer=staff. "
                f"Roles are {', '.join(ROLES)}"
            )
        found.setdefault(group, []).append(role)
    return found


def person(claims: Mapping[str, Any], *, name: str, groups: str) -> dict[str, Any] | None:
    """Who has signed in, as FAB describes people. None if that is nobody whom Airflow may take for somebody.

    Args:
        claims: what the provider has said and signed.
        name: the claim that has the name. ``approval.approvers`` of ``model.yaml`` names people by it.
        groups: the claim that has the groups.
    """
    called = claims.get(name)
    if not isinstance(called, str) or not _readable(called) or called.casefold() in RESERVED:
        log.warning("refused a sign-in: the claim %s of subject %r is %r", name, claims.get("sub"), called)
        return None
    if name == "email" and claims.get("email_verified") is not True:
        log.warning("refused a sign-in: the provider has not verified the address %r", called)
        return None
    listed = claims.get(groups)
    return {
        "username": called,
        "first_name": str(claims.get("given_name") or claims.get("name") or called),
        "last_name": str(claims.get("family_name") or ""),
        "email": str(claims.get("email") or f"{called}@localhost"),
        "role_keys": [group for group in listed if isinstance(group, str)] if isinstance(listed, list) else [],
    }


def _readable(name: str) -> bool:
    # What a page shows like another name is none.
    return bool(name) and name == name.strip() and name.isprintable()


class SignedInElsewhere(FabAirflowSecurityManagerOverride):
    """FAB's users, of whom the provider says at each sign-in who they are and in which groups."""

    def set_oauth_session(self, provider: str, oauth_response: Mapping[str, Any]) -> None:
        """Keep no token of the provider: nothing asks it again."""

    def get_oauth_user_info(self, provider: str, resp: Mapping[str, Any]) -> dict[str, Any]:
        """What the provider says of a person, as FAB describes people. Empty if they may not come in."""
        config = self.appbuilder.app.config
        name, groups = config["PERENNIAL_OIDC_NAME"], config["PERENNIAL_OIDC_GROUPS"]
        # Of the ID token, whose signature, audience and nonce Authlib has checked.
        claims = dict(resp["userinfo"])
        if not {name, groups} <= set(claims):
            # Some providers tell more when they are asked.
            more = self.oauth_remotes[provider].userinfo(token=resp)
            if more.get("sub") == claims["sub"]:
                claims = {**more, **claims}
        return person(claims, name=name, groups=groups) or {}

    def auth_user_oauth(self, userinfo: Mapping[str, Any], rotate_session_id: bool = True) -> User | None:
        """The user, with the roles of their groups. None for people who are in no group that has a role."""
        if not userinfo:
            return None
        if not self.get_roles_from_keys(userinfo["role_keys"]):
            log.warning("refused a sign-in: no group of %r has a role here", userinfo["username"])
            found = self.find_user(username=userinfo["username"])
            if found is not None:
                # What they were given at an earlier sign-in ends now.
                found.roles = []
                self.update_user(found)
            return None
        signed_in: User | None = super().auth_user_oauth(userinfo, rotate_session_id)
        return signed_in


if __name__ == "config":
    # Flask calls a file by this name when it reads its configuration from it.
    try:
        globals().update(configure(os.environ))
    except SettingsError as error:
        raise SystemExit(f"Airflow cannot start: {error}") from None
