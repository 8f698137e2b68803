"""deploy/helm: what must hold of it whoever installs it. README.md beside it says what was validated with Helm."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from perennial.core.settings import PROJECT
from perennial.orchestration.queues import LIGHT
from perennial.orchestration.queues import QUEUES as OF_STAGES

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
        if re.search(r"(?i)(password|passphrase|token|secret|fernetkey|\.pass$|connection$)", path):
            assert re.fullmatch(r"perennial-[a-z]+|PERENNIAL_DATABASE_URL", str(value)), path
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
