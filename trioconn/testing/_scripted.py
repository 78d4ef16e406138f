"""A connector whose dials follow a script."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import trio

from .._connector import BaseConnector
from .._errors import replica
from .._route import Route
from ._streams import MemoryStream, memory_stream_pair


@dataclass(frozen=True, slots=True)
class Succeed:
    """The dial gives a stream.

    Attributes:
      after: seconds that it takes.
      stubborn: cannot be cancelled meanwhile, as a peer's answer cannot that is under way already.
      stream: what it gives; None for a `MemoryStream`, whose other end is in ``connector.peers``.
    """

    after: float = 0.0
    stubborn: bool = False
    stream: trio.abc.Stream | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """The dial raises.

    Attributes:
      error: what it raises; each dial raises a copy.
      after: seconds that it takes.
      stubborn: cannot be cancelled meanwhile.
    """

    error: BaseException
    after: float = 0.0
    stubborn: bool = False


@dataclass(frozen=True, slots=True)
class Hang:
    """The dial never ends unless it is cancelled."""


Step: TypeAlias = Succeed | Fail | Hang
Script: TypeAlias = Step | Iterable[Step] | Callable[[Route], Step]


class ScriptedConnector(BaseConnector):
    """A connector in memory, for tests: every dial does what the script says.

    It takes every option of `BaseConnector` besides. Under virtual time nothing takes real time.

    Args:
      script: what dials do: one `Succeed`, `Fail` or `Hang` for all of them; several, one for each dial in order, and a
        dial beyond the last is an `AssertionError` in whoever waits for it; or a function of the route.
      handler: ``async (peer) -> object``, run with the other end of each stream, in `nursery`.
      nursery: where handlers run. It is the test's own, so that what a handler raises fails the test.
      capacity: of each direction of a stream, in bytes.

    Attributes:
      routes: the routes that were dialled, in order.
      moments: when, on the clock of the run.
      dialling: how many dials are under way.
      most_open: how many streams and dials there were at most at one time.
      streams: all memory streams that were made, in order.
      peers: their other ends.
    """

    def __init__(
        self,
        script: Script = Succeed(),
        *,
        handler: Callable[[MemoryStream], Awaitable[object]] | None = None,
        nursery: trio.Nursery | None = None,
        capacity: float = math.inf,
        **connector_options: Any,
    ) -> None:
        if handler is not None and nursery is None:
            raise TypeError("a handler needs a nursery to run in: ScriptedConnector(handler=…, nursery=…)")
        super().__init__(**connector_options)
        self.routes: list[Route] = []
        self.moments: list[float] = []
        self.dialling: int = 0
        self.most_open: int = 0
        self.streams: list[MemoryStream] = []
        self.peers: list[MemoryStream] = []
        self._script: Step | Iterator[Step] | Callable[[Route], Step]
        self._script = script if isinstance(script, Succeed | Fail | Hang) or callable(script) else iter(script)
        self._handler = handler
        self._handlers_nursery = nursery
        self._capacity = capacity

    @property
    def dials(self) -> int:
        """How many dials were begun."""
        return len(self.routes)

    @property
    def open_streams(self) -> list[MemoryStream]:
        """Those of our ends that are not closed. Empty once the connector is closed, or something leaks."""
        return [stream for stream in self.streams if not stream.closed]

    async def create_stream(self, route: Route) -> trio.abc.Stream:
        """What the script says."""
        self.routes.append(route)
        self.moments.append(trio.current_time())
        step = self._next(route)
        self.dialling += 1
        self.most_open = max(self.most_open, self.dialling + len(self.open_streams))
        try:
            if isinstance(step, Hang):
                await trio.sleep_forever()
            with trio.CancelScope(shield=step.stubborn):
                await trio.sleep(step.after)
            if isinstance(step, Fail):
                raise replica(step.error)
            return self._made() if step.stream is None else step.stream
        finally:
            self.dialling -= 1

    def _next(self, route: Route) -> Step:
        script = self._script
        if isinstance(script, Succeed | Fail | Hang):
            return script
        if callable(script):
            return script(route)
        step = next(script, None)
        assert step is not None, f"dial number {self.dials}, to {route}, is one more than the script has"
        return step

    def _made(self) -> MemoryStream:
        stream, peer = memory_stream_pair(capacity=self._capacity)
        self.streams.append(stream)
        self.peers.append(peer)
        if self._handler is not None:
            assert self._handlers_nursery is not None
            self._handlers_nursery.start_soon(self._handler, peer)
        return stream
