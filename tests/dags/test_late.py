"""A table that comes late, in Airflow's own runs of ``ingest``."""

from __future__ import annotations

from pathlib import Path

from tests.dags.conftest import trigger_dags
from tests.unit.shop import Shop


def test_a_day_without_a_table_that_may_come_late_is_ingested_and_a_later_run_completes_it(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    settings = shop.settings
    given = {
        "PERENNIAL_STATE": str(settings.state),
        "PERENNIAL_DATA": str(settings.data),
        "PERENNIAL_DATABASE_URL": settings.database_url,
        "PERENNIAL_CATALOG_URL": settings.catalog_url,
        "PERENNIAL_WAREHOUSE": settings.warehouse,
    }
    for day in "12":
        shop.deliver("orders", day, f"a{day} {day}T10 {day}T11 5")
        shop.deliver("outcomes", day, f"o{day} {day}T10 {day}T11 1")
    outcomes, on_their_way = settings.data / "outcomes", settings.data / "on_their_way"
    outcomes.rename(on_their_way)

    def ingest(first: str, end: str) -> dict[str, list[object]]:
        return {"run": ["shop.ingest", None, {"start": first, "end": end}]}

    arrive = {"move": [str(on_their_way), str(outcomes)]}
    (states, _, later), _ = trigger_dags(
        tmp_path, [ingest("2024-01-01", "2024-01-02"), arrive, ingest("2024-01-02", "2024-01-03")], given
    )

    worked = {"check_orders", "check_outcomes", "publish_tables", "build_features"}
    assert {task for task, state in states.items() if state == "success"} == worked
    # A person named the day, so nothing overdue is looked for.
    assert {task for task, state in states.items() if state == "skipped"} == states.keys() - worked
    assert later == states
    before, own, completed = shop.deployment.ledger.publications("shop", "tables")
    assert before.inputs["awaited"] == {"outcomes": ["2024-01-01"]}
    assert own.inputs["awaited"] == {}
    assert completed.inputs["late"] == {"outcomes": 1}
    assert shop.unfinished() == []
    assert shop.rows("outcomes") == [("o1", 1), ("o2", 1)]
    assert shop.rows("features") == [("a1", 5), ("a2", 5)]
