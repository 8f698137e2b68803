"""Every use of a part of another library that its makers do not promise to keep. No other module has any.

:data:`PARTS` lists them: what is used, why no public way does, when the use can be removed, and which release it was checked
with. Each part has one function or class below. ``tests/unit/core/test_private_parts.py`` has a test for each, which fails
when the library changes; it also searches the package for other uses.

The libraries are imported when a function is called. Where an object of the library is at hand, the caller hands it in.
"""

from __future__ import annotations

import os
import selectors
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    import sqlalchemy as sa
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.manifest import DataFile
    from pyiceberg.schema import Schema


@dataclass(frozen=True)
class PrivatePart:
    """A part of another library that may change without notice.

    Attributes:
        distribution: the package that has it, as ``importlib.metadata`` knows it; None for Python's own library.
        checked_with: the release that it was last checked with.
        part: what is used.
        reason: why no public way does.
        remove_when: what has to be there before the use can be removed.
        by: the function, class or constant of this module that uses it.
    """

    distribution: str | None
    checked_with: str
    part: str
    reason: str
    remove_when: str
    by: str


PARTS = (
    PrivatePart(
        distribution="apache-airflow-task-sdk",
        checked_with="1.3.2",
        part="airflow.sdk.execution_time.supervisor.ActivitySubprocess: .selector, and the pairs it is given",
        reason="A coordinator may start and await a task, but has no public way to be told of the end of its process.",
        remove_when="remove when Airflow's supervisor waits for the process itself (pidfd) as well as for its sockets",
        by="watch_for_the_end",
    ),
    PrivatePart(
        distribution="apache-airflow-task-sdk",
        checked_with="1.3.2",
        part="airflow.sdk.execution_time.context.OutletEventAccessor.partition_keys, replaced by a collection with an order",
        reason="It is a set of texts, so the events of a range come in an order that each process draws anew.",
        remove_when="remove when OutletEventAccessor keeps the order in which partitions are added",
        by="add_partitions_in_order",
    ),
    PrivatePart(
        distribution="apache-airflow-task-sdk",
        checked_with="1.3.2",
        part="airflow.sdk.execution_time.task_runner reads a task's outlets when the task has succeeded",
        reason="A task that succeeds has an event for each of its outlets, and a run's partition starts whatever follows them.",
        remove_when="remove when a task can succeed without an event of one of its outlets",
        by="withhold_event",
    ),
    PrivatePart(
        distribution="apache-airflow-providers-smtp",
        checked_with="3.2.0",
        part="SmtpHook._get_oauth2_token",
        reason="The hook fetches the token only while it connects, and Perennial connects itself, with one deadline.",
        remove_when="remove when the hook offers its OAuth 2 token without a connection to the mail server",
        by="oauth2_token",
    ),
    PrivatePart(
        distribution="mlflow",
        checked_with="3.17.2",
        part="mlflow.store.db.utils._initialize_tables, ._upgrade_db",
        reason="`mlflow db upgrade` takes the address as an argument, in which every user of the machine sees its password.",
        remove_when="remove when MLflow migrates a database from Python, or reads its address from the environment",
        by="migrate_mlflow",
    ),
    PrivatePart(
        distribution="mlflow",
        checked_with="3.17.2",
        part="mlflow.utils.requirements_utils.warn_dependency_requirement_mismatches",
        reason="The first model that a process stores makes MLflow read what each installed package holds, for seconds.",
        remove_when="remove when MLflow reads the installed packages on demand, or offers to read them ahead",
        by="let_mlflow_read_the_installed_packages",
    ),
    PrivatePart(
        distribution="sqlalchemy",
        checked_with="2.1.9",
        part="the compilation of sqlalchemy.sql.functions.now for SQLite, replaced for the whole process",
        reason="Airflow starts a run at the first whole second of SQLite after it is due, and has no setting for its clock.",
        remove_when="remove when Airflow asks SQLite for the time with fractions of a second",
        by="let_sqlite_tell_fractions_of_seconds",
    ),
    PrivatePart(
        distribution="pyiceberg",
        checked_with="0.12.0",
        part="Transaction._updates",
        reason="A transaction derives its metadata each time it is asked: with 200 snapshots, nine tenths of a commit.",
        remove_when="remove when PyIceberg keeps a transaction's metadata between two updates",
        by="MetadataOncePerUpdate",
    ),
    PrivatePart(
        distribution="pyiceberg",
        checked_with="0.12.0",
        part="SqlCatalog.engine, replaced after it is made",
        reason="The catalog makes its own engine, whose connections to SQLite wait five seconds for other writers.",
        remove_when="remove when SqlCatalog takes an engine, or arguments for one",
        by="use_engine",
    ),
    PrivatePart(
        distribution="pyiceberg",
        checked_with="0.12.0",
        part="pyiceberg.expressions.visitors._InclusiveMetricsEvaluator",
        reason="Only a scan judges data files by their statistics, and it reads the files of one snapshot.",
        remove_when="remove when PyIceberg judges data files by their statistics without a scan",
        by="may_hold",
    ),
    PrivatePart(
        distribution="scikit-learn",
        checked_with="1.9.1",
        part="the names of two private classes that fitted trees hold",
        reason="skops trusts types by their names, and stored models hold these two.",
        remove_when="remove when skops trusts them by default",
        by="TREE_TYPES",
    ),
    PrivatePart(
        distribution="scikit-learn",
        checked_with="1.9.1",
        part="HistGradientBoosting…: ._predictors, ._baseline_prediction and ._preprocessor; ._raw_predict, replaced in a copy",
        reason="For a row, it asks one tree after another from Python, which takes a millisecond for a hundred trees.",
        remove_when="remove when scikit-learn asks all trees of a row at once",
        by="BoostedTrees",
    ),
    PrivatePart(
        distribution=None,
        checked_with="3.11 to 3.13",
        part="argparse._SubParsersAction, as a type",
        reason="ArgumentParser.add_subparsers returns it, and Python names no public type.",
        remove_when="remove when argparse has a public name for it",
        by="Subcommands",
    ),
)

#: Classes of scikit-learn that fitted trees hold. Each only keeps numbers.
TREE_TYPES = ("sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor", "sklearn.tree._tree.Tree")

#: What ``ArgumentParser.add_subparsers`` returns.
Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def watch_for_the_end(process: Any) -> None:
    """Have the supervisor of a task woken up when the task's process ends.

    Where the system cannot tell of an end, and if the process has ended already, nothing is changed.

    Args:
        process: the ``ActivitySubprocess``, started and not yet awaited.
    """
    # Linux has it; elsewhere the attribute is missing.
    with suppress(AttributeError, OSError):
        ended = open(os.pidfd_open(process.pid), "rb", buffering=0)  # noqa: SIM115 - the supervisor closes it
        process.selector.register(ended, selectors.EVENT_READ, (lambda _: False, process.selector.unregister))


def add_partitions_in_order(event: Any, keys: Sequence[str]) -> None:
    """Let a task's event of an outlet be one event for each partition, in this order.

    Args:
        event: the outlet's entry in Airflow's ``outlet_events``.
        keys: the partitions.
    """
    event.add_partitions(list(keys))
    event.partition_keys = dict.fromkeys(keys)


def withhold_event(task: Any, asset: Any) -> None:
    """Let a task that is running succeed without an event of one of its outlets.

    Args:
        task: the task instance, ``ti`` of Airflow's context. Only its own copy of the operator is changed.
        asset: the outlet.
    """
    task.task.outlets = [outlet for outlet in task.task.outlets if outlet != asset]


def oauth2_token(hook: Any) -> str:
    """The OAuth 2 token of a mail server's connection, fetched if the connection says how.

    Args:
        hook: the ``SmtpHook``, with its connection.

    Raises:
        Exception: whatever the hook raises if there is no token; its message may hold a secret.
    """
    return str(hook._get_oauth2_token())


def migrate_mlflow(engine: sa.Engine) -> None:
    """Make MLflow's tables in a database without any, and bring older tables to those of this release.

    Args:
        engine: of the database, as the owner of its tables.
    """
    tables: Any = import_module("mlflow.store.db.utils")
    if import_module("sqlalchemy").inspect(engine).has_table("alembic_version"):
        tables._upgrade_db(engine)
    else:
        tables._initialize_tables(engine)


def let_mlflow_read_the_installed_packages() -> None:
    """Have MLflow read now what each installed package holds, and keep it for the models that this process stores."""
    import_module("mlflow.utils.requirements_utils").warn_dependency_requirement_mismatches(["mlflow"])


def let_sqlite_tell_fractions_of_seconds() -> None:
    """In this process, have SQLAlchemy ask SQLite for the time with fractions of a second.

    Airflow starts a run when its ``run_after`` is not later than the database's ``CURRENT_TIMESTAMP``, which has whole
    seconds in SQLite: each run waited for the next of them, half a second on average.
    """
    compiles: Any = import_module("sqlalchemy.ext.compiler").compiles

    def now(*_: Any, **__: Any) -> str:
        # As SQLAlchemy stores moments in SQLite: six digits after the point, of which SQLite knows three.
        return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"

    compiles(import_module("sqlalchemy.sql.functions").now, "sqlite")(now)


class MetadataOncePerUpdate:
    """A base of PyIceberg's ``Transaction`` that derives the metadata once for each update; it is named before it."""

    _derived: tuple[object, Any] | None = None

    @property
    def table_metadata(self) -> Any:
        """The table's metadata after the updates so far."""
        updates = self._updates  # type: ignore[attr-defined]  # Transaction's
        # A new tuple at each update.
        if self._derived is None or self._derived[0] is not updates:
            self._derived = updates, super().table_metadata  # type: ignore[misc]  # Transaction's
        return self._derived[1]


def use_engine(catalog: Any, engine: sa.Engine) -> None:
    """Have a ``SqlCatalog`` of PyIceberg use an engine instead of its own, which is closed."""
    catalog.engine.dispose()
    catalog.engine = engine


def may_hold(schema: Schema, where: BooleanExpression) -> Callable[[DataFile], bool]:
    """What says by a data file's statistics whether it may hold rows for which ``where`` holds.

    Args:
        schema: of the table.
        where: with the names of its columns.
    """
    judge = import_module("pyiceberg.expressions.visitors")._InclusiveMetricsEvaluator(schema, where)
    return lambda file: bool(judge.eval(file))


class BoostedTrees:
    """The trees of a fitted booster of scikit-learn whose features are all numbers.

    Args:
        estimator: the booster.

    Attributes:
        iterations: by iteration, the nodes of its trees: one, or one per class. A node has the fields ``value``,
            ``feature_idx``, ``num_threshold``, ``missing_go_to_left``, ``left``, ``right`` and ``is_leaf``.
        baseline: of the shape 1 by trees of an iteration; what the values of the trees are added to, in their order.

    Raises:
        ValueError: it is none, or it has features that are categories.
    """

    def __init__(self, estimator: Any) -> None:
        kinds = import_module("sklearn.ensemble")
        if not isinstance(estimator, (kinds.HistGradientBoostingClassifier, kinds.HistGradientBoostingRegressor)):
            raise ValueError("not a histogram-based gradient booster")
        self.iterations = [[tree.nodes for tree in trees] for trees in estimator._predictors]
        if estimator._preprocessor is not None or any(
            one["is_categorical"].any() for trees in self.iterations for one in trees
        ):
            raise ValueError("it has features that are categories")
        self.baseline = estimator._baseline_prediction
        self._estimator = estimator

    def predicting_by(self, add: Callable[[Any], Any], most: int) -> Any:
        """The booster, with another way for at most so many rows.

        Args:
            add: from an array of rows by features to the baseline plus the values of all trees, of the shape rows by trees of
                an iteration.
            most: rows.
        """
        found = copy(self._estimator)
        found._raw_predict = lambda rows, *_: add(rows) if len(rows) <= most else self._estimator._raw_predict(rows)
        return found
