from __future__ import annotations

from pathlib import Path

import pytest

from perennial.core.files import replacing


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
