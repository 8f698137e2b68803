"""The net's thresholds follow from the model's own refreshes, and hold few stable weeks back."""

from __future__ import annotations

import numpy as np

from perennial.evaluation.tolerance import FEWEST, net_thresholds


def test_few_refreshes_give_no_thresholds() -> None:
    assert net_thresholds([0.9] * (FEWEST - 1), [0.5] * (FEWEST - 1)) is None


def test_one_in_fifty_stable_weeks_is_held_back_at_most() -> None:
    generator = np.random.default_rng(2013)
    held = []
    for _ in range(2_000):
        agreements = np.tanh(generator.normal(0.9, 0.15, 13))
        skills = generator.normal(0.5, 0.05, 13)
        found = net_thresholds(list(agreements[:-1]), list(skills[:-1]))
        assert found is not None
        held.append(agreements[-1] < found.agreement or skills[-1] < found.skill)
    assert np.mean(held) < 0.02 + 3 * np.sqrt(0.02 / 2_000)


def test_thresholds_stay_between_what_turns_a_model_round_and_what_noise_does() -> None:
    wild = net_thresholds(list(np.linspace(-0.2, 0.9, 10)), list(np.linspace(-0.5, 0.5, 10)))
    assert wild is not None
    assert (wild.agreement, wild.skill) == (0.3, 0.0)
    steady = net_thresholds([0.995] * 10, [0.5] * 10)
    assert steady is not None
    assert (steady.agreement, steady.skill) == (0.9, 0.5)
