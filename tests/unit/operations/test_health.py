"""What the health checks of the deployed stack answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from perennial.operations.health import LONGEST_PULSE, healthy

ANSWERS = {
    "/well": (200, json.dumps({"triggerer": {"status": "healthy"}, "scheduler": {"status": "unhealthy"}, "other": None})),
    "/words": (200, "fine"),
    "/sick": (503, "{}"),
}


class _Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = ANSWERS[self.path]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("target", "well"),
    [
        ("/well", True),
        ("/well#triggerer", True),
        ("/well#scheduler", False),
        ("/well#other", False),
        ("/well#nobody", False),
        ("/words", True),
        ("/words#triggerer", False),
        ("/sick", False),
    ],
)
def test_a_service_is_healthy_if_it_says_so(address: str, target: str, well: bool) -> None:
    assert healthy(address + target) is well


def test_a_service_that_does_not_answer_is_not_healthy() -> None:
    assert not healthy("http://127.0.0.1:9/health")


def test_a_check_loads_no_large_library() -> None:
    told = "import sys, perennial.operations.health; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.split()
    assert {"sqlalchemy", "pydantic", "celery", "airflow", "mlflow", "pandas", "structlog"}.isdisjoint(loaded)


def test_a_worker_is_healthy_while_it_keeps_its_file_new(tmp_path: Path) -> None:
    pulse = tmp_path / "pulse"
    assert not healthy(str(pulse))
    pulse.touch()
    assert healthy(str(pulse))
    os.utime(pulse, (time.time() - 2 * LONGEST_PULSE,) * 2)
    assert not healthy(str(pulse))
