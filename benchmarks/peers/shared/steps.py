"""The steps of the weekly cycle in pandas, as a team would share them between its DAG, assets, flow or pipeline.

A step takes the week's first day, a Monday, and hands everything on by files below ``STORE``: tables as Parquet, a file a week;
models in MLflow; predictions in SQLite. Libraries that take long to import are imported by the steps that need them.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

LANDING, STORE = Path(os.environ["LANDING"]), Path(os.environ["STORE"])
MODEL, SEED = "flight_delay", 2013
DAY, WEEK = pd.Timedelta(days=1), pd.Timedelta(days=7)
WINDOW, HOLDOUT, VALIDATION = 77 * DAY, 14 * DAY, 14 * DAY
NUMERIC = [
    "scheduled_minutes", "weekday", "distance", "carrier_delay_7d", "destination_delay_1d", "destination_delay_14d",
    "flight_delay_14d", "aircraft_age", "seats", "wind_speed", "wind_gust", "precip", "pressure", "visib",
]  # fmt: skip
CATEGORICAL = ["carrier", "origin", "dest"]
FEATURES = NUMERIC + CATEGORICAL
DELAYS = {
    "carrier_delay_7d": (["carrier", "origin"], "7D"),
    "destination_delay_1d": (["dest"], "1D"),
    "destination_delay_14d": (["dest"], "14D"),
    "flight_delay_14d": (["carrier", "flight", "origin"], "14D"),
}


# --- ingest ----------------------------------------------------------------------------------------------------------


def ingest(week: str) -> None:
    """Read the week's files, check their rows, and store them as tables."""
    flights = read_files("flights", week)
    minutes = pd.to_timedelta(flights["minute"], unit="min")
    flights["scheduled_departure"] = pd.to_datetime(flights["time_hour"], utc=True) + minutes
    names = flights[["year", "month", "day", "carrier", "flight", "origin"]].astype(str)
    flights["flight_id"] = names.agg("-".join, axis=1)
    flights["scheduled_minutes"] = flights["hour"] * 60 + flights["minute"]
    flights["weekday"] = pd.to_datetime(flights[["year", "month", "day"]]).dt.dayofweek + 1
    arrivals = flights[flights["arr_delay"].notna()].copy()
    until = pd.to_timedelta(arrivals["dep_delay"] + arrivals["air_time"] + 240, unit="min")
    arrivals["known"] = arrivals["scheduled_departure"] + until
    weather = read_files("weather", week)
    weather["hour"] = pd.to_datetime(weather["time_hour"], utc=True)
    aircraft = pd.read_csv(LANDING / "aircraft.csv")
    check(flights, arrivals, weather, aircraft)
    schedule = ["flight_id", "scheduled_departure", "carrier", "flight", "tailnum", "origin", "dest", "distance"]
    write("flights", week, flights[[*schedule, "scheduled_minutes", "weekday"]])
    arrived = ["flight_id", "scheduled_departure", "known", "dep_delay", "air_time", "arr_delay"]
    write("arrivals", week, arrivals[arrived])
    write("weather", week, weather[["origin", "hour", "wind_speed", "wind_gust", "precip", "pressure", "visib"]])
    write("aircraft", week, aircraft[["tailnum", "year", "seats"]])


def check(flights: pd.DataFrame, arrivals: pd.DataFrame, weather: pd.DataFrame, aircraft: pd.DataFrame) -> None:
    """Let Great Expectations judge the tables.

    Raises:
        ValueError: a check failed.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("landing")
    column = gx.expectations

    def present(*names: str) -> list[column.Expectation]:
        return [column.ExpectColumnValuesToNotBeNull(column=name) for name in names]

    def between(name: str, least: float, most: float) -> column.Expectation:
        return column.ExpectColumnValuesToBeBetween(column=name, min_value=least, max_value=most)

    def unique(*names: str) -> column.Expectation:
        if len(names) == 1:
            return column.ExpectColumnValuesToBeUnique(column=names[0])
        return column.ExpectCompoundColumnsToBeUnique(column_list=list(names))

    origins = column.ExpectColumnValuesToBeInSet(column="origin", value_set=["EWR", "JFK", "LGA"])
    judged = {
        "flights": (flights, [
            *present("flight_id", "scheduled_departure", "carrier", "flight", "origin", "dest"),
            *present("distance", "scheduled_minutes", "weekday"), unique("flight_id"), origins,
            column.ExpectColumnValuesToMatchRegex(column="carrier", regex="^[0-9A-Z]{2}$"),
            column.ExpectColumnValuesToMatchRegex(column="dest", regex="^[A-Z]{3}$"),
            between("flight", 1, 9999), between("distance", 10, 6000),
            between("scheduled_minutes", 0, 1439), between("weekday", 1, 7),
            column.ExpectTableRowCountToBeBetween(min_value=7 * 300, max_value=7 * 1500),
        ]),
        "arrivals": (arrivals, [
            *present("flight_id", "scheduled_departure", "known", "dep_delay", "air_time", "arr_delay"), unique("flight_id"),
            between("dep_delay", -120, 2000), between("air_time", 0, 1000), between("arr_delay", -180, 2000),
        ]),
        "weather": (weather, [
            *present("origin", "hour"), unique("origin", "hour"), origins, between("wind_speed", 0, 100),
            between("wind_gust", 0, 150), between("precip", 0, 10), between("pressure", 900, 1100), between("visib", 0, 20),
        ]),
        "aircraft": (aircraft, [
            *present("tailnum", "seats"), unique("tailnum"), between("year", 1950, 2013), between("seats", 1, 500),
        ]),
    }  # fmt: skip
    for name, (frame, expectations) in judged.items():
        whole = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        suite = gx.ExpectationSuite(name=name, expectations=expectations)
        result = whole.get_batch({"dataframe": frame}).validate(suite)
        if not result.success:
            failed = [one.expectation_config for one in result.results if not one.success]
            raise ValueError(f"{name}: {failed}")


# --- features --------------------------------------------------------------------------------------------------------


def build_features(week: str) -> None:
    """Features of the week's flights, each from what was known two hours before its scheduled departure."""
    start = pd.Timestamp(week, tz="UTC")
    flights, arrivals = (read(table, start - 17 * DAY, start + WEEK) for table in ("flights", "arrivals"))
    entities = flights[flights["scheduled_departure"] >= start].copy()
    entities["moment"] = entities["scheduled_departure"] - pd.Timedelta(hours=2)
    news = arrivals.merge(flights.drop(columns="scheduled_departure"), on="flight_id")
    news = news.rename(columns={"known": "moment"}).assign(delay=news["arr_delay"].clip(-30, 120))
    # At equal moments arrivals come first, since they are known.
    both = pd.concat([news.drop(columns="flight_id"), entities], ignore_index=True).sort_values("moment", kind="stable")
    asked = both["flight_id"].notna()
    entities = both[asked].drop(columns=["delay", "dep_delay", "air_time", "arr_delay"])
    for name, (keys, window) in DELAYS.items():
        mean = both.groupby(keys).rolling(window, on="moment", closed="both")["delay"].mean()
        # Within a group the order is that of `both`.
        order = both.groupby(keys).ngroup().sort_values(kind="stable").index
        entities[name] = pd.Series(mean.to_numpy(), index=order)
    weather = read("weather", start - 2 * DAY, start + WEEK)
    weather["moment"] = weather["hour"] + pd.Timedelta(hours=1)
    entities = pd.merge_asof(
        entities, weather.sort_values("moment"), on="moment", by="origin", tolerance=pd.Timedelta(hours=12)
    )
    aircraft = pd.read_parquet(STORE / "aircraft" / f"{week}.parquet")
    entities = entities.merge(aircraft, on="tailnum", how="left")
    entities["aircraft_age"] = entities["scheduled_departure"].dt.year - entities["year"]
    write("features", week, entities[["flight_id", "scheduled_departure", *FEATURES]])


# --- train, gate -----------------------------------------------------------------------------------------------------


def train(week: str) -> str:
    """Search and fit a booster on the labels known when the holdout began, and log it. Returns its run in MLflow."""
    from sklearn.metrics import roc_auc_score

    mlflow = tracking()
    border = pd.Timestamp(week, tz="UTC") + WEEK - HOLDOUT
    rows = labelled(border - WINDOW, border, known_by=border)
    older = rows["scheduled_departure"] < border - VALIDATION
    scores: dict[float, float] = {}
    for rate in (0.05, 0.1):
        model = make_model(rate).fit(rows.loc[older, FEATURES], rows.loc[older, "label"])
        unseen = model.predict_proba(rows.loc[~older, FEATURES])[:, 1]
        scores[rate] = roc_auc_score(rows.loc[~older, "label"], unseen)
    best = max(scores, key=scores.__getitem__)
    model = make_model(best).fit(rows[FEATURES], rows["label"])
    reference = rows.sample(min(20_000, len(rows)), random_state=SEED)[FEATURES]
    reference["prediction"] = model.predict_proba(reference)[:, 1]
    with mlflow.start_run(run_name=week) as run:
        mlflow.log_params({"learning_rate": best, "week": week})
        mlflow.log_metrics({"validation_roc_auc": scores[best], "training_rows": len(rows)})
        reference.to_parquet(STORE / "reference.parquet")
        mlflow.log_artifact(STORE / "reference.parquet")
        mlflow.sklearn.log_model(
            model, name="model", input_example=rows[FEATURES].head(5),
            # Without them MLflow runs the model in a process of its own to find out what it imports, which takes seconds.
            pip_requirements=["scikit-learn", "pandas"],
            serialization_format="cloudpickle",
        )  # fmt: skip
    return str(run.info.run_id)


def gate(week: str, run_id: str) -> bool:
    """Register the version, and make it champion if it does better than the champion on the holdout. Returns whether it did."""
    from sklearn.metrics import roc_auc_score

    mlflow = tracking()
    end = pd.Timestamp(week, tz="UTC") + WEEK
    rows = labelled(end - HOLDOUT, end, known_by=end)
    client = mlflow.MlflowClient()
    version = mlflow.register_model(f"runs:/{run_id}/model", MODEL).version
    is_first = "champion" not in client.get_registered_model(MODEL).aliases
    score: dict[str, float] = {}
    for name in ["candidate"] if is_first else ["candidate", "champion"]:
        uri = f"models:/{MODEL}/{version}" if name == "candidate" else f"models:/{MODEL}@champion"
        unseen = mlflow.sklearn.load_model(uri).predict_proba(rows[FEATURES])[:, 1]
        score[name] = roc_auc_score(rows["label"], unseen)
    client.log_metric(run_id, "holdout_rows", len(rows))
    for name, value in score.items():
        client.log_metric(run_id, f"holdout_roc_auc_{name}", value)
    promoted = is_first or score["candidate"] > score["champion"]
    if promoted:
        client.set_registered_model_alias(MODEL, "champion", version)
    return promoted


def make_model(learning_rate: float) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, min_frequency=10)
    booster = HistGradientBoostingClassifier(
        learning_rate=learning_rate, max_iter=120, max_leaf_nodes=15, min_samples_leaf=200, max_features=0.3,
        early_stopping=False, random_state=SEED,
    )  # fmt: skip
    columns = ColumnTransformer([("numeric", "passthrough", NUMERIC), ("categorical", encoder, CATEGORICAL)])
    return make_pipeline(columns, booster)


def labelled(start: pd.Timestamp, end: pd.Timestamp, known_by: pd.Timestamp) -> pd.DataFrame:
    """Features and labels of an interval, as far as the labels were known."""
    arrivals = read("arrivals", start, end)
    arrivals = arrivals[arrivals["known"] <= known_by]
    labels = pd.DataFrame({"flight_id": arrivals["flight_id"], "label": arrivals["arr_delay"] > 15})
    rows = read("features", start, end).merge(labels, on="flight_id")
    return rows.sort_values(["scheduled_departure", "flight_id"], ignore_index=True)


# --- score, watch ----------------------------------------------------------------------------------------------------


def score(week: str) -> None:
    """Let the champion predict the week's flights, into the table ``predictions`` in place of earlier ones."""
    mlflow = tracking()
    rows = pd.read_parquet(STORE / "features" / f"{week}.parquet")
    champion = mlflow.MlflowClient().get_model_version_by_alias(MODEL, "champion")
    model = mlflow.sklearn.load_model(f"models:/{MODEL}/{champion.version}")
    told = rows[["flight_id", "scheduled_departure"]].assign(
        prediction=model.predict_proba(rows[FEATURES])[:, 1], version=int(champion.version), week=week
    )
    with closing(sqlite3.connect(STORE / "predictions.db")) as database, database:
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'predictions'").fetchone():
            database.execute("DELETE FROM predictions WHERE week = ?", (week,))
        told.to_sql("predictions", database, if_exists="append", index=False)


def report_drift(week: str) -> None:
    """Evidently's report of the week's features and predictions against those that the champion was trained on."""
    os.environ["DO_NOT_TRACK"] = "1"
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    mlflow = tracking()
    champion = mlflow.MlflowClient().get_model_version_by_alias(MODEL, "champion")
    artifact = mlflow.artifacts.download_artifacts(f"runs:/{champion.run_id}/reference.parquet")
    current = pd.read_parquet(STORE / "features" / f"{week}.parquet")
    with closing(sqlite3.connect(STORE / "predictions.db")) as database:
        query = "SELECT flight_id, prediction FROM predictions WHERE week = ?"
        predictions = pd.read_sql(query, database, params=(week,))
    columns = [*FEATURES, "prediction"]
    current = current.merge(predictions, on="flight_id")[columns]
    definition = DataDefinition(numerical_columns=[*NUMERIC, "prediction"], categorical_columns=CATEGORICAL)
    datasets = (Dataset.from_pandas(frame, definition) for frame in (current, pd.read_parquet(artifact)[columns]))
    found = Report([DataDriftPreset()]).run(*datasets)
    (STORE / "reports").mkdir(exist_ok=True)
    found.save_html(str(STORE / "reports" / f"{week}.html"))


# --- files -----------------------------------------------------------------------------------------------------------


def read_files(kind: str, week: str) -> pd.DataFrame:
    days = pd.date_range(week, periods=7)
    return pd.concat([pd.read_csv(LANDING / kind / f"{day:%Y-%m-%d}.csv.gz") for day in days], ignore_index=True)


def write(table: str, week: str, frame: pd.DataFrame) -> None:
    file = STORE / table / f"{week}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(file, index=False)


def read(table: str, start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """The table's rows of an interval, from the files of the weeks that it touches."""
    first = start.normalize() - start.dayofweek * DAY
    files = [STORE / table / f"{monday:%Y-%m-%d}.parquet" for monday in pd.date_range(first, end - DAY, freq="7D")]
    rows = pd.concat([pd.read_parquet(file) for file in files if file.exists()], ignore_index=True)
    time = "hour" if table == "weather" else "scheduled_departure"
    return rows[(rows[time] >= start) & (rows[time] < end)]


def tracking() -> ModuleType:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow.sklearn

    mlflow.set_tracking_uri(f"sqlite:///{STORE / 'mlflow.db'}")
    if mlflow.get_experiment_by_name(MODEL) is None:
        mlflow.create_experiment(MODEL, artifact_location=(STORE / "artifacts").as_uri())
    mlflow.set_experiment(MODEL)
    return mlflow
