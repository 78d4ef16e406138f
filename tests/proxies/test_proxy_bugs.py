"""Bugs of other libraries' proxies, each as a test that a connector with a scripted proxy passes."""

from __future__ import annotations

import gc
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trustme

import trioconn
from trioconn import CertificateError, ConnectError, Proxy, ProxyConnectError, ProxyRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OK = b"HTTP/1.1 200 OK\r\n\r\n"
Handler = Callable[[trio.SocketStream], Awaitable[object]]
AnyStream = trio.abc.Stream


async def read_head(stream: AnyStream) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        more = await stream.receive_some(1)
        if not more:
            break
        head += more
    return head


async def until_the_end(stream: AnyStream) -> bytes:
    """What still comes, until the peer ends or breaks."""
    rest = b""
    try:
        async for data in stream:
            rest += data
    except trio.BrokenResourceError:
        pass
    return rest


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    async def handle(stream: trio.SocketStream) -> None:
        try:
            await handler(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.fixture
def context(make_client_ssl: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    return make_client_ssl()


@pytest.mark.case("httpcore#1023")
@pytest.mark.parametrize("reply", [OK + b"garbage", OK, b"HTTP/1.1 403 x\r\nContent-Length: 0\r\n\r\n", b"", b"\x00"])
async def test_slots_balance_when_it_fails_behind_the_connect(reply: bytes, context: ssl.SSLContext) -> None:
    async def proxy(stream: trio.SocketStream) -> None:
        await read_head(stream)
        await stream.send_all(reply)
        if reply == OK:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 400 no TLS here\r\n\r\n")

    async with (
        serving(proxy) as port,
        trioconn.TCPConnector(limit=2, proxy=f"http://127.0.0.1:{port}", ssl=context) as c,
    ):
        for _ in range(5):
            with trio.fail_after(5), pytest.raises(ConnectError):
                await c.connect("https://a.test")
            assert c.statistics().open == 0


@pytest.mark.case("aiohttp#11273")
@pytest.mark.case("aiohttp#4953")
@pytest.mark.parametrize("force_close", [False, True])
async def test_closing_after_a_tunnel_reaches_the_proxy(force_close: bool) -> None:
    ended: list[str] = []

    async def proxy(stream: trio.SocketStream) -> None:
        await read_head(stream)
        await stream.send_all(OK)
        await stream.send_all(await stream.receive_some())
        assert await until_the_end(stream) == b""
        ended.append("end")

    async with serving(proxy) as port:
        connector = trioconn.TCPConnector(proxy=f"http://127.0.0.1:{port}", force_close=force_close)
        with trio.fail_after(5):
            async with connector:
                for number in range(1, 3):
                    async with await connector.connect("tcp://a.test:1") as conn:
                        assert conn.reused is (number == 2 and not force_close)
                        if not conn.reused:
                            await conn.stream.send_all(b"x")
                            assert await conn.stream.receive_some() == b"x"
                        conn.release()
                    if force_close:
                        await trio.testing.wait_all_tasks_blocked(0.01)
                        assert len(ended) == number
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert len(ended) == (2 if force_close else 1)


@pytest.mark.case("aiohttp#2596")
async def test_login_of_a_forwarding_proxy_is_there_on_every_lease() -> None:
    heads: list[bytes] = []

    async def proxy(stream: trio.SocketStream) -> None:
        while head := await read_head(stream):
            heads.append(head)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with serving(proxy) as port, trioconn.TCPConnector(proxy=f"http://u:p@127.0.0.1:{port}") as connector:
        for number, host in enumerate(["a.test", "b.test", "a.test"]):
            async with await connector.connect(f"http://{host}/") as conn:
                assert conn.forwarded
                assert conn.reused is (number > 0)  # the connection is the proxy's, whatever origin is behind it
                headers = b"".join(name + b": " + value + b"\r\n" for name, value in conn.proxy_headers)
                await conn.stream.send_all(b"GET http://%b/ HTTP/1.1\r\n%b\r\n" % (host.encode(), headers))
                assert (await read_head(conn.stream)).startswith(b"HTTP/1.1 200")
                conn.release()
    assert len(heads) == 3
    assert all(b"\r\nProxy-Authorization: Basic dTpw\r\n" in head for head in heads)


@pytest.mark.security(39)
async def test_https_proxy_is_never_spoken_to_in_plain() -> None:
    seen = b""

    async def proxy(stream: trio.SocketStream) -> None:
        nonlocal seen
        seen += await stream.receive_some()
        await stream.send_all(OK)
        seen += await until_the_end(stream)

    async with serving(proxy) as port, trioconn.TCPConnector() as connector:
        with pytest.raises(ProxyConnectError) as caught:
            await connector.connect("tcp://a.test:1", proxy=f"https://u:p@127.0.0.1:{port}")
        assert caught.value.hop == 0
    assert seen[:1] == b"\x16"
    assert b"CONNECT" not in seen
    assert b"dTpw" not in seen


@pytest.mark.security(37)
async def test_proxy_that_ends_the_targets_tls_itself(context: ssl.SSLContext) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("a.test").configure_cert(server)
    seen: list[bytes] = []

    async def proxy(stream: trio.SocketStream) -> None:
        await read_head(stream)
        await stream.send_all(OK)
        seen.append(bytes(await trio.SSLStream(stream, server, server_side=True).receive_some()))

    async with serving(proxy) as port, trioconn.TCPConnector(ssl=context) as connector:
        with pytest.raises(CertificateError):
            await connector.connect("https://a.test", proxy=f"http://127.0.0.1:{port}")
    assert seen == []


@pytest.mark.security(43)
async def test_session_of_the_proxy_is_not_the_targets(
    context: ssl.SSLContext, server_ssl: Callable[..., ssl.SSLContext]
) -> None:
    """Outer and inner handshake share one context; the inner one must be whole, and a wrong certificate must fail."""
    outer_ssl = server_ssl("a.test")
    bad_inner = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("a.test").configure_cert(bad_inner)
    resumed: list[bool] = []

    async def proxy(inner_ssl: ssl.SSLContext, stream: trio.SocketStream) -> None:
        outer = trio.SSLStream(stream, outer_ssl, server_side=True)
        await read_head(outer)
        await outer.send_all(OK)
        inner = trio.SSLStream(outer, inner_ssl, server_side=True)
        await inner.do_handshake()
        resumed.append(bool(inner.session_reused))
        await inner.send_all(await inner.receive_some())

    async with trioconn.TCPConnector(ssl=context, force_close=True) as connector:
        for inner_ssl in (outer_ssl, bad_inner):
            async with serving(partial(proxy, inner_ssl)) as port:
                way = Proxy(f"https://127.0.0.1:{port}", ssl=context, server_hostname="a.test")
                if inner_ssl is bad_inner:
                    with pytest.raises(CertificateError):
                        await connector.connect("https://a.test", proxy=way)
                    continue
                async with await connector.connect("https://a.test", proxy=way) as conn:
                    await conn.stream.send_all(b"x")
                    assert await conn.stream.receive_some() == b"x"
                    assert not conn.session_reused
    assert resumed == [False]


@pytest.mark.security(46)
@pytest.mark.parametrize("status", [b"407", b"403"])
async def test_refused_connection_is_never_used_again(status: bytes) -> None:
    accepted = 0

    async def proxy(stream: trio.SocketStream) -> None:
        nonlocal accepted
        accepted += 1
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 " + status + b" no\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n")
        assert await until_the_end(stream) == b""

    async with serving(proxy) as port, trioconn.TCPConnector(proxy=f"http://u:p@127.0.0.1:{port}") as connector:
        for number in range(1, 4):
            with pytest.raises(ProxyRefusedError) as caught:
                await connector.connect("https://a.test")
            assert caught.value.status == int(status)
            assert accepted == number
            assert caught.value.route is not None


@pytest.mark.security(52)
@pytest.mark.security(53)
@pytest.mark.parametrize("split", [False, True])
async def test_bytes_from_before_the_handshake_are_never_data(split: bool, context: ssl.SSLContext) -> None:
    fake = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake"

    async def proxy(stream: trio.SocketStream) -> None:
        await read_head(stream)
        if split:
            await stream.send_all(OK)
            await stream.receive_some()
            await stream.send_all(fake)
        else:
            await stream.send_all(OK + fake)
        await until_the_end(stream)

    async with serving(proxy) as port, trioconn.TCPConnector(ssl=context) as connector:
        with pytest.raises(ConnectError) as caught:
            await connector.connect("https://a.test", proxy=f"http://127.0.0.1:{port}")
        assert isinstance(caught.value, ProxyConnectError) is not split
        assert connector.statistics().open == 0


async def test_bytes_behind_the_reply_of_a_plain_tunnel_come_first_and_once() -> None:
    accepted = 0

    async def proxy(stream: trio.SocketStream) -> None:
        nonlocal accepted
        accepted += 1
        await read_head(stream)
        await stream.send_all(OK + b"220 hello\r\n")
        await until_the_end(stream)

    async with serving(proxy) as port, trioconn.TCPConnector(proxy=f"http://127.0.0.1:{port}") as connector:
        with trio.move_on_after(0.5) as scope:
            async with await connector.connect("tcp://a.test:25") as conn:
                assert await conn.stream.receive_some() == b"220 hello\r\n"
                assert conn.info.remote_address is not None
                conn.release()
            async with await connector.connect("tcp://a.test:25") as conn:
                assert conn.reused
        assert not scope.cancelled_caught
        assert accepted == 1


async def test_target_that_socks5_cannot_resolve_is_no_fault_of_the_proxy() -> None:
    class Nowhere(trioconn.Resolver):
        async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[trioconn.ResolveResult]:
            await trio.lowlevel.checkpoint()
            raise OSError("no such name")

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    async with (
        serving(until_the_end) as port,
        trioconn.TCPConnector(resolver=Nowhere(), proxy=f"socks5://127.0.0.1:{port}") as connector,
    ):
        with pytest.raises(ConnectError) as caught:
            await connector.connect("tcp://a.test:1")
    assert type(caught.value) is trioconn.ResolveError
    assert (caught.value.stage, caught.value.hop) == ("resolve", -1)


class Two(trioconn.Resolver):
    """Every name has an address that is public and one that is not."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[trioconn.ResolveResult]:
        await trio.lowlevel.checkpoint()
        return [trioconn.ResolveResult(address, socket.AF_INET) for address in ("10.0.0.1", "93.184.215.14")]

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("allowed", [None, "93.184.215.14", "192.0.2.1"], ids=["no policy", "one", "none"])
async def test_socks5_is_asked_for_addresses_that_the_policy_allows(allowed: str | None) -> None:
    """The proxy sees none of the others; if none is left, it is not asked at all."""
    asked: list[str] = []
    told: list[trioconn.events.Event] = []

    async def proxy(stream: trio.SocketStream) -> None:
        await stream.receive_some(3)
        await stream.send_all(b"\x05\x00")
        request = await stream.receive_some(10)
        if request:
            asked.append(socket.inet_ntoa(request[4:8]))
            await stream.send_all(b"\x05\x00\x00\x01" + bytes(6))
        await until_the_end(stream)

    async with (
        serving(proxy) as port,
        trioconn.TCPConnector(
            resolver=Two(),
            proxy=f"socks5://127.0.0.1:{port}",
            address_policy=None if allowed is None else lambda host, address: str(address) == allowed,
            observers=[told.append],
        ) as connector,
    ):
        if allowed == "192.0.2.1":
            with pytest.raises(trioconn.AddressDeniedError, match=r"a\.test.*allows none"):
                await connector.connect("tcp://a.test:1")
        else:
            (await connector.connect("tcp://a.test:1")).close()
    assert asked == {None: ["10.0.0.1"], "93.184.215.14": ["93.184.215.14"], "192.0.2.1": []}[allowed]
    denied = [event.address for event in told if isinstance(event, trioconn.events.AttemptDenied)]
    assert denied == {None: [], "93.184.215.14": ["10.0.0.1"], "192.0.2.1": ["10.0.0.1", "93.184.215.14"]}[allowed]


@pytest.mark.case("urllib3#548")
async def test_proxy_that_swallows_the_connect_sees_the_end() -> None:
    ended = trio.Event()

    async def proxy(stream: trio.SocketStream) -> None:
        await read_head(stream)
        await until_the_end(stream)
        ended.set()

    gc.disable()
    try:
        async with serving(proxy) as port, trioconn.TCPConnector(proxy=f"http://127.0.0.1:{port}") as connector:
            with trio.move_on_after(0.05) as scope:
                await connector.connect("https://a.test")
            assert scope.cancelled_caught
            with trio.fail_after(5):
                await ended.wait()
    finally:
        gc.enable()


@pytest.mark.case("cpython#28073")
@pytest.mark.parametrize("mute", [None, "origin", "both"])
async def test_tls_in_tls_is_closed_from_the_inside(
    mute: str | None, context: ssl.SSLContext, server_ssl: Callable[..., ssl.SSLContext]
) -> None:
    ends: list[str] = []

    async def proxy(stream: trio.SocketStream) -> None:
        outer = trio.SSLStream(stream, server_ssl("a.test"), server_side=True)
        await read_head(outer)
        await outer.send_all(OK)
        inner = trio.SSLStream(outer, server_ssl("a.test"), server_side=True)
        await inner.send_all(await inner.receive_some())
        if mute is None:
            assert await inner.receive_some() == b""
            ends.append("inner")
            await inner.unwrap()
            assert await outer.receive_some() == b""
            ends.append("outer")
        elif mute == "origin":
            await until_the_end(outer)
        else:
            await trio.sleep_forever()

    async with serving(proxy) as port, trioconn.TCPConnector(ssl=context, ssl_shutdown_timeout=0.2) as connector:
        way = Proxy(f"https://127.0.0.1:{port}", ssl=context, server_hostname="a.test")
        with trio.fail_after(5):
            conn = await connector.connect("https://a.test", proxy=way)
            await conn.stream.send_all(b"x")
            assert await conn.stream.receive_some() == b"x"
            await conn.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert ends == (["inner", "outer"] if mute is None else [])


@pytest.mark.security(48)
@pytest.mark.parametrize("stalls", ["accept", "mid-head", "tls"])
async def test_one_deadline_over_all_hops(stalls: str, context: ssl.SSLContext) -> None:
    async def proxy(stream: trio.SocketStream) -> None:
        if stalls != "accept":
            await read_head(stream)
            await stream.send_all(OK if stalls == "tls" else OK[:10])
        await until_the_end(stream)

    async with (
        serving(proxy) as port,
        trioconn.TCPConnector(ssl=context, proxy=f"http://127.0.0.1:{port}", connect_timeout=0.1) as connector,
    ):
        with trio.fail_after(5), pytest.raises(trioconn.ConnectTimeoutError) as caught:
            await connector.connect("https://a.test")
        assert (caught.value.stage, caught.value.hop) == (("tls", -1) if stalls == "tls" else ("proxy", 0))
        assert connector.statistics().open == 0
