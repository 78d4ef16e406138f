"""Streams that are not ours, given the surface that the pool needs.

A connector's own ``create_stream`` may return any `trio.abc.Stream`. The pool must ask it whether it is clean, and end
it, both without an await; and it must notice a task that is still inside a call when the lease is released.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import trio


class PoolableStream(Protocol):
    """What our own streams offer besides trio's methods, all of it synchronous."""

    probe_reason: str

    def probe(self) -> bool:
        """Whether nothing is readable or buffered, the stream has not ended or broken, and no task is in a call."""
        ...

    def close_nowait(self) -> None:
        """Close at once. TLS says close_notify if that can be written at once."""
        ...

    def fileno(self) -> int:
        """The descriptor of the bottom socket, -1 if there is none."""
        ...


def poolable(stream: object) -> PoolableStream | None:
    """`stream` as one that has our synchronous surface, or None if it has not."""
    if hasattr(stream, "probe") and hasattr(stream, "close_nowait") and hasattr(stream, "fileno"):
        return cast("PoolableStream", stream)
    return None


async def close_now(stream: trio.abc.AsyncResource) -> None:
    """Close without waiting for the peer, also where cancelled. For the ways out on which nobody will own it."""
    if hasattr(stream, "close_nowait"):
        cast("PoolableStream", stream).close_nowait()
        return
    with trio.CancelScope(shield=True):  # otherwise the error that is on its way out would become a Cancelled
        await trio.aclose_forcefully(stream)


def foreign_is_clean(stream: trio.abc.Stream) -> bool:
    """What can be said of a stream that is not ours: a readable `trio.SocketStream` is not clean."""
    return not (isinstance(stream, trio.SocketStream) and stream.socket.is_readable())


class ForeignStream(trio.abc.Stream):
    """A stream of somebody else's, counted while tasks are inside its calls, and closable without an await.

    Args:
      stream: the stream; owned from now on.
      close_later: called with the stream when only a task can close it.
    """

    def __init__(self, stream: trio.abc.Stream, close_later: Callable[[trio.abc.Stream], None]) -> None:
        self.wrapped = stream
        self.probe_reason = ""
        self._close_later = close_later
        self._calls = 0
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._counted(self.wrapped.send_all, data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._counted(self.wrapped.wait_send_all_might_not_block)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = await self._counted(self.wrapped.receive_some, max_bytes)
        return data

    async def aclose(self) -> None:
        self._closed = True
        await self.wrapped.aclose()

    async def _counted(self, f: Callable[..., Any], *args: Any) -> Any:
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("this stream was closed")
        self._calls += 1
        try:
            return await f(*args)
        finally:
            self._calls -= 1

    @property
    def in_use(self) -> bool:
        """Whether a task is inside a call."""
        return self._calls > 0

    def probe(self) -> bool:
        """True unless a task is inside a call, the stream was closed, or it is a readable `trio.SocketStream`."""
        if self._calls or self._closed:
            self.probe_reason = "in use" if self._calls else "closed"
            return False
        if not foreign_is_clean(self.wrapped):
            self.probe_reason = "server closed"
            return False
        return True

    def close_nowait(self) -> None:
        """Close the socket below if it can be reached, else have a task close the stream."""
        if self._closed:
            return
        self._closed = True
        bottom: trio.abc.Stream = self.wrapped
        while isinstance(bottom, trio.SSLStream):
            bottom = cast("trio.SSLStream[trio.abc.Stream]", bottom).transport_stream
        ours = poolable(bottom)
        if ours is not None:
            ours.close_nowait()
        elif isinstance(bottom, trio.SocketStream):
            bottom.socket.close()
        else:
            self._close_later(self.wrapped)

    def fileno(self) -> int:
        """-1: idle streams of somebody else's are asked when they are handed out, and not watched."""
        return -1

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.wrapped, name)


class HalfCloseableForeignStream(ForeignStream, trio.abc.HalfCloseableStream):
    """A `ForeignStream` whose sending half can be closed alone."""

    wrapped: trio.abc.HalfCloseableStream

    async def send_eof(self) -> None:
        await self._counted(self.wrapped.send_eof)
