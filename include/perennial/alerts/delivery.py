"""Sends the alerts that wait in the outbox to their channels.

Channels are served concurrently, each by one sender at a time: if Slack is down, e-mail still arrives. Failed messages are
retried after 1 minute, then with doubling delays up to 10 minutes (±25 % jitter). When the channel has recovered, all that
waits for it goes out as a few messages. If a sender is killed between sending a message and marking it, the next sender sends
that message once more: at most one duplicate, and nothing is lost.

Neighbours: :mod:`perennial.alerts.outbox` stores alerts, :mod:`perennial.alerts.messages` writes messages,
:mod:`perennial.alerts.channels` sends them; :mod:`perennial.orchestration.notifiers` calls this with Airflow's connections.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from perennial.alerts import channels, of_operation
from perennial.alerts.alert import Alert
from perennial.alerts.channels import DEADLINE
from perennial.alerts.messages import Message, compose, in_fewest_words
from perennial.alerts.outbox import Lease, Outbox, Waiting
from perennial.core.errors import NotDelivered

log = logging.getLogger(__name__)


#: The delay after the first failure of a channel. Each further failure doubles it, up to ``LONGEST_WAIT``.
FIRST_WAIT = timedelta(minutes=1)
LONGEST_WAIT = timedelta(minutes=10)

#: The delay after a refusal that a person has to repair.
MENDED_WITHIN = timedelta(hours=1)

#: Slack takes about one message per second and channel.
PACE = timedelta(seconds=1)

#: A channel that has failed for this long is reported through the others; at once if a person has to repair it.
LOST_AFTER = timedelta(minutes=30)

#: A channel is reserved for this much longer than one message may take.
_MARGIN = timedelta(seconds=50)


@dataclass(frozen=True)
class DeliveryResult:
    """What a sender did.

    Attributes:
        delivered: alerts that were delivered, counted once per channel.
        failed: channels that refused a message.
        unaddressed: new alerts without a channel.
        skipped: channels with waiting alerts that this sender cannot open.
    """

    delivered: int = 0
    failed: int = 0
    unaddressed: int = 0
    skipped: int = 0

    def __add__(self, other: DeliveryResult) -> DeliveryResult:
        return DeliveryResult(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Addresses:
    """Which channels get which alerts, as models and the environment say.

    Attributes:
        choose: the channels of an alert; None while that is unknown.
        named: every channel that a model or the environment names; None while that is unknown.
    """

    choose: Callable[[Alert], Collection[str] | None]
    named: Callable[[], Collection[str] | None]


def wait_after(failures: int, channel: str) -> timedelta:
    """How long a channel is not used after its ``failures``-th failure in a row.

    The jitter of ±25 % depends on the channel's name and the number, so that the channels of a server that was down do not
    all return to it at the same moment.
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
) -> DeliveryResult:
    """Send the alerts that wait, over all channels that may be used now.

    Args:
        outbox: where alerts wait.
        addresses: which channels get which alerts.
        open_channel: opens a channel by its name. Raises NotDelivered if it cannot.
        clock: returns the current time.
        overdue_by: send only what has waited for this long. A sender that stands in for another one may lack its connections:
            a channel that it cannot open it leaves as it is.
        at_once: also use channels whose delay after a failure has not ended, as after a repair.
        deadline: longest time for one message.
        pause: waits for some seconds between two messages.

    Returns:
        What was delivered, and what failed.
    """
    now = clock()
    outcome = DeliveryResult(unaddressed=outbox.route(addresses.choose, now))
    opened: list[tuple[Lease, channels.Channel]] = []
    for channel in outbox.due(now, before=now - overdue_by, at_once=at_once):
        try:
            way = open_channel(channel.channel)
        except NotDelivered as error:
            if overdue_by > timedelta():
                log.warning("alerts wait for %s, which this process cannot open: %s", channel.channel, error)
                outcome += DeliveryResult(skipped=1)
            elif lease := outbox.claim(channel, now, now + deadline + _MARGIN):
                _fail(outbox, addresses, lease, outbox.waiting(channel.channel), error, now)
                outcome += DeliveryResult(failed=1)
            continue
        if lease := outbox.claim(channel, now, now + deadline + _MARGIN):
            opened.append((lease, way))

    async def serve_all() -> list[DeliveryResult | BaseException]:
        servings = (_serve(outbox, addresses, lease, way, clock, deadline, pause) for lease, way in opened)
        # An error of one channel does not stop the sending to another.
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
) -> DeliveryResult:
    """Send what waits for one channel, until all is sent or a message fails."""
    delivered = 0
    for message in compose(outbox.waiting(lease.channel.channel)):
        if delivered:
            await pause(PACE.total_seconds())
        # If this process slept for so long that another one took over, it must not send the same messages.
        if not outbox.keep(lease, clock() + deadline + _MARGIN):
            return DeliveryResult(delivered=delivered)
        try:
            receipt = await _send(way, message, deadline)
        except NotDelivered as error:
            waiting = outbox.waiting(lease.channel.channel)
            _fail(outbox, addresses, lease, [one for one in waiting if one.id in message.numbers], error, clock())
            return DeliveryResult(delivered=delivered, failed=1)
        now = clock()
        outbox.mark_delivered(lease, message.numbers, now, receipt=receipt, next_attempt_at=now + PACE)
        delivered += len(message.numbers)
    outbox.release(lease)
    return DeliveryResult(delivered=delivered)


async def _send(way: channels.Channel, message: Message, deadline: timedelta) -> str | None:
    try:
        return await channels.send(way, message, deadline=deadline)
    except NotDelivered as error:
        if not error.offends:
            raise
        log.warning("the channel refused the text of a message (%s): the message is sent without its text", error)
    try:
        return await channels.send(way, in_fewest_words(message), deadline=deadline)
    except NotDelivered as error:
        # So the text was not the cause.
        raise NotDelivered(str(error), after=error.after, mend=error.mend or error.offends) from error


def _fail(
    outbox: Outbox, addresses: Addresses, lease: Lease, tried: Collection[Waiting], error: NotDelivered, now: datetime
) -> None:
    """Record that a channel failed, and report it through the others if that lasts or a person has to repair it."""
    channel = lease.channel
    named = addresses.named() if error.mend else None
    if named is not None and channel.channel not in named:
        log.warning("nothing more is sent to %s: neither a model nor the environment names it: %s", channel.channel, error)
        outbox.give_up(lease, now, reason=f"neither a model nor the environment names the channel: {error}")
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
    log.error("%s takes no alerts: %s; the next attempt is in %s", channel.channel, error, wait)
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
