"""Whatever a proxy sends: a tunnel or a typed error, in bounded memory and time.

Answers are good ones, mutated: that comes further into the code than noise. The normal run tries a few hundred, the
soak run as many as fit in its time.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trioconn._errors import ProxyConnectError, ProxyError, ProxyRefusedError
from trioconn._establish.http_connect import MOST_ANSWER, MOST_BODY, ConnectExchange, Malformed, Opened, Refused
from trioconn._establish.http_tunnel import open_tunnel
from trioconn._establish.socks import open_socks
from trioconn._names import parse_host
from trioconn._proxy import Proxy
from trioconn._route import ConnectStep, SocksStep

pytest.importorskip("socksio", reason="the extra socks is not installed")

HTTP_ANSWERS = [
    b"HTTP/1.1 200 Connection established\r\nProxy-Agent: x\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.0 200 OK\r\n\r\n",
    b"HTTP/1.1 407 Authentication\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 4\r\n\r\nbody",
    b"HTTP/1.1 502 Bad\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nTrailer: x\r\n\r\n",
    b"HTTP/1.0 503 Busy\r\n\r\nuntil the end",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
]
# Greeting, login and reply in one stream: the step takes what it needs, in order.
SOCKS_ANSWERS = [
    ("socks5h", b"\x05\x00" + b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50"),
    ("socks5h", b"\x05\x02\x01\x00" + b"\x05\x00\x00\x03\x05proxy\x00\x50hello"),
    ("socks5h", b"\x05\x02\x01\x00" + b"\x05\x00\x00\x04" + bytes(18)),
    ("socks5h", b"\x05\x00" + b"\x05\x05\x00\x01" + bytes(6)),
    ("socks4a", b"\x00\x5a" + bytes(6) + b"hello"),
    ("socks4a", b"\x00\x5b" + bytes(6)),
]
TOKENS = [
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\x00",
        b" ",
        b":",
        b",",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 100 x\r\n\r\n",
    ),
    *(b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"9" * 30, b"\xff" * 9),
    *(b"x" * 5000, b"X: y\r\n" * 120, b"\x05\x00", b"\x05\xff", b"\x16\x03\x01", b"ffffffffffffffff\r\n", b"0\r\n\r\n"),
]

mutations = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "replace", "cut", "repeat"]),
        st.floats(0, 1),
        st.one_of(st.sampled_from(TOKENS), st.binary(max_size=8)),
        st.integers(1, 8),
    ),
    max_size=5,
)


def mutate(data: bytes, steps: list[tuple[str, float, bytes, int]]) -> bytes:
    for kind, where, token, count in steps:
        at = math.floor(where * len(data))
        if kind == "insert":
            data = data[:at] + token + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + count :]
        elif kind == "replace":
            data = data[:at] + token + data[at + len(token) :]
        elif kind == "cut":
            data = data[:at]
        else:
            data = data[:at] + data[at : at + 64] * count + data[at:]
    return data


http_answers = st.builds(mutate, st.sampled_from(HTTP_ANSWERS), mutations)
socks_answers = st.sampled_from(SOCKS_ANSWERS).flatmap(
    lambda case: st.tuples(st.just(case[0]), st.builds(mutate, st.just(case[1]), mutations))
)
sizes = st.sampled_from([1, 2, 3, 64, 1_000_000])


def tries(count: int) -> settings:
    return settings(max_examples=count, deadline=None)


def feed(answer: bytes, size: int) -> tuple[Opened | Refused | Malformed, bytes]:
    """The outcome, and everything that a tunnel's user would read."""
    connect = ConnectExchange("a.test:443")
    connect.request()
    for start in range(0, len(answer), size):
        outcome = connect.feed(answer[start : start + size])
        if outcome is not None:
            rest = outcome.leftover if isinstance(outcome, Opened) else b""
            return outcome, rest + answer[start + size :]
    outcome = connect.feed(b"")
    assert outcome is not None
    return outcome, b""


def check_connect(answer: bytes, size: int) -> None:
    whole, rest = feed(answer, len(answer) or 1)
    pieces, rest_of_pieces = feed(answer, size)
    assert type(whole) is type(pieces)
    if isinstance(whole, Opened) and isinstance(pieces, Opened):
        assert whole.status == pieces.status
        assert rest == rest_of_pieces
        assert answer.endswith(rest)
        # What stands before the tunnel's data ends with an empty line and nothing of it is lost.
        assert answer[: len(answer) - len(rest)].endswith((b"\n\r\n", b"\n\n"))
        assert 200 <= whole.status < 300
    elif isinstance(whole, Refused):
        assert whole == pieces
        assert len(whole.body) <= MOST_BODY
        assert whole.reason.isprintable()
        assert not 200 <= whole.status < 300
    else:
        assert isinstance(whole, Malformed)
        assert whole.why.isprintable()
        assert len(whole.why) < 300


async def say(stream: trio.abc.Stream, answer: bytes) -> None:
    try:
        for start in range(0, len(answer), 100):
            await stream.send_all(answer[start : start + 100])
        await stream.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def play(step: Callable[[trio.abc.Stream], Awaitable[trio.abc.Stream]], answer: bytes) -> ProxyError | None:
    """Run a step against `answer`; what came out must be a stream or one of the two errors, and then it is closed."""
    client, server = trio.testing.memory_stream_pair()
    error: ProxyError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say, server, answer)
        try:
            with trio.fail_after(60):
                await step(client)
        except (ProxyConnectError, ProxyRefusedError) as exc:
            error = exc
        nursery.cancel_scope.cancel()
    if error is not None:
        assert error.stage == "proxy"
        assert str(error).isprintable()
        assert len(str(error)) < 600
        with pytest.raises(trio.ClosedResourceError):
            await client.send_all(b"x")
    return error


def run_step(step: Callable[[trio.abc.Stream], Awaitable[trio.abc.Stream]], answer: bytes) -> ProxyError | None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(play, step, answer, clock=clock)


def check_tunnel(answer: bytes, tls_follows: bool) -> None:
    connect = Proxy("http://u:p@p.test").step(parse_host("a.test"), 443, 0)
    assert isinstance(connect, ConnectStep)

    async def step(stream: trio.abc.Stream) -> trio.abc.Stream:
        return await open_tunnel(stream, connect, tls_follows=tls_follows)

    error = run_step(step, answer)
    outcome, _ = feed(answer, len(answer) or 1)
    if error is None:
        assert isinstance(outcome, Opened)
    if isinstance(outcome, Refused):
        assert isinstance(error, ProxyRefusedError)
        assert error.status == outcome.status


def check_socks(case: tuple[str, bytes]) -> None:
    scheme, answer = case
    url = "socks5h://u:p@p.test" if scheme == "socks5h" else "socks4a://u@p.test"
    socks = Proxy(url).step(parse_host("a.test"), 443, 0)
    assert isinstance(socks, SocksStep)

    async def step(stream: trio.abc.Stream) -> trio.abc.Stream:
        return await open_socks(stream, socks)

    error = run_step(step, answer)
    if error is None:  # whatever else was said, these bytes opened it
        assert b"\x05\x00" in answer if scheme == "socks5h" else answer.startswith(b"\x00\x5a")


@tries(200)
@given(http_answers, sizes)
@example(b"HTTP/1.1 403 no\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 1)
def test_connect_codec(answer: bytes, size: int) -> None:
    check_connect(answer, size)


@tries(100)
@given(http_answers, st.booleans())
def test_connect_step(answer: bytes, tls_follows: bool) -> None:
    check_tunnel(answer, tls_follows)


@tries(150)
@given(socks_answers)
def test_socks_step(case: tuple[str, bytes]) -> None:
    check_socks(case)


@tries(50)
@given(st.binary(max_size=400), st.sampled_from(["socks4a", "socks5h"]))
def test_noise(noise: bytes, scheme: str) -> None:
    check_connect(noise, 1)
    check_tunnel(noise, False)
    check_socks((scheme, noise))


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    ("check", "strategies"),
    [
        (check_connect, (http_answers, sizes)),
        (check_tunnel, (http_answers, st.booleans())),
        (check_socks, (socks_answers,)),
    ],
    ids=["codec", "tunnel", "socks"],
)
def test_many_answers(check: Callable[..., None], strategies: tuple[Any, ...], soak: Any) -> None:
    import h11  # noqa: F401 - the first answer would import it, which is memory, too

    def bounded(*arguments: Any) -> None:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        check(*arguments)
        assert tracemalloc.get_traced_memory()[1] - before < 40 * MOST_ANSWER

    tracemalloc.start()
    try:
        print(soak.fuzz(bounded, *strategies, share=3), "answers")
    finally:
        tracemalloc.stop()
