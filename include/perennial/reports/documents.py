"""A page for people, made of sections that each say something, as HTML and as Markdown.

What is put in may come from data (a category's name, a label) or from people: in HTML it is escaped by Jinja2, in Markdown
by a backslash, and characters that would not show or would turn text around are spelled out. The HTML is one file: the
style is inside, pictures are data URIs, and it may run no script and fetch nothing.

Neighbour: :mod:`perennial.reports.cards` says what stands in it.
"""

from __future__ import annotations

import base64
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from perennial.core.errors import CardError

#: Longest text that is shown whole: whoever writes a chapter into a category's name does not get a chapter.
_LONGEST = 4_000
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


@dataclass(frozen=True)
class Mark:
    """A word that is coloured by what it means."""

    word: str
    tone: Literal["good", "bad", "warn", "quiet"]


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "words"

    def __bool__(self) -> bool:
        return bool(self.text.strip())


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    lines: Sequence[str]
    kind: ClassVar[str] = "points"

    def __bool__(self) -> bool:
        return bool(self.lines)


@dataclass(frozen=True)
class Facts:
    """Names and values; what is None is left out."""

    pairs: Sequence[tuple[str, Any]]
    kind: ClassVar[str] = "facts"

    @property
    def shown(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in self.pairs if value is not None]

    def __bool__(self) -> bool:
        return bool(self.shown)


@dataclass(frozen=True)
class Grid:
    """Rows of cells: texts, numbers, :class:`Mark` or None."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    kind: ClassVar[str] = "table"

    def __bool__(self) -> bool:
        return bool(self.rows)


@dataclass(frozen=True)
class Picture:
    """A PNG. In Markdown it is a file of that name beside the page."""

    name: str
    caption: str
    png: bytes = field(repr=False)
    kind: ClassVar[str] = "picture"

    def __bool__(self) -> bool:
        return bool(self.png)

    @property
    def uri(self) -> Markup:
        return Markup(f"data:image/png;base64,{base64.b64encode(self.png).decode()}")  # noqa: S704  # letters, digits, +, /, =


@dataclass(frozen=True)
class Code:
    """Text that is shown as it is, such as a difference between two files."""

    caption: str
    text: str
    kind: ClassVar[str] = "code"

    def __bool__(self) -> bool:
        return bool(self.text.strip())


Block = Words | Points | Facts | Grid | Picture | Code


@dataclass(frozen=True)
class Chapter:
    """A part of a page.

    Attributes:
        title: its heading.
        blocks: what it says; none of them may be empty.
        wanted: what would fill it, for whoever meets the error.
    """

    title: str
    blocks: Sequence[Block]
    wanted: str


@dataclass(frozen=True)
class Document:
    """A page.

    Attributes:
        kind: what sort of page, above the title.
        title: of it.
        lead: a sentence below the title.
        mark: how things stand, in a word or two.
        figures: the few numbers to see first: name, value, what it compares with.
        sections: in their order.
    """

    kind: str
    title: str
    lead: str
    mark: Mark
    figures: Sequence[tuple[str, str, str]]
    sections: Sequence[Chapter]

    def check(self) -> None:
        """Refuse a page with a section that says nothing, or that lacks something it should show.

        Raises:
            CardError: naming each such section, and what would fill it.
        """
        empty = [section for section in self.sections if not section.blocks or not all(section.blocks)]
        if empty:
            lines = "; ".join(f"{section.title}: {section.wanted}" for section in empty)
            raise CardError(f"{self.title}: the {self.kind.lower()} has nothing to show in {lines}")

    @property
    def pictures(self) -> list[Picture]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Picture)]

    def to_html(self) -> str:
        return _environment().get_template("document.html.j2").render(document=self)

    def to_markdown(self) -> str:
        lines = [f"# {_md(self.title)}", "", f"{self.kind}. {_md(self.lead)}", "", f"**{_md(self.mark.word)}**", ""]
        lines += [f"- {_md(name)}: **{_md(value)}** {_md(note)}".rstrip() for name, value, note in self.figures]
        for section in self.sections:
            lines += ["", f"## {_md(section.title)}"]
            for block in section.blocks:
                lines += ["", *_markdown(block)]
        return "\n".join(lines) + "\n"


# --- values ----------------------------------------------------------------------------------------------------------


def show(value: Any) -> str:
    """A value as people read it, without markup; nothing in it is invisible or turns the text around."""
    match value:
        case None:
            return "-"
        case Mark():
            text = value.word
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return _number(value)
        case list() | tuple():
            text = ", ".join(show(part) for part in value)
        case dict():
            text = ", ".join(f"{name} {show(part)}" for name, part in value.items())
        case _:
            text = str(value)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return "".join(letter if _is_plain(letter) else f"\\u{ord(letter):04x}" for letter in text)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _is_plain(letter: str) -> bool:
    # Controls, and formats such as the right-to-left override; a half of a surrogate pair cannot be written at all.
    return letter == "\n" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs")


# --- HTML ------------------------------------------------------------------------------------------------------------


def page_templates(finalize: Callable[[Any], Any] | None = None) -> Environment:
    """The templates of this package, in which every value is escaped and none may be missing.

    Args:
        finalize: changes each value before it is escaped; by default nothing does.
    """
    return Environment(
        loader=PackageLoader("perennial.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    # Whatever is put in is made readable first, and escaped then.
    environment = page_templates(finalize=lambda value: value if isinstance(value, Markup) else show(value))
    environment.tests["mark"] = lambda value: isinstance(value, Mark)
    environment.tests["quantity"] = lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    return environment


# --- Markdown --------------------------------------------------------------------------------------------------------


def _md(value: Any) -> str:
    return _MARKDOWN.sub(r"\\\1", show(value)).replace("\n", " ")


def _markdown(block: Block) -> list[str]:
    match block:
        case Words():
            return [_md(block.text)]
        case Points():
            return [f"- {_md(line)}" for line in block.lines]
        case Facts():
            return [f"- {_md(name)}: {_md(value)}" for name, value in block.shown]
        case Grid():
            rule = ["---"] * len(block.columns)
            return [
                f"| {' | '.join(cells)} |" for cells in [map(_md, block.columns), rule, *(map(_md, row) for row in block.rows)]
            ]
        case Picture():
            return [f"![{_md(block.caption)}]({block.name})"]
        case Code():
            # Indented, a line cannot end the block, whatever it holds.
            return [f"{_md(block.caption)}:", "", *(f"    {show(line)}" for line in block.text.splitlines())]
