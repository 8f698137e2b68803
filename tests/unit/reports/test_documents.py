"""A page says something in each of its sections, and whatever stands in it is text."""

from __future__ import annotations

from base64 import b64encode
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.core.errors import CardError
from perennial.reports.documents import Block, Code, Document, Facts, Mark, Picture, Points, Section, Table, Words, show

PNG = b"\x89PNG"
HOSTILE = "<script>alert('x')</script>\"'&|`*_[a](javascript:b)\u202e\x00"


def page(*blocks: Block, title: str = "Title", wanted: str = "more of it") -> Document:
    return Document("Card", title, "lead", Mark("fine", "good"), [], [Section("Part", list(blocks), wanted)])


class Reader(HTMLParser):
    """What a browser would make of a page: its elements, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize(
    "block", [Words(" "), Points([]), Facts([("name", None)]), Table(["column"], []), Picture("a.png", "a", b""), Code("a", "")]
)
def test_a_section_that_would_be_empty_fails_and_says_what_would_fill_it(block: Block) -> None:
    for blocks in ([block], [Words("something else"), block], []):
        with pytest.raises(CardError, match="Title: the card has nothing to show in Part: more of it"):
            page(*blocks).check()
    page(Words("words"), Points(["a"]), Facts([("name", 0)]), Table(["a"], [[None]]), Picture("a.png", "a", PNG)).check()


def test_what_comes_from_data_is_text_and_nothing_else() -> None:
    document = Document(
        "Card", HOSTILE, HOSTILE, Mark(HOSTILE, "bad"), [(HOSTILE, HOSTILE, HOSTILE)],
        [
            Section(
                HOSTILE,
                [
                    Words(HOSTILE), Points([HOSTILE]), Facts([(HOSTILE, HOSTILE), ("mark", Mark(HOSTILE, "warn"))]),
                    Table([HOSTILE], [[HOSTILE], [Mark(HOSTILE, "good")], [{HOSTILE: [HOSTILE]}]]),
                    Picture("a.png", HOSTILE, PNG), Code(HOSTILE, HOSTILE),
                ],
                "",
            )
        ],
    )  # fmt: skip
    html = document.to_html()
    seen = Reader(html)
    assert "script" not in seen.tags
    assert not {name for name in seen.attributes if name.startswith("on")}
    assert HOSTILE[:27] in "".join(seen.text)
    assert "\u202e" not in html
    assert "\\u202e\\u0000" in html
    # Outside of blocks of code, which are indented, nothing in Markdown begins an element, a link or a cell.
    lines = [line for line in document.to_markdown().splitlines() if not line.startswith("    ")]
    assert not [line for line in lines if "<script" in line.replace("\\<", "")]
    assert not [line for line in lines if "](javascript" in line.replace("\\]", "")]
    assert {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")} == {2}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_as_it_is_shown(text: str) -> None:
    seen = Reader(page(Table(["column"], [[text]])).to_html())
    assert {"script", "a"} & seen.tags == {"a"}
    assert show(text).replace("\r", "") in "".join(seen.text)
    page(Points([text])).to_markdown().encode()


def test_the_page_is_one_file_that_fetches_nothing_and_runs_nothing() -> None:
    html = page(Picture("a.png", "a", PNG * 5_000)).to_html()
    assert "default-src 'none'" in html
    assert "http://" not in html
    assert "https://" not in html
    assert f"data:image/png;base64,{b64encode(PNG * 5_000).decode()}" in html
    assert "![a](a.png)" in page(Picture("a.png", "a", PNG)).to_markdown()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (True, "yes"), (1234567, "1,234,567"), (0.123456, "0.1235"), (123456.7, "123,457"), (float("nan"), "nan"),
     ([1, "a"], "1, a"), ({"a": 0.5}, "a 0.5"), ("a\ud800", "a\\ud800")],
)  # fmt: skip
def test_values_are_shown_as_people_read_them(value: object, shown: str) -> None:
    assert show(value) == shown
