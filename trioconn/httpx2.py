"""httpx2 on our connections: ``httpx2.AsyncClient(transport=trioconn.httpx2.Transport())``.

The pool, the limits, lookups, proxies and TLS are a connector's; HTTP/1.1 is h11's; timeouts, exceptions and extensions
are httpx2's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ._httpx import ResponseStream, TransportBase
from ._network_stream import LeasedNetworkStream

try:
    import httpx2
except ImportError as _error:
    raise ImportError("trioconn.httpx2 needs httpx2: pip install 'trioconn[httpx2]'") from _error

from .httpcore2 import NetworkStream

if TYPE_CHECKING:
    from types import ModuleType

    from trioconn import BaseConnector

__all__ = ["Transport"]


class _ResponseStream(ResponseStream, httpx2.AsyncByteStream):
    library: ClassVar[ModuleType] = httpx2


class Transport(TransportBase, httpx2.AsyncBaseTransport):
    """An `httpx2.AsyncBaseTransport` for HTTP/1.1 on trio, whose pool is a `trioconn.BaseConnector`.

    ``Transport(limit=20, proxy="http://proxy:3128")`` makes a connector of its own, which lives while the client is
    open: use the client with ``async with``. ``Transport(connector)`` borrows one that was entered; closing the client
    then leaves it open, and the client may be used without ``async with``. httpx2 ignores the client's own ``verify=``,
    ``cert=``, ``limits=`` and ``proxy=`` when it is given a transport: these are options of the connector.

    A connection goes back to the pool only when both messages are complete and nothing came after the response. A
    response that was cancelled or not read to its end closes it. ``Keep-Alive: timeout=`` shortens its time
    in the pool.
    An idempotent request that met a connection which the server had just closed is sent again, once.

    Extensions of requests: ``timeout`` (a ``connect`` timeout covers a whole attempt, TLS included, a ``pool`` timeout
    the wait for a slot), ``trace``, ``sni_hostname``, ``target``. Of responses: ``http_version``, ``reason_phrase``,
    ``network_stream``, which is where an upgraded connection goes on.

    Args:
      connector: an entered connector, which stays the caller's.
      connector_options: for a `trioconn.TCPConnector` of its own.

    Raises:
      TypeError: there are both; or an option is of the wrong type.
    """

    library: ClassVar[ModuleType] = httpx2
    network_stream: ClassVar[type[LeasedNetworkStream]] = NetworkStream
    response_stream: ClassVar[type[ResponseStream]] = _ResponseStream

    def __init__(self, connector: BaseConnector | None = None, **connector_options: Any) -> None:
        super().__init__(connector, **connector_options)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send `request` and return its response, with the body still to be read.

        Raises:
          RuntimeError: the transport's own connector is not open.
          httpx2.TransportError: a kind of it, as from httpx2's own transport.
        """
        response: httpx2.Response = await super().handle_async_request(request)
        return response
