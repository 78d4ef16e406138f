"""`BaseConnector`: what users see of the pool, and what they subclass. `_shell.py` does the work."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from inspect import iscoroutinefunction
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, TypedDict, Unpack, cast

import trio
from trio.lowlevel import current_trio_token, enable_ki_protection

from . import events
from ._connection import Connection, place
from ._errors import ConnectorClosedError
from ._establish.foreign import foreign_is_clean, poolable
from ._establish.plan import NETWORK_SCHEMES, NO_OPTIONS, Options, Settings, plan
from ._observing import Audience, check_observers
from ._pool import Pool
from ._route import Route, check_current
from ._shell import Habits, Shell
from ._statistics import ConnectorStatistics, HostStatistics, LeaseInfo

if TYPE_CHECKING:
    from ._attempt import Dialler, ProtocolFactory
    from ._connection import Held
    from ._establish.plan import ProxyOption, SSLOption
    from ._observing import Observer
    from ._proxy import Headers
    from ._route import Endpoint, Isolation
    from ._waiter import AnyRecord


class RouteOptions(TypedDict, total=False):
    """The options that ``connect`` and its like take besides the target. `BaseConnector.route` tells what they mean."""

    proxy: ProxyOption | None
    proxy_headers: Headers | None
    ssl: SSLOption | None
    server_hostname: str | None
    alpn_protocols: Sequence[str] | None
    local_addr: tuple[str, int] | None
    isolation: Isolation | None


_PLANS_KEPT = 256
_FRAMES_KEPT = 12
_CLEANUP_CLOSED_AFTER = 2.0  # seconds; aiohttp's figure for enable_cleanup_closed


class BaseConnector:
    """A pool of connections, shared fairly. Subclass it, with `create_stream`, for a transport of your own.

    Use it as ``async with connector:``. It belongs to the trio run that enters it, and is entered once. Leaving the
    block closes everything: afterwards no task and no socket of it is left.

    Args:
      keepalive_timeout: seconds for which an idle connection is kept; None for ever, 0 not at all.
      force_close: close every connection after its lease.
      limit: how many connections may be open, attempts included; 0 or None for any number.
      limit_per_host: how many per endpoint (host, port, TLS); 0 or None for any number.
      enable_cleanup_closed: drop a TLS peer that leaves our close_notify unanswered after 2 seconds, even where
        ``ssl_shutdown_timeout`` is longer.
      timeout_ceil_threshold: seconds; a ``connect_timeout`` above it ends on the clock's next whole second.
      connect_timeout: seconds that one attempt may take, from the start of its task to its last step; None for any
        time. Waiting for a free slot is not part of it.
      max_lifetime: seconds after which a connection is not handed out again; None for any age.
      lifetime_jitter: the part of a lifetime, 0 to 1, by which it is shortened at random, so that connections which
        were made together do not end together.
      max_uses: after how many leases a connection is closed; None for any number.
      protocol_factory: ``async (stream, route) -> T``, the last step of making a connection: a greeting, a login. T is
        `Connection.protocol` on every lease; if it has a true ``should_close`` at release, the connection is closed.
      observers: callables that get every event of `trioconn.events`.
      track_leases: keep the stack of each lease, for `leases`.

    Raises:
      ValueError: a number is negative, or not a number.
      TypeError: an option is of the wrong type, or does not exist.
    """

    schemes: ClassVar[frozenset[str]] = NETWORK_SCHEMES
    """The schemes of targets that it takes."""

    def __init__(
        self,
        *,
        keepalive_timeout: float | None = 15.0,
        force_close: bool = False,
        limit: int | None = 100,
        limit_per_host: int | None = 0,
        enable_cleanup_closed: bool = False,
        timeout_ceil_threshold: float = 5,
        connect_timeout: float | None = 30.0,
        max_lifetime: float | None = None,
        lifetime_jitter: float = 0.1,
        max_uses: int | None = None,
        protocol_factory: ProtocolFactory | None = None,
        observers: Iterable[Observer] = (),
        track_leases: bool = False,
        **unknown: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, unknown)
        grace = self._grace
        if protocol_factory is not None and not callable(protocol_factory):
            raise TypeError(f"protocol_factory must be callable, not a {type(protocol_factory).__name__}")
        check_synchronous("is_clean", self.is_clean)
        if check_seconds("lifetime_jitter", lifetime_jitter) > 1:
            raise ValueError(f"lifetime_jitter is the part of a lifetime from 0 to 1, not {lifetime_jitter}")
        if max_uses is not None and check_count("max_uses", max_uses) == 0:
            raise ValueError("max_uses must be at least 1; force_close=True closes each connection after its lease")
        self._limit = check_count("limit", limit)
        self._limit_per_host = check_count("limit_per_host", limit_per_host)
        self._force_close = bool(force_close)
        self._attentive = bool(track_leases)
        self._shell = Shell(
            Pool(
                limit=self._limit,
                limit_per_host=self._limit_per_host,
                keepalive_timeout=check_optional_seconds("keepalive_timeout", keepalive_timeout),
                max_uses=max_uses,
                force_close=self._force_close,
                endpoint_of=_endpoint_of,
            ),
            Habits(
                dial=self._dialler(),
                judge=self.is_clean if type(self).is_clean is not BaseConnector.is_clean else None,
                protocol_factory=protocol_factory,
                connect_timeout=check_optional_seconds("connect_timeout", connect_timeout),
                ceil_threshold=check_seconds("timeout_ceil_threshold", timeout_ceil_threshold),
                max_lifetime=check_optional_seconds("max_lifetime", max_lifetime),
                jitter=lifetime_jitter,
                grace=min(grace, _CLEANUP_CLOSED_AFTER) if enable_cleanup_closed else grace,
                harvest=self._harvester(),
            ),
            Audience(observers, always=self._attentive),
        )
        self._maker = object()
        self._settings = self._planning()
        self._plans: dict[str, Route] = {}
        self._entered = False

    # ---- what our own connectors choose differently; users' subclasses have create_stream and is_clean ---------------

    def _dialler(self) -> Dialler:
        async def dial(route: Route, dialling: object) -> trio.abc.Stream:
            return await self.create_stream(route)

        return dial

    def _planning(self) -> Settings:
        return Settings(kind="custom", schemes=self.schemes, maker=self._maker)

    _grace = 0.25  # seconds; what start_tls() made for a custom connector can say goodbye, too

    def _harvester(self) -> Callable[[Held], bool] | None:
        return None  # what keeps TLS sessions at release

    def _opened(self, nursery: trio.Nursery) -> None:
        pass

    def _shut(self) -> None:
        pass

    async def _close_resolver(self) -> None:
        pass

    # ---- for subclasses ----------------------------------------------------------------------------------------------

    async def create_stream(self, route: Route) -> trio.abc.Stream:
        """Make a finished stream to where `route` leads, TLS included: ``await trioconn.start_tls(stream, route)``.

        Called in a task of the connector. It may be cancelled, and then must leave nothing open. An OSError becomes a
        `ConnectError`; other exceptions reach the waiting caller unchanged.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement create_stream(route)")

    def is_clean(self, stream: trio.abc.Stream) -> bool:
        """Whether `stream`, as `create_stream` returned it, may serve somebody else. Must not block.

        Asked when it is released, when it is handed out, and when a waiter that was granted it resumes. The default
        asks the ``probe()`` of our own streams; of others it knows only that a readable `trio.SocketStream` is not
        clean.
        """
        ours = poolable(stream)
        return foreign_is_clean(stream) if ours is None else ours.probe()

    # ---- life --------------------------------------------------------------------------------------------------------

    # Protected: an interrupt between the nursery and our hold of it would leave it open.
    @enable_ki_protection
    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a connector is entered once: make another one")
        self._entered = True
        self._opened(await self._shell.enter())
        return self

    @enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        leaving = error
        try:
            if error is None:
                await self.aclose()
        except BaseException as interrupted:
            leaving = interrupted
            raise
        finally:
            try:
                self._shut()
                await self._shell.leave(leaving)  # noqa: ASYNC102 - it cancels all it waits for
            finally:
                # Where aclose() has not: forcefully, there is no time left.
                with trio.CancelScope(shield=True) as scope:
                    scope.cancel()
                    await self._close_resolver()
            del leaving  # it has this frame in its traceback

    async def aclose(self, abort_ssl: bool = False) -> None:
        """Close everything: waiters get `ConnectorClosedError`, attempts are cancelled, all connections closed.

        The body of ``async with connector`` is not cancelled. Connections with TLS say close_notify and wait at most
        ``ssl_shutdown_timeout`` for the answer, all at the same time; with `abort_ssl` they do not. If it is cancelled,
        everything is closed all the same, at once. It may be called again.
        """
        self._check_run()
        self._shut()
        await self._shell.close(polite=not abort_ssl)
        await self._close_resolver()

    def __enter__(self) -> NoReturn:
        raise TypeError("a connector is asynchronous: write `async with connector:`")

    def __exit__(self, *args: object) -> None:
        raise TypeError("a connector is asynchronous: write `async with connector:`")

    if not TYPE_CHECKING:  # pragma: no branch - always so while it runs

        def __getattr__(self, name: str) -> NoReturn:
            hint = ": write `await connector.aclose()`" if name == "close" else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    def _check_run(self) -> None:
        shell = self._shell
        if shell.token is None:
            raise RuntimeError("this connector was not entered: use it inside `async with connector:`")
        try:
            token = current_trio_token()
        except RuntimeError:  # not in trio at all
            token = None
        if token is not shell.token:
            raise RuntimeError("this connector belongs to another trio run or thread: make one for each run")
        if shell.audience.telling:
            raise RuntimeError("an observer must not call its connector: have a task do it")

    def _check_open(self) -> None:
        self._check_run()
        if self._shell.closed:
            raise ConnectorClosedError("the connector was closed")

    # ---- properties --------------------------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """How many connections may be open, 0 for any number."""
        return self._limit

    @property
    def limit_per_host(self) -> int:
        """How many connections may be open per endpoint, 0 for any number."""
        return self._limit_per_host

    @property
    def force_close(self) -> bool:
        """Whether every connection is closed after its lease."""
        return self._force_close

    @property
    def closed(self) -> bool:
        """Whether the connector was closed."""
        return self._shell.closed

    def __repr__(self) -> str:
        pool = self._shell.pool
        state = "closed" if self.closed else "open" if self._entered else "not entered"
        return (
            f"<{type(self).__name__}, {state}: {pool.leased} leased, {pool.idle} idle, {pool.connecting} connecting, "
            f"{pool.waiting} waiting>"
        )

    # ---- planning ----------------------------------------------------------------------------------------------------

    def route(
        self,
        target: object,
        *,
        proxy: ProxyOption | None = None,
        proxy_headers: Headers | None = None,
        ssl: SSLOption | None = None,
        server_hostname: str | None = None,
        alpn_protocols: Sequence[str] | None = None,
        local_addr: tuple[str, int] | None = None,
        isolation: Isolation | None = None,
    ) -> Route:
        """Plan the way to `target` once, without I/O. `connect` with the route then runs at full speed.

        Args:
          target: a URL, or anything with ``.scheme``, ``.host`` and ``.port``.
          proxy: a URL, a `Proxy`, or a sequence of these, the first one dialled; ``()`` for none. Here and below, None
            means: as the connector.
          proxy_headers: header fields for the one HTTP proxy on the way.
          ssl: how the target is trusted: True verified, False not verified (never "no TLS": the scheme decides
            that), an `ssl.SSLContext`, or a `Fingerprint`.
          server_hostname: the name for SNI and verification, if it is not the host of the target.
          alpn_protocols: what is offered, with contexts that we make.
          local_addr: (IP address, port) to bind to.
          isolation: connections are never shared between two different values: str, bytes, int, or tuples of these.

        Raises:
          InvalidTargetError: the target is malformed, or an option cannot be honoured on this way.
          TypeError: an option is of the wrong type.
        """
        if isinstance(target, Route):
            raise TypeError("this is a Route already: give it to connect()")
        options = Options(
            proxy=proxy,
            proxy_headers=proxy_headers,
            ssl=ssl,
            server_hostname=server_hostname,
            alpn_protocols=alpn_protocols,
            local_addr=local_addr,
            isolation=isolation,
        )
        return self._plan(target, options)

    def _plan(self, target: object, options: Options) -> Route:
        if isinstance(target, Route):
            if options != NO_OPTIONS:
                raise TypeError("a Route has its options inside: give them to connector.route()")
            if target.maker is not self._maker:
                raise TypeError("this Route was made by another connector: make it with this one's route()")
            check_current(target)
            return target
        if not isinstance(target, str) or options != NO_OPTIONS or self._settings.trust_env:
            return plan(self._settings, target, options)
        known = self._plans.get(target)
        if known is None or any(known.changed_contexts()):
            known = plan(self._settings, target)
            if len(self._plans) >= _PLANS_KEPT:
                self._plans.clear()
            self._plans[target] = known
        return known

    # ---- leases ------------------------------------------------------------------------------------------------------

    @enable_ki_protection
    async def connect(
        self, target: object, *, observers: Iterable[Observer] = (), **options: Unpack[RouteOptions]
    ) -> Connection:
        """A lease of a connection to `target`: an idle one, or else the first that is made or becomes free.

        Put `trio.fail_after` around it for a deadline. If it is cancelled, no connection is lost and no slot taken.

        Args:
          target: a URL, anything with ``.scheme``, ``.host`` and ``.port``, or a `Route` of this connector; with a
            route only `observers` may be given besides.
          observers: callables that get the events of this call and, while it waits, those of every attempt of its
            route.
          options: ``proxy``, ``proxy_headers``, ``ssl``, ``server_hostname``, ``alpn_protocols``, ``local_addr`` and
            ``isolation``, as for `route`.

        Raises:
          InvalidTargetError: before any I/O: the target is malformed, or an option cannot be honoured.
          TypeError: before any I/O: an option is of the wrong type, or the route is another connector's.
          ConnectError: no connection could be made: its class, ``stage``, ``hop`` and ``errno`` say where it ended.
          ConnectorClosedError: the connector was closed, before or meanwhile.
          RuntimeError: the connector was not entered, or this is another run.
        """
        shell = self._shell
        if shell.audience.active or current_trio_token() is not shell.admits:
            self._check_open()
        # The test for the hot path, here and in connect_nowait: a route of ours that nothing can have changed.
        if type(target) is Route and not options and target.maker is self._maker and not target.contexts:
            route = target
        else:
            route = self._plan(target, Options(**options))
        hearing = check_observers(observers) if observers else ()
        record = None
        if shell.pool.idle:
            # The checkpoint comes first: nothing has been taken yet that a cancellation could lose.
            await trio.lowlevel.checkpoint()
            if shell.closed:
                raise ConnectorClosedError("the connector was closed")
            record = shell.take(route)
        else:  # there is nothing to take, and to wait is a checkpoint
            await trio.lowlevel.checkpoint_if_cancelled()
        frame = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented, and cheap
        code, offset = frame.f_code, frame.f_lasti
        del frame
        if record is None:
            record = await shell.wait(route, hearing)
        if route.contexts:
            # Again: other tasks ran meanwhile, and may have changed what this one asked for.
            try:
                check_current(route)
            except BaseException:
                shell.drop(record, "error")
                raise
        held = record.connection
        held.code, held.offset = code, offset
        lease = Connection(shell, record, held)
        if hearing or shell.audience.active:
            self._handed_out(record, route, hearing)
        return lease

    @enable_ki_protection
    def connect_nowait(
        self, target: object, *, observers: Iterable[Observer] = (), **options: Unpack[RouteOptions]
    ) -> Connection:
        """A lease of an idle connection to `target`. It never opens one. The arguments are those of `connect`.

        Raises:
          trio.WouldBlock: there is no idle connection.
          InvalidTargetError: the target is malformed, or an option cannot be honoured.
          TypeError: an option is of the wrong type, or the route is another connector's.
          ConnectorClosedError: the connector was closed.
          RuntimeError: the connector was not entered, or this is another run.
        """
        shell = self._shell
        watched = shell.audience.active
        if watched or current_trio_token() is not shell.admits:
            self._check_open()
        if type(target) is Route and not options and target.maker is self._maker and not target.contexts:
            route = target
        else:
            route = self._plan(target, Options(**options))
        hearing = check_observers(observers) if observers else ()  # before anything is taken, for it may raise
        record = shell.take(route)
        if record is None:
            raise trio.WouldBlock
        frame = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented, and cheap
        held = record.connection
        held.code, held.offset = frame.f_code, frame.f_lasti
        lease = Connection(shell, record, held)
        if hearing or watched:
            self._handed_out(record, route, hearing)
        return lease

    async def prewarm(self, target: object, n: int, **options: Unpack[RouteOptions]) -> None:
        """Make connections to `target` ahead of need, until there are `n`, into free room only.

        Returns when the route holds `n` connections, leased and idle, or no more could be started. Cancelling it does
        not stop the attempts: what they make becomes idle.

        Args:
          target: as for `connect`, and so are the options.
          n: how many.

        Raises:
          ConnectError: fewer came; this is the first error.
          ConnectorClosedError: the connector was closed, before or meanwhile.
        """
        self._check_open()
        route = self._plan(target, Options(**options))
        count = check_count("n", n)
        await trio.lowlevel.checkpoint()
        if self._shell.closed:
            raise ConnectorClosedError("the connector was closed")
        await self._shell.prewarm(route, count)

    def _handed_out(self, record: AnyRecord, route: Route, observers: Sequence[Observer]) -> None:
        held = record.connection
        if self._attentive:
            stack = traceback.extract_stack(limit=_FRAMES_KEPT)[:-2]
            held.stack = "".join(traceback.format_list(stack))
        if record.uses > 1:
            event = events.Reused(
                at=held.leased_at,
                route=route,
                connection=held.number,
                uses=record.uses,
                idle=held.leased_at - record.idle_since,
            )
            self._shell.audience.tell_lease(event, observers)

    # ---- questions ---------------------------------------------------------------------------------------------------

    def statistics(self) -> ConnectorStatistics:
        """The present state and the totals. Goes through all routes: not for the path of each request."""
        shell = self._shell
        pool = shell.pool
        waits: Mapping[Hashable, float] = pool.oldest_waits(trio.current_time()) if pool.waiting else {}
        hosts = {
            cast("Endpoint", endpoint): HostStatistics(**counts._asdict(), oldest_wait=waits.get(endpoint, 0.0))
            for endpoint, counts in pool.endpoints().items()
        }
        return ConnectorStatistics(
            limit=self._limit,
            limit_per_host=self._limit_per_host,
            open=pool.open,
            leased=pool.leased,
            idle=pool.idle,
            connecting=pool.connecting,
            waiting=pool.waiting,
            oldest_wait=max(waits.values(), default=0.0),
            created=shell.created,
            reused=shell.reused,
            resumed=shell.resumed,
            aborted=shell.aborted,
            failed=MappingProxyType(dict(shell.failed)),
            closed=MappingProxyType(dict(shell.closed_by)),
            hosts=MappingProxyType(hosts),
        )

    def leases(self) -> list[LeaseInfo]:
        """What is leased at this moment, the longest held first. With ``track_leases=True`` each has its stack."""
        self._check_run()
        now = trio.current_time()
        held = sorted((record.connection for record in self._shell.pool.leases()), key=lambda one: one.leased_at)
        return [
            LeaseInfo(
                number=one.number, route=one.route, seconds=now - one.leased_at, where=place(one.where), stack=one.stack
            )
            for one in held
        ]


def _endpoint_of(route: Route) -> Endpoint:
    return route.endpoint


def refuse_unknown(name: str, unknown: Mapping[str, object]) -> None:
    """Raise for keyword arguments that do not exist, with a hint for those that aiohttp has.

    Raises:
      TypeError: there are any.
    """
    for argument in unknown:
        hint = ": it lives in the trio run that enters it, leave it out" if argument == "loop" else ""
        raise TypeError(f"{name}() got an unexpected keyword argument {argument!r}{hint}")


def check_synchronous(name: str, f: Callable[..., object]) -> None:
    """Refuse a coroutine function where an answer is needed at once: the coroutine it returns would pass for a yes.

    Raises:
      TypeError: it is one.
    """
    if iscoroutinefunction(f):
        raise TypeError(f"{name} must answer at once: make it a plain function, not an async one")


def check_count(name: str, value: object) -> int:
    """A number of things; None is 0.

    Raises:
      ValueError: it is negative, or not a number.
      TypeError: it is no int.
    """
    if value is None:
        return 0
    if isinstance(value, int | float) and not value >= 0:  # NaN, too
        raise ValueError(f"{name} must not be negative: {value}")
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int or None, not {value!r}")
    return value


def check_seconds(name: str, value: object) -> float:
    """A number of seconds, infinity included.

    Raises:
      ValueError: it is negative, or not a number.
      TypeError: it is no number.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not value >= 0:
        raise ValueError(f"{name} must be a number of seconds from 0 up: {value}")
    return value


def check_optional_seconds(name: str, value: object) -> float | None:
    """As `check_seconds`; None stays None.

    Raises:
      ValueError: it is negative, or not a number.
      TypeError: it is no number.
    """
    return None if value is None else check_seconds(name, value)
