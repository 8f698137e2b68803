"""What a model folder says: ``model.yaml``, read strictly and validated.

A folder ``include/models/<name>/`` holds ``model.yaml`` (this module), ``features.sql`` (:mod:`perennial.features.publish`)
and, where YAML cannot say it, ``model.py`` (:mod:`perennial.spec.code`). Reading a spec imports nothing heavy and runs
nothing of the folder, since Airflow does it whenever DAGs are parsed.

SQL expressions in a spec are DuckDB's and run with the rights of the team that wrote them; names (columns, tables,
sources) are identifiers and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from perennial.spec.data import Entity, Features, Label, Source, Table
from perennial.spec.gates import ApprovalPolicy, Gates
from perennial.spec.monitoring import Drift, RetrainingPolicy, Shadow
from perennial.spec.operation import AlertRoutes, Card, Retention, Schedules, WatchLimits
from perennial.spec.problems import located, names_of
from perennial.spec.training import METRICS, Candidate, Cost, Training
from perennial.spec.types import Identifier, Section, Task, Text


class ModelSpec(Section):
    """Everything a team says about one model.

    ``retired`` says that the model has ended: it has no DAGs and nobody watches over it (``perennial retire``).
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
    owner: Text
    description: Text
    task: Task
    sources: Annotated[dict[Identifier, Source], Field(min_length=1)]
    tables: Annotated[dict[Identifier, Table], Field(min_length=1)]
    entity: Entity
    features: Features
    label: Label
    candidates: Annotated[dict[Identifier, Candidate], Field(min_length=1)]
    training: Training = Training()
    cost: Cost | None = None
    gates: Gates = Gates()
    promotion: Literal["automatic", "approval"] = "automatic"
    approval: ApprovalPolicy = ApprovalPolicy()
    shadow: Shadow = Shadow()
    drift: Drift = Drift()
    retraining: RetrainingPolicy = RetrainingPolicy()
    schedules: Schedules = Schedules()
    alerts: AlertRoutes = AlertRoutes()
    watch: WatchLimits = WatchLimits()
    retention: Retention = Retention()
    card: Card = Card()
    retired: bool = False

    @model_validator(mode="after")
    def _holds_together(self) -> ModelSpec:
        reserved = {"features", "predictions", "shadows", "quarantine", "entities"}
        for name, table in self.tables.items():
            if table.source not in self.sources:
                raise located(
                    ("tables", name, "source"), f"no source is named {table.source}; there are {names_of(self.sources)}"
                )
            if name in reserved:
                raise located(("tables", name), f"{name} is a table that Perennial itself makes; choose another name")
            for column in table.columns:
                if column.startswith("_"):
                    raise located(
                        ("tables", name, "columns", column), "names that begin with _ are Perennial's own; choose another name"
                    )
        fed = {table.source for table in self.tables.values()}
        for source in self.sources:
            if source not in fed:
                raise located(("sources", source), "no table reads this source; remove it, or name it in a table")
        for path, table_name in ((("entity", "table"), self.entity.table), (("label", "table"), self.label.table)):
            if table_name not in self.tables:
                raise located(path, f"no table is named {table_name}; there are {names_of(self.tables)}")
        if self.entity_table.event_time is None:
            raise located(
                ("entity", "table"), f"table {self.entity.table} has no event_time to place a prediction in an interval"
            )
        if missing := [column for column in self.entity_table.key if column not in self.label_table.columns]:
            raise located(("label", "table"), f"table {self.label.table} lacks the entity's key {', '.join(missing)}")
        taken = {*self.entity_table.key, self.event_time, "as_of", "label", "prediction"}
        for kind in ("numeric", "categorical"):
            for name in getattr(self.features, kind):
                if name in taken:
                    raise located(
                        ("features", kind), f"{name} stands beside the features already; give the feature another name"
                    )
        if all(candidate.baseline for candidate in self.candidates.values()):
            raise located(("candidates",), "every candidate is a baseline; at least one must be there to be promoted")
        if not any(candidate.baseline for candidate in self.candidates.values()):
            raise located(("candidates",), "no candidate is a baseline; add `prior: {estimator: prior, baseline: true}`")
        known = METRICS[self.task]
        for key, metrics in (
            ("metric", [self.gates.metric] if self.gates.metric else []),
            ("at_least", list(self.gates.at_least)),
            ("at_most", list(self.gates.at_most)),
        ):
            for metric in metrics:
                if metric not in known:
                    raise located(("gates", key), f"{self.task} has no metric {metric}; there are {names_of(known)}")
                if metric == "cost" and self.cost is None:
                    raise located(("gates", key), "cost is not known; say in cost what outcomes cost")
        self._check_gates()
        return self

    def _check_gates(self) -> None:
        gates, numeric = self.gates, set(self.features.numeric)
        columns = {*self.features.names, *self.entity_table.key}
        for path, name in (
            *((("gates", "slices", "columns"), column) for column in gates.slices.columns),
            *((("gates", "fairness"), group.column) for group in gates.fairness),
            *((("gates", "resampling", "group"), column) for column in [gates.resampling.group] if column),
            *((("gates", "behaviour", test), part.feature) for test, part in gates.behaviour.items() if part.feature),
        ):
            if name not in columns or (path[1] == "behaviour" and name not in self.features.names):
                raise located(path, f"{name} is no feature{'' if path[1] == 'behaviour' else ' and no key column'}")
        for name, test in gates.behaviour.items():
            if test.add is not None and test.feature not in numeric:
                raise located(("gates", "behaviour", name, "add"), f"{test.feature} is no number; give a value instead")
            if test.expect != "same" and self.task == "multiclass_classification":
                raise located(("gates", "behaviour", name, "expect"), "a class is not higher or lower; expect the same")
        if gates.fairness and self.task != "binary_classification":
            raise located(("gates", "fairness"), f"rates are of a yes or no; the task is {self.task}")
        if self.cost is not None:
            wanted = {"binary_classification": "outcomes", "multiclass_classification": "matrix"}.get(self.task)
            given = "outcomes" if self.cost.outcomes else "matrix" if self.cost.matrix else None
            if given is not None and given != wanted:
                raise located(("cost", given), f"{given} is not for {self.task}; give {wanted or 'a function'}")

    @property
    def entity_table(self) -> Table:
        return self.tables[self.entity.table]

    @property
    def label_table(self) -> Table:
        return self.tables[self.label.table]

    @property
    def event_time(self) -> str:
        """The entity table's event time column."""
        column = self.entity_table.event_time
        assert column is not None  # _holds_together
        return column

    @property
    def primary_metric(self) -> str:
        return self.gates.metric or next(iter(METRICS[self.task]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the spec's meaning: comments and order of keys do not change it, nor what is removed when, or the end."""
        meaning = self.model_dump(mode="json", exclude={"retired": True, "retention": {"tables", "features", "predictions"}})
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``model.yaml``, for editors."""
    schema = ModelSpec.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
