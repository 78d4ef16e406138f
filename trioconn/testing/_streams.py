"""A pair of streams in memory with the synchronous surface that the pool asks of a stream.

trio has memory streams, too; but of those nobody can know without an await whether something lies in them, and the pool
asks exactly that at each hand-over.
"""

from __future__ import annotations

import math

import trio

_RECEIVE_SIZE = 65536


class _Direction:
    """What is on the way from one end to the other.

    Attributes:
      data: sent and not yet received.
      ended: the sender has said that nothing more comes.
      deaf: the receiver is gone; sending fails.
      reset: the sender broke the connection off; receiving fails.
    """

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.data: bytearray = bytearray()
        self.ended = False
        self.deaf = False
        self.reset = False
        self._parked = trio.lowlevel.ParkingLot()

    async def changed(self) -> None:
        await self._parked.park()

    def change(self) -> None:
        self._parked.unpark_all()


class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a connection in memory. Made by `memory_stream_pair`.

    It behaves as a plain socket does, and has the same synchronous methods as the streams of this library; so a test
    can say what the peer does "now", without an await: ``peer.send_nowait(b"…")``, ``peer.close_nowait()``,
    ``peer.reset()``.

    Attributes:
      probe_reason: why the last `probe` was false.
      closed: whether this end was closed.
    """

    def __init__(self, incoming: _Direction, outgoing: _Direction) -> None:
        self.probe_reason: str = ""
        self.closed: bool = False
        self._incoming = incoming
        self._outgoing = outgoing
        self._receiving = False
        self._sending = False
        self._spoiled = ""

    # The asynchronous half

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; waits while the peer does not receive and the capacity of the pair is used up."""
        self._begin_sending()
        try:
            await trio.lowlevel.checkpoint()
            sent = 0
            try:
                with memoryview(data) as view:
                    while (sent := sent + self.send_nowait(view[sent:])) < len(view):
                        await self._outgoing.changed()
            except BaseException:
                self._spoiled = self._spoiled or "error"  # a part may be under way
                raise
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until something more would be taken."""
        self._begin_sending()
        try:
            await trio.lowlevel.checkpoint()
            while not self.closed and not self._outgoing.deaf and not self._room():
                await self._outgoing.changed()
            if self.closed:
                raise trio.ClosedResourceError("this stream was closed")
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on."""
        self._begin_sending()
        try:
            await trio.lowlevel.checkpoint()
            if self.closed:
                raise trio.ClosedResourceError("this stream was closed")
            self._spoiled = self._spoiled or "closed"
            self._outgoing.ended = True
            self._outgoing.change()
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte, or ``b""`` at the end of the stream."""
        if max_bytes is not None:
            if not isinstance(max_bytes, int):
                raise TypeError(f"max_bytes must be an int or None, not {max_bytes!r}")
            if max_bytes < 1:
                raise ValueError("max_bytes must be >= 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while True:
                try:
                    return self.receive_nowait(max_bytes or _RECEIVE_SIZE)
                except trio.WouldBlock:
                    await self._incoming.changed()
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        """Close this end."""
        self.close_nowait()
        await trio.lowlevel.checkpoint()

    def _begin_sending(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True

    def _room(self) -> float:
        return max(0, self._outgoing.capacity - len(self._outgoing.data))

    # The synchronous half

    def probe(self) -> bool:
        """Whether nothing is to be read, neither end has ended or broken, and no task is inside a call."""
        if self._receiving or self._sending:
            self.probe_reason = "in use"
        elif self.closed:
            self.probe_reason = "closed"
        elif self._spoiled:
            self.probe_reason = self._spoiled
        elif self._incoming.data:
            self.probe_reason = "stray bytes"
        elif self._incoming.ended or self._incoming.reset or self._outgoing.deaf:
            self.probe_reason = "server closed"
        else:
            return True
        return False

    def receive_nowait(self, max_bytes: int = _RECEIVE_SIZE) -> bytes:
        """What has come, at most `max_bytes` of it; ``b""`` at the end.

        Raises:
          trio.WouldBlock: there is nothing.
          trio.BrokenResourceError: the peer has reset the connection.
          trio.ClosedResourceError: this end was closed.
        """
        if self.closed:
            raise trio.ClosedResourceError("this stream was closed")
        incoming = self._incoming
        if incoming.reset:
            raise trio.BrokenResourceError("connection reset by the peer")
        if not incoming.data:
            if incoming.ended:
                return b""
            raise trio.WouldBlock
        data = bytes(incoming.data[:max_bytes])
        del incoming.data[:max_bytes]
        incoming.change()
        return data

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send as much of `data` as is taken at once, and return how much that is.

        Raises:
          trio.BrokenResourceError: the peer has closed its end, or reset the connection.
          trio.ClosedResourceError: this end was closed, or `send_eof` was called.
        """
        if self.closed or self._outgoing.ended:
            raise trio.ClosedResourceError("this stream was closed")
        if self._outgoing.deaf:
            raise trio.BrokenResourceError("the peer has closed the connection")
        room = self._room()
        taken = len(data) if room >= len(data) else int(room)
        if taken:
            self._outgoing.data += data[:taken]
            self._outgoing.change()
        return taken

    def close_nowait(self) -> None:
        """Close this end: the peer reads what was sent, and then the end. May be called again."""
        if not self.closed:
            self.closed = True
            self._outgoing.ended = True
            self._incoming.deaf = True
            self._outgoing.change()
            self._incoming.change()

    def reset(self) -> None:
        """Break the connection off: what was sent and not yet read is lost, and the peer's calls fail."""
        self._outgoing.data.clear()
        self._outgoing.reset = True
        self.close_nowait()

    def fileno(self) -> int:
        """-1: there is no descriptor."""
        return -1

    def __repr__(self) -> str:
        return f"<MemoryStream, {'closed' if self.closed else 'open'}>"


def memory_stream_pair(*, capacity: float = math.inf) -> tuple[MemoryStream, MemoryStream]:
    """Two ends of a connection in memory.

    Args:
      capacity: how many bytes fit into each direction before sending has to wait.
    """
    there, back = _Direction(capacity), _Direction(capacity)
    return MemoryStream(back, there), MemoryStream(there, back)
