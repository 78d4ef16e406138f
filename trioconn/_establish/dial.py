"""ESTABLISH: a route becomes a stream. First hop, then each step.

Theory of operation
-------------------
`climb` is a fold: it takes the stream of the first hop and gives it to each step of the route in turn, and each step
owns what it is given from that moment: on every exception, cancellation included, it closes it. So at each checkpoint
every socket has exactly one owner. Over TCP the whole climb happens inside the race of addresses: an address that
accepts a connection and then says nothing loses to one that finishes its handshakes.

`Dialling` is what one dial knows about itself while it is under way: how far it has come, for the error if it is cut
off, when each stage was over, and whom to tell.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio

from .. import events
from .._errors import AddressDeniedError, ConnectError, ProxyConnectError, ProxyError, Stage, TLSError
from .._route import TARGET, ConnectStep, PipeHop, Route, SocksStep, Step, TCPHop, TLSStep, UnixHop
from .foreign import close_now
from .named_pipe import open_pipe
from .policy import judge
from .tcp import TCPOptions, connect_tcp
from .tls import TLSStream
from .tls_sessions import SessionStore
from .tls_step import handshake
from .unix import connect_unix

if TYPE_CHECKING:
    from .._names import Host
    from .tcp import Progress

_STAGE_OF: dict[type[events.Event], Stage] = {
    events.CacheMiss: "resolve",
    events.LookupStarted: "resolve",
    events.AttemptStarted: "connect",
    events.TunnelStarted: "proxy",
    events.TLSStarted: "tls",
}
_DONE_BY: dict[type[events.Event], Stage] = {
    events.LookupFinished: "resolve",
    events.TunnelFinished: "proxy",
    events.TLSFinished: "tls",
}


class Hearer(Protocol):
    """Whoever wants to hear of dials."""

    active: bool

    def hear(self, event: events.Event) -> None:
        """Called with each event while `active`."""


class Dialling:
    """One dial under way.

    Attributes:
      route: whereto.
      number: of the dial.
      started: when, on the clock of the run.
      stage, hop: how far it has come, as in `ConnectError`.
      timings: seconds after the start at which each stage was over.
    """

    __slots__ = ("_hearer", "hop", "number", "route", "stage", "started", "timings")

    def __init__(self, route: Route, number: int, started: float, hearer: Hearer) -> None:
        self.route = route
        self.number = number
        self.started = started
        self.stage: Stage = "connect"
        self.hop = 0 if route.proxies else TARGET
        self.timings: dict[str, float] = {}
        self._hearer = hearer

    def reached(self, stage: Stage, hop: int = TARGET) -> None:
        """The dial is now at `stage` with `hop`."""
        self.stage, self.hop = stage, hop

    def report(self, kind: type[events.DialEvent], **fields: Any) -> None:
        """Note what `kind` says about the progress, and tell those who want to hear. The ``report`` of every step."""
        now = trio.current_time()
        stage = _STAGE_OF.get(kind)
        if stage is not None:
            self.reached(stage, fields.get("hop", self.hop))
        done = fields["stage"] if kind is events.AttemptProgressed else _DONE_BY.get(kind)
        if done is not None:
            self.timings[done] = now - self.started
        if self._hearer.active:
            self._hearer.hear(kind(at=now, route=self.route, dial=self.number, **fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """What dials of one connector share."""

    tcp: TCPOptions | None = None
    sessions: SessionStore | None = None


async def dial(kit: Kit, route: Route, dialling: Dialling) -> trio.abc.Stream:
    """A stream to where `route` leads, all steps done. If cancelled, everything is closed.

    Raises:
      ConnectError: with the stage and the hop where it ended.
    """
    first = route.first
    if isinstance(first, TCPHop):
        return await _over_tcp(first, kit, dialling)
    if isinstance(first, UnixHop):
        return await _over_one(connect_unix(first.path, report=dialling.report), kit, dialling)
    assert isinstance(first, PipeHop), "a connector with a create_stream of its own does not dial"
    return await _over_one(open_pipe(first.path, report=dialling.report), kit, dialling)


async def climb(stream: trio.abc.Stream, kit: Kit, dialling: Dialling, progress: Progress) -> trio.abc.Stream:
    """`stream` with every step of the route on top. Owns it from now on."""
    for number, step in enumerate(dialling.route.steps):
        stream = await _take(step, stream, number, kit, dialling, progress.index)
        progress("tls" if isinstance(step, TLSStep) else "proxy")
    return stream


async def start_tls(stream: trio.abc.Stream, route: Route) -> trio.abc.Stream:
    """The TLS of `route` on top of `stream`, for connectors that make streams of their own.

    Returns `stream` itself if the scheme of the route has no TLS. The handshake is finished and the peer verified, as
    the route says, before it returns. If it raises, or is cancelled, `stream` has been closed.

    Raises:
      TLSError: the handshake failed; `CertificateError` and `FingerprintMismatchError` are kinds of it.
    """
    for step in route.steps:
        if isinstance(step, TLSStep) and step.hop == TARGET:
            return await handshake(stream, step, sessions=None, key=(route, TARGET), report=None, host_shown=str(route))
    try:
        await trio.lowlevel.checkpoint()
    except BaseException:
        await close_now(stream)  # noqa: ASYNC102 - waits for nobody
        raise
    return stream


async def _take(
    step: Step, stream: trio.abc.Stream, number: int, kit: Kit, dialling: Dialling, attempt: int
) -> trio.abc.Stream:
    route = dialling.route
    report = partial(dialling.report, attempt=attempt)
    if isinstance(step, TLSStep):
        try:
            return await handshake(
                stream,
                step,
                sessions=kit.sessions,
                key=(route, step.hop),
                report=report,
                host_shown=str(route if step.hop == TARGET else route.proxies[step.hop]),
            )
        except TLSError as error:
            if step.hop == TARGET:
                raise
            raise _proxy_error(error, step.hop) from error
    # Imported by the first dial through a proxy: h11 would be a fifth of what importing this package takes.
    if isinstance(step, ConnectStep):
        from .http_tunnel import open_tunnel

        # Bytes behind the reply are the target's greeting only if nothing else is to be asked over this tunnel: they
        # must neither survive a handshake nor be taken for the next proxy's answer.
        last = number + 1 == len(route.steps)
        return await open_tunnel(stream, step, tls_follows=not last, report=report)
    from .socks import open_socks

    return await open_socks(stream, step, resolve=_resolver_for(step, kit, dialling), report=report)


def _proxy_error(error: ConnectError, hop: int) -> ProxyConnectError:
    return ProxyConnectError(error.message, errno=error.errno, stage=error.stage, hop=hop, route=error.route)


class _Alone:
    """The progress of the only attempt there is. Nothing waits for it."""

    index = 0

    def __init__(self, dialling: Dialling) -> None:
        self._dialling = dialling

    def __call__(self, stage: Stage) -> None:
        self._dialling.report(events.AttemptProgressed, index=0, stage=stage)


async def _over_one(first: Awaitable[trio.abc.Stream], kit: Kit, dialling: Dialling) -> trio.abc.Stream:
    """The whole way over a first hop that has one address. Observers are told what they are told of a race of one."""
    stream: trio.abc.Stream | None = None
    try:
        stream = await first
        stream = await climb(stream, kit, dialling, _Alone(dialling))
    except OSError as error:
        if stream is not None:  # else it has been told where it happened
            dialling.report(events.AttemptFailed, index=0, error=error)
        raise
    except BaseException:
        dialling.report(events.AttemptLost, index=0)
        raise
    dialling.report(events.AttemptWon, index=0)
    return stream


async def _over_tcp(first: TCPHop, kit: Kit, dialling: Dialling) -> trio.abc.Stream:
    assert kit.tcp is not None
    route = dialling.route

    reached = False

    async def finish(stream: trio.abc.Stream, progress: Progress) -> trio.abc.Stream:
        nonlocal reached
        reached = True
        return await climb(stream, kit, dialling, progress)

    try:
        return await connect_tcp(
            first.host,
            first.port,
            kit.tcp,
            finish,
            local_addr=first.local_addr,
            # repr, because 1 and True are two partitions and one key
            history_key=(first.host, repr(route.isolation)),
            judged=not route.proxies,
            report=dialling.report,
            discard=_discard,
        )
    except ConnectError as error:
        if not route.proxies or reached or isinstance(error, ProxyError):
            raise  # of a step, which has said whose error it is; the lookup for socks5 is the target's
        raise _proxy_error(error, 0) from error  # the first proxy itself could not be reached


def _discard(stream: trio.abc.Stream) -> None:
    closer: Callable[[], None] = stream.close_nowait  # type: ignore[attr-defined]  # all our steps return such streams
    closer()


def _resolver_for(step: SocksStep, kit: Kit, dialling: Dialling) -> Callable[[Host], Awaitable[list[str]]] | None:
    if step.kind != "socks5" or kit.tcp is None:
        return None
    tcp = kit.tcp

    async def resolve(host: Host) -> list[str]:
        found: list[str] = []
        with tcp.lookups.open(host, tcp.family, dialling.report) as batches:
            async for batch in batches:
                found += [result.address for result in batch.results]
        if tcp.address_policy is None:
            return found
        allowed: list[str] = []
        for address in found:
            if judge(tcp.address_policy, host.name, address):
                allowed.append(address)
            else:
                dialling.report(events.AttemptDenied, address=address)
        if found and not allowed:
            raise AddressDeniedError(f"{host}: the address_policy allows none of its addresses", stage="connect")
        return allowed

    return resolve


def tls_layers(stream: object, route: Route) -> list[tuple[int, TLSStream[Any] | trio.SSLStream[Any]]]:
    """The layers of TLS in `stream`, each with its hop, the first hop's first."""
    streams: list[Any] = []
    while stream is not None:
        if isinstance(stream, TLSStream | trio.SSLStream):
            streams.append(stream)
        stream = below(stream)  # pyright: ignore[reportUnknownArgumentType] - the parameter of a generic is no matter
    hops = [step.hop for step in route.steps if isinstance(step, TLSStep)]
    # A connector's own create_stream may have made more layers than the route has, or fewer.
    hops = ([TARGET] * len(streams) + hops)[-len(streams) :] if streams else []
    return list(zip(hops, reversed(streams), strict=True))


def below(stream: object) -> object:
    """The stream that `stream` was put on, or None at the bottom."""
    wrapped: object = getattr(stream, "wrapped", None)
    return getattr(stream, "transport_stream", None) if wrapped is None else wrapped
