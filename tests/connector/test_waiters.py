"""Acquiring under limits: nobody is forgotten, nothing is taken twice, and the limits hold."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import outcome
import pytest
import trio
import trio.testing

import trioconn
from trioconn._alarm import Impatience
from trioconn.testing import Fail, FakeNetwork, Hang, Succeed

from .common import A, B, check_clean, counts, settle

Scripted = Callable[..., Any]
REFUSED = Fail(ConnectionRefusedError(111, "refused"))


class Caller:
    """A task that wants a connection, and what became of it."""

    def __init__(self, connector: trioconn.BaseConnector, nursery: trio.Nursery, target: str = A) -> None:
        self.scope = trio.CancelScope()
        self.lease: trioconn.Connection | None = None
        self.error: BaseException | None = None
        self.ended = False
        nursery.start_soon(self._run, connector, target)

    async def _run(self, connector: trioconn.BaseConnector, target: str) -> None:
        with self.scope:
            try:
                self.lease = await connector.connect(target)
            except (trioconn.ConnectorError, ValueError) as error:
                self.error = error
        self.ended = True


async def call(connector: trioconn.BaseConnector, nursery: trio.Nursery, target: str = A) -> Caller:
    """A caller that is queued, or served, already."""
    caller = Caller(connector, nursery, target)
    await settle()
    return caller


def got(caller: Caller) -> trioconn.Connection:
    assert caller.lease is not None
    return caller.lease


@pytest.mark.case("aiohttp#2937")
@pytest.mark.case("httpcore#1093")
@pytest.mark.case("aiohttp#9670")
@pytest.mark.aiohttp("cancelled_waiter")
@pytest.mark.aiohttp("release_waiter_skip_done_waiter")
async def test_granted_then_cancelled(scripted: Scripted) -> None:
    """In one tick: the head of the queue is granted the connection, then cancelled.

    trio lets it have what it was granted and cancels it at its next checkpoint; the next waiter must get the slot.
    """
    async with scripted(limit=1) as connector, trio.open_nursery() as nursery:
        lease = await connector.connect(A)
        scope = trio.CancelScope()

        async def use() -> None:
            with scope:
                async with await connector.connect(A) as lease:
                    await trio.lowlevel.checkpoint()
                    lease.release()

        nursery.start_soon(use)
        await settle()
        second = await call(connector, nursery)
        lease.release()
        scope.cancel()
        await settle()
        assert scope.cancelled_caught
        got(second).release()
        assert connector.statistics().closed == {"cancelled": 1}
        assert counts(connector) == (0, 1, 0, 0)


@pytest.mark.case("anyio#1145")
@pytest.mark.aiohttp("cancellation_during_waiting_for_free_connection")
@pytest.mark.aiohttp("connect_with_limit_cancelled")
async def test_cancelled_then_granted(scripted: Scripted) -> None:
    async with scripted(limit=1) as connector, trio.open_nursery() as nursery:
        lease = await connector.connect(A)
        first, second = [await call(connector, nursery) for _ in range(2)]
        first.scope.cancel()
        lease.release()
        await settle()
        assert first.scope.cancelled_caught and got(second).reused and connector.dials == 1
        got(second).close()


@pytest.mark.case("aiohttp#9670")
@pytest.mark.case("httpcore#550")
async def test_a_waiter_times_out_in_the_moment_in_which_the_slot_frees(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    async with scripted(limit=1) as connector, trio.open_nursery() as nursery:
        lease = await connector.connect(A)

        async def impatient() -> None:
            with trio.move_on_after(1):
                (await connector.connect(A)).release()

        nursery.start_soon(impatient)
        await settle()
        second = await call(connector, nursery)
        await trio.sleep(1)
        lease.release()
        await settle()
        got(second).release()
        assert counts(connector) == (0, 1, 0, 0) and connector.dials == 1


@pytest.mark.case("httpcore#550")
async def test_no_time_to_wait(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(limit=1) as connector:
        with trio.move_on_after(0) as scope:
            await connector.connect(A)
        assert scope.cancelled_caught
        await settle()
        assert counts(connector)[0] == counts(connector)[3] == 0
        (await connector.connect(A)).release()
        with trio.move_on_after(0.001) as scope:  # an idle connection takes no time
            (await connector.connect(A)).release()
        assert not scope.cancelled_caught and connector.dials == 1


@pytest.mark.case("httpcore#1093")
async def test_cancelled_from_inside_the_release_path(scripted: Scripted) -> None:
    async with scripted(limit=1) as connector, trio.open_nursery() as nursery:
        lease = await connector.connect(A)
        other = await call(connector, nursery, B)
        lease.add_callback(other.scope.cancel)
        lease.close()  # B's dial starts, and B is cancelled by the callback
        await settle()
        assert other.scope.cancelled_caught
        with trio.fail_after(1):
            (await connector.connect(A)).release()


@pytest.mark.case("httpcore#785")
@pytest.mark.parametrize("limit", [1, 10])
async def test_a_hundred_cancelled_at_the_first_answer(
    limit: int, autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    async with scripted(Succeed(after=1), limit=limit) as connector:
        async with trio.open_nursery() as nursery:

            async def use() -> None:
                async with await connector.connect(A) as lease:
                    lease.release()
                    nursery.cancel_scope.cancel()

            for _ in range(100):
                nursery.start_soon(use)
        assert connector.statistics().leased == connector.statistics().waiting == 0
        with trio.fail_after(2):
            (await connector.connect(B)).release()


@pytest.mark.case("httpx#1461")
async def test_cancel_the_loser_of_a_race(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(limit=2) as connector:
        for _ in range(4):
            async with trio.open_nursery() as nursery:

                async def use(seconds: float, scope: trio.CancelScope) -> None:
                    async with await connector.connect(A) as lease:
                        await trio.sleep(seconds)
                        lease.release()
                    scope.cancel()

                nursery.start_soon(use, 1, nursery.cancel_scope)
                nursery.start_soon(use, 2, nursery.cancel_scope)
            assert counts(connector) == (0, 1, 0, 0)
        assert connector.statistics().closed == {"cancelled": 4}


@pytest.mark.case("aiohttp#835")
@pytest.mark.case("urllib3#644")
@pytest.mark.aiohttp("error_on_connection")
async def test_failures_free_their_slots(scripted: Scripted) -> None:
    async with scripted([*[REFUSED] * 3, Succeed()], limit=1) as connector:
        for _ in range(3):
            with pytest.raises(trioconn.ConnectError):
                await connector.connect(A)
        (await connector.connect(A)).release()
        assert connector.statistics().failed == {"connect": 3}


@pytest.mark.case("aiohttp#2189")
@pytest.mark.aiohttp("error_on_connection_with_cancelled_waiter")
async def test_two_wait_for_a_dead_host(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with (
        scripted(Fail(ConnectionRefusedError(111, "refused"), after=1), limit=1) as connector,
        trio.open_nursery() as nursery,
    ):
        cancelled = await call(connector, nursery)
        callers = [await call(connector, nursery) for _ in range(2)]
        cancelled.scope.cancel()
        await trio.sleep(3)
        assert all(isinstance(caller.error, trioconn.ConnectError) and caller.error.errno == 111 for caller in callers)
        assert counts(connector) == (0, 0, 0, 0)


async def test_one_exception_object_never_raised_in_two_tasks(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    """Rule 6: the second failure in a row refuses all who waited when its attempt began, each with its own."""
    error = trioconn.ConnectError("mine", errno=113)
    async with scripted([Fail(error, after=1)] * 2, limit=1) as connector, trio.open_nursery() as nursery:
        callers = [await call(connector, nursery) for _ in range(5)]
        await trio.sleep(3)
        errors = [caller.error for caller in callers]
        assert connector.dials == 2
        assert len({id(one) for one in errors}) == 5
        assert all(isinstance(one, trioconn.ConnectError) and one.errno == 113 for one in errors)
        assert all(str(one) == "mine" and one.route is not None for one in errors)  # type: ignore[union-attr]


@pytest.mark.case("aiohttp#4562")
@pytest.mark.aiohttp("release_waiter_first_available")
@pytest.mark.aiohttp("release_waiter_release_first")
@pytest.mark.aiohttp("release_waiter_no_available")
@pytest.mark.aiohttp("connect_with_limit")
async def test_first_in_first_out(scripted: Scripted) -> None:
    async with scripted(limit=2) as connector, trio.open_nursery() as nursery:
        leases = [await connector.connect(A) for _ in range(2)]
        callers = [await call(connector, nursery) for _ in range(3)]
        leases[1].release()
        leases[0].release()
        await settle()
        assert [caller.ended for caller in callers] == [True, True, False]
        assert got(callers[0]).info.number == 2 and got(callers[1]).info.number == 1
        got(callers[0]).release()
        await settle()
        got(callers[2]).release()
        got(callers[1]).release()
        assert connector.dials == 2


@pytest.mark.case("aiohttp#4936")
@pytest.mark.case("go#32336")
@pytest.mark.aiohttp("connect_with_limit_concurrent")
@pytest.mark.aiohttp("connect_with_limit_and_limit_per_host")
@pytest.mark.aiohttp("connect_with_no_limit_and_limit_per_host")
@pytest.mark.aiohttp("available_connections_with_limit_per_host")
@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"limit": 1}, 1),
        ({"limit": 5}, 5),
        ({"limit": 0, "limit_per_host": 2}, 4),
        ({"limit": 3, "limit_per_host": 2}, 3),
    ],
)
async def test_limits_hold(
    options: dict[str, Any], most: int, autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    async def slow(stream: trio.abc.Stream, route: trioconn.Route) -> None:
        for _ in range(3):  # between success and registration
            await trio.lowlevel.checkpoint()

    served = 0

    async def use(target: str, close: bool) -> None:
        nonlocal served
        async with await connector.connect(target) as lease:
            await trio.sleep(0.01)
            if not close:
                lease.release()
        served += 1

    async with scripted(Succeed(after=0.01), protocol_factory=slow, **options) as connector:
        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(use, [A, B][n % 2], n % 7 == 0)
        assert served == 100 and connector.most_open == most


@pytest.mark.aiohttp("connect_with_no_limits")
@pytest.mark.aiohttp("available_connections_no_limits")
@pytest.mark.aiohttp("release_waiter_no_limit")
@pytest.mark.parametrize("limit", [0, None])
async def test_no_limits(limit: int | None, scripted: Scripted) -> None:
    async with scripted(limit=limit) as connector:
        leases = [await connector.connect(A) for _ in range(150)]
        assert connector.statistics().leased == 150
        for lease in leases:
            lease.release()


@pytest.mark.aiohttp("release_waiter_per_host")
@pytest.mark.aiohttp("release_acquired_per_host1")
async def test_a_full_host_is_in_nobody_else_s_way(scripted: Scripted) -> None:
    async with scripted(limit=0, limit_per_host=1) as connector, trio.open_nursery() as nursery:
        a = await connector.connect(A)
        waits = await call(connector, nursery, A)
        b = await call(connector, nursery, B)
        assert got(b) and not waits.ended
        got(b).release()
        await settle()
        assert not waits.ended
        a.release()
        await settle()
        got(waits).release()


@pytest.mark.aiohttp("connect_with_capacity_release_waiters")
@pytest.mark.aiohttp("connect_waiters_cleanup")
@pytest.mark.aiohttp("connect_waiters_cleanup_key_error")
@pytest.mark.aiohttp("connector_does_not_remove_needed_waiters")
@pytest.mark.case("go#33850")
async def test_cancelled_waiters_leave_nothing(scripted: Scripted) -> None:
    async with scripted(limit=1) as connector:
        lease = await connector.connect(A)
        async with trio.open_nursery() as nursery:
            for _ in range(2000):
                nursery.start_soon(connector.connect, A)
            await settle()
            assert connector.statistics().waiting == 2000
            nursery.cancel_scope.cancel()
        pool = connector._shell.pool
        assert connector.statistics().waiting == 0 and not pool._queued
        assert all(home.waiters is None for home in pool._homes.values())
        lease.release()


@pytest.mark.case("aiohttp#1821")
@pytest.mark.case("httpcore#1035")
@pytest.mark.skipif(sys.platform == "win32", reason="the clock of a process is too coarse there")
async def test_the_cost_of_a_wait_does_not_grow_with_the_queue(scripted: Scripted) -> None:
    async def per_wait(n: int) -> float:
        async with scripted(limit=1) as connector:
            lease = await connector.connect(A)
            async with trio.open_nursery() as nursery:

                async def use() -> None:
                    (await connector.connect(A)).release()

                for _ in range(n):
                    nursery.start_soon(use)
                await settle()
                start = time.process_time()
                lease.release()
            return (time.process_time() - start) / n

    few = min([await per_wait(500) for _ in range(3)])
    many = min([await per_wait(4000) for _ in range(2)])
    assert many < 3 * few


@pytest.mark.case("httpcore#1035")
async def test_probes_per_lease_do_not_grow_with_the_pool(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(limit=0) as connector:
        for lease in [await connector.connect(A) for _ in range(50)]:
            lease.release()
        for lease in [await connector.connect(B) for _ in range(50)]:
            lease.release()
        asked = []
        for stream in connector.streams:
            monkeypatch.setattr(stream, "probe", lambda: asked.append(1) or True)
        for record in connector._shell.pool._records:
            record.connection.is_clean = record.connection.stream.probe
        for _ in range(10):
            (await connector.connect(A)).release()
        assert len(asked) == 20  # one at hand-out, one at release


@pytest.mark.case("httpcore#1110")
async def test_a_promised_connection_is_nobody_else_s(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    async with scripted(limit=1, keepalive_timeout=1) as connector, trio.open_nursery() as nursery:
        lease = await connector.connect(A)
        waits = await call(connector, nursery)
        Caller(connector, nursery, B).scope.cancel()
        lease.release()
        with pytest.raises(trio.WouldBlock):
            connector.connect_nowait(A)
        await settle()
        got(waits).release()
        assert connector.dials == 1


@pytest.mark.case("httpcore#1000")
async def test_active_connections_take_no_idle_place(scripted: Scripted) -> None:
    async with scripted(limit=3) as connector:
        leases = [await connector.connect(A) for _ in range(3)]
        leases[0].release()
        assert counts(connector) == (2, 1, 0, 0)
        for lease in leases[1:]:
            lease.release()
        assert counts(connector) == (0, 3, 0, 0)


@pytest.mark.case("undici#5662")
async def test_cancelled_while_the_dial_hangs(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(Hang(), connect_timeout=None) as connector:
        start = trio.current_time()
        with trio.move_on_after(1):
            await connector.connect(A)
        assert trio.current_time() - start == 1
        await settle()
        assert counts(connector) == (0, 0, 0, 0) and connector.statistics().aborted == 1


@pytest.mark.case("undici#5845")
async def test_a_lease_that_is_cut_off_starts_no_dial(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    async with scripted() as connector:
        with trio.move_on_after(1):
            async with await connector.connect(A) as lease:
                await lease.stream.receive_some()
        await settle()
        assert counts(connector) == (0, 0, 0, 0) and connector.dials == 1


@pytest.mark.case("reqwest#2424")
async def test_one_slot_for_many_hosts(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(Succeed(after=0.1), limit=1) as connector:
        for n in range(6):
            async with await connector.connect(f"tcp://h{n}.test:1") as lease:
                lease.release()
            assert len(connector.open_streams) == 1
        assert connector.most_open == 1 and connector.statistics().closed == {"evicted": 5}


@pytest.mark.case("hyper#4134")
async def test_a_freed_connection_while_a_dial_hangs(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    """The waiter takes it; the dial runs on as capacity."""
    async with scripted([Succeed(), Succeed(after=5)]) as connector, trio.open_nursery() as nursery:
        lease = await connector.connect(A)
        waits = await call(connector, nursery)
        assert counts(connector) == (1, 0, 1, 1)
        lease.release()
        await settle()
        got(waits).release()
        assert counts(connector) == (0, 1, 1, 0)
        await trio.sleep(5)
        await settle()
        assert counts(connector) == (0, 2, 0, 0)


async def test_attempt_succeeds_after_abort(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(Succeed(after=3, stubborn=True), limit=1) as connector, trio.open_nursery() as nursery:
        gives_up = await call(connector, nursery)
        await trio.sleep(1)
        gives_up.scope.cancel()
        await settle()
        assert counts(connector) == (0, 0, 1, 0) and connector.statistics().aborted == 1
        waits = await call(connector, nursery)
        await trio.sleep(2)
        await settle()
        got(waits).release()  # it got what had been aborted
        assert connector.dials == 1 and connector.statistics().created == 1


@pytest.mark.case("aiohttp#1623")
@pytest.mark.case("urllib3#1167")
async def test_starvation_is_told_and_names_the_holders(
    autojump_clock: trio.testing.MockClock, scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted(limit=2, connect_timeout=30) as connector, trio.open_nursery() as nursery:
        start = trio.current_time()
        leases = [await connector.connect(target) for target in (A, B)]
        await trio.sleep(5)
        await call(connector, nursery)
        told: list[float] = []
        with caplog.filtering(lambda record: told.append(trio.current_time() - start) or True):  # type: ignore[arg-type]
            await trio.sleep(15)
            await call(connector, nursery)  # who comes later postpones nothing
            await trio.sleep(14.9)
            assert not caplog.records
            await trio.sleep(200)
        assert told == [35, 95, 155, 215]  # connect_timeout after it queued, then once a minute
        message = caplog.records[0].getMessage()
        assert caplog.records[0].levelno == logging.WARNING and caplog.records[0].name == "trioconn.connector"
        assert "2 waiting, the first for 30 s, while all 2 connections are leased" in message
        assert message.count(__file__) == 2 and "a.test:1 for 35 s" in message and "b.test:1 for 35 s" in message
        nursery.cancel_scope.cancel()
        for lease in leases:
            lease.close()


@pytest.mark.parametrize("reason", ["served", "dial", "none"])
async def test_no_starvation_no_warning(
    reason: str, autojump_clock: trio.testing.MockClock, scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    script = [Succeed(), Hang()]
    options = {"limit": 2 if reason == "dial" else 1, "connect_timeout": None if reason == "none" else 30}
    async with scripted(script, **options) as connector, trio.open_nursery() as nursery:
        lease = await connector.connect(A)
        waits = await call(connector, nursery, A if reason == "served" else B)
        await trio.sleep(29)
        if reason == "served":
            lease.release()
            await settle()
            lease = got(waits)
        await trio.sleep(500)
        assert not caplog.records
        nursery.cancel_scope.cancel()
        lease.close()


async def test_the_queue_is_not_bounded_by_connect_timeout(
    autojump_clock: trio.testing.MockClock, scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted(limit=1, connect_timeout=1) as connector, trio.open_nursery() as nursery:
        lease = await connector.connect(A)
        waits = await call(connector, nursery)
        await trio.sleep(1000)
        assert not waits.ended
        lease.release()
        await settle()
        got(waits).release()


@pytest.mark.case("aiohttp#9670")
async def test_bounced_waiters_come_first_again(scripted: Scripted) -> None:
    async with scripted(limit=1) as connector, trio.open_nursery() as nursery:
        lease = await connector.connect(A)
        first, second = [await call(connector, nursery) for _ in range(2)]
        lease.release()
        connector.peers[0].send_nowait(b"stray")  # after the grant, before the waiter runs
        await settle()
        assert not got(first).reused and not second.ended and connector.dials == 2
        assert connector.statistics().closed == {"stray bytes": 1}
        got(first).release()
        await settle()
        got(second).release()


async def test_real_addresses_under_a_limit(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, no_fd_leak: None
) -> None:
    """An attempt counts one, however many addresses it races."""
    network = FakeNetwork(nursery)
    network.add_host("a.test", *[f"192.0.2.{n}" for n in range(1, 9)])
    for n in range(1, 8):
        network.blackhole(f"192.0.2.{n}")
    network.listen("192.0.2.8")
    async with network.connector(limit=1) as connector, trio.open_nursery() as inner:
        waits = await call(connector, inner, "tcp://a.test:1")
        await trio.sleep(1.1)
        assert counts(connector) == (0, 0, 1, 1) and len(network.dialled) == 5
        await trio.sleep(1)
        got(waits).close()
    check_clean(connector)
    await settle()


async def test_an_idle_connection_is_taken_from_under_the_nose_of_another_host(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    """B waits until A's connection has been idle for as long as its dial took; a lease in between starts that anew."""
    async with scripted(Succeed(after=0.375), limit=1) as connector, trio.open_nursery() as nursery:
        (await connector.connect(A)).release()
        start = trio.current_time()
        waits = await call(connector, nursery, B)
        await trio.sleep(0.125)
        lease = connector.connect_nowait(A)
        await trio.sleep(1)
        assert not waits.ended
        lease.release()
        await trio.sleep(0.375)
        await settle()
        assert connector.moments[-1] - start == 1.5 and counts(connector) == (0, 0, 1, 1)
        await trio.sleep(0.375)
        await settle()
        got(waits).release()


@pytest.mark.parametrize("use", ["connect", "prewarm"])
async def test_closed_during_the_first_checkpoint(use: str, scripted: Scripted) -> None:
    async with scripted() as connector:
        (await connector.connect(A)).release()
        call: Any = connector.connect(A) if use == "connect" else connector.prewarm(A, 2)
        call.send(None)  # by hand, because a task that closes it would come in time in half of the cases
        await connector.aclose()
        with pytest.raises(trioconn.ConnectorClosedError):
            call.send(outcome.Value(None))
        assert connector.dials == 1


@pytest.mark.case("httpcore#1093")
async def test_many_clients_of_many_moods(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    """A walk: clients that release, close, forget, are cancelled, prewarm, and dials that fail, hang and are slow."""
    import random

    dice = random.Random(20)

    def script(route: trioconn.Route) -> Succeed | Fail | Hang:
        return dice.choice(
            [
                *[Succeed(after=dice.random())] * 6,
                Succeed(after=dice.random(), stubborn=True),
                Fail(OSError(111, "refused"), after=dice.random()),
                Hang(),
            ]
        )

    async def client(n: int) -> None:
        await trio.sleep(dice.random() * 20)
        with trio.move_on_after(dice.random() * 10):
            try:
                async with await connector.connect(f"tcp://h{n % 5}.test:1") as lease:
                    await trio.sleep(dice.random())
                    if dice.random() < 0.1:
                        connector.peers[connector.streams.index(lease.stream._stream)].send_nowait(b"stray")
                    if dice.random() < 0.7:
                        lease.release()
                    elif dice.random() < 0.5:
                        await connector.prewarm(f"tcp://h{n % 3}.test:1", 2)
            except trioconn.ConnectError:
                pass

    async with scripted(script, limit=7, limit_per_host=3, connect_timeout=4, max_uses=9, max_lifetime=11) as connector:
        async with trio.open_nursery() as nursery:
            for n in range(400):
                nursery.start_soon(client, n)
        await trio.sleep(60)
        await settle()
        assert counts(connector) == (0, 0, 0, 0) and connector.most_open == 7
        found = connector.statistics()
        assert found.created == sum(found.closed.values()) and found.created > 30
        assert connector.dials == found.created + sum(found.failed.values()) + found.aborted - late(connector)


def late(connector: Any) -> int:
    """Aborted attempts that succeeded, or failed, all the same: they are counted twice."""
    found = connector.statistics()
    twice: int = found.created + sum(found.failed.values()) + found.aborted - connector.dials
    assert 0 <= twice <= found.aborted
    return twice


async def test_new_once_only(scripted: Scripted) -> None:
    """What was granted straight from its dial, and given back unused, is afterwards probed as any other is."""
    cancel: list[trio.CancelScope] = []

    async def factory(stream: trio.abc.Stream, route: trioconn.Route) -> None:
        while cancel:
            cancel.pop().cancel()  # and is granted in the same tick

    async with scripted(limit=1, protocol_factory=factory) as connector, trio.open_nursery() as nursery:
        gives_up = Caller(connector, nursery)
        cancel.append(gives_up.scope)
        await settle()
        assert gives_up.scope.cancelled_caught and counts(connector) == (0, 1, 0, 0)
        lease = connector.connect_nowait(A)
        waits = await call(connector, nursery)
        lease.release()
        connector.peers[0].send_nowait(b"answer of another request")
        await settle()
        assert connector.dials == 2 and not got(waits).reused
        got(waits).release()


def test_the_warning_never_plans_to_look_again_at_this_very_moment() -> None:
    """Less may be missing than the clock can tell: the timer would ring for ever while virtual time stands still."""

    class Pool:
        waiting, idle, connecting, leased = 1, 1, 0, 1

        def oldest_wait(self, now: float) -> float:
            return math.nextafter(4.0, 0.0)

    impatience = Impatience(Pool(), 4.0)  # type: ignore[arg-type]
    now = 1e6
    impatience.somebody_waits(now - 4.0)
    impatience.look(now)
    assert impatience.due > now
