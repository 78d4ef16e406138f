"""httpcore2's own pool over our dialling."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trio

import trioconn

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
