"""The weekly cycle as a pipeline of ZenML."""

import sys

import steps
from zenml import pipeline, step


@step
def ingest(week: str) -> None:
    steps.ingest(week)


@step
def build_features(week: str) -> None:
    steps.build_features(week)


@step
def train(week: str) -> str:
    return steps.train(week)


@step
def gate(week: str, run_id: str) -> bool:
    return bool(steps.gate(week, run_id))


@step
def score(week: str) -> None:
    steps.score(week)


@step
def report_drift(week: str) -> None:
    steps.report_drift(week)


@pipeline(enable_cache=False)
def weekly_cycle(week: str) -> None:
    ingest(week)
    build_features(week, after="ingest")
    run_id = train(week, after="build_features")
    gate(week, run_id)
    score(week, after="build_features")
    report_drift(week, after="score")


if __name__ == "__main__":
    weekly_cycle(sys.argv[1])
