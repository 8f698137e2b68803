"""How all models are, in ten lines that agree with the board."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from perennial.core.errors import SpecError
from perennial.ledger.store import Ledger
from perennial.reports.board import Board, ChampionCell, Held, Row
from perennial.reports.status import LINES, lines, to_json, what_to_do
from tests.unit.reports.test_board import ENERGY, folder_of, judge, look, promote, publish, register

NOW = datetime(2024, 2, 1, 8, tzinfo=UTC)
FINE = Row(
    "calm", "owner", "", "fine", "", "link", champion=ChampionCell(3, NOW, "by its gates", None), data_until=NOW,
    predictions_until=NOW,
)  # fmt: skip


def test_each_model_has_its_champion_its_last_day_and_its_last_verdict(ledger: Ledger) -> None:
    register(ledger, 1)
    promote(ledger, 1)
    publish(ledger, "tables", "2024-01-16")
    publish(ledger, "predictions", "2024-01-16")
    judge(ledger, "2024-01-16")
    board = look(ledger, ENERGY)
    [head, row] = lines(board)
    since = f"{board.rows[0].champion.since:%-d %b %Y}" if board.rows[0].champion else ""
    assert head.startswith("1 model: 1 fine. Read at ")
    assert row == (f"energy_load  fine      champion 1 since {since}, by its gates; scored to 16 Jan 2024; ok in 16 Jan 2024")


def test_what_is_wrong_stands_below_its_model_with_what_to_do(ledger: Ledger) -> None:
    register(ledger, 1)
    promote(ledger, 1)
    publish(ledger, "tables", "2024-01-16")
    publish(ledger, "predictions", "2024-01-16")
    judge(ledger, "2024-01-16", "drift", severity="critical")
    told = lines(look(ledger, ENERGY))
    assert "drift in 16 Jan 2024" in told[1]
    assert (
        told[2].strip().startswith("drift that matters: perennial performance energy_load; if it matters: perennial rollback")
    )


def test_what_waits_for_a_person_is_told(ledger: Ledger) -> None:
    register(ledger, 1)
    promote(ledger, 1)
    register(ledger, 2)
    told = "\n".join(lines(look(ledger, folder_of("energy_load", promotion="approval"))))
    assert "waits: version 2 for an approval" in told
    assert "then answer the run of energy_load.train in Airflow" in told


def test_a_broken_folder_is_told_with_its_error(ledger: Ledger) -> None:
    told = lines(look(ledger, broken={"bad": SpecError("/models/bad/model.yaml:3: no such key")}))
    assert told[1] == "bad  broken    bad/model.yaml:3: no such key"
    assert told[2].endswith("perennial check bad reads it again")


def test_a_model_without_data_or_champion_is_told_to_begin(ledger: Ledger) -> None:
    assert lines(look(ledger, ENERGY))[2].strip() == "no data yet: trigger energy_load.load with the days of its history"
    publish(ledger, "tables", "2024-01-16")
    assert lines(look(ledger, ENERGY))[2].strip() == "not trained yet: trigger energy_load.train"


@pytest.mark.parametrize("count", [1, 4, 9, 10, 60])
def test_ten_lines_are_enough_however_many_models_there_are(count: int) -> None:
    board = Board(NOW, tuple(replace(FINE, model=f"calm_{number}") for number in range(count)))
    told = lines(board)
    assert len(told) == min(count + 1, LINES)
    if count > 9:
        assert told[-1] == f"and {count - 8} more ({count - 8} fine): perennial status --all"
    assert len(lines(board, most=None)) == count + 1


def test_what_is_held_back_is_told_with_how_to_release_it() -> None:
    held = Held("data", "2024-01-08--2024-01-15", NOW, "odd", "perennial data release calm 2024-01-08 2024-01-15", "link")
    row = replace(FINE, attention="warning", why=held.words, held=(held,))
    assert what_to_do(row) == held.release
    assert "8 - 14 Jan 2024 withheld, until it is released" in lines(Board(NOW, (row,)))[1]


def test_json_has_the_boards_rows_and_what_to_do(ledger: Ledger) -> None:
    publish(ledger, "tables", "2024-01-16")
    board = look(ledger, ENERGY)
    shown = json.loads(json.dumps(to_json(board)))
    [row] = shown["rows"]
    assert {name: value for name, value in row.items() if name not in ("do", "waits")} == board.to_json()["rows"][0]
    assert row["do"] == "trigger energy_load.train"


def test_without_models_it_says_how_to_begin() -> None:
    assert lines(Board(NOW, ())) == ["There are no models yet: `perennial new` drafts one from a file."]
