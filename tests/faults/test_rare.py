"""Rare branches of the core: what is only met when something has gone wrong already, or hardly ever."""

from __future__ import annotations

import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn._connection import place
from trioconn._establish.foreign import ForeignStream, HalfCloseableForeignStream
from trioconn._establish.unix import check_unix_path, connect_unix
from trioconn.testing import ScriptedConnector, memory_stream_pair

A = "tcp://a.test:1"


def unheard(kind: type, **fields: Any) -> None:
    """A report that nobody reads."""


async def test_a_foreign_stream_in_use_closed_and_closed_again() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    later: list[trio.abc.Stream] = []
    stream = HalfCloseableForeignStream(ours, later.append)  # type: ignore[arg-type]
    assert stream.probe() and stream.fileno() == -1 and not stream.in_use
    await stream.wait_send_all_might_not_block()
    await stream.send_all(b"x")
    assert await theirs.receive_some() == b"x"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        assert stream.in_use and not stream.probe() and stream.probe_reason == "in use"
        nursery.cancel_scope.cancel()
    await stream.send_eof()
    assert await theirs.receive_some() == b""
    assert stream.send_stream is ours.send_stream  # its own attributes can be read
    with pytest.raises(AttributeError):
        _ = stream._secret
    stream.close_nowait()
    stream.close_nowait()
    assert later == [ours]
    assert not stream.probe() and stream.probe_reason == "closed"
    for call in (stream.receive_some, stream.wait_send_all_might_not_block, stream.send_eof):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    await stream.aclose()


async def test_closing_a_foreign_layer_closes_what_is_below(client_ssl: ssl.SSLContext) -> None:
    below, _ = memory_stream_pair()
    tls = trio.SSLStream(below, client_ssl, server_hostname="a.test")
    ForeignStream(tls, pytest.fail).close_nowait()
    assert below.closed
    left, right = socket.socketpair()
    with right:
        stream = ForeignStream(trio.SocketStream(trio.socket.from_stdlib_socket(left)), pytest.fail)
        right.send(b"x")
        assert not stream.probe() and stream.probe_reason == "server closed"
        stream.close_nowait()
        assert left.fileno() == -1


@pytest.mark.parametrize(
    ("path", "error", "says"),
    [
        (5, TypeError, "path must be"),
        ("", trioconn.InvalidTargetError, "empty"),
        ("\0", trioconn.InvalidTargetError, "abstract"),
        ("a\0b", trioconn.InvalidTargetError, "NUL"),
        ("a" * 200, trioconn.InvalidTargetError, "at most"),
    ],
)
def test_paths_of_no_unix_socket(path: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        check_unix_path(path)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses")
async def test_a_full_backlog_is_waited_for(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        first = await connect_unix(str(tmp_path / "s"), report=unheard)
        got: list[trio.abc.Stream] = []

        async def connect() -> None:
            got.append(await connect_unix(str(tmp_path / "s"), report=unheard))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            with trio.move_on_after(10) as scope:
                await connect_unix(str(tmp_path / "s"), report=unheard)
            assert scope.cancelled_caught and not got
            listener.accept()[0].close()
        await first.aclose()
        await got[0].aclose()


async def test_start_tls_has_nothing_to_do_on_a_plain_route_and_owns_the_stream_meanwhile() -> None:
    connector = ScriptedConnector()
    route = connector.route(A)
    stream, _ = memory_stream_pair()
    assert await trioconn.start_tls(stream, route) is stream
    with trio.CancelScope() as scope:
        scope.cancel()
        await trioconn.start_tls(stream, route)
    assert scope.cancelled_caught and stream.closed


async def test_closed_between_the_call_and_its_first_step() -> None:
    async with ScriptedConnector() as connector:

        async def use(f: Any, *args: Any) -> None:
            with pytest.raises(trioconn.ConnectorClosedError):
                await f(*args)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, connector.connect, A)
            nursery.start_soon(use, connector.prewarm, A, 1)
            nursery.start_soon(connector.aclose)
            # In whatever order they begin: both find it closed after their first checkpoint, or before.
        assert not connector.open_streams


async def test_plans_are_remembered_and_not_without_bound() -> None:
    connector = ScriptedConnector()
    for number in range(1000):
        connector.route(f"tcp://h{number}.test:1")
    assert len(connector._plans) <= 256
    assert connector.route(A) == connector.route(A)


async def test_a_stream_on_top_closes_the_lease_it_stands_on() -> None:
    async with ScriptedConnector() as connector:
        lease = await connector.connect(A)
        view = lease.stream
        view.close_nowait()  # type: ignore[attr-defined]
        assert lease.closed and connector.statistics().open == 0
        await view.aclose()
        assert connector.streams[0].closed


def test_nowhere() -> None:
    assert place(None) == "an unknown place"


@pytest.mark.parametrize("name", ["__enter__", "close", "nonsense"])
def test_what_a_connector_has_not(name: str) -> None:
    connector: Any = ScriptedConnector()
    if name == "__enter__":
        with pytest.raises(TypeError, match="async with"):
            connector.__enter__()
        with pytest.raises(TypeError, match="async with"):
            connector.__exit__()
    else:
        with pytest.raises(AttributeError, match="await connector.aclose" if name == "close" else name):
            getattr(connector, name)
