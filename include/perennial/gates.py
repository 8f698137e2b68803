"""What was measured of a candidate and its rivals, and whether the candidate may become champion.

Pure: :mod:`perennial.evaluation` measures, this module decides, :mod:`perennial.registry` acts. A gate whose input is
missing, NaN or infinite refuses, and each says why in words and numbers, also when it passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from perennial.intervals import Interval
from perennial.spec import METRICS, Gates, Task

#: Margins are written in decimals, which binary floats miss by about this much: 0.3 - 0.2 is below 0.1.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PredictionSummary:
    """What a contender's predictions look like.

    Attributes:
        rows: how many there are.
        not_finite: how many are NaN, infinite or missing.
        distinct: how many different values they take.
        minimum, mean, maximum: of the finite ones; None for classes, or if there are none.
        digest: :attr:`perennial.artifacts.Prediction.digest`, by which the same predictions are known again.
    """

    rows: int
    not_finite: int
    distinct: int
    minimum: float | None = None
    mean: float | None = None
    maximum: float | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Contender:
    """One model, measured on the holdout.

    Attributes:
        name: of the candidate in ``model.yaml``; the champion keeps the one it had.
        role: what it stands for in the comparison.
        metrics: by the names of :data:`perennial.spec.METRICS`; one that could not be computed is absent.
        rows: labelled rows it was measured on.
        rows_hash: content hash of those rows; only equal hashes may be compared.
        predictions: None if it could not predict.
        error: why it could not predict.
        version: registered version, if it has one.
        mlflow_run_id: MLflow's run that logged it.
        trained_on: key of the interval whose rows it learned from.
    """

    name: str
    role: Literal["candidate", "baseline", "champion"]
    metrics: dict[str, float]
    rows: int
    rows_hash: str
    predictions: PredictionSummary | None
    error: str | None = None
    version: int | None = None
    mlflow_run_id: str | None = None
    trained_on: str | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Contender:
        predictions = value["predictions"]
        return cls(**{**value, "predictions": None if predictions is None else PredictionSummary(**predictions)})


@dataclass(frozen=True)
class Evaluation:
    """A candidate, all baselines and the champion on the same newest, untouched rows.

    Attributes:
        metric: the primary one.
        interval: key of the holdout.
        entities: rows that a prediction is due for, labelled or not.
        rows: those whose label is known.
        rows_hash: content hash of the labelled rows.
        classes: labelled rows a class; empty for regression.
        not_finite_inputs: infinite values a feature; missing values are no fault.
        champion: None only while the model has never had one.
    """

    model: str
    task: Task
    metric: str
    interval: str
    entities: int
    rows: int
    rows_hash: str
    classes: dict[str, int]
    not_finite_inputs: dict[str, int]
    candidate: Contender
    baselines: list[Contender]
    champion: Contender | None
    run_id: str | None = None

    @property
    def label_coverage(self) -> float:
        """Share of the holdout's entities whose label is known, 0 to 1."""
        return self.rows / self.entities if self.entities else 0.0

    @property
    def champion_version(self) -> int | None:
        """The champion it was compared with; a promotion must expect this one to be champion still."""
        return self.champion.version if self.champion else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "label_coverage": self.label_coverage}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Evaluation:
        fields = {name: part for name, part in value.items() if name != "label_coverage"}
        champion = fields["champion"]
        return cls(
            **{
                **fields,
                "candidate": Contender.from_json(fields["candidate"]),
                "baselines": [Contender.from_json(baseline) for baseline in fields["baselines"]],
                "champion": None if champion is None else Contender.from_json(champion),
            }
        )


@dataclass(frozen=True)
class GateResult:
    """One gate's word: ``reason`` says what was seen and what was wanted, whether it passed or not."""

    gate: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class GateDecision:
    """Whether a candidate may become champion.

    Attributes:
        promote: every gate passed.
        results: of all gates, in order; none is left out because an earlier one refused.
        candidate: its name in ``model.yaml``.
        champion: the version the candidate was compared with.
    """

    promote: bool
    results: list[GateResult]
    candidate: str
    champion: int | None

    @property
    def reasons(self) -> list[str]:
        """Why it was refused; empty if it was not."""
        return [result.reason for result in self.results if not result.passed]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reasons": self.reasons}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GateDecision:
        fields = {name: part for name, part in value.items() if name != "reasons"}
        return cls(**{**fields, "results": [GateResult(**result) for result in fields["results"]]})


def decide(evaluation: Evaluation, gates: Gates) -> GateDecision:
    """Judge a candidate by its evaluation and the thresholds of ``model.yaml``."""
    results = [
        *_holdout(evaluation, gates),
        _predictions(evaluation.candidate),
        *_bounds(evaluation, gates),
        _baselines(evaluation, gates),
        *_champion(evaluation, gates),
    ]
    return GateDecision(
        promote=all(result.passed for result in results),
        results=results,
        candidate=evaluation.candidate.name,
        champion=evaluation.champion_version,
    )


def _holdout(evaluation: Evaluation, gates: Gates) -> Iterator[GateResult]:
    """Whether the holdout can carry a decision at all."""
    coverage = evaluation.label_coverage
    yield GateResult(
        "label_coverage",
        math.isfinite(coverage) and coverage >= gates.label_coverage,
        f"labels are known for {evaluation.rows:,} of {evaluation.entities:,} rows of the holdout {evaluation.interval} "
        f"({coverage:.1%}); at least {gates.label_coverage:.1%} is wanted",
    )
    yield GateResult(
        "min_rows",
        evaluation.rows >= gates.min_rows,
        f"the holdout {evaluation.interval} has {evaluation.rows:,} labelled rows; at least {gates.min_rows:,} are wanted",
    )
    infinite = ", ".join(f"{feature} in {rows:,} rows" for feature, rows in sorted(evaluation.not_finite_inputs.items()))
    yield GateResult(
        "finite_inputs",
        not evaluation.not_finite_inputs,
        f"features of the holdout are infinite: {infinite}" if infinite else "no feature of the holdout is infinite",
    )


def _predictions(candidate: Contender) -> GateResult:
    seen = candidate.predictions
    if seen is None:
        return GateResult("predictions", False, f"{candidate.name} could not predict: {candidate.error or 'no reason given'}")
    if seen.rows != candidate.rows:
        reason = f"{candidate.name} gave {seen.rows:,} predictions for {candidate.rows:,} rows"
    elif seen.not_finite:
        reason = f"{seen.not_finite:,} of {seen.rows:,} predictions of {candidate.name} are NaN, infinite or missing"
    elif seen.distinct < 2:
        value = "the same" if seen.mean is None else f"{seen.mean:.6g}"
        reason = f"all {seen.rows:,} predictions of {candidate.name} are {value}: it tells no row from another"
    else:
        return GateResult(
            "predictions", True, f"{seen.rows:,} predictions of {candidate.name} are finite and take {seen.distinct:,} values"
        )
    return GateResult("predictions", False, reason)


def _bounds(evaluation: Evaluation, gates: Gates) -> Iterator[GateResult]:
    candidate = evaluation.candidate
    for limits, name, word, sign in ((gates.at_least, "at_least", "at least", 1), (gates.at_most, "at_most", "at most", -1)):
        for metric, limit in limits.items():
            value = _metric(candidate, metric)
            if value is None:
                yield GateResult(f"{name}.{metric}", False, _unmeasured(candidate, metric))
            else:
                passed = sign * (value - limit) >= 0
                yield GateResult(
                    f"{name}.{metric}", passed, f"{metric} of {candidate.name} is {value:.6g}; {word} {limit:g} is wanted"
                )


def _baselines(evaluation: Evaluation, gates: Gates) -> GateResult:
    """The candidate against the best baseline; one baseline that could not be measured might have been the best."""
    gate, metric, candidate = "baseline", evaluation.metric, evaluation.candidate
    if not evaluation.baselines:
        return GateResult(gate, False, "no baseline was measured; a model must show that it beats something simple")
    for baseline in evaluation.baselines:
        if problem := _incomparable(evaluation, candidate, baseline):
            return GateResult(gate, False, problem)
    best = max(evaluation.baselines, key=lambda baseline: _gain(evaluation, baseline.metrics[metric], 0.0))
    gain = _gain(evaluation, candidate.metrics[metric], best.metrics[metric])
    wanted = f"at least {gates.baseline_margin:g} better" if gates.baseline_margin else "better"
    return GateResult(
        gate,
        gain > 0 and gain >= gates.baseline_margin - _ROUNDING,
        f"{_compared(evaluation, candidate, best, gain)}, the best baseline; {wanted} is wanted",
    )


def _champion(evaluation: Evaluation, gates: Gates) -> Iterator[GateResult]:
    candidate, champion = evaluation.candidate, evaluation.champion
    if champion is None:
        yield GateResult("champion", True, "there is no champion yet: the first version needs none to beat")
        return
    if champion.trained_on is None or Interval.from_key(champion.trained_on).overlaps(Interval.from_key(evaluation.interval)):
        yield GateResult(
            "untouched_holdout",
            False,
            f"{_called(champion)} learned from {champion.trained_on or 'unknown rows'}; for a fair comparison the holdout "
            f"{evaluation.interval} must lie after that: train with a later as-of time",
        )
    if problem := _incomparable(evaluation, candidate, champion):
        yield GateResult("champion", False, problem)
        return
    metric, rule = evaluation.metric, gates.champion
    gain = _gain(evaluation, candidate.metrics[metric], champion.metrics[metric])
    if rule.mode == "better":
        passed = gain > 0 and gain >= rule.margin - _ROUNDING
        wanted = f"at least {rule.margin:g} better" if rule.margin else "better"
    else:
        passed = gain >= -rule.margin - _ROUNDING
        wanted = f"at most {rule.margin:g} worse" if rule.margin else "not worse"
    yield GateResult("champion", passed, f"{_compared(evaluation, candidate, champion, gain)}; {wanted} is wanted")


def _incomparable(evaluation: Evaluation, candidate: Contender, rival: Contender) -> str | None:
    """Why two contenders cannot be compared, if they cannot."""
    for contender in (candidate, rival):
        if _metric(contender, evaluation.metric) is None:
            return _unmeasured(contender, evaluation.metric)
        if contender.rows_hash != evaluation.rows_hash or contender.rows != evaluation.rows or not contender.rows_hash:
            its, ours = contender.rows_hash[:12] or "no hash", evaluation.rows_hash[:12] or "no hash"
            return (
                f"{_called(contender)} was measured on other rows ({contender.rows:,}, {its}) than the holdout's "
                f"({evaluation.rows:,}, {ours}); nothing can be compared"
            )
    return None


def _metric(contender: Contender, metric: str) -> float | None:
    value = contender.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def _unmeasured(contender: Contender, metric: str) -> str:
    cause = f": {contender.error}" if contender.error else ""
    found = f"{metric} of {_called(contender)} is {contender.metrics[metric]}" if metric in contender.metrics else None
    return f"{found or f'{metric} of {_called(contender)} could not be measured'}{cause}"


def _gain(evaluation: Evaluation, value: float, other: float) -> float:
    """How much better ``value`` is than ``other``, in units of the primary metric; negative if it is worse."""
    return value - other if METRICS[evaluation.task][evaluation.metric] else other - value


def _called(contender: Contender) -> str:
    return f"champion version {contender.version}" if contender.role == "champion" else contender.name


def _compared(evaluation: Evaluation, candidate: Contender, rival: Contender, gain: float) -> str:
    metric = evaluation.metric
    verb = "better" if gain > 0 else "worse" if gain < 0 else "the same"
    amount = "" if gain == 0 else f"{abs(gain):.6g} "
    link = "as" if gain == 0 else "than"
    return (
        f"{metric} of {candidate.name} is {candidate.metrics[metric]:.6g}, {amount}{verb} {link} "
        f"{rival.metrics[metric]:.6g} of {_called(rival)} on the same {evaluation.rows:,} rows"
    )
