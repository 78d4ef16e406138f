"""The world in which the examples of the documentation run: ``https://example.org`` without a network.

Every `trio.run` of an example happens inside a `trioconn.testing.FakeNetwork` with a few hosts, an HTTP and a SOCKS
proxy, and TLS by the tests' own authority. `trioconn.TCPConnector` is the network's ``connector``: a real one, in which
only the wire is made up. Nothing else is replaced, so what the examples show is what the library does.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import h11
import pytest
import trio

import trioconn
from trioconn.testing import FakeNetwork

NAMES = ("example.org", "*.example.org", "intranet.example", "proxy.example", "db.example", "localhost")
GREETING = b"Hello from %s\n"


async def serve_http(stream: trio.abc.Stream) -> None:
    """HTTP/1.1 as short as it goes: each request is answered with a greeting that names its host and target."""
    connection = h11.Connection(h11.SERVER)
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            try:
                connection.receive_data(bytes(await stream.receive_some()))
            except trio.BrokenResourceError:
                return
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            host = dict(request.headers)[b"host"]
            body = GREETING % (host + request.target)
            status = 404 if request.target == b"/missing" else 200
            headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
            answer = connection.send(h11.Response(status_code=status, headers=headers, reason="OK"))
            if request.method != b"HEAD":
                answer += connection.send(h11.Data(body))
            answer += connection.send(h11.EndOfMessage())
            await stream.send_all(answer)
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()
        elif isinstance(event, h11.ConnectionClosed):
            return


class Lookahead(trio.abc.Stream):
    """A stream in front of which some bytes were read already."""

    def __init__(self, stream: trio.abc.Stream, head: bytes) -> None:
        self._stream, self._head = stream, head

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._head:
            head, self._head = self._head, b""
            return head
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class World:
    """What the examples find, and the connectors that they make in it."""

    def __init__(self, server_ssl: Callable[..., ssl.SSLContext], client_ssl: Callable[[], ssl.SSLContext]) -> None:
        self._server_ssl = server_ssl(*NAMES)
        self._trusting = client_ssl()
        self._network: FakeNetwork | None = None
        self._run = trio.run

    def connector(self, **options: Any) -> trioconn.TCPConnector:
        """What examples get for ``TCPConnector(…)``. "Verified" means: by the tests' authority."""
        assert self._network is not None, "outside of trio.run"
        if options.get("ssl", True) is True and not {"verify_ssl", "fingerprint", "ssl_context"} & set(options):
            options["ssl"] = self._trusting
        return self._network.connector(**options)

    def run(self, async_fn: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        """`trio.run`, in this world."""
        return self._run(self._live, async_fn, args, **options)

    async def _live(self, async_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> Any:
        async with trio.open_nursery() as nursery:
            self._network = network = FakeNetwork(nursery)
            for number, name in enumerate(["example.org", "api.example.org", "www.example.org", "db.example"], 1):
                network.add_host(name, f"2001:db8::{number}", f"192.0.2.{number}")
                for address in (f"2001:db8::{number}", f"192.0.2.{number}"):
                    network.listen(address, serve_http, port=80)
                    network.listen(address, serve_http, port=443, tls=self._server_ssl)
                    network.listen(address, port=7)
                    network.listen(address, serve_database, port=5432)
            network.add_host("intranet.example", "10.0.0.5")
            network.listen("10.0.0.5", serve_http, port=443, tls=self._server_ssl)
            network.add_host("down.example.org", "192.0.2.99")
            network.refuse("192.0.2.99")
            network.add_host("proxy.example", "192.0.2.50")
            network.listen("192.0.2.50", self._serve_proxy, port=3128)
            network.listen("192.0.2.50", self._serve_proxy, port=8443, tls=self._server_ssl)
            network.listen("192.0.2.50", self._serve_socks, port=1080)
            try:
                with contextlib.ExitStack() as stack:
                    if hasattr(socket, "AF_UNIX"):
                        listener = stack.enter_context(listening_at("app.sock"))
                        nursery.start_soon(trio.serve_listeners, serve_http, [listener])
                    return await async_fn(*args)
            finally:
                self._network = None
                nursery.cancel_scope.cancel()

    async def _tunnel(self, stream: trio.abc.Stream, port: int) -> None:
        if port == 443:
            stream = trio.SSLStream(stream, self._server_ssl, server_side=True, https_compatible=True)
        with contextlib.suppress(trio.BrokenResourceError):
            await serve_http(stream)

    async def _serve_proxy(self, stream: trio.abc.Stream) -> None:
        head = bytearray()
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some(1)
            if not data:
                return
            head += data
        method, target, _ = bytes(head).split(b" ", 2)
        if method == b"CONNECT" and b"intruder" in head:
            await stream.send_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        elif method == b"CONNECT":
            await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await self._tunnel(stream, int(target.rpartition(b":")[2]))
        else:
            await serve_http(Lookahead(stream, bytes(head)))

    async def _serve_socks(self, stream: trio.abc.Stream) -> None:
        async def take(count: int) -> bytes:
            taken = bytearray()
            while len(taken) < count:
                taken += await stream.receive_some(count - len(taken))
            return bytes(taken)

        await take((await take(2))[1])
        await stream.send_all(b"\x05\x00")
        kind = (await take(4))[3]
        await take({1: 4, 4: 16}.get(kind) or (await take(1))[0])
        port = int.from_bytes(await take(2), "big")
        await stream.send_all(b"\x05\x00\x00\x01" + bytes(6))
        await self._tunnel(stream, port)


async def serve_database(stream: trio.abc.Stream) -> None:
    """A made-up protocol: the server speaks first, then answers each line with ``ok``."""
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(b"READY 1\n")
        async for line in stream:
            await stream.send_all(b"ok " + line)


@contextlib.contextmanager
def listening_at(path: str) -> Iterator[trio.SocketListener]:
    """A listener on a Unix socket in the current directory."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(path)
        sock.listen()
        yield trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    finally:
        sock.close()
        Path(path).unlink(missing_ok=True)


@pytest.fixture
def world(
    ca: Any,
    server_ssl: Callable[..., ssl.SSLContext],
    make_client_ssl: Callable[[], ssl.SSLContext],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """The world, entered: `trio.run` and `trioconn.TCPConnector` are those of it, until the test ends."""
    monkeypatch.chdir(tmp_path)
    ca.cert_pem.write_to_path("internal-ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "internal-ca.pem"))  # what create_default_context() trusts
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = World(server_ssl, make_client_ssl)
    monkeypatch.setattr(trioconn, "TCPConnector", made.connector)
    monkeypatch.setattr(trio, "run", made.run)
    return made
