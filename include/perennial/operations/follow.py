"""Follows a branch of a Git repository, so that the models of a deployment are those of its newest commit::

    python -m perennial.operations.follow

The service ``models`` of ``docker-compose.yaml`` runs this module. In its folder are ``commits/<commit>``, with the models of
that commit, and the link ``current``, which leads to one of them. The link is switched in one step, so that readers see one
commit or the other. A reader resolves the link before it reads (:func:`perennial.spec.folder.read_model`).

The service has Git and Python, and nothing that is installed: this module imports nothing but the standard library and
modules that do the same. All settings are environment variables, which ``.env.example`` lists. Neighbour:
:mod:`perennial.spec.commit` says which commit a folder is of.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from urllib.parse import urlsplit

from perennial.core import redaction
from perennial.core.errors import SettingsError, StackError
from perennial.spec.commit import FOLLOWED_FILE, fits_record, write_record

log = logging.getLogger(__name__)

#: Seconds that a commit's folder is kept after the link has left it: no run takes longer.
KEPT = 24 * 3600
#: Longest that a command of Git may take, in seconds.
PATIENCE = 600

_ADDRESS = re.compile(r"(https://|ssh://|file:///|/)\S+|[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:\S+")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,200}")
_FOLLOWED = "refs/perennial/followed"


@dataclass(frozen=True)
class Source:
    """Where the models come from.

    Attributes:
        repository: its address, without any password.
        ref: the branch; or a tag, or a commit, which then stays what it is.
        path: the folder of models in the repository; empty if it is the repository's root.
        user: the name that goes with a token.
        key: file of a private SSH key; None: none.
        known_hosts: file with the keys of SSH servers.
        token: file of a password or token for HTTPS; None: none.
    """

    repository: str
    ref: str = "main"
    path: str = "include/models"
    user: str = "git"
    key: Path | None = None
    known_hosts: Path = Path(os.devnull)
    token: Path | None = None


def read_source(environment: Mapping[str, str]) -> Source:
    """Where the models come from, by the environment.

    Raises:
        SettingsError: a variable is missing or unusable, or a file cannot be read. The message quotes no secret.
    """
    repository = environment.get("PERENNIAL_MODELS_REPOSITORY", "")
    if not _ADDRESS.fullmatch(repository):
        raise SettingsError(
            "PERENNIAL_MODELS_REPOSITORY is not set, or no address that begins with https://, ssh:// or user@host:"
        )
    address = urlsplit(repository)
    if address.password is not None or (address.scheme == "https" and address.username is not None):
        raise SettingsError(
            "PERENNIAL_MODELS_REPOSITORY contains a user or password; write the user into PERENNIAL_MODELS_USER, and the "
            "password or token into the file that PERENNIAL_MODELS_TOKEN_FILE names"
        )
    ref = environment.get("PERENNIAL_MODELS_REF") or "main"
    if not _REF.fullmatch(ref) or ".." in ref:
        raise SettingsError(f"PERENNIAL_MODELS_REF is {ref}, which is no name of a branch, a tag or a commit")
    path = environment.get("PERENNIAL_MODELS_PATH", "include/models").strip("/")
    if ".." in Path(path).parts:
        raise SettingsError(f"PERENNIAL_MODELS_PATH is {path}; write a folder of the repository, such as include/models")
    key, token = (_given_file(environment, name) for name in ("PERENNIAL_MODELS_KEY_FILE", "PERENNIAL_MODELS_TOKEN_FILE"))
    if token is not None:
        redaction.remember(token.read_text(encoding="utf-8").strip())
    return Source(
        repository=repository,
        ref=ref,
        path="" if path == "." else path,
        user=environment.get("PERENNIAL_MODELS_USER") or "git",
        key=key,
        known_hosts=_given_file(environment, "PERENNIAL_MODELS_KNOWN_HOSTS_FILE") or Path(os.devnull),
        token=token,
    )


def _given_file(environment: Mapping[str, str], name: str) -> Path | None:
    """A file that is named and not empty."""
    file = Path(environment.get(name) or os.devnull)
    try:
        with file.open("rb") as stream:
            return file if stream.read(1) else None
    except OSError as error:
        raise SettingsError(
            f"{name}: {file} cannot be read by user {os.getuid()}: {error.strerror}; set the file's owner or mode"
        ) from error


class Follower:
    """Brings a folder to the newest commit.

    Args:
        source: where the models come from.
        place: the folder. This process alone writes to it.
    """

    def __init__(self, source: Source, place: Path) -> None:
        self._source, self._place = source, place
        self._link, self._commits = place / "current", place / "commits"
        self._repository = place / "repository"
        self._began = False

    @property
    def current(self) -> str | None:
        """The commit that readers see; None before the first one."""
        return os.path.basename(os.readlink(self._link)) if self._link.is_symlink() else None

    def update(self) -> str:
        """Fetch the newest commit and let readers see it. Returns the commit.

        Raises:
            StackError: the repository does not answer, or its commit has no folder of models. Readers see what they saw.
        """
        if not self._began:
            # Anew for each process, since one that was killed may have left it half written.
            shutil.rmtree(self._repository, ignore_errors=True)
            self._git("init", "--quiet", "--bare", str(self._repository), what="make a repository")
        fetched = f"+{self._source.ref}:{_FOLLOWED}"
        self._git("fetch", "--quiet", "--depth=1", "--no-tags", self._source.repository, fetched, what="fetch")
        commit = self._git("rev-parse", "--verify", f"{_FOLLOWED}^{{commit}}", what="read the commit").strip()
        if commit != self.current or not self._began:
            self._check_out(commit)
            self._switch(commit)
        self._tidy()
        self._began = True
        # The watchdog tells when this has not happened for long.
        (self._place / FOLLOWED_FILE).touch()
        return commit

    def _check_out(self, commit: str) -> None:
        """Write the models of a commit into a folder that its name says."""
        folder = self._commits / commit
        # A loss of power may have emptied files.
        if fits_record(folder):
            return
        draft = self._commits / f".{commit}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        index = self._place / ".index"
        index.unlink(missing_ok=True)
        path = self._source.path
        self._git("read-tree", f"{commit}:{path}", what=f"find the folder {path} in {commit}", index=index)
        # Links become files that contain their target: nothing in a repository leads a reader out of its folder.
        options = ("-c", "core.symlinks=false", "-c", "core.autocrlf=false")
        self._git(*options, f"--work-tree={draft}", "checkout-index", "--all", "--force", what="write the files", index=index)
        write_record(draft, commit)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)

    def _switch(self, commit: str) -> None:
        """Let the link lead to a commit."""
        if (before := self.current) is not None and (self._commits / before).is_dir():
            # From now on it is kept for a while.
            os.utime(self._commits / before)
        draft = self._place / ".current"
        draft.unlink(missing_ok=True)
        draft.symlink_to(Path("commits") / commit)
        draft.replace(self._link)
        log.info("models are now those of commit %s", commit)

    def _tidy(self) -> None:
        """Remove the folders of commits that no run reads any more."""
        now, current = time.time(), self.current
        for folder in self._commits.iterdir():
            if folder.name != current and now - folder.stat().st_mtime > KEPT:
                shutil.rmtree(folder, ignore_errors=True)

    def _git(self, *arguments: str, what: str, index: Path | None = None) -> str:
        """Run Git on the repository. Returns what it printed.

        Raises:
            StackError: it failed; the message has its last words.
        """
        command = ["git", *([] if arguments[0] == "init" else [f"--git-dir={self._repository}"]), *arguments]
        environment = {**os.environ, **self._environment(), **({"GIT_INDEX_FILE": str(index)} if index else {})}
        try:
            done = subprocess.run(  # noqa: S603 - our own commands
                command, env=environment, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            raise StackError(f"cannot {what}: Git took longer than {PATIENCE} seconds") from None
        if done.returncode:
            said = " ".join(done.stderr.split())[-500:] or f"Git ended with {done.returncode}"
            raise StackError(f"cannot {what} of {self._source.repository}, {self._source.ref}: {said}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        """What lets Git sign in, with files named and no secret said, and ask nobody."""
        source, settings = self._source, {"gc.autoDetach": "false"}
        ssh = "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=yes"
        ssh += f" -o UserKnownHostsFile={quote(str(source.known_hosts))}"
        if source.key is not None:
            ssh += f" -o IdentitiesOnly=yes -i {quote(str(source.key))}"
        if source.token is not None:
            address = urlsplit(source.repository)
            # For this server alone.
            told = f"printf 'username=%s\\npassword=%s\\n' {quote(source.user)} \"$(cat {quote(str(source.token))})\""
            settings[f"credential.{address.scheme}://{address.netloc}.helper"] = f'!f() {{ test "$1" = get && {told}; }}; f'
        numbered = {
            f"GIT_CONFIG_{part}_{place}": text
            for place, pair in enumerate(settings.items())
            for part, text in zip(("KEY", "VALUE"), pair, strict=True)
        }
        return {
            "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C",
            "GIT_SSH_COMMAND": ssh, "GIT_CONFIG_COUNT": str(len(settings)), **numbered,
        }  # fmt: skip


def follow(environment: Mapping[str, str], stopping: threading.Event) -> None:
    """Follow the repository until somebody says stop. What fails is told and tried again; readers keep what they have.

    Raises:
        SettingsError: see :func:`read_source`.
    """
    follower = Follower(read_source(environment), Path(environment["PERENNIAL_MODELS_PLACE"]))
    every, pulse = float(environment.get("PERENNIAL_MODELS_EVERY") or 30), environment.get("PERENNIAL_PULSE")
    told = None
    while not stopping.is_set():
        try:
            commit = follower.update()
            if told is not None:
                log.info("the repository answers again, at %s", commit)
            told = None
        except (StackError, OSError) as error:
            if str(error) != told:
                log.error("%s; the models stay at %s", error, follower.current or "none")
            told = str(error)
        # Healthy: there are models, and somebody looks for newer ones. A repository that is away for an hour stops nothing.
        if pulse and follower.current is not None:
            Path(pulse).touch()
        stopping.wait(every)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        follow(os.environ, stop)
    except SettingsError as error:
        sys.exit(f"models: {error}. docs/deploy.md, “Models from Git”, tells more.")
