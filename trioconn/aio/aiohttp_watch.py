"""While a request waits for a connection: aiohttp's ``sock_connect``, and the signals of its traces."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import trioconn
from trioconn import events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp.tracing import Trace

    from .bridge import Call


def when(loop: asyncio.AbstractEventLoop, delay: float | None, threshold: float) -> float | None:
    """When a timeout of aiohttp's ends: long ones on a whole second, none at all for 0 and None."""
    if delay is None or delay <= 0:
        return None
    when = loop.time() + delay
    return math.ceil(when) if delay > threshold else when


class Watcher:
    """Hears what happens while a request waits: starts ``sock_connect``, and tells aiohttp's traces, in order."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        attempt: asyncio.Timeout,
        sock_connect: float | None,
        threshold: float,
        traced: bool,
    ) -> None:
        self._loop = loop
        self._attempt = attempt
        self._sock_connect = sock_connect
        self._threshold = threshold
        self._dials: set[int] = set()  # that run: attempts are not paired with waiters, so each is followed to its end
        self._granted = self._reused = False
        self._signals: asyncio.Queue[tuple[str, tuple[str, ...]] | None] | None = asyncio.Queue() if traced else None
        self._queueing = self._ended = False
        self.observers: tuple[Callable[[events.Event], object], ...] = (self._hear,) if traced or sock_connect else ()

    async def wait(self, call: Call[trioconn.Connection], traces: Sequence[Trace]) -> trioconn.Connection:
        """What `call` brings; `traces` are told meanwhile. Cancelled, nothing is left of the call."""
        signals = self._signals
        if signals is None:
            return await call.wait()
        call.add_done_callback(lambda _: self._done(signals))
        try:
            while (signal := await signals.get()) is not None:
                for trace in traces:
                    await getattr(trace, f"send_{signal[0]}")(*signal[1])
        except BaseException:
            await call.abandon()
            raise
        return await call.wait()

    def _done(self, signals: asyncio.Queue[tuple[str, tuple[str, ...]] | None]) -> None:
        if self._granted and not self._reused:
            self._say("connection_create_end")
        signals.put_nowait(None)

    def _hear(self, event: events.Event) -> None:
        if isinstance(event, events.DialStarted):
            if not self._dials:
                self._leave_queue()
                self._in_loop(when(self._loop, self._sock_connect, self._threshold))
            self._dials.add(event.dial)
            self._say("connection_create_start")
        elif isinstance(event, events.DialFailed | events.DialAborted | events.Created):
            self._dials.discard(event.dial)
            if not self._dials:  # if what came of it is an older waiter's, ours waits for a slot again
                self._in_loop(None)
        elif isinstance(event, events.Queued):
            self._loop.call_soon(self._still_queued)  # if it has caused an attempt, that is told in the same step
        elif isinstance(event, events.QueueEnded):
            self._ended = True
            if event.outcome == "granted":
                self._granted = True
                self._leave_queue()
        elif isinstance(event, events.Reused):
            self._reused = True
            self._say("connection_reuseconn")
        else:
            self._hear_of_names(event)

    def _still_queued(self) -> None:
        if not self._dials and not self._ended:
            self._queueing = True
            self._say("connection_queued_start")

    def _leave_queue(self) -> None:
        if self._queueing:
            self._queueing = False
            self._say("connection_queued_end")

    def _hear_of_names(self, event: events.Event) -> None:
        if isinstance(event, events.CacheHit):
            self._say("dns_cache_hit", event.host)
        elif isinstance(event, events.CacheMiss):
            self._say("dns_cache_miss", event.host)
        elif isinstance(event, events.LookupStarted):
            self._say("dns_resolvehost_start", event.host)
        elif isinstance(event, events.LookupFinished):
            self._say("dns_resolvehost_end", event.host)

    def _say(self, signal: str, *args: str) -> None:
        if self._signals is not None:
            self._signals.put_nowait((signal, args))

    def _in_loop(self, when: float | None) -> None:
        # Not at once: an observer is called inside the pool's step, in whatever context that happens to run in.
        if self._sock_connect:
            self._loop.call_soon(self._reschedule, when)

    def _reschedule(self, when: float | None) -> None:
        try:
            self._attempt.reschedule(when)
        except RuntimeError:
            pass  # it is over
