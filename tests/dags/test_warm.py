"""A worker that is forked from a warm process imports nothing that takes long."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from perennial.core.settings import PROJECT

ORCHESTRATION = PROJECT / "include" / "perennial" / "orchestration"
#: What its tasks call.
STAGES = PROJECT / "include" / "perennial" / "stages"

#: Files whose functions run in Airflow's servers, in a worker's parent process, in the init job or by the command line,
#: never in a task.
NO_TASKS = {"calibrate.py", "controls.py", "board.py", "pulse.py", "users.py", "warm.py"}


#: Clients of Slack and of mail servers: only notify uses them, where a channel is named, and every worker would hold them.
OF_CHANNELS = "airflow.providers."


def lazy_imports(source: str) -> Iterator[str]:
    """The modules that functions import; of a name, the module that has it and the name."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    yield from (alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    yield from (f"{node.module}:{alias.name}" for alias in node.names)


def test_whatever_a_task_imports_is_there_before_workers_are_forked(tmp_path: Path) -> None:
    files = [file for file in sorted([*ORCHESTRATION.glob("*.py"), *STAGES.glob("*.py")]) if file.name not in NO_TASKS]
    names = sorted({name for file in files for name in lazy_imports(file.read_text()) if not name.startswith(OF_CHANNELS)})
    assert "perennial.training:fit" in names
    program = f"""
        import importlib, json, sys
        import perennial.orchestration.warm
        before = set(sys.modules)
        for name in {names}:
            module, _, part = name.partition(":")
            if part and not hasattr(importlib.import_module(module), part):
                importlib.import_module(f"{{module}}.{{part}}")
        print(json.dumps(sorted(set(sys.modules) - before)))
    """
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "PERENNIAL_STATE": str(tmp_path / "var")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, check=True
    )
    late = json.loads(done.stdout.splitlines()[-1])
    heavy = [name for name in late if name.partition(".")[0] not in sys.stdlib_module_names]
    assert not heavy, f"{heavy}: name what imports them in perennial.orchestration.warm"
