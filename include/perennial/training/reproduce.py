"""Train a version again, from its pinned rows and its model folder, and check that it predicts the same.

The version is fitted again with the parameters that its search chose, the same seed and the same number of threads. Its
predictions on the holdout are compared, bit by bit, with those that the gates judged. If it serves a refit, that is made again,
too, and compared in the same way. Nothing is stored or published.

Neighbours: :mod:`perennial.training.training_set` reads the rows. :mod:`perennial.training.fit` fits, and keeps the folder's
files with each run. :mod:`perennial.reports.lineage` says where the rows came from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from threadpoolctl import threadpool_limits

from perennial.core.errors import ArtifactRejected, SnapshotMissing, TrainingError
from perennial.deployment import Deployment
from perennial.evidence.training import CodeState, Part, TrainingRecord, TrainingSet
from perennial.lake.publish import Lake
from perennial.ledger.records import VersionRecord
from perennial.model import artifacts
from perennial.model.artifacts import FeatureList, LoadedModel, Prediction
from perennial.model.estimators import fit_rows
from perennial.registry.folders import open_folder
from perennial.spec.folder import ModelFolder
from perennial.training.fit import code_state
from perennial.training.training_set import content_hash, load_all_rows, load_rows


@dataclass(frozen=True)
class Reproduction:
    """The result of training a version again.

    Attributes:
        holdout: key of the interval whose predictions are compared.
        rows: number of rows of the holdout.
        expected: :attr:`perennial.model.artifacts.Prediction.digest` of the predictions that the gates judged. If this was not
            recorded, as for old versions: the digest of what the stored model predicts now.
        found: the digest of what the new model predicts.
        differing: rows whose prediction differs from the stored model's in any bit; None if the stored model cannot be loaded.
        largest: largest difference of a probability, or of a predicted number; None as for ``differing``.
        refit_expected, refit_found: as ``expected`` and ``found``, of the model that serves; empty if it is the judged one.
        changes: differences between now and when the version was made; each may explain other predictions.
        notes: more remarks for people.
    """

    model: str
    version: int
    holdout: str
    rows: int
    expected: str
    found: str
    differing: int | None
    largest: float | None
    changes: list[str]
    notes: list[str]
    refit_expected: str = ""
    refit_found: str = ""

    @property
    def identical(self) -> bool:
        return self.expected == self.found and self.refit_expected == self.refit_found

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "identical": self.identical}

    def describe(self) -> str:
        """A few lines for people."""
        what = f"{self.model} version {self.version}, trained again on its pinned rows"
        where = f"on its holdout {self.holdout} ({self.rows:,} rows)"
        if self.expected == self.found:
            lines = [f"{what}, predicts the same to the last bit {where}: SHA-256 {self.found}"]
        else:
            lines = [f"{what}, predicts differently {where}: SHA-256 {self.found} instead of {self.expected}"]
            if self.differing is not None and self.largest is not None:
                lines.append(f"{self.differing:,} of {self.rows:,} predictions differ, by {self.largest:.3g} at most")
        if self.refit_expected:
            same = self.refit_expected == self.refit_found
            lines.append(
                "the model that serves, which learned from the holdout too, made again, predicts "
                + (f"the same: SHA-256 {self.refit_found}" if same else f"differently: SHA-256 {self.refit_found} instead of "
                f"{self.refit_expected}")
            )  # fmt: skip
        if not self.identical:
            reasons = self.changes or ["not recorded; check whether a function of model.py draws numbers without a seed"]
            lines += [f"likely reason: {reason}" for reason in reasons]
        lines += [f"a change without effect: {change}" for change in self.changes if self.identical]
        return "\n".join([*lines, *self.notes])


def reproduce(model: str, version: int, deployment: Deployment, *, folder: ModelFolder | None) -> Reproduction:
    """Train a version again, and compare its predictions.

    Args:
        model: the model's name.
        version: the version's number.
        deployment: contains the pinned rows, the stored model, and the files of the version's model folder.
        folder: the model's folder as it is now, used if the version was made with it; None if there is none.

    Raises:
        TrainingError: there is no such version, its rows have changed, or its folder is gone.
        SnapshotMissing: the snapshots of its rows were deleted.
        ArtifactRejected: the folder's files in MLflow are not those that the version was made with.
    """
    lake, ledger, registry = deployment.lake, deployment.ledger, deployment.registry
    record = ledger.version(model, version)
    if record is None:
        known = ", ".join(str(other.version) for other in ledger.versions(model)) or "none"
        raise TrainingError(f"{model} has no version {version} in the ledger; there are: {known}")
    if erased := [one for one in ledger.erasures(model) if version in one.versions.get("unpinned", [])]:
        raise TrainingError(
            f"{model} version {version} cannot be made again: rows that it was trained on were erased on "
            f"{erased[0].asked_at:%Y-%m-%d} (erasure {erased[0].id}, perennial forget)"
        )
    training = record.training
    notes: list[str] = []
    with open_folder(record, folder, registry, notes) as its_folder:
        # open_folder has compared the folder already.
        training_set = replace(training.training_set, folder_digest=its_folder.digest)
        takes = FeatureList(tuple(training.numeric), tuple(training.categorical))
        with _threads_of(record):
            changes = _changes(record.code, code_state(folder or its_folder))
            holdout = _rows(its_folder, lake, training_set, "holdout")
            unseen = takes.frame(holdout)
            refit = record.evaluation.refit
            served = None if refit is None else _refit_again(its_folder, lake, record, takes, unseen)
            if record.is_refresh and refit is not None and served is not None:
                # Its judged model is another version's. What was made is the model that serves.
                again, recorded, refit = served, refit.digest or None, None
                stored = _stored(registry.load, record, holdout, notes)
            else:
                again = _fit_and_predict(its_folder, training, takes, _rows(its_folder, lake, training_set, "window"), unseen)
                judged = record.evaluation.candidate.predictions
                recorded = judged.digest if judged is not None else None
                stored = _stored(registry.load_judged, record, holdout, notes)
    if recorded is None and stored is None:
        raise TrainingError(
            f"{model} version {version} cannot be compared, because its predictions were not recorded: {'; '.join(notes)}"
        )
    if recorded is not None and stored is not None and recorded != stored.digest:
        notes.append(
            "the stored model, too, predicts differently here than when the gates judged it: the cause is not the training"
        )
    differing, largest = _compare(again, stored) if stored is not None else (None, None)
    return Reproduction(
        model=model,
        version=version,
        holdout=training_set.holdout,
        rows=holdout.num_rows,
        expected=recorded if recorded is not None else stored.digest if stored is not None else "",
        found=again.digest,
        differing=differing,
        largest=largest,
        changes=changes,
        notes=notes,
        refit_expected=refit.digest if refit is not None else "",
        refit_found=served.digest if refit is not None and served is not None else "",
    )


def _fit_and_predict(
    folder: ModelFolder, training: TrainingRecord, takes: FeatureList, rows: pa.Table, unseen: pd.DataFrame
) -> Prediction:
    estimator = fit_rows(folder, training.candidate, training.params, rows, takes)
    return artifacts.predict(folder.spec.task, estimator, unseen)


def _refit_again(
    folder: ModelFolder, lake: Lake, record: VersionRecord, takes: FeatureList, unseen: pd.DataFrame
) -> Prediction:
    refit, training_set = record.evaluation.refit, record.training.training_set
    assert refit is not None
    with _kept(folder):
        _, rows = load_all_rows(folder, lake, training_set)
    if content_hash(rows) != refit.content:
        raise TrainingError(
            f"{record.model}: the rows of {refit.interval} are not those that version {record.version} learned from, although "
            "the snapshots are the same: somebody changed the lake's files by hand"
        )
    return _fit_and_predict(folder, record.training, takes, rows, unseen)


@contextmanager
def _threads_of(record: VersionRecord) -> Iterator[None]:
    with threadpool_limits(limits=record.code.threads or None):
        yield


def _rows(folder: ModelFolder, lake: Lake, training_set: TrainingSet, part: Part) -> pa.Table:
    with _kept(folder):
        return load_rows(folder, lake, training_set, part)


@contextmanager
def _kept(folder: ModelFolder) -> Iterator[None]:
    """Say how long the rows of a version are kept, if they no longer are."""
    try:
        yield
    except SnapshotMissing as error:
        raise SnapshotMissing(
            f"{error}. The rows of a version are kept while it is champion or among the newest retention.versions "
            f"({folder.spec.retention.versions})"
        ) from error


def _stored(
    load: Callable[[str, int], LoadedModel], record: VersionRecord, holdout: Any, notes: list[str]
) -> Prediction | None:
    """What the stored model predicts on the holdout. If the model cannot be loaded: None, and a note is added."""
    try:
        return load(record.model, record.version).predict(holdout)
    except ArtifactRejected as error:
        notes.append(f"the stored model cannot be loaded, so rows cannot be compared one by one: {error}")
        return None


def _compare(again: Prediction, stored: Prediction) -> tuple[int, float | None]:
    """The number of rows that differ, and the largest difference; None if the shapes or classes differ."""
    ours, its = (one.values if one.probabilities is None else one.probabilities for one in (again, stored))
    if ours.shape != its.shape or again.classes != stored.classes:
        return len(again), None
    distance = np.abs(ours - its).reshape(len(ours), -1)
    return int((distance != 0).any(axis=1).sum()), float(distance.max(initial=0.0))


def _changes(then: CodeState, now: CodeState) -> list[str]:
    """The differences between two results of :func:`perennial.training.fit.code_state`."""
    changes = [
        f"{what} was {before}, it is {after}"
        for what, before, after in (
            ("the commit", then.commit, now.commit),
            ("Python", then.python, now.python),
            ("the machine's architecture", then.machine, now.machine),
        )
        if before != after
    ]
    changes += [
        f"the code had uncommitted changes {when}" for when, state in (("when it was made", then), ("now", now)) if state.dirty
    ]
    changes += [
        f"{package} was {then.packages.get(package, 'unknown')}, it is {now.packages.get(package, 'gone')}"
        for package in sorted({*then.packages, *now.packages})
        if then.packages.get(package) != now.packages.get(package)
    ]
    if not then.threads:
        changes.append("the number of threads that computed it is not recorded")
    elif then.threads != now.threads or max(then.threads.values()) > (os.cpu_count() or 1):
        changes.append(f"it was computed with threads {then.threads}, this process has {now.threads}")
    return changes
