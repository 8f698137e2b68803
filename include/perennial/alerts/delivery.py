"""The sender: what waits in the outbox leaves for its channels, each at its own pace.

Channels are served side by side, each by one sender at a time: Slack being down keeps nothing from e-mail. What a channel
does not take waits, longer after each failure in a row; when it is well again, all that waits goes as a few messages.
What is sent and not yet marked when a sender is killed is sent once more: at most one duplicate, and nothing lost.

Neighbours: :mod:`perennial.alerts.outbox` remembers, :mod:`perennial.alerts.messages` words it,
:mod:`perennial.alerts.channels` sends it; :mod:`perennial.orchestration.notifiers` calls this with Airflow's connections.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from perennial.alerts import channels, of_operation
from perennial.alerts.alert import Alert
from perennial.alerts.channels import DEADLINE
from perennial.alerts.messages import Message, compose, in_fewest_words
from perennial.alerts.outbox import Lease, Outbox, Waiting
from perennial.core import logs
from perennial.core.errors import NotDelivered

log = logs.get(__name__)


#: The wait after the first failure of a channel; each further one doubles it, to at most ``LONGEST_WAIT``.
FIRST_WAIT = timedelta(minutes=1)
LONGEST_WAIT = timedelta(minutes=10)

#: The wait after a refusal that somebody has to mend: the next attempt shows whether somebody has.
MENDED_WITHIN = timedelta(hours=1)

#: Slack takes about one message a second for a channel.
PACE = timedelta(seconds=1)

#: People are told through other channels of one that has failed for this long, at once if it will not get well by itself.
LOST_AFTER = timedelta(minutes=30)

#: A channel is held for this much longer than the sending of one message may take.
_MARGIN = timedelta(seconds=50)


@dataclass(frozen=True)
class Outcome:
    """What a sender did.

    Attributes:
        delivered: alerts that a channel took, each channel counted.
        failed: channels that took nothing more.
        unaddressed: new alerts that no channel is for.
        skipped: channels that something waits for, and that this sender cannot open.
    """

    delivered: int = 0
    failed: int = 0
    unaddressed: int = 0
    skipped: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Addresses:
    """Who is told what, as models and the environment say.

    Attributes:
        choose: the channels of an alert; None while that cannot be said.
        named: every channel that somebody names; None while that cannot be said.
    """

    choose: Callable[[Alert], Collection[str] | None]
    named: Callable[[], Collection[str] | None]


def wait_after(failures: int, channel: str) -> timedelta:
    """How long a channel is left alone after its ``failures``-th failure in a row.

    A quarter more or less, by the channel's name and the number, so that channels of one server that was down do not all
    come back to it at once.
    """
    wait = min(FIRST_WAIT * float(2 ** min(failures - 1, 20)), LONGEST_WAIT)
    drawn = hashlib.sha256(f"{channel}/{failures}".encode()).digest()[0] / 255
    return wait * (0.75 + drawn / 2)


def deliver(
    outbox: Outbox,
    addresses: Addresses,
    open_channel: Callable[[str], channels.Channel],
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    overdue_by: timedelta = timedelta(),
    at_once: bool = False,
    deadline: timedelta = DEADLINE,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Outcome:
    """Send what waits, over all channels that may be used now.

    Args:
        outbox: where alerts wait.
        addresses: who is told what.
        open_channel: the way to a channel, by its name. Raises NotDelivered where there is none.
        clock: the time.
        overdue_by: leave alone what another sender is not late with by this much. Who steps in for another one may lack
            its connections: a channel that it cannot open it leaves as it is.
        at_once: do not wait for the end of a pause after a failure, as when somebody has mended a connection.
        deadline: everything that one message may take.
        pause: waits for some seconds between two messages.
    """
    now = clock()
    outcome = Outcome(unaddressed=outbox.route(addresses.choose, now))
    opened: list[tuple[Lease, channels.Channel]] = []
    for channel in outbox.due(now, before=now - overdue_by, at_once=at_once):
        try:
            way = open_channel(channel.channel)
        except NotDelivered as error:
            if overdue_by > timedelta():
                log.warning("alerts wait for %s, which cannot be opened here: %s", channel.channel, error)
                outcome += Outcome(skipped=1)
            elif lease := outbox.claim(channel, now, now + deadline + _MARGIN):
                _fail(outbox, addresses, lease, outbox.waiting(channel.channel), error, now)
                outcome += Outcome(failed=1)
            continue
        if lease := outbox.claim(channel, now, now + deadline + _MARGIN):
            opened.append((lease, way))

    async def serve_all() -> list[Outcome | BaseException]:
        servings = (_serve(outbox, addresses, lease, way, clock, deadline, pause) for lease, way in opened)
        # What goes wrong with one channel does not end the sending to another half-way.
        return await asyncio.gather(*servings, return_exceptions=True)

    for served in asyncio.run(serve_all()) if opened else []:
        if isinstance(served, BaseException):
            raise served
        outcome += served
    return outcome


async def _serve(
    outbox: Outbox,
    addresses: Addresses,
    lease: Lease,
    way: channels.Channel,
    clock: Callable[[], datetime],
    deadline: timedelta,
    pause: Callable[[float], Awaitable[None]],
) -> Outcome:
    """Send what waits for one channel, until it is all sent or the channel takes no more."""
    delivered = 0
    for message in compose(outbox.waiting(lease.channel.channel)):
        if delivered:
            await pause(PACE.total_seconds())
        # Whoever has slept for so long that another one took over must not tell the same again.
        if not outbox.keep(lease, clock() + deadline + _MARGIN):
            return Outcome(delivered=delivered)
        try:
            receipt = await _send(way, message, deadline)
        except NotDelivered as error:
            waiting = outbox.waiting(lease.channel.channel)
            _fail(outbox, addresses, lease, [one for one in waiting if one.id in message.numbers], error, clock())
            return Outcome(delivered=delivered, failed=1)
        now = clock()
        outbox.mark_delivered(lease, message.numbers, now, receipt=receipt, next_attempt_at=now + PACE)
        delivered += len(message.numbers)
    outbox.release(lease)
    return Outcome(delivered=delivered)


async def _send(way: channels.Channel, message: Message, deadline: timedelta) -> str | None:
    try:
        return await channels.send(way, message, deadline=deadline)
    except NotDelivered as error:
        if not error.offends:
            raise
        log.warning("an alert's text was refused (%s): it is sent without", error)
    try:
        return await channels.send(way, in_fewest_words(message), deadline=deadline)
    except NotDelivered as error:
        # It is not the text, then.
        raise NotDelivered(str(error), after=error.after, mend=error.mend or error.offends) from error


def _fail(
    outbox: Outbox, addresses: Addresses, lease: Lease, tried: Collection[Waiting], error: NotDelivered, now: datetime
) -> None:
    """Remember that a channel does not take alerts, and let others tell if that is no passing matter."""
    channel = lease.channel
    named = addresses.named() if error.mend else None
    if named is not None and channel.channel not in named:
        log.warning("%s is given up, since neither a model nor the environment names it any more: %s", channel.channel, error)
        outbox.give_up(lease, now, reason=f"nobody names the channel any more: {error}")
        return
    wait = error.after or (MENDED_WITHIN if error.mend else wait_after(channel.failures + 1, channel.channel))
    since = channel.failing_since or now
    lost: Alert | None = None
    tell: set[str] = set()
    if error.mend or now - since >= LOST_AFTER:
        waiting = outbox.waiting(channel.channel)
        lost = of_operation.channel_lost(
            channel.channel,
            reason=str(error),
            since=since,
            refuses=error.mend,
            waiting=len(waiting),
            critical=sum(one.alert.severity == "critical" for one in waiting),
        )
        for one in {found.alert.model: found.alert for found in waiting}.values():
            tell |= set(addresses.choose(one) or ())
        tell |= set(addresses.choose(lost) or ())
        tell.discard(channel.channel)
    log.error("%s takes no alerts: %s; next attempt in %s", channel.channel, error, wait)
    outbox.mark_failed(
        lease,
        [one.id for one in tried],
        now,
        error=str(error),
        next_attempt_at=now + wait,
        refused=error.mend,
        lost=lost,
        tell=tell,
    )
