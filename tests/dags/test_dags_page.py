"""The page of the DAGs says what the DAGs are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "dags.md"


def make_page(page: Path, **variables: str) -> str:
    program = [sys.executable, str(PROJECT / "scripts" / "dags_page.py"), str(page)]
    done = subprocess.run(
        program, env={**os.environ, **variables}, cwd=page.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return page.read_text(encoding="utf-8")


def test_the_page_is_what_the_dags_say(tmp_path: Path) -> None:
    made = make_page(tmp_path / "dags.md")
    assert PAGE.read_text(encoding="utf-8") == made, "docs/dags.md is out of date: run `make docs` and commit what it writes"


def test_the_page_does_not_depend_on_who_makes_it(tmp_path: Path) -> None:
    made = make_page(
        tmp_path / "dags.md",
        PERENNIAL_TRAIN_SLOTS="2",
        PERENNIAL_PARTS_AT_ONCE="5",
        PERENNIAL_MODELS=str(PROJECT / "tests" / "models"),
        AIRFLOW_HOME=str(tmp_path),
    )
    assert made == PAGE.read_text(encoding="utf-8")
    assert str(PROJECT) not in made
    assert str(tmp_path) not in made


def test_every_dag_file_has_its_place_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for file in (PROJECT / "dags").glob("*.py"):
        places = f".{file.stem}` · starts", f"`dags/{file.name}` · no DAG"
        assert any(place in page for place in places), f"{file.name} is missing: run `make docs`"
