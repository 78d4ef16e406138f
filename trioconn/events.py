"""What happens to connections, as values for observers.

An observer is a callable that gets one of these. They are immutable by convention: frozen dataclasses would cost four
times as much to make, and with an observer installed several are made for each lease.

Times are those of the clock of the trio run (`trio.current_time`), in seconds. A *dial* is one attempt of the pool to
make a connection, with a number of its own; within it every address that is tried is an *attempt*, numbered from 0.
A *connection* is numbered when it is made. ``hop`` is a proxy's number, -1 is the target.

The order in the life of one connection::

    Queued → DialStarted → CacheHit | CacheMiss → LookupStarted → LookupFinished
           → AttemptStarted → AttemptProgressed → TunnelStarted → TunnelFinished → TLSStarted → TLSFinished
           → AttemptWon | AttemptLost | AttemptFailed → Created → QueueEnded
           → Released → Reused → … → Closed
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

from ._route import Route

Report: TypeAlias = Callable[..., None]
"""How establishing code reports: ``report(EventClass, **fields)``. Time, route and dial are added on the way."""


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class Event:
    """The base of all events: when, and about which route."""

    at: float
    route: Route

    # Once for all: methods that the decorator makes for each class are compiled at import, and doubled its time.
    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, field.name) == getattr(other, field.name) for field in fields(self))

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # they are not frozen

    def __repr__(self) -> str:
        shown = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))
        return f"{type(self).__name__}({shown})"


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class Queued(Event):
    """A caller found no idle connection and waits."""

    waiter: int


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class QueueEnded(Event):
    """A caller waits no longer. ``outcome`` is ``"granted"``, ``"failed"``, ``"cancelled"`` or ``"closed"``."""

    waiter: int
    outcome: str
    waited: float


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class DialEvent(Event):
    """The base of what happens while a connection is being made."""

    dial: int


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class DialStarted(DialEvent):
    """The pool began to make a connection."""


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class DialFailed(DialEvent):
    """No connection came of it."""

    error: BaseException
    stage: str


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class DialAborted(DialEvent):
    """Nobody needs it any more, or the connector is closing."""


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class CacheHit(DialEvent):
    """The addresses of ``host`` were known."""

    host: str


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class CacheMiss(DialEvent):
    """The addresses of ``host`` were not known."""

    host: str


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class LookupStarted(DialEvent):
    """The resolver is asked, or a lookup that runs already is shared (``shared``)."""

    host: str
    shared: bool = False


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class LookupFinished(DialEvent):
    """The resolver answered: addresses as text, or what went wrong."""

    host: str
    addresses: tuple[str, ...] = ()
    error: str | None = None


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class AttemptEvent(DialEvent):
    """The base of what happens to one address of a race."""

    index: int


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class AttemptStarted(AttemptEvent):
    """A connection to ``address`` is being opened: a socket address, or a path."""

    address: Any


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class AttemptProgressed(AttemptEvent):
    """The attempt got on: the ``stage`` it has finished."""

    stage: str


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class AttemptWon(AttemptEvent):
    """The first that went all the way."""


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class AttemptLost(AttemptEvent):
    """Another one won, or it was silent for too long; its socket is closed."""


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class AttemptFailed(AttemptEvent):
    """The attempt ended in an error."""

    error: BaseException


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class AttemptDenied(DialEvent):
    """The address policy refused ``address``: it was not dialled."""

    address: str


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class HopEvent(DialEvent):
    """The base of what happens with one hop, a proxy or the target, within the attempt of that index."""

    hop: int
    attempt: int = 0


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class TunnelStarted(HopEvent):
    """Proxy ``hop`` is asked for a tunnel to ``target`` (host and port)."""

    target: str


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class TunnelFinished(HopEvent):
    """The tunnel stands, or the proxy refused: its ``status`` and the error."""

    status: int | None = None
    error: BaseException | None = None


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class TLSStarted(HopEvent):
    """A handshake begins with proxy ``hop`` or the target (-1)."""

    server_name: str | None


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class TLSFinished(HopEvent):
    """The handshake ended. On success ``version``, ``cipher``, ``alpn``, ``resumed`` and the leaf (DER) are known."""

    version: str | None = None
    cipher: str | None = None
    alpn: str | None = None
    resumed: bool = False
    certificate: bytes | None = None
    error: BaseException | None = None


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class ConnectionEvent(Event):
    """The base of what happens to a connection that was made."""

    connection: int


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class Created(ConnectionEvent):
    """A connection stands. ``dial`` is the number of the dial that made it, ``seconds`` what that took."""

    dial: int
    seconds: float
    session_reused: bool = False


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class Reused(ConnectionEvent):
    """An idle connection was handed out; ``uses`` counts this lease, ``idle`` is how long it lay, in seconds."""

    uses: int
    idle: float


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class Released(ConnectionEvent):
    """A lease ended and the connection was clean; ``leased`` is how long it was out, in seconds."""

    leased: float


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class Closed(ConnectionEvent):
    """A connection was closed, and why: one of `REASONS`."""

    reason: str
    age: float


REASONS: dict[str, str] = {
    "server closed": "the peer ended the stream or reset it",
    "stray bytes": "the peer sent something that nobody had asked for",
    "idle": "it lay unused for longer than the keep-alive",
    "age": "its lifetime was over",
    "uses": "it had served max_uses leases",
    "evicted": "its slot was needed for another host",
    "force_close": "the connector closes every connection after its lease",
    "not released": "the lease ended without release(): the client did not vouch for it",
    "error": "the lease ended with an exception",
    "cancelled": "the lease was cancelled",
    "in use": "a task was still inside a call of the stream when it was released",
    "protocol": "protocol.should_close said so",
    "lost": "the lease was collected without having been released",
    "closed": "the connector was closed",
}
"""Why connections end: the values of `Closed.reason` and the keys of ``statistics().closed``."""
