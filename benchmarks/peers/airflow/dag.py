"""The weekly cycle as a DAG of Airflow."""

from airflow.sdk import Param, chain, dag, task


@dag(schedule=None, params={"week": Param(type="string", format="date")})
def weekly_cycle() -> None:
    @task
    def ingest(params: dict[str, str]) -> None:
        import steps

        steps.ingest(params["week"])

    @task
    def build_features(params: dict[str, str]) -> None:
        import steps

        steps.build_features(params["week"])

    @task
    def train(params: dict[str, str]) -> str:
        import steps

        return steps.train(params["week"])

    @task
    def gate(trained: str, params: dict[str, str]) -> bool:
        import steps

        return bool(steps.gate(params["week"], trained))

    @task
    def score(params: dict[str, str]) -> None:
        import steps

        steps.score(params["week"])

    @task
    def report_drift(params: dict[str, str]) -> None:
        import steps

        steps.report_drift(params["week"])

    # Airflow gives a task its params, which no call passes, and a result for the reference that a call passes.
    features, trained = build_features(), train()  # type: ignore[call-arg,misc]
    chain(ingest(), features, trained, gate(trained))  # type: ignore[arg-type,call-arg,misc]
    chain(features, score(), report_drift())  # type: ignore[call-arg,misc]


weekly_cycle()
