r"""The first hop of a route over a Windows named pipe: the path judged, the pipe opened.

The path is judged on every system, so that a mistake is found where the tests run. The rest is Windows' alone
(windows_pipe.py); elsewhere there are functions that say so.

Windows looks a path up after it has rewritten it: slashes become backslashes, ``..`` goes up (out of ``\\.\pipe\``
into all devices), dots and spaces at the end vanish. What was judged must be what is opened, so `check_pipe_path`
accepts only paths that Windows leaves alone, slashes excepted: ``//./pipe/name`` is how URLs and other libraries spell
it, and it is made into the one canonical form. A path on another machine sends the user's credentials there, so that
one has to be asked for.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Final

from .._errors import InvalidTargetError, shown

if TYPE_CHECKING:
    import trio

    from ..events import Report

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
    from .windows_pipe import open_pipe as open_pipe

    def require_named_pipes() -> None:
        """Do nothing: this system has named pipes."""

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
