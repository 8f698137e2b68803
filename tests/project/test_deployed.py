"""The deployed stack: its secrets, and the rules that docker-compose.yaml and the image are held to."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.core.errors import SettingsError
from perennial.core.settings import PROJECT
from perennial.operations.deployed import check_folders
from perennial.operations.secret_file import SECRETS, check_secrets, old_compose, write_secrets
from perennial.serving.app import LOOPBACK
from tests.composed import COMPOSE, read_compose

GIVEN = {name: make() for name, make in SECRETS.items()}
SERVICES = read_compose(GIVEN)["services"]
DOCKERFILES = (PROJECT / "Dockerfile", PROJECT / "deploy" / "git" / "Dockerfile")
#: Which secrets each service may know, by the name in ``.env``.
ALLOWED = {
    "postgres": {"POSTGRES_PASSWORD"},
    "redis": {name for name in SECRETS if name.startswith("REDIS_")},
    "init": set(SECRETS),
    "api": {
        "AIRFLOW_DB_PASSWORD",
        "AIRFLOW_FERNET_KEY",
        "AIRFLOW_JWT_SECRET",
        "AIRFLOW_SESSION_KEY",
        "PERENNIAL_READER_DB_PASSWORD",
    },
    "execution": {"AIRFLOW_DB_PASSWORD", "AIRFLOW_FERNET_KEY", "AIRFLOW_JWT_SECRET", "AIRFLOW_SESSION_KEY"},
    "scheduler": {"AIRFLOW_DB_PASSWORD", "AIRFLOW_JWT_SECRET", "REDIS_SCHEDULER_PASSWORD"},
    "dag-processor": {"AIRFLOW_DB_PASSWORD", "AIRFLOW_FERNET_KEY", "AIRFLOW_JWT_SECRET", "PERENNIAL_WORKER_DB_PASSWORD"},
    "triggerer": {"AIRFLOW_DB_PASSWORD", "AIRFLOW_FERNET_KEY", "AIRFLOW_JWT_SECRET", "PERENNIAL_READER_DB_PASSWORD"},
    "worker": {"REDIS_WORKER_PASSWORD", "PERENNIAL_WORKER_DB_PASSWORD", "MLFLOW_WORKER_PASSWORD"},
    "trainer": {"REDIS_TRAINER_PASSWORD", "PERENNIAL_WORKER_DB_PASSWORD", "MLFLOW_WORKER_PASSWORD"},
    "judge": {
        "PERENNIAL_DB_PASSWORD",
        "PERENNIAL_JUDGE_KEY",
        "PERENNIAL_WORKER_DB_PASSWORD",
        "MLFLOW_JUDGE_PASSWORD",
        "AIRFLOW_JUDGE_PASSWORD",
    },
    "mlflow": {"MLFLOW_DB_PASSWORD", "MLFLOW_SESSION_KEY"},
    "scorer": {"PERENNIAL_SCORER_DB_PASSWORD", "MLFLOW_SCORER_PASSWORD"},
    "token": set(),
    "balancer": set(),
    "watch": {"AIRFLOW_WATCHDOG_PASSWORD", "PERENNIAL_WORKER_DB_PASSWORD"},
    "models": set(),
    "proxy": set(),
    "statsd": set(),
    "prometheus": set(),
    "grafana": {"GRAFANA_ADMIN_PASSWORD"},
}
#: Services that end when their work is done.
ENDING = ("init", "token")
ALLOWED |= {"scheduler-second": ALLOWED["scheduler"], "worker-more": ALLOWED["worker"]}


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("PERENNIAL_AIRFLOW_PORT=8090\nREDIS_PASSWORD=\nMLFLOW_DB_PASSWORD=kept-as-it-was-given")

    made = write_secrets(file)

    text = file.read_text()
    assert set(made) == set(SECRETS) - {"MLFLOW_DB_PASSWORD"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "PERENNIAL_AIRFLOW_PORT=8090\n" in text
    assert "MLFLOW_DB_PASSWORD=kept-as-it-was-given\n" in text
    assert text.count("REDIS_PASSWORD=") == 1
    assert write_secrets(file) == []
    assert file.read_text() == text


def test_generated_secrets_are_good_enough() -> None:
    check_secrets(GIVEN)


@pytest.mark.parametrize("weak", ["", "changeme", "password12345", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "airflow"])
def test_a_weak_secret_is_refused_by_name(weak: str) -> None:
    with pytest.raises(SettingsError, match="REDIS_PASSWORD: too weak"):
        check_secrets({**GIVEN, "REDIS_PASSWORD": weak})


def test_a_secret_that_serves_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match="AIRFLOW_DB_PASSWORD, REDIS_PASSWORD are the same"):
        check_secrets({**GIVEN, "REDIS_PASSWORD": GIVEN["AIRFLOW_DB_PASSWORD"]})


@pytest.mark.parametrize("name", SECRETS)
def test_nothing_starts_without_each_secret(name: str) -> None:
    with pytest.raises(KeyError, match=f"{name}: run make secrets"):
        read_compose({**GIVEN, name: ""})


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("2.40.3-3", None),
        ("v2.30.0", None),
        ("2.29.7", "this is 2.29.7"),
        ("1.29.2", "this is 1.29.2"),
        ("", "no plugin compose"),
    ],
)
def test_a_compose_that_changes_passwords_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, told: str | None
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\necho {answer}\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    problem = old_compose()
    assert problem == told or (told and problem and told in problem)


def test_a_folder_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    given = {
        name: str(tmp_path) for name in ("AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__PLUGINS_FOLDER", "PERENNIAL_MODELS")
    }
    (tmp_path / "ingest.py").touch()
    check_folders(given)
    with pytest.raises(SettingsError, match=r"current is not there.*COMPOSE_PROFILES=git"):
        check_folders({**given, "PERENNIAL_MODELS": str(tmp_path / "current")})
    # Nobody can read what is not there.
    (tmp_path / "lost.py").symlink_to("nowhere")
    with pytest.raises(SettingsError, match=r"lost\.py cannot be read by user \d+.*chmod -R a\+rX dags plugins include/models"):
        check_folders(given)


def test_the_example_of_env_names_every_variable_of_compose_and_holds_no_secret() -> None:
    example = (PROJECT / ".env.example").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text()))
    assert {name for name in used if not re.search(rf"(?m)^#{name}=", example)} == set()
    assert all(re.search(rf"(?m)^#{name}=$", example) for name in SECRETS)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_given_as_little_as_it_can_do_with(name: str) -> None:
    service: dict[str, Any] = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not str(service["user"]).startswith(("0", "root"))
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["restart"] == ("no" if name in ENDING else "unless-stopped")
    assert name in ENDING or service["healthcheck"]["test"]
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))
    folders = [str(volume) for volume in service.get("volumes", []) if str(volume).startswith(".")]
    assert all(folder.endswith(":ro") for folder in folders)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_knows_the_secrets_it_needs_and_no_other(name: str) -> None:
    seen = " ".join(str(value) for value in SERVICES[name]["environment"].values())
    told = {secret for secret, value in GIVEN.items() if value in seen}

    assert told == ALLOWED[name]
    assert not any(value in str(SERVICES[name].get("command")) for value in GIVEN.values())


@pytest.mark.parametrize("name", ["worker", "trainer"])
def test_workers_have_no_address_of_airflows_database(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert not [variable for variable in environment if variable.startswith("AIRFLOW__DATABASE__")]
    assert "/airflow" not in str(environment["PERENNIAL_DATABASE_URL"])
    assert str(environment["AIRFLOW__CELERY__RESULT_BACKEND"]).startswith("redis://")


def test_the_judge_knows_no_broker_and_nothing_of_airflow_but_its_api() -> None:
    known = {name for name, value in SERVICES["judge"]["environment"].items() if "AIRFLOW__" in name or "redis" in str(value)}
    assert known == {"AIRFLOW__USAGE_DATA_COLLECTION__ENABLED"}
    assert "redis" not in SERVICES["judge"]["depends_on"]


def test_the_judge_alone_may_change_who_is_champion() -> None:
    may = {name for name, service in SERVICES.items() if service["environment"].get("PERENNIAL_MAY_PROMOTE") == "true"}
    owns = {
        name
        for name, service in SERVICES.items()
        if "//perennial:" in str(service["environment"].get("PERENNIAL_DATABASE_URL"))
    }
    assert may == owns == {"init", "judge"}


@pytest.mark.parametrize("name", ["init", "judge"])
def test_tables_that_workers_make_are_used_with_the_rights_of_workers(name: str) -> None:
    for variable in ("PERENNIAL_CATALOG_URL", "PERENNIAL_PREDICTIONS_URL"):
        assert "//perennial_worker:" in str(SERVICES[name]["environment"][variable])


def test_each_queue_has_workers() -> None:
    from perennial.orchestration.queues import LIGHT

    served = {
        queue
        for service in SERVICES.values()
        if "--queues" in (command := service.get("command", []))
        for queue in command[command.index("--queues") + 1].split(",")
    }
    assert served == {LIGHT, "train", "score"}


def test_the_file_keeps_to_the_compose_specification() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


def test_databases_and_broker_are_reached_from_inside_alone() -> None:
    networks = read_compose(GIVEN)["networks"]
    assert networks["inside"]["internal"] is True
    for name in ("postgres", "redis", "execution", "prometheus", "statsd"):
        assert SERVICES[name]["networks"] == ["inside"]
        assert "ports" not in SERVICES[name]


@pytest.mark.parametrize("public", ["", "ml.example.org", "ml.example.org:8443"])
def test_a_public_host_is_what_links_say_and_servers_accept(public: str) -> None:
    services = read_compose({**GIVEN, "PERENNIAL_PUBLIC_HOST": public})["services"]
    airflow, mlflow = (f"https://{name}.{public}" if public else "" for name in ("airflow", "mlflow"))
    for service in ("api", "worker", "trainer"):
        environment = services[service]["environment"]
        assert environment["AIRFLOW__API__BASE_URL"] == (airflow or "http://127.0.0.1:8080")
        assert environment["PERENNIAL_AIRFLOW_PUBLIC_URL"] == (airflow or "http://127.0.0.1:8080")
        assert environment["PERENNIAL_MLFLOW_PUBLIC_URL"] == (mlflow or "http://127.0.0.1:5000")
    assert services["api"]["environment"]["PERENNIAL_TRUSTED_PROXY"] == ("proxy" if public else "")
    hosts = services["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert set(hosts) == {"mlflow:5000", "localhost:*", "127.0.0.1:*"} | ({f"mlflow.{public}"} if public else set())
    assert services["mlflow"]["environment"]["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == mlflow
    # Whatever is public, only the proxy can be reached from other machines.
    assert {name for name, service in services.items() if "ports" in service} == {
        "api", "mlflow", "balancer", "proxy", "grafana"
    }  # fmt: skip


def test_trainings_the_judge_and_the_scorer_have_no_way_out() -> None:
    for given, internal in (({}, "true"), ({"PERENNIAL_STORE_INTERNAL": "false"}, "false")):
        found = read_compose({**GIVEN, **given})
        assert found["networks"]["store"]["internal"] == internal
        confined = {name for name, service in found["services"].items() if "store" in service.get("networks", [])}
        assert confined == {"trainer", "judge", "scorer"}
        assert all(set(found["services"][name]["networks"]) == {"inside", "store"} for name in confined)


@pytest.mark.parametrize("repository", ["", "https://git.example.org/models.git"])
def test_whoever_reads_models_reads_the_same_ones_and_cannot_change_them(repository: str) -> None:
    services = read_compose({**GIVEN, "PERENNIAL_MODELS_REPOSITORY": repository})["services"]
    place = "/opt/perennial/include/models-from-git"
    expected = f"{place}/current" if repository else "/opt/perennial/include/models"
    readers = {name for name, service in services.items() if "PERENNIAL_MODELS" in service["environment"]}
    assert readers >= {
        "init",
        "api",
        "dag-processor",
        "triggerer",
        "worker",
        "worker-more",
        "trainer",
        "judge",
        "watch",
        "scorer",
    }
    for name in readers:
        assert services[name]["environment"]["PERENNIAL_MODELS"] == expected
        mounts = {"./include/models:/opt/perennial/include/models:ro", f"models:{place}:ro"}
        assert mounts <= set(services[name]["volumes"]), name
    writers = {name for name, service in services.items() if f"models:{place}" in service.get("volumes", [])}
    assert writers == {"models"}
    # It follows the repository, and reaches nothing of the deployment.
    assert services["models"]["networks"] == ["outside"]
    assert services["init"]["depends_on"]["models"] == {"condition": "service_healthy", "required": False}


def test_the_scorer_can_write_no_file_of_the_deployment_and_nobody_else_its_tokens() -> None:
    scorer = SERVICES["scorer"]
    # Only a volume that no other service has.
    assert [volume for volume in scorer["volumes"] if not volume.endswith(":ro")] == ["recorders:/recorders"]
    assert [name for name, service in SERVICES.items() if "recorders:" in str(service.get("volumes", []))] == ["scorer"]
    assert scorer["environment"]["PERENNIAL_SERVE_TOKENS"] == "/tokens/tokens.json"
    assert scorer["environment"]["PERENNIAL_MAY_PROMOTE"] == "false"
    # Who listens elsewhere than on loopback demands a token.
    assert scorer["environment"]["PERENNIAL_SERVE_HOST"] not in LOOPBACK
    mounts = {
        (name, str(volume))
        for name, service in SERVICES.items()
        for volume in service.get("volumes", [])
        if "/tokens" in str(volume)
    }
    assert mounts == {("scorer", "tokens:/tokens:ro"), ("token", "tokens:/tokens")}
    assert SERVICES["token"]["network_mode"] == "none"


def test_the_scorer_has_an_address_of_the_ledger_and_another_of_what_workers_make() -> None:
    environment = SERVICES["scorer"]["environment"]
    assert str(environment["PERENNIAL_DATABASE_URL"]).endswith("@postgres:5432/perennial")
    for variable in ("PERENNIAL_CATALOG_URL", "PERENNIAL_PREDICTIONS_URL"):
        assert environment[variable] == f"{environment['PERENNIAL_DATABASE_URL']}?options=-csearch_path%3Dpredictions"
    reads = SERVICES["api"]["environment"]
    assert reads["PERENNIAL_PREDICTIONS_URL"] == f"{reads['PERENNIAL_DATABASE_URL']}?options=-csearch_path%3Dpredictions"


@pytest.mark.parametrize("deadline", ["5", "40", "0.5"])
def test_what_a_scorer_has_begun_is_answered_before_it_ends(deadline: str) -> None:
    services = read_compose({**GIVEN, "PERENNIAL_SERVE_DEADLINE": deadline})["services"]
    assert services["balancer"]["environment"]["PERENNIAL_SERVE_DEADLINE"] == deadline
    for name in ("scorer", "balancer"):
        assert services[name]["stop_grace_period"] == "1m"


def test_the_scorers_are_as_many_as_chosen_and_prometheus_reads_each() -> None:
    assert SERVICES["scorer"]["deploy"]["replicas"] == "2"
    [job] = [
        job
        for job in yaml.safe_load((PROJECT / "monitoring" / "prometheus.yml").read_text())["scrape_configs"]
        if job["job_name"] == "scorer"
    ]
    assert job["dns_sd_configs"][0] | {"refresh_interval": ""} == {
        "names": ["scorer"], "type": "A", "port": 8090, "refresh_interval": ""
    }  # fmt: skip
    assert job["authorization"]["credentials_file"] == "/run/secrets/scorer-metrics"
    assert SERVICES["prometheus"]["secrets"] == ["scorer-metrics"]


def test_images_of_others_are_pinned_by_digest() -> None:
    digest = re.compile(r"@sha256:[0-9a-f]{64}$")
    for service in SERVICES.values():
        assert digest.search(service["image"]) or service["image"].startswith("perennial:")
    bases = [re.findall(r"(?m)^ARG PERENNIAL_PYTHON_IMAGE=(\S+)$", file.read_text()) for file in DOCKERFILES]
    assert bases[0] == bases[1]
    assert digest.search(*bases[0])


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.parent.name)
def test_an_image_runs_as_nobody_in_particular(file: Path) -> None:
    users = re.findall(r"(?m)^USER (\S+)$", file.read_text())
    assert users[-1:] == ["50000:50000"]


def test_the_page_on_security_speaks_of_each_service() -> None:
    page = (PROJECT / "docs" / "security.md").read_text()
    assert [name for name in SERVICES if not re.search(rf"(?m)^\|[^|]*`{name}`[^|]*\|", page)] == []
