"""One end of a Windows named pipe as a trio stream.

Theory of operation
-------------------
Windows reports finished operations, not readiness: an operation is submitted with its buffer and completes later,
through the completion port that trio waits on. `trio.lowlevel.register_with_iocp`, `readinto_overlapped` and
`write_overlapped` are all it takes. What is left to decide:

*Closing while a task waits.* Each call runs in a cancel scope of the stream's own, and `close_nowait` cancels these
before it closes the handle. Closing the handle alone is not enough: what the waiting task then gets differs, and
if its own scope is cancelled in the same tick, trio asks Windows to cancel an operation on a handle that is closed, or
that is another file's by now. Trio does ask only once for each operation, so after our cancel the handle may go.

*The end.* A pipe cannot be half closed. A peer that closed (109) or was disconnected (233) is the end of the stream for
a reader, after what it had sent, and a broken stream for a writer (also 232). A read of no bytes is not the end on a
pipe of bytes: somebody wrote nothing. On a pipe of messages it is, by a custom of servers that want to say that no
more will come (Docker's do, and Go's http package closes its connections so).

*Synchronous questions.* `probe` peeks, which takes nothing and never waits. `receive_nowait` reads only what peeking
saw. `send_nowait` has no such guard: Windows either takes all or queues it. What it queued is withdrawn, but a peer
that was reading may have had a part; so nothing more can be sent. A TLS layer's last word is what it is for.

Rejected: the quota that NtQueryInformationFile tells, in order to know beforehand. It counts a read that the peer has
waiting as room that is taken, so that an idle server, which always has one, would look like a full pipe.
"""

from __future__ import annotations

import operator
import sys
import warnings
from typing import TYPE_CHECKING, Final

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    enable_ki_protection,
)

from . import windows_calls as calls

if TYPE_CHECKING:
    Buffer = bytes | bytearray | memoryview

assert sys.platform == "win32"  # what type checkers understand; nobody imports this module elsewhere

RECEIVE_SIZE: Final = 65536
_LARGEST_WRITE: Final = 65536
"""What Windows queues lies in kernel memory that is never paged out, so a large message goes in parts."""

_ENDS: Final = frozenset({calls.ERROR_BROKEN_PIPE, calls.ERROR_PIPE_NOT_CONNECTED})


class PipeStream(trio.abc.Stream):
    """One end of a named pipe, which the stream owns from now on.

    One sender and one receiver at a time (`trio.BusyResourceError`); each asynchronous method is a checkpoint. A
    cancelled receive has taken nothing; a cancelled send may have sent a part.

    Args:
      handle: of a pipe that was opened for overlapped I/O, connected and in byte read mode. Either end will do. If the
        constructor raises, the caller still owns it.

    Attributes:
      probe_reason: why the last `probe` was false: ``"in use"``, ``"stray bytes"``, ``"server closed"``, ``"error"``,
        ``"closed"``; empty while none was.

    Raises:
      OSError: the handle cannot be used so.
    """

    probe_reason: str

    def __init__(self, handle: int) -> None:
        self._handle = -1
        trio.lowlevel.register_with_iocp(handle)
        self._handle = handle
        self.probe_reason = ""
        self._reading: trio.CancelScope | None = None
        self._writing: trio.CancelScope | None = None
        self._ended = False  # there is nothing more to read, and never will be
        self._withdrawn = False  # what was to be sent before did not go out as a whole
        self._spoiled = ""  # why this pipe can never be clean again although it may look so

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._handle == -1 else f'handle={self._handle:#x}'}>"

    def __del__(self) -> None:
        if self._handle != -1:
            warnings.warn(f"unclosed pipe {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close_nowait()

    # The asynchronous half

    async def send_all(self, data: Buffer) -> None:
        """Send all of `data`.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: the peer closed its end, or a `send_nowait` had to be withdrawn.
          trio.ClosedResourceError: this stream was closed.
        """
        self._check_sendable()
        await checkpoint_if_cancelled()
        scope = self._writing = trio.CancelScope()
        try:
            with scope, memoryview(data) as view, view.cast("B") as octets:
                await self._send(octets)
            self._check_open()  # also where the last write was quicker than the close
        except BaseException:
            self._spoil("error")  # a part may be under way
            raise
        finally:
            self._writing = None

    async def _send(self, data: memoryview) -> None:
        if not data:
            await cancel_shielded_checkpoint()
            return
        sent = 0
        while True:
            with data[sent : sent + _LARGEST_WRITE] as part:
                try:
                    sent += await trio.lowlevel.write_overlapped(self._handle, part)
                except OSError as exc:
                    raise trio.BrokenResourceError(f"the pipe is broken: {exc}") from exc
            if sent == len(data):
                return

    async def wait_send_all_might_not_block(self) -> None:
        """A checkpoint: Windows does not tell whether a write would wait. Raises as `send_all`."""
        self._check_sendable()
        scope = self._writing = trio.CancelScope()
        try:
            with scope:
                await checkpoint()
            self._check_open()
        finally:
            self._writing = None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive what is there, at least a byte and at most `max_bytes` (64 KiB); ``b""`` at the end of the stream.

        Raises:
          TypeError, ValueError: `max_bytes` is not an integer, or less than 1.
          trio.BusyResourceError: another task waits for data.
          trio.BrokenResourceError: the pipe broke in another way than by the peer's closing it.
          trio.ClosedResourceError: this stream was closed.
        """
        size = _checked(max_bytes)
        self._check_receivable()
        await checkpoint_if_cancelled()
        scope = self._reading = trio.CancelScope()
        data = b""
        try:
            with scope:
                data = await self._receive(size)
            self._check_open()
        finally:
            self._reading = None
        return data

    async def _receive(self, size: int) -> bytes:
        buffer = bytearray(size)
        while not self._ended:
            try:
                count = await trio.lowlevel.readinto_overlapped(self._handle, buffer)
                self._check_open()  # the read may have been quicker than the close
                if count:
                    with memoryview(buffer) as view:
                        return bytes(view[:count])
                self._ended = calls.carries_messages(self._handle)
            except OSError as exc:
                self._note_end(exc)
        await cancel_shielded_checkpoint()  # the end may have been known before there was one
        return b""

    async def aclose(self) -> None:
        """Close the pipe at once; calls under way raise `trio.ClosedResourceError`. Then a checkpoint."""
        self.close_nowait()
        await checkpoint()

    # The synchronous half

    def probe(self) -> bool:
        """Whether the connection is clean: nothing to read, not ended, not broken, no task inside a call.

        A send that did not finish spoils it for good. Never waits, except on a pipe of another machine, where the
        question goes over the network.
        """
        if self._reading is not None or self._writing is not None:
            self.probe_reason = "in use"
        elif self._handle == -1:
            self.probe_reason = "closed"
        elif self._spoiled:
            self.probe_reason = self._spoiled
        elif self._ended:
            self.probe_reason = "server closed"
        else:
            try:
                if not calls.count_readable(self._handle):
                    return True
                self.probe_reason = "stray bytes"
            except OSError:
                self.probe_reason = "server closed"
        return False

    def receive_nowait(self, max_bytes: int | None = None) -> bytes:
        """Receive what the system has, at most `max_bytes` (64 KiB); ``b""`` at the end of the stream.

        Raises:
          trio.WouldBlock: nothing is there.
          trio.BusyResourceError: a task is receiving.
          trio.BrokenResourceError: the pipe broke in another way than by the peer's closing it.
          trio.ClosedResourceError: this stream was closed.
        """
        size = _checked(max_bytes)
        self._check_receivable()
        if self._ended:
            return b""
        try:
            there = calls.count_readable(self._handle)
            data = calls.read_at_once(self._handle, min(size, there)) if there else None
        except OSError as exc:
            self._note_end(exc)
            return b""
        if not data:
            raise trio.WouldBlock
        return data

    def send_nowait(self, data: Buffer) -> int:
        """Hand the system `data` (at most 64 KiB) if it takes all of it now, and return how many bytes that were.

        0 means that the pipe was full. The peer may then have had a part of it, so that nothing more can be sent.

        Raises:
          trio.BusyResourceError: a task is sending.
          trio.BrokenResourceError: the peer closed its end, or a `send_nowait` had to be withdrawn.
          trio.ClosedResourceError: this stream was closed.
        """
        self._check_sendable()
        try:
            with memoryview(data) as view, view.cast("B") as octets:
                taken = calls.write_at_once(self._handle, bytes(octets[:_LARGEST_WRITE]))
        except OSError as exc:
            self._spoil("error")
            raise trio.BrokenResourceError(f"the pipe is broken: {exc}") from exc
        if taken is None:
            self._withdrawn = True
            self._spoil("error")
            return 0
        return taken

    @enable_ki_protection
    def close_nowait(self) -> None:
        """Close the pipe, without a checkpoint; calls under way raise `trio.ClosedResourceError`. May be repeated.

        What was sent can still be received by the peer.
        """
        handle, self._handle = self._handle, -1
        if handle == -1:
            return
        for scope in (self._reading, self._writing):
            if scope is not None:
                scope.cancel()
        calls.close(handle)

    def fileno(self) -> int:
        """-1: a pipe has a handle and no descriptor, and nothing that polls descriptors can watch it."""
        return -1

    def _check_open(self) -> None:
        if self._handle == -1:
            raise trio.ClosedResourceError("this pipe was already closed")

    def _check_sendable(self) -> None:
        if self._writing is not None:
            raise trio.BusyResourceError("another task is currently sending data on this PipeStream")
        self._check_open()
        if self._withdrawn:
            raise trio.BrokenResourceError("a send_nowait() met a full pipe; how much of it was received is unknown")

    def _check_receivable(self) -> None:
        if self._reading is not None:
            raise trio.BusyResourceError("another task is currently receiving data on this PipeStream")
        self._check_open()

    def _note_end(self, exc: OSError) -> None:
        """The end of the stream, if `exc` is that; otherwise it is broken."""
        if exc.winerror not in _ENDS:
            self._spoil("error")
            raise trio.BrokenResourceError(f"the pipe is broken: {exc}") from exc
        self._ended = True

    def _spoil(self, reason: str) -> None:
        self._spoiled = self._spoiled or reason


def _checked(max_bytes: int | None) -> int:
    if max_bytes is None:
        return RECEIVE_SIZE
    if operator.index(max_bytes) < 1:
        raise ValueError("max_bytes must be >= 1")
    return max_bytes
