"""A colon of a query is a parameter, or it is not."""

from __future__ import annotations

import pytest

from perennial.spec.binds import binds, replace_binds

QUERIES = {
    "SELECT 1 WHERE t >= :start AND t < :end": ["start", "end"],
    "SELECT t::date WHERE t>=:start": ["start"],
    "SELECT 1 WHERE t >= :start::timestamptz AND t < :end::date": ["start", "end"],
    "SELECT '12:30', 'at :noon', '{\"a\":1}', 'it''s :x' WHERE :start < :end": ["start", "end"],
    "SELECT E'it\\'s :x' WHERE :start < :end": ["start", "end"],
    "SELECT 'C:\\' WHERE :start < :end": ["start", "end"],
    'SELECT ":odd" WHERE :start < :end': ["start", "end"],
    "SELECT $$ :a $$, $t$ :b $$ :c $t$ WHERE :start < :end": ["start", "end"],
    "SELECT 1 -- until :noon\n WHERE :start < :end": ["start", "end"],
    "SELECT 1 /* :noon\n */ WHERE :start < :end": ["start", "end"],
    "SELECT a[1:2], a[i:j], \\:x WHERE :start < :end": ["start", "end"],
    "SELECT :other": ["other"],
}


@pytest.mark.parametrize("query", QUERIES)
def test_a_colon_in_a_text_a_name_or_a_comment_begins_no_parameter(query: str) -> None:
    assert binds(query) == QUERIES[query]


def test_a_backslash_escapes_a_quote_where_the_database_says_so() -> None:
    def names(query: str) -> str:
        return replace_binds(query, lambda name: f"<{name}>", literally=lambda text: text, backslashes=True)

    assert names("SELECT 'it\\'s :x', `:y` # :z\n WHERE :start") == "SELECT 'it\\'s :x', `:y` # :z\n WHERE <start>"


def test_a_query_for_mariadb_binds_what_its_own_texts_leave() -> None:
    query = "SELECT 'it\\'s :x' WHERE :start < :end -- isn't it"

    assert binds(query, backslashes=True) == ["start", "end"]


def test_all_that_is_no_parameter_is_written_once() -> None:
    query = "SELECT '{\"a\":1}' || b::text, \\:c WHERE :start < :end -- :d"

    written = replace_binds(query, lambda name: f"${name}", literally=lambda text: text)

    assert written == "SELECT '{\"a\":1}' || b::text, :c WHERE $start < $end -- :d"
