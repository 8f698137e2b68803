"""The text of a request for approval: may this version become champion?

Neighbours: :mod:`perennial.evaluation.gates` decides before a person is asked. The orchestration asks.
:class:`perennial.ledger.records.Approval` records the answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from perennial.evidence.decision import GateDecision
from perennial.evidence.evaluation import Contender, Evaluation


def comparison_in_words(version: int, evaluation: Evaluation, decision: GateDecision, links: Mapping[str, str]) -> str:
    """Candidate and champion side by side, in Markdown.

    Args:
        version: the candidate's version.
        evaluation: the evaluation of both.
        decision: the gates' decision.
        links: addresses by name.
    """
    candidate, champion = evaluation.candidate, evaluation.champion
    rival = f"champion, version {champion.version}" if champion else "no champion yet"
    lines = [
        f"Measured on {evaluation.interval}, the same {evaluation.rows:,} rows for both. It passed every gate.",
        "",
        *([" · ".join(f"[{name}]({address})" for name, address in links.items()), ""] if links else []),
        f"| metric | version {version}, {candidate.name} | {rival} |",
        "| --- | --- | --- |",
    ]
    first = evaluation.metric
    for metric in sorted(candidate.metrics, key=lambda name: (name != first, name)):
        name = f"**{metric}**" if metric == first else metric
        lines.append(f"| {name} | {_number(candidate, metric)} | {_number(champion, metric) if champion else ''} |")
    if decision.champion_unusable is not None:
        lines += ["", f"The champion can never be used again, so nothing was compared with it: {decision.champion_unusable}"]
    compared = evaluation.comparison
    if compared is not None and compared.low is not None and compared.high is not None:
        lines += [
            "",
            f"Gain in {first}: {compared.gain:+.4g}; with {compared.confidence:.0%} confidence between "
            f"{compared.low:+.4g} and {compared.high:+.4g}.",
        ]
    if compared is not None and champion is not None and champion.remarks:
        lines += ["", *(f"- {remark}" for remark in champion.remarks)]
    if (told := evaluation.whose_figures) is not None:
        lines += ["", told]
    lines += ["", *(f"- **{result.gate}**: {result.reason}" for result in decision.results)]
    return "\n".join(lines)


def _number(contender: Contender, metric: str) -> str:
    value = contender.metrics.get(metric)
    if value is None:
        return "not measured"
    bounds = contender.intervals.get(metric)
    return f"{value:.4g}" + (f" ({bounds[0]:.4g} to {bounds[1]:.4g})" if bounds else "")
