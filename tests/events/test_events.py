"""Events of a whole life, over proxies and TLS and Unix sockets: each is told once, in order, with its time."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn import events
from trioconn.testing import ConnectProxy, Fail, FakeNetwork, ScriptedConnector

A, B = "tcp://a.test:1", "tcp://b.test:1"


def names(told: list[Any]) -> list[str]:
    return [type(event).__name__ for event in told]


def only(told: list[Any], *kinds: type[events.Event]) -> list[Any]:
    return [event for event in told if isinstance(event, kinds)]


@asynccontextmanager
async def fake_network() -> AsyncIterator[FakeNetwork]:
    async with trio.open_nursery() as nursery:
        yield FakeNetwork(nursery)
        nursery.cancel_scope.cancel()


def over_tls(context: ssl.SSLContext) -> Callable[[trio.abc.Stream], Awaitable[None]]:
    async def handler(stream: trio.abc.Stream) -> None:
        secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        async for data in secured:
            await secured.send_all(data)

    return handler


async def test_a_life_through_a_proxy(
    autojump_clock: trio.testing.MockClock,
    server_ssl: Callable[..., ssl.SSLContext],
    client_ssl: ssl.SSLContext,
) -> None:
    told: list[Any] = []
    async with fake_network() as network:
        network.add_host("proxy.test", "192.0.2.9")
        network.listen("192.0.2.9", ConnectProxy(tunnel=over_tls(server_ssl("a.test")), after=2))
        async with network.connector(
            observers=[told.append], family=2, ssl=client_ssl, proxy="http://u:hunter2@proxy.test:1"
        ) as connector:
            lease = await connector.connect("https://a.test")
            await lease.stream.send_all(b"x")
            await lease.stream.receive_some()
            lease.release()
            await trio.sleep(1)
            (await connector.connect("https://a.test")).close()
    assert names(told) == [
        *("Queued", "DialStarted", "CacheMiss", "LookupStarted", "LookupFinished"),
        *("AttemptStarted", "AttemptProgressed", "TunnelStarted", "TunnelFinished", "AttemptProgressed"),
        *("TLSStarted", "TLSFinished", "AttemptProgressed", "AttemptWon", "Created", "QueueEnded"),
        *("Released", "Reused", "Closed"),
    ]
    assert [event.stage for event in only(told, events.AttemptProgressed)] == ["connect", "proxy", "tls"]
    began, ended = only(told, events.TunnelStarted, events.TunnelFinished)
    assert (began.hop, began.attempt, began.target, ended.status, ended.error) == (0, 0, "a.test:443", 200, None)
    assert ended.at - began.at == 2
    began, ended = only(told, events.TLSStarted, events.TLSFinished)
    assert (began.hop, began.server_name, ended.hop, ended.resumed) == (-1, "a.test", -1, False)
    assert ended.version.startswith("TLSv1.") and ended.cipher and ended.certificate and ended.error is None
    assert all(isinstance(event.at, float) and event.route == lease.route for event in told)
    assert [event.at for event in told] == sorted(event.at for event in told)
    assert "hunter2" not in repr(told)


async def test_racing_handshakes_are_told_apart(
    autojump_clock: trio.testing.MockClock,
    server_ssl: Callable[..., ssl.SSLContext],
    client_ssl: ssl.SSLContext,
) -> None:
    told: list[Any] = []
    async with fake_network() as network:
        network.add_host("a.test", "192.0.2.1", "192.0.2.2")
        network.mute("192.0.2.1")
        network.listen("192.0.2.2", tls=server_ssl("a.test"))
        async with network.connector(observers=[told.append], family=2, ssl=client_ssl) as connector:
            (await connector.connect("https://a.test")).close()
    assert [(event.index, event.address[0]) for event in only(told, events.AttemptStarted)] == [
        (0, "192.0.2.1"),
        (1, "192.0.2.2"),
    ]
    assert [event.attempt for event in only(told, events.TLSStarted)] == [0, 1]
    assert [event.attempt for event in only(told, events.TLSFinished)] == [1]
    ends = only(told, events.AttemptWon, events.AttemptLost, events.AttemptFailed)
    assert sorted((event.index, type(event).__name__) for event in ends) == [(0, "AttemptLost"), (1, "AttemptWon")]


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
@pytest.mark.parametrize("how", ["won", "failed", "failed later", "lost"])
async def test_a_unix_socket_is_a_race_of_one(how: str, tmp_path: Path) -> None:
    told: list[Any] = []
    path = tmp_path / "s"
    target = "http://a.test" if how == "won" else "https://a.test"
    with contextlib.ExitStack() as kept, socket.socket(socket.AF_UNIX) as listener:
        if how != "failed":
            listener.bind(str(path))
            listener.listen()
        async with trioconn.UnixConnector(path, observers=[told.append]) as connector:
            with contextlib.suppress(trioconn.ConnectError):
                async with trio.open_nursery() as nursery:
                    if how in ("failed later", "lost"):

                        async def hang_up() -> None:
                            with trio.socket.from_stdlib_socket(listener.dup()) as accepting:
                                peer, _ = await accepting.accept()
                            kept.enter_context(peer)
                            if how == "lost":
                                nursery.cancel_scope.cancel()
                            else:
                                peer.close()

                        nursery.start_soon(hang_up)
                    try:
                        (await connector.connect(target)).close()
                    except trioconn.ConnectError:
                        nursery.cancel_scope.cancel()
    mine = [event for event in told if isinstance(event, events.AttemptEvent)]
    assert {event.index for event in mine} == {0}
    assert {"failed": "AttemptFailed", "failed later": "AttemptFailed", "won": "AttemptWon", "lost": "AttemptLost"}[
        how
    ] == names(mine)[-1]
    assert Counter(names(mine))["AttemptStarted"] == 1
    assert len(only(mine, events.AttemptWon, events.AttemptLost, events.AttemptFailed)) == 1


# Every reason, by what brings it about


async def server_closed(connector: ScriptedConnector) -> None:
    (await connector.connect(A)).release()
    connector.peers[0].close_nowait()
    with contextlib.suppress(trio.WouldBlock):
        connector.connect_nowait(A)


async def stray_bytes(connector: ScriptedConnector) -> None:
    lease = await connector.connect(A)
    await connector.peers[0].send_all(b"unasked")
    lease.release()


async def idle(connector: ScriptedConnector) -> None:
    (await connector.connect(A)).release()
    await trio.sleep(16)


async def age(connector: ScriptedConnector) -> None:
    lease = await connector.connect(A)
    await trio.sleep(11)
    lease.release()


async def uses(connector: ScriptedConnector) -> None:
    for _ in range(3):
        (await connector.connect(A)).release()


async def evicted(connector: ScriptedConnector) -> None:
    (await connector.connect(A)).release()
    await trio.sleep(1)
    (await connector.connect(B)).close()


async def force_close(connector: ScriptedConnector) -> None:
    (await connector.connect(A)).release()


async def not_released(connector: ScriptedConnector) -> None:
    async with await connector.connect(A):
        pass


async def error(connector: ScriptedConnector) -> None:
    with pytest.raises(ZeroDivisionError):
        async with await connector.connect(A):
            raise ZeroDivisionError


async def cancelled(connector: ScriptedConnector) -> None:
    with trio.move_on_after(1):
        async with await connector.connect(A):
            await trio.sleep_forever()


async def in_use(connector: ScriptedConnector) -> None:
    lease = await connector.connect(A)

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await lease.stream.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        lease.release()


async def protocol(connector: ScriptedConnector) -> None:
    (await connector.connect(A)).release()


async def lost(connector: ScriptedConnector) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        await connector.connect(A)
        gc.collect()
    assert "never released" in str(seen[0].message)
    await trio.testing.wait_all_tasks_blocked()


async def closed(connector: ScriptedConnector) -> None:
    (await connector.connect(A)).release()
    await connector.aclose()


class Finished:
    should_close = True


async def make_finished(stream: object, route: object) -> Finished:
    return Finished()


WAYS: dict[str, tuple[Callable[[ScriptedConnector], Awaitable[None]], dict[str, Any]]] = {
    "server closed": (server_closed, {}),
    "stray bytes": (stray_bytes, {}),
    "idle": (idle, {}),
    "age": (age, {"max_lifetime": 10}),
    "uses": (uses, {"max_uses": 3}),
    "evicted": (evicted, {"limit": 1}),
    "force_close": (force_close, {"force_close": True}),
    "not released": (not_released, {}),
    "error": (error, {}),
    "cancelled": (cancelled, {}),
    "in use": (in_use, {}),
    "protocol": (protocol, {"protocol_factory": make_finished}),
    "lost": (lost, {}),
    "closed": (closed, {}),
}


@pytest.mark.parametrize("reason", events.REASONS)
async def test_every_reason_can_be_reached_and_is_told_once(
    autojump_clock: trio.testing.MockClock, reason: str
) -> None:
    way, options = WAYS[reason]
    told: list[Any] = []
    async with ScriptedConnector(observers=[told.append], **options) as connector:
        await way(connector)
        found = [event for event in only(told, events.Closed) if event.connection == 1]
        assert [event.reason for event in found] == [reason]
        assert connector.statistics().closed[reason] == 1
    assert set(connector.statistics().closed) <= set(events.REASONS)
    created, ended = only(told, events.Created), only(told, events.Closed)
    assert Counter(event.connection for event in created) == Counter(event.connection for event in ended)
    assert all(event.age >= 0 for event in ended)


async def refuse(stream: object, route: object) -> None:
    raise ConnectionResetError(104, "while greeting")


async def give_up(stream: object, route: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("stage", ["resolve", "connect", "proxy", "tls", "pin", "protocol", "other"])
async def test_failures_are_counted_by_stage(
    stage: str,
    autojump_clock: trio.testing.MockClock,
    server_ssl: Callable[..., ssl.SSLContext],
    client_ssl: ssl.SSLContext,
) -> None:
    told: list[Any] = []
    options: dict[str, Any] = {
        "resolve": {},
        "connect": {},
        "proxy": {"proxy": "http://proxy.test:1"},
        "tls": {"ssl": client_ssl},
        "pin": {"ssl": trioconn.Fingerprint(b"\0" * 32, context=client_ssl)},
        "protocol": {"ssl": client_ssl, "protocol_factory": refuse},
        "other": {"ssl": client_ssl, "protocol_factory": give_up},
    }[stage]
    target = {"resolve": "https://nothing.test", "connect": "https://dead.test", "tls": "https://b.test"}.get(
        stage, "https://a.test"
    )
    async with fake_network() as network:
        network.add_host("a.test", "192.0.2.1")
        network.add_host("b.test", "192.0.2.1")
        network.add_host("dead.test", "192.0.2.2")
        network.add_host("proxy.test", "192.0.2.9")
        network.listen("192.0.2.1", tls=server_ssl("a.test"))
        network.refuse("192.0.2.2")
        network.listen("192.0.2.9", ConnectProxy(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"))
        async with network.connector(observers=[told.append], family=2, **options) as connector:
            with pytest.raises(ZeroDivisionError if stage == "other" else trioconn.ConnectError):
                await connector.connect(target)
            assert connector.statistics().failed == {stage: 1}
    [failed] = only(told, events.DialFailed)
    assert failed.stage == stage
    assert names(told)[-1] == "QueueEnded" and told[-1].outcome == "failed"


def test_each_reason_is_explained_and_each_event_documented() -> None:
    assert all(events.REASONS.values())
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)]
    assert len(kinds) > 20
    assert all(kind.__doc__ and "__slots__" in vars(kind) for kind in kinds)


async def test_a_failing_dial_is_refused_with_its_own_event(autojump_clock: trio.testing.MockClock) -> None:
    told: list[Any] = []
    async with ScriptedConnector(Fail(OSError(111, "no"), after=1), observers=[told.append]) as connector:
        with pytest.raises(trioconn.ConnectError):
            await connector.connect(A)
    assert names(told) == ["Queued", "DialStarted", "DialFailed", "QueueEnded"]
    assert [event.at - told[0].at for event in told] == [0, 0, 1, 1]


def test_events_are_values() -> None:
    connector = trioconn.TCPConnector()
    one, other = connector.route(A), connector.route(B)
    event = events.Queued(at=1.0, route=one, waiter=1)
    assert event == events.Queued(at=1.0, route=connector.route(A), waiter=1)
    assert event != events.Queued(at=2.0, route=one, waiter=1)
    assert event != events.Queued(at=1.0, route=other, waiter=1)
    assert event != events.Queued(at=1.0, route=one, waiter=2)
    assert event != events.Event(at=1.0, route=one)
    assert events.CacheHit(at=1.0, route=one, dial=1, host="a.test") != events.CacheMiss(
        at=1.0, route=one, dial=1, host="a.test"
    )
    assert repr(event) == f"Queued(at=1.0, route={one!r}, waiter=1)"
    with pytest.raises(TypeError, match="unhashable"):
        hash(event)
