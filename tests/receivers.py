"""Real servers on this machine that receive alerts: one like Slack, or as bad as a test requires, and one for mail."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Literal, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"

#: What a server says, or does with the connection.
Answer = bytes | Callable[[socket.socket], None]


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A whole answer; underscores in a header's name are hyphens."""
    lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Slack:
    """A web server that takes messages.

    Attributes:
        answers: to the next requests, one each; after them, ``then``.
        then: to all further ones.
        taken: the messages that were answered with :data:`OK`, or with something callable that says so itself.
        headers: of every request.
    """

    answers: list[Answer] = field(default_factory=list)
    then: Answer = OK
    taken: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def said(self) -> list[str]:
        """All text of each message that was taken."""
        return [text_of(message) for message in self.taken]


def text_of(message: dict[str, Any]) -> str:
    """All text that a message shows."""
    return "\n".join([message["text"], *(block["text"]["text"] for block in message["blocks"])])


def words_of(mail: EmailMessage, kind: Literal["plain", "html"]) -> str:
    """What a mail says in one of its forms."""
    body = mail.get_body((kind,))
    assert body is not None
    return str(body.get_content())


@contextmanager
def slack(*, certificate: tuple[str, str] | None = None) -> Iterator[Slack]:
    """The server; with a certificate and its key, by TLS."""
    state = Slack()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            connection = cast(socket.socket, self.request)
            with suppress(OSError), connection:
                if certificate is not None:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(*certificate)
                    connection = context.wrap_socket(connection, server_side=True)
                head, _, body = b"", b"", b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65_536)
                head, _, body = head.partition(b"\r\n\r\n")
                length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-l"))
                while len(body) < length:
                    body += connection.recv(65_536)
                state.headers.append(head.decode())
                state.paths.append(head.split(b" ")[1].decode())
                said = state.answers.pop(0) if state.answers else state.then
                if said == OK or callable(said):
                    state.taken.append(json.loads(body))
                if callable(said):
                    said(connection)
                else:
                    connection.sendall(said)

    with _serving(Handler) as port:
        state.port = port
        yield state


@contextmanager
def raw(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that lets ``serve`` handle each connection; yields its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                serve(self.request)

    with _serving(Handler) as port:
        yield port


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Log nothing: a client may close its connection early."""


@contextmanager
def _serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Mails:
    """A mail server.

    Attributes:
        refusals: by address, what RCPT is answered instead of 250.
        data: what DATA is answered, each once; after them, 250.
        taken: whom each mail was for, and the mail.
    """

    refusals: dict[str, str] = field(default_factory=dict)
    data: list[str] = field(default_factory=list)
    taken: list[tuple[str, EmailMessage]] = field(default_factory=list)
    port: int = 0

    async def handle_RCPT(  # noqa: N802 - what aiosmtpd calls
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refusals:
            return self.refusals[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - as above
        if self.data and (said := self.data.pop(0)) != "250 OK":
            return said
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=policy.default)
        self.taken += [(address, mail) for address in envelope.rcpt_tos]
        return "250 OK"


@contextmanager
def mails(**options: Any) -> Iterator[Mails]:
    """The server; ``options`` are those of aiosmtpd's SMTP class."""
    state = Mails()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        state.port = probe.getsockname()[1]
    controller = Controller(state, hostname="127.0.0.1", port=state.port, **options)
    controller.start()
    try:
        yield state
    finally:
        controller.stop()
