"""A Docker engine of the tests' own, and the images that docker-compose.yaml and the Dockerfile take from a registry.

It has a socket, a data folder and a client configuration of its own, so an engine of this machine is not touched. It needs no
registry: the base images are made from Debian's packages, Compose and buildx are unpacked from a newer Debian.
PERENNIAL_CONTAINERS names a folder that keeps all of it between runs, which saves minutes; without it, it is removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import _without

HERE = Path(__file__).parent
PROGRAMS = {"dockerd": "docker.io", "docker": "docker.io", "debootstrap": "debootstrap", "apt-get": "apt"}
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: The suite of the base images: it has a Python, a PostgreSQL and a Redis that the deployment works with.
BASES_FROM = "trixie"
#: The suite of Docker Compose and buildx. Those of Debian 12 and 13 are too old.
PLUGINS_FROM = "forky"
#: Each image that comes from a registry, by the variable that names another one. The image of the deployment needs the first.
BASES = {
    "PERENNIAL_PYTHON_IMAGE": "python",
    "PERENNIAL_POSTGRES_IMAGE": "postgres",
    "PERENNIAL_REDIS_IMAGE": "redis",
    "PERENNIAL_NGINX_IMAGE": "nginx",
}
_PATIENCE = 60


@dataclass(frozen=True)
class Engine:
    """A running engine.

    Attributes:
        folder: all that it keeps.
        environment: what its client needs to find it.
        took: seconds of what was done with it.
    """

    folder: Path
    environment: dict[str, str]
    took: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Note how long the block takes."""
        began = time.monotonic()
        yield
        self.took[what] = time.monotonic() - began

    def make_base(self, name: str) -> None:
        """Build an image of ``bases.Dockerfile``."""
        with self.timed(f"base image {name}"):
            image = f"perennial-test/{name}"
            self.docker("build", "--quiet", "--file", "bases/bases.Dockerfile", "--target", name, "--tag", image, "bases")

    def docker(self, *arguments: str, folder: Path | None = None, check: bool = True) -> str:
        """Run a command of Docker's client.

        Returns:
            What it printed.
        """
        return self.run("docker", *arguments, folder=folder, check=check)

    def run(self, *command: str, folder: Path | None = None, check: bool = True, given: str = "") -> str:
        """Run a command that finds this engine, and reads what it is given. Returns what it printed."""
        done = subprocess.run(
            command, env=self.environment, cwd=folder or self.folder, input=given, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-8000:]}"
        return done.stdout


@contextmanager
def running_engine(folder: Path) -> Iterator[Engine]:
    """An engine that can make the base images (:meth:`Engine.make_base`), and is stopped at the end.

    Args:
        folder: for all that it keeps; what is there already is used.
    """
    if os.getuid() != 0:
        pytest.skip("only root can start a container engine, so containers are not tested")
    if "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        pytest.skip("base images are made from the packages of a Debian machine, so containers are not tested on this one")
    for program, package in PROGRAMS.items():
        if shutil.which(program, path=_path()) is None:
            _without(f"A container engine ({program}, of Debian's package {package})")
    if not KEYS.exists():
        _without("A container engine (debian-archive-keyring, with the keys of Debian's archive)")
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PATH": _path(),
        "DOCKER_HOST": f"unix://{folder}/docker.sock",
        "DOCKER_CONFIG": str(folder / "client"),
        # The older builder would make every image of a file on the way to the one that is asked for.
        "DOCKER_BUILDKIT": "1",
    }
    log = folder / "dockerd.log"
    command = [
        "setpriv", "--pdeathsig", "TERM", "dockerd", "--data-root", str(folder / "data"), "--exec-root", str(folder / "run"),
        "--pidfile", str(folder / "dockerd.pid"), "--host", environment["DOCKER_HOST"],
    ]  # fmt: skip
    with log.open("wb") as output:
        daemon = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        engine = Engine(folder, environment)
        with engine.timed("the engine's start"):
            _wait_for(engine, daemon, log)
        with engine.timed("Compose and buildx"):
            _unpack_plugins(folder)
        _prepare_bases(engine)
        yield engine
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(timeout=_PATIENCE)


def _path() -> str:
    """Where programs are; those of Debian's packages come first, since they belong together."""
    return f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', os.defpath)}"


def _wait_for(engine: Engine, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while "Server Version" not in engine.docker("info", check=False):
        if daemon.poll() is not None:
            pytest.skip(
                f"this machine lets nobody run containers, so none are tested: {log.read_text(errors='replace')[-400:]}"
            )
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
        time.sleep(0.2)


def _mirror() -> str:
    """Where this machine takes Debian's packages from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    # Updates and security have sites of their own.
    [site, *_] = [site for site, release in map(str.split, listed.splitlines()) if "-" not in release]
    return site


def _unpack_plugins(folder: Path) -> None:
    """Docker Compose and buildx, as plugins of this engine's client alone."""
    plugins = folder / "client" / "cli-plugins"
    if plugins.exists():
        return
    apt = folder / "apt"
    for part in ("state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text(f"deb [signed-by={KEYS}] {_mirror()} {PLUGINS_FROM} main\n")
    settings = {
        "Dir::State": apt / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "APT::Sandbox::User": "root",
    }
    options = [f"--option={name}={value}" for name, value in settings.items()]
    for command in (["update"], ["download", "docker-compose", "docker-buildx"]):
        subprocess.run(["apt-get", "--quiet=2", *options, *command], cwd=apt, check=True, stdout=subprocess.DEVNULL)
    for package in apt.glob("*.deb"):
        subprocess.run(["dpkg", "--extract", package, apt / "unpacked"], check=True)
    plugins.parent.mkdir(exist_ok=True)
    (apt / "unpacked/usr/libexec/docker/cli-plugins").rename(plugins)
    shutil.rmtree(apt)


def _prepare_bases(engine: Engine) -> None:
    """Debian as an image, and the folder that the base images are built from."""
    if not engine.docker("images", "--quiet", "perennial-test/debian"):
        with engine.timed("Debian"):
            root = engine.folder / "debian"
            engine.run("debootstrap", "--variant=minbase", f"--keyring={KEYS}", BASES_FROM, str(root), _mirror())
            with subprocess.Popen(["tar", "--create", "--directory", root, "."], stdout=subprocess.PIPE) as tar:
                subprocess.run(
                    ["docker", "import", "-", "perennial-test/debian"], env=engine.environment, stdin=tar.stdout, check=True,
                    stdout=subprocess.DEVNULL,
                )  # fmt: skip
            shutil.rmtree(root)
    told = engine.docker("run", "--rm", "--network", "none", "perennial-test/debian", "echo", "it runs", check=False)
    if "it runs" not in told:
        pytest.skip(f"this machine lets nobody run containers, so none are tested: {told[-400:]}")
    context = engine.folder / "bases"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir()
    for name in ("bases.Dockerfile", "postgres-entrypoint.sh"):
        shutil.copy(HERE / name, context)
    # Builds trust whom this machine trusts, and take packages from where it takes them.
    shutil.copy(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"), context / "certificates.crt")
    index = os.environ.get("PIP_INDEX_URL")
    (context / "pip.conf").write_text(f"[global]\nindex-url = {index}\n" if index else "")
    (context / "uv.toml").write_text(f'[[index]]\nurl = "{index}"\ndefault = true\n' if index else "")
