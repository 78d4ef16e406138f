"""The connectors for TCP, Unix sockets and Windows named pipes: each chooses how to dial, and what its routes are."""

from __future__ import annotations

import os
import socket
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import trio

from ._connector import BaseConnector, check_count, check_optional_seconds, check_synchronous
from ._establish.addresses import History
from ._establish.dial import Kit, dial, tls_layers
from ._establish.dns_cache import DNSCache
from ._establish.named_pipe import check_pipe_path, require_named_pipes
from ._establish.plan import (
    NETWORK_SCHEMES,
    ProxyOption,
    Settings,
    SSLOption,
    check_local_addr,
    check_proxies,
    one_ssl_option,
)
from ._establish.policy import AddressPolicy, judge
from ._establish.resolve import Lookups, Resolver
from ._establish.system_resolver import SystemResolver
from ._establish.tcp import TCPOptions
from ._establish.tls_sessions import SessionStore
from ._establish.unix import check_unix_path

if TYPE_CHECKING:
    import ssl as ssl_module

    from ._attempt import Dialler
    from ._connection import Held
    from ._establish.tcp import AddrInfo
    from ._route import Fingerprint, Route


class _OwnConnector(BaseConnector):
    """What our own connectors have in common: they dial from the route, and keep TLS sessions."""

    def __init__(
        self,
        *,
        ssl: SSLOption,
        verify_ssl: bool | None,
        fingerprint: bytes | Fingerprint | None,
        ssl_context: ssl_module.SSLContext | None,
        ssl_shutdown_timeout: float | None,
        tls_sessions: bool,
        **options: Any,
    ) -> None:
        self._ssl = one_ssl_option(ssl, verify_ssl, fingerprint, ssl_context)
        self._sessions = SessionStore() if tls_sessions else None
        grace = check_optional_seconds("ssl_shutdown_timeout", ssl_shutdown_timeout)
        self._grace = 0.0 if grace is None else grace
        super().__init__(**options)

    def _kit(self) -> Kit:
        return Kit(sessions=self._sessions)

    def _dialler(self) -> Dialler:
        return partial(dial, self._kit())

    def _harvester(self) -> Callable[[Held], bool] | None:
        return None if self._sessions is None else partial(_harvest, self._sessions)

    async def create_stream(self, route: Route) -> trio.abc.Stream:
        """Not for this connector: it dials by itself. Subclass `BaseConnector` for a transport of your own."""
        raise NotImplementedError(f"{type(self).__name__} dials by itself: subclass BaseConnector instead")


def _harvest(sessions: SessionStore, held: Held) -> bool:
    route = held.route
    # A list, so that every layer is asked.
    done = [sessions.harvest((route, hop), layer) for hop, layer in tls_layers(held.stream, route)]
    return all(done)


class TCPConnector(_OwnConnector):
    """A pool of TCP connections, with TLS and through proxies where the target asks for it.

    It takes the options of `BaseConnector` besides its own.

    Args:
      family: only addresses of this family: `socket.AF_INET`, `socket.AF_INET6`, or 0 for both.
      ssl: how targets are trusted: True verified, False not verified, an `ssl.SSLContext`, or a `Fingerprint`.
      verify_ssl: the older spelling of True and False. At most one of the four may be given.
      fingerprint: the older spelling of a `Fingerprint`: a SHA-256 digest.
      ssl_context: the older spelling of a context.
      local_addr: (IP address, port) to bind to.
      resolver: turns names into addresses; yours to close. Default: a `SystemResolver` of its own.
      use_dns_cache: keep addresses; False asks for each connection. Lookups at the same time are shared either way.
      ttl_dns_cache: seconds to keep addresses of resolvers that know no TTL; None for ever, 0 not at all.
      dns_cache_max_size: how many questions are kept; the least recently used go first.
      happy_eyeballs_delay: seconds after which the next address is tried besides (RFC 8305); None: one after the other.
      interleave: how many addresses of the first family come before one of the other (RFC 8305's First Address Family
        Count); None: 1, or no interleaving with ``happy_eyeballs_delay=None``; 0: none.
      socket_factory: ``f(addr_info) -> socket.socket``, called for each attempt with the tuple of ``getaddrinfo``.
      ssl_shutdown_timeout: seconds that a polite closing waits for the peer's close_notify; 0: TLS just ends.
      proxy: a URL, a `Proxy`, or a sequence of these: the way to every target; ``()`` for none whatever the environment
        says.
      trust_env: choose the proxy by the environment's variables if `proxy` is None; see `proxy_for`.
      address_policy: ``f(host, address) -> bool``, asked for each address before it is dialled. See
        `public_addresses_only`.
      tls_sessions: resume TLS sessions, under the full key of the route.

    Raises:
      ValueError: a number is out of range, or more than one way to say how targets are trusted was given.
      TypeError: an option is of the wrong type, or does not exist.
      InvalidTargetError: the proxy or the local address cannot be used.
    """

    def __init__(
        self,
        *,
        family: int = 0,
        ssl: SSLOption = True,
        verify_ssl: bool | None = None,
        fingerprint: bytes | Fingerprint | None = None,
        ssl_context: ssl_module.SSLContext | None = None,
        local_addr: tuple[str, int] | None = None,
        resolver: Resolver | None = None,
        use_dns_cache: bool = True,
        ttl_dns_cache: float | None = 10,
        dns_cache_max_size: int = 1000,
        happy_eyeballs_delay: float | None = 0.25,
        interleave: int | None = None,
        socket_factory: Callable[[AddrInfo], socket.socket] | None = None,
        ssl_shutdown_timeout: float | None = 0.25,
        proxy: ProxyOption | None = None,
        trust_env: bool = False,
        address_policy: AddressPolicy | None = None,
        tls_sessions: bool = True,
        **options: Any,
    ) -> None:
        if family not in (0, socket.AF_INET, socket.AF_INET6):
            raise ValueError(f"family must be AF_INET, AF_INET6 or 0 for both, not {family!r}")
        if interleave is not None:
            check_count("interleave", interleave)
        for name, value in (("socket_factory", socket_factory), ("address_policy", address_policy)):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be callable, not a {type(value).__name__}")
        if address_policy is not None:
            check_synchronous("address_policy", address_policy)
        if resolver is not None and not isinstance(resolver, Resolver):
            raise TypeError(f"resolver must be a trioconn.Resolver, not a {type(resolver).__name__}")
        self._family = family
        self._use_dns_cache = bool(use_dns_cache)
        cache = DNSCache(
            ttl=check_optional_seconds("ttl_dns_cache", ttl_dns_cache),
            max_size=check_count("dns_cache_max_size", dns_cache_max_size),
        )
        self._own_resolver: Resolver | None = None
        if resolver is None:
            resolver = self._own_resolver = SystemResolver()
        self._lookups = Lookups(resolver, cache=cache if use_dns_cache else None)
        self._history = History()
        self._tcp = TCPOptions(
            lookups=self._lookups,
            history=self._history,
            family=family,
            happy_eyeballs_delay=check_optional_seconds("happy_eyeballs_delay", happy_eyeballs_delay),
            interleave=interleave,
            socket_factory=socket_factory,
            address_policy=address_policy,
        )
        self._proxies = None if proxy is None else check_proxies(proxy)
        self._trust_env = bool(trust_env)
        self._local_addr = None if local_addr is None else check_local_addr(local_addr)
        super().__init__(
            ssl=ssl,
            verify_ssl=verify_ssl,
            fingerprint=fingerprint,
            ssl_context=ssl_context,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            tls_sessions=tls_sessions,
            **options,
        )

    def _kit(self) -> Kit:
        return Kit(tcp=self._tcp, sessions=self._sessions)

    def _planning(self) -> Settings:
        policy = self._tcp.address_policy
        return Settings(
            kind="tcp",
            schemes=self.schemes,
            maker=self._maker,
            ssl=self._ssl,
            proxies=self._proxies,
            trust_env=self._trust_env,
            local_addr=self._local_addr,
            judge=None if policy is None else partial(judge, policy),
        )

    def _opened(self, nursery: trio.Nursery) -> None:
        self._lookups.start(nursery)

    def _shut(self) -> None:
        self._lookups.close()

    async def _close_resolver(self) -> None:
        resolver, self._own_resolver = self._own_resolver, None
        if resolver is not None:
            await resolver.aclose()

    @property
    def family(self) -> int:
        """The only family of addresses that is used, 0 for both."""
        return self._family

    @property
    def use_dns_cache(self) -> bool:
        """Whether addresses are kept."""
        return self._use_dns_cache

    def clear_dns_cache(self, host: str | None = None, port: int | None = None) -> None:
        """Forget the addresses of `host`, or of all hosts. Connections and lookups under way go on.

        Args:
          host: a name; unknown ones are ignored.
          port: for those who come from aiohttp, where the cache is kept by host and port. Here a name is looked up once
            for all its ports, so that is what is forgotten; but a port without a host is a mistake.

        Raises:
          ValueError: there is a port and no host.
        """
        if host is None and port is not None:
            raise ValueError("clear_dns_cache takes a host, or a host and a port, or nothing: not a port alone")
        self._lookups.clear(host)


class _PathConnector(_OwnConnector):
    """All its connections go to one path, which is that of a Unix socket or of a named pipe."""

    _kind: ClassVar[Literal["unix", "npipe"]]

    def __init__(
        self,
        path: str | bytes | os.PathLike[str],
        *,
        ssl: SSLOption = True,
        verify_ssl: bool | None = None,
        fingerprint: bytes | Fingerprint | None = None,
        ssl_context: ssl_module.SSLContext | None = None,
        ssl_shutdown_timeout: float | None = 0.25,
        tls_sessions: bool = True,
        **options: Any,
    ) -> None:
        self._path = self._judged(path)
        super().__init__(
            ssl=ssl,
            verify_ssl=verify_ssl,
            fingerprint=fingerprint,
            ssl_context=ssl_context,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            tls_sessions=tls_sessions,
            **options,
        )

    @abstractmethod
    def _judged(self, path: Any) -> str:
        """The path in its one form. Raises if this system has nothing of the kind, or the path is not one of it."""

    def _planning(self) -> Settings:
        return Settings(kind=self._kind, schemes=self.schemes, maker=self._maker, ssl=self._ssl, path=self._path)

    @property
    def path(self) -> str:
        """The path of the socket, or of the pipe."""
        return self._path


class UnixConnector(_PathConnector):
    """A pool of connections to one Unix socket. It takes the options of `BaseConnector`, and those about TLS.

    All targets lead to the socket; host and port of a target say only whose name TLS verifies.

    Args:
      path: of the socket, made absolute when the connector is made; a Linux abstract name begins with NUL.
      ssl, verify_ssl, fingerprint, ssl_context, ssl_shutdown_timeout, tls_sessions: as for `TCPConnector`.

    Raises:
      InvalidTargetError: the path cannot be one of a socket.
      NotImplementedError: the system has no Unix sockets.
    """

    schemes: ClassVar[frozenset[str]] = NETWORK_SCHEMES | {"unix"}
    _kind = "unix"

    def _judged(self, path: Any) -> str:
        if not hasattr(socket, "AF_UNIX"):
            raise NotImplementedError("this system has no Unix sockets")
        return check_unix_path(path)


class NamedPipeConnector(_PathConnector):
    r"""A pool of connections to one Windows named pipe. It takes the options of `BaseConnector`, and those about TLS.

    While all instances of the pipe are busy an attempt waits, within ``connect_timeout``. The server may learn who we
    are, and cannot act in our name.

    Args:
      path: ``\\.\pipe\name``.
      allow_remote: take ``\\server\pipe\name``, too.
      ssl, verify_ssl, fingerprint, ssl_context, ssl_shutdown_timeout, tls_sessions: as for `TCPConnector`.

    Raises:
      InvalidTargetError: the path cannot be one of a pipe.
      NotImplementedError: this is not Windows.
    """

    schemes: ClassVar[frozenset[str]] = NETWORK_SCHEMES | {"npipe"}
    _kind = "npipe"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        allow_remote: bool = False,
        ssl: SSLOption = True,
        verify_ssl: bool | None = None,
        fingerprint: bytes | Fingerprint | None = None,
        ssl_context: ssl_module.SSLContext | None = None,
        ssl_shutdown_timeout: float | None = 0.25,
        tls_sessions: bool = True,
        **options: Any,
    ) -> None:
        self._allow_remote = allow_remote
        super().__init__(
            path,
            ssl=ssl,
            verify_ssl=verify_ssl,
            fingerprint=fingerprint,
            ssl_context=ssl_context,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            tls_sessions=tls_sessions,
            **options,
        )
        require_named_pipes()  # at the end, so that a mistake in the options is found on every system

    def _judged(self, path: Any) -> str:
        return check_pipe_path(path, allow_remote=self._allow_remote)
