"""Cancelled at every step, interrupted at every few lines: nothing is left behind.

The garbage collector is off in the cancellation sweeps, and a ResourceWarning is an error: what is not closed shows.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn.testing import ConnectProxy, Fail, FakeNetwork, ScriptedConnector, Succeed

from .common import A, B, check_clean, settle
from .sweep import Cutter, cancel_everywhere, interrupt_everywhere

SLOW = Succeed(after=1)

Victim = Callable[[ScriptedConnector], Awaitable[None]]


async def dial(connector: ScriptedConnector) -> None:
    async with await connector.connect(A) as lease:
        await lease.stream.send_all(b"x")
        lease.release()


async def close_politely(connector: ScriptedConnector) -> None:
    lease = await connector.connect(A)
    await lease.aclose()


async def queue(connector: ScriptedConnector) -> None:
    """The one slot is leased and released while two others wait."""
    async with await connector.connect(A) as first, trio.open_nursery() as nursery:

        async def use() -> None:
            async with await connector.connect(A) as lease:
                await trio.sleep(1)
                lease.release()

        nursery.start_soon(use)
        nursery.start_soon(use)
        await trio.sleep(1)
        first.release()


async def two_hosts(connector: ScriptedConnector) -> None:
    """A connection of one host is closed for another, as rule 4 says."""
    lease = await connector.connect(A)
    lease.release()
    async with await connector.connect(B):
        pass


async def bounced(connector: ScriptedConnector) -> None:
    """What was granted is dirty by the time that the waiter resumes."""

    async def use() -> None:
        async with await connector.connect(A) as lease:
            lease.release()

    async with await connector.connect(A) as lease, trio.open_nursery() as nursery:
        nursery.start_soon(use)
        await settle()
        lease.release()
        connector.peers[-1].send_nowait(b"stray")


async def warm_up(connector: ScriptedConnector) -> None:
    await connector.prewarm(A, 1)


async def shut_down(connector: ScriptedConnector) -> None:
    """With a lease, and a waiter or an attempt."""

    async def use() -> None:
        try:
            async with await connector.connect(B):
                pass
        except trioconn.ConnectorClosedError:
            pass

    async with await connector.connect(A), trio.open_nursery() as nursery:
        nursery.start_soon(use)
        await settle()
        await connector.aclose()


@pytest.mark.parametrize("victim", [dial, close_politely, queue, two_hosts, bounced, warm_up, shut_down])
@pytest.mark.parametrize("script", [SLOW, Succeed(), Succeed(after=1, stubborn=True)])
def test_cancelled_at_every_step(victim: Victim, script: Succeed) -> None:
    async def scenario(cutter: Cutter) -> None:
        async with ScriptedConnector(script, limit=1) as connector:
            with cutter.armed():
                await victim(connector)
            await settle()
            statistics = connector.statistics()
            assert not statistics.leased and not statistics.waiting
            if not connector.closed:  # the slot is there for others
                with trio.fail_after(3):
                    (await connector.connect(B)).release()
                assert connector.statistics().open <= 1
            assert connector.most_open == 1
        check_clean(connector)

    cancel_everywhere(scenario)


@pytest.mark.parametrize("script", [SLOW, Fail(OSError(111, "refused"), after=1)])
def test_the_whole_connector_cancelled_at_every_step(script: Succeed | Fail) -> None:
    connectors: list[ScriptedConnector] = []

    async def scenario(cutter: Cutter) -> None:
        connector = ScriptedConnector(script, limit=2)
        connectors.append(connector)

        async def use(n: int) -> None:
            try:
                async with await connector.connect([A, B][n % 2]) as lease:
                    await trio.sleep(1)
                    lease.release()
            except trioconn.ConnectorError:
                pass

        with cutter.armed():
            async with connector, trio.open_nursery() as nursery:
                for n in range(5):
                    nursery.start_soon(use, n)
        if connector._shell.crew.nursery is not None:
            check_clean(connector)

    cancel_everywhere(scenario)


@asynccontextmanager
async def tls_network(server: ssl.SSLContext, client: ssl.SSLContext) -> AsyncIterator[Any]:
    async with trio.open_nursery() as nursery:
        network = FakeNetwork(nursery)
        network.add_host("a.example.test", "192.0.2.1", "2001:db8::1")
        network.add_host("proxy.example.test", "192.0.2.9")
        network.listen("192.0.2.1", tls=server, after=0.5)
        network.listen("2001:db8::1", tls=server, after=0.5)  # two win in one tick, or nearly so

        async def origin(stream: trio.abc.Stream) -> None:
            secured = trio.SSLStream(stream, server, server_side=True)
            try:
                async for data in secured:
                    await secured.send_all(data)
            except trio.BrokenResourceError:
                pass

        network.listen("192.0.2.9", ConnectProxy(tunnel=origin), tls=server)
        yield network
        nursery.cancel_scope.cancel()


@pytest.mark.case("trio#809")
@pytest.mark.case("httpcore#443")
@pytest.mark.parametrize("proxy", [None, "https://proxy.example.test:3128"])
def test_tcp_and_tls_cancelled_at_every_step(
    proxy: str | None,
    server_ssl: Callable[..., ssl.SSLContext],
    client_ssl: ssl.SSLContext,
    count_fds: Callable[[], int],
) -> None:
    server = server_ssl()

    async def scenario(cutter: Cutter) -> None:
        async with tls_network(server, client_ssl) as network:
            connector = network.connector(
                ssl=client_ssl, proxy=proxy and trioconn.Proxy(proxy, ssl=client_ssl), limit=1
            )
            before = count_fds()
            with cutter.armed():
                async with connector:
                    async with await connector.connect("tls://a.example.test:443") as lease:
                        await lease.stream.send_all(b"x")
                        assert await lease.stream.receive_some() == b"x"
                        lease.release()
                    lease = await connector.connect("tls://a.example.test:443")
                    await lease.aclose()
            if connector._shell.crew.nursery is not None:
                check_clean(connector)
            await settle()
            for peer in network.peers:
                await trio.aclose_forcefully(peer)
            await settle()
            assert count_fds() <= before
        assert not trio.to_thread.current_default_thread_limiter().borrowed_tokens

    cancel_everywhere(scenario, seeds=(1,))


def test_real_tcp_and_tls_cancelled_at_every_step(
    threaded_tls_server: Callable[..., Any], client_ssl: ssl.SSLContext, count_fds: Callable[[], int]
) -> None:
    server = threaded_tls_server()
    before = count_fds()

    async def scenario(cutter: Cutter) -> None:
        connector = trioconn.TCPConnector(ssl=client_ssl, limit=1)
        with cutter.armed():
            async with connector:
                async with await connector.connect(f"tls://localhost:{server.port}") as lease:
                    await lease.stream.send_all(b"x")
                    assert await lease.stream.receive_some() == b"x"
                    lease.release()
                lease = await connector.connect(f"tls://localhost:{server.port}")
                await lease.aclose()
        check_clean(connector)
        assert not trio.to_thread.current_default_thread_limiter().borrowed_tokens

    cancel_everywhere(scenario, seeds=(1,), virtual=False)
    with server._lock:
        servers = len(server._open)
    assert count_fds() <= before + servers


async def everything(connector: ScriptedConnector) -> None:
    """Most of what a connector does: dials, releases, closes, waiters, evictions, expiry, prewarm, a failed dial."""
    await connector.prewarm(A, 1)

    async def use(target: str) -> None:
        for _ in range(2):
            try:
                async with await connector.connect(target) as lease:
                    await lease.stream.send_all(b"x")
                    lease.release()
            except trioconn.ConnectError:
                pass

    async with trio.open_nursery() as nursery:
        for target in (A, B, A, "tcp://dead.test:1"):
            nursery.start_soon(use, target)
    async with await connector.connect(A) as lease:
        await lease.aclose()
    try:
        connector.connect_nowait(B).close()
    except trio.WouldBlock:
        pass
    await trio.sleep(20)


@pytest.mark.filterwarnings("ignore:the lease of a connection:ResourceWarning")
@pytest.mark.parametrize("closing", [False, True])
def test_keyboard_interrupt_inside_a_pool_operation(closing: bool) -> None:
    def script(route: trioconn.Route) -> Succeed | Fail:
        return Fail(OSError(111, "refused"), after=1) if route.host == "dead.test" else SLOW

    connectors: list[ScriptedConnector] = []
    told: list[Any] = []

    async def scenario() -> None:
        connector = ScriptedConnector(script, limit=2, observers=[told.append], connect_timeout=3)
        connectors.append(connector)
        async with connector:
            await everything(connector)
            if closing:
                await connector.aclose()

    def check() -> None:
        connector = connectors.pop() if connectors else None
        if connector is not None and connector._shell.crew.nursery is not None:
            assert not connector._shell.crew.nursery.child_tasks
            assert not connector.open_streams and not connector.dialling
            assert connector._shell.closed and not connector._shell.pool.open and not connector._shell.pool.waiting

    hits = interrupt_everywhere(scenario, check, stride=67)
    assert hits > 20
