"""The transport for the httpx family: everything but the names of its two libraries, which the adapters add.

Theory of operation
-------------------
A transport that makes its own connector has to open it when the client is entered and to close it when it is left, and
a connector has a nursery. Clients enter and leave their transports in the same order, one after the other, so their
nurseries would cross, which trio forbids. Therefore an own connector lives in a task of its own, and entering and
leaving only tell that task. It is a system task: it ends with the run at the latest, and with it every connection.

Timeouts. Waiting for a free slot and waiting for a connection are two timeouts, with two exceptions. Which of the two
it is, the connector's events tell: while a dial runs that began during our wait it is the connection, else the slot.
Only a request that found no idle connection listens at all.

A request on a connection that had lain idle may find that the server closed it at that very moment. If not one byte
came back, it is sent again, once, provided that this can do no harm: its method is idempotent (RFC 9110, 9.2.2) or
nothing of it was sent, and its body is at hand.
"""

from __future__ import annotations

import contextvars
import math
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import trio

import trioconn
from trioconn import events

from ._http11 import Checked, Exchange, Failure, HeaderPairs, Trace

if TYPE_CHECKING:
    from trioconn import BaseConnector, Connection, Route

    from ._network_stream import LeasedNetworkStream

SCHEMES = frozenset({"http", "https", "ws", "wss"})
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
_TARGETS_KEPT = 256


class Host:
    """The task in which an own connector lives."""

    def __init__(self, connector: BaseConnector) -> None:
        self._connector = connector
        self._asked_to_leave = trio.Event()
        self._entered = trio.Event()
        self._left = trio.Event()
        self._error: BaseException | None = None
        self._token = trio.lowlevel.current_trio_token()

    async def enter(self) -> None:
        """Have the connector entered. If this raises, or is cancelled, it is left again."""
        trio.lowlevel.spawn_system_task(self._live, name="trioconn transport", context=contextvars.copy_context())
        try:
            await self._entered.wait()
        except BaseException:
            self._asked_to_leave.set()
            raise
        if self._error is not None:
            raise self._error

    async def _live(self) -> None:
        try:
            async with self._connector:
                self._entered.set()
                await self._asked_to_leave.wait()
        except Exception as error:  # a system task that raises ends the run
            self._error = error
        finally:
            self._entered.set()
            self._left.set()

    async def leave(self) -> None:
        """Close the connector, politely; cancelled, at once. When this is over nothing of it is left."""
        if trio.lowlevel.current_trio_token() is not self._token:
            raise RuntimeError("this transport belongs to another trio run")
        try:
            if self._asked_to_leave.is_set():
                await trio.lowlevel.checkpoint()
            else:
                await self._connector.aclose()
        finally:
            self._asked_to_leave.set()
            with trio.CancelScope(shield=True):  # everything is closed: this takes no time
                await self._left.wait()


class Patience:
    """Whether a request waits for a slot or for a connection, and until when. An observer of its connect.

    Attempts are not paired with waiters: one that began while we wait may be for somebody before us. So each is
    followed until its end, and while none runs it is a slot that we wait for.
    """

    __slots__ = ("_connect", "_dials", "_pool", "scope")

    def __init__(self, scope: trio.CancelScope, pool: float | None, connect: float | None) -> None:
        self.scope = scope
        self._pool = math.inf if pool is None else trio.current_time() + pool
        self._connect = math.inf if connect is None else connect
        self._dials: dict[int, float] = {}  # until when the connection may take, by the number of the dial, in order
        # No deadline before we are queued: where there is room no slot is waited for, and a pool timeout of 0 is none.

    @property
    def connecting(self) -> bool:
        """Whether it is a connection that is waited for."""
        return bool(self._dials)

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.DialStarted):
            self._dials[event.dial] = event.at + self._connect
        elif isinstance(event, events.DialFailed | events.DialAborted | events.Created):
            self._dials.pop(event.dial, None)
        elif not isinstance(event, events.Queued):
            return
        self.scope.deadline = next(iter(self._dials.values()), self._pool)


class ResponseStream:
    """The body of a response: iterated once, closed as often as one likes."""

    library: ClassVar[Any]

    def __init__(self, exchange: Exchange, trace: Any, request: Any) -> None:
        self._exchange = exchange
        self._trace: Trace | None = trace
        self._request = request
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._trace is not None and not self._begun:
            await self._trace("http11.receive_response_body.started", {"request": self._request})
        self._begun = True
        try:
            chunk = await self._exchange.receive_body()
        except Failure as failure:
            if self._trace is not None:
                await self._trace("http11.receive_response_body.failed", {"exception": failure})  # noqa: ASYNC120 - as httpx: a trace may wait
            raise translated(self.library, failure) from failure
        if chunk is None:
            if self._trace is not None:
                await self._trace("http11.receive_response_body.complete", {"return_value": None})
                await self.aclose()
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Give up the rest, if there is one."""
        self._exchange.close()
        trace, self._trace = self._trace, None  # closed is told once, whoever comes first
        if trace is not None:
            await trace("http11.response_closed.started", {})
            await trace("http11.response_closed.complete", {"return_value": None})


class TransportBase:
    """An asynchronous transport of the httpx family for HTTP/1.1, whose pool is a connector."""

    library: ClassVar[Any]
    network_stream: ClassVar[type[LeasedNetworkStream]]
    response_stream: ClassVar[type[ResponseStream]]

    def __init__(self, connector: BaseConnector | None = None, **connector_options: Any) -> None:
        if connector is not None and connector_options:
            raise TypeError("a connector has its options already: give either a connector or options for a new one")
        self._owned = connector is None
        self._connector = trioconn.TCPConnector(**connector_options) if connector is None else connector
        self._host: Host | None = None
        # A planned route saves planning's checks; but the environment may change, and so may a context.
        self._plans = self._owned and not connector_options.get("trust_env")
        self._targets: dict[tuple[str, bytes, int | None], str | Route] = {}
        self._checked: Checked = {}

    @property
    def connector(self) -> BaseConnector:
        """The connector: for its `statistics`, say."""
        return self._connector

    async def __aenter__(self) -> Self:
        if self._owned:
            if self._host is not None:
                raise RuntimeError("a transport with a connector of its own is entered once: make another one")
            self._host = Host(self._connector)
            await self._host.enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the transport's own connector and all its connections; one that was borrowed stays open."""
        if self._host is not None:
            await self._host.leave()
        else:
            await trio.lowlevel.checkpoint()

    async def handle_async_request(self, request: Any) -> Any:
        """Send `request` and return its response, with the body still to be read."""
        if self._owned and self._host is None:
            raise RuntimeError(
                "this transport has a connector of its own, which lives as long as the client is open: write "
                "`async with httpx2.AsyncClient(transport=...) as client:`, or give the transport a connector that was "
                "entered already"
            )
        # An idle connection is taken, and written to, without waiting: who was cancelled before must send nothing.
        await trio.lowlevel.checkpoint_if_cancelled()
        extensions = request.extensions
        body = await self._body_of(request.stream)
        try:
            lease = await self._lease(request, extensions)
            try:
                return await self._exchange(lease, request, extensions, body)
            except Failure as failure:
                if not (lease.reused and self._may_repeat(failure, request.method, body)):
                    raise
            lease = await self._lease(request, extensions)
            return await self._exchange(lease, request, extensions, body)
        except Failure as failure:
            raise translated(self.library, failure) from failure

    async def _body_of(self, stream: Any) -> Any:
        if type(stream) is self.library.ByteStream:
            return b"".join(stream)
        return stream

    @staticmethod
    def _may_repeat(failure: Failure, method: str, body: Any) -> bool:
        if not failure.stale or not isinstance(body, bytes):
            return False
        return method in IDEMPOTENT or not failure.sent

    # ---- the lease ---------------------------------------------------------------------------------------------------

    async def _lease(self, request: Any, extensions: Any) -> Connection:
        try:
            target = self._target(request.url)
        except trioconn.ConnectorError as error:
            raise connect_error(self.library, error) from error
        sni = extensions.get("sni_hostname")
        options: Any = {}
        if sni and isinstance(target, str) and target.startswith(("https:", "wss:")):
            options = {"server_hostname": sni.decode("ascii") if isinstance(sni, bytes) else sni}
        try:
            try:
                lease = self._connector.connect_nowait(target, **options)
            except trio.WouldBlock:
                lease = await self._wait_for_lease(request, extensions, target, options)
        except trioconn.ConnectorError as error:
            raise connect_error(self.library, error) from error
        if lease.uses == 1:
            self._check_protocol(lease)
        return lease

    def _target(self, url: Any) -> str | Route:
        origin = (url.scheme, url.raw_host, url.port)
        known = self._targets.get(origin)
        if known is None:
            scheme, raw_host, port = origin
            if scheme not in SCHEMES:
                raise self.library.UnsupportedProtocol(
                    f"Request URL has an unsupported protocol '{scheme}://'."
                    if scheme
                    else "Request URL is missing an 'http://' or 'https://' protocol."
                )
            host = raw_host.decode("ascii")
            if ":" in host:
                host = f"[{host}]"
            known = f"{scheme}://{host}" if port is None else f"{scheme}://{host}:{port}"
            if self._plans and scheme in ("http", "ws"):
                known = self._connector.route(known)
            if len(self._targets) >= _TARGETS_KEPT:
                self._targets.clear()
            self._targets[origin] = known
        return known

    async def _wait_for_lease(self, request: Any, extensions: Any, target: str | Route, options: Any) -> Connection:
        timeouts: dict[str, float | None] = extensions.get("timeout") or {}
        pool, connect = timeouts.get("pool"), timeouts.get("connect")
        trace = extensions.get("trace")
        if trace is not None:
            details: dict[str, Any] = {
                "host": request.url.raw_host.decode("ascii"), "port": request.url.port, "local_address": None,
                "timeout": connect, "socket_options": None,
            }  # fmt: skip
            await trace("connection.connect_tcp.started", details)
        try:
            lease = await self._connect(target, options, pool, connect)
        except Exception as error:  # nothing was taken that would have to be given back
            if trace is not None:
                await self._trace_failure(trace, error)  # noqa: ASYNC120 - as httpx: a trace may wait
            raise
        if trace is not None:
            try:
                await self._trace_connected(trace, lease)
            except BaseException:
                lease.close()
                raise
        return lease

    async def _connect(
        self, target: str | Route, options: Any, pool: float | None, connect: float | None
    ) -> Connection:
        if pool is None and connect is None:
            return await self._connector.connect(target, **options)
        patience = Patience(trio.CancelScope(), pool, connect)
        with patience.scope:
            return await self._connector.connect(target, observers=(patience,), **options)
        if patience.connecting:
            raise self.library.ConnectTimeout(f"no connection to {target} within {connect:g} s")
        raise self.library.PoolTimeout(f"no free connection to {target} within {pool:g} s")

    async def _trace_connected(self, trace: Any, lease: Connection) -> None:
        stream = self.network_stream(lease)
        await trace("connection.connect_tcp.complete", {"return_value": stream})
        if lease.route.is_ssl:
            details = {"ssl_context": None, "server_hostname": lease.route.server_name, "timeout": None}
            await trace("connection.start_tls.started", details)
            await trace("connection.start_tls.complete", {"return_value": stream})

    @staticmethod
    async def _trace_failure(trace: Any, error: BaseException) -> None:
        step = "connect_tcp"
        if isinstance(error, trioconn.TLSError):
            await trace("connection.connect_tcp.complete", {"return_value": None})
            await trace("connection.start_tls.started", {})
            step = "start_tls"
        await trace(f"connection.{step}.failed", {"exception": error})

    def _check_protocol(self, lease: Connection) -> None:
        alpn = lease.info.tls[-1].alpn if lease.route.is_ssl and lease.info.tls else None
        if alpn not in (None, "http/1.1", "http/1.0"):
            lease.close()
            raise self.library.ConnectError(
                f"{lease.route}: TLS agreed on {alpn!r}, and this transport speaks HTTP/1.1 only"
            )

    # ---- the exchange ------------------------------------------------------------------------------------------------

    async def _exchange(self, lease: Connection, request: Any, extensions: Any, body: Any) -> Any:
        try:
            timeouts: dict[str, float | None] = extensions.get("timeout") or {}
            trace = extensions.get("trace")
            url = request.url
            headers: HeaderPairs = request.headers.raw
            target: bytes = extensions.get("target") or url.raw_path
            if lease.forwarded:
                if target.startswith(b"/"):
                    target = b"%s://%s%s" % (url.raw_scheme, url.netloc, target)
                headers = merged(lease.proxy_headers, headers)
            exchange = Exchange(
                lease,
                read=timeouts.get("read"),
                write=timeouts.get("write"),
                trace=trace,
                request=request,
                checked=self._checked,
            )
            stream = self.network_stream(lease)
            head = await exchange.run(request.method.encode("ascii"), target, headers, body)
            return self.library.Response(
                status_code=head.status,
                headers=head.headers,
                stream=self.response_stream(exchange, trace, request),
                extensions={
                    "http_version": head.version,
                    "reason_phrase": head.reason,
                    "network_stream": self.network_stream(lease, leading=head.leading) if head.upgraded else stream,
                },
            )
        except BaseException:
            lease.close()
            raise


def merged(proxy_headers: tuple[tuple[bytes, bytes], ...], headers: HeaderPairs) -> HeaderPairs:
    """What the proxy needs, unless the request says otherwise, and the request's own."""
    own = {name.lower() for name, _ in headers}
    return [pair for pair in proxy_headers if pair[0].lower() not in own] + headers


def translated(library: Any, failure: Failure) -> BaseException:
    """`failure` as the library's exception."""
    return cast("BaseException", getattr(library, failure.kind)(str(failure)))


def connect_error(library: Any, error: trioconn.ConnectorError) -> BaseException:
    """What the library raises where our connector raises `error`."""
    kind = "ConnectError"
    if isinstance(error, trioconn.InvalidTargetError):
        kind = "LocalProtocolError"  # the same request would fail again: nothing that is worth a retry
    elif isinstance(error, trioconn.ConnectTimeoutError):
        kind = "ConnectTimeout"
    elif isinstance(error, trioconn.ProxyRefusedError) or (
        isinstance(error, trioconn.ProxyError) and error.stage == "proxy"
    ):
        kind = "ProxyError"
    return cast("BaseException", getattr(library, kind)(str(error)))
