"""The weekly cycle as a DAG of Airflow."""

from airflow.sdk import Param, chain, dag, task


@dag(schedule=None, params={"week": Param(type="string", format="date")})
def weekly_cycle():
    @task
    def ingest(params):
        import steps

        steps.ingest(params["week"])

    @task
    def build_features(params):
        import steps

        steps.build_features(params["week"])

    @task
    def train(params):
        import steps

        return steps.train(params["week"])

    @task
    def gate(trained, params):
        import steps

        return bool(steps.gate(params["week"], trained))

    @task
    def score(params):
        import steps

        steps.score(params["week"])

    @task
    def report_drift(params):
        import steps

        steps.report_drift(params["week"])

    features, trained = build_features(), train()
    chain(ingest(), features, trained, gate(trained))
    chain(features, score(), report_drift())


weekly_cycle()
