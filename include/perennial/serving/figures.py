"""What the scorer measures of itself, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

#: Upper bounds in seconds, and in rows.
_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Now(Collector):
    """Gauges that are read when somebody asks.

    Args:
        versions: the version that answers, by model.
        seconds: since the ledger last said who is champion.
        at_once: requests that are being answered.
    """

    def __init__(
        self,
        versions: Callable[[], Mapping[str, int]],
        seconds: Callable[[], float | None],
        at_once: Callable[[], int],
    ) -> None:
        self._versions, self._seconds, self._at_once = versions, seconds, at_once

    def collect(self) -> Iterator[Metric]:
        version = GaugeMetricFamily("perennial_serve_version", "The version that answers.", labels=["model"])
        for model, number in self._versions().items():
            version.add_metric([model], number)
        yield version
        if (seconds := self._seconds()) is not None:
            yield GaugeMetricFamily(
                "perennial_serve_champion_checked_seconds",
                "Seconds since the ledger last said who is champion.",
                value=seconds,
            )
        yield GaugeMetricFamily("perennial_serve_at_once", "Requests that are being answered.", value=self._at_once())


class Figures:
    """Counters and histograms, and gauges.

    Args:
        now: the gauges.
    """

    def __init__(self, now: Now) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(now)
        self._requests = Counter(
            "perennial_serve_requests", "Requests, by status of their answers.", ["model", "form", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._latency = Histogram(
            "perennial_serve_request_seconds", "From the first byte of a request to its answer.", ["model", "form"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._batches = Histogram(
            "perennial_serve_batch_rows", "Rows that were predicted together.", ["model"],
            buckets=_ROWS, registry=self._registry,
        )  # fmt: skip
        self._rows = Counter(
            "perennial_serve_rows", "Rows that were predicted.", ["model"], registry=self._registry,
        )  # fmt: skip
        self._fallbacks = Counter(
            "perennial_serve_fallbacks", "Rows by key without stored features that are new enough.", ["model", "kind"],
            registry=self._registry,
        )  # fmt: skip

        self._recorded = Counter(
            "perennial_serve_recorded", "Rows that were asked, answered and recorded.", ["model"], registry=self._registry,
        )  # fmt: skip
        self._unrecorded = Counter(
            "perennial_serve_unrecorded", "Rows that were answered and not recorded, by why.", ["model", "why"],
            registry=self._registry,
        )  # fmt: skip

        self._by_role = Counter(
            "perennial_serve_answered_rows", "Rows that were answered: to clients by the champion or its challenger, or in the "
            "shadow.", ["model", "role"], registry=self._registry,
        )  # fmt: skip
        self._left_out = Counter(
            "perennial_serve_left_out", "Rows that a version beside the champion was to answer and did not, by why.",
            ["model", "role", "why"], registry=self._registry,
        )  # fmt: skip

    def by_role(self, model: str, rows: int, role: str) -> None:
        """Count rows that were answered."""
        self._by_role.labels(model, role).inc(rows)

    def left_out(self, model: str, rows: int, role: str, why: str) -> None:
        """Count rows that a version beside the champion did not answer."""
        self._left_out.labels(model, role, why).inc(rows)

    def recorded(self, model: str, rows: int) -> None:
        """Count rows that were recorded."""
        self._recorded.labels(model).inc(rows)

    def unrecorded(self, model: str, rows: int, why: str) -> None:
        """Count rows that were answered and not recorded."""
        self._unrecorded.labels(model, why).inc(rows)

    def fell_back(self, model: str, kind: str) -> None:
        """Count a row that was answered without features that are new enough."""
        self._fallbacks.labels(model, kind).inc()

    def answered(self, model: str, form: str, status: int, seconds: float) -> None:
        """Count a request. Without a model, ``model`` is empty."""
        self._requests.labels(model, form, str(status)).inc()
        if status == 200:
            self._latency.labels(model, form).observe(seconds)

    def predicted(self, model: str, rows: int) -> None:
        """Count rows that are predicted together."""
        self._batches.labels(model).observe(rows)
        self._rows.labels(model).inc(rows)

    def text(self) -> bytes:
        """All of it in Prometheus' text form."""
        return bytes(generate_latest(self._registry))
