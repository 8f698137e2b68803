"""What Prometheus and Grafana are told to show is there to be shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from perennial.alerts.outbox import Backlog
from perennial.core.settings import PROJECT
from perennial.evidence.parity import FEWEST
from perennial.ledger.records import Overview
from perennial.serving import figures as serving
from perennial.watchdog.figures import Figures, Past, families

MONITORING = PROJECT / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "perennial.json").read_text())
RULES = [rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
STATSD = yaml.safe_load((MONITORING / "statsd.yml").read_text())

_NOTHING: dict[str, Any] = {}


def exposed() -> list[Metric]:
    """Every family that the watchdog shows, when it can see everything."""
    overview = Overview(*(_NOTHING for _ in Overview.__dataclass_fields__))
    return families(
        Figures(
            looked_at=datetime.now(UTC),
            look_seconds=0.1,
            metrics={},
            past=Past(),
            missing={},
            overview=overview,
            backlog=Backlog(0, None),
            seconds={},
            components={},
            airflow=True,
            incidents={},
        )
    )


def told_by_scorers() -> list[Metric]:
    """Every family that a scorer shows."""
    figures = serving.Figures(serving.Now(lambda: {"toy": 1}, lambda: 0.1, lambda: 1))
    return list(text_string_to_metric_families(figures.text().decode()))


def names_of(family: Metric) -> set[str]:
    """What Prometheus knows a family by."""
    if family.type == "histogram":
        return {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return {f"{family.name}_total" if family.type == "counter" else family.name}


def sent_by_airflow() -> set[str]:
    """What Airflow may send by StatsD, as the exporter names it."""
    package = find_spec("airflow")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "_shared" / "observability" / "metrics" / "metrics_template.yaml"
    names = set()
    for metric in yaml.safe_load(file.read_text())["metrics"]:
        name = f"airflow.{metric['name']}"
        for mapping in STATSD["mappings"]:
            if match := re.fullmatch(mapping["match"], name):
                renamed = mapping["name"].replace("${1}", match[1])
                names |= {f"{renamed}{suffix}".replace(".", "_") for suffix in ("_bucket", "_sum", "_count")}
                break
        else:
            names.add(name.replace(".", "_"))
    return names


def expressions() -> Iterator[tuple[str, str]]:
    """Each question to Prometheus, and where it is asked."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        yield f"variable {variable['name']}", variable["query"]["query"]
    for rule in RULES:
        yield f"rule {rule['alert']}", rule["expr"]


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_what_is_asked_for_is_exposed(place: str, expression: str) -> None:
    ours = {name for family in [*exposed(), *told_by_scorers()] for name in names_of(family)}
    asked = set(re.findall(r"\b(?:perennial|airflow)_[a-z_]+", expression))

    assert asked, place
    assert asked - ours - sent_by_airflow() == set(), place


def test_each_figure_of_ours_is_shown_or_minded() -> None:
    shown = [family for family in [*exposed(), *told_by_scorers()] if not family.name.endswith("_created")]
    asked = {name for _, expression in expressions() for name in re.findall(r"\bperennial_[a-z_]+", expression)}
    assert [family.name for family in shown if not names_of(family) & asked] == []


def test_names_and_helps_are_as_prometheus_wants_them() -> None:
    for family in exposed():
        assert re.fullmatch(r"perennial_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert not re.search(r"(minutes|hours|days|_ms)$", family.name), "times are in seconds"


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        mine = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not mine & cells, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells |= mine
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_dashboard_and_data_source_belong_together() -> None:
    provisioning = MONITORING / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    sources = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if panel["type"] != "row"}
    assert sources == {source["uid"]}


def test_parity_of_few_rows_fires_no_rule() -> None:
    [expression] = [rule["expr"] for rule in RULES if rule["alert"] == "OnlineDiffers"]
    assert f"perennial_parity_rows >= {FEWEST}" in expression


def test_each_rule_says_how_bad_it_is_and_what_it_means() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["for"]
