"""The models of a deployment follow a branch of a real repository: atomically, by the commit's name, whatever is pushed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from perennial.core.errors import SettingsError, StackError
from perennial.core.settings import PROJECT
from perennial.operations import follow
from perennial.operations.follow import Follower, Source, read_source
from perennial.spec.commit import commit_of
from perennial.spec.folder import read_model, read_models
from tests.unit.spec.late import GOOD, write

NO_RECORD = Path("/nowhere")


class Repository:
    """A repository with a work tree, as authors have it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.models = folder, folder / "include" / "models"
        self.models.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch", "main")

    def git(self, *command: str) -> str:
        author = ("-c", "user.name=Author", "-c", "user.email=author@example.org")
        done = subprocess.run(["git", *author, *command], cwd=self.folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "Change the models")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    write(made.models, GOOD)
    return made


@pytest.fixture
def follower(repository: Repository, tmp_path: Path) -> Follower:
    return Follower(Source(f"file://{repository.folder}"), tmp_path / "models")


def test_readers_see_each_commit_as_a_whole_and_name_it(repository: Repository, follower: Follower, tmp_path: Path) -> None:
    models = tmp_path / "models" / "current"
    first = repository.commit()
    assert follower.current is None
    assert follower.update() == first
    before = read_model(models / "late")
    assert before.path == tmp_path / "models" / "commits" / first / "late"
    assert commit_of(before.path, NO_RECORD) == (first, False)

    write(repository.models, GOOD.replace("name: late", "name: new"), name="new")
    second = repository.commit()
    assert follower.update() == second
    assert set(read_models(models)[0]) == {"late", "new"}
    assert commit_of(read_model(models / "new").path, NO_RECORD) == (second, False)
    # Who has begun with the first one goes on with it.
    assert read_model(before.path).digest == before.digest


def test_a_broken_model_takes_no_other_down(repository: Repository, follower: Follower, tmp_path: Path) -> None:
    write(repository.models, GOOD.replace("name: late", "name: new"), name="new")
    repository.commit()
    follower.update()
    (repository.models / "new" / "model.yaml").write_text("name: [\n")
    repository.commit()
    follower.update()
    good, broken = read_models(tmp_path / "models" / "current")
    assert (list(good), list(broken)) == (["late"], ["new"])


def test_a_commit_without_models_changes_nothing(repository: Repository, follower: Follower) -> None:
    first = repository.commit()
    follower.update()
    repository.git("mv", "include/models", "elsewhere")
    repository.commit()
    with pytest.raises(StackError, match="cannot find the folder include/models in"):
        follower.update()
    assert follower.current == first


def test_a_branch_that_was_rewound_is_followed(repository: Repository, follower: Follower) -> None:
    first = repository.commit()
    repository.commit()
    follower.update()
    repository.git("reset", "--quiet", "--hard", first)
    assert follower.update() == follower.current == first


def test_another_branch_a_tag_and_another_folder_can_be_followed(repository: Repository, tmp_path: Path) -> None:
    repository.commit()
    repository.git("checkout", "--quiet", "-b", "release/1")
    repository.git("mv", "include/models/late", "late")
    moved = repository.commit()
    repository.git("tag", "--annotate", "--message", "A tag", "v1")
    for ref in ("release/1", "v1", moved):
        follower = Follower(Source(f"file://{repository.folder}", ref=ref, path=""), tmp_path / ref.replace("/", "-"))
        repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
        assert follower.update() == moved
        assert (tmp_path / ref.replace("/", "-") / "current" / "late" / "model.yaml").is_file()


def test_a_link_in_the_repository_leads_nowhere(repository: Repository, follower: Follower, tmp_path: Path) -> None:
    (repository.models / "late" / "model.py").symlink_to("/etc/passwd")
    (repository.models / "other").symlink_to("/etc")
    repository.commit()
    follower.update()
    written = tmp_path / "models" / "current" / "late" / "model.py"
    assert (written.is_symlink(), written.read_text()) == (False, "/etc/passwd")
    assert list(read_models(tmp_path / "models" / "current")[0]) == []


def test_what_was_left_half_written_is_written_again(repository: Repository, follower: Follower, tmp_path: Path) -> None:
    commit = repository.commit()
    place = tmp_path / "models"
    (place / "commits" / f".{commit}").mkdir(parents=True)
    (place / "repository").mkdir()
    (place / "repository" / "shallow.lock").touch()
    (place / ".current").symlink_to("nowhere")
    assert follower.update() == commit
    assert read_models(place / "current")[1] == {}


def test_what_a_loss_of_power_has_emptied_is_written_again(repository: Repository, follower: Follower, tmp_path: Path) -> None:
    repository.commit()
    follower.update()
    emptied = tmp_path / "models" / "current" / "late" / "model.yaml"
    emptied.write_text("")
    Follower(follower._source, tmp_path / "models").update()
    assert read_models(tmp_path / "models" / "current")[1] == {}


def test_old_commits_are_removed_once_no_run_reads_them(repository: Repository, follower: Follower, tmp_path: Path) -> None:
    commits = tmp_path / "models" / "commits"
    first = repository.commit()
    follower.update()
    os.utime(commits / first, (0, 0))
    second = repository.commit()
    follower.update()
    # It was read until now, however old it is.
    assert {folder.name for folder in commits.iterdir()} == {first, second}
    left = time.time() - follow.KEPT - 1
    os.utime(commits / first, (left, left))
    follower.update()
    assert {folder.name for folder in commits.iterdir()} == {second}


def test_a_repository_that_is_away_stops_nothing(repository: Repository, follower: Follower, tmp_path: Path) -> None:
    commit = repository.commit()
    follower.update()
    repository.folder.rename(tmp_path / "away")
    with pytest.raises(StackError, match=r"cannot fetch of file://\S+, main: .*not appear to be a git repository"):
        follower.update()
    assert follower.current == commit
    os.utime(tmp_path / "models" / "followed", (0, 0))
    with pytest.raises(StackError):
        follower.update()
    assert (tmp_path / "models" / "followed").stat().st_mtime == 0
    (tmp_path / "away").rename(repository.folder)
    follower.update()
    assert (tmp_path / "models" / "followed").stat().st_mtime > 0


def test_the_service_follows_until_it_is_told_to_end(repository: Repository, tmp_path: Path) -> None:
    """By the command of docker-compose.yaml, with an interpreter that has no packages."""
    first = repository.commit()
    place, pulse = tmp_path / "models", tmp_path / "pulse"
    given = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT / "include"), "PERENNIAL_MODELS_EVERY": "0.1",
        "PERENNIAL_MODELS_REPOSITORY": f"file://{repository.folder}", "PERENNIAL_MODELS_PLACE": str(place),
        "PERENNIAL_PULSE": str(pulse),
    }  # fmt: skip
    command = [sys.executable, "-S", "-m", "perennial.operations.follow"]
    with subprocess.Popen(command, env=given, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert f"models are now those of commit {first}" in process.stderr.readline()
            second = repository.commit()
            assert f"models are now those of commit {second}" in process.stderr.readline()
        finally:
            process.terminate()
        assert process.wait(timeout=20) == 0
    assert pulse.exists()


def test_what_fails_is_told_once_and_tried_again(
    repository: Repository, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits: the clock of the loop makes the repository appear after three looks."""
    looks, stopping = [], threading.Event()
    away = repository.folder.rename(tmp_path / "away")

    def wait(_: float) -> bool:
        looks.append(1)
        if len(looks) == 3:
            away.rename(repository.folder)
            repository.commit()
        if len(looks) == 4:
            stopping.set()
        return stopping.is_set()

    monkeypatch.setattr(stopping, "wait", wait)
    given = {"PERENNIAL_MODELS_REPOSITORY": f"file://{repository.folder}", "PERENNIAL_MODELS_PLACE": str(tmp_path / "models")}
    with caplog.at_level("INFO"):
        follow.follow(given, stopping)
    words = [record.getMessage() for record in caplog.records]
    assert len(words) == 3, words
    assert words[0].startswith("cannot fetch of")
    assert words[0].endswith("the models stay at none")
    assert words[2].startswith("the repository answers again")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "PERENNIAL_MODELS_REPOSITORY is not set"),
        ({"PERENNIAL_MODELS_REPOSITORY": "ext::sh -c evil"}, "no address"),
        ({"PERENNIAL_MODELS_REPOSITORY": "http://git.example.org/models.git"}, "no address"),
        ({"PERENNIAL_MODELS_REPOSITORY": "--upload-pack=evil"}, "no address"),
        ({"PERENNIAL_MODELS_REPOSITORY": "https://me:hidden-word@git.example.org/m.git"}, "contains a user or password"),
        ({"PERENNIAL_MODELS_REPOSITORY": "https://hidden-word@git.example.org/m.git"}, "contains a user or password"),
        ({"PERENNIAL_MODELS_REF": "--evil"}, "PERENNIAL_MODELS_REF is --evil"),
        ({"PERENNIAL_MODELS_PATH": "../other"}, "PERENNIAL_MODELS_PATH is ../other"),
        ({"PERENNIAL_MODELS_KEY_FILE": "/nowhere/key"}, "PERENNIAL_MODELS_KEY_FILE: /nowhere/key cannot be read by user"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_by_name(given: dict[str, str], told: str) -> None:
    named = {"PERENNIAL_MODELS_REPOSITORY": "git@git.example.org:team/models.git"} if given else {}
    with pytest.raises(SettingsError, match=told) as raised:
        read_source({**named, **given})
    assert "hidden-word" not in str(raised.value)


def test_a_token_is_given_to_its_server_alone_and_never_said(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a-token-of-the-repository\n")
    given = {"PERENNIAL_MODELS_REPOSITORY": "https://git.example.org/m.git", "PERENNIAL_MODELS_TOKEN_FILE": str(file)}
    follower = Follower(read_source(given), tmp_path / "models")
    environment = {"PATH": os.environ["PATH"], **follower._environment()}
    assert "a-token-of-the-repository" not in str(environment)

    def ask(host: str) -> str:
        """What Git would send to a server."""
        wanted = f"protocol=https\nhost={host}\n\n"
        return subprocess.run(
            ["git", "credential", "fill"], input=wanted, env=environment, capture_output=True, text=True, check=False
        ).stdout  # fmt: skip

    assert "username=git\npassword=a-token-of-the-repository\n" in ask("git.example.org")
    assert "password" not in ask("git.example.com")
    assert "a-token" not in str(StackError("Git said a-token-of-the-repository"))


def test_an_ssh_server_that_is_not_known_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a private key")
    given = {
        "PERENNIAL_MODELS_REPOSITORY": "git@git.example.org:m.git", "PERENNIAL_MODELS_KEY_FILE": str(tmp_path / "key"),
        "PERENNIAL_MODELS_KNOWN_HOSTS_FILE": os.devnull,
    }  # fmt: skip
    ssh = Follower(read_source(given), tmp_path / "models")._environment()["GIT_SSH_COMMAND"]
    assert "StrictHostKeyChecking=yes" in ssh
    assert f"IdentitiesOnly=yes -i {tmp_path / 'key'}" in ssh
