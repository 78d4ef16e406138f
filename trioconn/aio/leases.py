"""Connectors, leases and streams whose methods asyncio code can await.

Each is a thin wrapper: what may wait goes through the portal as one trio task, everything else is called directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import trio

import trioconn

from .bridge import Call

if TYPE_CHECKING:
    from .bridge import Portal


class Host:
    """The trio task in which a connector lives that asyncio code opened."""

    def __init__(self, portal: Portal, connector: trioconn.BaseConnector) -> None:
        self.connector = connector
        self._portal = portal
        self._asked_to_leave = trio.Event()
        self._entered: asyncio.Future[None] = portal.loop.create_future()
        self._call: Call[None] | None = None

    async def enter(self) -> None:
        """Have the connector entered. If this raises, or is cancelled, it is left again."""
        call = self._call = Call(self._portal, self._live, ())
        call.add_done_callback(self._has_entered)
        try:
            await asyncio.shield(self._entered)
            if call.ended:
                await call.wait()  # which raises what went wrong
        except BaseException:
            self._call = None  # there is nothing to leave
            await call.abandon()  # noqa: ASYNC102 - asyncio cancels once
            raise

    def _has_entered(self, _: object = None) -> None:
        if not self._entered.done():
            self._entered.set_result(None)

    async def _live(self) -> None:
        async with self.connector:
            self._has_entered()
            await self._asked_to_leave.wait()

    async def leave(self, *, abort_ssl: bool = False) -> None:
        """Close the connector, politely; cancelled, at once. When this is over nothing of it is left."""
        call = self._call
        if call is None:
            return
        try:
            try:
                if not call.ended:
                    await Call(self._portal, self.connector.aclose, (abort_ssl,)).wait()
            finally:
                self._portal.order(self._asked_to_leave.set)
                await call.wait()  # noqa: ASYNC102 - asyncio cancels once
        except trioconn.ConnectorClosedError:
            pass  # the run has ended, and the connector before it


class Connector:
    """A connector for asyncio code, made by ``portal.open(…)`` or ``portal.borrow(…)``. Use it with ``async with``.

    Attributes:
      trio_connector: the connector itself.
    """

    def __init__(self, portal: Portal, connector: trioconn.BaseConnector, *, owned: bool) -> None:
        self.trio_connector = connector
        self._portal = portal
        self._host = Host(portal, connector) if owned else None

    async def __aenter__(self) -> Self:
        if self._host is not None:
            await self._host.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._host is not None:
            await self._host.leave()  # noqa: ASYNC102 - asyncio cancels once

    async def connect(
        self, target: object, *, observers: Iterable[Callable[[trioconn.events.Event], object]] = (), **options: Any
    ) -> Connection:
        """A lease, as ``connect`` of the connector. Use it with ``async with``.

        If the task is cancelled no connection is lost, not even one that is granted at that very moment.

        Args:
          target, observers, options: as for ``connect`` of the connector. Observers are called in this thread.

        Raises:
          ConnectError: no connection could be made.
          ConnectorClosedError: the connector was closed, or the trio run has ended.
          InvalidTargetError: the target is malformed, or an option cannot be honoured.
        """
        connect = partial(self.trio_connector.connect, target, observers=observers, **options)
        lease = await Call(self._portal, connect, (), _give_back).wait()
        return Connection(self._portal, lease)

    async def prewarm(self, target: object, n: int, **options: Any) -> None:
        """Make connections ahead of need, as ``prewarm`` of the connector."""
        await Call(self._portal, partial(self.trio_connector.prewarm, target, n, **options), ()).wait()

    def connect_nowait(self, target: object, **options: Any) -> Connection:
        """A lease of an idle connection, as ``connect_nowait`` of the connector.

        Raises:
          trio.WouldBlock: there is none.
        """
        return Connection(self._portal, self.trio_connector.connect_nowait(target, **options))

    def statistics(self) -> trioconn.ConnectorStatistics:
        """The present state and the totals."""
        return self.trio_connector.statistics()

    async def aclose(self, abort_ssl: bool = False) -> None:
        """Close everything, as ``aclose`` of the connector."""
        await Call(self._portal, self.trio_connector.aclose, (abort_ssl,)).wait()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self.trio_connector!r}>"


def _give_back(lease: trioconn.Connection) -> None:
    lease.release()


class Connection:
    """A lease for asyncio code. Made by `Connector.connect`; use it with ``async with``.

    Call `release` when the stream is at a clean boundary; without that, leaving the block closes the connection.

    Attributes:
      lease: the lease itself, a `trioconn.Connection`: for ``info``, ``route``, ``reused``, ``uses``, ``closed``…
    """

    def __init__(self, portal: Portal, lease: trioconn.Connection) -> None:
        self.lease = lease
        self._portal = portal
        self._stream: Stream | None = None

    @property
    def stream(self) -> Stream:
        """The stream to send and receive on.

        Raises:
          trio.ClosedResourceError: the lease is over.
        """
        leased = self.lease.stream
        if self._stream is None:
            self._stream = Stream(self._portal, leased)
        return self._stream

    @property
    def closed(self) -> bool:
        """Whether the lease is over."""
        return self.lease.closed

    def release(self, *, idle_for: float | None = None) -> None:
        """Give the connection back to the pool, as `trioconn.Connection.release`."""
        self._portal.order(partial(self.lease.release, idle_for=idle_for))

    def close(self) -> None:
        """Close the connection, as `trioconn.Connection.close`."""
        self._portal.order(self.lease.close)

    async def aclose(self) -> None:
        """Close the connection, as `trioconn.Connection.aclose`: TLS says goodbye. If cancelled, at once."""
        await Call(self._portal, self.lease.aclose, ()).wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.lease.closed:
            return
        if kind is not None:
            self.close()
            return
        try:
            await self.aclose()
        except trioconn.ConnectorClosedError:
            pass  # and this with it

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<asyncio {self.lease!r}>"


class Stream:
    """The stream of a lease, for asyncio code. It dies with the lease.

    Each call is one trio task, and behaves as the method of the same name of the leased stream: also when cancelled.
    """

    def __init__(self, portal: Portal, stream: trioconn.LeasedStream) -> None:
        self._portal = portal
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`.

        Raises:
          trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError: as the stream itself.
        """
        await self._call(self._stream.send_all, data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """At least a byte, at most `max_bytes`; ``b""`` at the end of the stream. Raises as `send_all`."""
        data: bytes | bytearray = await self._call(self._stream.receive_some, max_bytes)
        return data

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until more can be sent. Raises as `send_all`."""
        await self._call(self._stream.wait_send_all_might_not_block)

    async def send_eof(self) -> None:
        """Send an end of stream; receiving goes on. Raises as `send_all`.

        Raises:
          AttributeError: the transport cannot do that (TLS).
        """
        await self._call(getattr(self._stream, "send_eof"))  # noqa: B009 - only some have it

    async def aclose(self) -> None:
        """Close the lease, and with it the connection."""
        await self._call(self._stream.aclose)

    async def _call(self, f: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return await Call(self._portal, f, args).wait()

    def __repr__(self) -> str:
        return f"<asyncio {self._stream!r}>"
