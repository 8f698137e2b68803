"""Who may ask which model: bearer tokens in a file that only this user can read and change.

The file holds hashes. A token is shown once, when it is made. The scorer reads the file again when it changes, so tokens are
made and revoked without a restart. Once the file is there, every request needs a token, also after the last one was revoked.

``perennial token`` makes, lists and revokes; :mod:`perennial.serving.app` asks.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from perennial.core.errors import NotAnswered, SettingsError
from perennial.core.files import write_private
from perennial.core.intervals import utc

#: Every model, also those that come later.
EVERY_MODEL = "*"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_PREFIX = "perennial_"


@dataclass(frozen=True)
class Token:
    """A token, without its secret.

    Attributes:
        name: of the client or the person who has it.
        digest: SHA-256 of the token, which has 256 random bits.
        models: the models that it may ask; :data:`EVERY_MODEL` for all.
        made_at, expires_at, revoked_at: ISO times; empty if it does not expire, or is not revoked.
        push: whether it may also push rows of these models' tables.
    """

    name: str
    digest: str
    models: tuple[str, ...]
    made_at: str
    expires_at: str = ""
    revoked_at: str = ""
    push: bool = False

    def counts(self, now: datetime) -> bool:
        """Whether it may be used at a moment."""
        return not self.revoked_at and (not self.expires_at or now < utc(self.expires_at))

    def may_ask(self, model: str) -> bool:
        return EVERY_MODEL in self.models or model in self.models

    def may_push(self, model: str) -> bool:
        return self.push and self.may_ask(model)


def read_tokens(file: Path) -> list[Token] | None:
    """The tokens, oldest first; None if there is no file.

    Raises:
        SettingsError: others can change the file, or it does not hold tokens.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            found = os.fstat(stream.fileno())
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or found.st_uid not in (os.geteuid(), 0):
                raise SettingsError(f"{file}: others can change the tokens: chmod 600 it, and see who has changed it")
            return [Token(**{**one, "models": tuple(one["models"])}) for one in json.load(stream)]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"{file} does not hold tokens: restore it, or remove it and make the tokens again") from error


def make_token(file: Path, name: str, models: tuple[str, ...], *, days: int | None = None, push: bool = False) -> str:
    """Add a token, and return it. It cannot be shown again.

    Several tokens may have one name. So a client gets a new one before the old one is revoked.

    Args:
        file: of the tokens.
        name: for whom it is: small letters, digits, ``-`` and ``_``.
        models: what it may ask.
        days: after which it expires; None: it does not.
        push: whether it may push rows, too.

    Raises:
        SettingsError: the name is unusable, or the file.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{name!r} cannot name a token: write small letters, digits, - and _, beginning with a letter")
    token, now = f"{_PREFIX}{secrets.token_urlsafe(32)}", datetime.now(UTC)
    expires = (now + timedelta(days=days)).isoformat(timespec="seconds") if days is not None else ""
    with _alone(file):
        made = Token(name, _digest(token), models, now.isoformat(timespec="seconds"), expires, push=push)
        _write(file, [*(read_tokens(file) or []), made])
    return token


def revoke_tokens(file: Path, name: str, *, but_newest: bool = False) -> int:
    """Revoke all tokens of a name.

    Args:
        file: of the tokens.
        name: whose.
        but_newest: whether the newest one stays.

    Returns:
        How many were revoked now.
    """
    now = datetime.now(UTC)
    with _alone(file):
        tokens = read_tokens(file) or []
        valid = [place for place, token in enumerate(tokens) if token.name == name and token.counts(now)]
        revoked = valid[:-1] if but_newest else valid
        for place in revoked:
            tokens[place] = replace(tokens[place], revoked_at=now.isoformat(timespec="seconds"))
        if revoked:
            _write(file, tokens)
    return len(revoked)


def _write(file: Path, tokens: list[Token]) -> None:
    write_private(file, json.dumps([asdict(token) for token in tokens], indent=2))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(file.with_name(f".{file.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Tokens:
    """The tokens of a file, read again when it has changed.

    Args:
        file: of the tokens.
        required: whether requests need a token also while there is no file.
    """

    def __init__(self, file: Path, *, required: bool) -> None:
        self._file, self._required = file, required
        self._stamp: tuple[int, ...] | None = None
        self._known: dict[str, Token] | None = None
        self._problem: str | None = None
        self._read()

    @property
    def required(self) -> bool:
        """Whether a request needs a token now."""
        self._read()
        return self._required or self._known is not None or self._problem is not None

    def check(self, header: str | None) -> Token | None:
        """The token of a request; None if none is needed.

        Args:
            header: ``Authorization``.

        Raises:
            NotAnswered: there is none, or it does not count.
        """
        if not self.required:
            return None
        if self._problem is not None:
            raise NotAnswered("the scorer cannot read its tokens, so it answers nobody", status=503, retry_after=10)
        scheme, _, token = (header or "").partition(" ")
        found = (self._known or {}).get(_digest(token.strip())) if scheme.lower() == "bearer" else None
        if found is None or not found.counts(datetime.now(UTC)):
            raise NotAnswered("send a valid token in the header: Authorization: Bearer TOKEN", status=401)
        return found

    def _read(self) -> None:
        try:
            found = self._file.stat()
            stamp: tuple[int, ...] | None = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        except FileNotFoundError:
            stamp = None
        except OSError:
            stamp = (-1,)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            tokens = read_tokens(self._file)
            # Once there were tokens, they stay required: removing the file lets nobody in.
            self._required = self._required or tokens is not None
            self._known = None if tokens is None else {token.digest: token for token in tokens}
            self._problem = None
        except (SettingsError, OSError) as error:
            self._known, self._problem = None, str(error)
