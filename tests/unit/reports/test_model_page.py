"""What the page of a model says, and that it takes the same few looks at the ledger however long the model has lived."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perennial.alerts import of_models, of_operation
from perennial.core.intervals import Interval, utc
from perennial.evidence.decision import GateDecision, GateResult
from perennial.evidence.evaluation import Contender, Evaluation, GainOverChampion, Operation
from perennial.evidence.monitoring import Constant
from perennial.evidence.parity import Consistency, Parity
from perennial.evidence.training import CodeState, TrainingRecord
from perennial.evidence.verdict import ColumnDrift, Estimate, VerdictDetails
from perennial.ledger import life as of_life
from perennial.ledger.records import Approval, Promotion, VersionRecord
from perennial.ledger.store import Ledger
from perennial.reports import board, drawing, model_page
from perennial.reports.drawing import Mark, Place
from perennial.reports.model_page import ModelPage
from perennial.spec.folder import ModelFolder
from tests.unit.reports.test_board import ENERGY, LATER, PAGES, folder_of, promote, publish, statements

MODEL = "energy_load"
MONDAY = utc("2024-01-01")


def week(number: int) -> Interval:
    start = MONDAY + timedelta(days=7 * number)
    return Interval(start, start + timedelta(days=7))


def look(ledger: Ledger, folder: ModelFolder = ENERGY, *, after: timedelta = LATER) -> ModelPage:
    now = datetime.now(UTC) + after
    life = ledger.life(folder.spec.name, windows=model_page.WINDOWS, alerts_since=now - board.ALERTS_FOR)
    return model_page.compose(life, folder, now=now, pages=PAGES)


def register(ledger: Ledger, version: int, *, as_of: datetime, gain: float | None = None, refused: str = "") -> None:
    decision = GateDecision(not refused, [GateResult("champion", not refused, refused)], "boosting", None)
    training = replace(
        TrainingRecord.from_json({"as_of": as_of.isoformat(), "run_id": f"{MODEL}.train/run-{version}"}), candidate="boosting"
    )
    evaluation = replace(
        Evaluation.from_json({}),
        metric="rmse",
        candidate=replace(Contender.from_json({}), metrics={"rmse": 2.0}),
        champion=None if gain is None else replace(Contender.from_json({}), metrics={"rmse": 2.0 + gain}),
        comparison=None if gain is None else _gain(gain),
        operation=Operation(latency=3.5),
    )
    ledger.record_version(
        VersionRecord(
            MODEL, version, f"run-{version}", "s", "f", {}, training, evaluation, decision, CodeState(), datetime.now(UTC)
        )
    )


def _gain(gain: float) -> GainOverChampion:
    return GainOverChampion(gain, gain - 0.1, gain + 0.1, gain - 0.1, gain + 0.1, 0.0, 20, "day", 100, 0, 0.95)


def column(name: str, score: float | None, status: Any = "stable") -> ColumnDrift:
    return ColumnDrift(name, "numeric", score, 0.25, status, 0.0, 0.0, "")


def judge(
    ledger: Ledger, number: int, *columns: ColumnDrift, version: int = 1, verdict: Any = "ok", estimated: float | None = 2.0
) -> None:
    estimate = Estimate("rmse", {"rmse": estimated}, usual=[1.5, 2.5]) if estimated is not None else None
    ledger.record_verdict(
        model=MODEL, interval=week(number), version=version, verdict=verdict, reasons=[f"{len(columns)} columns were compared"],
        details=VerdictDetails(severity="none" if verdict == "ok" else "warning", columns=list(columns), estimate=estimate),
        report=f"{MODEL}/drift/{week(number).key}/report.html", run_id="monitor",
    )  # fmt: skip


def measure(ledger: Ledger, number: int, value: float, *, version: int = 1, rows: int = 50, constant: float = math.nan) -> None:
    ledger.record_performance(
        model=MODEL, interval=week(number), version=version, metrics={"rmse": value}, rows=rows, coverage=0.9,
        as_of=week(number).end, run_id="monitor",
        constant=Constant({} if math.isnan(constant) else {"rmse": constant}),
    )  # fmt: skip


def live(ledger: Ledger, weeks: int = 30) -> None:
    """A life in which each part of the page has something to show."""
    columns = ("prediction", "hour", "temperature", "load_yesterday", "load_a_week_ago", "is_holiday")
    for number in range(weeks):
        version = 1 if number < 10 else 2 if number < 20 or number > 24 else 3
        drifted = number in (8, 9, 22)
        found = [
            column(name, 0.05 + 0.03 * place + 0.02 * math.sin(number + place) + (0.4 if drifted and place == 2 else 0))
            for place, name in enumerate(columns)
        ]
        found = [replace(one, status="drifted") if one.score and one.score >= one.threshold else one for one in found]
        wave, shifted = 0.2 * math.sin(number / 3), 0.2 * math.sin(number / 3 + 0.3)
        judge(ledger, number, *found, version=version, verdict="drift" if drifted else "ok", estimated=2 + wave)
        if number < weeks - 2:
            measure(ledger, number, 2 + shifted + (0.5 if drifted else 0), version=version, constant=3.1)
    for version, end, gain in ((1, 0, None), (2, 10, 0.3), (3, 20, 0.02)):
        register(ledger, version, as_of=week(end).start, gain=gain)
    register(ledger, 4, as_of=week(28).start, gain=0.0055, refused="the gain +0.0055 may be none: it lies around zero")
    promote(ledger, 1)
    promote(ledger, 2, over=1)
    promote(ledger, 3, over=2)
    promote(ledger, 2, over=3, action="rollback", actor="airflow:ann")
    for day in range(1, 20):
        rows = {"read": 100, "published": 97, "quarantined": 2 if day == 5 else 0, "late": 1}
        publish(ledger, "tables", f"2024-07-{day:02}", inputs={"rows": {"hours": rows}}, hours=97, readings=97)
    ledger.record_refusal(
        model=MODEL, interval=Interval.day("2024-07-20"), run_id="r", reasons=["hours: 40 % of the rows fail load_mw >= 0"],
        rows={"hours": 90},
    )  # fmt: skip
    for asked, end in ((True, 22), (False, 23)):
        ledger.record_retraining(
            model=MODEL, window_end=week(end).end, asked=asked, cause="drift", reason="2 of the last 3 windows drifted",
            run_id="m",
        )  # fmt: skip
    failed = of_operation.run_failed(
        MODEL, stage="score", run_id="r", interval=None, error="no such column", subject="failed/x"
    )
    ledger.record_alert(failed, "x")
    ledger.record_alert(of_models.approval_wanted(MODEL, version=3, champion=2, until=utc("2024-06-01")), "y")
    ledger.record_parity(
        model=MODEL, definition="f", interval=Interval.day("2024-07-19"), run_id="r",
        measured=Parity(bound=0.99, interval="2024-07-19", rows=200, equal=198, features={"hour": Consistency(198, 2)}),
    )  # fmt: skip
    publish(ledger, "requests", "2024-07-19", online_requests=1234)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> ModelPage:
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('life') / 'perennial.db'}")
    ledger.migrate()
    live(ledger)
    return look(ledger)


# --- the head --------------------------------------------------------------------------------------------------------


def test_a_model_without_anything_has_a_page_that_says_what_to_do(ledger: Ledger) -> None:
    page = look(ledger)
    assert page.state == "It has no champion yet: no data yet."
    assert (page.performance, page.drift, page.waiting, page.online) == (None, None, None, None)
    assert {step.name for step in page.actions} >= {"Train", "Roll back", "Promote", "Score days"}
    publish(ledger, "tables", "2024-01-01", hours=1, readings=1)
    assert [step.name for step in look(ledger).now] == ["Train it"]


def test_the_head_says_how_the_model_is_and_what_to_do_first(page: ModelPage) -> None:
    assert page.state.startswith("Somebody should act now: data of 20 Jul 2024 refused. Version 2 has predicted for ")
    assert page.now[0].name == "Data of 20 Jul 2024 are refused"
    assert page.now[0].link == "/dags/energy_load.load"
    assert page.now[-1] == model_page.Step("score failed", "See the alerts below.", "#alerts")


def test_a_version_that_waits_leads_to_its_answer_with_gain_and_deadline(ledger: Ledger) -> None:
    asking = folder_of(MODEL, promotion="approval")
    register(ledger, 1, as_of=week(0).start)
    promote(ledger, 1)
    register(ledger, 2, as_of=week(1).start, gain=0.3)
    question = look(ledger, asking).waiting
    assert question is not None
    assert (question.version, question.gain) == (2, "+0.3 (+0.2 to +0.4)")
    assert question.answer == "/dags/energy_load.train/runs/run-2/tasks/ask_approval/required_actions"
    assert question.until == question.asked + asking.spec.approval.within
    assert look(ledger, asking).now[0].name == "Answer about version 2"
    told = Approval(MODEL, 2, "refused", "airflow:ann", "not now", datetime.now(UTC), "r")
    ledger.record_approval(told)
    answered = look(ledger, asking)
    assert answered.waiting is None
    assert (answered.versions[0].outcome, answered.versions[0].refused_by) == ("refused", "airflow:ann")


# --- performance -----------------------------------------------------------------------------------------------------


def test_each_window_has_what_was_measured_estimated_usual_and_the_baseline(page: ModelPage) -> None:
    assert page.performance is not None
    first, newest = page.performance.windows[0], page.performance.windows[-1]
    assert (first.words, first.version, first.usual, first.baseline, first.rows) == ("1 - 7 Jan 2024", 1, (1.5, 2.5), 3.1, 50)
    assert first.report == "/perennial/reports/energy_load/drift/2024-01-01--2024-01-08/report.html"
    assert (newest.realised, newest.estimated is not None, newest.verdict) == (None, True, "ok")
    assert not page.performance.greater_is_better


def test_marks_stand_where_another_version_began_to_predict_and_where_one_was_refused(page: ModelPage) -> None:
    assert page.performance is not None
    marks = [(mark.place, mark.sign, mark.kind) for mark in page.performance.marks]
    assert marks == [(10, "P", "change"), (20, "P", "change"), (25, "R", "rollback"), (28, "X", "refused")]
    assert "before 24 - 30 Jun 2024: rolled back to v2" in [mark.told for mark in page.performance.marks]


def test_a_window_in_which_the_champion_changed_shows_the_version_with_most_labels(ledger: Ledger) -> None:
    measure(ledger, 0, 9.0, version=1, rows=10)
    measure(ledger, 0, 2.0, version=2, rows=40)
    performance = look(ledger).performance
    assert performance is not None
    assert [(window.version, window.realised) for window in performance.windows] == [(2, 2.0)]


# --- the drawing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "levels"),
    [
        (0.71, 0.78, [0.7, 0.72, 0.74, 0.76, 0.78]),
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (1190, 2310, [1000.0, 1500.0, 2000.0, 2500.0]),
    ],
)
def test_levels_are_round_and_span_what_is_drawn(low: float, high: float, levels: list[float]) -> None:
    found = drawing.levels_between(low, high)
    assert found == levels
    assert found[0] <= low
    assert high <= found[-1]


@pytest.mark.parametrize(("value"), [0.0, 3.0, -2.5, 1e-9, 1e12])
def test_one_value_alone_has_levels_too(value: float) -> None:
    found = drawing.levels_between(value, value)
    assert len(found) >= 2
    assert found[0] <= value <= found[-1]


def test_labels_have_as_many_digits_as_they_need() -> None:
    assert [drawing.as_label(one, [0.7, 0.725, 0.75]) for one in (0.7, 0.725)] == ["0.700", "0.725"]
    assert drawing.as_label(1500.0, [1000.0, 1500.0]) == "1,500"


def test_a_greater_value_is_drawn_higher_and_a_gap_stays_a_gap() -> None:
    values = (1.0, 3.0, None, 2.0)
    found = drawing.chart([Place(str(n), "", realised=one) for n, one in enumerate(values)], [], width=500, height=200)
    assert found is not None
    heights = [dot.y for dot in found.dots]
    assert heights[1] < heights[2] < heights[0]
    assert len(found.realised) == 1, "one line up to the gap, and a dot alone"
    assert all(found.left <= dot.x <= found.right and found.top <= dot.y <= found.bottom for dot in found.dots)


def test_a_baseline_far_away_does_not_flatten_the_lines() -> None:
    def places(reference: float) -> list[Place]:
        return [Place(str(n), "", realised=1 + n / 10, reference=reference) for n in range(4)]

    far, near = (drawing.chart(places(one), [], width=500, height=200) for one in (50.0, 1.4))
    assert far is not None
    assert near is not None
    assert (far.left_out, far.reference) == (True, ())
    assert (near.left_out, len(near.reference)) == (False, 1)


def test_marks_of_one_moment_stand_above_each_other() -> None:
    places = [Place(str(n), "", realised=float(n)) for n in range(3)]
    marks = [Mark(1, "P", "change", "a"), Mark(1, "X", "refused", "b"), Mark(1, "X", "refused", "there is no room for it")]
    found = drawing.chart(places, marks, width=500, height=200)
    assert found is not None
    assert [(sign.sign, sign.row) for sign in found.signs] == [("P", 0), ("X", 1)]


def test_labels_of_a_narrow_chart_are_fewer_and_do_not_meet() -> None:
    places = [Place(f"{n} Jan 24", "", realised=float(n)) for n in range(52)]
    wide, narrow = (drawing.chart(places, [], width=width, height=200) for width in (1120, 450))
    assert wide is not None
    assert narrow is not None
    for found in (wide, narrow):
        apart = [after[0] - before[0] for before, after in zip(found.ticks, found.ticks[1:], strict=False)]
        assert min(apart) >= 90
    assert len(narrow.ticks) < len(wide.ticks)
    assert wide.ticks[-1][1] == "51 Jan 24"


def test_nothing_measured_draws_nothing() -> None:
    assert drawing.chart([], [], width=500, height=200) is None
    assert drawing.chart([Place("a", "", usual=(1.0, 2.0))], [], width=500, height=200) is None


# --- drift -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "level"), [(0.0, 0), (0.49, 0), (0.5, 1), (0.75, 2), (0.99, 2), (1.0, 3), (2.0, 4), (90.0, 4)]
)
def test_a_cell_tells_how_near_a_column_is_to_its_threshold(ratio: float, level: int) -> None:
    assert model_page.level(ratio) == level


def test_the_columns_that_are_worst_now_come_first_and_numbers_tell_which_drifted(ledger: Ledger) -> None:
    judge(ledger, 0, column("a", 0.5, "drifted"), column("b", 0.1))
    judge(ledger, 1, column("a", 0.1), column("b", 0.3, "drifted"), column("new", None, "unusable"), verdict="drift")
    drift = look(ledger).drift
    assert drift is not None
    assert [name for name, _ in drift.columns] == ["b", "a", "new"]
    words = {name: [cell.word if cell else None for cell in cells] for name, cells in drift.columns}
    assert words == {"b": ["", "1.2"], "a": ["2.0", ""], "new": [None, "?"]}
    told = drift.columns[0][1][1]
    assert told is not None
    assert told.told == "b, 8 - 14 Jan 2024: distance 0.3, threshold 0.25, drifted"
    assert (drift.windows[1].verdict, drift.windows[1].drifted, drift.windows[1].worst) == (
        "drift", 1, "b, 1.2 times its threshold",
    )  # fmt: skip


# --- data ------------------------------------------------------------------------------------------------------------


def test_each_day_of_a_table_says_what_came_of_its_rows(page: ModelPage) -> None:
    refused, newest = page.data.days[0], next(day for day in page.data.days if day.table == "hours" and not day.refused)
    assert (refused.words, refused.read, refused.refused) == ("20 Jul 2024", 90, "40 % of the rows fail load_mw >= 0")
    assert (newest.words, newest.read, newest.published, newest.late) == ("19 Jul 2024", 100, 97, 1)
    assert newest.docs == "/perennial/reports/energy_load/checks/hours/2024-07-19.html"
    assert sum(day.quarantined or 0 for day in page.data.days) == 2


def test_a_refusal_is_gone_once_what_covers_it_is_published(ledger: Ledger) -> None:
    live(ledger)
    publish(ledger, "tables", "2024-07-20", hours=90)
    assert not any(day.refused for day in look(ledger).data.days)


def test_days_that_did_not_come_are_named(ledger: Ledger) -> None:
    for day in ("2024-07-01", "2024-07-03"):
        publish(ledger, "tables", day, hours=10)
    assert any("2 Jul 2024 missing" in gap for gap in look(ledger).data.gaps)


# --- champions, versions, retraining, online -------------------------------------------------------------------------


def test_champions_are_told_with_who_why_and_until_when(page: ModelPage) -> None:
    told = [(reign.version, reign.action, reign.by, reign.until is None) for reign in page.reigns]
    assert told == [
        (2, "again, rolled back from v3", "ann", True), (3, "promoted in place of v2", "its gates", False),
        (2, "promoted in place of v1", "its gates", False), (1, "promoted", "its gates", False),
    ]  # fmt: skip


def test_each_version_has_its_gain_its_outcome_and_the_gate_that_refused_it(page: ModelPage) -> None:
    told = {version.version: (version.outcome, version.gain, version.refused_by) for version in page.versions}
    assert told == {
        4: ("refused", "+0.0055 (-0.0945 to +0.1055)", "champion"),
        3: ("rolled back", "+0.02 (-0.08 to +0.12)", "ann"),
        2: ("champion", "+0.3 (+0.2 to +0.4)", ""),
        1: ("former champion", "not compared with a champion", ""),
    }
    assert page.versions[0].why.startswith("the gain +0.0055 may be none")
    assert [step.link for step in page.versions[0].links] == [
        "http://mlflow.test/#/models/energy_load/versions/4?workflowType=machine_learning",
        "http://mlflow.test/#/runs/run-4?workflowType=machine_learning",
        "/dags/energy_load.train/runs/run-4",
    ]


def test_open_alerts_come_first_with_what_to_do(page: ModelPage) -> None:
    assert [(told.title, told.is_open) for told in page.alerts] == [
        ("score failed", True), ("version 3 waits for approval", False),
    ]  # fmt: skip
    assert page.alerts[0].todo.startswith("Open its log")


def test_retraining_says_how_much_is_left_and_what_was_answered(page: ModelPage) -> None:
    budget, cooldown, breaker = page.retraining.rules
    assert budget.startswith("Budget: 2 of 2 trainings in the 30 days until 16 Jun 2024")
    assert "the last training was as of 15 Jul 2024" in cooldown
    assert breaker == "Breaker: 1 of 3 requests in a row led to no promotion; it is closed."
    assert [answer[1] for answer in page.retraining.answers] == ["did not ask", "asked"]


def test_what_is_asked_online_is_counted_by_day_beside_its_parity(page: ModelPage) -> None:
    assert page.online is not None
    assert page.online.days == (("19 Jul 2024", 1234),)
    assert page.online.parities == (("19 Jul 2024", 200, "99.0%", "hour (2 missing)"),)
    assert any("3.5 ms" in fact for fact in page.online.facts)


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_a_long_life_takes_as_many_queries_as_a_short_one_and_as_few_rows(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(ledger)  # which looks at the revision of the tables, too
    with statements(ledger) as before:
        look(ledger)
    live(ledger)
    for name in ("VERSIONS", "CHANGES", "DECISIONS", "REFUSALS", "ASKED_HOURS"):
        monkeypatch.setattr(of_life, name, 2)
    with statements(ledger) as after:
        page = look(ledger)
    assert len(after) == len(before)
    assert (len(page.versions), page.version_count, len(page.reigns)) == (2, 4, 2)


def test_another_model_is_never_on_the_page(ledger: Ledger) -> None:
    live(ledger)
    other = of_operation.run_failed("other", stage='{"model": "energy_load"}', run_id="r", interval=None, error="e")
    ledger.record_alert(other, "other")
    publish(ledger, "tables", "2024-07-21", model="other")
    page = look(ledger)
    assert not any("model" in told.title for told in page.alerts)
    assert look(ledger, folder_of("other")).versions == ()
    assert [told.severity for told in look(ledger, folder_of("other")).alerts] == ["critical"]


def test_changes_are_read_without_their_evidence(ledger: Ledger) -> None:
    promote(ledger, 1)
    [change] = ledger.life(MODEL, windows=1, alerts_since=utc("2024-01-01")).changes
    assert isinstance(change, Promotion)
    assert (change.version, change.evidence) == (1, {})
