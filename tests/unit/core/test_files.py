from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from perennial.core.files import open_below, replacing


def test_a_file_stays_as_it_was_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "page.html"
    with replacing(file) as draft:
        draft.write_text("first")
        assert not file.exists()
    with replacing(file) as draft:
        draft.write_text("second")
        assert file.read_text() == "first"
    assert file.read_text() == "second"
    assert list(file.parent.iterdir()) == [file]


def test_a_failure_leaves_the_file_before_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("first")

    def fail() -> None:
        with replacing(file) as draft:
            draft.write_text("half of the sec")
            raise RuntimeError("the disk")

    with pytest.raises(RuntimeError, match="the disk"):
        fail()
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]


def test_two_who_write_at_once_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    with replacing(file) as one, replacing(file) as other:
        one.write_text("one")
        other.write_text("other")
    assert file.read_text() == "one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_below_a_folder_is_opened_through_no_link(tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "file").write_text("content")
    secret.mkdir()
    (secret / "file").write_text("secret")
    (root / "linked").symlink_to(secret)
    (root / "inner" / "link").symlink_to(secret / "file")
    before = len(os.listdir("/proc/self/fd"))

    with open(open_below(root, ["inner", "file"])) as stream:
        assert stream.read() == "content"
    for parts in (["linked", "file"], ["inner", "link"], ["inner", "nothing"], ["nothing", "file"]):
        with pytest.raises(OSError, match=re.escape(parts[-1] if parts[0] == "inner" else parts[0])):
            open_below(root, parts)
    assert len(os.listdir("/proc/self/fd")) == before
