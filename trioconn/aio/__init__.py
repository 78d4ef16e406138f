"""trioconn from asyncio: connectors, leases and aiohttp sessions in an asyncio program.

A map of the package:

* `bridge`: a `Portal` is the way from asyncio code into a trio run on the same thread. Calls go in, results, errors and
  cancellations come out.
* `runs`: where that run comes from. `guest` starts one on the asyncio loop that is running; `open_loop` and `portal`
  use the one that a trio-asyncio loop runs on.
* `leases`: connectors, leases and streams with methods that asyncio code can await.
* `readiness`, `transport`, `socket_transport`, `task_transport`: leased streams as asyncio transports.
* `aiohttp_connector`, `aiohttp_watch`, `aiohttp_errors`: `AiohttpConnector`, for ``aiohttp.ClientSession``.

Importing this package imports neither trio-asyncio nor aiohttp. The first would put every later ``asyncio.run`` of the
process on another, slower loop; it is imported by `open_loop` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .bridge import Portal
from .leases import Connection, Connector, Stream
from .runs import guest, open_loop, portal

__all__ = ["AiohttpConnector", "Connection", "Connector", "Portal", "Stream", "guest", "open_loop", "portal"]

if TYPE_CHECKING:
    from .aiohttp_connector import AiohttpConnector
else:

    def __getattr__(name: str) -> Any:
        if name != "AiohttpConnector":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            import aiohttp  # noqa: F401
        except ModuleNotFoundError as error:
            raise ImportError(
                "AiohttpConnector needs aiohttp: python -m pip install 'trioconn[asyncio]'", name="aiohttp"
            ) from error
        from .aiohttp_connector import AiohttpConnector

        globals()[name] = AiohttpConnector
        return AiohttpConnector
