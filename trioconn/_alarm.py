"""The timer of a connector, and the one warning that it gives.

The timer sleeps until the next moment at which there is something to do. A periodic tick would be simpler, and would
make the clocks of tests run on for ever.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import trio
from trio.lowlevel import enable_ki_protection

from ._connection import Held, place
from ._pool import Pool
from ._route import Route

logger = logging.getLogger("trioconn.connector")

_WARNING_INTERVAL = 60.0  # seconds
_HOLDERS_NAMED = 5


class Alarm:
    """Rings at the earliest moment it was set to. It may ring earlier than anything is due, never later.

    Attributes:
      at: when it will ring, or infinity.
    """

    def __init__(self) -> None:
        self.at = math.inf
        self._life = trio.CancelScope()
        self._sleep: trio.CancelScope | None = None

    @enable_ki_protection
    async def run(self, ring: Callable[[], None]) -> None:
        """Call ``ring()`` at each of the moments, until `stop`. It has to set the alarm anew."""
        with self._life:
            while True:
                with trio.CancelScope(deadline=self.at) as self._sleep:
                    await trio.sleep_forever()
                self.at = math.inf
                ring()

    def bring_forward(self, moment: float) -> None:
        """Ring at `moment` if that is before what it is set to."""
        if moment < self.at:
            self.set(moment)

    def set(self, moment: float) -> None:
        """Ring at `moment`, and not before."""
        self.at = moment
        if self._sleep is not None:
            self._sleep.deadline = moment

    def stop(self) -> None:
        """Ring no more."""
        self._life.cancel()


class Impatience:
    """Notices that callers have waited for long while every connection is leased, and says who holds them.

    A limit that is used up for ever looks like a hang, and the cause is elsewhere: responses that somebody has not
    closed (aio-libs/aiohttp#1623, encode/httpx#1315). Waiting itself is not bounded: deadlines are the caller's.

    Args:
      patience: seconds, or None for a connector without ``connect_timeout``: it never warns.

    Attributes:
      due: when to look, or infinity.
    """

    def __init__(self, pool: Pool[Route, Any, Held], patience: float | None) -> None:
        self._pool = pool
        self._patience = patience
        self.due = math.inf

    def somebody_waits(self, now: float) -> None:
        """A caller was queued."""
        if self.due == math.inf and self._patience is not None and self._pool.waiting:
            self.due = now + self._patience

    def nobody_waits(self) -> None:
        """The queue is empty."""
        self.due = math.inf

    def look(self, now: float) -> None:
        """Warn if it is time to, and plan when to look again."""
        if self._patience is None or now < self.due:
            return
        pool = self._pool
        self.due = math.inf
        if not pool.waiting:
            return
        oldest = pool.oldest_wait(now)
        due = now + (self._patience - oldest)
        if due > now:  # not `oldest < patience`: what is missing may be less than the clock can tell
            self.due = due
            return
        self.due = now + _WARNING_INTERVAL
        if pool.idle or pool.connecting:
            return
        longest = sorted((record.connection for record in pool.leases()), key=lambda held: held.leased_at)
        logger.warning(
            "%d waiting, the first for %.0f s, while all %d connections are leased; longest held: %s",
            pool.waiting,
            oldest,
            pool.leased,
            "; ".join(
                f"{held.route} for {now - held.leased_at:.0f} s, taken at {place(held.where)}"
                for held in longest[:_HOLDERS_NAMED]
            ),
        )
