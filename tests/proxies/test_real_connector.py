"""Connectors through real proxies: what a person does with them, and what must not work."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trioconn
from trioconn import (
    CertificateError,
    ConnectError,
    Fingerprint,
    FingerprintMismatchError,
    Proxy,
    ProxyConnectError,
    ProxyRefusedError,
    events,
)

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

pytestmark = pytest.mark.real
Server = Callable[..., "AbstractAsyncContextManager[int]"]

WAYS = [
    "squid", "squid over TLS", "tinyproxy", "apache", "microsocks", "microsocks socks5", "dante", "dante socks4a",
    "squid, tinyproxy", "squid over TLS, microsocks", "microsocks, squid over TLS", "tinyproxy, dante, apache",
]  # fmt: skip


@pytest.fixture
def chain(
    request: pytest.FixtureRequest, make_client_ssl: Callable[[], ssl.SSLContext]
) -> Callable[[str], tuple[Proxy, ...]]:
    """``chain("squid, tinyproxy")``: the proxies of that name, running."""

    def one(name: str) -> Proxy:
        program, _, how = name.partition(" ")
        found = request.getfixturevalue(program)
        if program == "microsocks":
            found = found(login=True)
        if how == "over TLS":
            return Proxy(f"https://localhost:{found.https_port}", ssl=make_client_ssl())
        scheme = how or ("socks5h" if program in ("microsocks", "dante") else "http")
        return Proxy(f"{scheme}://127.0.0.1:{found.port}", auth=found.login)

    return lambda names: tuple(one(name) for name in names.split(", "))


@pytest.mark.parametrize("way", WAYS)
async def test_tunnels(
    no_fd_leak: None, way: str, chain: Any, tcp_server: Server, threaded_tls_server: Callable[..., Any],
    client_ssl: ssl.SSLContext, recorder: Any,
) -> None:  # fmt: skip
    seen: list[bytes] = []

    def origin(sock: ssl.SSLSocket) -> None:
        while data := sock.recv(65536):
            seen.append(data)
            sock.sendall(data)

    proxies = chain(way)
    server = threaded_tls_server(origin)
    with trio.fail_after(30):
        async with tcp_server() as port, trioconn.TCPConnector(ssl=client_ssl, proxy=proxies) as connector:
            for target, data in (
                (f"tcp://127.0.0.1:{port}", b"plain"),
                (f"wss://127.0.0.1:{server.port}", b"TLS" * 9999),
            ):
                for reused in (False, True):
                    async with await connector.connect(target) as conn:
                        assert (conn.reused, conn.forwarded, conn.proxy_headers) == (reused, False, ())
                        got = b""
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(conn.stream.send_all, data)
                            while len(got) < len(data):
                                got += await conn.stream.receive_some()
                        assert got == data
                        conn.release()
                layers = [layer.hop for layer in conn.info.tls]
                wanted = [hop for hop, proxy in enumerate(proxies) if proxy.scheme == "https"]
                assert layers == wanted + [-1] * target.startswith("wss")
            # Another one to the same target resumes its session, through the same proxies.
            first, second = [await connector.connect(f"wss://127.0.0.1:{server.port}") for _ in range(2)]
            assert (first.session_reused, second.session_reused) == (False, True)
            await second.stream.send_all(b"x")  # the answer comes when the server has counted it
            assert await second.stream.receive_some() == b"x"
            first.close()
            second.close()
    assert server.resumed == 1
    recorder.hear(b"".join(seen))


@pytest.mark.parametrize("way", WAYS)
async def test_fails_closed(
    no_fd_leak: None, way: str, chain: Any, threaded_tls_server: Callable[..., Any], client_ssl: ssl.SSLContext,
    server_ssl: Callable[..., ssl.SSLContext],
) -> None:  # fmt: skip
    seen: list[bytes] = []
    server = threaded_tls_server(lambda sock: seen.append(sock.recv(100)), context=server_ssl("other.test"))
    target = f"https://127.0.0.1:{server.port}"
    with trio.fail_after(30):
        async with trioconn.TCPConnector(ssl=client_ssl, proxy=chain(way)) as connector:
            for options, kind in (
                ({}, CertificateError),
                ({"ssl": True}, CertificateError),
                ({"ssl": Fingerprint(bytes(32))}, FingerprintMismatchError),
            ):
                with pytest.raises(ConnectError) as caught:
                    await connector.connect(target, **options)
                assert type(caught.value) is kind
                assert caught.value.hop == -1
                assert connector.statistics().open == 0
    assert b"".join(seen) == b""


@pytest.mark.parametrize("way", ["squid", "squid over TLS", "tinyproxy"])
async def test_forwards(way: str, chain: Any, tcp_server: Server, recorder: Any) -> None:
    """The client sends absolute URLs and the headers that it is given; the origin hears nothing of the login."""
    heads: list[bytes] = []

    async def origin(stream: trio.SocketStream) -> None:
        head = b""
        async for data in stream:
            head += data
            if head.endswith(b"\r\n\r\n"):
                heads.append(head)
                head = b""
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    proxies = chain(way)
    with trio.fail_after(30):
        async with (
            tcp_server(origin) as port,
            trioconn.TCPConnector(proxy=proxies) as connector,
            await connector.connect(f"http://127.0.0.1:{port}/") as conn,
        ):
            assert conn.forwarded
            headers = b"".join(name + b": " + value + b"\r\n" for name, value in conn.proxy_headers)
            await conn.stream.send_all(
                b"GET http://127.0.0.1:%d/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%b\r\n" % (port, port, headers)
            )
            answer = b""
            while not answer.endswith(b"\r\n\r\nhi"):
                more = await conn.stream.receive_some()
                assert more, answer
                answer += more
            assert answer.startswith(b"HTTP/1.")
            assert b" 200 " in answer
    assert len(heads) == 1
    assert b"roxy-Authorization" not in heads[0]
    recorder.hear(heads[0])


@pytest.mark.parametrize("auth", [None, ("hidden-user", "hidden-wrong")])
@pytest.mark.parametrize("program", ["tinyproxy", "microsocks"])
async def test_a_wrong_login(program: str, auth: tuple[str, str] | None, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(program)
    if program == "microsocks":
        found = found(login=True)
    seen: list[events.Event] = []
    scheme = "http" if program == "tinyproxy" else "socks5h"
    with trio.fail_after(30):
        async with trioconn.TCPConnector(proxy=Proxy(f"{scheme}://127.0.0.1:{found.port}", auth=auth)) as connector:
            with pytest.raises(ProxyRefusedError if scheme == "http" else ProxyConnectError) as caught:
                await connector.connect("https://127.0.0.1:1", observers=[seen.append])
            assert (caught.value.stage, caught.value.hop) == ("proxy", 0)
            assert connector.statistics().open == 0
    assert sum(isinstance(event, events.TunnelStarted) for event in seen) == 1  # asked once, and not again


@pytest.mark.parametrize("way", WAYS)
async def test_a_target_that_is_not_there(way: str, chain: Any, tcp_server: Server) -> None:
    async with tcp_server() as port:
        pass
    proxies = chain(way)
    with trio.fail_after(30):
        async with trioconn.TCPConnector(proxy=proxies) as connector:
            with pytest.raises(ProxyRefusedError) as caught:
                await connector.connect(f"https://127.0.0.1:{port}")
            assert caught.value.hop == len(proxies) - 1  # the last one is who could not reach it
            assert caught.value.status in (1, 4, 5, 91, 502, 503, 500)
            assert connector.statistics().open == 0


@pytest.mark.parametrize("way", WAYS)
async def test_fifty_at_a_time(no_fd_leak: None, way: str, chain: Any, tcp_server: Server) -> None:
    """Through one connector with a limit: everybody is served, over no more tunnels than that."""
    proxies = chain(way)

    async def client(target: str) -> None:
        async with await connector.connect(target) as conn:
            await conn.stream.send_all(b"x")
            assert await conn.stream.receive_some() == b"x"
            conn.release()

    with trio.fail_after(30):
        async with tcp_server() as port, trioconn.TCPConnector(proxy=proxies, limit=5) as connector:
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(client, f"tcp://127.0.0.1:{port}")
            counts = connector.statistics()
            assert counts.created <= 5
            assert (counts.idle, counts.closed) == (counts.created, {})
