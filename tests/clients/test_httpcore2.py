"""httpcore2's own pool over our dialling."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest
import trio

import trioconn
from trioconn.testing import Fail, Hang, MemoryStream, ScriptedConnector, Succeed

httpcore2 = pytest.importorskip("httpcore2")
ours = pytest.importorskip("trioconn.httpcore2")

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def answer_tls(sock: ssl.SSLSocket) -> None:
    while sock.recv(65536):
        sock.sendall(HELLO)


async def test_plain_requests_over_httpcores_pool(http_server: Any, no_fd_leak: None) -> None:
    async with http_server() as server, trioconn.TCPConnector(limit=0) as connector:
        async with httpcore2.AsyncConnectionPool(network_backend=ours.NetworkBackend(connector)) as pool:
            for _ in range(3):
                response = await pool.request("GET", server.url)
                assert response.content == b"hello"
            stream = response.extensions["network_stream"]
            assert stream.get_extra_info("server_addr") == ("127.0.0.1", server.port)
            assert stream.get_extra_info("socket").fileno() > 0
            assert stream.get_extra_info("is_readable") is False
            assert server.connections == 1
            assert connector.statistics().leased == 1
        assert connector.statistics().open == 0


async def test_tls_by_httpcores_context(threaded_tls_server: Any, client_ssl: ssl.SSLContext) -> None:
    server = threaded_tls_server(answer_tls)
    async with trioconn.TCPConnector(limit=0) as connector:
        backend = ours.NetworkBackend(connector)
        async with httpcore2.AsyncConnectionPool(network_backend=backend, ssl_context=client_ssl) as pool:
            response = await pool.request("GET", f"https://127.0.0.1:{server.port}")
            assert response.content == b"hello"
            tls = response.extensions["network_stream"].get_extra_info("ssl_object")
            assert tls.version().startswith("TLSv1.")
        async with httpcore2.AsyncConnectionPool(network_backend=backend) as pool:  # trusts the system, not our CA
            with pytest.raises(httpcore2.ConnectError):
                await pool.request("GET", f"https://127.0.0.1:{server.port}")
        assert connector.statistics().open == 0


async def test_connectors_pin_is_enforced(threaded_tls_server: Any, client_ssl: ssl.SSLContext) -> None:
    server = threaded_tls_server(answer_tls)
    async with trioconn.TCPConnector(limit=0, ssl=trioconn.Fingerprint(bytes(32))) as connector:
        backend = ours.NetworkBackend(connector)
        async with httpcore2.AsyncConnectionPool(network_backend=backend, ssl_context=client_ssl) as pool:
            with pytest.raises(httpcore2.ConnectError) as caught:
                await pool.request("GET", f"https://127.0.0.1:{server.port}")
            assert "pin" in str(caught.value).lower() or "fingerprint" in str(caught.value).lower()
        assert connector.statistics().open == 0


async def test_address_policy_is_enforced(http_server: Any) -> None:
    policy = trioconn.public_addresses_only
    async with http_server() as server, trioconn.TCPConnector(limit=0, address_policy=policy) as connector:
        async with httpcore2.AsyncConnectionPool(network_backend=ours.NetworkBackend(connector)) as pool:
            with pytest.raises(httpcore2.ConnectError):
                await pool.request("GET", server.url)
        assert server.connections == 0


@pytest.mark.case("httpcore#1093")
async def test_cancelled_handshake_leaves_no_socket(tcp_server: Any, no_fd_leak: None) -> None:
    """httpcore2's own backend leaves the socket of a cancelled handshake to the garbage collector."""

    async def mute(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    async with (
        tcp_server(mute) as port,
        trioconn.TCPConnector(limit=0) as connector,
        httpcore2.AsyncConnectionPool(network_backend=ours.NetworkBackend(connector)) as pool,
    ):
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.request, "GET", f"https://127.0.0.1:{port}")
                while not connector.statistics().leased:
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert connector.statistics().open == 0
        timeout = {"timeout": {"connect": 0.05}}
        with pytest.raises(httpcore2.ConnectTimeout):
            await pool.request("GET", f"https://127.0.0.1:{port}", extensions=timeout)
        assert connector.statistics().open == 0


async def test_unix_socket(tmp_path: Any) -> None:
    path = str(tmp_path / "socket")

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some():
                await stream.send_all(HELLO)

    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(path)
    sock.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, [trio.SocketListener(sock)])
        async with trioconn.UnixConnector(path, limit=0) as connector:
            backend = ours.NetworkBackend(connector)
            async with httpcore2.AsyncConnectionPool(network_backend=backend, uds=path) as pool:
                assert (await pool.request("GET", "http://host/")).content == b"hello"
            async with httpcore2.AsyncConnectionPool(network_backend=backend, uds="/elsewhere") as pool:
                with pytest.raises(ValueError, match="elsewhere"):
                    await pool.request("GET", "http://host/")
        nursery.cancel_scope.cancel()


# ---- the backend by itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "connect_timeout", "raised", "after"),
    [
        (Hang(), 2, "ConnectTimeout", 2),
        (Hang(), None, "ConnectTimeout", 5),
        (Fail(OSError(111, "no")), 2, "ConnectError", 0),
        (Fail(trioconn.ProxyRefusedError("407")), 2, "ProxyError", 0),
    ],
)
async def test_failures_are_httpcores(
    script: Any, connect_timeout: float | None, raised: str, after: float, autojump_clock: Any
) -> None:
    async with ScriptedConnector(script, connect_timeout=connect_timeout) as connector:
        began = trio.current_time()
        with pytest.raises(getattr(httpcore2, raised)) as caught:
            await ours.NetworkBackend(connector).connect_tcp("a.test", 80, timeout=5)
        assert trio.current_time() - began == after and type(caught.value) is getattr(httpcore2, raised)
        await trio.testing.wait_all_tasks_blocked()
        assert connector.statistics().open == 0


async def test_socket_options(http_server: Any, no_fd_leak: None) -> None:
    async with http_server() as server, trioconn.TCPConnector() as connector:
        backend = ours.NetworkBackend(connector)

        async def connect(*options: Any) -> Any:
            return await backend.connect_tcp("127.0.0.1", server.port, socket_options=options)

        stream = await connect((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 0))
        sock = stream.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0  # ours is 1
        await stream.aclose()
        with pytest.raises(httpcore2.ConnectError):
            await connect((socket.SOL_SOCKET, 9999, 1))  # no such option
        with pytest.raises(TypeError):
            await connect((1, 2, 3, 4, 5))
        assert connector.statistics().open == 0


async def test_sleep_is_trios(autojump_clock: Any) -> None:
    async with ScriptedConnector() as connector:
        began = trio.current_time()
        await ours.NetworkBackend(connector).sleep(5)
        assert trio.current_time() - began == 5


# ---- a network stream ------------------------------------------------------------------------------------------------


async def test_writing_to_who_does_not_listen(autojump_clock: Any) -> None:
    async with ScriptedConnector(capacity=4) as connector:
        backend = ours.NetworkBackend(connector)
        stream = await backend.connect_tcp("a.test", 80)
        await stream.write(b"")
        await stream.write(b"four", timeout=2)
        began = trio.current_time()
        with pytest.raises(httpcore2.WriteTimeout, match="2 s"):
            await stream.write(b"more", timeout=2)
        assert trio.current_time() - began == 2
        connector.peers[0].reset()
        with pytest.raises(httpcore2.WriteError):
            await stream.write(b"more")
        with pytest.raises(httpcore2.ReadError):
            await stream.read(1)
        await stream.aclose()
        with pytest.raises(httpcore2.WriteError, match="over"):
            await stream.write(b"more")
        assert stream.get_extra_info("is_readable") and stream.get_extra_info("socket") is None


@pytest.mark.parametrize("how", ["silent", "ended", "closed before"])
async def test_no_tls(how: str, autojump_clock: Any, nursery: trio.Nursery) -> None:
    async def peer(stream: MemoryStream) -> None:
        await stream.receive_some()
        if how == "ended":
            stream.close_nowait()

    async with ScriptedConnector(handler=peer, nursery=nursery) as connector:
        stream = ours.NetworkStream(await connector.connect("tcp://a.test:443"))
        if how == "closed before":
            await stream.aclose()
        with pytest.raises(httpcore2.ConnectTimeout if how == "silent" else httpcore2.ConnectError):
            await stream.start_tls(ssl.create_default_context(), "a.test", timeout=3)
        assert connector.statistics().open == 0


async def test_cancelled_tls_closes_the_lease() -> None:
    async with ScriptedConnector() as connector:
        stream = ours.NetworkStream(await connector.connect("tcp://a.test:443"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.start_tls(ssl.create_default_context(), "a.test")
        assert scope.cancelled_caught and connector.statistics().closed == {"not released": 1}


async def test_stream_of_somebody_elses_on_top() -> None:
    """What cannot be asked whether it is readable is taken for one that is not."""
    top, _ = trio.testing.memory_stream_pair()
    async with ScriptedConnector(Succeed()) as connector:
        stream = ours.NetworkStream(await connector.connect("tcp://a.test:80"), stream=top)
        assert stream.get_extra_info("is_readable") is False and stream.get_extra_info("ssl_object") is None
        await stream.aclose()
        assert stream.get_extra_info("is_readable") is True and connector.statistics().open == 0


async def test_tls_inside_a_tunnel_of_ones_own(
    http_server: Any, server_ssl: Any, client_ssl: ssl.SSLContext, no_fd_leak: None
) -> None:
    """CONNECT, and then what the caller likes: the tunnel is the network stream of the response."""
    transports = pytest.importorskip("trioconn.httpx2")
    import httpx2

    async def tunnel(peer: Any) -> None:
        request = await peer.head()
        assert (request.method, request.target) == (b"CONNECT", b"a.example.test:443")
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        top = trio.SSLStream(peer.stream, server_ssl(), server_side=True, https_compatible=True)
        async for data in top:
            await top.send_all(data.upper())

    async with http_server(tunnel) as server, trioconn.TCPConnector() as connector:
        http = httpx2.AsyncClient(transport=transports.Transport(connector), trust_env=False)
        target = {"target": b"a.example.test:443"}
        async with http.stream("CONNECT", server.url, extensions=target) as response:
            plain = response.extensions["network_stream"]
            stream = await plain.start_tls(client_ssl, "a.example.test", timeout=10)
            await stream.write(b"shout")
            assert await stream.read(99) == b"SHOUT"
            view = stream.get_extra_info("ssl_object")
            assert view.version().startswith("TLSv1.") and view.getpeercert()
            assert stream.get_extra_info("socket") is plain.get_extra_info("socket") is not None
            assert plain.get_extra_info("ssl_object") is None
            await stream.aclose()
        assert connector.statistics().open == 0


async def test_socket_below_tls(threaded_tls_server: Any, client_ssl: ssl.SSLContext) -> None:
    async with trioconn.TCPConnector(ssl=client_ssl) as connector:
        lease = await connector.connect(f"https://127.0.0.1:{threaded_tls_server().port}")
        stream = ours.NetworkStream(lease)
        assert stream.get_extra_info("socket").fileno() == lease.stream.fileno() > 0
        assert stream.get_extra_info("ssl_object").cipher()
        await stream.aclose()
