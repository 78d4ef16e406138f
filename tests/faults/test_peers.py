"""A server or proxy that misbehaves at a certain byte, for every byte that it sends, at every kind of step.

The peers are honest ones (a proxy, a SOCKS server, a TLS server, a server that greets) on a stream that counts what
they send, and does something else at the n-th byte. The wire is a TCP connection on loopback rather than the socket
pair of `FakeNetwork`, because only TCP can be reset; the time is virtual.

However it goes: the caller has a connection or a `ConnectError`, within the time that an attempt may take; when it has
an error, nothing is open any more and the slot is free. So it is when the caller is cancelled meanwhile, at any step.
"""

from __future__ import annotations

import random
import socket
import ssl
import struct
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn.testing import FakeNetwork

from .replay import Cutter, fixed_order

TIMEOUT = 3.0
GARBAGE = b"\x00\xff\r\n\r\nHTTP/1.1 200 OK\r\n\r\n\x15\x03\x03\x00\x02\x02\x28"
FAULTS = ("stall", "reset", "close", "half-close", "garbage", "byte by byte")
Peer = Callable[[trio.abc.Stream], Awaitable[object]]


class TCPNetwork(FakeNetwork):
    """A fake network on real TCP connections."""

    def make_socket(self, info: object) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        for end in (ours, theirs):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._other_ends[ours] = theirs, weakref.finalize(ours, theirs.close)
        return ours


class Faulty(trio.abc.Stream):
    """A peer's end whose n-th byte is not sent as it should be."""

    def __init__(self, stream: trio.SocketStream, fault: str, at: int) -> None:
        self._stream = stream
        self._fault = fault
        self._left = at
        self.sent = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._fault == "byte by byte":
            for byte in bytes(data):
                await self._stream.send_all(bytes([byte]))
                await trio.sleep(1e-5)
                self.sent += 1
            return
        head, tail = bytes(data[: self._left]), bytes(data[self._left :])
        self.sent += len(data)
        if head:
            await self._stream.send_all(head)
        self._left -= len(head)
        if not tail:
            return
        self._left = 2**60
        if self._fault == "stall":
            await trio.sleep_forever()
        elif self._fault == "half-close":
            await self._stream.send_eof()
            await trio.sleep_forever()
        elif self._fault == "garbage":
            await self._stream.send_all(GARBAGE + tail)
        else:
            if self._fault == "reset":
                self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._stream.socket.close()
            raise trio.BrokenResourceError("the fault")

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()


# ---- honest peers ----------------------------------------------------------------------------------------------------


async def echo(stream: trio.abc.Stream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def greet(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"220 a.test at your service\r\n")
    await echo(stream)


async def take(stream: trio.abc.Stream, ending: bytes) -> None:
    head = b""
    while not head.endswith(ending):
        byte = await stream.receive_some(1)
        if not byte:
            raise trio.BrokenResourceError("the client has gone")
        head += byte


def http_proxy(then: Peer) -> Peer:
    async def serve(stream: trio.abc.Stream) -> None:
        await take(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
        await then(stream)

    return serve


def socks5_proxy(then: Peer) -> Peer:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"\x05\x02")
        await stream.receive_some()
        await stream.send_all(b"\x01\x00")
        await stream.receive_some()
        await stream.send_all(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50")
        await then(stream)

    return serve


def socks4_proxy(then: Peer) -> Peer:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"\x00\x5a\x00\x50\x7f\x00\x00\x01")
        await then(stream)

    return serve


def with_tls(context: ssl.SSLContext, then: Peer) -> Peer:
    async def serve(stream: trio.abc.Stream) -> None:
        secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        await secured.do_handshake()
        await then(secured)

    return serve


async def read_greeting(stream: trio.abc.Stream, route: trioconn.Route) -> bytes:
    line = b""
    while not line.endswith(b"\r\n"):
        try:
            some = await stream.receive_some(1)
        except (
            trio.BrokenResourceError
        ) as error:  # what a factory raises that is no OSError reaches the caller as it is
            raise ConnectionError(str(error)) from error
        if not some:
            raise ConnectionError("the server ended before it had greeted")
        line += some
        if len(line) > 200:
            raise ConnectionError("no greeting is so long")
    return line


# ---- paths: what the client asks for, and who answers ----------------------------------------------------------------


def path(name: str, server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[str, dict[str, Any], dict[str, Any], Peer]:
    """(target, options of the call, options of the connector, peer)"""
    trusting = {"ssl": client}
    if name == "greeting":
        return "tcp://a.example.test:1", {}, {"protocol_factory": read_greeting}, greet
    if name == "TLS":
        return "tls://a.example.test:1", trusting, {}, with_tls(server, echo)
    if name == "HTTP tunnel":
        return "tcp://a.example.test:1", {"proxy": "http://p.example.test"}, {}, http_proxy(echo)
    if name == "SOCKS 5":
        proxy = {"proxy": "socks5h://u:p@p.example.test"}
        return "tcp://a.example.test:1", proxy, {}, socks5_proxy(echo)
    if name == "SOCKS 4":
        return "tcp://a.example.test:1", {"proxy": "socks4a://u@p.example.test"}, {}, socks4_proxy(echo)
    if name == "TLS in a tunnel":
        tunnel = {"proxy": "http://p.example.test", **trusting}
        return "tls://a.example.test:1", tunnel, {}, http_proxy(with_tls(server, echo))
    assert name == "TLS in a tunnel in TLS"
    options = {"proxy": trioconn.Proxy("https://p.example.test", ssl=client), **trusting}
    return "tls://a.example.test:1", options, {}, with_tls(server, http_proxy(with_tls(server, echo)))


PATHS = ("greeting", "TLS", "HTTP tunnel", "SOCKS 5", "SOCKS 4", "TLS in a tunnel", "TLS in a tunnel in TLS")


@asynccontextmanager
async def facing(
    peer: Peer, fault: str, at: int, **options: Any
) -> AsyncIterator[tuple[trioconn.TCPConnector, list[Faulty]]]:
    """A connector in a network where everything leads to `peer`, with that fault."""
    made: list[Faulty] = []

    async def serve(stream: trio.SocketStream) -> None:
        made.append(Faulty(stream, fault, at))
        try:
            await peer(made[-1])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        network = TCPNetwork(nursery)
        network.add_host("a.example.test", "192.0.2.1")
        network.add_host("p.example.test", "192.0.2.1")
        network.listen("192.0.2.1", serve)
        async with network.connector(limit=1, connect_timeout=TIMEOUT, **options) as connector:
            yield connector, made
        nursery.cancel_scope.cancel()


def check_error(error: trioconn.ConnectError, fault: str, elapsed: float) -> None:
    assert str(error).isprintable() and error.route is not None
    assert error.stage in {"proxy", "tls", "protocol"}
    assert fault != "byte by byte"
    if fault == "stall":
        assert isinstance(error, trioconn.ConnectTimeoutError) and elapsed == TIMEOUT
    elif fault == "garbage":
        assert elapsed <= TIMEOUT
    else:  # of an end it is known at once
        assert elapsed == 0


async def use(lease: trioconn.Connection, fault: str, *, secured: bool) -> None:
    with trio.move_on_after(TIMEOUT):
        try:
            await lease.stream.send_all(b"hello")
            answer = b""
            while len(answer) < 5 and (some := await lease.stream.receive_some()):
                answer += some
        except trio.BrokenResourceError:
            assert fault != "byte by byte"
        else:
            if fault == "byte by byte":
                assert answer == b"hello"
            if secured:  # whatever lies on the wire: the peer's own bytes or an error
                assert b"hello".startswith(answer)


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


async def attempt(name: str, fault: str, at: int, contexts: Contexts, cutter: Cutter | None = None) -> int:
    """One connection to a peer with a fault. Returns how many bytes the peer would have sent or did send."""
    target, options, connector_options, peer = path(name, *contexts)
    cutter = cutter or Cutter(0)
    async with facing(peer, fault, at, **connector_options) as (connector, made):
        start = trio.current_time()
        with cutter.armed():
            try:
                lease = await connector.connect(target, **options)
            except trioconn.ConnectError as error:
                check_error(error, fault, round(trio.current_time() - start, 6))
            else:
                # The steps were over before the fault, or took no harm from it: it is the user's stream now.
                async with lease:
                    await use(lease, fault, secured="TLS" in name)
        await trio.testing.wait_all_tasks_blocked()
        counts = connector.statistics()
        assert (counts.leased, counts.connecting, counts.waiting) == (0, 0, 0)
        # Who is cancelled when the connection has just been made leaves it to the next one.
        assert counts.open == (counts.idle if cutter.cut else 0)
        return sum(one.sent for one in made)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", PATHS)
async def test_a_fault_at_every_byte(
    name: str,
    fault: str,
    autojump_clock: trio.testing.MockClock,
    server_ssl: Callable[..., ssl.SSLContext],
    client_ssl: ssl.SSLContext,
    no_fd_leak: None,
) -> None:
    if name.startswith("SOCKS"):
        pytest.importorskip("socksio", reason="the extra socks is not installed")
    contexts = server_ssl(), client_ssl
    length = await attempt(name, "byte by byte", 0, contexts)
    if fault == "byte by byte":
        assert length > 5
        return
    # Of a handshake not every byte: they are many. Its first ones, where records begin, and some of each part.
    stride = max(1, length // 20)
    for at in sorted({*range(min(length, 8)), *range(0, length + 1, stride)}):
        try:
            await attempt(name, fault, at, contexts)
        except BaseException as error:
            error.add_note(f"{name}: {fault} at byte {at} of {length}")
            raise


def run_cut(name: str, fault: str, at: int, contexts: Contexts, step: int, seed: int) -> tuple[int, int]:
    """An attempt whose caller is cancelled before that step of any task. Returns (bytes, steps) that there were."""
    cutter = Cutter(step)
    clock = trio.testing.MockClock(autojump_threshold=0)
    with fixed_order(seed):
        try:
            length = trio.run(partial(attempt, name, fault, at, contexts, cutter), clock=clock, instruments=[cutter])
        except BaseException as error:
            error.add_note(f"{name}: {fault} at byte {at}, cancelled at step {step}, seed {seed}")
            raise
    return length, cutter.steps


def draw(number: int, names: tuple[str, ...], contexts: Contexts) -> str:
    """One fault at one byte, and one cancellation, the same for a number. Returns which fault."""
    source = random.Random(number)
    name, fault = source.choice(names), source.choice(FAULTS)
    length, _ = run_cut(name, "stall", 2**50, contexts, 0, number)  # which is none
    at = source.randrange(length + 1)
    _, steps = run_cut(name, fault, at, contexts, 0, number)
    # How long the records of TLS are is another chance: sometimes it is over a little before.
    run_cut(name, fault, at, contexts, source.randrange(1, steps + 1), number)
    return f"{name}, {fault}"


@pytest.mark.parametrize("name", PATHS)
def test_a_fault_and_a_cancellation(
    name: str, server_ssl: Callable[..., ssl.SSLContext], client_ssl: ssl.SSLContext, no_fd_leak: None
) -> None:
    if name.startswith("SOCKS"):
        pytest.importorskip("socksio", reason="the extra socks is not installed")
    contexts = server_ssl(), client_ssl
    for number in range(10):
        draw(number, (name,), contexts)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_faults_and_cancellations(
    soak: Any, server_ssl: Callable[..., ssl.SSLContext], client_ssl: ssl.SSLContext, no_fd_leak: None
) -> None:
    contexts = server_ssl(), client_ssl
    drawn = Counter(draw(number, PATHS, contexts) for number in soak.turns())
    print(drawn.total(), "attempts with a fault and a cancellation:", dict(drawn))


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", PATHS)
async def test_all_faults_at_really_every_byte(
    name: str,
    autojump_clock: trio.testing.MockClock,
    server_ssl: Callable[..., ssl.SSLContext],
    client_ssl: ssl.SSLContext,
) -> None:
    contexts = server_ssl(), client_ssl
    length = await attempt(name, "byte by byte", 0, contexts)
    for fault in FAULTS[:-1]:
        for at in range(length + 1):
            await attempt(name, fault, at, contexts)
