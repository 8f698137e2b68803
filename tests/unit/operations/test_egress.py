"""What `make egress` writes: workers reach listed hosts by forwarders, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.core.errors import SettingsError
from perennial.core.settings import PROJECT
from perennial.operations.egress import compose_file
from perennial.operations.secret_file import SECRETS
from tests.composed import read_compose

LISTED = ("db.example.org:5432", "hooks.slack.com:443", "db.example.org:8443")


def read(*listed: str, store: tuple[str, ...] = ()) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(compose_file(listed, store))
    return found


def test_each_host_has_a_forwarder_of_its_name_and_one_service_leaves() -> None:
    services = read(*LISTED)["services"]
    assert services["egress"]["environment"]["PERENNIAL_EGRESS"] == (
        "10000=db.example.org:5432 10001=db.example.org:8443 10002=hooks.slack.com:443"
    )
    front = services["egress-to-db-example-org"]
    assert front["environment"]["PERENNIAL_EGRESS"] == "5432=egress:10000 8443=egress:10001"
    assert front["networks"]["sources"] == {"aliases": ["db.example.org"]}
    assert [name for name, service in services.items() if "outside" in service["networks"]] == ["egress"]
    # Otherwise it would find the forwarder under the host's name.
    assert "sources" not in services["egress"]["networks"]


def test_workers_and_senders_of_alerts_are_then_on_networks_that_lead_nowhere() -> None:
    main = read_compose({name: make() for name, make in SECRETS.items()})
    networks = {**main["networks"], **read(*LISTED)["networks"]}
    for name in ("worker", "worker-more", "watch", "triggerer", "trainer", "judge"):
        for network in main["services"][name]["networks"]:
            assert networks[network]["internal"] in (True, "true"), (name, network)
    assert main["networks"]["sources"] == {}


def test_an_object_store_is_reached_by_trainings_and_the_judge_too() -> None:
    services = read(*LISTED, store=("bucket.s3.example.org:443",))["services"]
    stored = {name for name, service in services.items() if "store" in service["networks"]}
    assert stored == {"egress-to-bucket-s3-example-org"}
    assert services.popitem()[1]["networks"].keys() <= {"relay", "sources", "store"}


def test_a_forwarder_may_no_more_than_the_other_services() -> None:
    for service in read(*LISTED)["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "101:101"
        assert service["mem_limit"]
        assert service["pids_limit"]
        assert service["healthcheck"]["test"]
        assert "ports" not in service
        assert re.search(r"@sha256:[0-9a-f]{64}}$", service["image"])


def test_the_file_keeps_to_the_compose_specification(tmp_path: Path) -> None:
    file = tmp_path / "docker-compose.egress.yaml"
    make = [sys.executable, "-S", "-m", "perennial.operations.egress", str(file), *LISTED, "--store", "s3.example.org:443"]
    told = subprocess.run(make, env={"PYTHONPATH": str(PROJECT / "include")}, capture_output=True, text=True, check=True)
    assert f"COMPOSE_FILE=docker-compose.yaml:{file}" in told.stdout
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    "address",
    ["db.example.org", "db.example.org:0", "db.example.org:99999", "10.0.0.5:5432", "DB.example.org:1", "a b.c:1", ":1"],
)
def test_what_is_no_address_is_refused_with_what_to_write(address: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"{address} is no address: write the host's name")):
        compose_file([address])
