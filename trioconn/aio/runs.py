"""Where the trio run comes from: a guest of the asyncio loop, or the host of a trio-asyncio loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import trio

from .bridge import Portal
from .readiness import Readiness

_NO_TRIO_ASYNCIO = (
    "trio-asyncio cannot be imported on this Python ({version}): it needs parts of asyncio that Python 3.14 removed. "
    "Guest mode needs trio only: `async with trioconn.aio.guest():` in a program that `asyncio.run` started"
)

_TRIO_ASYNCIO_STEP = 0.01  # seconds


class _Guest:
    """A trio run that is a guest of an asyncio loop, and how many use it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            readiness = Readiness(loop)
        except NotImplementedError:  # the proactor loop of Windows
            readiness = None
        self.portal = Portal(loop, readiness)
        self.users = 0
        self._started: asyncio.Future[None] = loop.create_future()
        self._done: asyncio.Future[None] = loop.create_future()
        self._outcome: Any = None

    def start(self) -> None:
        loop = self.portal.loop
        try:
            trio.lowlevel.start_guest_run(
                self.portal.live,
                self._has_started,
                run_sync_soon_threadsafe=loop.call_soon_threadsafe,
                run_sync_soon_not_threadsafe=loop.call_soon,
                done_callback=self._has_ended,
                host_uses_signal_set_wakeup_fd=True,
            )
        except BaseException:
            self.portal.end()
            raise

    async def wait_started(self) -> None:
        await self._started

    def _has_started(self) -> None:
        if not self._started.done():
            self._started.set_result(None)

    def _has_ended(self, outcome: Any) -> None:
        self._outcome = outcome
        self.portal.end()
        self._has_started()
        self._done.set_result(None)

    async def leave(self) -> None:
        """End the run. A cancellation waits until nothing is left: by then everything is closed without waiting."""
        self.portal.ask_to_leave()
        cancelled: asyncio.CancelledError | None = None
        while self._outcome is None:
            try:
                await asyncio.shield(self._done)
            except asyncio.CancelledError as error:  # noqa: ASYNC103 - raised below
                cancelled = error
        if cancelled is not None:
            raise cancelled
        self._outcome.unwrap()


_guests: dict[asyncio.AbstractEventLoop, _Guest] = {}
_portals: dict[asyncio.AbstractEventLoop, Portal] = {}


@asynccontextmanager
async def guest() -> AsyncGenerator[Portal, None]:
    """A trio run beside the asyncio loop that is running: ``async with trioconn.aio.guest() as portal:``.

    trio's guest mode: both run in this thread, each in turn; the loop is not replaced, and trio is all that is needed.
    Within the block `portal` and `AiohttpConnector` find the run by themselves. Leaving it closes everything that was
    opened through it and is still open. Entered twice on one loop, both blocks share one run, which ends with the last
    of them. In a task of a trio-asyncio loop there is a trio run already, and that is used.

    Raises:
      RuntimeError: no asyncio loop is running.
    """
    loop = asyncio.get_running_loop()
    if _is_trio_asyncio(loop):
        yield _portal_of(loop)
        return
    run = _guests.get(loop)
    if run is None:
        run = _Guest(loop)
        run.start()
        run.users = 1
        _guests[loop] = run
        try:
            await run.wait_started()
        except BaseException:
            await _left(loop, run)  # noqa: ASYNC102 - asyncio cancels once
            raise
    else:
        run.users += 1
    try:
        yield run.portal
    finally:
        await _left(loop, run)  # noqa: ASYNC102 - asyncio cancels once


async def _left(loop: asyncio.AbstractEventLoop, run: _Guest) -> None:
    run.users -= 1
    if not run.users:
        del _guests[loop]
        await run.leave()


@asynccontextmanager
async def open_loop() -> AsyncGenerator[Portal, None]:
    """An asyncio loop on the trio run that is running: ``async with trioconn.aio.open_loop() as portal:``.

    It is ``trio_asyncio.open_loop``, imported only now: from then on it changes what `asyncio.run` does in this
    process. Run asyncio code in the block with ``trio_asyncio.aio_as_trio``.

    Raises:
      ImportError: trio-asyncio is missing, or cannot be imported on this Python: use `guest`.
    """
    trio_asyncio = _import_trio_asyncio()
    async with trio_asyncio.open_loop() as loop:
        yield _portal_of(loop)


def portal() -> Portal:
    """The portal of the asyncio loop that is running: of `guest`, or of the trio-asyncio loop that this is.

    Raises:
      RuntimeError: there is none.
    """
    loop = asyncio.get_running_loop()
    run = _guests.get(loop)
    if run is not None:
        return run.portal
    if _is_trio_asyncio(loop):
        return _portal_of(loop)
    raise RuntimeError(
        "there is no trio run beside this asyncio loop: write `async with trioconn.aio.guest():` around this"
    )


def _import_trio_asyncio() -> Any:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    try:
        import trio_asyncio  # pyright: ignore[reportMissingTypeStubs]
    except (ImportError, AttributeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "trio_asyncio"
        if missing and sys.version_info < (3, 14):
            message = (
                "this needs trio-asyncio: python -m pip install 'trioconn[asyncio]', or use guest mode, which needs "
                "trio only: `async with trioconn.aio.guest():`"
            )
        else:
            message = _NO_TRIO_ASYNCIO.format(version=version)
        raise ImportError(message, name="trio_asyncio") from error
    return trio_asyncio


def _is_trio_asyncio(loop: asyncio.AbstractEventLoop) -> bool:
    # Such a loop can exist only if somebody has imported it.
    trio_asyncio = sys.modules.get("trio_asyncio")
    return trio_asyncio is not None and isinstance(loop, trio_asyncio.BaseTrioEventLoop)


def _portal_of(loop: Any) -> Portal:
    found = _portals.get(loop)
    if found is None:
        try:
            readiness = Readiness()
        except NotImplementedError:  # Windows
            readiness = None
        found = _portals[loop] = Portal(loop, readiness, step=_TRIO_ASYNCIO_STEP)
        found.adopt(trio.lowlevel.current_trio_token())
        loop.run_trio_task(_live_in, found)
    return found


async def _live_in(portal: Portal) -> None:
    try:
        await portal.live()
    finally:
        del _portals[portal.loop]
