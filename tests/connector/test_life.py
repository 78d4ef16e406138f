"""A connector is entered once, by one run, and leaves nothing behind whatever happens inside."""

from __future__ import annotations

import contextvars
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn.testing import Fail, FakeNetwork, Hang, ScriptedConnector, Succeed

from .common import A, B, check_clean, counts, settle

Scripted = Callable[..., Any]


# ---- not entered, entered twice, elsewhere ---------------------------------------------------------------------------


USES: list[Callable[[trioconn.BaseConnector], Any]] = [
    lambda connector: connector.connect(A),
    lambda connector: connector.prewarm(A, 1),
    lambda connector: connector.aclose(),
]


@pytest.mark.aiohttp("release_not_started")
@pytest.mark.aiohttp("release_not_opened")
@pytest.mark.parametrize("use", USES)
async def test_not_entered(use: Callable[[trioconn.BaseConnector], Awaitable[object]]) -> None:
    connector = ScriptedConnector()
    with pytest.raises(RuntimeError, match="not entered"):
        await use(connector)
    with pytest.raises(RuntimeError, match="not entered"):
        connector.connect_nowait(A)
    with pytest.raises(RuntimeError, match="not entered"):
        connector.leases()
    assert not connector.closed and "not entered" in repr(connector)
    connector.route(A)  # planning is no I/O


@pytest.mark.aiohttp("del_empty_connector")
def test_made_outside_of_trio_and_never_entered() -> None:
    connector = ScriptedConnector()
    assert connector.statistics().open == 0
    del connector


@pytest.mark.aiohttp("async_context_manager")
async def test_entered_twice(scripted: Scripted) -> None:
    async with scripted() as connector:
        assert not connector.closed
        with pytest.raises(RuntimeError, match="once"):
            await connector.__aenter__()
        (await connector.connect(A)).release()
    assert connector.closed
    with pytest.raises(RuntimeError, match="once"):
        async with connector:
            pytest.fail("entered")


@pytest.mark.case("httpx#2473")
@pytest.mark.aiohttp("connector_multiple_event_loop")
@pytest.mark.parametrize("use", USES)
def test_second_run(use: Callable[[trioconn.BaseConnector], Awaitable[object]]) -> None:
    connector = ScriptedConnector()

    async def first() -> None:
        async with connector:
            (await connector.connect(A)).release()
        check_clean(connector)  # what the second run cannot reach is closed already

    async def second() -> None:
        with pytest.raises(RuntimeError, match="another trio run"):
            await use(connector)
        with pytest.raises(RuntimeError, match="another trio run"):
            connector.connect_nowait(A)

    trio.run(first)
    trio.run(second)


async def test_other_thread(scripted: Scripted) -> None:
    async with scripted() as connector:
        (await connector.connect(A)).release()

        def elsewhere() -> None:
            with pytest.raises(RuntimeError):
                connector.connect_nowait(A)

            async def run() -> None:
                with pytest.raises(RuntimeError, match="another trio run or thread"):
                    await connector.connect(A)

            trio.run(run)

        await trio.to_thread.run_sync(elsewhere)
        assert counts(connector) == (0, 1, 0, 0)


# ---- what other libraries have and this has not ----------------------------------------------------------------------


@pytest.mark.aiohttp("ctor_with_default_loop")
@pytest.mark.aiohttp("named_pipe_connector_wrong_loop")
def test_no_synchronous_life() -> None:
    connector = ScriptedConnector()
    with pytest.raises(TypeError, match="async with"), connector:  # type: ignore[attr-defined]
        pass
    with pytest.raises(AttributeError, match=r"await connector\.aclose"):
        _ = connector.close  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = connector.nonsense  # type: ignore[attr-defined]
    for cls in (trioconn.BaseConnector, trioconn.TCPConnector):
        with pytest.raises(TypeError, match=r"loop.*trio run"):
            cls(loop=None)
        with pytest.raises(TypeError, match="nonsense"):
            cls(nonsense=1)


@pytest.mark.aiohttp("tcp_connector_allowed_protocols")
@pytest.mark.aiohttp("default_force_close")
@pytest.mark.aiohttp("limit_property_default")
@pytest.mark.aiohttp("limit_per_host_property_default")
def test_defaults() -> None:
    connector = ScriptedConnector()
    assert connector.limit == 100 and connector.limit_per_host == 0 and connector.force_close is False
    assert trioconn.BaseConnector.schemes >= {"http", "https", "ws", "wss", "tcp", "tls"}


@pytest.mark.aiohttp("limit_property")
@pytest.mark.aiohttp("limit_per_host_property")
@pytest.mark.aiohttp("tcp_connector_ctor")
def test_properties() -> None:
    connector = ScriptedConnector(limit=15, limit_per_host=3, force_close=True)
    assert (connector.limit, connector.limit_per_host, connector.force_close) == (15, 3, True)
    assert ScriptedConnector(limit=None, limit_per_host=None).limit == 0
    for name in ("limit", "limit_per_host", "force_close", "closed"):
        with pytest.raises(AttributeError):
            setattr(connector, name, 1)


@pytest.mark.aiohttp("force_close_and_explicit_keep_alive")
@pytest.mark.aiohttp("client_timeout_total_zero_raises")
@pytest.mark.aiohttp("client_timeout_total_none_is_valid")
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({name: value}, error)
        for name, rows in {
            "limit": [(-1, ValueError), (1.5, TypeError), ("1", TypeError), (True, TypeError)],
            "limit_per_host": [(-1, ValueError), (math.nan, ValueError)],
            "keepalive_timeout": [(-1, ValueError), (math.nan, ValueError), ("1", TypeError), (True, TypeError)],
            "connect_timeout": [(-0.1, ValueError), (math.nan, ValueError), ([], TypeError)],
            "timeout_ceil_threshold": [(-1, ValueError), (math.nan, ValueError), (None, TypeError)],
            "max_lifetime": [(-1, ValueError), (math.nan, ValueError)],
            "lifetime_jitter": [(-0.1, ValueError), (1.1, ValueError), (math.nan, ValueError), (None, TypeError)],
            "max_uses": [(0, ValueError), (-1, ValueError), (2.0, TypeError)],
            "observers": [([1], TypeError), (print, TypeError)],
        }.items()
        for value, error in rows
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        ScriptedConnector(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"keepalive_timeout": None},
        {"keepalive_timeout": 0},
        {"keepalive_timeout": math.inf},
        {"connect_timeout": None},
        {"max_lifetime": None, "lifetime_jitter": 1},
        {"limit": 0, "limit_per_host": 10},
        {"force_close": True, "keepalive_timeout": 5},
    ],
    ids=str,
)
async def test_good_options(options: dict[str, Any], scripted: Scripted) -> None:
    async with scripted(**options) as connector:
        (await connector.connect(A)).release()


async def test_create_stream_has_to_be_written() -> None:
    async with trioconn.BaseConnector() as connector:
        with pytest.raises(NotImplementedError, match="BaseConnector must implement create_stream"):
            await connector.connect(A)


# ---- the body's exceptions -------------------------------------------------------------------------------------------


@pytest.mark.case("trio-websocket#187")
@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
async def test_the_body_s_exception_comes_out_bare(error: BaseException) -> None:
    connector = ScriptedConnector([Succeed(), Hang()])
    async with trio.open_nursery() as nursery:
        with pytest.raises(type(error)) as caught:  # noqa: PT012 - the block is what is tested
            async with connector:
                lease = await connector.connect(A)
                nursery.start_soon(use_until_closed, connector)
                await settle()
                raise error
    assert caught.value is error and lease.closed
    check_clean(connector)


async def use_until_closed(connector: trioconn.BaseConnector) -> None:
    try:
        await connector.connect(B)
    except trioconn.ConnectorClosedError:
        pass


@pytest.mark.case("trio-websocket#187")
async def test_a_group_that_the_body_raises_comes_out_as_it_is() -> None:
    group = BaseExceptionGroup("mine", [ValueError("one"), KeyboardInterrupt()])
    connector = ScriptedConnector()
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the block is what is tested
        async with connector:
            await connector.prewarm(A, 2)
            raise group
    assert caught.value is group and group.__context__ is None
    check_clean(connector)


@pytest.mark.case("httpcore#564")
async def test_a_cancelled_body_gives_a_cancellation_and_nothing_else(autojump_clock: trio.testing.MockClock) -> None:
    connector = ScriptedConnector([Succeed(), Hang()])
    with trio.move_on_after(1) as scope:
        async with connector:
            lease = await connector.connect(A)
            with pytest.raises(trio.Cancelled):
                await connector.connect(B)
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught and lease.closed
    check_clean(connector)


@pytest.mark.case("trio-websocket#187")
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (Fail(ConnectionRefusedError(111, "refused")), trioconn.ConnectError),
        (Fail(trioconn.ResolveError("no such name", stage="resolve")), trioconn.ResolveError),
        (Fail(ssl.SSLError(1, "handshake")), trioconn.ConnectError),
        (Fail(ValueError("mine")), ValueError),
        (Fail(KeyboardInterrupt()), KeyboardInterrupt),
    ],
)
async def test_failures_reach_who_waits_bare(script: Fail, expected: type[BaseException], scripted: Scripted) -> None:
    async with scripted(script) as connector:
        with pytest.raises(expected) as caught:
            await connector.connect(A)
        assert not isinstance(caught.value, BaseExceptionGroup)
        if isinstance(caught.value, OSError):
            assert caught.value.route == connector.route(A)
        assert counts(connector) == (0, 0, 0, 0)
        assert sum(connector.statistics().failed.values()) == 1


# ---- aclose ----------------------------------------------------------------------------------------------------------


@pytest.mark.case("aiohttp#3736")
@pytest.mark.aiohttp("close")
@pytest.mark.aiohttp("close_twice")
@pytest.mark.aiohttp("close_with_acquired_connection")
@pytest.mark.aiohttp("close_abort_closed_transports")
@pytest.mark.aiohttp("close_logs_closed_waiter_exception")
@pytest.mark.aiohttp("tcp_connector_close_race_condition")
async def test_aclose_with_everything_under_way(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted([Succeed(), Succeed(), Hang()], limit=3) as connector:
        leased, idle = await connector.connect(A), await connector.connect(A)
        idle.release()
        errors: list[BaseException] = []

        async def wait(target: str) -> None:
            with pytest.raises(trioconn.ConnectorClosedError) as caught:
                await connector.connect(target)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            taken = connector.connect_nowait(A)
            for target in (B, B, A):
                nursery.start_soon(wait, target)
                await settle()
            assert counts(connector) == (2, 0, 1, 3)
            taken.release()  # to the one who waits for A … which is then closed with the rest
            await connector.aclose()
            assert connector.closed and connector.statistics().open == 0 and not connector.open_streams
        assert len(errors) == 3
        assert len({id(error) for error in errors}) == len(errors)
        assert all(isinstance(error, trio.ClosedResourceError) for error in errors)
        assert leased.closed and taken.closed
        leased.release()
        assert connector.statistics().closed["closed"] == 2
        await trio.sleep(1)  # the body goes on
        for use in USES[:2]:
            with pytest.raises(trioconn.ConnectorClosedError):
                await use(connector)
        with pytest.raises(trioconn.ConnectorClosedError):
            connector.connect_nowait(A)
        await connector.aclose()
        await connector.aclose(abort_ssl=True)
    await connector.aclose()  # and after the block, too


@pytest.mark.case("aiohttp#3736")
async def test_what_was_granted_and_then_closed_before_its_waiter_ran(scripted: Scripted) -> None:
    async with scripted(limit=1) as connector, trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trioconn.ConnectorClosedError):
                await connector.connect(A)

        lease = await connector.connect(A)
        nursery.start_soon(wait)
        await settle()
        lease.release()
        assert counts(connector) == (1, 0, 0, 0)  # it is the waiter's already
        await connector.aclose()


@pytest.mark.aiohttp("close_during_connect")
@pytest.mark.parametrize("stubborn", [False, True])
async def test_close_during_dial(stubborn: bool, autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    start = trio.current_time()
    async with scripted(Succeed(after=3, stubborn=stubborn)) as connector, trio.open_nursery() as nursery:
        nursery.start_soon(use_until_closed, connector)
        await settle()
        await connector.aclose()
        # It waits for the end of the attempt, whatever it takes; what that made is closed.
        assert trio.current_time() - start == (3 if stubborn else 0)
        assert connector.statistics().connecting == 0 and not connector.open_streams
        assert connector.statistics().closed == ({"closed": 1} if stubborn else {})


async def test_leaving_the_block_waits_for_a_stubborn_dial(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    start = trio.current_time()
    with trio.move_on_after(1):
        async with scripted(Succeed(after=3, stubborn=True)) as connector:
            await connector.connect(A)
    assert trio.current_time() - start == 3


async def test_close_during_lookup(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    network = FakeNetwork(nursery)
    network.add_host("a.test", "192.0.2.1", after=5)
    start = trio.current_time()
    async with network.connector() as connector, trio.open_nursery() as inner:
        inner.start_soon(use_until_closed_at, connector, "tcp://a.test:1")
        await trio.sleep(1)
        await connector.aclose()
        assert trio.current_time() - start == 1
    check_clean(connector)


async def use_until_closed_at(connector: trioconn.BaseConnector, target: str) -> None:
    with pytest.raises(trioconn.ConnectorClosedError):
        await connector.connect(target)


@pytest.mark.aiohttp("tcp_connector_close_abort_ssl_connections_in_conns")
@pytest.mark.parametrize("abort", [False, True])
async def test_a_cancelled_aclose_closes_all_the_same(
    abort: bool,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    server_ssl: Callable[..., ssl.SSLContext],
    client_ssl: ssl.SSLContext,
    no_fd_leak: None,
) -> None:
    """Idle and leased TLS connections whose peers do not answer a close_notify."""
    async with mute_tls(nursery, server_ssl(), client_ssl, ssl_shutdown_timeout=10) as connector:
        leases = [await connector.connect("tls://a.example.test:1") for _ in range(3)]
        leases[0].release()
        start = trio.current_time()
        with trio.move_on_after(2) as scope:
            await connector.aclose(abort_ssl=abort)
        assert scope.cancelled_caught == (not abort)
        assert trio.current_time() - start == (0 if abort else 2)
        assert connector.closed and connector.statistics().open == 0
        await settle()
        assert not connector._shell.crew.busy  # the farewells were cut short with it
    assert trio.current_time() - start == (0 if abort else 2)


@pytest.mark.aiohttp("tcp_connector_ssl_shutdown_timeout_zero_not_passed")
@pytest.mark.aiohttp("tcp_connector_ssl_shutdown_timeout_nonzero_passed")
@pytest.mark.aiohttp("tcp_connector_ssl_shutdown_timeout_passed_to_create_connection")
@pytest.mark.aiohttp("tcp_connector_close_abort_ssl_when_shutdown_timeout_zero")
@pytest.mark.aiohttp("tcp_connector_ssl_shutdown_timeout")
@pytest.mark.aiohttp("cleanup_closed")
@pytest.mark.aiohttp("cleanup_closed_disabled")
@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({}, 0.25),
        ({"ssl_shutdown_timeout": 10}, 10),
        ({"ssl_shutdown_timeout": 0}, 0),
        ({"ssl_shutdown_timeout": None}, 0),
        ({"ssl_shutdown_timeout": 10, "enable_cleanup_closed": True}, 2),
        ({"ssl_shutdown_timeout": 1, "enable_cleanup_closed": True}, 1),
    ],
)
@pytest.mark.parametrize("way", ["aclose", "leave", "lease", "shielded"])
async def test_mute_tls_peers_get_the_grace_all_at_once(
    options: dict[str, Any],
    seconds: float,
    way: str,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    server_ssl: Callable[..., ssl.SSLContext],
    client_ssl: ssl.SSLContext,
    no_fd_leak: None,
) -> None:
    async with mute_tls(nursery, server_ssl(), client_ssl, **options) as connector:
        leases = [await connector.connect("tls://a.example.test:1") for _ in range(3)]
        start = trio.current_time()
        if way == "lease":
            await leases[0].aclose()
            assert trio.current_time() - start == pytest.approx(seconds)
            assert connector.statistics().leased == 2
            start = trio.current_time()
        for lease in leases[1:2]:
            lease.release()
        if way == "aclose":
            await connector.aclose()
            assert trio.current_time() - start == pytest.approx(seconds)
        if way == "shielded":
            with trio.CancelScope(shield=True):
                await connector.aclose()
            assert trio.current_time() - start == pytest.approx(seconds)
        for lease in leases:
            lease.close()
        start = trio.current_time() if way != "leave" else start
    if way == "leave":
        assert trio.current_time() - start == pytest.approx(seconds)


@asynccontextmanager
async def mute_tls(
    nursery: trio.Nursery, server: ssl.SSLContext, client: ssl.SSLContext, **options: Any
) -> AsyncIterator[trioconn.TCPConnector]:
    """A connector in a network whose TLS peers never say close_notify; ends clean."""

    async def handshake_only(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.do_handshake()
        await trio.sleep_forever()

    network = FakeNetwork(nursery)
    network.add_host("a.example.test", "192.0.2.1")
    network.listen("192.0.2.1", handshake_only, tls=server)
    async with network.connector(ssl=client, **options) as connector:
        yield connector
    check_clean(connector)
    for peer in network.peers:
        await trio.aclose_forcefully(peer)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await settle()


# ---- contexts, idleness, statistics ----------------------------------------------------------------------------------


async def test_attempts_run_in_the_context_of_whoever_entered(scripted: Scripted) -> None:
    variable = contextvars.ContextVar("variable", default="nobody")
    seen: list[str] = []

    def script(route: trioconn.Route) -> Succeed:
        seen.append(variable.get())
        return Succeed()

    async def protocol(stream: trio.abc.Stream, route: trioconn.Route) -> None:
        seen.append(variable.get())

    variable.set("who entered")
    async with scripted(script, protocol_factory=protocol) as connector:
        variable.set("who connects")
        (await connector.connect(A)).release()
        await connector.prewarm(A, 2)
    assert seen == ["who entered"] * 4


@pytest.mark.parametrize("keepalive", [None, math.inf])
async def test_no_tick(keepalive: float | None, scripted: Scripted, mock_clock: trio.testing.MockClock) -> None:
    """With nothing to come the run has no deadline at all: a periodic timer would make an autojump clock run."""
    async with scripted(keepalive_timeout=keepalive) as connector:
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf
        (await connector.connect(A)).release()
        await settle()
        assert counts(connector) == (0, 1, 0, 0)
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


async def test_the_only_deadline_is_the_next_real_one(scripted: Scripted, mock_clock: trio.testing.MockClock) -> None:
    async with scripted(keepalive_timeout=7) as connector:
        (await connector.connect(A)).release()
        await settle()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == 7
        mock_clock.jump(3)
        connector.connect_nowait(A).release()
        await settle()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline <= 7


async def test_statistics_and_repr(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    script = [
        Succeed(),
        Succeed(),
        Fail(trioconn.ResolveError("no", stage="resolve")),
        Fail(ValueError()),
        Hang(),
        Hang(),
    ]
    async with scripted(script, limit=3, limit_per_host=2, connect_timeout=None) as connector:
        one, two = await connector.connect(A), await connector.connect(A)
        two.release()
        for target in ("tcp://c.test:1", "tcp://d.test:1"):
            with pytest.raises((trioconn.ResolveError, ValueError)):
                await connector.connect(target)
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connector.connect, B)
                await trio.sleep(2)
                found = connector.statistics()
                assert (found.limit, found.limit_per_host) == (3, 2)
                assert (found.open, found.leased, found.idle, found.connecting) == (3, 1, 1, 1)
                assert found.waiting == 1 and found.oldest_wait == 2
                hosts = {name: (host.open, host.waiting, host.oldest_wait) for (name, *_), host in found.hosts.items()}
                assert hosts == {"a.test": (2, 0, 0), "b.test": (1, 1, 2)}
                assert repr(connector) == ("<ScriptedConnector, open: 1 leased, 1 idle, 1 connecting, 1 waiting>")
                with pytest.raises(AttributeError):
                    found.open = 1  # type: ignore[misc]
                await trio.sleep_forever()
        found = connector.statistics()
        assert (found.created, found.reused, found.aborted, found.oldest_wait) == (2, 0, 1, 0)
        assert found.failed == {"resolve": 1, "other": 1}
        connector.connect_nowait(A).close()
        assert connector.statistics().reused == 1 and connector.statistics().closed == {"not released": 1}
        one.close()
        with pytest.raises(TypeError):
            connector.statistics().closed["x"] = 1  # type: ignore[index]
    assert "closed: 0 leased" in repr(connector)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


async def test_every_way_through_every_public_function_is_a_checkpoint(scripted: Scripted) -> None:
    async with scripted([Succeed(), Succeed(), Fail(OSError(1, "no"))]) as connector:
        with trio.testing.assert_checkpoints():
            lease = await connector.connect(A)  # dialled
        lease.release()
        with trio.testing.assert_checkpoints():
            lease = await connector.connect(A)  # idle
        with trio.testing.assert_no_checkpoints():
            lease.release()
            lease = connector.connect_nowait(A)
        with trio.testing.assert_checkpoints():
            await lease.aclose()
        with trio.testing.assert_checkpoints():
            await lease.aclose()  # again
        with trio.testing.assert_checkpoints():
            await connector.prewarm(A, 1)
        with trio.testing.assert_checkpoints():
            await connector.prewarm(A, 1)  # nothing to do
        with trio.testing.assert_checkpoints(), pytest.raises(trioconn.ConnectError):
            await connector.connect(B)
        lease = await connector.connect(A)
        stream = lease.stream
        lease.close()
        for use in (stream.receive_some, stream.wait_send_all_might_not_block, stream.send_eof):  # type: ignore[attr-defined]
            with trio.testing.assert_checkpoints(), pytest.raises(trio.ClosedResourceError):
                await use()
        with trio.testing.assert_checkpoints(), pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
        with trio.testing.assert_checkpoints():
            await stream.aclose()
        with trio.testing.assert_checkpoints():
            await connector.aclose()
        with trio.testing.assert_checkpoints():
            await connector.aclose()


async def test_every_public_function_is_a_cancel_point(scripted: Scripted) -> None:
    async with scripted() as connector:
        (await connector.connect(A)).release()
        for use in (lambda: connector.connect(A), lambda: connector.connect(B), lambda: connector.prewarm(A, 1)):
            with trio.CancelScope() as scope:
                scope.cancel()
                await use()
            assert scope.cancelled_caught
        assert counts(connector) == (0, 1, 0, 0) and connector.dials == 1


@pytest.mark.aiohttp("close_cancels_cleanup_handle")
@pytest.mark.aiohttp("close_cancels_resolve_host")
async def test_two_close_at_the_same_time(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(Succeed(after=3, stubborn=True)) as connector, trio.open_nursery() as nursery:
        start = trio.current_time()
        nursery.start_soon(use_until_closed, connector)
        await settle()
        ends: list[float] = []

        async def close() -> None:
            await connector.aclose()
            ends.append(trio.current_time() - start)

        nursery.start_soon(close)
        await trio.sleep(1)
        nursery.start_soon(close)
        await trio.sleep(4)
        assert ends == [3, 3]  # both wait for the end


async def test_closed_from_another_task_while_the_block_is_left(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    async with trio.open_nursery() as nursery, scripted(Succeed(after=3, stubborn=True)) as connector:
        nursery.start_soon(use_until_closed, connector)
        await settle()
        nursery.start_soon(connector.aclose)


@pytest.mark.case("anyio#432")
async def test_cancelled_in_a_race_of_three(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, no_fd_leak: None
) -> None:
    network = FakeNetwork(nursery)
    network.add_host("a.test", "192.0.2.1", "192.0.2.2", "2001:db8::1")
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1"):
        network.blackhole(address)
    async with network.connector() as connector:
        with trio.move_on_after(5) as scope:
            with pytest.raises(trio.Cancelled):  # and no group
                await connector.connect("tcp://a.test:1")
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught and len(network.dialled) == 3
        await settle()
        assert counts(connector) == (0, 0, 0, 0)
    check_clean(connector)


async def test_success_and_timeout_in_one_tick(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    for _ in range(20):
        async with scripted(Succeed(after=3), connect_timeout=3) as connector:
            try:
                (await connector.connect(A)).release()
            except trioconn.ConnectTimeoutError:
                assert not connector.open_streams
            found = connector.statistics()
            assert found.idle == found.created == len(connector.streams) and found.open == found.idle


async def test_success_and_close_in_one_tick(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    for _ in range(20):
        async with scripted(Succeed(after=3)) as connector, trio.open_nursery() as nursery:

            async def use() -> None:
                try:
                    (await connector.connect(A)).release()
                except trioconn.ConnectorClosedError:
                    pass

            nursery.start_soon(use)
            await trio.sleep(3)
            await connector.aclose()
            assert not connector.open_streams
