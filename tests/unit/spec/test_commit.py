"""Which commit a model's folder is of: what Git or a record tells, and nothing that does not fit the files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from perennial.core.settings import PROJECT
from perennial.spec.commit import RECORD, commit_of, write_record

SCRIPT = str(PROJECT / "scripts" / "built.sh")
COMMIT = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
#: No Git is found here.
WITHOUT_GIT = {"PATH": "/nowhere"}


@pytest.fixture(autouse=True)
def no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git looks for no repository above the test's folder."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


def write_folder(root: Path) -> Path:
    folder = root / "include" / "models" / "toy"
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text("name: toy\n")
    return folder


def git(root: Path, *command: str) -> str:
    author = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    return subprocess.run(["git", *author, *command], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def record_of(root: Path, folder: Path | str) -> bytes:
    return subprocess.run(["sh", SCRIPT, folder], cwd=root, check=True, capture_output=True).stdout


@pytest.mark.parametrize("packed", [False, True])
def test_an_image_names_the_commit_it_was_built_from_until_the_model_is_changed(tmp_path: Path, packed: bool) -> None:
    folder = write_folder(tmp_path)
    copied = tmp_path / "git"
    ref = copied / "refs" / "heads" / "main"
    ref.parent.mkdir(parents=True)
    (copied / "HEAD").write_text("ref: refs/heads/main\n")
    if packed:
        (copied / "packed-refs").write_text(f"{COMMIT} refs/heads/main\n{'0' * 40} refs/heads/main-2\n")
    else:
        ref.write_text(f"{COMMIT}\n")
    built = tmp_path / "BUILT"
    built.write_bytes(record_of(tmp_path, copied))
    assert commit_of(folder, built) == (COMMIT, None)

    (folder / "model.py").write_text("# new\n")
    assert commit_of(folder, built) == ("unknown", None)


def test_an_image_built_outside_a_repository_knows_no_commit(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    built = tmp_path / "BUILT"
    built.write_bytes(record_of(tmp_path, tmp_path / "git"))
    assert built.read_text().splitlines()[0] == "unknown"
    assert commit_of(folder, built) == ("unknown", None)


def test_a_folder_in_a_repository_is_of_its_commit_with_or_without_changes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "Add")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(folder, tmp_path / "BUILT") == (head, False)
    (folder / "model.yaml").write_text("name: other\n")
    assert commit_of(folder, tmp_path / "BUILT") == (head, True)


def test_a_checkout_has_a_record_for_those_who_see_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path)
    (tmp_path / ".gitignore").write_text(f"/include/models/{RECORD}\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "Add")
    record, head = folder.parent / RECORD, git(tmp_path, "rev-parse", "HEAD")
    record.write_bytes(record_of(tmp_path, ".git"))
    (folder / "model.py").write_text("# not committed\n")
    changed = record_of(tmp_path, ".git")

    monkeypatch.setitem(os.environ, "PATH", WITHOUT_GIT["PATH"])
    assert commit_of(folder, tmp_path / "BUILT") == ("unknown", None)
    (folder / "model.py").unlink()
    assert commit_of(folder, tmp_path / "BUILT") == (head, False)
    # A record that was written while files differed names no commit.
    assert changed.startswith(b"unknown\n")


def test_a_record_fits_each_model_by_itself(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    other = folder.with_name("toy_too")
    other.mkdir()
    (other / "model.yaml").write_text("name: toy_too\n")
    write_record(folder.parent, COMMIT)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "model.pyc").write_bytes(b"compiled")
    (other / "model.yaml").write_text("name: changed\n")
    assert commit_of(folder, tmp_path / "BUILT") == (COMMIT, False)
    assert commit_of(other, tmp_path / "BUILT") == ("unknown", None)


@pytest.mark.parametrize("text", ["", "\n", f"{COMMIT}\nno hash\n", "\udcff", f"{COMMIT} clean\n"])
def test_a_record_that_says_nothing_of_the_files_is_not_believed(tmp_path: Path, text: str) -> None:
    folder = write_folder(tmp_path)
    (folder.parent / RECORD).write_bytes(text.encode(errors="surrogateescape"))
    assert commit_of(folder, tmp_path / "BUILT") == ("unknown", None)
