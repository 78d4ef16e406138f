"""Time until a connection stands, over the addresses of the lab, for trioconn and its peers side by side.

Run through ``lab.sh bench``. Every library gets the same list of addresses in the same order, by a stub resolver. All
of them run in turn within each round; figures are medians of the rounds, in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import socket
import ssl
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohappyeyeballs
import anyio
import trio

import trioconn
from trioconn import events

CA = Path(os.environ["LAB_RUN"]) / "ca.pem"
HOST = "srv.lab.test"
GOOD6, DEAD6, REFUSED6, UNREACHABLE6, UNROUTED6, MUTE6 = (f"2001:db8:{letter}::" for letter in "abcef7")


def v6(prefix: str, count: int, first: int = 1) -> list[str]:
    return [f"{prefix}{number}" for number in range(first, first + count)]


def v4(start: int, count: int = 1) -> list[str]:
    return [f"203.0.113.{start + number}" for number in range(1, count + 1)]


GOOD4, DEAD4, REFUSED4, UNREACHABLE4, UNROUTED4 = 0, 32, 64, 96, 128


def slow6(ms: int) -> list[str]:
    return [f"2001:db8:d::{ms}"]


def slow4(ms: int) -> list[str]:
    return [f"198.18.{ms // 256}.{ms % 256}"]


SCENARIOS: dict[str, tuple[str, list[str], float]] = {  # title, addresses in the resolver's order, seconds at most
    "S01": ("all good, two of each family", v6(GOOD6, 2) + v4(GOOD4, 2), 5),
    "S02": ("IPv4 only, good", v4(GOOD4), 5),
    "S03": ("IPv6 dead, IPv4 good", v6(DEAD6, 1) + v4(GOOD4), 5),
    "S04": ("IPv6 only, the third good", v6(DEAD6, 2) + v6(GOOD6, 1), 5),
    "S05": ("two IPv6 dead, IPv4 good", v6(DEAD6, 2) + v4(GOOD4), 5),
    "S06": ("four IPv6 dead, IPv4 dead, then good", v6(DEAD6, 4) + v4(DEAD4) + v4(GOOD4), 10),
    "S07": ("IPv6 refused, IPv4 good", v6(REFUSED6, 1) + v4(GOOD4), 5),
    "S08": ("IPv6 unreachable by ICMP, IPv4 good", v6(UNREACHABLE6, 1) + v4(GOOD4), 5),
    "S09": ("no route for IPv6, IPv4 good", v6(UNROUTED6, 1) + v4(GOOD4), 5),
    "S10": ("IPv6 400 ms slow, IPv4 fast", slow6(400) + v4(GOOD4), 5),
    "S11": ("IPv6 200 ms slow, IPv4 fast", slow6(200) + v4(GOOD4), 5),
    "S12": ("IPv6 400 ms slow, IPv4 300 ms slow", slow6(400) + slow4(300), 5),
    "S13": ("the resolver prefers IPv4: good, then IPv6 dead", v4(GOOD4) + v6(DEAD6, 1), 5),
    "S14": ("IPv4 dead first, then IPv6 good", v4(DEAD4) + v6(GOOD6, 1), 5),
    "S15": ("ten dead, then a good one", v6(DEAD6, 5) + v4(DEAD4, 5) + v4(GOOD4), 10),
    "S16": ("ten refused, then a good one", v6(REFUSED6, 5) + v4(REFUSED4, 5) + v4(GOOD4), 5),
    "S17": ("ten unreachable, then a good one", v6(UNREACHABLE6, 5) + v4(UNREACHABLE4, 5) + v4(GOOD4), 5),
    "S18": ("the first SYN lost, one address", ["2001:db8:1055::1"], 5),
    "S19": ("the first SYN lost on IPv6, IPv4 good", ["2001:db8:1055::1", *v4(GOOD4)], 5),
    "S20": ("all refused", v6(REFUSED6, 2) + v4(REFUSED4, 2), 5),
    "S21": ("all unreachable", v6(UNREACHABLE6, 2) + v4(UNREACHABLE4, 2), 5),
    "S22": ("no route to any", v6(UNROUTED6, 2) + v4(UNROUTED4, 2), 5),
    "S23": ("refused, unreachable, refused", v6(REFUSED6, 1) + v6(UNREACHABLE6, 1) + v4(REFUSED4), 5),
    "S24": ("all dead (tcp_syn_retries=1)", v6(DEAD6, 2) + v4(DEAD4, 2), 12),
    "T01": ("TLS: both good", v6(GOOD6, 1) + v4(GOOD4), 4),
    "T02": ("TLS: IPv6 accepts and is mute, IPv4 good", v6(MUTE6, 1) + v4(GOOD4), 4),
    "T03": ("TLS: IPv6 100 ms slow per packet, IPv4 good", slow6(100) + v4(GOOD4), 4),
}

AddrInfo = tuple[int, int, int, str, tuple[Any, ...]]


def infos(addresses: list[str], port: int) -> list[AddrInfo]:
    return [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
        if ":" in address
        else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
        for address in addresses
    ]


class Hook(trio.abc.HostnameResolver):
    """For trio and anyio: the given addresses for every name."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses

    async def getaddrinfo(self, host: Any, port: Any, *args: Any) -> Any:
        return infos(self.addresses, port)

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


class Stub(trioconn.Resolver):
    """For trioconn: the same."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[trioconn.ResolveResult]:
        await trio.lowlevel.checkpoint()
        return [
            trioconn.ResolveResult(address, socket.AF_INET6 if ":" in address else socket.AF_INET)
            for address in self.addresses
        ]


async def with_trio(addresses: list[str], context: ssl.SSLContext | None) -> None:
    trio.socket.set_custom_hostname_resolver(Hook(addresses))
    if context is None:
        await trio.aclose_forcefully(await trio.open_tcp_stream(HOST, 8080))
        return
    stream = await trio.open_ssl_over_tcp_stream(HOST, 8443, ssl_context=context)
    try:
        await stream.do_handshake()
    finally:
        await trio.aclose_forcefully(stream)


async def with_anyio(addresses: list[str], context: ssl.SSLContext | None) -> None:
    trio.socket.set_custom_hostname_resolver(Hook(addresses))
    port = 8080 if context is None else 8443
    await anyio.aclose_forcefully(await anyio.connect_tcp(HOST, port, ssl_context=context))  # type: ignore[arg-type]


async def with_trioconn(addresses: list[str], context: ssl.SSLContext | None) -> float:
    """A connector is made once and used for long: making it and closing it is not part of connecting."""
    async with trioconn.TCPConnector(resolver=Stub(addresses), ssl=context or True) as connector:
        target = f"tcp://{HOST}:8080" if context is None else f"tls://{HOST}:8443"
        start = time.perf_counter()
        try:
            (await connector.connect(target)).close()
        except OSError as error:
            error.took = time.perf_counter() - start  # type: ignore[attr-defined]
            raise
        return time.perf_counter() - start


async def with_aiohappyeyeballs(addresses: list[str], context: ssl.SSLContext | None) -> None:
    port = 8080 if context is None else 8443
    sock = await aiohappyeyeballs.start_connection(infos(addresses, port), happy_eyeballs_delay=0.25)  # type: ignore[arg-type]
    if context is None:
        sock.close()
        return
    transport, _ = await asyncio.get_running_loop().create_connection(
        asyncio.Protocol, sock=sock, ssl=context, server_hostname=HOST
    )
    transport.abort()


async def with_asyncio(addresses: list[str], context: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    port = 8080 if context is None else 8443

    async def getaddrinfo(*args: Any, **options: Any) -> list[AddrInfo]:
        return infos(addresses, port)

    loop.getaddrinfo = getaddrinfo  # type: ignore[assignment,method-assign]
    transport, _ = await loop.create_connection(asyncio.Protocol, HOST, port, happy_eyeballs_delay=0.25, ssl=context)
    transport.abort()


async def timed_on_trio(connect: Any, addresses: list[str], context: ssl.SSLContext | None, most: float) -> Any:
    start = time.perf_counter()
    try:
        with trio.fail_after(most):
            took = await connect(addresses, context)
    except (OSError, trio.TooSlowError) as error:
        return getattr(error, "took", time.perf_counter() - start), type(error).__name__
    return took or time.perf_counter() - start, None


async def timed_on_asyncio(connect: Any, addresses: list[str], context: ssl.SSLContext | None, most: float) -> Any:
    start = time.perf_counter()
    try:
        async with asyncio.timeout(most):
            await connect(addresses, context)
    except (OSError, IndexError) as error:
        return time.perf_counter() - start, type(error).__name__
    return time.perf_counter() - start, None


LIBRARIES: dict[str, Any] = {
    "trioconn": lambda *given: trio.run(timed_on_trio, with_trioconn, *given),
    "trio": lambda *given: trio.run(timed_on_trio, with_trio, *given),
    "anyio": lambda *given: trio.run(timed_on_trio, with_anyio, *given),
    "aiohappyeyeballs": lambda *given: asyncio.run(timed_on_asyncio(with_aiohappyeyeballs, *given)),
    "asyncio": lambda *given: asyncio.run(timed_on_asyncio(with_asyncio, *given)),
}


def measure(names: list[str], libraries: list[str], rounds: int) -> dict[str, dict[str, tuple[float, str | None]]]:
    context = ssl.create_default_context(cafile=str(CA))
    table: dict[str, dict[str, tuple[float, str | None]]] = {}
    for name in names:
        title, addresses, most = SCENARIOS[name]
        subprocess.run(["sysctl", "-qw", f"net.ipv4.tcp_syn_retries={1 if name == 'S24' else 6}"], check=True)
        seconds: dict[str, list[float]] = {library: [] for library in libraries}
        errors: dict[str, str | None] = {}
        for _ in range(min(rounds, 3) if name == "S24" else rounds):
            for library in libraries:
                took, error = LIBRARIES[library](addresses, context if name[0] == "T" else None, most)
                seconds[library].append(took)
                errors[library] = error
        table[name] = {library: (statistics.median(seconds[library]) * 1000, errors[library]) for library in libraries}
        print(name, title, {library: round(table[name][library][0], 1) for library in libraries}, flush=True)
    return table


async def second_connections(names: list[str]) -> dict[str, tuple[float, float]]:
    """The first and the second connection of one connector: the second knows which address had won."""
    found: dict[str, tuple[float, float]] = {}
    context = ssl.create_default_context(cafile=str(CA))
    for name in names:
        _, addresses, _ = SCENARIOS[name]
        rounds: list[list[float]] = []
        for _ in range(7):
            async with trioconn.TCPConnector(resolver=Stub(addresses), ssl=context, tls_sessions=False) as connector:
                target = f"tcp://{HOST}:8080" if name[0] == "S" else f"tls://{HOST}:8443"
                took: list[float] = []
                for _ in range(2):
                    start = time.perf_counter()
                    (await connector.connect(target)).close()
                    took.append((time.perf_counter() - start) * 1000)
                rounds.append(took)
        found[name] = (statistics.median(r[0] for r in rounds), statistics.median(r[1] for r in rounds))
        print("second connection", name, found[name], flush=True)
    return found


async def first_attempts(resolver: Any) -> dict[str, tuple[float, list[str]]]:
    """When the first attempt started after the dial did, and which addresses were tried, for late answers."""
    found: dict[str, tuple[float, list[str]]] = {}
    for name in ("dual", "aaaa20-dual", "aaaa400-dual", "a400-dual", "aaaadrop-dual", "aaaa150-dead"):
        starts: list[float] = []
        tried: list[str] = []
        for _ in range(7):
            log: list[events.Event] = []
            async with trioconn.TCPConnector(resolver=resolver(), observers=[log.append]) as connector:
                with trio.move_on_after(5):
                    (await connector.connect(f"tcp://{name}.lab.test:8080")).close()
            began = next(event.at for event in log if isinstance(event, events.DialStarted))
            attempts = [event for event in log if isinstance(event, events.AttemptStarted)]
            if attempts:
                starts.append((attempts[0].at - began) * 1000)
                tried = [str(event.address[0]) for event in attempts]
        found[name] = (statistics.median(starts) if starts else float("nan"), tried)
        print(resolver.__name__, name, found[name], flush=True)
    return found


def as_page(table: Any, libraries: list[str], seconds: Any, late: dict[str, Any]) -> str:
    lines = [
        "# Happy eyeballs, measured",
        "",
        "Real kernels, real dead addresses: two network namespaces on one machine, see `tests/lab/lab.sh`.",
        "Remake it with `nox -s lab` (Linux, root). Every library gets the same addresses in the same order.",
        "Milliseconds until the connection stood, medians; *error*: it ended in an error, which is right where no",
        "address is good.",
        "",
        f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in libraries if name != "asyncio"),
        "",
        "| | scenario | " + " | ".join(libraries) + " |",
        "|---|---|" + "--:|" * len(libraries),
    ]
    for name, row in table.items():
        cells = [f"{row[library][0]:.1f}" + (" *error*" if row[library][1] else "") for library in libraries]
        lines.append(f"| {name} | {SCENARIOS[name][0]} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "T02 is where everybody else hangs until the limit of 4 s: for trioconn the race ends with the handshake.",
        "",
        "## The second connection to the same host",
        "",
        "| | scenario | first | second |",
        "|---|---|--:|--:|",
        *(
            f"| {name} | {SCENARIOS[name][0]} | {first:.1f} | {second:.1f} |"
            for name, (first, second) in seconds.items()
        ),
        "",
        "## Late answers",
        "",
        "Milliseconds from the start of the dial to the first attempt, and the addresses that were tried.",
        "",
        "| name server | " + " | ".join(late) + " | tried |",
        "|---|" + "--:|" * len(late) + "---|",
    ]
    what = {
        "dual": "both answers at once",
        "aaaa20-dual": "AAAA 20 ms late",
        "aaaa400-dual": "AAAA 400 ms late",
        "a400-dual": "A 400 ms late",
        "aaaadrop-dual": "AAAA never answered",
        "aaaa150-dead": "AAAA 150 ms late, A dead: it joins the race",
    }
    for name, meaning in what.items():
        cells = [f"{late[resolver][name][0]:.1f}" for resolver in late]
        tried = ", ".join(next(iter(late.values()))[name][1])
        lines.append(f"| {meaning} | " + " | ".join(cells) + f" | {tried} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=7, help="rounds")
    parser.add_argument("-s", default=",".join(SCENARIOS), help="scenarios")
    parser.add_argument("-l", default=",".join(LIBRARIES), help="libraries")
    parser.add_argument("--write", type=Path, help="write the page of the documentation")
    given = parser.parse_args()
    libraries = given.l.split(",")
    table = measure(given.s.split(","), libraries, given.n)
    seconds = trio.run(second_connections, [name for name in ("S03", "S06", "S15", "T01", "T02") if name in table])
    late = {
        resolver.__name__: trio.run(first_attempts, resolver)
        for resolver in (trioconn.SystemResolver, trioconn.DNSResolver)
    }
    if given.write is not None:
        given.write.write_text(as_page(table, libraries, seconds, late), encoding="utf-8")
    behind = {
        name: round(row["trioconn"][0] - row["aiohappyeyeballs"][0], 1)
        for name, row in table.items()
        if name[0] == "S" and {"trioconn", "aiohappyeyeballs"} <= set(row)
    }
    worst = max(behind.values(), default=0.0)
    print("behind aiohappyeyeballs, in ms:", behind)
    sys.exit(0 if worst <= 5 else f"more than 5 ms behind: {worst}")


if __name__ == "__main__":
    main()
