"""The champions in memory: loaded by the verified path, tried, and swapped when the ledger names others.

A version serves only if its files are those of the ledger's manifest, and if it answers to its example what it answered when
it was stored. Otherwise the version that serves goes on, and people are told. The former champion stays in memory, so that the
way back takes no time.

Neighbours: :mod:`perennial.registry.versions` loads; :mod:`perennial.serving.batching` predicts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from numpy.typing import NDArray

from perennial.alerts import of_models
from perennial.alerts.alert import served_online
from perennial.core import logs
from perennial.core.errors import NotAnswered, PerennialError, ScoringError, SpecError, VersionUnusable
from perennial.core.text import one_line
from perennial.deployment import Deployment
from perennial.model.artifacts import ANSWER, LoadedModel, Prediction, predict
from perennial.registry.folders import own_folder
from perennial.serving.compiled import Assemble, compiled
from perennial.serving.online_table import Place, place_of
from perennial.spec.folder import ModelFolder
from perennial.spec.operation import Online

log = logging.getLogger(__name__)

#: How often the ledger is asked who is champion, and after how long a version that could not be loaded is tried again.
EVERY, AGAIN = timedelta(seconds=1), timedelta(seconds=15)
#: Without an answer of the ledger for this long, answers are marked as degraded.
DEGRADED = timedelta(seconds=10)
#: A fault that may pass, such as an MLflow that does not answer, is reported after this long.
PATIENCE = timedelta(seconds=30)

#: How far an answer may lie from the one that was stored: another processor adds in another order.
SAME_ANSWER = 1e-9

#: Fewest rows that are predicted at once, tried in this order: libraries of linear algebra compute one row, or a few, by other
#: steps than many, and the last bit may differ. Missing rows are copies.
_FEWEST = (1, 2, 8, 32)
#: Rows that this is tried with, alone and in groups of these sizes, against all of the sample together.
_TRIED, _GROUPS = 24, (1, 2, 3, 5)
_SAMPLE = 256


@dataclass(frozen=True)
class Served:
    """A version that answers.

    Attributes:
        model: the model's name.
        loaded: the version, with its features and its estimator.
        fewest: fewest rows that it is given at once.
        exact: whether a row gets the same bits alone and among others, as far as it was tried.
        folder: the folder that makes its features; None if that is not known.
        online: what can be asked by key, from the model's present folder; None: nothing.
        fast: its preprocessing without pandas, and its estimator; None if there is none that gives the same bits.
    """

    model: str
    loaded: LoadedModel
    fewest: int
    exact: bool
    folder: ModelFolder | None = None
    online: Online | None = None
    fast: tuple[Assemble, Any] | None = None

    @property
    def name(self) -> str:
        """For messages, such as ``flight_delay version 3``."""
        return self.loaded.name

    @property
    def version(self) -> int:
        assert self.loaded.version is not None  # only registered versions serve
        return self.loaded.version

    @cached_property
    def stored(self) -> Place | None:
        """Where its rows of features are that can be asked by key; None if the model cannot be asked so."""
        return None if self.folder is None or self.online is None else place_of(self.folder)

    @cached_property
    def features_digest(self) -> str | None:
        """Of the folder that makes its features; None if that is not known. To compute it takes a millisecond."""
        return None if self.folder is None else self.folder.features_digest

    @property
    def key(self) -> pa.Schema | None:
        """The columns of an entity's key, with their types in the lake; None if the model cannot be asked by key."""
        return None if self.stored is None else self.stored.key

    def predict(self, columns: Mapping[str, Sequence[Any]], count: int) -> Prediction:
        """Predictions for rows, cast as the batch casts them.

        Args:
            columns: by feature, ``count`` numbers or texts; None where a value is missing.
            count: number of rows, at least one.

        Raises:
            ScoringError: see :meth:`perennial.model.artifacts.LoadedModel.predict`.
        """
        if self.fast is not None:
            assemble, estimator = self.fast
            return predict(self.loaded.task, estimator, assemble(columns, count))
        takes, more = self.loaded.takes, max(0, self.fewest - count)
        kinds = {**dict.fromkeys(takes.numeric, pa.float64()), **dict.fromkeys(takes.categorical, pa.string())}
        rows = pa.table({name: pa.array([*columns[name], *[columns[name][-1]] * more], kind) for name, kind in kinds.items()})
        return self.loaded.predict(rows)[:count]


def load(deployment: Deployment, model: str, version: int) -> Served:
    """Load a version by the verified path, and try it.

    Raises:
        VersionUnusable, ArtifactRejected, ScoringError, SpecError: it cannot serve.
    """
    folder, registry = deployment.model(model), deployment.registry
    tried = prepare(model, registry.load(model, version, spec=folder.spec))
    return replace(tried, folder=own_folder(registry, version, folder).folder, online=folder.spec.online)


def prepare(name: str, model: LoadedModel) -> Served:
    """Try a loaded version: let it answer its example, and find out how many rows it must get at once.

    Args:
        name: of the model.
        model: the version.

    Raises:
        VersionUnusable: it answers otherwise than it did when it was stored.
        ScoringError: it does not answer.
    """
    if model.example.num_rows:
        answers = model.predict(model.example).numbers
        stored = np.asarray(model.example[ANSWER].to_pylist(), dtype=np.float64)
        if answers.shape != stored.shape or not np.allclose(
            answers, stored, rtol=SAME_ANSWER, atol=SAME_ANSWER, equal_nan=True
        ):
            raise VersionUnusable(
                f"{model.name} answers otherwise than when it was stored: other packages or another machine compute otherwise"
            )
    sample = model.reference() if model.reference().num_rows else model.example
    if not sample.num_rows:
        return Served(name, model, 1, exact=False)
    sample = sample.slice(0, _SAMPLE).select(model.features)
    rows = {name: sample[name].to_pylist() for name in sample.column_names}
    together = model.predict(sample).numbers
    for fewest in _FEWEST:
        served = Served(name, model, fewest, exact=True)
        if all(np.array_equal(part, together[place], equal_nan=True) for place, part in _in_parts(served, rows, len(together))):
            return _faster(served, rows, len(together))
    log.warning("%s gives rows that are asked alone other last bits than in the batch", model.name)
    return Served(name, model, 1, exact=False)


def _faster(served: Served, rows: Mapping[str, list[Any]], count: int) -> Served:
    """The version with its compiled form, if it has one that gives the same bits: for the sample as it is, with categories that
    the version does not know, with columns that are missing, and for rows alone.
    """
    loaded = served.loaded
    try:
        fast = replace(served, fast=compiled(loaded.estimator, loaded.takes))
        tries = [rows, {**rows, **dict.fromkeys(loaded.takes.categorical, ["never seen"] * count)}]
        tries += [{**rows, name: [None] * count} for name in loaded.features]
        if served.fewest > 1 or fast.fast is None:
            return served
        same = all(np.array_equal(fast.predict(one, count).numbers, served.predict(one, count).numbers) for one in tries)
        parts = zip(_in_parts(fast, rows, count), _in_parts(served, rows, count), strict=True)
        return fast if same and all(np.array_equal(ours, its) for (_, ours), (_, its) in parts) else served
    # Its preprocessing is of a kind that cannot be compiled; the version serves as it is.
    except (ScoringError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        log.info("%s is served without a compiled form: %s", served.name, type(error).__name__)
        return served


def _in_parts(served: Served, rows: Mapping[str, list[Any]], count: int) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    tried = min(_TRIED, count)
    for size in _GROUPS:
        for start in range(0, tried, size):
            place = slice(start, min(start + size, tried))
            part = {name: values[place] for name, values in rows.items()}
            yield place, served.predict(part, place.stop - place.start).numbers


@dataclass(frozen=True)
class _Trouble:
    version: int
    since: float
    tried: float


class Champions:
    """The champion of each model, kept in line with the ledger by :meth:`look`.

    Readers and the thread that looks share it: what they read is replaced as a whole, in one assignment.

    Args:
        deployment: ledger, registry and model folders.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._served: dict[str, Served] = {}
        self._former: dict[str, Served] = {}
        self._standing: dict[str, int] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._since: dict[str, datetime | None] = {}
        self._read: dict[str, object] = {}
        self._seen: float | None = None
        self._silent = False
        self._changing = threading.Lock()
        self._loading: dict[str, Future[None]] = {}
        # Loading may wait long for an MLflow that does not answer; looks at the ledger go on meanwhile.
        self._loader = ThreadPoolExecutor(2, thread_name_prefix="loader")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="champions", daemon=True)

    @property
    def served(self) -> Mapping[str, Served]:
        """The version that answers now, by model."""
        return self._served

    @property
    def seconds(self) -> float | None:
        """Seconds since the ledger last said who is champion; None before it did."""
        seen = self._seen
        return None if seen is None else time.monotonic() - seen

    @property
    def degraded(self) -> bool:
        """Whether the ledger has not answered for :data:`DEGRADED`."""
        seconds = self.seconds
        return seconds is None or seconds > DEGRADED.total_seconds()

    def since(self, model: str) -> datetime | None:
        """When the version that answers became champion; None if that is not known."""
        return self._since.get(model)

    def in_memory(self, model: str, version: int) -> Served | None:
        """A version that serves or has served before; None if it is not in memory."""
        found = (self._served.get(model), self._former.get(model))
        return next((one for one in found if one is not None and one.version == version), None)

    def of(self, model: str) -> Served:
        """The version that answers for a model. Ask once per request.

        Raises:
            NotAnswered: the model has no champion, or its champion is not in memory yet.
        """
        found = self._served.get(model)
        if found is not None:
            return found
        if model in self._standing or self._seen is None:
            raise NotAnswered(f"the champion of {model} is not loaded yet; try again soon", status=503, retry_after=2)
        raise NotAnswered(f"no model with a champion is named {model}", status=404)

    def start(self) -> None:
        """Look once, and from then on every second in a thread."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """End the threads."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._loader.shutdown(wait=False, cancel_futures=True)

    def wait(self) -> None:
        """Wait until the versions that the last look has begun to load are loaded, or have failed."""
        for loading in list(self._loading.values()):
            loading.result()

    def _watch(self) -> None:
        while not self._stopping.wait(EVERY.total_seconds()):
            self.look()

    def look(self) -> None:
        """Ask the ledger who is champion, and begin to load those who are not served yet.

        It raises nothing: what serves goes on. A former champion that is still in memory serves when this returns.
        """
        try:
            standings, _ = self._deployment.ledger.standings(opened_before=datetime.now(UTC))
        except (sa.exc.SQLAlchemyError, PerennialError) as error:
            if not self._silent:
                # Its text may name the address.
                log.warning("the ledger does not answer (%s); the known champions go on", type(error).__name__)
            self._silent = True
            return
        if self._silent:
            self._silent = False
            log.info("the ledger answers again")
        self._standing = {model: version for model, version in standings.items() if version is not None}
        self._seen = time.monotonic()
        with self._changing:
            if gone := self._served.keys() - self._standing.keys():
                self._served = {model: served for model, served in self._served.items() if model not in gone}
                log.info("no longer served, since they have no champion: %s", ", ".join(sorted(gone)))
        for model, version in self._standing.items():
            now, former = self._served.get(model), self._former.get(model)
            if now is not None and now.version == version:
                if model in self._troubles:  # the ledger names the former champion again
                    self._is_well(model, version)
            elif former is not None and former.version == version:
                self._swap(model, former)
            elif self._is_due(model, version):
                self._loading[model] = self._loader.submit(self._bring, model, version)
            self._follow_folder(model)

    def _is_due(self, model: str, version: int) -> bool:
        loading, trouble = self._loading.get(model), self._troubles.get(model)
        if loading is not None and not loading.done():
            return False
        return trouble is None or trouble.version != version or time.monotonic() - trouble.tried >= AGAIN.total_seconds()

    def _follow_folder(self, model: str) -> None:
        """Let a change of `online` in the model's folder count for the versions in memory."""
        if model not in self._served:
            return
        try:
            file = (self._deployment.settings.models / model / "model.yaml").stat()
        except OSError:  # the folder is away, or is being replaced; what was read goes on
            return
        seen = (file.st_ino, file.st_size, file.st_mtime_ns)
        if self._read.get(model) == seen:
            return
        self._read[model] = seen
        try:
            online = self._deployment.model(model).spec.online
        except (PerennialError, OSError) as error:
            log.warning("%s: its folder cannot be read (%s); what can be asked stays as it was", model, type(error).__name__)
            return
        with self._changing:
            now, former = self._served.get(model), self._former.get(model)
            if former is not None and former.online != online:
                self._former[model] = replace(former, online=online)
            if now is not None and now.online != online:
                self._served = {**self._served, model: replace(now, online=online)}
                log.info("%s: `online` of its model.yaml has changed, and counts from now on", model)

    def _bring(self, model: str, version: int) -> None:
        """Load a version and let it serve. If that fails, what serves goes on."""
        with logs.context(model=model, version=version):
            began = time.monotonic()
            try:
                served = load(self._deployment, model, version)
            # Whatever is wrong with the new version or its store, the old one goes on.
            except Exception as error:
                before = self._troubles.get(model)
                since = before.since if before is not None and before.version == version else began
                self._troubles[model] = _Trouble(version, since, time.monotonic())
                self._has_failed(model, version, error, lasting=time.monotonic() - since)
                return
            # While it was loaded, the ledger may have named another one.
            if self._standing.get(model) == version:
                self._swap(model, served)

    def _swap(self, model: str, served: Served) -> None:
        with self._changing:
            now = self._served.get(model)
            if now is not None:
                self._former[model] = now
            self._served = {**self._served, model: served}
            # Its folder may have changed while it was loaded.
            self._read.pop(model, None)
        log.info("%s serves%s", served.name, "" if now is None else f" in place of version {now.version}")
        self._is_well(model, served.version)

    def _has_failed(self, model: str, version: int, error: Exception, *, lasting: float) -> None:
        now = self._served.get(model)
        reason = one_line(error) if isinstance(error, PerennialError) else type(error).__name__
        log.warning("version %d is not served: %s", version, reason)
        if isinstance(error, VersionUnusable | SpecError) or lasting >= PATIENCE.total_seconds():
            alert = of_models.not_served(model, version=version, previous=now.version if now else None, reason=reason)
            try:
                self._deployment.ledger.record_alert(alert)
            except (sa.exc.SQLAlchemyError, PerennialError) as failed:
                log.warning("the alert cannot be recorded (%s)", type(failed).__name__)

    def _is_well(self, model: str, version: int) -> None:
        try:
            made = [one.completed_at for one in self._deployment.ledger.promotions(model) if one.version == version]
            self._since[model] = next((moment for moment in reversed(made) if moment is not None), None)
            self._deployment.ledger.resolve(served_online(model), f"Version {version} serves online.")
            self._troubles.pop(model, None)
        except (sa.exc.SQLAlchemyError, PerennialError) as error:
            log.warning("the end of an alert cannot be recorded (%s)", type(error).__name__)
