"""YAML is read strictly: what it must not hold is refused by its line, and plain words keep their meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.spec.strict_yaml import MAX_BYTES
from tests.unit.spec.late import GOOD, changed, problems, read

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
REPEATED = "anchors and aliases (& and *) are not allowed here; repeat the value"

BROKEN: dict[str, tuple[str | bytes, list[str]]] = {
    "a Python tag": (
        changed("owner: operations", "owner: !!python/object/apply:os.system [id]"),
        ["model.yaml:2: the tag tag:yaml.org,2002:python/object/apply:os.system is not allowed; write a plain value"],
    ),
    "a duplicate key": (
        changed("owner: operations", "owner: operations\nname: late"),
        ["model.yaml:3: the key name is given twice, first on line 1"],
    ),
    "a duplicate key in one line": (
        changed("{type: string}", "{type: string, type: integer}"),
        ["model.yaml:14: the key type is given twice, first on line 14"],
    ),
    "an alias bomb": (BOMB, [f"model.yaml:{line}: {REPEATED}" for line in (1, 2, 3)]),
    "a recursive anchor": (
        "name: &self\n  owner: *self\n",
        [f"model.yaml:{line}: {REPEATED}" for line in (1, 2)],
    ),
    "a merge of an anchor": (
        changed("owner: operations", "base: &base {a: 1}\n<<: *base"),
        [f"model.yaml:{line}: {REPEATED}" for line in (2, 3)],
    ),
    "an empty file": ("", ['model.yaml: empty; the README\'s "use your own data" shows what belongs here']),
    "comments alone": ("# soon\n", ['model.yaml: empty; the README\'s "use your own data" shows what belongs here']),
    "a list at the root": (
        "- name: late\n",
        ["model.yaml:1: the root must be a mapping (name: …, owner: …), this is a list"],
    ),
    "a word at the root": ("late\n", ["model.yaml:1: the root must be a mapping (name: …, owner: …), this is a text"]),
    "a key that is no word": (
        changed("owner: operations", "owner: operations\n? [a, b]\n: c"),
        ["model.yaml:3: a key must be a plain word"],
    ),
    "no YAML": ("name: [late\n", ["model.yaml:2: not YAML: did not find expected ',' or ']'"]),
    "a tab as indentation": (
        changed("  trips: {files", "\ttrips: {files"),
        ["model.yaml:6: not YAML: found character that cannot start any token"],
    ),
    "Latin-1": (GOOD.replace("operations", "Zürich").encode("latin-1"), ["model.yaml: not UTF-8 at byte 19"]),
    "nested without end": ("name: " + "[" * 400_000, ["model.yaml:1: nested deeper than 20 levels"]),
    "nested too deep": ("name: " + "[" * 30 + "]" * 30, ["model.yaml:1: nested deeper than 20 levels"]),
    "too large": ("#" * (MAX_BYTES + 1), ["model.yaml: larger than 1,000,000 bytes"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_yaml_must_not_hold_is_refused_by_its_line(case: str, tmp_path: Path) -> None:
    text, messages = BROKEN[case]

    assert problems(tmp_path, text) == messages


def test_all_that_yaml_must_not_hold_is_reported_with_the_other_problems(tmp_path: Path) -> None:
    text = changed("owner: operations", "owner: !secret x\nname: later")
    text = text.replace("{type: string}", "{type: string, type: float}").replace("table: trips, sql", "table: trip, sql")
    text = text.replace("event_time: left_at", "event_time: !!binary bGVmdA==")

    assert problems(tmp_path, text) == [
        "model.yaml:2: the tag !secret is not allowed; write a plain value",
        "model.yaml:3: the key name is given twice, first on line 1",
        "model.yaml:12: the tag tag:yaml.org,2002:binary is not allowed; write a plain value",
        "model.yaml:15: the key type is given twice, first on line 15",
        "model.yaml:21: label.table: no table is named trip; there are trips",
    ]


def test_words_that_yaml_1_1_takes_for_other_types_stay_texts(tmp_path: Path) -> None:
    text = changed("{type: string}", "{type: string, values: [NO, on, y, 12:30:00, 0o7, 2013-01-01, ~x]}")

    assert read(tmp_path, text).spec.tables["trips"].columns["id"].values == [
        "NO", "on", "y", "12:30:00", "0o7", "2013-01-01", "~x",
    ]  # fmt: skip


def test_a_version_like_number_in_quotes_keeps_its_zero(tmp_path: Path) -> None:
    assert read(tmp_path, changed("owner: operations", 'owner: "3.10"')).spec.owner == "3.10"
