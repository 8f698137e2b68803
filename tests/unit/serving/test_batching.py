"""Requests that come together are predicted together, and none pays for another."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from perennial.core.errors import NotAnswered
from perennial.serving.batching import MOST_ROWS, Batcher, predict_all
from perennial.serving.champion import Served, prepare
from perennial.serving.requests import Rows
from tests.unit.monitored import World


@pytest.fixture(scope="module")
def served(worlds: dict[str, World]) -> Served:
    return prepare("toy", worlds["binary_classification"].registry.load("toy", 1))


def rows_of(*x: float | str | None) -> Rows:
    return Rows({"x": list(x), "noise": [0.1] * len(x), "kind": ["a"] * len(x)}, len(x), [{}] * len(x))


@contextmanager
def batching() -> Iterator[tuple[Batcher, list[int]]]:
    seen: list[int] = []
    batcher = Batcher(lambda _, rows: seen.append(rows))
    try:
        yield batcher, seen
    finally:
        batcher.close()


def test_each_gets_its_own_rows_and_they_are_predicted_together(served: Served) -> None:
    async def ask(batcher: Batcher) -> list[Any]:
        return await asyncio.gather(*(batcher.predict(served, rows_of(n / 10, -n / 10)) for n in range(50)))

    with batching() as (batcher, seen):
        answers = asyncio.run(ask(batcher))
    assert seen == [100]
    for n, answer in enumerate(answers):
        assert answer.values.tolist() == served.predict(rows_of(n / 10, -n / 10).columns, 2).values.tolist()


def test_an_idle_batcher_does_not_wait_for_more(served: Served) -> None:
    async def ask(batcher: Batcher) -> None:
        for _ in range(3):
            await batcher.predict(served, rows_of(0.5))

    with batching() as (batcher, seen):
        asyncio.run(ask(batcher))
    assert seen == [1, 1, 1]


def test_what_is_predicted_together_is_bounded_and_of_one_version(served: Served) -> None:
    other = prepare("toy", served.loaded)

    async def ask(batcher: Batcher) -> list[Any]:
        asked = [(served, 600), (other, 5), (served, 600), (served, 400), (other, 5)]
        return await asyncio.gather(*(batcher.predict(version, rows_of(*[0.5] * count)) for version, count in asked))

    with batching() as (batcher, seen):
        answers = asyncio.run(ask(batcher))
    assert [len(answer) for answer in answers] == [600, 5, 600, 400, 5]
    assert sorted(seen) == [10, 600, 1000]
    assert max(seen) <= MOST_ROWS


def test_a_request_that_nobody_waits_for_any_more_is_not_predicted(served: Served) -> None:
    async def ask(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.predict(served, rows_of(0.1)))
        given_up = asyncio.create_task(batcher.predict(served, rows_of(0.2, 0.3)))
        await asyncio.sleep(0)
        given_up.cancel()
        assert len(await first) == 1

    with batching() as (batcher, seen):
        asyncio.run(ask(batcher))
    assert seen == [1]


def test_a_row_that_fails_fails_its_own_request_alone(served: Served) -> None:
    # A text, which the reader of requests would have refused, cannot become a number.
    one, refused, two = predict_all(served, [rows_of(0.5), rows_of("one"), rows_of(0.6)])
    assert isinstance(refused, NotAnswered)
    assert refused.status == 500
    for asked, answer in ((0.5, one), (0.6, two)):
        assert not isinstance(answer, NotAnswered)
        assert answer.values.tolist() == served.predict(rows_of(asked).columns, 1).values.tolist()


def test_a_prediction_that_is_not_finite_is_not_an_answer(served: Served) -> None:
    estimator = copy.deepcopy(served.loaded.estimator)
    estimator[-1].coef_[:] = np.nan
    broken = dataclasses.replace(served, loaded=dataclasses.replace(served.loaded, estimator=estimator))
    [refused] = predict_all(broken, [rows_of(0.5)])
    assert isinstance(refused, NotAnswered)
    assert refused.status == 500
    assert "toy version 1 gives no finite number for row 0" in str(refused)
