"""httpx2 on our pool against httpx2 as it comes, both on trio: small GETs from a responder in a process of its own."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import trio

httpx2 = pytest.importorskip("httpx2")
transports = pytest.importorskip("trioconn.httpx2")

pytestmark = pytest.mark.bench

RESPONDER = """
import asyncio, sys

ANSWER = b"HTTP/1.1 200 OK\\r\\nServer: light\\r\\nContent-Length: 65\\r\\n\\r\\n" + b"x" * 65

class Responder(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(ANSWER * data.count(b"\\r\\n\\r\\n"))

async def main():
    server = await asyncio.get_running_loop().create_server(Responder, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
ROUNDS = 9
AT_LEAST = {1: 1.3, 20: 1.4, 200: 2.5}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", RESPONDER], stdout=subprocess.PIPE, text=True) as responder:
        assert responder.stdout is not None
        yield f"http://127.0.0.1:{int(responder.stdout.readline())}/"
        responder.kill()


async def rate(client: httpx2.AsyncClient, url: str, tasks: int, requests: int) -> float:
    """Requests per second."""
    left = requests

    async def ask() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            assert len((await client.get(url)).content) == 65

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(ask)
    return requests / (time.perf_counter() - began)


@pytest.mark.parametrize("limits", ["as many as tasks", "default"])
@pytest.mark.parametrize("tasks", AT_LEAST)
async def test_httpx2_is_faster_on_our_pool(url: str, tasks: int, limits: str) -> None:
    if limits == "default":
        default = httpx2.AsyncClient(trust_env=False)
        ours = httpx2.AsyncClient(transport=transports.Transport(), trust_env=False)
    else:
        both = httpx2.Limits(max_connections=tasks, max_keepalive_connections=tasks)
        default = httpx2.AsyncClient(limits=both, trust_env=False)
        ours = httpx2.AsyncClient(transport=transports.Transport(limit=tasks), trust_env=False)
    requests = 400 + 2 * tasks
    async with default, ours:
        ratios, rates = [], []
        for turn in range(ROUNDS + 1):
            pair = [await rate(client, url, tasks, requests) for client in (default, ours)]
            if turn:  # the first one opens the connections
                rates.append(pair)
                ratios.append(pair[1] / pair[0])
    middle = [statistics.median(column) for column in zip(*rates, strict=True)]
    ratio = statistics.median(ratios)
    print(
        f"\n{tasks} tasks, limits {limits}: default {middle[0]:.0f}/s, ours {middle[1]:.0f}/s, ratio {ratio:.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )
    if limits != "default":
        assert ratio >= AT_LEAST[tasks]
