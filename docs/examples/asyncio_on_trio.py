"""aiohttp in a trio program, by trio-asyncio; trio tasks share the connector: `python asyncio_on_trio.py URL`."""

import sys

import aiohttp
import trio

import trioconn
import trioconn.aio


async def from_asyncio(connector: trioconn.TCPConnector, url: str) -> None:
    over_ours = trioconn.aio.AiohttpConnector(connector)
    async with aiohttp.ClientSession(connector=over_ours) as session, session.get(url) as response:
        print("asyncio:", response.status)
        await response.read()


async def main(url: str) -> None:
    async with trioconn.TCPConnector(limit=20) as connector:
        async with trioconn.aio.open_loop():
            from trio_asyncio import aio_as_trio

            await aio_as_trio(from_asyncio)(connector, url)
        conn = connector.connect_nowait(url)  # the same connection, now for trio
        print("trio:", conn.reused)
        conn.release()


trio.run(main, sys.argv[1])
