"""Peers of the security tests: a server that keeps a record of each connection, and the ways to it.

`Peer` runs in threads on the standard library's `ssl`, so that tickets, alerts and closings are those of a real server.
The proxies are scripted, in the test's own run: what they saw can be searched for secrets.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

import trioconn
from trioconn import Proxy, ResolveResult, Route

if TYPE_CHECKING:
    from typing import Self

LOGIN = ("hidden-user", "hidden-password")
SECRETS = ("hidden-user", "hidden-password", "aGlkZGVu")

PATHS = [
    "direct", "unix", "custom", "http", "https", "socks4a", "socks5", "socks5h", "http-https", "https-socks5h",
]  # fmt: skip
"""The ways to a peer; several proxies are a chain."""


@dataclass(eq=False)
class Visit:
    """One connection as the peer saw it.

    Attributes:
      sock: the connection; TLS once there is any.
      first: its first byte.
      sni, version, resumed, client, alpn: what TLS told; `client` is the certificate's common name.
      data: what was received, decrypted.
      rest: what came raw after a handshake that failed.
      error: what went wrong.
      ended: set when the peer has seen the end.
    """

    sock: socket.socket
    first: bytes = b""
    sni: str | None = None
    version: str | None = None
    resumed: bool | None = None
    client: str | None = None
    alpn: str | None = None
    data: bytearray = field(default_factory=bytearray)
    rest: bytes = b""
    error: BaseException | None = None
    shaken: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        """End the connection with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def send_raw(self, data: bytes) -> None:
        """Send bytes past TLS."""
        socket.socket.sendall(self.sock, data)

    async def wait_ended(self) -> None:
        assert await trio.to_thread.run_sync(self.ended.wait, 10), "the peer has not seen the end"

    async def wait_shaken(self) -> None:
        assert await trio.to_thread.run_sync(self.shaken.wait, 10), "no handshake"


def echo(visit: Visit) -> None:
    """Send everything back, until the client ends."""
    while data := visit.sock.recv(65536):
        visit.data += data
        visit.sock.sendall(data)


class Peer:
    """A server in threads, with TLS for those who begin with a handshake.

    Args:
      context: for TLS, or a function of the connection's number that gives one.
      script: what is done with each connection after its handshake.
      raw: what is done with each connection instead.
      path: of a Unix socket to listen on; else it is a port of 127.0.0.1.
    """

    def __init__(
        self,
        context: ssl.SSLContext | Callable[[int], ssl.SSLContext],
        script: Callable[[Visit], object] = echo,
        *,
        raw: Callable[[Visit], object] | None = None,
        path: str | None = None,
    ) -> None:
        self._context = context
        self._script = script
        self._raw = raw
        self.path = path
        self.visits: list[Visit] = []
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port: int = self._listener.getsockname()[1]
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen()
            self.port = 1
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for sock in [self._listener, *(visit.sock for visit in self.visits)]:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _start(self, f: Callable[..., object], *args: object) -> None:
        self._threads.append(threading.Thread(target=f, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            # With a timeout the calls of `ssl` do not block inside OpenSSL, so that a test may send from its thread.
            sock.settimeout(20)
            if self.path is None:  # what a test sends has to be there at once
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            visit = Visit(sock)
            self.visits.append(visit)
            self._start(self._serve, visit, len(self.visits) - 1)

    def _serve(self, visit: Visit, number: int) -> None:
        try:
            if self._raw is not None:
                self._raw(visit)
                return
            visit.first = visit.sock.recv(1, socket.MSG_PEEK)
            if visit.first == b"\x16":
                self._shake(visit, number)
            visit.shaken.set()
            self._script(visit)
        except (OSError, ValueError) as error:
            visit.error = error
        finally:
            visit.sock.close()
            visit.ended.set()

    def _shake(self, visit: Visit, number: int) -> None:
        context = self._context(number) if callable(self._context) else self._context

        def note_name(sock: ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
            visit.sni = name

        context.sni_callback = note_name  # type: ignore[assignment]
        sock = context.wrap_socket(visit.sock, server_side=True, do_handshake_on_connect=False)
        visit.sock = sock
        try:
            sock.do_handshake()
        except OSError:
            with contextlib.suppress(OSError):
                while data := socket.socket.recv(sock, 65536):
                    visit.rest += data
            raise
        visit.version, visit.resumed, visit.alpn = sock.version(), sock.session_reused, sock.selected_alpn_protocol()
        subject = (sock.getpeercert() or {}).get("subject", ())
        visit.client = next((value for part in subject for key, value in part if key == "commonName"), None)


class Loopback(trioconn.Resolver):
    """Every name is this machine."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        await trio.lowlevel.checkpoint()
        self.asked.append(host)
        return [ResolveResult("127.0.0.1", socket.AF_INET, 10.0)]

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class Custom(trioconn.BaseConnector):
    """A connector of a user's own: any stream, and TLS by `start_tls`."""

    def __init__(self, port: int, made: list[Any], **options: Any) -> None:
        super().__init__(**options)
        self._peer_port = port
        self._made = made

    async def create_stream(self, route: Route) -> trio.abc.Stream:
        stream = await trio.open_tcp_stream("127.0.0.1", self._peer_port)
        self._made.append(stream.socket)
        return await trioconn.start_tls(stream, route)


# The proxies


async def _pump(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    await trio.aclose_forcefully(sink)
    await trio.aclose_forcefully(source)


async def relay(left: trio.abc.Stream, port: int, reply: bytes) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as right:
        await left.send_all(reply)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump, left, right)
            nursery.start_soon(_pump, right, left)


async def exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            raise trio.BrokenResourceError("too short")
        data += more
    return data


async def read_head(stream: trio.abc.Stream) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await exactly(stream, 1)
    return head


async def _until_nul(stream: trio.abc.Stream) -> bytes:
    text = b""
    while (byte := await exactly(stream, 1)) != b"\x00":
        text += byte
    return text


@dataclass
class Proxies:
    """An HTTP proxy, the same behind TLS, and a SOCKS proxy that takes logins or none.

    Attributes:
      heads: what the HTTP proxies were told.
      socks: (user, password, host, port) that the SOCKS proxy was told.
      clients: the certificates that clients showed to the HTTP proxy behind TLS.
    """

    context: ssl.SSLContext | None = None
    ports: dict[str, int] = field(default_factory=dict)
    heads: list[bytes] = field(default_factory=list)
    socks: list[tuple[bytes | None, bytes | None, bytes, int]] = field(default_factory=list)
    clients: list[dict[str, Any] | None] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        async with trio.open_nursery() as nursery:
            for name, serve in {"http": self._http, "https": self._https, "socks": self._socks}.items():
                handler = partial(self._handle, serve)
                listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
                self.ports[name] = listeners[0].socket.getsockname()[1]
            yield self
            nursery.cancel_scope.cancel()

    async def _handle(self, serve: Callable[[trio.abc.Stream], Any], stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            await serve(stream)

    async def _https(self, stream: trio.abc.Stream) -> None:
        assert self.context is not None
        secured = trio.SSLStream(stream, self.context, server_side=True)
        await secured.do_handshake()
        self.clients.append(secured.getpeercert())
        await self._http(secured)

    async def _http(self, stream: trio.abc.Stream) -> None:
        head = await read_head(stream)
        self.heads.append(head)
        if not head.startswith(b"CONNECT "):
            await stream.send_all(b"forwarded")
            return
        port = int(head.split(b" ")[1].rpartition(b":")[2])
        await relay(stream, port, b"HTTP/1.1 200 Connection established\r\n\r\n")

    async def _socks(self, stream: trio.abc.Stream) -> None:
        user = password = None
        if await exactly(stream, 1) == b"\x04":
            head = await exactly(stream, 7)
            port, address = int.from_bytes(head[1:3], "big"), head[3:]
            user = await _until_nul(stream)
            host = await _until_nul(stream) if address[:3] == bytes(3) else address
            reply = b"\x00\x5a" + bytes(6)
        else:
            methods = await exactly(stream, (await exactly(stream, 1))[0])
            method = 2 if 2 in methods else 0
            await stream.send_all(bytes([5, method]))
            if method:
                await exactly(stream, 1)
                user = await exactly(stream, (await exactly(stream, 1))[0])
                password = await exactly(stream, (await exactly(stream, 1))[0])
                await stream.send_all(b"\x01\x00")
            head = await exactly(stream, 4)
            host = await exactly(stream, {1: 4, 4: 16}.get(head[3]) or (await exactly(stream, 1))[0])
            port = int.from_bytes(await exactly(stream, 2), "big")
            reply = b"\x05\x00\x00\x01" + bytes(6)
        self.socks.append((user, password, host, port))
        await relay(stream, port, reply)

    def url(self, kind: str, host: str = "proxy.test") -> str:
        return f"{kind}://{host}:{self.ports['socks' if kind.startswith('socks') else kind]}"

    def chain(self, way: str, context: ssl.SSLContext) -> tuple[Proxy, ...]:
        """The proxies of one of `PATHS`, each with the login."""
        return tuple(self._proxy(kind, context) for kind in way.split("-"))

    def _proxy(self, kind: str, context: ssl.SSLContext) -> Proxy:
        auth = (LOGIN[0], "") if kind == "socks4a" else LOGIN
        return Proxy(self.url(kind), auth=auth, **({"ssl": context} if kind == "https" else {}))
