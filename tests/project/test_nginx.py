"""deploy/proxy and deploy/balancer: the configurations of nginx, as the services ``proxy`` and ``balancer`` start it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from perennial.core.settings import PROJECT
from perennial.operations.secret_file import SECRETS
from tests.certificates import write_certificate
from tests.composed import free_port, read_compose
from tests.conftest import _without

PATH = f"{os.defpath}:/usr/sbin"


def command(name: str, folder: Path, here: dict[str, str], *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command of a service, and its environment, with its files in a folder."""
    service = read_compose({name: make() for name, make in SECRETS.items()})["services"][name]
    shell, script = service["command"]
    places = {f"PERENNIAL_{name.upper()}_FOLDER": str(folder), "PATH": PATH}
    script = str(PROJECT / Path(script).relative_to("/opt/perennial"))
    return [shell, script, *arguments], service["environment"] | places | here


def start(folder: Path, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command of the service ``proxy`` to its end."""
    here = {"PERENNIAL_TLS": str(folder), "PERENNIAL_PUBLIC_HOST": host}
    words, environment = command("proxy", folder, here, *arguments)
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=30)


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


# --- the balancer -----------------------------------------------------------------------------------------------------


@contextmanager
def names() -> Iterator[str]:
    """A server of names, as Docker's: whatever is asked has two addresses. Its own address."""

    def answer() -> None:
        while True:
            asked, client = server.recvfrom(512)
            if asked == b"end":
                return
            question = asked[12 : asked.index(b"\0", 12) + 5]
            records = [b"\xc0\x0c\0\x01\0\x01\0\0\0\x01\0\x04" + bytes((127, 0, 0, last)) for last in (1, 2)]
            server.sendto(asked[:2] + b"\x81\x80\0\x01\0\x02\0\0\0\0" + question + b"".join(records), client)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=answer)
        thread.start()
        yield "{}:{}".format(*server.getsockname())
        server.sendto(b"end", server.getsockname())
        thread.join()


@contextmanager
def balancing(folder: Path, scorers: str, *, resolver: str = "", most: int = 1000) -> Iterator[httpx.Client]:
    """The balancer before scorers at an address, and a client of it."""
    if shutil.which("nginx", path=PATH) is None:
        _without("nginx")
    port, health = free_port(), free_port()
    here = {
        "PERENNIAL_BALANCER_LISTEN": f"127.0.0.1:{port}",
        "PERENNIAL_BALANCER_HEALTH": f"127.0.0.1:{health}",
        "PERENNIAL_BALANCER_SCORERS": scorers,
        "PERENNIAL_BALANCER_RESOLVER": resolver,
        "PERENNIAL_SERVE_MOST_BYTES": f"{most}",
        "PERENNIAL_SERVE_DEADLINE": "0.5",
    }
    words, environment = command("balancer", folder, here)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not healthy(f"http://127.0.0.1:{health}/", {204}):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            yield client
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(30)
    assert "[warn]" not in (folder / "log").read_text()


def healthy(url: str, statuses: set[int]) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code in statuses
    except httpx.HTTPError:
        return False


class Scorer(BaseHTTPRequestHandler):
    """Says what it was asked. It closes the first connections without an answer, as a process that is killed does."""

    asked: ClassVar[list[str]] = []
    dying: ClassVar[int] = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(f"{self.path} {self.headers['Host']} {self.headers['Authorization']} {body.decode()}")
        if type(self).dying:
            type(self).dying -= 1
            self.close_connection = True
            return
        self.send_response(503 if b"busy" in body else 200)
        self.send_header("Retry-After", "7")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scorer() -> Iterator[ThreadingHTTPServer]:
    Scorer.asked, Scorer.dying = [], 0
    # On each address of this machine for itself: two of them stand for two scorers.
    server = ThreadingHTTPServer(("", 0), Scorer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_balancer_passes_on_what_is_asked_as_it_is(tmp_path: Path, scorer: ThreadingHTTPServer) -> None:
    with balancing(tmp_path, f"127.0.0.1:{scorer.server_port}") as client:
        headers = {"Authorization": "Bearer one", "Host": "scorer.example.org"}
        answer = client.post("/models/toy/predict?a=%2F", content="{}", headers=headers)
        assert answer.status_code == 200
        assert Scorer.asked == ["/models/toy/predict?a=%2F scorer.example.org Bearer one {}"]
        busy = client.post("/models/toy/predict", content="busy")
        assert (busy.status_code, busy.headers["Retry-After"]) == (503, "7")
        for path in ("/metrics", "/v2x", "/modelsx"):
            assert (client.get(path).status_code, client.get(path).json()) == (404, {"error": "there is nothing here"})
        large = client.post("/models/toy/predict", content="x" * 1001)
        assert (large.status_code, large.json()) == (413, {"error": "the body has more than 1000 bytes"})
    log = (tmp_path / "log").read_text()
    assert "a=%2F" not in log
    assert "one" not in log


def test_a_client_is_told_when_there_is_no_scorer(tmp_path: Path) -> None:
    for place, scorers in (("closed", f"127.0.0.1:{free_port()}"), ("unknown", "scorer.invalid:8090")):
        (tmp_path / place).mkdir()
        with balancing(tmp_path / place, scorers) as client:
            answer = client.post("/models/toy/predict?whose=mine", content="{}")
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert answer.json() == {"error": "no scorer answers now; try again"}
        log = (tmp_path / place / "log").read_text()
        assert '"POST /models/toy/predict" 503' in log
        assert "mine" not in log


@pytest.mark.parametrize(
    ("path", "again"),
    [
        ("/models/toy/predict", True),
        ("/models/toy/invocations", True),
        ("/v2/models/toy/infer", True),
        ("/v2/models/toy/versions/3/infer", True),
        # Rows that are pushed are not pushed again by anybody but their client.
        ("/models/toy/tables/visits", False),
    ],
)
def test_a_question_is_asked_again_when_a_scorer_dies_and_a_push_is_not(
    tmp_path: Path, scorer: ThreadingHTTPServer, path: str, again: bool
) -> None:
    Scorer.dying = 1
    with names() as resolver, balancing(tmp_path, f"scorer:{scorer.server_port}", resolver=resolver) as client:
        answer = client.post(path, content="{}")
    assert (answer.status_code, len(Scorer.asked)) == ((200, 2) if again else (503, 1))
