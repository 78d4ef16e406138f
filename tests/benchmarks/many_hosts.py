"""4. Ten thousand hosts with one idle connection each."""

from __future__ import annotations

import gc
import time
import tracemalloc
from typing import Any

import fakes
import trio
import trio.testing
from measuring import OURS, Comparison, in_turn

ITEM = "4. 10 000 hosts with one idle connection each"
MANY, FEW = 10_000, 10
TARGET = 1.5
BYTES = 1536  # 1.5 KiB
_FEW = "trioconn with 10 hosts"


def measure(*, quick: bool) -> list[Comparison]:
    """Microseconds of CPU per operation with many hosts, beside those with few; and bytes."""
    rounds = 3 if quick else 9
    rows = [
        Comparison(
            ITEM, name, "µs", in_turn({OURS: _bound(f, MANY), _FEW: _bound(f, FEW)}, rounds), _FEW, TARGET, best=True
        )
        for name, f in (
            ("look up, take and release", _lookup),
            ("evict the longest idle for a new host", _evict),
            ("expire", _expire),
        )
    ]
    rows.append(Comparison(ITEM, "memory per idle connection", "bytes", {OURS: [_memory()]}, target=BYTES))
    return rows


def _bound(f: Any, hosts: int) -> Any:
    return lambda: f(hosts)


async def _fill(connector: fakes.FakeConnector, hosts: int, name: str = "host") -> list[Any]:
    routes = [connector.route(f"http://{name}{n}.test") for n in range(hosts)]
    for route in routes:
        (await connector.connect(route)).release()
    return routes


def _lookup(hosts: int) -> float:
    async def main() -> float:
        async with fakes.FakeConnector(limit=None) as connector:
            routes = await _fill(connector, hosts)
            best = []
            for _ in range(3):
                began = time.thread_time()
                for _ in range(MANY // hosts):
                    for route in routes:
                        connector.connect_nowait(route).release()
                best.append(time.thread_time() - began)
            return min(best) * 1e6 / MANY

    return trio.run(main)


def _evict(hosts: int) -> float:
    async def main() -> float:
        async with fakes.FakeConnector(limit=hosts) as connector:
            await _fill(connector, hosts)
            others = [connector.route(f"http://other{n}.test") for n in range(2000)]
            began = time.thread_time()
            for route in others:
                (await connector.connect(route)).release()
            return (time.thread_time() - began) * 1e6 / len(others)

    return trio.run(main)


def _expire(hosts: int) -> float:
    async def main() -> float:
        clock: Any = trio.lowlevel.current_clock()
        seconds = 0.0
        async with fakes.FakeConnector(limit=None, keepalive_timeout=15) as connector:
            for _ in range(MANY // hosts):
                await _fill(connector, hosts)
                await trio.testing.wait_all_tasks_blocked()
                began = time.thread_time()
                clock.jump(15)
                await trio.testing.wait_all_tasks_blocked()
                seconds += time.thread_time() - began
                assert connector.statistics().open == 0
        return seconds * 1e6 / MANY

    return trio.run(main, clock=trio.testing.MockClock())


def _memory() -> float:
    async def main() -> float:
        async with fakes.FakeConnector(limit=None, keepalive_timeout=None) as connector:
            await _fill(connector, 10, "first")
            gc.collect()
            tracemalloc.start()
            streams = [fakes.FakeStream() for _ in range(1000)]
            stream = tracemalloc.get_traced_memory()[0] / 1000
            del streams
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            routes = await _fill(connector, MANY)
            gc.collect()
            after = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            del routes
            return (after - before) / MANY - stream

    return trio.run(main)
