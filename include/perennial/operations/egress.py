"""The way out of workers by a list: writes the compose file that lets them reach listed addresses and nothing else.

``make egress TO="db.example.org:5432 hooks.slack.com:443"`` runs this module with any Python, before anything is installed: it
imports nothing but the standard library. docs/deploy.md, "The way out by a list", says how to use the file.

Each listed host gets a forwarder (nginx) that workers find under the host's name. It passes each connection, as it is, to the
service ``egress``, which alone can leave the deployment. The two are apart because a container finds its own name first: the
forwarder could not ask for the address of the host that it is named after.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from perennial.core.errors import SettingsError
from perennial.core.files import replacing

COMPOSE = Path(__file__).resolve().parents[3] / "docker-compose.yaml"

_NAME = re.compile(r"(?=.{1,253}$)(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+")
#: The first port of the service ``egress``.
_FIRST = 10000
_FORWARDER = """\
x-forwarder: &forwarder
  image: IMAGE
  user: "101:101"
  read_only: true
  tmpfs: ["/tmp:uid=101,gid=101,size=16m"]
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  # Docker's own default, so that its user may listen on the ports of the sources.
  sysctls: {net.ipv4.ip_unprivileged_port_start: 0}
  mem_limit: 64m
  pids_limit: 16
  restart: unless-stopped
  stop_signal: SIGQUIT
  logging: {driver: local, options: {max-size: 20m, max-file: "5"}}
  entrypoint: []
  command: [sh, /opt/perennial/deploy/egress/start.sh]
  volumes: ["./deploy/egress:/opt/perennial/deploy/egress:ro"]
  healthcheck: {test: [CMD-SHELL, "kill -0 $$(cat /tmp/nginx.pid)"], interval: 15s, timeout: 5s, retries: 3}
"""


def compose_file(listed: Sequence[str], store: Sequence[str] = ()) -> str:
    """The text of the compose file.

    Args:
        listed: what workers and senders of alerts may reach, as ``host:port``.
        store: the same of an object store, which trainings and the judge may reach as well.

    Raises:
        SettingsError: an address is none.
    """
    ports: dict[str, set[int]] = defaultdict(set)
    for address in (*listed, *store):
        host, port = _parsed(address)
        ports[host].add(port)
    stored = {_parsed(address)[0] for address in store}
    [image] = re.findall(r"(?m)^ *image: &nginx (\S+)$", COMPOSE.read_text(encoding="utf-8"))
    onward, fronts, place = [], [], _FIRST
    for host, its in sorted(ports.items()):
        within = []
        for port in sorted(its):
            onward.append(f"{place}={host}:{port}")
            within.append(f"{port}=egress:{place}")
            place += 1
        known = json.dumps({"aliases": [host]})
        fronts += [
            f"  egress-to-{host.replace('.', '-')}:",
            "    <<: *forwarder",
            f"    environment: {json.dumps({'PERENNIAL_EGRESS': ' '.join(within)})}",
            f"    networks: {{relay: {{}}, sources: {known}{f', store: {known}' if host in stored else ''}}}",
        ]
    lines = [
        "# What workers and senders of alerts may reach: made by make egress, and made anew by it. docs/deploy.md says more.",
        _FORWARDER.replace("IMAGE", image),
        "services:",
        "  # The one that leaves the deployment, to what is listed here.",
        "  egress:",
        "    <<: *forwarder",
        f"    environment: {json.dumps({'PERENNIAL_EGRESS': ' '.join(onward)})}",
        "    networks: [relay, outside]",
        *fronts,
        "",
        "networks:",
        "  # Between the forwarders and the one that leaves.",
        "  relay: {internal: true}",
        "  # From here on it leads nowhere else.",
        "  sources: {internal: true}",
    ]
    return "\n".join(lines) + "\n"


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not _NAME.fullmatch(host) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SettingsError(
            f"{address} is no address: write the host's name in lower-case letters, a colon and a port, such as "
            "db.example.org:5432. A number of the network has no name that a connection could ask for: give it one in your DNS"
        )
    return host, int(port)


def main() -> str:
    """Write the file that the first argument names. Returns what to do next."""
    parser = argparse.ArgumentParser(prog="make egress", description="Lists what workers may reach.")
    parser.add_argument("file", type=Path)
    parser.add_argument("listed", nargs="*", metavar="HOST:PORT")
    parser.add_argument("--store", nargs="*", default=[], metavar="HOST:PORT")
    chosen = parser.parse_args()
    if not chosen.listed and not chosen.store:
        raise SettingsError('name what workers may reach: make egress TO="db.example.org:5432 hooks.slack.com:443"')
    text = compose_file(chosen.listed, chosen.store)
    with replacing(chosen.file) as draft:
        draft.write_text(text, encoding="utf-8")
    return (
        f"{chosen.file} is written. In .env, COMPOSE_FILE=docker-compose.yaml:{chosen.file} makes it count; then run docker "
        "compose down, and docker compose up --detach --wait."
    )


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{main()}\n")
    except SettingsError as error:
        sys.exit(str(error))
