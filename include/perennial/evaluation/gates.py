"""Decide whether a candidate may become champion, from the measurements of the candidate and its rivals.

This module is pure. :mod:`perennial.evaluation.contest` measures, this module decides, and :mod:`perennial.registry.champion`
acts. All gates are always asked. Each gives its reason in words and numbers, also if it passes. A gate refuses if its input is
missing, NaN or infinite. :mod:`perennial.evaluation.controls` has candidates that must not pass, and the gate that must refuse
each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from scipy.special import stdtr

from perennial.core.intervals import Interval, utc
from perennial.evidence.decision import GateDecision, GateResult
from perennial.evidence.evaluation import ChampionProbes, Contender, Evaluation, Operation, Refresh, Slice
from perennial.evidence.parity import FEWEST
from perennial.spec.gates import DEFAULT_AGREEMENT, DEFAULT_SKILL, Behaviour, FairnessGate, Gates
from perennial.spec.training import METRICS

#: Margins are decimal numbers. Binary floats differ from them by about this much: 0.3 - 0.2 is less than 0.1.
_ROUNDING = 1e-12

#: The largest difference between the answers of two processes that the order of additions may explain.
_SAME_ANSWER = 1e-9

#: The most names in a sentence.
_MOST_NAMED = 5

#: The gates of a refresh that doubt its newest rows, and not only the model.
_DOUBT_ROWS = frozenset({"finite_inputs", "classes", "prior", "refresh.skill", "refresh.agreement"})
#: The gate of a refresh that finds that those before it did harm.
_HARM = "refresh.harm"
#: The gate that compares what was claimed with what was measured again.
_EVIDENCE = "evidence"


def decide(evaluation: Evaluation, gates: Gates, *, refit: bool = False) -> GateDecision:
    """Judge a candidate that would replace the champion, or a refresh of the champion.

    A refresh is the champion's recipe with newer rows. It need not be better: age alone says that it is. A net lies under it
    instead, of all gates that need no comparison with the champion, and of those that only a refresh has.

    Args:
        evaluation: the evidence.
        gates: the limits of ``model.yaml``.
        refit: whether a candidate that passes all other gates must have been fitted again on the newest rows, and that model
            must pass, too.
    """
    if evaluation.refresh is not None:
        return _decision(evaluation, [*_evidence(evaluation), *_refreshed(evaluation, evaluation.refresh, gates)])
    results = [
        *_evidence(evaluation),
        *_data(evaluation, gates),
        _fresh(evaluation, gates),
        _leak(evaluation, gates),
        *_predictions(evaluation, gates),
        *_bounds(evaluation, gates),
        _baselines(evaluation, gates),
        _champion(evaluation, gates),
        _slices(evaluation, gates),
        *_calibration(evaluation, gates),
        *(_fairness(evaluation, gate) for gate in gates.fairness),
        *_robustness(evaluation, gates),
        *(_behaviour(evaluation, name, test) for name, test in gates.behaviour.items()),
        *_operation(evaluation.candidate.name, evaluation.operation, gates),
        *_parity(evaluation),
    ]
    results = list(_unless_the_champion_is_worse(evaluation, gates, results))
    if refit and all(result.passed for result in results):
        results += _refit(evaluation, gates)
    return _decision(evaluation, results)


def is_disputed(decision: GateDecision) -> bool:
    """Whether a version was refused because its evidence is not what its files and rows give."""
    return _EVIDENCE in decision.refused_by


def withholds_rows(decision: GateDecision) -> bool:
    """Whether a refresh was refused because of its newest rows, so that nothing else may learn from them either."""
    return not _DOUBT_ROWS.isdisjoint(decision.refused_by)


def undoes_refreshes(decision: GateDecision) -> bool:
    """Whether a refresh was refused because those before it did harm, so that an older version must serve again."""
    return _HARM in decision.refused_by


def _decision(evaluation: Evaluation, results: list[GateResult]) -> GateDecision:
    champion = evaluation.champion
    return GateDecision(
        promote=all(result.passed for result in results),
        results=[GateResult(result.gate, result.passed, result.reason) for result in results],
        candidate=evaluation.candidate.name,
        champion=evaluation.champion_version,
        champion_unusable=champion.unusable if champion else None,
        champion_recipe=champion.recipe if champion else "",
        same_recipe=_is_same_recipe(evaluation) and [result.gate for result in results if not result.passed] == ["champion"],
    )


@dataclass(frozen=True)
class _Bounded(GateResult):
    """The result of a gate that needs no champion, and how far what was measured is beyond what is allowed.

    Attributes:
        beyond: in units of the gate; negative if it passes, NaN if it is not known.
    """

    beyond: float = math.nan


def unanswered(evaluation: Evaluation, gates: Gates) -> bool:
    """Whether a gate refuses that may yet pass, once :class:`ChampionProbes` were measured.

    That is so for a candidate that is surely better than the champion, or a refresh of it, that fails on worse inputs, in its
    behaviour or in how it treats groups.
    """
    refused = decide(evaluation, gates).refused_by
    asked = evaluation.refresh is not None or _is_surely_better(evaluation, gates)
    return asked and any(gate.startswith(("robustness.", "behaviour.", "fairness.")) for gate in refused)


def _probed(evaluation: Evaluation, gates: Gates) -> Iterator[GateResult]:
    yield from (_fairness(evaluation, gate) for gate in gates.fairness)
    yield from _robustness(evaluation, gates)
    yield from (_behaviour(evaluation, name, test) for name, test in gates.behaviour.items())


def _is_surely_better(evaluation: Evaluation, gates: Gates) -> bool:
    return evaluation.comparison is not None and evaluation.rival is not None and _champion(evaluation, gates).passed


def _unless_the_champion_is_worse(evaluation: Evaluation, gates: Gates, results: Sequence[GateResult]) -> Iterator[GateResult]:
    """The results, of which those do not refuse a sure improvement that the champion itself fails by more.

    A refusal would leave the champion in service, and so more of what the gate forbids.
    """
    rival, probes = evaluation.rival, evaluation.champion_probes or ChampionProbes()
    if rival is None or not _is_surely_better(evaluation, gates):
        yield from results
        return
    its = replace(evaluation, candidate=replace(rival, name=_called(rival)), **vars(probes))
    fails = {
        one.gate: one
        for one in (
            *_bounds(its, gates),
            *_calibration(its, gates),
            *_probed(its, gates),
        )
        if isinstance(one, _Bounded) and not one.passed
    }
    for result in results:
        worse = fails.get(result.gate)
        by_more = worse is not None and isinstance(result, _Bounded) and worse.beyond > result.beyond + _ROUNDING
        if result.passed or worse is None or not by_more:
            yield result
        else:
            yield GateResult(
                result.gate,
                True,
                f"{result.reason}. This does not refuse the improvement, since {_called(rival)} fails the gate by more: "
                f"{worse.reason}",
            )


# --- the data --------------------------------------------------------------------------------------------------------


def _evidence(evaluation: Evaluation) -> Iterator[GateResult]:
    """Only if what was claimed differs from what was measured again: something is wrong besides the model."""
    if evaluation.disputed:
        yield GateResult(_EVIDENCE, False, f"the evidence does not match: {'; '.join(evaluation.disputed)}")


def _data(evaluation: Evaluation, gates: Gates) -> Iterator[GateResult]:
    """Whether the rows are sufficient for a decision."""
    coverage = evaluation.label_coverage
    known = f", by {evaluation.as_of}" if evaluation.as_of else ""
    yield GateResult(
        "label_coverage",
        math.isfinite(coverage) and coverage >= gates.label_coverage,
        f"labels are known for {evaluation.rows:,} of {evaluation.entities:,} rows of the holdout {evaluation.interval} "
        f"({coverage:.1%}{known}); at least {gates.label_coverage:.1%} is required",
    )
    yield _mature(evaluation, gates)
    yield GateResult(
        "min_rows",
        evaluation.rows >= gates.min_rows,
        f"the holdout {evaluation.interval} has {evaluation.rows:,} labelled rows; at least {gates.min_rows:,} are required",
    )
    infinite = ", ".join(f"{feature} in {rows:,} rows" for feature, rows in sorted(evaluation.not_finite_inputs.items()))
    yield GateResult(
        "finite_inputs",
        not evaluation.not_finite_inputs,
        f"features of the holdout are infinite: {infinite}" if infinite else "no feature of the holdout is infinite",
    )
    yield _feature_values(evaluation)
    if evaluation.task != "regression":
        yield _classes(evaluation)
    yield _same_rows(evaluation)
    yield _untouched(evaluation)


def _mature(evaluation: Evaluation, gates: Gates) -> GateResult:
    gate, coverage = "mature_labels", evaluation.training_coverage
    if evaluation.as_of is None or coverage is None or not math.isfinite(coverage):
        return GateResult(gate, False, "the moment by which the labels were known is missing; evaluate again")
    if utc(evaluation.as_of) < Interval.from_key(evaluation.interval).end:
        return GateResult(
            gate, False, f"the holdout {evaluation.interval} ends after {evaluation.as_of}, when labels were read"
        )
    return GateResult(
        gate,
        coverage >= gates.label_coverage,
        f"labels of {coverage:.1%} of the training rows were known when the holdout began; at least "
        f"{gates.label_coverage:.1%} is required, since early labels may differ from late ones",
    )


def _feature_values(evaluation: Evaluation) -> GateResult:
    """Whether each feature had values to learn from. A candidate leaves out one that had none, and no metric shows it."""
    gate, without = "feature_values", evaluation.without_values
    if without is None:
        return GateResult(gate, False, "it was not looked at whether each feature has training values; evaluate again")
    if without:
        return GateResult(
            gate,
            False,
            f"no training row has a value of {_listed(without)}: find out why with `perennial check {evaluation.model}`, "
            "ingest these days again, or remove it from features",
        )
    return GateResult(gate, True, "each feature has values in the training rows")


def _classes(evaluation: Evaluation) -> GateResult:
    gate, learned = "classes", evaluation.training_classes
    if learned is None:
        return GateResult(gate, False, "the classes that the candidate was trained on are missing; evaluate again")
    for counts, where in ((evaluation.classes, "the holdout"), (learned, "the training rows")):
        if sum(count > 0 for count in counts.values()) < 2:
            only = ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"
            return GateResult(gate, False, f"the labels of {where} have fewer than two classes: {only}")
    unseen = sorted({name.lower() for name in evaluation.classes} - {name.lower() for name in learned})
    note = f"; no training row has the class {_listed(unseen)}" if unseen else ""
    return GateResult(gate, True, f"the labels of the holdout have {len(evaluation.classes)} classes{note}")


def _same_rows(evaluation: Evaluation) -> GateResult:
    contenders = [evaluation.candidate, *evaluation.baselines, *([evaluation.rival] if evaluation.rival else [])]
    for contender in contenders:
        if problem := _other_rows(evaluation, contender):
            return GateResult("same_rows", False, problem)
    return GateResult("same_rows", True, f"all {len(contenders)} models were measured on the same {evaluation.rows:,} rows")


def _untouched(evaluation: Evaluation) -> GateResult:
    gate, holdout = "untouched_holdout", Interval.from_key(evaluation.interval)
    for contender in (evaluation.candidate, evaluation.rival):
        if contender is not None and (
            contender.trained_on is None or Interval.from_key(contender.trained_on).end > holdout.start
        ):
            return GateResult(
                gate,
                False,
                f"{_called(contender)} was trained on {contender.trained_on or 'unknown rows'}; for a fair comparison the "
                f"holdout {evaluation.interval} must be after that: train with a later as-of time",
            )
    return GateResult(gate, True, f"no model was trained on the holdout {evaluation.interval}")


def _fresh(evaluation: Evaluation, gates: Gates) -> GateResult:
    gate, trained_on = "fresh_training", evaluation.candidate.trained_on
    if trained_on is None:
        return GateResult(gate, False, f"the rows that {evaluation.candidate.name} was trained on are unknown")
    holdout = Interval.from_key(evaluation.interval)
    gap = holdout.start - Interval.from_key(trained_on).end
    # The holdout ends where labels are mature, and the window ends as long before the holdout.
    labels = max(utc(evaluation.as_of) - holdout.end, timedelta()) if evaluation.as_of else timedelta()
    days, late, most = (length / timedelta(days=1) for length in (gap, labels, gates.stale_after))
    return GateResult(
        gate,
        gap - labels <= gates.stale_after,
        f"{evaluation.candidate.name} was trained on {trained_on}, which ends {days:g} days before the holdout "
        f"{evaluation.interval}"
        + (
            f"; labels take {late:g} days, and at most {most:g} more are required"
            if late
            else f"; at most {most:g} are required"
        ),
    )


def _leak(evaluation: Evaluation, gates: Gates) -> GateResult:
    alone = evaluation.alone
    if not alone:
        return GateResult("leak", False, "the score of each feature alone was not measured; evaluate again")
    score = "R squared" if evaluation.task == "regression" else "ROC AUC"
    unknown = [feature for feature, value in alone.items() if not math.isfinite(value)]
    if unknown:
        return GateResult("leak", False, f"{score} of {_listed(unknown)} alone is not a number")
    best = max(alone, key=lambda feature: alone[feature])
    telling = sorted((feature for feature in alone if alone[feature] > gates.leak), key=lambda feature: -alone[feature])
    if telling:
        shown = _listed([f"{feature} ({alone[feature]:.4g})" for feature in telling])
        return GateResult(
            "leak",
            False,
            f"{shown} alone nearly predicts the label ({score} above {gates.leak:g}): it may be derived from the label. If "
            "it is not, raise gates.leak",
        )
    return GateResult(
        "leak",
        True,
        f"the best single feature, {best}, reaches {score} {alone[best]:.4g}; up to {gates.leak:g} is plausible",
    )


# --- the predictions -------------------------------------------------------------------------------------------------


def _predictions(evaluation: Evaluation, gates: Gates) -> Iterator[GateResult]:
    yield _sane(evaluation.candidate)
    if evaluation.task == "binary_classification":
        yield _prior(evaluation, gates)


def _sane(candidate: Contender) -> GateResult:
    seen = candidate.predictions
    if seen is None:
        return GateResult("predictions", False, f"{candidate.name} could not predict: {candidate.error or 'no reason given'}")
    if seen.rows != candidate.rows:
        reason = f"{candidate.name} gave {seen.rows:,} predictions for {candidate.rows:,} rows"
    elif seen.not_finite:
        reason = f"{seen.not_finite:,} of {seen.rows:,} predictions of {candidate.name} are NaN, infinite or missing"
    elif seen.distinct < 2:
        value = "the same" if seen.mean is None else f"{seen.mean:.6g}"
        reason = f"all {seen.rows:,} predictions of {candidate.name} are {value}: it does not distinguish rows"
    else:
        return GateResult(
            "predictions", True, f"{seen.rows:,} predictions of {candidate.name} are finite and take {seen.distinct:,} values"
        )
    return GateResult("predictions", False, reason)


def _prior(evaluation: Evaluation, gates: Gates) -> GateResult:
    """The mean prediction against the share of true labels in training.

    On average, trees and linear models predict this share. If the mean is far from it, inputs or labels have changed.
    """
    candidate, share = evaluation.candidate, evaluation.training_prior
    mean = candidate.predictions.mean if candidate.predictions else None
    if share is None or mean is None or not math.isfinite(mean):
        return GateResult(
            "prior", False, f"the mean prediction of {candidate.name} or the share of true labels in training is missing"
        )
    factor = max(mean / share, share / mean) if mean > 0 and share > 0 else math.inf
    return GateResult(
        "prior",
        factor <= gates.prior_factor,
        f"the mean prediction of {candidate.name} is {mean:.4g}, and {share:.4g} of its training labels were true; a "
        f"factor of at most {gates.prior_factor:g} is required",
    )


# --- absolute bounds and baselines -----------------------------------------------------------------------------------


def _bounds(evaluation: Evaluation, gates: Gates) -> Iterator[GateResult]:
    candidate = evaluation.candidate
    for limits, name, word, sign in ((gates.at_least, "at_least", "at least", 1), (gates.at_most, "at_most", "at most", -1)):
        for metric, limit in limits.items():
            value = _metric(candidate, metric)
            if value is None:
                yield GateResult(f"{name}.{metric}", False, _unmeasured(candidate, metric))
            else:
                yield _Bounded(
                    f"{name}.{metric}",
                    sign * (value - limit) >= 0,
                    f"{metric} of {candidate.name} is {value:.6g}; {word} {limit:g} is required",
                    sign * (limit - value),
                )


def _baselines(evaluation: Evaluation, gates: Gates) -> GateResult:
    """The candidate against the best baseline.

    It refuses if a baseline could not be measured, since that baseline might be the best.
    """
    gate, metric, candidate = "baseline", evaluation.metric, evaluation.candidate
    if not evaluation.baselines:
        return GateResult(gate, False, "no baseline was measured; a candidate must beat a simple model")
    for baseline in evaluation.baselines:
        if problem := _incomparable(evaluation, candidate, baseline):
            return GateResult(gate, False, problem)
    best = max(evaluation.baselines, key=lambda baseline: _gain(evaluation, baseline.metrics[metric], 0.0))
    gain = _gain(evaluation, candidate.metrics[metric], best.metrics[metric])
    wanted = f"at least {gates.baseline_margin:g} better" if gates.baseline_margin else "better"
    return GateResult(
        gate,
        gain > 0 and gain >= gates.baseline_margin - _ROUNDING,
        f"{_compared(evaluation, candidate, best, gain)}, the best baseline; {wanted} is required",
    )


# --- the champion ----------------------------------------------------------------------------------------------------


def _champion(evaluation: Evaluation, gates: Gates) -> GateResult:
    gate, candidate, champion = "champion", evaluation.candidate, evaluation.champion
    if champion is None:
        return GateResult(gate, True, "there is no champion yet, so the first version has nothing to beat")
    if champion.unusable:
        return GateResult(
            gate,
            True,
            f"{_called(champion)} can never be used again, so the other gates decide alone: {champion.unusable}",
        )
    if problem := _incomparable(evaluation, candidate, champion):
        return GateResult(gate, False, problem)
    if _is_same_recipe(evaluation):
        return GateResult(
            gate,
            False,
            f"{candidate.name} has the recipe of {_called(champion)}: the same features, label, estimator and parameters. A "
            "refresh brings the same recipe newer rows (schedules.refresh), so there is nothing to replace",
        )
    found, rule = evaluation.comparison, gates.champion
    if found is None or not math.isfinite(found.gain):
        return GateResult(gate, False, f"{candidate.name} was not compared with {_called(champion)} row by row; evaluate again")
    better = rule.mode == "better"
    if found.identical == 1:
        verdict = "a promotion would change nothing" if better else "it is not worse"
        return GateResult(
            gate, not better, f"{candidate.name} predicts the same as {_called(champion)} for all rows: {verdict}"
        )
    compared = "; ".join([_compared(evaluation, candidate, champion, found.gain), *champion.remarks])
    if found.problem or found.low is None or found.high is None or not math.isfinite(found.low):
        return GateResult(gate, False, f"{compared}; {found.problem or 'the lower bound of the gain is missing'}")
    floor = rule.margin if better else -rule.margin
    wanted = "better than the champion" if better else f"less than {rule.margin:g} worse than the champion"
    if better and rule.margin:
        wanted = f"more than {rule.margin:g} {wanted}"
    return GateResult(
        gate,
        found.low > floor,
        f"{compared}; with confidence {found.confidence:g} the gain is between {found.low:.4g} and {found.high:.4g} "
        f"({found.resamples:,} resamples of {found.blocks} blocks of {found.block}, seed {found.seed}); both must be "
        f"above {floor:g}: significantly {wanted}",
    )


def _is_same_recipe(evaluation: Evaluation) -> bool:
    rival = evaluation.rival
    return rival is not None and rival.recipe != "" and rival.recipe == evaluation.candidate.recipe


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which of several hypotheses are rejected, if the probability of any false rejection may be at most ``alpha``.

    Args:
        p_values: one per hypothesis.
        alpha: family-wise error rate, between 0 and 1.

    Returns:
        Whether each hypothesis is rejected.

    References:
        Holm: A Simple Sequentially Rejective Multiple Test Procedure. Scandinavian Journal of Statistics 6 (1979).
    """
    rejected = [False] * len(p_values)
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[index] > alpha / (len(p_values) - step):
            break
        rejected[index] = True
    return rejected


def _slices(evaluation: Evaluation, gates: Gates) -> GateResult:
    gate, rule, found = "slices", gates.slices, evaluation.slices
    if not rule.columns:
        return GateResult(gate, True, "gates.slices.columns names no column, so no slice is judged")
    if evaluation.champion is None:
        return GateResult(gate, True, "there is no champion yet to compare slices with")
    if evaluation.rival is None:
        return GateResult(gate, True, f"{_called(evaluation.champion)} can never be used again, so no slice can be compared")
    columns = ", ".join(rule.columns)
    if found is None:
        return GateResult(gate, False, f"the slices by {columns} were not compared; evaluate again")
    left_out = f"; not judged: {_listed(found.not_judged)}" if found.not_judged else ""
    if not found.judged:
        return GateResult(
            gate,
            False,
            f"no slice by {columns} can be judged{left_out}: lower gates.slices.min_rows, or make training.holdout longer",
        )
    if any(not (math.isfinite(one.gain) and math.isfinite(one.error)) for one in found.judged):
        return GateResult(gate, False, f"a slice by {columns} has a gain that is not a number")
    # Student's t, with the bootstrap's standard error. Holm's first step requires smaller p-values than a thousand resamples
    # can give.
    p_values = [_p_fallen(one, rule.margin) for one in found.judged]
    fallen = [
        one for one, rejected in zip(found.judged, holm(p_values, 1 - gates.resampling.confidence), strict=True) if rejected
    ]
    among = f"{len(found.judged)} slices by {columns}, Holm's correction at {1 - gates.resampling.confidence:.3g}"
    if fallen:
        shown = _listed([_fall(evaluation, one) for one in sorted(fallen, key=lambda one: one.gain)])
        return GateResult(
            gate, False, f"significantly more than {rule.margin:g} worse than the champion: {shown} ({among}{left_out})"
        )
    worst = min(found.judged, key=lambda one: one.gain)
    return GateResult(
        gate,
        True,
        f"no slice is significantly more than {rule.margin:g} worse than the champion; worst is {_fall(evaluation, worst)} "
        f"({among}{left_out})",
    )


def _p_fallen(one: Slice, margin: float) -> float:
    """One-sided p-value of a slice's gain, if the true gain is ``-margin``."""
    distance = one.gain + margin
    if one.error <= 0:
        return 0.0 if distance < -_ROUNDING else 1.0
    return float(stdtr(max(one.blocks - 1, 1), distance / one.error))


def _fall(evaluation: Evaluation, one: Slice) -> str:
    direction = "better" if one.gain >= 0 else "worse"
    return (
        f"{one.column} {one.value} with {evaluation.metric} {one.candidate:.4g} after {one.champion:.4g}, "
        f"{abs(one.gain):.3g} {direction} on {one.rows:,} rows"
    )


# --- calibration and fairness ----------------------------------------------------------------------------------------


def _calibration(evaluation: Evaluation, gates: Gates) -> Iterator[GateResult]:
    if evaluation.task != "binary_classification":
        return
    rule, candidate, champion = gates.calibration, evaluation.candidate, evaluation.champion
    if rule.error is not None:
        error = _metric(candidate, "calibration_error")
        if error is None:
            yield GateResult("calibration.error", False, _unmeasured(candidate, "calibration_error"))
        else:
            yield _Bounded(
                "calibration.error",
                error <= rule.error,
                f"probabilities of {candidate.name} differ by {error:.4g} from the observed shares (expected calibration "
                f"error); at most {rule.error:g} is required",
                error - rule.error,
            )
    if rule.brier_margin is not None:
        if champion is None:
            yield GateResult("calibration.brier", True, "there is no champion yet to compare the Brier score with")
            return
        if champion.unusable:
            yield GateResult(
                "calibration.brier", True, f"{_called(champion)} can never be used again, so its Brier score is unknown"
            )
            return
        for contender in (candidate, champion):
            if _metric(contender, "brier") is None:
                yield GateResult("calibration.brier", False, _unmeasured(contender, "brier"))
                return
        ours, its = candidate.metrics["brier"], champion.metrics["brier"]
        yield GateResult(
            "calibration.brier",
            ours - its <= rule.brier_margin + _ROUNDING,
            f"the Brier score of {candidate.name} is {ours:.6g}, that of {_called(champion)} {its:.6g}; at most "
            f"{rule.brier_margin:g} more is required",
        )


def _fairness(evaluation: Evaluation, gate: FairnessGate) -> GateResult:
    name = f"fairness.{gate.column}.{gate.rate}"
    rate = gate.rate.replace("_", " ")
    found = next((one for one in evaluation.groups or [] if (one.column, one.rate) == (gate.column, gate.rate)), None)
    if found is None:
        return GateResult(name, False, f"the {rate} by {gate.column} was not measured")
    left_out = f"; not judged: {_listed(found.not_judged)}" if found.not_judged else ""
    if len(found.rates) < 2 or any(not math.isfinite(value) for value in found.rates.values()):
        return GateResult(
            name,
            False,
            f"fewer than two groups of {gate.column} have a {rate} that can be compared{left_out}: lower min_rows, or make "
            "training.holdout longer",
        )
    least = min(found.rates, key=lambda group: found.rates[group])
    greatest = max(found.rates, key=lambda group: found.rates[group])
    if found.rates[greatest] == 0:
        return GateResult(
            name,
            False,
            f"the {rate} is 0 in every group of {gate.column} at the threshold {found.threshold:g}: choose another threshold",
        )
    ratio = found.rates[least] / found.rates[greatest]
    return _Bounded(
        name,
        ratio >= gate.ratio - _ROUNDING,
        f"the {rate} at {found.threshold:g} is {found.rates[least]:.4g} for {gate.column} {least} and "
        f"{found.rates[greatest]:.4g} for {greatest}, a ratio of {ratio:.3g}; at least {gate.ratio:g} is required{left_out}",
        gate.ratio - ratio,
    )


# --- worse inputs, and expected behaviour ----------------------------------------------------------------------------


def _robustness(evaluation: Evaluation, gates: Gates) -> Iterator[GateResult]:
    rule = gates.robustness
    yield from (
        _disturbed(evaluation, gate, most, what)
        for gate, most, what in (
            ("noise", rule.noise_drop, f"noise of {rule.noise:g} standard deviations in"),
            ("missing", rule.missing_drop, f"{rule.missing:.0%} missing values in"),
        )
        if most is not None
    )


def _disturbed(evaluation: Evaluation, gate: str, most: float, what: str) -> GateResult:
    name, found, metric = f"robustness.{gate}", evaluation.robustness, evaluation.metric
    if found is None:
        return GateResult(name, False, f"the effect of {what} a feature was not measured")
    values: dict[str, float] = found.noise if gate == "noise" else found.missing
    failed = [f"{place}: {problem}" for place, problem in found.problems.items() if place.startswith(f"{gate} ")]
    if failed:
        return GateResult(name, False, f"{evaluation.candidate.name} fails on worse inputs: {_listed(failed)}")
    lead = _gain(evaluation, found.clean, found.uninformed)
    if not (math.isfinite(lead) and all(math.isfinite(value) for value in values.values())):
        return GateResult(name, False, f"{metric} with worse inputs is not a number")
    if lead <= 0:
        return _Bounded(
            name,
            False,
            f"{metric} of {evaluation.candidate.name} is {found.clean:.6g} on {found.rows:,} rows, no better than "
            f"{found.uninformed:.6g} of a constant: it has no lead that worse inputs could reduce",
            math.inf,
        )
    if not values:
        return GateResult(name, True, f"there is no feature that {what.rpartition(' ')[0]} could disturb")
    worst = min(values, key=lambda feature: _gain(evaluation, values[feature], found.clean))
    lost = -_gain(evaluation, values[worst], found.clean) / lead
    return _Bounded(
        name,
        lost <= most + _ROUNDING,
        f"with {what} {worst}, the worst of {len(values)} features, {metric} goes from {found.clean:.4g} to "
        f"{values[worst]:.4g}, {max(lost, 0):.1%} of its lead over a constant ({found.uninformed:.4g}); at most {most:.1%} is "
        "required",
        lost - most,
    )


def _behaviour(evaluation: Evaluation, name: str, test: Behaviour) -> GateResult:
    gate, found = f"behaviour.{name}", (evaluation.behaviour or {}).get(name)
    if found is None:
        return GateResult(gate, False, f"the behaviour {name} was not tested")
    if found.problem:
        return GateResult(gate, False, f"{name}: {found.problem}")
    if test.function is not None:
        return GateResult(gate, True, f"{name}: {test.function} finds nothing wrong on {found.rows:,} rows")
    if found.share is None or not math.isfinite(found.share):
        return GateResult(gate, False, f"{name}: the share of rows that behave as expected is missing")
    change = f"{test.add:+g}" if test.add is not None else f"= {test.value}"
    expected = {"same": "stay the same", "higher": "not fall", "lower": "not rise"}[test.expect]
    return _Bounded(
        gate,
        found.share >= test.share - _ROUNDING,
        f"{name}: with {test.feature} {change}, predictions for {found.share:.1%} of {found.rows:,} rows {expected} within "
        f"{test.tolerance:g}; at least {test.share:.1%} is required",
        test.share - found.share,
    )


# --- operation -------------------------------------------------------------------------------------------------------


def _operation(name: str, found: Operation | None, gates: Gates, kind: str = "operation") -> Iterator[GateResult]:
    rule = gates.operation
    if found is None or found.problem:
        problem = found.problem if found else "it was not tested in a clean process"
        for gate in ("answers", "features", "latency", "size"):
            yield GateResult(f"{kind}.{gate}", False, f"{name} does not work in production: {problem}")
        return
    difference = found.difference
    same = difference is not None and math.isfinite(difference) and found.rows > 0
    amount = "" if difference in (None, 0) else f" (largest difference {difference:.3g})"
    yield GateResult(
        f"{kind}.answers",
        same and (difference or 0.0) <= _SAME_ANSWER,
        f"loaded by a clean process from the registry, {name} gives {found.rows:,} rows "
        + (f"the same answers{amount}" if same and (difference or 0.0) <= _SAME_ANSWER else f"other answers{amount}"),
    )
    yield GateResult(
        f"{kind}.features",
        found.same_features,
        f"{name} takes {'the features of' if found.same_features else 'other features than'} model.yaml",
    )
    for gate, value, most, unit, what in (
        ("latency", found.latency, rule.latency, "ms", "1,000 rows take"),
        ("size", found.artifact_mb, rule.artifact_mb, "MB", "its files take"),
    ):
        known = value is not None and math.isfinite(value)
        yield GateResult(
            f"{kind}.{gate}",
            value is not None and known and value <= most,
            f"{name}: {what} {f'{value:.3g} {unit}' if known else 'an unknown amount'}; at most {most:g} is required",
        )


# --- the model that serves -------------------------------------------------------------------------------------------


def _parity(evaluation: Evaluation) -> Iterator[GateResult]:
    """Whether what is served online is what the candidate has learned from. Only of a model that is asked by key.

    It is judged by what was measured of the candidate's own definition of features. A refresh is not asked: it serves the
    features that the champion before it serves.
    """
    gate, seen = "parity", evaluation.parity
    if seen is None:
        return
    if seen.damaged is not None:
        yield GateResult(gate, False, f"the parity of what is served online cannot be read: {seen.damaged}")
        return
    if not (math.isfinite(seen.bound) and 0 <= seen.bound <= 1 and 0 <= seen.equal <= seen.rows):
        yield GateResult(
            gate,
            False,
            f"the parity of what is served online is damaged: {seen.equal} of {seen.rows} rows are equal, and {seen.bound} of "
            f"them must be; run {evaluation.model}.record, then evaluate again",
        )
    elif not seen.is_judged:
        rows = f"only {seen.rows:,} rows of {seen.interval}" if seen.rows else "not measured"
        yield GateResult(
            gate, True, f"whether what is served online is what the candidate learned from: {rows}; {FEWEST} are required"
        )
    else:
        told = (
            f"of {seen.rows:,} rows that were answered online with features of {seen.interval}, {seen.share:.1%} had the "
            f"features that the published tables give; at least {seen.bound:.1%} is required"
        )
        if not seen.is_below:
            yield GateResult(gate, True, told)
            return
        yield GateResult(
            gate,
            False,
            f"what is served differs from what is trained on: {told}. Worst: {_listed(seen.worst) or 'unknown'}. Push rows as "
            f"they happen, or correct tables.known; perennial parity {evaluation.model} shows each feature",
        )


def _refit(evaluation: Evaluation, gates: Gates) -> Iterator[GateResult]:
    """Whether the model that was fitted again on the newest rows works, and is still the model that was judged."""
    name = f"{evaluation.candidate.name}, fitted again on the newest rows,"
    yield _agreement(evaluation, "refit.agreement", gates.refit.agreement, name, "the judged model")
    if evaluation.refit is not None:
        yield from _operation(name, evaluation.refit.operation, gates, "refit")


def _agreement(evaluation: Evaluation, gate: str, least: float, name: str, other: str) -> GateResult:
    found = evaluation.refit
    if found is None:
        return GateResult(
            gate, False, f"{evaluation.candidate.name} was not fitted again on the newest rows (training.refit); evaluate again"
        )
    known = found.agreement is not None and math.isfinite(found.agreement)
    what = "same class in a share of" if evaluation.task == "multiclass_classification" else "rank correlation"
    return GateResult(
        gate,
        found.agreement is not None and known and found.agreement >= least,
        f"{name} agrees with {other} on the holdout: {what} {f'{found.agreement:.3f}' if known else 'unknown'}; at least "
        f"{least:g} is required",
    )


# --- a refresh -------------------------------------------------------------------------------------------------------


def _refreshed(evaluation: Evaluation, refresh: Refresh, gates: Gates) -> Iterator[GateResult]:
    """The net under a refresh.

    The newest rows were measured with the model before it. The refreshed model has learned from these rows, so no metric of it
    counts.
    """
    name = f"{evaluation.candidate.name}, refreshed,"
    served = replace(evaluation, candidate=replace(evaluation.candidate, name=name, predictions=refresh.predictions))
    yield from _data(evaluation, gates)
    yield _leak(evaluation, gates)
    yield from _predictions(served, gates)
    yield _skill(evaluation, refresh, gates)
    least = gates.refresh.agreement if gates.refresh.agreement is not None else DEFAULT_AGREEMENT
    yield _agreement(evaluation, "refresh.agreement", least, name, f"version {refresh.reference}")
    yield _harm(refresh, gates)
    yield from _unless_the_model_before_fails(served, refresh, gates)
    yield from _operation(name, evaluation.refit.operation if evaluation.refit else None, gates)


def _unless_the_model_before_fails(served: Evaluation, refresh: Refresh, gates: Gates) -> Iterator[GateResult]:
    """How it treats groups, worse inputs and its behaviour.

    A champion that fails such a gate was promoted because the one before it failed by more, or by a person. If its refreshes
    were refused, it would stay in service and grow old.
    """
    its = replace(
        served,
        candidate=replace(served.candidate, name=f"version {refresh.reference}"),
        **vars(served.champion_probes or ChampionProbes()),
    )
    fails = {one.gate: one for one in _probed(its, gates) if isinstance(one, _Bounded) and not one.passed}
    for result in _probed(served, gates):
        before = fails.get(result.gate)
        if result.passed or before is None or not isinstance(result, _Bounded) or served.champion_probes is None:
            yield result
        else:
            yield GateResult(
                result.gate,
                True,
                f"{result.reason}. This does not refuse the refresh, since the model before it fails the gate too: "
                f"{before.reason}",
            )


def _skill(evaluation: Evaluation, refresh: Refresh, gates: Gates) -> GateResult:
    gate, metric = "refresh.skill", evaluation.metric
    least = gates.refresh.skill if gates.refresh.skill is not None else DEFAULT_SKILL.get(metric, 0.0)
    value, known = refresh.skill, refresh.skill is not None and math.isfinite(refresh.skill)
    measured, constant = _metric(evaluation.candidate, metric), refresh.uninformed
    if value is None or not known or measured is None or constant is None:
        cause = evaluation.candidate.error or f"{metric} is not defined there"
        return GateResult(
            gate,
            False,
            f"the skill of version {refresh.reference} on the newest rows {evaluation.interval} is unknown: {cause}",
        )
    return GateResult(
        gate,
        value > least if least == 0 else value >= least,
        f"version {refresh.reference}, which had not learned from {evaluation.interval}, has {metric} {measured:.6g} there, "
        f"and the best constant {constant:.6g}: a skill score of {value:.3f}; "
        f"{f'at least {least:g}' if least else 'more than 0'} is required, since otherwise the newest labels or features may "
        "be wrong",
    )


def _harm(refresh: Refresh, gates: Gates) -> GateResult:
    found, most = refresh.rolling, gates.refresh.false_restores
    if found is None:
        return GateResult(_HARM, True, "there are no earlier refreshes to judge")
    days, worse = sum(found.days.values()), sum(found.worse.values())
    return GateResult(
        _HARM,
        math.isfinite(found.evidence) and found.evidence < most,
        f"on {worse} of the last {days} days, refreshed models lost more than {gates.refresh.margin:g} of the lead of version "
        f"{found.anchor}, each on days that it had not learned from; the evidence of harm is {found.evidence:.3g}, below "
        f"{most:g} is required",
    )


# --- shared by the gates ---------------------------------------------------------------------------------------------


def _other_rows(evaluation: Evaluation, contender: Contender) -> str | None:
    if contender.rows_hash == evaluation.rows_hash and contender.rows == evaluation.rows and contender.rows_hash:
        return None
    its, ours = contender.rows_hash[:12] or "no hash", evaluation.rows_hash[:12] or "no hash"
    return (
        f"{_called(contender)} was measured on other rows ({contender.rows:,}, {its}) than the holdout's "
        f"({evaluation.rows:,}, {ours}); they cannot be compared"
    )


def _incomparable(evaluation: Evaluation, candidate: Contender, rival: Contender) -> str | None:
    """Why two contenders cannot be compared; None if they can."""
    for contender in (candidate, rival):
        if _metric(contender, evaluation.metric) is None:
            return _unmeasured(contender, evaluation.metric)
        if problem := _other_rows(evaluation, contender):
            return problem
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


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"
