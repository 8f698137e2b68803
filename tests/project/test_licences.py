"""The page of licences names every package that runs, and none whose licence a company could not accept unseen."""

from __future__ import annotations

import re

from perennial.core.settings import PROJECT
from scripts.licences_page import PAGE, locked

ROWS = re.findall(r"(?m)^\| ([a-z0-9][a-z0-9._-]*) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"))


def test_the_page_lists_the_packages_of_the_lock_with_their_versions() -> None:
    assert {(name, version) for name, versions, _ in ROWS for version in versions.split(", ")} == set(locked()), "run make docs"
    assert len(locked()) > 100


def test_every_licence_is_stated() -> None:
    assert [name for name, _, stated in ROWS if stated == "not stated"] == []


def test_licences_that_companies_ask_about_are_explained() -> None:
    text = (PROJECT / "docs" / "licences.md").read_text(encoding="utf-8")
    asked = [name for name, _, stated in ROWS if re.search(r"GPL|General Public", stated)]
    assert [name for name in asked if f"**{name}**" not in text] == []
