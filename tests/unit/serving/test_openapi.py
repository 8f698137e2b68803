"""Whatever is asked, the scorer answers as its OpenAPI document says: schemathesis asks what it allows and what not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.unit.serving.conftest import running
from tests.unit.serving.test_pushing import pushable

CONFIG = Path(__file__).with_name("schemathesis.toml")
#: Of each kind and address. Ten minutes of it, by hand: `schemathesis … run ADDRESS/openapi.json --max-time 600`.
EXAMPLES = 25


def ask(address: httpx.URL, place: Path, *more: str) -> str:
    """What schemathesis says when it has asked whatever the document allows, and what not."""
    program = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run",
        f"{address}/openapi.json".replace("//openapi", "/openapi"), "--max-examples", str(EXAMPLES),
        "--generation-deterministic", "--continue-on-failure", "--request-timeout", "60", "--no-color", *more,
    ]  # fmt: skip
    done = subprocess.run(program, cwd=place, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("task", ["binary_classification", "multiclass_classification"])
def test_every_request_is_answered_as_the_document_says(clients: dict[str, httpx.Client], task: str, tmp_path: Path) -> None:
    assert "API Operations:" in ask(clients[task].base_url, tmp_path)


def test_every_push_is_answered_as_the_document_says(tmp_path: Path) -> None:
    world = pushable(tmp_path)
    world.promote(world.register())
    with running(world) as (_, client):
        said = ask(client.base_url, tmp_path, "--include-path-regex", "/tables/")
    assert "API Operations:" in said
    assert "1 tested" in said or "Selected: 1" in said, said
