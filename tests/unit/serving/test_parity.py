"""What was served is computed again from what is published, and each difference is found and named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.evidence.parity import FEWEST, Consistency, Parity
from perennial.lake.publish import Lake
from perennial.ledger.store import Ledger
from perennial.serving import parity
from perennial.serving.on_demand import OnDemand
from perennial.serving.online_table import entity_texts
from perennial.serving.parity import compare, measure_parity
from perennial.serving.recorded import publish_requests
from perennial.serving.request_table import SCHEMA, RequestTable
from perennial.spec.folder import ModelFolder
from tests.unit.features.shop import hours, ingest_tables, shop, tables_of
from tests.unit.serving.test_on_demand import given as entities_of
from tests.unit.serving.test_on_demand import orders, publish

DAY = Interval.day("2013-04-06")
#: The day on which entities are asked, four times an hour, before it is published.
ASKED = [hours(5 * 24 + number / 4) for number in range(24)]


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return orders(tmp_path, online={"parity": 0.95})


@pytest.fixture(autouse=True)
def champion(monkeypatch: pytest.MonkeyPatch, folder: ModelFolder) -> None:
    """A champion whose features are those of the folder, without a registry: what is measured needs no stored model."""
    own = SimpleNamespace(folder=folder, current=folder, is_current=True)
    monkeypatch.setattr(parity, "own_folder", lambda *_: own)
    monkeypatch.setattr(Ledger, "champion", lambda *_: 1)


def record(
    folder: ModelFolder, url: str, served: pa.Table, *, how: str = "computed", definition: str | None = None, **changed: Any
) -> None:
    """Record rows of features as if they had been served."""
    spec, names = folder.spec, folder.spec.features.names
    rows = []
    for place, (row, entity) in enumerate(
        zip(served.to_pylist(), entity_texts(served.select(spec.entity_table.key)), strict=True)
    ):
        rows.append(
            {
                "model": spec.name, "chunk": f"one-{how}", "place": place,
                "asked_at": datetime(2026, 1, 1, 1, tzinfo=UTC), "request_id": f"r{place}", "row": 0,
                "version": 1, "role": "champion", "form": "entity",
                "definition": definition or folder.features_digest, "entity": entity, "event_time": row["placed"],
                "as_of": row["as_of"], "features_snapshot": None, "fallback": None,
                "came": json.dumps({how: names, "given": []}), "features": json.dumps({name: row[name] for name in names}),
                "prediction": "0.5", "seconds": 0.01, **changed,
            }
        )  # fmt: skip
    table = RequestTable(url)
    table.create()
    table.add(f"one-{how}", spec.name, 1, pa.RecordBatch.from_pylist(rows, schema=SCHEMA))


def to_come(count: int = len(ASKED)) -> pa.Table:
    """Orders of the sixth day, which is not published yet."""
    return pa.table(
        {
            "order_id": [f"o{(one - hours(0)) / timedelta(hours=1):g}" for one in ASKED[:count]],
            "placed": [one.isoformat() for one in ASKED[:count]],
            "customer": ["ab"[number % 2] for number in range(count)],
            "amount": [str((one - hours(0)) / timedelta(hours=1)) for one in ASKED[:count]],
        }
    )


def serve(folder: ModelFolder, lake: Lake, entities: pa.Table) -> pa.Table:
    """The features of entities, each asked when it is placed."""
    asked = OnDemand(lake, clock=lambda: hours(6 * 24))
    return pa.concat_tables([asked.features(folder, entities.slice(row, 1)) for row in range(entities.num_rows)])


def publish_asked(lake: Lake, ledger: Ledger, folder: ModelFolder, *, late: Sequence[dict[str, Any]] = ()) -> None:
    """Publish the sixth day; ``late`` are more rows of ``orders`` in it."""
    tables = tables_of(folder, [(one - hours(0)) / timedelta(hours=1) for one in ASKED])
    if late:
        schema = tables["orders"].schema
        tables["orders"] = pa.concat_tables([tables["orders"], pa.Table.from_pylist(list(late), schema=schema)])
    ingest_tables(lake, ledger, folder, DAY, tables, "sixth")


def measure(folder: ModelFolder, lake: Lake, ledger: Ledger, url: str) -> list[Parity]:
    publish_requests(lake, RequestTable(url), folder.spec.name, run_id="requests")
    parts = SimpleNamespace(lake=lake, ledger=ledger, registry=None)
    return measure_parity(folder, cast(Deployment, parts), run_id="requests")


def url_of(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'predictions.db'}"


def test_what_was_stored_is_what_the_tables_give(tmp_path: Path, lake: Lake, ledger: Ledger, folder: ModelFolder) -> None:
    made = publish(lake, ledger, folder)
    record(folder, url_of(tmp_path), made.slice(8), how="stored")

    found = measure(folder, lake, ledger, url_of(tmp_path))

    assert [(one.interval, one.rows, one.equal, one.unchecked) for one in found] == [
        (f"2013-04-0{day}", 4, 4, []) for day in (3, 4, 5)
    ]
    assert all(one == Consistency(equal=4) for day in found for one in day.features.values())
    assert set(found[-1].features) == set(folder.spec.features.names)


def test_a_row_that_is_published_later_than_it_was_known_is_found_by_the_features_that_it_changes(
    tmp_path: Path, lake: Lake, ledger: Ledger, folder: ModelFolder
) -> None:
    publish(lake, ledger, folder)
    record(folder, url_of(tmp_path), serve(folder, lake, to_come()))
    assert measure(folder, lake, ledger, url_of(tmp_path)) == []  # their day is not published

    publish_asked(lake, ledger, folder)
    [found] = measure(folder, lake, ledger, url_of(tmp_path))

    # The first four orders of the day were known to be sent back when the last four were asked, and were not there yet.
    assert (found.interval, found.rows, found.equal) == (DAY.key, len(ASKED), len(ASKED) - 4)
    unequal = {name: one.unequal for name, one in found.features.items() if one.unequal}
    assert "since" in unequal
    assert "customer" not in unequal
    assert found.is_below
    assert found.worst[0] == "sent_back (4 different)"
    [told] = [entry.alert for entry in ledger.alerts() if entry.alert.kind == "online_differs"]
    assert "sent_back (4 different)" in told.text
    [kept] = ledger.parities("returns")
    assert (kept.definition, kept.interval, kept.measured) == (folder.features_digest, DAY, found)


def test_measuring_again_changes_nothing_and_a_good_measure_ends_the_alert(
    tmp_path: Path, lake: Lake, ledger: Ledger, folder: ModelFolder
) -> None:
    publish(lake, ledger, folder)
    record(folder, url_of(tmp_path), serve(folder, lake, to_come()))
    publish_asked(lake, ledger, folder)
    first = measure(folder, lake, ledger, url_of(tmp_path))
    assert measure(folder, lake, ledger, url_of(tmp_path)) == first
    assert [entry.alert.kind for entry in ledger.alerts()] == ["online_differs"]
    assert len(ledger.parities("returns")) == 1

    # The next day its rows were there when it was asked.
    day = Interval.day("2013-04-07")
    ingest_tables(lake, ledger, folder, day, tables_of(folder, [144 + number / 4 for number in range(24)]), "seventh")
    record(folder, url_of(tmp_path), serve(folder, lake, entities_of(lake, ledger, day)), how="stored")
    [_, last] = measure(folder, lake, ledger, url_of(tmp_path))

    assert (last.interval, last.rows, last.equal) == (day.key, 24, 24)
    assert [entry.alert.kind for entry in ledger.alerts()] == ["online_differs", "recovered"]


def test_an_entity_that_others_could_not_know_of_is_asked_alone(
    tmp_path: Path, lake: Lake, ledger: Ledger, folder: ModelFolder
) -> None:
    publish(lake, ledger, folder)
    # All are asked before any is placed, so none of them could count for another one.
    asked = OnDemand(lake, clock=lambda: hours(5 * 24))
    served = pa.concat_tables([asked.features(folder, to_come().slice(row, 1)) for row in range(FEWEST)])
    record(folder, url_of(tmp_path), served)
    publish_asked(lake, ledger, folder)

    [found] = measure(folder, lake, ledger, url_of(tmp_path))

    assert (found.rows, found.equal) == (FEWEST, FEWEST), found.worst


def test_what_the_client_gave_and_other_definitions_are_not_compared(
    tmp_path: Path, lake: Lake, ledger: Ledger, folder: ModelFolder
) -> None:
    made = publish(lake, ledger, folder).slice(16)
    names = folder.spec.features.names
    wrong = json.dumps(dict.fromkeys(names))
    record(folder, url_of(tmp_path), made, features=wrong, came=json.dumps({"given": names, "missing": []}))
    record(folder, url_of(tmp_path), made, how="other", definition="0" * 64, features=wrong)

    assert measure(folder, lake, ledger, url_of(tmp_path)) == []


@pytest.mark.parametrize("role", ["shadow", "challenger"])
def test_only_what_the_champion_answered_is_compared(
    tmp_path: Path, lake: Lake, ledger: Ledger, folder: ModelFolder, role: str
) -> None:
    made = publish(lake, ledger, folder).slice(16)
    wrong = json.dumps(dict.fromkeys(folder.spec.features.names))
    record(folder, url_of(tmp_path), made, features=wrong, role=role)

    assert measure(folder, lake, ledger, url_of(tmp_path)) == []


def test_features_that_depend_on_others_are_left_out(
    tmp_path: Path, lake: Lake, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = "SELECT order_id, rank() OVER (ORDER BY placed) AS place, amount FROM entities"
    folder = shop(tmp_path, sql, online={}, features={"numeric": ["place", "amount"], "lookback": "2d"})
    own = SimpleNamespace(folder=folder, current=folder, is_current=True)
    monkeypatch.setattr(parity, "own_folder", lambda *_: own)
    made = publish(lake, ledger, folder).slice(16)
    record(folder, url_of(tmp_path), made, how="stored")

    [found] = measure(folder, lake, ledger, url_of(tmp_path))

    assert (found.unchecked, list(found.features), found.equal) == (["place"], ["amount"], 4)


VALUES = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=20))
def test_each_value_is_equal_missing_extra_or_different_to_the_last_bit(pairs: list[tuple[float | None, float | None]]) -> None:
    served = [{"features": json.dumps({"x": ours}), "came": '{"stored":["x"]}'} for ours, _ in pairs]
    found = compare(["x"], [], served, [{"x": theirs} for _, theirs in pairs], day=DAY, bound=0.9)

    def same(one: float | None, other: float | None) -> bool:
        if one is None or other is None:
            return one is other
        return float(one).hex() == float(other).hex()

    counted = found.features["x"]
    assert counted.equal == found.equal == sum(same(*pair) for pair in pairs)
    assert counted.missing == sum(ours is None and theirs is not None for ours, theirs in pairs)
    assert counted.extra == sum(ours is not None and theirs is None for ours, theirs in pairs)
    assert counted.equal + counted.unequal == found.rows == len(pairs)


def test_the_sample_is_bounded_and_the_same_each_time(
    tmp_path: Path, lake: Lake, ledger: Ledger, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(lake, ledger, folder)
    record(folder, url_of(tmp_path), made.slice(8), how="stored")
    monkeypatch.setattr(parity, "MOST_ROWS", 2)
    first = measure(folder, lake, ledger, url_of(tmp_path))
    assert [one.rows for one in first] == [2, 2, 2]
    assert measure(folder, lake, ledger, url_of(tmp_path)) == first


def test_few_rows_are_measured_and_not_judged() -> None:
    assert not Parity(bound=0.99, rows=FEWEST - 1, equal=0).is_below
    assert Parity(bound=0.99, rows=FEWEST, equal=0).is_below
