"""What the watchdog finds wrong, and when people are told."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.alerts.alert import EVERYBODY, failure, failure_key
from perennial.core.intervals import Interval, utc
from perennial.core.settings import PROJECT
from perennial.spec.folder import read_model
from perennial.spec.model import ModelSpec
from perennial.stack.airflow_api import DagRun, TaskInstance
from perennial.watchdog.rules import (
    BROKEN_MODELS,
    AirflowState,
    FailedTask,
    Finding,
    Known,
    Look,
    ModelState,
    OpenRun,
    Published,
    ReigningChampion,
    confirm,
    expected,
    look,
)

MODEL = "energy_load"  # scored and monitored each day, trained by hand alone
NOW = datetime(2024, 5, 15, 12, tzinfo=UTC)  # a Wednesday
TODAY = utc("2024-05-15")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
STAGES = ("ingest", "train", "refresh", "score", "monitor", "maintain", "promote", "rollback")


@lru_cache
def spec() -> ModelSpec:
    return read_model(PROJECT / "tests" / "models" / MODEL).spec


def weekly() -> ModelSpec:
    return spec().model_copy(update={"schedules": spec().schedules.model_copy(update={"train": "week", "monitor": "week"})})


def refreshed() -> ModelSpec:
    return spec().model_copy(update={"schedules": spec().schedules.model_copy(update={"refresh": "week"})})


def days(first: int, last: int, *, rows: int = 120, version: int | None = None) -> list[Published]:
    """Days counted from today, each published at three in the morning of the next."""
    return [
        Published(Interval(TODAY + n * DAY, TODAY + (n + 1) * DAY), TODAY + (n + 1) * DAY + 3 * HOUR, rows, version)
        for n in range(first, last)
    ]


def well() -> ModelState:
    """A model of which everything up to yesterday is there."""
    return ModelState(
        spec=spec(),
        tables=days(-30, 0),
        features=days(-30, 0),
        predictions=days(-20, 0, version=1),
        first_published_at=NOW - 30 * DAY,
        champion=ReigningChampion(1, NOW - 20 * DAY, TODAY - 21 * DAY),
        judged_until=TODAY,
        measured_until=TODAY - DAY,
        tried_at=NOW - 20 * DAY,
    )


def known(state: ModelState | None = None, airflow: AirflowState | None = None, *, off: Collection[str] = ()) -> Known:
    paused = {f"{MODEL}.{stage}": stage in off for stage in STAGES}
    return Known(NOW, {MODEL: state or well()}, airflow or AirflowState(), paused=paused)


def found(known: Known) -> set[str]:
    return set(look(known).findings)


def run(dag: str = f"{MODEL}.score", **more: object) -> DagRun:
    values = {
        "dag_id": dag,
        "run_id": "r1",
        "state": "running",
        "run_type": "manual",
        "partition_key": None,
        "queued_at": NOW - 7 * HOUR,
        "started_at": NOW - 7 * HOUR,
        "ended_at": None,
    }
    return DagRun(**{**values, **more})  # type: ignore[arg-type]


def test_nothing_is_found_where_all_is_well() -> None:
    assert found(known()) == set()


# --- Airflow ---------------------------------------------------------------------------------------------------------


def test_an_api_that_does_not_answer_is_found_and_nothing_is_said_of_what_it_hides() -> None:
    seen = look(replace(known(), airflow=None, silence="connection refused", paused=None))

    assert set(seen.findings) == {"airflow/api"}
    assert not seen.is_over(f"models/{MODEL}/silent")
    assert not seen.is_over("components/scheduler")
    assert "connection refused" in seen.findings["airflow/api"].alert.text


def test_a_part_of_airflow_without_a_heartbeat_is_found() -> None:
    seen = look(known(airflow=AirflowState(components={"scheduler": NOW - HOUR, "triggerer": None})))

    assert set(seen.findings) == {"components/scheduler", "components/triggerer"}
    assert "2024-05-15 11:00:00" in seen.findings["components/scheduler"].alert.text


def test_a_broken_dag_file_is_told_by_the_last_line_of_its_error() -> None:
    errors = {"dags/train.py": "Traceback\n  File x, line 1, in secret_rows\nSpecError: model.yaml:3: unknown key\n"}
    told = look(known(airflow=AirflowState(import_errors=errors))).findings["dags/import_errors"].alert.text

    assert "dags/train.py: SpecError: model.yaml:3: unknown key" in told
    assert "secret_rows" not in told


def test_a_task_that_failed_is_told_under_the_key_of_its_own_callback_once_that_had_its_time() -> None:
    task = TaskInstance(f"{MODEL}.score", "r1", "predict", -1, "failed", 1, ended_at=NOW - timedelta(seconds=31))
    failed = FailedTask(task, run(partition_key="2024-05-14"))

    [finding] = look(known(airflow=AirflowState(failed_tasks=[failed]))).findings.values()

    assert finding.key == failure_key(f"{MODEL}.score", "r1", "predict", -1)
    assert finding.alert.subject == f"{failure(f'{MODEL}.score', 'predict', -1)}/2024-05-14"
    assert finding.alert.kind == "run_failed"
    early = replace(failed, task=replace(task, ended_at=NOW - timedelta(seconds=29)))
    assert found(known(airflow=AirflowState(failed_tasks=[early]))) == set()


def test_a_run_that_failed_without_a_failed_task_is_told() -> None:
    ended = run(state="failed", ended_at=NOW - HOUR, partition_key="2024-05-14")
    [finding] = look(known(airflow=AirflowState(failed_runs=[ended]))).findings.values()
    assert finding.key == f"run_failed:{MODEL}.score:r1"
    assert "2024-05-14" in finding.alert.title


def test_dags_of_others_are_none_of_our_business() -> None:
    airflow = AirflowState(
        failed_tasks=[FailedTask(TaskInstance("theirs", "r1", "t", -1, "failed", 1, NOW - HOUR), run("theirs"))],
        failed_runs=[run("theirs.etl", state="failed", ended_at=NOW - HOUR)],
        open_runs=[OpenRun(run("theirs.etl"))],
    )
    assert found(known(airflow=airflow)) == set()


@pytest.mark.parametrize(
    ("opened", "stuck"),
    [
        (OpenRun(run(started_at=NOW - 7 * HOUR)), True),
        (OpenRun(run(started_at=NOW - 5 * HOUR)), False),
        (OpenRun(run(state="queued", started_at=None, queued_at=NOW - 7 * HOUR)), True),
        (OpenRun(run(started_at=NOW - 70 * HOUR), asks=True), False),
        (OpenRun(run("perennial.notify", started_at=NOW - 7 * HOUR)), True),
    ],
    ids=["runs too long", "runs", "is queued too long", "waits for a person", "is nobody's model"],
)
def test_a_run_is_stuck_when_it_takes_longer_than_it_may(opened: OpenRun, stuck: bool) -> None:
    assert bool(found(known(airflow=AirflowState(open_runs=[opened])))) is stuck


def test_a_stage_that_is_off_while_others_are_on_is_found_and_one_that_is_off_with_all_is_not() -> None:
    assert f"paused/{MODEL}" in found(known(off={"score"}))
    assert found(known(off=STAGES)) == set()
    assert found(known(off={"refresh"})) == set(), "the model has no refreshes"
    assert f"paused/{MODEL}" in found(known(replace(well(), spec=refreshed()), off={"refresh"}))


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "tick", "day"),
    [
        ("0 2 * * *", "2024-05-15T02:00:00+00:00", "2024-05-14"),
        ("0 13 * * *", "2024-05-14T13:00:00+00:00", "2024-05-13"),
        ("0 2 * * 1", "2024-05-13T02:00:00+00:00", "2024-05-06"),
    ],
)
def test_the_day_that_is_due_is_that_of_the_tick_before(cron: str, tick: str, day: str) -> None:
    assert expected(cron, NOW) == (utc(tick), Interval.day(day))


def test_airflow_takes_the_same_day_for_due() -> None:
    from airflow.sdk.timezone import coerce_datetime
    from airflow.timetables.trigger import CronPartitionTimetable

    timetable = CronPartitionTimetable("0 2 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d")
    due = expected("0 2 * * *", NOW)
    assert due is not None
    assert timetable._get_partition_info(run_date=coerce_datetime(due[0]))[1] == due[1].key


def test_what_is_no_cron_is_left_to_airflow() -> None:
    assert expected("0 2 31 2 *", NOW) is None


def test_a_model_is_silent_when_the_day_that_was_due_is_not_there_in_time() -> None:
    late = replace(well(), tables=days(-30, -1), features=days(-30, -1), predictions=days(-20, -1), judged_until=TODAY - DAY)

    assert found(known(late)) == {f"models/{MODEL}/silent"}
    # Six hours after the tick at two it is not late yet.
    assert found(replace(known(late), now=utc("2024-05-15T07:59:00Z"))) == set()
    assert found(known(late, off={"ingest"})) == {f"paused/{MODEL}"}
    assert found(known(replace(late, refused=[Interval.day("2024-05-14")]))) == set()
    assert found(known(replace(late, first_published_at=utc("2024-05-15T02:01:00Z")))) == set()


def lacking(*missing: int, **more: Any) -> ModelState:
    """A model that lacks these of the last thirty days, counted from today."""
    there = [day for n in range(-30, 0) if n not in missing for day in days(n, n + 1)]
    return replace(well(), tables=there, features=there, **more)


def told_of(state: ModelState) -> str:
    [alert] = [one.alert for subject, one in look(known(state)).findings.items() if subject.endswith("/silent")]
    return f"{alert.title}\n{alert.text}"


def test_every_day_since_the_first_that_is_not_published_is_told_in_one_alert() -> None:
    text = told_of(lacking(-20, -9, -8, -7, -1))

    assert f"{MODEL}: 5 days are not published, the last one 14 May 2024" in text
    for stretch in ("14 May 2024", "6 - 8 May 2024 (3 days)", "25 Apr 2024"):
        assert stretch in text
    assert "perennial ingest" not in text, "all of them are within schedules.catch_up"


def test_of_days_that_are_not_made_up_for_the_command_that_loads_them_is_told() -> None:
    short = spec().model_copy(update={"schedules": spec().schedules.model_copy(update={"catch_up": 7 * DAY})})

    text = told_of(lacking(-20, -19, -1, spec=short))

    assert "Days before 8 May 2024 are left out then (schedules.catch_up): for 25 - 26 Apr 2024 (2 days)" in text
    assert f"trigger {MODEL}.load with start 2024-04-25, end 2024-04-27" in text
    assert f"perennial ingest {MODEL} 2024-04-25 2024-04-27" in text


def test_a_closed_day_is_not_missing() -> None:
    closed = spec().model_copy(update={"schedules": spec().schedules.model_copy(update={"closed": ["2024-05-06", "sunday"]})})

    # Sunday the 5th, Monday the 6th, and Sunday the 12th of May.
    assert found(known(lacking(-10, -9, -3, spec=closed))) == set()
    assert "1 day is not published" in told_of(lacking(-10, -9, -8, -3, spec=closed))


def test_days_that_are_long_published_are_not_missing() -> None:
    long_ago = [Interval(TODAY - 300 * DAY, TODAY)]

    assert found(known(replace(lacking(-9), tables_ever=long_ago, features_ever=long_ago))) == set()
    with_gap = [Interval(TODAY - 300 * DAY, TODAY - 200 * DAY), Interval(TODAY - 199 * DAY, TODAY)]
    assert "1 day is not published" in told_of(replace(well(), tables_ever=with_gap, features_ever=with_gap))


def test_a_refused_day_is_told_of_by_its_own_alert_until_the_next_one_is_due() -> None:
    refused = lacking(-1, refused=[Interval.day("2024-05-14")])
    assert found(known(refused)) == set()

    earlier = lacking(-2, refused=[Interval.day("2024-05-13")])
    assert found(known(earlier)) == {f"models/{MODEL}/silent"}


@pytest.mark.parametrize(
    ("missing", "again"),
    [
        ((-9, -8), False),  # nothing is new
        ((-8,), False),  # the first of them was loaded
        ((-9, -8, -2), True),  # another day is missing
        ((-9, -8, -7, -6, -5, -4, -3, -2, -1), False),  # the outage that was told of goes on
    ],
)
def test_people_are_told_again_when_another_day_is_missing(missing: tuple[int, ...], again: bool) -> None:
    # Told when the eighth was the newest day that was due: today less eight days and some hours.
    state = lacking(*missing, told_at={"silent": TODAY - 7 * DAY + 9 * HOUR})
    seen = look(known(state))
    assert seen.findings[f"models/{MODEL}/silent"].again is again

    told, _, _ = confirm(seen, {}, {f"models/{MODEL}/silent"}, NOW)
    assert set(told) == ({f"models/{MODEL}/silent"} if again else set())


def awaiting(*numbers: int, **changed: Any) -> ModelState:
    """A model whose readings may come two days late, and have not come for these days, counted from today."""
    tables = {**spec().tables, "readings": spec().tables["readings"].model_copy(update={"late": 2 * DAY})}
    awaited = {"readings": [days(n, n + 1)[0].interval for n in numbers]}
    return replace(well(), spec=spec().model_copy(update={"tables": tables}), awaited=awaited, **changed)


def test_a_table_is_told_of_once_no_ingest_looks_for_it_any_more() -> None:
    # The ingest of today, which is not due yet, looks back for two days.
    assert found(known(awaiting(-1, -2))) == set()

    [finding] = look(known(awaiting(-1, -3, -4))).findings.values()

    assert (finding.subject, finding.alert.severity, finding.alert.kind) == (
        f"models/{MODEL}/late/readings",
        "warning",
        "data_late",
    )
    assert finding.alert.title == f"{MODEL}: readings has not come for 2 days, the first one 11 May 2024"
    assert "- 11 - 12 May 2024 (2 days)" in finding.alert.text
    assert f"perennial ingest {MODEL} 2024-05-11 2024-05-13" in finding.alert.text


def test_a_table_that_an_ingest_is_about_to_complete_is_not_told_of() -> None:
    just_now = [*days(-30, -1), replace(days(-1, 0)[0], at=NOW - timedelta(minutes=1))]
    assert found(known(awaiting(-3, tables=just_now))) == set()


@pytest.mark.parametrize(("given_up", "again"), [((-4,), False), ((-4, -3), True), ((-3,), True)])
def test_people_are_told_again_when_a_table_is_given_up_for_another_day(given_up: tuple[int, ...], again: bool) -> None:
    # Told a day ago, when the day before yesterday was the newest one.
    state = awaiting(*given_up, told_at={"late/readings": NOW - DAY})
    [finding] = look(known(state)).findings.values()
    assert finding.again is again


def test_rows_that_came_too_late_are_told_of_by_their_days_as_an_event() -> None:
    came = replace(days(-1, 0)[0], too_late={"readings": {"2024-05-09": 3, "2024-05-10": 1}})

    [finding] = look(known(awaiting(tables=[*days(-30, -1), came]))).findings.values()

    assert finding.key == f"data_late:{MODEL}:readings:2024-05-14"
    assert finding.alert.title == f"{MODEL}: 4 rows of readings came too late, with 14 May 2024"
    assert "- 9 May 2024 (3 rows)\n- 10 May 2024 (1 row)\n" in finding.alert.text
    assert finding.alert.severity == "warning"


def test_nothing_is_due_of_a_model_that_never_published() -> None:
    assert found(known(ModelState(spec=spec()))) == set()


def test_features_that_nobody_scores_are_found() -> None:
    state = replace(well(), predictions=days(-20, -2, version=1), judged_until=TODAY - 2 * DAY)
    seen = look(known(state)).findings

    assert set(seen) == {f"models/{MODEL}/unscored"}
    assert "2024-05-13--2024-05-15" in seen[f"models/{MODEL}/unscored"].alert.title
    gap = [*days(-20, -9, version=1), *days(-7, 0, version=1)]
    assert (
        "6 - 7 May 2024 (2 days)"
        in look(known(replace(well(), predictions=gap))).findings[f"models/{MODEL}/unscored"].alert.text
    )
    assert found(known(replace(state, champion=None))) == set()


def test_history_that_was_there_before_the_champion_need_not_be_scored() -> None:
    state = replace(well(), predictions=[], judged_until=None, measured_until=None)
    assert found(known(replace(state, champion=ReigningChampion(1, NOW - HOUR, TODAY - DAY)))) == set()


def test_a_window_that_is_scored_whole_and_not_judged_is_found() -> None:
    state = replace(well(), judged_until=TODAY - DAY)
    assert found(known(state)) == {f"models/{MODEL}/unmonitored"}
    # A week is whole on Sunday: the last ended on the 13th.
    assert found(known(replace(state, spec=weekly(), judged_until=utc("2024-05-13"), tried_at=NOW))) == set()
    assert found(known(replace(state, spec=weekly(), judged_until=utc("2024-05-06"), tried_at=NOW))) == {
        f"models/{MODEL}/unmonitored"
    }


def test_a_week_that_the_calendar_should_have_trained_on_is_found_a_day_later() -> None:
    state = replace(well(), spec=weekly(), judged_until=utc("2024-05-13"))
    before, after = utc("2024-05-13T02:00:00Z"), utc("2024-05-13T04:00:00Z")

    assert found(known(replace(state, tried_at=before))) == {f"models/{MODEL}/untrained"}
    assert found(known(replace(state, tried_at=after))) == set()
    assert found(known(replace(state, tried_at=None))) == set()
    assert found(replace(known(replace(state, tried_at=before)), now=utc("2024-05-14T02:00:00Z"))) == set()


def test_a_week_that_the_champion_should_have_been_refreshed_on_is_found_a_day_later() -> None:
    before, after = utc("2024-05-13T02:00:00Z"), utc("2024-05-13T04:00:00Z")
    state = replace(well(), spec=refreshed(), refreshed_at=before)

    assert found(known(state)) == {f"models/{MODEL}/unrefreshed"}
    assert found(known(replace(state, refreshed_at=None))) == {f"models/{MODEL}/unrefreshed"}
    assert found(known(replace(state, refreshed_at=after))) == set()
    assert found(replace(known(state), now=utc("2024-05-14T02:00:00Z"))) == set()
    # A training that was refused brought the champion no newer rows.
    assert found(known(replace(state, tried_at=after))) == {f"models/{MODEL}/unrefreshed"}


def test_no_refresh_is_expected_where_there_is_nothing_to_refresh_or_refreshes_have_stopped() -> None:
    state = replace(well(), spec=refreshed())

    assert found(known(replace(state, refreshes_stopped=True))) == set()
    assert found(known(replace(state, champion=None))) == set()
    assert found(known(replace(state, champion=ReigningChampion(2, NOW - DAY, utc("2024-05-13"))))) == set()
    assert found(known(replace(state, spec=spec()))) == set()
    assert found(known(state, off={"refresh"})) == {f"paused/{MODEL}"}
    two_days = [day for n in (-9, -8) for day in days(n, n + 1)]
    assert f"models/{MODEL}/unrefreshed" not in found(known(replace(state, features=two_days))), "its run has failed"


def test_a_week_with_a_missing_day_that_nobody_judged_is_found_once_its_grace_is_over() -> None:
    # The week from Monday the 6th lacks the 8th; the data reach to the 14th, a day after its end, or to the 15th.
    lacking_one = [day for n in range(-20, 0) if n != -7 for day in days(n, n + 1, version=1)]
    state = replace(well(), spec=weekly(), predictions=lacking_one, judged_until=utc("2024-05-06"), tried_at=NOW)

    assert f"models/{MODEL}/unmonitored" in found(known(state))
    assert f"models/{MODEL}/unmonitored" not in found(known(replace(state, predictions=lacking_one[:-1])))
    assert f"models/{MODEL}/unmonitored" not in found(known(replace(state, judged_until=utc("2024-05-13"))))


def test_a_champion_is_stale_in_the_time_of_its_data() -> None:
    state = replace(well(), champion=ReigningChampion(1, NOW - DAY, TODAY - 183 * DAY))
    assert found(known(state)) == {f"models/{MODEL}/stale"}
    assert found(known(replace(state, champion=ReigningChampion(1, NOW - 900 * DAY, TODAY - 181 * DAY)))) == set()


def test_labels_are_late_when_a_window_cannot_be_measured_a_week_after() -> None:
    state = replace(well(), measured_until=TODAY - 8 * DAY)
    assert found(known(state)) == {f"models/{MODEL}/unlabelled"}
    assert found(known(replace(state, measured_until=TODAY - 7 * DAY))) == set()
    # What can never be measured is not waited for.
    assert found(known(replace(state, predictions=days(-20, 0, rows=3, version=1)))) == set()
    assert found(known(replace(state, champion=ReigningChampion(1, NOW - DAY, TODAY - DAY)))) == set()
    assert found(known(replace(state, champion=ReigningChampion(2, NOW - DAY, TODAY - 21 * DAY)))) == set()


def test_alerts_that_nobody_sends_are_found() -> None:
    assert found(replace(known(), waiting=3, oldest_waiting=NOW - 2 * HOUR)) == {"outbox/waiting"}
    assert found(replace(known(), waiting=3, oldest_waiting=NOW - HOUR / 2)) == set()


def test_a_repository_that_has_not_been_followed_for_an_hour_is_told() -> None:
    assert found(replace(known(), followed_at=NOW - HOUR)) == set()
    assert found(replace(known(), followed_at=NOW - HOUR - timedelta(seconds=1))) == {"repository/not_followed"}


def test_an_altered_record_of_decisions_is_found() -> None:
    altered = found(replace(known(), altered=["toy: promotion 2 was changed"]))
    assert altered == {"decisions/altered"}


@given(
    st.sets(st.integers(-40, -1)),
    st.sets(st.integers(-40, -1)),
    st.one_of(st.none(), st.integers(-40, 0)),
    st.sampled_from(["day", "week", "month"]),
)
def test_any_history_can_be_looked_at_and_each_finding_is_of_the_model(
    published: set[int], scored: set[int], judged: int | None, train: str
) -> None:
    schedules = spec().schedules.model_copy(update={"train": "never" if train == "day" else train, "monitor": "week"})
    state = replace(
        well(),
        spec=spec().model_copy(update={"schedules": schedules}),
        tables=[day for n in sorted(published) for day in days(n, n + 1)],
        features=[day for n in sorted(published) for day in days(n, n + 1)],
        predictions=[day for n in sorted(scored & published) for day in days(n, n + 1, version=1)],
        judged_until=None if judged is None else TODAY + judged * DAY,
    )
    seen = found(known(state))

    assert all(subject.startswith(f"models/{MODEL}/") for subject in seen)
    # Each day from the first to yesterday is there or is missed.
    whole = set(range(min(published, default=-1), 0)) <= published
    assert (f"models/{MODEL}/silent" in seen) != whole


# --- when people are told --------------------------------------------------------------------------------------------


def seen(*subjects: str, lasting: timedelta = timedelta(), areas: Collection[str] = ("airflow", "models")) -> Look:
    alert = look(replace(known(), airflow=None, silence="x")).findings["airflow/api"].alert
    return Look({subject: Finding(subject, alert, lasting) for subject in subjects}, frozenset(areas))  # type: ignore[arg-type]


def test_what_does_not_last_is_not_told() -> None:
    told, over, since = confirm(seen("airflow/api", lasting=2 * HOUR), {}, set(), NOW)
    assert (told, over) == ({}, set())
    told, _, since = confirm(seen("airflow/api", lasting=2 * HOUR), since, set(), NOW + 2 * HOUR)
    assert set(told) == {"airflow/api"}
    _, _, since = confirm(seen(), since, set(), NOW + 3 * HOUR)
    assert since == {}


def test_what_could_not_be_seen_is_not_over() -> None:
    _, over, since = confirm(seen(areas=["airflow"]), {"models/a/silent": NOW}, {"models/a/silent"}, NOW + HOUR)
    assert over == set()
    assert since == {"models/a/silent": NOW}


def test_a_model_whose_folder_broke_is_not_well_for_that() -> None:
    broken = look(replace(known(), models={}, unreadable={MODEL: "model.yaml:3: unknown key"}))
    assert not broken.is_over(f"models/{MODEL}/silent")
    assert look(replace(known(), models={})).is_over(f"models/{MODEL}/silent")


@given(st.lists(st.tuples(st.sets(st.sampled_from(["models/a/silent", "models/b/stale", "airflow/api"])), st.booleans())))
def test_each_incident_is_told_once_and_ends_once(looks: list[tuple[set[str], bool]]) -> None:
    since: dict[str, datetime] = {}
    opened: set[str] = set()
    for n, (subjects, blind) in enumerate(looks):
        areas = ["models"] if blind else ["airflow", "models"]
        there = {subject for subject in subjects if not (blind and subject == "airflow/api")}
        told, over, since = confirm(seen(*there, areas=areas), since, opened, NOW + n * HOUR)
        assert not set(told) & opened
        assert over <= opened
        assert not over & there
        opened = (opened | set(told)) - over
        # What is open is there, or could not be seen.
        assert opened - there <= ({"airflow/api"} if blind else set())


def test_each_broken_folder_is_told_to_everybody_and_its_end_too() -> None:
    broken = {"a": "a/model.yaml:3: unknown key\na/model.yaml:9: worse", "b": "b/model.yaml: not a regular file"}
    report = {BROKEN_MODELS: "Traceback\nSpecError: …\nNo DAGs, because the model's folder cannot be read: a, b."}

    seen = look(replace(known(airflow=AirflowState(import_errors=report)), unreadable=broken))

    assert set(seen.findings) == {"folders/a", "folders/b"}
    told = seen.findings["folders/a"].alert
    assert (told.model, told.kind) == (EVERYBODY, "import_errors")
    assert "a/model.yaml:3: unknown key" in told.text
    assert "perennial check a" in told.text
    after = look(replace(known(), unreadable={"b": broken["b"]}))
    assert after.is_over("folders/a")
    assert not after.is_over("folders/b")


def test_a_folder_that_airflow_alone_cannot_read_is_told() -> None:
    report = {BROKEN_MODELS: "Traceback\nSpecError: …\nNo DAGs, because the model's folder cannot be read: a, b."}

    told = look(known(airflow=AirflowState(import_errors=report))).findings

    assert set(told) == {"dags/broken_models"}
    assert "cannot be read: a, b." in told["dags/broken_models"].alert.text


def test_a_broken_dag_file_is_said_to_concern_every_model() -> None:
    errors = {"ingest.py": "SpecError: no", BROKEN_MODELS: "SpecError: broken"}
    alert = look(known(airflow=AirflowState(import_errors=errors))).findings["dags/import_errors"].alert

    assert "of any model" in alert.text
    assert BROKEN_MODELS not in alert.text
