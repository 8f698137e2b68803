"""The deployment's settings, from the environment: validated, read once.

Neighbours: ``.env.example`` lists every variable; :mod:`perennial.spec.model` says what a model folder says instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from perennial.core.errors import SettingsError

#: The root of the project: the folder that holds ``include/``.
PROJECT = Path(__file__).resolve().parents[3]

#: The reviewer's list. Empty, it allows nothing; only if it is unset does it leave the choice to the folders.
TRUSTED_TYPES = "PERENNIAL_TRUSTED_TYPES"

ModelT = TypeVar("ModelT", bound=BaseModel)

_VARIABLES = {
    "models": "PERENNIAL_MODELS",
    "state": "PERENNIAL_STATE",
    "data": "PERENNIAL_DATA",
    "database_url": "PERENNIAL_DATABASE_URL",
    "catalog_url": "PERENNIAL_CATALOG_URL",
    "warehouse": "PERENNIAL_WAREHOUSE",
    "predictions_url": "PERENNIAL_PREDICTIONS_URL",
    "mlflow_url": "MLFLOW_TRACKING_URI",
    "mlflow_public_url": "PERENNIAL_MLFLOW_PUBLIC_URL",
    "airflow_public_url": "PERENNIAL_AIRFLOW_PUBLIC_URL",
    "alerts_slack": "PERENNIAL_ALERTS_SLACK",
    "alerts_channel": "PERENNIAL_ALERTS_CHANNEL",
    "alerts_email": "PERENNIAL_ALERTS_EMAIL",
    "may_promote": "PERENNIAL_MAY_PROMOTE",
    "train_slots": "PERENNIAL_TRAIN_SLOTS",
    "load_slots": "PERENNIAL_LOAD_SLOTS",
    "parts_at_once": "PERENNIAL_PARTS_AT_ONCE",
    "trusted_types": TRUSTED_TYPES,
}


class Settings(BaseModel):
    """Where this deployment keeps things.

    Attributes:
        models: folder with one sub-folder per model.
        state: folder for what the embedded stack keeps (``var``); reports, staging and Data Docs lie in it.
        data: root that the relative file patterns of specs start from.
        database_url: SQLAlchemy URL of the ledger.
        catalog_url: SQLAlchemy URL of the Iceberg catalog.
        warehouse: where Iceberg keeps files, a path or an fsspec address.
        predictions_url: SQLAlchemy URL that predictions are written to.
        mlflow_url: MLflow's tracking and registry address.
        mlflow_public_url: the address a person opens MLflow at; ``mlflow_url`` if that is one.
        airflow_public_url: the address a person opens Airflow at, if there is one.
        alerts_slack: Airflow connection of Slack for alerts that concern no single model, and for models that name no channel.
        alerts_channel: the channel there, if the connection is one of the Slack API.
        alerts_email: addresses for the same alerts, separated by commas.
        may_promote: whether this process may change the champion. If not, MLflow and the ledger's database refuse it as well,
            where processes have identities (``docker-compose.yaml``).
        train_slots: most tasks of trainings at once, of all models together, see :mod:`perennial.core.pools`; None: as many as
            there are workers.
        load_slots: the same of tasks that load history.
        parts_at_once: most tasks at once of a range that is scored or loaded in parts, so that one model's backlog does not
            occupy all workers.
        trusted_types: of the types that folders name in ``training.trusted_types``, those that models may hold here: names of
            types or of modules. None: what the folders name.
        read_only: whether ledger, lake and registry refuse every write of this process. No variable sets it:
            :mod:`perennial.client` does.
    """

    # Addresses hold passwords, so an error names the variable and does not quote the value.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    models: Path
    state: Path
    data: Path
    database_url: str
    catalog_url: str
    warehouse: str
    predictions_url: str
    mlflow_url: str
    mlflow_public_url: str | None = None
    airflow_public_url: str | None = None
    alerts_slack: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")] | None = None
    alerts_channel: Annotated[str, Field(pattern=r"^#?[^\s#:<>|&]{1,80}$")] | None = None
    alerts_email: Annotated[str, Field(pattern=r"^[^@\s<>,;]+@[^@\s<>,;]+(\s*,\s*[^@\s<>,;]+@[^@\s<>,;]+)*$")] | None = None
    may_promote: bool = True
    train_slots: Annotated[int, Field(ge=1)] | None = None
    load_slots: Annotated[int, Field(ge=1)] | None = None
    parts_at_once: Annotated[int, Field(ge=1)] = 2
    trusted_types: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")], ...] | None = None
    read_only: bool = False

    @field_validator("database_url", "catalog_url", "predictions_url")
    @classmethod
    def _names_its_driver(cls, url: str) -> str:
        if url.startswith(("postgresql://", "postgres://")):
            raise ValueError("write postgresql+psycopg2://…, since postgresql:// alone selects another driver")
        if not url.startswith(("sqlite:///", "postgresql+psycopg2://")):
            raise ValueError("the address must begin with sqlite:/// or postgresql+psycopg2://")
        return url

    @field_validator("mlflow_url", "mlflow_public_url", "airflow_public_url")
    @classmethod
    def _holds_no_password(cls, url: str | None) -> str | None:
        # It is shown in links.
        if url is not None and "@" in url.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "the address must not contain a user or password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return url

    @property
    def reports(self) -> Path:
        """Drift reports and Data Docs, one folder per model."""
        return self.state / "reports"

    def report_url(self, file: Path) -> str | None:
        """The public address of a file in the folder of reports; None if Airflow has no public address."""
        if self.airflow_public_url is None or not file.is_relative_to(self.reports):
            return None
        return f"{self.airflow_public_url.rstrip('/')}/perennial/reports/{quote(file.relative_to(self.reports).as_posix())}"

    def model_url(self, model: str) -> str | None:
        """The public address of a model's page; None if Airflow has no public address."""
        if self.airflow_public_url is None:
            return None
        return f"{self.airflow_public_url.rstrip('/')}/perennial/models/{quote(model, safe='')}"

    @property
    def staging(self) -> Path:
        """Files that the tasks of a run hand to each other; removed by ``maintain``."""
        return self.state / "staging"


def mlflow_page(base: str | None, path: str = "") -> str | None:
    """The address of a page of MLflow, which opens as a tool for models: by itself it opens as one for language models.

    Args:
        base: MLflow's address for people; None if there is none.
        path: below ``#/``.
    """
    return f"{base.rstrip('/')}/#/{path}?workflowType=machine_learning" if base else None


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from an environment; what is absent lies below ``var/`` of the project.

    Raises:
        SettingsError: a variable is set to something unusable; the message names it.
    """
    given: dict[str, object] = {field: environment[name] for field, name in _VARIABLES.items() if environment.get(name)}
    if TRUSTED_TYPES in environment:
        given["trusted_types"] = tuple(environment[TRUSTED_TYPES].replace(",", " ").split())
    state = Path(environment.get("PERENNIAL_STATE") or PROJECT / "var").absolute()
    database = given.get("database_url", f"sqlite:///{state / 'perennial.db'}")
    defaults = {
        "models": PROJECT / "include" / "models",
        "data": state / "data",
        "database_url": database,
        "catalog_url": f"sqlite:///{state / 'catalog.db'}",
        "warehouse": str(state / "lake"),
        "predictions_url": database,
        "mlflow_url": f"sqlite:///{state / 'mlflow.db'}",
    }
    try:
        return Settings.model_validate({**defaults, **given, "state": state})
    except ValidationError as error:
        problems = "; ".join(
            f"{_VARIABLES.get(str(problem['loc'][0]), problem['loc'][0])}: {problem['msg']}" for problem in error.errors()
        )
        raise SettingsError(f"the environment is invalid: {problems} (see .env.example)") from error


def settings_of(kind: type[ModelT], variables: Mapping[str, str], environment: Mapping[str, str], *, who: str) -> ModelT:
    """The settings of a process beside those of the deployment.

    Args:
        kind: their model.
        variables: by field, the variable that sets it.
        environment: of the process.
        who: the process, for the error.

    Raises:
        SettingsError: a variable is missing or unusable; the message names it and quotes no value.
    """
    given = {name: environment[variable] for name, variable in variables.items() if environment.get(variable)}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(f"{variables[str(problem['loc'][0])]}: {problem['msg']}" for problem in error.errors())
        raise SettingsError(f"{who} cannot start: {problems} (see .env.example)") from error


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process."""
    return read_settings(os.environ)
