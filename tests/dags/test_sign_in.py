"""Sign-in by OpenID Connect: Airflow's own API server with the deployment's sign-in, and a provider, each in a process."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from perennial.core.errors import SettingsError
from perennial.core.settings import PROJECT
from tests.composed import free_port

# FAB still imports them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated"),
    pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`"),
]

ROLES = "Admin=ml-admins, Approver=ml-approvers, Viewer=staff"
GIVEN = {
    "PERENNIAL_OIDC_ISSUER": "https://id.example.org/realm/",
    "PERENNIAL_OIDC_CLIENT_ID": "airflow",
    "PERENNIAL_OIDC_CLIENT_SECRET": "s" * 20,
    "PERENNIAL_OIDC_ROLES": ROLES,
}


@dataclass(frozen=True)
class Servers:
    """Airflow, and the provider that it sends people to."""

    airflow: str
    provider: str
    log: Path

    @contextmanager
    def sign_in(self, subject: str, **claims: object) -> Iterator[httpx.Client]:
        """The browser of a person, after the provider has said these things about them."""
        httpx.put(f"{self.provider}/users/{subject}", json=claims, trust_env=False).raise_for_status()
        with httpx.Client(base_url=self.airflow, trust_env=False, timeout=60) as browser:
            asked = browser.get("/auth/login/oidc")
            assert asked.status_code == 302, self.log.read_text()
            assert "code_challenge_method=S256" in asked.headers["location"]
            agreed = browser.post(asked.headers["location"], data={"sub": subject})
            assert agreed.headers["location"].startswith(f"{self.airflow}/auth/oauth-authorized/oidc?"), agreed.text
            browser.get(agreed.headers["location"])
            yield browser

    def roles(self, name: str) -> list[str]:
        """Of a user of Airflow, as its administrator sees them."""
        answer = httpx.post(f"{self.airflow}/auth/token", json={"username": "admin", "password": "admin"}, trust_env=False)
        headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        found = httpx.get(f"{self.airflow}/auth/fab/v1/users/{name}", headers=headers, trust_env=False)
        return [role["name"] for role in found.json()["roles"]]


@contextmanager
def _running(command: list[str], environment: Mapping[str, str], log: Path, url: str) -> Iterator[None]:
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(url, trust_env=False)
                break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, f"{url} does not answer"
                time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    home = tmp_path_factory.mktemp("sign-in")
    ports = [free_port(), free_port()]
    airflow, provider = (f"http://127.0.0.1:{port}" for port in ports)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PERENNIAL_"))}
    command = [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(ports[1]), "--require-registration"]
    with _running(command, clean, home / "provider.log", f"{provider}/.well-known/openid-configuration"):
        callback = f"{airflow}/auth/oauth-authorized/oidc"
        client = httpx.post(f"{provider}/oauth2/clients", json={"redirect_uris": [callback]}, trust_env=False).json()
        environment = {
            **clean,
            "NO_PROXY": "127.0.0.1",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__AUTH_MANAGER": "perennial.orchestration.people.NamedFabAuthManager",
            "AIRFLOW__CORE__DAGS_FOLDER": str(home / "no-dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
            "AIRFLOW__API__BASE_URL": airflow,
            "AIRFLOW__API__SECRET_KEY": "s" * 32,
            # By default Airflow looks at a user's roles again after half a minute.
            "AIRFLOW__FAB__CACHE_TTL": "0",
            "AIRFLOW__API_AUTH__JWT_SECRET": "j" * 64,
            "AIRFLOW__FAB__CONFIG_FILE": str(PROJECT / "include" / "perennial" / "orchestration" / "sign_in.py"),
            "PERENNIAL_STATE": str(home / "var"),
            "PERENNIAL_TRUSTED_PROXY": "127.0.0.1",
            "PERENNIAL_OIDC_ISSUER": provider,
            "PERENNIAL_OIDC_CLIENT_ID": client["client_id"],
            "PERENNIAL_OIDC_CLIENT_SECRET": client["client_secret"],
            "PERENNIAL_OIDC_ROLES": ROLES,
        }
        command = [sys.executable, str(Path(__file__).with_name("serve.py")), str(ports[0]), "first"]
        with _running(command, environment, home / "log", f"{airflow}/api/v2/version"):
            yield Servers(airflow, provider, home / "log")


def test_a_person_gets_the_roles_of_their_groups(servers: Servers) -> None:
    claims = {"preferred_username": "ann", "email": "ann@example.org", "groups": ["staff", "ml-approvers", "unknown"]}
    with servers.sign_in("4711", **claims) as ann:
        assert ann.get("/api/v2/dags").status_code == 200
        assert ann.get("/api/v2/connections").status_code == 403
        assert ann.get("/ui/auth/me").json()["username"] == "ann"
        cookie = next(cookie for cookie in ann.cookies.jar if cookie.name == "_token")
        assert cookie.has_nonstandard_attr("HttpOnly")
    assert sorted(servers.roles("ann")) == ["Approver", "Public", "Viewer"]


def test_people_come_back_to_the_name_and_by_the_tls_that_they_came_by(servers: Servers) -> None:
    headers = {"Host": "airflow.ml.example.org", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
    asked = httpx.get(f"{servers.airflow}/auth/login/oidc", headers=headers, trust_env=False)
    assert httpx.URL(asked.headers["location"]).params["redirect_uri"] == (
        "https://airflow.ml.example.org/auth/oauth-authorized/oidc"
    )


def test_a_person_in_no_known_group_does_not_get_in(servers: Servers) -> None:
    with servers.sign_in("4712", preferred_username="bob", groups=["unknown"]) as bob:
        assert bob.get("/api/v2/dags").status_code == 401
        assert bob.get("/perennial/").status_code == 401
    assert "no group of 'bob' has a role here" in servers.log.read_text()


def test_a_person_who_has_left_a_group_loses_its_role(servers: Servers) -> None:
    with servers.sign_in("4713", preferred_username="carl", groups=["ml-admins"]) as before:
        assert before.get("/api/v2/connections").status_code == 200
        with servers.sign_in("4713", preferred_username="carl", groups=["staff"]) as after:
            assert after.get("/api/v2/dags").status_code == 200
            assert after.get("/api/v2/connections").status_code == 403
        # Also where they are still signed in from before.
        assert before.get("/api/v2/connections").status_code == 403
        with servers.sign_in("4713", preferred_username="carl", groups=[]):
            assert before.get("/api/v2/dags").status_code == 403


@pytest.mark.parametrize("name", ["admin", "Watchdog", "judge", "promoter", " admin", "ad\u200bmin", "", None, 7])
def test_nobody_becomes_a_user_of_a_process(servers: Servers, name: object) -> None:
    with servers.sign_in("4714", preferred_username=name, groups=["ml-admins"]) as taken:
        assert taken.get("/api/v2/dags").status_code == 401
    assert servers.roles("admin") == ["Admin"]


def test_processes_still_sign_in_by_their_passwords_and_people_have_none(servers: Servers) -> None:
    with servers.sign_in("4711", preferred_username="ann", groups=["staff"]):
        pass
    url = f"{servers.airflow}/auth/token"
    for name, password, status in (("watchdog", "watchdog", 201), ("ann", "", 400), ("ann", "ann", 401)):
        answer = httpx.post(url, json={"username": name, "password": password}, trust_env=False)
        assert answer.status_code == status, name


def test_an_answer_that_the_provider_did_not_give_here_is_refused(servers: Servers) -> None:
    httpx.put(f"{servers.provider}/users/1", json={"preferred_username": "eve", "groups": ["ml-admins"]}, trust_env=False)
    with httpx.Client(base_url=servers.airflow, trust_env=False, timeout=60) as eve:
        asked = eve.get("/auth/login/oidc")
        answer = httpx.post(asked.headers["location"], data={"sub": "1"}, trust_env=False).headers["location"]
        # The code of another person's sign-in, in a browser that has not begun it.
        with httpx.Client(base_url=servers.airflow, trust_env=False, timeout=60) as other:
            other.get(answer)
            assert other.get("/api/v2/dags").status_code == 401
        eve.get(re.sub(r"code=[^&]+", "code=guessed", answer))
        assert eve.get("/api/v2/dags").status_code == 401


def test_no_token_of_the_provider_is_kept(servers: Servers) -> None:
    import sqlite3

    with servers.sign_in("4711", preferred_username="ann", groups=["staff"]):
        pass
    with sqlite3.connect(servers.log.parent / "airflow.db") as database:
        kept = [bytes(row[0]) for row in database.execute("SELECT data FROM session")]
    assert kept
    assert not any(b"access_token" in data or b"id_token" in data or b"oauth_provider" in data for data in kept)


# --- its configuration ------------------------------------------------------------------------------------------------


def test_without_a_provider_people_have_passwords() -> None:
    from perennial.orchestration.sign_in import configure

    assert configure({"PERENNIAL_OIDC_ISSUER": ""})["AUTH_TYPE"] == 1


def test_the_providers_own_description_says_where_people_are_sent() -> None:
    from perennial.orchestration.sign_in import configure

    [provider] = configure(GIVEN)["OAUTH_PROVIDERS"]
    place = "https://id.example.org/realm/.well-known/openid-configuration"
    assert provider["remote_app"]["server_metadata_url"] == place


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PERENNIAL_OIDC_ISSUER", "http://id.example.org", "must begin with https://"),
        ("PERENNIAL_OIDC_CLIENT_SECRET", "", "PERENNIAL_OIDC_CLIENT_SECRET must be set as well"),
        ("PERENNIAL_OIDC_ROLES", "Owner=staff", "'Owner=staff' is no pair"),
        ("PERENNIAL_OIDC_ROLES", "Viewer=", "'Viewer=' is no pair"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_told(name: str, value: str, told: str) -> None:
    from perennial.orchestration.sign_in import configure

    with pytest.raises(SettingsError, match=re.escape(told)):
        configure({**GIVEN, name: value})


def test_a_wrong_setting_stops_airflow_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**GIVEN, "PERENNIAL_OIDC_ROLES": "Owner=staff"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="Airflow cannot start: PERENNIAL_OIDC_ROLES: 'Owner=staff'"):
        runpy.run_path(str(PROJECT / "include" / "perennial" / "orchestration" / "sign_in.py"), run_name="config")


def test_an_address_is_a_name_only_if_the_provider_has_verified_it() -> None:
    from perennial.orchestration.sign_in import person

    claims: dict[str, Any] = {"sub": "1", "email": "ann@example.org", "groups": ["staff"]}
    assert person(claims, name="email", groups="groups") is None
    found = person({**claims, "email_verified": True}, name="email", groups="groups")
    assert found is not None
    assert (found["username"], found["role_keys"]) == ("ann@example.org", ["staff"])
