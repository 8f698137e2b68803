"""The weekly cycle as Dagster's software-defined assets, a partition a week."""

import steps
from dagster import AssetExecutionContext, Definitions, MaterializeResult, WeeklyPartitionsDefinition, asset, define_asset_job

WEEKS = WeeklyPartitionsDefinition(start_date="2013-04-01", day_offset=1)


@asset(partitions_def=WEEKS)
def tables(context: AssetExecutionContext) -> None:
    steps.ingest(context.partition_key)


@asset(partitions_def=WEEKS, deps=[tables])
def features(context: AssetExecutionContext) -> None:
    steps.build_features(context.partition_key)


@asset(partitions_def=WEEKS, deps=[features])
def candidate(context: AssetExecutionContext) -> str:
    return steps.train(context.partition_key)


@asset(partitions_def=WEEKS)
def champion(context: AssetExecutionContext, candidate: str) -> MaterializeResult:
    return MaterializeResult(metadata={"promoted": bool(steps.gate(context.partition_key, candidate))})


@asset(partitions_def=WEEKS, deps=[features])
def predictions(context: AssetExecutionContext) -> None:
    steps.score(context.partition_key)


@asset(partitions_def=WEEKS, deps=[predictions])
def drift_report(context: AssetExecutionContext) -> None:
    steps.report_drift(context.partition_key)


weekly_cycle = define_asset_job("weekly_cycle", selection="*", partitions_def=WEEKS)
defs = Definitions(assets=[tables, features, candidate, champion, predictions, drift_report], jobs=[weekly_cycle])
