"""What a model folder says: ``model.yaml``, read strictly and validated.

A folder ``include/models/<name>/`` holds ``model.yaml`` (this module), ``features.sql`` (:mod:`perennial.features.publish`)
and, for what YAML cannot say, ``model.py`` (:mod:`perennial.spec.code`). Reading a spec imports nothing heavy and runs nothing
of the folder, because Airflow reads it whenever it parses DAGs.

SQL expressions in a spec are DuckDB's and run with the rights of the team that wrote them. Names of columns, tables and
sources must be identifiers.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from perennial.spec.data import Entity, Features, Label, Source, Table
from perennial.spec.gates import ApprovalPolicy, Behaviour, FairnessGate, Gates
from perennial.spec.monitoring import Drift, RetrainingPolicy, Shadow
from perennial.spec.names import BESIDE_FEATURES, BESIDE_KEYS, SYSTEM_COLUMNS, is_unknown, listed
from perennial.spec.operation import AlertRoutes, Card, Online, Retention, Schedules, WatchLimits
from perennial.spec.problems import YamlPath
from perennial.spec.sections import Found, Section, Unreadable, check, check_each
from perennial.spec.training import METRICS, Candidate, Cost, Training
from perennial.spec.types import Identifier, Task, Text

#: Tables of the lake that Perennial makes for each model.
_PERENNIALS_TABLES = {"features", "predictions", "shadows", "quarantine", "entities", "online_requests"}


class ModelSpec(Section):
    """Everything that a team says about one model.

    Attributes:
        name: the model's name, which is that of its folder.
        owner: who is responsible for it.
        description: what it predicts, for people.
        task: what kind of prediction it makes.
        sources: where rows come from, by name.
        tables: the tables of the lake, by name.
        entity: what is predicted.
        features: what the model sees.
        label: what really happened.
        candidates: ways to make a model, by name. At least one is a baseline, and at least one is not.
        training: what a version learns from.
        cost: what predictions cost the business. None: the metric ``cost`` is not measured.
        gates: what a candidate must pass to become champion.
        promotion: ``automatic``, or ``approval`` by a person after the gates.
        approval: who approves.
        shadow: versions that score beside the champion.
        drift: when features or predictions count as drifted.
        retraining: when monitoring asks for a new version.
        schedules: when the stages run.
        online: what can be asked online by key. None: nothing.
        alerts: who receives which alerts.
        watch: when the watchdog calls something late, stuck or stale.
        retention: how long things are kept.
        card: what only people know for a model card.
        retired: whether the model has ended. A retired model has no DAGs, and nobody watches over it (``perennial retire``).
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
    # Airflow keeps 2,000 characters of it.
    owner: Annotated[Text, Field(max_length=500)]
    description: Text
    task: Task
    sources: Annotated[dict[Identifier, Source], Field(min_length=1)]
    # Each has a task in DAGs of one file with those of all models.
    tables: Annotated[dict[Identifier, Table], Field(min_length=1, max_length=100)]
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
    online: Online | None = None
    alerts: AlertRoutes = AlertRoutes()
    watch: WatchLimits = WatchLimits()
    retention: Retention = Retention()
    card: Card = Card()
    retired: bool = False

    @check_each("tables")
    def _tables_read_sources(self, _: str, table: Table) -> Found:
        if is_unknown(table.source, self.sources):
            yield ("source",), f"no source is named {table.source}; there are {listed(self.sources)}"

    @check_each("tables")
    def _tables_have_free_names(self, name: str, _: Table) -> Found:
        # Features of other definitions are in tables of such names, see perennial.features.published.
        if name in _PERENNIALS_TABLES or name.startswith("_") or re.fullmatch("features_[0-9a-f]{12}", name):
            yield (), f"Perennial makes a table named {name} itself; choose another name"

    @check_each("tables")
    def _columns_have_free_names(self, _: str, table: Table) -> Found:
        for column in table.columns:
            if column.startswith("_"):
                yield ("columns", column), "names that begin with _ are Perennial's own; choose another name"

    @check
    def _sources_are_read(self) -> Found:
        read = {table.source for table in self.tables.values()}
        unread = self.sources.keys() - read
        # A source that a misspelt reference means is read. The reference is reported.
        meant = {name for wrong in read - self.sources.keys() for name in get_close_matches(wrong, unread, n=1, cutoff=0)}
        for source in sorted(unread - meant):
            yield ("sources", source), "no table reads this source; remove it, or name it in a table"

    @check
    def _entity_names_a_table(self) -> Found:
        if is_unknown(self.entity.table, self.tables):
            yield ("entity", "table"), f"no table is named {self.entity.table}; there are {listed(self.tables)}"

    @check
    def _entity_table_has_an_event_time(self) -> Found:
        if self.entity_table.event_time is None:
            yield ("entity", "table"), f"table {self.entity.table} has no event_time; name it there, predictions require it"

    @check
    def _entity_is_identified_by_free_names(self) -> Found:
        table = self.entity_table
        placed = [*((("key", place), name) for place, name in enumerate(table.key)), (("event_time",), str(table.event_time))]
        for below, name in placed:
            column = table.columns.get(name)
            renamed = f"name the column otherwise, such as {self.entity.table}_{name}"
            if column is not None and column.sql is None:  # without it, the source would have to rename its column too
                renamed += f": {{…, sql: {name}}}"
            if name in BESIDE_KEYS:
                yield ("tables", self.entity.table, *below), f"Perennial writes a column named {name} beside the key; {renamed}"
            elif name in SYSTEM_COLUMNS:
                yield ("tables", self.entity.table, *below), f"PostgreSQL allows no column named {name} of one's own; {renamed}"

    @check
    def _pushed_tables_can_be_placed(self) -> Found:
        for place, name in enumerate(self.online.push if self.online is not None else []):
            if is_unknown(name, self.tables):
                yield ("online", "push", place), f"no table is named {name}; there are {listed(self.tables)}"
            elif (table := self.tables.get(name)) and (table.event_time is None or table.duplicates == "refuse"):
                yield ("online", "push", place), f"rows of {name} cannot be pushed: it needs event_time and duplicates: correct"

    @check
    def _tables_without_another_source_are_pushed(self) -> Found:
        named = self.online.push if self.online is not None else []
        for name, table in self.tables.items():
            source = self.sources.get(table.source)
            if source is not None and source.pushed and name not in named:
                yield (
                    ("tables", name, "source"),
                    f"{table.source} is pushed, and online.push does not name {name}; add it there",
                )

    @check
    def _label_names_a_table(self) -> Found:
        if is_unknown(self.label.table, self.tables):
            yield ("label", "table"), f"no table is named {self.label.table}; there are {listed(self.tables)}"

    @check
    def _label_table_has_the_key(self) -> Found:
        entity, label = self.entity_table, self.label_table
        if missing := [column for column in entity.key if column in entity.columns and column not in label.columns]:
            yield ("label", "table"), f"table {self.label.table} lacks the entity's key {', '.join(missing)}; add it there"

    def _feature_has_a_free_name(self, _: int, name: str) -> Found:
        taken = set(BESIDE_FEATURES)
        with suppress(Unreadable):
            taken |= {*self.entity_table.key, str(self.entity_table.event_time)}
        if name in taken:
            yield (), f"a column named {name} is stored beside the features already; choose another name"

    _numeric_features_have_free_names = check_each("features.numeric")(_feature_has_a_free_name)
    _categorical_features_have_free_names = check_each("features.categorical")(_feature_has_a_free_name)

    @check
    def _a_canary_is_compared(self) -> Found:
        if self.online is not None and self.online.canary is not None and not self.shadow.windows:
            yield (
                ("online", "canary"),
                "requires that the previous champion is compared with the present one; set shadow.windows",
            )

    @check
    def _candidates_include_a_baseline(self) -> Found:
        baselines = [candidate.baseline for candidate in self.candidates.values()]
        if all(baselines):
            yield ("candidates",), "every candidate is a baseline; add one that can be promoted"
        if not any(baselines):
            yield ("candidates",), "no candidate is a baseline; add `prior: {estimator: prior, baseline: true}`"

    @check
    def _primary_metric_is_known(self) -> Found:
        if self.gates.metric is not None:
            yield from self._metric_is_known(("gates", "metric"), self.gates.metric)

    @check_each("gates.at_least")
    def _lower_bound_is_of_a_metric(self, metric: str, _: float) -> Found:
        return self._metric_is_known((), metric)

    @check_each("gates.at_most")
    def _upper_bound_is_of_a_metric(self, metric: str, _: float) -> Found:
        return self._metric_is_known((), metric)

    def _metric_is_known(self, path: YamlPath, metric: str) -> Found:
        known = METRICS[self.task]
        if metric not in known:
            yield path, f"{self.task} has no metric {metric}; there are {listed(known)}"
        elif metric == "cost" and self.cost is None:
            yield path, "requires the section cost; say there what outcomes cost"

    @check_each("candidates")
    def _monotone_names_numeric_features(self, _: str, candidate: Candidate) -> Found:
        for name in candidate.monotone:
            if is_unknown(name, self.features.numeric):
                yield ("monotone", name), f"{name} is no numeric feature; there are {listed(self.features.numeric)}"
        if candidate.monotone and self.task == "multiclass_classification":
            yield ("monotone",), "a class is neither higher nor lower; remove it"

    @check
    def _weights_of_classes_fit_the_task(self) -> Found:
        weight = self.training.weight
        if weight is None or weight.classes is None:
            return
        if self.task == "regression":
            yield ("training", "weight", "classes"), "is for classes, and the task is regression; remove it"
        elif self.task == "binary_classification" and isinstance(weight.classes, dict):
            for name in weight.classes.keys() - {"true", "false"}:
                yield ("training", "weight", "classes", name), 'is no class of a yes or no; write "true" or "false"'

    @check_each("gates.slices.columns")
    def _slices_name_columns(self, _: int, column: str) -> Found:
        return self._groups_rows((), column)

    @check_each("gates.fairness")
    def _fairness_names_columns(self, _: int, gate: FairnessGate) -> Found:
        return self._groups_rows(("column",), gate.column)

    @check
    def _resampling_names_a_column(self) -> Found:
        if self.gates.resampling.group is not None:
            yield from self._groups_rows(("gates", "resampling", "group"), self.gates.resampling.group)

    def _groups_rows(self, path: YamlPath, column: str) -> Found:
        try:
            keys = set(self.entity_table.key)
        except Unreadable:  # it may be any of the tables
            keys = {key for table in self.tables.values() for key in table.key}
        columns = {*self.features.names, *keys}
        if is_unknown(column, columns):
            yield path, f"{column} is no feature and no key column of the entity; there are {listed(columns)}"

    @check_each("gates.behaviour")
    def _behaviour_names_a_feature(self, _: str, test: Behaviour) -> Found:
        if test.feature is None:
            return
        if is_unknown(test.feature, self.features.names):
            yield ("feature",), f"{test.feature} is no feature; there are {listed(self.features.names)}"
        if test.add is not None and test.feature in self.features.categorical:
            yield ("add",), f"{test.feature} is no numeric feature; give a value instead"

    @check_each("gates.behaviour")
    def _behaviour_expects_a_direction(self, _: str, test: Behaviour) -> Found:
        if test.expect != "same" and self.task == "multiclass_classification":
            yield ("expect",), "a class is neither higher nor lower; expect same"

    @check
    def _fairness_is_of_a_yes_or_no(self) -> Found:
        if self.gates.fairness and self.task != "binary_classification":
            yield ("gates", "fairness"), f"requires the task binary_classification, the task is {self.task}; remove it"

    @check
    def _costs_fit_the_task(self) -> Found:
        if self.cost is not None:
            fits = {"binary_classification": "outcomes", "multiclass_classification": "matrix"}.get(self.task)
            for kind in ("outcomes", "matrix"):
                if kind != fits and getattr(self.cost, kind) is not None:
                    yield ("cost", kind), f"is not for {self.task}; give {fits or 'a function'}"

    @property
    def entity_table(self) -> Table:
        return self._table(self.entity.table)

    @property
    def label_table(self) -> Table:
        return self._table(self.label.table)

    def _table(self, name: str) -> Table:
        if name not in self.tables:
            raise Unreadable(name)  # for the checks; a valid spec names its tables
        return self.tables[name]

    @property
    def event_time(self) -> str:
        """The entity table's event time column."""
        column = self.entity_table.event_time
        assert column is not None  # _entity_table_has_an_event_time
        return column

    @property
    def primary_metric(self) -> str:
        return self.gates.metric or next(iter(METRICS[self.task]))

    @property
    def refreshes(self) -> bool:
        """Whether the champion's recipe is fitted again on newer rows, by calendar."""
        return self.schedules.refresh != "never" and self.training.refit

    @property
    def asks_for_refreshes(self) -> bool:
        """Whether a person is asked before a refresh becomes champion."""
        return self.promotion == "approval" and self.approval.refreshes == "ask"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the spec's meaning.

        Comments, the order of keys, ``retired``, ``online``, who calibrates, and how long rows are kept do not change it.
        """
        kept = {"tables", "features", "predictions", "requests"}
        # Whether a source is pushed is what it is otherwise: no files, no query, no function.
        left_out: dict[str, Any] = {
            "retired": True, "online": True, "retention": kept, "sources": {"__all__": {"pushed"}},
            "drift": {"calibrate"},
        }  # fmt: skip
        meaning = self.model_dump(mode="json", exclude=left_out)
        # What came later counts where it is given, so that a folder without it still has the digest that versions record.
        if self.training.weight is None:
            del meaning["training"]["weight"]
        for name, candidate in self.candidates.items():
            if not candidate.monotone:
                del meaning["candidates"][name]["monotone"]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``model.yaml``, for editors."""
    schema = ModelSpec.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
