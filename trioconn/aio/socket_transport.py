"""A leased stream of ours as an asyncio transport, without trio tasks. `transport` tells why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from .readiness import READ, WRITE
from .transport import BROKEN, READ_SIZE, LeaseTransport

if TYPE_CHECKING:
    import trioconn

    from .bridge import Portal
    from .readiness import Readiness

_MOST_READS = 16  # in a row, from one TLS stream
_MOST_STUCK = 64  # times that a socket said it was ready for more, and TLS got rid of nothing whole


class SocketTransport(LeaseTransport):
    """A transport over a stream of ours, without trio tasks."""

    may_park = True

    def __init__(self, portal: Portal, lease: trioconn.Connection, protocol: Any, readiness: Readiness) -> None:
        super().__init__(portal, lease, protocol)
        self._readiness = readiness
        self._receive: Callable[[int], bytes] = self._stream.receive_nowait
        self._send: Callable[[Any], int] = self._stream.send_nowait
        self._probe: Callable[[], bool] = self._stream.probe
        self._fd: int = self._stream.fileno()
        self._events = READ
        self._stuck = 0
        readiness.watch(self._fd, READ, self._is_ready)
        if lease.uses == 1:  # a tunnel may have brought data already, of which the descriptor knows nothing
            portal.loop.call_soon(self._read)

    def _let_go(self, how: Callable[[], object] | None) -> None:
        if self._events:
            self._readiness.forget(self._fd)
            self._events = 0
        if how is not None:
            self._portal.order(how)

    def is_clean(self) -> bool:
        """Whether another request may use the connection: nothing is under way in either direction."""
        return not (self._buffer or self._closing) and self._probe()

    def _is_ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & READ:
            self._read()

    def _watch(self) -> None:
        """Watch for what is needed now."""
        wanted = READ if self._reading and not self._closing else 0
        if self._buffer or self._unsent():
            wanted |= WRITE
        if wanted == self._events or self._over:
            return
        if not wanted:
            self._readiness.forget(self._fd)
        elif self._events:
            self._readiness.change(self._fd, wanted, self._is_ready)
        else:
            self._readiness.watch(self._fd, wanted, self._is_ready)
        self._events = wanted

    def _unsent(self) -> bool:
        """Whether TLS has taken data that the system has not."""
        return self._tls and self._stream.unsent

    def _stop_reading(self) -> None:
        self._watch()

    def _start_reading(self) -> None:
        self._watch()
        if self._tls:  # it may hold data already, of which the descriptor knows nothing
            self._portal.loop.call_soon(self._read)

    def _read(self) -> None:
        for _ in range(_MOST_READS):
            if not self._reading or self._closing:
                return
            try:
                data = self._receive(READ_SIZE)
            except trio.WouldBlock:
                return
            except BROKEN as error:
                self._failed(error)
                return
            self._received(data)
            if not self._tls or not data:
                return  # what is left will be told again
        self._portal.loop.call_soon(self._read)

    def write(self, data: Any) -> None:
        """Send `data`, now if possible."""
        if self._closing:
            return  # as asyncio's transports; aiohttp has looked before
        if self._buffer:
            self._buffer += data
        else:
            try:
                sent = self._send_some(data) if self._tls else self._send(data)
            except BROKEN as error:
                self._failed(error)
                return
            if sent == len(data) and not self._tls:
                return
            self._buffer += data if not sent else memoryview(data)[sent:]
            self._watch()
        self._check_flow()

    def _send_some(self, data: Any) -> int:
        total = self._send(data)
        if not self._tls or total == len(data):
            return total
        while total < len(data) and (sent := self._send(memoryview(data)[total:])):
            total += sent
        return total

    def _flush(self) -> None:
        try:
            sent = self._send_some(self._buffer)
        except BROKEN as error:
            self._failed(error)
            return
        del self._buffer[:sent]
        # A broken transport does not stop TLS from keeping what it cannot send, and it counts as ready for ever.
        self._stuck = 0 if sent or not self._unsent() else self._stuck + 1
        if self._stuck > _MOST_STUCK:
            self._failed(ConnectionResetError("the connection takes no more data"))
            return
        self._watch()
        self._check_flow()
        if self._closing and not self._buffer and not self._unsent():
            self._end(None)
