"""Leased streams as asyncio transports: what a protocol that stands on one sees and may do."""

from __future__ import annotations

import asyncio
import errno
import selectors
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import trio

import trioconn
from trioconn.aio import AiohttpConnector, Portal
from trioconn.aio.readiness import READ, Readiness
from trioconn.aio.task_transport import transport_for

from .streams import Hidden

MB = 1 << 20
Run = Callable[[Callable[[Portal], Awaitable[Any]]], Any]
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listening(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self, *, keeps_open: bool = False, fails: bool = False) -> None:
        self.received = bytearray()
        self.ends = 0
        self.flow: list[str] = []
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self._keeps_open = keeps_open
        self._fails = fails

    def data_received(self, data: bytes) -> None:
        if self._fails:
            raise ValueError("mine")
        self.received += data

    def eof_received(self) -> bool:
        self.ends += 1
        return self._keeps_open

    def pause_writing(self) -> None:
        self.flow.append("pause")

    def resume_writing(self) -> None:
        self.flow.append("resume")

    def connection_lost(self, error: BaseException | None) -> None:
        self.lost.set_result(error)


class ByTasks(trioconn.BaseConnector):
    """Streams of trio's own, which only tasks can move."""

    async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
        return Plain(await trio.open_tcp_stream(route.host, route.port))


class Plain(Hidden):
    """It shows its socket, as trio's own do."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.socket = stream.socket


class Setup:
    """One connection between a protocol of the test's and a peer of the test's."""

    def __init__(self, kind: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
        self.kind = kind
        self._server_context = server_context if kind == "tls" else None
        self._client_context = client_context
        self.connector: Any = None
        self.lease: Any = None

    @asynccontextmanager
    async def __call__(self, portal: Portal, talk: Talk, protocol: Any) -> AsyncIterator[Any]:
        tasks: list[asyncio.Task[None]] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.append(task)
            try:
                await talk(reader, writer)
            except (OSError, asyncio.CancelledError):
                pass
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self._server_context)
        port = server.sockets[0].getsockname()[1]
        connector = ByTasks() if self.kind == "tasks" else trioconn.TCPConnector(ssl=self._client_context)
        try:
            async with portal.open(connector) as self.connector:
                scheme = "tls" if self.kind == "tls" else "tcp"
                self.lease = (await self.connector.connect(f"{scheme}://127.0.0.1:{port}")).lease
                transport = transport_for(portal, self.lease, protocol)
                try:
                    yield transport
                finally:
                    transport.abort()
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.01)


@pytest.fixture(params=["plain", "tls", "tasks"])
def setup(request: pytest.FixtureRequest, server_ssl: Any, client_ssl: ssl.SSLContext) -> Setup:
    return Setup(request.param, server_ssl("localhost", "127.0.0.1"), client_ssl)


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def test_all_that_was_written_before_a_close_is_sent(run: Run, setup: Setup) -> None:
    async def main(portal: Portal) -> None:
        may_read, total = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await may_read.wait()
            total.set_result(len(await reader.read(-1)))

        protocol = Listening()
        async with setup(portal, talk, protocol) as transport:
            transport.writelines([bytes(8 * MB), b"", bytes(8 * MB)])
            transport.write(b"more")
            assert protocol.flow == ["pause"]
            assert transport.get_write_buffer_size() > MB
            transport.close()
            transport.write(b"too late")
            assert transport.is_closing() and not transport.is_reading() and "closing" in repr(transport)
            assert not setup.lease.closed
            may_read.set()
            async with asyncio.timeout(20):
                assert await protocol.lost is None
                assert await total == 16 * MB + 4
            assert protocol.flow == ["pause", "resume"]
            assert setup.lease.closed and "over" in repr(transport)
            transport.close()

    run(main)


def test_a_protocol_may_go_on_sending_after_the_end(run: Run, setup: Setup) -> None:
    if setup.kind == "tls":
        return  # asyncio ends TLS both ways at once

    async def main(portal: Portal) -> None:
        total = asyncio.get_running_loop().create_future()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"all")
            writer.write_eof()
            total.set_result(await reader.read(-1))

        protocol = Listening(keeps_open=True)
        async with setup(portal, talk, protocol) as transport:
            async with asyncio.timeout(5):
                while not protocol.ends:  # noqa: ASYNC110 - nothing tells it
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            assert (protocol.received, protocol.ends) == (b"all", 1), "the end is told once"
            assert not transport.is_closing()
            transport.write(b"answer")
            transport.close()
            async with asyncio.timeout(5):
                assert await total == b"answer"

    run(main)


def test_the_end_closes(run: Run, setup: Setup) -> None:
    async def main(portal: Portal) -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"all")
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        protocol = Listening()
        async with setup(portal, talk, protocol), asyncio.timeout(5):
            assert await protocol.lost is None
            assert (protocol.received, protocol.ends) == (b"all", 1)

    run(main)


def test_a_protocol_that_fails(run: Run, setup: Setup) -> None:
    async def main(portal: Portal) -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"x")
            await silence(reader, writer)

        protocol = Listening(fails=True)
        async with setup(portal, talk, protocol) as transport, asyncio.timeout(5):
            error = await protocol.lost
            assert isinstance(error, ValueError)
            assert [(one["exception"], one["transport"], one["protocol"]) for one in told] == [
                (error, transport, protocol)
            ]

    run(main)


@pytest.mark.parametrize("doing", ["reading", "writing", "flushing"])
def test_the_peer_resets(run: Run, setup: Setup, doing: str) -> None:
    async def main(portal: Portal) -> None:
        go, gone = asyncio.Event(), asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await go.wait()
            reset(writer)
            gone.set()

        protocol = Listening()
        async with setup(portal, talk, protocol) as transport, asyncio.timeout(10):
            if doing != "reading":
                transport.pause_reading()
            if doing == "flushing":
                transport.write(bytes(8 * MB))
            go.set()
            await gone.wait()
            while not protocol.lost.done():
                await asyncio.sleep(0.005)
                if doing == "writing":
                    transport.write(b"x")
            error = await protocol.lost
            assert isinstance(error, ConnectionResetError)
            assert setup.lease.closed and setup.connector.statistics().open == 0
            if setup.kind == "plain":
                assert error.errno in {errno.ECONNRESET, errno.EPIPE}
                assert isinstance(error.__cause__, trio.BrokenResourceError)

    run(main)


def test_limits_of_the_buffer(run: Run, setup: Setup) -> None:
    async def main(portal: Portal) -> None:
        protocol = Listening()
        async with setup(portal, silence, protocol) as transport:
            assert transport.get_write_buffer_limits() == (16384, 65536)
            for given, expected in (
                ({"low": 10}, (10, 40)),
                ({"high": 100}, (25, 100)),
                ({"high": 9, "low": 9}, (9, 9)),
                ({}, (16384, 65536)),
            ):
                transport.set_write_buffer_limits(**given)
                assert transport.get_write_buffer_limits() == expected
            for wrong in ({"high": 1, "low": 2}, {"low": -1, "high": 3}):
                with pytest.raises(ValueError, match="must be at least"):
                    transport.set_write_buffer_limits(**wrong)
            transport.write(bytes(8 * MB))
            assert protocol.flow == ["pause"]
            transport.set_write_buffer_limits(high=64 * MB)
            assert protocol.flow == ["pause", "resume"]

    run(main)


def test_questions(run: Run, setup: Setup) -> None:
    async def main(portal: Portal) -> None:
        first, second = Listening(), Listening()
        async with setup(portal, silence, first) as transport:
            ask = transport.get_extra_info
            assert ask("lease") is setup.lease
            sock = ask("socket")
            if setup.kind != "tasks":
                assert ask("peername") == sock.getpeername() and ask("sockname") == sock.getsockname()
            assert (ask("cipher") is not None) == (setup.kind == "tls")
            assert not transport.can_write_eof()
            assert transport.get_protocol() is first
            transport.set_protocol(second)
            assert transport.get_protocol() is second
            assert transport.is_reading() and "open" in repr(transport)
            for _ in range(2):
                transport.pause_reading()
                assert not transport.is_reading()
            for _ in range(2):
                transport.resume_reading()
                assert transport.is_reading()
            transport.abort()
            transport.pause_reading()
            async with asyncio.timeout(5):
                assert await second.lost is None
            assert not first.lost.done()
            assert ask("socket", 3) == ask("cipher", 3) == 3
            assert ask("lease") is setup.lease

    run(main)


def test_given_back_with_bytes_unsent(run: Run, setup: Setup) -> None:
    """The next request would follow half of this one."""

    async def main(portal: Portal) -> None:
        async with setup(portal, silence, Listening()) as transport:
            transport.write(bytes(8 * MB))
            transport.give_back()
            async with asyncio.timeout(5):
                while setup.connector.statistics().open:  # noqa: ASYNC110 - nothing tells it
                    await asyncio.sleep(0.001)
            assert setup.connector.statistics().idle == 0

    run(main)


def test_closed_with_its_connector(run: Run, setup: Setup) -> None:
    async def main(portal: Portal) -> None:
        protocol = Listening()
        async with setup(portal, silence, protocol):
            await setup.connector.aclose()
            async with asyncio.timeout(5):
                assert isinstance(await protocol.lost, ConnectionAbortedError)

    run(main)


def test_where_selectors_cannot_be_watched(run: Run, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: then tasks move our streams, too."""
    monkeypatch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)

    async def main(portal: Portal) -> None:
        assert portal.readiness is None
        async with aiohttp.ClientSession(connector=AiohttpConnector()) as client:
            for _ in range(2):
                async with client.get(server.url()) as response:
                    assert response.status == 200
                    await response.read()

    run(main)


def test_one_that_is_ready_ends_another() -> None:
    """Its number may be somebody else's by the time that its turn would come."""
    told: list[int] = []
    readiness = Readiness()
    pairs = [socket.socketpair() for _ in range(2)]
    first, second = (mine.fileno() for mine, _ in pairs)

    def ready_for(me: int, other: int) -> Callable[[int], None]:
        def ready(events: int) -> None:
            told.append(me)
            readiness.forget(other)

        return ready

    readiness.watch(first, READ, ready_for(first, second))
    readiness.watch(second, READ, ready_for(second, first))
    for _, theirs in pairs:
        theirs.send(b"x")
    assert readiness.poll()
    assert len(told) == 1
    readiness.close()
    for mine, theirs in pairs:
        mine.close()
        theirs.close()
