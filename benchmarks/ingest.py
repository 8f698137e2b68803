"""Ingestion: what it takes beyond reading the source and Great Expectations' own work, and whether memory stays flat.

Ours lands, casts, checks, parts and publishes the table ``flights`` of the example, as its tasks do: ten years of it, one
gzipped CSV file per day, as one interval, into an empty lake. In ten years some rows share their keys, since a leap day repeats
the day before; each way has to find the same ones. Beside it:

- the limit: the same files read by DuckDB, which was faster than pyarrow and pandas, into the same columns, and the same
  expectations judged by Great Expectations as fast as it does with a verdict on each row: in frames of 100,000 rows, with
  how often a key occurs counted by DuckDB. Nothing is written. It reads what it is given: no file is hashed, no row has a
  line, no value that cannot be cast is told from the others.
- the plain way: ``pandas.read_csv`` of each file, one frame, and Great Expectations' own expectation of uniqueness.
- a tenth of the rows, for the memory of ours.

    python -m benchmarks.ingest              # all of it
    python -m benchmarks.ingest --years 1    # a small one, which is told and not kept
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import pandas as pd

from benchmarks import prepared
from benchmarks.measuring import Line, Taken, Told, apart, seconds
from benchmarks.prepared import KEPT, MODEL
from perennial.core.intervals import Interval

TABLE = "flights"
#: Rows that Great Expectations is given at a time.
FRAME_ROWS = 100_000
PARTS = ("limit", "plain", "tenth")


def calendar(years: int) -> Interval:
    """The days of so many years of a landing zone."""
    return Interval.of("2013-01-01", f"{2013 + years}-01-01")


def ours(years: int) -> Callable[[], Any]:
    from perennial.ingestion.publish import publish_interval

    state = KEPT / "ingest-scratch"
    shutil.rmtree(state, ignore_errors=True)
    parts = prepared.new_deployment(state, prepared.landing_zone(years))
    folder, interval, staging = parts.model(MODEL), calendar(years), state / "staging"

    def ingest() -> dict[str, int]:
        parts.ledger.next_order(MODEL, "tables", interval, "benchmark")
        checked = prepared.land_and_check(parts, folder, TABLE, interval, staging)
        return publish_interval(folder, parts.lake, interval, [checked], tables={TABLE}, run_id="benchmark").rows

    return ingest


# --- the same expectations without us --------------------------------------------------------------------------------

_SOURCE = {
    "year": "INTEGER", "month": "INTEGER", "day": "INTEGER", "dep_time": "VARCHAR", "sched_dep_time": "VARCHAR",
    "dep_delay": "VARCHAR", "arr_time": "VARCHAR", "sched_arr_time": "VARCHAR", "arr_delay": "VARCHAR", "carrier": "VARCHAR",
    "flight": "BIGINT", "tailnum": "VARCHAR", "origin": "VARCHAR", "dest": "VARCHAR", "air_time": "VARCHAR",
    "distance": "BIGINT", "hour": "INTEGER", "minute": "INTEGER", "time_hour": "TIMESTAMPTZ",
}  # fmt: skip


def limit(years: int) -> Callable[[], Any]:
    files = prepared.landing_zone(years) / "flights" / "*.csv.gz"

    def read_and_judge() -> dict[str, int]:
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"""
            CREATE TABLE flights AS
            SELECT concat_ws('-', year, month, day, carrier, flight, origin) AS flight_id,
                time_hour + to_minutes(minute) AS scheduled_departure, carrier, flight, tailnum, origin, dest, distance,
                hour * 60 + minute AS scheduled_minutes, isodow(make_date(year, month, day)) AS weekday
            FROM read_csv('{files}', header = true, nullstr = ['', 'NA'], auto_detect = false, columns = {_SOURCE})
        """)
        counted = "SELECT * FROM flights JOIN (SELECT flight_id, count(*) AS copies FROM flights GROUP BY 1) USING (flight_id)"
        frames = (batch.to_pandas() for batch in connection.sql(counted).to_arrow_reader(FRAME_ROWS))
        return _judged(frames, unique=False)

    return read_and_judge


def plain(years: int) -> Callable[[], Any]:
    files = sorted((prepared.landing_zone(years) / "flights").glob("*.csv.gz"))

    def read_and_judge() -> dict[str, int]:
        rows = pd.concat([pd.read_csv(file, keep_default_na=False, na_values=["", "NA"]) for file in files], ignore_index=True)
        text = rows.astype(dict.fromkeys(("year", "month", "day", "flight"), str))
        frame = rows[["carrier", "flight", "tailnum", "origin", "dest", "distance"]].assign(
            flight_id=text["year"].str.cat(text[["month", "day", "carrier", "flight", "origin"]], sep="-"),
            scheduled_departure=pd.to_datetime(rows["time_hour"]) + pd.to_timedelta(rows["minute"], "min"),
            scheduled_minutes=rows["hour"] * 60 + rows["minute"],
            weekday=pd.to_datetime(rows[["year", "month", "day"]]).dt.isocalendar().day,
        )
        return _judged(iter([frame]), unique=True)

    return read_and_judge


def _judged(frames: Iterator[pd.DataFrame], *, unique: bool) -> dict[str, int]:
    """The expectations of the example's ``model.yaml``, on frame after frame; gives how many rows pass, and how many do not."""
    import great_expectations as gx
    from great_expectations import expectations as gxe
    from great_expectations.data_context.types.base import ProgressBarsConfig

    required = ("flight_id", "scheduled_departure", "carrier", "flight", "origin", "dest", "distance", "scheduled_minutes")
    expectations = [
        *(gxe.ExpectColumnValuesToNotBeNull(column=column) for column in (*required, "weekday")),
        gxe.ExpectColumnValuesToMatchRegex(column="carrier", regex="^[0-9A-Z]{2}$"),
        gxe.ExpectColumnValuesToBeBetween(column="flight", min_value=1, max_value=9999),
        gxe.ExpectColumnValuesToBeInSet(column="origin", value_set=["EWR", "JFK", "LGA"]),
        gxe.ExpectColumnValuesToMatchRegex(column="dest", regex="^[A-Z]{3}$"),
        gxe.ExpectColumnValuesToBeBetween(column="distance", min_value=10, max_value=6000),
        gxe.ExpectColumnValuesToBeBetween(column="scheduled_minutes", min_value=0, max_value=1439),
        gxe.ExpectColumnValuesToBeBetween(column="weekday", min_value=1, max_value=7),
        gxe.ExpectColumnValuesToBeUnique(column="flight_id")
        if unique
        else gxe.ExpectColumnValuesToBeBetween(column="copies", max_value=1),
    ]
    rows = failing = 0
    for frame in frames:
        # A new context for each frame, since a context keeps every frame that it was ever given.
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("files").add_dataframe_asset("rows")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
        result = batch.validate(
            gx.ExpectationSuite(name="flights", expectations=expectations),
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["flight_id"]},
        )
        rows += len(frame)
        failing += sum(one.result.get("unexpected_count", 0) for one in result.results)
    return {TABLE: rows - failing, "quarantine": failing}


# --- what is told ----------------------------------------------------------------------------------------------------


def measure(years: int, parts: list[str], repeat: int) -> Told:
    told = Told("ingest")
    prepared.landing_zone(years)
    whole = apart(ours, years=years, repeat=repeat)
    rows = sum(whole[0].result.values())
    told.details |= {"verdicts": whole[0].result, "rows": rows, "ours": _details(whole, rows)}

    def compare(part: str, piece: Callable[..., Callable[[], Any]], times: int, **said: Any) -> None:
        if part in parts:
            found = apart(piece, years=years, repeat=times)
            assert found[0].result == whole[0].result, (found[0].result, whole[0].result)
            told.details[part] = _details(found, rows)
            told.add(Line(ours=seconds(whole), peer=seconds(found), **said))

    compare(
        "limit", limit, repeat,
        claim=f"ingest {rows:,} rows: source, checks, quarantine, publish",
        beside="reading the source and Great Expectations alone, in frames", goal=1.25,
    )  # fmt: skip
    compare(
        "plain", plain, 1,
        claim=f"ingest {rows:,} rows",
        beside="pandas and Great Expectations with its own uniqueness, in one frame",
    )  # fmt: skip
    if "tenth" in parts:
        prepared.landing_zone(1)
        tenth = apart(ours, years=1, repeat=repeat)
        told.details["tenth"] = _details(tenth, sum(tenth[0].result.values()))
        told.add(
            Line(
                claim="ingest ten times the rows: peak memory",
                beside=f"itself with {sum(tenth[0].result.values()):,} rows",
                ours=[taken.peak_mb for taken in whole], peer=[taken.peak_mb for taken in tenth], unit="MB", goal=1.3,
                note="libraries included",
            )
        )  # fmt: skip
    shutil.rmtree(KEPT / "ingest-scratch", ignore_errors=True)
    return told


def _details(taken: list[Taken], rows: int) -> dict[str, Any]:
    middle = statistics.median
    return {
        "processor_seconds_per_million": round(middle(one.processor_seconds for one in taken) / rows * 1e6, 1),
        "peak_mb": middle(one.peak_mb for one in taken),
        "mb_above_libraries": round(middle(one.own_mb for one in taken), 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    done = measure(given.years, given.parts, given.repeat)
    if given.years == 10 and set(given.parts) == set(PARTS):
        done.write()
    else:
        print(done.details)
