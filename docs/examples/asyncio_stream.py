"""Leases of trioconn in a plain asyncio program: `python asyncio_stream.py URL`."""

import asyncio
import sys

import trioconn
import trioconn.aio


async def main(url: str) -> None:
    async with (
        trioconn.aio.guest() as portal,  # a trio run beside this loop
        portal.open(trioconn.TCPConnector(limit=20)) as connector,
        await connector.connect(url) as conn,
    ):
        await conn.stream.send_all(b"HEAD / HTTP/1.1\r\nHost: example\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(10):
            answer = await conn.stream.receive_some()
        print(answer.split(b"\r\n")[0].decode())


asyncio.run(main(sys.argv[1]))
