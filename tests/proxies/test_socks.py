"""The SOCKS step: golden bytes, replies in any pieces, every refusal, and who resolves names."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from trioconn._errors import InvalidTargetError, ProxyConnectError, ProxyRefusedError, ResolveError
from trioconn._establish.socks import open_socks
from trioconn._names import Host, parse_host
from trioconn._proxy import Proxy
from trioconn._route import Secret, SocksStep

pytest.importorskip("socksio", reason="the extra socks is not installed")

Meet = Callable[..., Awaitable[Any]]
NAME = b"\x03\x06a.test"
PORT = b"\x01\xbb"
OK5 = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
OK4 = b"\x00\x5a\x00\x00\x00\x00\x00\x00"


def make_step(url: str, host: str = "a.test", *, hop: int = 0) -> SocksStep:
    step = Proxy(url).step(parse_host(host), 443, hop)
    assert isinstance(step, SocksStep)
    return step


def socks(url: str, host: str = "a.test", *, resolve: Any = None, report: Any = None, hop: int = 0) -> Any:
    return partial(open_socks, step=make_step(url, host, hop=hop), resolve=resolve, report=report)


def dialogue(*turns: tuple[bytes, bytes], asked: list[bytes] | None = None, size: int = 0, end: bool = False) -> Any:
    """A proxy that waits for a request, answers in pieces of `size`, and so on; at the `end` it closes."""

    async def script(stream: trio.abc.Stream) -> None:
        for expected, answer in turns:
            got = b""
            while len(got) < len(expected):
                got += await stream.receive_some(len(expected) - len(got))
            if asked is not None:
                asked.append(got)
            step = size or len(answer) or 1
            for start in range(0, len(answer), step):
                await stream.send_all(answer[start : start + step])
                await trio.testing.wait_all_tasks_blocked()
        if end:
            await stream.aclose()
            return
        await trio.sleep_forever()

    return script


async def no_resolver(host: Host) -> list[str]:
    raise AssertionError("nothing is to be resolved here")


CASES = [
    pytest.param(
        "socks5h://p.test",
        "a.test",
        [(b"\x05\x01\x00", b"\x05\x00"), (b"\x05\x01\x00" + NAME + PORT, OK5)],
        id="5h name",
    ),
    pytest.param(
        "socks5h://p.test",
        "A.Test.",
        [(b"\x05\x01\x00", b"\x05\x00"), (b"\x05\x01\x00" + NAME + PORT, OK5)],
        id="5h name, canonical",
    ),
    pytest.param(
        "socks5h://p.test",
        "straße.test",
        [(b"\x05\x01\x00", b"\x05\x00"), (b"\x05\x01\x00\x03\x12xn--strae-oqa.test" + PORT, OK5)],
        id="5h name, A-label",
    ),
    pytest.param(
        "socks5h://p.test",
        "192.0.2.1",
        [(b"\x05\x01\x00", b"\x05\x00"), (b"\x05\x01\x00\x01\xc0\x00\x02\x01" + PORT, OK5)],
        id="5h IPv4",
    ),
    pytest.param(
        "socks5://p.test",
        "2001:db8::1",
        [(b"\x05\x01\x00", b"\x05\x00"), (b"\x05\x01\x00\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01" + PORT, OK5)],
        id="5 IPv6",
    ),
    pytest.param(
        "socks5h://u:pä@p.test",
        "a.test",
        [
            (b"\x05\x02\x00\x02", b"\x05\x02"),
            (b"\x01\x01u\x03p\xc3\xa4", b"\x01\x00"),
            (b"\x05\x01\x00" + NAME + PORT, OK5),
        ],
        id="5h login",
    ),
    pytest.param(
        "socks5h://u:p@p.test",
        "a.test",
        [(b"\x05\x02\x00\x02", b"\x05\x00"), (b"\x05\x01\x00" + NAME + PORT, OK5)],
        id="5h login that is not asked for",
    ),
    pytest.param(
        "socks5h://p.test",
        "a.test",
        [
            (b"\x05\x01\x00", b"\x05\x00"),
            (b"\x05\x01\x00" + NAME + PORT, b"\x05\x00\x00\x03\x05proxy\x1f\x90"),
        ],
        id="5h bound to a name",
    ),
    pytest.param(
        "socks5h://p.test",
        "a.test",
        [(b"\x05\x01\x00", b"\x05\x00"), (b"\x05\x01\x00" + NAME + PORT, b"\x05\x00\x00\x04" + bytes(18))],
        id="5h bound to IPv6",
    ),
    pytest.param(
        "socks4a://p.test", "a.test", [(b"\x04\x01" + PORT + b"\x00\x00\x00\xff\x00a.test\x00", OK4)], id="4a name"
    ),
    pytest.param(
        "socks4a://us@p.test",
        "a.test",
        [(b"\x04\x01" + PORT + b"\x00\x00\x00\xffus\x00a.test\x00", OK4)],
        id="4a name and user",
    ),
    pytest.param("socks4a://p.test", "192.0.2.1", [(b"\x04\x01" + PORT + b"\xc0\x00\x02\x01\x00", OK4)], id="4a IPv4"),
]


@pytest.mark.security(17)
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize(("url", "host", "turns"), CASES)
async def test_golden_bytes(
    meet: Meet, reports: Any, url: str, host: str, turns: list[tuple[bytes, bytes]], size: int
) -> None:
    asked: list[bytes] = []
    script = dialogue(*turns, asked=asked, size=size)
    meeting = await meet(socks(url, host, resolve=no_resolver, report=reports), script)
    assert meeting.error is None
    assert meeting.stream is meeting.lower
    assert asked == [expected for expected, _ in turns]
    target = make_step(url, host).host.authority(443)
    assert reports.seen == [
        ("TunnelStarted", {"hop": 0, "target": target}),
        ("TunnelFinished", {"hop": 0, "status": 0x5A if url.startswith("socks4a") else 0, "error": None}),
    ]


async def test_socks5_resolves_here_and_asks_for_the_first_address(meet: Meet) -> None:
    asked: list[bytes] = []
    questions: list[Host] = []

    async def resolve(host: Host) -> list[str]:
        questions.append(host)
        return ["2001:db8::1%eth0", "192.0.2.1"]

    request = b"\x05\x01\x00\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01" + PORT
    script = dialogue((b"\x05\x01\x00", b"\x05\x00"), (request, OK5), asked=asked)
    assert (await meet(socks("socks5://p.test", "a.test.", resolve=resolve), script)).stream is not None
    assert questions == [parse_host("a.test.")]
    assert asked[1] == request


async def test_resolving_that_fails_closes(meet: Meet) -> None:
    async def fails(host: Host) -> list[str]:
        raise ResolveError("no such host", stage="resolve")

    async def finds_nothing(host: Host) -> list[str]:
        return []

    for resolve in (fails, finds_nothing):
        asked: list[bytes] = []
        meeting = await meet(socks("socks5://p.test", resolve=resolve), dialogue((b"\x05", b""), asked=asked))
        assert type(meeting.error) is ResolveError
        assert meeting.error.stage == "resolve"
        assert await meeting.is_closed()
        assert asked == []
    with pytest.RaisesGroup(RuntimeError):
        await meet(socks("socks5://p.test"), dialogue())


GREETED = (b"\x05\x01\x00", b"\x05\x00")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1, "general server failure"),
        (2, "connection not allowed by ruleset"),
        (3, "network unreachable"),
        (4, "host unreachable"),
        (5, "connection refused"),
        (6, "ttl expired"),
        (7, "command not supported"),
        (8, "address type not supported"),
        (9, "code 9"),
        (255, "code 255"),
    ],
)
@pytest.mark.parametrize("rest", [b"\x00\x01" + bytes(6), b"\x00\x00"], ids=["whole", "cut"])
async def test_socks5_refusals(meet: Meet, reports: Any, code: int, reason: str, rest: bytes) -> None:
    script = dialogue(GREETED, (b"\x05\x01\x00" + NAME + PORT, bytes([5, code]) + rest), end=True)
    meeting = await meet(socks("socks5h://p.test", report=reports, hop=1), script)
    error = meeting.error
    assert type(error) is ProxyRefusedError
    assert (error.status, error.reason, error.hop, error.stage) == (code, reason, 1, "proxy")
    assert reason in str(error)
    assert "a.test:443" in str(error)
    assert await meeting.is_closed()
    assert reports.seen[-1] == ("TunnelFinished", {"hop": 1, "status": code, "error": error})


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0x5B, "request rejected or failed"),
        (0x5C, "connection failed"),
        (0x5D, "authentication failed"),
        (0, "code 0"),
    ],
)
async def test_socks4_refusals(meet: Meet, code: int, reason: str) -> None:
    script = dialogue((b"\x04\x01" + PORT + b"\x00\x00\x00\xff\x00a.test\x00", bytes([0, code]) + bytes(6)))
    meeting = await meet(socks("socks4a://p.test"), script)
    assert type(meeting.error) is ProxyRefusedError
    assert (meeting.error.status, meeting.error.reason) == (code, reason)
    assert await meeting.is_closed()


REQUEST = b"\x05\x01\x00" + NAME + PORT
LOGIN = b"\x01\x0bhidden-user\x0fhidden-password"


@pytest.mark.parametrize(
    ("url", "turns"),
    [
        ("socks5h://p.test", [(b"\x05\x01\x00", b"")]),
        ("socks5h://p.test", [(b"\x05\x01\x00", b"\x05")]),
        ("socks5h://p.test", [(b"\x05\x01\x00", b"\x04\x00")]),
        ("socks5h://p.test", [(b"\x05\x01\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n")]),
        ("socks5h://p.test", [(b"\x05\x01\x00", b"\x05\xff")]),
        ("socks5h://p.test", [(b"\x05\x01\x00", b"\x05\x01")]),
        ("socks5h://p.test", [(b"\x05\x01\x00", b"\x05\x02")]),
        ("socks5h://p.test", [(b"\x05\x01\x00", b"\x05\x80")]),
        ("socks5h://p.test", [GREETED, (REQUEST, b"")]),
        ("socks5h://p.test", [GREETED, (REQUEST, b"\x04\x00\x00\x01" + bytes(6))]),
        ("socks5h://p.test", [GREETED, (REQUEST, b"\x05\x00\x00\x02" + bytes(6))]),
        ("socks5h://p.test", [GREETED, (REQUEST, b"\x05\x00\x00\x00" + bytes(6))]),
        ("socks5h://p.test", [GREETED, (REQUEST, b"\x05\x00\x00\x03\x02\xff\xff\x00\x00")]),
        *(("socks5h://p.test", [GREETED, (REQUEST, OK5[:cut])]) for cut in range(1, len(OK5))),
        ("socks5h://p.test", [GREETED, (REQUEST, b"\x05\x00\x00\x03")]),
        ("socks5h://p.test", [GREETED, (REQUEST, b"\x05\x00\x00\x03\xffshort")]),
        ("socks5h://hidden-user:hidden-password@p.test", [(b"\x05\x02\x00\x02", b"\x05\xff")]),
        ("socks5h://hidden-user:hidden-password@p.test", [(b"\x05\x02\x00\x02", b"\x05\x02"), (LOGIN, b"\x01\x01")]),
        ("socks5h://hidden-user:hidden-password@p.test", [(b"\x05\x02\x00\x02", b"\x05\x02"), (LOGIN, b"\x05\x00")]),
        ("socks5h://hidden-user:hidden-password@p.test", [(b"\x05\x02\x00\x02", b"\x05\x02"), (LOGIN, b"\x01")]),
        *(("socks4a://p.test", [(b"\x04\x01", OK4[:cut])]) for cut in range(len(OK4))),
        ("socks4a://p.test", [(b"\x04\x01", b"\x04\x5a" + bytes(6))]),
        ("socks4a://p.test", [(b"\x04\x01", b"\x05\xff" + bytes(6))]),
    ],
)
async def test_malformed_cut_or_refused_logins(meet: Meet, url: str, turns: list[tuple[bytes, bytes]]) -> None:
    meeting = await meet(socks(url), dialogue(*turns, end=True))
    assert type(meeting.error) is ProxyConnectError
    assert (meeting.error.stage, meeting.error.hop) == ("proxy", 0)
    assert "hidden" not in str(meeting.error) + repr(meeting.error)
    assert await meeting.is_closed()


async def test_what_follows_the_reply_stays_in_the_stream(meet: Meet) -> None:
    for url, turns in (
        ("socks5h://p.test", [GREETED, (REQUEST, OK5 + b"hello")]),
        ("socks4a://p.test", [(b"\x04\x01" + PORT + b"\x00\x00\x00\xff\x00a.test\x00", OK4 + b"hello")]),
    ):
        meeting = await meet(socks(url), dialogue(*turns))
        assert await meeting.stream.receive_some() == b"hello"


async def test_broken_connection(meet: Meet) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        await trio.aclose_forcefully(stream)

    async def step(stream: trio.abc.Stream) -> trio.abc.Stream:
        await trio.testing.wait_all_tasks_blocked()
        return await open_socks(stream, make_step("socks5h://p.test"))

    meeting = await meet(step, script)
    assert type(meeting.error) is ProxyConnectError
    assert isinstance(meeting.error.__cause__, trio.BrokenResourceError)


@pytest.mark.security(48)
@pytest.mark.parametrize("turns", [[], [(b"\x05\x01\x00", b"\x05")], [GREETED], [GREETED, (REQUEST, OK5[:5])]])
async def test_silence_is_ended_by_the_callers_deadline(
    meet: Meet, turns: list[tuple[bytes, bytes]], autojump_clock: trio.testing.MockClock
) -> None:
    async def step(stream: trio.abc.Stream) -> trio.abc.Stream:
        with trio.fail_after(30):
            return await open_socks(stream, make_step("socks5h://p.test"))

    start = trio.current_time()
    with pytest.RaisesGroup(trio.TooSlowError):
        await meet(step, dialogue(*turns))
    assert trio.current_time() - start == 30


async def test_cancelled_at_every_checkpoint(meet: Meet) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        for answer in (b"\x05\x00", b"\x05\x05\x00\x01"):
            await stream.receive_some()
            for octet in answer:
                await stream.send_all(bytes([octet]))
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
        await trio.sleep_forever()

    ways_out: list[bool] = []
    while not ways_out or ways_out[-1]:
        meeting = await meet(socks("socks5h://p.test"), script, cancel_after=len(ways_out))
        assert await meeting.is_closed()
        ways_out.append(meeting.cancelled)
    assert len(ways_out) > 5


@pytest.mark.parametrize("auth", [("u" * 256, "p"), ("u", "é" * 128), ("", "p"), ("u", "")])
async def test_lengths_are_checked_again_before_anything_is_written(meet: Meet, auth: tuple[str, str]) -> None:
    asked: list[bytes] = []
    step = SocksStep("socks5h", parse_host("a.test"), 443, Secret(auth), 0)
    with pytest.RaisesGroup(pytest.RaisesExc(InvalidTargetError, match="1 to 255 bytes")):
        await meet(partial(open_socks, step=step), dialogue((b"\x05", b""), asked=asked))
    step = SocksStep("socks5h", Host("a" * 256), 443, None, 0)
    with pytest.RaisesGroup(pytest.RaisesExc(InvalidTargetError, match="1 to 255 bytes")):
        await meet(partial(open_socks, step=step), dialogue((b"\x05", b""), asked=asked))
    assert asked == []


async def test_missing_extra_is_named(meet: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    lower: list[trio.abc.Stream] = []

    async def step(stream: trio.abc.Stream) -> trio.abc.Stream:
        lower.append(stream)
        return await open_socks(stream, make_step("socks5h://p.test"))

    with pytest.RaisesGroup(pytest.RaisesExc(ImportError, match=r"trioconn\[socks\]")):
        await meet(step, dialogue())
    with pytest.raises(trio.ClosedResourceError):
        await lower[0].receive_some()


async def test_socks4a_is_not_asked_for_ipv6(meet: Meet) -> None:
    asked: list[bytes] = []
    step = SocksStep("socks4a", parse_host("::1"), 443, None, 0)
    with pytest.RaisesGroup(pytest.RaisesExc(InvalidTargetError, match="socks5h")):
        await meet(partial(open_socks, step=step), dialogue((b"\x04", b""), asked=asked))
    assert asked == []
