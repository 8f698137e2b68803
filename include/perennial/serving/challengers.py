"""The versions that answer beside the champions: in their shadow, and one of them for a share of the keys.

They are those that the ledger says are in the shadow now, loaded and tried like a champion. Nothing here decides who that is:
a comparison, a promotion or a rollback in the ledger ends it within seconds. What counts is a pair of a champion and those
beside it, so no version answers beside a champion that it was not chosen for.

Neighbours: :mod:`perennial.scoring.challengers` asks the ledger; :mod:`perennial.serving.champion` loads;
:mod:`perennial.serving.shadowing` lets those in the shadow answer.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import pyarrow as pa
import sqlalchemy as sa

from perennial.core import logs
from perennial.core.errors import PerennialError
from perennial.core.text import one_line
from perennial.deployment import Deployment
from perennial.scoring.challengers import Beside, beside_online
from perennial.serving.champion import Champions, Served, load
from perennial.serving.online_table import entity_texts

log = logging.getLogger(__name__)

#: For whom a version answers: for clients as the champion or as its challenger, or for nobody.
Role = Literal["champion", "challenger", "shadow"]
#: How often it is asked whether the ledger has something new, and how often everything is asked again nevertheless.
EVERY, AGAIN = timedelta(seconds=1), timedelta(minutes=1)
#: Without an answer of the ledger for this long, the champions answer alone.
UNHEARD = timedelta(minutes=1)
#: Seconds that the end of the process waits for a version that is being loaded.
_PATIENCE = 5.0


def in_share(share: float, text: str) -> bool:
    """Whether a text belongs to a share of all texts. It depends on both alone, and a larger share has all of a smaller one.

    Args:
        share: 0 to 1.
        text: anything.
    """
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return drawn < share * (1 << 64)


def are_drawn(share: float, challenger: Served, keys: pa.Table) -> bool:
    """Whether a request is of the share that a challenger answers: all of its entities are.

    Which entities are depends on the model, the challenger's version and the key alone. So it is the same in each process,
    and other entities are drawn for another model or challenger.

    Args:
        share: of the keys, 0 to 1.
        challenger: the version.
        keys: a row per entity, with the columns of its key.
    """
    named = f"{challenger.model}\n{challenger.version}\n"
    return all(in_share(share, named + entity) for entity in entity_texts(keys))


@dataclass(frozen=True)
class _Pair:
    """A champion, and the versions that answer beside it."""

    champion: int
    shadows: Mapping[int, Served]
    challenger: Served | None


class Challengers:
    """The versions beside each champion, kept in line with the ledger by :meth:`look`.

    Readers and the thread that looks share it: what they read is replaced as a whole, in one assignment.

    Args:
        deployment: ledger, registry and model folders.
        champions: the versions that answer.
    """

    def __init__(self, deployment: Deployment, champions: Champions) -> None:
        self._deployment, self._champions = deployment, champions
        self._pairs: dict[str, _Pair] = {}
        self._seen: object = None
        self._heard = self._asked = -float("inf")
        self._told: set[tuple[str, int]] = set()
        self._silent = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="challengers", daemon=True)

    def of(self, champion: Served) -> Served | None:
        """The version that may answer a share of the keys now; None if none may."""
        pair = self._pairs.get(champion.model)
        if pair is None or pair.challenger is None or pair.champion != champion.version or share_of(champion) is None:
            return None
        return pair.challenger if time.monotonic() - self._heard <= UNHEARD.total_seconds() else None

    def others(self, answered: Served) -> list[Served]:
        """The versions that answer in the shadow what one has answered: the champion and all beside it, without that one."""
        pair, champion = self._pairs.get(answered.model), self._champions.served.get(answered.model)
        if pair is None or champion is None or pair.champion != champion.version:
            return []
        return [one for one in (champion, *pair.shadows.values()) if one.version != answered.version]

    def start(self) -> None:
        """Look from now on, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current look."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def _watch(self) -> None:
        while not self._stopping.wait(EVERY.total_seconds()):
            self.look()

    def look(self) -> None:
        """Ask the ledger who answers beside the champions, and load those who are not in memory. It raises nothing."""
        served = {model: one for model, one in self._champions.served.items() if one.online is not None}
        try:
            marks = self._deployment.ledger.marks()
            now, seen = time.monotonic(), (marks, {model: (one.version, one.online) for model, one in served.items()})
            if seen != self._seen or now - self._asked >= AGAIN.total_seconds():
                self._pairs = {model: pair for model, pair in self._pairs.items() if model in served}
                # First all of them, which takes little, so that who is to answer no longer does not.
                said = {model: self._ask(model, one) for model, one in served.items()}
                self._heard, self._asked, self._seen = now, now, seen
                # This may wait long for an MLflow that does not answer.
                for model, beside in said.items():
                    self._load(model, served[model], beside)
            else:
                self._heard = now
            self._silent = False
        # A fault here must not end the thread; after a while the champions answer alone.
        except Exception as error:
            if not self._silent:
                # Its text may name the address.
                log.warning("it cannot be asked who answers beside the champions (%s)", type(error).__name__)
            self._silent = True

    def _ask(self, model: str, champion: Served) -> Beside:
        """Who is to answer beside a champion; those of them that are in memory do so from now on."""
        try:
            spec = self._deployment.model(model).spec
            beside = beside_online(spec, self._deployment.ledger, champion=champion.version, now=datetime.now(UTC))
        except sa.exc.SQLAlchemyError:
            raise
        except (PerennialError, OSError) as error:
            log.warning("%s: its champion answers alone (%s)", model, type(error).__name__)
            beside = Beside([])
        before = self._pairs.get(model)
        found: dict[int, Served] = {}
        for version in beside.shadows:
            one = None if before is None else before.shadows.get(version)
            one = one or self._champions.in_memory(model, version)
            if one is not None:
                found[version] = one
        self._answer(model, champion, beside, found)
        return beside

    def _load(self, model: str, champion: Served, beside: Beside) -> None:
        """Load those who are not in memory. Who cannot be loaded does not answer."""
        found = dict(self._pairs[model].shadows)
        for version in beside.shadows:
            if version in found or self._stopping.is_set():
                continue
            with logs.context(model=model, version=version):
                try:
                    found[version] = load(self._deployment, model, version)
                # Whatever is wrong with it or its store, the champion goes on alone.
                except Exception as error:
                    if (model, version) not in self._told:
                        reason = one_line(error) if isinstance(error, PerennialError) else type(error).__name__
                        log.warning("version %d does not answer beside the champion: %s", version, reason)
                    self._told.add((model, version))
                    continue
            self._told.discard((model, version))
            self._answer(model, champion, beside, found)

    def _answer(self, model: str, champion: Served, beside: Beside, found: Mapping[int, Served]) -> None:
        shadows = {
            # `online` is of the model's folder as it is now, for all of its versions.
            version: one if one.online == champion.online else replace(one, online=champion.online)
            for version, one in found.items()
        }
        pair = _Pair(champion.version, shadows, shadows.get(beside.challenger) if beside.challenger is not None else None)
        before = self._pairs.get(model)
        self._pairs = {**self._pairs, model: pair}
        if _said(champion, pair) != (None if before is None else _said(champion, before)) and (before or pair.shadows):
            log.info("%s: %s", champion.name, _said(champion, pair))


def share_of(champion: Served) -> float | None:
    """The share of the keys that a challenger may answer; None if none may."""
    return None if champion.online is None else champion.online.canary


def _said(champion: Served, pair: _Pair) -> str:
    if pair.champion != champion.version or not pair.shadows:
        return "nobody answers beside it"
    share = share_of(champion)
    said = f"in its shadow: version {', '.join(str(version) for version in pair.shadows)}"
    if pair.challenger is not None and share is not None:
        said += f"; version {pair.challenger.version} answers {share:.4g} of the keys"
    return said
