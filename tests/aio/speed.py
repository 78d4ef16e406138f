"""How fast aiohttp is over which connector: small GETs against a server in a process of its own.

python tests/aio/speed.py [ROUNDS [SECONDS]]   the table

A machine has its moods, and they last longer than a measurement: what ran in a quiet second cannot be compared with
what ran in a busy one. So each way has a client in a process of its own, all of them live throughout, and they work in
turns of a fraction of a second, each round in the reverse order of the one before. A ratio is the median of the ratios
of two turns of the same round.

python tests/aio/speed.py MODE PORT N          such a client: N tasks; for each line with a number of seconds on its
                                               standard input it prints requests/s and CPU µs/request
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

import aiohttp
import trio

import trioconn.aio

MODES = {
    "plain": "aiohttp's TCPConnector, asyncio",
    "guest": "AiohttpConnector, guest mode",
    "native": "aiohttp's TCPConnector, trio-asyncio",
    "open_loop": "AiohttpConnector, trio-asyncio",
}
_WARM_UP = 0.03  # seconds
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


async def load(session: aiohttp.ClientSession, url: str, tasks: int) -> None:
    async def one() -> int:
        done = 0
        while time.perf_counter() < end:
            async with session.get(url) as response:
                await response.read()
            done += 1
        return done

    for line in sys.stdin:  # which stops the loop on purpose: nothing is to happen here while others have their turn
        end = time.perf_counter() + _WARM_UP
        await asyncio.gather(*[one() for _ in range(tasks)])
        start, cpu = time.perf_counter(), time.process_time()
        end = start + float(line)
        count = sum(await asyncio.gather(*[one() for _ in range(tasks)]))
        print(count / (time.perf_counter() - start), (time.process_time() - cpu) / count * 1e6, flush=True)


async def plainly(url: str, tasks: int) -> None:
    async with aiohttp.ClientSession() as session:
        await load(session, url, tasks)


async def over_ours(url: str, tasks: int) -> None:
    async with (
        trioconn.aio.guest(),
        aiohttp.ClientSession(connector=trioconn.aio.AiohttpConnector()) as session,
    ):
        await load(session, url, tasks)


def measure(mode: str, port: int, tasks: int) -> None:
    f = over_ours if mode in {"guest", "open_loop"} else plainly
    url = f"http://127.0.0.1:{port}/"
    if mode in {"plain", "guest"}:
        asyncio.run(f(url, tasks))
        return

    async def main() -> None:
        async with trioconn.aio.open_loop():
            from trio_asyncio import aio_as_trio

            await aio_as_trio(f)(url, tasks)

    warnings.simplefilter("ignore", DeprecationWarning)
    trio.run(main)


class Client:
    """A client in a process of its own, which works when told to."""

    def __init__(self, mode: str, port: int, tasks: int) -> None:
        command = [sys.executable, __file__, mode, str(port), str(tasks)]
        # glibc gives a large buffer pages of its own or not, depending on what was freed before. By that chance plain
        # aiohttp, which reads into 256 KiB, is fast or a quarter slower. Here it is always fast.
        settings = {"MALLOC_MMAP_THRESHOLD_": str(1 << 22), "MALLOC_TRIM_THRESHOLD_": str(1 << 24)}
        self._process = subprocess.Popen(
            command, env=os.environ | settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # which closes its standard input, and waits for it to end
            pass

    def turn(self, seconds: float) -> tuple[float, float]:
        """Requests/s and CPU µs/request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(seconds, file=self._process.stdin, flush=True)
        rate, cpu = map(float, self._process.stdout.readline().split())
        return rate, cpu


def compare(
    tasks: int, rounds: int, seconds: float, modes: list[str], port: int
) -> dict[str, tuple[float, float, float, float]]:
    """Per mode the medians of: requests/s, CPU µs/request, the ratio of either's speed to plain aiohttp's."""
    with ExitStack() as clients:
        all_modes = {mode: clients.enter_context(Client(mode, port, tasks)) for mode in modes}
        for client in all_modes.values():
            client.turn(seconds)
        turns: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
        for number in range(rounds):
            for mode in modes if number % 2 else reversed(modes):
                turns[mode].append(all_modes[mode].turn(seconds))
    base = turns["plain"]
    return {
        mode: (
            statistics.median(rate for rate, _ in found),
            statistics.median(cpu for _, cpu in found),
            statistics.median(rate / other for (rate, _), (other, _) in zip(found, base, strict=True)),
            statistics.median(other / cpu for (_, cpu), (_, other) in zip(found, base, strict=True)),
        )
        for mode, found in turns.items()
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


def table(rounds: int = 31, seconds: float = 0.2) -> None:
    with serving() as port:
        for tasks in (1, 20, 200):
            for mode, (rate, cpu, by_rate, by_cpu) in compare(tasks, rounds, seconds, available(), port).items():
                line = f"{tasks:4} tasks  {MODES[mode]:40} {rate:7.0f}/s  {cpu:4.0f} µs CPU"
                print(f"{line}  {by_rate:.2f} by requests  {by_cpu:.2f} by CPU", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    elif len(sys.argv) == 4:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        table(*map(int, sys.argv[1:2]), *map(float, sys.argv[2:3]))
