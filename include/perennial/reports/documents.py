"""Makes a page for people from sections, as HTML and as Markdown. A page with an empty section is refused.

Values may come from data (a category's name, a label) or from people, so they are escaped: in HTML by Jinja2, in Markdown with
a backslash. Characters that are invisible or change the direction of text are shown as codes. The HTML is one file: it contains
its style, its pictures are data URIs, and it may run no script and fetch nothing.

Neighbour: :mod:`perennial.reports.cards` decides what a page contains.
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

#: The longest text that is shown whole, in characters. A very long category name must not fill the page.
_LONGEST = 4_000
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


@dataclass(frozen=True)
class Mark:
    """A word with a colour that shows its meaning."""

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
    """Names and values; a value that is None is left out."""

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
        blocks: its content; no block may be empty.
        wanted: what would fill it, for the error message.
    """

    title: str
    blocks: Sequence[Block]
    wanted: str


@dataclass(frozen=True)
class Document:
    """A page.

    Attributes:
        kind: the kind of page, shown above the title.
        title: the heading of the page.
        lead: a sentence below the title.
        mark: the status, in a word or two.
        figures: the most important numbers: name, value, and a note such as an interval.
        sections: in the order in which they are shown.
    """

    kind: str
    title: str
    lead: str
    mark: Mark
    figures: Sequence[tuple[str, str, str]]
    sections: Sequence[Chapter]

    def check(self) -> None:
        """Refuse a page with a section that is empty or has an empty block.

        Raises:
            CardError: at least one section is such. The message names each of them, and what would fill it.
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
    """A value as text for people, without markup. Characters that are invisible or change the direction become codes."""
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
    # Not plain: control characters, format characters such as the right-to-left override, and half surrogate pairs, which
    # cannot be encoded.
    return letter == "\n" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs")


# --- HTML ------------------------------------------------------------------------------------------------------------


def page_templates(finalize: Callable[[Any], Any] | None = None) -> Environment:
    """The templates of this package. Every value is escaped, and a missing value is an error.

    Args:
        finalize: changes each value before it is escaped; None: values stay as they are.
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
    # Each value is first made readable, then escaped.
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
            # An indented line cannot end the block, whatever it contains.
            return [f"{_md(block.caption)}:", "", *(f"    {show(line)}" for line in block.text.splitlines())]
