"""The workflows of .github: they keep to their schema, trust nothing that can change, and call what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.core.settings import PROJECT
from tests.project.test_manuals import TARGETS, check_compose, words_of

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yaml"))


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job.get("steps", [])


def test_they_keep_to_the_schema_of_workflows() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actions_of_others_are_pinned_by_commit_and_named_by_version(file: Any) -> None:
    used = re.findall(r"uses: (\S+)(.*)", file.read_text())
    loose = [name for name, comment in used if not name.startswith("./") and not re.search(r"@[0-9a-f]{40}$", name)]
    unnamed = [name for name, comment in used if not name.startswith("./") and not re.search(r"# v\d+\.\d+\.\d+$", comment)]
    assert (loose, unnamed) == ([], [])
    assert all((PROJECT / name).is_file() for name, _ in used if name.startswith("./"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_job_may_no_more_than_it_says(file: Any) -> None:
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {}
    writes = {
        f"{name}: {right}"
        for name, job in workflow["jobs"].items()
        for right, level in job["permissions"].items()
        if level != "read"
    }
    assert writes <= {"image: packages", "image: id-token"}
    for step in steps(workflow):
        assert "${{" not in step.get("run", ""), "what a person chose could be a command; hand it over by env"
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_what_they_run_is_there(file: Any) -> None:
    lines = [line for step in steps(yaml.safe_load(file.read_text())) for line in step.get("run", "").splitlines()]
    for line in lines:
        words = words_of(line.rstrip("\\"))
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= TARGETS
        if words[:2] == ["docker", "compose"]:
            check_compose(words[2:], line)
        named = re.findall(r"(?<![\w$/])((?:scripts|tests|deploy|\.ci)/[\w./-]+)", line)
        assert [path for path in named if not (PROJECT / path).exists()] == []


def test_production_gets_what_staging_had_by_its_digest() -> None:
    jobs = yaml.safe_load((PROJECT / ".github" / "workflows" / "release.yaml").read_text())["jobs"]
    assert "staging" in jobs["production"]["needs"]
    assert jobs["image"]["needs"] == "ci"
    for image, step in (("image", "build"), ("models", "build-models")):
        assert jobs["production"]["with"][image] == jobs["staging"]["with"][image] == f"${{{{ needs.image.outputs.{image} }}}}"
        assert jobs["image"]["outputs"][image].endswith(f"@${{{{ steps.{step}.outputs.digest }}}}")


def test_each_image_that_compose_builds_is_built_by_a_release() -> None:
    release = yaml.safe_load((PROJECT / ".github" / "workflows" / "release.yaml").read_text())
    built = {step["with"].get("file", "Dockerfile") for step in steps(release) if "build-push-action" in step.get("uses", "")}
    services = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())["services"].values()
    assert built == {service["build"].get("dockerfile", "Dockerfile") for service in services if "build" in service}


def test_an_image_is_signed_by_its_digest_before_it_goes_anywhere() -> None:
    jobs = yaml.safe_load((PROJECT / ".github" / "workflows" / "release.yaml").read_text())["jobs"]
    sign = jobs["image"]["steps"][-1]
    assert sign["run"] == 'cosign sign --yes "$IMAGE" "$MODELS"'
    assert sign["env"] == {name.upper(): given for name, given in jobs["image"]["outputs"].items()}
    assert jobs["image"]["permissions"]["id-token"] == "write"


def test_an_upgrade_of_helm_takes_images_by_their_digests_only(tmp_path: Path) -> None:
    for name in ("helm", "kubectl"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)

    def upgrade(*images: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", PROJECT / "deploy" / "helm" / "upgrade.sh", "ml", *images],
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    one, other = "here/perennial@sha256:" + "a" * 64, "here/perennial-git@sha256:" + "b" * 64
    assert "models.image" not in upgrade(one).stdout
    assert "--set models.image.repository=here/perennial-git --set models.image.digest=sha256:b" in upgrade(one, other).stdout
    for refused in [("here/perennial:1",), (one, "here/perennial-git:1")]:
        done = upgrade(*refused)
        assert done.returncode == 1
        assert done.stdout == ""
        assert "has no digest" in done.stderr


def test_the_locked_packages_are_scanned_and_listed() -> None:
    jobs = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yaml").read_text())["jobs"]
    assert any(step.get("run") == "make audit" for step in jobs["audit"]["steps"])
    assert any("sbom.json" in str(step.get("with")) for step in jobs["audit"]["steps"])
