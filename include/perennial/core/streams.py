"""Runs two stages of a stream concurrently: one makes the next item while the other uses the last one.

Reading, the arithmetic of estimators, hashing and writing all release Python's global lock, so threads use cores that would
otherwise be idle. Neighbour: :mod:`perennial.scoring.publish` predicts this way, and fills the predictions database from the
same stream that it writes to the lake.
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

#: Longest time that a stream waits for its follower, in seconds.
PATIENCE = 30.0

#: How often a thread that waits to hand over an item checks whether the item is still needed, in seconds.
_LOOK_UP = 0.1


@dataclass(frozen=True)
class _Over:
    failure: BaseException | None


def ahead(items: Iterable[_T], most: int = 2) -> Generator[_T, None, None]:
    """The same items in the same order, made in another thread.

    Errors of that thread are raised here. The thread ends with this iterator, also when that is closed early.

    Args:
        items: iterated in the other thread alone, and closed there if it can be.
        most: how many items may wait, in addition to the one that is being made.
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
        except BaseException as error:  # raised to the consumer of the items
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
    """A second consumer of a stream, in another thread. The first consumer does not depend on it.

    Its errors are raised by :meth:`result` alone. A follower that delays the stream by more than :data:`PATIENCE` is dropped,
    and so is one whose stream breaks off or starts again. It has ended when the context is left, unless it hangs.

    Args:
        use: consumes the items and returns a result. If it is dropped, the items end with an error.
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
        """Wait for the follower's result.

        Raises:
            TimeoutError: it was dropped.
        """
        if self._left_behind.is_set() or self._thread is None:
            raise TimeoutError("the follower did not keep up")
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
        except BaseException as error:  # raised by result()
            self._outcome.set_exception(error)


def _hand_over(thing: object, waiting: queue.Queue[Any], wanted: Callable[[], bool]) -> bool:
    """Put something into a queue when there is room, as long as it is needed. Returns whether it was put there."""
    while wanted():
        try:
            waiting.put(thing, timeout=_LOOK_UP)
        except queue.Full:
            continue
        return True
    return False


def _started(name: str, work: Callable[[], None]) -> threading.Thread:
    # Its log lines carry the same fields as those of this thread.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name=name, daemon=True)
    thread.start()
    return thread
