"""Idle connections: kept for their time, handed out only while they are clean, closed when their peer closes."""

from __future__ import annotations

import math
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn.testing import FakeNetwork, MemoryStream, ScriptedConnector, Succeed

from .common import A, B, check_clean, counts, settle

Scripted = Callable[..., Any]


# ---- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.case("urllib3#3184")
@pytest.mark.aiohttp("get")
@pytest.mark.aiohttp("get_expired")
@pytest.mark.aiohttp("cleanup")
async def test_keepalive_by_the_timer(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted() as connector:
        start = trio.current_time()
        (await connector.connect(A)).release()
        await trio.sleep(10)
        connector.connect_nowait(A).release()  # starts anew
        await trio.sleep(14.875)
        assert counts(connector) == (0, 1, 0, 0)
        await trio.sleep(0.125)
        await settle()
        assert counts(connector) == (0, 0, 0, 0) and connector.statistics().closed == {"idle": 1}
        assert trio.current_time() - start == 25 and connector.streams[0].closed


@pytest.mark.case("urllib3#3184")
@pytest.mark.aiohttp("get_pop_empty_conns")
async def test_expiry_at_take_out(mock_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    """The clock jumps, and the timer's task has not run yet."""
    async with scripted() as connector:
        (await connector.connect(A)).release()
        mock_clock.jump(15)
        with pytest.raises(trio.WouldBlock):
            connector.connect_nowait(A)
        (await connector.connect(A)).close()
        assert connector.dials == 2


@pytest.mark.aiohttp("release_close")
@pytest.mark.aiohttp("release_close_do_not_add_to_pool")
@pytest.mark.aiohttp("release_close_do_not_delete_existing_connections")
@pytest.mark.parametrize(
    ("options", "reason"), [({"keepalive_timeout": 0}, "idle"), ({"force_close": True}, "force_close")]
)
async def test_nothing_is_kept(options: dict[str, Any], reason: str, scripted: Scripted) -> None:
    async with scripted(limit=1, **options) as connector:
        for n in range(1, 4):
            (await connector.connect(A)).release()
            assert connector.streams[-1].closed and counts(connector) == (0, 0, 0, 0)
            assert connector.statistics().closed == {reason: n}


@pytest.mark.parametrize("keepalive", [None, math.inf])
async def test_kept_for_ever(keepalive: float | None, mock_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(keepalive_timeout=keepalive) as connector:
        (await connector.connect(A)).release()
        mock_clock.jump(1e9)
        await settle()
        lease = connector.connect_nowait(A)
        assert lease.age == 1e9
        lease.release()


@pytest.mark.parametrize(
    ("idle_for", "kept"),
    [(3, 3), (100, 15), (0, 0), (-1, 0), (math.nan, 0), (math.inf, 15)],
)
async def test_idle_for_shortens_once(
    idle_for: float, kept: float, autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    async with scripted() as connector:
        lease = await connector.connect(A)
        lease.release(idle_for=idle_for)
        if kept:
            await trio.sleep(kept - 0.125)
            assert counts(connector) == (0, 1, 0, 0)
            await trio.sleep(0.125)
            await settle()
        assert counts(connector) == (0, 0, 0, 0) and connector.statistics().closed == {"idle": 1}
        lease = await connector.connect(A)
        lease.release(idle_for=3)
        connector.connect_nowait(A).release()
        await trio.sleep(14)
        assert counts(connector) == (0, 1, 0, 0)


async def test_idle_for_keeps_for_ever_no_longer(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(keepalive_timeout=None) as connector:
        (await connector.connect(A)).release(idle_for=2)
        await trio.sleep(2)
        await settle()
        assert counts(connector) == (0, 0, 0, 0)


async def test_many_short_times_are_not_all_remembered(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    """A server that says its time with each response leaves a note each time; the old ones are thrown away."""
    start = trio.current_time()
    async with scripted() as connector:
        (await connector.connect("tcp://c.test:1")).release()
        (await connector.connect(B)).release(idle_for=3)
        lease = await connector.connect(A)
        for _ in range(64):
            await trio.sleep(0.03125)
            lease.release(idle_for=10)
            lease = connector.connect_nowait(A)
        lease.release(idle_for=10)
        noted = [record.connection.route for _, _, record in connector._shell.pool._early]
        assert len(noted) < 50 and set(noted) == {lease.route, connector.routes[1]}
        for until, left in ((3, 2), (12, 1), (15, 0)):
            await trio.sleep_until(start + until - 0.0625)
            assert counts(connector) == (0, left + 1, 0, 0)
            await trio.sleep(0.0625)
            await settle()
            assert counts(connector) == (0, left, 0, 0)


@pytest.mark.parametrize("max_uses", [1, 3])
async def test_max_uses(max_uses: int, scripted: Scripted) -> None:
    async with scripted(max_uses=max_uses) as connector:
        for n in range(1, max_uses + 1):
            lease = await connector.connect(A)
            assert lease.uses == n and lease.reused == (n > 1)
            lease.release()
        assert connector.dials == 1 and connector.statistics().closed == {"uses": 1}
        lease = await connector.connect(A)
        assert lease.uses == 1
        lease.close()


@pytest.mark.case("aiohttp#1914")
@pytest.mark.parametrize(
    ("jitter", "drawn", "lifetime"), [(0.0, 0.5, 60), (0.1, 0.5, 57), (0.1, 1.0, 54), (1, 0.5, 30)]
)
async def test_max_lifetime(
    jitter: float,
    drawn: float,
    lifetime: float,
    autojump_clock: trio.testing.MockClock,
    scripted: Scripted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("random.random", lambda: drawn)
    async with scripted(max_lifetime=60, lifetime_jitter=jitter, keepalive_timeout=None) as connector:
        lease = await connector.connect(A)
        lease.release()
        await trio.sleep(lifetime - 0.5)
        lease = connector.connect_nowait(A)
        await trio.sleep(1)
        assert not lease.closed  # a lease is not ended by it
        lease.release()
        assert connector.statistics().closed == {"age": 1}
        (await connector.connect(A)).release()
        await trio.sleep(lifetime)
        await settle()
        # Idle: by the timer. The pool calls both "its time is over", whichever was first.
        assert counts(connector) == (0, 0, 0, 0) and sum(connector.statistics().closed.values()) == 2


async def test_lifetimes_are_spread(scripted: Scripted) -> None:
    async with scripted(max_lifetime=100, lifetime_jitter=0.2) as connector:
        leases = [await connector.connect(A) for _ in range(50)]
        ends = {record.expires for record in connector._shell.pool._records}
        now = trio.current_time()
        assert len(ends) == 50 and all(now + 79 < end <= now + 100 for end in ends)
        assert max(ends) - min(ends) > 5
        for lease in leases:
            lease.close()


# ---- what the peer did meanwhile -------------------------------------------------------------------------------------


@pytest.mark.case("aiohttp#13656")
@pytest.mark.case("httpx#145")
@pytest.mark.aiohttp("get_unconnected_proto")
@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda peer: peer.send_nowait(b"HTTP/1.1 200 OK\r\n\r\n"), "stray bytes"),
        (lambda peer: peer.close_nowait(), "server closed"),
        (lambda peer: peer.reset(), "server closed"),
        (lambda peer: (peer.send_nowait(b"HTTP/1.1 408 Too late\r\n\r\n"), peer.close_nowait()), "stray bytes"),
    ],
    ids=["stray", "closed", "reset", "408 and closed"],
)
@pytest.mark.parametrize("when", ["before release", "after release", "nowait"])
async def test_what_the_peer_did(
    act: Callable[[MemoryStream], object], reason: str, when: str, scripted: Scripted
) -> None:
    async with scripted(limit=1) as connector:
        lease = await connector.connect(A)
        if when == "before release":
            act(connector.peers[0])
            lease.release()
            assert counts(connector) == (0, 0, 0, 0)
        else:
            lease.release()
            act(connector.peers[0])
            assert counts(connector) == (0, 1, 0, 0)
        if when == "nowait":
            with pytest.raises(trio.WouldBlock):
                connector.connect_nowait(A)
        else:
            lease = await connector.connect(A)
            assert not lease.reused
            lease.close()
        assert connector.statistics().closed[reason] == 1 and connector.streams[0].closed


@pytest.mark.case("aiohttp#13656")
@pytest.mark.parametrize("delay", [0, 0.1])
async def test_a_second_response(
    delay: float, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, no_fd_leak: None
) -> None:
    """The peer answers twice: in the same segment, or in a later one. On real sockets."""

    async def twice(stream: trio.SocketStream) -> None:
        async for _ in stream:
            await stream.send_all(b"answer" + (b"answer" if not delay else b""))
            if delay:
                await trio.sleep(delay)
                await stream.send_all(b"answer")

    network = FakeNetwork(nursery)
    network.add_host("a.test", "192.0.2.1")
    network.listen("192.0.2.1", twice)
    async with network.connector() as connector:
        for n in range(3):
            async with await connector.connect("tcp://a.test:1") as lease:
                assert not lease.reused and lease.info.number == n + 1
                await lease.stream.send_all(b"request")
                assert await lease.stream.receive_some(6) == b"answer"
                lease.release()
            await trio.sleep(1)
        # The bytes that came late are found when the connection is asked for, or at the end of its time; on Windows
        # within a second, since there idle connections are looked at in turn.
        assert counts(connector)[1] == (1 if delay and sys.platform != "win32" else 0)
        with pytest.raises(trio.WouldBlock):
            connector.connect_nowait("tcp://a.test:1")
        assert connector.statistics().closed == {"stray bytes": 3} and connector.statistics().open == 0
    await settle()


@pytest.mark.case("aiohttp#4587")
async def test_the_end_comes_one_tick_after_the_release(scripted: Scripted) -> None:
    async with scripted() as connector:
        lease = await connector.connect(A)
        lease.release()
        await trio.lowlevel.checkpoint()
        connector.peers[0].close_nowait()
        lease = await connector.connect(A)
        assert not lease.reused
        lease.close()


@pytest.mark.parametrize("first", ["greets", "closes", "both"])
async def test_a_server_that_speaks_or_closes_first(
    first: str, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """What lies in a new connection is its first user's. To dial another one instead would never end."""

    async def handler(stream: trio.SocketStream) -> None:
        if first != "closes":
            await stream.send_all(b"220 hello\r\n")
        if first == "greets":
            await trio.sleep_forever()

    network = FakeNetwork(nursery)
    network.add_host("a.test", "192.0.2.1")
    network.listen("192.0.2.1", handler)
    async with network.connector(max_lifetime=0) as connector:
        for n in range(1, 4):
            async with await connector.connect("tcp://a.test:25") as lease:
                await settle()
                assert await lease.stream.receive_some() == (b"" if first == "closes" else b"220 hello\r\n")
            assert len(network.dialled) == n
    nursery.cancel_scope.cancel()


async def test_newest_first(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    """A pool shrinks after a burst."""
    async with scripted() as connector:
        leases = [await connector.connect(A) for _ in range(3)]
        for lease in leases:
            lease.release()
            await trio.sleep(1)
        for _ in range(5):
            lease = connector.connect_nowait(A)
            assert lease.info.number == 3
            lease.release()
            await trio.sleep(4)
        assert counts(connector) == (0, 1, 0, 0)


@pytest.mark.case("hyper#2136")
@pytest.mark.case("aiohttp#7297")
async def test_a_stale_reuse_says_so(scripted: Scripted) -> None:
    """The FIN crosses the request: no pool prevents that. The lease tells what a retry depends on."""
    async with scripted() as connector:
        (await connector.connect(A)).release()
        async with await connector.connect(A) as lease:
            connector.peers[0].reset()
            with pytest.raises(trio.BrokenResourceError):
                await lease.stream.send_all(b"request")
            assert lease.reused and lease.uses == 2


@pytest.mark.case("aiohttp#12953")
@pytest.mark.case("urllib3#2645")
async def test_deadlines_belong_to_the_lease(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(keepalive_timeout=100) as connector:
        with trio.fail_after(1):
            lease = await connector.connect(A)
            lease.release()
        await trio.sleep(50)
        with trio.fail_after(10):
            lease = connector.connect_nowait(A)
            connector.peers[0].send_nowait(b"x")
            await trio.sleep(5)
            assert await lease.stream.receive_some() == b"x"
            lease.release()
        assert counts(connector) == (0, 1, 0, 0)


# ---- on real sockets -------------------------------------------------------------------------------------------------


@pytest.mark.case("urllib3#2100")
@pytest.mark.parametrize("wake", ["closes", "sends and closes"])
async def test_connections_that_the_peer_closes_leave_within_a_second(
    wake: str, tcp_server: Callable[..., Any], no_fd_leak: None
) -> None:
    let_go = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        await let_go.wait()
        if wake != "closes":
            await stream.send_all(b"bye")

    async with tcp_server(handler) as port, trioconn.TCPConnector() as connector:
        for lease in [await connector.connect(f"tcp://127.0.0.1:{port}") for _ in range(20)]:
            lease.release()
        assert connector.statistics().idle == 20
        let_go.set()
        with trio.fail_after(1):
            while connector.statistics().open:  # noqa: ASYNC110 - the connector tells nobody
                await trio.sleep(0.01)
        assert sum(connector.statistics().closed.values()) == 20
        assert set(connector.statistics().closed) <= {"server closed", "stray bytes"}


async def test_a_peer_that_closes_during_a_lease_disturbs_it_not(tcp_server: Callable[..., Any]) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.send_all(b"all there is")

    async with tcp_server(handler) as port, trioconn.TCPConnector() as connector:
        async with await connector.connect(f"tcp://127.0.0.1:{port}") as lease:
            await trio.sleep(0.05)
            assert not lease.closed
            assert await lease.stream.receive_some() == b"all there is"
            assert await lease.stream.receive_some() == b""
            lease.release()
        assert connector.statistics().closed == {"server closed": 1}


@pytest.mark.case("httpcore#182")
async def test_fd_numbers_above_1023(tcp_server: Callable[..., Any]) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limit of descriptors to raise")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1300:
        pytest.skip("this system allows no more than 1023 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
    fillers: list[socket.socket] = []
    try:
        while not fillers or fillers[-1].fileno() < 1100:
            fillers.append(socket.socket())
        async with tcp_server() as port, trioconn.TCPConnector() as connector:
            for n in range(3):
                async with await connector.connect(f"tcp://127.0.0.1:{port}") as lease:
                    assert lease.stream.fileno() > 1023 and lease.reused == (n > 0)
                    await lease.stream.send_all(b"x")
                    assert await lease.stream.receive_some() == b"x"
                    lease.release()
    finally:
        for filler in fillers:
            filler.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.case("lua-nginx-module#2356")
@pytest.mark.case("trio#819")
@pytest.mark.aiohttp("release_ssl_transport")
async def test_readable_but_healthy(threaded_tls_server: Callable[..., Any], client_ssl: ssl.SSLContext) -> None:
    """TLS 1.3 tickets lie in the socket of a connection that nobody has used yet."""
    server = threaded_tls_server()
    async with trioconn.TCPConnector(ssl=client_ssl) as connector:
        await connector.prewarm(f"tls://localhost:{server.port}", 1)
        await trio.sleep(0.1)  # the tickets of a real server come when they come
        async with await connector.connect(f"tls://localhost:{server.port}") as lease:
            assert lease.info.number == 1 and lease.uses == 1
            await lease.stream.send_all(b"x")
            assert await lease.stream.receive_some() == b"x"
            lease.release()
        async with connector.connect_nowait(f"tls://localhost:{server.port}") as lease:
            assert lease.info.number == 1
    assert server.accepted == 1


@pytest.mark.case("trio#198")
async def test_a_cancelled_send_spoils_the_connection(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    async with scripted(capacity=3) as connector:
        lease = await connector.connect(A)
        with trio.move_on_after(1):
            await lease.stream.send_all(b"more than fits")
        lease.release()
        assert counts(connector) == (0, 0, 0, 0) and connector.statistics().closed == {"error": 1}


@pytest.mark.case("trio#198")
async def test_a_cancelled_send_over_tls_spoils_the_connection(
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    server_ssl: Callable[..., ssl.SSLContext],
    client_ssl: ssl.SSLContext,
) -> None:
    async def handshake_only(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.do_handshake()
        await trio.sleep_forever()

    network = FakeNetwork(nursery)
    network.add_host("a.example.test", "192.0.2.1")
    network.listen("192.0.2.1", handshake_only, tls=server_ssl())
    async with network.connector(ssl=client_ssl) as connector:
        lease = await connector.connect("tls://a.example.test:1")
        with trio.move_on_after(1):
            await lease.stream.send_all(bytes(10**7))
        lease.release()
        assert connector.statistics().open == 0
    check_clean(connector)
    nursery.cancel_scope.cancel()


async def test_prewarmed_connections_expire_too(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(Succeed(after=1)) as connector:
        await connector.prewarm(A, 3)
        assert counts(connector) == (0, 3, 0, 0)
        await trio.sleep(15)
        await settle()
        assert counts(connector) == (0, 0, 0, 0)


def test_idle_connections_of_one_host_do_not_keep_another_waiting() -> None:
    """Rule 4c: closed for another once it was idle as long as its dial took, at most half a second."""

    async def main() -> None:
        async with ScriptedConnector(Succeed(after=0.2), limit=1) as connector:
            (await connector.connect(A)).release()
            start = trio.current_time()
            (await connector.connect(B)).release()
            assert trio.current_time() - start == pytest.approx(0.4)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
