"""The steps against real programs on loopback: what scripted peers say about protocols has to be true."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trioconn._errors import ProxyConnectError, ProxyRefusedError
from trioconn._establish.http_tunnel import open_tunnel
from trioconn._establish.sockets import SocketStream
from trioconn._establish.socks import open_socks
from trioconn._names import parse_host
from trioconn._proxy import Proxy
from trioconn._route import ConnectStep

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

pytestmark = pytest.mark.real
Server = Callable[..., "AbstractAsyncContextManager[int]"]


async def dial(port: int) -> SocketStream:
    sock = trio.socket.socket()
    try:
        await sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise

    return SocketStream(socket.socket(fileno=sock.detach()))


async def through(
    stream: trio.abc.Stream, proxy: Proxy, host: str, port: int, *, tls_follows: bool = False
) -> trio.abc.Stream:
    step = proxy.step(parse_host(host), port, 0)
    if isinstance(step, ConnectStep):
        return await open_tunnel(stream, step, tls_follows=tls_follows)

    async def resolve(host: object) -> list[str]:
        return ["127.0.0.1"]

    return await open_socks(stream, step, resolve=resolve)


async def assert_echoes(stream: trio.abc.Stream) -> None:
    data = bytes(range(256)) * 1000
    got = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        while len(got) < len(data):
            more = await stream.receive_some()
            assert more
            got += more
    assert got == data


async def assert_tunnels(proxy_port: int, proxy: Proxy, host: str, server: Server) -> None:
    async with server() as port:
        stream = await through(await dial(proxy_port), proxy, host, port)
        assert isinstance(stream, SocketStream)
        assert stream.probe()
        await assert_echoes(stream)
        assert stream.probe()
        await stream.aclose()


async def assert_greeting_arrives(proxy_port: int, proxy: Proxy, server: Server) -> None:
    """A server that speaks first: its words may come together with the proxy's reply, and must come once."""

    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 hello\r\n")

    async with server(greet) as port:
        for _ in range(5):
            stream = await through(await dial(proxy_port), proxy, "127.0.0.1", port)
            got = b""
            while more := await stream.receive_some():
                got += more
            assert got == b"220 hello\r\n"
            await stream.aclose()


# HTTP


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_squid_tunnels(squid: Any, tcp_server: Server, host: str, no_fd_leak: None) -> None:
    await assert_tunnels(squid.port, Proxy("http://p.test"), host, tcp_server)
    await assert_greeting_arrives(squid.port, Proxy("http://p.test"), tcp_server)


async def test_squid_refuses(squid: Any) -> None:
    client = await dial(squid.port)
    with pytest.raises(ProxyRefusedError) as caught:
        await through(client, Proxy("http://hidden-user:hidden-password@p.test"), "127.0.0.1", 9)
    assert caught.value.status == 403
    assert b"<html" in caught.value.body.lower()
    assert (b"x-squid-error", b"ERR_ACCESS_DENIED 0") in tuple(caught.value.headers)
    assert "hidden" not in str(caught.value)
    assert client.fileno() == -1


async def test_squid_cannot_connect(squid: Any, tcp_server: Server) -> None:
    async with tcp_server() as port:
        pass
    with pytest.raises(ProxyRefusedError) as caught:
        await through(await dial(squid.port), Proxy("http://p.test"), "127.0.0.1", port)
    assert caught.value.status == 503


async def test_squid_over_tls(
    squid: Any,
    tcp_server: Server,
    threaded_tls_server: Callable[..., Any],
    client_ssl: ssl.SSLContext,
    make_client_ssl: Callable[[], ssl.SSLContext],
) -> None:
    proxy = Proxy("https://localhost")

    async def tls_to_proxy() -> trio.SSLStream[SocketStream]:
        tls = trio.SSLStream(await dial(squid.https_port), client_ssl, server_hostname="localhost")
        await tls.do_handshake()
        return tls

    async with tcp_server() as port:
        stream = await through(await tls_to_proxy(), proxy, "127.0.0.1", port)
        await assert_echoes(stream)
        await trio.aclose_forcefully(stream)

    server = threaded_tls_server()
    outer = await through(await tls_to_proxy(), proxy, "127.0.0.1", server.port, tls_follows=True)
    inner = trio.SSLStream(outer, make_client_ssl(), server_hostname="example.test")
    await inner.do_handshake()
    await inner.send_all(b"TLS in TLS")
    assert await inner.receive_some() == b"TLS in TLS"
    await trio.aclose_forcefully(inner)

    with pytest.raises(ProxyRefusedError):
        await through(await tls_to_proxy(), proxy, "127.0.0.1", 9)


async def test_http_spoken_to_the_https_port_of_squid(squid: Any) -> None:
    with pytest.raises(ProxyConnectError):
        await through(await dial(squid.https_port), Proxy("http://p.test"), "127.0.0.1", 1)


async def test_tinyproxy_with_login(tinyproxy: Any, tcp_server: Server) -> None:
    proxy = Proxy("http://p.test", auth=tinyproxy.login)
    await assert_tunnels(tinyproxy.port, proxy, "127.0.0.1", tcp_server)
    await assert_greeting_arrives(tinyproxy.port, proxy, tcp_server)


@pytest.mark.parametrize("auth", [None, ("hidden-user", "hidden-wrong"), ("", "")])
async def test_tinyproxy_wants_its_login(tinyproxy: Any, auth: tuple[str, str] | None) -> None:
    client = await dial(tinyproxy.port)
    with pytest.raises(ProxyRefusedError) as caught:
        await through(client, Proxy("http://p.test", auth=auth), "127.0.0.1", 1)
    # tinyproxy says 401 to a wrong login; we ask no one else for a password either way.
    assert caught.value.status in {401, 407}
    assert "hidden" not in str(caught.value)
    assert client.fileno() == -1


async def test_apache_tunnels(apache: Any, tcp_server: Server) -> None:
    await assert_tunnels(apache.port, Proxy("http://p.test"), "127.0.0.1", tcp_server)
    await assert_greeting_arrives(apache.port, Proxy("http://p.test"), tcp_server)


# SOCKS


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_microsocks(
    microsocks: Callable[..., Any], tcp_server: Server, scheme: str, host: str, no_fd_leak: None
) -> None:
    await assert_tunnels(microsocks().port, Proxy(f"{scheme}://p.test"), host, tcp_server)
    await assert_greeting_arrives(microsocks().port, Proxy(f"{scheme}://p.test"), tcp_server)


async def test_microsocks_with_login(microsocks: Callable[..., Any], tcp_server: Server) -> None:
    server = microsocks(login=True)
    await assert_tunnels(server.port, Proxy("socks5h://p.test", auth=server.login), "127.0.0.1", tcp_server)


@pytest.mark.parametrize("auth", [None, ("hidden-user", "hidden-wrong")])
async def test_microsocks_wants_its_login(microsocks: Callable[..., Any], auth: tuple[str, str] | None) -> None:
    client = await dial(microsocks(login=True).port)
    with pytest.raises(ProxyConnectError, match="login") as caught:
        await through(client, Proxy("socks5h://p.test", auth=auth), "127.0.0.1", 1)
    assert "hidden" not in str(caught.value)
    assert client.fileno() == -1


async def test_microsocks_cannot_connect(microsocks: Callable[..., Any], tcp_server: Server) -> None:
    async with tcp_server() as port:
        pass
    with pytest.raises(ProxyRefusedError) as caught:
        await through(await dial(microsocks().port), Proxy("socks5h://p.test"), "127.0.0.1", port)
    assert (caught.value.status, caught.value.reason) == (5, "connection refused")


async def test_http_to_a_socks_proxy_and_socks_to_an_http_proxy(microsocks: Callable[..., Any], tinyproxy: Any) -> None:
    with pytest.raises(ProxyConnectError):
        await through(await dial(microsocks().port), Proxy("http://p.test"), "127.0.0.1", 1)
    client = await dial(tinyproxy.port)
    with trio.move_on_after(0.5), pytest.raises(ProxyConnectError):  # it may also wait for the end of a line
        await through(client, Proxy("socks5h://p.test"), "127.0.0.1", 1)
    assert client.fileno() == -1


@pytest.mark.parametrize(
    ("scheme", "host"),
    [
        ("socks4a", "127.0.0.1"),  # names not: dante takes the 0.0.0.x that announces one for the address
        ("socks5", "127.0.0.1"),
        ("socks5", "localhost"),
        ("socks5h", "127.0.0.1"),
        ("socks5h", "localhost"),
    ],
)
async def test_dante(dante: Any, tcp_server: Server, scheme: str, host: str) -> None:
    await assert_tunnels(dante.port, Proxy(f"{scheme}://p.test"), host, tcp_server)


# One after the other


async def test_chains(
    squid: Any, tinyproxy: Any, microsocks: Callable[..., Any], tcp_server: Server, no_fd_leak: None
) -> None:
    hops: dict[str, tuple[int, Proxy]] = {
        "squid": (squid.port, Proxy("http://p.test")),
        "tinyproxy": (tinyproxy.port, Proxy("http://p.test", auth=tinyproxy.login)),
        "microsocks": (microsocks().port, Proxy("socks5h://p.test")),
    }

    async def chain(*names: str) -> None:
        stream: trio.abc.Stream = await dial(hops[names[0]][0])
        for name, behind in pairwise(names):
            stream = await through(stream, hops[name][1], "127.0.0.1", hops[behind][0], tls_follows=True)
        async with tcp_server() as port:
            stream = await through(stream, hops[names[-1]][1], "127.0.0.1", port)
            await assert_echoes(stream)
            await stream.aclose()

    await chain("squid", "tinyproxy")
    await chain("tinyproxy", "microsocks")
    await chain("microsocks", "squid")
    await chain("microsocks", "tinyproxy", "squid")
