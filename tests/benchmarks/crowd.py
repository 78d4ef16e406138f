"""3. A crowd of tasks on a limit of 100: each leases, yields once, releases."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import aiohttp
import fakes
import httpcore2
import trio
import yarl
from measuring import OURS, Comparison, in_turn

ITEM = "3. Many tasks on a limit of 100: each leases, yields once, releases"
FLOOR = "floor: a task, a channel of its own, a checkpoint"
SHARED = "the same with one channel for all"
TARGET = 1.5
_LIMIT = 100


def measure(*, quick: bool) -> list[Comparison]:
    """Microseconds of CPU per lease. httpcore2's cost grows with the square of the crowd, so it is let off early."""
    rows: list[Comparison] = []
    for tasks in (1_000, 10_000) if quick else (1_000, 10_000, 100_000):
        contenders = {OURS: _ours, FLOOR: _floor, SHARED: _shared, "aiohttp": _aiohttp}
        if tasks == 1_000:
            contenders["httpcore2 (with h11)"] = _httpcore2
        rounds = 3 if tasks > 10_000 else 5 if quick else 11
        samples = in_turn({name: _bound(f, tasks) for name, f in contenders.items()}, rounds)
        rows.append(Comparison(ITEM, f"{tasks:,} tasks".replace(",", " "), "µs", samples, FLOOR, TARGET))
    if not quick:
        samples = in_turn(
            {name: _bound(f, 5_000) for name, f in ((OURS, _ours), ("httpcore2 (with h11)", _httpcore2))}, 1
        )
        rows.append(Comparison(ITEM, "5 000 tasks", "µs", samples))
    return rows


def _bound(f: Any, tasks: int) -> Any:
    return lambda: f(tasks)


def _ours(tasks: int) -> float:
    async def main() -> float:
        async with fakes.FakeConnector(limit=_LIMIT) as connector:
            route = connector.route("http://host.test")
            await connector.prewarm(route, _LIMIT)

            async def one() -> None:
                async with await connector.connect(route) as lease:
                    await trio.lowlevel.checkpoint()
                    lease.release()

            return await _timed(one, tasks)

    return trio.run(main)


def _floor(tasks: int) -> float:
    """First come, first served: each task waits on a memory channel of its own for the one that ends."""

    async def main() -> float:
        free = _LIMIT
        waiting: deque[trio.MemorySendChannel[None]] = deque()

        async def one() -> None:
            nonlocal free
            if free:
                free -= 1
            else:
                give, take = trio.open_memory_channel[None](1)
                waiting.append(give)
                await take.receive()
            try:
                await trio.lowlevel.checkpoint()
            finally:
                if waiting:
                    waiting.popleft().send_nowait(None)
                else:
                    free += 1

        return await _timed(one, tasks)

    return trio.run(main)


def _shared(tasks: int) -> float:
    async def main() -> float:
        give, take = trio.open_memory_channel[None](_LIMIT)
        for _ in range(_LIMIT):
            give.send_nowait(None)

        async def one() -> None:
            await take.receive()
            try:
                await trio.lowlevel.checkpoint()
            finally:
                give.send_nowait(None)

        return await _timed(one, tasks)

    return trio.run(main)


async def _timed(one: Any, tasks: int) -> float:
    began = time.thread_time()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(one)
    return (time.thread_time() - began) * 1e6 / tasks


def _httpcore2(tasks: int) -> float:
    async def main() -> float:
        async with httpcore2.AsyncConnectionPool(
            max_connections=_LIMIT, network_backend=fakes.FakeCoreBackend()
        ) as pool:

            async def one() -> None:
                await pool.request("GET", "http://host.test/")

            return await _timed(one, tasks)

    return trio.run(main)


class _Protocol(aiohttp.client_proto.ResponseHandler):
    closed = None  # type: ignore[assignment]  # else the connector waits for the end of the transport that is not there

    def is_connected(self) -> bool:
        return True


class _Connector(aiohttp.BaseConnector):
    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:
        return _Protocol(asyncio.get_running_loop())


def _aiohttp(tasks: int) -> float:
    async def main() -> float:
        connector = _Connector(limit=_LIMIT)
        request: Any = aiohttp.ClientRequest("GET", yarl.URL("http://host.test/"))
        timeout = aiohttp.ClientTimeout()

        async def one() -> None:
            lease = await connector.connect(request, [], timeout)
            await asyncio.sleep(0)
            lease.release()

        for lease in [await connector.connect(request, [], timeout) for _ in range(_LIMIT)]:
            lease.release()
        began = time.thread_time()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(one())
        seconds = time.thread_time() - began
        await connector.close()
        return seconds * 1e6 / tasks

    return asyncio.run(main())
