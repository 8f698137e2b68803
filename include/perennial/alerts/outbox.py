"""The outbox: every alert, written in the transaction of its cause, and its delivery on each channel.

An alert is a row. The sender (:mod:`perennial.alerts.delivery`) first routes it: each of its channels gets a separate row, so
that a channel that is down does not hold up the others. One sender at a time uses a channel and marks what it has sent. If it
dies in between, the next sender sends that message once more.

An alert with a subject is open until its subject has recovered. Then another row, the recovery, goes to the same channels.

The functions take the connection of the transaction that also writes the cause. :class:`Outbox` is for senders; each of its
methods is a transaction. Callers reach both by :class:`perennial.ledger.store.Ledger`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from perennial.alerts.alert import Alert, linked, recovered
from perennial.core.columns import Text, insert, json_value, number, number_itself, table, text, time
from perennial.core.database import Database

_outbox = table(
    "outbox",
    number_itself(),
    sa.Column("key", Text, nullable=False, unique=True),
    json_value("alert"), time("created_at"),
    text("subject", null=True), number("resolved_by", null=True), time("routed_at", null=True),
    sa.Index("perennial_outbox_by_subject", "subject", "resolved_by"),
    sa.Index("perennial_outbox_by_recovery", "resolved_by"),
    sa.Index("perennial_outbox_by_routing", "routed_at"),
)  # fmt: skip

_deliveries = table(
    "deliveries",
    number("alert_id", key=True), text("channel", key=True),
    number("attempts"), time("delivered_at", null=True), time("given_up_at", null=True),
    text("receipt", null=True), text("error", null=True),
    sa.Index("perennial_deliveries_by_channel", "channel", "delivered_at"),
)  # fmt: skip

_channels = table(
    "channels",
    text("channel", key=True),
    time("next_attempt_at"), text("held_by", null=True), time("held_until", null=True),
    number("failures"), time("failing_since", null=True), time("refused_at", null=True), text("error", null=True),
)  # fmt: skip

_waits = sa.and_(_deliveries.c.delivered_at.is_(None), _deliveries.c.given_up_at.is_(None))

#: Most alerts that are routed, or sent over a channel, at once; the rest follows next time.
_MOST = 2000


@dataclass(frozen=True)
class Delivery:
    """The delivery of an alert on a channel.

    Attributes:
        attempts: how many attempts failed.
        delivered_at: when the channel took it; None before.
        given_up_at: when it was given up; None otherwise.
        receipt: the channel's id of the message, if it has one.
        error: the channel's last refusal, or why the alert was given up.
    """

    channel: str
    attempts: int
    delivered_at: datetime | None
    given_up_at: datetime | None
    receipt: str | None
    error: str | None

    @property
    def waits(self) -> bool:
        return self.delivered_at is None and self.given_up_at is None

    def __str__(self) -> str:
        if self.delivered_at is not None:
            return f"{self.channel}: {self.delivered_at:%Y-%m-%d %H:%M}"
        state = "given up" if self.given_up_at is not None else f"waits after {self.attempts} failed attempts"
        return f"{self.channel}: {state}{f', {self.error}' if self.error else ''}"


@dataclass(frozen=True)
class OutboxEntry:
    """An alert and its state.

    Attributes:
        key: the same event has the same key, and is recorded once.
        resolved_by: the entry of its recovery; None while it is open, or has no subject.
        routed_at: when its channels were chosen; None before.
        deliveries: one per channel that it goes to; none if it goes to none.
    """

    id: int
    key: str
    alert: Alert
    created_at: datetime
    resolved_by: int | None
    routed_at: datetime | None
    deliveries: tuple[Delivery, ...]

    @property
    def waits(self) -> bool:
        """Whether it has not been routed, or a channel has not taken it yet."""
        return self.routed_at is None or any(delivery.waits for delivery in self.deliveries)

    @property
    def attempts(self) -> int:
        """Failed attempts on the channel with the most of them."""
        return max((delivery.attempts for delivery in self.deliveries), default=0)


@dataclass(frozen=True)
class Waiting:
    """An alert that waits for a channel.

    Attributes:
        resolves: the entries whose recovery it reports, if it reports one.
        answers: the receipt of the message that reported the trouble on this channel.
    """

    id: int
    key: str
    alert: Alert
    created_at: datetime
    attempts: int
    resolves: tuple[int, ...] = ()
    answers: str | None = None


@dataclass(frozen=True)
class ChannelState:
    """The state of a channel.

    Attributes:
        next_attempt_at: it is not used before.
        failures: failures in a row; 0 while it works.
        failing_since: the first of them.
        refused_at: since when it refuses until a person repairs it; None otherwise.
        error: its last error.
    """

    channel: str
    next_attempt_at: datetime
    failures: int
    failing_since: datetime | None
    refused_at: datetime | None
    error: str | None


@dataclass(frozen=True)
class Lease:
    """The right to use a channel, as long as the channel's holder is ``token``."""

    channel: ChannelState
    token: str


@dataclass(frozen=True)
class Backlog:
    """What waits to be sent.

    Attributes:
        count: how many alerts, counted once per channel.
        since: when the oldest of them was recorded; None if none waits.
    """

    count: int
    since: datetime | None


# --- writing, in the transaction of the cause -----------------------------------------------------------------------


def record(connection: sa.Connection, alert: Alert, key: str) -> bool:
    """Put an alert into the outbox.

    Returns:
        Whether it was recorded: nothing happens if the same ``key`` is there already and has not been resolved.
    """
    return _record(connection, linked(alert), key) is not None


def _record(connection: sa.Connection, alert: Alert, key: str) -> int | None:
    values = {"alert": alert.to_json(), "created_at": _now(), "subject": alert.subject}
    found = connection.execute(
        insert(connection, _outbox)
        .values(key=key, **values)
        .on_conflict_do_nothing(index_elements=["key"])
        .returning(_outbox.c.id)
    ).scalar_one_or_none()
    if found is not None or alert.subject is None:
        return found
    over = connection.execute(sa.select(_outbox.c.resolved_by).where(_outbox.c.key == key)).scalar_one()
    # It had recovered, and that was reported. So this is news.
    return None if over is None else _record(connection, alert, f"{key}#{over}")


def keep(connection: sa.Connection, alert: Alert, key: str) -> bool:
    """Put an alert into the outbox that goes to nobody: whom it concerns was told elsewhere.

    Returns:
        Whether it was recorded, as for :func:`record`.
    """
    number = _record(connection, linked(alert), key)
    if number is not None:
        connection.execute(sa.update(_outbox).where(_outbox.c.id == number).values(routed_at=_now()))
    return number is not None


def is_open(connection: sa.Connection, subject: str) -> bool:
    """Whether there is an alert of the subject that is not resolved."""
    return connection.execute(sa.select(sa.exists().where(*_open(subject)))).scalar_one()


def open_subjects(connection: sa.Connection, topic: str) -> list[str]:
    """The subjects below ``topic``, and ``topic`` itself, that have an open alert."""
    below = _outbox.c.subject.startswith(f"{topic}/", autoescape=True)
    query = sa.select(_outbox.c.subject).where(_outbox.c.resolved_by.is_(None), (_outbox.c.subject == topic) | below)
    return list(connection.execute(query.distinct().order_by(_outbox.c.subject)).scalars())


def resolve(connection: sa.Connection, subject: str, cause: str) -> bool:
    """Report that a subject has recovered, to everyone who was told about it; nothing happens if nothing is open.

    Args:
        connection: of the transaction that writes what ended it.
        subject: of the alerts.
        cause: what ended it, as a sentence.

    Returns:
        Whether there was anything to resolve.
    """
    query = sa.select(_outbox.c.id, _outbox.c.key, _outbox.c.alert, _outbox.c.created_at).where(*_open(subject))
    found = connection.execute(query.order_by(_outbox.c.id)).all()
    if not found:
        return False
    told = [Alert.from_json(row.alert) for row in found]
    recovery = linked(recovered(told, since=found[0].created_at, cause=cause))
    number = _record(connection, recovery, f"recovered/{found[0].key}")
    if number is None:  # another process has just said so
        return False
    of_these = _outbox.c.id.in_([row.id for row in found])
    connection.execute(sa.update(_outbox).where(of_these).values(resolved_by=number))
    return True


def rewrite(
    connection: sa.Connection, model: str, change: Callable[[dict[str, Any]], dict[str, Any]], *, dry_run: bool = False
) -> int:
    """Change what was said in a model's alerts, as when a value that they quote is erased.

    Args:
        connection: of a transaction.
        model: whose alerts.
        change: gives an alert's plain values as they are to be.
        dry_run: count only.

    Returns:
        How many alerts differ.
    """
    changed = 0
    for row in connection.execute(sa.select(_outbox.c.id, _outbox.c.alert)).all():
        if row.alert.get("model") == model and (after := change(row.alert)) != row.alert:
            changed += 1
            if not dry_run:
                connection.execute(sa.update(_outbox).where(_outbox.c.id == row.id).values(alert=after))
    return changed


def _open(subject: str) -> list[sa.ColumnElement[bool]]:
    return [_outbox.c.subject == subject, _outbox.c.resolved_by.is_(None)]


# --- reading ---------------------------------------------------------------------------------------------------------


def entries(connection: sa.Connection, *, since: datetime | None = None, model: str | None = None) -> list[OutboxEntry]:
    """All alerts, oldest first.

    Args:
        connection: of a transaction.
        since: leaves out older ones, unless they are open or wait for delivery.
        model: leaves out those that concern another model, or none.
    """
    query = sa.select(_outbox)
    if model is not None:
        query = query.where(sa.cast(_outbox.c.alert, sa.Text).contains(json.dumps({"model": model})[1:-1], autoescape=True))
    if since is not None:
        waiting = sa.select(_deliveries.c.alert_id).where(_waits)
        is_open = _outbox.c.subject.is_not(None) & _outbox.c.resolved_by.is_(None)
        query = query.where(
            (_outbox.c.created_at >= since) | _outbox.c.routed_at.is_(None) | _outbox.c.id.in_(waiting) | is_open
        )  # fmt: skip
    # Another alert may say the same somewhere in its text.
    return [one for one in _entries(connection, query) if model is None or one.alert.model == model]


def opened(connection: sa.Connection, topic: str) -> list[OutboxEntry]:
    """The open alerts whose subject is below ``topic``, oldest first."""
    below = _outbox.c.subject.startswith(f"{topic}/", autoescape=True)
    return _entries(connection, sa.select(_outbox).where(_outbox.c.resolved_by.is_(None), below))


def _entries(connection: sa.Connection, query: sa.Select[Any]) -> list[OutboxEntry]:
    rows = connection.execute(query.order_by(_outbox.c.id)).mappings().all()
    ids = query.with_only_columns(_outbox.c.id).order_by(None)
    made: dict[int, list[Delivery]] = {}
    for row in connection.execute(
        sa.select(_deliveries).where(_deliveries.c.alert_id.in_(ids)).order_by(_deliveries.c.channel)
    ).mappings():
        made.setdefault(row["alert_id"], []).append(Delivery(**{k: v for k, v in row.items() if k != "alert_id"}))
    return [
        OutboxEntry(
            id=row["id"],
            key=row["key"],
            alert=Alert.from_json(row["alert"]),
            created_at=row["created_at"],
            resolved_by=row["resolved_by"],
            routed_at=row["routed_at"],
            deliveries=tuple(made.get(row["id"], ())),
        )
        for row in rows
    ]


# --- sending ---------------------------------------------------------------------------------------------------------


class Outbox:
    """The outbox of a ledger, for those who send.

    Args:
        database: the ledger's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def backlog(self) -> Backlog:
        """How much waits. It only counts, since it is called every minute."""
        unrouted = sa.select(_outbox.c.created_at).where(_outbox.c.routed_at.is_(None))
        undelivered = sa.select(_outbox.c.created_at).join(_deliveries, _deliveries.c.alert_id == _outbox.c.id).where(_waits)
        waiting = sa.union_all(unrouted, undelivered).subquery()
        with self._database.reading() as connection:
            count, since = connection.execute(sa.select(sa.func.count(), sa.func.min(waiting.c.created_at))).one()
        return Backlog(count, since)

    def route(self, choose: Callable[[Alert], Collection[str] | None], now: datetime) -> int:
        """Choose the channels of each new alert. A recovery goes to the channels that got the alert.

        Args:
            choose: returns the channels of an alert; None leaves it for later, as while its model's folder cannot be read.
            now: the time.

        Returns:
            How many alerts have no channel.
        """
        with self._database.reading() as connection:
            query = sa.select(_outbox).where(_outbox.c.routed_at.is_(None))
            new = _entries(connection, query.order_by(_outbox.c.id).limit(_MOST))
            resolved = _outbox.c.resolved_by.in_([entry.id for entry in new])
            recoveries = set(connection.execute(sa.select(_outbox.c.resolved_by).where(resolved).distinct()).scalars())
        chosen = {entry.id: None if entry.id in recoveries else choose(entry.alert) for entry in new}
        unaddressed = 0
        if recoveries or any(channels is not None for channels in chosen.values()):
            with self._database.writing("outbox") as connection:
                for number, channels in chosen.items():
                    channels = self._told(connection, number) if number in recoveries else channels
                    if channels is not None:
                        self._address(connection, number, sorted(channels), now)
                        unaddressed += not channels
        return unaddressed

    def _told(self, connection: sa.Connection, recovery: int) -> Collection[str] | None:
        """The channels that were told about the trouble; None while those are not chosen."""
        wrong = sa.select(_outbox.c.id).where(_outbox.c.resolved_by == recovery)
        if connection.execute(wrong.where(_outbox.c.routed_at.is_(None)).limit(1)).first() is not None:
            return None
        query = sa.select(_deliveries.c.channel).where(_deliveries.c.alert_id.in_(wrong), _deliveries.c.given_up_at.is_(None))
        return connection.execute(query.distinct()).scalars().all()

    def _address(self, connection: sa.Connection, number: int, channels: Iterable[str], now: datetime) -> None:
        for channel in channels:
            connection.execute(
                insert(connection, _channels)
                .values(channel=channel, next_attempt_at=now, failures=0)
                .on_conflict_do_nothing(index_elements=["channel"])
            )
            connection.execute(
                insert(connection, _deliveries)
                .values(alert_id=number, channel=channel, attempts=0)
                .on_conflict_do_nothing(index_elements=["alert_id", "channel"])
            )
        connection.execute(sa.update(_outbox).where(_outbox.c.id == number).values(routed_at=now))

    def due(self, now: datetime, *, before: datetime, at_once: bool = False) -> list[ChannelState]:
        """The channels that have waiting alerts and may be used.

        Args:
            now: the time.
            before: only channels whose alerts have waited since then, and whose delay ended before then.
            at_once: also channels whose delay after a failure has not ended.
        """
        waiting = (
            sa.select(_deliveries.c.channel)
            .join(_outbox, _outbox.c.id == _deliveries.c.alert_id)
            .where(_waits, _outbox.c.created_at <= before)
        )
        free = sa.or_(_channels.c.held_until.is_(None), _channels.c.held_until <= now)
        query = sa.select(_channels).where(free, _channels.c.channel.in_(waiting)).order_by(_channels.c.channel)
        if not at_once:
            query = query.where(_channels.c.next_attempt_at <= before)
        return self._channels(query)

    def channels(self) -> list[ChannelState]:
        """Every channel that was ever used."""
        return self._channels(sa.select(_channels).order_by(_channels.c.channel))

    def _channels(self, query: sa.Select[Any]) -> list[ChannelState]:
        with self._database.reading() as connection:
            return [
                ChannelState(**{name: value for name, value in row.items() if not name.startswith("held_")})
                for row in connection.execute(query).mappings()
            ]

    def claim(self, channel: ChannelState, now: datetime, until: datetime) -> Lease | None:
        """Reserve a channel; None if another sender was quicker, or has used it since ``channel`` was read."""
        token = uuid.uuid4().hex
        with self._database.writing("outbox") as connection:
            taken = connection.execute(
                sa.update(_channels)
                .where(
                    _channels.c.channel == channel.channel,
                    _channels.c.next_attempt_at == channel.next_attempt_at,
                    sa.or_(_channels.c.held_until.is_(None), _channels.c.held_until <= now),
                )
                .values(held_by=token, held_until=until)
            )
        return Lease(channel, token) if taken.rowcount else None

    def keep(self, lease: Lease, until: datetime) -> bool:
        """Reserve a channel for longer; False if another sender has taken it over."""
        with self._database.writing("outbox") as connection:
            return bool(connection.execute(self._held(lease).values(held_until=until)).rowcount)

    def release(self, lease: Lease) -> None:
        """Let others use the channel."""
        with self._database.writing("outbox") as connection:
            connection.execute(self._held(lease).values(held_by=None, held_until=None))

    def _held(self, lease: Lease) -> sa.Update:
        mine = (_channels.c.channel == lease.channel.channel, _channels.c.held_by == lease.token)
        return sa.update(_channels).where(*mine)

    def waiting(self, channel: str) -> list[Waiting]:
        """What waits for a channel, oldest first."""
        of_channel = _deliveries.c.channel == channel
        query = (
            sa.select(_outbox.c.id, _outbox.c.key, _outbox.c.alert, _outbox.c.created_at, _deliveries.c.attempts)
            .join(_deliveries, _deliveries.c.alert_id == _outbox.c.id)
            .where(of_channel, _waits)
            .order_by(_outbox.c.id)
            .limit(_MOST)
        )
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
            resolved = (
                sa.select(_outbox.c.resolved_by, _outbox.c.id, _deliveries.c.receipt)
                .join(_deliveries, _deliveries.c.alert_id == _outbox.c.id)
                .where(of_channel, _outbox.c.resolved_by.in_([row.id for row in rows]))
                .order_by(_outbox.c.id)
            )
            resolves: dict[int, list[int]] = {}
            answers: dict[int, str] = {}
            for row in connection.execute(resolved):
                resolves.setdefault(row.resolved_by, []).append(row.id)
                if row.receipt is not None:
                    answers.setdefault(row.resolved_by, row.receipt)
        return [
            Waiting(
                id=row.id,
                key=row.key,
                alert=Alert.from_json(row.alert),
                created_at=row.created_at,
                attempts=row.attempts,
                resolves=tuple(resolves.get(row.id, ())),
                answers=answers.get(row.id),
            )
            for row in rows
        ]

    def mark_delivered(
        self, lease: Lease, numbers: Sequence[int], now: datetime, *, receipt: str | None, next_attempt_at: datetime
    ) -> None:
        """Record that a channel took these alerts. If the channel was reported as lost, its recovery is reported.

        Args:
            lease: of the channel.
            numbers: the alerts.
            now: the time.
            receipt: the channel's id of the message.
            next_attempt_at: the channel is not used before, because of its rate limit.
        """
        channel = lease.channel.channel
        with self._database.writing("outbox") as connection:
            self._mark(connection, channel, numbers, {"delivered_at": now, "receipt": receipt, "error": None})
            well = {"failures": 0, "failing_since": None, "refused_at": None, "error": None}
            connection.execute(self._held(lease).values(**well, next_attempt_at=next_attempt_at))
            resolve(connection, f"channel/{channel}", f"{channel} takes alerts again.")

    def mark_failed(
        self,
        lease: Lease,
        numbers: Sequence[int],
        now: datetime,
        *,
        error: str,
        next_attempt_at: datetime,
        refused: bool,
        lost: Alert | None = None,
        tell: Collection[str] = (),
    ) -> None:
        """Record that a channel did not take these alerts. They keep waiting, and the channel is released.

        Args:
            lease: of the channel.
            numbers: the alerts.
            now: the time.
            error: its answer, without secrets and without a server's whole answer.
            next_attempt_at: when to retry.
            refused: whether a person has to repair it first.
            lost: the alert about the channel, unless one is open already.
            tell: the channels that get that alert.
        """
        with self._database.writing("outbox") as connection:
            increased = {"attempts": _deliveries.c.attempts + 1, "error": error}
            self._mark(connection, lease.channel.channel, numbers, increased)
            connection.execute(
                self._held(lease).values(
                    failures=_channels.c.failures + 1,
                    failing_since=sa.func.coalesce(_channels.c.failing_since, now),
                    refused_at=sa.func.coalesce(_channels.c.refused_at, now) if refused else None,
                    error=error,
                    next_attempt_at=next_attempt_at,
                    held_by=None,
                    held_until=None,
                )
            )
            if lost is not None and lost.subject is not None and not is_open(connection, lost.subject):
                number = _record(connection, lost, f"{lost.subject}/{now.isoformat()}")
                if number is not None:
                    self._address(connection, number, tell, now)

    def give_up(self, lease: Lease, now: datetime, *, reason: str) -> None:
        """Give up everything that waits for a channel, and remove the channel: nothing names it any more.

        Args:
            lease: of the channel.
            now: the time.
            reason: kept with each alert.
        """
        channel = lease.channel.channel
        with self._database.writing("outbox") as connection:
            connection.execute(
                sa.update(_deliveries)
                .where(_deliveries.c.channel == channel, _waits)
                .values(given_up_at=now, error=reason)
            )  # fmt: skip
            connection.execute(sa.delete(_channels).where(_channels.c.channel == channel, _channels.c.held_by == lease.token))
            resolve(connection, f"channel/{channel}", f"Nothing more is sent to {channel}: {reason}.")

    def withhold(self, now: datetime, *, reason: str) -> list[OutboxEntry]:
        """Give up everything that waits, on all channels. What is recorded later is sent.

        Args:
            now: the time.
            reason: kept with each alert.

        Returns:
            What was given up.
        """
        with self._database.writing("outbox") as connection:
            withheld = [entry for entry in entries(connection, since=now) if entry.waits]
            connection.execute(sa.update(_deliveries).where(_waits).values(given_up_at=now, error=reason))
            connection.execute(sa.update(_outbox).where(_outbox.c.routed_at.is_(None)).values(routed_at=now))
        return withheld

    def _mark(self, connection: sa.Connection, channel: str, numbers: Sequence[int], values: Mapping[str, Any]) -> None:
        connection.execute(
            sa.update(_deliveries).where(_deliveries.c.channel == channel, _deliveries.c.alert_id.in_(numbers)).values(**values)
        )


def _now() -> datetime:
    return datetime.now(UTC)
