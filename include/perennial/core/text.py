"""Text from outside made safe to show: invisible characters shown, one line, no control characters."""

from __future__ import annotations

import re

from perennial.core.redaction import redact


def visible(text: str) -> str:
    """The text with what is invisible, or would steer a terminal or a page, written out (``\\u200b``)."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


#: Characters that end a line, reorder text or cannot be seen.
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


def one_line(error: BaseException) -> str:
    # Before it is cut: half a secret is one, too.
    text = redact(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
