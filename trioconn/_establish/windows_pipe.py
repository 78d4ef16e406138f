r"""The first hop of a route over a Windows named pipe: the path judged, the pipe opened.

Theory of operation
-------------------
*The path.* Windows looks a path up after it has rewritten it: slashes become backslashes, ``..`` goes up (out of
``\\.\pipe\`` into all devices), dots and spaces at the end vanish. What was judged must be what is opened, so
`check_pipe_path` accepts only paths that Windows leaves alone, slashes excepted: ``//./pipe/name`` is how URLs and
other libraries spell it, and it is made into the one canonical form. A path on another machine sends the user's
credentials there, so that one has to be asked for.

*Waiting for a free instance.* A server that is busy with as many clients as it has instances gives ERROR_PIPE_BUSY, and
no call waits for a free one without blocking. So it is asked again, after pauses that double. `WaitNamedPipeW` in a
thread would notice at once, but reserves nothing: whoever opens first gets the instance, so the asking again remains.
It cannot be interrupted either: closing a connector would have to wait for a thread for each waiting attempt, or leave
them behind. asyncio (1 to 100 ms) and Go's winio (10 ms) ask again as well; libuv blocks a thread.

*Pipes of other machines.* There the opening itself takes as long as the network does, so that it is done in a thread,
which a cancelled caller leaves behind; whoever comes second, caller or thread, closes what was opened.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Final

import trio

from .._errors import InvalidTargetError, shown

if TYPE_CHECKING:
    from ..events import Report

_LOCAL: Final = "\\\\.\\pipe\\"
_LONGEST: Final = 256  # of the whole path, in UTF-16 units (CreateNamedPipe)
_ACCEPTED: Final = re.compile(r"\\\\(?P<server>[^\\]+)\\pipe\\(?P<name>.+)", re.ASCII | re.DOTALL | re.IGNORECASE)
_SERVER: Final = re.compile(r"\w([\w.-]*\w)?", re.ASCII)


def check_pipe_path(path: str | os.PathLike[str], *, allow_remote: bool) -> str:
    r"""The canonical form of a pipe's path: ``\\.\pipe\name`` or, if `allow_remote`, ``\\server\pipe\name``.

    Slashes count as backslashes, and ``pipe`` may be written in capitals. The name is kept as it is (Windows ignores
    its case, which does not make two spellings one key here); it may have several parts. No I/O: works everywhere.

    Raises:
      TypeError: the path is neither a str nor path-like.
      InvalidTargetError: it is of another form, longer than 256 characters, on another machine without `allow_remote`,
        has control characters, or is one that Windows would rewrite: with parts that are empty, ``.`` or ``..``, or
        that end in a dot or a space.
    """
    text = os.fspath(path)
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers need not be typed
        raise TypeError(f"the path of a pipe must be a str, not {type(text).__name__}")
    found = _ACCEPTED.fullmatch(text.replace("/", "\\"))
    if found is None:
        raise InvalidTargetError(rf"the path of a pipe looks like '\\.\pipe\name', not like {shown(text)!r}")
    server, name = found["server"], found["name"]
    if any(not 32 <= ord(character) != 127 or "\ud800" <= character <= "\udfff" for character in name):
        raise InvalidTargetError(f"the path of a pipe has a character that no name can have: {shown(text)!r}")
    if any(not part or part.endswith((".", " ")) for part in name.split("\\")):
        raise InvalidTargetError(f"Windows would take the path of a pipe for another one: {shown(text)!r}")
    canonical = rf"\\{server}\pipe\{name}"
    if len(canonical.encode("utf-16-le")) // 2 > _LONGEST:
        raise InvalidTargetError(f"the path of a pipe is longer than {_LONGEST} characters: {shown(text)!r}")
    if server != ".":
        if _SERVER.fullmatch(server) is None:
            raise InvalidTargetError(f"the path of a pipe names no machine: {shown(text)!r}")
        if not allow_remote:
            raise InvalidTargetError(
                rf"the pipe {shown(text)!r} is on another machine: pass allow_remote=True, or use '\\.\pipe\…'"
            )
    return canonical


if sys.platform == "win32":
    import threading

    from .. import events
    from .._errors import NamedPipeConnectError
    from . import windows_calls as calls
    from .windows_pipe_stream import PipeStream

    _FIRST_PAUSE: Final = 0.001
    _LONGEST_PAUSE: Final = 0.032  # two ticks of the system's clock
    _MOST_THREADS: Final = 16
    _HINTS: Final = {
        calls.ERROR_FILE_NOT_FOUND: "no server has created it",
        calls.ERROR_ACCESS_DENIED: "its server does not let this user read and write",
    }
    _threads = trio.lowlevel.RunVar[trio.CapacityLimiter]("_threads")

    def require_named_pipes() -> None:
        """Do nothing: this system has named pipes."""

    async def open_pipe(path: str, *, report: Report | None = None) -> PipeStream:
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

    async def _open_when_free(path: str) -> PipeStream:
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
    def _open_local(path: str) -> PipeStream:
        return _adopt(calls.open_pipe(path))

    def _adopt(handle: int) -> PipeStream:
        try:
            return PipeStream(handle)
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

    async def _open_remote(path: str) -> PipeStream:
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
    def _take_over(opening: _Opening) -> PipeStream:
        handle = opening.take()
        assert handle is not None
        return _adopt(handle)

else:

    def require_named_pipes() -> None:
        """Raise an error that says where named pipes are.

        Raises:
          NotImplementedError: always, on this system.
        """
        raise _missing()

    async def open_pipe(path: str, *, report: Report | None = None) -> trio.abc.Stream:  # noqa: ASYNC124 - as on Windows
        """Raise an error that says where named pipes are; see the one for Windows.

        Raises:
          NotImplementedError: always, on this system.
        """
        raise _missing()

    def _missing() -> NotImplementedError:
        return NotImplementedError(
            f"named pipes exist on Windows and not on {sys.platform}: use a Unix socket (UnixConnector) here"
        )
