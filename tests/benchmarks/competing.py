"""5. Two hosts that compete for ten connections: 100 tasks each, 10 requests a task, over TLS to nginx."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import h11
import httpcore2
import servers
import trio
from measuring import OURS, Comparison

import trioconn

ITEM = "5. Two hosts compete for 10 connections over TLS (100 tasks each, 10 requests a task, nginx)"
HOSTS = ("a.test", "b.test")
_TASKS, _EACH, _LIMIT = 100, 10, 10
_BODY = b"x" * 100


class Tally:
    """What came back: on which connection, for which host, when."""

    def __init__(self) -> None:
        self.connections: set[bytes] = set()
        self.hosts: list[str] = []

    def note(self, host: str, connection: bytes, body: bytes) -> None:
        assert body == _BODY
        self.connections.add(connection)
        self.hosts.append(host)

    def share(self) -> float:
        """The part of the less served host in the first half of the answers, against its right of one half."""
        half = self.hosts[: len(self.hosts) // 2]
        return min(half.count(host) for host in HOSTS) / (len(half) / 2)


def measure(*, quick: bool) -> list[Comparison]:
    """Requests per second, new connections per request, sockets open at a time, and how equally they are served."""
    contenders: dict[str, Callable[[int, str, Tally], None]] = {
        OURS: _ours,
        "httpcore2": _httpcore2,
        "aiohttp": _aiohttp,
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    new: dict[str, list[float]] = {name: [] for name in contenders}
    most: dict[str, list[float]] = {name: [] for name in contenders}
    shares: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder, servers.nginx(Path(folder)) as (port, authority):
        for _ in range(2 if quick else 7):
            for name, contender in contenders.items():
                tally = Tally()
                began = time.perf_counter()
                with servers.most_sockets(port) as sockets:
                    began = time.perf_counter()
                    contender(port, authority, tally)
                    seconds = time.perf_counter() - began
                count = len(tally.hosts)
                assert count == len(HOSTS) * _TASKS * _EACH
                rates[name].append(count / seconds)
                new[name].append(len(tally.connections) / count)
                most[name].append(sockets[0])
                shares[name].append(tally.share())
    return [
        Comparison(ITEM, "throughput", "requests/s", rates, "httpcore2", 4, at_most=False),
        Comparison(ITEM, "new connections per request", "", new, target=0.02),
        Comparison(ITEM, "most sockets open at any one time", "", most, target=_LIMIT),
        Comparison(
            ITEM, "the less served host's share of the first half, 1 is its due", "", shares, target=0.9, at_most=False
        ),
    ]


class LocalResolver(trioconn.Resolver):
    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[trioconn.ResolveResult]:
        await trio.lowlevel.checkpoint()
        return [trioconn.ResolveResult("127.0.0.1", 2, None)]


def _ours(port: int, authority: str, tally: Tally) -> None:
    context = ssl.create_default_context(cafile=authority)

    async def task(connector: trioconn.TCPConnector, route: trioconn.Route) -> None:
        for _ in range(_EACH):
            async with await connector.connect(route) as lease:
                assert route.host is not None
                tally.note(route.host, *await exchange(lease.stream, route.host))
                lease.release()

    async def main() -> None:
        async with (
            trioconn.TCPConnector(limit=_LIMIT, ssl=context, resolver=LocalResolver()) as connector,
            trio.open_nursery() as nursery,
        ):
            routes = [connector.route(f"https://{host}:{port}") for host in HOSTS]
            for route in routes * _TASKS:
                nursery.start_soon(task, connector, route)

    trio.run(main)


async def exchange(stream: trio.abc.Stream, host: str) -> tuple[bytes, bytes]:
    http = h11.Connection(h11.CLIENT)
    request = http.send(h11.Request(method="GET", target="/", headers=[("Host", host)]))
    assert request is not None
    await stream.send_all(request + (http.send(h11.EndOfMessage()) or b""))
    connection = body = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Response):
            connection = dict(event.headers)[b"x-connection"]
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return connection, body
        else:
            raise AssertionError(event)


class _Backend(httpcore2.AsyncNetworkBackend):
    """Its own, with every name at 127.0.0.1."""

    def __init__(self) -> None:
        self._under = httpcore2.TrioBackend()

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        return await self._under.connect_tcp("127.0.0.1", port, *args, **options)


def _httpcore2(port: int, authority: str, tally: Tally) -> None:
    context = ssl.create_default_context(cafile=authority)

    async def task(pool: httpcore2.AsyncConnectionPool, host: str) -> None:
        for _ in range(_EACH):
            response = await pool.request("GET", f"https://{host}:{port}/")
            tally.note(host, dict(response.headers)[b"X-Connection"], response.content)

    async def main() -> None:
        async with (
            httpcore2.AsyncConnectionPool(
                ssl_context=context, max_connections=_LIMIT, network_backend=_Backend()
            ) as pool,
            trio.open_nursery() as nursery,
        ):
            for host in HOSTS * _TASKS:
                nursery.start_soon(task, pool, host)

    trio.run(main)


class _AiohttpResolver(aiohttp.abc.AbstractResolver):
    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        pass


def _aiohttp(port: int, authority: str, tally: Tally) -> None:
    @contextlib.asynccontextmanager
    async def session() -> AsyncIterator[aiohttp.ClientSession]:
        context = ssl.create_default_context(cafile=authority)
        connector = aiohttp.TCPConnector(limit=_LIMIT, ssl=context, resolver=_AiohttpResolver())
        async with aiohttp.ClientSession(connector=connector) as client:
            yield client

    async def task(client: aiohttp.ClientSession, host: str) -> None:
        for _ in range(_EACH):
            async with client.get(f"https://{host}:{port}/") as response:
                tally.note(host, response.headers["X-Connection"].encode(), await response.read())

    async def main() -> None:
        async with session() as client, asyncio.TaskGroup() as group:
            for host in HOSTS * _TASKS:
                group.create_task(task(client, host))

    asyncio.run(main())
