"""6. What is paid once: a handshake, with and without a resumed session; importing the package."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import competing
import servers
import trio
from measuring import OURS, Comparison

import trioconn

HANDSHAKES = "6. A new connection with TLS, and one small request on it (nginx)"
IMPORT = "6. Importing"
_BARE = "trio.SSLStream"
_FULL = "trioconn, tls_sessions=False"

# Trio is imported before the clock starts; process time, which other programs cannot take away.
_IMPORT = """
import {before}, time
began = time.process_time()
import {module}
print((time.process_time() - began) * 1000)
"""


def measure(*, quick: bool) -> list[Comparison]:
    """Milliseconds."""
    rows: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder, servers.nginx(Path(folder)) as (port, authority):
        for version, host in (("TLS 1.3", "a.test"), ("TLS 1.2", "old.test")):
            samples = trio.run(_handshakes, port, authority, host, 5 if quick else 40)
            rows.append(Comparison(HANDSHAKES, version, "ms", samples, _FULL))
    rows.append(_import_time(5 if quick else 25))
    return rows


async def _handshakes(port: int, authority: str, host: str, rounds: int) -> dict[str, list[float]]:
    context = ssl.create_default_context(cafile=authority)
    samples: dict[str, list[float]] = {OURS: [], _FULL: [], _BARE: []}

    async def pooled(connector: trioconn.TCPConnector) -> float:
        began = time.perf_counter()
        async with await connector.connect(f"https://{host}:{port}") as lease:
            await competing.exchange(lease.stream, host)
            seconds = time.perf_counter() - began
            lease.release()
        return seconds

    async def bare() -> float:
        began = time.perf_counter()
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname=host)
        await competing.exchange(stream, host)
        seconds = time.perf_counter() - began
        await trio.aclose_forcefully(stream)
        return seconds

    resolver = competing.LocalResolver()
    async with (
        trioconn.TCPConnector(ssl=context, force_close=True, resolver=resolver) as resuming,
        trioconn.TCPConnector(ssl=context, force_close=True, resolver=resolver, tls_sessions=False) as full,
    ):
        for turn in range(rounds + 1):
            figures = {OURS: await pooled(resuming), _FULL: await pooled(full), _BARE: await bare()}
            if turn:
                for name, seconds in figures.items():
                    samples[name].append(seconds * 1000)
        assert resuming.statistics().resumed >= rounds and not full.statistics().resumed
    return samples


def _import_time(rounds: int) -> Comparison:
    samples: dict[str, list[float]] = {"trioconn": [], "trio itself": [], "httpcore2": [], "httpx2": [], "aiohttp": []}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for turn in range(rounds + 1):
            for module, figures in samples.items():
                name = module.split()[0]
                before = "sys" if name == "trio" else "asyncio, ssl" if name == "aiohttp" else "trio"
                code = _IMPORT.format(before=before, module=name)
                command = [sys.executable, "-c", code]
                out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
                if turn:
                    figures.append(float(out))
    return Comparison(
        IMPORT, "import, beyond trio (aiohttp: beyond asyncio and ssl)", "ms CPU", samples, target=30, best=True
    )
