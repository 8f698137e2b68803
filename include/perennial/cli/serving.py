"""Commands of the online scorer: run it, ask it, push rows to it, and say who may."""

from __future__ import annotations

import argparse
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perennial.cli.command import MODEL, Command, argument, command, one_of, tell
from perennial.core.settings import settings


@command("serve", "answer requests online with the champions; Ctrl-C stops it", log_level=logging.INFO)
def serve(_: argparse.Namespace) -> int:
    from perennial.deployment import Deployment
    from perennial.serving.service import Scorer, read_serve_settings

    scorer = Scorer(Deployment(settings()), read_serve_settings(os.environ))
    scorer.own_process()
    scorer.run()
    return 0


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value


@command(
    "ask",
    "ask a running scorer for a prediction",
    MODEL,
    argument(
        "--key", type=_json_object, action="append", metavar="JSON",
        help='key of one entity, such as \'{"flight_id": "…"}\', whose features are stored; several times for several ones',
    ),
    argument(
        "--features", type=_json_object, action="append", metavar="JSON",
        help='features of one row, such as \'{"distance": 1400}\'; beside a key, those that replace stored ones',
    ),
    argument(
        "--entity", type=_json_object, action="append", metavar="JSON",
        help="columns of an entity that is in no table yet, whose features are computed; several times for several ones",
    ),
    argument("--as-of", metavar="MOMENT", help="with --entity: the moment that the features are of, with its zone"),
    argument("--url", help="address of the scorer (default: PERENNIAL_SERVE_URL, or this machine)"),
)  # fmt: skip
def ask(chosen: argparse.Namespace) -> int:
    from perennial.serving import asking

    if not (chosen.key or chosen.features or chosen.entity):
        raise SystemExit("give --features, --key or --entity")
    given = {"keys": chosen.key, "features": chosen.features, "entities": chosen.entity, "as_of": chosen.as_of}
    body = {name: value for name, value in given.items() if value}
    answer = asking.ask(_url(chosen.url), chosen.model, body, token=os.environ.get("PERENNIAL_SERVE_TOKEN"))
    return tell(json.dumps(answer, indent=2, ensure_ascii=False))


@command(
    "push",
    "push the rows of a file to a running scorer",
    MODEL,
    argument("table", metavar="TABLE", help="a table in online.push of the model"),
    argument("file", metavar="FILE", type=Path, help="CSV with a header of the table's columns, or JSON lines"),
    argument("--url", help="address of the scorer (default: PERENNIAL_SERVE_URL, or this machine)"),
)
def push(chosen: argparse.Namespace) -> int:
    from perennial.serving import asking

    token = os.environ.get("PERENNIAL_SERVE_TOKEN")
    done = asking.push(_url(chosen.url), chosen.model, chosen.table, chosen.file, token=token)
    for line in done.refused:
        tell(line)
    total, known = done.accepted + len(done.refused), done.accepted - done.new
    tell(f"{done.accepted:,} of {total:,} rows are confirmed; {known:,} of them were there already")
    return 1 if done.refused else 0


def _url(given: str | None) -> str:
    from perennial.serving.service import read_serve_settings

    return given or os.environ.get("PERENNIAL_SERVE_URL") or f"http://127.0.0.1:{read_serve_settings(os.environ).port}"


def _file() -> Path:
    from perennial.serving.service import read_serve_settings, tokens_file

    return tokens_file(settings().state, read_serve_settings(os.environ))


@command(
    "make",
    "make a token for a client; it is shown once",
    argument("name", help="for whom it is"),
    one_of(
        argument("--model", action="append", metavar="MODEL", help="a model that it may ask; several times for several models"),
        argument("--all", action="store_true", help="it may ask every model"),
    ),
    argument("--push", action="store_true", help="it may also push rows of the tables in online.push of these models"),
    argument("--days", type=int, metavar="N", help="days after which it expires; without it, never"),
)
def _make(chosen: argparse.Namespace) -> int:
    from perennial.serving.tokens import EVERY_MODEL, make_token

    if chosen.days is not None and not 1 <= chosen.days <= 36_500:
        raise SystemExit("--days must be from 1 to 36500")
    models = (EVERY_MODEL,) if chosen.all else tuple(dict.fromkeys(chosen.model))
    return tell(make_token(_file(), chosen.name, models, days=chosen.days, push=chosen.push))


@command("list", "show who has tokens, and for which models")
def _list(_: argparse.Namespace) -> int:
    from perennial.serving.tokens import read_tokens

    tokens, now = read_tokens(_file()), datetime.now(UTC)
    if tokens is None:
        return tell("There are no tokens: only this machine may ask, and needs none.")
    for token in tokens:
        state = "revoked" if token.revoked_at else "valid" if token.counts(now) else "expired"
        until = f", until {token.expires_at}" if token.expires_at else ""
        pushes = "; may push" if token.push else ""
        tell(f"{token.name}: {state}, made {token.made_at}{until}, models {', '.join(token.models)}{pushes}")
    return 0


@command(
    "revoke",
    "revoke the tokens of a client; the scorer notices at once",
    argument("name"),
    argument("--but-newest", action="store_true", help="keep the newest one: the client has changed to it"),
)
def _revoke(chosen: argparse.Namespace) -> int:
    from perennial.serving.tokens import revoke_tokens

    count = revoke_tokens(_file(), chosen.name, but_newest=chosen.but_newest)
    return tell(f"{count} token{'' if count == 1 else 's'} of {chosen.name} revoked")


token = Command("token", "who may ask the scorer: make, list, revoke", steps=(_make, _list, _revoke))
