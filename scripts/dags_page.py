"""Write docs/dags.md from the DAGs themselves: what starts each one, its form, its tasks, and its own docs.

`make docs` runs this. The DAGs are parsed as Airflow parses them, for the example model, with a temporary Airflow home and
without anybody's settings, so that the page is the same on every machine.

python scripts/dags_page.py          docs/dags.md
python scripts/dags_page.py FILE     another file
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "dags.md"
EXAMPLE = "flight_delay"
#: In the order in which a model meets them; others follow by name.
ORDER = ("load", "ingest", "train", "score", "materialize", "record", "monitor", "promote", "rollback", "maintain", "notify")

INTRODUCTION = """\
<!-- Made by `make docs` from dags/ and include/perennial/orchestration/. Change it there. -->

# The DAGs

Each file in `dags/` makes one DAG per model; of the last two on this page, one makes a DAG for all models, and one none.
`make docs` makes this page from the DAGs, and a test fails when it is out of date (`tests/dags/test_dags_page.py`). The texts
are those that Airflow shows on each DAG's page.

Times, tables and tasks are those of the example, `flight_delay`. `schedules` in `model.yaml` sets when a model's DAGs start,
and each of its tables has its own `check_` task. With `promotion: approval`, the train DAG has one more task before
`promote_champion`: `ask_approval`.

*Mapped* tasks are made once the run knows how many it needs: one per part of a range, per candidate, or per result of the task
before. Every task is retried with growing waits, has a time limit, and raises an alert when it fails for good
(`test_every_task_retries_with_back_off_within_a_limit_and_alerts`).
"""


def main(arguments: Sequence[str]) -> None:
    page = Path(arguments[0]) if arguments else PAGE
    with tempfile.TemporaryDirectory() as home:
        dags = parse(Path(home))
    page.write_text(write(dags), encoding="utf-8")
    sys.stdout.write(f"wrote {page}\n")


def parse(home: Path) -> dict[str, Any]:
    """The example's DAGs by stage, parsed with nobody's settings."""
    for name in [name for name in os.environ if name.startswith(("AIRFLOW_", "PERENNIAL_", "MLFLOW_"))]:
        del os.environ[name]
    os.environ |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "PERENNIAL_MODELS": str(PROJECT / "include" / "models"),
        "PERENNIAL_STATE": str(home / "var"),
        # The DAG that sends alerts exists once there is somebody to send them to.
        "PERENNIAL_ALERTS_EMAIL": "team@example.org",
    }
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(PROJECT / "dags"))
    if bag.import_errors:
        raise SystemExit("\n".join(bag.import_errors.values()))
    found = {dag.dag_id.rpartition(".")[2]: dag for dag in bag.dags.values() if dag.dag_id.startswith((EXAMPLE, "perennial."))}
    first = [stage for stage in ORDER if stage in found]
    return {stage: found[stage] for stage in [*first, *sorted(found.keys() - set(first))]}


def without_dags(dags: dict[str, Any]) -> Iterator[str]:
    """The docs of the files that have no DAG."""
    for file in sorted((PROJECT / "dags").glob("*.py")):
        if file.stem not in dags:
            heading, _, text = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")
            yield f"## {heading.removeprefix('# ')}\n\n`dags/{file.name}` · no DAG\n\n" + sections_below(text)


def sections_below(text: str) -> str:
    return re.sub(r"(?m)^## ", "### ", text.strip())


def write(dags: dict[str, Any]) -> str:
    sections = {stage: "\n".join(section(dag)) for stage, dag in dags.items()}
    contents = [
        "| DAG | Starts | |",
        "| --- | --- | --- |",
        *(
            f"| [`{name(dag)}`](#{anchor(title(dag))}) | {starts(dag.timetable)} | {title(dag).partition(': ')[2]} |"
            for dag in dags.values()
        ),
    ]
    return "\n".join([INTRODUCTION, *contents, "", "\n\n".join([*sections.values(), *without_dags(dags)])]).rstrip() + "\n"


def section(dag: Any) -> Iterator[str]:
    _, _, text = dag.doc_md.partition("\n")
    yield f"## {title(dag)}"
    yield ""
    yield f"`{name(dag)}` · starts {starts(dag.timetable)} · at most {runs(dag)}"
    yield ""
    yield sections_below(text)
    yield ""
    yield "### Tasks"
    yield ""
    yield "| Task | After | What it does | Queue |"
    yield "| --- | --- | --- | --- |"
    for tasks in alike(dag):
        mapped = tasks[0].is_mapped or type(tasks[0].task_group).__name__ == "MappedTaskGroup"
        told = ", ".join(f"`{task.task_id}`" for task in tasks) + (" (mapped)" if mapped else "")
        before = directly_before(dag, tasks)
        after = ", ".join(f"`{task.task_id}`" for task in dag.topological_sort() if task.task_id in before)
        yield f"| {told} | {after} | {does(tasks[0])} | `{tasks[0].queue}` |"
    if dag.params:
        yield ""
        yield "### Trigger form"
        yield ""
        yield "| Field | Key | Meaning | Default |"
        yield "| --- | --- | --- | --- |"
        for key in dag.params:
            schema, default = dag.params.get_param(key).schema, dag.params.dump()[key]
            needed = default is None and "null" not in schema["type"]
            shown = "*required*" if needed else "" if default is None else f"`{str(default).lower()}`"
            yield f"| {schema['title']} | `{key}` | {schema['description_md']} | {shown} |"


def name(dag: Any) -> str:
    return str(dag.dag_id).replace(f"{EXAMPLE}.", "<model>.")


def title(dag: Any) -> str:
    return str(dag.doc_md).partition("\n")[0].removeprefix("# ")


def runs(dag: Any) -> str:
    hours = dag.dagrun_timeout.total_seconds() / 3600
    longest = f"{hours:g} hours" if hours >= 1 else f"{hours * 60:g} minutes"
    return f"{dag.max_active_runs} run{'s' if dag.max_active_runs > 1 else ''} at once, of {longest} each"


def starts(timetable: Any) -> str:
    """What starts a DAG, in words."""
    match type(timetable).__name__:
        case "NullTimetable":
            return "by hand"
        case "EachDay":
            return f"at `{timetable.expression}` (UTC), for the day before"
        case "CronTriggerTimetable":
            return f"at `{timetable.expression}` (UTC)"
        case "PartitionedAssetTimetable":
            # The other one starts what no publication will.
            condition = timetable.asset_condition
            asset = getattr(condition, "objects", [condition])[0].name.replace(EXAMPLE, "<model>")
            window = type(getattr(timetable.default_partition_mapper, "window", None)).__name__
            period = {
                "NoneType": "a day",
                "WeekWindow": "all days of a week (from Monday)",
                "MonthWindow": "all days of a month",
            }[window]
            return f"when {period} of `{asset}` {'is' if window == 'NoneType' else 'are'} published"
        case other:
            raise SystemExit(f"scripts/dags_page.py has no words for the timetable {other}: add them to `starts`")


def alike(dag: Any) -> Iterator[list[Any]]:
    """The tasks in order; those of one function that wait for the same tasks together."""
    kept: dict[Any, list[Any]] = {}
    for task in dag.topological_sort():
        function = getattr(task, "python_callable", None) or task.task_id
        kept.setdefault((function, frozenset(task.upstream_task_ids), task.task_group.group_id), []).append(task)
    yield from kept.values()


def directly_before(dag: Any, tasks: Sequence[Any]) -> set[str]:
    """The tasks that these wait for, without those that the others wait for anyway."""
    direct = {one for task in tasks for one in task.upstream_task_ids}
    return direct - {one.task_id for before in direct for one in dag.get_task(before).get_flat_relatives(upstream=True)}


def does(task: Any) -> str:
    """The first paragraph of what a task says of itself."""
    function = getattr(task, "python_callable", None)
    if function is None:
        return f"Starts a run of `{task.trigger_dag_id.replace(EXAMPLE, '<model>')}`."
    paragraph = (inspect.getdoc(function) or "").partition("\n\n")[0]
    return " ".join(paragraph.split()).replace("``", "`")


def anchor(heading: str) -> str:
    """The address that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    main(sys.argv[1:])
