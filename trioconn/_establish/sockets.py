"""Plain sockets as trio streams that can also be asked and told things without an await.

Theory of operation
-------------------
A pool must know in one stretch without an ``await`` whether a connection is clean, or between the question and the
hand-over the answer may change (CVE-2026-105481: data that had reached the kernel, and not yet the event loop, was
taken for the answer to the next request). `trio.SocketStream` can be asked only through its socket, at twice the cost,
and neither reads nor writes without a checkpoint, which a TLS layer above needs in order to look behind session
tickets. So `SocketStream` keeps the stdlib socket beside trio's: the asynchronous half behaves as `trio.SocketStream`,
the synchronous half (`probe`, `receive_nowait`, `send_nowait`, `close_nowait`, `fileno`) goes to the stdlib socket.

A ``poll`` object is made once per socket: a reused one costs two thirds of a fresh one, ``select`` refuses descriptors
above 1023, and ``MSG_PEEK`` raises an exception in the good case. It is asked only while the descriptor is known to be
ours, since a number may come back after a close.
"""

from __future__ import annotations

import errno
import select
import socket as stdlib
from typing import TYPE_CHECKING, Final, NoReturn, Protocol, runtime_checkable

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    wait_readable,
    wait_writable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.socket import SocketType

    Buffer = bytes | bytearray | memoryview

RECEIVE_SIZE: Final = 65536
"""Above 128 KiB malloc maps fresh pages for every buffer, and the page faults cost more than the calls saved."""


@runtime_checkable
class SynchronousStream(Protocol):
    """What streams of this library can do besides trio's methods, all without a checkpoint."""

    probe_reason: str

    def probe(self) -> bool:
        """Whether the stream is clean; if not, `probe_reason` says why."""
        ...

    def receive_nowait(self, max_bytes: int) -> bytes | bytearray:
        """What can be read now, ``b""`` at the end, else `trio.WouldBlock`."""
        ...

    def send_nowait(self, data: Buffer) -> int:
        """How many bytes of `data` were taken, possibly none."""
        ...

    def close_nowait(self) -> None:
        """Close at once."""
        ...

    def fileno(self) -> int:
        """The number of the socket at the bottom, -1 when closed."""
        ...


_UNSENT_MOST: Final = 2**14  # trio's choice; see TCP_NOTSENT_LOWAT in its socket stream (python-trio/trio#72)
_SENDING: Final = 1 << 16  # what `SocketStream._unclean` is made of, besides a count
_SPOILED: Final = 1 << 17
_CLOSED_ERRNOS: Final = frozenset({errno.EBADF, errno.ENOTSOCK})  # Unix, Windows


class SocketStream(trio.abc.HalfCloseableStream):
    """A connected stream socket, TCP or Unix, which the stream owns from now on.

    The asynchronous methods behave as those of `trio.SocketStream`: one sender at a time (`trio.BusyResourceError`),
    `trio.BrokenResourceError` when the connection broke, `trio.ClosedResourceError` after a close and for calls that a
    close interrupts. Each is a checkpoint. A cancelled `send_all` may have sent a part.

    Args:
      sock: a connected `socket.socket` of type ``SOCK_STREAM``; it is made non-blocking. If the constructor raises, the
        caller still owns it.

    Attributes:
      socket: the trio socket around `sock`.
      probe_reason: why the last `probe` was false: ``"in use"``, ``"stray bytes"``, ``"server closed"``, ``"error"``,
        ``"closed"``; empty while none was.

    Raises:
      TypeError: `sock` is no `socket.socket`; a subclass, such as `ssl.SSLSocket`, may not be what it seems.
      ValueError: it is no stream socket.
    """

    socket: SocketType
    probe_reason: str

    def __init__(self, sock: stdlib.socket) -> None:
        if type(sock) is not stdlib.socket:
            raise TypeError(f"SocketStream needs a socket.socket, not {type(sock).__name__}")
        if sock.type != stdlib.SOCK_STREAM:
            raise ValueError(f"SocketStream needs a stream socket, not {sock.type!r}")
        self.socket = trio.socket.from_stdlib_socket(sock)
        self.probe_reason = ""
        self._sock = sock
        # All that keeps a probe from being true, in one number, as a probe is a good part of what a lease costs: tasks
        # inside receive_some (more than one only until the second has to wait), _SENDING while one is inside send_all,
        # send_eof or wait_send_all_might_not_block, _SPOILED if the socket may look clean and can never be so again.
        self._unclean = 0
        self._spoiled = ""  # why
        self._reset: OSError | None = None  # a probe met it; the system tells an error once, and then says "end"
        self._is_ready: Callable[[int], object] = _perhaps
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(sock, select.POLLIN)  # errors and hang-ups are always reported
            self._is_ready = poll.poll
        if sock.family != getattr(stdlib, "AF_UNIX", None):
            self._set_if_possible(stdlib.TCP_NODELAY, 1)
            if hasattr(stdlib, "TCP_NOTSENT_LOWAT"):
                self._set_if_possible(stdlib.TCP_NOTSENT_LOWAT, _UNSENT_MOST)

    def _set_if_possible(self, option: int, value: int) -> None:
        try:
            self._sock.setsockopt(stdlib.IPPROTO_TCP, option, value)
        except OSError:
            pass  # not TCP, or the system is too old: slower, and nothing else

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self._sock.fileno()}>"

    # The asynchronous half

    async def send_all(self, data: Buffer) -> None:
        """Send all of `data`.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: this stream was closed, or `send_eof` was called.
        """
        if self.socket.did_shutdown_SHUT_WR:
            raise trio.ClosedResourceError("nothing can be sent after send_eof()")
        self._begin_sending()
        begun = False
        try:
            await checkpoint_if_cancelled()
            begun = True
            if type(data) is bytes:
                await self._send(data)
            else:
                with memoryview(data) as view, view.cast("B") as octets:
                    await self._send(octets)
        except BaseException as exc:
            if begun:
                self._spoil("error")  # a part may be under way
            if isinstance(exc, OSError):
                raise _translated(exc) from exc  # noqa: ASYNC104 - it is an OSError here
            raise
        finally:
            self._unclean ^= _SENDING

    async def _send(self, data: bytes | memoryview) -> None:
        """Send `data`, beginning without a wait, as nearly always all of it fits."""
        sock = self._sock
        if not data:
            if sock.fileno() == -1:
                raise trio.ClosedResourceError("this socket was already closed")
            await cancel_shielded_checkpoint()
            return
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            await cancel_shielded_checkpoint()
            return
        with memoryview(data) as view:
            while sent < len(view):
                await wait_writable(sock)
                with view[sent:] as rest:
                    try:
                        sent += sock.send(rest)
                    except BlockingIOError:
                        pass

    def _begin_sending(self) -> None:
        if self._unclean & _SENDING:
            raise trio.BusyResourceError("another task is currently sending data on this SocketStream")
        self._unclean |= _SENDING

    def _spoil(self, reason: str) -> None:
        self._unclean |= _SPOILED
        self._spoiled = self._spoiled or reason

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the system would take more bytes. Raises as `send_all`."""
        self._begin_sending()
        try:
            if self._sock.fileno() == -1:
                raise trio.ClosedResourceError("this socket was already closed")
            try:
                await wait_writable(self._sock)
            except OSError as exc:
                raise _translated(exc) from exc
        finally:
            self._unclean ^= _SENDING

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on. May be repeated. Raises as `send_all`."""
        self._begin_sending()
        try:
            await checkpoint()
            if not self.socket.did_shutdown_SHUT_WR:
                self._spoil("closed")
                try:
                    self.socket.shutdown(stdlib.SHUT_WR)
                except OSError as exc:
                    raise _translated(exc) from exc
        finally:
            self._unclean ^= _SENDING

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive what is there, at least a byte and at most `max_bytes` (64 KiB); ``b""`` at the end of the stream.

        Cancelled, it has taken nothing.

        Raises:
          ValueError: `max_bytes` is less than 1.
          trio.BusyResourceError: another task waits for data.
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: this stream was closed.
        """
        if max_bytes is None:
            max_bytes = RECEIVE_SIZE
        elif max_bytes < 1:
            raise ValueError("max_bytes must be >= 1")
        sock = self._sock
        self._unclean += 1
        try:
            await checkpoint_if_cancelled()
            if self._reset is not None:
                self._raise_reset()
            try:
                data = sock.recv(max_bytes)
            except BlockingIOError:
                pass
            else:
                await cancel_shielded_checkpoint()
                return data
            while True:
                await wait_readable(sock)
                try:
                    return sock.recv(max_bytes)
                except BlockingIOError:
                    pass
        except OSError as exc:
            raise _translated(exc) from exc
        finally:
            self._unclean -= 1

    def _raise_reset(self) -> NoReturn:
        if self._sock.fileno() == -1:
            raise trio.ClosedResourceError("this socket was already closed")
        raise trio.BrokenResourceError(f"socket connection broken: {self._reset}") from self._reset

    async def aclose(self) -> None:
        """Close the socket at once; calls under way raise `trio.ClosedResourceError`. Then a checkpoint."""
        self.close_nowait()
        await checkpoint()

    # The synchronous half

    def probe(self) -> bool:
        """Whether the connection is clean: nothing to read, not ended, not broken, no task inside a call.

        A send that did not finish and `send_eof` spoil it for good. Costs about half a microsecond, and never blocks.
        """
        # The number before the poll object: it may be someone else's by now.
        if not self._unclean and self._sock.fileno() != -1 and not self._is_ready(0):
            return True
        self.probe_reason = self._why_not_clean()
        return not self.probe_reason

    def _why_not_clean(self) -> str:
        """What `probe_reason` has to say; empty if there is nothing to say."""
        if self._unclean & ~_SPOILED:
            return "in use"
        if self._sock.fileno() == -1:
            return "closed"
        if self._spoiled:
            return self._spoiled
        try:  # a look that takes nothing from the reader
            data = self._sock.recv(1, stdlib.MSG_PEEK)
        except BlockingIOError:
            return ""
        except OSError as exc:
            self._reset = exc.with_traceback(None)
            self._spoil("server closed")
            return "server closed"
        return "stray bytes" if data else "server closed"

    def receive_nowait(self, max_bytes: int = RECEIVE_SIZE) -> bytes:
        """Receive what the system has, at most `max_bytes`; ``b""`` at the end of the stream.

        Raises:
          trio.WouldBlock: nothing is there.
          trio.BusyResourceError: a task is receiving.
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: this stream was closed.
        """
        if self._unclean & ~(_SENDING | _SPOILED):
            raise trio.BusyResourceError("another task is currently receiving data on this SocketStream")
        if self._reset is not None:
            self._raise_reset()
        try:
            return self._sock.recv(max_bytes)
        except BlockingIOError:
            raise trio.WouldBlock from None
        except OSError as exc:
            raise _translated(exc) from exc

    def send_nowait(self, data: Buffer) -> int:
        """Hand the system as much of `data` as it takes now, and return how many bytes that were, possibly none.

        Raises:
          trio.BusyResourceError: a task is sending.
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: this stream was closed, or `send_eof` was called.
        """
        if self._unclean & _SENDING:
            raise trio.BusyResourceError("another task is currently sending data on this SocketStream")
        if self.socket.did_shutdown_SHUT_WR:
            raise trio.ClosedResourceError("nothing can be sent after send_eof()")
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise _translated(exc) from exc

    def close_nowait(self) -> None:
        """Close the socket, without a checkpoint; calls under way raise `trio.ClosedResourceError`. May be repeated.

        Must be called inside the trio run.
        """
        self.socket.close()

    def fileno(self) -> int:
        """The descriptor's number, -1 when closed."""
        return self._sock.fileno()

    def setsockopt(self, level: int, option: int, value: int | bytes | None, length: int | None = None) -> None:
        """Set an option of the socket, as `socket.socket.setsockopt` does."""
        if length is None:
            if value is None:
                raise TypeError("setsockopt() needs a value, or None and a length")
            self._sock.setsockopt(level, option, value)
        elif value is not None:
            raise TypeError(f"setsockopt() takes a length only with the value None, not {value!r}")
        else:
            self._sock.setsockopt(level, option, None, length)

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """Read an option of the socket, as `socket.socket.getsockopt` does."""
        if buffersize == 0:
            return self._sock.getsockopt(level, option)
        return self._sock.getsockopt(level, option, buffersize)


def _perhaps(timeout: int) -> bool:
    """For systems without poll: whether something can be read is not known without a look."""
    return True


def _translated(exc: OSError) -> Exception:
    """The word trio has for a failure of a socket."""
    if exc.errno in _CLOSED_ERRNOS:
        return trio.ClosedResourceError("this socket was already closed")
    return trio.BrokenResourceError(f"socket connection broken: {exc}")
