"""A network without a wire: names, addresses and peers are made up, the connector is a real one.

Theory of operation
-------------------
`TCPConnector` takes a function that makes sockets, and its dialling takes one that connects them. Here the first makes
one end of a socket pair, and the second waits, in the run's time, for as long as the address says, and then gives the
other end to the peer, or raises. So everything above is what it always is: the same streams, probes, tunnels and TLS,
on real descriptors. The bytes of a pair are readable in the moment in which they are written, so virtual time is exact.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeAlias

import trio

from .._attempt import Dialler
from .._connectors import TCPConnector
from .._establish.addresses import Address, SockAddr
from .._establish.dial import Dialling, Kit
from .._establish.dns_cache import ResolveResult
from .._establish.resolve import Resolver
from .._establish.tls_context import prepare
from .._route import Route, TLSStep

Handler: TypeAlias = Callable[[Any], Awaitable[object]]

_IPV4_SOURCE = IPv4Address("192.0.2.254")
_IPV6_SOURCE = IPv6Address("2001:db8::fe")


async def echo(stream: trio.abc.Stream) -> None:
    """Send back whatever comes, until the end. What a good address does unless told otherwise."""
    async for data in stream:
        await stream.send_all(data)


async def _drain(stream: trio.abc.Stream) -> None:
    async for _ in stream:
        pass


async def _say_nothing(stream: trio.abc.Stream) -> None:
    await trio.sleep_forever()


@dataclass(frozen=True, slots=True)
class _Behaviour:
    after: float = 0.0
    error: int | None = None
    handler: Handler | None = None


class FakeResolver(Resolver):
    """The resolver of a `FakeNetwork`.

    Attributes:
      splits_families: whether it is asked for both families separately; may be changed before the first lookup.
      queries: (name, family) of every lookup, in order.
      closed: how often `aclose` was called.
    """

    def __init__(self) -> None:
        self.splits_families = True
        self.queries: list[tuple[str, int]] = []
        self.closed: int = 0
        self._hosts: dict[str, tuple[list[str], Mapping[int, float], Exception | None, float | None]] = {}

    def add(
        self,
        host: str,
        *addresses: str,
        after: float | Mapping[int, float] = 0.0,
        error: Exception | None = None,
        ttl: float | None = None,
    ) -> None:
        """Say what is known of `host` from now on.

        Args:
          addresses: of both families, best first.
          after: seconds that an answer takes, or such a number for each family (`socket.AF_INET6`).
          error: raised instead of an answer.
          ttl: seconds, of every address.
        """
        families: list[int] = [0, socket.AF_INET, socket.AF_INET6]
        delays = after if isinstance(after, Mapping) else dict.fromkeys(families, after)
        self._hosts[host] = (list(addresses), delays, error, ttl)

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        """As `trioconn.Resolver.resolve`. Unknown names are ``EAI_NONAME``."""
        self.queries.append((host, family))
        await trio.lowlevel.checkpoint()
        if host.removesuffix(".") not in self._hosts:
            raise socket.gaierror(socket.EAI_NONAME, "name or service not known")
        addresses, delays, error, ttl = self._hosts[host.removesuffix(".")]
        await trio.sleep(delays.get(family, 0.0))
        if error is not None:
            raise error
        found = [(address, socket.AF_INET6 if ":" in address else socket.AF_INET) for address in addresses]
        return [ResolveResult(address, of, ttl) for address, of in found if family in (0, of)]

    async def aclose(self) -> None:
        """Count the call."""
        self.closed += 1
        await trio.lowlevel.checkpoint()


class FakeNetwork:
    """Hosts, addresses and peers for `TCPConnector`, without a wire and in the run's own time.

    An address that nobody has described is unreachable (``EHOSTUNREACH``, at once).

    Args:
      nursery: where the peers' handlers run; cancel it when the test is over.
      ipv6: whether this machine has an IPv6 address of its own, which decides the order of addresses (RFC 6724).

    Attributes:
      resolver: the `FakeResolver` of its names.
      dialled: (address, moment) of each connection that was begun, in order.
      peers: the other ends of the connections that were made, as `trio.SocketStream`, in order.
    """

    def __init__(self, nursery: trio.Nursery, *, ipv6: bool = True) -> None:
        self.resolver: FakeResolver = FakeResolver()
        self.dialled: list[tuple[str, float]] = []
        self.peers: list[trio.SocketStream] = []
        self._nursery = nursery
        self._ipv6 = ipv6
        self._addresses: dict[tuple[str, int | None], _Behaviour] = {}
        self._other_ends: weakref.WeakKeyDictionary[socket.socket, tuple[socket.socket, Any]] = (
            weakref.WeakKeyDictionary()
        )

    def add_host(self, host: str, *addresses: str, **answer: Any) -> None:
        """Give `host` its addresses. The arguments are those of `FakeResolver.add`."""
        self.resolver.add(host, *addresses, **answer)

    def listen(
        self,
        address: str,
        handler: Handler = echo,
        *,
        port: int | None = None,
        after: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Connections to `address` are made.

        Args:
          handler: ``async (stream) -> object``, called for each connection with the peer's end, which is closed when it
            returns. By default what comes is sent back. That the client breaks off is no error of the handler.
          port: only for this port; None: for all that have nothing of their own.
          after: seconds until the connection stands.
          tls: a server's context: the handler gets a `trio.SSLStream`.
        """

        async def over_tls(stream: trio.SocketStream) -> None:
            assert tls is not None
            secured = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
            await handler(secured)
            await secured.aclose()

        self._set(address, port, _Behaviour(after, handler=handler if tls is None else over_tls))

    def refuse(self, address: str, *, port: int | None = None, after: float = 0.0) -> None:
        """Connections to `address` are refused after so many seconds."""
        self._set(address, port, _Behaviour(after, error=errno.ECONNREFUSED))

    def blackhole(self, address: str, *, port: int | None = None) -> None:
        """Connections to `address` never get an answer."""
        self._set(address, port, _Behaviour(float("inf")))

    def mute(self, address: str, *, port: int | None = None, after: float = 0.0) -> None:
        """Connections to `address` are made, and then its peer says nothing and reads nothing."""
        self._set(address, port, _Behaviour(after, handler=_say_nothing))

    def _set(self, address: str, port: int | None, behaviour: _Behaviour) -> None:
        self._addresses[str(ip_address(address)), port] = behaviour

    def connector(self, **options: Any) -> TCPConnector:
        """A `TCPConnector` in this network. It takes the same options, except ``socket_factory`` and ``local_addr``.

        Raises:
          TypeError: one of these two was given: here there are no local addresses.
        """
        for name in ("socket_factory", "local_addr"):
            if name in options:
                raise TypeError(f"a fake network has no place for {name}=")
        return _NetworkedConnector(self, **{"resolver": self.resolver, **options})

    @property
    def open_peers(self) -> list[trio.SocketStream]:
        """The peers' ends that are neither closed nor have an end of stream to read. Looks without reading anything."""
        return [peer for peer in self.peers if peer.socket.fileno() != -1 and not _has_ended(peer)]

    # What the connector calls

    def make_socket(self, info: object) -> socket.socket:
        """One end of a pair; the other waits for `connect`."""
        ours, theirs = socket.socketpair()
        # Who makes a socket and never connects it leaves the other end to us.
        self._other_ends[ours] = theirs, weakref.finalize(ours, theirs.close)
        return ours

    async def connect(self, sock: socket.socket, sockaddr: SockAddr) -> None:
        """What the address does."""
        other, never_connected = self._other_ends.pop(sock)
        never_connected.detach()
        try:
            address = str(ip_address(str(sockaddr[0]).partition("%")[0]))
            self.dialled.append((address, trio.current_time()))
            unknown = _Behaviour(error=errno.EHOSTUNREACH)
            behaviour = self._addresses.get((address, sockaddr[1])) or self._addresses.get((address, None), unknown)
            await trio.sleep(behaviour.after)
            if behaviour.error is not None:
                raise OSError(behaviour.error, os.strerror(behaviour.error))
            peer = trio.SocketStream(trio.socket.from_stdlib_socket(other))
        except BaseException:
            other.close()
            raise
        self.peers.append(peer)
        assert behaviour.handler is not None
        self._nursery.start_soon(self._serve, peer, behaviour.handler)

    async def _serve(self, peer: trio.SocketStream, handler: Handler) -> None:
        try:
            await handler(peer)
        except trio.BrokenResourceError:  # the client broke off, which is for the client's own test to judge
            pass
        finally:
            peer.socket.close()

    def source(self, address: Address) -> IPv4Address | IPv6Address | None:
        """The address that this machine would send from."""
        if address.family == socket.AF_INET:
            return _IPV4_SOURCE
        return _IPV6_SOURCE if self._ipv6 else None


def _has_ended(peer: trio.SocketStream) -> bool:
    try:
        with socket.fromfd(peer.socket.fileno(), peer.socket.family, socket.SOCK_STREAM) as look:
            look.setblocking(False)
            return look.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class _NetworkedConnector(TCPConnector):
    """A TCPConnector whose sockets are those of a `FakeNetwork`."""

    def __init__(self, network: FakeNetwork, **options: Any) -> None:
        self._network = network
        super().__init__(socket_factory=network.make_socket, **options)

    def _dialler(self) -> Dialler:
        dial = super()._dialler()

        async def dial_prepared(route: Route, dialling: Dialling) -> trio.abc.Stream:
            for step in route.steps:
                if isinstance(step, TLSStep):
                    prepare(step)  # not in a thread: a clock that jumps does not wait for one
            return await dial(route, dialling)

        return dial_prepared

    def _kit(self) -> Kit:
        tcp = replace(self._tcp, connect=self._network.connect, source=self._network.source)
        return Kit(tcp=tcp, sessions=self._sessions)


class ConnectProxy:
    """An HTTP proxy to put into a `FakeNetwork`, which answers CONNECT with what it is told: raw bytes.

    ``network.listen("192.0.2.9", ConnectProxy(tunnel=origin))``; with ``tls=`` it is an https proxy.

    Args:
      reply: the bytes that answer a request, or several such replies, one for each connection, of which the last holds
        for all further ones.
      tunnel: ``async (stream) -> object``, the peer behind the proxy, called after a reply with a status 2xx.
      after: seconds until the reply.

    Attributes:
      requests: the heads that were received, as bytes.
    """

    def __init__(
        self,
        reply: bytes | Iterable[bytes] = b"HTTP/1.1 200 Connection established\r\n\r\n",
        *,
        tunnel: Handler = echo,
        after: float = 0.0,
    ) -> None:
        self.requests: list[bytes] = []
        self._replies = [reply] if isinstance(reply, bytes) else list(reply)
        self._tunnel = tunnel
        self._after = after

    async def __call__(self, stream: trio.abc.Stream) -> None:
        """Serve one connection."""
        head = bytearray()
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some(1)  # not a byte of what follows the head
            if not data:
                return
            head += data
        self.requests.append(bytes(head))
        await trio.sleep(self._after)
        reply = self._replies[min(len(self.requests), len(self._replies)) - 1]
        await stream.send_all(reply)
        if reply.split(b" ")[1:2] and reply.split(b" ")[1].startswith(b"2"):
            await self._tunnel(stream)
        else:
            await _drain(stream)
