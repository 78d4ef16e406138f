"""The anyio view of a lease, on trio."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio

import trioconn
from trioconn.testing import ScriptedConnector

anyio = pytest.importorskip("anyio")
ours = pytest.importorskip("trioconn.anyio")


async def test_byte_stream_goes_both_ways_and_ends(tcp_server: Any, no_fd_leak: None) -> None:
    async with tcp_server() as port, trioconn.TCPConnector() as connector:
        connectable = ours.ByteStreamConnectable(connector, f"tcp://127.0.0.1:{port}")
        assert isinstance(connectable, anyio.abc.ByteStreamConnectable)
        async with await connectable.connect() as stream:
            assert isinstance(stream, anyio.abc.ByteStream)
            await stream.send(b"hello")
            assert await stream.receive(3) == b"hel"
            assert await stream.receive() == b"lo"
            assert stream.extra(anyio.abc.SocketAttribute.remote_address) == ("127.0.0.1", port)
            assert stream.extra(anyio.abc.SocketAttribute.remote_port) == port
            local = stream.extra(anyio.abc.SocketAttribute.local_address)
            assert stream.extra(anyio.abc.SocketAttribute.local_port) == local[1]
            await stream.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        assert connector.statistics().open == 0
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()


async def test_released_lease_goes_back(tcp_server: Any) -> None:
    async with tcp_server() as port, trioconn.TCPConnector() as connector:
        connectable = ours.ByteStreamConnectable(connector, f"tcp://127.0.0.1:{port}")
        for uses in (1, 2):
            stream = await connectable.connect()
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            assert stream.lease.uses == uses
            stream.lease.release()


async def test_two_receivers_and_a_broken_connection(tcp_server: Any) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        stream.setsockopt(
            __import__("socket").SOL_SOCKET, __import__("socket").SO_LINGER, bytes([1, 0, 0, 0] + [0] * 4)
        )
        stream.socket.close()

    async with tcp_server(answer) as port, trioconn.TCPConnector() as connector:
        stream = await ours.ByteStreamConnectable(connector, f"tcp://127.0.0.1:{port}").connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_receive_until_broken, stream)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await stream.receive()
            await stream.send(b"xy")
        await stream.aclose()


async def _receive_until_broken(stream: Any) -> None:
    with pytest.raises(anyio.BrokenResourceError):
        await stream.receive()


async def test_failed_connection_is_anyios() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    async with trioconn.TCPConnector() as connector:
        with pytest.raises(anyio.ConnectionFailed) as caught:
            await ours.ByteStreamConnectable(connector, f"tcp://127.0.0.1:{port}").connect()
        assert isinstance(caught.value.__cause__, trioconn.ConnectError)


async def test_tls_attributes(threaded_tls_server: Any, client_ssl: ssl.SSLContext) -> None:
    from anyio.streams.tls import TLSAttribute

    server = threaded_tls_server()
    async with (
        trioconn.TCPConnector(ssl=client_ssl) as connector,
        await ours.ByteStreamConnectable(connector, f"tls://127.0.0.1:{server.port}").connect() as stream,
    ):
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
        assert stream.extra(TLSAttribute.tls_version).startswith("TLSv1.")
        assert stream.extra(TLSAttribute.peer_certificate_binary)
        with pytest.raises(NotImplementedError):
            await stream.send_eof()


async def test_a_stream_without_addresses_has_no_attributes_of_any() -> None:
    async with ScriptedConnector() as connector:
        stream = await ours.ByteStreamConnectable(connector, "tcp://a.test:1").connect()
        assert stream.extra_attributes == {}
        with pytest.raises(anyio.TypedAttributeLookupError):
            stream.extra(anyio.abc.SocketAttribute.remote_address)
        await stream.aclose()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
async def test_a_unix_socket_has_a_path_and_no_port(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        async with trioconn.UnixConnector(path) as connector:
            stream = await ours.ByteStreamConnectable(connector, "http://a.test").connect()
            assert stream.extra(anyio.abc.SocketAttribute.remote_address) == path
            assert stream.extra(anyio.abc.SocketAttribute.remote_port, None) is None
            assert stream.extra(anyio.abc.SocketAttribute.local_port, None) is None
            await stream.aclose()
