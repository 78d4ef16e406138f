"""aiohttp over trioconn in a plain asyncio program: `python asyncio_aiohttp.py URL…`."""

import asyncio
import sys

import aiohttp

import trioconn.aio


async def main() -> None:
    async with trioconn.aio.guest():
        connector = trioconn.aio.AiohttpConnector(limit=20, limit_per_host=6)
        async with aiohttp.ClientSession(connector=connector) as session:
            for url in sys.argv[1:]:
                async with session.get(url) as response:
                    print(response.status, len(await response.read()))
            print(connector.connector.statistics().created, "connections made")


asyncio.run(main())
