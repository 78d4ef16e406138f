"""2. A pooled request: a lease, 100 bytes there, 100 bytes back, a release."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial

import servers
import trio
from measuring import OURS, Comparison

import trioconn

ITEM = "2. A pooled request (100 bytes each way) beside the same bytes on a bare trio stream"
BARE = "bare trio stream"
TARGETS = {1: 0.85, 20: 0.70, 200: 0.70}
_DATA = b"x" * 100


def measure(*, quick: bool) -> list[Comparison]:
    """Requests per second, by the wall clock: the server is another process."""
    with servers.echo() as port:
        return [
            trio.run(_measure, port, tasks, target, 1000 if quick else 4000, 7 if quick else 31)
            for tasks, target in TARGETS.items()
        ]


async def _measure(port: int, tasks: int, target: float, requests: int, rounds: int) -> Comparison:
    each = max(requests // tasks, 20)
    samples: dict[str, list[float]] = {OURS: [], BARE: []}
    async with trioconn.TCPConnector(limit=tasks) as connector:
        route = connector.route(f"tcp://127.0.0.1:{port}")
        await connector.prewarm(route, tasks)
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(tasks)]

        async def pooled() -> None:
            for _ in range(each):
                async with await connector.connect(route) as lease:
                    stream = lease.stream
                    await stream.send_all(_DATA)
                    await stream.receive_some(65536)
                    lease.release()

        async def bare(stream: trio.SocketStream) -> None:
            for _ in range(each):
                await stream.send_all(_DATA)
                await stream.receive_some(65536)

        contenders = {OURS: [pooled] * tasks, BARE: [partial(bare, stream) for stream in streams]}
        for turn in range(rounds + 1):
            for name in list(contenders)[:: 1 if turn % 2 else -1]:
                rate = each * tasks / await _seconds(contenders[name])
                if turn:
                    samples[name].append(rate)
        for stream in streams:
            await stream.aclose()
    return Comparison(ITEM, f"{tasks} at a time", "requests/s", samples, BARE, target, at_most=False)


async def _seconds(tasks: list[Callable[[], Awaitable[None]]]) -> float:
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)
    return time.perf_counter() - began
