"""A model folder is read strictly: what is wrong is told with file and line, and what would be right."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from perennial.core.errors import SpecError
from perennial.core.settings import PROJECT
from perennial.spec.folder import ModelFolder, read_model, read_models
from perennial.spec.model import json_schema
from perennial.spec.strict_yaml import MAX_BYTES

GOOD = """\
name: late
owner: operations
description: Will it be late?
task: binary_classification
sources:
  trips: {files: "trips/%Y-%m-%d.csv"}
tables:
  trips:
    source: trips
    key: [id]
    event_time: left_at
    known: left_at
    columns:
      id: {type: string}
      left_at: {type: timestamp}
      minutes: {type: integer, min: 0, nullable: true}
entity: {table: trips, as_of: left_at}
features:
  numeric: [distance]
label: {table: trips, sql: minutes > 15}
candidates:
  prior: {estimator: prior, baseline: true}
  boosting: {estimator: gradient_boosting}
gates:
  at_least: {roc_auc: 0.6}
"""


def write(models: Path, text: str | bytes, *, name: str = "late", code: str | None = None) -> Path:
    folder = models / name
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "features.sql").write_text("SELECT id, 1 AS distance FROM entities")
    if code is not None:
        (folder / "model.py").write_text(code)
    return folder


def read(models: Path, text: str | bytes) -> ModelFolder:
    return read_model(write(models, text))


def problems(models: Path, text: str | bytes) -> list[str]:
    """What is told of a ``model.yaml``, without the folder's path."""
    folder = write(models, text)
    with pytest.raises(SpecError) as raised:
        read_model(folder)
    return str(raised.value).replace(f"{folder}/", "").splitlines()


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"

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
    "a text that is a number": (
        changed("owner: operations", "owner: 3.10"),
        ["model.yaml:2: owner: a text is wanted, this is 3.1; put it in quotes"],
    ),
    "a text that is a truth": (
        changed("owner: operations", "owner: true"),
        ["model.yaml:2: owner: a text is wanted, this is true; put it in quotes"],
    ),
    "a number that is a text": (
        changed("min: 0", 'min: "0"'),
        ['model.yaml:16: tables.trips.columns.minutes.min: input should be a valid number, this is "0"'],
    ),
    ".nan as a threshold": (
        changed("{roc_auc: 0.6}", "{roc_auc: .nan}"),
        ["model.yaml:25: gates.at_least.roc_auc: a finite number is wanted, not NaN or infinity"],
    ),
    "infinity as a threshold": (
        changed("{roc_auc: 0.6}", "{roc_auc: -.inf}"),
        ["model.yaml:25: gates.at_least.roc_auc: a finite number is wanted, not NaN or infinity"],
    ),
    "a threshold beyond a float": (
        changed("{roc_auc: 0.6}", "{roc_auc: 1e999}"),
        ['model.yaml:25: gates.at_least.roc_auc: input should be a valid number, this is "1e999"'],
    ),
    "an alias bomb": (BOMB, ["model.yaml:1: anchors and aliases (& and *) are not used here; repeat the value"]),
    "a recursive anchor": (
        "name: &self\n  owner: *self\n",
        ["model.yaml:1: anchors and aliases (& and *) are not used here; repeat the value"],
    ),
    "a merge of an anchor": (
        changed("owner: operations", "base: &base {a: 1}\n<<: *base"),
        ["model.yaml:2: anchors and aliases (& and *) are not used here; repeat the value"],
    ),
    "an empty file": ("", ['model.yaml: empty; the README\'s "use your own data" shows what belongs here']),
    "comments alone": ("# soon\n", ['model.yaml: empty; the README\'s "use your own data" shows what belongs here']),
    "a list at the root": (
        "- name: late\n",
        ["model.yaml:1: a mapping is wanted at the root (name: …, owner: …), this is a seq"],
    ),
    "a word at the root": ("late\n", ["model.yaml:1: a mapping is wanted at the root (name: …, owner: …), this is a str"]),
    "an unknown key": (
        changed("at_least", "atleast"),
        ["model.yaml:25: gates.atleast: unknown key; remove it, or see model.schema.json for the keys there are"],
    ),
    "a key that is no word": (changed("owner: operations", "? [a, b]\n: c"), ["model.yaml:2: a key must be a plain word"]),
    "a negative share": (
        changed("    known: left_at\n", "    known: left_at\n    tolerance: -0.1\n"),
        ["model.yaml:13: tables.trips.tolerance: input should be greater than or equal to 0, this is -0.1"],
    ),
    "a share above 1": (
        changed("    known: left_at\n", "    known: left_at\n    tolerance: 5\n"),
        ["model.yaml:13: tables.trips.tolerance: input should be less than or equal to 1, this is 5"],
    ),
    "a share in words": (
        changed("    known: left_at\n", "    known: left_at\n    tolerance: 5%\n"),
        ['model.yaml:13: tables.trips.tolerance: input should be a valid number, this is "5%"'],
    ),
    "Jinja in a value": (
        changed("owner: operations", "owner: '{{ var.value.owner }}'"),
        ["model.yaml:2: owner: templates are not rendered here; write the value itself"],
    ),
    "Jinja in SQL": (
        changed("sql: minutes > 15", "sql: 'minutes > {% now %}'"),
        ["model.yaml:20: label.sql: templates are not rendered here; write the value itself"],
    ),
    "an identifier with a quote": (
        changed("      id: {type", "      'i\"d': {type"),
        ['model.yaml:14: tables.trips.columns.i"d: "i\\"d" is not an identifier: lower-case letters, digits and _, '
         "not beginning with a digit"],
    ),
    "an identifier with a semicolon": (
        changed("key: [id]", "key: [id;]"),
        ['model.yaml:10: tables.trips.key.0: "id;" is not an identifier: lower-case letters, digits and _, '
         "not beginning with a digit"],
    ),
    "a column of Perennial's own": (
        changed("id: {type: string}", "id: {type: string}\n      _known_at: {type: timestamp}"),
        ["model.yaml:15: tables.trips.columns._known_at: names that begin with _ are Perennial's own; choose another name"],
    ),
    "a delimiter of two characters": (
        changed('%d.csv"}', '%d.csv", delimiter: "||"}'),
        ['model.yaml:6: sources.trips.delimiter: string should have at most 1 character, this is "||"'],
    ),
    "a delimiter that is a quote": (
        changed('%d.csv"}', """%d.csv", delimiter: '"'}"""),
        ["model.yaml:6: sources.trips.delimiter: write one ASCII character that is no letter, digit, quote or line break, "
         "such as ; or \\t"],
    ),
    "files that leave the data folder": (
        changed("trips/%Y", "../trips/%Y"),
        ["model.yaml:6: sources.trips: files must stay below the data folder: no leading / and no .."],
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
def test_a_broken_spec_is_told_with_line_and_remedy(case: str, tmp_path: Path) -> None:
    text, messages = BROKEN[case]

    assert problems(tmp_path, text) == messages


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("owner: operations\n", "").replace("type: timestamp", "type: time").replace("0.6", "high")

    assert problems(tmp_path, text) == [
        "model.yaml:1: owner: missing; it must be given",
        "model.yaml:14: tables.trips.columns.left_at.type: \"time\" is none of 'string', 'integer', 'float', 'boolean', "
        "'timestamp' or 'date'",
        'model.yaml:24: gates.at_least.roc_auc: input should be a valid number, this is "high"',
    ]


def test_words_that_yaml_1_1_takes_for_other_types_stay_texts(tmp_path: Path) -> None:
    text = changed("{type: string}", "{type: string, values: [NO, on, y, 12:30:00, 0o7, 2013-01-01, ~x]}")

    assert read(tmp_path, text).spec.tables["trips"].columns["id"].values == [
        "NO", "on", "y", "12:30:00", "0o7", "2013-01-01", "~x",
    ]  # fmt: skip


def test_a_version_like_number_in_quotes_keeps_its_zero(tmp_path: Path) -> None:
    assert read(tmp_path, changed("owner: operations", 'owner: "3.10"')).spec.owner == "3.10"


def test_two_models_cannot_share_a_name(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    other = write(tmp_path, GOOD, name="later")

    good, broken = read_models(tmp_path)

    assert list(good) == ["late"]
    assert {name: str(error) for name, error in broken.items()} == {
        "later": f"{other}/model.yaml: name is late, but its folder is later; make them the same"
    }


def test_a_broken_model_leaves_the_others_to_be_read(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    write(tmp_path, "- broken", name="broken")

    good, broken = read_models(tmp_path)

    assert list(good) == ["late"]
    assert list(broken) == ["broken"]


def test_features_need_their_sql(tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD)
    (folder / "features.sql").unlink()

    with pytest.raises(SpecError, match=r"features\.sql: missing; write a SELECT that gives distance for each entity"):
        read_model(folder)


def test_a_function_must_be_defined_and_is_not_run_to_find_out(tmp_path: Path) -> None:
    text = changed("estimator: gradient_boosting", "estimator: 'model:make'")
    without = write(tmp_path / "without", text, code="def other(): ...")
    defined = write(tmp_path / "defined", text, code="raise SystemExit\ndef make(): ...")
    broken = write(tmp_path / "broken", text, code="def make(:")

    with pytest.raises(SpecError, match=r"candidates\.boosting\.estimator names model:make, but model\.py defines no make"):
        read_model(without)
    assert read_model(defined).code.startswith("raise SystemExit")
    with pytest.raises(SpecError, match=r"model\.py:1: not Python"):
        read_model(broken)


def test_durations_are_written_with_their_unit(tmp_path: Path) -> None:
    folder = read(tmp_path, GOOD + "retraining: {cooldown: 36h}\n")

    assert folder.spec.retraining.cooldown == timedelta(hours=36)
    assert folder.spec.model_dump(mode="json")["retraining"]["cooldown"] == "36h"


@pytest.mark.parametrize("duration", ["14", "0d", "-1d", "1.5h", "P1D", "99999999d"])
def test_what_is_no_duration_is_refused(duration: str, tmp_path: Path) -> None:
    [message] = problems(tmp_path, GOOD + f"retraining: {{cooldown: '{duration}'}}\n")

    assert message == "model.yaml:26: retraining.cooldown: write a whole number and a unit: 90m, 2h, 28d or 12w"


def test_digests_follow_the_meaning_alone(tmp_path: Path) -> None:
    plain = read(tmp_path / "plain", GOOD)
    commented = read(tmp_path / "commented", "# why\n" + GOOD.replace("{type: string}", "{ 'type': 'string' }"))
    stricter = read(tmp_path / "stricter", changed("0.6", "0.7"))

    assert commented.digest == plain.digest
    assert stricter.digest != plain.digest
    assert stricter.features_digest == plain.features_digest


def test_the_schema_for_editors_is_in_step() -> None:
    file = PROJECT / "include" / "models" / "model.schema.json"
    wanted = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"

    assert file.read_text(encoding="utf-8") == wanted, "the spec has changed: run `python tests/unit/spec/test_folder.py`"


def test_the_example_names_the_schema_that_is_there() -> None:
    for file in (PROJECT / "include" / "models").glob("*/model.yaml"):
        first = file.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# yaml-language-server: $schema="), file
        assert (file.parent / first.partition("$schema=")[2]).is_file()
        read_model(file.parent)


def test_reading_a_spec_imports_nothing_heavy() -> None:
    heavy = ["pandas", "numpy", "pyarrow", "duckdb", "pyiceberg", "sklearn", "mlflow", "great_expectations", "evidently"]
    heavy += ["sqlalchemy", "airflow"]
    code = f"import perennial.spec, sys; print(*[name for name in {heavy} if name in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.split() == []


if __name__ == "__main__":
    written = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    (PROJECT / "include" / "models" / "model.schema.json").write_text(written, encoding="utf-8")
