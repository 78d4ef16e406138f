"""An HTTP/1.1 client on h11: every response that was read to a clean end gives its connection back."""

import sys
from urllib.parse import urlsplit

import h11
import trio

import trioconn


async def get(connector: trioconn.TCPConnector, url: str) -> tuple[int, bytes]:
    parts, body = urlsplit(url), b""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    async with await connector.connect(url) as conn:
        target = f"{parts.scheme}://{parts.netloc}{target}" if conn.forwarded else target  # what a proxy wants
        headers = [(b"Host", parts.netloc.encode()), *conn.proxy_headers]
        protocol = h11.Connection(h11.CLIENT)
        head = protocol.send(h11.Request(method="GET", target=target, headers=headers)) or b""
        await conn.stream.send_all(head + (protocol.send(h11.EndOfMessage()) or b""))
        while not isinstance(event := protocol.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                protocol.receive_data(await conn.stream.receive_some())
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
        if protocol.our_state is protocol.their_state is h11.DONE and not protocol.trailing_data[0]:
            conn.release()  # both have said all; without this line, leaving the block closes the connection
    return status, body


async def main() -> None:
    async with trioconn.TCPConnector() as connector:
        for url in sys.argv[1:]:
            print(url, *await get(connector, url))


if __name__ == "__main__":
    trio.run(main)
