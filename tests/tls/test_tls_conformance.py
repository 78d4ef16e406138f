"""Trio's own test suite for streams, over memory, over sockets, in TLS in TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

import pytest
import trio
import trio.testing

from trioconn._establish.sockets import SocketStream
from trioconn._establish.tls import TLSStream

Pair = Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]]


def memory() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    return trio.testing.memory_stream_pair()


def sockets() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    left, right = socket.socketpair()
    return SocketStream(left), SocketStream(right)


def foreign_sockets() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    left, right = socket.socketpair()
    return trio.SocketStream(trio.socket.from_stdlib_socket(left)), SocketStream(right)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("pair", [memory, sockets, foreign_sockets])
@pytest.mark.parametrize("https_compatible", [False, True])
async def test_two_way_stream(authority, pair, layers, version, https_compatible) -> None:
    server_context, client_context = authority.server(version=version), authority.client()

    def wrap(pair: Pair) -> tuple[TLSStream, TLSStream]:
        client, server = pair()
        for _ in range(layers):
            client = TLSStream(client, client_context, server_hostname="a.test", https_compatible=https_compatible)
            server = TLSStream(server, server_context, server_side=True, https_compatible=https_compatible)
        return client, server

    async def shake(streams: tuple[TLSStream, TLSStream]) -> tuple[TLSStream, TLSStream]:
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.do_handshake)
        return streams

    async def maker() -> tuple[TLSStream, TLSStream]:
        # Without a handshake before, closing at once would have to make one, which neither https_compatible streams
        # nor the outer layer of two do.
        return await shake(wrap(pair)) if https_compatible or layers > 1 else wrap(pair)

    async def clogged() -> tuple[TLSStream, TLSStream]:
        return await shake(wrap(trio.testing.lockstep_stream_pair))

    await trio.testing.check_two_way_stream(maker, clogged)
