"""The pool over pipes: everything but the dial is the same as elsewhere, and this shows it on real pipes."""

from __future__ import annotations

import contextlib
import ssl
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn import _connectors
from trioconn._establish import dial
from trioconn._http11 import Exchange
from trioconn.testing import memory_stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

on_windows = pytest.mark.skipif(sys.platform != "win32", reason="named pipes exist on Windows alone (or under Wine)")
if sys.platform == "win32":
    import _winapi

Serve = Any  # the fixture; see conftest.py
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ENOUGH = 65536


def http(handle: int) -> None:
    """Answer every request, which has no body."""
    received = b""
    while True:
        received += _winapi.ReadFile(handle, ENOUGH)[0]
        while b"\r\n\r\n" in received:
            _, _, received = received.partition(b"\r\n\r\n")
            _winapi.WriteFile(handle, RESPONSE)


def upload(handle: int) -> None:
    """Answer requests with the length of their bodies."""
    received = b""
    while True:
        while b"\r\n\r\n" not in received:
            received += _winapi.ReadFile(handle, ENOUGH)[0]
        head, _, received = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(received) < length:
            received += _winapi.ReadFile(handle, ENOUGH)[0]
        assert received[:length] == bytes(length)
        received = received[length:]
        told = b"%d" % length
        _winapi.WriteFile(handle, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(told), told))


def tls_echo(context: ssl.SSLContext) -> Any:
    """A handler that speaks TLS on the pipe and sends back what comes."""

    def handler(handle: int) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)

        def do(operation: Any, *arguments: Any) -> Any:
            while True:
                try:
                    return operation(*arguments)
                except ssl.SSLWantReadError:
                    flush()
                    incoming.write(_winapi.ReadFile(handle, ENOUGH)[0])
                finally:
                    flush()

        def flush() -> None:
            if outgoing.pending:
                _winapi.WriteFile(handle, outgoing.read())

        with contextlib.suppress(ssl.SSLError):
            do(tls.do_handshake)
            while data := do(tls.read, ENOUGH):
                do(tls.write, data)
            do(tls.unwrap)

    return handler


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other tasks and threads bring about. (Attempts on a busy pipe never sleep for long.)"""
    while not condition():
        await trio.testing.wait_all_tasks_blocked()


async def get(connector: trioconn.BaseConnector, target: str = "http://engine/info") -> bool:
    """One request; whether its connection had been used before."""
    async with await connector.connect(target) as connection:
        await connection.stream.send_all(b"GET /info HTTP/1.1\r\nHost: engine\r\n\r\n")
        received = b""
        while len(received) < len(RESPONSE):
            part = await connection.stream.receive_some()
            assert part
            received += part
        assert received == RESPONSE
        connection.release()
        return connection.reused


@pytest.mark.skipif(sys.platform == "win32", reason="this system has named pipes")
@pytest.mark.aiohttp("named_pipe_connector_wrong_loop")
def test_other_systems_say_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Windows.*UnixConnector"):
        trioconn.NamedPipeConnector(r"\\.\pipe\name")


@pytest.mark.parametrize("path", ["name", r"\\server\pipe\name", r"\\.\pipe\..\C:\file"])
def test_path_is_judged_first(path: str) -> None:
    """On every system, so that a mistake is found where the tests run."""
    with pytest.raises(trioconn.InvalidTargetError, match="pipe"):
        trioconn.NamedPipeConnector(path)


@pytest.mark.parametrize("mistake", [{"limit": -1}, {"ssl": True, "ssl_shutdown_timeout": -1.0}])
def test_options_are_judged_on_every_system(mistake: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"limit|ssl_shutdown_timeout"):
        trioconn.NamedPipeConnector(r"\\.\pipe\name", **mistake)


async def test_the_whole_way_over_a_pipe_that_is_memory(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the system's part, on every system: the path asked for, the pool on top, what observers are told."""
    opened: list[str] = []
    told: list[trioconn.events.Event] = []

    async def serve(peer: trio.abc.Stream) -> None:
        async for data in peer:
            await peer.send_all(data)

    async def open_pipe(path: str, *, report: Any) -> trio.abc.Stream:
        opened.append(path)
        ours, theirs = memory_stream_pair()
        nursery.start_soon(serve, theirs)
        return ours

    monkeypatch.setattr(dial, "open_pipe", open_pipe)
    monkeypatch.setattr(_connectors, "require_named_pipes", lambda: None)
    async with trioconn.NamedPipeConnector("//./pipe/name", observers=[told.append]) as connector:
        for turn in range(2):
            async with await connector.connect("http://engine/") as connection:
                await connection.stream.send_all(b"x")
                assert await connection.stream.receive_some() == b"x"
                assert connection.reused == (turn == 1)
                connection.release()
    assert opened == [connector.path] == [r"\\.\pipe\name"]
    assert any(isinstance(event, trioconn.events.AttemptWon) for event in told)


@on_windows
async def test_remote_path_when_asked_for() -> None:
    connector = trioconn.NamedPipeConnector("//server/pipe/name", allow_remote=True)
    assert connector.path == r"\\server\pipe\name"


@on_windows
@pytest.mark.aiohttp("named_pipe_connector")
@pytest.mark.parametrize("target", ["http://engine/info", "ws://engine/info", "tcp://engine", "npipe:"])
async def test_targets(path: str, serve: Serve, target: str) -> None:
    server = serve(http)
    async with trioconn.NamedPipeConnector(path) as connector:
        assert [await get(connector, target) for _ in range(3)] == [False, True, True]
        assert connector.route(target).endpoint == path
        assert connector.path == path
    assert server.accepted == 1


@on_windows
async def test_http_client_and_bodies_larger_than_the_pipe(path: str, serve: Serve) -> None:
    """The clients on top try to write without waiting, which would spoil a pipe that is full."""
    server = serve(upload)
    async with trioconn.NamedPipeConnector(path) as connector:
        for size in (10, 60_000, 3_000_000):
            lease = await connector.connect("http://engine/")
            exchange = Exchange(lease, read=30, write=30, trace=None, request=None, checked={})
            headers = [(b"Host", b"engine"), (b"Content-Length", b"%d" % size)]
            await exchange.run(b"POST", b"/", headers, bytes(size))
            assert await exchange.receive_body() == b"%d" % size
            assert await exchange.receive_body() is None
    assert server.accepted == 1


@on_windows
@pytest.mark.parametrize("scheme", ["https", "wss"])
async def test_tls_inside(path: str, serve: Serve, scheme: str, server_ssl: Any, client_ssl: ssl.SSLContext) -> None:
    serve(tls_echo(server_ssl()))
    async with trioconn.NamedPipeConnector(path, ssl=client_ssl) as connector:
        for used in (False, True):
            async with await connector.connect(f"{scheme}://example.test/") as connection:
                assert connection.reused is used
                data = b"abc" * 50_000
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connection.stream.send_all, data)
                    received = b""
                    while len(received) < len(data):
                        part = await connection.stream.receive_some()
                        assert part
                        received += part
                assert received == data
                connection.release()


@on_windows
async def test_tls_for_another_name_is_refused(
    path: str, serve: Serve, server_ssl: Any, client_ssl: ssl.SSLContext
) -> None:
    serve(tls_echo(server_ssl()))
    async with trioconn.NamedPipeConnector(path, ssl=client_ssl) as connector:
        with pytest.raises(trioconn.CertificateError):
            await connector.connect("https://elsewhere.test/")


@on_windows
@pytest.mark.aiohttp("named_pipe_connector_not_found")
async def test_not_found(path: str) -> None:
    async with trioconn.NamedPipeConnector(path) as connector:
        for _ in range(2):
            with pytest.raises(trioconn.NamedPipeConnectError) as caught:
                await connector.connect("http://engine/")
            assert caught.value.winerror == 2
            assert caught.value.stage == "connect"
            assert caught.value.route == connector.route("http://engine/")
        assert connector.statistics().failed == {"connect": 2}


@on_windows
@pytest.mark.aiohttp("named_pipe_connector_permission")
async def test_access_denied(path: str) -> None:
    handle = _winapi.CreateNamedPipe(path, 2, 0, 1, 4096, 4096, 0, 0)  # one that only sends
    async with trioconn.NamedPipeConnector(path) as connector:
        with pytest.raises(trioconn.NamedPipeConnectError) as caught:
            await connector.connect("http://engine/")
    _winapi.CloseHandle(handle)
    assert caught.value.winerror == 5


@on_windows
async def test_busy_until_connect_timeout(path: str, serve: Serve, autojump_clock: MockClock) -> None:
    serve()
    async with (
        trioconn.NamedPipeConnector(path, connect_timeout=3) as connector,
        await connector.connect("http://engine/", isolation="it occupies the only instance"),
    ):
        begun = trio.current_time()
        with pytest.raises(trioconn.ConnectTimeoutError):
            await connector.connect("http://engine/")
        assert trio.current_time() == begun + 3


@on_windows
async def test_busy_until_another_lease_ends(path: str, serve: Serve) -> None:
    server = serve(http)
    async with (
        trioconn.NamedPipeConnector(path) as connector,
        trio.open_nursery() as nursery,
        await connector.connect("http://engine/", isolation="it occupies the only instance"),
    ):
        nursery.start_soon(get, connector)
        await until(lambda: connector.statistics().connecting == 1)
    assert server.accepted == 2


@on_windows
async def test_fifty_clients_share_ten(path: str, serve: Serve) -> None:
    server = serve(http, instances=10)
    most = 0
    async with trioconn.NamedPipeConnector(path, limit=10) as connector:

        async def client() -> None:
            nonlocal most
            for _ in range(10):
                await get(connector)
                most = max(most, connector.statistics().open)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(client)
        statistics = connector.statistics()
        assert statistics.idle == statistics.open == most == 10
        assert statistics.created == 10
        assert statistics.reused == 490
    assert server.accepted == 10


@on_windows
async def test_limit_is_kept_where_the_server_would_take_more(path: str, serve: Serve) -> None:
    server = serve(http, instances=10)
    async with trioconn.NamedPipeConnector(path, limit_per_host=3) as connector, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(get, connector)
    assert server.accepted == 3


@on_windows
async def test_fewer_instances_than_the_limit(path: str, serve: Serve) -> None:
    """Attempts beyond what the server takes at a time wait, and everybody is served."""
    serve(http, instances=3)
    async with trioconn.NamedPipeConnector(path, limit=20) as connector, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(get, connector)


@on_windows
async def test_server_that_has_gone_away_is_noticed(path: str, serve: Serve, throw_out: Callable[[int], None]) -> None:
    """The connection that the server ended while it was idle is not handed out."""
    gone = threading.Event()

    def handler(handle: int) -> None:
        _winapi.ReadFile(handle, ENOUGH)
        _winapi.WriteFile(handle, RESPONSE)
        throw_out(handle)
        gone.set()

    serve(handler)
    async with trioconn.NamedPipeConnector(path) as connector:
        for _ in range(5):
            assert not await get(connector)
            assert gone.wait(10)
            gone.clear()
        assert set(connector.statistics().closed) == {"server closed"}


@on_windows
async def test_unread_bytes_are_noticed(path: str, serve: Serve) -> None:
    serve(lambda handle: _winapi.ReadFile(handle, 100) and _winapi.WriteFile(handle, RESPONSE * 2) and http(handle))
    async with trioconn.NamedPipeConnector(path) as connector:
        async with await connector.connect("http://engine/") as connection:
            await connection.stream.send_all(b"GET / HTTP/1.1\r\nHost: engine\r\n\r\n")
            assert await connection.stream.receive_some(len(RESPONSE)) == RESPONSE
            connection.release()
        assert connector.statistics().idle == 0
        assert connector.statistics().closed == {"stray bytes": 1}


@on_windows
async def test_shutdown_ends_everything(path: str, serve: Serve) -> None:
    """Idle and leased connections, attempts on a busy pipe, and waiters, with tasks inside calls."""
    serve(http, instances=4)
    ended: Counter[str] = Counter()

    async def lease(connector: trioconn.BaseConnector) -> None:
        try:
            connection = await connector.connect("http://engine/", isolation="leased")
        except trioconn.ConnectorClosedError:
            ended["waiting"] += 1
            return
        with pytest.raises(trio.ClosedResourceError):
            await connection.stream.receive_some()
        ended["leased"] += 1
        connection.close()

    async with trioconn.NamedPipeConnector(path, limit=6) as connector:
        await get(connector)
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(lease, connector)
            await until(lambda: connector.statistics().leased >= 3)
            await trio.testing.wait_all_tasks_blocked()
            statistics = connector.statistics()
            assert statistics.connecting
            assert statistics.waiting
            with trio.fail_after(10):
                await connector.aclose()
        assert connector.statistics().open == 0
    assert ended.total() == 50
    assert ended["leased"] == statistics.leased


@on_windows
@pytest.mark.parametrize("how", ["deadline", "body"])
async def test_leaving_the_block_ends_everything(path: str, serve: Serve, how: str) -> None:
    """By cancellation and by an exception; the server, which waits for all to have gone, ends as well."""
    serve(http, instances=8)

    async def hold(connector: trioconn.BaseConnector) -> None:
        async with await connector.connect("http://engine/") as connection:
            await connection.stream.receive_some()

    async def run() -> None:
        async with trioconn.NamedPipeConnector(path) as connector, trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(hold, connector)
            await until(lambda: connector.statistics().leased == 8)
            if how == "body":
                raise ZeroDivisionError
            await trio.sleep_forever()

    if how == "body":
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            await run()
    else:
        with trio.move_on_after(0.5) as scope:
            await run()
        assert scope.cancelled_caught
