"""The old httpx (0.28) on our connections: ``httpx.AsyncClient(transport=trioconn.httpx.Transport())``.

All of it is that of `trioconn.httpx2`, with the names of httpx and httpcore.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from ._httpx import ResponseStream, TransportBase
from ._network_stream import LeasedNetworkStream

try:
    import httpcore
    import httpx  # noqa: ASYNC127 - this module is for those who still use it
except ImportError as _error:
    raise ImportError("trioconn.httpx needs httpx: pip install 'trioconn[httpx]'") from _error

if TYPE_CHECKING:
    from trioconn import BaseConnector

__all__ = ["NetworkStream", "Transport"]


class NetworkStream(LeasedNetworkStream, httpcore.AsyncNetworkStream):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A lease as an `httpcore.AsyncNetworkStream`: the ``network_stream`` extension of responses."""

    core: ClassVar[ModuleType] = httpcore


class _ResponseStream(ResponseStream, httpx.AsyncByteStream):
    library: ClassVar[ModuleType] = httpx


class Transport(TransportBase, httpx.AsyncBaseTransport):
    """An `httpx.AsyncBaseTransport` for HTTP/1.1 on trio: see `trioconn.httpx2.Transport`.

    Args:
      connector: an entered connector, which stays the caller's.
      connector_options: for a `trioconn.TCPConnector` of its own.

    Raises:
      TypeError: there are both; or an option is of the wrong type.
    """

    library: ClassVar[ModuleType] = httpx
    network_stream: ClassVar[type[LeasedNetworkStream]] = NetworkStream
    response_stream: ClassVar[type[ResponseStream]] = _ResponseStream

    def __init__(self, connector: BaseConnector | None = None, **connector_options: Any) -> None:
        super().__init__(connector, **connector_options)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` and return its response, with the body still to be read.

        Raises:
          RuntimeError: the transport's own connector is not open.
          httpx.TransportError: a kind of it, as from httpx's own transport.
        """
        response: httpx.Response = await super().handle_async_request(request)
        return response
