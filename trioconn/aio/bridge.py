"""From asyncio code into a trio run on the same thread, and back.

Theory of operation
-------------------
The asyncio loop and the trio run share a thread, so neither ever runs in the middle of a callback of the other, and
nothing here needs a lock: trio's steps are run by the asyncio loop (guest mode), or run it (trio-asyncio). Therefore
either can be called synchronously from the other: a result is set on an `asyncio.Future` from a trio task, and what of
trio is synchronous (starting a task, cancelling a scope, taking an idle connection, releasing a lease) is called from
asyncio code. A guest run that is asleep in its thread is woken by that. Only what waits needs a task on the other side.

A `Call` is a trio task and the asyncio task that waits for it, tied together: the asyncio task's cancellation cancels
the trio task, and is raised when the trio task has ended, not before: trio's cleanup is over when the caller goes on.

The two ends can meet: a result is set, and before the waiting task runs it is cancelled. asyncio then throws the result
away without a word. So a call whose result owns something comes with a `discard`, which gets what nobody took.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, TypeVarTuple

import trio

import trioconn

from .readiness import Readiness

if TYPE_CHECKING:
    from .leases import Connector

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Portal:
    """The way from the tasks of one asyncio loop into the trio run beside it. Made by `guest`, `open_loop`, `portal`.

    Everything that was opened through it is closed, at the latest, when its run or its loop ends.

    Attributes:
      loop: the asyncio loop.
      readiness: tells when sockets are ready, or None where that cannot be had.
      step: seconds until the present step of the loop is surely over: 0, or, where each callback costs a pass of the
        scheduler (trio-asyncio), so many that one callback serves many requests.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, readiness: Readiness | None, *, step: float = 0.0) -> None:
        self.loop = loop
        self.step = step
        self.readiness = readiness
        self.closed: bool = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._asked_to_leave = trio.Event()
        self._early: list[Callable[[], object]] = []
        self._calls: dict[Call[Any], None] = {}

    # ---- for users ---------------------------------------------------------------------------------------------------

    def open(self, connector: trioconn.BaseConnector) -> Connector:
        """`connector`, entered in the trio run for as long as ``async with portal.open(connector) as c:`` lasts.

        Args:
          connector: a new one, not yet entered. It is owned from now on.
        """
        from .leases import Connector

        return Connector(self, connector, owned=True)

    def borrow(self, connector: trioconn.BaseConnector) -> Connector:
        """`connector` for asyncio code. Whoever entered it, in the same trio run, closes it."""
        from .leases import Connector

        return Connector(self, connector, owned=False)

    async def run(self, f: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """``await f(*args)`` in a trio task, in a copy of this task's context.

        Cancelling the asyncio task cancels the trio task, and waits for its end. What `f` raises is raised here;
        `trio.TooSlowError`, which asyncio code does not know, becomes a `TimeoutError`.

        Raises:
          ConnectorClosedError: the trio run ended meanwhile.
        """
        return await Call(self, f, args).wait()

    # ---- for the rest of this package --------------------------------------------------------------------------------

    def order(self, f: Callable[[], object]) -> None:
        """Call ``f()`` in the trio run: now, or, from a finalizer in another thread, soon. Dropped when it is over."""
        if self.in_trio():
            f()
        elif self._token is not None and not self.closed:
            try:
                self._token.run_sync_soon(f)
            except trio.RunFinishedError:
                pass

    def in_trio(self) -> bool:
        """Whether the trio run can be called from here: it is not over, and this is its thread."""
        return trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self._token

    def start(self, f: Callable[[], Awaitable[object]], context: contextvars.Context) -> None:
        """Start a trio task in `context`. It must not raise. To be called in the trio run.

        Raises:
          ConnectorClosedError: the portal is closing.
        """
        nursery = self._nursery
        if nursery is None:  # trio-asyncio has not started `live` yet
            self._early.append(lambda: self.start(f, context))
        else:
            try:
                context.run(lambda: nursery.start_soon(f))
            except RuntimeError as error:  # it has just ended, and `live` has not yet come to say so
                raise trioconn.ConnectorClosedError("the trio run of this portal is ending") from error

    def add(self, call: Call[Any]) -> None:
        """`call` waits for the run, and is to be told if that ends."""
        self._calls[call] = None

    def remove(self, call: Call[Any]) -> None:
        """`call` has ended."""
        self._calls.pop(call, None)

    def adopt(self, token: trio.lowlevel.TrioToken) -> None:
        """This is the run."""
        self._token = token

    async def live(self, started: Callable[[], object] | None = None) -> None:
        """The task of the trio run in which everything lives that goes through this portal."""
        self._token = trio.lowlevel.current_trio_token()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self.readiness is not None and not self.readiness.watched_by_loop:
                    nursery.start_soon(self.readiness.live, self.loop)
                while self._early:
                    self._early.pop(0)()
                if started is not None:
                    started()
                await self._asked_to_leave.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.end()

    def ask_to_leave(self) -> None:
        """Have `live` end."""
        self.order(self._asked_to_leave.set)

    def end(self) -> None:
        """The run is over, or will start nothing more: who still waits for it is told so. May be called again."""
        if self.closed:
            return
        self.closed = True
        for call in list(self._calls):
            call.refuse()
        if self.readiness is not None:
            self.readiness.close()


class Call(Generic[T]):
    """``await f(*args)`` as a trio task, for one asyncio task.

    Args:
      discard: gets, in the trio run, the result that a cancelled caller did not take.
    """

    def __init__(
        self,
        portal: Portal,
        f: Callable[..., Awaitable[T]],
        args: tuple[Any, ...],
        discard: Callable[[T], object] | None = None,
    ) -> None:
        self._portal = portal
        self._f = f
        self._args = args
        self._discard = discard
        self._scope = trio.CancelScope()
        self._context = contextvars.copy_context()
        self._future: asyncio.Future[None] = portal.loop.create_future()
        self._ended = False
        self._values: list[T] = []
        self._error: BaseException | None = None
        if portal.closed:
            self._error = _over()
            self._ended = True
            self._future.set_result(None)
        else:
            portal.add(self)
            portal.order(self._start)

    @property
    def ended(self) -> bool:
        """Whether the trio task has ended, or will never start."""
        return self._ended

    def add_done_callback(self, f: Callable[[object], object]) -> None:
        """Call ``f(…)`` on the asyncio side when the call has ended."""
        self._future.add_done_callback(f)

    # ---- in trio -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            self._portal.start(self._work, self._context)
        except trioconn.ConnectorClosedError as error:
            self._end(error)

    async def _work(self) -> None:
        error: BaseException | None = None
        try:
            with self._scope:
                self._values.append(await self._f(*self._args))
        except trio.Cancelled:  # of the portal: the run is being closed
            error = _over()
            raise
        except trio.TooSlowError as exc:
            error = TimeoutError(str(exc) or "a deadline of the trio code passed")
            error.__cause__ = exc
        except BaseException as exc:
            error = exc
        finally:
            self._end(error)
            del error

    def _end(self, error: BaseException | None) -> None:
        self._error = error
        self._ended = True
        self._portal.remove(self)
        if not self._future.done():
            self._future.set_result(None)

    def refuse(self) -> None:
        """The portal is closed, and the task of this call has not told its end: trio has crashed."""
        self._end(_over())

    # ---- in asyncio --------------------------------------------------------------------------------------------------

    async def wait(self) -> T:
        """The result of the call."""
        try:
            await self._future
        except BaseException:
            await self.abandon()  # noqa: ASYNC102 - asyncio cancels once
            raise
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return self._values.pop()

    async def abandon(self) -> None:
        """Cancel the trio task, wait for its end, and discard what it brings."""
        if not self._ended:
            self._portal.order(self._scope.cancel)
        while not self._ended:
            self._future = self._portal.loop.create_future()
            try:
                await self._future
            except asyncio.CancelledError:  # noqa: ASYNC103 - one is on its way already; trio's cleanup comes first
                pass
        if self._values and self._discard is not None:
            value, discard = self._values.pop(), self._discard
            self._portal.order(lambda: discard(value))


def _over() -> trioconn.ConnectorClosedError:
    return trioconn.ConnectorClosedError("the trio run beside this asyncio loop has ended")
