"""What waits reaches real servers that behave badly: nothing is lost, nobody is told too often, and nothing hangs."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from perennial.alerts import channels, delivery, of_models, of_operation
from perennial.alerts.alert import EVERYBODY, Alert, Severity, refused_data
from perennial.alerts.channels import LONGEST_ASKED, Mail, SlackApi, SlackWebhook, retry_after
from perennial.alerts.delivery import Addresses, DeliveryResult
from perennial.alerts.messages import MOST_MESSAGES, Message, compose, for_mail, for_slack, in_fewest_words
from perennial.alerts.outbox import Waiting
from perennial.cli.main import main
from perennial.core.errors import NotDelivered
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.ledger.store import Ledger
from tests import receivers
from tests.receivers import OK, Answer, Mails, Slack, answer, text_of, words_of

MODEL = "flight_delay"
DAY = Interval.day("2013-04-01")
NOW = datetime(2013, 4, 9, 2, tzinfo=UTC)
SLACK, MAIL = "slack:team", "email:ann@example.org"
#: For a server that answers, however busy the machine is; and for one that never will.
PATIENCE, IMPATIENCE = timedelta(minutes=1), timedelta(seconds=0.4)
#: Seconds after which a server that hangs would let go by itself: who waits less has kept the deadline.
HANGS = 20
HTML = b"<html><body>Bad gateway</body></html>"
#: What a hostile reason would like to be.
HOSTILE = "<!channel> *bold* <http://evil.example|click> <@U1> & </p><script>alert(1)</script>\r\nBcc: all@example.org @here"


async def _at_once(_: float) -> None:
    """Wait for nothing."""


class World:
    """A ledger, its channels, and a clock."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.now = datetime.now(UTC) + timedelta(minutes=1)
        self.ways: dict[str, channels.Channel] = {}
        self.pauses: list[float] = []

    def send(self, *, deadline: timedelta = PATIENCE, at_once: bool = False) -> DeliveryResult:
        return delivery.deliver(
            self.ledger.outbox,
            Addresses(lambda _: set(self.ways), lambda: set(self.ways)),
            self.ways.__getitem__,
            clock=lambda: self.now,
            at_once=at_once,
            deadline=deadline,
            pause=self.pause,
        )

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def later(self, **time: float) -> World:
        self.now += timedelta(**time)
        return self

    def drift(self, key: str = "one", severity: Severity = "warning", reasons: list[str] | None = None) -> Alert:
        alert = of_models.drift(MODEL, DAY, version=3, reasons=reasons or ["humidity moved"], severity=severity)
        self.ledger.record_alert(alert, key)
        return alert

    def wait_of(self, channel: str = SLACK) -> timedelta:
        """How long a channel is left alone."""
        [found] = [found for found in self.ledger.outbox.channels() if found.channel == channel]
        return found.next_attempt_at - self.now

    def error_of(self, channel: str = SLACK) -> str:
        return str({found.channel: found.error for found in self.ledger.outbox.channels()}[channel])

    def waiting(self, channel: str = SLACK) -> list[str]:
        return [found.key for found in self.ledger.outbox.waiting(channel)]


@pytest.fixture
def world(ledger: Ledger, web: Slack) -> World:
    world = World(ledger)
    world.ways[SLACK] = SlackWebhook(f"{web.url}/T0/B0/canary")
    return world


def wait(number: int, alert: Alert, *, key: str = "", at: datetime = NOW, resolves: tuple[int, ...] = ()) -> Waiting:
    return Waiting(number, key or f"key-{number}", alert, at, 0, resolves)


def message(text: str = "moved", *, severity: str = "warning", answers: str | None = None, title: str = "m: drift") -> Message:
    return Message((1,), "0" * 32, severity, title, text, {"Run": "http://airflow/run?a=1&b=<|>"}, NOW, answers)


# --- every answer of a webhook ---------------------------------------------------------------------------------------


def hang(connection: socket.socket) -> None:
    """Say nothing until the client goes."""
    connection.settimeout(HANGS)
    connection.recv(1)


def drip(*, head: bool) -> Callable[[socket.socket], None]:
    """Say a byte now and then, for ever: each comes in time, the answer never does."""

    def dripping(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n" if head else b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            connection.sendall(b"X-More: a\r\n" if head else b"o")
            time.sleep(0.05)

    return dripping


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"o" * 65_536)


def reset(connection: socket.socket) -> None:
    """Take the message, and drop the connection without an answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


FOREVER, BACK_OFF = "mended by a person", "tried again by itself"

ANSWERS: dict[str, tuple[Answer, str, str]] = {
    "200 with ok:false, for good": (answer(200, b'{"ok": false, "error": "channel_not_found"}'), FOREVER, "channel_not_found"),
    "200 with ok:false, for now": (answer(200, b'{"ok": false, "error": "internal_error"}'), BACK_OFF, "internal_error"),
    "200 with ok:false and no reason": (answer(200, b'{"ok": false}'), BACK_OFF, "ok is not true"),
    "200 with a page": (answer(200, b"<html>Please sign in</html>"), BACK_OFF, "the answer is not Slack's"),
    "200 with a list": (answer(200, b"[1]"), BACK_OFF, "the answer is not Slack's"),
    "200 with a deep answer": (answer(200, b"[" * 16_000), BACK_OFF, "the answer is not Slack's"),
    "429 without Retry-After": (answer(429, b"rate_limited"), BACK_OFF, "HTTP 429"),
    "403": (answer(403, b"action_prohibited"), FOREVER, "HTTP 403, action_prohibited"),
    "404": (answer(404, b"no_service"), FOREVER, "HTTP 404, no_service"),
    "410": (answer(410, b"channel_is_archived"), FOREVER, "HTTP 410, channel_is_archived"),
    "500 with HTML": (answer(500, HTML, Content_Type="text/html"), BACK_OFF, "HTTP 500"),
    "503": (answer(503), BACK_OFF, "HTTP 503"),
    "a hang": (hang, BACK_OFF, "no answer within 0.4 s"),
    "a slow drip": (drip(head=False), BACK_OFF, "no answer within 0.4 s"),
    "a slow drip of headers": (drip(head=True), BACK_OFF, "no answer within 0.4 s"),
    "an endless body": (endless, BACK_OFF, "the answer is not Slack's"),
    "a reset after accepting": (reset, BACK_OFF, "no answer: "),
    "no HTTP": (b"220 smtp.example.org ESMTP\r\n", BACK_OFF, "no answer: RemoteProtocolError"),
    "a wrong length": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", BACK_OFF, "no answer: RemoteProtocolError"),
    "endless headers": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000, BACK_OFF, "no answer: RemoteProtocolError"),
    "a header of binary": (b"HTTP/1.1 200 OK\r\nX-\x00\xff: \xfe\r\n\r\nok", BACK_OFF, "no answer: RemoteProtocolError"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_a_webhook_does_not_take_waits_and_is_delivered_once_it_does(
    world: World, web: Slack, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    said, kind, words = ANSWERS[case]
    world.drift()
    web.answers = [said]
    caplog.set_level(logging.DEBUG)
    never, began = words.startswith("no answer within"), time.monotonic()
    assert world.send(deadline=IMPATIENCE if never else PATIENCE) == DeliveryResult(failed=1)
    assert time.monotonic() - began < HANGS
    assert world.waiting() == ["one"]
    assert words in world.error_of()
    assert "Please" not in world.error_of()
    assert "Bad gateway" not in world.error_of()
    if kind == FOREVER:
        assert world.wait_of() == delivery.MENDED_WITHIN
    else:
        assert timedelta(seconds=45) <= world.wait_of() <= timedelta(seconds=75)
    assert world.send() == DeliveryResult(), "it is left alone for a while"
    web.answers = []  # on a busy machine an impatient sender may have given up before it was connected
    assert world.later(hours=1).send().delivered >= 1
    assert world.waiting() == []
    assert "drift in 2013-04-01" in web.said[-1]
    assert "canary" not in caplog.text
    assert "canary" not in world.error_of()


@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        ("30", timedelta(seconds=30)),
        ("0", None),
        ("-5", None),
        ("1.5", timedelta(seconds=1.5)),
        ("31536000", LONGEST_ASKED),
        ("9" * 5_000, LONGEST_ASKED),
        (format_datetime(NOW + timedelta(minutes=7), usegmt=True), timedelta(minutes=7)),
        (format_datetime(NOW + timedelta(days=9_999), usegmt=True), LONGEST_ASKED),
        (format_datetime(NOW - timedelta(minutes=7), usegmt=True), None),
        ("Wed, 99 Foo 2013", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("٣٠", timedelta(seconds=30)),
        ("1e9", None),
        ("nan", None),
    ],
)
def test_a_server_is_left_alone_for_as_long_as_it_asks_within_reason(asked: str | None, wait: timedelta | None) -> None:
    assert retry_after(asked, NOW) == wait


@pytest.mark.parametrize(
    ("asked", "least", "most"), [("120", 120, 120), ("31536000", 3600, 3600), ("date", 240, 300), ("-1", 45, 75)]
)
def test_retry_after_takes_the_place_of_our_own_wait(world: World, web: Slack, asked: str, least: float, most: float) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    web.answers = [answer(429, b"rate_limited", Retry_After=date if asked == "date" else asked)]
    world.drift()
    assert world.send().failed == 1
    assert least <= world.wait_of().total_seconds() <= most


def test_a_redirect_is_never_followed(world: World, web: Slack) -> None:
    with receivers.slack() as internal:
        for status in (301, 302, 303, 307, 308):
            web.answers = [answer(status, Location=f"{internal.url}/latest/meta-data")]
            world.drift(str(status))
            assert world.send(at_once=True).failed == 1
            assert world.error_of() == f"HTTP {status}: it redirects, and redirects are not followed"
    assert internal.headers == []


def test_a_certificate_that_nobody_vouches_for_is_not_accepted(world: World, tmp_path: Path) -> None:
    with receivers.slack(certificate=self_signed(tmp_path)) as web:
        world.ways[SLACK] = SlackWebhook(f"https://127.0.0.1:{web.port}/T0/B0/canary")
        world.drift()
        assert world.send().failed == 1
    assert web.headers == []
    assert "certificate: self-signed certificate" in world.error_of()


def test_a_server_that_is_not_there_is_tried_again(world: World, web: Slack) -> None:
    world.ways[SLACK] = SlackWebhook("http://127.0.0.1:1/canary")
    world.drift()
    assert world.send().failed == 1
    assert world.error_of() == "no answer: ConnectError"


@pytest.mark.parametrize(
    "url", ["", "hooks.slack.com/services/canary", "file:///etc/passwd", "http://[::1/canary", "ftp://x/y"]
)
def test_an_address_that_is_none_is_for_a_person_to_mend(world: World, url: str) -> None:
    world.ways[SLACK] = SlackWebhook(url)
    world.drift()
    assert world.send().failed == 1
    assert "canary" not in world.error_of()
    assert world.wait_of() == delivery.MENDED_WITHIN


@pytest.mark.parametrize(
    "refusal", [answer(400, b"invalid_blocks"), answer(413), answer(200, b'{"ok":false,"error":"msg_too_long"}')]
)
def test_a_text_that_is_refused_is_told_in_the_fewest_words(world: World, web: Slack, refusal: bytes) -> None:
    world.drift(severity="critical")
    web.answers = [refusal]
    assert world.send() == DeliveryResult(delivered=1)
    assert "1 alert, CRITICAL" in web.said[0]
    assert "humidity" not in web.said[0]


def test_a_webhook_that_refuses_every_text_is_broken(world: World, web: Slack) -> None:
    world.drift()
    web.then = answer(400, b"invalid_payload")
    assert world.send() == DeliveryResult(failed=1)
    assert world.wait_of() == delivery.MENDED_WITHIN


def test_the_slack_api_posts_to_its_channel_and_answers_in_the_thread(world: World, web: Slack) -> None:
    world.ways = {"slack:app:#ml": SlackApi("xoxb-canary", "#ml", f"{web.url}/api/")}
    web.then = lambda connection: connection.sendall(answer(200, b'{"ok": true, "ts": "17.5"}'))
    alert = world.drift()
    assert world.send().delivered == 1
    world.ledger.resolve(str(alert.subject), "The verdict on 2013-04-02 is ok.")
    assert world.later(minutes=1).send().delivered == 1
    first, second = web.taken
    assert (first["channel"], first["parse"], first["link_names"], first["unfurl_links"]) == ("#ml", "none", False, False)
    assert "thread_ts" not in first
    assert (second["thread_ts"], second["reply_broadcast"]) == ("17.5", True)
    assert web.paths == ["/api/chat.postMessage"] * 2
    assert "Authorization: Bearer xoxb-canary" in web.headers[0]


@pytest.mark.parametrize("error", ["invalid_auth", "token_revoked", "not_in_channel", "is_archived", "missing_scope"])
def test_what_the_slack_api_refuses_for_good_is_for_a_person_to_mend(world: World, web: Slack, error: str) -> None:
    world.ways = {SLACK: SlackApi("xoxb-canary", "#ml", f"{web.url}/api/")}
    web.then = answer(200, f'{{"ok": false, "error": "{error}"}}'.encode())
    world.drift()
    assert world.send().failed == 1
    assert world.wait_of() == delivery.MENDED_WITHIN
    assert world.error_of() == f"ok is false: {error}"


# --- e-mail ----------------------------------------------------------------------------------------------------------


def to(address: str, server: Mails | int, **more: object) -> Mail:
    port = server if isinstance(server, int) else server.port
    return Mail(address, "Perennial <perennial@example.org>", "127.0.0.1", port, **{"security": "none", **more})  # type: ignore[arg-type]


def test_a_mail_says_it_in_text_and_in_html_and_a_recovery_answers_it(world: World, mail: Mails) -> None:
    world.ways = {MAIL: to("ann@example.org", mail)}
    alert = world.drift(severity="critical", reasons=[HOSTILE])
    assert world.send().delivered == 1
    world.ledger.resolve(str(alert.subject), "The verdict on 2013-04-02 is ok.")
    assert world.later(minutes=1).send().delivered == 1
    (address, wrong), (_, well) = mail.taken
    assert address == "ann@example.org"
    assert wrong["Subject"] == f"CRITICAL: {MODEL}: lasting or harmful drift in 2013-04-01"
    assert (wrong["From"], wrong["Importance"]) == ("Perennial <perennial@example.org>", "high")
    assert [part.get_content_type() for part in wrong.iter_parts()] == ["text/plain", "text/html"]
    html = words_of(wrong, "html")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert well["In-Reply-To"] == well["References"] == wrong["Message-ID"]
    assert well["Subject"] == f"{MODEL}: recovered: lasting or harmful drift in 2013-04-01"
    assert wrong["Bcc"] is None


def test_one_address_that_is_refused_keeps_nothing_from_another(world: World, mail: Mails) -> None:
    mail.refusals = {"gone@example.org": "550 no such user", "busy@example.org": "450 mailbox busy"}
    addresses = ["ann@example.org", "gone@example.org", "busy@example.org"]
    world.ways = {f"email:{address}": to(address, mail) for address in addresses}
    world.drift()
    # The address that is gone is told of at once, through the others that work.
    first = world.send()
    assert (first.delivered, first.failed) == (1, 2)
    assert world.wait_of("email:gone@example.org") == delivery.MENDED_WITHIN
    assert world.wait_of("email:busy@example.org") < timedelta(minutes=2)
    assert world.error_of("email:gone@example.org") == "the address is refused, SMTP 550"
    mail.refusals = {}
    world.later(hours=2).send()
    world.later(minutes=1).send()
    drifts = [address for address, told in mail.taken if "drift" in str(told["Subject"])]
    assert sorted(drifts) == sorted(addresses)
    assert all(not waiting.waits for waiting in world.ledger.alerts())


@pytest.mark.parametrize(("said", "delivered", "wait"), [
    ("451 try again later", 0, timedelta(minutes=1)),
    ("554 looks like spam", 1, None),
])  # fmt: skip
def test_a_text_that_a_mail_server_refuses_is_tried_later_or_said_in_fewest_words(
    world: World, mail: Mails, said: str, delivered: int, wait: timedelta | None
) -> None:
    world.ways = {MAIL: to("ann@example.org", mail)}
    mail.data = [said]
    world.drift()
    assert world.send().delivered == delivered
    if wait is None:
        assert "1 alert, warning" in mail.taken[0][1]["Subject"]
    else:
        assert world.wait_of(MAIL) < 2 * wait


def test_a_server_that_demands_starttls_says_what_is_to_be_changed(world: World, tmp_path: Path) -> None:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))
    with receivers.mails(tls_context=context, require_starttls=True) as mail:
        world.drift()
        world.ways = {MAIL: to("ann@example.org", mail)}
        assert world.send().failed == 1
        assert "SMTP 530, the server requires STARTTLS" in world.error_of(MAIL)
        # A certificate that nobody vouches for is not accepted,
        world.ways = {MAIL: to("ann@example.org", mail, security="starttls")}
        assert world.send(at_once=True).failed == 1
        assert "certificate" in world.error_of(MAIL)
        # unless the connection says so.
        world.ways = {MAIL: to("ann@example.org", mail, security="starttls", verify=False)}
        assert world.send(at_once=True).delivered == 1
    assert len(mail.taken) == 1


def test_a_server_without_starttls_gets_no_password(world: World, mail: Mails) -> None:
    world.drift()
    world.ways = {MAIL: to("ann@example.org", mail, security="starttls", user="ann", password="canary")}
    assert world.send().failed == 1
    assert world.error_of(MAIL) == "connecting: the server does not support what the connection requires"
    assert world.wait_of(MAIL) == delivery.MENDED_WITHIN


def test_a_password_that_is_refused_is_for_a_person_to_mend(world: World) -> None:
    from aiosmtpd.smtp import AuthResult

    options = {"authenticator": lambda *_: AuthResult(success=False, handled=False), "auth_require_tls": False}
    with receivers.mails(**options) as mail:
        world.drift()
        world.ways = {MAIL: to("ann@example.org", mail, user="ann", password="canary")}
        assert world.send().failed == 1
    assert world.error_of(MAIL) == "signing in is refused, SMTP 535"
    assert world.wait_of(MAIL) == delivery.MENDED_WITHIN


@pytest.mark.parametrize("behaviour", ["hangs", "drips", "hangs up", "floods"])
def test_a_mail_server_that_misbehaves_takes_no_longer_than_the_deadline(world: World, behaviour: str) -> None:
    def serve(connection: socket.socket) -> None:
        if behaviour == "hangs":
            hang(connection)
        while behaviour == "drips":
            connection.sendall(b"2")
            time.sleep(0.05)
        while behaviour == "floods":
            connection.sendall(b"220-" + b"x" * 65_536)

    with receivers.raw(serve) as port:
        world.ways = {MAIL: to("ann@example.org", port)}
        world.drift()
        began = time.monotonic()
        assert world.send(deadline=IMPATIENCE).failed == 1
        assert time.monotonic() - began < HANGS
    assert world.waiting(MAIL) == ["one"]


# --- waiting, digests, recoveries ------------------------------------------------------------------------------------


def test_a_channel_that_is_down_keeps_nothing_from_another(world: World, web: Slack, mail: Mails) -> None:
    world.ways[MAIL] = to("ann@example.org", mail)
    web.then = hang
    world.drift()
    assert world.send(deadline=timedelta(seconds=5)) == DeliveryResult(delivered=1, failed=1)
    assert len(mail.taken) == 1


def test_each_failure_in_a_row_doubles_the_wait_and_one_success_ends_it(world: World, web: Slack) -> None:
    web.then = answer(503)
    world.drift()
    waits = []
    for _ in range(8):
        assert world.send().failed == 1
        waits.append(world.wait_of() / timedelta(minutes=1))
        world.later(minutes=20)
    for found, wanted in zip(waits, [1, 2, 4, 8, 10, 10, 10, 10], strict=True):
        assert 0.75 * wanted <= found <= 1.25 * wanted
    assert delivery.wait_after(3, SLACK) == delivery.wait_after(3, SLACK), "whoever reckons it gets the same"
    assert len({delivery.wait_after(3, f"slack:{number}") for number in range(50)}) > 25, "not all at once"
    web.then = OK
    assert world.send().delivered == 1
    [channel] = world.ledger.outbox.channels()
    assert (channel.failures, channel.failing_since, channel.error) == (0, None, None)


def test_after_an_outage_people_get_a_digest(world: World, web: Slack) -> None:
    web.then = answer(503)
    for number in range(500):
        world.drift(f"key-{number}", "critical" if number == 7 else "warning")
    assert world.send().failed == 1
    web.then = OK
    assert world.later(hours=1).send() == DeliveryResult(delivered=500)
    [said] = web.said
    assert f"CRITICAL: {MODEL}: 500 times drift" in said
    assert "and 490 earlier ones" in said
    assert "Open the report." in said, "what to do is told as for one"


def test_messages_keep_the_rate_that_slack_allows(world: World, web: Slack) -> None:
    for kind in (of_models.promoted, of_models.rollback):
        world.ledger.record_alert(kind(MODEL, version=2, previous=1, reason="better", actor="ann"), kind.__name__)
    world.drift()
    assert world.send().delivered == 3
    assert len(web.taken) == 3
    assert world.pauses == [1.0, 1.0]
    world.drift("two")
    assert world.send() == DeliveryResult(), "nor does the next sender come too soon"
    assert world.later(seconds=1).send().delivered == 1


def test_what_got_well_before_it_was_told_is_one_message_that_says_both(world: World, web: Slack) -> None:
    world.ledger.record_alert(of_models.interval_refused(MODEL, DAY, reasons=["12 rows"], rows={"flights": 12}), "a")
    world.ledger.record_alert(of_models.interval_refused(MODEL, DAY, reasons=["13 rows"], rows={"flights": 13}), "b")
    world.ledger.resolve(f"{refused_data(MODEL, 'tables')}/{DAY.key}", "2013-04-01 is published.")
    assert world.send() == DeliveryResult(delivered=3)
    [said] = web.said
    for words in ("recovered", "2013-04-01 is published", "12 rows", "reported 2 times"):
        assert words in said
    assert world.waiting() == []


def test_what_was_told_is_answered_when_it_is_well_again_and_nobody_else_hears_of_it(
    world: World, web: Slack, mail: Mails
) -> None:
    alert = world.drift()
    assert world.send().delivered == 1
    world.ways[MAIL] = to("ann@example.org", mail)
    world.ledger.resolve(str(alert.subject), "The verdict on 2013-04-02 is ok.")
    assert world.later(minutes=1).send() == DeliveryResult(delivered=1)
    assert "The verdict on 2013-04-02 is ok." in web.said[1]
    assert mail.taken == []


def test_a_lost_channel_is_told_of_through_the_others_and_so_is_its_return(world: World, web: Slack, mail: Mails) -> None:
    world.ways[MAIL] = to("ann@example.org", mail)
    web.then = answer(404, b"no_service")
    world.drift(severity="critical")
    world.send()
    for _ in range(3):
        world.later(hours=1).send()
    web.then = OK
    world.later(hours=1).send()
    world.later(minutes=1).send()
    subjects = [str(told["Subject"]) for _, told in mail.taken]
    assert subjects == [
        f"CRITICAL: {MODEL}: lasting or harmful drift in 2013-04-01",
        "CRITICAL: slack:team takes no alerts",
        "perennial: recovered: slack:team takes no alerts",
    ]
    lost = words_of(mail.taken[1][1], "plain")
    assert "HTTP 404, no_service" in lost
    assert "1 alert waits, 1 of them critical" in lost
    assert len(web.taken) == 1
    assert all(not entry.waits for entry in world.ledger.alerts())


def test_people_are_told_of_a_channel_that_fails_for_half_an_hour_and_not_before(world: World, web: Slack, mail: Mails) -> None:
    world.ways[MAIL] = to("ann@example.org", mail)
    web.then = answer(503)
    world.drift()
    told = []
    for _ in range(6):
        world.send()
        told.append(len([mail for _, mail in mail.taken if "takes no alerts" in str(mail["Subject"])]))
        world.later(minutes=13)
    assert told == [0, 0, 0, 0, 1, 1]


def test_a_fault_in_the_sending_of_one_channel_does_not_stop_another(world: World, web: Slack) -> None:
    class Faulty:
        async def send(self, message: Message) -> str | None:
            raise RuntimeError("https://hooks.slack.com/services/canary")

    world.ways[MAIL] = Faulty()
    world.drift()
    assert world.send() == DeliveryResult(delivered=1, failed=1)
    assert world.error_of(MAIL) == "not sent: RuntimeError"


def test_a_sender_that_slept_while_another_took_over_sends_nothing_more(world: World, web: Slack) -> None:
    for kind in (of_models.promoted, of_models.rollback):
        world.ledger.record_alert(kind(MODEL, version=2, previous=1, reason="better", actor="ann"), kind.__name__)
    others: list[DeliveryResult] = []

    async def sleep_long(_: float) -> None:
        world.later(hours=1)
        others.append(await asyncio.to_thread(world.send))

    sleeper = delivery.deliver(
        world.ledger.outbox,
        Addresses(lambda _: set(world.ways), lambda: set(world.ways)),
        world.ways.__getitem__,
        clock=lambda: world.now,
        pause=sleep_long,
    )
    assert (sleeper.delivered, others[0].delivered) == (1, 1)
    assert len(web.taken) == 2


def test_a_person_at_a_terminal_sees_what_waits_and_why(
    world: World, web: Slack, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("perennial.cli.questions.settings", lambda: settings)
    web.answers = [OK, answer(410, b"channel_is_archived")]
    world.drift()
    world.send()
    world.ledger.record_alert(of_operation.airflow_silent(EVERYBODY, reason="refused"), "two")
    world.later(minutes=1).send()
    with pytest.raises(SystemExit, match="0"):
        main(["alerts", "--waiting"])
    shown = capsys.readouterr().out
    assert "Airflow does not answer" in shown
    assert "drift in" not in shown
    assert "slack:team failed 1 times: HTTP 410, channel_is_archived. Next attempt" in shown
    with pytest.raises(SystemExit, match="0"):
        main(["alerts", MODEL])
    shown = capsys.readouterr().out
    assert "drift in" in shown
    assert "Airflow does not answer" not in shown


# --- what is said ----------------------------------------------------------------------------------------------------


def test_no_data_can_ping_or_lead_anywhere_in_slack() -> None:
    hostile = of_models.drift(
        "m", DAY, version=3, reasons=[HOSTILE], links={"Run": "http://airflow/a|b>c", HOSTILE: "javascript:x"}
    )
    [made] = compose([wait(1, hostile)])
    told = for_slack(made)
    for block in told["blocks"]:
        if block["text"]["type"] == "mrkdwn":
            assert block["text"]["verbatim"]
            assert block["text"]["text"] == "<http://airflow/a%7Cb&gt;c|Run>"
        else:
            assert block["text"]["type"] == "plain_text"
    assert not told["mrkdwn"]
    assert "<" not in told["text"]
    evil = for_slack(message(title="<!channel> up & <@U1>"))
    assert evil["text"] == "warning: &lt;!channel&gt; up &amp; &lt;@U1&gt;"


def test_a_long_alert_fits_what_slack_takes() -> None:
    reasons = ["x" * 5_000] * 50
    long = of_models.interval_refused("m", DAY, reasons=reasons, rows={f"table_{number}": number for number in range(300)})
    told = for_slack(compose([wait(1, long)])[0])
    assert all(len(block["text"]["text"]) <= 3_000 for block in told["blocks"])
    assert len(told["blocks"][0]["text"]["text"]) <= 150


def test_no_data_can_write_a_header_of_a_mail() -> None:
    mail = for_mail(message(title="m: a\r\nBcc: all@example.org\r\n\r\nbody"), sender="p@example.org", to="ann@example.org")
    assert mail["Subject"] == "warning: m: a Bcc: all@example.org body"
    assert mail["Bcc"] is None
    assert mail["Message-ID"] == f"<{'0' * 32}@example.org>"


def test_the_same_alerts_have_the_same_identity_whoever_sends_them() -> None:
    news = [wait(number, of_models.drift("m", DAY, version=1, reasons=[])) for number in range(3)]
    assert compose(news)[0].identity == compose(news)[0].identity
    assert compose(news)[0].identity != compose(news[:2])[0].identity


def test_the_worst_comes_first_and_a_flood_of_kinds_is_one_message() -> None:
    refused = [of_models.promotion_refused(f"m{n}", version=1, champion=2, reasons=["no"]) for n in range(MOST_MESSAGES - 1)]
    failed = of_operation.run_failed("m", stage="ingest", run_id="r", interval=DAY, error="no file", tries=3)
    news = [wait(number, alert, at=NOW + timedelta(minutes=number)) for number, alert in enumerate([*refused, failed])]
    made = compose(news)
    assert [message.severity for message in made] == ["critical"] + ["warning"] * (MOST_MESSAGES - 1)
    assert "failed 3 times and will not be retried" in made[0].text
    more = [*news, wait(99, of_models.rollback("z", version=1, previous=2, reason="worse", actor="ann"))]
    [all_of_them] = compose(more)
    assert all_of_them.title == "6 alerts of 6 models, 1 of them critical"
    assert all_of_them.severity == "critical"
    assert all_of_them.numbers == (4, 0, 1, 2, 3, 99)
    assert "- critical: m: ingest failed for 2013-04-01" in all_of_them.text


def test_the_fewest_words_hold_nothing_of_the_text() -> None:
    short = in_fewest_words(message(text=HOSTILE, title=HOSTILE))
    assert text_of(for_slack(short)) == (
        "warning: 1 alert, warning\nwarning: 1 alert, warning\nThe channel refused their text. To read it: perennial alerts"
    )


def test_nothing_waiting_makes_no_message() -> None:
    assert compose([]) == []


def test_one_message_has_one_deadline() -> None:
    class Slow:
        async def send(self, message: Message) -> str | None:
            await asyncio.sleep(60)
            return None

    with pytest.raises(NotDelivered, match=r"no answer within 0\.01 s"):
        asyncio.run(channels.send(Slow(), message(), deadline=timedelta(seconds=0.01)))


def self_signed(folder: Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that nobody vouches for, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(folder / "certificate.pem"), str(folder / "key.pem")
