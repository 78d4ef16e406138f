"""The way between asyncio and trio: results, errors, cancellations, contexts; and the end of everything."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.abc
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

import trioconn
import trioconn.aio
from trioconn.aio import AiohttpConnector, Portal

Run = Callable[[Callable[[Portal], Awaitable[Any]]], Any]
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


# ---- calls -----------------------------------------------------------------------------------------------------------


def test_results_errors_and_contexts(run: Run) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def double(number: int) -> tuple[int, str]:
        await trio.lowlevel.checkpoint()
        found = variable.get()
        variable.set("changed in trio")
        return 2 * number, found

    async def fail() -> None:
        raise ValueError("mine")

    async def late() -> None:
        with trio.fail_after(0):
            await trio.sleep_forever()

    async def main(portal: Portal) -> None:
        variable.set("set in asyncio")
        assert await portal.run(double, 21) == (42, "set in asyncio")
        assert variable.get() == "set in asyncio"
        with pytest.raises(ValueError, match="mine"):
            await portal.run(fail)
        with pytest.raises(TimeoutError) as error:
            await portal.run(late)
        assert isinstance(error.value.__cause__, trio.TooSlowError)
        assert await asyncio.gather(*[portal.run(double, n) for n in range(50)]) == [
            (2 * n, "set in asyncio") for n in range(50)
        ]

    run(main)


def test_cancellation_goes_in_and_waits_for_the_cleanup(run: Run) -> None:
    steps: list[str] = []

    async def careful() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            steps.append("cancelled")
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)
            steps.append("cleaned up")
            raise

    async def main(portal: Portal) -> None:
        task = asyncio.ensure_future(portal.run(careful))
        await portal.run(trio.sleep, 0.01)
        task.cancel("why")
        await asyncio.sleep(0.01)
        task.cancel("again")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert steps == ["cancelled", "cleaned up"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await portal.run(trio.sleep_forever)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(portal.run(trio.sleep_forever), 0.01)

    run(main)


def test_a_cancel_scope_of_trio_reaches_asyncio() -> None:
    if sys.version_info >= (3, 14):
        pytest.skip("trio-asyncio is for Python before 3.14")
    pytest.importorskip("trio_asyncio")
    ended: list[str] = []

    async def main() -> None:
        from trio_asyncio import aio_as_trio

        async def connect() -> None:
            try:
                await trioconn.aio.portal().run(trio.sleep_forever)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        async with trioconn.aio.open_loop():
            with trio.move_on_after(0.05) as scope:
                await aio_as_trio(connect)()
            assert scope.cancelled_caught

    trio.run(main)
    assert ended == ["cancelled"]


# ---- leases ----------------------------------------------------------------------------------------------------------


def test_leases(run: Run, server: Any, refused: int) -> None:
    async def main(portal: Portal) -> None:
        async with portal.open(trioconn.TCPConnector(limit=2)) as connector:
            for expected in (False, True):
                async with await connector.connect(server.url()) as conn:
                    assert conn and not conn.closed and conn.lease.reused is expected
                    await conn.stream.wait_send_all_might_not_block()
                    await conn.stream.send_all(REQUEST)
                    assert (await conn.stream.receive_some(12)) == b"HTTP/1.1 200"
                    while b"\r\n\r\n" not in await conn.stream.receive_some():
                        pass
                    conn.release()
                    assert conn.closed
                with pytest.raises(trio.ClosedResourceError):
                    _ = conn.stream
            async with await connector.connect(server.url()) as conn:
                await conn.stream.send_eof()
            async with await connector.connect(server.url()) as conn:
                await conn.stream.aclose()
                with pytest.raises(trio.ClosedResourceError):
                    await conn.stream.send_all(b"x")
            with pytest.raises(ValueError, match="mine"):
                async with await connector.connect(server.url()) as conn:
                    raise ValueError("mine")
            with pytest.raises(trioconn.ConnectError):
                await connector.connect(f"http://127.0.0.1:{refused}")
            with pytest.raises(trioconn.InvalidTargetError):
                await connector.connect("gopher://x")
            with pytest.raises(trio.WouldBlock):
                connector.connect_nowait(server.url())
            await connector.prewarm(server.url(), 2)
            assert connector.statistics().idle == 2
            connector.connect_nowait(server.url()).release()
            assert "TCPConnector, open" in repr(connector)
            await connector.aclose()
            with pytest.raises(trioconn.ConnectorClosedError):
                await connector.connect(server.url())

    run(main)


@pytest.mark.parametrize("nudges", range(4))
def test_result_meets_cancellation(run: Run, server: Any, nudges: int) -> None:
    """200 rounds: the caller is cancelled around the moment at which its lease arrives. None is lost."""

    async def main(portal: Portal) -> None:
        async with portal.open(trioconn.TCPConnector(limit=1)) as connector:
            outcomes = []
            for number in range(50):
                task = asyncio.ensure_future(connector.connect(server.url()))
                if number % 2:
                    trigger = asyncio.Event()
                    portal.loop.call_soon(trigger.set)
                    await trigger.wait()
                    for _ in range(nudges + number % 5):
                        await asyncio.sleep(0)
                else:

                    async def cancel_from_trio(task: asyncio.Task[Any] = task) -> None:
                        # In the very step in which the lease is granted, before or after.
                        for _ in range(nudges):
                            await trio.lowlevel.checkpoint()
                        task.cancel()

                    await portal.run(cancel_from_trio)
                task.cancel()
                try:
                    (await task).release()
                    outcomes.append("lease")
                except asyncio.CancelledError:
                    outcomes.append("cancelled")
                async with asyncio.timeout(5):  # the only slot is free again
                    (await connector.connect(server.url())).release()
            found = connector.statistics()
            assert (found.leased, found.waiting, found.open) == (0, 0, 1)
            assert "cancelled" in outcomes

    run(main)


@pytest.mark.parametrize("idle", [True, False], ids=["idle", "new"])
def test_result_meets_cancellation_in_aiohttp(run: Run, server: Any, idle: bool) -> None:
    async def main(portal: Portal) -> None:
        async with portal.open(trioconn.TCPConnector(limit=1)) as connector:
            async with aiohttp.ClientSession(connector=AiohttpConnector(connector)) as client:
                for number in range(200):
                    if idle:
                        async with asyncio.timeout(5), client.get(server.url()) as response:
                            await response.read()
                    task = asyncio.ensure_future(client.get(server.url()))
                    for _ in range(number % 8):
                        await asyncio.sleep(0)
                    if number % 3:
                        portal.order(task.cancel)  # in the very step in which a connection is handed out
                        await portal.run(trio.sleep, 0)
                    task.cancel()
                    try:
                        (await task).close()
                    except asyncio.CancelledError:
                        pass
            found = connector.statistics()
            assert (found.leased, found.waiting, found.connecting) == (0, 0, 0)

    run(main)


@pytest.mark.case("anyio#1094")
def test_no_cancellation_escapes_from_a_race(run: Run, server: Any) -> None:
    class Fake(trioconn.Resolver):
        async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[trioconn.ResolveResult]:
            await trio.lowlevel.checkpoint()
            import socket

            # 127.0.0.2 is as alive as 127.0.0.1, but nobody listens there on this port.
            addresses = ["127.0.0.2", "127.0.0.1", "127.0.0.3"]
            return [trioconn.ResolveResult(address, socket.AF_INET, None) for address in addresses]

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    async def main(portal: Portal) -> None:
        async with portal.open(trioconn.TCPConnector(resolver=Fake(), happy_eyeballs_delay=0.001)) as connector:
            for _ in range(10):
                conn = await connector.connect(f"http://racing.test:{server.port}")
                conn.close()
            assert asyncio.current_task().cancelling() == 0

    run(main)


# ---- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["session last", "connector last", "response open", "nothing closed", "task running"])
def test_exits_in_any_order(run: Run, server: Any, order: str, recwarn: pytest.WarningsRecorder) -> None:
    kept: list[Any] = []

    async def main(portal: Portal) -> None:
        connector = portal.open(trioconn.TCPConnector())
        await connector.__aenter__()
        client = aiohttp.ClientSession(connector=AiohttpConnector(connector))
        other = aiohttp.ClientSession(connector=AiohttpConnector())
        kept.extend([client, other, connector])
        for one in (client, other):
            await (await one.get(server.url())).read()
        if order == "session last":
            await connector.__aexit__(None, None, None)
            with pytest.raises(aiohttp.ClientConnectionError):
                await client.get(server.url())
        elif order == "connector last":
            await client.close()
            await connector.__aexit__(None, None, None)
        elif order == "response open":
            response = await client.get(server.url("/stall?headers"))
            await connector.__aexit__(None, None, None)
            with pytest.raises(aiohttp.ClientError):
                async with asyncio.timeout(5):
                    await response.read()
        else:
            if order == "task running":
                kept.append(asyncio.ensure_future(client.get(server.url("/stall"))))
                kept.append(asyncio.ensure_future(connector.connect("http://127.0.0.1:1")))
                await asyncio.sleep(0.02)
            return
        await client.close()
        await other.close()

    async def closing() -> None:
        for one in kept[:2]:
            await one.close()

    run(main)
    for one in kept[3:]:
        assert one.done()
        if not one.cancelled():
            one.exception()
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(closing())  # closing what ended long ago is harmless
    assert kept[2].trio_connector.closed


def test_a_forgotten_session_warns(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        connector = AiohttpConnector()
        client = aiohttp.ClientSession(connector=connector, connector_owner=False)
        await (await client.get(server.url())).read()
        await client.close()
        await asyncio.sleep(0.05)  # until the loop holds nothing of it
        del client
        with pytest.warns(ResourceWarning, match="Unclosed connector"):
            del connector

    run(main)


def test_the_program_ends_while_requests_run(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        async with aiohttp.ClientSession(connector=AiohttpConnector()) as client:
            await client.get(server.url("/stall"))

    async def bounded(portal: Portal) -> None:
        async with asyncio.timeout(0.1):
            await main(portal)

    with pytest.RaisesGroup(TimeoutError, allow_unwrapped=True, flatten_subgroups=True):
        run(bounded)


def test_guests_share_a_run() -> None:
    async def inner(started: asyncio.Event, leave: asyncio.Event) -> None:
        async with trioconn.aio.guest() as portal:
            assert trioconn.aio.portal() is portal
            started.set()
            await leave.wait()
            assert await portal.run(trio.sleep, 0) is None

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"trioconn\.aio\.guest"):
            trioconn.aio.portal()
        started, leave = asyncio.Event(), asyncio.Event()
        async with trioconn.aio.guest() as portal:
            task = asyncio.ensure_future(inner(started, leave))
            await started.wait()
        leave.set()
        await task
        assert portal.closed
        with pytest.raises(trioconn.ConnectorClosedError):
            await portal.run(trio.sleep, 0)
        with pytest.raises(trioconn.ConnectorClosedError):
            async with portal.open(trioconn.TCPConnector()):
                pass
        async with trioconn.aio.guest() as another:
            assert another is not portal
            await another.run(wait_all_tasks_blocked)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


def test_guest_in_a_trio_asyncio_loop_is_that_run(run: Run) -> None:
    async def main(portal: Portal) -> None:
        async with trioconn.aio.guest() as again:
            assert again is portal
        assert not portal.closed
        await portal.run(trio.sleep, 0)

    run(main)


@pytest.mark.case("trio-asyncio#115")
def test_open_loop_is_cancelled_anywhere(server: Any) -> None:
    if sys.version_info >= (3, 14):
        pytest.skip("trio-asyncio is for Python before 3.14")
    pytest.importorskip("trio_asyncio")

    async def whole() -> None:
        from trio_asyncio import aio_as_trio

        async def requests() -> None:
            async with aiohttp.ClientSession(connector=AiohttpConnector()) as client:
                for _ in range(3):
                    await (await client.get(server.url())).read()

        async with trioconn.aio.open_loop():
            await aio_as_trio(requests)()

    async def main(checkpoints: int) -> bool:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def cancel() -> None:
                    for _ in range(checkpoints):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                await whole()
                nursery.cancel_scope.cancel()
        return scope.cancelled_caught

    for checkpoints in range(0, 60, 3):
        trio.run(main, checkpoints)


@pytest.mark.case("trio-asyncio#143")
def test_50_calls_of_which_half_are_cancelled_before_they_start(run: Run) -> None:
    async def main(portal: Portal) -> None:
        async with portal.open(trioconn.TCPConnector(use_dns_cache=False)) as connector:
            tasks = [asyncio.ensure_future(connector.connect("http://does-not-exist.invalid")) for _ in range(50)]
            for task in tasks[::2]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in found[::2])
            assert all(isinstance(one, trioconn.ResolveError) for one in found[1::2])

    run(main)


# ---- imports ---------------------------------------------------------------------------------------------------------


def in_a_process(script: str) -> str:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def test_nothing_heavy_is_imported() -> None:
    script = """
import sys
before = set(sys.modules)  # what measures coverage may have imported greenlet
import trioconn.aio
print([name for name in ("trio_asyncio", "aiohttp", "greenlet") if name in {*sys.modules} - before])
trioconn.aio.AiohttpConnector
print("aiohttp" in sys.modules, "trio_asyncio" in sys.modules)
"""
    assert in_a_process(script).split("\n")[:2] == ["[]", "True False"]


def test_plain_asyncio_run(server: Any) -> None:
    """As in the documentation: an unmodified program, warnings as errors, nothing of trio-asyncio."""
    script = f"""
import asyncio, sys
import aiohttp, trioconn.aio

async def main():
    async with trioconn.aio.guest():
        async with aiohttp.ClientSession(connector=trioconn.aio.AiohttpConnector(limit=10)) as session:
            async with session.get({server.url()!r}) as response:
                print(response.status)

asyncio.run(main())
assert "trio_asyncio" not in sys.modules
"""
    assert in_a_process(script).strip() == "200"


class Refusing(importlib.abc.MetaPathFinder):
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "trio_asyncio":
            raise self._error


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[BaseException], None]]:
    def refuse(error: BaseException) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "trio_asyncio"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Refusing(error), *sys.meta_path])

    return refuse


@pytest.mark.parametrize(
    ("version", "error", "message"),
    [
        ((3, 14, 0), ModuleNotFoundError("No module", name="trio_asyncio"), r"this Python \(3\.14\).*aio\.guest"),
        ((3, 14, 0), AttributeError("BaseDefaultEventLoopPolicy"), r"this Python \(3\.14\).*aio\.guest"),
        ((3, 13, 0), ModuleNotFoundError("No module", name="trio_asyncio"), r"trioconn\[asyncio\].*aio\.guest"),
    ],
)
async def test_without_trio_asyncio(
    monkeypatch: pytest.MonkeyPatch, refusing: Any, version: Any, error: BaseException, message: str
) -> None:
    refusing(error)
    monkeypatch.setattr("trioconn.aio.runs.sys.version_info", version)
    with pytest.raises(ImportError, match=message):
        async with trioconn.aio.open_loop():
            pass


def test_without_aiohttp() -> None:
    script = """
import sys
sys.modules["aiohttp"] = None
import trioconn.aio
try:
    trioconn.aio.AiohttpConnector
except ImportError as error:
    print(error)
try:
    trioconn.aio.Nonsense
except AttributeError as error:
    print(error)
"""
    out = in_a_process(script)
    assert "trioconn[asyncio]" in out and "no attribute 'Nonsense'" in out
