"""A lease ends once, whoever ends it and however often; a forgotten one is found."""

from __future__ import annotations

import gc
import ssl
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn.testing import FakeNetwork, MemoryStream, ScriptedConnector, Succeed

from .common import A, B, check_clean, counts, settle

Scripted = Callable[..., Any]


# ---- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.aiohttp("release")
@pytest.mark.aiohttp("release_acquired")
@pytest.mark.aiohttp("connect")
async def test_without_release_it_is_closed(scripted: Scripted) -> None:
    async with scripted() as connector:
        async with await connector.connect(A) as lease:
            assert lease and not lease.closed and "live" in repr(lease)
        assert lease and lease.closed and "over" in repr(lease)
        assert connector.streams[0].closed and connector.statistics().closed == {"not released": 1}


async def test_released_it_is_kept(scripted: Scripted) -> None:
    async with scripted() as connector:
        async with await connector.connect(A) as lease:
            lease.release()
            assert lease.closed and counts(connector) == (0, 1, 0, 0)
        assert counts(connector) == (0, 1, 0, 0)
        again = connector.connect_nowait(A)
        assert again is not lease and again.info is lease.info and again.reused
        again.close()


@pytest.mark.case("aiohttp#12795")
@pytest.mark.parametrize(
    ("error", "reason"), [(ValueError(), "error"), (KeyboardInterrupt(), "error"), (None, "cancelled")]
)
async def test_after_an_exception_it_is_closed(
    error: BaseException | None,
    reason: str,
    autojump_clock: trio.testing.MockClock,
    scripted: Scripted,
) -> None:
    async with scripted() as connector:
        with trio.move_on_after(1):
            try:
                async with await connector.connect(A) as lease:
                    if error is not None:
                        raise error
                    await trio.sleep(2)
                    lease.release()
            except (ValueError, KeyboardInterrupt):
                assert error is not None
        assert connector.statistics().closed == {reason: 1} and counts(connector) == (0, 0, 0, 0)


ENDS: dict[str, Callable[[trioconn.Connection], Any]] = {
    "release": lambda lease: lease.release(),
    "close": lambda lease: lease.close(),
    "aclose": lambda lease: lease.aclose(),
    "stream": lambda lease: lease.stream.aclose(),
}


@pytest.mark.aiohttp("release_already_closed")
@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ["release", "close", "aclose"])
async def test_ended_twice(first: str, second: str, scripted: Scripted) -> None:
    calls: list[int] = []
    async with scripted(limit=1) as connector:
        lease = await connector.connect(A)
        lease.add_callback(lambda: calls.append(1))
        for end in (first, second, second):
            awaitable = ENDS[end](lease)
            if awaitable is not None:
                await awaitable
        expected = (0, 1, 0, 0) if first == "release" else (0, 0, 0, 0)
        assert counts(connector) == expected and calls == [1]
        other = await connector.connect(A)  # somebody else's lease of the same connection …
        lease.release()
        lease.close()  # … is out of reach
        await lease.aclose()
        assert counts(connector) == (1, 0, 0, 0) and not other.closed
        other.release()


@pytest.mark.aiohttp("release_acquired_closed")
@pytest.mark.parametrize("second", ENDS)
async def test_ended_after_the_connector_was_closed(second: str, scripted: Scripted) -> None:
    calls: list[int] = []
    async with scripted() as connector:
        lease = await connector.connect(A)
        lease.add_callback(lambda: calls.append(1))
        await connector.aclose()
        assert lease.closed
        with pytest.raises(trio.ClosedResourceError):
            await lease.stream.send_all(b"x")
        awaitable = ENDS[second](lease)
        if awaitable is not None:
            await awaitable
        assert connector.statistics().closed == {"closed": 1} and calls == [1]


@pytest.mark.parametrize("end", ["release", "close"])
async def test_use_after_the_end(end: str, scripted: Scripted) -> None:
    async with scripted() as connector:
        lease = await connector.connect(A)
        stream = lease.stream
        assert lease.transport is stream is lease.stream
        ENDS[end](lease)
        for get in (lambda: lease.stream, lambda: lease.transport, lambda: lease.add_callback(print)):
            with pytest.raises(trio.ClosedResourceError):
                get()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
        # A stream on top of it, or an adapter that was not told, must get a trio error and not an AttributeError.
        view: Any = stream
        with pytest.raises(trio.ClosedResourceError):
            view.receive_nowait(1)
        with pytest.raises(trio.ClosedResourceError):
            view.send_nowait(b"x")
        assert (view.probe(), view.fileno()) == (False, -1)
        await stream.aclose()
        assert lease.info.number == 1 and lease.route.host == "a.test" and lease.key is lease.route
        assert (lease.uses, lease.reused, lease.session_reused, lease.forwarded) == (1, False, False, False)
        assert lease.proxy_headers == () and lease.protocol is None


@pytest.mark.parametrize("end", ["release", "close", "lost"])
def test_a_lease_that_outlives_its_run(end: str) -> None:
    connector = ScriptedConnector()
    leases: list[trioconn.Connection] = []

    async def main() -> None:
        async with connector:
            leases.append(await connector.connect(A))

    trio.run(main)
    lease = leases.pop()
    if end == "lost":
        del lease  # which warns of nothing: it was closed with its connector
    else:
        thread = threading.Thread(target=getattr(lease, end))
        thread.start()
        thread.join()
        assert lease.closed
    assert connector.statistics().closed == {"closed": 1}


@pytest.mark.parametrize("ask", ["leases", "connect_nowait", "aclose"])
async def test_a_connector_asked_in_another_thread(ask: str, scripted: Scripted) -> None:
    def elsewhere() -> None:
        answer = connector.connect_nowait(A) if ask == "connect_nowait" else getattr(connector, ask)()
        if ask == "aclose":
            answer.send(None)

    async with scripted(observers=[lambda event: None]) as connector:  # else trio itself says that this is no run
        with pytest.raises(RuntimeError, match="another trio run or thread"):
            await trio.to_thread.run_sync(elsewhere)
        (await connector.connect(A)).close()


async def test_a_route_leads_where_its_url_does(scripted: Scripted) -> None:
    async with scripted() as connector:
        route = connector.route(A)
        (await connector.connect(route)).release()
        connector.connect_nowait(route).release()
        connector.connect_nowait(A).release()
        assert connector.dials == 1 and connector.routes == [route]


@pytest.mark.parametrize("call", ["receive_some", "send_all", "wait"])
async def test_a_task_inside_a_call_at_release(call: str, scripted: Scripted) -> None:
    async with scripted(capacity=1) as connector:
        lease = await connector.connect(A)
        async with trio.open_nursery() as nursery:
            stream = lease.stream
            use = {
                "receive_some": stream.receive_some,
                "send_all": lambda: stream.send_all(b"too much"),
                "wait": stream.wait_send_all_might_not_block,
            }[call]
            if call == "wait":
                await stream.send_all(b"x")

            async def be_inside() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await use()

            nursery.start_soon(be_inside)
            await settle()
            lease.release()
        assert connector.statistics().closed == {"in use": 1} and counts(connector) == (0, 0, 0, 0)


async def test_released_by_another_task(scripted: Scripted) -> None:
    async with scripted() as connector:
        lease = await connector.connect(A)
        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[trioconn.Connection](1)

            async def take_over() -> None:
                taken = await receive.receive()
                await taken.stream.send_all(b"x")
                taken.release()

            nursery.start_soon(take_over)
            await send.send(lease)
        assert counts(connector) == (0, 1, 0, 0)


@pytest.mark.parametrize("end", ["release", "close"])
async def test_ended_in_another_thread(end: str, scripted: Scripted) -> None:
    """A mistake, or a finalizer. It cannot be kept, since nobody can look at its stream from there."""
    async with scripted() as connector:
        lease = await connector.connect(A)
        await trio.to_thread.run_sync(ENDS[end], lease)
        await settle()
        assert lease.closed and counts(connector) == (0, 0, 0, 0)
        assert connector.statistics().closed == {"not released": 1}


async def test_callbacks(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[object] = []

    def fail() -> None:
        calls.append("fail")
        raise ValueError("mine")

    async with scripted() as connector:
        lease = await connector.connect(A)
        lease.add_callback(lambda: calls.append(counts(connector)))
        lease.add_callback(fail)
        lease.add_callback(lambda: calls.append(connector.connect_nowait(A).close()))  # they may use the connector
        lease.release()
        assert calls == [(0, 1, 0, 0), "fail", None]
        assert "a callback of a lease of" in caplog.text and "ValueError: mine" in caplog.text
        again = await connector.connect(A)
        again.release()
        assert len(calls) == 3


async def test_callbacks_hear_of_the_end_of_the_connector(scripted: Scripted) -> None:
    calls: list[object] = []
    async with scripted() as connector:
        lease = await connector.connect(A)
        lease.add_callback(lambda: calls.append((lease.closed, lease.close())))
        await connector.aclose()
        assert calls == [(True, None)]
    assert len(calls) == 1


# ---- forgotten -------------------------------------------------------------------------------------------------------


async def take_and_forget(connector: trioconn.BaseConnector, target: str = A) -> None:
    await connector.connect(target)  # FORGOTTEN HERE


def line_of(mark: str) -> str:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return f"{__file__}:{next(n for n, line in enumerate(lines, 1) if line.endswith(mark))}"


@pytest.mark.aiohttp("connection_del")
@pytest.mark.aiohttp("del")
@pytest.mark.parametrize("with_stream", [False, True])
async def test_collected_unreleased(with_stream: bool, scripted: Scripted, no_gc: None) -> None:
    """By the reference count alone, at once: a lease is in no cycle, even once its stream was used."""
    async with scripted(limit=1) as connector:
        lease = await connector.connect(A)
        if with_stream:
            await lease.stream.send_all(b"x")
        with pytest.warns(ResourceWarning, match=r"tcp://a\.test:1 was never released; it was taken at .*test_leases"):
            del lease
        assert counts(connector) == (1, 0, 0, 0)  # the finalizer touched nothing
        lease = await connector.connect(B)  # and the slot comes back
        assert connector.statistics().closed == {"lost": 1} and connector.streams[0].closed
        lease.release()


async def test_the_warning_names_the_place(scripted: Scripted) -> None:
    async with scripted() as connector:
        with pytest.warns(ResourceWarning) as caught:
            await take_and_forget(connector)
        assert str(caught[0].message) == (
            f"the lease of a connection to {connector.route(A)} was never released; it was taken at "
            + line_of("# FORGOTTEN HERE")
        )
        await settle()


@pytest.mark.filterwarnings("ignore:the lease of a connection:ResourceWarning")
@pytest.mark.parametrize("where", ["here", "thread"])
async def test_collected_in_the_middle_of_a_pool_operation(
    where: str, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted(limit=2) as connector, trio.open_nursery() as nursery:
        forgotten = [await connector.connect(A)]
        lease = await connector.connect(A)
        nursery.start_soon(take_and_release, connector)
        await settle()
        pool = connector._shell.pool
        settle_pool = pool._settle

        def collect(*args: Any) -> Any:
            if where == "here":
                forgotten.clear()
            else:
                thread = threading.Thread(target=forgotten.clear)
                thread.start()
                thread.join()
            return settle_pool(*args)

        monkeypatch.setattr(pool, "_settle", collect)
        lease.close()  # the pool is at work, and the other lease is collected
        monkeypatch.undo()
        assert not forgotten
        await settle()
        assert connector.statistics().leased == 0 and connector.statistics().closed["lost"] == 1


async def take_and_release(connector: trioconn.BaseConnector) -> None:
    (await connector.connect(A)).release()


@pytest.mark.filterwarnings("ignore:the lease of a connection:ResourceWarning")
async def test_collected_by_another_thread_s_garbage_collector(scripted: Scripted, no_gc: None) -> None:
    async with scripted() as connector:
        cycle: list[Any] = [await connector.connect(A)]
        cycle.append(cycle)
        seen = weakref.ref(cycle[0])
        del cycle
        assert seen() is not None
        await trio.to_thread.run_sync(gc.collect)
        assert seen() is None
        await settle()
        assert counts(connector) == (0, 0, 0, 0) and connector.statistics().closed == {"lost": 1}


@pytest.mark.aiohttp("connection_del_loop_closed")
@pytest.mark.aiohttp("del_with_closed_loop")
def test_collected_after_its_run() -> None:
    kept: list[trioconn.Connection] = []

    async def main() -> None:
        async with ScriptedConnector() as connector:
            kept.append(await connector.connect(A))
        check_clean(connector)

    trio.run(main)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kept[0].closed
        kept.clear()  # it was closed with its connector: nothing to warn of


async def test_the_stream_keeps_its_lease(scripted: Scripted, no_gc: None) -> None:
    async with scripted() as connector:
        stream = (await connector.connect(A)).stream
        await stream.send_all(b"x")
        assert counts(connector) == (1, 0, 0, 0)
        await stream.aclose()
        assert counts(connector) == (0, 0, 0, 0)


@pytest.mark.parametrize("track", [False, True])
async def test_track_leases(track: bool, autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(track_leases=track) as connector:
        first = await connector.connect(A)
        await trio.sleep(3)
        second = await connector.connect(B)  # SECOND
        assert [(info.number, info.seconds) for info in connector.leases()] == [(1, 3), (2, 0)]
        info = connector.leases()[1]
        assert info.route is second.route and info.where == line_of("# SECOND")
        if track:
            assert "test_track_leases" in info.stack and "connector.connect(B)" in info.stack
            assert "_connector.py" not in info.stack.splitlines()[-2]
        else:
            assert info.stack == ""
        first.release()
        second.close()
        assert connector.leases() == []
        third = connector.connect_nowait(A)  # THIRD
        assert connector.leases()[0].where == line_of("# THIRD")
        third.close()


# ---- whose stream it is ----------------------------------------------------------------------------------------------


async def test_the_view_shows_the_transport(nursery: trio.Nursery) -> None:
    network = FakeNetwork(nursery)
    network.add_host("a.test", "192.0.2.1")
    network.listen("192.0.2.1")
    async with network.connector() as connector:
        async with await connector.connect("tcp://a.test:1") as lease:
            stream: Any = lease.stream
            assert isinstance(stream, trio.abc.HalfCloseableStream) and "stream of" in repr(stream)
            assert stream.socket.fileno() == stream.fileno() > 0
            with pytest.raises(AttributeError):
                _ = stream._sock
            await stream.send_all(b"x")
            await stream.send_eof()
            assert await stream.receive_some() == b"x" and await stream.receive_some() == b""
            lease.release()
        assert connector.statistics().closed == {"closed": 1}  # an end was said: it can serve nobody else
    nursery.cancel_scope.cancel()


async def test_facts_of_a_connection(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(Succeed(after=2)) as connector:
        lease = await connector.connect(A)
        await trio.sleep(1)
        assert lease.age == 1 and lease.info.timings == {"total": 2} and lease.info.tls == ()
        assert lease.info.local_address is None and lease.info.remote_address is None
        with pytest.raises(TypeError):
            lease.info.timings["x"] = 1  # type: ignore[index]
        with pytest.raises(AttributeError):
            lease.info.number = 2  # type: ignore[misc]
        lease.close()


async def test_context_policy_changed_between_two_leases(client_ssl: ssl.SSLContext) -> None:
    async with trioconn.TCPConnector() as connector:
        route = connector.route("https://a.test", ssl=client_ssl)
        client_ssl.check_hostname = False
        client_ssl.verify_mode = ssl.CERT_NONE
        with pytest.raises(trioconn.InvalidTargetError):
            connector.connect_nowait(route)
        with pytest.raises(trioconn.InvalidTargetError):
            await connector.connect(route)
        assert connector.route("https://a.test", ssl=client_ssl) != route  # made again: another key


async def test_id_recycled_contexts(make_client_ssl: Callable[[], ssl.SSLContext]) -> None:
    """A route keeps its context alive, so that no new one can take its identity."""
    async with trioconn.TCPConnector() as connector:
        routes = [connector.route("https://a.test", ssl=make_client_ssl()) for _ in range(50)]
        assert len(set(routes)) == 50
        context = make_client_ssl()
        seen = weakref.ref(context)
        route = connector.route("https://a.test", ssl=context)
        del context
        assert seen() is not None
        del route


async def test_nothing_is_shared_between_routes(scripted: Scripted) -> None:
    async with scripted() as connector:
        (await connector.connect(A)).release()
        for options in ({"isolation": "x"}, {"isolation": 1}, {"isolation": "1"}, {"isolation": (1,)}):
            lease = await connector.connect(A, **options)
            assert not lease.reused
            lease.release()
        with pytest.raises(trio.WouldBlock):
            connector.connect_nowait("tcp://a.test:2")
        assert connector.dials == 5
        other = ScriptedConnector()
        with pytest.raises(TypeError, match="another connector"):
            await connector.connect(other.route(A))
        with pytest.raises(TypeError, match="has its options inside"):
            await connector.connect(connector.route(A), isolation="x")
        with pytest.raises(TypeError):
            connector.route(connector.route(A))


async def test_is_clean_has_the_last_word(caplog: pytest.LogCaptureFixture) -> None:
    verdicts: list[bool | Exception] = []
    asked: list[trio.abc.Stream] = []

    class Judging(ScriptedConnector):
        def is_clean(self, stream: trio.abc.Stream) -> bool:
            asked.append(stream)
            verdict = verdicts.pop(0)
            if isinstance(verdict, Exception):
                raise verdict
            return verdict and super().is_clean(stream)

    async with Judging() as connector:
        for given, dials in (([False], 1), ([True, True, False], 2), ([ValueError("mine")], 3)):
            verdicts[:] = given
            (await connector.connect(A)).release()
            if len(given) > 1:
                (await connector.connect(A)).release()
            assert connector.dials == dials and counts(connector) == (0, 0, 0, 0) and not verdicts
        assert all(isinstance(stream, MemoryStream) for stream in asked)
        assert "ValueError: mine" in caplog.text
    check_clean(connector)


async def test_sessions_are_resumed_and_counted(
    threaded_tls_server: Callable[..., Any], client_ssl: ssl.SSLContext
) -> None:
    server = threaded_tls_server()
    async with trioconn.TCPConnector(ssl=client_ssl, force_close=True) as connector:
        for n in range(2):
            async with await connector.connect(f"tls://localhost:{server.port}") as lease:
                await lease.stream.send_all(b"x")
                assert await lease.stream.receive_some() == b"x"
                assert lease.session_reused == (n > 0) == lease.info.tls[0].session_reused
                lease.release()
        assert connector.statistics().resumed == 1
