"""Private parts of other libraries are used in one module, and are as they were when it was written."""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import textwrap
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import EqualTo, Reference
from pyiceberg.expressions.literals import literal
from pyiceberg.table import Transaction
from pyiceberg.table.update import update_table_metadata
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor
from sqlalchemy.pool import NullPool

from perennial.core import private_parts
from perennial.core.private_parts import PARTS, MetadataOncePerUpdate
from perennial.core.settings import PROJECT

PACKAGE = PROJECT / "include" / "perennial"

#: Parts of Python's own library whose names begin with an underscore, and which are documented.
DOCUMENTED = {"os._exit"}


def in_airflow(tmp_path: Path, program: str) -> str:
    """What a program prints that runs in a process of its own, since Airflow configures the process that imports it."""
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


# --- the list --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [part for part in PARTS if part.distribution], ids=lambda part: part.by)
def test_a_part_was_checked_with_the_release_that_is_installed(part: private_parts.PrivatePart) -> None:
    assert version(str(part.distribution)) == part.checked_with, (
        f"read what {part.distribution} has made of {part.part}, and whether to {part.remove_when}; then write the release here"
    )


def test_the_list_and_the_functions_are_the_same() -> None:
    tree = ast.parse(Path(private_parts.__file__).read_text())
    named = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)} - {"PrivatePart"}
    constants = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    } - {"PARTS"}
    assert named | constants == {part.by for part in PARTS}


def test_every_part_says_when_it_can_be_removed() -> None:
    assert all(part.remove_when.startswith("remove when ") and part.reason.endswith(".") for part in PARTS)


def test_every_part_has_a_test() -> None:
    tests = ast.parse(Path(__file__).read_text())
    of_parts = {
        part
        for node in tests.body
        if isinstance(node, ast.FunctionDef)
        for part in _said(node)
        if node.name.startswith("test_")
    }
    assert {part.by for part in PARTS} <= of_parts


def _said(test: ast.FunctionDef) -> set[str]:
    """Every name and every text that occurs in a function."""
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(test)
        if isinstance(node, ast.Attribute | ast.Name)
    }
    texts = [node.value for node in ast.walk(test) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return names | {part.by for part in PARTS if any(part.by in text for text in texts)}


# --- nowhere else ----------------------------------------------------------------------------------------------------


def uses(source: str) -> list[str]:
    """Every private attribute of something other than ``self`` or ``cls``, and every import of a private name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and _private(node.attr):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()") and f"{owner}.{node.attr}" not in DOCUMENTED:
                found.append(f"{owner}.{node.attr}")
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [f"from {node.module} import {name}" for name in names if _private(name)]
        elif isinstance(node, ast.Import):
            found += [f"import {alias.name}" for alias in node.names if any(map(_private, alias.name.split(".")))]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "delattr", "hasattr"):
            owner, *names = (ast.unparse(argument) for argument in node.args)
            found += [f"{owner}.{name}" for name in names if _private(name.strip("'")) and name != "'_perennial_code'"]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            [name] = (ast.unparse(argument).strip("'") for argument in node.args[:1])
            found += [name for part in name.split(".") if _private(part)]
    return found


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize(
    "source",
    [
        "hook._token()",
        "from airflow.sdk._shared import log",
        "from mlflow import _names",
        "import numpy._core",
        "getattr(hook, '_token')",
        "import_module('sklearn.tree._tree')",
    ],
)
def test_uses_of_private_parts_are_found(source: str) -> None:
    assert len(uses(source)) == 1


def test_no_other_module_uses_private_parts() -> None:
    files = [*PACKAGE.rglob("*.py"), *(PROJECT / "dags").glob("*.py"), *(PROJECT / "plugins").glob("*.py")]
    found = {
        str(file.relative_to(PROJECT)): uses(file.read_text()) for file in files if file != PACKAGE / "core/private_parts.py"
    }
    assert {file: private for file, private in found.items() if private} == {}, "use it in perennial.core.private_parts"


# --- Airflow ---------------------------------------------------------------------------------------------------------


def test_airflows_supervisor_hears_of_the_end_of_a_process(tmp_path: Path) -> None:
    # tests/dags/test_coordinator.py awaits a whole task.
    program = """
        import inspect, selectors, subprocess, sys
        from airflow.sdk.execution_time.supervisor import ActivitySubprocess
        from perennial.core.private_parts import watch_for_the_end

        class Supervised:
            selector = selectors.DefaultSelector()
            process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            pid = process.pid
            def _check_subprocess_exit(self, **given):
                return self.process.poll()

        watched = Supervised()
        watch_for_the_end(watched)
        look = ActivitySubprocess._service_subprocess
        assert look(watched, max_wait_time=0.01) is None, "it has not ended"
        watched.process.stdin.close()
        look(watched, max_wait_time=60)
        fields = {field.name for field in ActivitySubprocess.__attrs_attrs__}
        print(watched.process.wait(5), len(watched.selector.get_map()), {"pid", "selector"} <= fields)
    """
    assert in_airflow(tmp_path, program) == "1 0 True"


def test_a_tasks_events_come_in_the_order_in_which_they_are_added(tmp_path: Path) -> None:
    # tests/dags/test_announcements.py has whole runs of it.
    program = """
        from types import SimpleNamespace
        from airflow.sdk import Asset
        from airflow.sdk.execution_time.context import OutletEventAccessors
        from airflow.sdk.execution_time.task_runner import _serialize_outlet_events
        from perennial.core.private_parts import add_partitions_in_order

        events, days = OutletEventAccessors(), [f"2026-01-{day:02}" for day in range(1, 31)]
        add_partitions_in_order(events[Asset("days")], days)
        print([event["partition_key"] for event in _serialize_outlet_events(events)] == days)
    """
    assert in_airflow(tmp_path, program) == "True"


def test_airflow_reads_a_tasks_outlets_when_the_task_has_succeeded(tmp_path: Path) -> None:
    # tests/dags/test_announcements.py has whole runs of withhold_event.
    program = """
        from types import SimpleNamespace
        from airflow.sdk import Asset
        from airflow.providers.standard.operators.empty import EmptyOperator
        from perennial.core.private_parts import withhold_event

        stored = EmptyOperator(task_id="t", outlets=[Asset("a"), Asset("b")])
        running = SimpleNamespace(task=stored.prepare_for_execution())
        withhold_event(running, Asset("a"))
        print([one.name for one in running.task.outlets], len(stored.outlets))
    """
    assert in_airflow(tmp_path, program) == "['b'] 2"


def test_airflows_mail_hook_gives_its_token(tmp_path: Path) -> None:
    program = """
        from airflow.sdk import Connection
        from airflow.providers.smtp.hooks.smtp import SmtpHook
        from perennial.core.private_parts import oauth2_token

        hook = SmtpHook(smtp_conn_id="none")
        hook.smtp_connection = Connection(conn_id="none", conn_type="smtp", extra='{"access_token": "t0k3n"}')
        print(oauth2_token(hook))
    """
    assert in_airflow(tmp_path, program) == "t0k3n"


# --- MLflow ----------------------------------------------------------------------------------------------------------


# The mappers of MLflow's tables, and of Airflow's where another test has imported them, use what SQLAlchemy deprecates.
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_mlflows_tables_are_made_and_brought_up_to_date(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'mlflow.db'}", poolclass=NullPool)
    for _ in range(2):
        private_parts.migrate_mlflow(engine)
        with engine.connect() as connection:
            revision = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
        assert revision == import_module("mlflow.store.db.utils")._get_latest_schema_revision()
    assert {"experiments", "runs", "registered_models"} <= set(sa.inspect(engine).get_table_names())


def test_mlflow_reads_the_installed_packages_once() -> None:
    program = """
        import importlib_metadata
        read, real = [], importlib_metadata.packages_distributions
        importlib_metadata.packages_distributions = lambda: read.append(1) or real()
        from mlflow.utils import requirements_utils
        from perennial.core.private_parts import let_mlflow_read_the_installed_packages
        assert not read
        let_mlflow_read_the_installed_packages()
        # What MLflow does when it stores a model.
        requirements_utils._init_modules_to_packages_map()
        print(len(read))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


# --- SQLAlchemy ------------------------------------------------------------------------------------------------------


def test_sqlite_tells_fractions_of_seconds() -> None:
    # In a process of its own: it is for good. tests/unit/stack/test_embedded.py compares moments.
    program = """
        import sqlalchemy as sa
        from perennial.core.private_parts import let_sqlite_tell_fractions_of_seconds
        query = sa.select(sa.func.now(type_=sa.String))
        with sa.create_engine("sqlite://").connect() as connection:
            before = connection.execute(query).scalar_one()
            let_sqlite_tell_fractions_of_seconds()
            connection.execute(sa.text("SELECT 1"))
        with sa.create_engine("sqlite://").connect() as connection:
            print(len(before), len(connection.execute(query).scalar_one()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["19", "26"]


# --- PyIceberg -------------------------------------------------------------------------------------------------------


def iceberg(tmp_path: Path) -> SqlCatalog:
    catalog = SqlCatalog("test", uri=f"sqlite:///{tmp_path / 'catalog.db'}", warehouse=f"file://{tmp_path}")
    catalog.create_namespace("n")
    catalog.create_table(("n", "t"), pa.schema([("a", pa.int64())]))
    return catalog


def test_a_transaction_derives_its_metadata_once_per_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    derived = []

    def counted(*given: object) -> object:
        derived.append(1)
        return update_table_metadata(*given)  # type: ignore[arg-type]  # handed on as it came

    monkeypatch.setattr("pyiceberg.table.update_table_metadata", counted)

    class Once(MetadataOncePerUpdate, Transaction):
        pass

    transaction = Once(iceberg(tmp_path).load_table(("n", "t")))
    before = transaction.table_metadata
    assert transaction.table_metadata is before
    assert len(derived) == 1
    transaction.set_properties(a="b")
    assert transaction.table_metadata.properties["a"] == "b"
    assert "a" not in before.properties
    count = len(derived)
    assert transaction.table_metadata is transaction.table_metadata
    assert len(derived) == count
    assert transaction.commit_transaction().properties["a"] == "b"


def test_a_catalog_asks_the_engine_that_it_was_given(tmp_path: Path) -> None:
    catalog = iceberg(tmp_path)
    engine, asked = sa.create_engine(f"sqlite:///{tmp_path / 'catalog.db'}", poolclass=NullPool), []
    sa.event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    private_parts.use_engine(catalog, engine)

    catalog.load_table(("n", "t"))
    assert len(asked) == 1
    catalog.create_table(("n", "u"), pa.schema([("a", pa.int64())]))
    assert any(statement.startswith("INSERT") for statement in asked)


def test_statistics_of_a_file_tell_whether_it_may_hold_a_row(tmp_path: Path) -> None:
    table = iceberg(tmp_path).load_table(("n", "t"))
    table.append(pa.table({"a": [1, 5]}))
    [task] = table.scan().plan_files()
    judged = [
        private_parts.may_hold(table.schema(), EqualTo(term=Reference("a"), value=literal(value)))(task.file)
        for value in (0, 1, 3, 5, 6)
    ]
    assert judged == [False, True, True, True, False]


# --- scikit-learn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", private_parts.TREE_TYPES)
def test_scikit_learns_trees_are_called_so(name: str) -> None:
    # tests/unit/model/test_artifacts.py stores and loads each estimator.
    module, _, cls = name.rpartition(".")
    found = getattr(import_module(module), cls)
    assert f"{found.__module__}.{found.__qualname__}" == name


def test_values_of_all_trees_after_the_baseline_are_what_a_booster_predicts() -> None:
    rows = np.arange(200.0).reshape(100, 2)
    booster = HistGradientBoostingRegressor(max_iter=3).fit(rows, rows[:, 0])
    trees = private_parts.BoostedTrees(booster)

    def add(rows: np.ndarray) -> np.ndarray:
        found = np.repeat(trees.baseline, len(rows), axis=0)
        for [nodes] in trees.iterations:
            for row, values in enumerate(rows):
                node = nodes[0]
                while not node["is_leaf"]:
                    node = nodes[node["left" if values[node["feature_idx"]] <= node["num_threshold"] else "right"]]
                found[row] += node["value"]
        return found

    ours = trees.predicting_by(add, 5)
    assert np.array_equal(ours.predict(rows[:5]), booster.predict(rows[:5]))
    assert np.array_equal(ours.predict(rows), booster.predict(rows))
    with pytest.raises(ValueError, match="not a histogram-based gradient booster"):
        private_parts.BoostedTrees(GradientBoostingRegressor())


# --- Python ----------------------------------------------------------------------------------------------------------


def test_argparse_returns_what_subcommands_names() -> None:
    assert str(private_parts.Subcommands) == "argparse._SubParsersAction[argparse.ArgumentParser]"
    assert type(argparse.ArgumentParser().add_subparsers()) is argparse._SubParsersAction
