"""Metrics of the models, from the ledger: correct also when nothing runs, and after every restart.

The watchdog (:mod:`perennial.watchdog.process`) computes :class:`Figures` at each look and shows them to Prometheus. Airflow
reports its own scheduler, executor and tasks by StatsD; ``monitoring/`` reads both.

Labels are model, stage, dataset, verdict and the like: as many series as there are models, not as there are runs or days.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from perennial.alerts.outbox import Backlog
from perennial.core.intervals import Interval, merged
from perennial.ledger.coverage import Waiting, trained_as_of
from perennial.ledger.records import Overview, Publication, judged_or_newest
from perennial.watchdog.rules import AREAS

VERDICTS = ("ok", "drift", "unknown")

#: The stage of a dataset's rows in ``perennial_rows_total``. The rows of tables are counted by the checks.
_ROWS = {"features": "features", "predictions": "scored"}


class Past:
    """Totals of all publications so far, each counted once.

    A day that is published again counts again, since its rows were processed again.

    Attributes:
        rows: by model and stage.
        published_at: by model and dataset, the time of the last publication.
        published: by model, the intervals of its tables that were published, in as few as possible.
        covered: by model and table, those with rows of it.
        waiting: by model, the tables that published days wait for.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], int] = {}
        self.published_at: dict[tuple[str, str], datetime] = {}
        self.published: dict[str, list[Interval]] = {}
        self.covered: dict[tuple[str, str], list[Interval]] = {}
        self.waiting: dict[str, Waiting] = {}

    def add(self, publication: Publication) -> None:
        """Count a publication."""
        model, dataset, at = publication.model, publication.dataset, publication.published_at
        self.published_at[model, dataset] = max(at, self.published_at.get((model, dataset), at))
        if dataset in _ROWS:
            self._count(model, _ROWS[dataset], sum(publication.rows.values()))
        elif dataset == "tables":
            self.published[model] = merged([*self.published.get(model, ()), publication.interval])
            self.waiting.setdefault(model, Waiting()).add(publication)
            for table, rows in publication.rows.items():
                if rows:
                    self.covered[model, table] = merged([*self.covered.get((model, table), ()), publication.interval])
            for counted in publication.inputs.get("rows", {}).values():
                for stage in ("read", "published", "quarantined"):
                    self._count(model, stage, counted[stage])

    def _count(self, model: str, stage: str, rows: int) -> None:
        self.rows[model, stage] = self.rows.get((model, stage), 0) + rows


@dataclass(frozen=True)
class Figures:
    """What is shown.

    Attributes:
        looked_at: when the look began.
        look_seconds: how long it took.
        metrics: the primary metric of each model that has a sound folder.
        past: what was published so far.
        missing: by model and table, days that were due and have no rows of it.
        overview: of the ledger; None if it cannot be read.
        backlog: alerts that wait to be sent; None likewise.
        seconds: by DAG, how long its newest successful run took.
        components: whether each component of Airflow is healthy; empty if Airflow does not answer.
        airflow: whether Airflow answers.
        incidents: open ones, by area.
    """

    looked_at: datetime
    look_seconds: float
    metrics: Mapping[str, str]
    past: Past
    missing: Mapping[tuple[str, str], int]
    overview: Overview | None
    backlog: Backlog | None
    seconds: Mapping[str, float]
    components: Mapping[str, bool]
    airflow: bool
    incidents: Mapping[str, int]


def families(figures: Figures) -> list[Metric]:
    """The figures as Prometheus knows them."""
    gauges = [
        _gauge("perennial_watch_look_timestamp_seconds", "When the watchdog last checked.", figures.looked_at.timestamp()),
        _gauge("perennial_watch_look_duration_seconds", "How long its last check took.", figures.look_seconds),
        _gauge("perennial_ledger_up", "1 if the ledger can be read.", float(figures.overview is not None)),
        _gauge("perennial_airflow_up", "1 if Airflow's API answers.", float(figures.airflow)),
    ]
    if figures.backlog is not None:
        since = figures.backlog.since
        gauges += [
            _gauge("perennial_alerts_waiting", "Alerts that wait for delivery.", figures.backlog.count),
            _gauge(
                "perennial_alerts_oldest_waiting_seconds",
                "How long the oldest of them has waited; 0 if none waits.",
                (figures.looked_at - since).total_seconds() if since is not None else 0.0,
            ),
        ]
    up = GaugeMetricFamily("perennial_airflow_component_up", "1 if this component of Airflow is healthy.", labels=["component"])
    for component, well in figures.components.items():
        up.add_metric([component], float(well))
    incidents = GaugeMetricFamily("perennial_incidents", "Open incidents that the watchdog has found.", labels=["area"])
    for area in sorted(AREAS):
        incidents.add_metric([area], figures.incidents.get(area, 0))
    rows = CounterMetricFamily(
        "perennial_rows", "Rows read, quarantined, published, used for features, and scored.", labels=["model", "stage"]
    )
    for (model, stage), number in figures.past.rows.items():
        rows.add_metric([model, stage], number)
    runs = GaugeMetricFamily("perennial_run_seconds", "How long the newest successful run took.", labels=["model", "stage"])
    for dag_id, seconds in figures.seconds.items():
        model, _, stage = dag_id.partition(".")
        runs.add_metric([model, stage], seconds)
    at = GaugeMetricFamily(
        "perennial_published_timestamp_seconds", "When a dataset was published last.", labels=["model", "dataset"]
    )
    for (model, dataset), moment in figures.past.published_at.items():
        at.add_metric([model, dataset], moment.timestamp())
    reached = GaugeMetricFamily(
        "perennial_table_until_timestamp_seconds",
        "Where the newest published interval with rows of a table ends.",
        labels=["model", "table"],
    )
    missing = GaugeMetricFamily(
        "perennial_table_days_missing",
        "Days since the first of a table that were due and have no rows of it; closed days are left out.",
        labels=["model", "table"],
    )
    awaited = GaugeMetricFamily(
        "perennial_table_days_awaited",
        "Days that were published without a table that may come late.",
        labels=["model", "table"],
    )
    for (model, table), days in figures.missing.items():
        missing.add_metric([model, table], days)
        waiting = figures.past.waiting.get(model, Waiting())
        awaited.add_metric([model, table], len(waiting.tables.get(table, ())))
        if there := figures.past.covered.get((model, table)):
            reached.add_metric([model, table], there[-1].end.timestamp())
    models = _of_models(figures, figures.overview) if figures.overview else ()
    return [*gauges, up, incidents, rows, runs, at, reached, missing, awaited, *models]


def _of_models(figures: Figures, overview: Overview) -> Iterator[Metric]:
    until = GaugeMetricFamily(
        "perennial_published_until_timestamp_seconds", "Where the newest published interval ends.", labels=["model", "dataset"]
    )
    verdict = GaugeMetricFamily("perennial_verdict", "1 for the verdict on the newest window.", labels=["model", "verdict"])
    version = GaugeMetricFamily(
        "perennial_version", "Number of the champion and of the newest version.", labels=["model", "which"]
    )
    passed = GaugeMetricFamily("perennial_newest_version_passed", "1 if the newest version passed its gates.", labels=["model"])
    since = GaugeMetricFamily("perennial_champion_since_timestamp_seconds", "When it became champion.", labels=["model"])
    trained = GaugeMetricFamily(
        "perennial_champion_trained_until_timestamp_seconds", "End of the champion's training data.", labels=["model"]
    )
    measured = GaugeMetricFamily(
        "perennial_measured_until_timestamp_seconds", "End of the newest window with enough labels.", labels=["model"]
    )
    realised = GaugeMetricFamily("perennial_realised", "The primary metric of that window.", labels=["model", "metric"])
    parity = GaugeMetricFamily(
        "perennial_parity", "Share of rows served online that equal what the published tables give.", labels=["model"]
    )
    bound = GaugeMetricFamily("perennial_parity_bound", "The smallest share that is well (online.parity).", labels=["model"])
    compared = GaugeMetricFamily("perennial_parity_rows", "Rows of which it is the share.", labels=["model"])
    at = GaugeMetricFamily("perennial_parity_measured_timestamp_seconds", "When it was measured.", labels=["model"])
    for model, metric in figures.metrics.items():
        for dataset, end in overview.published.get(model, {}).items():
            until.add_metric([model, dataset], end.timestamp())
        for judged in overview.verdicts.get(model, ())[-1:]:
            for name in VERDICTS:
                verdict.add_metric([model, name], float(judged.verdict == name))
        versions = overview.versions.get(model, {})
        if versions:
            newest = versions[max(versions)]
            version.add_metric([model, "newest"], newest.version)
            passed.add_metric([model], float(newest.decision.promote))
        if (made := overview.champions.get(model)) is not None:
            version.add_metric([model, "champion"], made.version)
            if made.completed_at is not None:
                since.add_metric([model], made.completed_at.timestamp())
            if (learned := trained_until(overview, model)) is not None:
                trained.add_metric([model], learned.timestamp())
        for window in overview.performances.get(model, ())[-1:]:
            measured.add_metric([model], window.interval.end.timestamp())
            if metric in window.metrics:
                realised.add_metric([model, metric], window.metrics[metric])
        if (served := judged_or_newest(overview.parities.get(model, ()))) is not None:
            parity.add_metric([model], served.measured.share)
            bound.add_metric([model], served.measured.bound)
            compared.add_metric([model], served.measured.rows)
            at.add_metric([model], served.recorded_at.timestamp())
    yield from (until, verdict, version, passed, since, trained, measured, realised, parity, bound, compared, at)


def trained_until(overview: Overview, model: str) -> datetime | None:
    """The end of the training data of a model's champion; None if that is not recorded."""
    made = overview.champions.get(model)
    return trained_as_of(overview.versions.get(model, {}).get(made.version)) if made is not None else None


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


# --- shown to Prometheus ---------------------------------------------------------------------------------------------


class _Shown(Collector):
    def __init__(self) -> None:
        self.metrics: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        return self.metrics


class Exhibition:
    """An HTTP server with ``/metrics`` for Prometheus and ``/health`` for the process that restarts the watchdog.

    Args:
        host: to listen on.
        port: to listen on; 0 for any that is free.
        fresh: age of the figures in seconds after which ``/health`` answers 503.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, host: str, port: int, *, fresh: float) -> None:
        self._shown = _Shown()
        self._fresh = fresh
        self._seen_at = time.monotonic()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._shown)
        self._metrics = make_wsgi_app(registry)
        self._server: WSGIServer = make_server(host, port, self._answer, ThreadingWSGIServer, _Quiet)
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def show(self, figures: Figures) -> None:
        """Show these from now on."""
        self._shown.metrics = families(figures)
        self._seen_at = time.monotonic()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                answer: Iterable[bytes] = self._metrics(environ, start)
                return answer
            case "/health":
                age = time.monotonic() - self._seen_at
                start("200 OK" if age <= self._fresh else "503 Service Unavailable", [("Content-Type", "text/plain")])
                return [f"the last check was {age:.0f} s ago\n".encode()]
            case _:
                start("404 Not Found", [("Content-Type", "text/plain")])
                return [b"/metrics and /health are here\n"]


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
        """Log no line per scrape."""
