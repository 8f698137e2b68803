"""Which calibrated thresholds judge a version: those of ``drift.yaml``, or those that monitoring calibrates itself.

Thresholds fit the version that they were made for, and its refreshes. A version that was trained anew learned from other rows,
and other windows are usual for it. So ``drift.yaml`` becomes stale when one becomes champion, which every verdict then says.
With ``drift: {calibrate: auto}`` its first window calibrates from what was published when the window begins. The verdict keeps
the thresholds that it was made by, and later windows take them from there: nothing else is stored, and a window that is judged
again is judged by the same ones (``docs/decisions/0092-a-column-costs-itself-and-a-champion-is-calibrated.md``).

Neighbours: :mod:`perennial.drift.thresholds` calibrates; :mod:`perennial.monitoring.verdicts` judges and records.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from pydantic import ValidationError

from perennial.core.errors import CalibrationError, PerennialError
from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.drift import thresholds as calibration
from perennial.ledger.records import Verdict, VersionRecord
from perennial.spec.folder import ModelFolder
from perennial.spec.monitoring import DriftThresholds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibrated:
    """The thresholds by which a version is judged.

    Attributes:
        thresholds: None if those of ``model.yaml`` hold.
        own: whether monitoring has calibrated them, so that the verdict keeps them.
        said: what people must know of them; empty if nothing.
    """

    thresholds: DriftThresholds | None = None
    own: bool = False
    said: str = ""


@dataclass
class Calibrations:
    """The thresholds for the versions of one window. Each training is calibrated once, its refreshes included.

    Attributes:
        folder: the model's folder.
        deployment: has the history.
        interval: the monitoring window.
    """

    folder: ModelFolder
    deployment: Deployment
    interval: Interval
    _known: dict[int, Calibrated] = field(default_factory=dict)

    def of(self, version: int) -> Calibrated:
        """The thresholds for a version. What fails while calibrating is said, and those of the files hold."""
        if version not in self._known:
            self._known[version] = self._find(version)
        return self._known[version]

    def _find(self, version: int) -> Calibrated:
        spec, ledger = self.folder.spec, self.deployment.ledger
        given = self.folder.thresholds
        versions = ledger.versions(spec.name)
        stale = stale_thresholds(spec.name, given, version, versions)
        if spec.drift.calibrate != "auto" or (given is not None and not stale):
            return Calibrated(given, said=stale)
        if (
            kept := kept_thresholds(self.folder, ledger.verdicts(spec.name, before=self.interval.end), version, versions)
        ) is not None:
            return Calibrated(kept, own=True)
        try:
            made = self._calibrate(version)
        except PerennialError as error:
            log.warning("%s version %s could not be calibrated: %s", spec.name, version, error)
            reason = f"thresholds are not calibrated for version {version} yet (drift.calibrate): {error}"
            # Stale thresholds raise alarms that mean nothing; those of model.yaml at least depend on no other version.
            return Calibrated(None, said=reason)
        return Calibrated(made, own=True, said=said_of(made))

    def _calibrate(self, version: int) -> DriftThresholds:
        """From what was published when the window begins: since the version's training window began, if that is enough."""
        spec = self.folder.spec
        geometry = calibration.Geometry.of(spec)
        history = self._history(version, calibration.LEAST_WINDOWS * timedelta(days=geometry.window))
        rows = calibration.read_history(self.folder, self.deployment, history, version)
        return calibration.calibrate(spec.drift, geometry, rows, seed=spec.training.seed)

    def _history(self, version: int, least: timedelta) -> Interval | None:
        """Days before the window. Older days than the version learned from count only if there are too few others."""
        spec, ledger = self.folder.spec, self.deployment.ledger
        there = [one.interval for one in ledger.publications(spec.name, "features") if one.interval.start < self.interval.start]
        if not there:
            raise CalibrationError("no features are published before the window")
        first = min(one.start for one in there)
        record = ledger.version(spec.name, version)
        learned = record.training.interval("window").start if record is not None and record.training.window else first
        start = max(first, learned)
        return Interval(start if self.interval.start - start >= least else first, self.interval.start)


def trained_as(version: int, versions: Sequence[VersionRecord]) -> int:
    """The version itself if it was trained; if it is a refresh, the trained version whose refresh it is, over all between.

    Args:
        version: the version.
        versions: all versions of the model.
    """
    by_number = {record.version: record for record in versions}
    while (record := by_number.get(version)) is not None and record.evaluation.refresh is not None:
        if (before := record.evaluation.refresh.champion) >= version:  # never written so
            break
        version = before
    return version


def stale_thresholds(model: str, given: DriftThresholds | None, version: int, versions: Sequence[VersionRecord]) -> str:
    """That ``drift.yaml`` was made for another version than this one or one that it refreshes, with what to do; empty if not.

    Args:
        model: the model.
        given: what ``drift.yaml`` says; None if there is none.
        version: the version that is judged.
        versions: all versions of the model.
    """
    if given is None or given.version is None or trained_as(given.version, versions) == trained_as(version, versions):
        return ""
    return (
        f"drift.yaml was calibrated for version {given.version}, and version {version} was trained on other rows, for which "
        f"other windows may be usual: run `perennial calibrate {model}` and review the diff, or write drift: "
        "{calibrate: auto}"
    )


def kept_thresholds(
    folder: ModelFolder, verdicts: Sequence[Verdict], version: int, versions: Sequence[VersionRecord]
) -> DriftThresholds | None:
    """The thresholds that the newest verdict on a version or its refreshes was made by; None if none fit the folder.

    Args:
        folder: the model's folder as it is now.
        verdicts: verdicts on earlier windows and this one, the newest first.
        version: the version that is judged.
        versions: all versions of the model.
    """
    spec, trained = folder.spec, trained_as(version, versions)
    needed = {*spec.features.names, "prediction"}
    for verdict in verdicts:
        if verdict.details.thresholds is None or verdict.version is None:
            continue
        if trained_as(verdict.version, versions) != trained:
            continue
        try:
            kept = DriftThresholds.model_validate(verdict.details.thresholds)
        except ValidationError:  # of another release
            continue
        fits = (kept.window, kept.match, kept.false_alarms) == (
            spec.schedules.monitor,
            spec.drift.match,
            spec.drift.false_alarms,
        )
        if fits and set(kept.columns) == needed:
            return kept
    return None


def said_of(made: DriftThresholds) -> str:
    """What thresholds were made of, and which of them say little."""
    said = [f"thresholds were calibrated for version {made.version} from {made.history}"]
    if made.wide:
        said.append(f"too wide ever to alarm: {', '.join(made.wide)}")
    if made.constant:
        said.append(f"one value in all of history: {', '.join(made.constant)}")
    return "; ".join(said)
