"""A caller that finds nothing idle queues at once: its wait is its checkpoint, and its cancel point comes first."""

from __future__ import annotations

import pytest
import trio
import trio.testing

import trioconn


class Counting(trioconn.BaseConnector):
    """Makes streams in memory, and counts how often it is asked."""

    asked = 0

    async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        return trio.testing.memory_stream_pair()[0]


async def test_in_a_cancelled_scope_nothing_is_asked_for() -> None:
    async with Counting() as connector:
        with trio.CancelScope() as scope:
            scope.cancel()
            await connector.connect("http://a.test")
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert connector.asked == 0 and connector.statistics().open == connector.statistics().waiting == 0


@pytest.mark.parametrize("idle", [False, True])
async def test_every_connect_is_a_checkpoint(idle: bool) -> None:
    async with Counting() as connector:
        if idle:
            (await connector.connect("http://a.test")).release()
        with trio.testing.assert_checkpoints():
            (await connector.connect("http://a.test")).release()
        assert connector.asked == 1


async def test_what_is_granted_before_its_caller_can_park_is_handed_over(nursery: trio.Nursery) -> None:
    # The granted connection proves dirty when the first caller resumes; another one has become idle in that very tick,
    # so that its second grant comes while it runs.
    clean: dict[trio.abc.Stream, bool] = {}

    class Judging(Counting):
        def is_clean(self, stream: trio.abc.Stream) -> bool:
            return clean.setdefault(stream, True)

    async with Judging(limit=2) as connector:
        first, second = [await connector.connect("http://a.test") for _ in range(2)]
        got: list[trioconn.Connection] = []

        async def wait() -> None:
            got.append(await connector.connect("http://a.test"))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        first.release()
        second.release()
        clean[next(iter(clean))] = False
        await trio.testing.wait_all_tasks_blocked()
        assert len(got) == 1 and got[0].info.number == 2 and connector.asked == 2
        got[0].release()


async def test_waiters_are_served_in_the_order_in_which_they_came(nursery: trio.Nursery) -> None:
    async with Counting(limit=1) as connector:
        lease = await connector.connect("http://a.test")
        served: list[int] = []

        async def wait(number: int) -> None:
            async with await connector.connect("http://a.test") as mine:
                served.append(number)
                mine.release()

        for number in range(5):
            nursery.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
        lease.release()
        await trio.testing.wait_all_tasks_blocked()
        assert served == [0, 1, 2, 3, 4]
