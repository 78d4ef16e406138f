"""Any leased stream as an asyncio transport, by two trio tasks. `transport` tells when."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from .socket_transport import SocketTransport
from .transport import BROKEN, READ_SIZE, LeaseTransport

if TYPE_CHECKING:
    import trioconn

    from .bridge import Portal


class TaskTransport(LeaseTransport):
    """A transport over any stream, moved by two trio tasks."""

    def __init__(self, portal: Portal, lease: trioconn.Connection, protocol: Any) -> None:
        super().__init__(portal, lease, protocol)
        self._scope = trio.CancelScope()
        self._changed = trio.Event()
        self._afterwards: Callable[[], object] | None = None
        context = contextvars.copy_context()
        portal.order(lambda: portal.start(self._move, context))

    def _let_go(self, how: Callable[[], object] | None) -> None:
        self._afterwards = how
        self._portal.order(self._scope.cancel)

    async def _move(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._move_in)
                    nursery.start_soon(self._move_out)
        finally:
            if self._afterwards is None:
                self._lease.close()
            else:
                self._afterwards()

    async def _move_in(self) -> None:
        try:
            while not self._closing:
                data = await self._stream.receive_some(READ_SIZE)
                self._received(bytes(data))
                if not data:
                    return
                while not self._reading:
                    await self._changed.wait()
        except BROKEN as error:
            self._failed(error)

    async def _move_out(self) -> None:
        try:
            while True:
                while self._buffer:
                    data = bytes(self._buffer)
                    await self._stream.send_all(data)
                    del self._buffer[: len(data)]
                    self._check_flow()
                if self._closing:
                    self._end(None)
                await self._changed.wait()
        except BROKEN as error:
            self._failed(error)

    def _tell(self) -> None:
        self._portal.order(self._wake)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _stop_reading(self) -> None:
        self._tell()

    def _start_reading(self) -> None:
        self._tell()

    def write(self, data: Any) -> None:
        """Send `data`, soon."""
        if not self._over and not self._closing and data:
            self._buffer += data
            self._tell()
            self._check_flow()


def transport_for(portal: Portal, lease: trioconn.Connection, protocol: Any) -> LeaseTransport:
    """A transport over the stream of `lease`, which it owns from now on; `protocol` has to be told yet."""
    readiness = portal.readiness
    if readiness is not None:
        stream: Any = lease.stream
        if hasattr(stream, "receive_nowait") and hasattr(stream, "send_nowait") and stream.fileno() >= 0:
            return SocketTransport(portal, lease, protocol, readiness)
    return TaskTransport(portal, lease, protocol)
