"""Two authorities of which one is trusted, peers, and a connector for each way to a peer."""

from __future__ import annotations

import datetime as dt
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme

import trioconn
from trioconn._establish.sockets import SocketStream

from .peers import Custom, Loopback, Peer, Proxies


@dataclass
class Authority:
    """A CA, contexts for servers with its certificates, and contexts for clients that trust it."""

    ca: trustme.CA = field(default_factory=trustme.CA)

    def server(self, *names: str, version: ssl.TLSVersion | None = None, **certificate: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        self.ca.issue_cert(*(names or ("a.test",)), **certificate).configure_cert(context)
        return context

    def expired(self, *names: str) -> ssl.SSLContext:
        return self.server(*names, not_after=dt.datetime(2020, 1, 2, tzinfo=dt.UTC))

    def client(self, identity: str | None = None) -> ssl.SSLContext:
        """A context that trusts this CA; with an `identity`, it has a client certificate with that name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        if identity is not None:
            self.ca.issue_cert(f"{identity}@a.test", common_name=identity).configure_cert(context)
        return context


@pytest.fixture(scope="session")
def ca1() -> Authority:
    """The one that is trusted."""
    return Authority()


@pytest.fixture(scope="session")
def ca2() -> Authority:
    """The one that is not."""
    return Authority()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """``peer(context, script, raw=…, path=…)``: a running `Peer`; it ends with the test."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Peer(*args, **options))


@dataclass
class Way:
    """A connector whose targets all lead to one peer, by one of the paths.

    Attributes:
      connector: it trusts CA1, also for its proxies.
      target: ``target(scheme)`` is a URL of the peer, a.test.
      sockets: everything that was opened, by its ``fileno``.
      proxies: on the way.
    """

    connector: Any
    peer: Peer
    proxies: Proxies
    sockets: list[Any]

    def target(self, scheme: str, host: str = "a.test") -> str:
        return f"{scheme}://{host}:{self.peer.port}"

    def check_closed(self) -> None:
        """Every socket is closed, every slot free, nothing pooled."""
        assert self.sockets and all(one.fileno() == -1 for one in self.sockets)
        counts = self.connector.statistics()
        assert (counts.open, counts.idle, counts.connecting, counts.waiting) == (0, 0, 0, 0)


@pytest.fixture
def way(ca1: Authority, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractAsyncContextManager[Way]]:
    """``async with way(path, context, ssl=…, …) as w``: a peer with `context`, and a connector to it by `path`."""
    sockets: list[Any] = []
    born = SocketStream.__init__

    def noted(self: SocketStream, *args: Any, **options: Any) -> None:
        born(self, *args, **options)
        sockets.append(self)

    monkeypatch.setattr(SocketStream, "__init__", noted)

    @asynccontextmanager
    async def make(path: str, context: Any, *args: Any, **options: Any) -> AsyncIterator[Way]:
        proxies = Proxies(ca1.server("proxy.test"))
        made = dict(options)
        raw = made.pop("raw", None)
        with ExitStack() as stack:
            # Not pytest's own folder: with its name a Unix socket's path may be too long.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tc-"))
            server = Peer(context, *args, raw=raw, path=os.path.join(folder, "s") if path == "unix" else None)
            stack.enter_context(server)
            async with proxies.running():
                if path == "unix":
                    connector: Any = trioconn.UnixConnector(server.path, **{"ssl": ca1.client(), **made})
                elif path == "custom":
                    made.pop("ssl", None)
                    connector = Custom(server.port, sockets, **made)
                else:
                    made = {"ssl": ca1.client(), "resolver": Loopback(), **made}
                    if path != "direct":
                        made["proxy"] = proxies.chain(path, ca1.client())
                    connector = trioconn.TCPConnector(**made)
                async with connector:
                    yield Way(connector, server, proxies, sockets)

    return make
