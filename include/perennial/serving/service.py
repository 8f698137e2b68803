"""The process of the scorer: its settings, its port, and how it ends.

On SIGTERM it takes no new connections, answers what it has begun, and ends. ``perennial serve`` runs it.

Neighbour: :mod:`perennial.serving.app` answers.
"""

from __future__ import annotations

import gc
import logging
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import uvicorn
from pydantic import BaseModel, ConfigDict, Field

from perennial.core.errors import SettingsError
from perennial.core.settings import settings_of
from perennial.deployment import Deployment
from perennial.ingestion.pushed import PushedRows
from perennial.serving.app import HEADERS, LOOPBACK, App, Bounds
from perennial.serving.challengers import Challengers
from perennial.serving.champion import Champions
from perennial.serving.figures import Figures
from perennial.serving.on_demand import OnDemand
from perennial.serving.online_table import OnlineTable
from perennial.serving.page import parity_for_page
from perennial.serving.pushing import Pushing
from perennial.serving.recording import Recorder
from perennial.serving.request_table import RequestTable
from perennial.serving.shedding import refusing
from perennial.serving.tokens import Tokens

log = logging.getLogger(__name__)

#: The port if none is chosen.
PORT = 8090
#: Connections that wait to be taken, and seconds after which an idle one is closed.
_BACKLOG, _IDLE = 512, 30
#: Seconds between two looks for newly published rows, and for pushed ones, which count a second after they are confirmed.
_KEEP_UP, _SHOW_PUSHED = 2.0, 0.4


class ServeSettings(BaseModel):
    """The scorer's settings, from the environment.

    Attributes:
        host, port: where it listens. By default only this machine can ask.
        at_once: most requests that are read or answered at once; others get 503.
        deadline: most seconds for a request.
        most_bytes, most_rows: most bytes and rows of a request.
        tokens: file of the tokens; None: ``tokens.json`` in the state folder.
        recorders: folder of counts that outlive the process, see :mod:`perennial.serving.recording`; None: ``recorders`` in the
            state folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=PORT, ge=0, le=65535)
    at_once: int = Field(default=128, ge=1, le=10_000)
    deadline: float = Field(default=5.0, gt=0, le=300)
    most_bytes: int = Field(default=1 << 20, ge=1_000, le=1 << 28)
    most_rows: int = Field(default=1_000, ge=1, le=100_000)
    tokens: Path | None = None
    recorders: Path | None = None


_VARIABLES = {
    "host": "PERENNIAL_SERVE_HOST",
    "port": "PERENNIAL_SERVE_PORT",
    "at_once": "PERENNIAL_SERVE_AT_ONCE",
    "deadline": "PERENNIAL_SERVE_DEADLINE",
    "most_bytes": "PERENNIAL_SERVE_MOST_BYTES",
    "most_rows": "PERENNIAL_SERVE_MOST_ROWS",
    "tokens": "PERENNIAL_SERVE_TOKENS",
    "recorders": "PERENNIAL_SERVE_RECORDERS",
}


def read_serve_settings(environment: Mapping[str, str]) -> ServeSettings:
    """The scorer's settings.

    Raises:
        SettingsError: a variable is unusable; the message names it.
    """
    return settings_of(ServeSettings, _VARIABLES, environment, who="the scorer")


def tokens_file(state: Path, given: ServeSettings) -> Path:
    """Where the tokens are."""
    return given.tokens or state / "tokens.json"


class Scorer:
    """The scorer.

    Args:
        deployment: ledger, registry and model folders; it only reads the registry.
        given: its settings.

    Raises:
        SettingsError: its port is taken, or its folder of counts cannot be made.
    """

    def __init__(self, deployment: Deployment, given: ServeSettings) -> None:
        loopback = given.host in LOOPBACK
        self._champions = Champions(deployment)
        self._challengers = Challengers(deployment, self._champions)
        tokens = Tokens(tokens_file(deployment.settings.state, given), required=not loopback)
        bounds = Bounds(given.most_bytes, given.most_rows, given.at_once, given.deadline)
        table = OnlineTable(deployment.settings.predictions_url)
        pushing = Pushing(deployment)
        self._on_demand = OnDemand(deployment.lake, PushedRows(deployment.settings.predictions_url), pushing.tables)
        recorded = RequestTable(deployment.settings.predictions_url)
        counts = _made(given.recorders or deployment.settings.state / "recorders")

        def record(figures: Figures) -> Recorder:
            return Recorder(recorded, counts, stored=figures.recorded, left_out=figures.unrecorded)

        parity = partial(parity_for_page, deployment.ledger)
        self.app = App(
            self._champions, self._challengers, table, self._on_demand, pushing, tokens, bounds, record, parity
        )  # fmt: skip
        self._ending = threading.Event()
        self._alone = False
        try:
            # Nobody can connect before it listens, which the server does when the champions are loaded. Who balances between
            # several scorers asks another one until then.
            self._socket = _bound(given.host, given.port)
        except OSError as error:
            raise SettingsError(
                f"the scorer cannot listen on {given.host}:{given.port}: {error.strerror}; set another port with "
                f"{_VARIABLES['port']}"
            ) from error
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                http=refusing(bounds.at_once, HEADERS, self.app.refused),
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="on",
                ws="none",
                backlog=_BACKLOG,
                timeout_keep_alive=_IDLE,
                timeout_graceful_shutdown=int(given.deadline) + 1,
            )
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._socket.getsockname()[1])

    @property
    def started(self) -> bool:
        """Whether it takes requests."""
        return self._server.started

    @property
    def champions(self) -> Champions:
        """The versions that answer."""
        return self._champions

    @property
    def challengers(self) -> Challengers:
        """The versions that answer beside them."""
        return self._challengers

    def run(self) -> None:
        """Answer until SIGTERM or SIGINT comes, or until :meth:`stop`."""
        try:
            self._champions.start()
            self._champions.wait()
            if self._alone:
                # What is imported and loaded by now stays. Each look through it for garbage would hold all requests up for a
                # quarter of a second.
                gc.collect()
                gc.freeze()
            log.info(
                "answering on port %d: %s",
                self.port,
                ", ".join(s.name for s in self._champions.served.values()) or "nothing yet",
            )
            for looking, seconds in ((self._on_demand.keep_up, _KEEP_UP), (self._on_demand.show_pushed, _SHOW_PUSHED)):
                threading.Thread(target=self._follow, args=(looking, seconds), name="keep up", daemon=True).start()
            self._challengers.start()
            self._server.run(sockets=[self._socket])
        finally:
            self._ending.set()
            self._challengers.stop()
            self._champions.stop()
            self._socket.close()
            if self._alone:
                gc.unfreeze()
            log.info("stopped")

    def _follow(self, look: Callable[[], None], seconds: float) -> None:
        """Look again and again for rows that the hot tables of models lack which were asked by entity."""
        failed = False
        while not self._ending.wait(seconds):
            try:
                look()
                failed = False
            except Exception as error:
                # Whatever it is, requests go on with the rows before. A text may quote an address or a value.
                if not failed:
                    log.warning("new rows cannot be read (%s); features are computed from those before", type(error).__name__)
                failed = True

    def own_process(self) -> None:
        """Let SIGTERM and SIGINT stop it, and the collector of garbage spare what is loaded: the process has no other work.

        Call this in the main thread, before :meth:`run`.
        """
        self._alone = True
        for number in (signal.SIGTERM, signal.SIGINT):
            # The server sets handlers of its own, and passes the signal on to these when it has ended.
            signal.signal(number, lambda *_: self.stop())

    def stop(self) -> None:
        """End after the requests that have begun."""
        self._server.should_exit = True


def _made(folder: Path) -> Path:
    """The folder of counts, which is there afterwards."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"the scorer cannot make the folder {folder}: {error.strerror}; name another one with {_VARIABLES['recorders']}"
        ) from error
    return folder


def _bound(host: str, port: int) -> socket.socket:
    """A socket of an address, which does not listen yet."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made
