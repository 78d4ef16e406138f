"""A resolver that speaks DNS itself, by dnspython: it learns the TTLs and needs no threads.

It knows the DNS and the hosts file; mDNS and other sources of the system it does not know. Both questions go out at
once, AAAA first (RFC 8305 section 3). Which one is sent first is not left to the scheduler: trio shuffles tasks, so
the question for A waits until the one for AAAA is on the wire.
"""

from __future__ import annotations

import importlib
import socket
from typing import TYPE_CHECKING, Any, Self, cast

import trio

from .._errors import ResolveError, shown
from .dns_cache import ResolveResult
from .hosts_file import HostsFile
from .resolve import Resolver

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    import dns.asyncresolver

_LOOPBACK: dict[int, str] = {socket.AF_INET6: "::1", socket.AF_INET: "127.0.0.1"}


class DNSResolver(Resolver):
    """Asks name servers directly, by the library dnspython (``pip install trioconn[dns]``).

    Args:
      nameservers: their IP addresses; None takes those of the system, when the first name is resolved.
      port: of the name servers.
      lifetime: seconds for one question, all retries included.
      hosts_file: names that it holds are not asked for; None is the system's.

    Raises:
      ImportError: dnspython is not installed.
    """

    splits_families = True

    def __init__(
        self,
        *,
        nameservers: Sequence[str] | None = None,
        port: int = 53,
        lifetime: float = 5.0,
        hosts_file: str | os.PathLike[str] | None = None,
    ) -> None:
        try:
            importlib.import_module("dns.asyncresolver")
        except ImportError as exc:
            raise ImportError("DNSResolver needs the extra dns: pip install trioconn[dns]") from exc
        self._nameservers = None if nameservers is None else list(nameservers)
        self._port = port
        self._lifetime = lifetime
        self._hosts = HostsFile(hosts_file)
        self._resolver: dns.asyncresolver.Resolver | None = None
        # Questions for AAAA that are not yet on the wire, and the event that says so.
        self._leading: dict[str, trio.Event] = {}

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The addresses of `host` with their TTLs; IPv6 first if both families are asked for.

        Raises:
          ResolveError: the name does not exist, or no server gave a usable answer in time.
        """
        if family != socket.AF_UNSPEC:
            return await self._resolve_one(host, family)
        found: dict[int, list[ResolveResult]] = {}
        failures: list[Exception] = []
        begun = trio.Event()

        async def one(family: int, first: trio.Event | None) -> None:
            if first is not None:
                await first.wait()
            begun.set()
            try:
                found[family] = await self._resolve_one(host, family)
            except ResolveError as exc:
                failures.append(exc)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, socket.AF_INET6, None)
            nursery.start_soon(one, socket.AF_INET, begun)
        results = found.get(socket.AF_INET6, []) + found.get(socket.AF_INET, [])
        if not results and failures:
            raise failures[-1]
        return results

    async def _resolve_one(self, host: str, family: int) -> list[ResolveResult]:
        local = self._local(host, family)
        if local is not None:
            await trio.lowlevel.checkpoint()
            return local
        if family == socket.AF_INET:
            leading = self._leading.get(host)
            if leading is not None:
                await leading.wait()
            return await self._query(host, family, None)
        sent = self._leading[host] = trio.Event()
        try:
            return await self._query(host, family, sent.set)
        finally:
            sent.set()
            if self._leading.get(host) is sent:
                del self._leading[host]

    def _local(self, host: str, family: int) -> list[ResolveResult] | None:
        addresses = self._hosts.addresses(host)
        if addresses:
            same = [address for address in addresses if (":" in address) == (family == socket.AF_INET6)]
            return [ResolveResult(address, family) for address in same]
        name = host.removesuffix(".").lower()
        if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 section 6.3: never ask the DNS
            return [ResolveResult(_LOOPBACK[family], family)]
        return None

    async def _query(self, host: str, family: int, sent: Callable[[], None] | None) -> list[ResolveResult]:
        import dns.exception
        import dns.resolver

        kind = "AAAA" if family == socket.AF_INET6 else "A"
        try:
            if self._resolver is None:
                self._resolver = self._configured()
            answer = await self._resolver.resolve(
                host,
                kind,
                raise_on_no_answer=False,
                # Search domains are for single labels only: else the families of one name could come from two.
                search="." not in host,
                backend=_watched(sent),
            )
        except dns.resolver.NXDOMAIN as exc:
            raise ResolveError("the name does not exist", errno=socket.EAI_NONAME, stage="resolve") from exc
        except dns.exception.DNSException as exc:
            raise ResolveError(f"DNS question for {kind}: {shown(str(exc))}", stage="resolve") from exc
        if answer.rrset is None:
            return []
        # The shortest one of the chain of aliases, too.
        ttl = float(answer.chaining_result.minimum_ttl)
        records = cast("Iterable[Any]", answer.rrset)
        return [ResolveResult(str(record.address), family, ttl) for record in records]

    def _configured(self) -> dns.asyncresolver.Resolver:
        import dns.asyncresolver

        resolver = dns.asyncresolver.Resolver(configure=self._nameservers is None)
        resolver.lifetime = self._lifetime
        resolver.port = self._port
        if self._nameservers is not None:
            resolver.nameservers = self._nameservers
        return resolver


def _watched(sent: Callable[[], None] | None) -> Any:
    import dns.asyncbackend

    # Given by name: dnspython would find out by itself which library runs, and in guest mode may be wrong.
    backend = dns.asyncbackend.get_backend("trio")
    return backend if sent is None else _WatchedBackend(backend, sent)


class _WatchedBackend:
    """dnspython's backend, which besides tells when the first question is on the wire."""

    def __init__(self, inner: Any, sent: Callable[[], None]) -> None:
        self._inner = inner
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def make_socket(self, *args: Any, **kwargs: Any) -> Any:
        # A stream among them is never the first: it is made when an answer did not fit into a datagram.
        return _WatchedSocket(await self._inner.make_socket(*args, **kwargs), self._sent)


class _WatchedSocket:
    def __init__(self, inner: Any, sent: Callable[[], None]) -> None:
        self._inner = inner
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    def __aexit__(self, *exc: object) -> Awaitable[None]:
        closing: Awaitable[None] = self._inner.__aexit__(*exc)
        return closing

    async def sendto(self, *args: Any) -> Any:
        count = await self._inner.sendto(*args)
        self._sent()
        return count
