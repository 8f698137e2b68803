"""deploy/helm: what must hold of it whoever installs it, and what Helm itself makes of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kubernetes import client as kubernetes

from perennial.core.settings import PROJECT
from perennial.orchestration.queues import LIGHT
from perennial.orchestration.queues import QUEUES as OF_STAGES
from tests.conftest import _without

FOLDER = PROJECT / "deploy" / "helm"
OFFICIAL = yaml.safe_load((FOLDER / "values.yaml").read_text())
OURS = yaml.safe_load((FOLDER / "perennial" / "values.yaml").read_text())
TEMPLATES = {file.name: file.read_text() for file in sorted((FOLDER / "perennial" / "templates").iterdir())}
QUEUES = {LIGHT, *OF_STAGES.values()}
#: Of the official chart, those that run containers of ours.
SERVERS = ("scheduler", "apiServer", "dagProcessor", "triggerer")


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in leaves(part, f"{path}.{key}")]
    if isinstance(value, list):
        return [leaf for place, part in enumerate(value) for leaf in leaves(part, f"{path}[{place}]")]
    return [(path, value)]


def test_each_queue_of_the_dags_has_a_pod_and_only_the_judge_may_promote() -> None:
    assert set(OURS["queues"]) == QUEUES
    may = {name for name, template in TEMPLATES.items() if re.search(r'PERENNIAL_MAY_PROMOTE, value: "true"', template)}
    assert may == {"judge.yaml"}
    assert "serviceAccountName: perennial-judge" in TEMPLATES["judge.yaml"]
    assert 'PERENNIAL_MAY_PROMOTE, value: "false"' in TEMPLATES["pods.yaml"]
    assert OURS["queues"]["train"]["resources"]["limits"] != OURS["queues"]["light"]["resources"]["limits"]


def test_the_policy_gives_each_task_the_pod_of_its_queue() -> None:
    policy: dict[str, Any] = {}
    exec(OFFICIAL["airflowLocalSettings"], policy)
    mount = {mount["name"]: mount["mountPath"] for mount in OFFICIAL["scheduler"]["extraVolumeMounts"]}["pods"]
    for queue in QUEUES:
        task = SimpleNamespace(queue=queue, executor_config=None)
        policy["task_policy"](task)
        assert task.executor_config == {"pod_template_file": f"{mount}/{queue}.yaml"}
    # Otherwise the executor would put another image in place of the template's.
    assert not OFFICIAL["config"]["kubernetes_executor"]["worker_container_repository"]


@pytest.mark.parametrize("values", [OFFICIAL, OURS], ids=["official", "ours"])
def test_secrets_are_named_and_never_written_down(values: dict[str, Any]) -> None:
    for path, value in leaves(values):
        if not isinstance(value, bool) and re.search(
            r"(?i)(password|passphrase|token|secret|fernetkey|\.pass$|connection$)", path
        ):
            assert re.fullmatch(r"perennial-[a-z-]+|PERENNIAL_[A-Z_]+", str(value)), path
        assert not re.search(r"://[^/\s]*:[^/\s]*@", str(value)), path
    assert not any("kind: Secret" in template for template in TEMPLATES.values())


def test_images_are_named_by_digest() -> None:
    schema = yaml.safe_load((FOLDER / "perennial" / "values.schema.json").read_text())
    assert schema["properties"]["image"]["properties"]["digest"]["pattern"] == "^sha256:[0-9a-f]{64}$"
    used = [line for template in TEMPLATES.values() for line in re.findall(r"(?m)^ *image: (.*)$", template)]
    assert used
    assert all('include "perennial.image"' in image for image in used)
    assert "digest" in OFFICIAL["images"]["airflow"]


def test_nothing_of_ours_is_root_or_writes_into_its_image() -> None:
    for template in TEMPLATES.values():
        containers = len(re.findall(r"(?m)^ *image: ", template))
        assert template.count('include "perennial.podSecurity"') == template.count('include "perennial.containerSecurity"')
        assert template.count('include "perennial.containerSecurity"') == containers
        assert template.count("automountServiceAccountToken: false") >= containers
    for server in SERVERS:
        contexts = OFFICIAL[server]["securityContexts"]
        assert contexts["pod"]["runAsNonRoot"] is True
        assert contexts["container"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert OFFICIAL["networkPolicies"]["enabled"] is True


def test_pods_of_tasks_have_no_address_of_airflows_database() -> None:
    assert "SQL_ALCHEMY_CONN" not in TEMPLATES["pods.yaml"] + TEMPLATES["deployment.yaml"]
    assert "perennial-airflow" not in TEMPLATES["pods.yaml"]


def test_both_servers_have_the_address_that_people_type() -> None:
    assert OFFICIAL["config"]["api"]["base_url"] == OURS["airflow"]["publicUrl"]
    assert OFFICIAL["config"]["fab"]["cookie_secure"] == "True"


# --- what Helm makes of it --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def helm() -> str:
    """Path of the program, which ``scripts/helm.sh`` fetches."""
    found = shutil.which("helm", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")
    return found or _without("Helm (scripts/helm.sh)")


def run(helm: str, command: str, *values: str) -> subprocess.CompletedProcess[str]:
    given = [part for value in ("image.digest=sha256:" + "a" * 64, *values) for part in ("--set", value)]
    name = ["perennial"] if command == "template" else ["--strict"]
    return subprocess.run(
        [helm, command, *name, str(FOLDER / "perennial"), *given], capture_output=True, text=True, check=False
    )  # fmt: skip


def as_kubernetes_reads(value: Any, kind: str, path: str) -> Any:
    """A part of a manifest as the Kubernetes API's own model of it.

    Raises:
        AssertionError: a field that the model does not have, or a value of another type.
        ValueError: a field is missing that must be there.
    """
    if kind.startswith("list["):
        assert isinstance(value, list), path
        return [as_kubernetes_reads(part, kind[5:-1], f"{path}[{place}]") for place, part in enumerate(value)]
    if kind.startswith("dict"):
        assert isinstance(value, dict), path
        return {key: as_kubernetes_reads(part, kind[10:-1], f"{path}.{key}") for key, part in value.items()}
    if kind in ("str", "bool", "int"):
        assert type(value).__name__ == kind, f"{path} is {value!r}, not a {kind}"
        return value
    if kind == "object":
        return value
    model = getattr(kubernetes, kind)
    fields = {name: field for field, name in model.attribute_map.items()}
    assert set(value) <= set(fields), f"{path} has {set(value) - set(fields)}, which Kubernetes does not know"
    return model(
        **{
            fields[name]: as_kubernetes_reads(part, model.openapi_types[fields[name]], f"{path}.{name}")
            for name, part in value.items()
        }
    )


def manifests(helm: str, *values: str) -> dict[tuple[str, str], dict[str, Any]]:
    done = run(helm, "template", *values)
    assert done.returncode == 0, done.stderr
    made = [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]
    return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in made}


def test_helm_finds_nothing_to_object_to(helm: str) -> None:
    done = run(helm, "lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_kubernetes_knows_every_field(helm: str) -> None:
    found = manifests(helm)
    assert len(found) > 10
    for (kind, name), manifest in found.items():
        as_kubernetes_reads(manifest, f"V1{kind}", f"{kind} {name}")
    pods = found["ConfigMap", "perennial-pods"]["data"]
    assert {file.removesuffix(".yaml") for file in pods} == QUEUES
    for file, text in pods.items():
        as_kubernetes_reads(yaml.safe_load(text), "V1Pod", file)


def test_people_come_by_tls_to_a_name_of_its_own_for_each_server(helm: str) -> None:
    urls = ("airflow.publicUrl=https://a.test", "mlflow.publicUrl=https://m.test", "scorer.publicUrl=https://s.test")
    found = manifests(helm, *urls)
    for name, host, service in (
        ("airflow", "a.test", "airflow-api-server"),
        ("mlflow", "m.test", "perennial-mlflow"),
        ("scorer", "s.test", "perennial-scorer"),
    ):
        spec = found["Ingress", f"perennial-{name}"]["spec"]
        assert spec["tls"] == [{"hosts": [host], "secretName": "perennial-tls"}]
        [rule] = spec["rules"]
        assert rule["host"] == host
        assert rule["http"]["paths"][0]["backend"]["service"]["name"] == service
    [container] = found["Deployment", "perennial-mlflow"]["spec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment["MLFLOW_SERVER_ALLOWED_HOSTS"] == "perennial-mlflow:5000,m.test"
    assert environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "https://m.test"
    assert not [kind for kind, _ in manifests(helm, "ingress.enabled=false") if kind == "Ingress"]


FROM_GIT = (
    "models.repository=git@git.test:team/models.git",
    "models.image.digest=sha256:" + "b" * 64,
    "models.keys={key,known-hosts}",
)


def test_models_come_from_git_where_a_repository_is_named(helm: str) -> None:
    without, found = manifests(helm), manifests(helm, *FROM_GIT)
    for (kind, name), manifest in found.items():
        as_kubernetes_reads(manifest, f"V1{kind}", f"{kind} {name}")
    assert set(found) - set(without) == {("Deployment", "perennial-models"), ("NetworkPolicy", "perennial-models")}
    [follower] = found["Deployment", "perennial-models"]["spec"]["template"]["spec"]["containers"]
    assert follower["image"].endswith("@sha256:" + "b" * 64)
    environment = {one["name"]: one["value"] for one in follower["env"]}
    assert environment["PERENNIAL_MODELS_KEY_FILE"] == "/run/secrets/models/key"
    assert environment["PERENNIAL_MODELS_KNOWN_HOSTS_FILE"] == "/run/secrets/models/known-hosts"
    place = environment["PERENNIAL_MODELS_PLACE"]
    assert found["ConfigMap", "perennial-deployment"]["data"]["PERENNIAL_MODELS"] == f"{place}/current"
    readers = [yaml.safe_load(pod) for pod in found["ConfigMap", "perennial-pods"]["data"].values()]
    readers += [found["Deployment", f"perennial-{name}"]["spec"]["template"] for name in ("judge", "watchdog", "scorer")]
    for reader in readers:
        [mount] = [one for one in reader["spec"]["containers"][0]["volumeMounts"] if one["name"] == "models"]
        assert (mount["mountPath"], mount["readOnly"]) == (place, True)


def test_the_way_out_is_by_a_list_where_there_is_one(helm: str) -> None:
    def rules(*values: str) -> list[dict[str, Any]]:
        found = manifests(helm, *values)["NetworkPolicy", "perennial"]
        as_kubernetes_reads(found, "V1NetworkPolicy", "policy")
        # The first two lead to the cluster's own names and services.
        return list(found["spec"]["egress"][2:])

    assert [set(rule) for rule in rules()] == [{"ports"}]
    listed = rules("network.egress[0].cidr=10.0.12.0/24", "network.egress[0].port=5432")
    assert listed == [{"to": [{"ipBlock": {"cidr": "10.0.12.0/24"}}], "ports": [{"protocol": "TCP", "port": 5432}]}]


def test_scorers_are_replaced_one_after_another_and_reach_little(helm: str) -> None:
    found = manifests(helm, *FROM_GIT)
    deployment, policy = found["Deployment", "perennial-scorer"]["spec"], found["NetworkPolicy", "perennial-scorer"]["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert found["PodDisruptionBudget", "perennial-scorer"]["spec"]["maxUnavailable"] == 1
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    writable = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"tmp", "home"}
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert environment["PERENNIAL_MAY_PROMOTE"] == "false"
    assert pod["terminationGracePeriodSeconds"] > float(environment["PERENNIAL_SERVE_DEADLINE"]) + 5
    assert [source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source] == ["perennial-scorer"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 5000, 5432, 443}
    # Policies add up: the one of all others must not be its own.
    others = found["NetworkPolicy", "perennial"]["spec"]["podSelector"]["matchExpressions"]
    assert others == [{"key": "app.kubernetes.io/component", "operator": "NotIn", "values": ["scorer"]}]
    listed = manifests(helm, "scorer.egress[0].cidr=10.0.12.0/24", "scorer.egress[0].port=5432", "scorer.clients={shop}")
    policy = listed["NetworkPolicy", "perennial-scorer"]
    as_kubernetes_reads(policy, "V1NetworkPolicy", "policy")
    assert policy["spec"]["egress"][2:] == [
        {"to": [{"ipBlock": {"cidr": "10.0.12.0/24"}}], "ports": [{"protocol": "TCP", "port": 5432}]}
    ]
    asking = [one["namespaceSelector"]["matchLabels"] for one in policy["spec"]["ingress"][0]["from"]]
    assert {"kubernetes.io/metadata.name": "shop"} in asking


@pytest.mark.parametrize(
    "value", ["models.repository=https://git.test/m.git", "network.egress[0].cidr=db.test", "models.typo=1"]
)
def test_values_of_git_and_of_the_way_out_that_cannot_be_meant_are_refused(helm: str, value: str) -> None:
    assert run(helm, "template", value).returncode != 0


@pytest.mark.parametrize(
    "value", ["mlflow.publicUrl=http://m.test", "image.digest=latest", "ingress.tls=x", "mlflow.typo=1", "scorer.deadline=90"]
)
def test_values_that_cannot_be_meant_are_refused(helm: str, value: str) -> None:
    done = run(helm, "template", value)
    assert done.returncode != 0
    assert value.split("=")[0].split(".")[0] in done.stderr
