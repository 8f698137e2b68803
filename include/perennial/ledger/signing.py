"""The judge's key, which signs the decisions in the ledger, and the newest decision that this deployment knows of.

The key is in the environment of the one process that decides. Where it is not, as in the embedded stack, it is a file in the
state folder, which is made when something is signed for the first time. The number and the hash of the newest entry are
written to a file beside it: whoever cuts the end off the chain in the database does not cut it off there.

Neighbour: :mod:`perennial.ledger.chain` uses both.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from perennial.core.errors import SettingsError
from perennial.core.files import write_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logging.getLogger(__name__)

#: The key; the one that it replaces, while it is replaced; the public key that a process without the key expects.
KEY, FORMER_KEY, PUBLIC_KEY = "PERENNIAL_JUDGE_KEY", "PERENNIAL_FORMER_JUDGE_KEY", "PERENNIAL_JUDGE_PUBLIC_KEY"
#: In the state folder.
KEY_FILE, HEAD_FILE = "judge.key", "judge.head"
#: Bytes of a key, private or public.
_SIZE = 32


@dataclass(frozen=True)
class ChainHead:
    """The newest entry of a chain.

    Attributes:
        number, hash: of the entry.
        key: fingerprint of the key in force, with which the next entry is signed.
        signature: the entry's.
    """

    number: int
    hash: str
    key: str
    signature: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


class Signer:
    """A private key.

    Attributes:
        public: the public key, in Base64.
        fingerprint: its short name.
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
        self.fingerprint = fingerprint(self.public)

    def sign(self, number: int, digest: str) -> str:
        """The signature of an entry."""
        return base64.b64encode(self._private.sign(_message(number, digest))).decode()


def fingerprint(public: str) -> str:
    """The short name of a public key, for people and for entries."""
    return hashlib.sha256(base64.b64decode(public)).hexdigest()[:16]


def is_key(text: str) -> bool:
    """Whether a text can be a key."""
    try:
        return len(base64.b64decode(text, validate=True)) == _SIZE
    except ValueError:
        return False


def is_signed(public: str, number: int, digest: str, signature: str) -> bool:
    """Whether an entry's signature was made with the private key of this public key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public))
        key.verify(base64.b64decode(signature), _message(number, digest))
    except (InvalidSignature, ValueError):
        return False
    return True


def _message(number: int, digest: str) -> bytes:
    return f"perennial decision {number} {digest}".encode()


@dataclass(frozen=True)
class Keys:
    """What a process knows of the judge's keys.

    Attributes:
        folder: the state folder; None if there is none.
        environment: of the process.
    """

    folder: Path | None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def signer(self, *, make: bool) -> Signer:
        """The key that signs.

        Args:
            make: if there is none yet, make one in the state folder.

        Raises:
            SettingsError: this process has no key and no place for one, or the key is not one.
        """
        if (found := self.known()) is not None:
            return found
        if self.folder is None or not make:
            raise SettingsError(
                f"this process has no key to sign a decision with. In the deployment, run the command in the service that "
                f"promotes; elsewhere put the file {KEY_FILE} back into the state folder, or set {KEY}"
            )
        file = self.folder / KEY_FILE
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_name(f".{KEY_FILE}.{uuid4().hex}")
        write_private(draft, base64.b64encode(os.urandom(_SIZE)).decode() + "\n")
        # Of processes that make one at once, the first one counts.
        with suppress(FileExistsError):
            os.link(draft, file)
        draft.unlink()
        made = self.known()
        assert made is not None
        return made

    def known(self) -> Signer | None:
        """The key that signs; None if this process has none.

        Raises:
            SettingsError: it is not a key, or its file cannot be read.
        """
        if given := self.environment.get(KEY):
            return _read(KEY, given)
        if self.folder is None:
            return None
        file = self.folder / KEY_FILE
        try:
            return _read(str(file), file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except PermissionError:
            # It belongs to another user, who decides. This one can look with the public key.
            return None

    def former(self) -> Signer | None:
        """The key that is being replaced.

        Raises:
            SettingsError: it is not a key.
        """
        return _read(FORMER_KEY, given) if (given := self.environment.get(FORMER_KEY)) else None

    def expected(self) -> tuple[str | None, str]:
        """The public key that has to be in force, and why this process expects it; None if it knows of none.

        Raises:
            SettingsError: a variable does not hold a key.
        """
        if (own := self.known()) is not None:
            return own.public, "this process holds the private key"
        if given := self.environment.get(PUBLIC_KEY):
            _bytes(PUBLIC_KEY, given)
            return given.strip(), f"{PUBLIC_KEY} names it"
        return None, (
            f"no key was given to compare it with, so the ledger's own was used: set {PUBLIC_KEY} to {{public}} where you check"
        )

    # --- the newest entry ---

    def head(self) -> ChainHead | None:
        """The newest entry that was written down beside the ledger; None if there is none, or its file is damaged."""
        if self.folder is None:
            return None
        try:
            return read_head((self.folder / HEAD_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read: %s", self.folder / HEAD_FILE, error)
            return None

    def note(self, head: ChainHead, *, instead: bool = False) -> None:
        """Write down the newest entry, after its transaction. If a newer one is there, that one stays.

        Args:
            head: the entry.
            instead: also if a newer one is there.
        """
        if self.folder is None:
            return
        before = self.head()
        if before is not None and before.number > head.number and not instead:
            return
        try:
            write_private(self.folder / HEAD_FILE, json.dumps(asdict(head)) + "\n")
        except OSError as error:
            # What is decided is decided. The next decision writes it again.
            log.warning("%s cannot be written: %s", self.folder / HEAD_FILE, error)


def read_head(text: str) -> ChainHead:
    """The content of a file that :meth:`Keys.note` has written.

    Raises:
        ValueError: it is something else.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no entry of a chain")
    return ChainHead(int(found.get("number", "")), *(str(found.get(name)) for name in ("hash", "key", "signature")))


def _bytes(name: str, text: str) -> bytes:
    try:
        found = base64.b64decode(text.strip(), altchars=b"-_" if {"-", "_"} & set(text) else None, validate=True)
    except ValueError:
        found = b""
    if len(found) != _SIZE:
        raise SettingsError(f"{name} is not a key: it must be {_SIZE} bytes in Base64, as make secrets writes them")
    return found


def _read(name: str, text: str) -> Signer:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Signer(Ed25519PrivateKey.from_private_bytes(_bytes(name, text)))
