"""What a fact costs must not grow with what waits, with what is open, nor with how many routes there are.

Calls are counted, Python's and those into C, which no other load of the machine can disturb. Work inside one call, such
as moving the items of a list, does not show in that; the timed twins (marker `bench`) are for it.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from trioconn._pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable


def many_waiters(count: int, limit_per_host: int | None) -> tuple[Callable[[], None], int]:
    """On one route; half of them leave in random order, the others are served."""
    pool: Pool[str, int, str] = Pool(limit=10, limit_per_host=limit_per_host)
    order = random.Random(1).sample(range(count), count // 2)

    def story() -> None:
        attempts = [o.attempt for n in range(count) for o in pool.wanted(n, "A", 1.0)]  # type: ignore[union-attr]
        records: list[Any] = []
        for attempt in attempts:
            pool.dialed(attempt, "c", 1.0)
            records.append(attempt.record)
        for n in order:
            if n >= len(attempts):
                pool.gave_up(n, 2.0)
        for n in range(count // 2):
            pool.released(records[n % 10], 3.0)
            if records[n % 10].state == "idle":
                pool.take("A", 3.0)

    return story, 2 * count


def many_routes(count: int, limit_per_host: int | None) -> tuple[Callable[[], None], int]:
    """Each gets a connection; then all are taken and released, and found too old; the last are evicted for others."""
    pool: Pool[int, int, str] = Pool(limit=count, limit_per_host=limit_per_host)

    def story() -> None:
        for route in range(count):
            (dial,) = pool.wanted(route, route, 1.0)
            pool.dialed(dial.attempt, "c", 1.0)  # type: ignore[union-attr]
            pool.released(dial.attempt.record, 1.0)  # type: ignore[union-attr, arg-type]
        for route in range(count):
            record = pool.take(route, 2.0)
            assert record is not None
            pool.deadline()
            pool.released(record, 2.0, idle_for=5 if route % 2 else None)
        for route in range(count):
            pool.wanted(route, -1 - route, 3.0)  # evicts the longest idle
        pool.expired(1000.0)
        for route in range(count // 2):
            pool.gave_up(route, 1000.0)

    return story, 5 * count


def many_hungry_routes(count: int, limit_per_host: int | None) -> tuple[Callable[[], None], int]:
    """All wait for one slot."""
    pool: Pool[int, int, str] = Pool(limit=1, limit_per_host=limit_per_host)

    def story() -> None:
        (dial,) = pool.wanted(-1, -1, 1.0)
        for n in range(count):
            pool.wanted(n, n, 1.0)
        for n in random.Random(1).sample(range(1, count), count // 2):
            pool.gave_up(n, 1.0)
        while dial is not None:
            pool.dialed(dial.attempt, "c", 1.0)  # type: ignore[union-attr]
            orders = pool.dropped(dial.attempt.record, 1.0)  # type: ignore[union-attr, arg-type]
            dial = orders[0] if orders else None  # type: ignore[assignment]

    return story, 2 * count


STORIES = pytest.mark.parametrize("story", [many_waiters, many_routes, many_hungry_routes])
ENDPOINTS = pytest.mark.parametrize("limit_per_host", [None, 10])


def calls(story: Callable[[], None]) -> int:
    count = 0

    def counted(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        story()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.case("aiohttp#1821")
@pytest.mark.case("httpcore#1035")
@STORIES
@ENDPOINTS
def test_the_work_of_a_fact_does_not_grow(story: Any, limit_per_host: int | None) -> None:
    few, few_facts = story(100, limit_per_host)
    many, many_facts = story(3_000, limit_per_host)
    assert calls(many) / many_facts <= 1.5 * calls(few) / few_facts


@pytest.mark.bench
@STORIES
@ENDPOINTS
def test_the_time_of_a_fact_does_not_grow(story: Any, limit_per_host: int | None) -> None:
    def best(count: int, runs: int) -> float:
        times = []
        for _ in range(runs):
            tell, facts = story(count, limit_per_host)
            gc.collect()
            gc.disable()
            try:
                start = time.perf_counter()
                tell()
                times.append((time.perf_counter() - start) / facts)
            finally:
                gc.enable()
        return min(times)

    few, many = best(100, 100), best(10_000, 7)
    print(f"\n{story.__name__}, limit_per_host {limit_per_host}: {few * 1e6:.2f} µs at 100, {many * 1e6:.2f} at 10 000")
    assert many <= 1.5 * few


@pytest.mark.bench
def test_the_hot_path_is_quick() -> None:
    """Taking an idle connection and releasing it, beside a call that appends to and pops from a list."""
    pool: Pool[str, str, str] = Pool(limit=10)
    (dial,) = pool.wanted("w", "A", 1.0)
    pool.dialed(dial.attempt, "c", 1.0)  # type: ignore[union-attr]
    pool.released(dial.attempt.record, 1.0)  # type: ignore[union-attr, arg-type]

    class Shelf:
        def __init__(self) -> None:
            self.items = ["c"]

        def take(self, route: str, now: float) -> str:
            return self.items.pop()

        def released(self, item: str, now: float) -> None:
            self.items.append(item)

    def best(target: Any) -> float:
        times = []
        for _ in range(15):
            start = time.perf_counter()
            for _ in range(10_000):
                target.released(target.take("A", 1.0), 1.0)
            times.append((time.perf_counter() - start) / 10_000)
        return min(times)

    floor, ours = best(Shelf()), best(pool)
    print(f"\ntake and released: {ours * 1e6:.2f} µs; a list: {floor * 1e6:.2f} µs")
    assert ours <= 8 * floor
