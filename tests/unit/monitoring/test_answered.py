"""What both versions answered online counts against the former champion, and clients do not decide who is champion."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.core.settings import Settings
from perennial.ledger.records import ShadowComparison
from perennial.scoring.challengers import beside_online
from perennial.serving.online_table import entity_text
from perennial.serving.recorded import publish_requests
from perennial.serving.request_table import SCHEMA, RequestTable
from tests.unit.monitored import WEEK, World
from tests.unit.monitoring.test_shadowing import compare, score_all, told, two, world_with

TASKS = ["binary_classification", "multiclass_classification", "regression"]


def scored(place: Path, settings: Settings, task: str = "binary_classification") -> tuple[World, list[dict[str, Any]]]:
    """Two versions that are as good, and what the new one predicted in the batch."""
    world = world_with("{windows: 2}", place, settings, task)
    _, new = two(world)
    world.publish(WEEK)
    score_all(world, new)
    return world, world.predictions(WEEK)


def said(row: dict[str, Any], *, wrong: bool) -> Any:
    """A prediction as it is recorded; a wrong one says the opposite."""
    if "probabilities" in row:
        chances = json.loads(row["probabilities"])
        if wrong:
            chances = dict(zip(chances, reversed(chances.values()), strict=True))
        return {"prediction": max(chances, key=lambda name: float(chances[name])), "probabilities": chances}
    if not wrong:
        return row["prediction"]
    return 1 - row["prediction"] if 0 <= row["prediction"] <= 1 else -row["prediction"]


def record(
    world: World,
    rows: list[dict[str, Any]],
    *,
    wrong: int | None = 1,
    form: str = "key",
    given: list[str] | None = None,
    versions: tuple[int, ...] = (1, 2),
    at: datetime | None = None,
    number: int = 1,
) -> None:
    """Both answer each row online, one of them or none wrongly."""
    at = datetime.now(UTC) if at is None else at
    found = [
        {
            "model": "toy", "chunk": f"one-{number}", "place": 2 * place + version, "asked_at": at, "row": 0,
            "request_id": f"r{number}-{place}", "version": version, "role": "champion" if version == 2 else "shadow",
            "form": form, "definition": "d", "entity": entity_text([row["visit"]]), "event_time": row["moment"],
            "as_of": row["as_of"], "features_snapshot": 7, "fallback": None,
            "came": json.dumps({"stored": ["x"], "given": given or [], "missing": []}), "features": "{}",
            "prediction": json.dumps(said(row, wrong=wrong == version)), "seconds": 0.001,
        }
        for place, row in enumerate(rows)
        for version in versions
    ]  # fmt: skip
    table = RequestTable(world.settings.predictions_url)
    table.create()
    table.add("one", "toy", number, pa.RecordBatch.from_pylist(found, schema=SCHEMA))
    publish_requests(world.lake, table, "toy", run_id=f"record-{number}")


def outcome(world: World) -> tuple[str, ShadowComparison]:
    [found] = compare(world)
    assert found.rows == 420, "each entity counts once"
    return found.outcome, found


@pytest.mark.parametrize("task", TASKS)
def test_where_both_have_answered_online_these_answers_are_compared(tmp_path: Path, settings: Settings, task: str) -> None:
    world, rows = scored(tmp_path, settings, task)
    record(world, rows)
    how, found = outcome(world)
    assert how == "challenger_worse"
    assert "on the same 420 rows, 420 of them as they were answered online" in found.reason
    assert "version 1 is worse" in found.reason


def test_the_comparison_takes_the_former_champions_share_back(tmp_path: Path, settings: Settings) -> None:
    world, rows = scored(tmp_path, settings)
    spec, now = world.folder.spec, datetime.now(UTC)
    assert beside_online(spec, world.ledger, champion=2, now=now).challenger == 1
    record(world, rows)
    outcome(world)
    beside = beside_online(spec, world.ledger, champion=2, now=now)
    assert (beside.shadows, beside.challenger) == ([1], None)


def test_answers_that_agree_with_the_batch_change_nothing(tmp_path: Path, settings: Settings) -> None:
    world, rows = scored(tmp_path, settings)
    record(world, rows[:200], wrong=None)
    how, found = outcome(world)
    assert how == "no_difference"
    assert "200 of them as they were answered online" in found.reason


@pytest.mark.parametrize(
    "uncounted",
    [
        {"given": ["x"]},
        {"form": "entity"},
        {"form": "features"},
        {"versions": (1,)},
        {"at": datetime(2013, 4, 2, tzinfo=UTC)},
    ],
    ids=["given beside the key", "described by the client", "of no entity", "by one alone", "before the champion's time"],
)
def test_what_clients_say_and_what_is_no_pair_does_not_count(
    tmp_path: Path, settings: Settings, uncounted: dict[str, Any]
) -> None:
    world, rows = scored(tmp_path, settings)
    record(world, rows, **uncounted)
    how, found = outcome(world)
    assert how == "no_difference"
    assert "online" not in found.reason


def test_the_newest_answers_of_an_entity_count(tmp_path: Path, settings: Settings) -> None:
    world, rows = scored(tmp_path, settings)
    now = datetime.now(UTC)
    record(world, rows, at=now)
    record(world, rows, at=now + timedelta(seconds=1), wrong=None, number=2)
    assert outcome(world)[0] == "no_difference"


def test_online_answers_alone_do_not_roll_the_champion_back(tmp_path: Path, settings: Settings) -> None:
    world, rows = scored(tmp_path, settings)
    record(world, rows, wrong=2)
    how, found = outcome(world)
    assert how == "no_difference"
    assert "Online: " in found.reason
    assert "the champion is worse" in found.reason
    assert told(world) == []
