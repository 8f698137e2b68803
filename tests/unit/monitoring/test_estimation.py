"""What may be expected of a window before its labels come, and how it compares with what came."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT
from perennial.evidence.verdict import ESTIMATE_LIMIT, Estimate, VerdictDetails
from perennial.monitoring.estimation import (
    PredictedNumbers,
    PredictedOutcomes,
    beside_realised,
    estimate,
    estimate_loss,
    from_binary,
    from_classes,
)

NONE = np.empty((0, 0))


def binary(rows: int, seed: int, *, shift: float = 0.0, distort: float = 1.0) -> tuple[PredictedOutcomes, np.ndarray]:
    """Rows whose true probability is known; the model says it ``distort`` times as far from even odds."""
    random = np.random.default_rng(seed)
    score = random.normal(shift, 1.5, rows)
    labels = random.random(rows) < 1 / (1 + np.exp(-score))
    said = 1 / (1 + np.exp(-distort * score))
    days = np.sort(random.integers(0, 14, rows))
    return from_binary(said, labels, days), labels


def unlabelled(given: PredictedOutcomes) -> PredictedOutcomes:
    return PredictedOutcomes(given.probabilities, given.classes, None, given.days)


@pytest.mark.parametrize("shift", [0.0, -2.0])
@pytest.mark.parametrize("distort", [1.0, 3.0])
def test_the_estimate_meets_what_comes(shift: float, distort: float) -> None:
    reference, _ = binary(6_000, 1, distort=distort)
    window, labels = binary(6_000, 2, shift=shift, distort=distort)
    found = estimate("binary_classification", "roc_auc", reference, unlabelled(window), seed=1)
    said = window.probabilities[:, 1]
    assert found.value == pytest.approx(sk.roc_auc_score(labels, said), abs=0.025)
    assert found.metrics["log_loss"] == pytest.approx(sk.log_loss(labels, said), abs=0.06)
    assert found.metrics["brier"] == pytest.approx(sk.brier_score_loss(labels, said), abs=0.02)
    yes = said >= 0.5
    assert found.confusion["true_positive"] == pytest.approx(np.mean(yes & labels), abs=0.02)
    assert sum(found.confusion.values()) == pytest.approx(1)


def test_bands_hold_what_comes_and_what_is_usual() -> None:
    reference, _ = binary(4_000, 1)
    inside = 0
    for seed in range(10, 20):
        window, labels = binary(1_500, seed)
        found = estimate("binary_classification", "roc_auc", reference, unlabelled(window), seed=1)
        assert found.band is not None
        assert found.usual is not None
        inside += found.band[0] <= sk.roc_auc_score(labels, window.probabilities[:, 1]) <= found.band[1]
    assert inside >= 7


def test_a_changed_concept_is_not_seen_before_labels() -> None:
    """The limit of the method, which is why realised performance stands beside it."""
    reference, _ = binary(4_000, 1)
    window, labels = binary(4_000, 2)
    found = estimate("binary_classification", "roc_auc", reference, unlabelled(window), seed=1)
    assert sk.roc_auc_score(~labels, window.probabilities[:, 1]) < 0.3 < 0.75 < found.value


def classes(rows: int, seed: int) -> tuple[PredictedOutcomes, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet([0.6, 0.8, 1.0], rows)
    labels = np.array([random.choice(3, p=row) for row in probabilities])
    names = ("high", "low", "middle")
    return from_classes(probabilities, names, np.array(names)[labels]), labels, probabilities


def test_several_classes_are_estimated_too() -> None:
    reference, _, _ = classes(3_000, 1)
    window, labels, said = classes(3_000, 2)
    cost = {"asked": 0}

    def costs(truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        cost["asked"] += 1
        return np.where(truth != answers, 2.0, 0.0)

    found = estimate("multiclass_classification", "log_loss", reference, unlabelled(window), seed=1, cost=costs)
    assert found.metrics["log_loss"] == pytest.approx(sk.log_loss(labels, said), abs=0.05)
    assert found.metrics["accuracy"] == pytest.approx(sk.accuracy_score(labels, said.argmax(axis=1)), abs=0.03)
    assert found.metrics["balanced_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(labels, said.argmax(axis=1)), abs=0.03
    )
    assert found.metrics["cost"] == pytest.approx(2 * (1 - found.metrics["accuracy"]))


def test_classes_are_matched_by_name() -> None:
    reference, _, _ = classes(2_000, 1)
    window, _, _ = classes(2_000, 2)
    turned = from_classes(window.probabilities[:, ::-1], window.classes[::-1])
    first, second = (
        estimate("multiclass_classification", "log_loss", reference, one, seed=1) for one in (unlabelled(window), turned)
    )
    assert first.metrics == pytest.approx(second.metrics)


@pytest.mark.parametrize(
    ("task", "reference", "window", "reason"),
    [
        ("binary_classification", binary(150, 1)[0], binary(300, 2)[0], "the reference has 150 rows"),
        ("binary_classification", PredictedOutcomes(NONE, ()), binary(300, 2)[0], "the reference has 0 rows"),
        ("binary_classification", from_binary(np.full(300, 0.5), np.ones(300)), binary(300, 2)[0], "all labels"),
        ("binary_classification", binary(300, 1)[0], from_binary(np.array([0.1, np.nan])), "not finite"),
        ("binary_classification", binary(300, 1)[0], from_binary(np.empty(0)), "there are no predictions"),
        ("multiclass_classification", classes(300, 1)[0], from_classes(np.full((9, 1), 1.0), ["new"]), "for new"),
    ],
)  # fmt: skip
def test_what_cannot_be_estimated_says_why(
    task: Any, reference: PredictedOutcomes, window: PredictedOutcomes, reason: str
) -> None:
    found = estimate(task, "log_loss", reference, window, seed=1)
    assert reason in found.reason
    assert found.metrics == {}
    assert np.isnan(found.value)


# --- regression ------------------------------------------------------------------------------------------------------


def numbers(rows: int, seed: int, *, shift: float = 0.0, moved: float = 0.0) -> tuple[PredictedNumbers, np.ndarray]:
    """Rows of which the model knows the mean; the noise grows with the first feature.

    Args:
        rows: the number of rows.
        seed: for the draws.
        shift: of the first feature (covariate shift).
        moved: of the labels, at the same features (concept drift).
    """
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(rows, 3))
    inputs[:, 0] += shift
    mean = 2 * inputs[:, 0] - inputs[:, 1]
    labels = mean + moved + random.normal(0, np.exp(0.5 * inputs[:, 0]))
    return PredictedNumbers(mean, inputs, labels, np.sort(random.integers(0, 14, rows))), np.abs(labels - mean)


def blind(given: PredictedNumbers) -> PredictedNumbers:
    return PredictedNumbers(given.predictions, given.inputs, None, given.days)


@pytest.mark.parametrize("shift", [0.0, 0.8, -0.8])
def test_a_regressions_estimate_meets_what_comes_also_where_the_features_have_moved(shift: float) -> None:
    reference, usual = numbers(6_000, 1)
    window, errors = numbers(4_000, 2, shift=shift)
    found = estimate_loss("mae", reference, blind(window), seed=1)
    assert found.value == pytest.approx(errors.mean(), rel=0.08)
    assert found.metrics["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.15)
    if shift:
        assert abs(found.value - errors.mean()) < 0.4 * abs(usual.mean() - errors.mean())


def test_a_regressions_band_holds_what_comes() -> None:
    reference, _ = numbers(2_000, 1)
    inside = 0
    for seed in range(10, 15):
        window, errors = numbers(1_000, seed)
        found = estimate_loss("mae", reference, blind(window), seed=1)
        assert found.band is not None
        assert found.usual is not None
        assert found.usual[0] < usual_error(reference) < found.usual[1]
        inside += found.band[0] <= errors.mean() <= found.band[1]
    assert inside >= 4


def usual_error(given: PredictedNumbers) -> float:
    assert given.labels is not None
    return float(np.abs(given.labels - given.predictions).mean())


def test_a_changed_concept_of_a_regression_is_not_seen_before_labels() -> None:
    reference, usual = numbers(3_000, 1)
    window, errors = numbers(3_000, 2, moved=5.0)
    found = estimate_loss("rmse", reference, blind(window), seed=1)
    assert found.metrics["mae"] == pytest.approx(usual.mean(), rel=0.1)
    assert errors.mean() > 3 * found.metrics["mae"]


def test_the_cost_of_a_regression_is_estimated_and_its_share_of_variance_is_not() -> None:
    reference, _ = numbers(2_000, 1)
    window, errors = numbers(2_000, 2)
    found = estimate_loss("r2", reference, blind(window), seed=1, cost=lambda truth, said: 3 * np.abs(truth - said))
    assert found.metrics["cost"] == pytest.approx(3 * errors.mean(), rel=0.1)
    assert found.metrics.keys() == {"rmse", "mae", "cost"}
    assert found.reason.startswith("r2 cannot be estimated")
    assert found.band is None


@pytest.mark.parametrize(
    ("reference", "window", "reason"),
    [
        (numbers(150, 1)[0], numbers(300, 2)[0], "the reference has 150 rows"),
        (blind(numbers(300, 1)[0]), numbers(300, 2)[0], "the reference has 300 rows"),
        (numbers(300, 1)[0], numbers(0, 2)[0], "no prediction of the window has features"),
        (numbers(300, 1)[0], PredictedNumbers(np.array([np.nan]), np.zeros((1, 3))), "not finite"),
    ],
)
def test_a_regression_that_cannot_be_estimated_says_why(
    reference: PredictedNumbers, window: PredictedNumbers, reason: str
) -> None:
    found = estimate_loss("rmse", reference, window, seed=1)
    assert reason in found.reason
    assert found.metrics == {}


@pytest.mark.parametrize("page", ["alerts.md", "decide.md", "observe.md"])
def test_each_page_about_estimates_says_what_they_cannot_see(page: str) -> None:
    assert ESTIMATE_LIMIT in " ".join((PROJECT / "docs" / page).read_text().split())


# --- estimated and realised, side by side -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    interval: Interval
    version: int | None
    verdict: str
    details: VerdictDetails = field(default_factory=VerdictDetails)


@dataclass(frozen=True)
class Measured:
    interval: Interval
    version: int
    metrics: dict[str, float]
    coverage: float = 0.9
    rows: int = 500


FIRST, SECOND = Interval.of("2013-04-01", "2013-04-08"), Interval.of("2013-04-08", "2013-04-15")


def test_windows_are_joined_by_version() -> None:
    said = Estimate("roc_auc", {"roc_auc": 0.7}, band=[0.6, 0.8])
    verdicts = [
        Judged(SECOND, 2, "drift", VerdictDetails(estimate=said, severity="warning")),
        Judged(FIRST, 1, "ok", VerdictDetails(estimate=said)),
        Judged(Interval.day("2013-05-01"), None, "unknown"),
    ]
    performances = [Measured(FIRST, 1, {"roc_auc": 0.65}), Measured(FIRST, 2, {"roc_auc": 0.5}, coverage=0.3)]
    first, other, second = beside_realised(verdicts, performances, "roc_auc", label_coverage=0.8)
    assert (first.version, first.estimated, first.band, first.realised, first.mature) == (1, 0.7, (0.6, 0.8), 0.65, True)
    assert (other.version, other.estimated, other.realised, other.mature, other.verdict) == (2, None, 0.5, False, None)
    assert (second.realised, second.coverage, second.verdict, second.severity) == (None, None, "drift", "warning")


def test_an_estimate_of_another_metric_is_not_shown_beside_this_one() -> None:
    said = Estimate("log_loss", {"log_loss": 0.7, "roc_auc": 0.7})
    (window,) = beside_realised([Judged(FIRST, 1, "ok", VerdictDetails(estimate=said))], [], "roc_auc", label_coverage=0.8)
    assert window.estimated is None
