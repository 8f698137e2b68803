"""The bind parameters of a source's query: what counts as one, and what only looks like one."""

from __future__ import annotations

import re
from collections.abc import Callable

#: What a query may bind: the bounds of the interval.
START, END = "start", "end"

# In this order: a text in quotes, with E'...' as PostgreSQL escapes it; a name in quotes; a text between dollar signs; both
# kinds of comments. Then a bind parameter, which a cast such as :start::date may follow.
_QUOTED = r"""[eE]'(?:[^'\\]|\\.|'')*'|'[^']*'|"[^"]*"|`[^`]*`|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|--[^\n]*|/\*.*?\*/"""
_QUOTED_BY_BACKSLASHES = r"""'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`[^`]*`|--[^\n]*|\#[^\n]*|/\*.*?\*/"""
_BIND = r"|(?<![:\w\\]):(?P<bind>\w+)|\\(?P<escaped>:)"


def replace_binds(query: str, name: Callable[[str], str], *, literally: Callable[[str], str], backslashes: bool = False) -> str:
    """The query with its bind parameters, and all that lies between them, written in another way.

    A colon inside a text, a quoted name or a comment begins no parameter, and neither does ``\\:``.

    Args:
        query: the query as ``model.yaml`` has it.
        name: takes the name of a parameter, and gives what stands for it.
        literally: takes a text that has no parameter.
        backslashes: whether a backslash escapes the quote after it, as in MySQL.
    """
    pattern = re.compile((_QUOTED_BY_BACKSLASHES if backslashes else _QUOTED) + _BIND, re.DOTALL)
    written, end = [], 0
    for match in pattern.finditer(query):
        written.append(literally(query[end : match.start()]))
        if match["bind"]:
            written.append(name(match["bind"]))
        else:
            written.append(literally(":" if match["escaped"] else match[0]))
        end = match.end()
    return "".join([*written, literally(query[end:])])


def binds(query: str, *, backslashes: bool = False) -> list[str]:
    """The names of the parameters that a query binds, in their order; for ``backslashes`` see :func:`replace_binds`."""
    found: list[str] = []

    def note(name: str) -> str:
        found.append(name)
        return name

    replace_binds(query, note, literally=lambda text: text, backslashes=backslashes)
    return found
