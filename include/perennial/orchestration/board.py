"""The model board as a part of Airflow's API server: the board, the same as JSON, a page for each model, and reports.

Airflow does not protect what a plugin serves. Here every route requires a signed-in user who may read DAGs. A model is shown
only to users who may read one of its DAGs. The ledger is only read with ``SELECT``.

Neighbours: :mod:`perennial.reports.board` and :mod:`perennial.reports.model_page` compose what is shown;
``plugins/perennial_board.py`` hands this to Airflow.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from airflow.api_fastapi.app import get_auth_manager, get_cookie_path
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from jinja2 import Environment
from sqlalchemy.exc import SQLAlchemyError

from perennial.core.errors import PerennialError, SpecError
from perennial.core.files import open_below
from perennial.core.settings import Settings, settings
from perennial.evidence.verdict import ESTIMATE_LIMIT
from perennial.ledger.store import Ledger
from perennial.reports import board, drawing, model_page
from perennial.reports.board import Board, Pages
from perennial.reports.documents import page_templates
from perennial.reports.model_page import ModelPage
from perennial.spec.folder import ModelFolder, model_folders, read_model

log = logging.getLogger(__name__)


#: Where Airflow mounts :data:`app`.
PREFIX = "/perennial"

#: The base path of Airflow's own pages.
BASE = f"{get_cookie_path().rstrip('/')}/"

#: Largest size of a report in bytes. Most have a few megabytes.
LARGEST_REPORT = 64_000_000

_KINDS = {".html": "text/html; charset=utf-8", ".json": "application/json", ".png": "image/png"}

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
}

#: The board's pages use one script and one style sheet, and connect only to this server.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)

#: A report has its own scripts, and quotes data. It gets a separate origin, so that it can neither use its reader's session nor
#: read Airflow's pages. It cannot connect to any server.
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)

_STATIC = {
    "board.css": "text/css; charset=utf-8",
    "board.js": "text/javascript; charset=utf-8",
    "board.svg": "image/svg+xml",
    "model.css": "text/css; charset=utf-8",
}

#: Width and height of a model's chart, on wide and on narrow screens, in units that are pixels there.
_WIDE, _NARROW = (1120.0, 300.0), (450.0, 260.0)

app = FastAPI(
    title="Perennial",
    openapi_url=None,
    # For every route of this app.
    dependencies=[Depends(requires_access_dag("GET"))],
)


@dataclass(frozen=True)
class Sight:
    """What the signed-in user may see.

    Attributes:
        models: those with at least one DAG that the user may read.
        broken_folders: whether the user may also see broken folders, which Airflow shows as import errors.
    """

    models: frozenset[str]
    broken_folders: bool


def _sight(user: GetUserDep) -> Sight:
    # This app is mounted below Airflow's app and does not have its state, so the auth manager comes from Airflow's app.
    auth_manager = get_auth_manager()
    return Sight(
        models=frozenset(dag_id.partition(".")[0] for dag_id in auth_manager.get_authorized_dag_ids(user=user)),
        broken_folders=auth_manager.is_authorized_view(access_view=AccessView.IMPORT_ERRORS, user=user),
    )


SightDep = Annotated[Sight, Depends(_sight)]


@app.get("/")
def page(sight: SightDep) -> Response:
    """The board."""
    try:
        found = read_board(sight)
    except _Unreadable as error:
        return _message(HTTPStatus.SERVICE_UNAVAILABLE, "The board cannot be shown", str(error))
    text = (
        _templates()
        .get_template("board.html.j2")
        .render(
            board=found,
            base=BASE,
            now=found.at,
            age=board.age,
            last_day=board.last_day,
            span=board.span,
            sparkline=board.sparkline,
            size=(board.WIDTH, board.HEIGHT),
            limit=ESTIMATE_LIMIT,
        )
    )
    return _page(text)


@app.get("/models/{model}")
def page_of_model(model: str, sight: SightDep) -> Response:
    """The page of a model."""
    if model not in sight.models:
        raise HTTPException(HTTPStatus.FORBIDDEN, "you may not read any DAG of this model")
    try:
        found = read_page(model)
    except _Unreadable as error:
        return _message(HTTPStatus.SERVICE_UNAVAILABLE, "The page cannot be shown", str(error))
    if found is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "the model has no folder, or one that cannot be read: the board says which")
    places, marks = (found.performance.places, found.performance.marks) if found.performance is not None else ((), ())
    wide, narrow = (drawing.chart(places, marks, width=width, height=height) for width, height in (_WIDE, _NARROW))
    template = _templates().get_template("model.html.j2")
    return _page(
        template.render(page=found, wide=wide, narrow=narrow, base=BASE, last_day=board.last_day, limit=ESTIMATE_LIMIT)
    )


def _page(text: str) -> Response:
    return Response(text, media_type="text/html; charset=utf-8", headers={**_HEADERS, "Content-Security-Policy": _PAGE_POLICY})


@app.get("/api/models")
def models(sight: SightDep) -> Response:
    """The board's rows as JSON."""
    try:
        return JSONResponse(read_board(sight).to_json(), headers=_HEADERS)
    except _Unreadable as error:
        return JSONResponse({"detail": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE, headers=_HEADERS)


@app.get("/reports/{place:path}")
def report(place: str, sight: SightDep) -> Response:
    """A page or file in the deployment's folder of reports: drift reports and Data Docs."""
    parts = place.split("/")
    if parts[0] not in sight.models:
        raise HTTPException(HTTPStatus.FORBIDDEN, "you may not read any DAG of this model")
    kind = _KINDS.get(Path(parts[-1]).suffix)
    content = read_below(settings().reports, parts) if kind else None
    if content is None:
        raise HTTPException(
            HTTPStatus.NOT_FOUND,
            "there is no such report: it was removed after its retention, or this server cannot read the folder of reports",
        )
    return Response(content, media_type=kind, headers={**_HEADERS, "Content-Security-Policy": _REPORT_POLICY})


@app.get("/static/{name}")
def static(name: str) -> Response:
    """The page's style sheet, script and icon."""
    if name not in _STATIC:
        raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such file")
    content = resources.files("perennial.reports").joinpath("static", name).read_bytes()
    return Response(content, media_type=_STATIC[name], headers={**_HEADERS, "Cache-Control": "private, max-age=300"})


@app.exception_handler(HTTPException)
async def refuse(request: Request, error: HTTPException) -> Response:
    """Show an error as a page in a browser, and as JSON to programs."""
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"detail": error.detail}, error.status_code, headers=_HEADERS)
    status = HTTPStatus(error.status_code)
    title = "Sign in to see this" if status == HTTPStatus.UNAUTHORIZED else status.phrase
    back = str(request.url.path) if status == HTTPStatus.UNAUTHORIZED else None
    return _message(status, title, str(error.detail), sign_in_for=back)


def read_board(sight: Sight) -> Board:
    """The board, with the models that the user may see.

    Raises:
        _Unreadable: the ledger or the settings cannot be read; the message says what to do.
    """
    now = datetime.now(UTC)
    with _readable():
        found = settings()
        sound, broken = read_folders(found.models)
        overview = Ledger(found.database_url).overview(windows=board.WINDOWS, alerts_since=now - board.ALERTS_FOR)
    return board.compose(
        overview,
        {model: folder for model, folder in sound.items() if model in sight.models},
        broken if sight.broken_folders else {},
        now=now,
        pages=_pages(found),
    )


def read_page(model: str) -> ModelPage | None:
    """The page of a model; None if it has no sound folder.

    Raises:
        _Unreadable: as for :func:`read_board`.
    """
    now = datetime.now(UTC)
    with _readable():
        found = settings()
        folder = read_folders(found.models)[0].get(model)
        if folder is None:
            return None
        life = Ledger(found.database_url).life(model, windows=model_page.WINDOWS, alerts_since=now - board.ALERTS_FOR)
        return model_page.compose(life, folder, now=now, pages=_pages(found))


def _pages(found: Settings) -> Pages:
    return Pages(airflow=BASE, reports=f"{BASE.rstrip('/')}{PREFIX}/reports/", mlflow=found.mlflow_public_url)


class _Unreadable(Exception):
    """The board cannot be read. The message is for people and quotes no address."""


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        log.warning("the ledger cannot be read: %s", type(error).__name__)
        raise _Unreadable(
            "The ledger cannot be read. Is its database up and migrated, and does PERENNIAL_DATABASE_URL of this server name a "
            "role that may SELECT from it?"
        ) from error
    except PerennialError as error:
        log.warning("the board cannot be read: %s", error)
        raise _Unreadable(str(error)) from error


def read_folders(models: Path) -> tuple[dict[str, ModelFolder], dict[str, SpecError]]:
    """The sound and the broken model folders, as from :func:`perennial.spec.folder.read_models`, without retired models.

    A folder is only read again if one of its files has changed.
    """
    sound: dict[str, ModelFolder] = {}
    broken: dict[str, SpecError] = {}
    for folder in model_folders(models):
        found = _read_folder(folder, _stamp(folder))
        if isinstance(found, SpecError):
            broken[folder.name] = found
        elif not found.spec.retired:
            sound[folder.name] = found
    return sound, broken


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    try:
        with os.scandir(folder) as entries:
            files = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    except OSError:  # broken; it has files, and so another stamp, once it can be read
        return ()
    # The time of change, since leave to read a file leaves its contents as they were.
    return tuple(sorted((name, found.st_ctime_ns, found.st_size) for name, found in files))


@lru_cache(maxsize=2048)
def _read_folder(folder: Path, stamp: object) -> ModelFolder | SpecError:  # noqa: ARG001  # part of the cache's key
    try:
        return read_model(folder)
    except SpecError as error:
        return error


def read_below(root: Path, parts: list[str]) -> bytes | None:
    """A file below ``root``; None if there is none.

    No symbolic link is followed, and no name may be ``..`` or begin with a dot. So nothing outside ``root`` is opened, even if
    somebody changes files there meanwhile. A pipe or a device counts as no file.
    """
    if not all(part and not part.startswith(".") and "\0" not in part and "\\" not in part for part in parts):
        return None
    try:
        with open(open_below(root, parts), "rb") as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_REPORT:
                return None
            return stream.read(LARGEST_REPORT)
    except OSError:
        return None


def _message(status: HTTPStatus, title: str, text: str, *, sign_in_for: str | None = None) -> Response:
    link = f"{BASE}api/v2/auth/login?next={quote(sign_in_for, safe='')}" if sign_in_for else None
    page = _templates().get_template("message.html.j2").render(title=title, text=text, base=BASE, sign_in=link)
    headers = {**_HEADERS, "Content-Security-Policy": _PAGE_POLICY}
    return Response(page, status, media_type="text/html; charset=utf-8", headers=headers)


@lru_cache(maxsize=1)
def _templates() -> Environment:
    made = page_templates()
    made.filters["number"] = _number
    return made


def _number(value: Any) -> str:
    """A metric with a fixed number of digits, so that equal metrics align."""
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:,.4g}"
