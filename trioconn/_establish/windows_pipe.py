"""Opening a named pipe: waiting until its server has a free instance, and pipes of other machines.

Theory of operation
-------------------
*Waiting for a free instance.* A server that is busy with as many clients as it has instances gives ERROR_PIPE_BUSY, and
no call waits for a free one without blocking. So it is asked again, after pauses that double. `WaitNamedPipeW` in a
thread would notice at once, but reserves nothing: whoever opens first gets the instance, so the asking again remains.
It cannot be interrupted either: closing a connector would have to wait for a thread for each waiting attempt, or leave
them behind. asyncio (1 to 100 ms) and Go's winio (10 ms) ask again as well; libuv blocks a thread.

*Pipes of other machines.* There the opening itself takes as long as the network does, so that it is done in a thread,
which a cancelled caller leaves behind; whoever comes second, caller or thread, closes what was opened.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final

import trio

from .. import events
from .._errors import NamedPipeConnectError
from . import windows_calls as calls
from . import windows_pipe_stream as streams

if TYPE_CHECKING:
    from ..events import Report

assert sys.platform == "win32"  # what type checkers understand; nobody imports this module elsewhere

_LOCAL: Final = "\\\\.\\pipe\\"
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.032  # two ticks of the system's clock
_MOST_THREADS: Final = 16
_HINTS: Final = {
    calls.ERROR_FILE_NOT_FOUND: "no server has created it",
    calls.ERROR_ACCESS_DENIED: "its server does not let this user read and write",
}
_threads = trio.lowlevel.RunVar[trio.CapacityLimiter]("_threads")


async def open_pipe(path: str, *, report: Report | None = None) -> streams.PipeStream:
    """Open the pipe at `path`, as `check_pipe_path` returns it, and wait while its server has no free instance.

    How long that may take is for the caller's cancel scope to say.

    Raises:
      NamedPipeConnectError: with ``winerror``: 2 if there is no such pipe, 5 if access is denied, or another.
    """
    if report is not None:
        report(events.AttemptStarted, index=0, address=path)
    try:
        stream = await _open_when_free(path)
    except OSError as exc:
        hint = _HINTS.get(exc.winerror, exc.strerror)
        error = NamedPipeConnectError(
            f"cannot open the pipe {path}: {hint} (Windows error {exc.winerror})", errno=exc.errno
        )
        error.winerror = exc.winerror
        if report is not None:
            report(events.AttemptFailed, index=0, error=error)
        raise error from exc
    if report is not None:
        report(events.AttemptProgressed, index=0, stage="connect")
    return stream


async def _open_when_free(path: str) -> streams.PipeStream:
    pause = _FIRST_PAUSE
    await trio.lowlevel.checkpoint()
    while True:
        try:
            return _open_local(path) if path.startswith(_LOCAL) else await _open_remote(path)
        except OSError as exc:
            if exc.winerror != calls.ERROR_PIPE_BUSY:
                raise
        await trio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


@trio.lowlevel.enable_ki_protection
def _open_local(path: str) -> streams.PipeStream:
    return _adopt(calls.open_pipe(path))


def _adopt(handle: int) -> streams.PipeStream:
    try:
        return streams.PipeStream(handle)
    except BaseException:
        calls.close(handle)
        raise


class _Opening:
    """What a thread opens, and who closes it: never both, never neither."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._abandoned = False

    def run(self, path: str) -> None:
        handle = calls.open_pipe(path)
        with self._lock:
            if not self._abandoned:
                self._handle = handle
                return
        calls.close(handle)

    def take(self) -> int | None:
        with self._lock:
            self._abandoned = True
            handle, self._handle = self._handle, None
            return handle


async def _open_remote(path: str) -> streams.PipeStream:
    opening = _Opening()
    try:
        limiter = _threads.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_MOST_THREADS)
        _threads.set(limiter)
    try:
        await trio.to_thread.run_sync(opening.run, path, abandon_on_cancel=True, limiter=limiter)
        return _take_over(opening)
    finally:
        handle = opening.take()
        if handle is not None:
            calls.close(handle)


@trio.lowlevel.enable_ki_protection
def _take_over(opening: _Opening) -> streams.PipeStream:
    handle = opening.take()
    assert handle is not None
    return _adopt(handle)
