"""Servers in threads with plain asyncio loops of their own; clients by both ways of reaching trio from asyncio."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import trio

aiohttp = pytest.importorskip("aiohttp")
from aiohttp import web  # noqa: E402

import trioconn.aio  # noqa: E402

MB = 1 << 20
Main = Callable[..., Awaitable[Any]]


def in_guest(main: Main) -> Any:
    async def whole() -> Any:
        async with trioconn.aio.guest() as portal:
            return await main(portal)

    # Not asyncio.run: once trio-asyncio was imported in this process, that is another loop.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(whole())


def in_open_loop(main: Main) -> Any:
    async def whole() -> Any:
        async with trioconn.aio.open_loop() as portal:
            from trio_asyncio import aio_as_trio

            return await aio_as_trio(main)(portal)

    return trio.run(whole)


WAYS = {"guest": in_guest, "open_loop": in_open_loop}


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest, count_fds: Callable[[], int]) -> Iterator[Callable[[Main], Any]]:
    """``run(main)``: ``await main(portal)`` in asyncio, beside trio. No descriptor may be left, nor any object."""
    if request.param == "open_loop":
        if sys.version_info >= (3, 14):
            pytest.skip("trio-asyncio is for Python before 3.14")
        pytest.importorskip("trio_asyncio")
    way = WAYS[request.param]
    way(nothing)  # what is made once per process is made now
    before = count_fds()
    yield way
    gc.collect()
    assert count_fds() == before, "descriptors leaked"


async def nothing(portal: trioconn.aio.Portal) -> None:
    await portal.run(trio.sleep, 0)


async def get(request: web.Request) -> web.Response:
    return web.Response(text=str(request.transport.get_extra_info("peername")), headers={"Server": "test"})


async def upload(request: web.Request) -> web.Response:
    total = 0
    async for chunk in request.content.iter_any():
        total += len(chunk)
    return web.Response(text=str(total))


async def download(request: web.Request) -> web.StreamResponse:
    size = int(request.query["size"])
    response = web.StreamResponse(headers={"Content-Length": str(size)})
    await response.prepare(request)
    chunk = bytes(range(256)) * 256
    while size > 0:
        await response.write(chunk[:size])
        size -= len(chunk)
    return response


async def stall(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "10"})
    if "headers" in request.query:
        await response.prepare(request)
        await response.write(b"half ")
    await asyncio.sleep(3600)
    return response


async def drop(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "10"})
    await response.prepare(request)
    await response.write(b"half ")
    request.transport.close()
    return response


async def websocket(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        if message.type is aiohttp.WSMsgType.TEXT:
            await ws.send_str(message.data)
        else:
            await ws.send_bytes(message.data)
    return ws


class WebServer:
    """An aiohttp server in a thread.

    Attributes:
      port: where it listens.
      connections: how many connections there were.
      open: how many there are.
    """

    def __init__(self, context: ssl.SSLContext | None = None, path: str | None = None) -> None:
        self._context = context
        self._path = path
        self.port = 0
        self.connections = 0
        self.peers: set[int] = set()
        self.most_at_once = 0
        self._now = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"{'https' if self._context else 'http'}://{host}:{self.port}{path}"

    def _work(self) -> None:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._serve())

    async def _busy(self, request: web.Request) -> web.Response:
        self.peers.add(request.transport.get_extra_info("peername")[1])
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        await asyncio.sleep(0.005)
        self._now -= 1
        return web.Response(text="done")

    async def _serve(self) -> None:
        loop: Any = asyncio.get_running_loop()
        self._loop = loop
        self._ended = asyncio.Event()
        app = web.Application(client_max_size=64 * MB)
        app.add_routes(
            [
                web.get("/", get),
                web.get("/busy", self._busy),
                web.post("/upload", upload),
                web.get("/download", download),
                web.get("/stall", stall),
                web.get("/drop", drop),
                web.get("/ws", websocket),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        if self._path is not None:
            await web.UnixSite(runner, self._path).start()
        else:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._context)
            await site.start()
            self.port = runner.addresses[0][1]
        self._ready.set()
        await self._ended.wait()
        # A connection that was accepted and has no transport yet when its server is closed gets half of one, and one
        # whose end the server has not seen when its loop ends is never closed; both would look like leaks of ours.
        for site in runner.sites:
            for listener in site._server.sockets:
                loop.remove_reader(listener.fileno())
        await _passes(3)
        await runner.cleanup()
        for transport in list(loop._transports.values()):
            transport.abort()
        await _passes(3)


async def _passes(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as one:
        yield one


@pytest.fixture
def tls_server(server_ssl: Callable[..., ssl.SSLContext]) -> Iterator[WebServer]:
    with WebServer(server_ssl("localhost", "127.0.0.1")) as one:
        yield one


@pytest.fixture
def unix_server(tmp_path: Path) -> Iterator[str]:
    path = os.path.join(tmp_path, "s")
    with WebServer(path=path):
        yield path


@pytest.fixture
def refused() -> Iterator[int]:
    """A port of loopback on which nobody listens, and nobody else can."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port whose connections are accepted by the system and by nobody else."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
