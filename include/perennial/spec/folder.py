"""Reads a model's folder: its spec, its SQL, its code, its thresholds; and makes the digests that identify them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from perennial.core.errors import SpecError
from perennial.spec.agreement import defined_functions, function_problems, threshold_problems
from perennial.spec.features_digest import feature_tables, features_digest, first_features_digest
from perennial.spec.gates import Gates
from perennial.spec.model import ModelSpec
from perennial.spec.monitoring import DriftThresholds
from perennial.spec.problems import Problem, write_problems
from perennial.spec.strict_yaml import Document, parse_yaml, read_text
from perennial.spec.validation import examine

T = TypeVar("T")

#: The file beside ``model.yaml`` to which ``perennial calibrate`` writes thresholds.
THRESHOLDS_FILE = "drift.yaml"

#: Most bytes of ``model.py``: Python takes a minute to parse a megabyte of the worst code, and Airflow waits half of one.
MAX_CODE = 100_000


class ModelFolder(BaseModel):
    """What the files of a model's folder say.

    Attributes:
        path: the folder.
        spec: what ``model.yaml`` says.
        features_sql: text of ``features.sql``.
        code: text of ``model.py``, empty if there is none.
        thresholds: what ``drift.yaml`` says, None if there is none. Only monitoring and the gates of refreshes use them, so
            they are in no digest: a new calibration changes no model and stops no training.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    spec: ModelSpec
    features_sql: str
    code: str
    thresholds: DriftThresholds | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the spec's meaning, the feature SQL and the code. It identifies what would run."""
        return hashlib.sha256("\0".join((self.spec.digest, self.features_sql, self.code)).encode()).hexdigest()

    @property
    def files(self) -> dict[str, str]:
        """What the digest covers, as texts by file name. :func:`read_model` reads the same folder from them.

        ``model.yaml`` is the spec's meaning: defaults included, comments left out.
        """
        # JSON is YAML. It quotes every text.
        spec = json.dumps(self.spec.model_dump(mode="json"), indent=2, ensure_ascii=False)
        code = {"model.py": self.code} if self.code else {}
        return {"model.yaml": spec, "features.sql": self.features_sql, **code}

    @property
    def gates(self) -> Gates:
        """``gates`` of the spec. Where it states no threshold of refreshes, that of ``drift.yaml`` counts."""
        stated, found = self.spec.gates, self.thresholds.refresh if self.thresholds is not None else None
        if found is None:
            return stated
        calibrated = {"agreement": found.agreement, "skill": found.skill}
        missing = {name: value for name, value in calibrated.items() if getattr(stated.refresh, name) is None}
        return stated.model_copy(update={"refresh": stated.refresh.model_copy(update=missing)})

    @property
    def features_digest(self) -> str:
        """SHA-256 of everything that decides a feature's value. Rows with the same digest were made in the same way."""
        return features_digest(self.spec, self.features_sql)

    @property
    def feature_tables(self) -> list[str]:
        """The tables that features are made of: the entity table, and those that ``features.sql`` names."""
        return feature_tables(self.spec, self.features_sql)

    @property
    def features_digests(self) -> frozenset[str]:
        """The digests of features that were made as this folder makes them. An earlier release gave another one."""
        return frozenset({self.features_digest, first_features_digest(self.spec, self.features_sql)})


def read_model(folder: Path) -> ModelFolder:
    """Read and validate one model folder.

    Where all models are behind a link, which is switched from commit to commit (:mod:`perennial.operations.follow`), all files
    are read from the commit that it leads to now.

    Raises:
        SpecError: the folder does not describe a model. The message has a line for each problem of each of its files: file,
            line, what is wrong, and what to write instead.
    """
    try:
        return _read_model(folder)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        # Whatever a folder does to its reader, whoever reads all folders goes on with the others.
        raise SpecError(f"{folder}: cannot be read: {type(error).__name__}: {error}") from error


def _read_model(folder: Path) -> ModelFolder:
    failures: list[str] = []
    if folder.parent.is_symlink():
        folder = folder.parent.resolve() / folder.name
    file = folder / "model.yaml"
    document = _attempt(lambda: parse_yaml(file), failures, Document(file))
    spec, problems = examine(ModelSpec, document)
    name = vars(spec).get("name", folder.name)  # absent if it is broken
    if name != folder.name:
        problems.append(Problem(("name",), f"is {name}, but the folder is {folder.name}; make them the same"))
    code_failures: list[str] = []
    unread: tuple[str, set[str] | None] = ("", None)
    code, functions = _attempt(lambda: _read_code(folder / "model.py"), code_failures, unread)
    if functions is not None:
        problems += function_problems(spec, functions)
    failures += write_problems(file, document.lines, problems)
    features_sql = _attempt(lambda: _read_features(folder / "features.sql", spec), failures, "")
    failures += code_failures
    thresholds = _attempt(lambda: _read_thresholds(folder / THRESHOLDS_FILE, spec), failures, None)
    if failures:
        raise SpecError("\n".join(failures))
    return ModelFolder(path=folder, spec=spec, features_sql=features_sql, code=code, thresholds=thresholds)


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is meant as a model's: it has something named ``model.yaml``, or nobody may look.

    A name that cannot be printed, such as one that is not UTF-8, could be told to nobody: it is no model's.
    """
    if not folder.name.isprintable():
        return False
    try:
        (folder / "model.yaml").lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


def model_folders(models: Path) -> list[Path]:
    """All that is meant as a model's folder, sound or broken, by name.

    Args:
        models: where they lie. There are none where it does not exist.

    Raises:
        SpecError: it cannot be read.
    """
    try:
        return sorted(folder for folder in models.iterdir() if is_model_folder(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SpecError(f"{models}: cannot be read: {error.strerror}") from error


def read_models(models: Path, only: str | None = None) -> tuple[dict[str, ModelFolder], dict[str, SpecError]]:
    """Read the model folders of a deployment.

    Args:
        models: the folder that holds them.
        only: name of the one to read. None: all.

    Returns:
        The good folders by name, and the error of each broken one by name. An error has a line for each problem.
    """
    good: dict[str, ModelFolder] = {}
    broken: dict[str, SpecError] = {}
    for folder in model_folders(models) if only is None else [models / only]:
        try:
            good[folder.name] = read_model(folder)
        except SpecError as error:
            broken[folder.name] = error
    return good, broken


def _attempt(read: Callable[[], T], failures: list[str], otherwise: T) -> T:
    """What a file says. If it cannot be used, its problems are kept and the other files are still read."""
    try:
        return read()
    except SpecError as error:
        failures += str(error).splitlines()
        return otherwise


def _read_features(file: Path, spec: ModelSpec) -> str:
    """The text of ``features.sql``; the spec may be broken."""
    if not os.path.lexists(file):
        names = ", ".join(spec.features.names) if "features" in vars(spec) else "the features"
        raise SpecError(f"{file}: missing; write a SELECT that gives {names} for each entity")
    return read_text(file)


def _read_code(file: Path) -> tuple[str, set[str] | None]:
    """The text of ``model.py``, empty if there is none, and the functions it defines."""
    code = read_text(file, MAX_CODE) if os.path.lexists(file) else ""
    try:
        return code, defined_functions(code)
    except (SyntaxError, ValueError) as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise SpecError(f"{file}:{line or 1}: not Python: {reason}") from error
    except (RecursionError, MemoryError) as error:  # Python's parser raises them for code that is nested too deeply
        raise SpecError(f"{file}: nested too deeply for Python") from error


def _read_thresholds(file: Path, spec: ModelSpec) -> DriftThresholds | None:
    """What ``drift.yaml`` says, None if there is none; the spec may be broken."""
    if not os.path.lexists(file):
        return None
    document = parse_yaml(file)
    thresholds, problems = examine(DriftThresholds, document)
    problems += threshold_problems(spec, thresholds)
    if problems:
        raise SpecError("\n".join(write_problems(file, document.lines, problems)))
    return thresholds
