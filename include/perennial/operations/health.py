"""Whether a service of the deployed stack works. The health checks of ``docker-compose.yaml`` run this module::

    python -m perennial.operations.health http://127.0.0.1:5000/health                   must answer with 200
    python -m perennial.operations.health http://api:8080/api/v2/monitor/health#triggerer  and call this part of it healthy
    python -m perennial.operations.health /opt/airflow/pulse-of-worker         a file that its worker keeps new

It imports as little as it can, since it runs several times a minute in each container. On a busy machine, a check that takes
long would tell of a sick service.
"""

from __future__ import annotations

import json
import os
import sys
import time
from urllib.error import URLError
from urllib.parse import urldefrag
from urllib.request import ProxyHandler, build_opener

#: Seconds for an answer.
PATIENCE = 8
#: A worker's file is written every few seconds. If it is older than this, in seconds, the worker hangs.
LONGEST_PULSE = 60


def healthy(target: str) -> bool:
    """Whether a service of this container works.

    Args:
        target: an address that must answer with 200; behind ``#`` a part of the answer whose status must be healthy. Or
            the file that a worker keeps new (:mod:`perennial.orchestration.pulse`).
    """
    if target.startswith("/"):
        try:
            return time.time() - os.stat(target).st_mtime < LONGEST_PULSE
        except OSError:
            return False
    address, part = urldefrag(target)
    try:
        # A proxy of the environment cannot reach these addresses.
        with build_opener(ProxyHandler({})).open(address, timeout=PATIENCE) as answer:
            return answer.status == 200 and (not part or json.load(answer)[part]["status"] == "healthy")
    except (URLError, OSError, ValueError, KeyError, TypeError):
        return False


if __name__ == "__main__":
    sys.exit(0 if healthy(sys.argv[1]) else 1)
