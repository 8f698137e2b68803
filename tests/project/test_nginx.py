"""deploy/proxy: the configuration of nginx, as the service ``proxy`` starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from perennial.core.settings import PROJECT
from perennial.operations.secret_file import SECRETS
from tests.certificates import write_certificate
from tests.composed import read_compose
from tests.conftest import _without

PATH = f"{os.defpath}:/usr/sbin"


def start(folder: Path, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command of the service, with its files in a folder."""
    service = read_compose({name: make() for name, make in SECRETS.items()})["services"]["proxy"]
    shell, script = service["command"]
    here = {"PERENNIAL_TLS": str(folder), "PERENNIAL_PROXY_FOLDER": str(folder), "PERENNIAL_PUBLIC_HOST": host, "PATH": PATH}
    command = [shell, str(PROJECT / Path(script).relative_to("/opt/perennial")), *arguments]
    return subprocess.run(
        command, env=service["environment"] | here, capture_output=True, text=True, check=False, timeout=30
    )  # fmt: skip


def test_nginx_finds_nothing_to_object_to(tmp_path: Path) -> None:
    if shutil.which("nginx", path=PATH) is None:
        _without("nginx")
    write_certificate(tmp_path, "airflow.ml.example.org", "mlflow.ml.example.org")
    done = start(tmp_path, "ml.example.org:8443", "-t")
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr
    # Names have no port, origins do.
    text = (tmp_path / "nginx.conf").read_text()
    assert "server_name airflow.ml.example.org;" in text
    assert '"https://mlflow.ml.example.org:8443" 0;' in text


@pytest.mark.parametrize("host", ["", "https://ml.example.org", "ml.example.org; return 200", "ML.example.org"])
def test_a_public_host_that_is_none_is_refused_with_what_to_do(tmp_path: Path, host: str) -> None:
    done = start(tmp_path, host)
    assert done.returncode == 1
    assert "proxy: PERENNIAL_PUBLIC_HOST is" in done.stderr
    assert "docs/operate.md" in done.stderr


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    done = start(tmp_path, "ml.example.org")
    assert done.returncode == 1
    assert "certificate.pem cannot be read by user" in done.stderr
