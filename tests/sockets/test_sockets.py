"""Our plain stream is trio's, and can be probed, read, written and closed without an await."""

from __future__ import annotations

import errno
import gc
import os
import socket
import struct
import sys

import pytest
import trio
import trio.testing

from trioconn._establish.sockets import SocketStream


def connected_pair(family: str) -> tuple[socket.socket, socket.socket]:
    if family == "unix":
        if not hasattr(socket, "AF_UNIX"):
            pytest.skip("no Unix sockets here")
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return client, server


@pytest.fixture(params=["tcp", "unix"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pair(family: str):
    """Our stream and the peer's blocking socket."""
    ours, theirs = connected_pair(family)
    stream = SocketStream(ours)
    with ours, theirs:
        yield stream, theirs


async def test_conformance(family: str) -> None:
    async def maker() -> tuple[SocketStream, SocketStream]:
        left, right = connected_pair(family)
        return SocketStream(left), SocketStream(right)

    async def clogged() -> tuple[SocketStream, SocketStream]:
        left, right = await maker()
        for stream in (left, right):
            while stream.send_nowait(bytes(2**20)):
                pass
        return left, right

    await trio.testing.check_half_closeable_stream(maker, clogged)


def test_refuses_what_is_no_stream_socket() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(ValueError, match="stream socket"):
        SocketStream(datagrams)
    assert datagrams.fileno() == -1  # by its own `with`; the constructor did not touch it

    class Disguised(socket.socket):
        pass

    with Disguised() as odd, pytest.raises(TypeError, match="Disguised"):
        SocketStream(odd)


async def test_options(pair) -> None:
    stream, _ = pair
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
    assert struct.unpack("i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 4))[0] != 0
    with pytest.raises(OSError, match="address"):  # a null pointer is handed through; it is the system's to refuse
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, None, 4)
    with pytest.raises(TypeError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, None)
    with pytest.raises(TypeError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1, 4)
