"""A lease: the right to use one connection until it is released or closed.

Theory of operation
-------------------
The pool counts records. On each record the shell hangs a `Held`: the stream and what is known of it, for as long as the
socket lives. A `Connection` is one lease of it, made anew at each hand-out, so that a handle kept too long is dead
rather than somebody else's connection.

The lease shows the stream through a `LeasedStream`, a view without state that ends with the lease: afterwards every
call raises `trio.ClosedResourceError`. The methods of the view return the coroutine of the stream itself, so it costs
a call and no coroutine of its own.

A lease that is collected without having been released gives its slot back, but late and with a `ResourceWarning`. The
finalizer may run in the middle of any allocation and in any thread; so it touches nothing, and only asks the run to
do the rest (`TrioToken.run_sync_soon`).
"""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import get_ident
from types import CodeType, CoroutineType, MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias, cast, final

import trio
from trio.lowlevel import enable_ki_protection

from ._values import Value

if TYPE_CHECKING:
    from ._pool import Record
    from ._route import Route

logger = logging.getLogger("trioconn.connection")

Place: TypeAlias = tuple[CodeType, int]
"""Where a lease was taken: code and offset in it. Keeping the frame would keep all its locals alive."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TLSInfo(Value):
    """One layer of TLS.

    Attributes:
      hop: whose: a proxy's number, -1 for the target.
      version: ``"TLSv1.3"``, ``"TLSv1.2"``.
      cipher: OpenSSL's name of the cipher suite.
      alpn: the protocol that was agreed on, or None.
      server_name: the name that was asked for and verified, or None.
      certificate: the peer's leaf in DER form, or None.
      session_reused: whether the handshake resumed a session.
    """

    hop: int
    version: str | None
    cipher: str | None
    alpn: str | None
    server_name: str | None
    certificate: bytes | None
    session_reused: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ConnectionInfo(Value):
    """What is known of a connection.

    Attributes:
      number: of the connection, counted per connector from 1; events carry it.
      local_address: of the socket, or None where there is none.
      remote_address: of the socket: the first hop's.
      tls: one entry per layer of TLS, the first proxy's first and the target's last.
      timings: seconds spent until each stage of making it was over, counted from the start of its dial: a subset of
        ``"resolve"``, ``"connect"``, ``"proxy"``, ``"tls"``, and ``"total"``.
    """

    number: int
    local_address: Any
    remote_address: Any
    tls: tuple[TLSInfo, ...]
    timings: Mapping[str, float]


class Held:
    """One live connection, whoever leases it: its stream and what is known of it. Owned by the shell.

    Attributes:
      stream: with the synchronous surface that the pool needs (`foreign.PoolableStream`).
      raw: what the dial returned: the same, unless it was somebody else's stream.
      is_clean: the probe of the stream, or the connector's own judgement; bound once, it is asked twice for each lease.
      info: what `Connection.info` tells; made when it is first asked for, as most are not, and parts take less room.
      harvested: whether there are no TLS sessions left to keep of it.
      plain: whether nothing has to be done for it at release: no protocol, no sessions to keep.
      closed: set when it is closed, before its socket is.
      lease: the present lease, if it has callbacks.
      leased_at: when it was last handed out.
      code, offset: where that was; see `where`.
      stack: how that place was reached, with ``track_leases``.
    """

    __slots__ = (
        "_info", "_local_address", "_remote_address", "_timings", "_tls", "closed", "code", "created", "fd",
        "harvested", "is_clean", "lease", "leased_at", "number", "offset", "plain", "protocol", "raw", "route",
        "session_reused", "stack", "stream", "view",
    )  # fmt: skip

    def __init__(
        self,
        stream: Any,
        raw: trio.abc.Stream,
        route: Route,
        *,
        fd: int,
        protocol: Any,
        number: int,
        local_address: Any,
        remote_address: Any,
        tls: tuple[TLSInfo, ...],
        timings: Mapping[str, float],
        session_reused: bool,
        now: float,
    ) -> None:
        self.stream: Any = stream
        self.raw: trio.abc.Stream = raw
        self.is_clean: Callable[[], bool] = stream.probe
        self.view: type[LeasedStream] = (
            HalfCloseableLeasedStream if isinstance(stream, trio.abc.HalfCloseableStream) else LeasedStream
        )
        self.route: Route = route
        self.fd: int = fd
        self.protocol: Any = protocol
        self.number: int = number
        self._info: ConnectionInfo | None = None
        self._local_address = local_address
        self._remote_address = remote_address
        self._tls = tls
        self._timings = tuple(timings.items())
        self.session_reused: bool = session_reused
        self.harvested: bool = not tls
        self.plain: bool = protocol is None and not tls
        self.closed: bool = False
        self.created: float = now
        self.lease: weakref.ref[Connection] | None = None
        self.leased_at: float = now
        self.code: CodeType | None = None
        self.offset: int = 0
        self.stack: str = ""

    @property
    def info(self) -> ConnectionInfo:
        if self._info is None:
            self._info = ConnectionInfo(
                number=self.number,
                local_address=self._local_address,
                remote_address=self._remote_address,
                tls=self._tls,
                timings=MappingProxyType(dict(self._timings)),
            )
        return self._info

    @property
    def where(self) -> Place | None:
        """Where it was last handed out."""
        return None if self.code is None else (self.code, self.offset)


class Owner(Protocol):
    """What a lease needs of its connector."""

    def give_back(self, record: Record[Route, Held], idle_for: float | None) -> None:
        """The lease is over and the client vouches for the stream."""

    def drop(self, record: Record[Route, Held], reason: str) -> None:
        """The lease is over: close the connection now."""

    async def say_goodbye(self, record: Record[Route, Held], reason: str) -> None:
        """The lease is over: close the connection as politely as the grace allows."""

    def run_soon(self, f: Callable[[], object]) -> None:
        """Call `f` in the connector's run, from wherever this is called. Does nothing once that run is over."""

    @property
    def thread(self) -> int:
        """The thread of the connector's run."""
        ...


@final
class Connection:
    """A lease of one connection. Made by ``connector.connect()`` and ``connector.connect_nowait()``.

    Use it with ``async with``. Call `release` when the stream is at a clean boundary, to give the connection back to
    the pool; without that, leaving the block closes it. After an exception or a cancellation it is always closed.

    A lease may be passed to other tasks of the same run. It is true in a boolean context.
    """

    # The view holds its lease, and the lease only a weak reference to the view: with a cycle between them, a forgotten
    # lease would keep its slot until the next run of the garbage collector.
    __slots__ = ("__weakref__", "_callbacks", "_held", "_owner", "_record", "_view", "uses")

    def __init__(self, owner: Owner, record: Record[Route, Held], held: Held) -> None:
        self._owner = owner
        self._record: Record[Route, Held] | None = record
        self._held = held
        self._view: weakref.ref[LeasedStream] | None = None
        self._callbacks: list[Callable[[], object]] | None = None
        self.uses: int = record.uses

    @property
    def stream(self) -> LeasedStream:
        """The stream to send and receive on: a `trio.abc.Stream`, half-closeable where the transport is.

        It dies with the lease. Attributes of the transport that are not trio's (``socket``, ``getpeercert``,
        ``selected_alpn_protocol``…) can be read through it.

        Raises:
          trio.ClosedResourceError: the lease is over.
        """
        if self._record is None:
            raise trio.ClosedResourceError(_OVER)
        view = None if self._view is None else self._view()
        if view is None:
            view = self._held.view(self._held.stream, self)
            self._view = weakref.ref(view)
        return view

    transport = stream

    @property
    def protocol(self) -> Any:
        """What ``protocol_factory`` made for this connection, the same on each of its leases; None without one."""
        return self._held.protocol

    @property
    def route(self) -> Route:
        """Whereto: equal to the route of the call."""
        return self._held.route

    @property
    def key(self) -> Route:
        """The key under which the pool holds the connection: the route."""
        return self.route

    @property
    def forwarded(self) -> bool:
        """Whether the stream ends at a forwarding proxy: requests must carry absolute URLs and `proxy_headers`."""
        return self.route.forwarded

    @property
    def proxy_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Header fields that the forwarding proxy needs with each request; empty unless `forwarded`."""
        secret = self.route.request_headers
        return () if secret is None else secret.value

    @property
    def age(self) -> float:
        """Seconds since the connection was made."""
        return trio.current_time() - self._held.created

    @property
    def reused(self) -> bool:
        """Whether the connection served another lease before this one."""
        return self.uses > 1

    @property
    def session_reused(self) -> bool:
        """Whether the handshake with the target resumed a TLS session."""
        return self._held.session_reused

    @property
    def info(self) -> ConnectionInfo:
        """Addresses, TLS of each hop, timings."""
        return self._held.info

    @property
    def closed(self) -> bool:
        """Whether this lease is over, released or closed, or its connector was closed."""
        return self._record is None or self._held.closed

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        state = "over" if self.closed else "live"
        return f"<Connection {self._held.number} to {self.route}, use {self.uses}, {state}>"

    def add_callback(self, f: Callable[[], object]) -> None:
        """Call ``f()`` once, when this lease is released or closed, or its connector is. What it raises is logged.

        Raises:
          trio.ClosedResourceError: the lease is over already.
        """
        if self._record is None:
            raise trio.ClosedResourceError("this lease is over: nothing will call the callback")
        if self._callbacks is None:
            self._callbacks = []
            self._held.lease = weakref.ref(self)
        self._callbacks.append(f)

    def connector_closed(self) -> None:
        """The connection was closed under this lease, with its connector. Not for users: it is called for them."""
        self._call_back()

    # Protected, as all that ends a lease: an interrupt between taking the record and giving it back would lose it.
    @enable_ki_protection
    def release(self, *, idle_for: float | None = None) -> None:
        """Give the connection back: the stream is at a clean boundary and may serve somebody else.

        Never raises, may be called again, and from any task. The connection is closed instead, with the reason
        recorded, if the peer has sent something unasked or ended the stream, a task is still inside a call of it, its
        age or uses are over, ``force_close`` is set, ``protocol.should_close`` is true, or the connector is closed.

        Args:
          idle_for: seconds; shortens this connection's keep-alive, this once.
        """
        record = self._record
        if record is None:
            return
        self._record = None
        if self._view is not None:
            self._end_view()
        owner = self._owner
        if get_ident() == owner.thread:
            owner.give_back(record, idle_for)
        else:  # a finalizer of the client's, or a mistake: another thread must not touch the pool
            owner.run_soon(lambda: owner.drop(record, "not released"))
        if self._callbacks is not None:
            self._call_back()

    def close(self) -> None:
        """Close the connection now. TLS says its close_notify if that can be written at once. May be called again."""
        self._close("not released")

    @enable_ki_protection
    async def aclose(self) -> None:
        """Close the connection. TLS says close_notify and waits at most ``ssl_shutdown_timeout`` for the answer.

        If cancelled, it is closed all the same, at once. May be called again.
        """
        record = self._end()
        if record is None:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self._owner.say_goodbye(record, "not released")
        finally:
            self._call_back()

    async def __aenter__(self) -> Connection:
        return self

    @enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._record is None:
            return  # released inside: nothing to wait for, and a scheduling pass for each request would be felt
        if kind is None:
            await self.aclose()
        else:
            self._close("cancelled" if issubclass(kind, trio.Cancelled) else "error")

    @enable_ki_protection
    def _close(self, reason: str) -> None:
        record = self._end()
        if record is not None:
            if get_ident() == self._owner.thread:
                self._owner.drop(record, reason)
            else:
                owner = self._owner
                owner.run_soon(lambda: owner.drop(record, reason))
            self._call_back()

    def _end(self) -> Record[Route, Held] | None:
        # One of release, close, aclose and the finalizer gets the record, whoever comes first.
        record, self._record = self._record, None
        self._end_view()
        return record

    def _end_view(self) -> None:
        view = None if self._view is None else self._view()
        if view is not None:
            view.end()

    def _call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, None
        for f in callbacks or ():
            try:
                f()
            except Exception:
                logger.exception("a callback of a lease of %s raised", self.route)

    def __del__(self) -> None:
        record = self._record
        if record is None:
            return
        self._record = None
        owner, held = self._owner, self._held
        owner.run_soon(lambda: owner.drop(record, "lost"))  # first: the warning may be an error
        if not held.closed:
            warnings.warn(
                f"the lease of a connection to {self.route} was never released; it was taken at {place(held.where)}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


def place(where: Place | None) -> str:
    """File and line of a place."""
    if where is None:
        return "an unknown place"
    code, offset = where
    line = next((line for start, end, line in code.co_lines() if start <= offset < end), None)
    return f"{code.co_filename}:{line or code.co_firstlineno}"


_OVER = "this lease is over: connect again"


async def _refuse() -> NoReturn:
    await trio.lowlevel.checkpoint()
    raise trio.ClosedResourceError(_OVER)


class _Ended:
    """What a view shows once its lease is over, also to a stream on top of it. Closing is the view's own affair."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await _refuse()

    async def wait_send_all_might_not_block(self) -> None:
        await _refuse()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        await _refuse()

    async def send_eof(self) -> None:
        await _refuse()

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        raise trio.ClosedResourceError(_OVER)

    def receive_nowait(self, max_bytes: int) -> bytes | bytearray:
        raise trio.ClosedResourceError(_OVER)

    def probe(self) -> bool:
        return False

    def fileno(self) -> int:
        return -1


_ENDED = _Ended()


class _Coroutines(Protocol):
    """A stream, as type checkers see it: ``async def`` makes more than trio's interface promises."""

    def send_all(self, data: bytes | bytearray | memoryview) -> CoroutineType[Any, Any, None]: ...
    def receive_some(self, max_bytes: int | None = None) -> CoroutineType[Any, Any, bytes | bytearray]: ...
    def wait_send_all_might_not_block(self) -> CoroutineType[Any, Any, None]: ...
    def send_eof(self) -> CoroutineType[Any, Any, None]: ...


class LeasedStream(trio.abc.Stream):
    """The stream of a lease, for as long as the lease lasts. Closing it closes the lease."""

    __slots__ = ("__weakref__", "_lease", "_stream")

    def __init__(self, stream: trio.abc.Stream, lease: Connection) -> None:
        self._stream = cast("_Coroutines", stream)
        self._lease = lease

    def send_all(self, data: bytes | bytearray | memoryview) -> CoroutineType[Any, Any, None]:
        """Send all of `data`. As `trio.abc.SendStream.send_all`."""
        return self._stream.send_all(data)

    def receive_some(self, max_bytes: int | None = None) -> CoroutineType[Any, Any, bytes | bytearray]:
        """Receive at least one byte, or ``b""`` at the end. As `trio.abc.ReceiveStream.receive_some`."""
        return self._stream.receive_some(max_bytes)

    def wait_send_all_might_not_block(self) -> CoroutineType[Any, Any, None]:
        """As `trio.abc.SendStream.wait_send_all_might_not_block`."""
        return self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the lease, and with it the connection."""
        await self._lease.aclose()

    def close_nowait(self) -> None:
        """Close the lease, at once. A stream on top closes by this what it stands on, and the pool must learn of it."""
        self._lease.close()

    def end(self) -> None:
        """The lease is over. Not for users: use the lease."""
        self._stream = cast("_Coroutines", _ENDED)

    def __getattr__(self, name: str) -> Any:
        # Only what this class does not have comes here: the transport's own public attributes.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._stream, name)

    def __repr__(self) -> str:
        return f"<stream of {self._lease!r}>"


class HalfCloseableLeasedStream(LeasedStream, trio.abc.HalfCloseableStream):
    """A `LeasedStream` whose sending half can be closed alone."""

    __slots__ = ()

    async def send_eof(self) -> None:
        """Send an end of stream; receiving goes on. As `trio.abc.HalfCloseableStream.send_eof`."""
        await self._stream.send_eof()
