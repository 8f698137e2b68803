"""The scorer's web application: who may ask, within which bounds, in which form, and the answer.

Neighbours: :mod:`perennial.serving.requests` reads bodies, :mod:`perennial.serving.answers` writes them,
:mod:`perennial.serving.champion` knows the versions, :mod:`perennial.serving.batching` predicts;
:mod:`perennial.serving.service` is the process.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from perennial.core.errors import NotAnswered
from perennial.model.artifacts import FeatureList
from perennial.serving import answers, requests
from perennial.serving.answers import Answer, as_json
from perennial.serving.batching import Batcher, Computer
from perennial.serving.challengers import Challengers, Role, are_drawn, share_of
from perennial.serving.champion import Champions, Served
from perennial.serving.figures import Figures, Now
from perennial.serving.lookup import ages, compute_all, fallbacks, look_up
from perennial.serving.on_demand import OnDemand
from perennial.serving.online_table import OnlineTable
from perennial.serving.openapi import describe
from perennial.serving.page import describe_for_page, page
from perennial.serving.pushing import Pushing
from perennial.serving.recording import Answered, Recorder
from perennial.serving.requests import Entities, Keys, Rows
from perennial.serving.shadowing import Shadowing, features_for
from perennial.serving.tokens import Token, Tokens

log = logging.getLogger(__name__)

#: An identifier that a client may give its request.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: Headers of every answer.
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
#: The last part of the addresses that predict.
_FORMS = ("predict", "invocations", "infer")
#: The names of this machine, for itself.
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


@dataclass(frozen=True)
class Bounds:
    """What a request may cost.

    Attributes:
        body: most bytes of a body.
        rows: most rows of a request.
        at_once: most requests that are read or answered at once; see :mod:`perennial.serving.shedding`.
        deadline: most seconds from the first byte of a request to its answer.
    """

    body: int = 1 << 20
    rows: int = 1_000
    at_once: int = 128
    deadline: float = 5.0


@dataclass
class _Asked:
    """A request, for the log, the figures and the headers of its answer."""

    id: str
    model: str = ""
    form: str = ""
    version: int | None = None
    status: int | None = None
    began: float = field(default_factory=time.perf_counter)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    answered: Callable[[float], Answered] | None = None


class App:
    """The application, in ASGI.

    Args:
        champions: the versions that answer.
        challengers: the versions that answer beside them.
        table: rows of features by key.
        on_demand: computes features of entities that are in no table yet.
        pushing: takes rows of tables.
        tokens: who may ask.
        bounds: what a request may cost.
        record: makes what records requests, from the figures; None: they are not recorded.
        parity: says what was measured of a model's parity, for its page; None if nothing is known.
    """

    def __init__(
        self,
        champions: Champions,
        challengers: Challengers,
        table: OnlineTable,
        on_demand: OnDemand,
        pushing: Pushing,
        tokens: Tokens,
        bounds: Bounds,
        record: Callable[[Figures], Recorder] | None = None,
        parity: Callable[[str], dict[str, Any] | None] = lambda _: None,
    ) -> None:
        self._champions, self._challengers, self._table, self._on_demand = champions, challengers, table, on_demand
        self._pushing, self._tokens, self._bounds, self._parity = pushing, tokens, bounds, parity
        self._lookups = ThreadPoolExecutor(2, thread_name_prefix="lookup")
        # Who stores waits for others who do, and look-ups need not.
        self._pushes = ThreadPoolExecutor(2, thread_name_prefix="push")
        self._at_once = 0
        self._batcher: Batcher | None = None
        self._computer: Computer | None = None
        self.figures = Figures(
            Now(
                lambda: {model: served.version for model, served in champions.served.items()},
                lambda: champions.seconds,
                lambda: self._at_once,
            )
        )
        self._recorder = None if record is None else record(self.figures)
        self._shadowing = None
        if self._recorder is not None:
            self._shadowing = Shadowing(
                challengers,
                table,
                self._recorder,
                predicted=lambda model, rows: self.figures.by_role(model, rows, "shadow"),
                left_out=lambda model, rows, why: self.figures.left_out(model, rows, "shadow", why),
            )
        self._router = Router(
            [
                Route("/v2/health/live", self._live),
                Route("/v2/health/ready", self._ready),
                Route("/v2", self._server),
                Route("/v2/models/{model}", self._model),
                Route("/v2/models/{model}/ready", self._model_ready),
                Route("/v2/models/{model}/infer", self._infer, methods=["POST"]),
                Route("/v2/models/{model}/versions/{version}", self._model),
                Route("/v2/models/{model}/versions/{version}/ready", self._model_ready),
                Route("/v2/models/{model}/versions/{version}/infer", self._infer, methods=["POST"]),
                Route("/models/{model}/predict", self._predict, methods=["POST"]),
                Route("/models/{model}/invocations", self._invocations, methods=["POST"]),
                Route("/models/{model}/tables/{table}", self._push, methods=["POST"]),
                Route("/models/{model}/ping", self._model_ready),
                Route("/metrics", self._metrics),
                Route("/", self._page),
                Route("/models", self._models),
                Route("/models/{model}", self._page),
                Route("/models/{model}/figures", self._told),
                Route("/openapi.json", self._openapi),
            ],
            redirect_slashes=False,
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; whatever happens, with JSON and without a traceback."""
        if scope["type"] == "lifespan":
            await self._router(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        asked = _Asked(given if _REQUEST_ID.fullmatch(given) else uuid4().hex)
        form = scope["path"].rpartition("/")[2]
        asked.form = form if form in _FORMS else ""
        scope["asked"], scope["app"] = asked, self

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                asked.status = message["status"]
                own = {name for name, _ in message["headers"]}
                more = [header for header in HEADERS if header[0] not in own]
                more.append((b"x-request-id", asked.id.encode()))
                if asked.version is not None:
                    more.append((b"x-model-version", str(asked.version).encode()))
                message["headers"] = [*message["headers"], *more]
            await send(message)

        self._at_once += 1
        try:
            async with asyncio.timeout(self._bounds.deadline):
                self._admit(scope)
                await self._router(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass
        # Any error of a request ends that request alone.
        except Exception as error:
            if asked.status is None:
                await _failure(error, asked)(scope, receive, send_with_headers)
        finally:
            self._at_once -= 1
            if asked.form and asked.status is not None:
                seconds = time.perf_counter() - asked.began
                self.figures.answered(asked.model, asked.form, asked.status, seconds)
                if asked.answered is not None and asked.status == 200:
                    self._keep(asked.answered(seconds))

    def _keep(self, answered: Answered) -> None:
        """Count what was answered, record it, and let the versions in the shadow answer it too."""
        self.figures.by_role(answered.served.model, answered.rows.count, answered.role)
        if self._recorder is not None and self._shadowing is not None:
            self._recorder.add(answered)
            self._shadowing.add(answered)

    def refused(self, path: str) -> None:
        """Count a request that was refused before it came here, since too many are being answered."""
        form = path.rpartition("/")[2]
        if form in _FORMS:
            self.figures.answered("", form, 503, 0.0)

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        self._batcher = Batcher(self.figures.predicted)
        if self._recorder is not None and self._shadowing is not None:
            self._recorder.start()
            self._shadowing.start()
        self._computer = Computer(partial(compute_all, self._on_demand))
        yield
        self._batcher.close()
        if self._recorder is not None and self._shadowing is not None:
            await asyncio.to_thread(self._shadowing.close)
            await asyncio.to_thread(self._recorder.close)
        self._lookups.shutdown()
        self._pushes.shutdown()
        self._computer.close()

    # --- who, and how much ---

    def _admit(self, scope: Scope) -> None:
        """Refuse a request that comes by a name that is not this machine's, while nobody needs a token.

        Raises:
            NotAnswered: it is refused.
        """
        if not self._tokens.required:
            host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
            # Without tokens, a page in a browser here could otherwise ask by a name that leads to this machine.
            if re.sub(r":\d+$", "", host).lower() not in LOOPBACK:
                raise NotAnswered("without tokens, only this machine may ask, as localhost", status=403)

    def _token(self, request: Request) -> Token | None:
        return self._tokens.check(request.headers.get("authorization"))

    def _asked_model(self, request: Request) -> Served:
        """The version that answers a request, after a look whether the client may ask. It is resolved here, once.

        Raises:
            NotAnswered: it may not, or there is no such model or version.
        """
        asked: _Asked = request.scope["asked"]
        model, token = str(request.path_params["model"]), self._token(request)
        if token is not None and not token.may_ask(model):
            raise NotAnswered("this token may not ask this model", status=403)
        served = self._champions.of(model)
        asked.model, asked.version = model, served.version
        version = request.path_params.get("version")
        if version is not None and version != str(served.version):
            raise NotAnswered(f"only the champion is served, and it is version {served.version}", status=404)
        return served

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise NotAnswered("send JSON, with the header Content-Type: application/json", status=415)
        most = self._bounds.body
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()) or int(length[:20]) > most:
            raise NotAnswered(f"the body has more than {most:,} bytes", status=413)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise NotAnswered(f"the body has more than {most:,} bytes", status=413)
            parts.append(part)
        return b"".join(parts)

    # --- what is asked ---

    async def _predict(self, request: Request) -> Response:
        served = self._asked_model(request)
        body = await self._body(request)
        rows = requests.from_question(body, served.loaded.takes, self._bounds.rows, served.key)
        loop = asyncio.get_running_loop()
        form, overrides = "features", None
        if isinstance(rows, Entities):
            form = "entity"
            assert self._computer is not None  # made when the server starts
            rows = await self._computer.compute(served, rows)
        elif isinstance(rows, Keys):
            form, overrides = "key", rows.overrides
            rows = await loop.run_in_executor(self._lookups, look_up, self._table, served, rows, datetime.now(UTC))
            for kind in fallbacks(rows.origins):
                self.figures.fell_back(served.model, kind)
            for seconds in ages(rows.origins):
                self.figures.looked_up(served.model, seconds)
        answer = await self._answer_as_challenger(request, served, rows, form, overrides)
        return _json(answers.plain(answer or await self._answer(request, served, rows, form, overrides)))

    async def _push(self, request: Request) -> Response:
        asked: _Asked = request.scope["asked"]
        model, table, token = str(request.path_params["model"]), str(request.path_params["table"]), self._token(request)
        if token is not None and not token.may_push(model):
            raise NotAnswered("this token may not push rows of this model", status=403)
        asked.form = ""
        rows = requests.from_push(await self._body(request), self._bounds.rows)
        loop = asyncio.get_running_loop()
        taken = await loop.run_in_executor(self._pushes, self._pushing.take, model, table, rows)
        known = taken.accepted - taken.new
        for outcome, count in (("new", taken.new), ("known", known), ("refused", len(taken.refused))):
            self.figures.pushed(model, table, outcome, count)
        refused = [{"row": one.row, "field": one.field, "reason": one.reason} for one in taken.refused]
        said = {"accepted": taken.accepted, "new": taken.new, "refused": refused}
        if not taken.accepted:
            first = taken.refused[0]
            return _json({"error": first.reason, "request_id": asked.id, "row": first.row, "field": first.field, **said}, 422)
        return _json(said)

    async def _invocations(self, request: Request) -> Response:
        served = self._asked_model(request)
        rows = requests.from_invocations(await self._body(request), served.loaded.takes, self._bounds.rows)
        return _json(answers.invocations(await self._answer(request, served, rows, "invocations")))

    async def _infer(self, request: Request) -> Response:
        served = self._asked_model(request)
        takes: FeatureList = served.loaded.takes
        outputs = answers.outputs_of(served.loaded.task)
        asked = requests.from_inference(await self._body(request), takes, self._bounds.rows, outputs)
        answer = await self._answer(request, served, asked.rows, "inference")
        return _json(answers.inference(answer, asked.id, asked.outputs))

    async def _answer_as_challenger(
        self, request: Request, champion: Served, rows: Rows, form: str, overrides: Sequence[Mapping[str, Any]] | None
    ) -> Answer | None:
        """The answer of the champion's challenger, if the request is of its share; None: the champion answers.

        A request is answered by one version as a whole. What the challenger cannot answer, the champion does.
        """
        challenger, share = self._challengers.of(champion), share_of(champion)
        if challenger is None or share is None or rows.keys is None or not are_drawn(share, challenger, rows.keys):
            return None
        try:
            now, loop = datetime.now(UTC), asyncio.get_running_loop()
            its = await loop.run_in_executor(
                self._lookups, features_for, challenger, champion, rows, overrides, self._table, now
            )
            if its is not None:
                answer = await self._answer(request, challenger, its, form, overrides, "challenger")
                asked: _Asked = request.scope["asked"]
                asked.version = challenger.version
                return answer
            why = "features"
        except NotAnswered:
            why = "failed"
        self.figures.left_out(champion.model, rows.count, "challenger", why)
        return None

    async def _answer(
        self,
        request: Request,
        served: Served,
        rows: Rows,
        form: str,
        overrides: Sequence[Mapping[str, Any]] | None = None,
        role: Role = "champion",
    ) -> Answer:
        assert self._batcher is not None  # made when the server starts
        prediction = await self._batcher.predict(served, rows)
        asked: _Asked = request.scope["asked"]
        asked.answered = lambda seconds: Answered(asked.id, asked.at, seconds, form, served, rows, prediction, overrides, role)
        champions = self._champions
        return Answer(served, rows, prediction, asked.id, champions.seconds or 0.0, champions.degraded, role)

    # --- what is told ---

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, _: Request) -> Response:
        seconds = self._champions.seconds
        if seconds is None:
            raise NotAnswered("the ledger has not said yet who is champion", status=503, retry_after=2)
        degraded = self._champions.degraded
        return _json({"ready": True, "degraded": degraded, "champion_checked_seconds_ago": round(seconds, 1)})

    async def _server(self, request: Request) -> Response:
        self._token(request)
        return _json({"name": "perennial", "version": "2", "extensions": []})

    async def _model(self, request: Request) -> Response:
        return _json(answers.metadata(self._asked_model(request)))

    async def _model_ready(self, request: Request) -> Response:
        served = self._asked_model(request)
        return _json({"name": served.model, "ready": True, "version": str(served.version)})

    async def _metrics(self, request: Request) -> Response:
        self._token(request)
        return Response(self.figures.text(), media_type=CONTENT_TYPE_LATEST)

    async def _page(self, _: Request) -> Response:
        content, policy = page()
        return Response(content, media_type="text/html", headers={"Content-Security-Policy": policy})

    async def _models(self, request: Request) -> Response:
        seen, since = self._seen(self._token(request)), self._champions.since
        # A sample of the version is read through, which other requests need not wait for.
        described = [
            await asyncio.to_thread(
                describe_for_page, served, since(served.model), self._challengers.of(served), share_of(served)
            )
            for served in seen
        ]
        return _json({"models": described})

    async def _told(self, request: Request) -> Response:
        model = self._asked_model(request).model
        parity = None if self._champions.degraded else await asyncio.to_thread(self._parity, model)
        return _json({"model": model, **self.figures.of(model), "parity": parity})

    def _seen(self, token: Token | None) -> list[Served]:
        """The versions that a client may ask."""
        return [served for model, served in sorted(self._champions.served.items()) if token is None or token.may_ask(model)]

    async def _openapi(self, request: Request) -> Response:
        token = self._token(request)
        return _json(describe(self._seen(token), self._bounds.rows, with_tokens=token is not None))


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(as_json(value), status, headers, "application/json")


def _failure(error: Exception, asked: _Asked) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The answer to a request that fails. Nothing of the request is logged."""
    said: dict[str, Any] = {"request_id": asked.id}
    headers: dict[str, str] = {}
    match error:
        case NotAnswered():
            status = error.status
            said |= {name: value for name in ("row", "field") if (value := getattr(error, name)) is not None}
            if error.retry_after is not None:
                headers["Retry-After"] = str(error.retry_after)
            if status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            words = str(error)
        case TimeoutError():
            status, words = 503, "the answer took too long; try again"
            headers["Retry-After"] = "1"
        case HTTPException():
            status, words = (
                error.status_code,
                {404: "there is nothing here", 405: "this address has other methods"}.get(
                    error.status_code, "this request cannot be answered"
                ),
            )
            headers = dict(error.headers or {})
        case _:
            log.error("request %s has failed: %s", asked.id, type(error).__name__)
            status, words = 500, "the scorer failed; its log has the request's id"
    return _json({"error": words, **said}, status, headers)
