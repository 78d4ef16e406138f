"""A world for random programs: hosts that change their minds, clients in tasks, and a connector among them.

Two worlds have one surface. In the one, `ScriptedConnector` makes connections in memory: quick, and its dials can be
stubborn. In the other a real `TCPConnector` looks names up, races addresses and shakes hands on the sockets of a
`FakeNetwork`. Both run in virtual time; nothing in them depends on anything but the program and the scheduler's seed.

A world counts by itself what is open, at the moment in which it is opened, so that the limits are not taken from the
word of the one who keeps them.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

import trio
import trustme

import trioconn
from trioconn.testing import Fail, FakeNetwork, Hang, ScriptedConnector, Succeed

REFUSED = OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
STRAY = b"!"

# What dialling an address does: (kind, seconds).
MOODS: tuple[tuple[str, float], ...] = (
    ("ok", 0.0),
    ("ok", 0.125),
    ("ok", 1.0),
    ("refuse", 0.0),
    ("refuse", 0.25),
    ("hang", 0.0),
    ("mute", 0.0),
    ("lost", 0.0),
    ("stubborn", 0.5),
    ("stubborn refuse", 0.5),
)
HOSTS = ("a", "b", "c")


@dataclass(eq=False)
class Wire:
    """One connection as the world sees it: both ends, and what the peer has done to it."""

    host: str
    ours: Any
    peer: Any = None
    sullied: bool = False  # the peer said something unasked, or went
    poisoned: bool = False  # and that while it was idle
    gone: bool = False  # it went

    @property
    def live(self) -> bool:
        """Whether our end is open."""
        ours = self.ours
        return not ours.closed if hasattr(ours, "closed") else ours.fileno() != -1


@cache
def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(client's, server's) contexts of an authority of the tests' own."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("c.test").configure_cert(server)
    authority.configure_trust(client)
    return client, server


class World:
    """What both worlds have.

    Attributes:
      wires: every connection that was begun, in order.
      excess: descriptions of moments at which more was open than is allowed.
      per_attempt: how many sockets one attempt may have at a time.
    """

    per_attempt = 1

    def __init__(self, nursery: trio.Nursery, options: dict[str, Any]) -> None:
        self.nursery = nursery
        self.options = options
        self.wires: list[Wire] = []
        self.excess: list[str] = []
        self.connector: trioconn.BaseConnector

    def live(self, host: str | None = None) -> list[Wire]:
        """The connections whose our end is open."""
        return [wire for wire in self.wires if wire.live and host in {None, wire.host}]

    def began(self, wire: Wire) -> None:
        """A socket was opened: count, at once."""
        self.wires.append(wire)
        if self.per_attempt > 1:
            return
        for what, limit, count in (
            ("in total", self.options["limit"], len(self.live())),
            (f"at {wire.host}", self.options["limit_per_host"], len(self.live(wire.host))),
        ):
            if limit and count > limit:
                self.excess.append(f"{count} open {what}, the limit is {limit}")

    def targets(self) -> list[tuple[str, dict[str, Any]]]:
        """Targets and options of the routes: two share an endpoint."""
        raise NotImplementedError

    def set_mood(self, host: str, kind: str, seconds: float) -> None:
        """From now on, dials of `host` do that."""
        raise NotImplementedError

    def wire_of(self, lease: trioconn.Connection) -> Wire:
        """The connection that a lease is of."""
        raise NotImplementedError

    def stray(self, wire: Wire) -> None:
        """The peer says something that nobody has asked for."""
        raise NotImplementedError

    def hang_up(self, wire: Wire, how: str) -> None:
        """The peer goes: ``"close"``, ``"reset"`` or ``"half"``."""
        raise NotImplementedError


class MemoryWorld(World):
    """Connections in memory."""

    def __init__(self, nursery: trio.Nursery, options: dict[str, Any]) -> None:
        super().__init__(nursery, options)
        self._moods: dict[str, tuple[str, float]] = dict.fromkeys(HOSTS, MOODS[0])
        self.connector = _Memory(self, handler=self._serve, nursery=nursery, **options)

    def targets(self) -> list[tuple[str, dict[str, Any]]]:
        return [(f"tcp://{host}.test:1", {}) for host in HOSTS] + [("tcp://a.test:1", {"isolation": "x"})]

    def set_mood(self, host: str, kind: str, seconds: float) -> None:
        self._moods[host] = kind, seconds

    def step(self, route: trioconn.Route) -> Succeed | Fail | Hang:
        kind, seconds = self._moods[route.host.partition(".")[0]]
        if kind in {"hang", "mute"}:
            return Hang()
        if kind in {"refuse", "lost", "stubborn refuse"}:
            return Fail(REFUSED, after=seconds, stubborn=kind.startswith("stubborn"))
        return Succeed(after=seconds, stubborn=kind == "stubborn")

    async def _serve(self, peer: Any) -> None:
        try:
            async for data in peer:
                await peer.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        peer.close_nowait()

    def wire_of(self, lease: trioconn.Connection) -> Wire:
        return next(wire for wire in reversed(self.wires) if wire.ours is lease._held.raw)

    def stray(self, wire: Wire) -> None:
        try:
            wire.peer.send_nowait(STRAY)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def hang_up(self, wire: Wire, how: str) -> None:
        if how == "reset":
            wire.peer.reset()
        else:
            wire.peer.close_nowait()


class _Memory(ScriptedConnector):
    def __init__(self, world: MemoryWorld, **options: Any) -> None:
        self._world = world
        super().__init__(world.step, **options)

    async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
        stream = await super().create_stream(route)
        self._world.began(Wire(route.host.partition(".")[0], stream, self.peers[-1]))
        return stream


class SocketWorld(World):
    """A real `TCPConnector` on socket pairs. Host c has TLS, or two addresses that race."""

    def __init__(self, nursery: trio.Nursery, options: dict[str, Any], *, tls: bool, race: bool) -> None:
        super().__init__(nursery, options)
        self._tls = tls
        self._network = _Network(self, nursery)
        self._addresses = {"a": ["192.0.2.1"], "b": ["192.0.2.2"], "c": ["192.0.2.3"]}
        if race:
            self._addresses["c"] = ["2001:db8::3", "192.0.2.3"]
            self.per_attempt = 2
        self.host_of = {address: host for host, addresses in self._addresses.items() for address in addresses}
        for host in HOSTS:
            self.set_mood(host, *MOODS[0])
        if tls:
            options = {**options, "ssl": certificates()[0]}
        self.connector = self._network.connector(**options)

    def targets(self) -> list[tuple[str, dict[str, Any]]]:
        last = "tls://c.test:1" if self._tls else "tcp://c.test:1"
        return [("tcp://a.test:1", {}), ("tcp://b.test:1", {}), (last, {}), ("tcp://a.test:1", {"isolation": "x"})]

    def set_mood(self, host: str, kind: str, seconds: float) -> None:
        network = self._network
        addresses = self._addresses[host]
        error = socket.gaierror(socket.EAI_NONAME, "name or service not known") if kind == "lost" else None
        network.add_host(f"{host}.test", *addresses, error=error)
        for number, address in enumerate(addresses):
            if number:  # of two addresses the second is good, and slow
                network.listen(address, self._serve, after=0.125)
            elif kind in {"refuse", "stubborn refuse"}:
                network.refuse(address, after=seconds)
            elif kind == "hang":
                network.blackhole(address)
            elif kind == "mute":
                network.mute(address)
            else:
                tls = certificates()[1] if self._tls and host == "c" else None
                network.listen(address, self._serve, after=seconds, tls=tls)

    async def _serve(self, stream: Any) -> None:
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.ClosedResourceError:  # hung up by the program
            pass

    def wire_of(self, lease: trioconn.Connection) -> Wire:
        fd = lease._held.fd
        return next(wire for wire in reversed(self.wires) if wire.live and wire.ours.fileno() == fd)

    def stray(self, wire: Wire) -> None:
        if wire.peer is not None and wire.peer.socket.fileno() != -1:
            with socket.fromfd(wire.peer.socket.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as peer:
                try:
                    peer.send(STRAY, socket.MSG_DONTWAIT)
                except OSError:
                    pass

    def hang_up(self, wire: Wire, how: str) -> None:
        if wire.peer is None or wire.peer.socket.fileno() == -1:
            return
        with socket.fromfd(wire.peer.socket.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            try:
                if how == "reset":
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.shutdown(socket.SHUT_WR if how == "half" else socket.SHUT_RDWR)
            except OSError:
                pass


class _Network(FakeNetwork):
    def __init__(self, world: SocketWorld, nursery: trio.Nursery) -> None:
        super().__init__(nursery)
        self._world = world

    async def connect(self, sock: socket.socket, sockaddr: Any) -> None:
        wire = Wire(self._world.host_of[str(sockaddr[0])], sock)
        self._world.began(wire)
        await super().connect(sock, sockaddr)
        wire.peer = self.peers[-1]
