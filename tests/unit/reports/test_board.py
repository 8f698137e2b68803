"""What the model board says of models, and that it stays one look at the ledger however many there are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.alerts import of_operation
from perennial.core.errors import SpecError
from perennial.core.intervals import Interval, utc
from perennial.core.settings import PROJECT, Settings
from perennial.evidence.decision import GateDecision, GateResult
from perennial.evidence.evaluation import Evaluation
from perennial.evidence.monitoring import Audit, Expectation
from perennial.evidence.training import CodeState, TrainingRecord
from perennial.evidence.verdict import Estimate, Impact, VerdictDetails, VerdictSeverity
from perennial.ledger.records import Approval, VerdictName, VersionRecord
from perennial.ledger.store import Ledger
from perennial.reports import board
from perennial.reports.board import Asked, Board, Outlook, Pages, Row, Window
from perennial.spec.folder import ModelFolder, read_model

ENERGY = read_model(PROJECT / "tests" / "models" / "energy_load")
#: When the board is looked at: rows of the ledger are written now.
LATER = timedelta(minutes=5)
PAGES = Pages(mlflow="http://mlflow.test/")


def folder_of(name: str, **spec: Any) -> ModelFolder:
    return ENERGY.model_copy(update={"spec": ENERGY.spec.model_copy(update={"name": name, **spec})})


def look(ledger: Ledger, *folders: ModelFolder, broken: dict[str, SpecError] | None = None, after: timedelta = LATER) -> Board:
    now = datetime.now(UTC) + after
    overview = ledger.overview(windows=board.WINDOWS, alerts_since=now - board.ALERTS_FOR)
    return board.compose(overview, {one.spec.name: one for one in folders}, broken or {}, now=now, pages=PAGES)


def row_of(ledger: Ledger, folder: ModelFolder = ENERGY, *, after: timedelta = LATER) -> Row:
    (row,) = look(ledger, folder, after=after).rows
    return row


def publish(
    ledger: Ledger,
    dataset: str,
    day: str,
    model: str = "energy_load",
    inputs: dict[str, Any] | None = None,
    content: str = "a",
    **rows: int,
) -> None:
    interval = Interval.day(day)
    order = ledger.next_order(model, dataset, interval, f"run-{day}")
    claim = ledger.claim(model, dataset, interval, order=order, run_id=f"run-{day}")
    base = ledger.head(model, dataset)
    assert ledger.commit(
        claim, base=base, snapshots={"t": 1}, hashes={"t": content}, rows=rows or {"t": 1}, inputs=inputs or {}
    )


def register(ledger: Ledger, version: int, *, reasons: tuple[str, ...] = (), model: str = "energy_load") -> None:
    decision = GateDecision(not reasons, [GateResult("champion", False, reason) for reason in reasons], "boosting", None)
    training = TrainingRecord.from_json({"as_of": "2024-01-17T00:00:00+00:00", "run_id": f"{model}.train/manual__1+x"})
    ledger.record_version(
        VersionRecord(
            model, version, "m", "s", "f", {}, training, Evaluation.from_json({}), decision, CodeState(), datetime.now(UTC)
        )
    )


def promote(ledger: Ledger, version: int, *, over: int | None = None, actor: str = "airflow:energy_load.train",
            action: Any = "promote", model: str = "energy_load") -> None:  # fmt: skip
    made = ledger.intend_promotion(
        model=model, version=version, expected=over, action=action, reason="better", actor=actor, run_id=None, evidence={}
    )
    ledger.complete_promotion(made.id)


def judge(ledger: Ledger, day: str, verdict: Any = "ok", *, severity: VerdictSeverity = "none", estimated: float | None = None,
          model: str = "energy_load") -> None:  # fmt: skip
    estimate = Estimate("rmse", {"rmse": estimated}, usual=[1.0, 3.0]) if estimated is not None else None
    reasons = () if severity == "none" else ("rmse is 9, worse than 3",)
    ledger.record_verdict(
        model=model, interval=Interval.day(day), version=1, verdict=verdict, reasons=["0 of 3 features drifted"],
        details=VerdictDetails(severity=severity, impact=Impact(severity, False, (), reasons), estimate=estimate),
        report=f"{model}/drift/{day}/report.html", run_id="manual__judge/1",
    )  # fmt: skip


def measure(ledger: Ledger, day: str, value: float, *, version: int = 1, rows: int = 50) -> None:
    ledger.record_performance(
        model="energy_load", interval=Interval.day(day), version=version, metrics={"rmse": value}, rows=rows, coverage=1.0,
        as_of=utc(day), run_id="r",
    )  # fmt: skip


@contextmanager
def statements(ledger: Ledger) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        seen.append(statement)

    engine = ledger._database.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


# --- what a row says -------------------------------------------------------------------------------------------------


def test_a_model_without_data_is_new_and_not_in_trouble(ledger: Ledger) -> None:
    row = row_of(ledger)
    assert (row.attention, row.why, row.champion, row.trained, row.judged, row.outlook) == (
        "new", "no data yet", None, None, None, None,
    )  # fmt: skip
    publish(ledger, "tables", "2024-01-01")
    assert row_of(ledger).why == "not trained yet"


def test_a_healthy_model_tells_who_predicts_since_when_and_how_well(ledger: Ledger) -> None:
    for dataset in ("tables", "features", "predictions"):
        publish(ledger, dataset, "2024-01-19")
    register(ledger, 1)
    promote(ledger, 1)
    judge(ledger, "2024-01-18", estimated=2.0)
    judge(ledger, "2024-01-19", estimated=2.5)
    measure(ledger, "2024-01-18", 2.25)
    row = row_of(ledger)
    assert (row.attention, row.why) == ("fine", "")
    assert row.champion is not None
    assert (row.champion.version, row.champion.how) == (1, "by its gates")
    assert row.champion.link == "http://mlflow.test/#/models/energy_load/versions/1?workflowType=machine_learning"
    assert row.page == "/perennial/models/energy_load"
    assert row.data_until == row.predictions_until == utc("2024-01-20")
    assert row.judged is not None
    assert row.judged.report == "/perennial/reports/energy_load/drift/2024-01-19/report.html"
    assert row.judged.run == "/dags/energy_load.monitor/runs/manual__judge%2F1"
    assert row.outlook == Outlook(
        "rmse", False, (Window("2024-01-18", "ok", 2.0, 2.25), Window("2024-01-19", "ok", 2.5, None)), (1.0, 3.0)
    )
    assert (row.outlook.realised, row.outlook.estimated) == (2.25, 2.5)
    assert row.trained is not None
    assert (row.trained.outcome, row.trained.reason) == ("champion", "")
    assert row.trained.run == "/dags/energy_load.train/runs/manual__1%2Bx"


def test_the_newest_request_for_a_training_is_shown_with_what_was_expected_and_what_came_of_it(ledger: Ledger) -> None:
    register(ledger, 1)
    assert row_of(ledger).asked is None
    for day, words in (("2024-01-18", "old"), ("2024-01-19", "got +0.002")):
        ledger.record_retraining(
            model="energy_load", window_end=utc(day), asked=True, cause="performance", reason=f"because {day}", run_id="m",
            expectation=Expectation(0.004, 0.003, 5, "words"),
        )  # fmt: skip
        ledger.record_audit("energy_load", utc(day), Audit("measured", 2, 0.002, words=words))
    ledger.record_retraining(
        model="energy_load", window_end=utc("2024-01-20"), asked=False, cause="none", reason="no", run_id="m"
    )
    assert row_of(ledger).asked == Asked(utc("2024-01-19"), "because 2024-01-19", "expected +0.004 ± 0.003; got +0.002")


def test_a_champion_that_does_harm_says_so_first(ledger: Ledger) -> None:
    register(ledger, 1)
    promote(ledger, 1)
    impact = Impact("critical", False, ("constant", "realised"), ("mae is 9, worse than the 5",))
    ledger.record_verdict(
        model="energy_load", interval=Interval.day("2024-01-19"), version=1, verdict="ok", reasons=[],
        details=VerdictDetails(severity="critical", impact=impact), report=None, run_id="m",
    )  # fmt: skip
    row = row_of(ledger)
    assert (row.attention, row.why) == ("critical", "worse than the same answer for every row")


@pytest.mark.parametrize(
    ("verdict", "severity", "attention", "why"),
    [
        ("drift", "critical", "critical", "drift that matters"),
        ("drift", "warning", "warning", "verdict drift"),
        ("unknown", "warning", "warning", "verdict unknown"),
        ("ok", "warning", "warning", "performance fell"),
        ("ok", "critical", "critical", "performance fell far"),
    ],
)
def test_the_newest_verdict_decides_how_much_attention_a_model_needs(
    verdict: VerdictName, severity: VerdictSeverity, attention: str, why: str, ledger: Ledger
) -> None:
    register(ledger, 1)
    promote(ledger, 1)
    judge(ledger, "2024-01-18", "drift", severity="critical")
    judge(ledger, "2024-01-19", verdict, severity=severity)
    row = row_of(ledger)
    assert (row.attention, row.why) == (attention, why)
    assert row.judged is not None
    assert row.judged.reason == "rmse is 9, worse than 3", "what makes it matter comes first"


def test_refused_data_are_told_until_they_are_published_after_all(ledger: Ledger) -> None:
    publish(ledger, "tables", "2024-01-18")
    ledger.record_refusal(
        model="energy_load", interval=Interval.day("2024-01-19"), run_id="r", reasons=["empty"], rows={"hours": 0}
    )
    assert (row_of(ledger).attention, row_of(ledger).why) == ("critical", "data of 19 Jan 2024 refused")
    publish(ledger, "tables", "2024-01-19")
    assert row_of(ledger).refused is None


def test_each_table_says_how_far_it_reaches_and_what_is_missing(ledger: Ledger) -> None:
    for day, readings in (("2024-01-15", 9), ("2024-01-16", 0), ("2024-01-18", 9), ("2024-01-20", 0)):
        publish(ledger, "tables", day, hours=10, readings=readings)
    closed = ENERGY.spec.schedules.model_copy(update={"closed": ["2024-01-19"]})

    hours, labels = row_of(ledger, folder_of("energy_load", schedules=closed)).tables

    assert (hours.table, hours.until, hours.missing) == ("hours", utc("2024-01-21"), ("2024-01-17",))
    assert (labels.table, labels.until) == ("readings", utc("2024-01-19"))
    assert labels.words == "16 - 17 Jan 2024, 20 Jan 2024"
    assert labels.days == 3


def test_a_table_that_may_still_come_is_told_with_its_days_until_it_comes(ledger: Ledger) -> None:
    for day in ("2024-01-18", "2024-01-19"):
        publish(ledger, "tables", day, inputs={"awaited": {"readings": [day]}}, hours=10, readings=0)

    hours, labels = row_of(ledger).tables
    assert (hours.waits, labels.waits) == ("", "18 - 19 Jan 2024")
    assert labels.awaited_since is not None

    publish(ledger, "tables", "2024-01-18", inputs={"late": {"readings": 9}}, readings=9)
    assert row_of(ledger).tables[1].waits == "19 Jan 2024"


def test_scored_days_whose_features_changed_are_told_until_they_are_scored_again(ledger: Ledger) -> None:
    for dataset in ("features", "predictions"):
        publish(ledger, dataset, "2024-01-18")
    publish(ledger, "features", "2024-01-18", content="b")
    assert row_of(ledger).outdated == ("2024-01-18",)

    publish(ledger, "predictions", "2024-01-18")
    assert row_of(ledger).outdated == ()


def test_a_withheld_week_is_told_with_its_reason_and_how_to_release_it_until_it_is_released(ledger: Ledger) -> None:
    register(ledger, 1)
    promote(ledger, 1)
    weeks = [Interval.of("2024-01-08", "2024-01-15"), Interval.of("2024-01-01", "2024-01-08")]
    for version, week in enumerate(weeks, start=2):
        ledger.hold("energy_load", "data", week, version=version, reasons=["no skill", "one class"], run_id="r")

    row = row_of(ledger)

    assert (row.attention, row.why) == ("warning", "1 - 7 Jan 2024 withheld")
    assert [held.words for held in row.held] == ["1 - 7 Jan 2024 withheld", "8 - 14 Jan 2024 withheld"]
    newer = row.held[1]
    assert newer.reason == "no skill; one class"
    assert newer.link == "/dags/energy_load.release"
    assert "perennial data release energy_load 2024-01-08 2024-01-15 --reason TEXT" in newer.told

    ledger.release("energy_load", "data", weeks[1], actor="ann", reason="they are right")
    assert [held.days for held in row_of(ledger).held] == ["2024-01-08--2024-01-15"]
    ledger.release("energy_load", "data", None, actor="ann", reason="they are right")
    assert (row_of(ledger).attention, row_of(ledger).held) == ("fine", ())


def test_stopped_refreshes_are_told_until_a_version_replaces_the_champion(ledger: Ledger) -> None:
    register(ledger, 1)
    promote(ledger, 1)
    ledger.hold(
        "energy_load", "refreshes", Interval.of("2024-01-01", "2024-01-08"), version=2, reasons=["they did harm"], run_id="r"
    )

    row = row_of(ledger)
    assert (row.attention, row.why) == ("warning", "refreshes stopped")
    assert "perennial data release energy_load --refreshes" in row.held[0].told

    register(ledger, 3)
    promote(ledger, 3, over=1)
    assert row_of(ledger).held == ()


def test_predictions_that_are_behind_the_data_are_told(ledger: Ledger) -> None:
    register(ledger, 1)
    promote(ledger, 1)
    publish(ledger, "tables", "2024-01-19")
    publish(ledger, "predictions", "2024-01-18")
    assert row_of(ledger).why == "predictions are behind the data"
    publish(ledger, "predictions", "2024-01-19")
    assert row_of(ledger).attention == "fine"


def test_the_last_training_tells_what_came_of_it_with_its_first_reason(ledger: Ledger) -> None:
    register(ledger, 1, reasons=("rmse is 9", "and late"))
    row = row_of(ledger)
    assert row.trained is not None
    assert (row.trained.outcome, row.trained.reason, row.attention, row.why) == (
        "refused",
        "rmse is 9",
        "critical",
        "no champion",
    )
    register(ledger, 2)
    assert (trained := row_of(ledger).trained) is not None
    assert (trained.version, trained.outcome) == (2, "passed")


def test_a_version_that_waits_for_an_approval_is_told_until_somebody_answers(ledger: Ledger) -> None:
    asking = folder_of("energy_load", promotion="approval")
    register(ledger, 1)
    promote(ledger, 1, actor="airflow:ann", action="override")
    register(ledger, 2)
    row = row_of(ledger, asking)
    assert row.champion is not None
    assert row.champion.how == "gates overruled by ann"
    assert (row.attention, row.why) == ("warning", "version 2 waits for an approval")
    ledger.record_approval(Approval("energy_load", 2, "refused", "airflow:ann", "too slow", datetime.now(UTC), "t"))
    assert (row := row_of(ledger, asking)).trained is not None
    assert (row.attention, row.trained.outcome, row.trained.reason) == ("fine", "refused", "refused by airflow:ann: too slow")


def test_alerts_are_counted_for_a_week_and_undelivered_ones_until_they_are_delivered(ledger: Ledger) -> None:
    slack = folder_of("energy_load", alerts=ENERGY.spec.alerts.model_copy(update={"slack": "team"}))
    failed = of_operation.run_failed("energy_load", stage="ingest", run_id="r", interval=None, error="no file")
    ledger.record_alert(failed, "a")
    row = row_of(ledger, slack)
    assert (row.told.critical, row.told.warning, row.told.undelivered) == (1, 0, 0), "the sender's next round is yet to come"
    assert (row.attention, row.why) == ("critical", "ingest failed")
    row = row_of(ledger, slack, after=timedelta(days=2))
    assert (row.told.critical, row.told.undelivered, row.attention) == (1, 1, "warning")
    assert row_of(ledger, after=timedelta(days=2)).told.undelivered == 0, "a model without channels sends nothing"
    assert row_of(ledger, slack, after=timedelta(days=30)).told.critical == 0
    ledger.outbox.route(lambda alert: [], datetime.now(UTC))
    assert row_of(ledger, slack, after=timedelta(days=2)).told.undelivered == 0


def test_an_open_alert_keeps_its_model_on_top_until_it_is_well_again(ledger: Ledger) -> None:
    failed = of_operation.run_failed("energy_load", stage="ingest", run_id="r", interval=None, error="no file")
    ledger.record_alert(dataclasses.replace(failed, subject="energy_load/run/ingest"), "a")
    assert row_of(ledger, after=timedelta(days=30)).why == "ingest failed"
    assert ledger.resolve("energy_load/run/ingest", "it ran")
    row = row_of(ledger)
    assert (row.attention, row.told.critical, row.told.warning, row.told.newest) == ("new", 0, 0, "")


def test_of_a_window_in_which_the_champion_changed_the_version_of_most_rows_is_shown(ledger: Ledger) -> None:
    measure(ledger, "2024-01-18", 9.0, version=2, rows=10)
    measure(ledger, "2024-01-18", 2.0, version=1, rows=40)
    outlook = row_of(ledger).outlook
    assert outlook is not None
    assert [window.realised for window in outlook.windows] == [2.0]


def test_a_row_shows_the_newest_windows_alone(ledger: Ledger) -> None:
    days = [f"2024-01-{day:02}" for day in range(1, 21)]
    for day in days:
        judge(ledger, day, estimated=float("nan") if day.endswith("20") else 2.0)
        measure(ledger, day, 2.0)
    outlook = row_of(ledger).outlook
    assert outlook is not None
    assert [window.key for window in outlook.windows] == days[-board.WINDOWS :]
    assert outlook.windows[-1].estimated is None, "what is no number is not shown as one"


# --- all rows --------------------------------------------------------------------------------------------------------


def test_what_needs_somebody_comes_first(ledger: Ledger) -> None:
    register(ledger, 1, model="drifted")
    promote(ledger, 1, model="drifted")
    judge(ledger, "2024-01-19", "drift", severity="warning", model="drifted")
    register(ledger, 1, model="calm")
    promote(ledger, 1, model="calm")
    register(ledger, 1, reasons=("bad",), model="orphan")
    broken = {"churn": SpecError("/srv/models/churn/model.yaml:4: task: 'guess' is none")}
    found = look(ledger, *(folder_of(name) for name in ("calm", "drifted", "fresh", "orphan")), broken=broken)
    assert [(row.model, row.attention) for row in found.rows] == [
        ("churn", "broken"), ("orphan", "critical"), ("drifted", "warning"), ("fresh", "new"), ("calm", "fine"),
    ]  # fmt: skip
    assert found.rows[0].why == "churn/model.yaml:4: task: 'guess' is none"
    assert found.count("broken", "critical") == 2


def test_the_board_as_json_holds_plain_values_alone(ledger: Ledger) -> None:
    register(ledger, 1)
    promote(ledger, 1)
    measure(ledger, "2024-01-18", float("inf"))
    plain = look(ledger, ENERGY).to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["rows"][0]["champion"]["version"] == 1


def test_a_hundred_models_take_as_many_queries_as_one(ledger: Ledger) -> None:
    def fill(model: str) -> None:
        register(ledger, 1, model=model)
        judge(ledger, "2024-01-19", model=model)

    fill("energy_load")
    with statements(ledger) as of_one:
        look(ledger, ENERGY)
    folders = [folder_of(f"model_{number:03}") for number in range(100)]
    for folder in folders:
        fill(folder.spec.name)
    with statements(ledger) as of_all:
        found = look(ledger, *folders)
    assert len(of_all) == len(of_one) < 15
    assert all(row.judged and row.trained for row in found.rows)


def test_the_board_wants_no_more_than_to_select(settings_on_each_database: Settings) -> None:
    url = settings_on_each_database.database_url
    ledger = Ledger(url, settings_on_each_database.state)
    ledger.migrate()
    register(ledger, 1)
    promote(ledger, 1)
    if url.startswith("sqlite"):
        # A transaction of the reading kind takes no lock that a writer would notice.
        with ledger._database.writing("other"):
            assert row_of(Ledger(url)).champion is not None
        return
    admin = sa.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql("CREATE ROLE board_reader LOGIN PASSWORD 'board'")
        try:
            connection.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO board_reader")
            as_reader = sa.make_url(url).set(username="board_reader", password="board").render_as_string(False)
            reader = Ledger(as_reader, settings_on_each_database.state)
            assert row_of(reader).champion is not None
            with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
                register(reader, 2)
        finally:
            connection.exec_driver_sql("DROP OWNED BY board_reader")
            connection.exec_driver_sql("DROP ROLE board_reader")


# --- drawing and words -----------------------------------------------------------------------------------------------


def outlook_of(*values: float | None, usual: tuple[float, float] | None = None) -> Outlook:
    return Outlook(
        "auc", True, tuple(Window(f"2024-01-{day + 1:02}", "ok", None, value) for day, value in enumerate(values)), usual
    )


def test_better_is_higher_and_a_gap_is_not_bridged() -> None:
    drawing = board.sparkline(outlook_of(0.7, 0.8, None, 0.9, 0.6, usual=(0.5, 1.0)))
    assert drawing is not None
    assert len(drawing.realised) == 2
    heights = [[float(point.split(",")[1]) for point in line.split()] for line in drawing.realised]
    assert heights[0][0] > heights[0][1] > heights[1][0] < heights[1][1], "the origin is at the top"
    assert all(0 <= height <= board.HEIGHT for line in heights for height in line)
    assert drawing.usual == (4.0, board.HEIGHT - 8)


def test_of_an_error_less_is_drawn_higher() -> None:
    drawing = board.sparkline(dataclasses.replace(outlook_of(2.0, 3.0, usual=(1.0, 2.5)), greater_is_better=False))
    assert drawing is not None
    first, second = (float(point.split(",")[1]) for point in drawing.realised[0].split())
    assert first < second
    assert drawing.usual == (4.0, 19.5)


def test_values_that_are_alone_or_all_the_same_can_be_drawn() -> None:
    assert board.sparkline(outlook_of(None, None)) is None
    alone = board.sparkline(outlook_of(None, 0.5, None))
    assert alone is not None
    assert (alone.realised, len(alone.dots)) == ((), 1)
    same = board.sparkline(outlook_of(0.5, 0.5))
    assert same is not None
    assert len(same.realised) == 1


@pytest.mark.parametrize(
    ("ago", "words"),
    [
        ({"seconds": -5}, "0 min"), ({"minutes": 59}, "59 min"), ({"hours": 47}, "47 h"), ({"days": 2}, "2 d"),
        ({"days": 1234}, "1,234 d"),
    ],
)  # fmt: skip
def test_an_age_is_told_in_its_largest_unit(ago: dict[str, int], words: str) -> None:
    now = datetime(2024, 1, 1, tzinfo=UTC)
    assert board.age(now - timedelta(**ago), now) == words


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("2024-01-19", "19 Jan 2024"),
        ("2024-01-15--2024-01-22", "15 - 21 Jan 2024"),
        ("2024-01-29--2024-02-05", "29 Jan - 4 Feb 2024"),
        ("2024-01-19T05:00:00.000000Z--2024-01-19T06:00:00.000000Z", "19 Jan 2024 05:00"),
    ],
)
def test_an_interval_is_told_by_its_days(key: str, words: str) -> None:
    assert board.span(key) == words


def test_data_until_midnight_are_those_of_the_day_before() -> None:
    assert board.last_day(utc("2024-01-20")) == "19 Jan 2024"
    assert board.last_day(utc("2024-01-20T05:00:00Z")) == "20 Jan 2024 05:00"
