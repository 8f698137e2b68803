"""A model's folder, read: its spec, its SQL, its thresholds, and the digests of what features and models depend on."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from perennial.core.errors import SpecError
from perennial.spec.model import ModelSpec
from perennial.spec.monitoring import DriftThresholds
from perennial.spec.problems import validate
from perennial.spec.strict_yaml import parse_yaml, read_text

#: Where ``perennial calibrate`` keeps what it found, beside ``model.yaml``.
THRESHOLDS_FILE = "drift.yaml"

#: Most bytes of ``model.py``: Python takes a minute to parse a megabyte of the worst code, and Airflow waits half of one.
MAX_CODE = 100_000


class ModelFolder(BaseModel):
    """A model's folder, read.

    Attributes:
        path: the folder.
        spec: what ``model.yaml`` says.
        features_sql: text of ``features.sql``.
        code: text of ``model.py``; empty if there is none.
        thresholds: what ``drift.yaml`` says; None if there is none. Monitoring alone goes by them, so they are in no digest:
            a model stays the same, and a training that is under way goes on, when they are calibrated anew.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    spec: ModelSpec
    features_sql: str
    code: str
    thresholds: DriftThresholds | None = None

    @property
    def digest(self) -> str:
        """SHA-256 over the spec's meaning, the feature SQL and the code: the identity of what would be run."""
        return hashlib.sha256("\0".join((self.spec.digest, self.features_sql, self.code)).encode()).hexdigest()

    @property
    def files(self) -> dict[str, str]:
        """What the digest speaks of, as the texts of files from which :func:`read_model` gives the same folder.

        ``model.yaml`` is the spec's meaning, defaults included, without comments.
        """
        # JSON is YAML in which every text is quoted.
        spec = json.dumps(self.spec.model_dump(mode="json"), indent=2, ensure_ascii=False)
        code = {"model.py": self.code} if self.code else {}
        return {"model.yaml": spec, "features.sql": self.features_sql, **code}

    @property
    def features_digest(self) -> str:
        """SHA-256 over all that decides a feature's value: two rows with the same one were made the same way."""
        spec = self.spec.model_dump(mode="json", include={"sources", "tables", "entity", "features"})
        return hashlib.sha256((json.dumps(spec, sort_keys=True) + self.features_sql).encode()).hexdigest()


def read_model(folder: Path) -> ModelFolder:
    """Read and validate one model folder.

    Raises:
        SpecError: with every problem found, a line each: file, line, what is wrong, what would be right.
    """
    try:
        return _read_model(folder)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        # Whatever a folder makes of its reader: who reads all folders goes on with the others.
        raise SpecError(f"{folder}: cannot be read: {type(error).__name__}: {error}") from error


def _read_model(folder: Path) -> ModelFolder:
    file = folder / "model.yaml"
    spec = validate(ModelSpec, file, *parse_yaml(file))
    if spec.name != folder.name:
        raise SpecError(f"{file}: name is {spec.name}, but its folder is {folder.name}; make them the same")
    features = folder / "features.sql"
    code_file = folder / "model.py"
    if not os.path.lexists(features):
        raise SpecError(f"{features}: missing; write a SELECT that gives {', '.join(spec.features.names)} for each entity")
    code = read_text(code_file, MAX_CODE) if os.path.lexists(code_file) else ""
    _check_functions(file, spec, code_file, code)
    return ModelFolder(
        path=folder, spec=spec, features_sql=read_text(features), code=code, thresholds=_read_thresholds(folder, spec)
    )


def _read_thresholds(folder: Path, spec: ModelSpec) -> DriftThresholds | None:
    file = folder / THRESHOLDS_FILE
    if not os.path.lexists(file):
        return None
    value, lines = parse_yaml(file)
    thresholds = validate(DriftThresholds, file, value, lines)
    again = f"delete the file and run `perennial calibrate {spec.name}`"
    problems = [
        *(
            (("columns", name), f"{name} is no feature; {again}")
            for name in thresholds.columns
            if name not in (*spec.features.names, "prediction")
        ),
        *(
            (("columns",), f"{name} has no threshold; {again}")
            for name in (*spec.features.names, "prediction")
            if name not in thresholds.columns
        ),
        *(
            ((key,), f"thresholds are for {has}, model.yaml says {wants}; {again}")
            for key, has, wants in (
                ("window", thresholds.window, spec.schedules.monitor),
                ("match", thresholds.match, spec.drift.match),
            )
            if has != wants
        ),
    ]
    if problems:
        raise SpecError("\n".join(f"{file}:{lines.get(path, 1)}: {'.'.join(path)}: {text}" for path, text in problems))
    return thresholds


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
    """The model folders of a deployment: the good ones by name, and the error of each broken one by folder name.

    Args:
        models: where they lie.
        only: name of the one to read; None: all.
    """
    good: dict[str, ModelFolder] = {}
    broken: dict[str, SpecError] = {}
    for folder in model_folders(models) if only is None else [models / only]:
        try:
            good[folder.name] = read_model(folder)
        except SpecError as error:
            broken[folder.name] = error
    return good, broken


def _check_functions(file: Path, spec: ModelSpec, code_file: Path, code: str) -> None:
    """Whatever the spec names as ``model:function`` is defined in ``model.py``, judged without running it."""
    wanted = {
        **{f"candidates.{name}.estimator": candidate.estimator for name, candidate in spec.candidates.items()},
        **{f"sources.{name}.python": source.python for name, source in spec.sources.items() if source.python},
        **{f"gates.behaviour.{name}": test.function for name, test in spec.gates.behaviour.items() if test.function},
        **({"cost.function": spec.cost.function} if spec.cost and spec.cost.function else {}),
    }
    try:
        defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    except (SyntaxError, ValueError) as error:
        raise SpecError(f"{code_file}:{getattr(error, 'lineno', 1)}: not Python: {error}") from error
    except (RecursionError, MemoryError) as error:  # what Python's parser makes of nesting that is too deep for it
        raise SpecError(f"{code_file}: nested too deeply for Python") from error
    for place, reference in wanted.items():
        function = reference.removeprefix("model:")
        if function != reference and function not in defined:
            raise SpecError(f"{file}: {place} names {reference}, but {code_file.name} defines no {function}")
