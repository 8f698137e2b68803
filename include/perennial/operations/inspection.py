"""What is wrong in a model's folder, as far as it can be found without data.

Reading a folder (:mod:`perennial.spec.folder`) binds no SQL, since Airflow reads all folders whenever it parses DAGs. Here
DuckDB binds every expression of ``model.yaml`` and ``features.sql`` to empty tables of the spec's types. It takes a tenth of a
second, and runs only when a person asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from perennial.core.errors import SpecError, TrainingError
from perennial.core.settings import Settings
from perennial.core.sql import connect
from perennial.features import point_in_time
from perennial.features.labels import bind_label
from perennial.features.published import DATASET
from perennial.ingestion import casting
from perennial.ingestion.files import unknown_codes
from perennial.lake.publish import Lake
from perennial.lake.schema import published_schema
from perennial.model.boosters import LIBRARIES, how_to_install, installed
from perennial.model.weights import bind_weight
from perennial.scoring.predictor import refuse_other_predictions
from perennial.spec.data import Source
from perennial.spec.folder import ModelFolder
from perennial.spec.monitoring import MIN_VALUES
from perennial.spec.names import listed
from perennial.spec.problems import Problem, YamlPath, write_problems
from perennial.spec.strict_yaml import parse_yaml
from perennial.spec.trust import reviewed_types

#: Files whose values are texts until the spec says otherwise.
_TEXTS = re.compile(r"\.(csv|tsv|jsonl|ndjson)(\.\w+)?$")


def find_faults(folder: ModelFolder) -> list[str]:
    """Faults that no data can avoid, as one-line messages: file, line, key, what is wrong."""
    lines = parse_yaml(folder.path / "model.yaml").lines
    in_yaml: list[Problem] = [*_time_codes(folder), *_libraries(folder)]
    elsewhere: list[str] = []
    for error in _sql(folder):
        message = f"{error}{_hint(folder, str(error))}"
        placed = _place(folder, message, lines)
        in_yaml.append(placed) if placed is not None else elsewhere.append(message)
    return [*write_problems(folder.path / "model.yaml", lines, in_yaml), *elsewhere]


def find_remarks(folder: ModelFolder) -> list[str]:
    """Settings that work, but not as written; in the form of :func:`find_faults`."""
    lines = parse_yaml(folder.path / "model.yaml").lines
    return write_problems(folder.path / "model.yaml", lines, _without_effect(folder))


def find_todos(folder: ModelFolder) -> list[str]:
    """What its author has still to decide: a line for each comment with ``TODO:``, with file and line."""
    return [
        f"{file}:{number}: TODO: {found[1]}"
        for file in (folder.path / "model.yaml", folder.path / "features.sql")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if (found := re.search(r"(?:#|--).*\bTODO: (.*)", line))
    ]


def find_unreviewed_types(folder: ModelFolder, settings: Settings) -> list[str]:
    """Types that the folder trusts and this deployment does not; in the form of :func:`find_faults`."""
    named = folder.spec.training.trusted_types
    missing = set(named) - set(reviewed_types(named, settings.trusted_types))
    message = "is not among PERENNIAL_TRUSTED_TYPES of this deployment, so no model that holds it is stored or loaded"
    problems = [
        Problem(("training", "trusted_types", number), f"{name} {message}; ask its reviewer to add it")
        for number, name in enumerate(named)
        if name in missing
    ]
    return write_problems(folder.path / "model.yaml", parse_yaml(folder.path / "model.yaml").lines, problems)


def find_changed_types(folder: ModelFolder, lake: Lake) -> tuple[list[str], list[str]]:
    """What becomes of the published rows if the folder gives a column another type than they have.

    Returns:
        What the next publications will do; and what they will refuse, each with what to do.
    """
    spec, refused = folder.spec, []
    for name, table in spec.tables.items():
        try:
            lake.check_types(spec.name, name, published_schema(table))
        except SpecError as error:
            refused.append(str(error))
    try:
        refuse_other_predictions(spec, lake)
    except SpecError as error:
        refused.append(str(error))
    try:
        anew = lake.check_types(spec.name, DATASET, point_in_time.feature_schema(spec), derived=spec.features.names)
    except SpecError as error:
        return [], [*refused, str(error)]
    kinds = [f"{name} becomes {'numeric' if name in spec.features.numeric else 'categorical'}" for name in anew]
    told = [
        f"{', '.join(kinds)} in the published features: each day is built again before it is read, and a version that was made "
        "by the earlier folder goes on through its own"
    ]
    return told if kinds else [], refused


def _sql(folder: ModelFolder) -> Iterator[SpecError]:
    for name, table in folder.spec.tables.items():
        yield from casting.faults_without_rows(folder, name, texts=_gives_texts(folder.spec.sources[table.source]))
    yield from point_in_time.faults_without_rows(folder)
    try:
        bind_label(folder)
    except SpecError as error:
        yield error
    try:
        bind_weight(folder.spec, point_in_time.feature_schema(folder.spec))
    except TrainingError as error:
        yield SpecError(str(error).replace(f"{folder.spec.name}: ", f"{folder.path / 'model.yaml'}: ", 1))


def _gives_texts(source: Source) -> bool:
    return source.files is not None and _TEXTS.search(source.files) is not None


def _time_codes(folder: ModelFolder) -> Iterator[Problem]:
    for name, source in folder.spec.sources.items():
        if source.files is not None and (codes := unknown_codes(source.files)):
            yield Problem(
                ("sources", name, "files"),
                f"{listed(codes)} stands for no time; write %Y, %m, %d and %H for the year, month, day and hour of an interval",
            )


def _libraries(folder: ModelFolder) -> Iterator[Problem]:
    for name, candidate in folder.spec.candidates.items():
        if candidate.estimator in LIBRARIES and installed(candidate.estimator) is None:
            yield Problem(("candidates", name, "estimator"), how_to_install(candidate.estimator))


def _without_effect(folder: ModelFolder) -> Iterator[Problem]:
    least = folder.spec.drift.min_rows
    if least < MIN_VALUES:
        yield Problem(
            ("drift", "min_rows"),
            f"is {least}, but a distance requires {MIN_VALUES} values on each side: a window with fewer rows than {MIN_VALUES} "
            f"has the verdict unknown in any case; write {MIN_VALUES} or more",
        )


def _place(folder: ModelFolder, message: str, lines: dict[YamlPath, int]) -> Problem | None:
    """The place of an error that names its key, as ``…/model.yaml: tables.orders.known: …``; None for another file."""
    prefix = f"{folder.path / 'model.yaml'}: "
    if not message.startswith(prefix):
        return None
    key, _, said = message.removeprefix(prefix).partition(": ")
    return Problem(next((path for path in lines if ".".join(map(str, path)) == key), tuple(key.split("."))), said)


def _hint(folder: ModelFolder, message: str) -> str:
    """What to write if SQL takes the name of a column or table for one of its own words."""
    near = re.search(r'syntax error at or near "(\w+)"', message)
    names = {column for table in folder.spec.tables.values() for column in table.columns} | folder.spec.tables.keys()
    if near is None or near[1].lower() not in names:
        return ""
    query = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'"
    with connect() as connection:
        words = connection.execute(query).fetchall()
    return f'; {near[1]} is a word of SQL: write "{near[1]}", in double quotes' if (near[1].lower(),) in words else ""
