"""OWN: a caller in the queue.

A waiter is its task, parked, and woken once. (A memory channel for each would do as well, and was a third of what a
queued lease costs.) The grant itself stands on the waiter, so that a grant and a cancellation that meet in one tick
cannot lose the connection: whoever leaves the queue looks whether it was granted something, and gives it back before
anything else can happen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import trio

from ._connection import Held
from ._pool import Record
from ._route import Route

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._observing import Observer

AnyRecord: TypeAlias = Record[Route, Held]


class Waiter:
    """A caller in the queue: what it waits for, and what it got."""

    __slots__ = ("error", "number", "observers", "queued", "record", "route", "since", "task")

    def __init__(self, route: Route, number: int, since: float, observers: Sequence[Observer]) -> None:
        self.route = route
        self.number = number
        self.since = since
        self.observers = observers
        self.task: trio.lowlevel.Task | None = None  # while it is parked
        self.queued = True
        self.record: AnyRecord | None = None
        self.error: BaseException | None = None

    async def park(self) -> None:
        """Wait until there is a record or an error. If this raises, there may be one nevertheless."""
        if self.queued:
            self.task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._unpark)
        else:
            await trio.lowlevel.checkpoint()

    def _unpark(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        """There is a record or an error."""
        self.queued = False
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)
            self.task = None
