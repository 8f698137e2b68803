"""The weekly cycle as a flow of Metaflow."""

from collections.abc import Iterable

import steps
from metaflow import FlowSpec, Parameter, step


class WeeklyCycle(FlowSpec):
    week = Parameter("week", help="the week's first day, a Monday", required=True)

    @step
    def start(self) -> None:
        steps.ingest(self.week)
        self.next(self.features)

    @step
    def features(self) -> None:
        steps.build_features(self.week)
        self.next(self.train, self.score)

    @step
    def train(self) -> None:
        self.run_id = steps.train(self.week)
        self.next(self.gate)

    @step
    def gate(self) -> None:
        self.promoted = bool(steps.gate(self.week, self.run_id))
        self.next(self.join)

    @step
    def score(self) -> None:
        steps.score(self.week)
        self.next(self.report_drift)

    @step
    def report_drift(self) -> None:
        steps.report_drift(self.week)
        self.next(self.join)

    @step
    def join(self, inputs: Iterable[FlowSpec]) -> None:  # noqa: ARG002 - by which Metaflow knows a join
        self.next(self.end)

    @step
    def end(self) -> None:
        pass


if __name__ == "__main__":
    WeeklyCycle()
