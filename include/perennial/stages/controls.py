"""Controls: whether a model's gates refuse what they must, tried on its own newest version and rows; by hand alone.

Nothing is recorded, and nobody is promoted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from perennial.core.errors import TrainingError
from perennial.core.intervals import Interval
from perennial.stages.run import StageRun

if TYPE_CHECKING:
    import pyarrow as pa

    from perennial.evaluation.contest import Contest, Entrant
    from perennial.evaluation.controls import Control, Honest
    from perennial.evidence.training import TrainingSet
    from perennial.ledger.records import VersionRecord
    from perennial.spec.folder import ModelFolder

#: By how much of the area under the ROC curve the honest candidate is better than its rival, so that the gate on the champion
#: lets it pass, and the gates that are there for the faults are left to refuse them.
EDGE = 0.05
#: Honest improvements of these sizes are shown to the gates as well.
IMPROVEMENTS = (0.01, 0.03, EDGE)
#: How old the stale control is said to be.
_LONG_AGO = timedelta(days=365)


@dataclass(frozen=True)
class Tried:
    """What became of a control.

    Attributes:
        control: its name.
        gate: the gate that is there for it.
        refused_by: the gates that refused it.
        lacks: why it could not be tried; None if it was.
    """

    control: str
    gate: str
    refused_by: list[str]
    lacks: str | None = None


@dataclass(frozen=True)
class ControlsReport:
    """What a model's gates do with candidates whose right answer is known.

    Attributes:
        model, version: the model, and the version that the controls are made from.
        holdout: key of the interval that they are judged on.
        rows: labelled rows in it.
        negative: the controls that no gate may let pass.
        improvements: by how much of the ROC AUC an honest candidate is better than its rival, and the gates that refused it;
            empty where such a one cannot be made.
        task: of the model.
    """

    model: str
    version: int
    holdout: str
    rows: int
    negative: list[Tried]
    improvements: dict[float, list[str]]
    task: str

    @property
    def refuse_all(self) -> list[str]:
        """Gates that refuse the honest candidate too, so that their refusal of a control shows nothing."""
        return self.improvements.get(EDGE, [])

    @property
    def passed(self) -> list[str]:
        """The controls that no gate refused."""
        return [tried.control for tried in self.negative if tried.lacks is None and not tried.refused_by]

    @property
    def sound(self) -> bool:
        """Whether each control that could be tried was refused by a gate that does not refuse the honest candidate."""
        return all(tried.lacks is not None or set(tried.refused_by) - set(self.refuse_all) for tried in self.negative)

    def describe(self) -> str:
        """For people: a line for each control, and one for each honest improvement."""
        lines = [
            f"Made from {self.model} version {self.version}, and judged by the gates of model.yaml on its holdout "
            f"{self.holdout} ({self.rows:,} rows). Gates on operation are not asked: a control is not stored."
        ]
        lines += [f"{tried.control}: {self._words(tried)}" for tried in self.negative]
        lines += [
            f"an honest improvement of {by:g} in ROC AUC: {'refused by ' + ', '.join(refused) if refused else 'passes'}"
            for by, refused in self.improvements.items()
        ]
        if not self.improvements:
            lines.append(
                "an honest improvement: not shown, it can only be made for binary classification, and the task is "
                f"{self.task.replace('_', ' ')}. The rival of each control is the version itself"
            )
        if self.passed:
            lines.append(f"The gates of {self.model} let pass what they must refuse: {', '.join(self.passed)}")
        elif not self.sound:
            lines.append("Some gates refuse every candidate here, so it is not known whether the others would refuse these")
        return "\n".join(lines)

    def _words(self, tried: Tried) -> str:
        if tried.lacks is not None:
            return f"not shown, {tried.lacks}"
        if not tried.refused_by:
            return f"NOTHING refused it; {tried.gate} is there for it"
        own = [gate for gate in tried.refused_by if gate not in self.refuse_all]
        if not own:
            return f"refused by {', '.join(tried.refused_by)}, as an honest candidate is, which shows nothing"
        missed = "" if tried.gate in own else f", but not by {tried.gate}, which is there for it"
        return f"refused by {', '.join(own)}{missed}"


def try_gates(run: StageRun) -> ControlsReport:
    """Show controls to the gates that ``model.yaml`` describes now, whatever they were when the version was trained.

    Args:
        run: the run.

    Returns:
        What each gate said.

    Raises:
        TrainingError: there is no version yet, its features are others than those of the folder now, or its rows are gone.
        ArtifactRejected: its stored model cannot be loaded.
    """
    from perennial.evaluation.controls import NEGATIVE, improved

    record = _newest_version(run)
    pinned = record.training.training_set
    honest = _honest(run, record, pinned)
    binary = run.folder.spec.task == "binary_classification"
    rivals = {by: improved(honest, by) for by in IMPROVEMENTS} if binary else {}
    improvements = {by: _refused_by(contest) for by, contest in rivals.items()}
    if binary:
        honest = replace(honest, contest=rivals[EDGE])
    return ControlsReport(
        model=run.model,
        version=record.version,
        holdout=pinned.holdout,
        rows=honest.contest.rows.num_rows,
        negative=[_try(name, control, honest) for name, control in NEGATIVE.items()],
        improvements=improvements,
        task=run.folder.spec.task,
    )


def _try(name: str, control: Control, honest: Honest) -> Tried:
    if (lacks := control.lacks(honest)) is not None:
        return Tried(name, control.gate, [], lacks)
    try:
        contest = control.make(honest)
    except ValueError as error:  # scikit-learn's, of rows from which nothing can be learned
        return Tried(name, control.gate, [], f"it cannot be fitted: {error}")
    return Tried(name, control.gate, _refused_by(contest))


def _refused_by(contest: Contest) -> list[str]:
    """The gates that refuse a contest's candidate; whether it can be put to work is not asked."""
    from perennial.evaluation.contest import hold
    from perennial.evaluation.gates import decide

    decision = decide(hold(contest).evaluation, contest.folder.spec.gates)
    return [gate for gate in decision.refused_by if not gate.startswith("operation.")]


def _newest_version(run: StageRun) -> VersionRecord:
    versions = run.deployment.ledger.versions(run.model)
    if not versions:
        raise TrainingError(f"{run.model} has no version yet to make controls from: train first")
    return max(versions, key=lambda record: record.version)


def _honest(run: StageRun, record: VersionRecord, pinned: TrainingSet) -> Honest:
    """The version as a candidate against itself, on its pinned rows, judged as the folder says now."""
    from perennial.evaluation.contest import Contest
    from perennial.evaluation.controls import Honest
    from perennial.training.reproduce import open_folder
    from perennial.training.training_set import load_rows

    folder, deployment = run.folder, run.deployment
    with open_folder(record, folder, deployment.registry, []) as its_folder:
        if (its_folder.spec.task, its_folder.features_digest) != (folder.spec.task, folder.features_digest):
            raise TrainingError(
                f"{run.model}: features or task changed since version {record.version}, the newest, was trained: train again"
            )
        rows = replace(pinned, folder_digest=its_folder.digest)
        window, holdout = (load_rows(its_folder, deployment.lake, rows, part) for part in ("window", "holdout"))
    older, age = _oldest_quarter(folder, pinned, window)
    contest = Contest(
        folder=folder,
        interval=pinned.interval("holdout"),
        rows=holdout,
        rows_hash=pinned.content["holdout"],
        entities=pinned.entities["holdout"],
        as_of=pinned.as_of,
        training_classes=pinned.classes["window"],
        training_coverage=pinned.label_coverage("window"),
        candidate=_version(run, record, pinned, "candidate"),
        baselines=_baselines(folder, pinned, window),
        champion=_version(run, record, pinned, "champion"),
        run_id=run.qualified_id,
    )
    return Honest(contest, window, older, age)


def _oldest_quarter(folder: ModelFolder, pinned: TrainingSet, window: pa.Table) -> tuple[pa.Table, Interval]:
    """Rows for the stale control, and when they are said to be from: long before the holdout."""
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = pinned.interval("window")
    quarter = whole.length / 4
    moments = window.column(folder.spec.event_time)
    older = window.filter(pc.less(moments, pa.scalar(whole.start + quarter, moments.type)))
    end = pinned.interval("holdout").start - _LONG_AGO
    return older, Interval(end - quarter, end)


def _version(run: StageRun, record: VersionRecord, pinned: TrainingSet, role: str) -> Entrant:
    from functools import partial

    from perennial.evaluation.contest import Entrant
    from perennial.evidence.evaluation import Contender

    blank = Contender(
        name=f"version {record.version}",
        role="champion" if role == "champion" else "candidate",
        metrics={},
        rows=pinned.rows["holdout"],
        rows_hash=pinned.content["holdout"],
        predictions=None,
        version=record.version if role == "champion" else None,
        mlflow_run_id=record.mlflow_run_id,
        trained_on=pinned.window,
    )
    return Entrant(blank, partial(run.deployment.registry.load, run.model, record.version, spec=run.folder.spec))


def _baselines(folder: ModelFolder, pinned: TrainingSet, window: pa.Table) -> list[Entrant]:
    """The baselines of the folder, with the first of their parameters, fitted on the window."""
    import pyarrow as pa

    from perennial.evaluation.contest import Entrant
    from perennial.evidence.evaluation import Contender
    from perennial.model.artifacts import FeatureList, LoadedModel
    from perennial.model.estimators import combinations
    from perennial.model.labels import labels_of
    from perennial.training.fit import fit_estimator

    takes, truth = FeatureList.of(folder.spec), labels_of(window)
    frame = takes.frame(window)

    def entrant(name: str) -> Entrant:
        estimator = fit_estimator(folder, name, combinations(folder, name)[0], frame, truth)
        model = LoadedModel(name, None, folder.spec.task, takes, pinned.window, folder.features_digest, estimator, pa.table({}))
        rows, rows_hash = pinned.rows["holdout"], pinned.content["holdout"]
        blank = Contender(name, "baseline", {}, rows, rows_hash, None, trained_on=pinned.window)
        return Entrant(blank, lambda: model)

    return [entrant(name) for name, candidate in folder.spec.candidates.items() if candidate.baseline]
