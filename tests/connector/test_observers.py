"""Observers hear of everything once, in order, when the pool has settled, and can break nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn import events
from trioconn.testing import Fail, FakeNetwork, Hang, ScriptedConnector, Succeed

from .common import A, B, counts, settle

Scripted = Callable[..., Any]


def names(told: list[events.Event]) -> list[str]:
    return [type(event).__name__ for event in told]


@pytest.mark.aiohttp("connect_tracing")
@pytest.mark.aiohttp("connect_reuseconn_tracing")
async def test_the_life_of_one_connection(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    told: list[Any] = []
    async with scripted(Succeed(after=2), observers=[told.append]) as connector:
        lease = await connector.connect(A)
        await trio.sleep(1)
        lease.release()
        await trio.sleep(3)
        connector.connect_nowait(A).close()
    assert names(told) == ["Queued", "DialStarted", "Created", "QueueEnded", "Released", "Reused", "Closed"]
    queued, _, created, ended, released, reused, closed = told
    assert [event.at - queued.at for event in told] == [0, 0, 2, 2, 3, 6, 6]
    assert all(event.route is lease.route for event in told)
    assert (queued.waiter, ended.waiter, ended.outcome, ended.waited) == (1, 1, "granted", 2)
    assert (created.connection, created.dial, created.seconds) == (1, 1, 2)
    assert released.leased == 1 and (reused.uses, reused.idle) == (2, 3)
    assert (closed.reason, closed.age) == ("not released", 4)


async def test_every_event_once_over_tcp(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    told: list[Any] = []
    network = FakeNetwork(nursery)
    network.add_host("a.test", "192.0.2.1", "192.0.2.2", after=0.1)
    network.refuse("192.0.2.1", after=0.1)
    network.listen("192.0.2.2", after=0.1)
    async with network.connector(family=2, observers=[told.append]) as connector:
        (await connector.connect("tcp://a.test:1")).close()
        (await connector.connect("tcp://a.test:1")).close()
    nursery.cancel_scope.cancel()
    assert names(told)[:12] == [
        *("Queued", "DialStarted", "CacheMiss", "LookupStarted", "LookupFinished", "AttemptStarted", "AttemptFailed"),
        *("AttemptStarted", "AttemptProgressed", "AttemptWon", "Created", "QueueEnded"),
    ]
    assert "CacheHit" in names(told) and names(told).count("Closed") == 2
    assert sorted(event.at for event in told) == [event.at for event in told]
    assert len({id(event) for event in told}) == len(told)


@pytest.mark.parametrize(
    ("outcome", "dial"), [("failed", "DialFailed"), ("cancelled", "DialAborted"), ("closed", "DialAborted")]
)
@pytest.mark.aiohttp("exception_during_connetion_create_tracing")
async def test_how_a_wait_ends(
    outcome: str, dial: str, autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    told: list[Any] = []
    script = Fail(OSError(111, "no"), after=1) if outcome == "failed" else Hang()
    async with scripted(script, observers=[told.append], connect_timeout=None) as connector:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with trio.move_on_after(1 if outcome == "cancelled" else 9):
                    try:
                        await connector.connect(A)
                    except (trioconn.ConnectError, trioconn.ConnectorClosedError):
                        pass

            nursery.start_soon(wait)
            await trio.sleep(2)
            if outcome == "closed":
                await connector.aclose()
        assert sorted(names(told)) == sorted(["Queued", "DialStarted", dial, "QueueEnded"])
        ended = next(event for event in told if isinstance(event, events.QueueEnded))
        assert ended.outcome == outcome
        if outcome == "failed":
            failed = next(event for event in told if isinstance(event, events.DialFailed))
            assert failed.stage == "connect" and isinstance(failed.error, trioconn.ConnectError)


@pytest.mark.aiohttp("exception_during_connection_queued_tracing")
@pytest.mark.aiohttp("exception_during_connection_reuse_tracing")
@pytest.mark.case("aiohttp#10529")
@pytest.mark.parametrize("at", range(1, 8))
async def test_one_that_raises_is_called_no_more(at: int, scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    before: list[Any] = []
    bad: list[Any] = []
    after: list[Any] = []

    def fail(event: events.Event) -> None:
        bad.append(event)
        if len(bad) == at:
            raise ValueError("mine")

    async with scripted(observers=[before.append, fail, after.append]) as connector:
        (await connector.connect(A)).release()
        (await connector.connect(A)).close()
        assert names(before) == names(after) and len(before) == 7 and len(bad) == at
        assert caplog.text.count("is called no more") == 1 and "ValueError: mine" in caplog.text


async def test_one_of_a_call_that_raises_is_called_no_more(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    bad: list[Any] = []

    def fail(event: events.Event) -> None:
        bad.append(event)
        raise ValueError("mine")

    async with scripted() as connector:
        (await connector.connect(A, observers=[fail])).close()
        assert names(bad) == ["Queued"] and caplog.text.count("is called no more") == 1


CALLS: dict[str, Callable[[trioconn.BaseConnector], Any]] = {
    "connect": lambda connector: connector.connect(A),
    "connect_nowait": lambda connector: connector.connect_nowait(A),
    "prewarm": lambda connector: connector.prewarm(A, 1),
    "aclose": lambda connector: connector.aclose(),
    "leases": lambda connector: connector.leases(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_calling_the_connector_from_an_observer(call: str, scripted: Scripted) -> None:
    errors: list[BaseException] = []

    def observer(event: events.Event) -> None:
        try:
            result = CALLS[call](connector)
            if hasattr(result, "send"):
                result.send(None)
        except RuntimeError as error:
            errors.append(error)

    async with scripted(observers=[observer]) as connector:
        (await connector.connect(A)).release()
        assert len(errors) == 5 and "an observer must not call its connector" in str(errors[0])
        assert counts(connector) == (0, 1, 0, 0)


async def test_an_observer_may_release_and_look(scripted: Scripted) -> None:
    """What it releases is told afterwards, not in between."""
    told: list[Any] = []
    leases: list[trioconn.Connection] = []
    depth = 0

    def observer(event: events.Event) -> None:
        nonlocal depth
        assert depth == 0
        depth += 1
        told.append(event)
        assert connector.statistics().open >= 0
        if isinstance(event, events.Queued) and leases:
            leases.pop().release()
        depth -= 1

    async with scripted(limit=1, observers=[observer]) as connector:
        leases.append(await connector.connect(A))
        with trio.fail_after(5):
            (await connector.connect(A)).release()
    assert names(told).count("Released") == 2


@pytest.mark.parametrize("at", ["Created", "Reused", "Released"])
async def test_what_an_observer_releases_is_told_after_what_it_hears(at: str, scripted: Scripted) -> None:
    told: list[Any] = []
    leases: list[trioconn.Connection] = []

    def observer(event: events.Event) -> None:
        told.append(event)
        if type(event).__name__ == at and leases:
            leases.pop().release()
            assert told[-1] is event  # not in between

    late: list[Any] = []
    async with scripted(observers=[observer, late.append]) as connector:
        other = await connector.connect(B)
        if at != "Created":
            (await connector.connect(A)).release()
        told.clear()
        late.clear()
        leases.append(other)
        (await connector.connect(A)).release()
        assert told == late
        assert [(type(event).__name__, event.route is other.route) for event in told] == {
            "Created": [
                *[("Queued", False), ("DialStarted", False), ("Created", False)],
                *[("Released", True), ("QueueEnded", False), ("Released", False)],
            ],
            "Reused": [("Reused", False), ("Released", True), ("Released", False)],
            "Released": [("Reused", False), ("Released", False), ("Released", True)],
        }[at]
        assert counts(connector) == (0, 2, 0, 0)


async def test_told_that_it_waits_also_where_others_wait_already(scripted: Scripted) -> None:
    told: list[Any] = []
    async with scripted(limit=1) as connector, trio.open_nursery() as nursery:
        lease = await connector.connect(A)

        async def use(*observers: Any) -> None:
            (await connector.connect(A, observers=observers)).release()

        nursery.start_soon(use)
        await settle()
        nursery.start_soon(use, told.append)
        await settle()
        assert names(told) == ["Queued"]
        lease.release()


async def test_told_after_the_fixed_point(scripted: Scripted) -> None:
    seen: list[tuple[str, tuple[int, int, int, int]]] = []
    async with scripted(
        limit=1, observers=[lambda event: seen.append((type(event).__name__, counts(connector)))]
    ) as connector:
        lease = await connector.connect(A)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_and_close, connector)
            await settle()
            seen.clear()
            lease.close()
            assert seen == [("Closed", (0, 0, 1, 1)), ("DialStarted", (0, 0, 1, 1))]


async def take_and_close(connector: trioconn.BaseConnector) -> None:
    (await connector.connect(B)).close()


@pytest.mark.aiohttp("connect_queued_operation_tracing")
async def test_observers_of_one_call(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    """They hear of their own waiter, and of every attempt of its route while it waits; not of others'."""
    mine: list[Any] = []
    other: list[Any] = []
    elsewhere: list[Any] = []
    async with scripted(Succeed(after=1), limit=4) as connector:
        async with trio.open_nursery() as nursery:

            async def use(target: str, told: list[Any]) -> None:
                (await connector.connect(target, observers=[told.append])).release()

            nursery.start_soon(use, A, mine)
            await trio.sleep(0.5)
            nursery.start_soon(use, A, other)
            nursery.start_soon(use, B, elsewhere)
        assert names(mine) == ["Queued", "DialStarted", "DialStarted", "Created", "QueueEnded"]
        # The other one got the first connection at once after the first release.
        assert names(other)[:2] == ["Queued", "DialStarted"] and names(other)[-2:] == ["QueueEnded", "Reused"]
        assert names(elsewhere) == ["Queued", "DialStarted", "Created", "QueueEnded"]
        assert {event.waiter for event in mine if isinstance(event, events.Queued | events.QueueEnded)} == {1}
        mine.clear()
        (await connector.connect(A)).release()  # the second connection had not been used yet
        (await connector.connect(A, observers=[mine.append])).release()
        assert names(mine) == ["Reused"]
        connector.connect_nowait(A, observers=[mine.append]).close()
        assert names(mine) == ["Reused"] * 2
        (await connector.connect(A)).close()
        assert names(mine) == ["Reused"] * 2  # it is over with the call
        assert not connector._shell.audience.active


@pytest.mark.parametrize("bad", [[1], 1, ["print"]])
async def test_bad_observers_of_a_call(bad: Any, scripted: Scripted) -> None:
    async with scripted() as connector:
        with pytest.raises(TypeError):
            await connector.connect(A, observers=bad)
        (await connector.connect(A)).release()
        with pytest.raises(TypeError):
            connector.connect_nowait(A, observers=bad)
        assert counts(connector) == (0, 1, 0, 0)


@pytest.mark.filterwarnings("ignore:the lease of a connection:ResourceWarning")
async def test_an_interrupt_in_an_observer_of_a_reuse_loses_nothing(scripted: Scripted) -> None:
    def observer(event: events.Event) -> None:
        raise KeyboardInterrupt

    async with scripted() as connector:
        (await connector.connect(A)).release()
        with pytest.raises(KeyboardInterrupt) as caught:
            connector.connect_nowait(A, observers=[observer])
        del caught
        await settle()
        assert connector.statistics().leased == 0


async def test_an_interrupt_in_an_observer_passes() -> None:
    def observer(event: events.Event) -> None:
        if isinstance(event, events.Released):
            raise KeyboardInterrupt

    connector = ScriptedConnector(observers=[observer])
    with pytest.raises(KeyboardInterrupt):
        async with connector:
            (await connector.connect(A)).release()
    assert connector.statistics().open == 0 and not connector.open_streams
