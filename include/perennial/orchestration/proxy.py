"""What a proxy says about a request: where it comes from, and that it came by TLS.

Airflow limits how often an address may try to sign in, and marks its cookies ``Secure`` where people come by TLS. Behind a
proxy it learns both by headers, which anybody can send. Here they count if the proxy itself has sent them, and nobody else's
do. The plugin ``perennial_proxy`` puts this before Airflow's API server, where ``PERENNIAL_TRUSTED_PROXY`` is set.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

#: Seconds for which the proxy's address is not looked up again. A container that is started again may get another one.
_KNOWN_FOR = 10.0


class BehindProxy:
    """An ASGI application behind a proxy that sets ``X-Forwarded-For`` and ``X-Forwarded-Proto``.

    Args:
        app: what answers the requests.
        proxy: the name or address that the proxy's connections come from.
    """

    def __init__(self, app: App, proxy: str) -> None:
        self._app = app
        self._proxy = proxy
        self._addresses: frozenset[str] = frozenset()
        self._known_until = 0.0

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            told = told_by_proxy(headers.get(b"x-forwarded-for", b""), headers.get(b"x-forwarded-proto", b""))
            # The name is looked up only where somebody claims something.
            if told and scope.get("client") and scope["client"][0] in await self._where():
                scope = {**scope, **told}
        await self._app(scope, receive, send)

    async def _where(self) -> frozenset[str]:
        now = time.monotonic()
        if now >= self._known_until:
            # Before the answer is there, so that the requests that come meanwhile do not ask as well.
            self._known_until = now + _KNOWN_FOR
            try:
                found = await asyncio.get_running_loop().getaddrinfo(self._proxy, None, type=socket.SOCK_STREAM)
            except OSError:
                found = []
            self._addresses = frozenset(str(address[0]) for *_, address in found)
        return self._addresses


def told_by_proxy(sender: bytes, scheme: bytes) -> dict[str, Any]:
    """What the two headers say, as a part of an ASGI scope. What cannot be read says nothing.

    Args:
        sender: ``X-Forwarded-For``. Of several addresses the last one counts, which the nearest proxy has added.
        scheme: ``X-Forwarded-Proto``.
    """
    told: dict[str, Any] = {}
    with suppress(ValueError):
        told["client"] = (str(ip_address(sender.decode("ascii").rpartition(",")[2].strip())), 0)
    if scheme in (b"http", b"https"):
        told["scheme"] = scheme.decode()
    return told
