"""What the page of benchmarks says is what they found. None is run here, and nothing timed."""

from __future__ import annotations

import ast
import json
from types import ModuleType

import pytest

from benchmarks import faults, value
from benchmarks.__main__ import CLAIMS, README, STUDIES, read_results, with_table
from benchmarks.measuring import RESULTS, Line
from perennial.core.settings import PROJECT

FOLDER = PROJECT / "benchmarks"


def script(name: str) -> str:
    module = FOLDER / f"{name}.py"
    return (module if module.exists() else FOLDER / name / "__main__.py").read_text()


@pytest.mark.parametrize("name", [*CLAIMS, *STUDIES])
def test_each_benchmark_says_what_it_measures(name: str) -> None:
    assert ast.get_docstring(ast.parse(script(name)))


def test_every_script_is_run_by_make_bench() -> None:
    scripts = {file.stem for file in FOLDER.glob("*.py")} | {file.parent.name for file in FOLDER.glob("*/__main__.py")}
    assert scripts - {"__init__", "__main__", "measuring", "prepared", "replay", "stacks", "streams"} == {*CLAIMS, *STUDIES}


def test_the_page_shows_what_was_measured() -> None:
    page = README.read_text(encoding="utf-8")
    assert page == with_table(page, read_results())


@pytest.mark.parametrize("study", [value, faults])
def test_the_page_on_decisions_shows_what_was_measured(study: ModuleType) -> None:
    name = study.__name__.rpartition(".")[2]
    page = value.PAGE.read_text(encoding="utf-8")
    report = json.loads((RESULTS / f"{name}.json").read_text())
    assert page == value.with_tables(page, name, study.tables(report))


def test_every_claim_was_measured() -> None:
    assert [name for name in (*CLAIMS, *STUDIES) if not (RESULTS / f"{name}.json").exists()] == []


def test_ratio_of_a_claim_is_that_of_its_medians() -> None:
    for name in CLAIMS:
        for found in json.loads((RESULTS / f"{name}.json").read_text())["lines"]:
            line = Line(**{field: found[field] for field in Line.__dataclass_fields__})
            assert found["ratio"] == round(line.ratio, 3), (name, line.claim)
            assert found["met"] == line.met, (name, line.claim)


def test_less_is_better_unless_ours_is_to_be_faster() -> None:
    slower = Line("ours", "the limit", ours=[3.0, 2.0, 9.0], peer=[2.0], goal=1.5)
    assert (slower.ratio, slower.met) == (1.5, True)
    faster = Line("ours", "the peer", ours=[2.0], peer=[9.0, 10.0, 11.0], goal=5.1, faster=True)
    assert (faster.ratio, faster.met) == (5.0, False)
    assert Line("ours", "beside", ours=[1.0], peer=[1.0]).met is None
