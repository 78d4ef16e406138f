"""OWN: the nursery of a connector, and polite closings.

Theory of operation
-------------------
The nursery encloses the body of ``async with connector``, whose exceptions must come out bare. So the body's exception
is never given to the nursery, and nothing that runs in the nursery raises for anybody's mistake.

Two kinds of tasks live in it. The *standing* ones, which keep time and watch, run until the connector ends. The others,
attempts and polite closings, are counted: `Crew.rest` waits until none is left.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import trio
from trio.lowlevel import enable_ki_protection

logger = logging.getLogger("trioconn.connector")

_NOT_CLOSED = "the stream of a connection could not be closed: %s"


class Crew:
    """The tasks of one connector.

    Attributes:
      nursery: where they run; None before `open`.
      busy: how many attempts and closings there are.
    """

    def __init__(self) -> None:
        self.nursery: trio.Nursery | None = None
        self.busy = 0
        self._at_rest = trio.Event()
        self._manager: Any = None
        self._context: contextvars.Context | None = None
        self._farewells: set[trio.CancelScope] = set()  # cancelled when closing has to be quick

    @enable_ki_protection
    async def open(self) -> trio.Nursery:
        """Open the nursery, in the present task and with its context."""
        self._manager = trio.open_nursery()
        nursery: trio.Nursery = await self._manager.__aenter__()
        self.nursery = nursery
        self._context = contextvars.copy_context()
        return nursery

    def start(self, name: str, f: Callable[[], Awaitable[None]]) -> None:
        """Start a task that is counted. Not in the context of who happened to ask: it outlives that caller."""
        nursery = self.nursery
        assert nursery is not None and self._context is not None
        self.busy += 1
        self._context.run(lambda: nursery.start_soon(self._counted, f, name=name))

    @enable_ki_protection
    async def _counted(self, f: Callable[[], Awaitable[None]]) -> None:
        try:
            await f()
        finally:
            self.busy -= 1
            if not self.busy:
                self._at_rest.set()
                self._at_rest = trio.Event()

    async def rest(self) -> None:
        """Wait until no attempt and no closing is left."""
        await trio.lowlevel.checkpoint()
        while self.busy:
            await self._at_rest.wait()

    @enable_ki_protection
    async def leave(self, leaving: BaseException | None) -> None:
        """End the nursery, of which everything is cancelled. `leaving` is what comes out of the body already."""
        try:
            # All that can arrive here is a cancellation from outside, or an interrupt.
            await self._manager.__aexit__(None, None, None)  # noqa: ASYNC102 - all it waits for is cancelled
        except BaseExceptionGroup as group:
            if leaving is None or isinstance(leaving, trio.Cancelled):
                # Were something to raise all the same, the body would have been cancelled by the nursery, and nobody
                # would ever catch that cancellation: what raised has to come out.
                cancelled, raised = group.split(trio.Cancelled)
                if leaving is None or raised is not None:
                    raise _first_of(raised or cancelled) from None

    # ---- closing -----------------------------------------------------------------------------------------------------

    @enable_ki_protection
    async def bid_farewell(self, stream: Any, grace: float) -> None:
        """Close `stream` politely, and at once as soon as it has to be quick."""
        scope = trio.CancelScope()
        self._farewells.add(scope)
        try:
            with scope:
                await say_goodbye(stream, grace)
        except Exception:  # of a stream of somebody else's below
            logger.exception(_NOT_CLOSED, stream)
        finally:
            self._farewells.discard(scope)
            stream.close_nowait()

    def cut_short(self) -> None:
        """End all farewells: closing has to be quick."""
        for scope in self._farewells:
            scope.cancel()


def can_say_goodbye(stream: object) -> bool:
    """Whether closing `stream` politely means anything: TLS has a close_notify to exchange, a plain socket has not."""
    return hasattr(stream, "aclose_gracefully")


async def say_goodbye(stream: Any, grace: float) -> None:
    """Exchange close_notify for at most `grace` seconds, then close. The peer's troubles are its own."""
    try:
        await stream.aclose_gracefully(grace)
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, OSError):
        pass


async def close_foreign(stream: trio.abc.Stream) -> None:
    """Close a stream of somebody else's, which cannot be closed without a task."""
    try:
        await trio.aclose_forcefully(stream)
    except Exception:  # nobody waits for it, and nobody else must pay for it
        logger.exception(_NOT_CLOSED, stream)


def _first_of(error: BaseException | None) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    assert error is not None
    return error
