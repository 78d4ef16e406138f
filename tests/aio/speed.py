"""How fast aiohttp is over which connector: small GETs against a server in a process of its own.

python tests/aio/speed.py                  the table, interleaved rounds, medians
python tests/aio/speed.py MODE PORT N S    one measurement: N tasks, S seconds; prints requests/s and CPU µs/request
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import trio

import trioconn.aio

MODES = {
    "plain": "aiohttp's TCPConnector, asyncio",
    "guest": "AiohttpConnector, guest mode",
    "native": "aiohttp's TCPConnector, trio-asyncio",
    "open_loop": "AiohttpConnector, trio-asyncio",
}
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 65\r\n\r\n" + b"x" * 65


class Answering(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.transport.write(ANSWER * data.count(b"\r\n\r\n"))


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def load(session: aiohttp.ClientSession, url: str, tasks: int, seconds: float) -> None:
    async def one() -> int:
        done = 0
        while time.perf_counter() < end:
            async with session.get(url) as response:
                await response.read()
            done += 1
        return done

    end = time.perf_counter() + 0.3
    await asyncio.gather(*[one() for _ in range(tasks)])
    start, cpu = time.perf_counter(), time.process_time()
    end = start + seconds
    count = sum(await asyncio.gather(*[one() for _ in range(tasks)]))
    print(count / (time.perf_counter() - start), (time.process_time() - cpu) / count * 1e6)


async def plainly(url: str, tasks: int, seconds: float) -> None:
    async with aiohttp.ClientSession() as session:
        await load(session, url, tasks, seconds)


async def over_ours(url: str, tasks: int, seconds: float) -> None:
    async with (
        trioconn.aio.guest(),
        aiohttp.ClientSession(connector=trioconn.aio.AiohttpConnector()) as session,
    ):
        await load(session, url, tasks, seconds)


def measure(mode: str, port: int, tasks: int, seconds: float) -> None:
    f = over_ours if mode in {"guest", "open_loop"} else plainly
    url = f"http://127.0.0.1:{port}/"
    if mode in {"plain", "guest"}:
        asyncio.run(f(url, tasks, seconds))
        return

    async def main() -> None:
        async with trioconn.aio.open_loop():
            from trio_asyncio import aio_as_trio

            await aio_as_trio(f)(url, tasks, seconds)

    warnings.simplefilter("ignore", DeprecationWarning)
    trio.run(main)


def compare(
    tasks: int, rounds: int, seconds: float, modes: list[str], port: int
) -> dict[str, tuple[float, float, float]]:
    """Per mode: requests/s, CPU µs/request, and the ratio of requests/s to plain aiohttp; medians over the rounds."""
    runs: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
    for number in range(rounds):
        for mode in modes if number % 2 else reversed(modes):
            command = [sys.executable, __file__, mode, str(port), str(tasks), str(seconds)]
            out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()
            runs[mode].append((float(out[0]), float(out[1])))
    base = [rate for rate, _ in runs["plain"]]
    return {
        mode: (
            statistics.median(rate for rate, _ in found),
            statistics.median(cpu for _, cpu in found),
            statistics.median(rate / other for (rate, _), other in zip(found, base, strict=True)),
        )
        for mode, found in runs.items()
    }


@contextmanager
def serving() -> Iterator[int]:
    """The server in a process of its own; its port."""
    with subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.terminate()


def available() -> list[str]:
    return [mode for mode in MODES if sys.version_info < (3, 14) or mode in {"plain", "guest"}]


def table(rounds: int = 7, seconds: float = 1.0) -> None:
    with serving() as port:
        for tasks in (1, 20, 200):
            for mode, (rate, cpu, ratio) in compare(tasks, rounds, seconds, available(), port).items():
                line = f"{tasks:4} tasks  {MODES[mode]:40} {rate:7.0f}/s  {cpu:4.0f} µs CPU  {ratio:.2f}"
                print(line, flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    elif len(sys.argv) == 5:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    else:
        table(*map(int, sys.argv[1:2]))
