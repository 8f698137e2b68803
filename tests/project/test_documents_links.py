"""Documents hold together: links lead somewhere, what is quoted is what is there, and pages for newcomers stay short."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
#: Folders of the project that hold documents; what a deployment or a tool leaves lies elsewhere.
FOLDERS = ("benchmarks", "dags", "deploy", "docs", "examples", "include", "monitoring", "plugins", "scripts", "tests")
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *(page for folder in FOLDERS for page in (PROJECT / folder).rglob("*.md"))])
DECISIONS = sorted((PROJECT / "docs" / "decisions").glob("[0-9]*.md"))

_FENCED = re.compile(r"(?ms)^```.*?^```$")
_LINK = re.compile(r"\]\(([^()\s]+)\)")


def name(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The addresses that GitHub gives a page's headings: of equal ones the second ends with -1, and so on."""
    found: Counter[str] = Counter()
    addresses = set()
    for heading in re.findall(r"(?m)^#{1,6} (.+)$", prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        address = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        addresses.add(f"{address}-{found[address]}" if found[address] else address)
        found[address] += 1
    return addresses


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(PROJECT), f"{name(page)}: {link} leads out of the project"
        assert target.exists(), f"{name(page)}: {link}: there is no such file"
        if anchor:
            assert target.suffix == ".md", f"{name(page)}: {link}: only documents have headings"
            assert anchor in anchors(target), f"{name(page)}: {link}: {name(target)} has {sorted(anchors(target))}"


def test_every_document_is_reached_from_the_readme() -> None:
    reached, ahead = set(), [PROJECT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = [(page.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(prose(page))]
        ahead += [target for target in targets if target.suffix == ".md" and target.exists()]
    assert [name(page) for page in DOCUMENTS if page not in reached] == []


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_a_file_that_a_page_shows_is_shown_as_it_is(page: Path) -> None:
    for shown, block in re.findall(r"(?ms)^<!-- (\S+) -->\n```\w+\n(.*?)^```$", page.read_text(encoding="utf-8")):
        assert (PROJECT / shown).read_text(encoding="utf-8") == block, f"{name(page)}: {shown} has changed"


@pytest.mark.parametrize(("page", "most"), [("README.md", 200), ("ARCHITECTURE.md", 150)])
def test_pages_for_newcomers_stay_short(page: str, most: int) -> None:
    assert len((PROJECT / page).read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("record", DECISIONS, ids=name)
def test_a_decision_says_why_and_what_follows_in_few_lines(record: Path) -> None:
    text = record.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 30
    assert re.match(rf"# {record.name[:4]}\. \S", text)
    assert re.search(r"(?m)^Status: (accepted|replaced by \[\d{4}\]\(\S+\)) · Date: \d{4}-\d\d-\d\d$", text)
    assert re.findall(r"(?m)^## (.+)$", text) == ["Context", "Decision", "Consequences"]


def test_decisions_are_numbered_without_gaps_and_each_has_its_line() -> None:
    numbers = [int(record.name[:4]) for record in DECISIONS]
    assert numbers == list(range(1, len(numbers) + 1))
    index = (PROJECT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^\| \[\d{4}\]\((\S+)\)", index) == [record.name for record in DECISIONS]


def test_architecture_names_what_is_there_and_every_package() -> None:
    page = (PROJECT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    product = PROJECT / "include" / "perennial"
    named = [path for path in re.findall(r"`([\w./-]+(?:\.py|\.j2|/))`", page) if "<" not in path]
    missing = [path for path in named if not any((below / path).exists() for below in (product, PROJECT, PROJECT / "tests"))]
    assert missing == [], "ARCHITECTURE.md sends people to files that are not there"
    packages = {folder.parent.name for folder in product.glob("*/__init__.py")}
    rows = set(re.findall(r"(?m)^\| `(\w+)/` \|", page))
    assert packages == rows, "ARCHITECTURE.md has a row for each package, and no other"


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_every_module_that_a_page_names_is_there(page: Path) -> None:
    for dotted in re.findall(r"`(perennial(?:\.\w+)+)`", prose(page)):
        # The DAG of alerts belongs to no model.
        if dotted == "perennial.notify" or page.name == "CHANGELOG.md":
            continue
        path, attribute = PROJECT / "include" / dotted.replace(".", "/"), dotted.rpartition(".")[2]
        holder = path.parent.with_suffix(".py")
        defined = rf"(?m)^(?:def|class) {attribute}\b|^{attribute}\b"
        known = (
            path.with_suffix(".py").exists()
            or (path / "__init__.py").exists()
            or (holder.exists() and re.search(defined, holder.read_text(encoding="utf-8")))
        )
        assert known, f"{name(page)}: there is no {dotted}"
