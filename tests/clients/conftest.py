"""A scripted HTTP server: what a peer sends is what the test says, byte for byte and in its order."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import h11
import pytest
import trio

SMALL = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
Answer = Callable[["Peer"], Awaitable[object]]


class Peer:
    """The server's end of one connection."""

    def __init__(self, server: Server, stream: trio.SocketStream, number: int) -> None:
        self.server = server
        self.stream = stream
        self.number = number
        self.requests = 0
        self._h11 = h11.Connection(h11.SERVER)

    async def head(self) -> h11.Request | None:
        """The next request without its body; None at the end."""
        if self._h11.our_state is h11.SEND_RESPONSE:
            self._pretend_to_answer()
        if self._h11.our_state is h11.DONE:
            self._h11.start_next_cycle()
        event = await self._event()
        if not isinstance(event, h11.Request):
            return None
        self.requests += 1
        self.server.requests.append(event)
        return event

    async def body(self) -> bytes:
        body = b""
        while isinstance(event := await self._event(), h11.Data):
            body += event.data
        return body

    async def request(self) -> tuple[h11.Request, bytes] | None:
        head = await self.head()
        return None if head is None else (head, await self.body())

    def _pretend_to_answer(self) -> None:
        self._h11.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        self._h11.send(h11.EndOfMessage())

    async def _event(self) -> object:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self.stream.receive_some())
        return event

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read_all(self) -> bytes:
        """What comes until the client ends."""
        data = b""
        with contextlib.suppress(trio.BrokenResourceError):
            async for more in self.stream:
                data += more
        return data


class Server:
    """Counts connections and requests, and has each connection answered by a script."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.connections = 0
        self.open = 0
        self.requests: list[h11.Request] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open += 1
        try:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
                await self._answer(Peer(self, stream, self.connections))
        finally:
            self.open -= 1
            with trio.CancelScope(shield=True):
                await stream.aclose()


async def hello(peer: Peer) -> None:
    """Answer every request with `SMALL`."""
    while await peer.request() is not None:
        await peer.send(SMALL)


@asynccontextmanager
async def open_http_server(answer: Answer = hello) -> AsyncIterator[Server]:
    server = Server(answer)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, server, 0, host="127.0.0.1"))
        server.port = listeners[0].socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


@pytest.fixture
def http_server() -> Callable[..., AbstractAsyncContextManager[Server]]:
    """``async with http_server(answer) as server``: ``answer(peer)`` scripts each connection."""
    return open_http_server


@pytest.fixture
def small() -> bytes:
    """A small response."""
    return SMALL
