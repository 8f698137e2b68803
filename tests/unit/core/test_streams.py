"""A stage that works ahead: the same items, the same errors, and nothing that goes on behind one's back."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from perennial.core import logs, streams
from perennial.core.streams import Follower, ahead


def test_items_come_in_their_order() -> None:
    assert list(ahead(range(1000))) == list(range(1000))
    assert list(ahead([])) == []


def test_an_error_of_the_other_thread_is_raised_after_what_came_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the lake went away")

    found = ahead(broken())
    assert next(found) == 1
    with pytest.raises(OSError, match="the lake went away"):
        next(found)


def test_no_more_is_made_than_may_wait() -> None:
    made: list[int] = []
    full = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if number == 3:
                full.set()
            yield number

    found = ahead(items(), most=2)
    assert next(found) == 0
    # One is taken, two wait, and one is in hand.
    assert full.wait(10)
    assert made == [0, 1, 2, 3]
    found.close()


def test_closed_early_the_other_thread_ends_and_lets_go_of_its_source() -> None:
    released = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            released.set()

    before = threading.active_count()
    found = ahead(ahead(endless()))
    assert next(found) == 1
    found.close()
    assert released.is_set()
    assert threading.active_count() == before


def test_log_lines_of_the_other_thread_say_which_run_they_are_of() -> None:
    from structlog.contextvars import get_contextvars

    def told() -> Iterator[object]:
        yield get_contextvars().get("run")

    with logs.context(run="score-1"):
        assert list(ahead(told())) == ["score-1"]


# --- who follows a stream --------------------------------------------------------------------------------------------


def test_a_follower_gets_what_the_stream_is_for() -> None:
    with Follower[int, list[int]](list) as following:
        assert list(following.passing(range(100))) == following.result() == list(range(100))


def test_a_follower_that_fails_stops_nobody_and_is_heard_when_asked() -> None:
    def fail(items: Iterator[int]) -> None:
        next(items)
        raise OSError("the database went away")

    with Follower(fail) as following:
        assert list(following.passing(range(100))) == list(range(100))
        with pytest.raises(OSError, match="the database went away"):
            following.result()


def test_a_follower_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PATIENCE", 0.1)
    let_go = threading.Event()
    with Follower[int, bool](lambda _: let_go.wait(60)) as following:
        assert list(following.passing(range(100))) == list(range(100))
        with pytest.raises(TimeoutError):
            following.result()
    let_go.set()


def test_a_follower_of_a_stream_that_breaks_off_never_takes_it_for_the_whole() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the lake went away")

    finished: list[list[int]] = []
    workers: list[threading.Thread] = []

    def use(items: Iterator[int]) -> None:
        workers.append(threading.current_thread())
        finished.append(list(items))

    with Follower(use) as following:
        with pytest.raises(OSError, match="the lake went away"):
            list(following.passing(broken()))
        with pytest.raises(TimeoutError):
            following.result()
    assert finished == []
    assert not workers[0].is_alive()


def test_a_stream_that_begins_again_is_followed_no_more() -> None:
    with Follower[int, list[int]](list) as following:
        for _ in range(2):
            assert list(following.passing(range(100))) == list(range(100))
        with pytest.raises(TimeoutError):
            following.result()


def test_a_stream_that_never_begins_has_no_follower() -> None:
    with Follower[int, list[int]](list) as following, pytest.raises(TimeoutError):
        following.result()
