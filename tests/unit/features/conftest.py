"""DuckDB leaves nothing on the disk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_directory_is_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever DuckDB puts on disk is gone when it is closed."""
    spill = tmp_path_factory.mktemp("spill")
    monkeypatch.setattr("tempfile.tempdir", str(spill))
    yield
    assert list(spill.iterdir()) == []
