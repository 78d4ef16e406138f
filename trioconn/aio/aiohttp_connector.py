"""`AiohttpConnector`: ``aiohttp.ClientSession`` over a connector of ours.

Theory of operation
-------------------
aiohttp's connector does three things: it keeps a pool, it makes connections, and it hands them out as protocols with a
transport. Here only the last is left. Every request takes a lease from our pool and ends it with the response, so that
limits, fairness, keep-alive and expiry are ours; aiohttp's own keep-alive holds nothing. For the length of a lease a
fresh ``ResponseHandler`` and a transport stand on the stream; bytes that belong to no response die with them, and make
the pool close the connection.

An idle connection is taken at once. Only who finds none waits in a trio task, under aiohttp's timeouts: ``connect``
bounds the wait as a whole, ``sock_connect`` what comes after the start of an attempt for the same target.

Who reads a response to its end and then asks for the next one does both in one step of the loop. Then nothing has to
go through the pool: a connection that was given back is *parked* until the next pass of the loop, and handed to who
asks for the same route meanwhile, if it is clean. Only then is it really released. This is done where nobody could be
wronged by it: with a connector that is ours alone, while none of our requests waits, and when no option wants to see
each lease.

aiohttp lets subclasses make connections (``_create_connection``), but not own the pool. So this overrides what its pool
consists of: ``connect``, ``_release`` and ``_close``, which have had these signatures throughout aiohttp 3.
"""

from __future__ import annotations

import asyncio
import math
import ssl as ssl_module
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import trio
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection as AiohttpConnection

import trioconn

from .aiohttp_errors import translated
from .aiohttp_watch import Watcher, when
from .bridge import Call
from .leases import Host
from .runs import portal
from .task_transport import transport_for
from .transport import LeaseTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp import ClientRequest, ClientTimeout
    from aiohttp.tracing import Trace

_ROUTES_KEPT = 256
_ALPN = ("http/1.1",)
# With one of these a connection is not to go from one request to the next unseen by the pool.
_EACH_LEASE_MATTERS = frozenset(
    {"force_close", "max_lifetime", "max_uses", "observers", "protocol_factory", "track_leases"}
)


class _Target(NamedTuple):
    scheme: str
    host: str
    port: int | None


class _Lane:
    """What is known of the requests of one kind: their route, and what follows from it, looked up once for each.

    Attributes:
      route: theirs.
      parks: whether their connections may be parked.
      parked: those that are.
      forwarded: whether a proxy forwards them, and they are to be written for it.
      tls: whether they go over TLS. aiohttp has but one way of writing those.
    """

    __slots__ = ("forwarded", "parked", "parks", "route", "tls")

    def __init__(self, route: trioconn.Route, *, parks: bool, tls: bool) -> None:
        self.route = route
        self.parks = parks
        self.parked: list[ResponseHandler] = []
        self.forwarded = route.forwarded
        self.tls = tls

    def __repr__(self) -> str:
        return str(self.route)  # aiohttp shows it as whose connection was forgotten


class AiohttpConnector(aiohttp.BaseConnector):
    """A connector for ``aiohttp.ClientSession(connector=…)`` over one of ours.

    It is made inside a running asyncio loop, within ``async with trioconn.aio.guest():`` or in a trio-asyncio loop, and
    belongs to that run. Closing the session, or the run, closes all its connections.

    Args:
      connector: a connector that was entered in the trio run already: it is borrowed, others may use it, and it stays
        open. A `trioconn.aio.Connector` will do, too. None: one is made, owned, and closed with the session.
      connector_options: for that one, a `trioconn.TCPConnector`.

    A request's ``ssl``, ``proxy``, ``proxy_auth``, ``proxy_headers`` and ``server_hostname`` are honoured; what it
    leaves out is as the connector says. A proxy's certificate is verified by the request's ``ssl`` if that is an
    `ssl.SSLContext`, else by the system's authorities: ``ssl=False`` concerns the target alone.

    Raises:
      TypeError: both a connector and options for one were given, or an option does not exist.
      RuntimeError: there is no trio run beside this asyncio loop.
    """

    def __init__(self, connector: trioconn.BaseConnector | Any | None = None, **connector_options: Any) -> None:
        if connector is not None and connector_options:
            raise TypeError("a connector has its options already: give either a connector or options for a new one")
        self._portal = portal()
        self._owned = connector is None
        connector = getattr(connector, "trio_connector", connector)
        ours: trioconn.BaseConnector = trioconn.TCPConnector(**connector_options) if connector is None else connector
        if not isinstance(ours, trioconn.BaseConnector):
            raise TypeError(f"connector must be a connector of trioconn, not a {type(ours).__name__}")
        super().__init__(
            force_close=ours.force_close,
            limit=ours.limit,
            limit_per_host=ours.limit_per_host,
            timeout_ceil_threshold=connector_options.get("timeout_ceil_threshold", 5),
        )
        self._connector = ours
        limit = connector_options.get("connect_timeout", 30.0) if self._owned else None
        self._connect_timeout: float = math.inf if limit is None else limit
        self._plans_afresh = bool(connector_options.get("trust_env"))
        self._host: Host | None = None
        self._opening: asyncio.Task[None] | None = None
        self._opened = not self._owned
        self._lanes: dict[Any, _Lane] = {}
        self._transports: set[LeaseTransport] = set()
        self._parks = self._owned and not connector_options.keys() & _EACH_LEASE_MATTERS
        if connector_options.get("keepalive_timeout", 15) == 0:
            self._parks = False
        self._parked: dict[_Lane, None] = {}  # those that have some
        self._sweep_due = False
        self._waiting = 0  # requests that have asked our pool and have no answer yet

    @property
    def connector(self) -> trioconn.BaseConnector:
        """The connector of trioconn: for its ``statistics()``, say."""
        return self._connector

    # ---- handing out -------------------------------------------------------------------------------------------------

    async def connect(
        self,
        req: ClientRequest,
        traces: Sequence[Trace],
        timeout: ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> AiohttpConnection:
        """A connection for `req`. Called by aiohttp's client."""
        if self._closed:
            raise aiohttp.ClientConnectionError("Connector is closed.")
        if not self._opened:
            await self._open()
        try:
            lane = self._lane(req)
            if self._parked:
                protocol = self._unpark(lane)
                if protocol is not None:
                    connection = self._handed_over(protocol, req, lane)
                    if traces:
                        await _tell_reused(traces, connection.close)
                    return connection
            self._waiting += 1
            try:
                lease = await self._lease(lane.route, traces, timeout)
            except trioconn.InvalidTargetError:
                # The policy of a context has changed since the route was planned.
                self._lanes.pop(_key(req), None)
                lane = self._lane(req)
                lease = await self._lease(lane.route, traces, timeout)
            finally:
                self._waiting -= 1
        except trioconn.ConnectorError as error:
            theirs = translated(error, req, getattr(self._connector, "path", None))
            if theirs is error:
                raise
            raise theirs from error
        return self._prepared(lease, req, lane)

    def _prepared(self, lease: trioconn.Connection, req: ClientRequest, lane: _Lane) -> AiohttpConnection:
        # No await from here on: the lease has no other owner.
        if self._closed:
            self._portal.order(lease.release)
            raise aiohttp.ClientConnectionError("Connector is closed.")
        protocol = ResponseHandler(loop=self._loop)
        try:
            transport = transport_for(self._portal, lease, protocol)
        except BaseException:
            self._portal.order(lease.close)
            raise
        self._transports.add(transport)
        protocol.transport = transport
        return self._handed_over(protocol, req, lane)

    async def _lease(
        self, route: trioconn.Route, traces: Sequence[Trace], timeouts: ClientTimeout
    ) -> trioconn.Connection:
        if self._portal.closed or not self._portal.in_trio():
            raise trioconn.ConnectorClosedError("the trio run beside this asyncio loop has ended")
        try:
            lease = self._connector.connect_nowait(route)
        except trio.WouldBlock:
            return await self._wait(route, traces, timeouts)
        if traces:
            await _tell_reused(traces, partial(self._portal.order, lease.release))
        return lease

    async def _wait(
        self, route: trioconn.Route, traces: Sequence[Trace], timeouts: ClientTimeout
    ) -> trioconn.Connection:
        """Wait for a connection in a trio task, under aiohttp's timeouts."""
        sock_connect = timeouts.sock_connect
        if sock_connect and sock_connect >= self._connect_timeout:
            sock_connect = None  # our own limit comes first; there is nothing to listen for
        if not (traces or sock_connect or timeouts.connect):
            return await self._asked(route).wait()
        loop = self._loop
        threshold = self._timeout_ceil_threshold
        async with asyncio.timeout_at(when(loop, timeouts.connect, threshold)), asyncio.timeout(None) as attempt:
            watcher = Watcher(loop, attempt, sock_connect, threshold, bool(traces))
            # A timeout that comes at the same moment cancels the call, which then gives the lease back.
            return await watcher.wait(self._asked(route, watcher.observers), traces)

    def _asked(self, route: trioconn.Route, observers: Sequence[Any] = ()) -> Call[trioconn.Connection]:
        return Call(self._portal, partial(self._connector.connect, route, observers=observers), (), _give_back)

    # ---- from one request to the next -------------------------------------------------------------------------------

    def _plan_sweep(self) -> None:
        self._sweep_due = True
        if self._portal.step:
            self._loop.call_later(self._portal.step, self._sweep)
        else:
            self._loop.call_soon(self._sweep)

    def _sweep(self) -> None:
        self._sweep_due = False
        self._release_parked()

    def _unpark(self, lane: _Lane) -> ResponseHandler | None:
        """A parked connection of `lane` that is clean. If there is none, all go to the pool, which knows more."""
        parked = lane.parked
        while parked:
            protocol = parked.pop()
            transport: Any = protocol.transport
            if transport is not None and not protocol.should_close and transport.is_clean():
                if not parked:
                    del self._parked[lane]
                return protocol
            self._transports.discard(transport)
            protocol.close()
        self._release_parked()
        return None

    def _handed_over(self, protocol: ResponseHandler, req: ClientRequest, lane: _Lane) -> AiohttpConnection:
        if lane.forwarded:
            transport: Any = protocol.transport
            _write_for_proxy(req, transport.lease)
        elif not lane.tls:
            req.proxy = None
        return AiohttpConnection(self, lane, protocol, self._loop)  # type: ignore[arg-type]  # the key is our pool's

    def _release_parked(self) -> None:
        """To the pool, those that nobody has asked for."""
        lanes, self._parked = self._parked, {}
        for lane in lanes:
            while lane.parked:
                self._to_pool(lane.parked.pop(0))

    def _to_pool(self, protocol: ResponseHandler) -> None:
        transport: Any = protocol.transport
        if transport is not None:
            self._transports.discard(transport)
            if not protocol.should_close:
                transport.give_back()
            protocol.close()  # which closes the transport if it was not given back

    # ---- routes ------------------------------------------------------------------------------------------------------

    def _lane(self, req: ClientRequest) -> _Lane:
        key = scheme, _ = _key(req)
        lane = self._lanes.get(key)
        if lane is None or self._plans_afresh:
            route = self._planned(req, scheme)
            if lane is None or lane.route != route:
                if len(self._lanes) >= _ROUTES_KEPT:
                    self._lanes.clear()
                parks = self._parks and not route.contexts
                lane = self._lanes[key] = _Lane(route, parks=parks, tls=req.is_ssl())
        return lane

    def _planned(self, req: ClientRequest, scheme: str) -> trioconn.Route:
        url = req.url
        target = _Target(scheme, url.raw_host or "", url.port)
        options: dict[str, Any] = {}
        if req.is_ssl():
            if isinstance(req.ssl, aiohttp.Fingerprint):
                options["ssl"] = trioconn.Fingerprint(req.ssl.fingerprint)
            elif req.ssl is not True:
                options["ssl"] = req.ssl
            if req.server_hostname:
                options["server_hostname"] = req.server_hostname
        if req.proxy is not None:
            options["proxy"] = _proxy(req)
        if req.is_ssl() and not isinstance(req.ssl, ssl_module.SSLContext):
            try:
                return self._connector.route(target, alpn_protocols=_ALPN, **options)
            except TypeError:  # the connector has a context of the user's, which brings its own
                pass
        return self._connector.route(target, **options)

    # ---- the end of a lease, and of all ------------------------------------------------------------------------------

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        transport: Any = protocol.transport
        if transport is None:  # the connection ended by itself
            self._transports = {one for one in self._transports if not one.over}
        elif should_close:
            self._transports.discard(transport)
            protocol.close()
        elif key.parks and not self._waiting and transport.may_park:
            key.parked.append(protocol)
            self._parked[key] = None
            if not self._sweep_due:
                self._plan_sweep()
        else:
            self._to_pool(protocol)

    async def _open(self) -> None:
        """Enter the connector that is ours. One task does it, whoever is cancelled meanwhile."""
        if self._opening is None:
            self._host = Host(self._portal, self._connector)
            self._opening = self._loop.create_task(self._host.enter())
        opening = self._opening
        try:
            await asyncio.shield(opening)
        except trioconn.ConnectorClosedError as error:
            raise aiohttp.ClientConnectionError("Connector is closed.") from error
        self._opening = None
        self._opened = True

    def close(self, *, abort_ssl: bool = False) -> Any:
        """Close all connections of the sessions that use this; and the connector, if it was made here.

        Returns:
          An awaitable, which ends when all is closed. It is to be awaited.
        """
        self._close()
        return self._closed_all(abort_ssl)

    def _close(self, *, abort_ssl: bool = False) -> list[Any]:
        self._closed = True
        self._release_parked()
        for transport in list(self._transports):
            transport.abort()
        self._transports.clear()
        return []

    async def _closed_all(self, abort_ssl: bool) -> None:
        if self._opening is not None:
            await asyncio.wait([self._opening])
        host, self._host = self._host, None
        if host is not None:
            await host.leave(abort_ssl=abort_ssl)

    def __del__(self, _warnings: Any = warnings) -> None:
        if not self._closed and self._host is not None:
            self._closed = True
            _warnings.warn(f"Unclosed connector {self!r}", ResourceWarning, source=self)


def _key(req: ClientRequest) -> tuple[str, Any]:
    """The scheme, and what aiohttp's pool would go by."""
    scheme: str = req.url.scheme or "http"
    # aiohttp lets websockets begin at http URLs. An HTTP proxy forwards no upgrade: to it, they must be ws.
    if scheme == "http" and "Upgrade" in req.headers:
        scheme = "ws"
    return scheme, req.connection_key


async def _tell_reused(traces: Sequence[Trace], give_up: Callable[[], object]) -> None:
    try:
        for trace in traces:
            await trace.send_connection_reuseconn()
    except BaseException:
        give_up()
        raise


def _give_back(lease: trioconn.Connection) -> None:
    lease.release()


def _write_for_proxy(req: ClientRequest, lease: trioconn.Connection) -> None:
    """Have aiohttp write the request as a forwarding proxy needs it."""
    from yarl import URL

    hop = lease.route.proxies[-1]
    req.proxy = URL.build(scheme=hop.scheme, host=hop.host, port=hop.port)
    for name, value in lease.proxy_headers:
        req.headers[name.decode("latin-1")] = value.decode("latin-1")


def _proxy(req: ClientRequest) -> trioconn.Proxy:
    login: Any = req.proxy_auth
    auth = None if login is None else (login.login, login.password)
    headers = [(str(name), str(value)) for name, value in (req.proxy_headers or {}).items()]
    url: Any = req.proxy
    trust = req.ssl if isinstance(req.ssl, ssl_module.SSLContext) and url.scheme == "https" else True
    return trioconn.Proxy(str(url), auth=auth, headers=headers, ssl=trust)
