"""What a request says about where it comes from counts behind the proxy alone."""

from __future__ import annotations

import asyncio
import runpy
from typing import Any

import pytest

from perennial.core.settings import PROJECT
from perennial.orchestration.proxy import BehindProxy, told_by_proxy

FORGED = [(b"x-forwarded-for", b"203.0.113.7"), (b"x-forwarded-proto", b"https")]


def seen(proxy: str, sender: str, headers: list[tuple[bytes, bytes]]) -> tuple[str, str]:
    """Address and scheme of a request, as the application sees them."""
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    scope = {"type": "http", "scheme": "http", "client": (sender, 40000), "headers": headers}
    asyncio.run(BehindProxy(app, proxy)(scope, None, None))
    return scopes[0]["client"][0], scopes[0]["scheme"]


@pytest.mark.parametrize("proxy", ["127.0.0.1", "localhost"])
def test_the_proxy_says_where_a_request_comes_from(proxy: str) -> None:
    assert seen(proxy, "127.0.0.1", FORGED) == ("203.0.113.7", "https")
    assert seen(proxy, "127.0.0.1", []) == ("127.0.0.1", "http")


@pytest.mark.parametrize("proxy", ["127.0.0.1", "no-such-host.invalid"])
def test_nobody_else_does(proxy: str) -> None:
    assert seen(proxy, "127.0.0.9", FORGED) == ("127.0.0.9", "http")


def test_what_cannot_be_read_says_nothing() -> None:
    assert told_by_proxy(b"\xff, <script>", b"ftp") == {}
    # A client has sent the first one, the proxy has added the last one.
    assert told_by_proxy(b"198.51.100.1, 203.0.113.7", b"http") == {"client": ("203.0.113.7", 0), "scheme": "http"}


def test_airflow_believes_nobody_where_no_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = runpy.run_path(str(PROJECT / "plugins" / "perennial_proxy.py"))["PerennialProxy"]
    monkeypatch.delenv("PERENNIAL_TRUSTED_PROXY", raising=False)
    assert plugin().fastapi_root_middlewares == []
    monkeypatch.setenv("PERENNIAL_TRUSTED_PROXY", "proxy")
    [middleware] = plugin().fastapi_root_middlewares
    assert (middleware["middleware"], middleware["kwargs"]) == (BehindProxy, {"proxy": "proxy"})
