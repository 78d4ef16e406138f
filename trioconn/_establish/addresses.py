"""In which order a host's addresses are tried.

Theory of operation
-------------------

Three orders are laid on top of each other:

1. RFC 6724 section 6 sorts addresses by how well this machine can reach them: `by_reachability`. Only for resolvers
   that answer family by family; one that gives a single list has sorted it already (`getaddrinfo` does), and its order
   is kept. Of the rules those are left out that need what a program cannot know (deprecated and home addresses, the
   transport), and rule 9, longest matching prefix, is for IPv6 only: among IPv4 addresses it defeats the rotation of
   the name servers, which is why glibc and Go limit it too.
2. RFC 8305 section 4 puts an address that worked before in front: `History`. Only for ten minutes from when it was
   learnt, however often it is used, so that clients come back to what the resolver prefers (version 3 of the draft
   asks for that), and only as long as the machine would use the same source address for it: history must not cross
   networks. A race that only its first attempt ran in teaches nothing and is not recorded: else the first connection
   would undo the rotation among equally good addresses.
3. RFC 8305 section 4 interleaves the families, over the whole list: `interleave`. Whatever comes first keeps its place.

When a late answer arrives, all is sorted again, those already tried included, and the tried ones are then left out
(draft version 3): with an IPv6 attempt under way the next is an IPv4 address, and not the first of a new list.

Source addresses, and `now`, are given: nothing here touches a socket or a clock.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias, TypeVar

T = TypeVar("T")
IPAddress: TypeAlias = IPv4Address | IPv6Address
SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

# Prefix, precedence, label: RFC 6724 section 2.1, longest prefix first so that the first match is the right one.
_POLICY: tuple[tuple[IPv6Network, int, int], ...] = (
    (IPv6Network("::1/128"), 50, 0),
    (IPv6Network("::ffff:0:0/96"), 35, 4),
    (IPv6Network("::/96"), 1, 3),
    (IPv6Network("2001::/32"), 5, 5),
    (IPv6Network("2002::/16"), 30, 2),
    (IPv6Network("3ffe::/16"), 1, 12),
    (IPv6Network("fec0::/10"), 1, 11),
    (IPv6Network("fc00::/7"), 3, 13),
    (IPv6Network("::/0"), 40, 1),
)
_LINK_LOCAL, _SITE_LOCAL, _GLOBAL = 0x2, 0x5, 0xE
_LINK_LOCAL_V4 = (0x7F, 0xA9FE)  # 127/8 and 169.254/16: RFC 6724 section 3.2


@dataclass(frozen=True, slots=True)
class Address:
    """One place to connect to: an address family and the socket address in that family."""

    family: int
    sockaddr: SockAddr

    @classmethod
    def from_text(cls, text: str, port: int) -> Address | None:
        """`text`, an IP address with or without a zone; None if it is something else or has no such zone."""
        try:
            name, _, zone = text.partition("%")
            ip = ip_address(name)
            if isinstance(ip, IPv6Address):
                scope = (int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)) if zone else 0
                return cls(socket.AF_INET6, (str(ip), port, 0, scope))
        except (ValueError, OSError):  # no IP address; no interface of that name
            return None
        return None if zone else cls(socket.AF_INET, (str(ip), port))

    @property
    def ip(self) -> IPAddress:
        """The address without its zone."""
        return ip_address(self.sockaddr[0].partition("%")[0])

    def __str__(self) -> str:
        host, port = self.sockaddr[0], self.sockaddr[1]
        return f"[{host}]:{port}" if self.family == socket.AF_INET6 else f"{host}:{port}"


SourceAddress: TypeAlias = Callable[[Address], IPAddress | None]
"""The address that this machine would send from, or None if it has no way there."""


def interleave(items: Iterable[T], first_family_count: int, family: Callable[[T], int]) -> list[T]:
    """`items` with their families taking turns: RFC 8305 section 4.

    Args:
      items: in order of preference.
      first_family_count: how many of the first family come before the first of another one. 1 is the RFC's default,
        2 favours the first family more. 0 leaves the order alone; less behaves as 1.
      family: tells the family of an item.
    """
    if first_family_count == 0:
        return list(items)
    groups: dict[int, list[T]] = {}
    for item in items:
        groups.setdefault(family(item), []).append(item)
    queues = list(groups.values())
    ahead = max(0, first_family_count - 1)
    ordered = queues[0][:ahead] if queues else []
    if queues:
        queues[0] = queues[0][ahead:]
    for turn in range(max(map(len, queues), default=0)):
        ordered += [queue[turn] for queue in queues if turn < len(queue)]
    return ordered


def by_reachability(addresses: Iterable[Address], source: SourceAddress) -> list[Address]:
    """`addresses` sorted by RFC 6724 section 6, rules 1, 2, 5, 6, 8 and 9; equal ones keep their order."""
    return sorted(addresses, key=lambda address: _rank(address.ip, source(address)))


def _rank(destination: IPAddress, source: IPAddress | None) -> tuple[bool, bool, bool, int, int, int]:
    precedence, label = _precedence_and_label(destination)
    scope = _scope(destination)
    if source is None:  # rule 1; the others need a source, save those that look at the destination only
        return (True, True, True, -precedence, scope, 0)
    return (
        False,
        scope != _scope(source),
        label != _precedence_and_label(source)[1],
        -precedence,
        scope,
        -_common_prefix(destination, source),
    )


def _precedence_and_label(address: IPAddress) -> tuple[int, int]:
    mapped = _as_ipv6(address)
    return next((precedence, label) for prefix, precedence, label in _POLICY if mapped in prefix)


def _as_ipv6(address: IPAddress) -> IPv6Address:
    if isinstance(address, IPv6Address):
        return address
    return IPv6Address(0xFFFF_0000_0000 | int(address))


def _scope(address: IPAddress) -> int:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, IPv4Address):
        number = int(address)
        return _LINK_LOCAL if number >> 24 == _LINK_LOCAL_V4[0] or number >> 16 == _LINK_LOCAL_V4[1] else _GLOBAL
    if address.is_link_local or address.is_loopback:
        return _LINK_LOCAL
    return _SITE_LOCAL if address.is_site_local else _GLOBAL


def _common_prefix(destination: IPAddress, source: IPAddress) -> int:
    if not isinstance(destination, IPv6Address) or not isinstance(source, IPv6Address):
        return 0
    # The comparison ends with the source's prefix: what follows names a machine, not a place. Its true length is
    # unknown here; 64 is that of nearly every link.
    return min(64, 128 - (int(destination) ^ int(source)).bit_length())


@dataclass(slots=True)
class _Entry:
    address: Address
    source: IPAddress | None
    until: float


class History:
    """Which address of a host was the one that worked, for ten minutes.

    Keys are opaque and hold whatever must not share an experience: host, port, isolation. Bounded: beyond `max_size`
    the key that was not used for the longest time is forgotten.
    """

    def __init__(self, *, max_size: int = 1000, ttl: float = 600.0) -> None:
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._max_size = max_size
        self._ttl = ttl

    @property
    def size(self) -> int:
        """How many keys are remembered. (With ``__len__``, a new history would be false, and ``or`` replace it.)"""
        return len(self._entries)

    def preferred(self, key: Hashable, now: float, source: SourceAddress) -> Address | None:
        """The address to try first, or None.

        What was learnt more than ten minutes ago, or with another source address, is forgotten.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry.until or source(entry.address) != entry.source:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry.address

    def won(self, key: Hashable, address: Address, now: float, source: SourceAddress) -> None:
        """`address` won a race against others, or after others had failed."""
        self._entries[key] = _Entry(address, source(address), now + self._ttl)
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_size:
            self._entries.popitem(last=False)

    def failed(self, key: Hashable, address: Address) -> None:
        """An attempt at `address` failed: if it was the preferred one, it no longer is."""
        entry = self._entries.get(key)
        if entry is not None and entry.address == address:
            del self._entries[key]

    def clear(self) -> None:
        """Forget everything: the network has changed, or the caller wants a fresh start."""
        self._entries.clear()


class Order:
    """The addresses of one race that are known so far, and the order in which to try them.

    Args:
      first_family_count: see `interleave`.
      source: the machine's source address for a destination.
      preferred: what `History` says, or None.
    """

    def __init__(self, *, first_family_count: int, source: SourceAddress, preferred: Address | None = None) -> None:
        self._first_family_count = first_family_count
        self._source = source
        self._preferred = preferred
        self._known: list[Address] = []

    def add(self, addresses: Iterable[Address], *, sort: bool) -> None:
        """Some addresses were found; those known already are skipped. `sort`: by RFC 6724, with all the others."""
        self._known = list(dict.fromkeys([*self._known, *addresses]))
        if sort:
            self._known = by_reachability(self._known, self._source)

    def untried(self, tried: Sequence[Address]) -> list[Address]:
        """What is left, in order. The `tried` ones count: the families take turns across them."""
        known = self._known
        if self._preferred in known:
            known = [self._preferred, *(address for address in known if address != self._preferred)]
        seen = set(tried)
        return [
            address
            for address in interleave(known, self._first_family_count, lambda address: address.family)
            if address not in seen
        ]
