"""The messages that a channel gets: one per alert, or a digest, and how they look in Slack and e-mail.

Pure: :mod:`perennial.alerts.channels` sends messages, and :mod:`perennial.alerts.outbox` has the tables. The text of a message
may quote data, so none of it is markup where it is read: it cannot mention people, and has no links but those of its alerts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from html import escape
from typing import Any
from urllib.parse import urlsplit

from perennial.alerts.alert import Severity
from perennial.alerts.outbox import Waiting

#: If more messages than this are due at once, they become one.
MOST_MESSAGES = 5

#: Most alerts, or groups of alerts, that a digest lists.
_MOST_NAMED = 10

#: Most characters of a text in a block of Slack, and of its header.
_SECTION = 2900
_HEADER = 140

#: Most characters of a mail's subject; and characters that no header may hold.
_SUBJECT = 150
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True)
class Message:
    """One message to a channel.

    Attributes:
        numbers: ids of the alerts in the outbox that are delivered with it.
        identity: the same for the same alerts, at any time and from any sender.
        severity: the worst of the alerts; ``recovered`` if all of them report a recovery.
        title: one line.
        text: plain text of some lines.
        links: name to address.
        at: when the newest of the alerts was recorded.
        answers: the receipt of the message that reported the trouble, if this one reports its recovery.
    """

    numbers: tuple[int, ...]
    identity: str
    severity: Severity | str
    title: str
    text: str
    links: dict[str, str]
    at: datetime
    answers: str | None = None

    @property
    def label(self) -> str:
        """The severity as people read it."""
        return {"critical": "CRITICAL"}.get(self.severity, self.severity)

    @property
    def heading(self) -> str:
        """The title with the severity before it, unless the title already says that something has recovered."""
        return self.title if self.severity == "recovered" and "recovered" in self.title else f"{self.label}: {self.title}"


# --- the messages ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _News:
    """An alert to send, and the ids of all alerts that are delivered with it."""

    waiting: Waiting
    numbers: tuple[int, ...]

    @property
    def severity(self) -> str:
        return "recovered" if self.waiting.alert.kind == "recovered" else self.waiting.alert.severity


def compose(waiting: Sequence[Waiting]) -> list[Message]:
    """The messages for a channel, the worst first.

    If something recovered before its alert was sent, one message says both. Alerts of one model and kind become one message.
    If there would be more than :data:`MOST_MESSAGES`, all become one.

    Args:
        waiting: the channel's alerts, oldest first.
    """
    here = {found.id for found in waiting}
    over = {number for found in waiting for number in found.resolves}
    groups: dict[tuple[str, str], list[_News]] = {}
    for found in waiting:
        if found.id not in over:
            numbers = (found.id, *(number for number in found.resolves if number in here))
            groups.setdefault((found.alert.model, found.alert.kind), []).append(_News(found, numbers))
    ordered = sorted(groups.values(), key=lambda group: (_rank(group), group[0].waiting.id))
    if len(ordered) > MOST_MESSAGES:
        return [_of_all(ordered)]
    return [_single(group[0]) if len(group) == 1 else _of_group(group) for group in ordered]


def _single(news: _News) -> Message:
    found = news.waiting
    return Message(
        numbers=news.numbers,
        identity=_identity([found.key]),
        severity=news.severity,
        title=found.alert.title,
        text=f"{found.alert.text}\n\nSince {_moment(found.created_at)}.",
        links=dict(found.alert.links),
        at=found.created_at,
        answers=found.answers,
    )


def _of_group(group: Sequence[_News]) -> Message:
    first, newest = group[0].waiting, group[-1].waiting
    _, _, advice = newest.alert.text.rpartition("\n\n")
    shown = [f"- {news.waiting.alert.title}" for news in reversed(group[-_MOST_NAMED:])]
    if len(group) > _MOST_NAMED:
        shown.append(f"- and {len(group) - _MOST_NAMED} earlier ones")
    lines = [f"The first at {_moment(first.created_at)}, the last at {_moment(newest.created_at)}:", *shown]
    if newest.alert.kind != "recovered":
        lines += ["", advice]
    return Message(
        numbers=tuple(number for news in group for number in news.numbers),
        identity=_identity([news.waiting.key for news in group]),
        severity=_worst(group),
        title=f"{newest.alert.model}: {len(group)} times {_called(newest)}",
        text="\n".join(lines),
        links=dict(newest.alert.links),
        at=newest.created_at,
    )


def _of_all(groups: Sequence[Sequence[_News]]) -> Message:
    news = [one for group in groups for one in group]
    moments = sorted(one.waiting.created_at for one in news)
    critical = sum(one.severity == "critical" for one in news)
    models = {one.waiting.alert.model for one in news}
    lines = []
    for group in groups[:_MOST_NAMED]:
        newest = group[-1].waiting
        times = f"{len(group)} times {_called(newest)}, the last: " if len(group) > 1 else ""
        lines.append(f"- {_worst(group)}: {times}{newest.alert.title} ({_moment(newest.created_at)})")
    if left := groups[_MOST_NAMED:]:
        lines.append(f"- and {sum(map(len, left))} more, of {len({g[0].waiting.alert.model for g in left})} models")
    return Message(
        numbers=tuple(number for one in news for number in one.numbers),
        identity=_identity([one.waiting.key for one in news]),
        severity=min((_worst(group) for group in groups), key=_RANKS.index),
        title=f"{len(news)} alerts of {len(models)} model{'s' if len(models) > 1 else ''}, {critical} of them critical",
        text="\n".join([f"The first at {_moment(moments[0])}, the last at {_moment(moments[-1])}:", *lines]),
        links=dict(groups[0][-1].waiting.alert.links),
        at=moments[-1],
    )


def in_fewest_words(message: Message) -> Message:
    """The same message without its text and links, for a channel that refuses them."""
    title = f"{len(message.numbers)} alert{'s' if len(message.numbers) > 1 else ''}, {message.label}"
    return replace(message, title=title, text="The channel refused their text. To read it: perennial alerts", links={})


_RANKS = ("critical", "warning", "recovered")


def _worst(group: Sequence[_News]) -> str:
    return min((news.severity for news in group), key=_RANKS.index)


def _rank(group: Sequence[_News]) -> int:
    return _RANKS.index(_worst(group))


def _called(waiting: Waiting) -> str:
    """The kind as people read it."""
    return waiting.alert.kind.replace("_", " ")


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _identity(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode(errors="replace")).hexdigest()[:32]


# --- how it looks ----------------------------------------------------------------------------------------------------


def _safe(links: dict[str, str]) -> dict[str, str]:
    """Only the links to web pages."""
    return {name: address for name, address in links.items() if urlsplit(address).scheme in ("http", "https")}


def for_slack(message: Message) -> dict[str, Any]:
    """The arguments of a Slack message, for a webhook or ``chat.postMessage``.

    What may quote data is ``plain_text``, which Slack does not parse. Links are ``verbatim``, in which Slack parses only links.
    ``text`` is what notifications show.
    """
    blocks: list[dict[str, Any]] = [_plain("header", message.heading, _HEADER)]
    blocks += [_plain("section", part, _SECTION) for part in _parts(message.text)]
    said = ""
    for name, address in _safe(message.links).items():
        link = f"<{_mrkdwn(_in_angles(address))}|{_mrkdwn(name)}>"
        if len(said) + len(link) < _SECTION:
            said += f" · {link}" if said else link
    if said:
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": said, "verbatim": True}})
    return {"text": _mrkdwn(message.heading), "mrkdwn": False, "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def _plain(kind: str, text: str, limit: int) -> dict[str, Any]:
    return {"type": kind, "text": {"type": "plain_text", "text": _shortened(text, limit), "emoji": False}}


def _parts(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part.strip()]


def _mrkdwn(text: str) -> str:
    return escape(text, quote=False)


def _in_angles(address: str) -> str:
    # A bar would end the address, and the text after it would be shown as the link's name.
    return re.sub(r"\s", "", address).replace("|", "%7C")


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def for_mail(message: Message, *, sender: str, to: str) -> EmailMessage:
    """An e-mail with a part of text and one of HTML.

    The same message has the same ``Message-ID``, so that mail programs show it once even if it was sent twice. A recovery
    answers the mail that reported the trouble.

    Args:
        message: what to say.
        sender: the sender's address.
        to: the receiver's address.
    """
    mail = EmailMessage()
    mail["Subject"] = _shortened(_CONTROL.sub(" ", message.heading), _SUBJECT)
    mail["From"] = sender
    mail["To"] = to
    mail["Date"] = format_datetime(message.at)
    mail["Message-ID"] = f"<{message.identity}@{_domain(sender)}>"
    if message.answers is not None:
        mail["In-Reply-To"] = message.answers
        mail["References"] = message.answers
    mail["Auto-Submitted"] = "auto-generated"
    if message.severity == "critical":
        mail["Importance"] = "high"
    links = _safe(message.links)
    said = "".join(f"\n{name}: {address}" for name, address in links.items())
    mail.set_content(f"{message.title}\n\n{message.text}\n{said}")
    listed = "".join(f'<li><a href="{escape(address)}">{escape(name)}</a></li>' for name, address in links.items())
    paragraphs = "".join(f"<p>{escape(part).replace(chr(10), '<br>')}</p>" for part in _parts(message.text))
    mail.add_alternative(
        f"<html><body><h3>{escape(message.title)}</h3>{paragraphs}{f'<ul>{listed}</ul>' if listed else ''}</body></html>",
        subtype="html",
    )
    return mail


def _domain(sender: str) -> str:
    """The domain of a sender's Message-IDs."""
    found = re.search(r"@([A-Za-z0-9.-]+)", sender)
    return found.group(1) if found else "perennial.invalid"
