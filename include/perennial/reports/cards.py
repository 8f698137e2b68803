"""The model card of a version: what it is, what it was made from, how good it is, and where it must not be trusted.

Each section shows what is recorded. If a section would be empty or lack its picture, the page is refused
(:meth:`perennial.reports.documents.Document.check`), and with it the promotion. If ``model.yaml`` does not ask for an
evaluation, the section says so in words.

Neighbours: :mod:`perennial.reports.dossier` gathers the records. :mod:`perennial.reports.releases` reports what a version
changes, and writes the pages. :mod:`perennial.evidence.evaluation` defines the measurements.

References:
    Mitchell et al.: Model Cards for Model Reporting. FAccT 2019.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from perennial.core.intervals import Interval, utc
from perennial.evidence.evaluation import Contender
from perennial.evidence.training import PARTS, TrainingRecord
from perennial.reports.documents import Block, Chapter, Document, Facts, Grid, Mark, Points, Words
from perennial.reports.dossier import Dossier
from perennial.reports.lineage import training_set
from perennial.spec.training import METRICS

#: The largest number of rows of a table and of lines of a list.
MOST = 20
#: A feature with at least this share of missing values is listed as a limit.
MOSTLY_MISSING = 0.5

_YEAR = timedelta(days=365)


def model_card(dossier: Dossier) -> Document:
    """The page: what a version is, what it was made from, how good it is, and where it must not be trusted."""
    return Document(
        kind="Model card",
        title=dossier.name,
        lead=dossier.spec.description,
        mark=standing(dossier),
        figures=_figures(dossier),
        sections=[
            Chapter("Purpose", [_purpose(dossier)], "description and owner in model.yaml"),
            Chapter("Intended use and limits", _limits(dossier), "card.intended_use and card.limits in model.yaml"),
            decision(dossier),
            Chapter("Data", _data(dossier), "the training set in the ledger: snapshots, rows and hashes"),
            metrics(dossier),
            slices(dossier),
            Chapter(
                "Calibration and errors",
                _calibration(dossier),
                "holdout/calibration.png (or confusion.png, residuals.png) of the run, which is drawn if the holdout has more "
                "than one distinct label and every prediction is finite",
            ),
            Chapter(
                "Feature importance",
                _importance(dossier),
                "validation/importance.json and importance.png of the run, which are made if the primary metric can be "
                "measured on the validation rows: make training.validation longer",
            ),
            *_probes(dossier),
            gates(dossier),
            Chapter("Code and environment", _code(dossier), "the commit, the packages and the parameters recorded by training"),
            Chapter("Lineage", _lineage(dossier), "publications of the tables and features it learned from, in the ledger"),
        ],
    )  # fmt: skip


def standing(dossier: Dossier) -> Mark:
    """The status of a version, in a few words."""
    if dossier.decisions:
        return Mark("promoted", "good")
    if not dossier.passed:
        return Mark("refused by the gates", "bad")
    if dossier.approvals:
        answer = dossier.approvals[-1].answer
        return Mark(answer, "good" if answer == "approved" else "bad")
    return Mark("gates passed, waiting for approval" if dossier.spec.promotion == "approval" else "gates passed", "good")


def _figures(dossier: Dossier) -> list[tuple[str, str, str]]:
    evaluation, metric = dossier.evaluation, dossier.evaluation.metric
    candidate, comparison = evaluation.candidate, evaluation.comparison
    figures = []
    if metric in candidate.metrics:
        figures.append((metric, number(candidate.metrics[metric]), interval_of(candidate, metric)))
    if comparison and evaluation.champion:
        sure = "" if comparison.low is None else f"{number(comparison.low)} to {number(comparison.high)}"
        figures.append((f"gain over version {evaluation.champion.version}", number(comparison.gain), sure))
    figures.append(("judged on", f"{evaluation.rows:,} rows", evaluation.interval))
    figures.append(("learned from", f"{dossier.training.rows['window']:,} rows", dossier.training.window))
    if evaluation.refresh is not None:
        figures.append(("refreshes", f"version {evaluation.refresh.champion}", "the same recipe with newer rows"))
    if (refit := evaluation.refit) is not None:
        agrees = "" if refit.agreement is None else f", agreement {number(refit.agreement)}"
        figures.append(("serves a refit on", f"{refit.rows:,} rows", f"{refit.interval}{agrees}"))
    return figures


def number(value: Any) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def interval_of(contender: Contender, metric: str) -> str:
    """The confidence interval of a metric; an empty text if there is none."""
    ends = contender.intervals.get(metric)
    return f"[{number(ends[0])}, {number(ends[1])}]" if ends else ""


def _purpose(dossier: Dossier) -> Block:
    spec = dossier.spec
    return Facts(
        [
            ("question it answers", spec.description),
            ("owner", spec.owner),
            ("task", spec.task.replace("_", " ")),
            ("one prediction for", f"each {', '.join(spec.entity_table.key)} of {spec.entity.table}"),
            ("time of the prediction", spec.entity.as_of),
            ("label", f"{spec.label.sql} (of {spec.label.table})"),
            ("made on", f"{dossier.record.created_at:%Y-%m-%d %H:%M} UTC"),
        ]
    )


def _limits(dossier: Dossier) -> list[Block]:
    spec = dossier.spec
    use = spec.card.intended_use or (
        f"The team has not stated it (card.intended_use in model.yaml). By its spec, it predicts {spec.label.sql!r} for each "
        f"row of {spec.entity.table} at {spec.entity.as_of!r}, and nothing else."
    )
    not_for = [f"Not made for: {line}" for line in spec.card.not_for]
    return [Words(use), Points([*not_for, *spec.card.limits, *known_limits(dossier)])]


def known_limits(dossier: Dossier) -> list[str]:
    """The limits of a version that follow from its record."""
    spec, evaluation, training = dossier.spec, dossier.evaluation, dossier.training
    holdout = training.interval("holdout")
    limits = [
        f"It was judged on {evaluation.interval} only ({holdout.length.days} days); monitoring measures its performance at "
        "other times."
    ]
    refit = evaluation.refit
    if evaluation.refresh is not None and refit is not None:
        limits.append(
            f"{evaluation.whose_figures} There are no unseen rows yet to measure the refreshed model on. Both agree on these "
            f"rows ({number(refit.agreement)}), and monitoring measures it."
        )
    elif refit is not None:
        limits.append(
            f"All figures on this page are those of the model that was judged, which learned from {training.window}. What "
            f"serves is the same recipe fitted again on {refit.interval}. There are no unseen rows yet to measure that on. On "
            f"the holdout it agrees with the judged model ({number(refit.agreement)}), and monitoring measures it."
        )
    learned = Interval.from_key(dossier.record.learned_from)
    if learned.length < _YEAR:
        limits.append(
            f"It learned from {learned.length.days} days, {learned.key}. It does not know seasons, holidays and events "
            "outside this period."
        )
    for part, words in (("holdout", "it was judged on"), ("window", "it learned from")):
        entities, labelled = training.entities[part], training.labelled[part]
        if labelled < entities:
            limits.append(
                f"{entities - labelled:,} of {entities:,} rows that {words} had no label in time "
                f"({1 - labelled / entities:.1%}); no number on this page includes them."
            )
    if training.withheld:
        limits.append(
            f"It did not learn from {', '.join(training.withheld)}: these rows are withheld, since a refresh that learned from "
            "them was refused."
        )
    if training.missing:
        limits.append(f"Days without data, in what it learned from or was judged on: {', '.join(training.missing)}.")
    if training.rows["window"] < training.labelled["window"]:
        limits.append(
            f"Of {training.labelled['window']:,} labelled rows it learned from the newest {training.rows['window']:,} "
            "(training.max_rows)."
        )
    if mostly := [f"{name} ({share:.0%})" for name, share in dossier.missing.items() if share >= MOSTLY_MISSING]:
        limits.append(f"Mostly missing in its training data: {listed(mostly)}.")
    if not dossier.missing:
        limits.append("The share of missing values per feature is not known, because the stored model cannot be loaded.")
    not_judged = evaluation.slices.not_judged if evaluation.slices else []
    limits += [f"A slice that was not judged: {reason}" for reason in not_judged[:MOST]]
    if len(not_judged) > MOST:
        limits.append(f"{len(not_judged) - MOST:,} more slices were not judged; the evaluation in MLflow names them.")
    if not spec.gates.slices.columns:
        limits.append("No slices are judged separately: model.yaml has no gates.slices.columns.")
    if not spec.gates.fairness:
        limits.append("Whether groups are treated alike is not judged: model.yaml has no gates.fairness.")
    if dossier.record.code.dirty:
        limits.append("It was made with code that has uncommitted changes.")
    return limits


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST:,} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more


def decision(dossier: Dossier) -> Chapter:
    """The section with the decisions on the version, and who made them."""
    results = dossier.record.decision.results
    refused = [result for result in results if not result.passed]
    words = (
        f"All {len(results)} gates passed."
        if results and not refused
        else f"{len(refused)} of {len(results)} gates refused: {listed([result.gate for result in refused])}."
    )
    blocks: list[Block] = [
        Words(words if results else ""),
        Facts(
            [
                ("compared with", _compared_with(dossier)),
                ("promotion", "when all gates pass" if dossier.spec.promotion == "automatic" else "when a person approves it"),
                ("owner", dossier.spec.owner),
            ]
        ),
    ]  # fmt: skip
    told = [*(f"{one.answered_at:%Y-%m-%d %H:%M} UTC: {one.told}" for one in dossier.approvals), *dossier.decisions]
    blocks.append(Points(told or ["When this page was made, nothing else had been decided."]))
    return Chapter("Decision", blocks, "the gates' decision, in the ledger")


def _labels(training: TrainingRecord) -> list[tuple[str, str]]:
    """How late labels come, and how old the newest one was when the version was made."""
    facts = []
    if training.label_delay:
        source = "measured" if training.delay_measured else "label.delay in model.yaml"
        facts.append(("labels take", f"{training.label_delay} days ({source})"))
    if training.newest_label:
        age = utc(training.as_of) - utc(training.newest_label)
        facts.append(
            ("newest label", f"of {utc(training.newest_label):%Y-%m-%d %H:%M} UTC, {age / timedelta(days=1):.1f} days old")
        )
    return facts


def _data(dossier: Dossier) -> list[Block]:
    training = dossier.training
    parts = [
        [
            {"window": "learned from", "holdout": "judged on"}[part],
            training.key(part),
            training.rows[part],
            share(training.labelled[part], training.entities[part]),
            ", ".join(f"{name} {count:,}" for name, count in training.classes[part].items()) or "numbers",
            training.content[part],
        ]
        for part in PARTS
    ]
    gaps = [[name, value] for name, value in sorted(dossier.missing.items(), key=lambda pair: -pair[1]) if value >= 0.001]
    blocks: list[Block] = [
        Grid(["part", "interval", "rows", "labels known", "classes", "SHA-256 of the rows"], parts),
        Facts(
            [
                ("labels known by", training.as_of),
                *_labels(training),
                ("features", f"{len(training.numeric)} numeric, {len(training.categorical)} categorical"),
                ("feature definitions", f"SHA-256 {dossier.record.features_digest}"),
                ("pinned as", training.pin),
            ]
        ),
        Grid(["table", "Iceberg snapshot"], [[table, str(snapshot)] for table, snapshot in training.snapshots.items()]),
    ]
    if gaps:
        blocks.append(
            Grid(["feature", "share missing in training data"], [[name, f"{value:.1%}"] for name, value in gaps[:MOST]])
        )
    return blocks


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "no rows"


def metrics(dossier: Dossier) -> Chapter:
    """The section with all metrics of all contenders on the same rows, with intervals."""
    evaluation = dossier.evaluation
    champion = evaluation.champion
    beside = [] if champion is None or dossier.record.is_refresh else [champion]
    contenders = [evaluation.candidate, *beside, *evaluation.baselines]
    known = METRICS[dossier.spec.task]
    measured = [metric for metric in known if any(metric in one.metrics for one in contenders)]
    rows = [
        [
            metric,
            "higher" if known[metric] else "lower",
            *(
                f"{number(one.metrics.get(metric))} {interval_of(one, metric)}".strip() if not one.error else "-"
                for one in contenders
            ),
        ]
        for metric in measured
    ]
    blocks: list[Block] = [
        Words(
            f"All are measured on the same {evaluation.rows:,} rows of {evaluation.interval}; none of them learned from these "
            f"rows. Brackets show {dossier.spec.gates.resampling.confidence:.0%} confidence intervals, resampled by blocks of "
            f"rows. The primary metric is {evaluation.metric}."
        ),
        Grid(["metric", "better is", *(called(one) for one in contenders)], rows),
    ]
    if evaluation.refresh is not None and (told := evaluation.whose_figures) is not None:
        blocks.insert(0, Words(told))
    blocks += answers(contenders)
    if errors := [f"{called(one)} could not predict: {one.error}" for one in contenders if one.error]:
        blocks.append(Points(errors))
    blocks += dossier.pictures(
        ("holdout/gain.png", "Uncertainty of the gain over the champion"),
        ("holdout/roc.png", "ROC curve on the holdout"),
        ("holdout/precision_recall.png", "Precision and recall on the holdout"),
    )
    return Chapter("Metrics", blocks, "metrics of the candidate on the holdout; it could not predict, or no label is known")


def answers(contenders: Sequence[Contender]) -> list[Block]:
    """What contenders answered, in figures that no gate judges; the first contender in detail."""
    told = [(called(one), one.answers) for one in contenders if one.answers is not None]
    if not told or contenders[0].answers is None:
        return []
    names, first = [name for name, _ in told], contenders[0].answers
    if first.pinball:
        left_out = f"; {first.zeros:,} rows whose label is 0 are left out of it" if first.zeros else ""
        rows: list[list[Any]] = [["MAPE", *("-" if one.mape is None else f"{one.mape:.1%}" for _, one in told)]]
        rows += [
            [f"pinball loss of the quantile {quantile}", *(number(one.pinball.get(quantile)) for _, one in told)]
            for quantile in first.pinball
        ]
        words = f"Figures that no gate judges. MAPE is the mean of |error| / |label|{left_out}."
        return [Words(words), Grid(["figure", *names], rows)]
    if first.threshold is None:
        rows = [[name, one.rows, one.precision, one.recall, one.f1] for name, one in list(first.by_class.items())[:MOST]]
        more = f" The {MOST} most frequent of {len(first.by_class):,} classes are shown." if len(first.by_class) > MOST else ""
        words = f"Figures that no gate judges: the classes of {called(contenders[0])}.{more}"
        return [Words(words), Grid(["class", "rows", "precision", "recall", "F1"], rows)]
    yes = [one.by_class.get("true") for _, one in told]
    rows = [["accuracy", *(number(one.accuracy) for _, one in told)]]
    rows += [
        [name, *(number(getattr(one, name.lower()) if one else None) for one in yes)] for name in ("precision", "recall", "F1")
    ]
    words = (
        f"Figures that no gate judges, with the answer true from a probability of {first.threshold:.3g} on "
        "(cost in model.yaml says from which; otherwise it is 0.5):"
    )
    confusion = [
        [f"actually {actual}", *(first.confusion.get(actual, {}).get(said, 0) for said in ("true", "false"))]
        for actual in ("true", "false")
    ]
    return [
        Words(words),
        Grid(["figure", *names], rows),
        Grid([f"rows of {called(contenders[0])}", "answered true", "answered false"], confusion),
    ]


def _compared_with(dossier: Dossier) -> str:
    decision = dossier.record.decision
    if decision.champion is None:
        return "no champion: it would be the first"
    if decision.champion_unusable is not None:
        return f"nothing: champion version {decision.champion} can never be used again ({decision.champion_unusable})"
    champion = dossier.evaluation.champion
    return "; ".join([f"champion version {decision.champion}", *(champion.remarks if champion else [])])


def called(contender: Contender) -> str:
    return f"champion, version {contender.version}" if contender.role == "champion" else f"{contender.name} ({contender.role})"


def slices(dossier: Dossier) -> Chapter:
    """The section with the comparison with the champion by slice."""
    found, columns = dossier.evaluation.slices, dossier.spec.gates.slices.columns
    wanted = f"the comparison by {', '.join(columns)}, which gates.slices.columns requires: train and evaluate again"
    if not columns:
        return Chapter("Slices", [Words("No slices are judged: model.yaml has no gates.slices.columns.")], wanted)
    if dossier.evaluation.refresh is not None:
        words = "A refresh is the champion's recipe with newer rows. It is not compared with the champion by slices."
        return Chapter("Slices", [Words(words)], wanted)
    if dossier.evaluation.champion is None:
        words = f"Slices by {', '.join(columns)} will be judged once there is a champion to compare with."
        return Chapter("Slices", [Words(words)], wanted)
    if not found:
        return Chapter("Slices", [], wanted)
    if not found.judged:
        return Chapter("Slices", [Words("No slice has enough rows to be judged:"), Points(found.not_judged[:MOST])], wanted)
    judged = sorted(found.judged, key=lambda one: one.gain)
    metric, margin = dossier.evaluation.metric, dossier.spec.gates.slices.margin
    rows = [
        [
            one.column,
            one.value,
            one.rows,
            one.candidate,
            one.champion,
            f"{one.gain:+.4g} ± {one.error:.2g}",
            Mark("better", "good") if one.gain > 0 else Mark("worse", "bad" if one.gain < -margin else "warn"),
        ]
        for one in judged[:MOST]
    ]
    words = f"{metric} of the candidate and the champion by slice, the largest loss first"
    more = f"; {len(judged) - MOST:,} more are in the evaluation in MLflow." if len(judged) > MOST else "."
    blocks: list[Block] = [
        Words(words + more),
        Grid(["column", "value", "rows", "candidate", "champion", "gain ± standard error", ""], rows),
        *dossier.pictures(("holdout/slices.png", "Gain over the champion by slice")),
    ]
    if found.not_judged:
        blocks += [Words("Not judged:"), Points(found.not_judged[:MOST])]
    return Chapter("Slices", blocks, wanted)


def _calibration(dossier: Dossier) -> list[Block]:
    evaluation, task = dossier.evaluation, dossier.spec.task
    if task == "regression":
        return [Words("Errors by prediction on the holdout."), dossier.picture("holdout/residuals.png", "Residuals")]
    if task == "multiclass_classification":
        return [
            Words("The confusion matrix on the holdout shows which classes are mistaken for which. Calibration is measured for "
                  "binary models only; log_loss above also reflects it."),
            dossier.picture("holdout/confusion.png", "Confusion matrix"),
        ]  # fmt: skip
    champion = evaluation.champion
    rows = [
        [
            name,
            *(
                f"{number(one.metrics.get(name))} {interval_of(one, name)}".strip()
                for one in (evaluation.candidate, champion)
                if one
            ),
        ]
        for name in ("calibration_error", "brier")
    ]
    predictions = evaluation.candidate.predictions
    trues = evaluation.classes.get("true", evaluation.classes.get("True"))
    return [
        Words("Calibration: of the rows with a predicted probability of 30 %, 30 % should be true."),
        Grid(["", "candidate", *(["champion"] if champion else [])], rows),
        Facts(
            [
                ("mean probability", predictions.mean if predictions else None),
                ("share of true labels", None if trues is None else share(trues, evaluation.rows)),
            ]
        ),
        dossier.picture("holdout/calibration.png", "Calibration on the holdout"),
    ]


def _importance(dossier: Dossier) -> list[Block]:
    importance = dossier.importance
    metric = dossier.evaluation.metric
    return [
        Words(f"How much worse {metric} is on the validation rows when a feature's values are shuffled. Correlated features "
              "share their importance."),
        Grid(["feature", f"drop of {metric}"], [[name, drop] for name, drop in list(importance.items())[:MOST]]),
        dossier.picture("validation/importance.png", "Permutation importance on the validation rows"),
    ]  # fmt: skip


def _probes(dossier: Dossier) -> Iterator[Chapter]:
    """The section with the additional tests: robustness, behaviour, groups, and operation. None without such tests."""
    evaluation, metric = dossier.evaluation, dossier.evaluation.metric
    blocks: list[Block] = []
    if robustness := evaluation.robustness:
        worst = sorted(
            {*robustness.noise, *robustness.missing},
            key=lambda name: abs(robustness.clean - robustness.missing.get(name, robustness.clean)),
            reverse=True,
        )
        blocks += [
            Words(f"{metric} is {number(robustness.clean)} on {robustness.rows:,} rows; with one feature made worse:"),
            Grid(
                ["feature", "with noise", "partly missing"],
                [[name, robustness.noise.get(name), robustness.missing.get(name)] for name in worst[:MOST]]
                or [["none", None, None]],
            ),
        ]  # fmt: skip
    if behaviour := evaluation.behaviour:
        rows = [
            [
                name,
                None if one.share is None else f"{one.share:.1%} of {one.rows:,} rows",
                one.problem or "as expected",
            ]
            for name, one in behaviour.items()
        ]
        blocks.append(Grid(["behaviour test", "behaved", "outcome"], rows))
    for groups in evaluation.groups or []:
        rates = [[name, rate] for name, rate in sorted(groups.rates.items(), key=lambda pair: pair[1])]
        if rates:
            blocks.append(Grid([groups.column, f"{groups.rate} at threshold {groups.threshold:.3g}"], rates))
        if groups.not_judged:
            blocks.append(Points([f"Too few rows to compare: {listed(groups.not_judged)}"]))
    if alone := evaluation.alone:
        best = sorted(alone.items(), key=lambda pair: -pair[1])[:5]
        blocks.append(Facts([("best single features", ", ".join(f"{name} {value:.3f}" for name, value in best))]))
    if operation := evaluation.operation:
        blocks.append(
            Facts(
                [
                    ("in a clean process", operation.problem or "it loads and predicts the same"),
                    ("milliseconds for 1,000 rows", operation.latency),
                    ("seconds to load", operation.load_seconds),
                    ("megabytes", operation.artifact_mb),
                ]
            )
        )
    if blocks:
        yield Chapter("Robustness and operation", blocks, "the results of these tests")


def gates(dossier: Dossier) -> Chapter:
    """The section with the result of each gate."""
    results = sorted(dossier.record.decision.results, key=lambda result: result.passed)
    rows = [
        [result.gate, Mark("passed", "good") if result.passed else Mark("refused", "bad"), result.reason] for result in results
    ]
    return Chapter(
        "Gates", [Grid(["gate", "", "what was measured, and what is required"], rows)], "results of the gates, in the ledger"
    )


def _code(dossier: Dossier) -> list[Block]:
    code, training = dossier.record.code, dossier.training
    dirty = code.dirty
    state = ", perhaps with uncommitted changes" if dirty is None else ", with uncommitted changes" if dirty else ""
    return [
        Facts(
            [
                ("commit", f"{code.commit}{state}"),
                ("candidate", training.candidate),
                ("parameters", ", ".join(f"{name} {value}" for name, value in training.params.items()) or "defaults"),
                ("weights of the rows", str(dossier.spec.training.weight or "all count the same")),
                ("seed", str(dossier.spec.training.seed)),
                ("Python", code.python),
                ("packages", code.packages or None),
                ("threads", code.threads or None),
                ("machine", code.machine),
                ("model folder", f"SHA-256 {dossier.record.spec_digest}"),
                ("MLflow run", dossier.run_url or dossier.record.mlflow_run_id),
                ("stored files", f"{len(dossier.record.manifest)}, each with its SHA-256 in the ledger"),
                ("to reproduce it", f"perennial reproduce {dossier.record.model} {dossier.record.version}"),
            ]
        )
    ]


def _lineage(dossier: Dossier) -> list[Block]:
    learned = training_set(dossier.history, dossier.record)
    rows: list[list[Any]] = []
    for node in learned.leads_to or [learned]:
        if node.kind == "missing":
            rows.append([f"not known: {node.name}", None, None])
        else:
            files = node.find("file")
            names = f"{len(files):,}: {files[0].name} … {files[-1].name}" if files else None
            rows.append([node.name, listed([str(run) for run in node.facts["runs"]]), names])
    return [
        Words("The publications that it learned from. To trace a single prediction, use "
              f"perennial lineage {dossier.record.model} --prediction KEY."),
        Grid(["what", "published by runs", "source files"], rows),
    ]  # fmt: skip
