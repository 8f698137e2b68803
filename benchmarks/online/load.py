"""A client that asks a server over HTTP/1.1 and measures: in a closed loop, where a connection asks again once it is answered,
and in an open one, where requests come at a rate, however slow the answers are.

In the open loop a request's time counts from the moment it was due, so that waiting for a free connection is part of it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import httptools
import numpy as np
import uvloop


@dataclass(frozen=True)
class Ask:
    """What is asked.

    Attributes:
        port: of the server on this machine.
        path: the address.
        bodies: of POST requests, asked in turn.
    """

    port: int
    path: str
    bodies: Sequence[bytes]

    def requests(self) -> Iterator[bytes]:
        """The requests as they are sent, without end."""
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\nContent-Length: "
        return itertools.cycle([f"{head}{len(body)}\r\n\r\n".encode() + body for body in self.bodies])


@dataclass
class Answers:
    """What came back.

    Attributes:
        seconds: for each answer with status 200, how long it took.
        at: for each of these, when it was answered, in seconds since the beginning.
        refused: for each answer with status 429 or 503, how long it took.
        statuses: answers by status; connections that broke are under 0.
        polite: refusals that said when to come back (``Retry-After``).
        lasted: seconds in all.
    """

    seconds: list[float] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    polite: int = 0
    lasted: float = 0.0

    @property
    def rate(self) -> float:
        """Answers with status 200 in a second."""
        return len(self.seconds) / self.lasted

    @property
    def failed(self) -> int:
        """Requests that were not answered with status 200."""
        return self.statuses.total() - self.statuses[200]

    def quantile(self, share: float) -> float:
        """Seconds that so many of the answered requests took at most."""
        return float(np.quantile(self.seconds, share))

    def between(self, start: float, end: float) -> list[float]:
        """How long the requests took that were answered in a span of seconds since the beginning."""
        return [took for took, when in zip(self.seconds, self.at, strict=True) if start <= when < end]

    def note(self, began: float, due: float, status: int, retry: bool) -> None:
        now = time.perf_counter()
        self.statuses[status] += 1
        if status == 200:
            self.seconds.append(now - due)
            self.at.append(now - began)
        elif status in (429, 503):
            self.refused.append(now - due)
            self.polite += retry


class _Connection(asyncio.Protocol):
    """One connection; a request at a time."""

    def __init__(self, done: Callable[[_Connection, int, bool], None]) -> None:
        self._done = done
        self._parser = httptools.HttpResponseParser(self)
        self._retry = False
        self.waiting = False
        self.due = 0.0

    def send(self, request: bytes, due: float) -> None:
        self.due, self.waiting, self._retry = due, True, False
        self._transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Those of uvloop are of no class of asyncio.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, _: bytes) -> None:
        self._retry = self._retry or name.lower() == b"retry-after"

    def on_message_complete(self) -> None:
        status, goes_on = self._parser.get_status_code(), self._parser.should_keep_alive()
        self.waiting = False
        if not goes_on:
            self._transport.close()
        self._done(self, status, self._retry)

    def connection_lost(self, _: Exception | None) -> None:
        if self.waiting:
            self.waiting = False
            self._done(self, 0, False)

    @property
    def closed(self) -> bool:
        return self._transport.is_closing()


def closed_loop(ask: Ask, *, connections: int, seconds: float) -> Answers:
    """Each of some connections asks again as soon as it is answered."""

    async def run() -> Answers:
        found, requests = Answers(), ask.requests()
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        began = time.perf_counter()
        busy = connections

        def done(one: _Connection, status: int, retry: bool) -> None:
            nonlocal busy
            found.note(began, one.due, status, retry)
            if time.perf_counter() - began < seconds and not one.closed:
                one.send(next(requests), time.perf_counter())
            else:
                busy -= 1
                if not busy and not over.done():
                    over.set_result(None)

        opened = [await _connect(loop, ask, done) for _ in range(connections)]
        began = time.perf_counter()
        for one in opened:
            one.send(next(requests), time.perf_counter())
        await over
        found.lasted = time.perf_counter() - began
        return found

    return uvloop.run(run())


def open_loop(ask: Ask, *, rate: float, seconds: float, connections: int = 64) -> Answers:
    """Requests are due at a constant rate. One that finds no free connection waits, and its waiting counts."""

    async def run() -> Answers:
        found, requests = Answers(), ask.requests()
        loop = asyncio.get_running_loop()
        waiting: deque[float] = deque()
        free: list[_Connection] = []
        under_way = 0
        again = 0

        def done(one: _Connection, status: int, retry: bool) -> None:
            nonlocal under_way, again
            under_way -= 1
            found.note(began, one.due, status, retry)
            if one.closed:
                again += 1
            elif waiting:
                send(one, waiting.popleft())
            else:
                free.append(one)

        def send(one: _Connection, due: float) -> None:
            nonlocal under_way
            under_way += 1
            one.send(next(requests), due)

        began = time.perf_counter()
        free += [await _connect(loop, ask, done) for _ in range(connections)]
        began = time.perf_counter()
        sent = 0
        while (now := time.perf_counter() - began) < seconds:
            for _ in range(again):  # those that were closed
                again -= 1
                free.append(await _connect(loop, ask, done))
            while sent / rate <= now:
                due = began + sent / rate
                sent += 1
                if free:
                    send(free.pop(), due)
                else:
                    waiting.append(due)
            await asyncio.sleep(max(0.0, began + sent / rate - time.perf_counter()))
        while under_way or waiting:
            await asyncio.sleep(0.01)
            if again and waiting and not under_way:
                again -= 1
                send(await _connect(loop, ask, done), waiting.popleft())
        found.lasted = time.perf_counter() - began
        return found

    return uvloop.run(run())


async def _connect(loop: asyncio.AbstractEventLoop, ask: Ask, done: Callable[[_Connection, int, bool], None]) -> _Connection:
    _, made = await loop.create_connection(lambda: _Connection(done), "127.0.0.1", ask.port)
    return made
