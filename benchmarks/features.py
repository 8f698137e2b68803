"""Point-in-time features of a year of flights by ``features.sql``, beside the same by ``pandas.merge_asof``.

Three features of each flight, as of two hours before its scheduled departure, from rows known by then: the mean departure
delay at its airport over the last hour, the mean arrival delay of its airline at the airport over seven days, and the share
of late arrivals at its destination over fourteen days.

Ours is :func:`perennial.features.publish.build_features` on a lake: it reads three tables at their published snapshots,
makes the entities, runs ``features.sql``, checks (a key an entity, a row a key, as-of times, types, no infinity), orders
the rows, and gives them as an Arrow table. pandas reads the same Parquet files, only the columns it needs, and does what
its documentation recommends: groups as categories, cumulative sums and counts by group, and two ``merge_asof`` a window, as
of its end and before its beginning. It checks nothing. The values must be equal to the last bit, or the script fails.

    python -m benchmarks.features
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import yaml

from benchmarks import prepared
from benchmarks.measuring import Line, Told, apart, processor_seconds, seconds
from benchmarks.prepared import MODEL
from perennial.demo.example_data import DAYS

REPEAT = 5
FEATURES = ("airport_delay", "carrier_delay", "destination_late")
SQL = """
WITH
asked AS MATERIALIZED (SELECT flight_id, epoch_us(as_of) AS moment, origin, carrier, dest FROM entities),
departed AS (
  SELECT epoch_us(departures._known_at) AS moment, origin, dep_delay AS delay FROM departures JOIN flights USING (flight_id)
),
arrived AS MATERIALIZED (
  SELECT epoch_us(arrivals._known_at) AS moment, origin, carrier, dest, arr_delay AS delay
  FROM arrivals JOIN flights USING (flight_id)
),
airports AS (
  SELECT flight_id, avg(delay) OVER (PARTITION BY origin ORDER BY moment RANGE 3_600_000_000 PRECEDING) AS airport_delay
  FROM (SELECT flight_id, moment, origin, NULL AS delay FROM asked UNION ALL SELECT NULL, moment, origin, delay FROM departed)
  QUALIFY flight_id IS NOT NULL
),
carriers AS (
  SELECT flight_id,
    avg(delay) OVER (PARTITION BY carrier, origin ORDER BY moment RANGE 604_800_000_000 PRECEDING) AS carrier_delay
  FROM (
    SELECT flight_id, moment, carrier, origin, NULL AS delay FROM asked
    UNION ALL SELECT NULL, moment, carrier, origin, delay FROM arrived
  )
  QUALIFY flight_id IS NOT NULL
),
destinations AS (
  SELECT flight_id,
    avg((delay > 15)::INTEGER) OVER (PARTITION BY dest ORDER BY moment RANGE 1_209_600_000_000 PRECEDING) AS destination_late
  FROM (SELECT flight_id, moment, dest, NULL AS delay FROM asked UNION ALL SELECT NULL, moment, dest, delay FROM arrived)
  QUALIFY flight_id IS NOT NULL
)
SELECT * FROM airports JOIN carriers USING (flight_id) JOIN destinations USING (flight_id)
"""


# --- the pieces ------------------------------------------------------------------------------------------------------


def ours(state: str, kept: str = "") -> Callable[[], Any]:
    from perennial.features import point_in_time
    from perennial.features.publish import build_features
    from perennial.spec.folder import ModelFolder, read_model

    parts = prepared.deployment(state)
    spec = yaml.safe_load((Path(state) / "models" / MODEL / "model.yaml").read_text())
    spec["features"] = {"numeric": list(FEATURES), "lookback": "17d"}
    spec["candidates"] = {"prior": {"estimator": "prior", "baseline": True}, "logistic": {"estimator": "logistic_regression"}}
    del spec["gates"]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / MODEL
        path.mkdir()
        (path / "model.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
        (path / "features.sql").write_text(SQL)
        folder = read_model(path)
    spent: list[float] = []
    select = point_in_time.select

    def timed(connection: duckdb.DuckDBPyConnection, folder: ModelFolder) -> None:
        began = time.perf_counter()
        select(connection, folder)
        spent.append(time.perf_counter() - began)

    point_in_time.select = timed

    def run() -> Any:
        with build_features(folder, parts.lake, DAYS) as features:
            found = features.reader().read_all()
        if kept:
            _keep(found.to_pandas(), kept)
        return {"rows": found.num_rows, "query_seconds": spent[0]}

    return run


def pandas(state: str, kept: str = "") -> Callable[[], Any]:
    parts = prepared.deployment(state)
    published = parts.ledger.published(MODEL, "tables")
    assert published is not None
    files = {
        name: [file.removeprefix("file://") for file in parts.lake.files(MODEL, name, published.snapshots[name], DAYS)]
        for name in ("flights", "departures", "arrivals")
    }

    def read(table: str, *columns: str) -> pd.DataFrame:
        # pandas takes a list of files too, by PyArrow; its stubs know of one file only.
        return pd.read_parquet(files[table], columns=list(columns))  # type: ignore[call-overload,no-any-return]

    def run() -> Any:
        flights = read("flights", "flight_id", "scheduled_departure", "origin", "carrier", "dest")
        departures = read("departures", "flight_id", "_known_at", "dep_delay")
        arrivals = read("arrivals", "flight_id", "_known_at", "arr_delay")
        found = by_merge_asof(flights, departures, arrivals)
        if kept:
            _keep(found, kept)
        return {"rows": len(found)}

    return run


def by_merge_asof(flights: pd.DataFrame, departures: pd.DataFrame, arrivals: pd.DataFrame) -> pd.DataFrame:
    flights = flights.astype(dict.fromkeys(("origin", "carrier", "dest"), "category"))
    places = flights[["flight_id", "origin", "carrier", "dest"]]
    departures, arrivals = departures.merge(places, on="flight_id"), arrivals.merge(places, on="flight_id")
    arrivals["late"] = (arrivals["arr_delay"] > 15).astype("int64")
    asked = flights.assign(as_of=_moments(flights["scheduled_departure"] - pd.Timedelta(hours=2))).sort_values("as_of")
    found = asked[["flight_id", "as_of"]].copy()
    found["airport_delay"] = mean_over(asked, departures, ["origin"], "dep_delay", timedelta(hours=1))
    found["carrier_delay"] = mean_over(asked, arrivals, ["carrier", "origin"], "arr_delay", timedelta(days=7))
    found["destination_late"] = mean_over(asked, arrivals, ["dest"], "late", timedelta(days=14))
    return found


def mean_over(asked: pd.DataFrame, rows: pd.DataFrame, by: list[str], value: str, window: timedelta) -> Any:
    """Mean of the values known from ``as_of - window`` to ``as_of``, both included, of the same group."""
    rows = rows.sort_values("_known_at")
    groups = rows.groupby(by, observed=True, sort=False)[value]
    sums = rows[[*by, "_known_at"]].assign(total=groups.cumsum(), count=groups.cumcount() + 1)
    asked = asked[[*by, "as_of"]].assign(since=_moments(asked["as_of"] - window))
    until = pd.merge_asof(asked, sums, left_on="as_of", right_on="_known_at", by=by)
    before = pd.merge_asof(asked, sums, left_on="since", right_on="_known_at", by=by, allow_exact_matches=False)
    total = until["total"].fillna(0) - before["total"].fillna(0)
    return (total / (until["count"].fillna(0) - before["count"].fillna(0))).to_numpy()


def _moments(values: pd.Series[Any]) -> pd.Series[Any]:
    # Subtracting a timedelta changes the unit to nanoseconds, and merge_asof requires the same on both sides.
    return values.astype("datetime64[us, UTC]")


def _keep(found: pd.DataFrame, file: str) -> None:
    found.set_index("flight_id")[list(FEATURES)].sort_index().to_parquet(file)


def main() -> None:
    told = Told("features")
    state = str(prepared.flights())
    with tempfile.TemporaryDirectory() as scratch:
        # Not among those that count, since what it found is written down before the clock stops.
        files = [f"{scratch}/{name}.parquet" for name in ("ours", "pandas")]
        for piece, file in zip((ours, pandas), files, strict=True):
            apart(piece, state=state, kept=file)
        first, second = (pd.read_parquet(file) for file in files)
    assert first.index.equals(second.index), "not the same flights"
    for name in FEATURES:
        assert np.array_equal(first[name], second[name], equal_nan=True), f"{name} differs"
    own, other = [], []
    for _ in range(REPEAT):
        own += apart(ours, state=state)
        other += apart(pandas, state=state)
    told.add(
        Line(
            f"three lookback features of {own[0].result['rows']:,} flights", "pandas.merge_asof",
            seconds(own), seconds(other), goal=3.0, faster=True,
            note="from Parquet files to a table; ours checks, pandas does not; equal to the last bit",
        )
    )  # fmt: skip
    told.add(
        Line(
            "the query alone, in DuckDB", "pandas.merge_asof", [one.result["query_seconds"] for one in own],
            seconds(other), faster=True, note="no reading, no checks, no order",
        )
    )  # fmt: skip
    told.details = {
        "processor_seconds": {"ours": processor_seconds(own), "pandas": processor_seconds(other)},
        "peak_mb": {"ours": [one.peak_mb for one in own], "pandas": [one.peak_mb for one in other]},
    }  # fmt: skip
    told.write()


if __name__ == "__main__":
    main()
