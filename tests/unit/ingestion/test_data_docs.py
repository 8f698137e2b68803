"""The page of checks quotes nothing raw, and asks no other server."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.landing import (
    checked,
    row,
)


def test_data_docs_lie_at_one_place_a_table_and_interval_and_quote_nothing_raw(tmp_path: Path) -> None:
    columns = {"place": {"type": "string", "matches": "^[A-Z]{3}$"}}
    rows = [row("a"), row("b", place="<script>alert(1)</script>"), row("c", place="<img src=x onerror=alert(1)>")]

    first = checked(tmp_path, *rows, columns=columns)
    second = checked(tmp_path, row("a"), columns=columns)

    page = tmp_path / "docs" / "trips" / "2013-04-01.html"
    assert first.result.data_docs == second.result.data_docs == str(page)
    assert "alert(1)" not in page.read_text()
    assert [file.name for file in page.parent.iterdir()] == [page.name]
    checked(tmp_path, *rows, columns=columns)
    text = page.read_text()
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert(1)" not in text
    assert "<img src=x" not in text
    # Nobody else learns who reads which page when.
    assert not re.search(r"(src|href)=.https?://(?!greatexpectations)|<script|url\(", text)
    assert "default-src 'none'" in text
