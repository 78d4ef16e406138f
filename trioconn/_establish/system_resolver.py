"""The system's resolver: `getaddrinfo`, in threads.

Theory of operation
-------------------
``getaddrinfo`` for both families answers when the slower one has answered; where a server drops AAAA questions that is
after 10 s and more, though the IPv4 address was known at once. Asked separately, neither waits for the other
(RFC 8305 section 3: with a blocking interface, one thread for each family).

Three kinds of names are not split. Those in the hosts file: for a name that has only an IPv4 address there, the
question for IPv6 would go on to the DNS, whose answer the administrator meant to override. ``localhost``, ``.local``
(mDNS) and names of a single label: sources of the system beside the DNS answer them, and several of these stop the
search, or complete the name, differently for a single family. And all of them when a resolver hook of trio is installed
(`trio.socket.set_custom_hostname_resolver`): its user decided about order and families.

A thread in ``getaddrinfo`` cannot be stopped. On cancellation it is left behind and keeps its token until the system
answers. So that lookups that hang cannot starve the rest of the program, the tokens are not those of trio's default
limiter but the resolver's own. (One limiter for the process would outlive the run, and a thread that ends after its run
never gives its token back.)
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from .dns_cache import ResolveResult
from .hosts_file import HostsFile
from .resolve import Resolver

if TYPE_CHECKING:
    from collections.abc import Iterable

THREADS: Final = 16
"""How many lookups may be in the hands of the system at once: 8 names, both families."""
_Infos: TypeAlias = "Iterable[tuple[int, int, int, str, tuple[Any, ...]]]"


class SystemResolver(Resolver):
    """Asks the operating system, and so knows its hosts file, mDNS, search domains and whatever else is configured.

    It learns no TTLs. A resolver hook of trio is honoured.
    """

    splits_families = True

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(THREADS)
        self._hosts = HostsFile()

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The addresses of `host` in the system's order.

        Raises:
          OSError: `socket.gaierror`, as ``getaddrinfo`` raises it.
        """
        if _hook_is_installed():
            infos: _Infos = await trio.socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        else:
            # A checkpoint and a cancel point; when cancelled the thread stays behind and touches nothing of ours.
            infos = await trio.to_thread.run_sync(
                _getaddrinfo, host, port, family, abandon_on_cancel=True, limiter=self._limiter
            )
        return [_result(family, address) for family, _, _, _, address in infos]

    def splits(self, host: str) -> bool:
        """Whether the families of `host` are asked for separately: see the theory of operation."""
        name = host.removesuffix(".").lower()
        if "." not in name or name.endswith((".local", ".localhost")) or _hook_is_installed():
            return False
        return not self._hosts.addresses(name) and self._hosts.readable

    def why_late(self) -> str:
        """Says so if lookups that the system never answered hold all threads."""
        if self._limiter.available_tokens:
            return ""
        return f"all {THREADS} threads for lookups are held by lookups that the system does not answer"


@trio.lowlevel.enable_ki_protection
def _hook_is_installed() -> bool:
    # trio tells which hook there is only when it is exchanged. Nothing can run between the two calls.
    hook = trio.socket.set_custom_hostname_resolver(None)
    trio.socket.set_custom_hostname_resolver(hook)
    return hook is not None


def _getaddrinfo(host: str, port: int, family: int) -> _Infos:
    if family != socket.AF_UNSPEC:
        return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    try:
        # Spares machines without IPv6 the questions for it.
        return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except socket.gaierror as exc:
        if exc.errno == socket.EAI_AGAIN:
            raise
        # The flag does not count loopback interfaces, so that a machine without network would not know itself
        # (aiohttp#5357).
        return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)


def _result(family: int, address: tuple[Any, ...]) -> ResolveResult:
    text = str(address[0])
    if family == socket.AF_INET6 and len(address) == 4 and address[3] and "%" not in text:
        text = f"{text}%{address[3]}"
    return ResolveResult(text, family)
