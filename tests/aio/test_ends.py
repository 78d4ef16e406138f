"""Ends that come at an awkward moment: of calls, of runs, of loops, of the trio run itself."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trio
import trio.lowlevel

import trioconn
import trioconn.aio
from trioconn.aio import AiohttpConnector, Portal

from .streams import Hidden

Run = Callable[[Callable[[Portal], Awaitable[Any]]], Any]


def on_plain_asyncio(main: Callable[[], Awaitable[Any]]) -> Any:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(main())


def needs_trio_asyncio() -> None:
    if sys.version_info >= (3, 14):
        pytest.skip("trio-asyncio is for Python before 3.14")
    pytest.importorskip("trio_asyncio")


# ---- the run ---------------------------------------------------------------------------------------------------------


def in_a_process(script: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_no_guest_inside_a_trio_run() -> None:
    """In a process of its own, where no trio-asyncio has been imported, which would know what to do."""
    script = """
import asyncio, trio, trioconn.aio

async def guest():
    for _ in range(2):  # nothing of the first is left
        try:
            async with trioconn.aio.guest():
                pass
        except RuntimeError as error:
            print("inside" in str(error))

async def main():
    asyncio.run(guest())

trio.run(main)
"""
    assert in_a_process(script).split() == ["True", "True"]


@pytest.mark.parametrize("steps", range(4))
def test_cancelled_while_the_guest_starts(steps: int) -> None:
    async def enter() -> None:
        async with trioconn.aio.guest():
            await asyncio.sleep(3600)

    async def main() -> None:
        task = asyncio.ensure_future(enter())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await task
            async with trioconn.aio.guest() as portal:  # nothing of the first is left
                await portal.run(trio.sleep, 0)

    on_plain_asyncio(main)


def test_cancelled_while_the_guest_ends() -> None:
    """Its cleanup is waited for; then the cancellation is raised."""
    steps: list[str] = []

    async def careful() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                steps.append("cleaning")
                await trio.sleep(0.05)
                steps.append("clean")

    async def use() -> None:
        async with trioconn.aio.guest() as portal:
            asyncio.ensure_future(portal.run(careful)).add_done_callback(lambda one: one.exception())
            await portal.run(trio.testing.wait_all_tasks_blocked)

    async def main() -> None:
        task = asyncio.ensure_future(use())
        while not steps:  # noqa: ASYNC110 - it is written in the other library
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert steps == ["cleaning", "clean"]

    on_plain_asyncio(main)


@pytest.mark.parametrize("steps", range(6))
def test_a_call_at_a_step_of_the_end(steps: int) -> None:
    async def main() -> None:
        async with trioconn.aio.guest() as portal:
            running = asyncio.ensure_future(portal.run(trio.sleep_forever))
            await portal.run(trio.sleep, 0)
            portal.ask_to_leave()
            for _ in range(steps):
                await asyncio.sleep(0)
            late = asyncio.ensure_future(portal.run(trio.sleep_forever))
            async with asyncio.timeout(5):
                for call in (running, late):
                    with pytest.raises(trioconn.ConnectorClosedError):
                        await call

    on_plain_asyncio(main)


def test_calls_at_every_step_of_the_end() -> None:
    """Each has an answer, whichever step of the run's end it comes in."""

    async def main() -> None:
        calls: list[asyncio.Future[Any]] = []
        async with trioconn.aio.guest() as portal:
            portal.ask_to_leave()
            for _ in range(20):
                calls.append(asyncio.ensure_future(portal.run(trio.sleep_forever)))
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                found = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, trioconn.ConnectorClosedError) for one in found)

    on_plain_asyncio(main)


def test_a_crash_of_trio_leaves_nobody_waiting() -> None:
    """In a process of its own, because trio leaves all lying about."""
    script = """
import asyncio, trio, trioconn, trioconn.aio

async def crash():
    with trio.move_on_after(0.01):  # trio's own loop finds out that the answer is none
        await trio.lowlevel.wait_task_rescheduled(lambda _: 3)

async def main():
    try:
        async with trioconn.aio.guest() as portal:
            calls = [asyncio.ensure_future(portal.run(f)) for f in (crash, trio.sleep_forever)]
            await asyncio.wait(calls, timeout=10)
    except trio.TrioInternalError:
        print("crashed", *(type(call.exception()).__name__ for call in calls))

asyncio.run(main())
"""
    assert in_a_process(script) == "crashed ConnectorClosedError ConnectorClosedError"


def test_a_portal_in_a_loop_of_trio_asyncio_that_somebody_else_opened() -> None:
    needs_trio_asyncio()

    async def double(number: int) -> int:
        await trio.lowlevel.checkpoint()
        return 2 * number

    async def in_loop() -> None:
        assert await trioconn.aio.portal().run(double, 21) == 42

    async def main() -> None:
        import trio_asyncio

        async with trio_asyncio.open_loop():
            await trio_asyncio.aio_as_trio(in_loop)()

    trio.run(main)


# ---- connectors and leases -------------------------------------------------------------------------------------------


def test_cancelled_while_a_connector_is_entered(run: Run) -> None:
    async def main(portal: Portal) -> None:
        for steps in range(4):
            connector = trioconn.TCPConnector()
            opened = portal.open(connector)
            task = asyncio.ensure_future(opened.__aenter__())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            async with asyncio.timeout(5):
                try:
                    await task
                except asyncio.CancelledError:
                    assert steps == 0 or connector.closed
                else:
                    await opened.__aexit__(None, None, None)

    run(main)


def test_a_connector_that_was_never_entered_needs_no_leaving(run: Run) -> None:
    async def main(portal: Portal) -> None:
        async with asyncio.timeout(5):
            await portal.open(trioconn.TCPConnector()).__aexit__(None, None, None)

    run(main)


def test_borrowed_connectors_stay_open(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        async with portal.open(trioconn.TCPConnector()) as owned:
            borrowed = portal.borrow(owned.trio_connector)
            async with borrowed, await borrowed.connect(server.url()) as conn:
                assert repr(conn) == f"<asyncio {conn.lease!r}>"
                assert repr(conn.stream).startswith("<asyncio <stream of")
                conn.release()
            assert owned.statistics().idle == 1

    run(main)


def test_closed_from_another_thread(run: Run, server: Any) -> None:
    """As a finalizer may be."""

    async def main(portal: Portal) -> None:
        async with portal.open(trioconn.TCPConnector()) as connector:
            conn = await connector.connect(server.url())
            thread = threading.Thread(target=conn.close)
            thread.start()
            thread.join(5)
            async with asyncio.timeout(5):
                while not conn.closed:  # noqa: ASYNC110 - nothing tells it
                    await asyncio.sleep(0.001)
            assert connector.statistics().open == 0

    run(main)


def test_orders_for_a_run_that_is_over_are_dropped() -> None:
    async def token() -> trio.lowlevel.TrioToken:
        return trio.lowlevel.current_trio_token()

    portal = Portal(asyncio.SelectorEventLoop(), None)
    portal.adopt(trio.run(token))
    told: list[int] = []
    portal.order(lambda: told.append(1))
    assert not told
    portal.loop.close()


class Lingering(trioconn.BaseConnector):
    """Its streams take for ever to close."""

    async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
        return Slow(await trio.open_tcp_stream(route.host, route.port))


class Slow(Hidden):
    async def aclose(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(self._inner)


def test_a_block_of_a_lease_ends_with_the_run(server: Any) -> None:
    """Leaving the block closes; that the run ended during it is no error: the connection is closed."""
    closing = asyncio.Event()

    async def use(connector: Any) -> None:
        async with await connector.connect(server.url()):
            closing.set()

    async def main() -> None:
        async with trioconn.aio.guest() as portal:
            connector = portal.open(Lingering())
            await connector.__aenter__()
            task = asyncio.ensure_future(use(connector))
            await closing.wait()
        async with asyncio.timeout(5):
            await task

    on_plain_asyncio(main)


@pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")  # it can close none now
@pytest.mark.parametrize("streams", ["ours", "foreign"])
def test_a_borrowed_connector_outlives_the_loop(server: Any, caplog: pytest.LogCaptureFixture, streams: str) -> None:
    """The transports of a session that nobody closed die with their leases, with no word to a loop that is no more."""
    needs_trio_asyncio()

    class Foreign(trioconn.BaseConnector):
        async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
            return await trio.open_tcp_stream(route.host, route.port)

    kept: list[Any] = []

    async def main() -> None:
        from trio_asyncio import aio_as_trio

        async def requests() -> None:
            client = aiohttp.ClientSession(connector=AiohttpConnector(connector), connector_owner=False)
            kept.extend([client, await client.get(server.url("/stall?headers"))])

        async with trioconn.TCPConnector() if streams == "ours" else Foreign() as connector:  # noqa: SIM117 - in order
            async with trioconn.aio.open_loop():
                await aio_as_trio(requests)()
        assert connector.statistics().open == 0

    trio.run(main)
    kept[1].close()
    assert not [record for record in caplog.records if record.name.startswith("trioconn")]
    on_plain_asyncio(kept[0].close)
    kept.clear()
    gc.collect()


# ---- aiohttp ---------------------------------------------------------------------------------------------------------


def test_requests_after_the_run_has_ended(server: Any) -> None:
    async def main() -> None:
        async with trioconn.aio.guest():
            used = aiohttp.ClientSession(connector=AiohttpConnector())
            fresh = aiohttp.ClientSession(connector=AiohttpConnector())
            await (await used.get(server.url())).read()
        for client in (used, fresh):
            with pytest.raises(aiohttp.ClientConnectionError, match="closed"):
                await client.get(server.url())
            await client.close()

    on_plain_asyncio(main)


def test_the_connector_is_closed_while_a_request_begins(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        connector = AiohttpConnector()

        async def close(*_: object) -> None:
            await connector.close()

        config = aiohttp.TraceConfig()
        config.on_request_start.append(close)
        async with aiohttp.ClientSession(connector=connector, trace_configs=[config]) as client:
            with pytest.raises(aiohttp.ClientConnectionError, match="closed"):
                await client.get(server.url())

    run(main)


def test_closed_in_the_step_in_which_a_connection_is_granted(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        closing: list[Any] = []

        def hear(event: trioconn.events.Event) -> None:
            if isinstance(event, trioconn.events.QueueEnded) and not closing:
                closing.append(adapter.close())

        async with portal.open(trioconn.TCPConnector(observers=[hear])) as connector:
            adapter = AiohttpConnector(connector)
            async with aiohttp.ClientSession(connector=adapter, connector_owner=False) as client:
                with pytest.raises(aiohttp.ClientConnectionError, match="closed"):
                    await client.get(server.url())
            await closing[0]
            assert (connector.statistics().leased, connector.statistics().idle) == (0, 1)

    run(main)


def test_the_system_watches_no_more(run: Run, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease that cannot have a transport is not lost."""

    async def main(portal: Portal) -> None:
        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        connector = AiohttpConnector()
        async with aiohttp.ClientSession(connector=connector) as client:
            with monkeypatch.context() as patched:
                patched.setattr(portal.readiness, "watch", refuse)
                with pytest.raises(OSError, match="No space"):
                    await client.get(server.url())
            assert connector.connector.statistics().open == 0
            assert (await client.get(server.url())).status == 200

    run(main)
