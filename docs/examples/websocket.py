"""trio-websocket over a lease: through a proxy, with the pool's limits, deadlines and errors.

Give it a URL, and a proxy if you like: ``python websocket.py wss://echo.example/ socks5h://127.0.0.1:1080``
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio_websocket

import trioconn


@asynccontextmanager
async def open_websocket(
    connector: trioconn.TCPConnector, url: str, *, proxy: str | None = None
) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """A websocket to `url`; wss is TLS, and either is tunnelled through the proxy."""
    resource = "/" + url.split("://", 1)[1].partition("/")[2]
    async with await connector.connect(url, proxy=proxy) as conn, trio.open_nursery() as nursery:
        host = f"{conn.route.host}:{conn.route.port}"
        websocket = await trio_websocket.wrap_client_stream(nursery, conn.stream, host, resource)
        async with websocket:
            yield websocket
        # Never released: nobody else can use what has been a websocket. Leaving the block closes it.


async def main(url: str, proxy: str | None = None) -> None:
    async with trioconn.TCPConnector() as connector, open_websocket(connector, url, proxy=proxy) as websocket:
        await websocket.send_message("hello")
        print(await websocket.get_message())


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
