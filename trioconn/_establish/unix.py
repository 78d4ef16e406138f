"""The first hop to a Unix socket."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING, cast

import trio

from .. import events
from .._errors import InvalidTargetError, UnixConnectError, shown
from .sockets import SocketStream

if TYPE_CHECKING:
    from ..events import Report

_LONGEST_PATH = 107 if sys.platform == "linux" else 103  # sun_path of sockaddr_un, without the final NUL
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05


def check_unix_path(path: object) -> str:
    """`path` made absolute, or a Linux abstract name (it begins with NUL) as it is.

    A relative path means the directory of now, not of whenever the connection is made. Symbolic links are not
    resolved: they may be switched on purpose.

    Raises:
      TypeError: it is no path.
      InvalidTargetError: it is empty, has a NUL inside, or is too long for the system.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"path must be a str, bytes or os.PathLike, not {type(path).__name__}")
    text = os.fsdecode(cast("str | bytes | os.PathLike[str]", path))
    if not text:
        raise InvalidTargetError("the path of a Unix socket must not be empty")
    if text.startswith("\0"):
        if sys.platform != "linux":
            raise InvalidTargetError("abstract Unix sockets (a name that begins with NUL) exist on Linux only")
        if text == "\0":
            raise InvalidTargetError("the name of an abstract Unix socket must not be empty")
    elif "\0" in text:
        raise InvalidTargetError(f"the path of a Unix socket must not contain NUL: {shown(text)!r}")
    else:
        text = os.path.abspath(text)
    if len(os.fsencode(text)) > _LONGEST_PATH:
        raise InvalidTargetError(
            f"the path of a Unix socket has at most {_LONGEST_PATH} bytes here, this one has {len(os.fsencode(text))}: "
            f"{shown(text)}"
        )
    return text


async def connect_unix(path: str, *, report: Report) -> SocketStream:
    """A stream to the Unix socket at `path`. If cancelled, the socket is closed.

    Raises:
      UnixConnectError: nothing is there, nobody listens, or it is not allowed.
    """
    report(events.AttemptStarted, index=0, address=path)
    try:
        stream = await _open(path)
    except OSError as error:
        failure = UnixConnectError(
            f"Unix socket {shown(path)!r}: {error.strerror or error}{_hint(error)}", errno=error.errno, stage="connect"
        )
        report(events.AttemptFailed, index=0, error=failure)
        raise failure from error
    report(events.AttemptProgressed, index=0, stage="connect")
    return stream


@trio.lowlevel.enable_ki_protection
async def _open(path: str) -> SocketStream:
    await trio.lowlevel.checkpoint()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        pause = _FIRST_PAUSE
        while True:
            code = sock.connect_ex(path)
            if code == 0 or code == errno.EISCONN:
                return SocketStream(sock)
            if code == errno.EINPROGRESS:  # not on Linux: there a local connection stands at once, or fails
                await trio.lowlevel.wait_writable(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code == 0:
                    return SocketStream(sock)
            if code not in (errno.EAGAIN, errno.EINTR):
                raise OSError(code, os.strerror(code))
            # The listener's backlog is full. The system cannot wake us when it has room: an unconnected Unix socket
            # counts as writable, which is why a connect that waits for that believes itself connected.
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    except BaseException:
        sock.close()
        raise


def _hint(error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return " (the file is there, but nobody listens: is the server running?)"
    if error.errno == errno.EACCES:
        return " (connecting needs the permission to write to the socket file)"
    return ""
