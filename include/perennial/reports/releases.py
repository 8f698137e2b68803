"""The release report: what a version changes compared with the champion. This module also writes and logs the pages.

The report and the model card (:mod:`perennial.reports.cards`) are made after a version is registered and before it is
promoted, so that the approver can read them. They are in ``card/`` of the version's MLflow run. If one of them cannot be made,
the promotion stops, because a version with unknown facts must not be released.
"""

from __future__ import annotations

import difflib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perennial.core.errors import CardError
from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.evidence.evaluation import Slice
from perennial.evidence.training import TrainingRecord
from perennial.reports.cards import (
    MOST,
    answers,
    called,
    decision,
    gates,
    interval_of,
    listed,
    metrics,
    model_card,
    number,
    share,
    slices,
    standing,
)
from perennial.reports.documents import Block, Chapter, Code, Document, Facts, Grid, Mark, Points, Words
from perennial.reports.dossier import Dossier, gather
from perennial.spec.features_digest import first_features_digest
from perennial.spec.folder import ModelFolder
from perennial.spec.training import METRICS

log = logging.getLogger(__name__)


#: The folder of the pages among the artifacts of a version's run.
PLACE = "card"
#: The largest number of lines that are shown of a difference between two files.
_DIFF = 80
#: A larger change in the share of missing values, or in the share of a class, is reported.
_NOTABLE = 0.05


def write_pages(folder: ModelFolder | None, deployment: Deployment, model: str, version: int, into: Path) -> list[Path]:
    """Write ``card`` and ``release`` as HTML and as Markdown, and their pictures, into a directory.

    Args:
        folder: the model's folder as it is now; None if there is none.
        deployment: its ledger holds the version's record, its registry the version's run.
        model: the model's name.
        version: the version's number.
        into: the directory; it is created if it does not exist.

    Returns:
        The files of the pages, without the pictures.

    Raises:
        CardError: there is no such version, or a section would be empty; nothing is written.
        TrainingError, ArtifactRejected: the folder that the version was made with is no longer known.
    """
    dossier = gather(folder, deployment, model, version)
    documents = {"card": model_card(dossier), "release": release_report(dossier)}
    for document in documents.values():
        document.check()
    into.mkdir(parents=True, exist_ok=True)
    pages = []
    for name, document in documents.items():
        for ending, text in (("html", document.to_html()), ("md", document.to_markdown())):
            page = into / f"{name}.{ending}"
            page.write_text(text, encoding="utf-8")
            pages.append(page)
        for picture in document.pictures:
            (into / picture.name).write_bytes(picture.png)
    return pages


def publish_pages(folder: ModelFolder, deployment: Deployment, version: int) -> None:
    """Log a version's card and report to its MLflow run. They replace earlier ones.

    If the gates refused the version, an empty section is only a warning, because there is no promotion to stop.

    Raises:
        CardError, TrainingError, ArtifactRejected: as in :func:`write_pages`.
    """
    model = folder.spec.name
    record = deployment.ledger.version(model, version)
    with tempfile.TemporaryDirectory(prefix="perennial-card-") as scratch:
        try:
            write_pages(folder, deployment, model, version, Path(scratch))
        except CardError as error:
            if record is None or record.decision.promote:
                raise
            log.warning("a version that the gates refused has no card: %s", error)
            return
        assert record is not None  # there are pages about it
        deployment.registry.run(record.mlflow_run_id).log_files(Path(scratch), PLACE)


# --- the report ------------------------------------------------------------------------------------------------------


def release_report(dossier: Dossier) -> Document:
    """The page: what changes if the version replaces the champion, and what to watch then."""
    rival = dossier.rival
    over = f"champion version {rival.version}" if rival else "no champion: it would be the first version to predict"
    return Document(
        kind="Release report",
        title=f"{dossier.name} against {over}",
        lead=dossier.spec.description,
        mark=standing(dossier),
        figures=_figures(dossier),
        sections=[
            Chapter("In short", [Points(_in_short(dossier))], "an evaluation of the version, in the ledger"),
            decision(dossier),
            metrics(dossier) if rival is None or dossier.record.is_refresh else _gained_and_lost(dossier),
            slices(dossier),
            gates(dossier),
            Chapter(
                "Features, parameters and spec", list(_made_otherwise(dossier)), "the version's model folder, logged to its run"
            ),
            Chapter("Data", list(_data(dossier)), "the training sets of both versions, in the ledger"),
            Chapter("What to watch", [Points(to_watch(dossier))], "an evaluation of the version, in the ledger"),
        ],
    )


def _figures(dossier: Dossier) -> list[tuple[str, str, str]]:
    evaluation, metric = dossier.evaluation, dossier.evaluation.metric
    figures = [
        (f"{metric} of {called(one)}", number(one.metrics.get(metric)), interval_of(one, metric))
        for one in (evaluation.candidate, None if dossier.record.is_refresh else evaluation.champion)
        if one
    ]
    if comparison := evaluation.comparison:
        ends = "" if comparison.low is None else f"{number(comparison.low)} to {number(comparison.high)}"
        figures.append(("gain", f"{comparison.gain:+.4g}", ends))
    results = dossier.record.decision.results
    passed = sum(result.passed for result in results)
    return [*figures, ("gates passed", f"{passed} of {len(results)}", "")]


def _in_short(dossier: Dossier) -> list[str]:
    evaluation, comparison = dossier.evaluation, dossier.evaluation.comparison
    candidate, metric = evaluation.candidate, evaluation.metric
    if candidate.error:
        return [f"It could not predict: {candidate.error}"]
    lines = [f"{metric} is {number(candidate.metrics.get(metric))} {interval_of(candidate, metric)}".rstrip() + "."]
    if (refresh := evaluation.refresh) is not None:
        skill = "unknown" if refresh.skill is None else f"{refresh.skill:.3f}"
        agreement = evaluation.refit.agreement if evaluation.refit is not None else None
        return [
            evaluation.whose_figures or "",
            f"{lines[0]} Its skill score is {skill}, and both agree on these rows to {number(agreement)}.",
        ]
    if comparison:
        sure = comparison.problem or (
            f"with {comparison.confidence:.0%} confidence it lies between {number(comparison.low)} and "
            f"{number(comparison.high)} ({comparison.resamples:,} resamples of {comparison.blocks} blocks by "
            f"{comparison.block})"
        )
        lines.append(f"The gain over the champion is {comparison.gain:+.4g}; {sure}.")
        lines += [
            f"{remark[0].upper()}{remark[1:]}." for remark in (evaluation.champion.remarks if evaluation.champion else [])
        ]
        lines.append(f"{comparison.identical:.1%} of its predictions are exactly the champion's.")
    elif (unusable := dossier.record.decision.champion_unusable) is not None:
        lines.append(f"It was not compared with the champion, which can never be used again: {unusable}.")
    elif dossier.rival is None:
        simple = [f"{called(one)} {number(one.metrics.get(metric))}" for one in evaluation.baselines]
        lines.append(f"There is no champion yet. Baselines on the same rows: {', '.join(simple) or 'none'}.")
    better, worse = _by_direction(dossier)
    if better or worse:
        lines.append(f"Better: {', '.join(better) or 'nothing'}. Worse: {', '.join(worse) or 'nothing'}.")
    judged = evaluation.slices.judged if evaluation.slices else []
    if judged:
        lost = [one for one in judged if one.gain < 0]
        lines.append(
            f"{len(lost):,} of {len(judged):,} slices are worse: {_names(lost)}."
            if lost
            else f"None of {len(judged):,} slices is worse."
        )
    return lines


def _by_direction(dossier: Dossier) -> tuple[list[str], list[str]]:
    """The names of the metrics that improved, and of those that got worse."""
    gains = {metric: gain for metric, _, _, gain in _gains(dossier)}
    return [name for name, gain in gains.items() if gain > 0], [name for name, gain in gains.items() if gain < 0]


def _gains(dossier: Dossier) -> Iterator[tuple[str, float, float, float]]:
    """Each metric that both have: its name, the champion's value, the version's value, and how much better the version is."""
    champion, candidate = dossier.evaluation.champion, dossier.evaluation.candidate
    if champion is None:
        return
    for metric, greater_is_better in METRICS[dossier.spec.task].items():
        if metric in champion.metrics and metric in candidate.metrics:
            before, after = champion.metrics[metric], candidate.metrics[metric]
            yield metric, before, after, after - before if greater_is_better else before - after


def _names(found: list[Slice]) -> str:
    worst = sorted(found, key=lambda one: one.gain)
    return listed([f"{one.column} {one.value} ({one.gain:+.3g})" for one in worst])


def _gained_and_lost(dossier: Dossier) -> Chapter:
    champion, candidate = dossier.evaluation.champion, dossier.evaluation.candidate
    rows = [
        [
            metric,
            f"{number(before)} {interval_of(champion, metric) if champion else ''}".rstrip(),
            f"{number(after)} {interval_of(candidate, metric)}".rstrip(),
            f"{after - before:+.4g}",
            Mark("better", "good") if gain > 0 else Mark("worse", "warn") if gain < 0 else Mark("the same", "quiet"),
        ]
        for metric, before, after, gain in _gains(dossier)
    ]
    if not rows and (error := (champion.error if champion else None) or candidate.error):
        return Chapter("Metrics", [Words(f"Nothing can be compared: {error}")], "")
    words = (
        f"Both are measured on the same {dossier.evaluation.rows:,} rows of {dossier.evaluation.interval}. Their intervals may "
        "overlap although the gain is certain, because the gain is computed from pairs of predictions."
    )
    return Chapter(
        "Metrics",
        [
            Words(words),
            Grid(["metric", "champion", "this version", "difference", ""], rows),
            *answers([candidate, *([champion] if champion else [])]),
            *dossier.pictures(("holdout/gain.png", "Uncertainty of the gain"), ("holdout/roc.png", "ROC curve on the holdout")),
        ],
        "metrics of both versions on the holdout; one of them could not predict, or no label is known",
    )


def _made_otherwise(dossier: Dossier) -> Iterator[Block]:
    training, rival = dossier.training, dossier.rival
    if rival is None:
        features = training.features
        yield Facts(
            [
                ("candidate", training.candidate),
                ("parameters", ", ".join(f"{name} {value}" for name, value in training.params.items()) or "defaults"),
                ("features", f"{len(features)}: {', '.join(features)}"),
                ("model folder", f"SHA-256 {dossier.record.spec_digest}"),
            ]
        )
        return
    ours, its = ({*of.features} for of in (training, rival.training))
    # An earlier release gave the rival another digest for the same.
    same = {dossier.record.features_digest, first_features_digest(dossier.spec, dossier.files.get("features.sql", ""))}
    yield Facts(
        [
            ("features added", ", ".join(sorted(ours - its)) or "none"),
            ("features removed", ", ".join(sorted(its - ours)) or "none"),
            ("feature definitions", "the same" if rival.features_digest in same else "changed"),
            ("candidate", _change(rival.training.candidate, training.candidate)),
            ("commit", _change(rival.code.commit, dossier.record.code.commit)),
            (
                "packages",
                ", ".join(_changed(rival.code.packages, dossier.record.code.packages)) or "the same",
            ),
        ]
    )
    params = [[name, before, after] for name, (before, after) in _differences(rival.training.params, training.params).items()]
    if params:
        yield Grid(["parameter", "champion", "this version"], params)
    if dossier.importance and dossier.rival_importance:
        moved = sorted(
            ({*dossier.importance} | {*dossier.rival_importance}),
            key=lambda name: -abs(dossier.importance.get(name, 0.0) - dossier.rival_importance.get(name, 0.0)),
        )
        rows = [[name, dossier.rival_importance.get(name), dossier.importance.get(name)] for name in moved[:5]]
        yield Words("The features whose importance changed most. Each version's is measured on its own validation rows:")
        yield Grid(["feature", "champion", "this version"], rows)
    if dossier.rival_files is None:
        yield Words("The changes of the model folder are not known: the champion's files were not kept.")
    elif dict(dossier.files) == dict(dossier.rival_files):
        yield Words("The model folder is the same.")
    else:
        yield from _folder_changes(dossier.rival_files, dossier.files)


def _folder_changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Block]:
    specs = [_flatten(json.loads(files["model.yaml"])) for files in (before, after)]
    changed = [[path, old, new] for path, (old, new) in _differences(*specs).items()]
    if changed:
        yield Grid(["in model.yaml", "champion", "this version"], changed[: 2 * MOST])
    for name in ("features.sql", "model.py"):
        lines = list(
            difflib.unified_diff(
                before.get(name, "").splitlines(),
                after.get(name, "").splitlines(),
                "champion",
                "this version",
                lineterm="",
                n=1,
            )
        )
        if lines:
            more = [f"… {len(lines) - _DIFF:,} more lines"] if len(lines) > _DIFF else []
            yield Code(f"{name} changed", "\n".join([*lines[:_DIFF], *more]))


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            place: part for key, below in value.items() for place, part in _flatten(below, f"{path}.{key}".lstrip(".")).items()
        }
    return {path: value}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    }


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [f"{name} {old} → {new}" for name, (old, new) in _differences(before, after).items()]


def _change(before: Any, after: Any) -> str:
    return f"{after} (the same)" if before == after else f"{after} (before: {before})"


def _data(dossier: Dossier) -> Iterator[Block]:
    ours, its = dossier.training, dossier.rival.training if dossier.rival else None
    columns = ["", *(["champion"] if its else []), "this version"]
    both = [training for training in (its, ours) if training]
    rows: list[list[Any]] = [
        ["learned from", *(training.window for training in both)],
        ["rows", *(training.rows["window"] for training in both)],
        ["serves a model of", *(record.learned_from for record in (dossier.rival, dossier.record) if record)],
        ["labels known", *(share(training.labelled["window"], training.entities["window"]) for training in both)],
    ]
    rows += [[f"share of {name}", *(_show_share(training, name) for training in both)] for name in _classes(both)]
    yield Grid(columns, rows)
    if its is not None:
        before, after = its.interval("window"), ours.interval("window")
        if before.overlaps(after):
            common = Interval(max(before.start, after.start), min(before.end, after.end))
            yield Words(
                f"Both learned from {common} ({common.length.days} days). Only this version learned from the rest of its "
                "window."
            )
        else:
            yield Words("The two training windows have no day in common.")
    gaps = _moved(dossier.rival_missing, dossier.missing)
    if gaps:
        yield Words("Features whose share of missing values changed:")
        yield Grid(
            ["feature", "missing, champion", "missing, this version"],
            [[name, f"{old:.1%}", f"{new:.1%}"] for name, (old, new) in gaps.items()],
        )


def _classes(trainings: list[TrainingRecord]) -> list[str]:
    return list(dict.fromkeys(name for training in trainings for name in training.classes["window"]))


def _show_share(training: TrainingRecord, name: str) -> str:
    counts = training.classes["window"]
    return share(counts.get(name, 0), sum(counts.values()))


def _moved(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """The shares that changed by more than :data:`_NOTABLE`."""
    return {
        name: (before[name], after[name]) for name in after if name in before and abs(after[name] - before[name]) > _NOTABLE
    }


def to_watch(dossier: Dossier) -> list[str]:
    """Warnings for the reader: refusals, uncertain gains, losses, small samples, and changes of the data."""
    evaluation = dossier.evaluation
    watch = [f"Refused by {result.gate}: {result.reason}" for result in dossier.record.decision.results if not result.passed]
    _, worse = _by_direction(dossier)
    if worse:
        watch.append(f"Metrics that are worse than the champion's: {', '.join(worse)}.")
    gain = evaluation.comparison
    if gain is not None and gain.low is not None and gain.high is not None and gain.low <= 0 <= gain.high:
        watch.append(f"The gain may be zero: its interval is {number(gain.low)} to {number(gain.high)}.")
    found = evaluation.slices
    if lost := [one for one in found.judged if one.gain < 0] if found else []:
        watch.append(f"Slices that are worse, by no more than the gate allows or chance explains: {_names(lost)}.")
    if small := found.not_judged if found else []:
        watch.append(f"{len(small):,} slices have too few rows to be judged.")
    for name, (old, new) in _moved(dossier.rival_missing, dossier.missing).items():
        watch.append(f"{name} was missing in {old:.0%} of the champion's training data, now in {new:.0%}.")
    if dossier.rival is not None:
        for name in _classes([dossier.training]):
            before, after = (_count_share(training, name) for training in (dossier.rival.training, dossier.training))
            if before is not None and after is not None and abs(after - before) > _NOTABLE:
                watch.append(f"{name} made up {before:.0%} of the champion's training data, now {after:.0%}.")
    importance = dossier.importance
    total = sum(max(drop, 0.0) for drop in importance.values())
    if total > 0 and (top := max(importance.items(), key=lambda pair: pair[1]))[1] > total / 2:
        watch.append(f"It depends on one feature, {top[0]}: {top[1] / total:.0%} of all importance. Watch its drift first.")
    if dossier.training.missing:
        watch.append(
            f"No data are published for {', '.join(dossier.training.missing)}; it learned and was judged without them."
        )
    if evaluation.label_coverage < 1:
        watch.append(f"Labels are known for {evaluation.label_coverage:.1%} of the holdout; the rest may change the result.")
    every = dossier.spec.schedules.monitor
    return [*watch, f"Realised {evaluation.metric} and drift are measured each {every}, beginning with its first predictions."]


def _count_share(training: TrainingRecord, name: str) -> float | None:
    counts = training.classes["window"]
    return counts.get(name, 0) / sum(counts.values()) if counts else None
