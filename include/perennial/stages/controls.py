"""Controls: test whether a model's gates refuse bad candidates, made from its newest version and rows; only run by hand.

Nothing is recorded or promoted.
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

#: How much better than its rival the honest candidate is, in area under the ROC curve. With this gain, the gate on the champion
#: lets it pass, so only the gates for particular faults can refuse a control.
EDGE = 0.05
#: Gains of the honest candidates that the gates are tried on too.
IMPROVEMENTS = (0.01, 0.03, EDGE)
#: How long before the holdout the rows of the stale control claim to end.
_LONG_AGO = timedelta(days=365)


@dataclass(frozen=True)
class Tried:
    """The result of one control.

    Attributes:
        control: the control's name.
        gate: the gate that is meant to refuse the control.
        refused_by: the gates that refused the control.
        lacks: why the control could not be tried; None if it was tried.
    """

    control: str
    gate: str
    refused_by: list[str]
    lacks: str | None = None


@dataclass(frozen=True)
class ControlsReport:
    """What a model's gates do with candidates for which the right decision is known.

    Attributes:
        model, version: the model, and the version that the controls are made from.
        holdout: key of the interval that the controls are judged on.
        rows: number of labelled rows in this interval.
        negative: the controls that the gates must refuse.
        improvements: the gates that refused an honest candidate, by its gain in ROC AUC over its rival; empty if no such
            candidate can be made.
        task: the model's task.
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
        """Gates that also refuse the honest candidate. Their refusal of a control shows nothing."""
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
        """A text for people: one line per control, and one line per honest improvement."""
        lines = [
            f"Made from {self.model} version {self.version}, and judged by the gates of model.yaml on its holdout "
            f"{self.holdout} ({self.rows:,} rows). Gates on operation are not tried, because a control is not stored."
        ]
        lines += [f"{tried.control}: {self._words(tried)}" for tried in self.negative]
        lines += [
            f"an honest improvement of {by:g} in ROC AUC: {'refused by ' + ', '.join(refused) if refused else 'passes'}"
            for by, refused in self.improvements.items()
        ]
        if not self.improvements:
            lines.append(
                "an honest improvement: not tried, because it needs binary classification, and the task is "
                f"{self.task.replace('_', ' ')}. The rival of each control is the version itself"
            )
        if self.passed:
            lines.append(f"The gates of {self.model} passed candidates that they must refuse: {', '.join(self.passed)}")
        elif not self.sound:
            lines.append("Some gates refuse every candidate here, so this does not show whether the others would refuse these")
        return "\n".join(lines)

    def _words(self, tried: Tried) -> str:
        if tried.lacks is not None:
            return f"not tried: {tried.lacks}"
        if not tried.refused_by:
            return f"NO GATE refused it; {tried.gate} should have refused it"
        own = [gate for gate in tried.refused_by if gate not in self.refuse_all]
        if not own:
            return f"refused by {', '.join(tried.refused_by)}, as is an honest candidate, so this shows nothing"
        missed = "" if tried.gate in own else f", but not by {tried.gate}, which is meant for it"
        return f"refused by {', '.join(own)}{missed}"


def try_gates(run: StageRun) -> ControlsReport:
    """Try the gates on controls. The gates are those in ``model.yaml`` now, not those of the version's training.

    Args:
        run: the run.

    Returns:
        The result of each control.

    Raises:
        TrainingError: there is no version yet, the folder's features have changed since its training, or its rows are gone.
        ArtifactRejected: the version's stored model cannot be loaded.
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
    """The gates that refuse a contest's candidate; gates on operation are left out."""
    from perennial.evaluation.contest import hold
    from perennial.evaluation.gates import decide

    decision = decide(hold(contest).evaluation, contest.folder.spec.gates)
    return [gate for gate in decision.refused_by if not gate.startswith("operation.")]


def _newest_version(run: StageRun) -> VersionRecord:
    versions = run.deployment.ledger.versions(run.model)
    if not versions:
        raise TrainingError(f"{run.model} has no version yet, and controls are made from a version: train first")
    return max(versions, key=lambda record: record.version)


def _honest(run: StageRun, record: VersionRecord, pinned: TrainingSet) -> Honest:
    """A contest of the version with itself, on its pinned rows, with the gates of the present folder."""
    from perennial.evaluation.contest import Contest
    from perennial.evaluation.controls import Honest
    from perennial.registry.folders import open_folder
    from perennial.training.training_set import features_without_values, load_rows

    folder, deployment = run.folder, run.deployment
    with open_folder(record, folder, deployment.registry, []) as its_folder:
        if (its_folder.spec.task, its_folder.features_digest) != (folder.spec.task, folder.features_digest):
            raise TrainingError(
                f"{run.model}: features or task changed after the newest version, {record.version}, was trained: train again"
            )
        rows = replace(pinned, folder_digest=its_folder.digest)
        window, holdout = (load_rows(its_folder, deployment.lake, rows, part) for part in ("window", "holdout"))
    # A release that did not look at it yet may have pinned them.
    pinned = replace(pinned, without_values=features_without_values(folder.spec, window))
    older, age = _oldest_quarter(folder, pinned, window)
    contest = Contest.on_holdout(
        folder,
        pinned,
        holdout,
        candidate=_version(run, record, pinned, "candidate"),
        baselines=_baselines(folder, pinned, window),
        champion=_version(run, record, pinned, "champion"),
        run_id=run.qualified_id,
    )
    return Honest(contest, window, older, age)


def _oldest_quarter(folder: ModelFolder, pinned: TrainingSet, window: pa.Table) -> tuple[pa.Table, Interval]:
    """Rows for the stale control, and the interval that they claim to be from, which ends long before the holdout."""
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
    """The folder's baselines, each fitted on the window with its first combination of parameters."""
    import pyarrow as pa

    from perennial.evaluation.contest import Entrant
    from perennial.evidence.evaluation import Contender
    from perennial.model.artifacts import FeatureList, LoadedModel
    from perennial.model.estimators import combinations, fit_rows

    takes = FeatureList.of(folder.spec)

    def entrant(name: str) -> Entrant:
        estimator = fit_rows(folder, name, combinations(folder, name)[0], window, takes)
        model = LoadedModel(name, None, folder.spec.task, takes, pinned.window, folder.features_digest, estimator, pa.table({}))
        rows, rows_hash = pinned.rows["holdout"], pinned.content["holdout"]
        blank = Contender(name, "baseline", {}, rows, rows_hash, None, trained_on=pinned.window)
        return Entrant(blank, lambda: model)

    return [entrant(name) for name, candidate in folder.spec.candidates.items() if candidate.baseline]
