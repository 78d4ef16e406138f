"""The servers of the demo: a TLS one, one with a wrong certificate, a plain one, a mute one and a Unix one.

All are on loopback, on ports that the system chooses. They speak lines: each line is answered by ``ok`` and the line.
Some lines ask for more: ``slow`` is answered after a while, ``bye`` makes the server hang up a moment later, and
``chatter`` makes it say something that nobody asked for.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from .. import Resolver, ResolveResult

if TYPE_CHECKING:
    import trustme

SLOW = 0.02  # seconds
HOST = "127.0.0.1"
NAMES = ("shop.test", "race.test", "plain.test", "local.test")
_LISTENING = 64
_LONGEST_HEAD = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Where they listen.

    Attributes:
      trust: a client context that trusts the demo's authority and nobody else.
      mute: an address at which the port of `race` accepts connections and then says nothing, or None where loopback
        has only one address.
      path: of the Unix socket, or None where the system has none.
      proxy: an HTTP proxy that opens tunnels to the servers here.
      refusing: one that opens none.
      chattered: set when a server has said what nobody asked for.
    """

    trust: ssl.SSLContext
    tls: int
    wrong: int
    plain: int
    race: int
    mute: str | None
    path: str | None
    proxy: int
    refusing: int
    chattered: trio.Event


class Names(Resolver):
    """Knows the names of the demo, asks nobody, and keeps its order: the mute address comes first."""

    def __init__(self, mute: str | None) -> None:
        self._mute = mute

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        """All names are on loopback."""
        await trio.lowlevel.checkpoint()
        addresses = [self._mute, HOST] if self._mute and host == "race.test" else [HOST]
        return [ResolveResult(address, socket.AF_INET6 if ":" in address else socket.AF_INET) for address in addresses]


@asynccontextmanager
async def servers(authority: trustme.CA) -> AsyncGenerator[Servers]:
    """Run them all. Leaving the block ends them."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)  # pyright: ignore[reportUnknownMemberType]  # pyOpenSSL
    with contextlib.ExitStack() as stack:
        right, wrong = _context(authority, *NAMES), _context(authority, "elsewhere.test")
        race, mute = _race_listener(stack)
        async with trio.open_nursery() as nursery:
            chattered = trio.Event()

            async def start(listener: socket.socket, context: ssl.SSLContext | None) -> int:
                return await _start(nursery, listener, partial(_serve, context, chattered))

            path = None
            if hasattr(socket, "AF_UNIX"):
                path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="trioconn-")), "socket")
                await start(_unix(stack, path), right)
            yield Servers(
                trust=trust,
                tls=await start(_tcp(stack), right),
                wrong=await start(_tcp(stack), wrong),
                plain=await start(_tcp(stack), None),
                race=await start(race, right),
                mute=mute,
                path=path,
                proxy=await _start(nursery, _tcp(stack), _tunnel),
                refusing=await _start(nursery, _tcp(stack), _refuse),
                chattered=chattered,
            )
            nursery.cancel_scope.cancel()


def _context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)  # pyright: ignore[reportUnknownMemberType]  # pyOpenSSL
    return context


def _tcp(stack: contextlib.ExitStack, host: str = HOST, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return stack.enter_context(socket.create_server((host, port), family=family, backlog=_LISTENING))


def _race_listener(stack: contextlib.ExitStack) -> tuple[socket.socket, str | None]:
    """A listener for the race, and another loopback address at whose same port nobody ever takes a connection up.

    The system completes connections to a listening socket by itself; so this one looks healthy to TCP, everywhere.
    """
    for address in ("::1", "127.0.0.2"):  # the first is missing in some containers, the second on macOS
        for _ in range(5):  # the same port may be taken on the other address
            good = _tcp(stack)
            with contextlib.suppress(OSError):
                _tcp(stack, address, good.getsockname()[1])
                return good, address
    return _tcp(stack), None


def _unix(stack: contextlib.ExitStack, path: str) -> socket.socket:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen(_LISTENING)
    return listener


async def _start(
    nursery: trio.Nursery, listener: socket.socket, handler: Callable[[trio.SocketStream], Awaitable[None]]
) -> int:
    """Serve `listener`; gives its port."""
    listener.setblocking(False)
    listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))

    async def handle(client: trio.SocketStream) -> None:
        try:
            await handler(client)
        except* trio.BrokenResourceError:
            pass  # a client that went away, or did not like the certificate

    await nursery.start(trio.serve_listeners, handle, [listening])
    return 0 if listener.family == getattr(socket, "AF_UNIX", None) else int(listener.getsockname()[1])


async def _serve(context: ssl.SSLContext | None, chattered: trio.Event, plain: trio.SocketStream) -> None:
    stream: trio.abc.Stream = plain
    if context is not None:
        stream = trio.SSLStream(plain, context, server_side=True, https_compatible=True)
    try:
        await _converse(stream, chattered)
    finally:
        await trio.aclose_forcefully(stream)


async def _converse(stream: trio.abc.Stream, chattered: trio.Event) -> None:
    buffer = bytearray()
    while data := await stream.receive_some():
        buffer += data
        while (end := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            if line == b"slow":
                await trio.sleep(SLOW)
            await stream.send_all(b"ok " + line + b"\n")
            if line in (b"bye", b"chatter"):
                await trio.sleep(SLOW)  # so that the connection lies idle by then
            if line == b"bye":
                return
            if line == b"chatter":
                await stream.send_all(b"by the way\n")
                chattered.set()


async def _tunnel(client: trio.SocketStream) -> None:
    """What an HTTP proxy does with CONNECT. All names are on loopback."""
    head = await _head(client)
    if not head.startswith(b"CONNECT "):
        return
    target = head.split()[1].decode("ascii", "replace")
    try:
        server = await trio.open_tcp_stream(HOST, int(target.rpartition(":")[2]))
    except (OSError, ValueError):
        await client.send_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        return
    async with server, trio.open_nursery() as nursery:
        await client.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        nursery.start_soon(_pass_on, client, server, nursery.cancel_scope)
        nursery.start_soon(_pass_on, server, client, nursery.cancel_scope)


async def _refuse(client: trio.SocketStream) -> None:
    await _head(client)
    await client.send_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")


async def _head(client: trio.SocketStream) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n") and len(head) < _LONGEST_HEAD:
        data = await client.receive_some()
        if not data:
            break
        head += data
    return head


async def _pass_on(source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
    async for data in source:
        await sink.send_all(data)
    both.cancel()
