"""The workflows of .github: they keep to their schema, trust nothing that can change, and call what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
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
    assert jobs["production"]["with"]["image"] == jobs["staging"]["with"]["image"] == "${{ needs.image.outputs.image }}"
    assert jobs["image"]["needs"] == "ci"
    assert jobs["image"]["outputs"]["image"].endswith("@${{ steps.build.outputs.digest }}")


def test_an_image_is_signed_by_its_digest_before_it_goes_anywhere() -> None:
    jobs = yaml.safe_load((PROJECT / ".github" / "workflows" / "release.yaml").read_text())["jobs"]
    sign = jobs["image"]["steps"][-1]
    assert sign["run"] == 'cosign sign --yes "$IMAGE"'
    assert sign["env"]["IMAGE"] == jobs["image"]["outputs"]["image"]
    assert jobs["image"]["permissions"]["id-token"] == "write"


def test_the_locked_packages_are_scanned_and_listed() -> None:
    jobs = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yaml").read_text())["jobs"]
    assert any(step.get("run") == "make audit" for step in jobs["audit"]["steps"])
    assert any("sbom.json" in str(step.get("with")) for step in jobs["audit"]["steps"])
