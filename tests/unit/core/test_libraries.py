"""Libraries are settled by the first import of Perennial, and no other import has an effect."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perennial.core.settings import PROJECT

PACKAGE = PROJECT / "include" / "perennial"

#: Modules whose import is meant to have effects.
EXEMPT = {
    "__init__.py": "settles libraries, before any module of Perennial can import one",
    "cli/__main__.py": "is run as a program, and never imported",
    "ledger/migrations/env.py": "Alembic executes it for each migration, and nothing else imports it",
    "orchestration/pulse.py": "Celery's workers can be told of modules to import, not of functions to call",
    "orchestration/warm.py": "Celery's workers can be told of modules to import, not of functions to call",
}

#: Decorators that only change what they decorate, or a route of the application that the same module makes.
DECORATORS = {
    "app.exception_handler",
    "app.get",
    "cache",
    "command",
    "contextmanager",
    "dataclass",
    "hookimpl",
    "judged",
    "lru_cache",
    "task",
    "task.short_circuit",
}

#: Names of calls that change something outside of the module.
EFFECTS = {
    "basicConfig", "chdir", "compiles", "connect", "disable", "filterwarnings", "listen", "listens_for", "mkdir", "open",
    "putenv", "run", "setLevel", "set_start_method", "setdefault", "setlocale", "simplefilter", "start", "unlink", "update",
    "write_text",
}  # fmt: skip


def effects(source: str) -> list[str]:
    """The statements that have, or may have, an effect when a module is imported."""
    return list(_effects(ast.parse(source).body))


def _effects(statements: list[ast.stmt]) -> Iterator[str]:
    for statement in statements:
        match statement:
            case ast.Import() | ast.ImportFrom() | ast.Pass():
                continue
            case ast.Expr(value=ast.Constant() | ast.Tuple()):
                continue
            # Flask runs a file of configuration under the name config.
            case ast.If(test=test) if ast.unparse(test) in ("TYPE_CHECKING", "__name__ == '__main__'", "__name__ == 'config'"):
                continue
            case ast.FunctionDef(decorator_list=decorators) | ast.AsyncFunctionDef(decorator_list=decorators):
                for decorator in decorators:
                    name = ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)
                    if name not in DECORATORS:
                        yield f"@{name}"
            case ast.ClassDef(body=body):
                # What decorates a method changes the class alone.
                yield from _effects([inner for inner in body if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)])
            case ast.Assign(targets=targets, value=value) if all(
                isinstance(target, ast.Name | ast.Tuple) for target in targets
            ):
                yield from _calls(value)
            case ast.AnnAssign(target=ast.Name(), value=value):
                yield from _calls(value) if value is not None else ()
            case _:
                yield ast.unparse(statement)


def _calls(value: ast.expr) -> Iterator[str]:
    for node in ast.walk(value):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in EFFECTS:
            yield ast.unparse(node)


def in_a_fresh_process(program: str, **given: str) -> Any:
    """What a program prints as JSON in its last line."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTLED}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**environment, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


#: What Great Expectations, Evidently and MLflow read, once each, when they are imported.
SETTLED = {"GX_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.mark.parametrize(
    "given", [{}, {"GX_ANALYTICS_ENABLED": "true", "DO_NOT_TRACK": "0", "MLFLOW_DISABLE_TELEMETRY": "false"}]
)
def test_telemetry_is_off_before_a_library_that_has_it_is_imported(given: dict[str, str]) -> None:
    program = f"""
        import json, os, sys

        class Watch:
            seen = {{}}
            def find_spec(self, name, path=None, target=None):
                if name in ("evidently", "great_expectations", "mlflow"):
                    self.seen[name] = {{variable: os.environ.get(variable) for variable in {list(SETTLED)}}}

        sys.meta_path.insert(0, Watch())
        import perennial.drift.compare, perennial.ingestion.suite, perennial.registry.server
        print(json.dumps(Watch.seen))
    """
    assert in_a_fresh_process(program, **given) == dict.fromkeys(("evidently", "great_expectations", "mlflow"), SETTLED)


def test_mlflow_sends_nothing() -> None:
    program = """
        import json
        import perennial
        import mlflow
        print(json.dumps(mlflow.telemetry.get_telemetry_client() is None))
    """
    assert in_a_fresh_process(program) is True


def test_the_first_import_of_perennial_imports_nothing_but_pythons_own_library() -> None:
    program = """
        import json, sys
        import perennial
        print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
    """
    # What site-packages load into every process, such as an editable installation's finder, is there without Perennial.
    without = in_a_fresh_process(program.replace("import perennial", ""))
    assert set(in_a_fresh_process(program)) - set(without) - set(sys.stdlib_module_names) == {"perennial"}


@pytest.mark.parametrize(
    "source",
    [
        "os.environ['A'] = 'b'",
        "os.environ.setdefault('A', 'b')",
        "known = os.environ.setdefault('A', 'b')",
        "logging.getLogger('x').setLevel('INFO')",
        "warnings.filterwarnings('ignore')",
        "library.setting = 1",
        "for name in names:\n    import_module(name)",
        "@compiles(functions.now, 'sqlite')\ndef now(): ...",
        "class Module:\n    logging.disable()",
        "with open('x') as stream:\n    text = stream.read()",
    ],
)
def test_effects_of_an_import_are_found(source: str) -> None:
    assert len(effects(source)) == 1


def test_no_import_has_an_effect() -> None:
    files = {str(file.relative_to(PACKAGE)): file for file in PACKAGE.rglob("*.py")}
    assert set(EXEMPT) <= set(files)
    found = {name: effects(file.read_text()) for name, file in files.items()}
    assert all(found[name] for name in EXEMPT), "take out of EXEMPT what has no effect"
    assert {name: said for name, said in found.items() if said and name not in EXEMPT} == {}, "do it in a function"


def test_importing_every_module_changes_no_environment_log_level_or_warning_filter(tmp_path: Path) -> None:
    names = [
        ".".join(("perennial", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for file in sorted(PACKAGE.rglob("*.py"))
        if str(file.relative_to(PACKAGE)) not in EXEMPT and file.name != "0001_baseline.py" and file.name != "0002_channels.py"
    ]
    program = f"""
        import importlib, json, logging, os, sys, warnings
        import perennial
        changed = []

        def told(owner, name):
            real = getattr(owner, name)
            def spy(*given, **named):
                frame = sys._getframe(1)
                while frame.f_code.co_filename.endswith(("os.py", "_collections_abc.py>", "_collections_abc.py")) or (
                    frame.f_code.co_filename.startswith("<frozen")
                ):
                    frame = frame.f_back
                if frame.f_code.co_filename.startswith({str(PACKAGE)!r}):
                    changed.append([name, frame.f_code.co_filename, frame.f_lineno])
                return real(*given, **named)
            setattr(owner, name, spy)

        told(logging.Logger, "setLevel"), told(logging, "basicConfig"), told(logging, "disable")
        told(warnings, "filterwarnings"), told(warnings, "simplefilter")
        told(type(os.environ), "__setitem__"), told(type(os.environ), "__delitem__")
        for name in {names}:
            importlib.import_module(name)
        silent = list(changed)
        perennial.core.libraries.settle()
        print(json.dumps([silent, len(changed) - len(silent)]))
    """
    silent, settled = in_a_fresh_process(program, AIRFLOW_HOME=str(tmp_path), PERENNIAL_STATE=str(tmp_path / "var"))
    assert silent == []
    assert settled > 5, "what is to be found is found"
