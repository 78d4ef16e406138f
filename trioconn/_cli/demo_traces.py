"""``trioconn demo --trace``: what ``trioconn trace`` shows of good and bad ways, from real runs on loopback."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from .demo_servers import HOST, Servers, servers
from .render import screen
from .terminal import Look
from .trace import record, show

if TYPE_CHECKING:
    import argparse

    import trustme

    Parse = Callable[[Sequence[str]], argparse.Namespace]

_MOST_TO_FILL = 64


async def play(authority: trustme.CA, parse: Parse) -> bool:
    """Run and show them all; gives whether each had the exit code that it should have."""
    look = Look.of(sys.stdout)
    good = True
    with contextlib.ExitStack() as stack:
        ca = stack.enter_context(authority.cert_pem.tempfile())
        async with servers(authority) as where:
            for title, arguments, expected in _scenes(where, ca, stack):
                print(f"\n{look(title, 'bold')}\n{look('trioconn trace ' + ' '.join(arguments), 'blue')}\n")
                document = await record(parse(["trace", *arguments]))
                show(screen(document))
                good = good and document["exit_code"] == expected
    return good


def _scenes(where: Servers, ca: str, stack: contextlib.ExitStack) -> Iterator[tuple[str, list[str], int]]:
    trusted = ["--direct", "--cacert", ca]
    through = ["--cacert", ca, "--proxy"]
    dead = _dead_listener(stack)
    if dead is not None:
        url, port = f"tcp://race.test:{dead}", dead
        yield "A dead IPv6 address", [url, "--resolve", f"race.test:{port}:[::1],{HOST}", "--direct"], 0
    race = f"https://race.test:{where.race}"
    if where.mute is not None:
        both = f"race.test:{where.race}:{where.mute},{HOST}"
        yield "A mute TLS server, and one that works", [race, "--resolve", both, *trusted], 0
        only = f"race.test:{where.race}:{where.mute}"
        yield "A mute TLS server alone", [race, "--resolve", only, *trusted, "--timeout", "0.5"], 50
    names = ["--resolve", f"shop.test:{where.wrong}:{HOST}", *trusted]
    yield "A wrong certificate", [f"https://shop.test:{where.wrong}", *names], 50
    shop = f"https://shop.test:{where.tls}"
    yield "A refusing proxy", [shop, *through, f"http://{HOST}:{where.refusing}"], 40
    proxy = f"http://{HOST}:{where.proxy}"
    yield "A chain of proxies that works", [shop, *through, proxy, "--proxy", proxy, "-n", "3"], 0


def _dead_listener(stack: contextlib.ExitStack) -> int | None:
    """A port that listens at 127.0.0.1, and at ::1 answers nothing, not even TCP's first packet.

    Its queue of connections that nobody takes up is full there. Linux then lets packets lie; others refuse at once,
    which is another scene.
    """
    if sys.platform != "linux":
        return None
    try:
        full = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=0))
        port: int = full.getsockname()[1]
        stack.enter_context(socket.create_server((HOST, port)))
        return port if _fill(stack, port) else None
    except OSError:  # there is no IPv6, the port is taken at the other address, or a full queue refuses here, too
        return None


def _fill(stack: contextlib.ExitStack, port: int) -> bool:
    """Fill the queue of the listener at ::1; gives whether it is full now, and lets packets lie."""
    for _ in range(_MOST_TO_FILL):
        filler = stack.enter_context(socket.socket(socket.AF_INET6))
        filler.settimeout(0.05)
        try:
            filler.connect(("::1", port))
        except TimeoutError:
            return True
    return False
