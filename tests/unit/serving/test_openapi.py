"""Whatever is asked, the scorer answers as its OpenAPI document says: schemathesis asks what it allows and what not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

CONFIG = Path(__file__).with_name("schemathesis.toml")
#: Of each kind and address. Ten minutes of it, by hand: `schemathesis … run ADDRESS/openapi.json --max-time 600`.
EXAMPLES = 25


@pytest.mark.parametrize("task", ["binary_classification", "multiclass_classification"])
def test_every_request_is_answered_as_the_document_says(clients: dict[str, httpx.Client], task: str, tmp_path: Path) -> None:
    program = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run",
        f"{clients[task].base_url}/openapi.json".replace("//openapi", "/openapi"), "--max-examples", str(EXAMPLES),
        "--generation-deterministic", "--continue-on-failure", "--request-timeout", "60", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "API Operations:" in done.stdout
