"""Leases for libraries that are written for anyio: `ByteStream` is a view of one, `ByteStreamConnectable` takes them.

On trio only, as everything here: anyio programs run on it with ``anyio.run(main, backend="trio")``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import trio

import trioconn

try:
    import anyio
    import anyio.abc
    from anyio.streams.tls import TLSAttribute
except ImportError as _error:
    raise ImportError("trioconn.anyio needs anyio: pip install 'trioconn[anyio]'") from _error

if TYPE_CHECKING:
    from trioconn import BaseConnector, Connection

__all__ = ["ByteStream", "ByteStreamConnectable"]


class ByteStream(anyio.abc.ByteStream):
    """A lease as an `anyio.abc.ByteStream`. Closing it closes the lease; release the lease to give it back instead.

    It raises anyio's exceptions: `anyio.EndOfStream`, `anyio.BrokenResourceError`, `anyio.ClosedResourceError`,
    `anyio.BusyResourceError`. Typed attributes: those of `anyio.abc.SocketAttribute` for addresses, and of
    `anyio.streams.tls.TLSAttribute` where there is TLS.

    Attributes:
      lease: the `trioconn.Connection`.
    """

    def __init__(self, lease: Connection) -> None:
        self.lease = lease

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """At least a byte and at most `max_bytes`.

        Raises:
          anyio.EndOfStream: the peer has ended.
          anyio.BrokenResourceError: the connection broke.
          anyio.ClosedResourceError: the lease is over.
        """
        with _translated():
            data = await self.lease.stream.receive_some(max_bytes)
        if not data:
            raise anyio.EndOfStream
        return bytes(data)

    async def send(self, item: bytes) -> None:
        """Send all of `item`.

        Raises:
          anyio.BrokenResourceError: the connection broke.
          anyio.ClosedResourceError: the lease is over.
        """
        with _translated():
            await self.lease.stream.send_all(item)

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on.

        Raises:
          NotImplementedError: TLS has no half-closed state here.
        """
        with _translated():
            stream = self.lease.stream
            if not isinstance(stream, trio.abc.HalfCloseableStream):
                raise NotImplementedError("this transport cannot end one direction alone")
            await stream.send_eof()

    async def aclose(self) -> None:
        """Close the lease; TLS says close_notify for at most ``ssl_shutdown_timeout``."""
        await self.lease.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Addresses, and what TLS agreed on."""
        info = self.lease.info
        found: dict[Any, Callable[[], Any]] = {}
        if info.local_address is not None:
            found[anyio.abc.SocketAttribute.local_address] = lambda: info.local_address
        if info.remote_address is not None:
            found[anyio.abc.SocketAttribute.remote_address] = lambda: info.remote_address
        if isinstance(info.remote_address, tuple):  # of the internet, so that there are ports
            found[anyio.abc.SocketAttribute.local_port] = lambda: info.local_address[1]
            found[anyio.abc.SocketAttribute.remote_port] = lambda: info.remote_address[1]
        if info.tls:
            top = info.tls[-1]
            found[TLSAttribute.alpn_protocol] = lambda: top.alpn
            found[TLSAttribute.tls_version] = lambda: top.version
            found[TLSAttribute.peer_certificate_binary] = lambda: top.certificate
        return found


class ByteStreamConnectable(anyio.abc.ByteStreamConnectable):
    """Leases connections to one target: ``await connectable.connect()``.

    Args:
      connector: an entered connector.
      target: as for ``connector.connect``, and so are the options.
    """

    def __init__(self, connector: BaseConnector, target: object, **options: Any) -> None:
        self._connector = connector
        self._target = target
        self._options = options

    async def connect(self) -> ByteStream:
        """A lease as a `ByteStream`.

        Raises:
          anyio.ConnectionFailed: no connection could be made; the cause is the `trioconn.ConnectError`.
          trioconn.InvalidTargetError: the target or an option cannot be used.
        """
        try:
            return ByteStream(await self._connector.connect(self._target, **self._options))
        except trioconn.ConnectError as error:
            raise anyio.ConnectionFailed(str(error)) from error


class _translated:  # noqa: N801 - a context manager; as a generator it would cost three times as much
    """trio's words as anyio's: the same ones, of other classes."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, trio.ClosedResourceError):
            raise anyio.ClosedResourceError from error
        if isinstance(error, trio.BrokenResourceError):
            raise anyio.BrokenResourceError from error
        if isinstance(error, trio.BusyResourceError):
            raise anyio.BusyResourceError("using") from error
