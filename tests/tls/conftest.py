"""Authorities and certificates for the TLS tests: one throw-away CA that is trusted, one that is not."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import trustme


@dataclass
class Authority:
    """A CA, its server contexts and the client contexts that trust it."""

    ca: trustme.CA

    def server(self, *names: str, version: ssl.TLSVersion | None = None, **cert_options: object) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        options = {"key_type": trustme.KeyType.ECDSA, **cert_options}
        self.ca.issue_cert(*(names or ("a.test",)), **options).configure_cert(context)
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        return context


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority(trustme.CA(key_type=trustme.KeyType.ECDSA))


@pytest.fixture(scope="session")
def stranger() -> Authority:
    """A CA that nobody trusts."""
    return Authority(trustme.CA(key_type=trustme.KeyType.ECDSA))


Script = Callable[[ssl.SSLSocket], object]


class Server:
    """A stdlib `ssl` server in threads: the real thing, with the session tickets that trio's own server holds back.

    `script` is run for each connection with the wrapped socket. `results` gets what it returned or raised, `resumed`
    whether each handshake resumed a session, as the server saw it.
    """

    def __init__(
        self, context: ssl.SSLContext, script: Script, *, raw: Callable[[socket.socket], object] | None
    ) -> None:
        self._context = context
        self._script = script
        self._raw = raw
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.accepted = 0
        self.results: queue.Queue[object] = queue.Queue()
        self.resumed: list[bool | None] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(20)
        try:
            with sock:
                if self._raw is not None:
                    self.results.put(self._raw(sock))
                    return
                with self._context.wrap_socket(sock, server_side=True) as wrapped:
                    self.resumed.append(wrapped.session_reused)
                    self.results.put(self._script(wrapped))
        except Exception as exc:
            self.results.put(exc)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address)

    def result(self) -> object:
        """What the oldest connection not yet asked about came to."""
        return self.results.get(timeout=10)

    def close(self) -> None:
        # close() alone does not wake a thread in accept()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


def echo(sock: ssl.SSLSocket) -> bytes:
    """Send everything back until the client closes; then what was received."""
    received = b""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        while data := sock.recv(65536):
            received += data
            sock.sendall(data)
    return received


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers, and ends them after the test."""
    servers: list[Server] = []

    def start(
        context: ssl.SSLContext, script: Script = echo, *, raw: Callable[[socket.socket], object] | None = None
    ) -> Server:
        servers.append(Server(context, script, raw=raw))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
