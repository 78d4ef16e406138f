"""A lease as httpcore's network stream: what the adapters for httpcore2 and for upgraded connections have in common."""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import trio

import trioconn

if TYPE_CHECKING:
    from trioconn import Connection

CONNECTION_ENDED = (trio.BrokenResourceError, trio.ClosedResourceError)


class TLSView:
    """What can be asked of TLS, as `ssl.SSLObject` answers it, also after the lease is over. Nothing can be sent."""

    def __init__(self, stream: Any) -> None:
        self.getpeercert: Callable[..., Any] = stream.getpeercert
        self.version: Callable[[], str | None] = stream.version
        self.cipher: Callable[[], tuple[str, str, int] | None] = stream.cipher
        self.selected_alpn_protocol: Callable[[], str | None] = stream.selected_alpn_protocol


class LeasedNetworkStream:
    """Reads and writes a lease with httpcore's timeouts and exceptions. Closing it closes the lease.

    Args:
      lease: owned from now on.
      leading: bytes that were received already, and come first.
      stream: what to speak over, if that is not the stream of the lease but something on top of it.
    """

    core: ClassVar[Any]
    """The module whose exceptions are raised."""

    def __init__(self, lease: Connection, *, leading: bytes = b"", stream: trio.abc.Stream | None = None) -> None:
        self._lease = lease
        self._leading = leading
        self._own = stream
        top: Any = stream
        if top is None and not lease.closed and lease.info.tls:
            top = lease.stream
        # Asked for now: clients look at certificates after the response was read, and the lease is over then.
        self._tls = TLSView(top) if top is not None and hasattr(top, "getpeercert") else None

    @property
    def _stream(self) -> trio.abc.Stream:
        return self._lease.stream if self._own is None else self._own

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's signature
        """At least a byte and at most `max_bytes`; ``b""`` at the end of the stream."""
        if self._leading:
            await trio.lowlevel.checkpoint()
            data, self._leading = self._leading[:max_bytes], self._leading[max_bytes:]
            return data
        try:
            with scope_for(timeout):
                return bytes(await self._stream.receive_some(max_bytes))
        except CONNECTION_ENDED as error:
            raise self.core.ReadError(str(error)) from error
        raise self.core.ReadTimeout(f"nothing came for {timeout} s")

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Send all of `buffer`."""
        if not buffer:
            await trio.lowlevel.checkpoint()
            return
        try:
            with scope_for(timeout) as scope:
                await self._stream.send_all(buffer)
        except CONNECTION_ENDED as error:
            raise self.core.WriteError(str(error)) from error
        if scope.cancelled_caught:
            raise self.core.WriteTimeout(f"not sent within {timeout} s")

    async def aclose(self) -> None:
        """Close the lease; cancelled, at once."""
        try:
            if self._own is not None and not self._lease.closed:
                await self._own.aclose()
        finally:
            self._lease.close()
        await trio.lowlevel.checkpoint()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Self:
        """TLS on top. If it fails, or is cancelled, the lease is closed."""
        try:
            with scope_for(timeout):
                return self._over(await self._handshaken(ssl_context, server_hostname))
        except CONNECTION_ENDED as error:
            self._lease.close()
            raise self.core.ConnectError(str(error)) from error
        except OSError as error:
            self._lease.close()
            raise self.core.ConnectError(str(error)) from error
        except BaseException:
            self._lease.close()
            raise
        self._lease.close()
        raise self.core.ConnectTimeout(f"no TLS within {timeout} s")

    async def _handshaken(self, ssl_context: ssl.SSLContext, server_hostname: str | None) -> trio.abc.Stream:
        stream = trioconn.TLSStream(self._stream, ssl_context, server_hostname=server_hostname, https_compatible=True)
        await stream.do_handshake()
        return stream

    def _over(self, stream: trio.abc.Stream) -> Self:
        return type(self)(self._lease, stream=stream)

    def get_extra_info(self, info: str) -> Any:
        """``client_addr``, ``server_addr``, ``ssl_object``; while the lease lives ``socket`` and ``is_readable``."""
        if info == "client_addr":
            return self._lease.info.local_address
        if info == "server_addr":
            return self._lease.info.remote_address
        if info == "ssl_object":
            return self._tls
        if info == "is_readable":
            return self._lease.closed or not getattr(self._stream, "probe", lambda: True)()
        if info == "socket" and not self._lease.closed:
            stream: Any = self._lease.stream
            while (below := getattr(stream, "transport_stream", None)) is not None:
                stream = below
            return getattr(stream, "socket", None)
        return None


def scope_for(seconds: float | None) -> trio.CancelScope:
    """A scope that ends after `seconds`, or not at all."""
    return trio.CancelScope(relative_deadline=math.inf if seconds is None else seconds)
