"""How a message reaches Slack or a mail server, and what their answers mean.

A server may be slow, broken or hostile. One deadline covers everything from the name's look-up to the last byte. At most 16 KiB
of its answer are read, and redirects are not followed. Errors quote the code of its answer alone, since an answer, like an
address, may hold a secret.

Neighbours: :mod:`perennial.alerts.messages` says how a message looks; :mod:`perennial.alerts.delivery` decides when to send
it, and what to do about :class:`NotDelivered`; :mod:`perennial.orchestration.notifiers` knows the addresses, from Airflow's
connections.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol

import aiosmtplib
import httpx

from perennial.alerts.messages import Message, for_mail, for_slack
from perennial.core.errors import NotDelivered

log = logging.getLogger(__name__)


#: Longest time for one message, from the name's look-up to the last byte.
DEADLINE = timedelta(seconds=10)

#: The longest delay that a server may ask for.
LONGEST_ASKED = timedelta(hours=1)

#: Most bytes of an answer that are read; Slack's are shorter.
_MOST_READ = 16_384

#: Slack's errors for a message that it will never take.
_OF_CONTENT = frozenset({
    "invalid_arguments", "invalid_attachments", "invalid_blocks", "invalid_blocks_format", "invalid_payload",
    "msg_blocks_too_long", "msg_too_long", "no_text", "too_many_attachments",
})  # fmt: skip

#: Slack's errors for a message that it may take later. A person has to resolve every other error.
_LATER = frozenset({
    "fatal_error", "internal_error", "message_limit_exceeded", "rate_limited", "ratelimited", "request_timeout", "rollup_error",
    "service_unavailable",
})  # fmt: skip


class Channel(Protocol):
    """A place where people read messages."""

    async def send(self, message: Message) -> str | None:
        """Send a message.

        Returns:
            The channel's id of the message, for an answer to it; None if there is none.

        Raises:
            NotDelivered: the channel did not take it, or it is unknown whether it did.
        """


async def send(channel: Channel, message: Message, *, deadline: timedelta = DEADLINE) -> str | None:
    """:meth:`Channel.send` within ``deadline``, whatever the server does.

    Raises:
        NotDelivered: as :meth:`Channel.send`, and for every error of a library.
    """
    try:
        async with asyncio.timeout(deadline.total_seconds()):
            return await channel.send(message)
    except TimeoutError as error:
        raise NotDelivered(f"no answer within {deadline.total_seconds():g} s") from error
    except NotDelivered:
        raise
    except Exception as error:
        # An error of ours or of a library must not stop the other channels. Its message may hold an address.
        where = traceback.extract_tb(error.__traceback__)[-1]
        log.error("a message could not be sent: %s at %s:%s", type(error).__name__, where.filename, where.lineno)
        raise NotDelivered(f"not sent: {type(error).__name__}") from error


# --- Slack -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SlackWebhook:
    """An incoming webhook of Slack, or of a service that behaves like Slack.

    Attributes:
        url: a secret: everyone who knows it can post.
        proxy: address of a proxy.
    """

    url: str = field(repr=False)
    proxy: str | None = field(default=None, repr=False)

    async def send(self, message: Message) -> str | None:
        status, headers, body = await _post(self.url, for_slack(message), {}, self.proxy)
        _check_status(status, headers, body)
        if body.strip() != "ok":
            # Other services may answer in JSON. A web page has not taken the message.
            _check_ok(_parsed(body))
        return None


@dataclass(frozen=True)
class SlackApi:
    """A channel of a Slack workspace, by an app's token (``chat.postMessage``).

    Attributes:
        token: the app's.
        to: the channel, ``#ml`` or its id.
        base_url: of the API.
        proxy: address of a proxy.
    """

    token: str = field(repr=False)
    to: str
    base_url: str = "https://slack.com/api/"
    proxy: str | None = field(default=None, repr=False)

    async def send(self, message: Message) -> str | None:
        url = f"{self.base_url.rstrip('/')}/chat.postMessage"
        thread = {"thread_ts": message.answers, "reply_broadcast": True} if message.answers is not None else {}
        payload = {**for_slack(message), **thread, "channel": self.to, "parse": "none", "link_names": False}
        status, headers, body = await _post(url, payload, {"Authorization": f"Bearer {self.token}"}, self.proxy)
        _check_status(status, headers, body)
        answer = _parsed(body)
        _check_ok(answer)
        told = answer.get("ts")
        return told if isinstance(told, str) else None


async def _post(
    url: str, payload: dict[str, Any], headers: dict[str, str], proxy: str | None
) -> tuple[int, httpx.Headers, str]:
    """Status, headers and the beginning of the body.

    It uses httpx, since the client of Airflow's Slack hooks follows redirects, reads an answer of any length to its end, and
    has no deadline but one for each read.
    """
    body = b""
    try:
        async with (
            httpx.AsyncClient(follow_redirects=False, timeout=DEADLINE.total_seconds(), proxy=proxy) as client,
            client.stream("POST", url, json=payload, headers={**headers, "Accept-Encoding": "identity"}) as response,
        ):
            async for part in response.aiter_raw():
                body += part
                if len(body) >= _MOST_READ:
                    break
            return response.status_code, response.headers, body[:_MOST_READ].decode(errors="replace")
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise NotDelivered("the connection holds no valid address", mend=True) from error
    except (httpx.HTTPError, ssl.SSLError) as error:
        raise NotDelivered(f"no answer: {type(error).__name__}{_certificate(error)}") from error


def _certificate(error: BaseException) -> str:
    """What is wrong with the server's certificate, if that caused the error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f", its certificate: {cause.verify_message}"
        cause = cause.__cause__ or cause.__context__
    return ""


def _check_status(status: int, headers: httpx.Headers, body: str) -> None:
    if status == 200:
        return
    code = body.strip() if re.fullmatch(r"[a-z_]{2,50}", body.strip()) else ""
    said = f"HTTP {status}{f', {code}' if code else ''}"
    if status == 429 or status == 408 or status >= 500:
        raise NotDelivered(said, after=retry_after(headers.get("Retry-After"), datetime.now(UTC)))
    if 300 <= status < 400:
        raise NotDelivered(f"{said}: it redirects, and redirects are not followed", mend=True)
    if code in _OF_CONTENT or (status in (400, 413, 422) and not code):
        raise NotDelivered(said, offends=True)
    raise NotDelivered(said, mend=True)


def _parsed(body: str) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NotDelivered("HTTP 200, but the answer is not Slack's") from error
    if not isinstance(answer, dict):
        raise NotDelivered("HTTP 200, but the answer is not Slack's")
    return answer


def _check_ok(answer: dict[str, Any]) -> None:
    if answer.get("ok") is True or ("ok" not in answer and answer.get("success") is True):
        return
    code = str(answer.get("error") or "")
    said = f"ok is false: {code}" if re.fullmatch(r"[a-z_]{2,50}", code) else "ok is not true"
    raise NotDelivered(said, mend=bool(code) and code not in _LATER | _OF_CONTENT, offends=code in _OF_CONTENT)


def retry_after(value: str | None, now: datetime) -> timedelta | None:
    """The delay that a server asks for: ``Retry-After`` in seconds or as a date (RFC 9110, section 10.2.3).

    Returns:
        At most :data:`LONGEST_ASKED`; None if it asks for none, if the value cannot be read, or if it lies in the past.
    """
    text = (value or "").strip()
    if re.fullmatch(r"\d+(\.\d*)?", text):
        # More digits than any real wait has; not every number of digits can be read.
        wait = LONGEST_ASKED if len(text) > 12 else min(timedelta(seconds=float(text)), LONGEST_ASKED)
    else:
        try:
            moment = parsedate_to_datetime(text)
            wait = min((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now, LONGEST_ASKED)
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return wait if wait > timedelta() else None


# --- e-mail ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mail:
    """An e-mail address, and the server that takes mail for it.

    Attributes:
        to: the address.
        sender: the sender's address.
        host, port: of the server; without a port, the usual one of ``security``.
        security: ``tls`` from the first byte, ``starttls``, which then is required, or ``none``.
        user, password, token: to sign in with, by password or by an OAuth 2 token.
        verify: whether the server's certificate is checked.
    """

    to: str
    sender: str
    host: str
    port: int | None
    security: Literal["tls", "starttls", "none"]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    verify: bool = True

    async def send(self, message: Message) -> str | None:
        mail = for_mail(message, sender=self.sender, to=self.to)
        # The client of Airflow's hook has no deadline for a slow answer, and retries on its own.
        client = aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            use_tls=self.security == "tls",
            start_tls=self.security == "starttls",
            validate_certs=self.verify,
            timeout=None,
        )
        stage = "connecting"
        try:
            await client.connect()
            if self.token is not None:
                stage = "signing in"
                await client.auth_xoauth2(self.user or self.sender, self.token)
            elif self.user and self.password:
                stage = "signing in"
                await client.login(self.user, self.password)
            stage = "sending"
            await client.send_message(mail, sender=self.sender, recipients=[self.to])
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise _refused("the address", error.recipients[0].code) from error
        except aiosmtplib.SMTPSenderRefused as error:
            raise _refused("the sender", error.code) from error
        except aiosmtplib.SMTPDataError as error:
            raise _refused("the text", error.code, offends=error.code >= 500) from error
        except aiosmtplib.SMTPResponseException as error:
            raise _refused(stage, error.code) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            # The client raises these for a server without STARTTLS, or without a common way to sign in.
            if type(error) in (aiosmtplib.SMTPException, aiosmtplib.SMTPNotSupported):
                raise NotDelivered(f"{stage}: the server does not support what the connection requires", mend=True) from error
            raise NotDelivered(f"{stage}: {type(error).__name__}{_certificate(error)}") from error
        except ValueError as error:
            raise NotDelivered("the address or the sender is invalid", mend=True) from error
        finally:
            client.close()
        return str(mail["Message-ID"])


def _refused(what: str, code: int, *, offends: bool = False) -> NotDelivered:
    """A server's refusal: temporary with a code from 400 to 499, else permanent (RFC 5321, section 4.2.1)."""
    hint = ", the server requires STARTTLS: see disable_tls of the connection" if code == 530 else ""
    return NotDelivered(f"{what} is refused, SMTP {code}{hint}", mend=code >= 500 and not offends, offends=offends)
