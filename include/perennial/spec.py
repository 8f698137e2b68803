"""What a model folder says: ``model.yaml``, read strictly and validated.

A folder ``include/models/<name>/`` holds ``model.yaml`` (this module), ``features.sql`` (:mod:`perennial.features`) and,
where YAML cannot say it, ``model.py`` (:mod:`perennial.folder`). Reading a spec imports nothing heavy and runs nothing
of the folder, since Airflow does it whenever DAGs are parsed.

SQL expressions in a spec are DuckDB's and run with the rights of the team that wrote them; names (columns, tables,
sources) are identifiers and nothing else.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from perennial.alerts import Alert, Kind
from perennial.errors import SpecError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
#: Where ``perennial calibrate`` keeps what it found, beside ``model.yaml``.
THRESHOLDS_FILE = "drift.yaml"

_IDENTIFIER = r"^[a-z_][a-z0-9_]{0,62}$"
_FUNCTION = r"^model:[A-Za-z_][A-Za-z0-9_]*$"
_DURATION = r"^[1-9][0-9]{0,4}(m|h|d|w)$"
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

#: Estimators that need no ``model.py``; :mod:`perennial.training` makes them.
BUILT_IN_ESTIMATORS = ("prior", "logistic_regression", "linear_regression", "gradient_boosting")

Task = Literal["binary_classification", "multiclass_classification", "regression"]
Severity = Literal["critical", "warning"]
ColumnType = Literal["string", "integer", "float", "boolean", "timestamp", "date"]


def _no_template(text: str) -> str:
    if "{{" in text or "{%" in text:
        raise ValueError("templates are not rendered here; write the value itself")
    return text


def _sets_apart(delimiter: str) -> str:
    if not delimiter.isascii() or delimiter.isalnum() or delimiter in '"\r\n\0':
        raise ValueError("write one ASCII character that is no letter, digit, quote or line break, such as ; or \\t")
    return delimiter


def _parse_duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or not re.match(_DURATION, value):
        raise ValueError("write a whole number and a unit: 90m, 2h, 28d or 12w")
    return timedelta(**{_UNITS[value[-1]]: int(value[:-1])})


def _write_duration(value: timedelta) -> str:
    minutes = int(value.total_seconds() // 60)
    for unit, size in (("d", 1440), ("h", 60)):
        if minutes % size == 0:
            return f"{minutes // size}{unit}"
    return f"{minutes}m"


Text = Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(_no_template)]
Identifier = Annotated[str, Field(pattern=_IDENTIFIER)]
Sql = Text
Duration = Annotated[
    timedelta,
    BeforeValidator(_parse_duration),
    PlainSerializer(_write_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _DURATION, "examples": ["90m", "2h", "28d", "12w"]}),
]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Cron = Annotated[str, Field(pattern=r"^\S+( \S+){4}$", description="five cron fields, in UTC")]


class _Part(BaseModel):
    """Strict: an unknown key, a type that is merely similar, NaN and infinity are all refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Source(_Part):
    """Where rows come from: exactly one of ``files``, ``sql`` and ``python``.

    Attributes:
        files: a pattern below the deployment's data folder, or a whole fsspec address. ``%Y``, ``%m``, ``%d`` and ``%H``
            stand for the time of an interval; ``*`` and ``?`` match as in a shell. Ends in .csv, .csv.gz or .parquet.
        sql: a query that binds ``:start`` and ``:end``.
        connection: an Airflow connection id or a SQLAlchemy URL's environment variable, for ``sql``.
        python: ``model:function``, called with start and end, returns an Arrow table or record batch reader.
        null_values: texts of a CSV file that stand for no value.
        delimiter: between the fields of a CSV file.
        encoding: of a CSV file.
    """

    files: Text | None = None
    sql: Sql | None = None
    connection: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")] | None = None
    python: Annotated[str, Field(pattern=_FUNCTION)] | None = None
    null_values: list[str] = [""]
    delimiter: Annotated[str, Field(min_length=1, max_length=1), AfterValidator(_sets_apart)] = ","
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"

    @model_validator(mode="after")
    def _is_one_kind(self) -> Source:
        if sum(kind is not None for kind in (self.files, self.sql, self.python)) != 1:
            raise ValueError("give exactly one of files, sql and python")
        if (self.sql is None) != (self.connection is None):
            raise ValueError("sql and connection go together")
        if self.files is not None:
            if not self.files.endswith((".csv", ".csv.gz", ".parquet")):
                raise ValueError("files must end in .csv, .csv.gz or .parquet")
            if "://" not in self.files and (self.files.startswith("/") or ".." in Path(self.files).parts):
                raise ValueError("files must stay below the data folder: no leading / and no ..")
        if self.sql is not None and not (":start" in self.sql and ":end" in self.sql):
            raise ValueError("sql must bind :start and :end, or every run would read everything")
        return self


class Column(_Part):
    """One column of a table: its type, where it comes from, and what each of its values must satisfy.

    Attributes:
        type: what the value is cast to; a value that cannot be cast sends its row to quarantine.
        sql: an expression over the source's columns (texts, for CSV); by default the source's column of the same name.
        nullable: whether the value may be missing.
        min, max: inclusive bounds.
        values: the only values allowed.
        matches: a regular expression the whole value must satisfy from its beginning.
        severity: ``critical`` sends a row that fails to quarantine, ``warning`` only tells.
    """

    type: ColumnType
    sql: Sql | None = None
    nullable: bool = False
    min: Number | None = None
    max: Number | None = None
    values: Annotated[list[str], Field(min_length=1)] | None = None
    matches: Text | None = None
    severity: Severity = "critical"

    @model_validator(mode="after")
    def _checks_fit_the_type(self) -> Column:
        if (self.min is not None or self.max is not None) and self.type not in ("integer", "float"):
            raise ValueError(f"min and max are for numbers, this column is a {self.type}")
        if (self.values is not None or self.matches is not None) and self.type != "string":
            raise ValueError(f"values and matches are for strings, this column is a {self.type}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        if self.matches is not None:
            try:
                re.compile(self.matches)
            except re.error as error:
                raise ValueError(f"matches is not a regular expression: {error}") from error
        return self


class RowCount(_Part):
    """How many rows a day must bring.

    Attributes:
        min, max: rows a day, inclusive; a table without event time counts as one day.
    """

    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)] | None = None
    severity: Severity = "critical"


class Freshness(_Part):
    """The newest event may lie at most ``within`` before the interval's end."""

    within: Duration
    severity: Severity = "critical"


class Volume(_Part):
    """Rows a day may differ from the mean of the ``past`` by at most the share ``tolerance``."""

    past: Duration = timedelta(days=28)
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    severity: Severity = "warning"


class TableChecks(_Part):
    """What a table's interval must satisfy as a whole."""

    rows: RowCount = RowCount()
    freshness: Freshness | None = None
    volume: Volume | None = None


class Table(_Part):
    """A table of the lake, fed by one source.

    Attributes:
        source: the source's name.
        where: SQL over the source's columns; rows for which it does not hold are not of this table.
        key: columns that name a row; no two published rows of an interval share one.
        event_time: the timestamp column that places a row in an interval. A table without one is replaced as a whole.
        known: SQL over the table's columns, the moment from which a row may be used; ``always`` for a table that no
            prediction could be too early for.
        columns: the columns by name.
        checks: what the interval must satisfy as a whole.
        tolerance: largest share of rows that may go to quarantine; beyond it the interval is refused.
    """

    source: Identifier
    where: Sql | None = None
    key: Annotated[list[Identifier], Field(min_length=1)]
    event_time: Identifier | None = None
    known: Sql
    columns: Annotated[dict[Identifier, Column], Field(min_length=1)]
    checks: TableChecks = TableChecks()
    tolerance: Share = 0.05

    @model_validator(mode="after")
    def _names_its_columns(self) -> Table:
        for column in self.key:
            if column not in self.columns:
                raise ValueError(f"key names {column}, which is no column of this table")
        if self.event_time is not None:
            if self.event_time not in self.columns:
                raise ValueError(f"event_time names {self.event_time}, which is no column of this table")
            if self.columns[self.event_time].type != "timestamp" or self.columns[self.event_time].nullable:
                raise ValueError(f"event_time {self.event_time} must be a timestamp and not nullable")
        elif self.checks.freshness is not None or self.checks.volume is not None:
            raise ValueError("freshness and volume need an event_time")
        return self


class Entity(_Part):
    """What is predicted: one prediction for each row of ``table``.

    Attributes:
        table: the table whose key names a prediction and whose event time places it in an interval.
        as_of: SQL over that table's columns, the moment the prediction is asked for. Only rows known by then count.
    """

    table: Identifier
    as_of: Sql


class Features(_Part):
    """The columns ``features.sql`` gives for each entity.

    Attributes:
        numeric, categorical: feature names.
        lookback: how far before an interval ``features.sql`` may look; older rows are not offered to it.
    """

    numeric: list[Identifier] = []
    categorical: list[Identifier] = []
    lookback: Duration = timedelta(days=2)

    @property
    def names(self) -> list[str]:
        return [*self.numeric, *self.categorical]

    @model_validator(mode="after")
    def _are_distinct(self) -> Features:
        if not self.names:
            raise ValueError("name at least one numeric or categorical feature")
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"named twice: {', '.join(twice)}")
        return self


class Label(_Part):
    """What was to be predicted, once it is known.

    Attributes:
        table: a table with the entity's key; the label is known when its row is.
        sql: SQL over that table's columns; true or false, a class, or a number, as the task has it.
    """

    table: Identifier
    sql: Sql


class Candidate(_Part):
    """A way to make a model.

    Attributes:
        estimator: ``prior``, ``logistic_regression``, ``linear_regression`` or ``gradient_boosting``, or ``model:function``
            for a function of ``model.py`` that takes parameters and returns a scikit-learn estimator.
        params: parameters passed as they are.
        search: lists of values to choose from, by validation on the newest part of the training window.
        baseline: a candidate that others must beat and that is never promoted over them.
    """

    estimator: Annotated[
        str, Field(pattern=r"^(prior|logistic_regression|linear_regression|gradient_boosting|model:[A-Za-z_]\w*)$")
    ]
    params: dict[Identifier, bool | int | Number | str | None] = {}
    search: dict[Identifier, Annotated[list[bool | int | Number | str | None], Field(min_length=1)]] = {}
    baseline: bool = False


class Training(_Part):
    """What a version learns from.

    Attributes:
        window: length of the training set, which ends where the holdout begins.
        holdout: the newest interval before the training's as-of time, on which candidate and champion are compared.
        validation: the newest part of the window, on which search spaces are searched.
        trials: most combinations of a search space that are tried.
        max_rows: most rows trained on, the newest first.
        min_rows: fewest rows that a version may be trained on.
        seed: of everything random.
        trusted_types: types beyond Perennial's own list that a stored model of this folder may hold.
    """

    window: Duration = timedelta(days=90)
    holdout: Duration = timedelta(days=7)
    validation: Duration = timedelta(days=14)
    trials: Annotated[int, Field(ge=1, le=1000)] = 8
    max_rows: Annotated[int, Field(ge=100)] = 5_000_000
    min_rows: Annotated[int, Field(ge=10)] = 100
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 2013
    trusted_types: list[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]] = []

    @model_validator(mode="after")
    def _fits_together(self) -> Training:
        if self.validation >= self.window:
            raise ValueError("validation must be shorter than window, of which it is the newest part")
        return self


#: For each task: the metrics it has, the primary one first, and whether more of it is better. ``cost`` is there where
#: ``model.yaml`` says what outcomes cost.
METRICS: dict[str, dict[str, bool]] = {
    "binary_classification": {
        "roc_auc": True, "average_precision": True, "log_loss": False, "brier": False, "calibration_error": False,
        "cost": False,
    },
    "multiclass_classification": {"log_loss": False, "accuracy": True, "balanced_accuracy": True, "cost": False},
    "regression": {"rmse": False, "mae": False, "r2": True, "cost": False},
}  # fmt: skip


class Outcomes(_Part):
    """Cost of one row by outcome; a gain is negative. A right answer must not cost more than a wrong one."""

    true_positive: Number = 0.0
    false_positive: Number = 1.0
    false_negative: Number = 1.0
    true_negative: Number = 0.0

    @model_validator(mode="after")
    def _wrong_answers_cost_more(self) -> Outcomes:
        if self.false_positive <= self.true_negative or self.false_negative <= self.true_positive:
            raise ValueError("a wrong answer must cost more than the right one, or there is nothing to decide")
        return self

    @property
    def threshold(self) -> float:
        """The cheapest threshold where probabilities are right (Elkan 2001, equation 2), 0 to 1."""
        wrong_yes, wrong_no = self.false_positive - self.true_negative, self.false_negative - self.true_positive
        return wrong_yes / (wrong_yes + wrong_no)


class Cost(_Part):
    """What predictions cost the business: the metric ``cost``, the mean over rows, of which less is better.

    Exactly one of ``outcomes`` (binary), ``matrix`` (multiclass) and ``function`` (any task).

    Attributes:
        outcomes: cost of each outcome of a yes or no that is taken from a probability at ``threshold``.
        threshold: the probability from which the answer is yes. None: the one that is cheapest where probabilities are
            right, from the four costs (Elkan: The Foundations of Cost-Sensitive Learning. IJCAI 2001, equation 2).
        matrix: cost by actual class, then by predicted class; a pair that is not named costs nothing.
        function: ``model:function``, called with n labels and n predictions, returns n costs.
    """

    outcomes: Outcomes | None = None
    threshold: Share | None = None
    matrix: dict[str, dict[str, Number]] | None = None
    function: Annotated[str, Field(pattern=_FUNCTION)] | None = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> Cost:
        if sum(kind is not None for kind in (self.outcomes, self.matrix, self.function)) != 1:
            raise ValueError("give exactly one of outcomes, matrix and function")
        if self.threshold is not None and self.outcomes is None:
            raise ValueError("threshold goes with outcomes")
        return self


class Resampling(_Part):
    """How sure a comparison is: rows are drawn anew in whole blocks, since rows of one time or group err together.

    Attributes:
        block: length of a block of event time.
        group: a feature or key column whose values are the blocks, in place of time.
        resamples: how many times rows are drawn.
        confidence: of the intervals that are shown. A gain is sure when its whole interval is, so that a decision is wrong
            by chance half as often as the interval (ICH E9: Statistical Principles for Clinical Trials. 1998, section 5.5).
        seed: of the draws.
    """

    block: Duration = timedelta(days=1)
    group: Identifier | None = None
    resamples: Annotated[int, Field(ge=200, le=100_000)] = 1_000
    confidence: Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)] = 0.95
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 2013


class ChampionGate(_Part):
    """How a candidate must compare with the champion on the same rows, by a paired test over ``gates.resampling``.

    Attributes:
        mode: ``better``: surely more than ``margin`` better. A tie refuses, since a change costs something.
            ``not_worse``: surely less than ``margin`` worse (non-inferiority), which needs a margin.
        margin: in units of the primary metric.
    """

    mode: Literal["better", "not_worse"] = "better"
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _not_worse_has_a_margin(self) -> ChampionGate:
        if self.mode == "not_worse" and self.margin == 0:
            raise ValueError("not_worse needs a margin above 0: how much worse would still be good enough?")
        return self


class SlicesGate(_Part):
    """No value of the named columns may surely fall against the champion; all comparisons share one error rate (Holm).

    Attributes:
        columns: features, or key columns of the entity.
        margin: fall of the primary metric that a slice may suffer.
        min_rows: labelled rows that a slice needs to be judged; smaller ones are named, and not judged.
    """

    columns: list[Identifier] = []
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.02
    min_rows: Annotated[int, Field(ge=20)] = 200


class FairnessGate(_Part):
    """How alike the groups of a column must be treated, as the least rate of a group over the greatest.

    Attributes:
        column: whose values are the groups.
        rate: share of rows answered yes (``selection_rate``), of true ones (``true_positive_rate``) or of false ones
            (``false_positive_rate``).
        ratio: least over greatest rate; 0.8 is the four-fifths rule (29 CFR 1607.4 D).
        threshold: probability from which the answer is yes. None: that of ``cost``, or 0.5.
        min_rows: rows that a group needs to be compared.
    """

    column: Identifier
    rate: Literal["selection_rate", "true_positive_rate", "false_positive_rate"] = "selection_rate"
    ratio: Share = 0.8
    threshold: Share | None = None
    min_rows: Annotated[int, Field(ge=20)] = 200


class CalibrationGate(_Part):
    """Whether probabilities mean what they say. Binary classification only.

    Attributes:
        error: largest expected calibration error; None: not judged.
        brier_margin: by how much the Brier score may be worse than the champion's; None: not judged.
    """

    error: Share | None = 0.15
    brier_margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 0.005


class RobustnessGate(_Part):
    """What may be lost when the inputs get worse, one feature at a time.

    Losses are shares of the lead that the primary metric has over the best constant prediction on the same rows, so that
    they mean the same for every metric and unit: a tenth of an area under the curve of 0.7 is a tenth of 0.2.

    Attributes:
        noise: standard deviation of what is added to a number, in its own standard deviations.
        missing: share of a feature's values that are removed.
        noise_drop: largest share of the lead that noise in one feature may cost; None: not judged.
        missing_drop: largest share of the lead that missing values in one feature may cost; None: not judged. A model that
            falls back on a constant where its only feature is missing, a tenth of the time, loses 0.32 of its lead in RMSE.
        rows: most rows it is measured on, seeded.
    """

    noise: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.05
    missing: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.1
    noise_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 0.1
    missing_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 0.35
    rows: Annotated[int, Field(ge=100)] = 2_000


class Behaviour(_Part):
    """How predictions must react when a feature changes and nothing else does, or a test of ``model.py``.

    Attributes:
        feature: the feature that is changed.
        add: number added to it; for a numeric feature.
        value: value it is set to; for any feature.
        expect: ``same``, ``higher`` or ``lower``; of the probability of true, or of the number predicted.
        tolerance: by how much a prediction may move against that.
        share: least share of rows that must behave.
        function: ``model:function``, called with ``predict`` (frame to n predictions) and a frame of n rows; returns None
            or a sentence that says what is wrong.
    """

    feature: Identifier | None = None
    add: Number | None = None
    value: Number | str | None = None
    expect: Literal["same", "higher", "lower"] = "same"
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    share: Share = 0.95
    function: Annotated[str, Field(pattern=_FUNCTION)] | None = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> Behaviour:
        if (self.feature is None) == (self.function is None):
            raise ValueError("give either feature or function")
        if self.feature is not None and (self.add is None) == (self.value is None):
            raise ValueError("say how the feature changes: either add or value")
        return self


class OperationGate(_Part):
    """Whether the stored version can be put to work, tried in a clean process.

    Attributes:
        latency: longest time that 1,000 rows may take, in milliseconds, warm.
        artifact_mb: largest artifact, in megabytes.
    """

    latency: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2_000.0
    artifact_mb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 500.0


class Gates(_Part):
    """What a candidate must pass to become champion.

    Attributes:
        metric: the primary metric; by default the task's first (``roc_auc``, ``log_loss``, ``rmse``).
        at_least, at_most: absolute bounds per metric on the holdout.
        baseline_margin: by how much the primary metric must beat the best baseline.
        resampling: how uncertainty is measured.
        champion: the comparison with the champion.
        slices: parts of the rows, each compared with the champion.
        fairness: groups that must be treated alike; each an own gate.
        calibration: whether probabilities mean what they say.
        prior_factor: by what factor the mean probability may differ from the share of true labels in training.
        robustness: what worse inputs may cost.
        behaviour: tests by name.
        operation: whether the stored version can be put to work.
        leak: score that a single feature alone may reach (area under its own ROC curve, or R squared); above it something
            of the label is in it.
        stale_after: longest time between the end of what was learned from and the beginning of the holdout.
        min_rows: fewest labelled rows of a holdout that a decision may rest on.
        label_coverage: smallest share of the holdout's entities whose label is known.
    """

    metric: str | None = None
    at_least: dict[str, Number] = {}
    at_most: dict[str, Number] = {}
    baseline_margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    resampling: Resampling = Resampling()
    champion: ChampionGate = ChampionGate()
    slices: SlicesGate = SlicesGate()
    fairness: list[FairnessGate] = []
    calibration: CalibrationGate = CalibrationGate()
    prior_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 3.0
    robustness: RobustnessGate = RobustnessGate()
    behaviour: dict[Identifier, Behaviour] = {}
    operation: OperationGate = OperationGate()
    leak: Annotated[float, Field(gt=0.5, le=1, allow_inf_nan=False)] = 0.98
    stale_after: Duration = timedelta(days=7)
    min_rows: Annotated[int, Field(ge=1)] = 200
    label_coverage: Share = 0.8


class Approval(_Part):
    """Who is asked before a version that passed its gates becomes champion, where ``promotion`` is ``approval``.

    Attributes:
        within: an answer later than this is none, and the champion stays.
        approvers: ids of the Airflow users who may answer; empty: whoever may act on the DAG.
    """

    within: Duration = timedelta(days=3)
    approvers: list[Text] = []


class Shadow(_Part):
    """Versions that keep scoring beside the champion, unseen by those who read predictions, to be compared when labels come.

    Attributes:
        windows: monitoring windows for which they score; 0: none do.
        close: a refused candidate whose primary metric was at most this much worse than the champion's scores in the
            shadow too. None: only the champion before does.
        rollback: whether a champion that does surely worse than the one before it is rolled back, rather than only told of.
    """

    windows: Annotated[int, Field(ge=0, le=520)] = 4
    close: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    rollback: bool = False


class Drift(_Part):
    """When features or predictions count as drifted, against the champion's own training reference.

    Attributes:
        numeric_threshold: Wasserstein distance in standard deviations of the reference.
        categorical_threshold: Jensen-Shannon distance, 0 to 1.
        prediction_threshold: Wasserstein distance of the predictions, in standard deviations of the reference.
        share: share of the features that must drift for the verdict ``drift``; drifted predictions suffice alone. None: one
            feature suffices where thresholds are calibrated, which corrects them for their number; else
            :data:`FIXED_SHARE` of them.
        max_missing: share of missing values above the reference's own at which a column is unusable.
        max_new_categories: share of rows with categories that the reference never saw, at which a column has drifted.
        match: compare with those rows of the reference alone that fall on the window's weekdays, or in its months.
        false_alarms: verdicts ``drift`` a year that stable data may cause; ``perennial calibrate`` sets thresholds by it.
        sample: most rows taken of each side, seeded.
        min_rows: fewest rows a verdict may rest on; below it the verdict is ``unknown``.
    """

    numeric_threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.25
    categorical_threshold: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.15
    prediction_threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.35
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_missing: Share = 0.5
    max_new_categories: Share = 0.05
    match: Literal["none", "weekday", "month"] = "none"
    false_alarms: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    sample: Annotated[int, Field(ge=100)] = 20_000
    min_rows: Annotated[int, Field(ge=1)] = 200

    def features_wanted(self, features: int, *, calibrated: bool) -> int:
        """How many of so many features must drift for the verdict ``drift``."""
        share = self.share if self.share is not None else 0.0 if calibrated else FIXED_SHARE
        return min(max(1, math.ceil(share * features - 1e-9)), max(1, features))


#: Share of the features that must drift where thresholds are the same for all of them and ``drift.share`` is not given.
FIXED_SHARE = 0.3


class Threshold(_Part):
    """From where on a column has drifted.

    Attributes:
        distance: as in :class:`Drift`.
        missing: difference between the shares of missing values.
    """

    distance: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    missing: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class DriftThresholds(_Part):
    """``drift.yaml`` of a model folder: thresholds that ``perennial calibrate`` took from stable history.

    Attributes:
        computed_at: when, in UTC.
        history: key of the interval that was replayed.
        features_snapshot: of the lake, that history was read at.
        version: whose predictions they are.
        window: the monitoring window; another ``schedules.monitor`` needs other thresholds.
        match: ``drift.match`` at the time; likewise.
        replays: windows of history that were compared.
        seed: of the draws.
        false_alarms: the budget, in verdicts ``drift`` a year.
        expected: how many the replays raise a year by these thresholds.
        columns: of each feature, and of ``prediction``.
    """

    computed_at: Text
    history: Text
    features_snapshot: int | None = None
    version: int | None = None
    window: Literal["day", "week"]
    match: Literal["none", "weekday", "month"] = "none"
    replays: Annotated[int, Field(ge=1)]
    seed: int
    false_alarms: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    expected: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    columns: Annotated[dict[Identifier, Threshold], Field(min_length=1)]


class Retraining(_Part):
    """When monitoring may ask for a new version.

    Attributes:
        on_drift: whether a verdict ``drift`` may ask.
        on_performance: drop of the realised primary metric, against the version's own holdout, that asks. None: never.
        alarms: how many of the last ``of`` windows must ask, the newest among them.
        of: see ``alarms``.
        cooldown: least time between two retrainings that monitoring asked for.
        budget: most trainings in any 30 days, those of the calendar and of people included, after which monitoring may not
            ask for another one.
        breaker: trainings in a row without a promotion after which monitoring asks no more, until a version is promoted.
    """

    on_drift: bool = True
    on_performance: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    alarms: Annotated[int, Field(ge=1)] = 2
    of: Annotated[int, Field(ge=1)] = 3
    cooldown: Duration = timedelta(days=14)
    budget: Annotated[int, Field(ge=0)] = 2
    breaker: Annotated[int, Field(ge=1)] = 3

    @model_validator(mode="after")
    def _fits_together(self) -> Retraining:
        if self.alarms > self.of:
            raise ValueError(f"alarms {self.alarms} of the last {self.of} windows can never be reached")
        return self


class Schedules(_Part):
    """When the stages run, in UTC.

    Attributes:
        ingest: when the day before is ingested.
        train: calendar retraining; ``never`` leaves it to monitoring and people.
        monitor: over which window drift is judged, once all its days are scored.
        maintain: when tables are cleaned up.
    """

    ingest: Cron = "0 2 * * *"
    train: Literal["week", "month", "never"] = "week"
    monitor: Literal["day", "week"] = "week"
    maintain: Cron = "30 4 * * *"

    @property
    def window(self) -> timedelta:
        """Length of a monitoring window."""
        return timedelta(days=7 if self.monitor == "week" else 1)


class Route(_Part):
    """Who hears of some alerts.

    Attributes:
        slack: Airflow connection id, of a Slack incoming webhook or of the Slack API.
        channel: where a Slack API connection posts, ``#name`` or the channel's id. A webhook has a channel of its own.
        email: addresses, sent to through the Airflow connection ``smtp_default``.
        severity: the least severity that is sent.
        kinds: the kinds of alerts that are sent (``docs/alerts.md``); none: all.
    """

    slack: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")] | None = None
    channel: Annotated[str, Field(pattern=r"^#?[^\s#:<>|&]{1,80}$")] | None = None
    email: list[Annotated[str, Field(pattern=r"^[^@\s<>,;]+@[^@\s<>,;]+$")]] = []
    severity: Severity = "warning"
    kinds: list[Kind] = []

    @model_validator(mode="after")
    def _channel_of_slack(self) -> Self:
        if self.channel is not None and self.slack is None:
            raise ValueError("channel is one of Slack: name its connection under slack")
        return self

    @property
    def channels(self) -> list[str]:
        """By name: ``slack:connection``, ``slack:connection:#channel``, ``email:address``."""
        slack = [f"slack:{self.slack}" + (f":{self.channel}" if self.channel else "")] if self.slack else []
        return [*slack, *(f"email:{address}" for address in self.email)]

    def hears_of(self, alert: Alert) -> bool:
        """Whether the alert is sent to the channels."""
        return (self.severity == "warning" or alert.severity == "critical") and (not self.kinds or alert.kind in self.kinds)


class Alerts(Route):
    """Who hears of what.

    Attributes:
        routes: others who hear of some alerts, such as who is on call, of what is critical.
    """

    routes: list[Route] = []

    @property
    def everybody(self) -> list[Route]:
        """All who are named."""
        return [route for route in (self, *self.routes) if route.channels]


class Watch(_Part):
    """What the watchdog takes as late, stuck or stale.

    Attributes:
        late: longest time after a tick of ``schedules.ingest`` until its day is published.
        run: longest time a run may queue or run; what a person is asked for does not count.
        champion: longest time between the end of what the champion learned from and the newest features.
        labels: longest time after a monitoring window until labels for the share ``gates.label_coverage`` are known.
    """

    late: Duration = timedelta(hours=6)
    run: Duration = timedelta(hours=6)
    champion: Duration = timedelta(weeks=26)
    labels: Duration = timedelta(days=7)


class Retention(_Part):
    """How long things are kept.

    Attributes:
        snapshots: Iceberg snapshots that no kept version pins.
        quarantine: quarantined rows.
        reports: drift reports and Data Docs.
        versions: how many of the newest registered versions keep their training snapshots pinned.
    """

    snapshots: Duration = timedelta(days=30)
    quarantine: Duration = timedelta(days=365)
    reports: Duration = timedelta(days=365)
    versions: Annotated[int, Field(ge=2)] = 20


class Card(_Part):
    """What a model card says that only people know (Mitchell et al.: Model Cards for Model Reporting. FAccT 2019).

    Attributes:
        intended_use: who is to use the predictions, and what for.
        not_for: uses that the model was not made for.
        limits: what is known to be weak or missing, beside what Perennial finds by itself.
    """

    intended_use: Text | None = None
    not_for: list[Text] = []
    limits: list[Text] = []


class ModelSpec(_Part):
    """Everything a team says about one model."""

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
    approval: Approval = Approval()
    shadow: Shadow = Shadow()
    drift: Drift = Drift()
    retraining: Retraining = Retraining()
    schedules: Schedules = Schedules()
    alerts: Alerts = Alerts()
    watch: Watch = Watch()
    retention: Retention = Retention()
    card: Card = Card()

    @model_validator(mode="after")
    def _holds_together(self) -> ModelSpec:
        reserved = {"features", "predictions", "shadows", "quarantine", "entities"}
        for name, table in self.tables.items():
            if table.source not in self.sources:
                raise _at(("tables", name, "source"), f"no source is named {table.source}; there are {_names(self.sources)}")
            if name in reserved:
                raise _at(("tables", name), f"{name} is a table that Perennial itself makes; choose another name")
            for column in table.columns:
                if column.startswith("_"):
                    raise _at(
                        ("tables", name, "columns", column), "names that begin with _ are Perennial's own; choose another name"
                    )
        fed = {table.source for table in self.tables.values()}
        for source in self.sources:
            if source not in fed:
                raise _at(("sources", source), "no table reads this source; remove it, or name it in a table")
        for path, table_name in ((("entity", "table"), self.entity.table), (("label", "table"), self.label.table)):
            if table_name not in self.tables:
                raise _at(path, f"no table is named {table_name}; there are {_names(self.tables)}")
        if self.entity_table.event_time is None:
            raise _at(("entity", "table"), f"table {self.entity.table} has no event_time to place a prediction in an interval")
        if missing := [column for column in self.entity_table.key if column not in self.label_table.columns]:
            raise _at(("label", "table"), f"table {self.label.table} lacks the entity's key {', '.join(missing)}")
        taken = {*self.entity_table.key, self.event_time, "as_of", "label", "prediction"}
        for kind in ("numeric", "categorical"):
            for name in getattr(self.features, kind):
                if name in taken:
                    raise _at(("features", kind), f"{name} stands beside the features already; give the feature another name")
        if all(candidate.baseline for candidate in self.candidates.values()):
            raise _at(("candidates",), "every candidate is a baseline; at least one must be there to be promoted")
        if not any(candidate.baseline for candidate in self.candidates.values()):
            raise _at(("candidates",), "no candidate is a baseline; add `prior: {estimator: prior, baseline: true}`")
        known = METRICS[self.task]
        for key, metrics in (
            ("metric", [self.gates.metric] if self.gates.metric else []),
            ("at_least", list(self.gates.at_least)),
            ("at_most", list(self.gates.at_most)),
        ):
            for metric in metrics:
                if metric not in known:
                    raise _at(("gates", key), f"{self.task} has no metric {metric}; there are {_names(known)}")
                if metric == "cost" and self.cost is None:
                    raise _at(("gates", key), "cost is not known; say in cost what outcomes cost")
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
                raise _at(path, f"{name} is no feature{'' if path[1] == 'behaviour' else ' and no key column'}")
        for name, test in gates.behaviour.items():
            if test.add is not None and test.feature not in numeric:
                raise _at(("gates", "behaviour", name, "add"), f"{test.feature} is no number; give a value instead")
            if test.expect != "same" and self.task == "multiclass_classification":
                raise _at(("gates", "behaviour", name, "expect"), "a class is not higher or lower; expect the same")
        if gates.fairness and self.task != "binary_classification":
            raise _at(("gates", "fairness"), f"rates are of a yes or no; the task is {self.task}")
        if self.cost is not None:
            wanted = {"binary_classification": "outcomes", "multiclass_classification": "matrix"}.get(self.task)
            given = "outcomes" if self.cost.outcomes else "matrix" if self.cost.matrix else None
            if given is not None and given != wanted:
                raise _at(("cost", given), f"{given} is not for {self.task}; give {wanted or 'a function'}")

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
        """SHA-256 of the spec's meaning; comments and order of keys do not change it."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


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
    file = folder / "model.yaml"
    spec = _validate(ModelSpec, file, *_parse_yaml(file))
    if spec.name != folder.name:
        raise SpecError(f"{file}: name is {spec.name}, but its folder is {folder.name}; make them the same")
    features = folder / "features.sql"
    code_file = folder / "model.py"
    if not features.is_file():
        raise SpecError(f"{features}: missing; write a SELECT that gives {', '.join(spec.features.names)} for each entity")
    code = _read_text(code_file) if code_file.is_file() else ""
    _check_functions(file, spec, code_file, code)
    return ModelFolder(
        path=folder, spec=spec, features_sql=_read_text(features), code=code, thresholds=_read_thresholds(folder, spec)
    )


def _read_thresholds(folder: Path, spec: ModelSpec) -> DriftThresholds | None:
    file = folder / THRESHOLDS_FILE
    if not file.is_file():
        return None
    value, lines = _parse_yaml(file)
    thresholds = _validate(DriftThresholds, file, value, lines)
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


def read_models(models: Path, only: str | None = None) -> tuple[dict[str, ModelFolder], dict[str, SpecError]]:
    """The model folders of a deployment: the good ones by name, and the error of each broken one by folder name.

    Args:
        models: where they lie.
        only: name of the one to read; None: all.
    """
    good: dict[str, ModelFolder] = {}
    broken: dict[str, SpecError] = {}
    for file in sorted(models.glob("*/model.yaml")) if only is None else [models / only / "model.yaml"]:
        try:
            good[file.parent.name] = read_model(file.parent)
        except SpecError as error:
            broken[file.parent.name] = error
    return good, broken


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``model.yaml``, for editors."""
    schema = ModelSpec.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


# --- reading YAML strictly -------------------------------------------------------------------------------------------

#: That of libyaml, where PyYAML was built with it, is ten times as fast: Airflow reads all models for each DAG file.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_Path = tuple[str | int, ...]
_PLAIN_TAGS = {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value"}
_NULL = re.compile(r"^(?:~|null|)$")
_BOOL = re.compile(r"^(?:true|false)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?$")
_NOT_FINITE = re.compile(r"^[-+]?\.(?:inf|nan)$", re.IGNORECASE)


def _parse_yaml(file: Path) -> tuple[Any, dict[_Path, int]]:
    """The file's value, by the core schema of YAML 1.2, and the line of each path in it.

    YAML 1.1, which PyYAML follows otherwise, reads ``NO`` as false and ``12:30:00`` as 45000.
    """
    text = _read_text(file)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise SpecError(f"{file}:{line}: anchors and aliases (& and *) are not used here; repeat the value")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # Before anything recurses into it: in C there is no RecursionError.
            if depth > MAX_DEPTH:
                raise SpecError(f"{file}:{line}: nested deeper than {MAX_DEPTH} levels")
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"{file}:{line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError(f"{file}: not YAML: {error}") from error
    if node is None:
        raise SpecError(f'{file}: empty; the README\'s "use your own data" shows what belongs here')
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(
            f"{file}:1: a mapping is wanted at the root (name: …, owner: …), this is a {node.tag.rpartition(':')[2]}"
        )
    lines: dict[_Path, int] = {}
    return _construct(file, node, (), lines), lines


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise SpecError(f"{file}: larger than {MAX_BYTES:,} bytes")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{file}: not UTF-8 at byte {error.start}") from error


def _construct(file: Path, node: yaml.Node, path: _Path, lines: dict[_Path, int]) -> Any:
    line = node.start_mark.line + 1
    lines[path] = line
    if node.tag.removeprefix("tag:yaml.org,2002:") not in _PLAIN_TAGS:
        raise SpecError(f"{file}:{line}: the tag {node.tag} is not allowed; write a plain value")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise SpecError(f"{file}:{key_line}: a key must be a plain word")
            key: str = key_node.value
            if key in mapping:
                raise SpecError(f"{file}:{key_line}: the key {key} is given twice, first on line {lines[(*path, key)]}")
            mapping[key] = _construct(file, value_node, (*path, key), lines)
            lines[(*path, key)] = key_line
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(file, item, (*path, n), lines) for n, item in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    text: str = node.value
    if getattr(node, "style", None):  # a quoted text, or a block of it
        return text
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text == "true"
    if _INT.match(text):
        return int(text) if len(text) < 30 else text
    if _NOT_FINITE.match(text):
        return float(text.replace(".", "", 1))
    if _FLOAT.match(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text


# --- messages --------------------------------------------------------------------------------------------------------


class _LocatedError(ValueError):
    """A problem of the whole that belongs to one place in it."""

    def __init__(self, path: _Path, message: str) -> None:
        super().__init__(message)
        self.path = path


def _at(path: _Path, message: str) -> _LocatedError:
    return _LocatedError(path, message)


def _names(names: Any) -> str:
    return ", ".join(sorted(names))


_PartT = TypeVar("_PartT", bound=_Part)


def _validate(kind: type[_PartT], file: Path, value: Any, lines: dict[_Path, int]) -> _PartT:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise SpecError("\n".join(_messages(file, error, lines))) from error


def _messages(file: Path, error: ValidationError, lines: dict[_Path, int]) -> Iterator[str]:
    for problem in error.errors():
        cause = problem.get("ctx", {}).get("error")
        # "[key]" marks a mapping's key that is no identifier; union members add their type's name to the path.
        path = tuple(cause.path if isinstance(cause, _LocatedError) else (step for step in problem["loc"] if step != "[key]"))
        place = path
        while place and place not in lines:
            place = place[:-1]
        name = ".".join(str(step) for step in path if step in place or path == place or isinstance(step, str))
        yield f"{file}:{lines.get(place, 1)}: {name or 'model'}: {_explain(problem)}"


def _explain(problem: Any) -> str:
    kind, context, given = problem["type"], problem.get("ctx", {}), problem["input"]
    shown = json.dumps(given, default=str, ensure_ascii=False)
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    match kind:
        case "extra_forbidden":
            return "unknown key; remove it, or see model.schema.json for the keys there are"
        case "missing":
            return "missing; it must be given"
        case "value_error":
            return str(context["error"])
        case "string_type":
            return f"a text is wanted, this is {shown}; put it in quotes"
        case "string_pattern_mismatch" if context.get("pattern") == _IDENTIFIER:
            return f"{shown} is not an identifier: lower-case letters, digits and _, not beginning with a digit"
        case "finite_number":
            return "a finite number is wanted, not NaN or infinity"
        case "literal_error":
            return f"{shown} is none of {context['expected']}"
        case _:
            return f"{problem['msg'][0].lower()}{problem['msg'][1:]}, this is {shown}"


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
    for place, reference in wanted.items():
        function = reference.removeprefix("model:")
        if function != reference and function not in defined:
            raise SpecError(f"{file}: {place} names {reference}, but {code_file.name} defines no {function}")
