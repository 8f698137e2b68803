"""Writes docs/licences.md: the licence of each package in requirements.lock, as the installed packages state it.

``make docs`` runs it. ``tests/project/test_licences.py`` holds the page to the lock.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageMetadata, PackageNotFoundError, files, metadata

from perennial.core.settings import PROJECT

PAGE = PROJECT / "docs" / "licences.md"

HEAD = """# Licences

Perennial is licensed under Apache-2.0 ([LICENSE](../LICENSE)). This page lists the licence of every package that runs with it,
from `requirements.lock`, as the package itself states it. `make docs` writes it; please do not edit it by hand.

Companies ask about these:

- **psycopg2-binary** (LGPL, with exceptions) is the driver of PostgreSQL. Perennial imports it unchanged, as a package of its
  own that you can replace. It also contains libpq (PostgreSQL licence) and OpenSSL (Apache-2.0). If your company builds its
  own, install `psycopg2` in its place.
- **text-unidecode** (Artistic or GPL, at your choice) comes with `python-slugify`, which Airflow requires. The choice is
  yours: under the Artistic License you may use and pass on the unchanged package.

| Package | Version | Licence |
| --- | --- | --- |
"""


def locked() -> list[tuple[str, str]]:
    """The packages of requirements.lock with their versions, of which Pythons may have different ones."""
    text = (PROJECT / "requirements.lock").read_text()
    return re.findall(r"(?m)^([a-z0-9][a-z0-9._-]*)(?:\[[^\]]*\])?==(\S+)", text)


def licence(found: PackageMetadata) -> str:
    """What a package says of its licence, in one line: its expression, its classifiers, or the first line of its text."""
    if expression := _stated(found, "License-Expression"):
        return expression
    classifiers = [line.rpartition(" :: ")[2] for line in found.get_all("Classifier") or [] if line.startswith("License :: ")]
    if named := [line for line in classifiers if line != "OSI Approved"]:
        return ", ".join(dict.fromkeys(named))
    lines = [line.strip() for line in _stated(found, "License").splitlines() if line.strip()]
    return lines[0][:80] if lines else _title(found["Name"])


def _stated(found: PackageMetadata, field: str) -> str:
    return str(found[field]) if field in found else ""


def _title(name: str) -> str:
    """The title of the licence that a package brings as a file."""
    for file in files(name) or []:
        if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING")):
            text = file.read_text()
            if "Permission is hereby granted, free of charge" in text:
                return "MIT"
            return next((line.strip()[:80] for line in text.splitlines() if line.strip()), "not stated")
    return "not stated"


def page() -> str:
    """The text of the page."""
    versions: dict[str, list[str]] = {}
    for name, version in locked():
        versions.setdefault(name, []).append(version)
    rows = []
    for name, pinned in versions.items():
        try:
            stated = licence(metadata(name)).replace("|", "/")
        except PackageNotFoundError:
            stated = "not installed on Linux"
        rows.append(f"| {name} | {', '.join(dict.fromkeys(pinned))} | {stated} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
