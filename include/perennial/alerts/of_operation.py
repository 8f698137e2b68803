"""Alerts about operations: failed runs, processes that are down, data that are late. One function per kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from perennial.alerts.alert import EVERYBODY, Alert, as_text, clean
from perennial.core.intervals import Interval


def run_failed(
    model: str,
    *,
    stage: str,
    run_id: str,
    interval: Interval | None,
    error: str,
    tries: int = 1,
    links: Mapping[str, str] | None = None,
    subject: str | None = None,
) -> Alert:
    """A run failed for good.

    Args:
        model: the model.
        stage: the stage or task that failed, such as ``ingest``.
        run_id: the run.
        interval: what the run was for, if that is known.
        error: type and message of the error. The alert quotes only its first line, since other lines may quote data.
        tries: how often it was tried.
        links: addresses of the run and its log.
        subject: see :func:`perennial.alerts.alert.failure`.
    """
    what_for = f" for {interval.key}" if interval is not None else ""
    often = f" {tries} times" if tries > 1 else ""
    first = next((line for line in error.splitlines() if line.strip()), "no message")
    return Alert(
        model=model,
        severity="critical",
        kind="run_failed",
        title=f"{model}: {stage} failed{what_for}",
        text=as_text(
            f"Run {clean(run_id)} of {stage}{what_for} failed{often} and will not be retried:",
            [first],
            "Open its log and repair the cause. Then clear the failed task: every stage can run again for the same interval.",
        ),
        links=dict(links or {}),
        subject=subject,
    )


def form_refused(model: str, *, stage: str, run_id: str, by: str, reason: str, links: Mapping[str, str] | None = None) -> Alert:
    """A person asked for something in a form that cannot be done. It is kept, and sent to nobody: the person was told.

    Args:
        model: the model.
        stage: the stage or task that refused.
        run_id: the run.
        by: who filled in the form.
        reason: why, and what would be right.
        links: addresses of the run and its log.
    """
    return Alert(
        model=model,
        severity="warning",
        kind="form_refused",
        title=f"{model}: {stage}, cannot do what {clean(by)} asked for",
        text=as_text(
            f"Run {clean(run_id)} of {stage} did nothing. {clean(by)} was told on the task and in the run's note:",
            [reason],
            "Trigger it again with other values. Nobody else needs to act.",
        ),
        links=dict(links or {}),
    )


def channel_lost(channel: str, *, reason: str, since: datetime, refuses: bool, waiting: int, critical: int) -> Alert:
    """A channel takes no alerts. The other channels get this alert.

    Args:
        channel: its name.
        reason: its last answer.
        since: when it began.
        refuses: whether a person has to repair it.
        waiting: how many alerts wait for it.
        critical: how many of them are critical.
    """
    which = f"{waiting} alert{'s' if waiting > 1 else ''} {'wait' if waiting > 1 else 'waits'}, {critical} of them critical"
    todo = (
        "Repair its connection in Airflow, or the channel in model.yaml, then trigger perennial.notify. It is retried hourly."
        if refuses
        else "You need not act: it is retried automatically, at least every quarter of an hour."
    )
    return Alert(
        model=EVERYBODY,
        severity="critical",
        kind="channel_lost",
        title=f"{channel} takes no alerts",
        text=as_text(
            f"Since {since:%Y-%m-%d %H:%M} UTC no alert could be sent to {channel}. No alert is lost:",
            [reason, which],
            todo,
        ),
        subject=f"channel/{channel}",
    )


def airflow_silent(model: str, *, reason: str) -> Alert:
    """Airflow's API does not answer."""
    return Alert(
        model=model,
        severity="critical",
        kind="airflow_silent",
        title="Airflow does not answer",
        text=as_text(
            "Nobody can see or start runs, and it is unknown whether tasks still run:",
            [reason],
            "Check the log of the API server, and its database. Runs continue automatically once it answers again.",
        ),
    )


def component_down(model: str, *, component: str, heartbeat: datetime | None) -> Alert:
    """A component of Airflow has stopped."""
    stops = {
        "scheduler": "No task starts.",
        "dag_processor": "Changes of DAGs and models have no effect.",
        "triggerer": "Deferred tasks do not resume.",
        "metadatabase": "Airflow cannot read its database.",
    }
    last = f"its last heartbeat was at {heartbeat:%Y-%m-%d %H:%M:%S} UTC" if heartbeat is not None else "it has no heartbeat"
    return Alert(
        model=model,
        severity="critical",
        kind="component_down",
        title=f"Airflow's {component.replace('_', ' ')} is down",
        text=as_text(
            f"{stops.get(component, 'A component of Airflow is missing.')} Known so far:",
            [last],
            "Read the end of its log, then start it again. What was due meanwhile runs then.",
        ),
    )


def judge_silent(model: str, *, since: datetime) -> Alert:
    """The judge has not answered a proposal for long."""
    return Alert(
        model=model,
        severity="critical",
        kind="judge_silent",
        title="The judge does not answer",
        text=as_text(
            "No version can become champion, and no rollback is done. Known so far:",
            [f"a task has waited for its answer since {since:%Y-%m-%d %H:%M:%S} UTC"],
            "See whether the process of perennial judge runs, read the end of its log, and start it again. It takes up what "
            "waits. A ruling on a very large training may take this long.",
        ),
    )


def models_not_followed(model: str, *, since: datetime) -> Alert:
    """The repository of the models has not been followed for long."""
    return Alert(
        model=model,
        severity="warning",
        kind="models_not_followed",
        title="The repository of the models is not followed",
        text=as_text(
            "Commits that are pushed there have no effect; all models run on as they are. Known so far:",
            [f"it was last followed at {since:%Y-%m-%d %H:%M:%S} UTC"],
            "The log of the service models says why: the repository does not answer, refuses its key or token, or its branch "
            "has no folder of models.",
        ),
    )


def _last_line(error: str) -> str:
    """The last line of an error that says something. Those before may quote data."""
    return next((line for line in reversed(error.splitlines()) if line.strip()), "")


def import_errors(model: str, *, errors: Mapping[str, str]) -> Alert:
    """DAG files are broken. The alert quotes only the last line of each error.

    Args:
        errors: the error of each file.
    """
    return Alert(
        model=model,
        severity="critical",
        kind="import_errors",
        title="A DAG file cannot be read",
        text=as_text(
            "Airflow neither schedules nor triggers the DAGs of these files, of any model:",
            [f"{file}: {_last_line(text)}" for file, text in sorted(errors.items())],
            "Airflow's page of DAGs has the whole error. Correct the file; its DAGs return when Airflow has read it again.",
        ),
    )


def broken_folder(model: str, *, error: str, broken: str | None = None) -> Alert:
    """The folder of a model cannot be read.

    Args:
        error: what is wrong with it. The alert quotes the first line; without ``broken`` it quotes the last line, in which
            Airflow names the model.
        broken: name of the model; None if only Airflow reports the error.
    """
    first = next(iter(error.splitlines()), "")
    return Alert(
        model=model,
        severity="critical",
        kind="import_errors",
        title=f"The folder of {broken} cannot be read" if broken else "Airflow cannot read a model's folder",
        text=as_text(
            f"{broken or 'The model'} has no DAGs until its folder is corrected, so it does not run. Other models run on:",
            [first if broken else _last_line(error)],
            f"`perennial check {broken or 'MODEL'}` lists everything that is wrong with it. Its DAGs return when Airflow has "
            "read it again.",
        ),
    )


def paused(model: str, *, stages: Sequence[str]) -> Alert:
    """Some of a model's DAGs are switched off while others are on."""
    return Alert(
        model=model,
        severity="warning",
        kind="paused",
        title=f"{model}: {', '.join(stages)} switched off",
        text=as_text(
            "The model's other DAGs are on, and these are not:",
            [f"{model}.{stage}" for stage in stages],
            "Switch them on in Airflow. Or switch all of the model's DAGs off: then the watchdog expects nothing of it.",
        ),
    )


def task_died(model: str, *, stage: str, task: str, run_id: str, interval: Interval | None, subject: str) -> Alert:
    """A task failed without an error: its process was killed, or its machine was lost.

    Args:
        subject: see :func:`perennial.alerts.alert.failure`.
    """
    what_for = f" for {interval.key}" if interval is not None else ""
    return Alert(
        model=model,
        severity="critical",
        kind="run_failed",
        title=f"{model}: {stage} failed{what_for}",
        text=as_text(
            f"Task {task} of run {clean(run_id)} failed without an error message:",
            ["its process was killed (for example, out of memory), or its worker was lost"],
            "Check the worker's memory and the end of the task's log. Then clear the task: every stage can run again.",
        ),
        subject=f"{subject}/{interval.key if interval is not None else run_id}",
    )


def run_ended(model: str, *, stage: str, run_id: str, interval: Interval | None) -> Alert:
    """A run failed although none of its tasks did: it took too long, or a person marked it as failed."""
    subject = f" for {interval.key}" if interval is not None else ""
    return Alert(
        model=model,
        severity="critical",
        kind="run_failed",
        title=f"{model}: {stage} was stopped{subject}",
        text=as_text(
            f"Run {clean(run_id)} failed:",
            ["none of its tasks failed: it exceeded the time limit of a run, or somebody marked it as failed"],
            "Open the run in Airflow, then clear its unfinished tasks: every stage can run again.",
        ),
    )


def run_stuck(model: str, *, stage: str, run_id: str, state: str, since: datetime, interval: Interval | None) -> Alert:
    """A run takes too long."""
    subject = f" for {interval.key}" if interval is not None else ""
    return Alert(
        model=model,
        severity="warning",
        kind="run_stuck",
        title=f"{model}: {stage} does not end{subject}",
        text=as_text(
            f"Run {clean(run_id)} has not ended within watch.run of model.yaml:",
            [f"it has been {state} since {since:%Y-%m-%d %H:%M} UTC"],
            "Queued: no worker takes its tasks, or an earlier run of the DAG has not ended. Running: read its task's log.",
        ),
    )


def silent(model: str, missing: Sequence[Interval], *, tick: datetime, catch_up: timedelta) -> Alert:
    """Days are not published although they were due.

    Args:
        model: the model.
        missing: all of them, in stretches, oldest first.
        tick: when the newest day was due.
        catch_up: ``schedules.catch_up``.
    """
    days = sum(len(stretch.touched_days()) for stretch in missing)
    count = "1 day is" if days == 1 else f"{days:,} days are"
    # A person looks at the newest first, and a message shows only some.
    newest_first = [_stretch(stretch) for stretch in reversed(missing)]
    bound = tick - catch_up
    # The day before a tick is due with it.
    left = [stretch for stretch in missing if stretch.start + timedelta(days=1) < bound]
    older = (
        f" Days before {bound:%-d %b %Y} are left out then (schedules.catch_up): for {_stretch(left[0])}, say, trigger "
        f"{model}.load with start {left[0].start:%Y-%m-%d}, end {left[0].end:%Y-%m-%d} and announce_scoring on, or run: "
        f"perennial ingest {model} {left[0].start:%Y-%m-%d} {left[0].end:%Y-%m-%d}"
        if left
        else ""
    )
    return Alert(
        model=model,
        severity="critical",
        kind="silent",
        title=f"{model}: {count} not published, the last one {missing[-1].days()[-1].in_words}",
        text=as_text(
            f"Ingestion was due at {tick:%Y-%m-%d %H:%M} UTC, but of the days since the first published one, {count} missing:",
            newest_first,
            f"Days that a pause missed follow by themselves, oldest first.{older} Where a run of {model}.ingest failed or is "
            "stuck, correct the cause and clear it. Declare days without data under schedules.closed in model.yaml.",
        ),
    )


def table_late(model: str, *, table: str, missing: Sequence[Interval], late: timedelta) -> Alert:
    """Days are published without a table that is no longer looked for.

    Args:
        model: the model.
        table: the table.
        missing: the days, in stretches, oldest first.
        late: the table's ``late``.
    """
    first = missing[0]
    days = sum(len(stretch.touched_days()) for stretch in missing)
    which = first.days()[0].in_words if days == 1 else f"{days:,} days, the first one {first.days()[0].in_words}"
    return Alert(
        model=model,
        severity="warning",
        kind="data_late",
        title=f"{model}: {table} has not come for {which}",
        text=as_text(
            f"These days are published without {table}. It may come {_days(late)} late. That is over, so no ingest looks for "
            "it any more:",
            [_stretch(stretch) for stretch in reversed(missing)],
            f"Once the source has it, trigger {model}.ingest for these days, such as start {first.start:%Y-%m-%d} and end "
            f"{first.end:%Y-%m-%d}, or run: perennial ingest {model} {first.start:%Y-%m-%d} {first.end:%Y-%m-%d}. If no data "
            "come for a day, name it first under schedules.closed in model.yaml.",
        ),
    )


def rows_late(model: str, interval: Interval, *, table: str, by_day: Mapping[str, int], late: timedelta) -> Alert:
    """Rows came later than a table's ``late`` allows.

    Args:
        model: the model.
        interval: what was ingested.
        table: the table.
        by_day: how many rows, by the day that they belong to.
        late: the table's ``late``.
    """
    of_days = {Interval.from_key(day).in_words: number for day, number in by_day.items()}
    return Alert(
        model=model,
        severity="warning",
        kind="data_late",
        title=f"{model}: {_rows(sum(by_day.values()))} of {table} came too late, with {interval.in_words}",
        text=as_text(
            f"They came more than {_days(late)} late (`late` of {table}), so they are in quarantine. They belong to:",
            [f"{day} ({_rows(number)})" for day, number in of_days.items()],
            f"To publish them, state a longer `late` in model.yaml, then trigger {model}.ingest with start "
            f"{interval.start:%Y-%m-%d} and end {interval.end:%Y-%m-%d} again. Otherwise you need not act.",
        ),
    )


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"


def _days(duration: timedelta) -> str:
    number = duration / timedelta(days=1)
    return f"{number:g} {'day' if number == 1 else 'days'}"


def _stretch(interval: Interval) -> str:
    days = len(interval.touched_days())
    return interval.in_words if days == 1 else f"{interval.in_words} ({days:,} days)"


def unscored(model: str, missing: Sequence[Interval], *, version: int) -> Alert:
    """Features are published, but there are no predictions, in these stretches of days."""
    interval = missing[-1]
    return Alert(
        model=model,
        severity="critical",
        kind="unscored",
        title=f"{model}: no predictions for {interval.key}",
        text=as_text(
            f"Features were published hours ago, but version {version} has made no predictions for:",
            [_stretch(stretch) for stretch in reversed(missing)],
            f"Look for the run of {model}.score. If there is none, the next run of {model}.ingest starts it, as far back as "
            "schedules.catch_up; or trigger it for these days. Old days without predictions "
            "are loaded before the first champion, with announce_scoring off.",
        ),
    )


def unmonitored(model: str, interval: Interval) -> Alert:
    """A window is scored completely, but has no verdict."""
    return Alert(
        model=model,
        severity="warning",
        kind="unmonitored",
        title=f"{model}: {interval.key} has no drift verdict",
        text=as_text(
            f"{interval.key} is scored, as far as its days came, but it is unknown whether it drifted:",
            ["no drift verdict is recorded for this window"],
            f"Look for the run of {model}.monitor. If there is none, trigger it for this window.",
        ),
    )


def untrained(model: str, interval: Interval, *, tried_at: datetime) -> Alert:
    """A scheduled training made no version."""
    return Alert(
        model=model,
        severity="warning",
        kind="untrained",
        title=f"{model}: no training after {interval.key}",
        text=as_text(
            f"The features of {interval.key} are complete, but no version was trained since:",
            [f"the newest version was made at {tried_at:%Y-%m-%d %H:%M} UTC"],
            f"Look for the run of {model}.train. The champion stays in service.",
        ),
    )


def unrefreshed(model: str, interval: Interval, *, version: int) -> Alert:
    """A scheduled refresh made no version."""
    return Alert(
        model=model,
        severity="warning",
        kind="unrefreshed",
        title=f"{model}: no refresh after {interval.key}",
        text=as_text(
            f"The features of {interval.key} are complete, but the champion was not fitted on them:",
            [f"version {version} is champion, and no refresh was made since"],
            f"Look for the run of {model}.refresh; if its task was skipped, it says why. The champion stays in service.",
        ),
    )


def champion_stale(model: str, *, version: int, age: timedelta, limit: timedelta) -> Alert:
    """The champion was trained too long ago."""
    return Alert(
        model=model,
        severity="warning",
        kind="champion_stale",
        title=f"{model}: champion {version} is old",
        text=as_text(
            f"Version {version} was not trained on recent data:",
            [f"its training data end {age.days} days before the newest data; watch.champion allows {limit.days} days"],
            f"Find out why newer versions were refused (`perennial explain {model} VERSION`), or why there are none.",
        ),
    )


def labels_late(model: str, interval: Interval, *, version: int, limit: timedelta, share: float) -> Alert:
    """Labels of a window should be known by now, and are not."""
    return Alert(
        model=model,
        severity="warning",
        kind="labels_late",
        title=f"{model}: labels of {interval.key} are late",
        text=as_text(
            f"The performance of version {version} in {interval.key} is still unknown:",
            [f"labels of {share:.0%} of the predictions were due {limit.days} days after it (label.delay, watch.labels)"],
            "Check what the label's table received. Until labels arrive, drift is the only sign of trouble.",
        ),
    )


def alerts_waiting(model: str, *, count: int, since: datetime) -> Alert:
    """Alerts are not delivered."""
    return Alert(
        model=model,
        severity="warning",
        kind="alerts_waiting",
        title="Alerts wait to be sent",
        text=as_text(
            "Nothing sends alerts, or the channels refuse them:",
            [f"{count} wait, the oldest since {since:%Y-%m-%d %H:%M} UTC"],
            "Check the DAG perennial.notify and its last run. Meanwhile the watchdog sends the alerts that it can send.",
        ),
    )


def decisions_altered(model: str, *, problems: Sequence[str]) -> Alert:
    """The record of decisions in the ledger is not as the judge signed it."""
    return Alert(
        model=model,
        severity="critical",
        kind="decisions_altered",
        title="The record of decisions was altered",
        text=as_text(
            "The rows that say which version is champion are not as the judge signed them:",
            problems,
            "Do not trust which versions are champion. `perennial verify` shows everything; docs/operate.md, The record of "
            "decisions, says what to do.",
        ),
    )


def ledger_was_silent(model: str, *, since: datetime, until: datetime) -> Alert:
    """The ledger could not be read for a while. It holds the alerts, so this one is recorded when it is back."""
    return Alert(
        model=model,
        severity="critical",
        kind="ledger_silent",
        title="The ledger did not answer",
        text=as_text(
            "Nothing could be published or promoted, and no alert could be recorded:",
            [f"from {since:%Y-%m-%d %H:%M:%S} to {until:%Y-%m-%d %H:%M:%S} UTC"],
            "It answers again. Read the database's log. Tasks that failed meanwhile have their own alerts.",
        ),
    )
