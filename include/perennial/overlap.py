"""Two stages of a stream at work at once: one makes what comes next while the other uses what came last.

Reading, the arithmetic of estimators, hashing and writing all let go of Python's lock, so that threads keep cores busy of
which one stage after the other leaves half idle. Neighbours: :mod:`perennial.scoring` predicts this way.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")

#: How often a thread that waits to hand something over looks whether it is still wanted, in seconds.
_LOOK_UP = 0.1


@dataclass(frozen=True)
class _Over:
    failure: BaseException | None


def ahead(items: Iterable[_T], most: int = 2) -> Iterator[_T]:
    """The same items in the same order, made by a thread of their own.

    What goes wrong there is raised here. That thread has ended when this iterator has, also when it is closed early.

    Args:
        items: iterated in the other thread alone, and closed there if it can be.
        most: how many may wait to be taken, beside the one that is being made.
    """
    waiting: queue.Queue[Any] = queue.Queue(most)
    unwanted = threading.Event()

    def hand_over(thing: object) -> bool:
        while not unwanted.is_set():
            try:
                waiting.put(thing, timeout=_LOOK_UP)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        failure: BaseException | None = None
        try:
            for item in items:
                if not hand_over(item):
                    break
        except BaseException as error:  # whoever takes the items is to meet it
            failure = error
        finally:
            if (close := getattr(items, "close", None)) is not None:
                close()
        hand_over(_Over(failure))

    # Its log lines say which run and version they speak of, as those of this thread.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(make,), name="ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := waiting.get(), _Over):
            yield item
        if item.failure is not None:
            raise item.failure
    finally:
        unwanted.set()
        thread.join()
