"""Leased streams as asyncio transports.

`SocketTransport` (socket_transport.py) moves bytes on the asyncio side: our streams can be read and written without
waiting, and `Readiness` says when. trio is not involved between the lease and its end, so neither loop waits for the
other.

`TaskTransport` (task_transport.py) is for everything else: streams of somebody's own connector, systems whose selectors
cannot be watched. Two trio tasks move the bytes.

Either ends in one of three ways: closed by the protocol, closed with its connector (the lease calls back), or given
back to the pool. In each the descriptor is let go of *before* it can become somebody else's.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    import trioconn

    from .bridge import Portal

READ_SIZE = 65536
_HIGH_WATER = 65536  # asyncio's default


_TLS_QUESTIONS = {"peercert": "getpeercert", "cipher": "cipher", "compression": "compression"}

BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError)


class LeaseTransport(asyncio.Transport):
    """What both have in common. Made with a lease, which it owns, and a protocol."""

    def __init__(self, portal: Portal, lease: trioconn.Connection, protocol: Any) -> None:
        super().__init__()
        self._portal = portal
        self._lease = lease
        self._protocol = protocol
        self._stream: Any = lease.stream
        self._tls = bool(lease.info.tls)
        self._buffer = bytearray()
        self._closing = False  # asked to close: what is buffered still goes out
        self._over = False  # the lease is not ours any more
        self._reading = True
        self._protocol_paused = False
        self._high, self._low = _HIGH_WATER, _HIGH_WATER // 4
        lease.add_callback(self._lost)

    # ---- life --------------------------------------------------------------------------------------------------------

    may_park = False
    """Whether the stream can be asked if it is clean while the transport stands on it."""

    @property
    def lease(self) -> trioconn.Connection:
        """The lease, as long as it is ours."""
        return self._lease

    @property
    def over(self) -> bool:
        """Whether the lease has ended, or been given back."""
        return self._over

    def give_back(self) -> None:
        """The response is complete: the connection goes back to the pool. The protocol hears no more."""
        if self._over:
            return
        if self._buffer or self._closing:
            self.abort()
            return
        self._finish(self._lease.release)

    def close(self) -> None:
        """Close when all has been sent. The protocol's ``connection_lost`` follows."""
        if self._closing or self._over:
            return
        self._closing = True
        if self._buffer:
            self._stop_reading()
        else:
            self._end(None)

    def abort(self) -> None:
        """Close now."""
        self._end(None)

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closing or self._over

    def _end(self, error: BaseException | None) -> None:
        if not self._over:
            self._finish(self._lease.close)
            self._tell_lost(error)

    def _lost(self) -> None:
        if not self._over:  # closed with its connector, or by somebody who has the lease
            self._finish(None)
            self._tell_lost(ConnectionAbortedError("the connection was closed with its connector"))

    def _tell_lost(self, error: BaseException | None) -> None:
        if not self._portal.loop.is_closed():  # a borrowed connector can outlive the loop
            self._portal.loop.call_soon(self._protocol.connection_lost, error)

    def _finish(self, how: Callable[[], object] | None) -> None:
        self._over = self._closing = True
        self._let_go(how)
        self._buffer.clear()

    @abstractmethod
    def _let_go(self, how: Callable[[], object] | None) -> None:
        """End all use of the stream, then call `how` in the trio run."""

    # ---- flow control ------------------------------------------------------------------------------------------------

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As `asyncio.WriteTransport.set_write_buffer_limits`."""
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be at least low ({low}), and that at least 0")
        self._high, self._low = high, low
        self._check_flow()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """As `asyncio.WriteTransport.get_write_buffer_limits`."""
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """How many bytes wait to be sent."""
        return len(self._buffer)

    def _check_flow(self) -> None:
        size = len(self._buffer)
        if not self._protocol_paused and size > self._high:
            self._protocol_paused = True
            self._protocol.pause_writing()
        elif self._protocol_paused and size <= self._low:
            self._protocol_paused = False
            self._protocol.resume_writing()

    def is_reading(self) -> bool:
        """Whether data are being received."""
        return self._reading and not self.is_closing()

    def pause_reading(self) -> None:
        """Receive nothing until `resume_reading`."""
        if self._reading and not self.is_closing():
            self._reading = False
            self._stop_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        if not self._reading and not self.is_closing():
            self._reading = True
            self._start_reading()

    @abstractmethod
    def _stop_reading(self) -> None:
        """Take no more from the stream."""

    @abstractmethod
    def _start_reading(self) -> None:
        """Take from the stream again."""

    # ---- data --------------------------------------------------------------------------------------------------------

    def writelines(self, list_of_data: Any) -> None:
        """Send them all."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """False: who half-closes a pooled connection has no use for the pool."""
        return False

    def _received(self, data: bytes) -> None:
        try:
            if data:
                self._protocol.data_received(data)
            elif not self._protocol.eof_received():
                self.close()
            else:
                self.pause_reading()  # the end would be read again and again
        except Exception as error:
            self._failed(error, "a protocol failed over data that it received")

    def _failed(self, error: BaseException, message: str | None = None) -> None:
        if message is not None:
            self._portal.loop.call_exception_handler(
                {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
            )
        elif isinstance(error, trio.BrokenResourceError):
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else None
            lost = ConnectionResetError(*cause.args) if cause is not None else ConnectionResetError(str(error))
            lost.__cause__ = error
            error = lost
        self._buffer.clear()
        self._end(error)

    # ---- questions ---------------------------------------------------------------------------------------------------

    def set_protocol(self, protocol: Any) -> None:
        """From now on `protocol` is told."""
        self._protocol = protocol

    def get_protocol(self) -> Any:
        """Who is told."""
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``peername``, ``sockname``, ``socket``, ``sslcontext``, ``ssl_object``, ``peercert``, ``cipher``, …

        Besides what asyncio has: ``lease``, the `trioconn.Connection`.
        """
        lease = self._lease
        if name == "lease":
            return lease
        if name == "peername":
            return lease.info.remote_address or default
        if name == "sockname":
            return lease.info.local_address or default
        if self._over:
            return default
        if name == "socket":
            stream = self._stream
            while (below := getattr(stream, "transport_stream", None)) is not None:
                stream = below
            return getattr(stream, "socket", default)
        if not self._tls:
            return default
        if name == "ssl_object":
            return self._stream  # answers as `ssl.SSLObject` does
        if name == "sslcontext":
            return self._stream.context
        if name in _TLS_QUESTIONS:
            return getattr(self._stream, _TLS_QUESTIONS[name])()
        return default

    def __repr__(self) -> str:
        state = "over" if self._over else "closing" if self._closing else "open"
        return f"<{type(self).__name__}, {state}, of {self._lease!r}>"
