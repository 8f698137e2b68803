"""What the scorer measures of itself, for Prometheus and for the page of a model."""

from __future__ import annotations

import math
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

#: Upper bounds in seconds, and in rows.
_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_HOURS = (1, 2, 3, 6, 12, 24, 36, 48, 72, 168, 720)
_AGES = (60, 300, 900, *(3600 * hours for hours in _HOURS))
#: The quantiles that the page shows.
_SHOWN = {"p50": 0.5, "p99": 0.99}


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
        self._since = datetime.now(UTC)
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
        self._pushed = Counter(
            "perennial_serve_pushed", "Rows that clients pushed.", ["model", "table", "outcome"], registry=self._registry,
        )  # fmt: skip
        self._fallbacks = Counter(
            "perennial_serve_fallbacks", "Rows by key without stored features that are new enough.", ["model", "kind"],
            registry=self._registry,
        )  # fmt: skip
        self._ages = Histogram(
            "perennial_serve_feature_age_seconds", "How old the data were that stored features were made of.", ["model"],
            buckets=_AGES, registry=self._registry,
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

    def pushed(self, model: str, table: str, outcome: str, rows: int) -> None:
        """Count rows that clients pushed: ``new``, ``known`` or ``refused``."""
        self._pushed.labels(model, table, outcome).inc(rows)

    def fell_back(self, model: str, kind: str) -> None:
        """Count a row that was answered without features that are new enough."""
        self._fallbacks.labels(model, kind).inc()

    def looked_up(self, model: str, seconds: float) -> None:
        """Observe the age of the stored features of a row."""
        self._ages.labels(model).observe(seconds)

    def answered(self, model: str, form: str, status: int, seconds: float) -> None:
        """Count a request. Without a model, ``model`` is empty."""
        self._requests.labels(model, form, str(status)).inc()
        if status == 200:
            self._latency.labels(model, form).observe(seconds)

    def predicted(self, model: str, rows: int) -> None:
        """Count rows that are predicted together."""
        self._batches.labels(model).observe(rows)
        self._rows.labels(model).inc(rows)

    def of(self, model: str) -> dict[str, Any]:
        """What was counted for a model since the process began, for its page.

        Returns:
            ``since``: when that was; ``requests`` by status; ``seconds``: by form, the quantiles ``p50`` and ``p99`` of the
            time to the answer; ``rows`` that were predicted, and in how many ``batches``; ``age_seconds``: quantiles of the age
            of stored features; ``fallbacks``: rows by kind; rows that were ``recorded``, and that could not be
            (``unrecorded``). Quantiles are computed as Prometheus does it, from the bounds of the histograms. They are null if
            nothing was observed.
        """
        requests, fallbacks = Counts[str](), Counts[str]()
        for _, labels, value in _samples(self._requests, "_total", model):
            requests[labels["status"]] += int(value)
        for _, labels, value in _samples(self._fallbacks, "_total", model):
            fallbacks[labels["kind"]] += int(value)
        forms = dict.fromkeys(labels["form"] for _, labels, _ in _samples(self._latency, "_count", model))
        return {
            "since": self._since.isoformat(),
            "requests": dict(requests),
            "seconds": {form: _quantiles(self._latency, model, form=form) for form in forms},
            "rows": sum(int(value) for *_, value in _samples(self._rows, "_total", model)),
            "batches": sum(int(value) for *_, value in _samples(self._batches, "_count", model)),
            "age_seconds": _quantiles(self._ages, model),
            "fallbacks": dict(fallbacks),
            "recorded": sum(int(value) for *_, value in _samples(self._recorded, "_total", model)),
            "unrecorded": sum(int(value) for *_, value in _samples(self._unrecorded, "_total", model)),
        }

    def text(self) -> bytes:
        """All of it in Prometheus' text form."""
        return bytes(generate_latest(self._registry))


def _samples(family: Counter | Histogram, part: str, model: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """The samples of a part of a family, such as ``_bucket``, for a model."""
    for metric in family.collect():
        for sample in metric.samples:
            if sample.name.endswith(part) and sample.labels["model"] == model:
                yield sample.name, sample.labels, sample.value


def _quantiles(family: Histogram, model: str, **labels: str) -> dict[str, float | None]:
    buckets = [
        (float(found["le"]), count)
        for _, found, count in _samples(family, "_bucket", model)
        if all(found[name] == value for name, value in labels.items())
    ]
    return {name: quantile(buckets, share) for name, share in _SHOWN.items()}


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """A quantile of a histogram, as Prometheus' ``histogram_quantile`` computes it.

    Args:
        buckets: upper bounds, the last of them infinite, each with the number of values up to it.
        share: of the values that are not above the quantile, 0 to 1.

    Returns:
        Within the bucket that has it, in proportion; the last finite bound if it is above that; None without values.
    """
    wanted = share * buckets[-1][1] if buckets else 0.0
    below, fewer = 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted > 0:
            return below if math.isinf(bound) else below + (bound - below) * (wanted - fewer) / (count - fewer)
        below, fewer = bound, count
    return None
