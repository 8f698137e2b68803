"""One client for MLflow's tracking and registry, the models' experiments, and the addresses that people open.

The client has explicit addresses, so it neither reads nor changes MLflow's process-wide state.
"""

from __future__ import annotations

import fcntl
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SADeprecationWarning

from perennial.core.errors import ArtifactRejected, PromotionRefused, ReadOnly
from perennial.core.settings import Settings, mlflow_page
from perennial.ledger.records import VersionRecord
from perennial.ledger.store import Ledger
from perennial.model import artifacts
from perennial.spec.model import ModelSpec

CHAMPION = "champion"
#: Alias of the newest registered version that is neither promoted nor refused yet; an approver finds the version by it.
CHALLENGER = "challenger"

MISSING = "RESOURCE_DOES_NOT_EXIST"
EXISTS = "RESOURCE_ALREADY_EXISTS"


#: The scheme of addresses whose files MLflow's server keeps, and the folder of the embedded stack's server for them, below its
#: state folder.
_OF_SERVER, KEPT_BY_SERVER = "mlflow-artifacts", "mlartifacts"


def _needs_its_server(settings: Settings) -> str:
    return (
        "the files of models are kept by MLflow's server, and MLFLOW_TRACKING_URI is the address of its database instead: "
        f"start the stack of {settings.state} with `make up`, or set MLFLOW_TRACKING_URI to the server's address"
    )


def unanswered(error: BaseException, settings: Settings) -> str | None:
    """What to tell people if MLflow's client raised an error; None if the error is another one.

    Where an answer of MLflow has a meaning, such as that there is no such version, it has been caught before.
    """
    if not isinstance(error, MlflowException):
        return None
    address = make_url(settings.mlflow_url).render_as_string(hide_password=True)
    said = (str(error).splitlines() or [""])[0]
    if _OF_SERVER in said and not settings.mlflow_url.startswith("http"):
        return _needs_its_server(settings)
    return (
        f"MLflow at {address} does not answer as it should: {said}. Nothing is wrong with the model; try again when it answers"
    )


class _ReadingClient:
    """MLflow's client in a process that only reads: it has the methods that ask, and no other."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        if name == "tracking_uri" or name.startswith(("get_", "search_", "list_")):
            return getattr(self._client, name)
        raise ReadOnly(f"MLflow was opened to read, and {name} is not called")


class Mlflow:
    """The MLflow of this deployment, which follows the ledger; each concern of :mod:`perennial.registry` extends it."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger

    @property
    def settings(self) -> Settings:
        """The deployment's settings."""
        return self._settings

    def trusted(self, spec: ModelSpec) -> list[str]:
        """Return all types that a stored model of a folder may hold here."""
        return artifacts.trusted_types(spec.training.trusted_types, self._settings.trusted_types)

    def record(self, model: str, version: int) -> VersionRecord:
        """Return what the ledger knows of a version.

        Raises:
            ArtifactRejected: it knows nothing.
        """
        record = self._ledger.version(model, version)
        if record is None:
            raise ArtifactRejected(
                f"{model} version {version} is not in the ledger: Perennial did not register it and cannot check it"
            )
        return record

    def migrate(self) -> None:
        """Create MLflow's tables, if it is a database rather than a server. Several processes may call it at once."""
        self._client.search_experiments(max_results=1)

    @cached_property
    def _client(self) -> MlflowClient:
        url = self._settings.mlflow_url
        with self._alone(), warnings.catch_warnings():
            # It tells of the tables that it makes.
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
            # MLflow's own tables cause this warning when they are first mapped.
            warnings.simplefilter("ignore", SADeprecationWarning)
            client = MlflowClient(tracking_uri=url, registry_uri=url)
            if self._is_database:
                client.search_registered_models(max_results=1)  # opens the registry's store too
            return cast("MlflowClient", _ReadingClient(client)) if self._settings.read_only else client

    @property
    def _is_database(self) -> bool:
        return not self._settings.mlflow_url.startswith(("http://", "https://"))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time in: two processes that open a new SQLite store together break its migration."""
        if not self._settings.mlflow_url.startswith("sqlite:"):
            yield
            return
        file = Path(make_url(self._settings.mlflow_url).database or "mlflow.db").absolute()
        if self._settings.read_only:
            if not file.is_file():
                raise ReadOnly(f"MLflow's database {file} does not exist, and it was opened to read")
            yield
            return
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file.with_name(f"{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _readable(self, address: str) -> str:
        """Where the files at an address of MLflow are read.

        ``mlflow-artifacts:`` addresses are those of a server. Where the database of an embedded stack is used without it, its
        files are read in the stack's folder. They are compared with the ledger's manifest in the same way.

        Raises:
            ArtifactRejected: they are not there; the message says what to start.
        """
        if not (self._is_database and address.startswith(f"{_OF_SERVER}:")):
            return address
        artifacts.check_source(address)
        folder = self._settings.state / KEPT_BY_SERVER
        is_its_own = self._settings.mlflow_url == f"sqlite:///{self._settings.state / 'mlflow.db'}"
        if not (is_its_own and folder.is_dir()):
            raise ArtifactRejected(_needs_its_server(self._settings))
        return (folder / unquote(urlsplit(address).path).lstrip("/")).as_uri()

    def _experiment(self, model: str) -> str:
        """Return the id of the model's experiment; create the experiment if there is none."""
        found = self._client.get_experiment_by_name(model)
        if found is None:
            # A server has its own artifact location. A database without a server would use the current folder.
            place = (self._settings.state / "mlflow-artifacts" / model).as_uri() if self._is_database else None
            try:
                return str(self._client.create_experiment(model, artifact_location=place))
            except MlflowException as error:
                if error.error_code != EXISTS:
                    raise
                return self._experiment(model)
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _address(self, path: str) -> str | None:
        base = self._settings.mlflow_public_url or (None if self._is_database else self._settings.mlflow_url)
        return mlflow_page(base, path)

    def run_url(self, mlflow_run_id: str) -> str | None:
        """Return the address of a run's page; None if this deployment has no address for people."""
        path = self._run_path(mlflow_run_id)
        return self._address(path) if path is not None else None

    def _run_path(self, mlflow_run_id: str) -> str | None:
        """A run's page below MLflow's address for people; None if there is no such address, and then MLflow is not asked."""
        if self._address("") is None:
            return None
        return f"experiments/{self._client.get_run(mlflow_run_id).info.experiment_id}/runs/{mlflow_run_id}"

    def version_url(self, model: str, version: int) -> str | None:
        """Return the address of a version's page; None if this deployment has no address for people."""
        return self._address(f"models/{model}/versions/{version}")

    def links(self, model: str, version: int) -> dict[str, str]:
        """Return the addresses of pages about a version, by name; empty if this deployment has no address for people."""
        address, record = self.version_url(model, version), self._ledger.version(model, version)
        found = {"MLflow": address} if address else {}
        run = self._run_path(record.mlflow_run_id) if record is not None else None
        if run is not None:
            pages = (("Model card", "card.html"), ("Release report", "release.html"))
            found |= {name: page for name, file in pages if (page := self._address(f"{run}/artifacts/card/{file}"))}
        return found

    def _links(self, model: str, version: int) -> dict[str, str]:
        address = self.version_url(model, version)
        return {"MLflow": address} if address else {}

    def _check_that_it_may_promote(self, model: str) -> None:
        if not self._settings.may_promote:
            raise PromotionRefused(
                f"{model}: this process may not change the champion (PERENNIAL_MAY_PROMOTE); only the judge may"
            )
