"""Scoring: what a champion's predictions cost beyond the estimator's own, and whether memory and time stay in proportion.

Ours is :func:`perennial.scoring.publish.score`: it loads the champion by its manifest, reads the features from the lake, checks
the predictions, publishes them to the lake and copies them to the predictions database. Each repetition begins with a lake and
a database without predictions. Beside it:

- the limit: ``predict_proba`` of the same estimator on the same rows, already in memory as one DataFrame.
- what a database alone takes to show as many rows at once: one ``INSERT`` of them from a temporary table, and its commit.
- the usual way: ``pandas.read_sql``, ``mlflow.pyfunc``, ``DataFrame.to_sql``, chunk by chunk; features and predictions lie in
  SQLite, as ours do.
- ten times as many rows.

    python -m benchmarks.score              # all of it
    python -m benchmarks.score --years 1    # a small one, which is told and not kept
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from benchmarks import prepared
from benchmarks.measuring import Line, Taken, Told, apart, processor_seconds, seconds
from benchmarks.prepared import KEPT, MODEL
from perennial.core.settings import read_settings
from perennial.deployment import Deployment
from perennial.model.artifacts import LoadedModel
from perennial.scoring.predictor import DATASET, predictions_schema
from perennial.scoring.publish import score
from perennial.scoring.sink import PredictionSink
from tests.conftest import postgres_server

#: Rows that the usual way has in memory at a time; as documented, so that they need not all be in memory.
PEER_ROWS = 50_000
PARTS = ("limit", "usual", "ten")
#: Where in :data:`KEPT` the state lies that was scored last.
SCRATCH = "score-scratch"


# --- what is scored --------------------------------------------------------------------------------------------------


def stocked(years: int) -> Path:
    """State of a deployment with published features of so many years and nothing else; see :func:`champion`."""

    def make(folder: Path) -> None:
        source = prepared.deployment(prepared.flights())
        prepared.repeat(source, prepared.new_deployment(folder), "features", range(years))

    return prepared.made(f"score-{years}", make)


def champion() -> LoadedModel:
    """The model that scores, loaded and verified."""
    parts = prepared.deployment(prepared.flights())
    version = parts.ledger.champion(MODEL)
    assert version is not None
    return parts.registry.load(MODEL, version, spec=parts.model(MODEL).spec)


def unscored(years: int) -> Deployment:
    """A deployment without predictions whose features are those of :func:`stocked`, which is only read."""
    state, scratch = stocked(years), KEPT / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for database in state.glob("*.db*"):
        shutil.copy(database, scratch)
    # Tables know where their files are; new ones lie below the scratch folder.
    return Deployment(read_settings(prepared.environment(scratch) | {"PERENNIAL_MODELS": str(state / "models")}))


def read_features(parts: Deployment, years: int) -> pa.Table:
    spec = parts.model(MODEL).spec
    wanted = [*predictions_schema(spec).names[:3], *spec.features.numeric, *spec.features.categorical]
    return prepared.read(parts, "features", columns=wanted, interval=prepared.span(years))


# --- ours ------------------------------------------------------------------------------------------------------------


def ours(years: int, sink: str | None = None) -> Callable[[], Any]:
    """Features of so many years to predictions in the lake and in a database, SQLite unless another is named.

    Args:
        years: how many.
        sink: URL of the predictions database; it is emptied before the clock starts.
    """
    trained, parts = prepared.deployment(prepared.flights()), unscored(years)
    url = sink or f"sqlite:///{parts.settings.state / 'predictions.db'}"
    if sink:
        drop_tables(url)
    # The champion is stored elsewhere.
    vars(parts)["registry"] = trained.registry
    folder, interval = parts.model(MODEL), prepared.span(years)
    version = trained.ledger.champion(MODEL)
    assert version is not None

    def run() -> int:
        order = parts.ledger.next_order(MODEL, DATASET, interval, "measured")
        return score(
            folder, parts, interval,
            version=version, order=order, run_id="measured", sink_url=url,
        ).rows  # fmt: skip

    return run


def drop_tables(url: str) -> None:
    with sa.create_engine(url).begin() as connection:
        for name in (f"{MODEL}_predictions", f"{MODEL}_scored"):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")


# --- beside it -------------------------------------------------------------------------------------------------------


def limit(years: int) -> Callable[[], Any]:
    """``predict_proba`` alone, of all rows at once."""
    model = champion()
    frame = model.takes.frame(read_features(prepared.deployment(stocked(years)), years))
    return lambda: len(model.estimator.predict_proba(frame))


def shown(url: str) -> Callable[[], Any]:
    """The predictions of :func:`ours`, which the database has in a temporary table, put into a table like theirs at once."""
    connection = sa.create_engine(url).connect()
    predictions = sa.Table(f"{MODEL}_predictions", sa.MetaData(), autoload_with=connection)
    table = predictions.to_metadata(sa.MetaData(), name="shown")
    for index in table.indexes:
        index.name = sa.quoted_name("shown_at", quote=None)
    table.drop(connection, checkfirst=True)
    table.create(connection)
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE staged AS SELECT * FROM {MODEL}_predictions")
    connection.commit()

    def run() -> int:
        rows = connection.exec_driver_sql("INSERT INTO shown SELECT * FROM staged").rowcount
        connection.commit()
        return rows

    return run


def usual(years: int, features: str, predictions: str) -> Callable[[], Any]:
    """What most do: read rows from SQL, predict by MLflow's pyfunc, append to SQL."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow import MlflowClient, artifacts

    parts = prepared.deployment(prepared.flights())
    version = parts.ledger.champion(MODEL)
    # By models:/ it would write into the stored artifact, where that is a local folder, and ours would refuse it from then on.
    source = MlflowClient(parts.settings.mlflow_url).get_model_version(MODEL, str(version)).source
    stored = KEPT / "score-model"
    shutil.rmtree(stored, ignore_errors=True)
    artifacts.download_artifacts(artifact_uri=source, dst_path=str(stored), tracking_uri=parts.settings.mlflow_url)
    taken, interval = champion().features, prepared.span(years)
    table = f"{MODEL}_predictions"
    keys = predictions_schema(parts.model(MODEL).spec).names[:3]
    drop_tables(predictions)
    query = sa.text(f"SELECT {', '.join([*keys, *taken])} FROM features WHERE scheduled_departure < :end")
    end = interval.end.replace(tzinfo=None).isoformat(" ")

    # The same columns as ours, without an index.
    def run() -> int:
        model = mlflow.pyfunc.load_model(str(next(stored.rglob("MLmodel")).parent))
        source, target = sa.create_engine(features), sa.create_engine(predictions)
        predicted_at, rows = datetime.now(UTC), 0
        with source.connect() as reading, target.begin() as writing:
            for chunk in pd.read_sql(query, reading, params={"end": end}, chunksize=PEER_ROWS):
                told = chunk[keys].assign(
                    prediction=model.predict(chunk[taken])[:, 1], version=version, features_snapshot=1, run_id="measured",
                    predicted_at=predicted_at,
                )  # fmt: skip
                told.to_sql(table, writing, if_exists="append", index=False)
                rows += len(told)
        return rows

    return run


def put_features(years: int, url: str) -> None:
    """The features of so many years as a table ``features`` of a SQL database, with an index on their time."""
    rows = read_features(prepared.deployment(stocked(years)), years)
    sink = PredictionSink(url, "sql", rows.schema, "scheduled_departure")
    sink.write(prepared.span(years), 1, rows.to_reader(100_000))
    with sa.create_engine(url).begin() as connection:
        connection.exec_driver_sql("ALTER TABLE sql_predictions RENAME TO features")


# --- what is told ----------------------------------------------------------------------------------------------------


def costs(taken: list[Taken]) -> dict[str, Any]:
    """For the details: seconds, processor seconds, memory at the peak and above the libraries."""
    return {
        "seconds": seconds(taken),
        "processor_seconds": processor_seconds(taken),
        "peak_mb": [one.peak_mb for one in taken],
        "above_libraries_mb": [one.own_mb for one in taken],
        "rows": taken[0].result,
    }


def measure(told: Told, years: int, repeat: int, only: Sequence[str], postgres: str) -> None:
    size, details = f"{years * prepared.FLIGHTS / 1e6:.1f} M rows", told.details

    def run(name: str, piece: Callable[..., Callable[[], Any]], times: int, **arguments: Any) -> list[Taken]:
        taken = apart(piece, repeat=times, **arguments)
        details[name] = costs(taken)
        print(f"  {name}: {details[name]}", flush=True)
        return taken

    stocked(years)
    embedded = run("score, SQLite", ours, repeat, years=years)
    swaps = {"SQLite": run("the database by itself, SQLite", shown, 1, url=f"sqlite:///{KEPT / SCRATCH / 'predictions.db'}")}
    deployed = run("score, PostgreSQL", ours, 1, years=years, sink=postgres)
    swaps["PostgreSQL"] = run("the database by itself, PostgreSQL", shown, 1, url=postgres)
    sinks = (("SQLite", embedded), ("PostgreSQL", deployed))
    if "limit" in only:
        alone = run("predict_proba", limit, repeat, years=years)
        for sink, taken in sinks:
            claim = f"score {size}: features from the lake, champion, predictions to lake and {sink}"
            told.add(Line(claim, "predict_proba alone, rows in memory", seconds(taken), seconds(alone), goal=1.3))
        for sink, taken in sinks:
            # A way that shows all rows or none cannot begin before the last one is predicted.
            least = statistics.median(seconds(alone)) + statistics.median(seconds(swaps[sink]))
            told.add(Line(f"score {size} to lake and {sink}", "predict_proba, then one INSERT in it", seconds(taken), [least]))
    if "usual" in only:
        features, theirs = KEPT / "score-features.db", KEPT / "score-predictions.db"
        for file in (features, theirs):
            file.unlink(missing_ok=True)
        put_features(years, f"sqlite:///{features}")
        peer = run(
            "usual way, SQLite", usual, 1, years=years, features=f"sqlite:///{features}", predictions=f"sqlite:///{theirs}"
        )
        told.add(
            Line(
                f"score {size} to lake and SQLite", "pandas.read_sql, mlflow.pyfunc, DataFrame.to_sql",
                seconds(embedded), seconds(peer), goal=5, faster=True,
            )
        )  # fmt: skip
    if "ten" in only:
        stocked(10 * years)
        more = run("score ten times the rows, PostgreSQL", ours, 1, years=10 * years, sink=postgres)
        claim = f"score {10 * years * prepared.FLIGHTS / 1e6:.0f} M rows to lake and PostgreSQL"
        told.add(Line(claim, size, seconds(more), seconds(deployed), goal=11))
        peak, usual_peak = ([one.peak_mb for one in taken] for taken in (more, deployed))
        told.add(Line("peak memory of it", size, peak, usual_peak, unit="MB", goal=1.2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=10, help="copies of the flights in the smaller size (10)")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    chosen = parser.parse_args()
    told = Told("score")
    with postgres_server("perennial", durable=True) as url:
        measure(told, chosen.years, chosen.repeat, chosen.only, url.render_as_string(hide_password=False))
    if (chosen.years, chosen.only) == (10, PARTS):
        told.write()


if __name__ == "__main__":
    main()
