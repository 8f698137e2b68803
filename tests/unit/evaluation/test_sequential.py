"""Evidence of harm: rare by chance, soon there if refreshes are worse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from perennial.evaluation.sequential import harm


@pytest.mark.parametrize(("worse", "days"), [(0, 0), (1, 1), (5, 7), (7, 7), (0, 7), (20, 28)])
def test_one_stretch_is_the_mean_likelihood_ratio(worse: int, days: int) -> None:
    expected = quad(lambda p: 2 * (2 * p) ** worse * (2 * (1 - p)) ** (days - worse), 0.5, 1)[0]
    assert harm([worse], [days]) == pytest.approx(expected)


def test_its_expectation_is_one_for_each_stretch_if_worse_and_better_are_equally_likely() -> None:
    from scipy.stats import binom

    assert sum(binom.pmf(k, 7, 0.5) * harm([k], [7]) for k in range(8)) == pytest.approx(1)


def test_a_false_alarm_comes_later_than_promised() -> None:
    """The promise is 260 stretches on average; here, runs are cut off at 1,000."""
    generator, lengths = np.random.default_rng(2013), []
    for _ in range(20):
        worse = generator.binomial(7, 0.5, size=1_000).tolist()
        alarms = (week for week in range(4, 1_000) if harm(worse[week - 4 : week], [7] * 4) >= 260)
        lengths.append(next(alarms, 1_000))
    assert np.mean(lengths) >= 260


def test_four_weeks_of_harm_are_found() -> None:
    assert harm([6, 6, 6, 6], [7] * 4) >= 260 > harm([5, 5, 4, 5], [7] * 4)
    assert harm([7, 7], [7, 7]) >= 260
