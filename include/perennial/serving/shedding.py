"""Refuse requests that come while too many are being answered, before they cost anything.

What is refused must cost so little that those who are answered do not notice: a task, a scope and a router for each refusal
would take the scorer's time before the predictions do. So the connection itself refuses, in uvicorn's class for a connection,
which uvicorn lets its users replace.

Neighbours: :mod:`perennial.serving.app` answers the others; :mod:`perennial.serving.service` starts the server.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from perennial.serving.answers import as_json

#: Seconds after which a client that was refused may try again.
AGAIN = 1


def refusing(most: int, headers: tuple[tuple[bytes, bytes], ...], refused: Callable[[str], None]) -> type[HttpToolsProtocol]:
    """The class of connections that refuse what asks for predictions while so many requests are being answered.

    Args:
        most: requests at once.
        headers: of every answer.
        refused: called with the address of each request that is refused.
    """
    common = b"".join(b"%s: %s\r\n" % header for header in headers)

    class Connection(HttpToolsProtocol):
        """A connection; requests on it come one after another."""

        _refusing = False

        def on_headers_complete(self) -> None:
            """Take a request, or refuse it once its body has come, which is dropped."""
            # What waits behind a request on the same connection takes its turn.
            idle = self.cycle is None or self.cycle.response_complete
            self._refusing = idle and len(self.tasks) >= most and self.parser.get_method() == b"POST"
            if not self._refusing:
                super().on_headers_complete()
            elif self.expect_100_continue:
                self._refuse(close=True)  # the client waits before it sends the body

        def on_body(self, body: bytes) -> None:
            """Keep a part of the body, unless the request is refused."""
            if not self._refusing:
                super().on_body(body)

        def on_message_complete(self) -> None:
            """All of the body has come."""
            if not self._refusing:
                super().on_message_complete()
            elif not self.transport.is_closing():
                self._refuse(close=not self.parser.should_keep_alive())

        def _refuse(self, *, close: bool) -> None:
            identifier = uuid4().hex
            body = as_json({"error": "too many requests at once; try again", "request_id": identifier})
            self.transport.write(
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: %d\r\nx-request-id: %s\r\n"
                b"%s%scontent-length: %d\r\n\r\n%s"
                % (AGAIN, identifier.encode(), common, b"connection: close\r\n" if close else b"", len(body), body)
            )
            if close:
                self.transport.close()
            refused(self.url.partition(b"?")[0].decode("ascii", "replace"))

    return Connection
