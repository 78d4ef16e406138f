"""1. One idle connection, taken and given back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import servers
import trio
import yarl
from measuring import OURS, Comparison

import trioconn

ITEM = "1. An idle connection, taken and given back"


def measure(*, quick: bool) -> list[Comparison]:
    """Microseconds of CPU, the best of many short batches."""
    with servers.echo() as port:
        samples = trio.run(_measure, port, 300 if quick else 1000, 25 if quick else 121)
    return [
        _row("connect_nowait + release", "trio.Semaphore acquire_nowait + release", 18, samples),
        _row("connect + release", "trio checkpoint()", 3, samples),
        _row("connect_nowait + release", "aiohttp connect + release (tests nothing)", 1.5, samples),
    ]


def _row(ours: str, theirs: str, target: float, samples: dict[str, list[float]]) -> Comparison:
    pair = {OURS: samples[ours], theirs: samples[theirs]}
    return Comparison(ITEM, ours, "µs", pair, theirs, target, best=True)


async def _measure(port: int, batch: int, rounds: int) -> dict[str, list[float]]:
    # An asyncio loop can be run from within a trio task, as any blocking call can; so its turns come in between ours.
    loop = asyncio.new_event_loop()
    peer = _Aiohttp()
    loop.run_until_complete(peer.open(port))
    semaphore = trio.Semaphore(1)
    span = range(batch)
    samples: dict[str, list[float]] = {}
    async with trioconn.TCPConnector() as connector:
        route = connector.route(f"tcp://127.0.0.1:{port}")
        (await connector.connect(route)).release()
        connect_nowait, connect = connector.connect_nowait, connector.connect

        async def nowait() -> float:
            began = time.thread_time()
            for _ in span:
                connect_nowait(route).release()
            return time.thread_time() - began

        async def semaphores() -> float:
            began = time.thread_time()
            for _ in span:
                semaphore.acquire_nowait()
                semaphore.release()
            return time.thread_time() - began

        async def connecting() -> float:
            began = time.thread_time()
            for _ in span:
                (await connect(route)).release()
            return time.thread_time() - began

        async def checkpoints() -> float:
            began = time.thread_time()
            for _ in span:
                await trio.lowlevel.checkpoint()
            return time.thread_time() - began

        async def aiohttps() -> float:
            return loop.run_until_complete(peer.batch(batch))

        contenders = {
            "connect_nowait + release": nowait,
            "trio.Semaphore acquire_nowait + release": semaphores,
            "connect + release": connecting,
            "trio checkpoint()": checkpoints,
            "aiohttp connect + release (tests nothing)": aiohttps,
        }
        for turn in range(rounds + 1):
            for name, contender in contenders.items():
                seconds = await contender()
                if turn:
                    samples.setdefault(name, []).append(seconds * 1e6 / batch)
    loop.run_until_complete(peer.close())
    loop.close()
    return samples


class _Aiohttp:
    """Its connector, asked as its session asks it."""

    async def open(self, port: int) -> None:
        self.connector = aiohttp.TCPConnector()
        self.request: Any = aiohttp.ClientRequest("GET", yarl.URL(f"http://127.0.0.1:{port}/"))
        (await self.connector.connect(self.request, [], aiohttp.ClientTimeout())).release()

    async def batch(self, count: int) -> float:
        connect, request, timeout = self.connector.connect, self.request, aiohttp.ClientTimeout()
        began = time.thread_time()
        for _ in range(count):
            (await connect(request, [], timeout)).release()
        return time.thread_time() - began

    async def close(self) -> None:
        await self.connector.close()
