"""How all models are, in a few lines for a terminal: the board's rows, and for each that needs a person what to do.

It decides nothing itself: what is wrong with a model, and which model comes first, is what :mod:`perennial.reports.board` says.
"""

from __future__ import annotations

from typing import Any

from perennial.reports.board import ATTENTION, Board, Row, last_day, span

#: Most lines, unless all models are asked for.
LINES = 10


def lines(board: Board, *, most: int | None = LINES) -> list[str]:
    """The board as lines: how many models there are, then each model with what is wrong and what to do, the most urgent first.

    Args:
        board: the board.
        most: most lines; models that do not fit are counted in the last one. None: all models.
    """
    if not board.rows:
        return ["There are no models yet: `perennial new` drafts one from a file."]
    counts = [f"{board.count(kind)} {kind}" for kind in ATTENTION if board.count(kind)]
    found = [f"{_models(len(board.rows))}: {', '.join(counts)}. Read at {board.at:%Y-%m-%d %H:%M} UTC"]
    width = max(len(row.model) for row in board.rows)
    for number, row in enumerate(board.rows):
        left = len(board.rows) - number
        said = _of_row(row, width)
        # The last line is kept for those that do not fit.
        if most is not None and len(found) + len(said) > (most if left == 1 else most - 1):
            rest = [f"{sum(one.attention == kind for one in board.rows[number:])} {kind}" for kind in ATTENTION]
            told = ", ".join(one for one in rest if not one.startswith("0 "))
            found.append(f"and {left:,} more ({told}): perennial status --all")
            break
        found += said
    return found


def to_json(board: Board) -> dict[str, Any]:
    """The board as plain values, and for each model ``do``: what to do, empty if nothing is; and ``waits``."""
    plain = board.to_json()
    for shown, row in zip(plain["rows"], board.rows, strict=True):
        shown["do"], shown["waits"] = what_to_do(row), waits(row)
    return plain


def what_to_do(row: Row) -> str:
    """What a person does about the first thing that is wrong with a model (``Row.why``); empty if nothing is."""
    model, judged, trained = row.model, row.judged, row.trained
    if row.attention == "broken":
        return f"correct the folder; perennial check {model} reads it again"
    if row.refused:
        return f"correct the source, then trigger {model}.load for these days; perennial alerts {model} says what was refused"
    if judged and judged.severity == "critical":
        return (
            f"perennial performance {model}; if it matters: perennial rollback {model} --reason TEXT, or trigger {model}.train"
        )
    if trained and trained.outcome == "refused" and not row.champion:
        return f"perennial explain {model} {trained.version} says which gate refused it: {trained.reason}"
    if row.told.urgent:
        return f"perennial alerts {model}"
    if judged and (judged.verdict != "ok" or judged.severity == "warning"):
        return f"perennial performance {model}; the reason: {judged.reason}"
    if trained and trained.outcome == "waiting":
        return f"perennial explain {model} {trained.version}; then answer the run of {model}.train in Airflow"
    if row.attention == "warning" and row.held:
        return row.held[0].release
    if row.attention == "warning" and row.told.undelivered:
        return "perennial alerts --waiting says why"
    if row.attention == "warning":
        return f"see why {model}.score has not run, or run perennial score {model} START END for the missing days"
    if row.attention == "new":
        return f"trigger {model}.train" if row.data_until else f"trigger {model}.load with the days of its history"
    return ""


def waits(row: Row) -> list[str]:
    """What waits for somebody or something: an approval, tables, what is held back, days to score again, alerts."""
    found = []
    if row.trained and row.trained.outcome == "waiting":
        found.append(f"version {row.trained.version} for an approval")
    found += [f"{table.table} of {table.waits} for its delivery" for table in row.tables if table.waits]
    found += [f"{held.words}, until it is released" for held in row.held]
    if row.outdated:
        found.append(f"{', '.join(span(key) for key in row.outdated)} for new predictions")
    if row.told.undelivered:
        found.append(f"{row.told.undelivered} alerts for their delivery")
    return found


def _of_row(row: Row, width: int) -> list[str]:
    if row.attention == "broken":
        said = []
    else:
        champion, judged = row.champion, row.judged
        said = [f"champion {champion.version} since {champion.since:%-d %b %Y}, {champion.how}" if champion else "no champion"]
        said.append(f"scored to {last_day(row.predictions_until)}" if row.predictions_until else "not scored yet")
        said.append(f"{judged.verdict} in {span(judged.window)}" if judged else "not judged yet")
        if waiting := waits(row):
            said.append(f"waits: {', '.join(waiting)}")
    found = [f"{row.model:<{width}}  {row.attention:<8}  {'; '.join(said) or row.why}"]
    if do := what_to_do(row):
        found.append(f"{'':<{width}}  {do if row.attention == 'broken' else f'{row.why}: {do}'}")
    return found


def _models(count: int) -> str:
    return f"{count:,} model{'' if count == 1 else 's'}"
