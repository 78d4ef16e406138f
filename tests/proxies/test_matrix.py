"""Schemes by ways: what a connector makes of each pair, and that in each a wrong peer or a cancel fails closed."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio

import trioconn
from trioconn import CertificateError, ConnectError, Fingerprint, FingerprintMismatchError, Proxy, ResolveResult

pytest.importorskip("socksio", reason="the extra socks is not installed")

SCHEMES = ["http", "https", "ws", "wss", "tcp", "tls"]
SECURE = {"https", "wss", "tls"}
WAYS = ["direct", "http", "https", "socks4a", "socks5", "socks5h", "http-https", "https-socks5h", "socks5-http"]
SECRET = ("hidden-user", "hidden-password")
SECRETS = ("hidden-user", "hidden-password", "aGlkZGVu", "aGlkZGVuLXVzZXI")


class Loopback(trioconn.Resolver):
    """Every name is this machine."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        await trio.lowlevel.checkpoint()
        return [ResolveResult("127.0.0.1", socket.AF_INET, 10.0)]

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def relay(left: trio.abc.Stream, right: trio.abc.Stream) -> None:
    async def pump(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await trio.aclose_forcefully(sink)
        await trio.aclose_forcefully(source)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, left, right)
        nursery.start_soon(pump, right, left)


async def exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            raise trio.BrokenResourceError("too short")
        data += more
    return data


async def serve_http(stream: trio.abc.Stream, world: World) -> None:
    """CONNECT is relayed to this machine; anything else is answered as forwarded."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await exactly(stream, 1)
    world.at_proxies.append(head)
    if not head.startswith(b"CONNECT "):
        await stream.send_all(b"forwarded")
        return
    assert b"Proxy-Authorization: Basic aGlkZGVu" in head
    port = int(head.split(b" ")[1].rpartition(b":")[2])
    async with await trio.open_tcp_stream("127.0.0.1", port) as behind:
        await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await relay(stream, behind)


async def serve_socks(stream: trio.abc.Stream, world: World) -> None:
    version = await exactly(stream, 1)
    if version == b"\x04":
        head = await exactly(stream, 7)
        port = int.from_bytes(head[1:3], "big")
        for _ in range(1 + (head[3:6] == bytes(3))):
            while await exactly(stream, 1) != b"\x00":
                pass
        world.at_proxies.append(b"socks4a")
        reply = b"\x00\x5a" + bytes(6)
    else:
        methods = await exactly(stream, (await exactly(stream, 1))[0])
        assert 2 in methods
        await stream.send_all(b"\x05\x02")
        await exactly(stream, 1)
        login = [await exactly(stream, (await exactly(stream, 1))[0]) for _ in range(2)]
        assert login == [part.encode() for part in SECRET]
        await stream.send_all(b"\x01\x00")
        head = await exactly(stream, 4)
        length = {1: 4, 4: 16}.get(head[3]) or (await exactly(stream, 1))[0]
        world.at_proxies.append({1: b"IPv4 ", 3: b"name ", 4: b"IPv6 "}[head[3]] + await exactly(stream, length))
        port = int.from_bytes(await exactly(stream, 2), "big")
        reply = b"\x05\x00\x00\x01" + bytes(6)
    async with await trio.open_tcp_stream("127.0.0.1", port) as behind:
        await stream.send_all(reply)
        await relay(stream, behind)


@dataclass
class World:
    """An origin, and a proxy of each kind, on loopback."""

    server_ssl: Callable[..., ssl.SSLContext]
    ports: dict[str, int] = field(default_factory=dict)
    at_origin: list[bytes] = field(default_factory=list)
    at_proxies: list[bytes] = field(default_factory=list)
    reached: trio.Event = field(default_factory=trio.Event)
    mute: bool = False
    origin_names: tuple[str, ...] = ("origin.test",)

    async def origin(self, stream: trio.SocketStream) -> None:
        first = await stream.socket.recv(1, socket.MSG_PEEK)
        self.at_origin.append(first)
        self.reached.set()
        if self.mute:
            await trio.sleep_forever()
        secure: trio.abc.Stream = stream
        if first == b"\x16":
            secure = trio.SSLStream(stream, self.server_ssl(*self.origin_names), server_side=True)
        async for data in secure:
            self.at_origin.append(bytes(data))
            await secure.send_all(data)

    async def start(self, nursery: trio.Nursery) -> None:
        async def handle(serve: Callable[..., Awaitable[None]], tls: bool, stream: trio.SocketStream) -> None:
            try:
                if tls:
                    context = self.server_ssl("proxy.test")
                    await serve(trio.SSLStream(stream, context, server_side=True), self)
                else:
                    await serve(stream, self)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                pass

        async def origin(stream: trio.SocketStream) -> None:
            try:
                await self.origin(stream)
            except (trio.BrokenResourceError, OSError):
                pass

        handlers: dict[str, Callable[[trio.SocketStream], Awaitable[None]]] = {
            "origin": origin,
            "http": partial(handle, serve_http, False),
            "https": partial(handle, serve_http, True),
            "socks": partial(handle, serve_socks, False),
        }
        for name, handler in handlers.items():
            listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
            self.ports[name] = listeners[0].socket.getsockname()[1]

    def proxies(self, way: str, context: ssl.SSLContext) -> tuple[Proxy, ...]:
        if way == "direct":
            return ()
        return tuple(self._proxy(kind, context) for kind in way.split("-"))

    def _proxy(self, kind: str, context: ssl.SSLContext) -> Proxy:
        url = f"{kind}://proxy.test:{self.ports['socks' if kind.startswith('socks') else kind]}"
        if kind == "https":
            return Proxy(url, auth=SECRET, ssl=context)
        return Proxy(url, auth=(SECRET[0], "") if kind == "socks4a" else SECRET)


@dataclass
class Cell:
    """A connector and its world, with all that was said about them."""

    world: World
    connector: trioconn.TCPConnector
    events: list[object]
    target: str
    proxies: tuple[Proxy, ...]


@pytest.fixture
def in_cell(
    server_ssl: Callable[..., ssl.SSLContext],
    make_client_ssl: Callable[[], ssl.SSLContext],
    count_fds: Callable[[], int],
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., Awaitable[None]]:
    """Run a test in one cell; afterwards no descriptor may be left, and the login in nothing that was recorded."""

    async def run(
        scheme: str, way: str, test: Callable[[Cell], Awaitable[object]], *, mute: bool = False, names: Any = None
    ) -> None:
        caplog.set_level(logging.DEBUG)
        before = count_fds()
        world = World(server_ssl, mute=mute, origin_names=names or ("origin.test",))
        events: list[object] = []
        async with trio.open_nursery() as nursery:
            await world.start(nursery)
            proxies = world.proxies(way, make_client_ssl())
            target = f"{scheme}://origin.test:{world.ports['origin']}"
            async with trioconn.TCPConnector(
                resolver=Loopback(), ssl=make_client_ssl(), proxy=proxies, observers=[events.append]
            ) as connector:
                await test(Cell(world, connector, events, target, proxies))
            assert connector.statistics().open == 0
            nursery.cancel_scope.cancel()
        assert count_fds() == before
        recorded = [repr(events), *map(str, events), caplog.text, repr(proxies), repr(world.at_origin)]
        for secret in SECRETS:
            assert not any(secret in text for text in recorded)

    return run


def is_forwarded(scheme: str, way: str) -> bool:
    return scheme == "http" and way.split("-")[-1] in {"http", "https"}


@pytest.mark.security(25)
@pytest.mark.security(28)
@pytest.mark.security(38)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_works(in_cell: Any, scheme: str, way: str) -> None:
    async def test(cell: Cell) -> None:
        async with await cell.connector.connect(cell.target) as conn:
            assert conn.forwarded is is_forwarded(scheme, way)
            if conn.forwarded:
                # The login of a forwarded request is the client's to send, and to nobody but the proxy.
                assert dict(conn.proxy_headers)[b"Proxy-Authorization"].startswith(b"Basic ")
                await conn.stream.send_all(b"GET http://origin.test/ HTTP/1.1\r\n\r\n")
                assert await conn.stream.receive_some() == b"forwarded"
                assert cell.world.at_origin == []
                return
            assert not conn.proxy_headers
            await conn.stream.send_all(b"hello")
            assert await conn.stream.receive_some() == b"hello"
            assert cell.world.at_origin == [b"\x16" if scheme in SECURE else b"h", b"hello"]
            conn.release()
        async with await cell.connector.connect(cell.target) as conn:
            assert conn.reused
        last = way.split("-")[-1]
        if last == "socks5":
            assert cell.world.at_proxies[-1] == b"IPv4 \x7f\x00\x00\x01"
        elif last == "socks5h":
            assert cell.world.at_proxies[-1] == b"name origin.test"
        elif last in {"http", "https"}:
            assert b"CONNECT origin.test:" in cell.world.at_proxies[-1]

    with trio.fail_after(30):
        await in_cell(scheme, way, test)


async def fails_with(kind: type[ConnectError], cell: Cell, **options: Any) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        await cell.connector.connect(cell.target, **options)
    assert type(caught.value) is kind
    assert cell.connector.statistics().open == 0
    assert not any(secret in str(caught.value) + repr(caught.value) for secret in SECRETS)
    assert len(cell.world.at_origin) == 1  # a ClientHello, and nothing of ours
    return caught.value


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scheme", sorted(SECURE))
async def test_wrong_certificate(in_cell: Any, scheme: str, way: str) -> None:
    async def test(cell: Cell) -> None:
        error = await fails_with(CertificateError, cell)
        assert (error.stage, error.hop) == ("tls", -1)

    with trio.fail_after(30):
        await in_cell(scheme, way, test, names=("other.test",))


@pytest.mark.security(42)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scheme", sorted(SECURE))
async def test_wrong_pin(in_cell: Any, scheme: str, way: str) -> None:
    async def test(cell: Cell) -> None:
        error = await fails_with(FingerprintMismatchError, cell, ssl=Fingerprint(bytes(32)))
        assert (error.stage, error.hop) == ("pin", -1)

    with trio.fail_after(30):
        await in_cell(scheme, way, test)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scheme", sorted(SECURE))
async def test_cancelled_handshake(in_cell: Any, scheme: str, way: str) -> None:
    async def test(cell: Cell) -> None:
        async with trio.open_nursery() as nursery:

            async def connect() -> None:
                await cell.connector.connect(cell.target)

            nursery.start_soon(connect)
            await cell.world.reached.wait()
            nursery.cancel_scope.cancel()

    with trio.fail_after(30):
        await in_cell(scheme, way, test, mute=True)


@pytest.mark.security(41)
@pytest.mark.security(42)
@pytest.mark.parametrize("scheme", ["https", "tcp"])
async def test_wrong_certificate_of_the_proxy(in_cell: Any, scheme: str) -> None:
    async def test(cell: Cell) -> None:
        (proxy,) = cell.proxies
        strict = Proxy(f"https://proxy.test:{proxy.port}", auth=SECRET, ssl=proxy.ssl, server_hostname="another.test")
        with pytest.raises(trioconn.ProxyConnectError) as caught:
            await cell.connector.connect(cell.target, proxy=strict, ssl=False)
        assert isinstance(caught.value.__cause__, CertificateError)
        assert caught.value.hop == 0
        assert cell.world.at_proxies == []

    with trio.fail_after(30):
        await in_cell(scheme, "https", test)


@pytest.mark.security(9)
@pytest.mark.security(10)
@pytest.mark.security(31)
async def test_logins_do_not_share_tunnels(in_cell: Any) -> None:
    async def test(cell: Cell) -> None:
        (proxy,) = cell.proxies
        url = f"http://proxy.test:{proxy.port}"
        logins = [SECRET, (SECRET[0], SECRET[1].title()), (SECRET[0] + "2", SECRET[1])]
        for login in logins:
            async with await cell.connector.connect(cell.target, proxy=Proxy(url, auth=login)) as conn:
                assert not conn.reused
                conn.release()
        async with await cell.connector.connect(cell.target, proxy=Proxy(url, auth=SECRET)) as conn:
            assert conn.reused
        assert len(set(cell.world.at_proxies)) == len(cell.world.at_proxies) == len(logins)

    with trio.fail_after(30):
        await in_cell("tcp", "http", test)
