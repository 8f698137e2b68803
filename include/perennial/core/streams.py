"""Two stages of a stream at work at once: one makes what comes next while the other uses what came last.

Reading, the arithmetic of estimators, hashing and writing all let go of Python's lock, so that threads keep cores busy of
which one stage after the other leaves half idle. Neighbours: :mod:`perennial.scoring.publish` predicts this way, and has the
predictions database follow what it writes to the lake.
"""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

#: How long a stream waits for who only follows it, in seconds.
PATIENCE = 30.0

#: How often a thread that waits to hand something over looks whether it is still wanted, in seconds.
_LOOK_UP = 0.1


@dataclass(frozen=True)
class _Over:
    failure: BaseException | None


def ahead(items: Iterable[_T], most: int = 2) -> Generator[_T, None, None]:
    """The same items in the same order, made by a thread of their own.

    What goes wrong there is raised here. That thread has ended when this iterator has, also when it is closed early.

    Args:
        items: iterated in the other thread alone, and closed there if it can be.
        most: how many may wait to be taken, beside the one that is being made.
    """
    waiting: queue.Queue[Any] = queue.Queue(most)
    unwanted = threading.Event()

    def wanted() -> bool:
        return not unwanted.is_set()

    def make() -> None:
        failure: BaseException | None = None
        try:
            for item in items:
                if not _hand_over(item, waiting, wanted):
                    break
        except BaseException as error:  # whoever takes the items is to meet it
            failure = error
        finally:
            if (close := getattr(items, "close", None)) is not None:
                close()
        _hand_over(_Over(failure), waiting, wanted)

    thread = _started("ahead", make)
    try:
        while not isinstance(item := waiting.get(), _Over):
            yield item
        if item.failure is not None:
            raise item.failure
    finally:
        unwanted.set()
        thread.join()


class Follower(Generic[_T, _R]):
    """A second user of a stream, in a thread of its own, whom the first one never depends on.

    What goes wrong there is raised by :meth:`result` alone. A follower that keeps the stream waiting for longer than
    :data:`PATIENCE` is left behind, as is one whose stream breaks off or begins again. When the context is left it has
    ended, unless it hangs.

    Args:
        use: uses up the items and returns a result. If it is left behind, the items end with an error.
        most: how many items may wait for it.
    """

    def __init__(self, use: Callable[[Iterator[_T]], _R], most: int = 2) -> None:
        self._use = use
        self._waiting: queue.Queue[Any] = queue.Queue(most)
        self._left_behind = threading.Event()
        self._hangs = False
        self._outcome: Future[_R] = Future()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._left_behind.set()
        if self._thread is not None and not self._hangs:
            self._thread.join(PATIENCE)

    def passing(self, items: Iterable[_T]) -> Iterator[_T]:
        """The same items; the follower gets each of them too."""
        if self._thread is not None:
            self._left_behind.set()
        self._thread = self._thread or _started("follower", self._run)
        complete = False
        try:
            for item in items:
                self._offer(item)
                yield item
            self._offer(_Over(None))
            complete = True
        finally:
            if not complete:
                self._left_behind.set()

    def result(self) -> _R:
        """What the follower returned, when it has.

        Raises:
            TimeoutError: it was left behind.
        """
        if self._left_behind.is_set() or self._thread is None:
            raise TimeoutError("it did not keep up")
        return self._outcome.result()

    def _offer(self, thing: object) -> None:
        deadline = time.monotonic() + PATIENCE

        def wanted() -> bool:
            if time.monotonic() > deadline:
                self._hangs = True
                self._left_behind.set()
            return not (self._left_behind.is_set() or self._outcome.done())

        _hand_over(thing, self._waiting, wanted)

    def _items(self) -> Iterator[_T]:
        while not self._left_behind.is_set():
            try:
                item = self._waiting.get(timeout=_LOOK_UP)
            except queue.Empty:
                continue
            if isinstance(item, _Over):
                return
            yield item
        raise TimeoutError("the stream goes on without its follower")

    def _run(self) -> None:
        try:
            self._outcome.set_result(self._use(self._items()))
        except BaseException as error:  # whoever asks for the result is to meet it
            self._outcome.set_exception(error)


def _hand_over(thing: object, waiting: queue.Queue[Any], wanted: Callable[[], bool]) -> bool:
    """Put something into a queue as soon as there is room, while it is wanted; whether it was."""
    while wanted():
        try:
            waiting.put(thing, timeout=_LOOK_UP)
        except queue.Full:
            continue
        return True
    return False


def _started(name: str, work: Callable[[], None]) -> threading.Thread:
    # Its log lines say which run and version they speak of, as those of this thread.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name=name, daemon=True)
    thread.start()
    return thread
