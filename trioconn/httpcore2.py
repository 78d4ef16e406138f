"""httpcore2 on our connections: its pool and its protocols, our dialling, lookups, proxies and policy.

`NetworkBackend` is for those who want to keep httpcore2's own pool, for HTTP/2 say. Whoever uses httpx2 and HTTP/1.1 is
better served by `trioconn.httpx2`, whose pool is ours.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import trio

import trioconn

from ._network_stream import LeasedNetworkStream, scope_for

try:
    import httpcore2
except ImportError as _error:
    raise ImportError("trioconn.httpcore2 needs httpcore2: pip install 'trioconn[httpcore2]'") from _error

if TYPE_CHECKING:
    from trioconn import BaseConnector, Connection

__all__ = ["NetworkBackend", "NetworkStream"]


class NetworkStream(LeasedNetworkStream, httpcore2.AsyncNetworkStream):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A lease as an `httpcore2.AsyncNetworkStream`, with httpcore2's timeouts and exceptions.

    Closing it closes the lease. ``get_extra_info("ssl_object")`` can be asked what an `ssl.SSLObject` can
    (``getpeercert``, ``version``, ``cipher``, ``selected_alpn_protocol``), also after the lease is over.
    """

    core: ClassVar[ModuleType] = httpcore2


class _BackendStream(NetworkStream):
    """A stream that a backend made: it knows how the connector trusts the target."""

    def __init__(self, lease: Connection, connector: BaseConnector, host: str, port: int, **more: Any) -> None:
        super().__init__(lease, **more)
        self._connector = connector
        self._host = host
        self._port = port

    async def _handshaken(self, ssl_context: ssl.SSLContext, server_hostname: str | None) -> trio.abc.Stream:
        host = f"[{self._host}]" if ":" in self._host else self._host
        plan = partial(
            self._connector.route, f"tls://{host}:{self._port}", server_hostname=server_hostname or None, proxy=None
        )
        route = plan()
        if route == plan(ssl=True):  # the connector was told nothing about trust, so httpcore2's context decides
            route = plan(ssl=ssl_context)
        return await trioconn.start_tls(self._stream, route)

    def _over(self, stream: trio.abc.Stream) -> _BackendStream:
        return type(self)(self._lease, self._connector, self._host, self._port, stream=stream)


class NetworkBackend(httpcore2.AsyncNetworkBackend):
    """``httpcore2.AsyncConnectionPool(network_backend=NetworkBackend(connector))``.

    httpcore2's pool keeps the connections, and their leases with them; so limits are best set there, and ``limit=0``
    on the connector. Its proxies are tunnelled through by CONNECT also for plain ``http``, since a backend is not told
    what will be spoken. TLS is made with httpcore2's context, unless the connector was given ``ssl=`` or one of its
    older spellings: then it decides, pins included, and TLS offers no HTTP/2 unless its context does.

    Args:
      connector: an entered one, which stays yours. A `trioconn.UnixConnector` serves ``uds=`` with its own path.
    """

    def __init__(self, connector: BaseConnector) -> None:
        self._connector = connector

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> NetworkStream:
        """A plain connection to `host`, the way that the connector goes.

        Raises:
          httpcore2.ConnectError: no connection could be made; the cause says why.
          httpcore2.ConnectTimeout: not within `timeout`.
          httpcore2.ProxyError: a proxy refused.
        """
        shown = f"[{host}]" if ":" in host else host
        options: Any = {} if local_address is None else {"local_addr": (local_address, 0)}
        lease = await self._connect(f"tcp://{shown}:{port}", timeout, options)
        return self._with_options(_BackendStream(lease, self._connector, host, port), lease, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        socket_options: Iterable[Any] | None = None,
    ) -> NetworkStream:
        """A connection to the socket of the connector, which must be a `trioconn.UnixConnector` for `path`.

        Raises:
          ValueError: it is not.
          httpcore2.ConnectError: no connection could be made; the cause says why.
          httpcore2.ConnectTimeout: not within `timeout`.
        """
        if getattr(self._connector, "path", None) != path:
            raise ValueError(f"this backend's connector does not lead to {path!r}: give it a UnixConnector({path!r})")
        lease = await self._connect("unix:", timeout, {})
        return self._with_options(NetworkStream(lease), lease, socket_options)

    async def _connect(self, target: str, seconds: float | None, options: Any) -> Connection:
        try:
            with scope_for(seconds):
                return await self._connector.connect(target, **options)
        except trioconn.ConnectTimeoutError as error:
            raise httpcore2.ConnectTimeout(str(error)) from error
        except trioconn.ProxyRefusedError as error:
            raise httpcore2.ProxyError(str(error)) from error
        except trioconn.ConnectorError as error:
            raise httpcore2.ConnectError(str(error)) from error
        raise httpcore2.ConnectTimeout(f"no connection within {seconds} s")

    @staticmethod
    def _with_options(stream: NetworkStream, lease: Connection, options: Iterable[Any] | None) -> NetworkStream:
        try:
            sock = stream.get_extra_info("socket")
            for option in options or ():
                sock.setsockopt(*option)
        except OSError as error:
            lease.close()
            raise httpcore2.ConnectError(str(error)) from error
        except BaseException:
            lease.close()
            raise
        return stream

    async def sleep(self, seconds: float) -> None:
        """Sleep on trio's clock."""
        await trio.sleep(seconds)
